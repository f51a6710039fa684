"""The order book of one market as a controller hears it: the rows that go to the store.

An epoch of a book opens with a complete one and numbers its rows 1, 2, 3... When a complete book is stored again
instead of what changed: when an epoch opens; with the first row of a UTC day, so that a day can be read alone; when the
changes since the last one exceed four times its size; after a minute, if they exceed half of it.

A book that is kept from changes is proved message by message where the exchange numbers them or sends sums: a change
that does not follow, or leaves another book than the exchange's, breaks it (`BookBroken`) and is not stored.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Protocol

from collector.errors import BadFrame, BookBroken
from collector.numbers import Number
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    KEYFRAME,
    ROWS_MAX,
    SAMPLED,
    Book,
    BookChange,
    BookRow,
    Datum,
    EpochVerdict,
    Feed,
    Record,
)
from controllers.book import Changes, OrderBook, check_levels, levels_json
from controllers.feed import FeedFacts, HeardFeed

DAY_US = 86_400_000_000
KEYFRAME_AFTER_US = 60_000_000
EARLY_MAX = 10_000
SEQUENCE_MAX = 1 << 62


class Rules(Protocol):
    """An exchange's own rules; see `Controller`."""

    def is_old(self, change: BookChange, sequence: int) -> bool:
        """Tell whether a book at `sequence` holds a change already."""

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether a change is the next one for a book at `sequence`."""

    def checksum(self, book: OrderBook) -> int:
        """Return the exchange's sum over a book."""


