"""A callback of a program, in a thread of its own: whatever it does, whoever tells it something never waits."""

import threading
from collections import deque
from collections.abc import Callable
from fnmatch import fnmatchcase

from collector.clock import Clock
from collector.latest import Callback, Update
from collector.log import Log
from collector.records import Feed

COMPLAIN_EVERY_US = 60_000_000
CLOSE_S = 10.0


class Subscription:
    """A callback that hears feeds, from a thread of its own; see `LiveView.subscribe`.

    `told` counts the updates handed to it, `dropped` those that it was too slow for, `errors` how often it raised.
    """

    def __init__(
        self,
        exchange: str,
        channel: str,
        market: str,
        callback: Callback,
        waiting_max: int,
        *,
        clock: Clock,
        log: Log,
        leave: Callable[["Subscription"], None],
    ) -> None:
        self.exchange, self.channel, self.market = exchange, channel, market
        self.told = self.dropped = self.errors = 0
        self._callback = callback
        self._clock = clock
        self._log = log
        self._leave = leave
        self._waiting: deque[Update] = deque()
        self._waiting_max = waiting_max
        self._lock = threading.Lock()  # held for a few list operations, never while the callback runs
        self._ready = threading.Event()
        self._closed = False
        self._complained_us: int | None = None
        name = f"live/{exchange}/{channel}/{market}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Stop calling; tell whether the callback has returned by now. What still waits for it is forgotten.

        It may call this itself. One that is stuck is left behind after `timeout_s`, and hears nothing more.
        """
        self._leave(self)
        self._closed = True
        self._ready.set()
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wants(self, feed: Feed) -> bool:
        """Tell whether a feed is one of those that were asked for."""
        return (
            feed.channel == self.channel
            and fnmatchcase(feed.exchange, self.exchange)
            and fnmatchcase(feed.market, self.market)
        )

    def put(self, update: Update) -> None:
        """Let an update wait for the callback; the oldest goes where too many do. Never blocks."""
        with self._lock:
            if len(self._waiting) >= self._waiting_max:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(update)
        if not self._ready.is_set():
            self._ready.set()

    def _next(self) -> Update | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _run(self) -> None:
        while not self._closed:
            self._ready.wait()
            self._ready.clear()
            while not self._closed and (update := self._next()) is not None:
                try:
                    self.told += 1
                    self._callback(update)
                except BaseException as error:  # also `sys.exit()`: who calls that in a callback still wants to hear
                    self.errors += 1
                    self._complain(error)

    def _complain(self, error: BaseException) -> None:
        now_us = self._clock.monotonic_us()
        if self._complained_us is None or now_us - self._complained_us >= COMPLAIN_EVERY_US:
            self._complained_us = now_us
            self._log.exception("live_callback", error=repr(error), thread=self._thread.name, errors=self.errors)
