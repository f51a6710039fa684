"""The two clocks: wall time for data, monotonic time for everything that is waited for.

Handed in wherever time is needed, so that tests step it by hand.
"""

import math
import time
from collections import deque

OFFSET_SAMPLES = 512
OFFSET_SHARE = 0.05  # of the samples, those that may be too small by a mistake of the exchange
OFFSET_SAMPLES_MIN = 10


class Clock:
    """The machine's own clocks, in integer microseconds."""

    def wall_us(self) -> int:
        """Return the time of day in microseconds since 1970 UTC; it may jump when the machine's clock is set."""
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        """Return microseconds that only ever rise, from an arbitrary start."""
        return time.monotonic_ns() // 1000


class ClockOffset:
    """How far the clock of this machine is ahead of an exchange's, from times of receipt and the exchange's own.

    What is measured is the offset plus the way of a message, which can't be told apart from here: the messages that
    were fastest say it best, so a low quantile of the newest differences is the estimate. It is never smaller than the
    offset, and larger by the shortest way. Any thread may add and read.
    """

    def __init__(self) -> None:
        self._lags_us: deque[int] = deque(maxlen=OFFSET_SAMPLES)

    def add(self, lag_us: int) -> None:
        """Add a time of receipt minus the exchange's own time."""
        self._lags_us.append(lag_us)

    def clear(self) -> None:
        """Forget everything: the clock of this machine was set."""
        self._lags_us.clear()

    def seconds(self) -> float:
        """Return the estimate; not a number while too little is known."""
        lags_us = sorted(self._lags_us.copy())
        if len(lags_us) < OFFSET_SAMPLES_MIN:
            return math.nan
        return lags_us[int(len(lags_us) * OFFSET_SHARE)] / 1e6
