"""`python -m tests.fuzz`: spoiled messages for every exchange, spoiled settings, spoiled files of the spool.

Prints how many ended how and how fast; ends with 1 when anything was found that must not be, and says how to see it
again. See docs/testing.md.
"""

import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.conftest import ROOT
from tests.fuzz import settings, spool, venues
from tests.fuzz.breach import Breach, Violation
from tests.fuzz.guard import CPU_S_MAX, Guard
from tests.fuzz.supply import classes
from tests.fuzz.venues import OUTCOMES, SESSION

# What is fuzzed beside the exchanges, and the limit on one piece of it.
OTHERS = {"settings": settings.CPU_S_MAX, "spool": spool.CPU_S_MAX}
FIGURES = (*OUTCOMES, "answers", "settings", "refused", "holes")
MEMORY_BYTES_MAX = 4 << 30
TOLD_EVERY_S = 30.0

Run = Callable[[Guard, Callable[[int], object]], Counter[str]]


def main(
    venue: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this exchange, or class of one, or {', '.join(OTHERS)}; may be given again."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Spoiled messages for each class of an exchange.")] = 1_000_000,
    mutations: Annotated[int, typer.Option(min=1, help="Spoiled settings.")] = 50_000,
    spools: Annotated[int, typer.Option(min=1, help="Spoiled spools.")] = 20_000,
    seed: Annotated[int | None, typer.Option(help="The first seed; without it another one every time.")] = None,
) -> None:
    """Look for messages, settings and files that the collector can't cope with."""
    wire = Path(os.environ.get("COLLECTOR_WIRE") or ROOT.parent / "shared" / "wire")
    first = random.SystemRandom().randrange(10**9) if seed is None else seed
    print(f"seed {first}, {'with' if wire.is_dir() else 'without'} recorded traffic", flush=True)
    runs = _runs(frames, first, wire if wire.is_dir() else None)
    runs["settings"] = _in_a_folder(settings.fuzz, mutations, first)
    runs["spool"] = _in_a_folder(spool.fuzz, spools, first)
    unknown = [wanted for wanted in venue or () if not any(_is_of(name, wanted) for name in runs)]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: allowed are {', '.join(sorted(runs))}")
    found = False
    table = Table(box=None, pad_edge=False)
    for column in ("", "spoiled", *FIGURES, "per second", "slowest ms"):
        table.add_column(column, justify="left" if not column else "right")
    for name, run in runs.items():
        if not venue or any(_is_of(name, wanted) for wanted in venue):
            found = not _row(table, name, run) or found
    print(flush=True)
    Console(width=150).print(table)
    raise typer.Exit(1 if found else 0)


def _is_of(name: str, wanted: str) -> bool:
    return name == wanted or name.partition("/")[0] == wanted


def _runs(frames: int, seed: int, wire: Path | None) -> dict[str, Run]:
    def of_class(name: str) -> Run:
        cls = classes()[name]
        return lambda guard, progress: venues.fuzz(cls, frames, seed, wire=wire, guard=guard, progress=progress)

    return {name: of_class(name) for name in venues.targets()}


def _in_a_folder(fuzz: Callable[..., Counter[str]], count: int, seed: int) -> Run:
    def run(guard: Guard, progress: Callable[[int], object]) -> Counter[str]:
        with TemporaryDirectory() as folder:
            return fuzz(count, Path(folder), seed, guard=guard, progress=progress)

    return run


def _row(table: Table, name: str, run: Run) -> bool:
    """Run one target and add its row; tell whether nothing was found."""
    guard = Guard(OTHERS.get(name, CPU_S_MAX))
    began_s = told_s = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= TOLD_EVERY_S:
            told_s = now_s
            print(f"{name}: {done:,}, {done / (now_s - began_s):,.0f} a second", file=sys.stderr, flush=True)

    try:
        counts = run(guard, progress)
    except Breach as breach:
        print(f"\n{name}: {breach}\n", flush=True)
        table.add_row(name, "see above")
        return False
    except Violation as violation:
        count = "--mutations 1 --spools 1" if name in OTHERS else f"--frames {SESSION}"
        again = f"--venue {name} --seed {violation.seed} {count}"
        print(f"\n{violation}\nagain: make fuzz ARGS='{again}'\n", flush=True)
        table.add_row(name, "see above")
        return False
    rate = counts["frames"] / (time.monotonic() - began_s)
    figures = [f"{counts[key]:,}" if key in counts else "" for key in ("frames", *FIGURES)]
    table.add_row(name, *figures, f"{rate:,.0f}", f"{guard.slowest_s * 1000:.0f}")
    return True


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, resource.getrlimit(resource.RLIMIT_AS)[1]))
    typer.run(main)
