"""Books kept from changes, held to their venue's own proof message by message, and live."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from collector.records import ORDERBOOK, TickerRow, TradeRow
from controllers.base import Controller
from tests.controllers.live import Live
from tests.controllers.venue import Side, make
from tests.fakes import FakeClock, HeardLog, Sides, Stored, make_setup, numbers


class Judged(NamedTuple):
    """What became of one message: `row`, `nothing` (it changed nothing), or why it broke the book; and the book then.

    Of a book that broke, the book is the last one that is stored.
    """

    verdict: str
    book: Sides

    def numbers(self) -> tuple[Side, Side]:
        """Return bids and asks as numbers."""
        return numbers(self.book[0]), numbers(self.book[1])


def judged(cls: type[Controller], market: str, frames: Iterable[str]) -> Iterator[Judged]:
    """Play frames to a controller and tell what is stored of each; it ends at the first that breaks the book."""
    clock, log = FakeClock(), HeardLog()
    setup = make_setup(clock=clock, log=log)
    controller = make(cls, market, setup=setup)
    stored = Stored(setup.intake)
    controller.anchor()
    rows = 0
    for frame in frames:
        controller.handle(frame.encode(), clock.advance(0.01))
        controller.flush()
        (epoch,) = stored.take().of(market)
        assert not stored.rejected
        assert epoch.verdict == cls.verdict
        assert epoch.mark is not None
        broken = [told["reason"] for told in log.of("book_broken")]
        verdict = broken[0] if broken else "row" if len(epoch.rows) > rows else "nothing"
        yield Judged(verdict, epoch.book)
        rows = len(epoch.rows)
        assert epoch.reason == (broken[0] if broken else None)
        assert bool(controller.books[market].epoch) == (not broken)
        if broken:
            return


def frames_of(wire: Path, file: str) -> list[str]:
    """Return the messages of a recording that came in over a socket."""
    lines = [json.loads(line) for line in (wire / file).read_text("utf-8").splitlines()]
    return [line["data"] for line in lines if (line["kind"], line["dir"]) == ("ws", "in")]


# --- against the simulator --------------------------------------------------------------------------------------------


def hear(stage: Live, cls: type[Controller], *markets: str, channels: tuple[str, ...] = (ORDERBOOK,)) -> Controller:
    """Start a controller of some channels."""
    idle = stage.start(cls, *markets, start=False, rate={"requests_per_s": 1000, "connects_per_s": 1000})
    stage.setup = replace(stage.setup, channels=channels)
    controller = stage.controllers[stage.controllers.index(idle)] = cls(markets, stage.setup)
    controller.start()
    return controller


def ended(stage: Live, market: str, epochs: int, rows: int = 5) -> None:
    """Wait until so many epochs of a market have ended, and one more has so many rows."""
    stage.until(lambda: len(stage.stored.of(market)) > epochs, what=f"{epochs + 1} epochs of {market}")
    stage.heard(rows, market)


def wait_for_rejected(stage: Live, count: int) -> None:
    """Wait until so many frames are rejected."""
    stage.until(lambda: len(stage.stored.rejected) == count, what=f"{count} rejected frames")


def check_streams(stage: Live, market: str, *, sent_as: dict[str, str]) -> None:
    """Hold what is stored of trades, tickers and candles to what was sent, by position, up to what is accounted for."""
    for epoch in stage.stored.of(market):
        if epoch.opened.channel == ORDERBOOK:
            continue
        what = sent_as[epoch.opened.channel]
        sent = [row for line in stage.lines(kind="message", what=what)[: epoch.frames] for row in line["rows"]]
        assert epoch.stream and epoch.frames
        found = [_told(row) for row in epoch.stream]
        truth = [_noted(what, row) for row in sent]
        if what == "candle":  # each is told again and again; its last state is what counts
            found, truth = ([*{row[:2]: row[:7] for row in rows}.values()] for rows in (found, truth))
        else:
            truth = [row for i, row in enumerate(truth) if what == "trade" or not i or row[:4] != truth[i - 1][:4]]
        assert found[: len(truth)] == truth


def _told(row: Any) -> tuple[Any, ...]:
    match row:
        case TradeRow():
            return row.trade_id, row.side, Decimal(row.price), Decimal(row.volume), row.venue_us
        case TickerRow():
            tokens = (row.last, row.bid, row.ask, row.volume)
            return *(None if token is None else Decimal(token) for token in tokens), row.venue_us
    return row.interval_s, row.open_us, *map(Decimal, (row.open, row.high, row.low, row.close, row.volume))


def _noted(what: str, row: dict[str, Any]) -> tuple[Any, ...]:
    match what:
        case "trade":
            return row["id"], row["side"], Decimal(row["price"]), Decimal(row["volume"]), row["venue_us"]
        case "ticker":
            tokens = (row[name] for name in ("last", "bid", "ask", "volume"))
            return *(None if token is None else Decimal(token) for token in tokens), row["venue_us"]
    return (
        row["interval_s"],
        row["open_us"],
        *(Decimal(row[name]) for name in ("open", "high", "low", "close", "volume")),
    )
