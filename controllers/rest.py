"""Base of everything that is polled over REST: a schedule that does not drift, one session, errors that pass.

An answer equal to the last one, byte for byte, is dropped before it is decoded. A polled book is covered while answers
are at most `max(1 s, 3 intervals)` apart; its rows say `sampled`, since what changed between two polls is not known.
"""

import requests

from collector.errors import ConnectionLost, RateLimited, SourceError, VenueRefused
from controllers.base import Controller, Setup
from controllers.connection import BANNED, retry_after, wants_pause
from controllers.feed import HeardFeed
from controllers.fetch import fetch, open_session


class RESTController(Controller):
    """Polls the books of its markets, one after the other, every `poll_interval_s`."""

    transport = "rest"
    sampled = True

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._interval_us = int(setup.options.poll_interval_s * 1e6)
        self._apart_us = max(1_000_000, 3 * self._interval_us)
        self._base = self.endpoint.rest or self.rest_url
        self._last: dict[str, bytes] = {}  # the answer that holds the book as it is
        self._unread: dict[str, bytes] = {}

    def request_path(self, market: str) -> str:
        """Return the path and query of one poll."""
        raise NotImplementedError(f"{type(self).__name__} does not know what to ask for")

    @property
    def settled(self) -> bool:
        """Whether every feed has its book."""
        return all(feed.epoch for feed in self.feeds.values())

    def run_once(self) -> None:
        """Poll until `stop` is called; an error is logged and the next poll goes on."""
        self.anchor()
        self.log.info("poll_start", interval_s=self._interval_us / 1e6)
        try:
            with open_session() as session:
                self._poll_on_schedule(session)
        finally:
            self._is_connected(False)
            self.end_epochs(self.stop_reason if self.stopping.is_set() else "disconnect")
            self._last.clear()
            self.log.info("poll_stop")

    def _poll_on_schedule(self, session: requests.Session) -> None:
        due_us = self.clock.monotonic_us()
        second_us = due_us
        while not self.stopping.is_set():
            missed = 0
            pause_s = 0.0
            for market in self.markets:
                if not self.setup.budget.wait(self.stopping, meanwhile=self._waited):
                    return
                began_us = self.clock.monotonic_us()
                pause_s = max(pause_s, self._poll_safely(session, market))
                self.setup.metrics.polled(
                    self.exchange, duration_s=(self.clock.monotonic_us() - began_us) / 1e6, missed=missed
                )
            now_us = self.clock.monotonic_us()
            if now_us >= second_us:
                second_us = now_us + 1_000_000
                self.tick()
            self._end_what_is_too_old(now_us)
            self.flush()
            due_us += self._interval_us
            if pause_s:
                due_us = max(due_us, now_us + int(pause_s * 1e6))
            elif due_us < now_us:  # slots that are past are left out; the rest of the schedule stays where it was
                missed = (now_us - due_us) // self._interval_us + 1
                due_us += missed * self._interval_us
                self.setup.metrics.polls_missed.labels(self.exchange).inc(missed)
            while due_us > self.clock.monotonic_us() and not self.stopping.is_set():
                left_us = due_us - self.clock.monotonic_us()
                self.stopping.wait(max(0.0, min(left_us, 1_000_000) / 1e6))
                self._waited()

    def _waited(self) -> None:
        self._end_what_is_too_old(self.clock.monotonic_us())
        self.beat()

    def _poll_safely(self, session: requests.Session, market: str) -> float:
        # Returns how long the exchange wants to be left alone.
        try:
            self._poll(session, market)
        except RateLimited as error:
            self.rate_limited(error)
            self.log.error("poll_error", error=error, market=market)
            pause_s = self.backoff.next_s(error.retry_after_s or 1.0)
            self.backoff.began()  # the run goes on: only a healthy period from here makes pauses short again
            return pause_s
        except SourceError as error:
            self._is_connected(not isinstance(error, ConnectionLost))
            self.log.error("poll_error", error=error, market=market)
        except Exception as error:  # our bug: told with its traceback, and the next poll goes on
            self.log.exception("poll_unexpected", error=repr(error), market=market)
        return 0.0

    def _poll(self, session: requests.Session, market: str) -> None:
        url = self._base + self.request_path(market)
        try:
            self._ask(session, url, market)
        except SourceError:
            raise
        except Exception:  # an answer may be lost by it, or in the middle of being accounted for
            self.distrust("disconnect")
            self._last.clear()
            raise

    def _ask(self, session: requests.Session, url: str, market: str) -> None:
        status, headers, body = fetch(session, url, self.clock)
        at_us = self.clock.monotonic_us()
        self.dated(headers)
        if wants_pause(status, headers):
            self._not_data()
            raise RateLimited(f"HTTP {status}", retry_after(headers), banned=status == BANNED)
        if status != 200:
            self._not_data()
            raise VenueRefused(f"HTTP {status}: {body[:200].decode('utf-8', 'replace')!r}")
        self._is_connected(True)
        self._end_what_is_too_old(at_us)  # an answer that took too long bridges nothing
        self._answered(market, body, at_us)

    def _answered(self, market: str, body: bytes, at_us: int) -> None:
        feed = self.feeds[market]
        if body == (self._last if feed.epoch else self._unread).get(market):
            self._repeated(feed, at_us)
            return
        self._last.pop(market, None)
        rejected = self._rejected
        self.handle(body, at_us)
        if self._rejected > rejected:
            self._unread[market] = body  # kept raw once, however often it comes again
        elif feed.epoch and feed.confirmed_at_us == at_us:  # what held no book of this market is no sign of life later
            self._last[market] = body

    def _repeated(self, feed: HeardFeed, at_us: int) -> None:
        self._counts["received"] += 1
        self._counts["duplicate"] += 1
        feed.tally["received"] += 1
        feed.tally["duplicate"] += 1
        self._heard_at_us = at_us
        if feed.epoch:
            feed.frames += 1
            feed.total += 1
            feed.confirmed_at_us = at_us

    def _not_data(self) -> None:
        self._counts["received"] += 1
        self._counts["ignored"] += 1

    def _end_what_is_too_old(self, now_us: int) -> None:
        for feed in self.feeds.values():
            if feed.epoch and now_us - feed.confirmed_at_us > self._apart_us:
                self.end_epoch(feed, "stale")
                self.flush()

    def _is_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self.setup.metrics.connected.labels(self.exchange).inc(1 if connected else -1)
