"""Trades, tickers and candles of the Korean exchanges, from the simulator over real sockets into rows."""

import dataclasses
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.clock import Clock
from collector.records import CANDLES, CHANNELS, TICKER, TRADES, CandleRow, TickerRow, TradeRow
from controllers.base import Controller
from controllers.bithumb import BithumbREST, BithumbWebSocket
from controllers.coinone import Coinone, CoinoneCandles
from controllers.gopax import Gopax, GopaxCandles
from controllers.korbit import Korbit, KorbitCandles
from controllers.rest import RESTController
from controllers.upbit import Upbit
from storage.audit import audit_sides
from storage.reader import BookAt
from tests.controllers.live import Live
from tests.fakes import Epoch, HeardLog, Stored, make_setup

MARKETS = ("BTC-KRW", "ETH-KRW")
SOCKETS = (Upbit, BithumbWebSocket, Coinone, Korbit, Gopax)
POLLS = (BithumbREST, CoinoneCandles, KorbitCandles, GopaxCandles)
Ledger = list[dict[str, Any]]


@pytest.fixture
def hear(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Return a starter of a controller of one exchange that hears all it offers from the simulator."""
    running: list[Live] = []

    def start(cls: type[Controller], *, channels: tuple[str, ...] = CHANNELS) -> Live:
        live = Live(tmp_path, cls.exchange, markets=MARKETS, rate_hz=150)
        live.log = HeardLog()
        endpoint = live.simulator.endpoints[cls.exchange]
        live.setup = dataclasses.replace(
            make_setup(clock=Clock(), log=live.log, endpoint=endpoint, poll_interval_s=0.1), channels=channels
        )
        live.stored = Stored(live.setup.intake)
        live.controllers.append(cls(MARKETS, live.setup))
        running.append(live)
        live.controllers[0].start()
        return live

    yield start
    for live in running:
        live.close()


def heard(live: Live, market: str, channel: str) -> Epoch:
    """Return the one epoch of a feed."""
    (epoch,) = [one for one in live.stored.of(market) if one.opened.channel == channel]
    return epoch


def sent(live: Live, market: str, channel: str, frames: int) -> list[Ledger]:
    """Return the rows of the first messages that were sent on the subscription of a feed."""
    (made,) = live.lines(kind="subscribe", market=market, channel=channel)
    lines = live.lines(kind="message", subscription=made["subscription"], fate="sent")
    return [line.get("rows", []) for line in lines[:frames]]


def numbers(*tokens: str | None) -> tuple[Decimal | None, ...]:
    return tuple(None if token is None else Decimal(token) for token in tokens)


def enough(live: Live, cls: type[Controller], rows: int, channels: tuple[str, ...] = CHANNELS[1:]) -> None:
    """Wait until every feed has been heard, trades and tickers several times."""
    offered = [channel for channel in channels if channel in cls.offers]

    def ready() -> bool:
        feeds = {(e.opened.market, e.opened.channel): len(e.stream) for e in live.stored.epochs.values()}
        wanted = {channel: 1 if channel == CANDLES else rows for channel in offered}
        return all(feeds.get((market, channel), 0) >= wanted[channel] for market in MARKETS for channel in offered)

    live.until(ready, what=f"rows of {offered}")
    live.stop()


def check_trades(epoch: Epoch, messages: list[Ledger]) -> None:
    said = {row["id"]: row for rows in messages for row in rows}
    kept = [row for row in epoch.stream if isinstance(row, TradeRow)]
    assert {row.trade_id for row in kept} == said.keys()
    assert len(kept) == len(said)
    for row in kept:
        one = said[row.trade_id]
        assert (row.side, row.venue_us) == (one["side"], one["venue_us"])
        assert numbers(row.price, row.volume) == numbers(one["price"], one["volume"])


def check_tickers(epoch: Epoch, messages: list[Ledger]) -> None:
    names = ("last", "bid", "ask", "volume")
    said = [tuple(numbers(*(row[name] for name in names))) for rows in messages for row in rows]
    told = [one for at, one in enumerate(said) if not at or one != said[at - 1]]
    kept = [row for row in epoch.stream if isinstance(row, TickerRow)]
    assert [numbers(row.last, row.bid, row.ask, row.volume) for row in kept] == told
    assert {row.venue_us for row in kept} <= {row["venue_us"] for rows in messages for row in rows}


def check_candles(epoch: Epoch, messages: list[Ledger]) -> None:
    said = {row["open_us"]: row for rows in messages for row in rows}
    kept = {row.open_us: row for row in epoch.stream if isinstance(row, CandleRow)}
    assert kept.keys() == said.keys()
    for open_us, row in kept.items():
        one = said[open_us]
        assert open_us % 60_000_000 == 0
        assert numbers(row.open, row.high, row.low, row.close, row.volume) == numbers(
            one["open"], one["high"], one["low"], one["close"], one["volume"]
        )
        assert row.closed == (open_us < max(kept))


CHECKS = {TRADES: check_trades, TICKER: check_tickers, CANDLES: check_candles}


@pytest.mark.parametrize("cls", [*SOCKETS, *POLLS], ids=lambda cls: cls.__name__)
def test_what_is_stored_is_what_was_sent(
    hear: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, cls: type[Controller]
) -> None:
    if issubclass(cls, RESTController):
        monkeypatch.setattr(cls, "poll_every_s", {})
    live = hear(cls)
    enough(live, cls, rows=2 if cls is Gopax else 4)
    for market in MARKETS:
        for channel in cls.offers:
            epoch = heard(live, market, channel)
            if channel in CHECKS:
                CHECKS[channel](epoch, sent(live, market, channel, epoch.frames))
            else:
                assert epoch.rows, "the book of the same connection"
    assert not live.stored.rejected
    assert {row["market"] for row in live.lines(kind="subscribe")} >= set(MARKETS)


@pytest.mark.parametrize("cls", [Upbit, BithumbWebSocket, Coinone, Korbit], ids=lambda cls: cls.__name__)
def test_the_sides_of_what_is_stored_agree_with_the_stored_books(
    hear: Callable[..., Live], cls: type[Controller]
) -> None:
    """A side read the wrong way round would contradict nearly every book; Bithumb's books leave out the dust."""
    live = hear(cls, channels=CHANNELS[:2])
    enough(live, cls, rows=25, channels=(TRADES,))
    market = MARKETS[0]
    kept = heard(live, market, "orderbook")
    source: Any = None  # an audit looks at the books alone
    books = [
        BookAt(
            source, row.n, kept.opened.opened_us + row.at_us, kept.opened.opened_us + row.at_us - (row.lag_us or 0),
            None, row.flags, *(tuple(sorted(side.items(), key=lambda level: Decimal(level[0]))) for side in sides),
        )
        for row, sides in zip(kept.rows, kept.books, strict=True)
    ]  # fmt: skip
    books = [msgspec.structs.replace(book, bids=book.bids[::-1]) for book in books]
    trades = [row for row in heard(live, market, TRADES).stream if isinstance(row, TradeRow)]
    audit = audit_sides(cls.exchange, market, sorted(trades, key=lambda row: row.venue_us), books)
    assert audit.agreeing >= 10
    assert audit.contradicting <= audit.agreeing // 10, audit


@pytest.mark.parametrize("cls", SOCKETS, ids=lambda cls: cls.__name__)
def test_trades_alone_are_heard_alone(hear: Callable[..., Live], cls: type[Controller]) -> None:
    live = hear(cls, channels=(TRADES,))
    live.until(lambda: any(epoch.stream for epoch in live.stored.epochs.values()), what="a trade")
    live.stop()
    assert {epoch.opened.channel for epoch in live.stored.epochs.values()} == {TRADES}
    assert not live.stored.rejected


@pytest.mark.parametrize("cls", [Korbit, Gopax], ids=lambda cls: cls.__name__)
def test_trades_are_covered_from_the_moment_their_subscription_was_taken(
    hear: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, cls: type[Controller]
) -> None:
    """Where an unknown market would be refused, a market without a trade for hours is covered all the same."""
    monkeypatch.setattr(f"simulator.{cls.exchange}.{cls.exchange.title()}.opening", lambda *_: [])
    monkeypatch.setattr(f"simulator.{cls.exchange}.{cls.exchange.title()}.news", lambda *_: [])
    live = hear(cls, channels=(TRADES,))
    live.until(lambda: len(live.stored.epochs) == len(MARKETS), what="coverage of both markets")
    live.stop()
    assert not any(epoch.stream for epoch in live.stored.epochs.values())
    assert not live.stored.rejected
