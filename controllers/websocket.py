"""Base of everything that is heard over a WebSocket: connect, subscribe, receive, notice silence, reconnect.

A venue gives its address, its subscribe messages and `parse` (the owner's `getWSUrl`, `getMessage`, `handleMessage`);
everything else here does nothing unless the venue asks for it.
"""

import contextlib
import queue
import random
import threading
from collections.abc import Iterable
from decimal import Decimal
from typing import ClassVar
from urllib.parse import urlsplit

import requests

from collector.errors import BookDiffers, ConnectionLost, RateLimited, SourceError, StaleConnection, VenueRefused
from collector.records import Book, BookChange, Record, Refused, Reply
from controllers.base import Controller, Setup
from controllers.book import OrderBook
from controllers.connection import BANNED, Connection, retry_after, wants_pause
from controllers.feed import HeardFeed
from controllers.fetch import fetch
from controllers.frames import CLOSE, PING, PONG, close_reason

FIRST_BOOK_US = 10_000_000  # a market without a book for so long after subscribing is worth a warning
PATIENCE_US_MAX = 300_000_000  # a feed that says nothing for so long is doubted again, however quiet it was before
UNCOVERED_US = 30_000_000  # a feed that was heard and is not covered waits so long for data to open an epoch with
FIRST_PROBE_US = 5_000_000  # a book kept from changes counts only up to a comparison: a new one is not left waiting
PROBE_GRACE_US = 3_000_000  # a REST book may be ahead of the socket by as much
PROBE_BOOKS_MAX = 256
PROBE_SLOT_S = 30.0  # a probe that would have to wait longer for its turn is left out
SKIPPED = "no turn was free"
REPLACED_AT = (0.9, 0.95)  # share of the greatest age of a connection at which another one takes over

Numbers = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]  # bids and asks, price to size


