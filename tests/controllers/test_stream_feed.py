"""What no row of trades, tickers or candles may hold is refused, whichever exchange sends it."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from collector.records import CHANNELS, Candle, Message, Ticker, Trade
from controllers.base import Controller
from tests.fakes import NOON_US, Stored, make_setup

BTC = "BTC-KRW"
GOOD: tuple[Message, ...] = (
    Trade(BTC, "1", "buy", "10", "0.5", NOON_US),
    Ticker(BTC, "10", None, None, "0", NOON_US),
    Candle(BTC, 60, NOON_US, "10", "11", "9", "10", "0"),
)


class Fed(Controller):
    """An exchange whose next frame means what the test says."""

    exchange = "venue"
    transport = "websocket"
    offers = CHANNELS
    next: Iterable[Message] = ()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        return self.next


def heard(*messages: Message) -> Stored:
    """Return what a controller hands over when each of these comes in a frame of its own."""
    fed = Fed((BTC,), replace(make_setup(), channels=CHANNELS))
    fed.anchor()
    for message in messages:
        fed.next = (message,)
        fed.handle(b"frame", fed.clock.monotonic_us())
        fed.flush()
    return Stored(fed.setup.intake).take()


def test_nought_may_be_what_was_traded_in_a_time() -> None:
    assert [len(epoch.stream) for epoch in heard(*GOOD).epochs.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    "message",
    [
        Trade(BTC, "1", "buy", "10", "-0", NOON_US),
        Trade(BTC, "1", "buy", "0", "1", NOON_US),
        Trade(BTC, "1", "buy", "10", "1", -1),
        Trade(BTC, "1", "buy", "10", "1", 1 << 62),
        Ticker(BTC, "10", None, None, "-0.0", NOON_US),
        Ticker(BTC, "10", None, None, "1", -32_400_000_000),
        Ticker(BTC, "10", None, None, "1", 1 << 63),
        Candle(BTC, 60, NOON_US, "10", "11", "9", "10", "-0"),
        Candle(BTC, 60, NOON_US, "10", "11", "-9", "10", "1"),
        Candle(BTC, 60, -60_000_000, "10", "11", "9", "10", "1"),
    ],
)
def test_what_no_row_holds_is_rejected(message: Message) -> None:
    stored = heard(message)
    assert not stored.epochs
    (kept,) = stored.rejected
    assert kept.market == BTC
