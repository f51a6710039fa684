"""How fast everybody who talks to one exchange from this address may ask it, and when all of them must be silent.

Exchanges count by address: new connections, polls, probes and listings use up the same allowance, and whoever goes on
asking after a refusal makes the penalty longer for all. So one budget is shared by every controller of an exchange.
"""

import threading
from collections.abc import Callable

from collector.clock import Clock

WAKE_S = 1.0  # whoever waits shows a sign of life as often
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0  # after the first refusal that says no time; doubled by every other one
BAN_S, BAN_S_MAX = 60.0, 3600.0  # the same where the exchange has barred this address
FORGIVEN_US = 60_000_000  # a refusal so long after the last pause is a first one again


class Pause:
    """The time until which nobody asks an exchange for anything."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._refusals = 0
        self.until_us = clock.monotonic_us()

    def begin(self, asked_s: float | None, *, banned: bool) -> float:
        """Begin a pause, or make the present one longer; return its seconds from now."""
        first_s, longest_s = (BAN_S, BAN_S_MAX) if banned else (PAUSE_S, PAUSE_S_MAX)
        with self._lock:
            now_us = self._clock.monotonic_us()
            if now_us >= self.until_us:  # else the refused request was on its way when the pause began
                self._refusals = 1 if now_us - self.until_us > FORGIVEN_US else self._refusals + 1
            refusals = max(self._refusals, 1)
            seconds = max(asked_s or 0.0, min(longest_s, first_s * 2.0 ** min(refusals - 1, 30)))
            self.until_us = max(self.until_us, now_us + int(seconds * 1e6))
            return (self.until_us - now_us) / 1e6


class Budget:
    """At most `per_second` requests, evenly spaced; whoever asks gets the next free slot."""

    def __init__(self, per_second: float, clock: Clock, *, pause: Pause | None = None) -> None:
        self.set_rate(per_second)
        self._clock = clock
        self._lock = threading.Lock()
        self._next_us = 0
        self._pause = pause or Pause(clock)

    def set_rate(self, per_second: float) -> None:
        """Let another rate count from the next slot on."""
        self._spacing_us = int(1e6 / per_second)

    def beside(self, per_second: float) -> "Budget":
        """Return a budget for something the same exchange counts apart; they pause together."""
        return Budget(per_second, self._clock, pause=self._pause)

    def pause(self, asked_s: float | None = None, *, banned: bool = False) -> float:
        """Ask nothing more for as long as the exchange wants, and longer the more often it has to say so.

        `asked_s` is its own wish, `banned` that it has barred this address. Returns the seconds of the pause, which
        holds for those as well who wait for a slot already.
        """
        return self._pause.begin(asked_s, banned=banned)

    @property
    def paused_s(self) -> float:
        """Seconds until the present pause is over."""
        return max(0.0, (self._pause.until_us - self._clock.monotonic_us()) / 1e6)

    def wait(
        self,
        stopping: threading.Event,
        *,
        within_s: float = float("inf"),
        meanwhile: Callable[[], object] = lambda: None,
    ) -> bool:
        """Wait for a slot; False when none is free within `within_s`, or when `stopping` was set meanwhile.

        A slot that was waited for is used up either way, so that many who ask never make a queue without end.
        `meanwhile` is called once a second.
        """
        latest_us = self._clock.monotonic_us() + within_s * 1e6
        while True:
            with self._lock:
                slot_us = max(self._clock.monotonic_us(), self._next_us, self._pause.until_us)
                if slot_us > latest_us:
                    return False
                self._next_us = slot_us + self._spacing_us
            if not self._wait_until(slot_us, stopping, meanwhile):
                return False
            if slot_us >= self._pause.until_us:
                return True

    def _wait_until(self, slot_us: int, stopping: threading.Event, meanwhile: Callable[[], object]) -> bool:
        left_us = slot_us - self._clock.monotonic_us()
        while left_us > WAKE_S * 1e6:
            if stopping.wait(WAKE_S):
                return False
            meanwhile()
            left_us = slot_us - self._clock.monotonic_us()
        return not stopping.wait(max(0, left_us) / 1e6)
