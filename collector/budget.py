"""A rate everybody who talks to one exchange from this address keeps together."""

import threading

from collector.clock import Clock


class Budget:
    """At most `per_second` requests, evenly spaced; whoever asks gets the next free slot."""

    def __init__(self, per_second: float, clock: Clock) -> None:
        self._spacing_us = int(1e6 / per_second)
        self._clock = clock
        self._lock = threading.Lock()
        self._next_us = 0

    def wait(self, stopping: threading.Event) -> bool:
        """Wait for a slot; False when `stopping` was set meanwhile. The slot is used up either way."""
        with self._lock:
            now_us = self._clock.monotonic_us()
            slot_us = max(now_us, self._next_us)
            self._next_us = slot_us + self._spacing_us
        return not stopping.wait((slot_us - now_us) / 1e6)
