"""A database that is away for long under full load: nothing is lost, memory stays small, and it catches up quickly.

Two thousand messages a second of 30-level books over ten connections, PostgreSQL stopped; 10 minutes in `make faults`.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from bench.sender import sender
from bench.soak import start
from storage.coverage import coverage
from storage.reader import Reader
from storage.spool_inspect import status
from tests.faults.dose import dose
from tests.postgres import Server

MARKETS = [f"M{number}-KRW" for number in range(10)]
PER_SECOND = 2000
OUTAGE_S = dose(8.0, 600.0)
RESIDENT_MAX = 300 << 20


@pytest.fixture
def address() -> Iterator[str]:
    """Where the books come from."""
    with sender(MARKETS, per_second=PER_SECOND / len(MARKETS)) as url:
        yield url


def frames(url: str) -> int:
    """Return how many data frames the ledger accounts for."""
    try:
        with psycopg.connect(url) as db:
            row = db.execute("SELECT coalesce(sum(frames), 0) FROM coverage").fetchone()
    except psycopg.errors.UndefinedTable:
        return 0
    return int(row[0]) if row else 0


def until(condition: Any, seconds: float, what: str) -> float:
    """Return how many seconds it took; look often enough, and not so often that it is in the way."""
    began_s = time.monotonic()
    never = threading.Event()
    while not condition():
        assert time.monotonic() - began_s < seconds, what
        never.wait(0.2)
    return time.monotonic() - began_s


@pytest.mark.timeout(OUTAGE_S * 2 + 120)
@pytest.mark.parametrize("at_start", [False, True], ids=["in the middle", "before the start"])
def test_an_outage_loses_nothing_and_is_caught_up_with_five_times_faster(
    postgres_server: Server, postgres_url: str, address: str, tmp_path: Path, at_start: bool
) -> None:
    """Mutations: let `Writer._put_away` drop what the store refuses (a gap); or never merge batches (`Backlog`)."""
    daemon: subprocess.Popen[bytes] | None = None
    stopped = False
    try:
        if not at_start:
            daemon = start(tmp_path, address, MARKETS, postgres_url)
            until(lambda: frames(postgres_url) > PER_SECOND, 60, "data in the database")
        postgres_server.stop()
        stopped = True
        if daemon is None:
            daemon = start(tmp_path, address, MARKETS, postgres_url)
        until(lambda: status(tmp_path / "spool").batches, 60, "batches in the spool")
        process = psutil.Process(daemon.pid)
        resident = 0
        ends_s = time.monotonic() + OUTAGE_S
        never = threading.Event()
        while time.monotonic() < ends_s:
            assert daemon.poll() is None
            resident = max(resident, process.memory_info().rss)
            never.wait(1.0)
        assert resident < RESIDENT_MAX

        postgres_server.start()
        stopped = False
        until(lambda: frames(postgres_url) > 0, 30, "the database taken into use again")
        caught_up_s = until(lambda: status(tmp_path / "spool").segments == 0, OUTAGE_S + 30, "the spool to be empty")
        # Behind what it drains the spool grows on: to drain five times faster than it grew is to be level after a
        # quarter of the time.
        assert caught_up_s < OUTAGE_S / 4 + 5
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    finally:
        if stopped:
            postgres_server.start()
        if daemon is not None and daemon.poll() is None:
            daemon.kill()
            daemon.wait()
    with Reader(postgres_url) as reader:
        told = coverage(reader)
    assert len(told) == len(MARKETS)
    for feed in told:
        assert not feed.gaps, feed.gaps
        assert feed.us("DATA") + feed.us("QUIET") >= (feed.end_us - feed.start_us) - 1_000_000
    heard_s = [(feed.end_us - feed.start_us) / 1e6 for feed in told]  # connections are made one after the other
    assert max(heard_s) > OUTAGE_S
    assert frames(postgres_url) > 0.9 * sum(heard_s) * PER_SECOND / len(MARKETS)
