"""Books kept from changes, held to their venue's own proof message by message; a book rebuilt without the collector."""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from controllers.base import Controller
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


class Reference:
    """A book rebuilt with nothing of the collector: plain dictionaries of exact numbers."""

    def __init__(self) -> None:
        self.bids: Side = {}
        self.asks: Side = {}

    def take(self, bids: Iterable[Any], asks: Iterable[Any], *, whole: bool, depth: int | None = None) -> None:
        """Take (price, size) rows."""
        if whole:
            self.bids, self.asks = {}, {}
        for side, rows in ((self.bids, bids), (self.asks, asks)):
            for price, size in rows:
                side[Decimal(price)] = Decimal(size)
        self.bids = dict(sorted(((p, s) for p, s in self.bids.items() if s), reverse=True)[:depth])
        self.asks = dict(sorted((p, s) for p, s in self.asks.items() if s)[:depth])
