"""A place in the supervisor that always holds one worker.

A worker that ended unasked is made anew after a pause, longer with every time. One that keeps dying is parked: five
deaths within a minute are a mistake that trying again soon does not mend, so the next try waits for half a minute, and
for a whole one where that dies too soon as well. Longer than that nothing stays down that could be up again.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from collector.clock import Clock
from collector.worker import Backoff, Worker

CRASHES_MAX = 5
CRASHES_US = 60_000_000
PARK_S, PARK_S_MAX = 30.0, 60.0


class Part(NamedTuple):
    """Something to be done by a worker: `make` builds the worker of a generation.

    In one `group` (an exchange) only one takeover runs at a time; `plan` is what whoever asked for it knows it by.
    """

    make: Callable[[int], Worker]
    group: str
    plan: object = None


class Slot:
    """One part, the worker that does it, and when the next one is due if that one is dead. For the supervisor alone."""

    def __init__(self, part: Part, worker: Worker, clock: Clock) -> None:
        self.part = part
        self.make = part.make
        self.worker = worker
        self.backoff = Backoff(clock)
        self.restart_at_us: int | None = None
        self._clock = clock
        self._began_us = clock.monotonic_us()
        self._deaths: deque[int] = deque(maxlen=CRASHES_MAX)
        self._parks = 0  # in a row

    def began(self) -> None:
        """Note that a worker starts now."""
        self._began_us = self._clock.monotonic_us()
        self.backoff.began()

    def died(self) -> tuple[float, bool]:
        """Note a death; return the seconds until the next try, and whether the worker is parked until then."""
        now_us = self._clock.monotonic_us()
        if now_us - self._began_us >= CRASHES_US:
            self._parks = 0
        self._deaths.append(now_us)
        delay_s = self.backoff.next_s()
        if self._parks or (len(self._deaths) == CRASHES_MAX and now_us - self._deaths[0] <= CRASHES_US):
            delay_s = max(delay_s, min(PARK_S_MAX, PARK_S * 2.0 ** min(self._parks, 30)))
            self._parks += 1
        self.restart_at_us = now_us + int(delay_s * 1e6)
        return delay_s, bool(self._parks)
