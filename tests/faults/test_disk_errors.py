"""Each single call on the disk fails, once or for good: nothing is acknowledged that is not there, and it goes on.

The work of `tests.faults.work` (open, migrate, commit, delete, close) is done once for each call it makes, by the very
`sqlite3` module of the collector on a disk that fails at that call. Only a `StorageError` may come of it; when the disk
is well again the same step succeeds, and in the end everything is there once.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.disk import CHANGES, Orders
from tests.faults.dose import NIGHTLY, dose

SOME = dose(37, 1)  # of how many calls one is tried where another error tries them all
WRITING = tuple(kind for kind in CHANGES if kind != "open")


@pytest.mark.parametrize(
    ("error", "how", "kinds", "every"),
    [
        ("EIO", "once", WRITING, dose(7, 1)),
        ("EIO", "ever", WRITING, SOME),
        ("ENOSPC", "once", WRITING, SOME),
        ("ENOSPC", "ever", WRITING, SOME),
        ("EROFS", "once", WRITING, SOME),
        ("EROFS", "ever", WRITING, SOME),
        ("EIO", "once", ("open",), 1),
        ("EMFILE", "once", ("open", "map"), 1),
        ("EMFILE", "ever", ("open", "map"), 1),
        ("EIO", "once", ("read",), dose(7, 1)),
        ("EIO", "ever", ("read",), dose(7, 1)),
    ],
)
def test_whatever_call_fails_nothing_is_lost(
    error: str, how: str, kinds: tuple[str, ...], every: int, preload: Callable[[str], Path], tmp_path: Path
) -> None:
    """Mutation: let `SQLiteStore._transaction` return where it raises what `_translate` made of an `sqlite3.Error`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    first = 1 if NIGHTLY else 2
    with Orders(tmp_path / "orders") as orders:
        what = ["fail", folder, orders.file, error, how, ",".join(kinds), first, every]
        result = subprocess.run(
            [sys.executable, "-m", "tests.faults.work", *map(str, what)],
            cwd=ROOT,
            env={**os.environ, **orders.environment(preload("disk"), folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=3000,
        )

    assert result.returncode == 0, result.stderr
    told = [line.split(" ", 2) for line in result.stdout.splitlines()]
    assert [line for line in told if line[2]] == []
    assert len(told) > 2 and int(told[-1][0]) > 10
    assert sum(int(failures) for _, failures, _ in told) > 0, "a disk that fails is noticed"
