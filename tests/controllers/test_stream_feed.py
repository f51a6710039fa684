"""Trades, tickers and candles: what makes a row, what is a repeat, and what their coverage says."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pytest
import requests

from collector.records import (
    CANDLES,
    CHANNELS,
    ORDERBOOK,
    TICKER,
    TRADES,
    Candle,
    CandleRow,
    Message,
    Ticker,
    TickerRow,
    Trade,
    TradeRow,
)
from controllers import rest
from controllers.fetch import Answer
from controllers.rest import RESTController
from tests.controllers.test_base import Script, Stage, book
from tests.controllers.venue import check_sums
from tests.fakes import NOON_US, Epoch, FakeClock, HeardLog, Stored, make_setup

BTC = "BTC-KRW"
MINUTE_US = 60_000_000


class Streams(Script):
    """An exchange that has every channel on one connection."""

    offers = CHANNELS


class Merging(Streams):
    """As Bybit's contracts: a ticker holds what changed."""

    ticker_changes = True


def stage(cls: type[Script] = Streams, *channels: str) -> Stage:
    made = Stage(cls)
    made.setup = dataclasses.replace(made.setup, channels=channels or CHANNELS)
    made.controller = cls((BTC,), made.setup)
    made.controller.anchor()
    return made


def trade(number: int, **more: Any) -> Trade:
    values = {"side": "buy", "price": "10.50", "size": 2, "venue_us": NOON_US, **more}
    return Trade(BTC, str(number), **values)


def candle(minute: int, close: str = "10", **more: Any) -> Candle:
    return Candle(BTC, 60, NOON_US + minute * MINUTE_US, "10", "12", "9", close, "3", **more)


def stream(made: Stage, channel: str) -> list[Any]:
    return [row for epoch in made.stored.epochs.values() if epoch.opened.channel == channel for row in epoch.stream]


def ids(epoch: Epoch) -> list[Any]:
    return [row.trade_id for row in epoch.stream if isinstance(row, TradeRow)]


def test_each_channel_has_an_epoch_of_its_own() -> None:
    """The mutation that must make this fail: key `Controller.feeds` by market alone."""
    made = stage()
    made.hear(book())
    made.hear(trade(1), Ticker(BTC, "10"), candle(0))
    opened = {epoch.opened.channel: epoch for epoch in made.stored.epochs.values()}
    assert set(opened) == set(CHANNELS)
    assert {epoch.frames for epoch in opened.values()} == {1}
    made.end()
    assert set(made.stored.reasons) == {"stop"}
    assert made.counts["stored"] == 2


def test_the_last_price_is_told_to_whoever_looks_on() -> None:
    made = stage()
    made.hear(book())
    made.hear(trade(1), Ticker(BTC, "10", "9", "11"))
    shown = {row["channel"]: (row["last"], row["bid"], row["ask"]) for row in made.controller.status()}
    assert shown == {
        ORDERBOOK: (None, "10", "11"),
        TRADES: ("10.50", None, None),
        TICKER: ("10", "9", "11"),
        CANDLES: (None, None, None),
    }


def test_a_channel_that_was_not_asked_for_is_rejected() -> None:
    made = stage(Streams, ORDERBOOK)
    made.hear(trade(1))
    assert [rejected.reason for rejected in made.stored.rejected] == [f"trades of market '{BTC}' was not asked for"]


# --- trades -----------------------------------------------------------------------------------------------------------


def test_a_trade_is_a_row_once_however_often_it_comes() -> None:
    """The mutation that must make this fail: leave out the look into `_known` in `HeardTrades._rows`."""
    made = stage()
    made.hear(trade(1), trade(2), after=1)
    made.hear(trade(2))
    made.hear(trade(2), trade(3, side="sell", price=7, size="0.10"))
    rows = stream(made, TRADES)
    assert [row.trade_id for row in rows] == ["1", "2", "3"]
    assert rows[0] == TradeRow(1, "1", "buy", "10.5", "2", NOON_US + 1_000_000, NOON_US)
    assert (rows[2].side, rows[2].price, rows[2].volume) == ("sell", "7", "0.1")
    assert made.counts["duplicate"] == 1
    (epoch,) = made.stored.epochs.values()
    assert epoch.frames == 3, "a repeat is heard all the same"


def test_a_repeat_is_known_on_the_next_connection_too() -> None:
    made = stage()
    made.hear(trade(1))
    made.end("disconnect")
    made.hear(trade(1), trade(2))
    first, second = made.stored.epochs.values()
    assert ids(first) == ["1"]
    assert ids(second) == ["2"]


