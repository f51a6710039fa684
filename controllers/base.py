"""What every controller does, whatever the transport: books, epochs, the ledger's marks, an account of every frame.

A frame ends in exactly one bucket: stored (once the writer has committed it), duplicate (it changed nothing), ignored
(no data), rejected (kept raw), dropped (the intake was full). An epoch is what was heard without a break: it opens with
a complete book, its rows are numbered 1, 2, 3..., and its coverage counts the data frames since. Whatever breaks it (a
rejected frame, a dropped one, a clock that jumped, a lost connection) ends it with its reason, and the next row opens
another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange
from collector.errors import BadFrame, SourceError, StaleConnection, VenueRefused
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    KEYFRAME,
    SAMPLED,
    Book,
    BookChange,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Feed,
    Message,
    Record,
    Refused,
    Rejected,
    Reply,
)
from collector.worker import Backoff, Worker
from controllers.book import OrderBook, levels_json

MARK_EVERY_US = 1_000_000  # how often the ledger moves for a feed that is heard but has nothing new
CLOCK_STEP_US = 1_000_000
DAY_US = 86_400_000_000
KEYFRAME_AFTER_US = 60_000_000
RECORD_BYTES = 200  # what a record without text holds in memory, about


@dataclass(frozen=True)
class Setup:
    """What a controller is handed; nothing in it belongs to one exchange's protocol."""

    clock: Clock
    intake: Intake
    metrics: Metrics
    log: Log
    options: Exchange
    budget: Budget
    full_books: bool = False
    keys: tuple[str, str] | None = None


@dataclass(eq=False)
class FeedState:
    """One feed as a controller hears it."""

    feed: Feed
    book: OrderBook
    epoch: int = 0  # 0: not covered
    opened_us: int = 0  # wall clock
    opened_at_us: int = 0  # monotonic
    n: int = 0
    frames: int = 0
    confirmed_at_us: int = 0
    sequence: int | None = None
    early: list[BookChange] = field(default_factory=list)
    totals_fail: bool = False
    keyframe_bytes: int = 0
    keyframe_at_us: int = 0
    changes_bytes: int = 0
    day: int = 0
    marked_at_us: int = 0  # the newest time of receipt the ledger knows
    marked_us: int = 0  # when that mark was made
    total: int = 0  # data frames of all epochs
    gaps: int = 0
    lag_us: int | None = None
    first_wait_us: int | None = None  # since when the first book is waited for
    gap_since_us: int | None = None
    gap_reason: str = ""
    refused: str = ""
    probed_at_us: int = 0
    probe_failures: int = 0
    compared: bool = False
    doubted: bool = False  # silent for too long, and no probe could say that nothing was missed
    patience_us: int = 10_000_000  # silence after which the feed is doubted; grows with every silence that proved real


