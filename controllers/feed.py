"""One feed as a controller hears it: its book, its epochs, and the rows and marks that go to the store.

An epoch opens with a complete book, numbers its rows 1, 2, 3... and ends with a reason; between two of them the feed is
not covered. When a complete book is stored again instead of what changed: when an epoch opens; with the first row of a
UTC day, so that a day can be read alone; when the changes since the last one exceed four times its size; after a
minute, if they exceed half of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from collector.errors import BadFrame
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    KEYFRAME,
    ROWS_MAX,
    SAMPLED,
    Book,
    BookChange,
    BookRow,
    CoverageMark,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Feed,
    Record,
)
from controllers.book import Changes, OrderBook, check_levels, levels_json
from controllers.silence import Patience

DAY_US = 86_400_000_000
KEYFRAME_AFTER_US = 60_000_000
EARLY_MAX = 10_000
SEQUENCE_MAX = 1 << 62
# The interval ends where data was last confirmed, not where the connection was last heard.
DOUBTFUL = frozenset(("stale", "probe", "checksum", "rejected"))


@dataclass(frozen=True)
class FeedFacts:
    """What a venue's class says of its feeds; see `Controller` for the meaning."""

    transport: str
    depth: int | None
    changes_only: bool
    rising_sequence: bool
    text_numbers: bool
    sampled: bool
    full_books: bool