def test_a_trade_that_did_not_get_to_the_store_is_no_repeat_when_it_comes_again() -> None:
    """The mutation that must make this fail: leave `unsaid` out of `Controller._drop`."""
    made = stage()
    made.hear(trade(1))
    put, made.setup.intake.put = made.setup.intake.put, lambda *args, **more: bool(more) and put(*args, **more)  # type: ignore[method-assign]
    made.hear(trade(2))
    made.setup.intake.put = put  # type: ignore[method-assign]
    made.hear(trade(2), trade(3))
    assert [row.trade_id for row in stream(made, TRADES)] == ["1", "2", "3"]
    assert made.stored.reasons == ["no_space", None]


def test_a_trade_of_a_rejected_frame_is_no_repeat_when_it_comes_again() -> None:
    """The mutation that must make this fail: leave `unsaid` out of `Controller._reject`."""
    made = stage()
    made.hear(trade(1))
    made.hear(trade(2), trade(3, price="-1"))
    made.hear(trade(2))
    assert [row.trade_id for row in stream(made, TRADES)] == ["1", "2"]


def test_trades_without_an_id_are_told_apart_by_what_they_say() -> None:
    made = stage()
    one, other = (Trade(BTC, None, "buy", "1", size, 5) for size in ("1", "2"))
    made.hear(one, other, one)
    ids = [row.trade_id for row in stream(made, TRADES)]
    assert len(ids) == len(set(ids)) == 2


@pytest.mark.parametrize(
    "wrong", [{"price": "0"}, {"price": "-1"}, {"size": "0"}, {"size": "NaN"}, {"side": "up"}, {"venue_us": -1}]
)
def test_a_trade_that_can_not_be_is_rejected_and_ends_the_epoch(wrong: dict[str, Any]) -> None:
    made = stage()
    made.hear(trade(1))
    made.hear(trade(2, **wrong))
    made.hear(trade(2))
    assert len(made.stored.rejected) == 1
    assert made.stored.reasons == ["rejected", None]
    assert [row.trade_id for row in stream(made, TRADES)] == ["1", "2"]


def test_silence_of_trades_is_unconfirmed_until_the_next_one() -> None:
    made = stage()
    made.hear(book())
    made.hear(trade(1), after=1)
    for _ in range(30):
        made.hear(book({10: made.sent}), after=1)
        made.tick(0.0)
    epoch = next(epoch for epoch in made.stored.epochs.values() if epoch.opened.channel == TRADES)
    assert epoch.mark is not None
    assert epoch.mark.heard_until_us - epoch.opened.opened_us > 20_000_000
    assert epoch.mark.confirmed_until_us == epoch.opened.opened_us
    made.hear(trade(2))
    assert epoch.mark.confirmed_until_us - epoch.opened.opened_us > 30_000_000


# --- tickers ----------------------------------------------------------------------------------------------------------


def test_a_ticker_that_says_nothing_new_is_a_duplicate() -> None:
    """The mutation that must make this fail: leave out `told == self._last` in `HeardTicker._rows`."""
    made = stage()
    made.hear(Ticker(BTC, "10", "9", "11", "5", NOON_US))
    made.hear(Ticker(BTC, "10", "9", "11", "5", NOON_US + 1))
    made.hear(Ticker(BTC, "10", "9", None, "5"))
    rows = stream(made, TICKER)
    assert [(row.last, row.bid, row.ask, row.volume) for row in rows] == [
        ("10", "9", "11", "5"),
        ("10", "9", None, "5"),
    ]
    assert made.counts["duplicate"] == 1


def test_what_a_ticker_leaves_out_stays_where_it_holds_changes() -> None:
    """The mutation that must make this fail: `told` as it came in `HeardTicker._rows`."""
    made = stage(Merging)
    made.hear(Ticker(BTC, "10", "9", "11", "5"))
    made.hear(Ticker(BTC, None, "9.5"))
    assert (stream(made, TICKER)[1].last, stream(made, TICKER)[1].bid) == ("10", "9.5")


def test_two_tickers_of_one_frame_are_a_microsecond_apart() -> None:
    made = stage()
    made.hear(Ticker(BTC, "10"), Ticker(BTC, "11"))
    first, second = stream(made, TICKER)
    assert isinstance(first, TickerRow)
    assert second.received_us == first.received_us + 1


# --- candles ----------------------------------------------------------------------------------------------------------


