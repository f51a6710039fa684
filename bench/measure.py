"""How things are measured: rounds of every candidate take turns, so that a slow moment is everyone's."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class Row(NamedTuple):
    """One line of the report: a figure, and how many times as much it is as what it is compared with."""

    name: str
    value: float
    unit: str
    ratio: float | None = None
    aim: str = ""
    spread: float | None = None  # largest over smallest round of the ratio (of the figure without one); 1.0 is quiet


def in_turns(candidates: Mapping[str, Callable[[], _T]], rounds: int) -> dict[str, list[_T]]:
    """Return what each candidate gave in each round."""
    figures: dict[str, list[_T]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            figures[name].append(work())
    return figures


def cpu_us(work: Callable[[], int]) -> Callable[[], float]:
    """Return a candidate that does some work, which tells how many operations it was, and gives CPU µs for each."""
    work()  # warm caches

    def once() -> float:
        began = time.process_time()
        operations = work()
        return (time.process_time() - began) / operations * 1e6

    return once


def row(name: str, figures: Sequence[float], unit: str, base: Sequence[float] | None = None, aim: str = "") -> Row:
    """Return the line of a candidate: medians of its figures, and of its ratio to `base` round by round."""
    if base is None:
        return Row(name, statistics.median(figures), unit, None, aim, max(figures) / min(figures))
    ratios = [figure / other for figure, other in zip(figures, base, strict=True)]
    # What is compared with itself has no ratio to spread.
    spread = figures if base is figures else ratios
    return Row(name, statistics.median(figures), unit, statistics.median(ratios), aim, max(spread) / min(spread))
