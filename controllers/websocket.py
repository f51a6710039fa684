"""Base of everything that is heard over a WebSocket: connect, subscribe, receive, notice silence, reconnect.

A venue gives its address, its subscribe messages and `parse` (the owner's `getWSUrl`, `getMessage`, `handleMessage`);
everything else here does nothing unless the venue asks for it.
"""

import contextlib
import random
from collections.abc import Iterable, Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from collector.errors import (
    BadFrame,
    BookBroken,
    BookDiffers,
    ConnectionLost,
    FramesLost,
    RateLimited,
    SourceError,
    StaleConnection,
    VenueRefused,
)
from collector.records import Book, Leaving, Record, Refused, Reply, Subscribed
from controllers.base import Setup
from controllers.book_feed import HeardBook
from controllers.connection import BANNED, Connection, retry_after, wants_pause
from controllers.doubt import DoubtingController
from controllers.feed import HeardFeed
from controllers.fetch import fetch, open_session
from controllers.frames import CLOSE, PING, PONG, close_reason
from controllers.probe import ask
from controllers.snapshots import Snapshots
from controllers.stream_feed import HeardStream

UNCOVERED_US = 30_000_000  # a feed that was heard and is not covered waits so long for data to open an epoch with
RESYNC_HEALTHY_US = 60_000_000  # a book that was right for so long is begun anew at once when it breaks
RESYNC_US, RESYNC_US_MAX = 1_000_000, 30_000_000
REPLACED_AT = (0.9, 0.95)  # share of the greatest age of a connection at which another one takes over


