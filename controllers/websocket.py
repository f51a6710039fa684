"""Base of everything that is heard over a WebSocket: connect, subscribe, receive, notice silence, reconnect.

A venue gives its address, its subscribe messages and `parse` (the owner's `getWSUrl`, `getMessage`, `handleMessage`);
everything else here does nothing unless the venue asks for it.
"""

import contextlib
import random
from collections.abc import Iterable
from typing import ClassVar
from urllib.parse import urlsplit

from collector.errors import BookDiffers, ConnectionLost, RateLimited, SourceError, StaleConnection, VenueRefused
from collector.records import Refused, Reply
from controllers.base import Setup
from controllers.connection import Connection
from controllers.doubt import DoubtingController
from controllers.frames import CLOSE, PING, PONG, close_reason

UNCOVERED_US = 30_000_000  # a feed that was heard and is not covered waits so long for data to open an epoch with
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
            feed.connected(now_us)
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
        for feed in self.feeds.values():
            # A quiet market may not speak for days, but a fresh subscription begins with its book.
            last_us = max(feed.confirmed_at_us, self._rejected_at_us)
            if not (feed.epoch or feed.refused) and last_us >= self._began_us and now_us - last_us > UNCOVERED_US:
                raise StaleConnection(f"{feed.market} is not covered and silent; subscribing anew")
        self.look_at_silences(now_us)


def _without_query(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
