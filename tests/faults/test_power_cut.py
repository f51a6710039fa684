"""The power goes at any moment: what was acknowledged is there, and the ledger claims nothing that is not.

A process works on a store while a preloaded library writes down what it does to the disk, so the very `sqlite3` module
of the collector is at work. Out of the one record come any number of disks that a power cut may leave: synced bytes are
there, each other write may be there, missing or torn.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.disk import Change, Orders, PowerCuts, read_trace
from tests.faults.dose import dose
from tests.faults.work import bring_home, check, goes_on, read_back

CUTS = dose(300, 10_000)
BATCHES = dose(20, 100)  # of each of three runs
Preload = Callable[[str], Path]
Look = Callable[[Path, dict[int, int], bool], str]


def record(preload: Preload, tmp_path: Path, *work: str) -> list[Change]:
    """Do some work of `tests.faults.work`; return what it did to the disk."""
    folder = tmp_path / "work"
    folder.mkdir()
    with Orders(tmp_path / "orders") as orders:
        environment = orders.environment(preload("disk"), folder, tmp_path / "trace")
        subprocess.run(
            [sys.executable, "-m", "tests.faults.work", work[0], str(folder / "db"), work[1], str(BATCHES)],
            cwd=ROOT,
            env={**os.environ, **environment},
            check=True,
            timeout=600,
        )
    return read_trace(tmp_path / "trace")


def cut(changes: list[Change], tmp_path: Path, look: Look, *, cuts: int, seed: int) -> Counter[str]:
    """Cut the power at so many moments of the work; return what `look` found wrong, and how often."""
    wrong: Counter[str] = Counter()
    moments = Counter(random.Random(seed).choices(range(len(changes)), k=cuts))
    disk = PowerCuts(changes, seed=seed)
    inode = next(change.inode for change in changes if change.path.endswith("acknowledged"))
    acknowledged: dict[int, int] = {}
    for number, change in enumerate(disk):
        if change.inode == inode and change.kind == "W":
            run, batch = map(int, change.data.split())
            acknowledged[run] = batch
        for again in range(moments[number]):
            folder = tmp_path / "after"
            folder.mkdir()
            disk.cut(tmp_path / "work", folder)
            wrong[look(folder / "db", acknowledged, (number + again) % 5 == 0)] += 1
            shutil.rmtree(folder)
    del wrong[""]
    return wrong


def store(database: Path, acknowledged: dict[int, int], thorough: bool) -> str:
    """Return what is wrong with a store; at times also with what a collector makes of it."""
    if not thorough:
        return check(database, acknowledged)
    return check(database, acknowledged) or goes_on(database) or read_back(database)


def store_and_spool(database: Path, acknowledged: dict[int, int], thorough: bool) -> str:
    """Return what is wrong when everything has been brought home."""
    return bring_home(database) or store(database, acknowledged, thorough)


def test_what_was_acknowledged_survives(preload: Preload, tmp_path: Path) -> None:
    """Mutation: `synchronous = NORMAL` in `SQLiteStore._connect`; the next test makes it."""
    changes = record(preload, tmp_path, "trace", "FULL")
    assert Counter(change.kind for change in changes)["S"] > 3 * BATCHES, "a sync for every commit"

    assert cut(changes, tmp_path, store, cuts=CUTS, seed=1) == {}


def test_what_the_spool_took_survives(preload: Preload, tmp_path: Path) -> None:
    """Mutation: `fsync="never"`, which the next test makes, or `Spool.advance` before the commit in whoever drains."""
    changes = record(preload, tmp_path, "spool", "batch")

    assert cut(changes, tmp_path, store_and_spool, cuts=CUTS // 2, seed=3) == {}


@pytest.mark.parametrize(("work", "look"), [(("trace", "NORMAL"), store), (("spool", "never"), store_and_spool)])
def test_what_is_not_synced_is_found_out(work: tuple[str, str], look: Look, preload: Preload, tmp_path: Path) -> None:
    changes = record(preload, tmp_path, *work)

    wrong = cut(changes, tmp_path, look, cuts=60, seed=2)

    assert wrong
    assert [what for what in wrong if not what.startswith("lost")] == [], "lost, but never corrupt"


@pytest.mark.parametrize("what", ["S", "D"])
def test_a_disk_that_keeps_everything_or_only_what_is_synced(what: str, tmp_path: Path) -> None:
    """The disk of these tests itself: an unsynced write may be gone, a synced one never."""
    file, text = str(tmp_path / "f"), b"abc"
    changes = [
        Change("C", 1, 0, file, b""),
        Change("W", 1, 0, "", text),
        Change("S", 1 if what == "S" else 9, 0, "", b""),
    ]
    seen = set()
    for seed in range(50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = PowerCuts(changes, seed=seed)
        assert list(disk) == changes
        disk.cut(tmp_path, folder)
        seen.add((folder / "f").read_bytes())
    assert seen == {text} if what == "S" else {b"", b"a", b"ab", text} == seen
