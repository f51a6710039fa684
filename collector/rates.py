"""How fast things move, for `status`: frames of a feed, bytes of the database."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from collector.clock import Clock


class Growth:
    """How fast the database grows: sampled every few seconds, told once a minute's worth is known."""

    EVERY_US = 5_000_000
    ENOUGH_US = 60_000_000
    WINDOW_US = 6 * 3_600_000_000

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[int, int]] = deque()

    def due(self) -> bool:
        """Whether it is time for a sample."""
        return not self._samples or self._clock.monotonic_us() - self._samples[-1][0] >= self.EVERY_US

    def sample(self, size: int) -> None:
        """Remember the size of now; what is older than six hours no longer counts."""
        now_us = self._clock.monotonic_us()
        self._samples.append((now_us, size))
        while now_us - self._samples[0][0] > self.WINDOW_US:
            self._samples.popleft()

    def per_day(self) -> float | None:
        """Return bytes a day, None while too little is known."""
        if not self._samples:
            return None
        (first_us, first), (last_us, last) = self._samples[0], self._samples[-1]
        if last_us - first_us < self.ENOUGH_US:
            return None
        return max(0.0, (last - first) / (last_us - first_us) * 86_400_000_000)


class Rates:
    """Frames a second of every feed over the last seconds, from the totals that controllers count."""

    WINDOW_US = 10_000_000

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: list[tuple[int, dict[tuple[object, ...], int]]] = []

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Remember the totals of now."""
        now_us = self._clock.monotonic_us()
        samples = [sample for sample in self._samples if now_us - sample[0] <= self.WINDOW_US]
        samples.append((now_us, {self._key(row): row["frames"] for row in rows}))
        self._samples = samples

    def of(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return frames a second for each row."""
        samples = self._samples
        if not samples:
            return [0.0] * len(rows)
        since_us, then = samples[0]
        seconds = max((self._clock.monotonic_us() - since_us) / 1e6, 0.5)
        return [round(max(0, row["frames"] - then.get(self._key(row), 0)) / seconds, 2) for row in rows]

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[object, ...]:
        return row["exchange"], row["market"], row["channel"], row["transport"]