class HeardFeed:
    """The state of one feed; used by its controller's thread.

    Times named `..._at_us` are monotonic; `epoch` is 0 while the feed is not covered.
    """

    def __init__(self, key: Feed, facts: FeedFacts, epochs: Iterator[int]) -> None:
        self.key = key
        self.market = key.market
        self.book = OrderBook(trim=not facts.text_numbers)
        self._facts = facts
        self._epochs = epochs
        # the epoch
        self.epoch = 0
        self.opened_us = 0  # wall clock
        self.opened_at_us = 0
        self.n = 0
        self.frames = 0
        self.confirmed_at_us = 0
        self.agreed_at_us = self.agreed_frames = 0  # how far a book kept from changes was found to be complete
        self.gap_since_us: int | None = None
        self.gap_reason = ""
        # the ledger: what was told of it last
        self.marked_at_us = 0  # time of receipt
        self.marked_us = 0  # when
        # what the next row depends on
        self.sequence: int | None = None
        self._early: list[BookChange] = []
        self._mismatch = False
        self._day = 0
        self._keyframe_bytes = self._changes_bytes = 0
        self._keyframe_at_us = 0
        # doubts: see DoubtingController
        self.patience: Patience | None = None  # of a feed that is polled none is needed
        self.waits_since_us: int | None = None  # since when the first message on this connection is waited for
        self.told_silent = False
        self.refused = ""
        self.compared = False
        self.probed_at_us = 0
        self.retry_us = 0  # when a comparison that came to nothing is made again; nought: none is open
        self.differences = 0  # comparisons in a row that differed
        self.asked_at_us = 0  # when a fresh book was asked for on the same connection; nought: none is awaited
        self.silent_before_us = 0  # when the epoch was begun anew
        self.doubted = False  # silent for too long, and nothing says yet that nothing was missed
        self.unanswered_since_us: int | None = None  # since when a comparison for that reason can't be had
        self.tally = dict.fromkeys(
            ("received", "duplicate", "rejected", "dropped"), 0
        )  # records not yet in the metrics
        # for people
        self.total = 0  # data frames of all epochs
        self.gaps = 0
        self.lag_us: int | None = None

    # --- messages -----------------------------------------------------------------------------------------------------

    def take(self, message: Book | BookChange, at_us: int, offset_us: int, records: list[Record]) -> None:
        """Take one message received at `at_us` and add the records it makes; none where it changes nothing.

        `offset_us` is wall minus monotonic time. Raises `BadFrame`, after which the feed must `forget` its book; the
        records added until then tell whether it opened an epoch.
        """
        sequence = message.sequence
        if sequence is not None and not 0 <= sequence < SEQUENCE_MAX:
            raise BadFrame(f"sequence {sequence} is out of range")
        old = sequence is not None and self.sequence is not None and sequence <= self.sequence
        if isinstance(message, Book):
            if old and self._facts.rising_sequence:
                check_levels(message)
                return
            self.sequence = sequence
            bids, asks = self.book.replace(message)
            mismatch = message.totals is not None and not self.book.adds_up_to(message.totals)
            self._row(message, bids, asks, mismatch, at_us, offset_us, records)
            early, self._early = self._early, []
            for change in early:
                self.take(change, at_us, offset_us, records)
        elif not self.book.known:
            if len(self._early) >= EARLY_MAX:
                raise BadFrame(f"{EARLY_MAX} changes came before a complete book")
            self._early.append(message)
        elif old:  # it is in the complete book already
            check_levels(message)
        else:
            bids, asks = self.book.apply(message)
            self._row(message, bids, asks, False, at_us, offset_us, records)

    def confirm(self, at_us: int) -> None:
        """Count one data frame."""
        self.frames += 1
        self.total += 1
        self.confirmed_at_us = at_us
        self.waits_since_us = None
        self.refused = ""
        if self.patience is not None:
            self.patience.heard(at_us)

    def connected(self, at_us: int) -> None:
        """Begin to wait for what a new connection brings."""
        self.waits_since_us, self.refused, self.told_silent = at_us, "", False
        self.asked_at_us = self.differences = 0
        self.understood()
        if self.patience is not None:
            self.patience.begin()

    def understood(self) -> None:
        """Take the present silence for real, or for over."""
        self.doubted, self.unanswered_since_us, self.retry_us = False, None, 0

    @property
    def waits_for_a_book(self) -> bool:
        """Whether changes came and no complete book to apply them to."""
        return bool(self._early)

    def forget(self) -> None:
        """Forget the book: the next epoch needs a complete one."""
        self.book.clear()
        self._early.clear()
        self.sequence = None

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
            verdict = "compared" if self._facts.changes_only else "checksummed" if checked else "unverified"
            records.append(self._open(at_us, offset_us, verdict))
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

    def _open(self, at_us: int, offset_us: int, verdict: str) -> EpochOpened:
        self.epoch = next(self._epochs)
        self.opened_at_us, self.opened_us = at_us, at_us + offset_us
        self.n = self.frames = self.silent_before_us = 0
        self._mismatch = self.compared = False
        self.understood()
        self.marked_at_us = self.confirmed_at_us = self.agreed_at_us = at_us
        exchange, market, channel = self.key
        facts = self._facts
        return EpochOpened(
            self.epoch, exchange.upper(), market, channel, facts.transport, self.opened_us, facts.depth, verdict
        )

    def reopen(self, at_us: int, offset_us: int) -> list[Record]:
        """Open another epoch with the book as it is, where the connection goes on and only the record of it broke off.

        Nothing of it is confirmed before the next message, or the next comparison. Returns nothing if no book is known.
        """
        records: list[Record] = []
        if self.book.known and not self.epoch:
            silent_us = self.silent_us(at_us)
            as_it_is = BookChange(self.market, {}, {}, None, self.sequence)
            self._row(as_it_is, [], [], False, at_us, offset_us, records)
            self.silent_before_us = silent_us
        return records

    def silent_us(self, now_us: int) -> int:
        """Return how long nothing was heard, and nothing confirmed it; an epoch that was begun anew ends no silence."""
        return now_us - self.confirmed_at_us + (self.silent_before_us if not self.frames else 0)

    def end(self, reason: str, heard_at_us: int) -> list[Record]:
        """End the epoch where the feed was last heard; return the last mark and the end, nothing if none is open."""
        if not self.epoch:
            return []
        mark = self.mark(None if reason in DOUBTFUL else heard_at_us)
        ended_us = mark.confirmed_until_us if reason in DOUBTFUL else mark.heard_until_us
        self.gaps += 1
        self.lost(reason, ended_us - (self.opened_us - self.opened_at_us))
        return [mark, EpochEnded(mark.epoch, ended_us, reason)]

    def lost(self, reason: str, since_us: int) -> None:
        """Note that the feed is not covered since a monotonic time; the first reason of a gap stays."""
        self.epoch = 0
        if self.gap_since_us is None:
            self.gap_since_us, self.gap_reason = since_us, reason

    def found(self) -> float | None:
        """Close the gap that ends with the epoch just opened; return its seconds, None at the very first epoch."""
        since_us, self.gap_since_us = self.gap_since_us, None
        return None if since_us is None else max(0.0, (self.opened_at_us - since_us) / 1e6)

    def mark(self, heard_at_us: int | None = None) -> CoverageMark:
        """Return how far the epoch is accounted for, heard until the given time or, at least, its last data.

        A book kept from changes is accounted for only up to where a complete one agreed with it: a change that never
        came shows nowhere else, and whoever is killed before the next comparison can take nothing back.
        """
        heard_at_us = max(heard_at_us or 0, self.confirmed_at_us)
        offset_us = self.opened_us - self.opened_at_us
        until_at_us, frames = self.confirmed_at_us, self.frames
        if self._facts.changes_only:
            until_at_us, frames = self.agreed_at_us, self.agreed_frames
        return CoverageMark(self.epoch, heard_at_us + offset_us, until_at_us + offset_us, frames)
