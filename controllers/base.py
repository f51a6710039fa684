"""What every controller does, whatever the transport: books, epochs, the ledger's marks, an account of every frame.

A frame ends in exactly one bucket: stored (once the writer has committed it), duplicate (it changed nothing), ignored
(no data), rejected (kept raw), dropped (the intake was full). An epoch is what was heard without a break: it opens with
a complete book, its rows are numbered 1, 2, 3..., and its coverage counts the data frames since. Whatever breaks it (a
rejected frame, a dropped one, a clock that jumped, a lost connection) ends it with its reason, and the next row opens
another.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from collector.budget import Budget
from collector.clock import Clock
from collector.config import Endpoint, Exchange
from collector.errors import (
    BadFrame,
    BookBroken,
    FramesLost,
    RateLimited,
    SourceError,
    StaleConnection,
    VenueRefused,
)
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    ORDERBOOK,
    Book,
    BookChange,
    BookRow,
    CoverageMark,
    Datum,
    Delivery,
    EpochEnded,
    EpochOpened,
    Feed,
    Message,
    Numbered,
    Record,
    Rejected,
    StreamRow,
)
from collector.worker import Backoff, Worker
from controllers.book import OrderBook
from controllers.book_feed import HeardBook
from controllers.feed import FeedFacts, HeardFeed
from controllers.fetch import date_us
from controllers.silence import KnownSilences
from controllers.stream_feed import STREAMS

MARK_EVERY_US = 1_000_000  # how often the ledger moves for a feed that is heard but has nothing new
CLOCK_STEP_US = 1_000_000
VENUE_AHEAD_US = 1_000_000  # a time of the exchange that lies so far in the future is counted; it is stored as sent
QUICK_US = 1_000
RECORD_BYTES = 200  # what a record without text holds in memory, about


Reader = Callable[[bytes, int], Iterable[Message]]  # of a frame, received at a time


@dataclass(frozen=True)
class Setup:
    """What a controller is handed; nothing in it belongs to one exchange's protocol."""

    clock: Clock
    intake: Intake
    metrics: Metrics
    log: Log
    options: Exchange
    budget: Budget  # of REST requests, shared by all controllers of the exchange
    connects: Budget | None = None  # of new connections, shared likewise and `beside` it; None: the same one
    full_books: bool = False
    keys: tuple[str, str] | None = None
    channels: tuple[str, ...] = (ORDERBOOK,)
    silences: KnownSilences | None = None  # what is known of the feeds of all exchanges; None: each controller's own


