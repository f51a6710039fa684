"""Base of everything that is polled over REST: a schedule that does not drift, one session, errors that pass.

An answer equal to the last one, byte for byte, is dropped before it is decoded. A polled book is covered while answers
are at most `max(1 s, 3 intervals)` apart; its rows say `sampled`, since what changed between two polls is not known.
Trades overlap from one answer to the next: where a full one holds none that is known, some were missed.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar

import requests

from collector.errors import ConnectionLost, RateLimited, SourceError, VenueRefused
from collector.records import ORDERBOOK, Message, Trade
from controllers.base import Controller, Setup
from controllers.connection import BANNED, retry_after, wants_pause
from controllers.feed import HeardFeed
from controllers.fetch import fetch, open_session
from controllers.stream_feed import HeardStream, HeardTrades


class RESTController(Controller):
    """Polls its feeds one after the other: books every `poll_interval_s`, other channels as `poll_every_s` says."""

    transport = "rest"
    sampled = True
    poll_every_s: ClassVar[Mapping[str, float]] = {}  # least seconds between two polls of a market, by channel
    poll_trades: ClassVar[int] = 0  # trades in a full answer: if none of them is known, some were missed

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._interval_us = int(setup.options.poll_interval_s * 1e6)
        self._base = self.endpoint.rest or self.rest_url
        self._last: dict[HeardFeed, bytes] = {}  # the answer that holds things as they are
        self._unread: dict[HeardFeed, bytes] = {}

    def request_path(self, market: str) -> str:
        """Return the path and query of one poll of a book."""
        raise NotImplementedError(f"{type(self).__name__} does not know what to ask for")

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the path and query of one poll; `now_us` is the wall clock, for who asks for a window of time."""
        return self.request_path(market)

    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read the answer to `poll_path`. Pure, as `parse`; trades and candles come oldest first."""
        return self.parse(body, received_us)

    @property
    def settled(self) -> bool:
        """Whether every feed has been heard."""
        return all(feed.epoch for feed in self.feeds.values())

    def run_once(self) -> None:
        """Poll until `stop` is called; an error is logged and the next poll goes on."""
        self.anchor()
        self.log.info("poll_start", interval_s=min(map(self._every_us, self.feeds.values())) / 1e6)
        try:
            with open_session() as session:
                self._poll_on_schedule(session)
        finally:
            self._is_connected(False)
            self.end_epochs(self.stop_reason if self.stopping.is_set() else "disconnect")
            self._last.clear()
            self.log.info("poll_stop")

    def _every_us(self, feed: HeardFeed) -> int:
        every_s = self.poll_every_s.get(feed.key.channel, 0.0)
        return max(self._interval_us, int(every_s * 1e6))

    def _poll_on_schedule(self, session: requests.Session) -> None:
        # A round polls all feeds of one rhythm, one after the other; each rhythm has a schedule of its own.
        second_us = now_us = self.clock.monotonic_us()
        rounds: dict[int, list[HeardFeed]] = {}
        for feed in self.feeds.values():
            rounds.setdefault(self._every_us(feed), []).append(feed)
        due_us = dict.fromkeys(rounds, now_us)
        while not self.stopping.is_set():
            every_us = min(due_us, key=due_us.__getitem__)
            self._wait_until(due_us[every_us])
            missed = 0
            pause_s = 0.0
            for feed in rounds[every_us]:
                if not self.setup.budget.wait(self.stopping, meanwhile=self._waited):
                    return
                began_us = self.clock.monotonic_us()
                pause_s = max(pause_s, self._poll_safely(session, feed))
                self.setup.metrics.polled(
                    self.exchange, duration_s=(self.clock.monotonic_us() - began_us) / 1e6, missed=missed
                )
            now_us = self.clock.monotonic_us()
            if now_us >= second_us:
                second_us = now_us + 1_000_000
                self.tick()
            self._end_what_is_too_old(now_us)
            self.flush()
            due_us[every_us] += every_us
            if pause_s:
                due_us = {every: max(due, now_us + int(pause_s * 1e6)) for every, due in due_us.items()}
            elif due_us[every_us] < now_us:
                # Slots that are past are left out; the rest of the schedule stays where it was.
                missed = (now_us - due_us[every_us]) // every_us + 1
                due_us[every_us] += missed * every_us
                self.setup.metrics.polls_missed.labels(self.exchange).inc(missed)

    def _wait_until(self, due_us: int) -> None:
        while due_us > self.clock.monotonic_us() and not self.stopping.is_set():
            left_us = due_us - self.clock.monotonic_us()
            self.stopping.wait(max(0.0, min(left_us, 1_000_000) / 1e6))
            self._waited()

    def _waited(self) -> None:
        self._end_what_is_too_old(self.clock.monotonic_us())
        self.beat()

    def _poll_safely(self, session: requests.Session, feed: HeardFeed) -> float:
        # Returns how long the exchange wants to be left alone.
        try:
            self._poll(session, feed)
        except RateLimited as error:
            self.rate_limited(error)
            self.log.error("poll_error", error=error, market=feed.market)
            pause_s = self.backoff.next_s(error.retry_after_s or 1.0)
            self.backoff.began()  # the run goes on: only a healthy period from here makes pauses short again
            return pause_s
        except SourceError as error:
            self._is_connected(not isinstance(error, ConnectionLost))
            self.log.error("poll_error", error=error, market=feed.market)
        except Exception as error:  # our bug: told with its traceback, and the next poll goes on
            self.log.exception("poll_unexpected", error=repr(error), market=feed.market)
        return 0.0

    def _poll(self, session: requests.Session, feed: HeardFeed) -> None:
        url = self._base + self.poll_path(feed.key.channel, feed.market, self.clock.wall_us())
        try:
            self._ask(session, url, feed)
        except SourceError:
            raise
        except Exception:  # an answer may be lost by it, or in the middle of being accounted for
            self.distrust("disconnect")
            self._last.clear()
            raise

    def _ask(self, session: requests.Session, url: str, feed: HeardFeed) -> None:
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
        self._answered(feed, body, at_us)

    def _answered(self, feed: HeardFeed, body: bytes, at_us: int) -> None:
        if body == (self._last if feed.epoch else self._unread).get(feed):
            self._repeated(feed, at_us)
            return
        self._last.pop(feed, None)
        rejected = self._rejected
        if feed.key.channel == ORDERBOOK:
            self.handle(body, at_us)
        else:
            self.handle(body, at_us, functools.partial(self._read, feed))
            if self._rejected == rejected and feed.confirmed_at_us != at_us:
                self._held_nothing(feed, at_us)
        if self._rejected > rejected:
            self._unread[feed] = body  # kept raw once, however often it comes again
        elif feed.epoch and feed.confirmed_at_us == at_us:  # what held nothing of this feed is no sign of life later
            self._last[feed] = body

    def _read(self, feed: HeardFeed, body: bytes, received_us: int) -> Iterable[Message]:
        messages = tuple(self.parse_poll(feed.key.channel, feed.market, body, received_us))
        if isinstance(feed, HeardTrades) and feed.epoch:
            trades = [message for message in messages if isinstance(message, Trade)]
            if self.poll_trades and len(trades) >= self.poll_trades and not feed.knows_one_of(trades):
                self.end_epoch(feed, "sequence")  # between this answer and the one before there were more
        return messages

    def _held_nothing(self, feed: HeardFeed, at_us: int) -> None:
        # An answer without a row says that nothing happened: it covers, and opens what is not covered.
        assert isinstance(feed, HeardStream)
        self.begin(feed, feed.subscribed(at_us, self._offset_us))
        feed.confirm(at_us)
        self._touched[feed] = None

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
            apart_us = max(1_000_000, 3 * self._every_us(feed))
            if feed.epoch and now_us - feed.confirmed_at_us > apart_us:
                self.end_epoch(feed, "stale")
                self.flush()

    def _is_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self.setup.metrics.connected.labels(self.exchange).inc(1 if connected else -1)