def test_a_candle_is_told_whenever_it_changed_and_closed_by_the_next() -> None:
    """The mutation that must make this fail: leave out `ended` in `HeardCandles._rows`."""
    made = stage()
    made.hear(candle(0, "10"))
    made.hear(candle(0, "10"))
    made.hear(candle(0, "11"))
    made.hear(candle(1, "11"))
    rows: list[CandleRow] = stream(made, CANDLES)
    minutes = [(row.open_us - NOON_US) // MINUTE_US for row in rows]
    assert list(zip(minutes, [row.close for row in rows], [row.closed for row in rows], strict=True)) == [
        (0, "10", False),
        (0, "11", False),
        (0, "11", True),
        (1, "11", False),
    ]


def test_a_closed_candle_is_not_opened_again_but_may_be_corrected() -> None:
    made = stage()
    made.hear(candle(0, "10", closed=True))
    made.hear(candle(0, "9"))
    made.hear(candle(0, "12", closed=True))
    assert [(row.close, row.closed) for row in stream(made, CANDLES)] == [("10", True), ("12", True)]


@pytest.mark.parametrize(
    "message",
    [
        trade(1, size="-0"),
        trade(1, venue_us=1 << 62),
        Ticker(BTC, "10", None, None, "-0.0", NOON_US),
        Ticker(BTC, "10", None, None, "1", -32_400_000_000),
        Ticker(BTC, "10", None, None, "1", 1 << 63),
        Candle(BTC, 60, NOON_US, "10", "11", "9", "10", "-0"),
        Candle(BTC, 60, NOON_US, "10", "11", "-9", "10", "1"),
        Candle(BTC, 60, -MINUTE_US, "10", "11", "9", "10", "1"),
    ],
)
def test_what_no_row_may_hold_is_rejected_on_any_channel(message: Message) -> None:
    made = stage()
    made.hear(message)
    assert not made.stored.epochs
    assert [kept.market for kept in made.stored.rejected] == [BTC]


# --- polled -----------------------------------------------------------------------------------------------------------


class Polls(RESTController):
    """An exchange whose newest three trades are asked for."""

    exchange = "venue"
    rest_url = "http://venue.test"
    offers = (TRADES,)
    poll_every_s: ClassVar[Mapping[str, float]] = {TRADES: 1.0}
    poll_trades = 3

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        return f"/{channel}/{market}"

    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        return [trade(int(number)) for number in body.split()]


class Polling:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        setup = make_setup(clock=self.clock, log=HeardLog())
        self.setup = dataclasses.replace(setup, channels=(TRADES,))
        self.poller = Polls((BTC,), self.setup)
        self.poller.anchor()
        self.stored = Stored(self.setup.intake)
        self.sent = 0
        self._body = b""
        monkeypatch.setattr(rest, "fetch", lambda session, url, clock: Answer(200, {}, self._body))

    def poll(self, *numbers: int, after: float = 1.0) -> None:
        self.clock.advance(after)
        self._body = " ".join(map(str, numbers)).encode()
        self.sent += 1
        with requests.Session() as session:
            self.poller._poll_safely(session, self.poller.feeds[BTC, TRADES])
        self.poller._end_what_is_too_old(self.clock.monotonic_us())
        self.poller.flush()
        self.stored.take()


def test_polled_trades_that_do_not_overlap_break_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: leave `end_epoch` out of `RESTController._read`."""
    polling = Polling(monkeypatch)
    polling.poll(1, 2, 3)
    polling.poll(2, 3, 4)
    polling.poll(6, 7, 8)  # 5 was never seen
    first, second = polling.stored.epochs.values()
    assert (ids(first), first.reason) == (["1", "2", "3", "4"], "sequence")
    assert (ids(second), second.reason) == (["6", "7", "8"], None)


def test_an_answer_that_is_not_full_can_have_missed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    polling = Polling(monkeypatch)
    polling.poll(1)
    polling.poll(2, 3)
    assert polling.stored.reasons == [None]


def test_an_answer_without_trades_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: leave `_held_nothing` out of `RESTController._answered`."""
    polling = Polling(monkeypatch)
    for _ in range(5):
        polling.poll()
    polling.poll(1)
    (epoch,) = polling.stored.epochs.values()
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us - epoch.opened.opened_us == 5_000_000
    check_sums(polling.setup, polling.stored, "venue", polling.sent)


def test_polls_too_far_apart_leave_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    polling = Polling(monkeypatch)
    polling.poll(1)
    polling.poll(1, 2, after=2.9)
    polling.poll(1, 2, 3, after=3.2)
    assert polling.stored.reasons == ["stale", None]