class Controller(Worker):
    """Base of all controllers; a venue's module subclasses `WSController` or `RESTController`."""

    kind = "controller"
    exchange: ClassVar[str]
    transport: ClassVar[str]
    default: ClassVar[bool] = True  # the transport that is used unless the configuration names one
    depth: ClassVar[int | None] = None  # levels a side that the exchange sends
    changes_only: ClassVar[bool] = False  # books come as changes after one complete book
    rising_sequence: ClassVar[bool] = False  # a book whose sequence is not above the last one is a repeat
    text_numbers: ClassVar[bool] = False  # prices and sizes are JSON text, whose digits are kept
    sampled: ClassVar[bool] = False
    rest_url: ClassVar[str]  # base of the exchange's REST calls
    listing_path: ClassVar[str]  # the call that lists its markets
    budget_per_s: ClassVar[float] = 10.0  # REST requests all controllers of the exchange may make together

    def __init__(self, markets: Sequence[str], setup: Setup, *, generation: int = 1) -> None:
        options = setup.options.backoff
        backoff = Backoff(setup.clock, base_s=options.base_s, cap_s=options.cap_s, healthy_s=options.healthy_s)
        name = f"{self.exchange}/{markets[0]}" + (f"+{len(markets) - 1}" if len(markets) > 1 else "")
        if not self.default:
            name += f"/{self.transport}"
        super().__init__(name, setup.log, setup.clock, backoff=backoff, generation=generation)
        self.setup = setup
        self.keys = setup.keys
        self.markets = tuple(markets)
        self.feeds = {
            market: FeedState(Feed(self.exchange, market), OrderBook(trim=not self.text_numbers)) for market in markets
        }
        self.connected = False
        self._offset_us = 0  # wall minus monotonic clock
        self._heard_at_us = 0
        self._records: list[Record] = []
        self._bytes = 0
        self._touched: dict[FeedState, None] = {}
        self._counts = dict.fromkeys(("received", "duplicate", "ignored", "dropped"), 0)
        self._stored = self._rejected = 0
        self._open: dict[int, FeedState] = {}  # epochs the intake knows of
        self._last_received_us = 0
        for state in self.feeds.values():
            setup.metrics.expect(state.feed)

    # --- what a venue says ------------------------------------------------------------------------------------------

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one message. Pure: no clock, no I/O, no logger, no state; raises `SourceError` and nothing else."""
        raise NotImplementedError(f"{type(self).__name__} can't read")

    @classmethod
    def parse_listing(cls, body: bytes) -> list[str]:
        """Return the markets that trade now, in house form, from the answer to `listing_path`; raises `SourceError`."""
        raise NotImplementedError(f"{cls.__name__} can't list its markets")

    # --- frames -----------------------------------------------------------------------------------------------------

    def handle(self, frame: bytes, at_us: int) -> list[Message]:
        """Account for one received frame; return what it asks of the connection (`Reply`, `Refused`).

        `at_us` is the monotonic time of receipt. Raises `VenueRefused` when the frame is the exchange's own error.
        """
        self._counts["received"] += 1
        self._heard_at_us = at_us
        received_us = self._last_received_us = at_us + self._offset_us
        try:
            messages = tuple(self.parse(frame, received_us))
        except VenueRefused:
            self._counts["ignored"] += 1
            raise
        except SourceError as error:
            self._reject(frame, at_us, error, None)
            return []
        except Exception as error:  # our bug: the frame is kept, so that nothing is lost by it
            self.log.exception("parse_failed", error=repr(error))
            self._reject(frame, at_us, BadFrame(repr(error)), None)
            return []
        asks: list[Message] = []
        rows: list[Record] = []
        data: dict[FeedState, None] = {}
        for message in messages:
            if isinstance(message, Reply | Refused):
                asks.append(message)
                continue
            state = self.feeds.get(message.market)
            if state is None:
                self._reject(frame, at_us, BadFrame(f"market {message.market!r} was not asked for"), None, rows)
                return []
            data[state] = None
            if state.doubted:
                self._after_doubt(state)
            try:
                self._book(state, message, at_us, rows)
            except BadFrame as error:
                self._reject(frame, at_us, error, data, rows)
                return []
        if not data:
            self._counts["ignored"] += 1
        elif rows:
            self._stored += 1
        else:
            self._counts["duplicate"] += 1
        for state in data:
            state.frames += 1
            state.total += 1
            state.confirmed_at_us = at_us
            state.first_wait_us = None
            if rows:
                self._touched[state] = None
        self._records += rows
        return asks

    def _book(self, state: FeedState, message: Book | BookChange, at_us: int, rows: list[Record]) -> None:
        book = state.book
        sequence = message.sequence
        if sequence is not None and not 0 <= sequence < 1 << 62:
            raise BadFrame(f"sequence {sequence} is out of range")
        if isinstance(message, Book):
            if self.rising_sequence and sequence is not None:
                if state.sequence is not None and sequence <= state.sequence:
                    return
                state.sequence = sequence
            bids, asks = book.replace(message)
            if self.changes_only:
                state.sequence = sequence
            mismatch = message.totals is not None and not book.adds_up_to(message.totals)
            self._row(state, message, bids, asks, mismatch, at_us, rows)
            early, state.early = state.early, []
            for change in early:
                self._book(state, change, at_us, rows)
        elif not book.known:
            state.early.append(message)
            if len(state.early) > 10_000:
                raise BadFrame("10,000 changes came before a complete book")
        elif sequence is None or state.sequence is None or sequence > state.sequence:
            bids, asks = book.apply(message)
            self._row(state, message, bids, asks, False, at_us, rows)

    def _after_doubt(self, state: FeedState) -> None:
        # Data again after a silence that nobody could explain: what came before it is one thing, what follows another.
        state.doubted = False
        self.end_epoch(state, "stale")
        if self.changes_only:
            self._counts["dropped"] += 1
            raise StaleConnection(f"{state.feed.market} may have lost changes while it was silent")

    def _row(
        self,
        state: FeedState,
        message: Book | BookChange,
        bids: list[tuple[str, str]],
        asks: list[tuple[str, str]],
        mismatch: bool,
        at_us: int,
        rows: list[Record],
    ) -> None:
        opening = not state.epoch
        if not (bids or asks or opening or (mismatch and not state.totals_fail)):
            return
        crossed = state.book.crossed
        flags = (CROSSED if crossed else 0) | (CHECKSUM_MISMATCH if mismatch else 0) | (SAMPLED if self.sampled else 0)
        if opening:
            verdict = "checksummed" if isinstance(message, Book) and message.totals and not mismatch else "unverified"
            self._open_epoch(state, at_us, verdict, rows)
        if flags & ~SAMPLED:
            self._flagged(state, flags, mismatch, rows)
        state.totals_fail = mismatch
        received_us = state.opened_us + at_us - state.opened_at_us
        day = received_us // DAY_US
        keyframe = opening or self.setup.full_books or day != state.day
        bids_json = levels_json(bids) if bids else None
        asks_json = levels_json(asks) if asks else None
        changes_bytes = len(bids_json or "") + len(asks_json or "")
        if not keyframe:
            since = state.changes_bytes
            keyframe = since > 4 * state.keyframe_bytes or (
                at_us - state.keyframe_at_us > KEYFRAME_AFTER_US and since > state.keyframe_bytes // 2
            )
        if keyframe:
            bids_json, asks_json = state.book.as_json()
            changes_bytes = 0
            state.day = day
            state.keyframe_bytes = len(bids_json) + len(asks_json)
            state.keyframe_at_us = at_us
            state.changes_bytes = 0
            flags |= KEYFRAME
        state.changes_bytes += changes_bytes
        state.n += 1
        lag_us = state.lag_us = None if message.venue_us is None else received_us - message.venue_us
        rows.append(
            BookRow(
                state.epoch, state.n, at_us - state.opened_at_us, lag_us, message.sequence, flags, bids_json, asks_json
            )
        )
        self._bytes += len(bids_json or "") + len(asks_json or "")

    def _flagged(self, state: FeedState, flags: int, mismatch: bool, rows: list[Record]) -> None:
        if flags & CROSSED:
            self.setup.metrics.books_flagged.labels(self.exchange, "crossed").inc()
            self.log.warning("crossed", market=state.feed.market)
        if mismatch:
            self.setup.metrics.books_flagged.labels(self.exchange, "checksum_mismatch").inc()
            self.log.warning("checksum_mismatch", market=state.feed.market)
            rows.append(EpochVerdict(state.epoch, "unverified"))

    def _reject(
        self,
        frame: bytes,
        at_us: int,
        error: SourceError,
        states: Iterable[FeedState] | None,
        rows: Iterable[Record] = (),
    ) -> None:
        # Without a market nobody knows whose data it was: every feed of the connection stops being covered. A frame is
        # rejected as a whole, so an epoch that its first half would have opened does not come into being.
        received_us = at_us + self._offset_us
        self._rejected += 1
        for record in rows:
            if type(record) is EpochOpened:
                state = self.feeds[record.market]
                state.epoch, state.gap_since_us, state.gap_reason = 0, at_us, "rejected"
        hits = list(self.feeds.values() if states is None else states)
        market = hits[0].feed.market if len(hits) == 1 else None
        self.log.warning("rejected", reason=str(error), market=market)
        for hit in hits:
            self.end_epoch(hit, "rejected")
            hit.book.clear()
            hit.early.clear()
            hit.sequence = None
        self._records.append(Rejected(self.exchange, market, received_us, str(error), frame))
        self._bytes += len(frame)
        self.after_rejection()

    def after_rejection(self) -> None:
        """Do what is needed to get a complete book again; books that come complete need nothing."""

    # --- epochs and the ledger --------------------------------------------------------------------------------------

    def _open_epoch(self, state: FeedState, at_us: int, verdict: str, rows: list[Record]) -> None:
        state.epoch = next(self.setup.intake.epochs)
        state.opened_at_us = at_us
        state.opened_us = at_us + self._offset_us
        state.n = state.frames = 0
        state.totals_fail = state.compared = state.doubted = False
        state.marked_at_us = state.confirmed_at_us = at_us
        rows.append(
            EpochOpened(
                state.epoch, self.exchange.upper(), state.feed.market, state.feed.channel, self.transport,
                state.opened_us, self.depth, verdict,
            )
        )  # fmt: skip
        if state.gap_since_us is not None:
            self.setup.metrics.uncovered(state.feed, state.gap_reason, (at_us - state.gap_since_us) / 1e6)
            gap_s, state.gap_since_us = (at_us - state.gap_since_us) / 1e6, None
            self.log.info("collect_start", market=state.feed.market, after_s=round(gap_s, 1), reason=state.gap_reason)
        else:
            self.log.info("collect_start", market=state.feed.market)

    def end_epoch(self, state: FeedState, reason: str) -> None:
        """End the feed's coverage where it was last heard; nothing happens when it is not covered."""
        if not state.epoch:
            return
        heard_at_us = max(self._heard_at_us, state.confirmed_at_us)
        if reason in ("stale", "probe", "checksum", "rejected"):
            heard_at_us = state.confirmed_at_us
        self._records.append(self._mark(state, heard_at_us))
        self._records.append(EpochEnded(state.epoch, state.opened_us + heard_at_us - state.opened_at_us, reason))
        self._touched.pop(state, None)
        state.epoch = 0
        state.gaps += 1
        state.gap_since_us, state.gap_reason = heard_at_us, reason
        self.setup.metrics.epochs.labels(self.exchange, reason).inc()

    def end_epochs(self, reason: str) -> None:
        """End the coverage of every feed of this connection and hand everything over."""
        for state in self.feeds.values():
            self.end_epoch(state, reason)
            state.book.clear()
            state.early.clear()
            state.sequence = None
        self.flush()

    def _mark(self, state: FeedState, heard_at_us: int) -> CoverageMark:
        base_us = state.opened_us - state.opened_at_us
        return CoverageMark(state.epoch, base_us + heard_at_us, base_us + state.confirmed_at_us, state.frames)

    def anchor(self) -> None:
        """Take the difference between wall and monotonic clock anew; only where no epoch is open."""
        self._offset_us = self.clock.wall_us() - self.clock.monotonic_us()

    def tick(self) -> None:
        """Do once a second what no frame triggers: notice a stepped clock, move the ledger, hand over."""
        now_us = self.clock.monotonic_us()
        step_us = self.clock.wall_us() - now_us - self._offset_us
        if abs(step_us) > CLOCK_STEP_US:
            self.log.warning("clock_step", seconds=round(step_us / 1e6, 3))
            for state in self.feeds.values():
                self.end_epoch(state, "clock")  # the book itself stays known and opens the next epoch
            self.anchor()
        for state in self.feeds.values():
            heard_at_us = max(self._heard_at_us, state.confirmed_at_us)
            if state.epoch and heard_at_us > state.marked_at_us and now_us - state.marked_us >= MARK_EVERY_US:
                self._touched[state] = None
        self.flush()
        self.beat()

    def flush(self) -> None:
        """Hand everything to the intake, with the marks that account for it."""
        self._count()
        if not self._records and not self._touched:
            return
        now_us = self.clock.monotonic_us()
        records, self._records = self._records, []
        for state in self._touched:
            state.marked_at_us, state.marked_us = max(self._heard_at_us, state.confirmed_at_us), now_us
            records.append(self._mark(state, state.marked_at_us))
            if state.confirmed_at_us:
                self.setup.metrics.heard(state.feed, state.opened_us + state.confirmed_at_us - state.opened_at_us)
        size = self._bytes + RECORD_BYTES * len(records)
        delivery = Delivery(self.exchange, self._stored, tuple(records), size, self._rejected, self._last_received_us)
        touched, self._touched = self._touched, {}
        self._stored = self._rejected = self._bytes = 0
        if self.state == "abandoned":
            self._drop(delivery, "superseded")
        elif self.setup.intake.put(delivery):
            self._note_epochs(delivery.records)
        else:
            self.log.error("no_space", market=self.markets[0])
            self._drop(delivery, "no_space")
            for state in touched:
                state.epoch = 0

    def _note_epochs(self, records: Iterable[Record]) -> None:
        for record in records:
            if type(record) is EpochOpened:
                self._open[record.epoch] = self.feeds[record.market]
            elif type(record) is EpochEnded:
                self._open.pop(record.epoch, None)

    def _drop(self, delivery: Delivery, reason: str) -> None:
        # What was dropped may have opened or ended epochs: whatever the intake knows as open ends where it last stood.
        self.setup.metrics.count_frames(self.exchange, dropped=delivery.frames + delivery.rejected)
        hit = {record.epoch for record in delivery.records if isinstance(record, BookRow | EpochEnded | CoverageMark)}
        for epoch in hit & self._open.keys():
            state = self._open.pop(epoch)
            state.epoch = 0
            if state.gap_since_us is None:
                state.gap_since_us, state.gap_reason = state.marked_at_us, reason
            now_us = self.clock.monotonic_us() + self._offset_us
            ended = Delivery(self.exchange, 0, (EpochEnded(epoch, now_us, reason),), RECORD_BYTES)
            self.setup.intake.put(ended, force=True)
            self.setup.metrics.epochs.labels(self.exchange, reason).inc()

    def _count(self) -> None:
        if self._counts["received"]:
            self.setup.metrics.count_frames(self.exchange, **self._counts)
            self._counts = dict.fromkeys(self._counts, 0)

    # --- for others to read -----------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, object]]:
        """Return the state of each feed, for `/status.json` and the live table."""
        now_us = self.clock.monotonic_us()
        return [
            {
                "exchange": self.exchange,
                "market": state.feed.market,
                "channel": state.feed.channel,
                "transport": self.transport,
                "state": "refused"
                if state.refused
                else "live"
                if state.epoch
                else "waiting"
                if self.connected
                else "down",
                "detail": state.refused or ("" if state.epoch else state.gap_reason),
                "frames": state.total,
                "gaps": state.gaps,
                "age_s": (now_us - state.confirmed_at_us) / 1e6 if state.confirmed_at_us else None,
                "lag_s": None if state.lag_us is None else state.lag_us / 1e6,
                "bid": _text(state.book.bids.best(highest=True)),
                "ask": _text(state.book.asks.best(highest=False)),
                "generation": self.generation,
            }
            for state in self.feeds.values()
        ]


def _text(price: object) -> str | None:
    return None if price is None else f"{price:f}"
