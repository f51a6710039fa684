"""Doubts: a heartbeat proves the connection, not the data, so a feed that is silent for too long is asked about.

How long is too long, each feed has taught itself (`Patience`). Then its book is compared with the exchange's REST book;
where that can't equal ours, the same connection is asked for a fresh one. What agrees turns the silence into confirmed
quiet. What differs twice ends the connection; so does a comparison that can't be had while heartbeats are missing too,
or for long. A market that was never heard is asked about in the same way.
"""

from typing import ClassVar

from collector.errors import BookDiffers, StaleConnection
from collector.records import Book, BookChange, Datum, Record
from controllers.base import Controller, Setup
from controllers.book_feed import HeardBook
from controllers.feed import HeardFeed
from controllers.probe import Probe, as_numbers, ask
from controllers.silence import KnownSilences, Patience

FIRST_PROBE_US = 5_000_000  # a book kept from changes counts only up to a comparison: a new one is not left waiting
RETRY_US, RETRY_US_MAX = 1_000_000, 30_000_000  # a comparison that came to nothing is made again, later each time
SKIPPED_RETRY_US = 10_000_000
FRESH_BOOK_US = 10_000_000  # a fresh book that was asked for is awaited so long


class DoubtingController(Controller):
    """A controller whose feeds speak when they want to, so that their silence has to be understood."""

    stale_s: ClassVar[float] = 60.0  # not one frame, heartbeats included, for so long: the connection is dead
    stall_ceiling_s: ClassVar[float] = 300.0  # no feed is left alone for longer, however quiet it is known to be
    probe_depth: ClassVar[int | None] = None  # best levels a side that are compared with REST; None: all
    sends_books_again: ClassVar[bool] = False  # subscribing again on the same connection brings every book anew

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        options = setup.options
        self._stale_us = int((options.stale_s or self.stale_s) * 1e6)
        floor_us = int(options.stall.floor_s * 1e6)
        ceiling_us = int((options.stall.ceiling_s or self.stall_ceiling_s) * 1e6)
        silences = setup.silences or KnownSilences()
        for feed in self.books.values():
            feed.patience = Patience(silences.of(feed.key, self.transport), floor_us, ceiling_us)
        self._probe: Probe | None = None
        self._began_us = 0  # when the connection was made
        self._rejected_at_us = 0

    # --- what a venue says ------------------------------------------------------------------------------------------

    def probe_path(self, market: str) -> str | None:
        """Return the REST path of a complete book to compare ours with; None: no REST book equals ours."""
        return None

    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read the answer to `probe_path`. Pure, raises `SourceError` only."""
        raise NotImplementedError(f"{type(self).__name__} can't probe")

    def subscribe_again(self) -> None:
        """Send the subscription once more, where that brings every book anew."""
        raise NotImplementedError(f"{type(self).__name__} can't subscribe again")

    # --- once a second ----------------------------------------------------------------------------------------------

    def look_at_silences(self, now_us: int) -> None:
        """Ask about what was silent for too long, act on answers; raises `SourceError` to end the connection."""
        for feed in self.books.values():
            self._mind_the_unheard(feed, now_us)
            self._mind_the_unanswered(feed, now_us)
        if self._probe is not None:
            self._doubt_who_waits(self._probe, now_us)
            self._go_on(self._probe, now_us)
        else:
            self._doubt(now_us)

    def look_for_an_answer(self, now_us: int) -> None:
        """Judge an answer that has just come and ask about the next feed: of many that are silent, all get a turn.

        Raises `SourceError` to end the connection.
        """
        if self._probe is not None and self._probe.answered:
            self._go_on(self._probe, now_us)

    def _go_on(self, probe: Probe, now_us: int) -> None:
        outcome = probe.outcome(now_us)
        if outcome is not None:
            self._probe = None
            self._judge(probe, outcome, now_us)
            if outcome == "agreed":  # whatever else came of it is left alone for a second
                self._doubt(now_us)

    def _doubt_who_waits(self, probe: Probe, now_us: int) -> None:
        # One comparison at a time: data that comes before a feed's turn does not tell what its silence held.
        if not self.changes_only:
            for feed in self.books.values():
                if feed.epoch and feed is not probe.feed and self._is_due(feed, now_us):
                    feed.doubted = True

    def _mind_the_unheard(self, feed: HeardBook, now_us: int) -> None:
        if self.joins_snapshots:
            return  # its book comes over REST, which is asked until it answers
        first_us = _patience(feed).first_us
        if feed.waits_for_a_book and now_us - self._began_us > first_us:
            raise StaleConnection(f"no complete book of {feed.market} came; subscribing anew")
        if feed.waits_since_us is None or now_us - max(feed.waits_since_us, self._rejected_at_us) <= first_us:
            return
        if not feed.told_silent:
            feed.told_silent = True
            self.log.warning("silent", market=feed.market, seconds=first_us // 1_000_000)
            self.any_wanted()
        if not (feed.refused or any(other.epoch for other in self.books.values())):
            # A new connection costs nobody anything, and no answer could be better than what it brings.
            _patience(feed).in_vain()
            raise StaleConnection(f"no complete book of {feed.market} came; subscribing anew")

    def _mind_the_unanswered(self, feed: HeardBook, now_us: int) -> None:
        if feed.asked_at_us and now_us - feed.asked_at_us > FRESH_BOOK_US:
            feed.asked_at_us = 0
            self.setup.metrics.probes.labels(self.exchange, "failed").inc()
            if feed.epoch:
                raise StaleConnection(f"{feed.market} is silent, and a fresh book did not come")
        if feed.unanswered_since_us is None:
            return
        if now_us - self._heard_at_us > self._stale_us // 2:
            raise StaleConnection(f"{feed.market} is silent, and so are heartbeats and REST")
        if now_us - feed.unanswered_since_us > _patience(feed).ceiling_us:
            raise StaleConnection(f"{feed.market} is silent, and its REST book can't be had")

    def any_wanted(self) -> None:
        """Raise `VenueRefused` where the exchange has refused every market of this connection."""

    def _doubt(self, now_us: int) -> None:
        due = [feed for feed in self.books.values() if self._is_due(feed, now_us)]
        if self.verdict:  # its next message proves that none was missed: without a REST book it is left alone
            due = [feed for feed in due if self.probe_path(feed.market) is not None or not feed.epoch]
        for feed in due:
            path = self.probe_path(feed.market)
            if path is not None:
                feed.probed_at_us = now_us
                self._ask_rest(feed, path)
                return
        if due and self.sends_books_again:
            self._ask_the_socket(due, now_us)
            return
        for feed in due:
            if feed.epoch:
                silent_us = feed.silent_us(now_us)
                _patience(feed).proved(silent_us)
                raise StaleConnection(f"{feed.market} was silent for {silent_us / 1e6:.0f} s; subscribing anew")

    def _is_due(self, feed: HeardBook, now_us: int) -> bool:
        patience = _patience(feed)
        if feed.refused or feed.asked_at_us:
            return False
        if not feed.epoch and self.joins_snapshots:
            return False
        if not feed.epoch:  # one that was heard and has no book gets a fresh one: see WSController
            since_us = feed.waits_since_us
            last_us = max(since_us or 0, feed.probed_at_us, self._rejected_at_us)
            return since_us is not None and now_us - last_us > patience.first_us
        wait_us = now_us - max(feed.probed_at_us, feed.opened_at_us)
        if feed.retry_us:
            return wait_us > feed.retry_us
        every_us = int(self.setup.options.probe_interval_s * 1e6) if self.unproven else 0
        interval_us = every_us if feed.compared else min(every_us, FIRST_PROBE_US)
        return feed.silent_us(now_us) > patience.us or bool(interval_us and wait_us >= interval_us)

    def _ask_rest(self, feed: HeardBook, path: str) -> None:
        setup, clock, stopping = self.setup, self.clock, self.stopping
        url = (self.endpoint.rest or self.rest_url) + path

        def get() -> Book | None:
            def read(body: bytes) -> Book:
                return self.parse_probe(feed.market, body)

            return ask(url, read, setup.budget, stopping, clock, self.dated, self.rate_limited)

        self._probe = Probe(feed, get, clock, self.name, self.probe_depth)

    def _ask_the_socket(self, due: list[HeardBook], now_us: int) -> None:
        for feed in due:
            feed.asked_at_us = feed.probed_at_us = now_us
            if not feed.epoch:
                _patience(feed).in_vain()
        for feed in self.books.values():
            _patience(feed).asked()
        self.subscribe_again()

    # --- answers ----------------------------------------------------------------------------------------------------

    def _judge(self, probe: Probe, outcome: str, now_us: int) -> None:
        self.setup.metrics.probes.labels(self.exchange, outcome).inc()
        if outcome == "agreed":
            self._agreed(probe, now_us)
        elif outcome == "failed":
            self._failed(probe, now_us)
        elif outcome == "differed":
            self._differed(probe.feed, now_us)
        elif outcome == "skipped":
            self._skipped(probe.feed, now_us)
        else:
            _patience(probe.feed).in_vain()
            if outcome == "trades":
                raise StaleConnection(f"{probe.feed.market} has a REST book and none came; subscribing anew")

    def _agreed(self, probe: Probe, now_us: int) -> None:
        feed = probe.feed
        differed, feed.differences = feed.differences, 0
        feed.understood()
        if differed and self.unproven:
            # It is right now, but nobody knows since when: what lies between the two agreements counts for nobody, and
            # the book opens another epoch with its next change.
            self.end_epoch(feed, "probe")
            return
        self._proved(feed, probe.asked_at_us, now_us)
        feed.agreed_at_us, feed.agreed_frames = probe.asked_at_us, probe.frames
        if not feed.compared:
            feed.compared = True
            self.log.info("probe_agreed", market=feed.market)

    def _proved(self, feed: HeardBook, until_at_us: int, now_us: int) -> None:
        _patience(feed).proved(feed.silent_us(now_us))
        feed.confirmed_at_us, feed.silent_before_us = max(feed.confirmed_at_us, until_at_us), 0
        self._touched[feed] = None

    def _failed(self, probe: Probe, now_us: int) -> None:
        feed = probe.feed
        self.log.warning("probe_failed", market=feed.market, error=probe.error)
        if feed.epoch != probe.epoch:
            return
        if not feed.epoch:
            _patience(feed).in_vain()
        elif feed.silent_us(now_us) > _patience(feed).us:
            feed.doubted = not self.verdict
            feed.retry_us = min(RETRY_US_MAX, max(RETRY_US, 2 * feed.retry_us))
            if feed.unanswered_since_us is None and not self.verdict:
                feed.unanswered_since_us = now_us

    def _skipped(self, feed: HeardBook, now_us: int) -> None:
        # Where no turn is free the patience of a feed stretches, up to the ceiling.
        feed.retry_us = SKIPPED_RETRY_US
        if feed.epoch and not self.changes_only and feed.silent_us(now_us) > _patience(feed).ceiling_us:
            feed.doubted = True

    def _differed(self, feed: HeardBook, now_us: int) -> None:
        feed.differences += 1
        feed.retry_us = RETRY_US
        feed.unanswered_since_us = None
        patience = _patience(feed)
        silent = feed.silent_us(now_us) > patience.us
        patience.begin()  # what ends this silence would not have been its own end
        self.log.warning("probe_differs", market=feed.market, times=feed.differences)
        if not self.changes_only:
            feed.doubted = True
        if feed.differences >= 2:
            if self.verdict:
                feed.differences = feed.retry_us = 0
                self.end_epoch(feed, "probe")
                feed.forget()
                self.resync(feed, now_us)
                return
            if silent and not self.changes_only:
                raise StaleConnection(f"{feed.market} is silent while its REST book moves")
            raise BookDiffers(f"the REST book of {feed.market} differs twice; starting from a fresh one")

    # --- data -------------------------------------------------------------------------------------------------------

    def _take(self, feed: HeardFeed, message: Datum, at_us: int, records: list[Record]) -> bool:
        if not isinstance(feed, HeardBook):
            return super()._take(feed, message, at_us, records)
        assert isinstance(message, Book | BookChange)
        asked = self._probe is not None and self._probe.feed is feed and feed.epoch
        if feed.asked_at_us:
            self._take_fresh(feed, message, at_us)
        elif not self.changes_only:
            if asked:
                # Data before the answer: complete books tell nothing of those between, so an answer that agrees now
                # would not say what the silence held.
                feed.doubted, self._probe = True, None
            feed.retry_us, feed.differences = 0, 0
        counts = super()._take(feed, message, at_us, records)
        if self._probe is not None and asked:
            if self.verdict:  # what follows proves by itself that the silence held nothing
                self._probe = None
                feed.retry_us = feed.differences = 0
            else:
                self._probe.note()
        return counts

    def _take_fresh(self, feed: HeardBook, message: Book | BookChange, at_us: int) -> None:
        # The first message after a fresh book was asked for: that book, or one that would have come anyway.
        feed.asked_at_us = 0
        if not feed.epoch or not isinstance(message, Book):
            return
        agreed = as_numbers(message) == feed.book.as_numbers()
        self.setup.metrics.probes.labels(self.exchange, "agreed" if agreed else "differed").inc()
        if agreed:
            feed.understood()
            self._proved(feed, at_us, at_us)
        else:
            feed.doubted = True
            _patience(feed).begin()


def _patience(feed: HeardBook) -> Patience:
    assert feed.patience is not None
    return feed.patience
