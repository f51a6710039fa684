"""The database is locked by another process while data flows, at the start and in the middle, and a kill comes on top.

Nothing is lost but what the kill leaves, and coverage has no gap but that one.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simulator import Simulator
from simulator.judge import judge
from storage.coverage import coverage
from storage.reader import Reader
from storage.spool_inspect import status
from tests.conftest import wait_until
from tests.e2e.daemon import Child

EXCHANGES = ("upbit", "coinone", "korbit")
LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Let another process have the database to itself."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"locked\n"
        yield
        other.stdin.close()


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Some exchanges in a hurry, with a ledger."""
    with Simulator(list(EXCHANGES), ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger.ndjson") as running:
        yield running


def test_a_locked_database_costs_nothing(simulator: Simulator, tmp_path: Path) -> None:
    """1. locked at the start; 2. in the middle, killed while it is; 3. free again, and stopped in order.

    Mutations: let `SQLiteStore.open` raise that the database is busy; let `Writer._put_away` keep nothing in the spool.
    """
    backoff = {"base_s": 0.05, "cap_s": 0.2}
    options = {name: {"endpoint": endpoint, "backoff": backoff} for name, endpoint in simulator.endpoints.items()}
    child = Child(tmp_path, options)
    spool = tmp_path / "collector.sqlite.spool"

    def waits(batches: int) -> bool:
        return spool.is_dir() and status(spool).batches >= batches

    with locked(child.database):
        child.start()
        wait_until(lambda: waits(12), 30, "batches in the spool")
        assert child.frames() == 0
    wait_until(lambda: child.frames() > 50 and not waits(1), 20, "all that waited in the database")

    with locked(child.database):
        before = child.frames()
        wait_until(lambda: waits(10), 20, "batches in the spool again")
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        left = status(spool).batches
        assert left >= 10
        child.start()
        wait_until(lambda: waits(left + 10), 20, "batches behind those of the run that was killed")
        assert child.frames() == before
    wait_until(lambda: child.frames() > before + 50 and not waits(1), 20, "all of both runs in the database")
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    simulator.stop()

    verdict = judge(tmp_path / "ledger.ndjson", child.database, spool=spool)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert verdict.epochs == 2 * len(EXCHANGES)
    with Reader(child.database) as reader:
        told = coverage(reader)
    assert [[gap.reason for gap in feed.gaps] for feed in told] == [["crash"]] * len(EXCHANGES)
