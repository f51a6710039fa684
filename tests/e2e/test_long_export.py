"""A million updates come out in constant memory, while a writer goes on and its log stays small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collector.records import BookRow, CoverageMark, Delivery, EpochOpened
from tests.e2e.daemon import ROOT
from tests.storage.build import OneRun

UPDATES = 1_000_000
BATCH = 10_000
START_US = 1_700_000_000_000_000
TICK_US = 100_000


def levels(base: int, step: int) -> str:
    """Return 30 levels as JSON text."""
    return json.dumps([[str(base + step * i), f"{i + 1}.25"] for i in range(30)], separators=(",", ":"))


def most_resident(pid: int) -> int:
    """Return the most memory a process has held since its program began, in bytes; 0 where it has just ended.

    What `wait4` tells counts the memory of this process too, of which the child was a copy for a moment.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


KEYFRAME = (levels(116_000_000, -1000), levels(116_001_000, 1000))


def rows(epoch: int, first: int, count: int) -> tuple[BookRow | CoverageMark, ...]:
    """Return updates of one or two levels, a keyframe every thousand, and the mark that covers them."""
    made: list[BookRow | CoverageMark] = []
    for n in range(first, first + count):
        at_us = (n - 1) * TICK_US
        if n % 1000 == 1:
            made.append(BookRow(epoch, n, at_us, 1000, None, 1, *KEYFRAME))
        else:
            bid = f'[["{116_000_000 - 1000 * (n % 30)}","{n % 97 + 1}.5"]]'
            made.append(BookRow(epoch, n, at_us, 1000, None, 0, bid, None))
    until_us = START_US + (first + count - 2) * TICK_US
    made.append(CoverageMark(epoch, until_us, until_us, first + count - 1))
    return tuple(made)


@pytest.mark.timeout(400)  # most of it is making the million
def test_a_million_updates(tmp_path: Path) -> None:
    """Under 200 MB resident, and under 64 MB of write-ahead log, as the store promises."""
    store = OneRun(tmp_path / "c.sqlite", "u", started_us=START_US)
    store.open()
    for epoch, market in ((1, "BTC-KRW"), (2, "ETH-KRW")):
        opened = EpochOpened(epoch, "UPBIT", market, "orderbook", "websocket", START_US)
        store.put([Delivery("upbit", 1, (opened,), 1)], START_US)
    for first in range(1, UPDATES, BATCH):
        store.put([Delivery("upbit", BATCH, rows(1, first, BATCH), 1)], START_US)

    command = [
        *(sys.executable, str(ROOT / "run_controller.py"), "export", "UPBIT", "out.ndjson", "--market", "BTC-KRW"),
        *("--db", str(store.path)),
    ]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "collector.yaml").write_text("language: en\n")
    export = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wal_bytes, first, resident = 0, 1, 0
    while export.poll() is None:
        resident = max(resident, most_resident(export.pid))
        store.put([Delivery("upbit", 1000, rows(2, first, 1000), 1)], START_US)
        first += 1000
        wal_bytes = max(wal_bytes, store.sizes()[1])
    store.release()
    size = (tmp_path / "out.ndjson").stat().st_size
    (tmp_path / "out.ndjson").unlink()

    assert export.returncode == 0
    receipt = json.loads((tmp_path / "out.ndjson.manifest.json").read_text())
    assert receipt["books"] == UPDATES
    assert receipt["bytes"] == size
    print(f"resident {resident / 2**20:.0f} MiB, log {wal_bytes / 2**20:.0f} MiB")
    assert 0 < resident < 200_000_000
    assert first > 10_000, "the writer must have been busy meanwhile"
    assert wal_bytes < 64_000_000
