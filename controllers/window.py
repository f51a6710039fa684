"""Books that begin with a REST book cut at so many levels: how far they are known, and how they come to be known on.

The stream tells every change, but what lies beyond the levels of the REST book and does not change is never told. So a
window of prices is known completely, and outside it some levels. A price that walks through the window takes the best
of the book where it is not known, while every number fits: such a book is plausible and wrong.

When few levels are left between the price and an edge, another REST book is asked for while this one goes on, brought
to the same number by the changes since, and compared: what both know must be equal, what only the other one knows is
added as one more row of the same epoch. A price that comes too near to the edge before that breaks the book.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from collector.errors import BadFrame, BookBroken, SourceError
from collector.numbers import Number, to_decimal
from collector.records import Book, BookChange, Datum, Record
from controllers.base import Setup
from controllers.book import OrderBook, Side
from controllers.book_feed import HeardBook, Rules
from controllers.feed import HeardFeed
from controllers.websocket import WSController

LATER_US = 10_000_000  # a REST book that came to nothing is asked for again
LOG_MAX = 10_000


@dataclass(frozen=True)
class Window:
    """The prices between which every level is known; None: there is no edge, since the REST book was not cut."""

    low: Decimal | None
    high: Decimal | None

    @classmethod
    def of(cls, book: OrderBook, levels: int) -> "Window":
        """Return the window of a REST book of at most so many levels a side."""
        return cls(book.bids.nth(levels, highest=True), book.asks.nth(levels, highest=False))

    def holds(self, book: OrderBook, levels: int) -> bool:
        """Tell whether the best so many levels of a side lie where every level is known."""
        if self.low is not None:
            bid = book.bids.nth(levels, highest=True)
            if bid is None or bid < self.low:
                return False
        if self.high is not None:
            ask = book.asks.nth(levels, highest=False)
            if ask is None or ask > self.high:
                return False
        return True

    def joined(self, newer: "Window") -> "Window":
        """Return the window that two make which overlap."""
        low = None if self.low is None or newer.low is None else min(self.low, newer.low)
        high = None if self.high is None or newer.high is None else max(self.high, newer.high)
        return Window(low, high)


class Renewal:
    """A REST book on its way, for a book that goes on meanwhile, and the changes of that one since it was asked for."""

    def __init__(self, feed: HeardBook, get: Callable[[str], Book | None], name: str) -> None:
        self.feed, self.epoch = feed, feed.epoch
        self.log: list[BookChange] = []
        self.book: Book | None = None
        self._get = get
        self._answers: queue.SimpleQueue[Book | None] = queue.SimpleQueue()
        threading.Thread(target=self._ask, name=f"{name}/window", daemon=True).start()

    def over(self) -> bool:
        """Look for the answer; tell whether it came to nothing, or is for nothing."""
        failed = False
        if self.book is None and not self._answers.empty():
            self.book = self._answers.get()
            failed = self.book is None
        return failed or len(self.log) > LOG_MAX or self.feed.epoch != self.epoch

    def ready(self) -> bool:
        """Tell whether the book is there and ours has come as far."""
        if self.book is None or self.book.sequence is None or self.feed.sequence is None:
            return False
        return self.feed.sequence >= self.book.sequence

    def brought_up(self, rules: Rules, levels: int) -> tuple[OrderBook, Window] | None:
        """Return the REST book as it is at our number, and its window; None where the changes do not continue it."""
        assert self.book is not None and self.book.sequence is not None
        fresh = OrderBook(trim=False)
        fresh.replace(self.book)
        window = Window.of(fresh, levels)
        since = [change for change in self.log if not rules.is_old(change, self.book.sequence)]
        if not since and self.feed.sequence != self.book.sequence:
            return None
        if since and not rules.follows(since[0], self.book.sequence, joining=True):
            return None
        for change in since:
            fresh.apply(change)
        return fresh, window

    def _ask(self) -> None:
        answer: Book | None = None
        try:
            with contextlib.suppress(SourceError):  # it is asked for again, later
                answer = self._get(self.feed.market)
        finally:
            self._answers.put(answer)


class WindowedController(WSController):
    """A controller whose REST books are cut at `snapshot_levels` a side.

    Its books are known on from where fewer than `renewed_below` are left; they have at least `depth` at any time.
    """

    depth: ClassVar[int]
    snapshot_levels: ClassVar[int]
    renewed_below: ClassVar[int]

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._windows: dict[HeardBook, Window] = {}
        self._renewal: Renewal | None = None
        self._later_us: dict[HeardBook, int] = {}

    def tick(self) -> None:
        """Look once a second for a book whose price has gone far, and for one that is known on."""
        super().tick()
        now_us = self.clock.monotonic_us()
        renewal = self._renewal
        if renewal is None:
            self._renew_one(now_us)
        elif renewal.over():
            self._renewal, self._later_us[renewal.feed] = None, now_us + LATER_US
        elif renewal.ready():
            self._renewal = None
            self._finish(renewal, now_us)

    def _renew_one(self, now_us: int) -> None:
        for feed, window in self._windows.items():
            if not feed.epoch or now_us < self._later_us.get(feed, 0):
                continue
            if not window.holds(feed.book, self.renewed_below):
                self._renewal = Renewal(feed, self._fetch_snapshot, self.name)
                return

    def _finish(self, renewal: Renewal, now_us: int) -> None:
        feed, before = renewal.feed, self._windows[renewal.feed]
        try:
            found = renewal.brought_up(self, self.snapshot_levels)
        except BadFrame:
            found = None
        if found is None:
            self._later_us[feed] = now_us + LATER_US
            return
        fresh, window = found
        bids = _missing(feed.book.bids, fresh.bids, before.low, window.low, bids=True)
        asks = _missing(feed.book.asks, fresh.asks, before.high, window.high, bids=False)
        if bids is None or asks is None:
            self.log.warning("book_broken", market=feed.market, reason="probe", error="another REST book differs")
            self.setup.metrics.books_broken.labels(self.exchange, "probe").inc()
            self.end_epoch(feed, "probe")
            feed.forget()
            self.resync(feed, now_us)
            return
        self._windows[feed] = before.joined(window)
        records: list[Record] = []
        feed.complete(bids, asks, now_us, self._offset_us, records)
        self.begin(feed, records)

    def _join(self, feed: HeardBook, book: Book, now_us: int) -> None:
        super()._join(feed, book, now_us)
        if feed.book.known and feed.epoch:
            seeded = OrderBook(trim=False)
            seeded.replace(book)
            self._windows[feed] = Window.of(seeded, self.snapshot_levels)

    def _take(self, feed: HeardFeed, message: Datum, at_us: int, records: list[Record]) -> bool:
        counts = super()._take(feed, message, at_us, records)
        if not isinstance(feed, HeardBook) or not feed.epoch or not isinstance(message, BookChange):
            return counts
        window = self._windows.get(feed)
        if window is not None and not window.holds(feed.book, self.depth):
            raise BookBroken("probe", "the price has come to where the book is not known")
        if self._renewal is not None and self._renewal.feed is feed:
            self._renewal.log.append(message)
        return counts


def _missing(
    ours: Side, fresh: Side, our_edge: Decimal | None, fresh_edge: Decimal | None, *, bids: bool
) -> dict[Number, Number] | None:
    """Return the levels that only the other book has; None where the two contradict each other."""

    def within(price: Decimal, edge: Decimal | None) -> bool:
        return edge is None or (price >= edge if bids else price <= edge)

    known, other = ours.as_numbers(), fresh.as_numbers()
    if any(within(price, our_edge) for price in other.keys() - known.keys()):
        return None
    if any(within(price, fresh_edge) for price in known.keys() - other.keys()):
        return None
    if any(known[price] != other[price] for price in known.keys() & other.keys()):
        return None
    return {price: size for price, size in fresh.levels.items() if to_decimal(price) not in known}
