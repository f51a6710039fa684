"""One feed as a controller hears it: its epochs, and the marks that go to the ledger.

An epoch opens, counts what was heard without a break, and ends with a reason; between two of them the feed is not
covered. What its messages are is in `book_feed` and `stream_feed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from collector.records import CoverageMark, Datum, EpochEnded, EpochOpened, Feed, Record
from controllers.silence import Patience

# The interval ends where data was last confirmed, not where the connection was last heard.
DOUBTFUL = frozenset(("stale", "probe", "checksum", "sequence", "rejected"))


@dataclass(frozen=True)
class FeedFacts:
    """What a venue's class says of its feeds; see `Controller` for the meaning."""

    transport: str
    depth: int | None
    changes_only: bool
    verdict: str
    cut_to_depth: bool
    joins_snapshots: bool
    rising_sequence: bool
    text_numbers: bool
    sampled: bool
    full_books: bool
    ticker_changes: bool

    @property
    def unproven(self) -> bool:
        """Whether a book is kept from changes of which one could be missing without a sign."""
        return self.changes_only and not self.verdict


class HeardFeed(ABC):
    """The state of one feed; used by its controller's thread.

    Times named `..._at_us` are monotonic; `epoch` is 0 while the feed is not covered.
    """

    def __init__(self, key: Feed, facts: FeedFacts, epochs: Iterator[int]) -> None:
        self.key = key
        self.market = key.market
        self.unit: str | None = None  # what its sizes count, where that is a contract
        self._facts = facts
        self._epochs = epochs
        # the epoch
        self.epoch = 0
        self.opened_us = 0  # wall clock
        self.opened_at_us = 0
        self.frames = 0
        self.confirmed_at_us = 0
        self.agreed_at_us = self.agreed_frames = 0  # how far an unproven book was found to be complete
        self.gap_since_us: int | None = None
        self.gap_reason = ""
        # the ledger: what was told of it last
        self.marked_at_us = 0  # time of receipt
        self.marked_us = 0  # when
        # doubts: see DoubtingController
        self.patience: Patience | None = None  # of a feed that is polled, or no book, none is needed
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

    @abstractmethod
    def take(self, message: Datum, at_us: int, offset_us: int, records: list[Record]) -> bool:
        """Take one message received at `at_us` and add the records it makes; none where it changes nothing.

        `offset_us` is wall minus monotonic time. Returns False for data that can't count, since what it continues is
        not known. Raises `BadFrame`, after which the feed must `forget`; the records added until then tell whether it
        opened an epoch. Raises `BookBroken` for a book that is not the exchange's any more.
        """

    @abstractmethod
    def forget(self) -> None:
        """Forget what messages are compared with: the next epoch begins with something complete."""

    def unsaid(self, row: Record | None = None) -> None:  # noqa: B027 - only streams have something to take back
        """Take back that a row was told, since it did not get to the store; None: any may not have.

        What is compared with it must not pass for a repeat. Books have their epochs for that.
        """

    @abstractmethod
    def reopen(self, at_us: int, offset_us: int) -> list[Record]:
        """Open another epoch as things are, where the connection goes on and only the record of it broke off.

        Nothing of it is confirmed before the next message, or the next comparison. Returns nothing if nothing is known.
        """

    @property
    def best(self) -> tuple[Decimal | None, Decimal | None]:
        """The best bid and ask that are known; any thread may ask."""
        return None, None

    @property
    def last(self) -> Decimal | None:
        """The last price that is known; any thread may ask."""
        return None

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

    # --- epochs -------------------------------------------------------------------------------------------------------

    def _open(self, at_us: int, offset_us: int, verdict: str = "unverified") -> EpochOpened:
        self.epoch = next(self._epochs)
        self.opened_at_us, self.opened_us = at_us, at_us + offset_us
        self.frames = self.silent_before_us = 0
        self.compared = False
        self.understood()
        self.marked_at_us = self.confirmed_at_us = self.agreed_at_us = at_us
        self.agreed_frames = 0
        exchange, market, channel = self.key
        facts = self._facts
        return EpochOpened(
            self.epoch, exchange.upper(), market, channel, facts.transport, self.opened_us, facts.depth, verdict,
            self.unit,
        )  # fmt: skip

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

        A book kept from unproven changes is accounted for only up to where a complete one agreed with it: a change that
        never came shows nowhere else, and whoever is killed before the next comparison can take nothing back.
        """
        heard_at_us = max(heard_at_us or 0, self.confirmed_at_us)
        offset_us = self.opened_us - self.opened_at_us
        until_at_us, frames = self.confirmed_at_us, self.frames
        if self._facts.unproven:
            until_at_us, frames = self.agreed_at_us, self.agreed_frames
        return CoverageMark(self.epoch, heard_at_us + offset_us, until_at_us + offset_us, frames)
