"""What is left of the writer's speed beside busy threads.

Every step of SQLite lets go of the interpreter's lock, and a thread that computes gives it back only after the switch
interval. So a step a row (`executemany`) all but stands still beside one busy thread; a batch in one statement does
not.
"""

import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.frames import upbit_frames
from bench.measure import Row
from bench.parse import setup
from collector.records import BookRow, Delivery, EpochOpened
from controllers.upbit import Upbit
from run_controller import SWITCH_INTERVAL_S
from storage.sqlite import SQLiteStore

BATCH = 1000
Write = Callable[[int], None]  # writes a batch whose first row has this number
BIDS = '[["115998000","0.29548"],["115997000","0"]]'


def run(*, seconds: float = 1.0) -> Iterator[Row]:
    """Measure and yield the report."""
    default_s = sys.getswitchinterval()
    try:
        for interval_s, aim in ((SWITCH_INTERVAL_S, "0.3"), (default_s, "")):
            sys.setswitchinterval(interval_s)
            yield from _rows("one statement a batch", _store_writer, seconds, f"switch {interval_s * 1000:g} ms", aim)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        yield from _rows("executemany", _executemany_writer, seconds, f"switch {SWITCH_INTERVAL_S * 1000:g} ms", "")
    finally:
        sys.setswitchinterval(default_s)


def _rows(
    name: str, make: Callable[[Path], AbstractContextManager[Write]], seconds: float, how: str, aim: str
) -> Iterator[Row]:
    idle = 0.0
    for busy in (0, 1, 4):
        with tempfile.TemporaryDirectory() as folder, make(Path(folder)) as write:
            speed = _speed(write, busy, seconds)
        idle = idle or speed
        yield Row(f"{name}, {how}, {busy} busy", speed / 1000, "k rows/s", speed / idle, aim if busy == 1 else "")


def _speed(write: Write, busy: int, seconds: float) -> float:
    stop = threading.Event()
    threads = [threading.Thread(target=_parse_flat_out, args=(stop,), daemon=True) for _ in range(busy)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    rows = 0
    while time.perf_counter() - began < seconds:
        write(rows)
        rows += BATCH
    speed = rows / (time.perf_counter() - began)
    stop.set()
    for thread in threads:
        thread.join()
    return speed


def _parse_flat_out(stop: threading.Event) -> None:
    upbit = Upbit(("BTC-KRW",), setup())
    frames = list(upbit_frames(50))
    while not stop.is_set():
        for frame in frames:
            upbit.parse(frame, 0)


@contextmanager
def _store_writer(folder: Path) -> Iterator[Write]:
    store = SQLiteStore(folder / "b.sqlite", collector_id="b", version="b", run_uid="b", started_us=1)
    store.open()
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", 1)
    store.write([Delivery("upbit", 1, (opened,), 1)], 1)

    def write(first: int) -> None:
        rows = tuple(
            BookRow(1, first + n + 1, (first + n) * 100_000, 68_000, None, 0, BIDS, None) for n in range(BATCH)
        )
        store.write([Delivery("upbit", BATCH, rows, 1)], 1)

    yield write
    store.release()


@contextmanager
def _executemany_writer(folder: Path) -> Iterator[Write]:
    db = sqlite3.connect(folder / "b.sqlite", isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE book (id INTEGER PRIMARY KEY, at_us, lag_us, sequence, flags, bids, asks)")

    def write(first: int) -> None:
        rows = [(first + n + 1, (first + n) * 100_000, 68_000, None, 0, BIDS, None) for n in range(BATCH)]
        db.execute("BEGIN")
        db.executemany("INSERT INTO book VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")

    yield write
    db.close()
