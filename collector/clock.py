"""The two clocks: wall time for data, monotonic time for everything that is waited for.

Handed in wherever time is needed, so that tests step it by hand.
"""

import time


class Clock:
    """The machine's own clocks, in integer microseconds."""

    def wall_us(self) -> int:
        """Return the time of day in microseconds since 1970 UTC; it may jump when the machine's clock is set."""
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        """Return microseconds that only ever rise, from an arbitrary start."""
        return time.monotonic_ns() // 1000