class WSController(DoubtingController):
    """One connection that carries one market, or several."""

    transport = "websocket"
    url: ClassVar[str]
    keepalive_text: ClassVar[str | None] = None  # sent every `keepalive_s`; its answer proves the connection
    keepalive_s: ClassVar[float] = 10.0
    ping_s: ClassVar[float | None] = None  # protocol pings of ours
    connection_age_s: ClassVar[float | None] = None  # the exchange closes every connection at this age

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._connection: Connection | None = None
        self._snapshots = Snapshots(self._fetch_snapshot, self.clock, self.name)
        self._resync_us: dict[HeardBook, int] = {}  # books that are to be begun anew, and when
        self._leaving = False
        age_s = setup.options.connection_age_s or self.connection_age_s
        # Connections made in one minute are not replaced in one minute.
        self._replace_us = None if age_s is None else int(age_s * 1e6 * random.uniform(*REPLACED_AT))

    # --- what a venue says ------------------------------------------------------------------------------------------

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return the text frames that subscribe to all of `self.channels` of these markets."""
        raise NotImplementedError(f"{type(self).__name__} can't subscribe")

    def resync_messages(self, market: str) -> Iterable[str]:
        """Return the text frames that bring the complete book of one market anew; none: only a new connection does."""
        return ()

    def address(self) -> str:
        """Return where to connect to; a venue that signs its address overrides this."""
        return self.endpoint.websocket or self.url

    def refused(self, error: VenueRefused) -> None:
        """Take note that the exchange refused the connection itself; raises the error unless there is another way."""
        raise error

    # --- the connection ---------------------------------------------------------------------------------------------

    def run_once(self) -> None:
        """Connect, subscribe and listen until the connection ends or `stop` is called."""
        reason = "disconnect"
        self._learn_units()
        connection = self._connect()
        self.anchor()
        self._connection = connection
        if self.stopping.is_set():
            connection.close()
            return
        try:
            self._began_us = self.clock.monotonic_us()
            self.connected = True
            self.setup.metrics.connected.labels(self.exchange).inc()
            self.log.info("connect", url=_without_query(self.address()))
            for text in self.subscribe_messages(self.markets):
                connection.send_text(text)
            self.log.info("subscribe", markets=",".join(self.markets))
            self._listen(connection)
            reason = self.stop_reason
        except StaleConnection:
            reason = "stale"
            raise
        except FramesLost:
            reason = "sequence"
            raise
        except BookDiffers:
            reason = "probe"
            raise
        except SourceError as error:
            if isinstance(error, RateLimited):
                self.rate_limited(error)
            if not self.stopping.is_set():
                raise
            reason = self.stop_reason
        finally:
            self._connection = None
            self.connected = False
            self._probe = None
            self.setup.metrics.connected.labels(self.exchange).dec()
            try:
                self.end_epochs(reason)
            finally:
                connection.close()
            self.log.info("close", reason=reason)

    @property
    def settled(self) -> bool:
        """Whether every feed has its book, or the exchange refused it; a book kept from changes is compared as well.

        Such a book counts up to its last comparison: the interval between two passes before this is true, so that the
        last one of the controller that is replaced lies after the first book here.
        """
        interval_us = int(self.setup.options.probe_interval_s * 1e6) if self.unproven else 0
        return self.connected and all(
            book.refused or (book.epoch and book.agreed_at_us - book.opened_at_us >= interval_us)
            for book in self.books.values()
        )

    def due_for_replacement(self) -> bool:
        """Tell whether the connection is about to reach the age at which the exchange closes it."""
        if self._leaving and self.connected:
            return True
        if self._replace_us is None or not self.connected:
            return False
        return self.clock.monotonic_us() - self._began_us >= self._replace_us

    def stop(self) -> None:
        """Ask the controller to end and wake it out of its wait."""
        super().stop()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                connection.abort()

    def report(self, problem: object, delay_s: float) -> None:
        """Log the end of a connection as the owner words it."""
        key = "api_error" if isinstance(problem, VenueRefused) else "ws_error"
        self.log.error(key, error=problem, attempt=self.backoff.attempt, after_s=round(delay_s, 1))

    def after_rejection(self, books: Sequence[HeardBook], at_us: int, *, known: bool) -> None:
        """Get complete books again; by a fresh connection where only that brings them, or nobody knows which."""
        self._rejected_at_us = self._heard_at_us
        if not self.changes_only or not books:
            return
        if not known:
            raise ConnectionLost("a message was rejected; complete books come only with a new subscription")
        for book in books:
            self.resync(book, at_us)

    def resync(self, feed: HeardFeed, at_us: int) -> None:
        """Ask for the complete book of one market, at once or, if it keeps breaking, later every time."""
        assert isinstance(feed, HeardBook)
        healthy = at_us - feed.broken_us > RESYNC_HEALTHY_US
        feed.breaks = 1 if healthy else feed.breaks + 1
        feed.broken_us = at_us
        if not self._can_resync(feed.market):
            raise ConnectionLost(f"{feed.market} broke; a complete book comes only with a new subscription")
        if feed.breaks == 1:
            self._ask_for_the_book(feed)
        else:
            self._resync_us[feed] = at_us + min(RESYNC_US_MAX, RESYNC_US << min(feed.breaks - 2, 10))

    def _can_resync(self, market: str) -> bool:
        return self.snapshot_path(market) is not None or any(True for _ in self.resync_messages(market))

    def _ask_for_the_book(self, feed: HeardBook) -> None:
        self._resync_us.pop(feed, None)
        feed.waits_since_us = self.clock.monotonic_us()
        if self.snapshot_path(feed.market) is not None:
            self._snapshots.want(feed)
        elif self._connection is not None:
            for text in self.resync_messages(feed.market):
                self._connection.send_text(text)

    # --- books over REST that the stream continues ------------------------------------------------------------------

    def _fetch_snapshot(self, market: str) -> Book | None:
        def read(body: bytes) -> Book:
            return self.parse_snapshot(market, body)

        path = self.snapshot_path(market)
        assert path is not None
        url = (self.endpoint.rest or self.rest_url) + path
        return ask(url, read, self.setup.budget, self.stopping, self.clock, self.dated, self.rate_limited)

    def _look_for_books(self, now_us: int) -> None:
        for feed, due_us in list(self._resync_us.items()):
            if feed.epoch:  # it came by itself
                del self._resync_us[feed]
            elif now_us >= due_us:
                self._ask_for_the_book(feed)
        answer = self._snapshots.look(now_us)
        if answer is None:
            return
        feed, book = answer
        if isinstance(book, str):
            self.log.warning("snapshot_failed", market=feed.market, error=book)
        elif not feed.epoch:
            self._join(feed, book, now_us)

    def _join(self, feed: HeardBook, book: Book, now_us: int) -> None:
        records: list[Record] = []
        try:
            joined = feed.join(book, now_us, self._offset_us, records)
        except (BookBroken, BadFrame) as error:
            if feed.epoch:
                feed.lost(error.reason if isinstance(error, BookBroken) else "rejected", now_us)
            feed.forget()
            self.log.warning("snapshot_failed", market=feed.market, error=error)
            joined = False
        if joined:
            self._snapshots.joined(feed)
            self.begin(feed, records)
        else:
            self._snapshots.again(feed, now_us)

    def _learn_units(self) -> None:
        """Find out what contracts are, before the first size is stored; raises `SourceError`."""
        for market in self.markets:
            feeds = [feed for feed in self.feeds.values() if feed.market == market]
            unit, path = self.unit(market), self.unit_path(market)
            if unit is None and path is not None and feeds[0].unit is None:
                unit = self._fetch_unit(market, path)
            for feed in feeds:
                feed.unit = unit or feed.unit

    def _fetch_unit(self, market: str, path: str) -> str:
        if not self.setup.budget.wait(self.stopping, meanwhile=self.beat):
            raise ConnectionLost("asked to stop before it was this connection's turn")
        with open_session() as session:
            status, headers, body = fetch(session, (self.endpoint.rest or self.rest_url) + path, self.clock)
        self.dated(headers)
        if wants_pause(status, headers):
            error = RateLimited(f"HTTP {status}", retry_after(headers), banned=status == BANNED)
            self.rate_limited(error)
            raise error
        if status != 200:
            raise VenueRefused(f"HTTP {status}: {body[:200].decode('utf-8', 'replace')!r}")
        return self.parse_unit(market, body)

    def _connect(self) -> Connection:
        if not (self.setup.connects or self.setup.budget).wait(self.stopping, meanwhile=self.beat):
            raise ConnectionLost("asked to stop before it was this connection's turn")
        self.backoff.began()  # the wait was none of the healthy time
        try:
            connection = Connection(self.address())
        except VenueRefused as error:
            self.setup.metrics.connects.labels(self.exchange, "refused").inc()
            self.refused(error)
            connection = Connection(self.address())
        except SourceError as error:
            self.setup.metrics.connects.labels(self.exchange, "failed").inc()
            if isinstance(error, RateLimited):
                self.rate_limited(error)
            raise
        self.setup.metrics.connects.labels(self.exchange, "ok").inc()
        return connection

    def _listen(self, connection: Connection) -> None:
        now_us = self._heard_at_us = self.clock.monotonic_us()
        self._number, self._leaving = None, False
        self._resync_us.clear()
        for feed in self.feeds.values():
            feed.connected(now_us)
        for book in self.books.values():
            if self.snapshot_path(book.market) is not None:
                self._snapshots.want(book)
        second_us = keepalive_us = ping_us = now_us
        while not self.stopping.is_set():
            arrived = connection.receive()
            now_us = self.clock.monotonic_us()
            for opcode, payload in arrived:
                if opcode < CLOSE:
                    for ask in self.handle(payload, now_us):
                        self._obey(ask, connection)
                elif opcode == PING:
                    self._heard_at_us = now_us
                    connection.send_pong(payload)
                elif opcode == PONG:
                    self._heard_at_us = now_us
                else:
                    raise ConnectionLost(f"the server closed the connection: {close_reason(payload)}")
            self._look_for_books(now_us)
            self.look_for_an_answer(now_us)
            if arrived:
                self.flush()
            if now_us >= second_us:
                second_us = now_us + 1_000_000
                self.tick()
                self._watch(now_us)
            if self.keepalive_text is not None and now_us >= keepalive_us:
                keepalive_us = now_us + int(self.keepalive_s * 1e6)
                connection.send_text(self.keepalive_text)
            if self.ping_s is not None and now_us >= ping_us:
                ping_us = now_us + int(self.ping_s * 1e6)
                connection.send_ping()

    def _obey(self, ask: object, connection: Connection) -> None:
        if isinstance(ask, Reply):
            connection.send_text(ask.text)
        elif isinstance(ask, Subscribed):
            stream = self.feeds.get((ask.market, ask.channel))
            if isinstance(stream, HeardStream):
                self.begin(stream, stream.subscribed(self._heard_at_us, self._offset_us))
        elif isinstance(ask, Leaving):
            self._leaving = True
            self.log.warning("leaving", detail=ask.detail)
        elif isinstance(ask, Refused):
            meant = [feed for feed in self.feeds.values() if feed.market == ask.market]
            for feed in meant or self.feeds.values():
                if not feed.epoch:
                    feed.refused = ask.detail
            self.log.error("api_error", error=ask.detail, market=ask.market)
            if ask.market is not None or len(self.feeds) == 1:
                self.any_wanted()  # else one of them may be meant, and the others be on their way

    def any_wanted(self) -> None:
        """Raise `VenueRefused` where the exchange has refused every market of this connection."""
        details = [feed.refused for feed in self.feeds.values()]
        if all(details):
            raise VenueRefused(f"the exchange refused the subscription: {details[0]}")

    def subscribe_again(self) -> None:
        """Send the subscription once more."""
        if self._connection is not None:
            for text in self.subscribe_messages(self.markets):
                self._connection.send_text(text)

    def _watch(self, now_us: int) -> None:
        silent_us = now_us - self._heard_at_us
        if silent_us > self._stale_us:
            raise StaleConnection(f"not one frame for {silent_us / 1e6:.0f} s")
        for feed in () if self.joins_snapshots else self.books.values():
            # A quiet market may not speak for days, but a fresh subscription begins with its book.
            last_us = max(feed.confirmed_at_us, self._rejected_at_us)
            if not (feed.epoch or feed.refused) and last_us >= self._began_us and now_us - last_us > UNCOVERED_US:
                raise StaleConnection(f"{feed.market} is not covered and silent; subscribing anew")
        self.look_at_silences(now_us)


def _without_query(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
