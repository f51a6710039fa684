"""How things are measured: rounds of every candidate take turns, so that a slow moment is everyone's."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the report: what was compared with what, and how many times as much it took."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    aim: str = ""
    spread: float | None = None  # largest over smallest round, 1.0 is a quiet machine


def cpu_s_per_call(candidates: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return for each candidate the median CPU seconds of one operation, and the spread over its rounds.

    A candidate does some work and returns how many operations that was.
    """
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()  # warm caches
    for _ in range(rounds):
        for name, work in candidates.items():
            began = time.process_time()
            operations = work()
            figures[name].append((time.process_time() - began) / operations)
    return {name: (statistics.median(each), max(each) / min(each)) for name, each in figures.items()}