class Controller(Worker):
    """Base of all controllers; a venue's module subclasses `WSController` or `RESTController`."""

    kind = "controller"
    exchange: ClassVar[str]
    transport: ClassVar[str]
    default: ClassVar[bool] = True  # the transport that is used unless the configuration names one
    product: ClassVar[str] = ""  # of an exchange with addresses of their own for some products, which of them
    offers: ClassVar[tuple[str, ...]] = (ORDERBOOK,)  # channels
    depth: ClassVar[int | None] = None  # levels a side that the exchange sends
    changes_only: ClassVar[bool] = False  # books come as changes after one complete book
    verdict: ClassVar[str] = ""  # what proves such a book message by message: `linked` or `checksummed`
    cut_to_depth: ClassVar[bool] = False  # levels beyond `depth` leave such a book without a word
    ticker_changes: ClassVar[bool] = False  # what a ticker does not say stays as it was
    rising_sequence: ClassVar[bool] = False  # a book whose sequence is not above the last one is a repeat
    text_numbers: ClassVar[bool] = False  # prices and sizes are JSON text, whose digits are kept
    sampled: ClassVar[bool] = False
    rest_url: ClassVar[str]  # base of the exchange's REST calls
    listing_path: ClassVar[str]  # the call that lists its markets
    budget_per_s: ClassVar[float] = 10.0  # REST requests all controllers of the exchange may make together
    connects_per_s: ClassVar[float] = 5.0  # connections they may open together
    # Markets that one connection bears well, all channels at once: taken where `markets` is `all` or has a pattern.
    markets_per_connection: ClassVar[int] = 50

    def __init__(self, markets: Sequence[str], setup: Setup, *, generation: int = 1) -> None:
        options = setup.options.backoff
        backoff = Backoff(setup.clock, base_s=options.base_s, cap_s=options.cap_s, healthy_s=options.healthy_s)
        name = f"{self.exchange}/{markets[0]}" + (f"+{len(markets) - 1}" if len(markets) > 1 else "")
        name += "".join(f"/{part}" for part in (self.product, "" if self.default else self.transport) if part)
        super().__init__(name, setup.log, setup.clock, backoff=backoff, generation=generation)
        self.setup = setup
        self.keys = setup.keys
        self.markets = tuple(markets)
        self.channels = tuple(channel for channel in setup.channels if channel in self.offers)
        facts = FeedFacts(
            transport=self.transport,
            depth=self.depth,
            changes_only=self.changes_only,
            verdict=self.verdict,
            cut_to_depth=self.cut_to_depth,
            joins_snapshots=bool(markets) and self.snapshot_path(markets[0]) is not None,
            rising_sequence=self.rising_sequence,
            text_numbers=self.text_numbers,
            sampled=self.sampled,
            full_books=setup.full_books,
            ticker_changes=self.ticker_changes,
        )
        self.unproven, self.joins_snapshots = facts.unproven, facts.joins_snapshots
        self.books: dict[str, HeardBook] = {}  # by market
        self.feeds: dict[tuple[str, str], HeardFeed] = {}  # by market and channel
        for market in markets:
            for channel in self.channels:
                self.feeds[market, channel] = self._feed(Feed(self.exchange, market, channel), facts)
        self.connected = False
        self._offset_us = 0  # wall minus monotonic clock
        self._heard_at_us = 0
        self._records: list[Record] = []
        self._bytes = 0
        self._touched: dict[HeardFeed, None] = {}  # feeds whose mark goes with the next delivery
        self._counts = dict.fromkeys(("received", "duplicate", "ignored", "dropped"), 0)
        self._stored = self._rejected = 0
        self._open: dict[int, HeardFeed] = {}  # epochs the intake knows of
        self._told: dict[int, int] = {}  # until when each of them was heard, as far as the intake knows
        self._owners: dict[int, HeardFeed] = {}  # the feeds of epochs whose end is not delivered yet
        self._last_received_us = 0
        self._lag_us: int | None = None  # of the newest row, until it is told
        self._venue_ahead = 0
        self._dated = ""
        self._number: int | None = None  # of the last frame, where the exchange numbers them
        self._renewals = setup.intake.renewals
        for feed in self.feeds.values():
            setup.metrics.expect(feed.key)
        setup.metrics.rate_pause.labels(self.exchange).set_function(lambda: setup.budget.paused_s)

    def _feed(self, key: Feed, facts: FeedFacts) -> HeardFeed:
        if key.channel == ORDERBOOK:
            self.books[key.market] = book = HeardBook(key, facts, self.setup.intake.epochs, self)
            return book
        return STREAMS[key.channel](key, replace(facts, depth=None), self.setup.intake.epochs)

    @property
    def endpoint(self) -> Endpoint:
        """Addresses that the configuration puts in place of the exchange's own; of this class's product, if any."""
        endpoint = self.setup.options.endpoint
        return endpoint.products.get(self.product, Endpoint()) if self.product else endpoint

    # --- what a venue says ------------------------------------------------------------------------------------------

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one message. Pure: no clock, no I/O, no logger, no state; raises `SourceError` and nothing else."""
        raise NotImplementedError(f"{type(self).__name__} can't read")

    @classmethod
    def listing_paths(cls) -> Sequence[str]:
        """Return the calls that list its markets together; several where one holds only a kind of them."""
        return (cls.listing_path,)

    @classmethod
    def parse_listing(cls, body: bytes) -> list[str]:
        """Return the markets that trade now, in house form, from the answer to a listing; raises `SourceError`."""
        raise NotImplementedError(f"{cls.__name__} can't list its markets")

    @classmethod
    def carries(cls, market: str, channel: str) -> bool:
        """Tell whether this class hears a channel of a market in house form; spot markets unless it says otherwise."""
        return channel in cls.offers and ":" not in market

    def unit(self, market: str) -> str | None:
        """Return what sizes of a market count where that is a contract: `1 USD`; None: the symbol itself."""
        return None

    def unit_path(self, market: str) -> str | None:
        """Return the REST path that tells what a contract of a market is; None: it is known without asking."""
        return None

    def parse_unit(self, market: str, body: bytes) -> str:
        """Read the answer to `unit_path`: `0.01 BTC`. Pure, raises `SourceError` only."""
        raise NotImplementedError(f"{type(self).__name__} does not count in contracts")

    # --- what proves a book that is kept from changes ---------------------------------------------------------------

    def is_old(self, change: BookChange, sequence: int) -> bool:
        """Tell whether a book at `sequence` holds a change already."""
        return change.sequence is not None and change.sequence <= sequence

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether a change that is not old is the next one for a book at `sequence`.

        `joining`: the book was taken from elsewhere (`snapshot_path`), and this is the first change applied to it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not number its changes")

    def checksum(self, book: OrderBook) -> int:
        """Return the exchange's sum over a book, to compare with what a message says."""
        raise NotImplementedError(f"{type(self).__name__} has no checksum")

    def snapshot_path(self, market: str) -> str | None:
        """Return the REST path of the complete book that the stream's changes continue; None: it is in the stream."""
        return None

    def parse_snapshot(self, market: str, body: bytes) -> Book:
        """Read the answer to `snapshot_path`, with its sequence. Pure, raises `SourceError` only."""
        raise NotImplementedError(f"{type(self).__name__} joins no snapshot")

    # --- what the exchange bears ------------------------------------------------------------------------------------

    @classmethod
    def budgets(cls, options: Exchange, clock: Clock) -> tuple[Budget, Budget]:
        """Return the budgets of an exchange, of requests and of connections; one pair for all its controllers."""
        requests = Budget(options.rate.requests_per_s or cls.budget_per_s, clock)
        return requests, requests.beside(options.rate.connects_per_s or cls.connects_per_s)

    @classmethod
    def set_rates(cls, options: Exchange, requests: Budget, connects: Budget) -> None:
        """Let other settings count for the budgets of an exchange."""
        requests.set_rate(options.rate.requests_per_s or cls.budget_per_s)
        connects.set_rate(options.rate.connects_per_s or cls.connects_per_s)

    def dated(self, headers: Mapping[str, str]) -> None:
        """Learn from the `Date` of an answer that has just come; any thread may call this.

        It has whole seconds, so of many answers the first with a new one says most.
        """
        date = headers.get("Date", "")
        if date == self._dated:
            return
        self._dated = date
        sent_us = date_us(date)
        if sent_us is not None:
            self.setup.metrics.venue_time(self.exchange, "http", self.clock.wall_us() - sent_us)

    def rate_limited(self, error: RateLimited) -> None:
        """Let everybody leave the exchange alone for as long as it wants; any thread may call this."""
        seconds = self.setup.budget.pause(error.retry_after_s, banned=error.banned)
        self.setup.metrics.rate_limited.labels(self.exchange).inc()
        self.log.warning("rate_limited", error=error, seconds=round(seconds, 1))

    # --- frames -----------------------------------------------------------------------------------------------------

    def handle(self, frame: bytes, at_us: int, read: Reader | None = None) -> list[Message]:
        """Account for one received frame; return what it asks of the connection (`Reply`, `Refused`...).

        `at_us` is the monotonic time of receipt, `read` another reader than `parse`. Raises `VenueRefused` when the
        frame is the exchange's own error, `FramesLost` when one before it never came.
        """
        self._counts["received"] += 1
        self._heard_at_us = at_us
        received_us = self._last_received_us = at_us + self._offset_us
        try:
            messages = tuple((read or self.parse)(frame, received_us))
        except (VenueRefused, RateLimited):
            self._counts["ignored"] += 1
            raise
        except SourceError as error:
            self._reject(frame, at_us, error)
            return []
        except Exception as error:  # our bug: the frame is kept, so that nothing is lost by it
            self.log.exception("parse_failed", error=repr(error))
            self._reject(frame, at_us, BadFrame(repr(error)))
            return []
        broken: dict[HeardFeed, None] = {}
        asks = self._take_all(frame, messages, at_us, broken)
        for feed in broken:  # the connection may fail by it, so not before the frame is accounted for
            self.resync(feed, at_us)
        return asks

    def _take_all(
        self, frame: bytes, messages: Iterable[Message], at_us: int, broken: dict[HeardFeed, None]
    ) -> list[Message]:
        asks: list[Message] = []
        records: list[Record] = []
        heard: dict[HeardFeed, int] = {}  # how many messages of each
        dropped = False
        for message in messages:
            if not isinstance(message, Datum):
                if isinstance(message, Numbered):
                    self._count(message.sequence)
                else:
                    asks.append(message)
                continue
            feed = self.feeds.get((message.market, message.channel))
            if feed is None:
                foreign = BadFrame(f"{message.channel} of market {message.market!r} was not asked for")
                self._reject(frame, at_us, foreign, records=records)
                return []
            try:
                if self._take(feed, message, at_us, records):
                    heard[feed] = heard.get(feed, 0) + 1
                else:
                    dropped = True
            except BookBroken as error:
                dropped = True
                heard.pop(feed, None)
                broken[feed] = None
                self._broken(feed, message, error, at_us, records)
            except BadFrame as error:
                heard.setdefault(feed, 0)
                self._reject(frame, at_us, error, heard, records)
                return []
            except SourceError:
                raise
            except Exception as error:  # our bug again; whose book it was in the middle of is not worth guessing
                self.log.exception("parse_failed", error=repr(error))
                self._reject(frame, at_us, BadFrame(repr(error)), records=records)
                return []
        self._account(heard, records, at_us, dropped=dropped)
        return asks

    def _count(self, number: int) -> None:
        """Take the number of a frame on its connection."""
        last, self._number = self._number, number
        if last is not None and number != last + 1:
            self._counts["dropped"] += 1
            raise FramesLost(f"frame {number} came after {last}")

    def _broken(self, feed: HeardFeed, message: Datum, error: BookBroken, at_us: int, records: list[Record]) -> None:
        # A frame counts as a whole: what it held of this feed before is not stored either.
        feed.tally["received"] += 1
        feed.tally["dropped"] += 1
        self.log.warning("book_broken", market=feed.market, reason=error.reason, error=error)
        self.setup.metrics.books_broken.labels(self.exchange, error.reason).inc()
        epoch = feed.epoch
        if any(type(record) is EpochOpened and record.epoch == epoch for record in records):
            feed.lost(error.reason, at_us)
        else:
            self.end_epoch(feed, error.reason)
        records[:] = [record for record in records if getattr(record, "epoch", 0) != epoch]
        feed.forget()
        if self.joins_snapshots:
            feed.take(message, at_us, self._offset_us, [])  # the first of those that continue a complete book

    def resync(self, feed: HeardFeed, at_us: int) -> None:
        """Do what brings the complete book of one market anew; `ConnectionLost` where only a new connection does.

        Books that come complete need nothing.
        """

    def _take(self, feed: HeardFeed, message: Datum, at_us: int, records: list[Record]) -> bool:
        if feed.doubted:  # data after a silence that nobody could explain: what came before is one thing, this another
            feed.doubted = False
            self.end_epoch(feed, "stale")
            if self.changes_only:
                self._counts["dropped"] += 1
                raise StaleConnection(f"{feed.market} may have lost changes while it was silent")
        return feed.take(message, at_us, self._offset_us, records)

    def _account(self, heard: dict[HeardFeed, int], records: list[Record], at_us: int, *, dropped: bool) -> None:
        if records:
            self._stored += 1
        elif dropped:
            self._counts["dropped"] += 1
        elif heard:
            self._counts["duplicate"] += 1
        else:
            self._counts["ignored"] += 1
        made = self._made(records)
        for feed, messages in heard.items():
            rows = made.get(feed, 0)
            feed.tally["received"] += max(rows, messages)  # more rows than messages: some had been held back
            feed.tally["duplicate"] += max(0, messages - rows)
            feed.confirm(at_us)
            if records:
                self._touched[feed] = None
        self._records += records

    def _made(self, records: Iterable[Record]) -> dict[HeardFeed, int]:
        """Take note of records that are about to be handed over; return how many rows there are of each feed."""
        made: dict[HeardFeed, int] = {}  # of a feed whose epoch ended among them, those of both epochs
        for record in records:
            if type(record) is BookRow:
                self._bytes += len(record.bids or "") + len(record.asks or "")
                if record.lag_us is not None:
                    if record.lag_us < -VENUE_AHEAD_US:
                        self._venue_ahead += 1
                    if record.n > 1:  # the first may be a book that stood for hours
                        self._lag_us = record.lag_us
                if record.flags & (CROSSED | CHECKSUM_MISMATCH):
                    self._flagged(record)
            elif type(record) is EpochOpened:
                self._owners[record.epoch] = self.feeds[record.market, record.channel]
            if isinstance(record, BookRow | StreamRow):
                feed = self._owners[record.epoch]
                made[feed] = made.get(feed, 0) + 1
        return made

    def _flagged(self, row: BookRow) -> None:
        market = next(book.market for book in self.books.values() if book.epoch == row.epoch)
        for flag, name in ((CROSSED, "crossed"), (CHECKSUM_MISMATCH, "checksum_mismatch")):
            if row.flags & flag:
                self.setup.metrics.books_flagged.labels(self.exchange, name).inc()
                self.log.warning(name, market=market)

    def _reject(
        self,
        frame: bytes,
        at_us: int,
        error: SourceError,
        feeds: Iterable[HeardFeed] | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        # Without a market nobody knows whose data it was: every feed of the connection stops being covered. A frame is
        # rejected as a whole, so an epoch that its first half would have opened does not come into being.
        self._rejected += 1
        owners = {feed.epoch: feed for feed in self.feeds.values()}
        for record in records:
            if type(record) is EpochOpened:
                self.feeds[record.market, record.channel].lost("rejected", at_us)
            elif isinstance(record, StreamRow):
                owners[record.epoch].unsaid(record)
        hits = list(self.feeds.values() if feeds is None else feeds)
        market = hits[0].market if len(hits) == 1 else None
        self.log.warning("rejected", reason=str(error), kind=type(error).__name__, market=market)
        for feed in hits:
            feed.tally["received"] += 1
            feed.tally["rejected"] += 1
            self.end_epoch(feed, "rejected")
            feed.forget()
        # Half of a pair of surrogates is no text: a batch that holds one could never be stored.
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        self._records.append(Rejected(self.exchange, market, at_us + self._offset_us, reason, frame))
        self._bytes += len(frame)
        books = [book for book in self.books.values() if book in hits]
        self.after_rejection(books, at_us, known=feeds is not None)

    def after_rejection(self, books: Sequence[HeardBook], at_us: int, *, known: bool) -> None:
        """Do what is needed to get complete books again; those that always come complete need nothing.

        `known`: the frame was about these; else nobody knows which it was about.
        """

    # --- epochs and the ledger ----------------------------------------------------------------------------------------

    def _opened(self, feed: HeardFeed) -> None:
        reason, gap_s = feed.gap_reason, feed.found()
        if gap_s is None:
            self.log.info("collect_start", market=feed.market)
        else:
            self.setup.metrics.uncovered(feed.key, reason, gap_s)
            self.log.info("collect_start", market=feed.market, after_s=round(gap_s, 1), reason=reason)

    def end_epoch(self, feed: HeardFeed, reason: str) -> None:
        """End the feed's coverage where it was last heard; nothing happens when it is not covered."""
        self._end(feed, feed.end(reason, self._heard_at_us), reason)

    def _end(self, feed: HeardFeed, ending: list[Record], reason: str) -> None:
        if ending:
            self._records += ending
            self._touched.pop(feed, None)
            self.setup.metrics.epochs.labels(self.exchange, reason).inc()

    def end_epochs(self, reason: str) -> None:
        """End the coverage of every feed of this connection and hand everything over.

        Where an error nobody expected ends the run, it may have struck in the middle of an account: then `distrust`.
        """
        error = sys.exception()
        if error is not None and not isinstance(error, SourceError):
            self.distrust(reason)
        for feed in self.feeds.values():
            self.end_epoch(feed, reason)
            feed.forget()
        self.flush()

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            if self._open:  # an error struck while the last run was ended, or it was given up and came back
                self.distrust("superseded" if self.state == "abandoned" else "disconnect")

    def distrust(self, reason: str) -> None:
        """Forget what is not handed over, and end every epoch where the ledger stands: nothing else is sure."""
        counts = self._counts
        open_frames = counts["received"] - counts["duplicate"] - counts["ignored"] - counts["dropped"]
        counts["dropped"] += max(open_frames, self._stored + self._rejected)
        for record in self._records:
            if isinstance(record, BookRow | StreamRow):
                self._owners[record.epoch].tally["dropped"] += 1
                self._owners[record.epoch].unsaid(record)
        self._records, self._touched = [], {}
        self._stored = self._rejected = self._bytes = 0
        for epoch, feed in list(self._open.items()):
            ended = EpochEnded(epoch, self._told.get(epoch, feed.opened_us), reason)
            self.setup.intake.put(Delivery(self.exchange, 0, (ended,), RECORD_BYTES), force=True)
            self.setup.metrics.epochs.labels(self.exchange, reason).inc()
            del self._open[epoch]
        self._told.clear()
        self._owners.clear()
        for feed in self.feeds.values():
            if feed.epoch:
                feed.lost(reason, feed.marked_at_us)
            feed.forget()

    def _begin_anew(self, reason: str, now_us: int) -> None:
        # Every book stays as it is, and so does the connection: what was covered goes on in another epoch at once, so
        # that a market which says nothing for hours is not left without one, or connected to anew, for our own reasons.
        # A polled one has its next answer soon, and what is in doubt needs data.
        go_on = [feed for feed in self.feeds.values() if feed.epoch and not feed.doubted and not self.sampled]
        for feed in self.feeds.values():
            self.end_epoch(feed, reason)
            feed.unsaid()
        self.anchor()
        for feed in go_on:
            self.begin(feed, feed.reopen(now_us, self._offset_us))

    def begin(self, feed: HeardFeed, records: Sequence[Record]) -> None:
        """Hand over what no frame brought: the beginning of an epoch, with its book."""
        if records:
            feed.tally["received"] += sum(self._made(records).values())
            self._records += records
            self._touched[feed] = None

    def anchor(self) -> None:
        """Take the difference between wall and monotonic clock anew; only where no epoch is open."""
        if any(feed.epoch for feed in self.feeds.values()):  # an error struck while the last run was ended
            self.distrust("disconnect")
        self._offset_us = self._offset_now_us()

    def _offset_now_us(self) -> int:
        # A thread may stand still between a look at one clock and a look at the other: of a few, the quickest counts.
        looks: list[tuple[int, int]] = []
        while len(looks) < 5 and not (looks and min(looks)[0] < QUICK_US):
            before_us = self.clock.monotonic_us()
            wall_us = self.clock.wall_us()
            looks.append((self.clock.monotonic_us() - before_us, wall_us - before_us))
        return min(looks)[1]

    def tick(self) -> None:
        """Do once a second what no frame triggers: notice a stepped clock, move the ledger, hand over."""
        now_us = self.clock.monotonic_us()
        step_us = self._offset_now_us() - self._offset_us
        if abs(step_us) > CLOCK_STEP_US:
            self.log.warning("clock_step", seconds=round(step_us / 1e6, 3))
            self.setup.metrics.clock_was_set(self.exchange)
            self._begin_anew("clock", now_us)
        if self._renewals != self.setup.intake.renewals:  # what the store has of these epochs has a hole now
            self._renewals = self.setup.intake.renewals
            self._begin_anew(self.setup.intake.renewed_for, now_us)
        for feed in self.feeds.values():
            heard_at_us = max(self._heard_at_us, feed.confirmed_at_us)
            if feed.epoch and heard_at_us > feed.marked_at_us and now_us - feed.marked_us >= MARK_EVERY_US:
                self._touched[feed] = None
        self.flush()
        self.beat()

    def flush(self) -> None:
        """Hand everything to the intake, with the marks that account for it."""
        # Marks that no frame came with have not waited for anything.
        received_us, self._last_received_us = self._last_received_us, 0
        if self._counts["received"]:
            self.setup.metrics.count_frames(self.exchange, **self._counts)
            self._counts = dict.fromkeys(self._counts, 0)
        for feed in self.feeds.values():
            if any(feed.tally.values()):
                self.setup.metrics.count_records(feed.key, **feed.tally)
                feed.tally = dict.fromkeys(feed.tally, 0)
        if self._lag_us is not None:
            self.setup.metrics.venue_time(self.exchange, "data", self._lag_us)
            self._lag_us = None
        if self._venue_ahead:
            self.setup.metrics.venue_time_ahead.labels(self.exchange).inc(self._venue_ahead)
            self._venue_ahead = 0
        if not self._records and not self._touched:
            return
        records = (*self._records, *(feed.mark(self._heard_at_us) for feed in self._touched))
        size = self._bytes + RECORD_BYTES * len(records)
        delivery = Delivery(self.exchange, self._stored, records, size, self._rejected, received_us)
        touched, self._touched = self._touched, {}
        self._records = []
        self._stored = self._rejected = self._bytes = 0
        if self.state == "abandoned":
            self._drop(delivery, "superseded")
        elif self.setup.intake.put(delivery):
            self._delivered(delivery, touched)
        else:
            self.log.error("no_space", market=self.markets[0])
            self._drop(delivery, "no_space")

    def _delivered(self, delivery: Delivery, touched: Iterable[HeardFeed]) -> None:
        now_us = self.clock.monotonic_us()
        for feed in touched:
            feed.marked_at_us, feed.marked_us = max(self._heard_at_us, feed.confirmed_at_us), now_us
            self.setup.metrics.heard(feed.key, feed.opened_us + feed.confirmed_at_us - feed.opened_at_us)
            if feed.lag_us is not None and delivery.frames:
                self.setup.metrics.venue_lag.labels(self.exchange).observe(feed.lag_us / 1e6)
        for record in delivery.records:
            if type(record) is EpochOpened:
                feed = self._open[record.epoch] = self.feeds[record.market, record.channel]
                if feed.epoch == record.epoch:
                    self._opened(feed)
            elif type(record) is CoverageMark:
                self._told[record.epoch] = record.heard_until_us
            elif type(record) is EpochEnded:
                self._open.pop(record.epoch, None)
                self._told.pop(record.epoch, None)
                self._owners.pop(record.epoch, None)

    def _drop(self, delivery: Delivery, reason: str) -> None:
        # What is dropped may have opened or ended epochs. Those the intake knows end where their last mark stood; the
        # book stays known, so that the next row opens an epoch with all of it.
        self.setup.metrics.count_frames(self.exchange, dropped=delivery.frames + delivery.rejected)
        hit: set[int] = set()
        for record in delivery.records:
            if isinstance(record, BookRow | StreamRow):
                self._owners[record.epoch].tally["dropped"] += 1
                self._owners[record.epoch].unsaid(record)
            if isinstance(record, BookRow | StreamRow | EpochEnded | CoverageMark):
                hit.add(record.epoch)
        for epoch in hit & self._open.keys():
            del self._open[epoch]
            ended = EpochEnded(epoch, self._told.pop(epoch), reason)
            self.setup.intake.put(Delivery(self.exchange, 0, (ended,), RECORD_BYTES), force=True)
            self.setup.metrics.epochs.labels(self.exchange, reason).inc()
        for feed in self.feeds.values():
            if feed.epoch and feed.epoch not in self._open:
                feed.lost(reason, feed.marked_at_us)
        for epoch in hit - self._open.keys():
            self._owners.pop(epoch, None)

    # --- taking over --------------------------------------------------------------------------------------------------

    def hears(self, key: Feed) -> bool:
        """Tell whether a feed is one of this controller's."""
        return any(feed.key == key for feed in self.feeds.values())

    def covered_by(self, successors: Sequence[Worker], *, seamlessly: bool) -> bool:
        """Tell whether every feed that is covered here is covered there; one that is in none of them is not wanted.

        `seamlessly`: and its coverage there began before it ends here, in the times that go to the ledger. Any thread
        may ask.
        """
        if not self.alive:
            return True
        for feed in self.feeds.values():
            heirs = [w for w in successors if isinstance(w, Controller) and w.hears(feed.key)]
            heirs = [w for w in heirs if w.transport == self.transport] or heirs
            if not feed.epoch or not heirs:
                continue
            if feed.key.channel != ORDERBOOK and any(heir.settled for heir in heirs):
                continue  # its next message may be days away: whoever is connected will hear it
            found = (w.feeds[feed.market, feed.key.channel] for w in heirs)
            begun = [heir.opened_us for heir in found if heir.epoch and heir.opened_us]
            unproven = self.unproven and feed.key.channel == ORDERBOOK
            until_at_us = feed.agreed_at_us if unproven else max(self._heard_at_us, feed.confirmed_at_us)
            until_us = until_at_us + feed.opened_us - feed.opened_at_us
            if not begun or (seamlessly and min(begun) > until_us):
                return False
        return True

    # --- for others to read -----------------------------------------------------------------------------------------

    def status(self) -> list[dict[str, object]]:
        """Return the state of each feed, for `/status.json` and the live table."""
        now_us = self.clock.monotonic_us()
        return [
            {
                "exchange": self.exchange,
                "market": feed.market,
                "channel": feed.key.channel,
                "transport": self.transport,
                "state": self._state_of(feed),
                "detail": feed.refused or ("" if feed.epoch else feed.gap_reason),
                "frames": feed.total,
                "gaps": feed.gaps,
                "age_s": (now_us - feed.confirmed_at_us) / 1e6 if feed.confirmed_at_us else None,
                "lag_s": None if feed.lag_us is None else feed.lag_us / 1e6,
                "bid": _text(feed.best[0]),
                "ask": _text(feed.best[1]),
                "last": _text(feed.last),
                "generation": self.generation,
            }
            for feed in self.feeds.values()
        ]

    def _state_of(self, feed: HeardFeed) -> str:
        if feed.refused:
            return "refused"
        if feed.epoch:
            return "live"
        return "waiting" if self.connected else "down"


def _text(price: object) -> str | None:
    return None if price is None else f"{price:f}"