class HeardBook(HeardFeed):
    """The state of one book."""

    def __init__(self, key: Feed, facts: FeedFacts, epochs: Iterator[int], rules: Rules) -> None:
        super().__init__(key, facts, epochs)
        self.book = OrderBook(trim=not facts.text_numbers)
        self.n = 0  # rows of the epoch
        self._rules = rules
        # what the next row depends on
        self.sequence: int | None = None
        self._joining = False  # the book is from elsewhere, and no change of the stream has followed it yet
        self._early: list[BookChange] = []
        self._mismatch = False
        self._day = 0
        self._keyframe_bytes = self._changes_bytes = 0
        self._keyframe_at_us = 0
        # getting a complete book anew
        self.breaks = 0  # in a row
        self.broken_us = 0  # when the last one was

    @property
    def best(self) -> tuple[Decimal | None, Decimal | None]:
        """The best bid and ask."""
        return self.book.bids.best(highest=True), self.book.asks.best(highest=False)

    # --- messages -----------------------------------------------------------------------------------------------------

    def take(self, message: Datum, at_us: int, offset_us: int, records: list[Record]) -> bool:
        """Take a complete book or a change; see `HeardFeed.take`."""
        assert isinstance(message, Book | BookChange)
        _check_sequence(message.sequence)
        if isinstance(message, Book):
            self._take_book(message, at_us, offset_us, records)
        elif not self.book.known:
            return self._hold_back(message)
        elif self._is_old(message):  # it is in the complete book already
            check_levels(message)
        else:
            self._take_change(message, at_us, offset_us, records)
        return True

    def _take_book(self, message: Book, at_us: int, offset_us: int, records: list[Record]) -> None:
        sequence = message.sequence
        if (
            self._facts.rising_sequence
            and sequence is not None
            and self.sequence is not None
            and sequence <= self.sequence
        ):
            check_levels(message)
            return
        self.sequence, self._joining = sequence, False
        bids, asks = self.book.replace(message)
        self._verify(message)
        if self.epoch and self._facts.verdict == "linked" and (bids or asks):
            # Not what the changes led to: something between them never came.
            records += self.end("sequence", self.confirmed_at_us)
        mismatch = message.totals is not None and not self.book.adds_up_to(message.totals)
        self._row(message, bids, asks, mismatch, at_us, offset_us, records)
        early, self._early = self._early, []
        for change in early:
            self.take(change, at_us, offset_us, records)

    def _take_change(self, message: BookChange, at_us: int, offset_us: int, records: list[Record]) -> None:
        facts = self._facts
        if facts.verdict == "linked":
            if self.sequence is None or not self._rules.follows(message, self.sequence, joining=self._joining):
                raise BookBroken("sequence", f"change {_number(message)} does not follow {self.sequence}")
            self.sequence, self._joining = message.sequence, False
        if facts.cut_to_depth and facts.depth is not None:
            bids = self.book.bids.apply(message.bids, keep=facts.depth, highest=True)
            asks = self.book.asks.apply(message.asks, keep=facts.depth, highest=False)
        else:
            bids, asks = self.book.apply(message)
        self._verify(message)
        self._row(message, bids, asks, False, at_us, offset_us, records)

    def _is_old(self, change: BookChange) -> bool:
        if self.sequence is None:
            return False
        if self._facts.verdict:
            return self._rules.is_old(change, self.sequence)
        return change.sequence is not None and change.sequence <= self.sequence

    def _verify(self, message: Book | BookChange) -> None:
        if message.checksum is not None:
            ours = self._rules.checksum(self.book)
            if ours != message.checksum:
                raise BookBroken("checksum", f"the sum over our book is {ours}, the exchange says {message.checksum}")

    def _hold_back(self, change: BookChange) -> bool:
        # What a complete book that comes in the stream holds already is of no use behind it.
        if self._facts.verdict and not self._facts.joins_snapshots:
            self.tally["received"] += 1
            self.tally["dropped"] += 1
            return False
        if len(self._early) >= EARLY_MAX:
            raise BadFrame(f"{EARLY_MAX} changes came before a complete book")
        self._early.append(change)
        return True

    def join(self, book: Book, at_us: int, offset_us: int, records: list[Record]) -> bool:
        """Take a complete book from elsewhere and what came since; False where it is too old for what came first.

        Raises as `take` does.
        """
        if book.sequence is None:
            raise BadFrame("a book to join has no sequence")
        _check_sequence(book.sequence)
        early = [change for change in self._early if not self._rules.is_old(change, book.sequence)]
        if early and not self._rules.follows(early[0], book.sequence, joining=True):
            return False
        self._early = []
        self._take_book(book, at_us, offset_us, records)
        self._joining = True
        for change in early:
            self._take_change(change, at_us, offset_us, records)
        self.frames, self.total = len(early), self.total + len(early)
        self.confirmed_at_us, self.waits_since_us = at_us, None
        return True

    def complete(
        self,
        bids: Mapping[Number, Number],
        asks: Mapping[Number, Number],
        at_us: int,
        offset_us: int,
        records: list[Record],
    ) -> None:
        """Add levels that stood in the book all along, beyond what was known of it."""
        known = BookChange(self.market, bids, asks, None, self.sequence)
        self._row(known, *self.book.apply(known), False, at_us, offset_us, records)

    @property
    def waits_for_a_book(self) -> bool:
        """Whether changes came and no complete book to apply them to."""
        return bool(self._early)

    def forget(self) -> None:
        """Forget the book: the next epoch needs a complete one."""
        self.book.clear()
        self._early.clear()
        self.sequence, self._joining = None, False

    def _row(
        self,
        message: Book | BookChange,
        bids: Changes,
        asks: Changes,
        mismatch: bool,
        at_us: int,
        offset_us: int,
        records: list[Record],
    ) -> None:
        if self.n >= ROWS_MAX and self.epoch:
            records += self.end("superseded", self.confirmed_at_us)
        opening = not self.epoch
        if not (bids or asks or opening or (mismatch and not self._mismatch)):
            return
        if opening:
            checked = isinstance(message, Book) and message.totals is not None and not mismatch
            facts = self._facts
            verdict = facts.verdict or (
                "compared" if facts.changes_only else "checksummed" if checked else "unverified"
            )
            records.append(self._open(at_us, offset_us, verdict))
            self.n, self._mismatch = 0, False
            self.agreed_frames = int(isinstance(message, Book))  # else it may have gone wrong before this epoch
        elif mismatch:
            records.append(EpochVerdict(self.epoch, "unverified"))
        self._mismatch = mismatch
        flags = (
            (CROSSED if self.book.crossed else 0)
            | (CHECKSUM_MISMATCH if mismatch else 0)
            | (SAMPLED if self._facts.sampled else 0)
        )
        at_epoch_us = at_us - self.opened_at_us
        received_us = self.opened_us + at_epoch_us
        if opening or self._facts.full_books or self._keyframe_is_due(at_us, received_us // DAY_US):
            flags |= KEYFRAME
            bids_json: str | None
            asks_json: str | None
            bids_json, asks_json = self.book.as_json()
            self._keyframe_bytes = len(bids_json) + len(asks_json)
            self._keyframe_at_us, self._day, self._changes_bytes = at_us, received_us // DAY_US, 0
        else:
            bids_json = levels_json(bids) if bids else None
            asks_json = levels_json(asks) if asks else None
            self._changes_bytes += len(bids_json or "") + len(asks_json or "")
        self.n += 1
        self.lag_us = None if message.venue_us is None else received_us - message.venue_us
        records.append(
            BookRow(self.epoch, self.n, at_epoch_us, self.lag_us, message.sequence, flags, bids_json, asks_json)
        )

    def _keyframe_is_due(self, at_us: int, day: int) -> bool:
        if day != self._day or self._changes_bytes > 4 * self._keyframe_bytes:
            return True
        late = at_us - self._keyframe_at_us > KEYFRAME_AFTER_US
        return late and self._changes_bytes > self._keyframe_bytes // 2

    # --- epochs -------------------------------------------------------------------------------------------------------

    def reopen(self, at_us: int, offset_us: int) -> list[Record]:
        """Open another epoch with the book as it is; see `HeardFeed.reopen`."""
        records: list[Record] = []
        if self.book.known and not self.epoch:
            silent_us = self.silent_us(at_us)
            as_it_is = BookChange(self.market, {}, {}, None, self.sequence)
            self._row(as_it_is, [], [], False, at_us, offset_us, records)
            self.silent_before_us = silent_us
        return records


def _check_sequence(sequence: int | None) -> None:
    if sequence is not None and not 0 <= sequence < SEQUENCE_MAX:
        raise BadFrame(f"sequence {sequence} is out of range")


def _number(change: BookChange) -> str:
    before = change.first if change.first is not None else change.previous
    return f"{before}..{change.sequence}" if before is not None else str(change.sequence)
