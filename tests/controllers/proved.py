"""Books kept from changes, held to their venue's own proof: what a controller's rules say of every message."""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from collector.records import Book, BookChange
from controllers.base import Controller
from controllers.book import OrderBook

Side = dict[Decimal, Decimal]


class Judged(NamedTuple):
    """One message: `book`, `change`, `old`, or what is wrong (`sequence`, `checksum`); and the book after it."""

    verdict: str
    bids: Side
    asks: Side


def judged(controller: Controller, frames: Iterable[str]) -> Iterator[Judged]:
    """Apply the books and changes of frames by the rules of a controller; it ends at the first that is wrong."""
    kept = OrderBook(trim=not controller.text_numbers)
    sequence: int | None = None
    for frame in frames:
        for message in controller.parse(frame.encode(), 0):
            if not isinstance(message, Book | BookChange):
                continue
            verdict = "book" if isinstance(message, Book) else _verdict(controller, message, sequence)
            if verdict == "book":
                assert isinstance(message, Book)
                kept.replace(message)
            elif verdict == "change":
                assert isinstance(message, BookChange)
                kept.apply(message)
            if verdict in ("book", "change"):
                sequence = message.sequence
                if controller.cut_to_depth:
                    cut(kept, controller.depth)
                if controller.verdict == "checksummed" and controller.checksum(kept) != message.checksum:
                    verdict = "checksum"
            yield Judged(verdict, *kept.as_numbers())
            if verdict in ("sequence", "checksum"):
                return


def _verdict(controller: Controller, change: BookChange, sequence: int | None) -> str:
    if controller.verdict == "checksummed":
        return "change"
    assert sequence is not None, "a change before any book"
    if controller.is_old(change, sequence):
        return "old"
    return "change" if controller.follows(change, sequence, joining=False) else "sequence"


def cut(book: OrderBook, depth: int | None) -> None:
    """Drop what lies beyond the depth."""
    for side, highest in ((book.bids, True), (book.asks, False)):
        prices = sorted(side.as_numbers(), reverse=highest)
        side.apply({f"{price:f}": "0" for price in prices[depth:]})


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
