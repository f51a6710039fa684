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

    def wait(self, stopping: threading.Event, *, within_s: float = float("inf")) -> bool:
        """Wait for a slot; False when none is free within `within_s`, or when `stopping` was set meanwhile.

        A slot that was waited for is used up either way, so that many who ask never make a queue without end.
        """
        with self._lock:
            now_us = self._clock.monotonic_us()
            slot_us = max(now_us, self._next_us)
            if slot_us - now_us > within_s * 1e6:
                return False
            self._next_us = slot_us + self._spacing_us
        return not stopping.wait((slot_us - now_us) / 1e6)