class WSController(Controller):
    """One connection that carries one market, or several."""

    transport = "websocket"
    url: ClassVar[str]
    keepalive_text: ClassVar[str | None] = None  # sent every `keepalive_s`; its answer proves the connection
    keepalive_s: ClassVar[float] = 10.0
    ping_s: ClassVar[float | None] = None  # protocol pings of ours
    stale_s: ClassVar[float] = 60.0  # not one frame, heartbeats included, for so long: the connection is dead
    connection_age_s: ClassVar[float | None] = None  # the exchange closes every connection at this age

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._connection: Connection | None = None
        self._stale_us = int((setup.options.stale_s or self.stale_s) * 1e6)
        self._probe: Probe | None = None
        self._began_us = 0  # when the connection was made
        age_s = setup.options.connection_age_s or self.connection_age_s
        # Connections made in one minute are not replaced in one minute.
        self._replace_us = None if age_s is None else int(age_s * 1e6 * random.uniform(*REPLACED_AT))
        self._rejected_at_us = 0

    # --- what a venue says ------------------------------------------------------------------------------------------

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return the text frames that subscribe to the books of these markets."""
        raise NotImplementedError(f"{type(self).__name__} can't subscribe")

    def address(self) -> str:
        """Return where to connect to; a venue that signs its address overrides this."""
        return self.setup.options.endpoint.websocket or self.url

    def refused(self, error: VenueRefused) -> None:
        """Take note that the exchange refused the connection itself; raises the error unless there is another way."""
        raise error

    def probe_path(self, market: str) -> str | None:
        """Return the REST path of a complete book to compare ours with; None: a silent feed is subscribed to anew."""
        return None

    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read the answer to `probe_path`. Pure, raises `SourceError` only."""
        raise NotImplementedError(f"{type(self).__name__} can't probe")

    # --- the connection ---------------------------------------------------------------------------------------------

    def run_once(self) -> None:
        """Connect, subscribe and listen until the connection ends or `stop` is called."""
        reason = "disconnect"
        self.anchor()
        connection = self._connect()
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
        except BookDiffers:
            reason = "probe"
            raise
        except SourceError:
            if not self.stopping.is_set():
                raise
            reason = self.stop_reason
        finally:
            self._connection = None
            self.connected = False
            self._probe = None
            self.setup.metrics.connected.labels(self.exchange).dec()
            self.end_epochs(reason)
            connection.close()
            self.log.info("close", reason=reason)

    @property
    def settled(self) -> bool:
        """Whether every feed has its book, or the exchange refused it; a book kept from changes is compared as well.

        Such a book counts up to its last comparison: the interval between two passes before this is true, so that the
        last one of the controller that is replaced lies after the first book here.
        """
        interval_us = int(self.setup.options.probe_interval_s * 1e6) if self.changes_only else 0
        return self.connected and all(
            feed.refused or (feed.epoch and feed.agreed_at_us - feed.opened_at_us >= interval_us)
            for feed in self.feeds.values()
        )

    def due_for_replacement(self) -> bool:
        """Tell whether the connection is about to reach the age at which the exchange closes it."""
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

    def after_rejection(self) -> None:
        """Ask for a fresh connection where only that brings a complete book."""
        if self.changes_only:
            raise ConnectionLost("a message was rejected; a complete book comes only with a new subscription")
        self._rejected_at_us = self._heard_at_us

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
        for feed in self.feeds.values():
            feed.first_wait_us, feed.refused = now_us, ""
            feed.doubted, feed.probe_failures = False, 0
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
        elif isinstance(ask, Refused):
            refused = [self.feeds[ask.market]] if ask.market in self.feeds else list(self.feeds.values())
            for feed in refused:
                if not feed.epoch:
                    feed.refused = ask.detail
            self.log.error("api_error", error=ask.detail, market=ask.market)
            if ask.market is not None or len(self.feeds) == 1:
                self._any_wanted()  # else one of them may be meant, and the others be on their way

    def _any_wanted(self) -> None:
        details = [feed.refused for feed in self.feeds.values()]
        if all(details):
            raise VenueRefused(f"the exchange refused the subscription: {details[0]}")

    def _watch(self, now_us: int) -> None:
        silent_us = now_us - self._heard_at_us
        if silent_us > self._stale_us:
            raise StaleConnection(f"not one frame for {silent_us / 1e6:.0f} s")
        for feed in self.feeds.values():
            if feed.first_wait_us is not None and now_us - feed.first_wait_us > FIRST_BOOK_US:
                feed.first_wait_us = None
                self.log.warning("silent", market=feed.market, seconds=FIRST_BOOK_US // 1_000_000)
                self._any_wanted()
            if self.changes_only and not (feed.book.known or feed.refused) and now_us - self._began_us > FIRST_BOOK_US:
                raise StaleConnection(f"no complete book of {feed.market} came; subscribing anew")
            # A quiet market may not speak for days, but a fresh subscription begins with its book.
            last_us = max(feed.confirmed_at_us, self._rejected_at_us)
            if not (feed.epoch or feed.refused) and last_us >= self._began_us and now_us - last_us > UNCOVERED_US:
                raise StaleConnection(f"{feed.market} is not covered and silent; subscribing anew")
        if self._probe is not None:
            self._judge(self._probe, now_us)
        else:
            self._doubt(now_us)

    # --- doubts: a heartbeat is no data, so a silent feed is compared with the REST book -----------------------------

    def _doubt(self, now_us: int) -> None:
        every_us = int(self.setup.options.probe_interval_s * 1e6) if self.changes_only else 0
        for feed in self.feeds.values():
            if not feed.epoch:
                continue
            silent_us = now_us - feed.confirmed_at_us
            wait_us = now_us - max(feed.probed_at_us, feed.opened_at_us)
            interval_us = every_us if feed.compared else min(every_us, FIRST_PROBE_US)
            if feed.probe_failures:
                due = wait_us > 1_000_000
            else:
                due = silent_us > feed.patience_us or bool(interval_us and wait_us >= interval_us)
            if not due:
                continue
            path = self.probe_path(feed.market)
            if path is None:
                feed.patience_us = min(PATIENCE_US_MAX, 2 * silent_us)
                raise StaleConnection(f"{feed.market} was silent for {silent_us / 1e6:.0f} s; subscribing anew")
            feed.probed_at_us = now_us
            base = self.setup.options.endpoint.rest or self.rest_url
            self._probe = Probe(self, feed, base + path)
            return

    def _judge(self, probe: "Probe", now_us: int) -> None:
        feed = probe.feed
        outcome = probe.outcome(now_us)
        if outcome is None:
            return
        self._probe = None
        self.setup.metrics.probes.labels(self.exchange, outcome).inc()
        if outcome == "agreed":
            differed, feed.probe_failures = feed.probe_failures, 0
            feed.doubted = False
            if differed and self.changes_only:
                # It is right now, but nobody knows since when: what lies between the two agreements counts for nobody,
                # and the book opens another epoch with its next change.
                self.end_epoch(feed, "probe")
                return
            feed.patience_us = min(PATIENCE_US_MAX, max(feed.patience_us, 2 * (now_us - feed.confirmed_at_us)))
            feed.confirmed_at_us = max(feed.confirmed_at_us, probe.asked_at_us)
            feed.agreed_at_us, feed.agreed_frames = probe.asked_at_us, probe.frames
            self._touched[feed] = None
            if not feed.compared:
                feed.compared = True
                self.log.info("probe_agreed", market=feed.market)
        elif outcome == "failed":
            self.log.warning("probe_failed", market=feed.market, error=probe.error)
            if feed.epoch == probe.epoch and now_us - feed.confirmed_at_us > feed.patience_us:
                feed.doubted = True
                feed.probe_failures += 1
                if feed.probe_failures >= 2:
                    feed.probe_failures = 0
                    raise StaleConnection(f"{feed.market} is silent, and its REST book can't be had")
        elif outcome == "differed":
            feed.probe_failures += 1
            self.log.warning("probe_differs", market=feed.market, times=feed.probe_failures)
            if feed.probe_failures >= 2:
                feed.probe_failures = 0
                if now_us - feed.confirmed_at_us > feed.patience_us and not self.changes_only:
                    raise StaleConnection(f"{feed.market} is silent while its REST book moves")
                raise BookDiffers(f"the REST book of {feed.market} differs twice; starting from a fresh one")

    def _take(self, feed: HeardFeed, message: Book | BookChange, at_us: int, records: list[Record]) -> None:
        asked = self._probe is not None and self._probe.feed is feed
        if asked and not self.changes_only:
            # Data before the answer: complete books tell nothing of those between, so an answer that agrees now would
            # not say what the silence held.
            feed.doubted, self._probe = True, None
        super()._take(feed, message, at_us, records)
        if self._probe is not None and asked:
            self._probe.note()


class Probe:
    """One request for a complete book, made by a thread of its own so that receiving never waits for it.

    Our book may be ahead of the answer or behind it: every state it went through since the request counts, and for a
    grace after the answer those that follow.
    """

    def __init__(self, controller: WSController, feed: HeardFeed, url: str) -> None:
        self.feed = feed
        self.epoch, self.frames = feed.epoch, feed.frames
        self.asked_at_us = controller.clock.monotonic_us()
        self.error = ""
        self._controller = controller
        self._seen = [feed.book.as_numbers()]
        self._answers: queue.SimpleQueue[Numbers | str] = queue.SimpleQueue()
        self._answer: Numbers | None = None
        self._answered_at_us = 0
        threading.Thread(target=self._ask, args=(url,), name=f"{controller.name}/probe", daemon=True).start()

    def note(self) -> None:
        """Remember the book as it is now."""
        self._seen.append(self.feed.book.as_numbers())
        del self._seen[:-PROBE_BOOKS_MAX]

    def outcome(self, now_us: int) -> str | None:
        """Return `agreed`, `differed`, `failed`, `skipped`, or None while it is open."""
        if self.feed.epoch != self.epoch:
            self.error = "the subscription ended meanwhile"
            return "failed"
        if self._answer is None:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return None
            if isinstance(answer, str):
                self.error = answer
                return "skipped" if answer == SKIPPED else "failed"
            self._answer = answer
            self._answered_at_us = now_us
        if self._answer in self._seen:
            return "agreed"
        return "differed" if now_us - self._answered_at_us > PROBE_GRACE_US else None

    def _ask(self, url: str) -> None:
        controller = self._controller
        answer: Numbers | str
        try:
            if controller.setup.budget.wait(controller.stopping, within_s=PROBE_SLOT_S):
                with requests.Session() as session:
                    status, headers, body = fetch(session, url, controller.clock)
                if wants_pause(status, headers):
                    raise RateLimited(f"HTTP {status}", retry_after(headers), banned=status == BANNED)
                answer = _numbers(controller.parse_probe(self.feed.market, body)) if status == 200 else f"HTTP {status}"
            else:
                answer = SKIPPED
        except RateLimited as error:
            controller.rate_limited(error)
            answer = SKIPPED
        except SourceError as error:
            answer = str(error)
        except Exception as error:  # our bug: without an answer no other probe would ever be made
            answer = repr(error)
        self._answers.put(answer)


def _numbers(book: Book) -> Numbers:
    other = OrderBook(trim=False)
    other.replace(book)
    return other.as_numbers()


def _without_query(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
