"""What is left of the writer's speed beside busy threads.

Every step of SQLite lets go of the interpreter's lock, and a thread that computes gives it back only after the switch
interval. So a step a row (`executemany`) all but stands still beside one busy thread; a batch in one statement does
not. A batch is what ten feeds hand over: a thousand rows, and a mark of the ledger for each feed.
"""

import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.frames import MARKET, upbit_frames
from bench.measure import Row, in_turns, row
from bench.parse import setup
from collector.records import BookRow, CoverageMark, Delivery, EpochOpened
from commands.daemon import SWITCH_INTERVAL_S
from controllers.upbit import Upbit
from storage.sqlite import SQLiteStore
from storage.store import Batch, Run

FEEDS, ROWS = 10, 100  # of each feed in a batch
BATCH = FEEDS * ROWS
BATCHES_PER_S = 700  # are made beforehand: more than any machine writes
Write = Callable[[Any], None]
BIDS = '[["115998000","0.29548"],["115997000","0"]]'


def run(*, seconds: float = 0.35, rounds: int = 5) -> Iterator[Row]:
    """Measure and yield the report."""
    default_s = sys.getswitchinterval()
    batches = max(1, int(seconds * BATCHES_PER_S))
    deliveries, tuples = [_deliveries(n) for n in range(batches)], [_tuples(n) for n in range(batches)]
    cells = (
        ("one statement a batch", SWITCH_INTERVAL_S, _store, deliveries, "0.3"),
        ("one statement a batch", default_s, _store, deliveries, ""),
        ("executemany", SWITCH_INTERVAL_S, _executemany, tuples, ""),
    )
    try:
        for name, interval_s, opened, made, aim in cells:
            sys.setswitchinterval(interval_s)
            found = in_turns({busy: partial(_speed, opened, made, int(busy), seconds) for busy in "014"}, rounds)
            for busy, speeds in found.items():
                what = f"{name}, switch {interval_s * 1000:g} ms, {busy} busy"
                yield row(what, speeds, "k rows/s", found["0"], aim if busy == "1" else "")
    finally:
        sys.setswitchinterval(default_s)


def _speed(
    opened: Callable[[Path], AbstractContextManager[Write]], batches: Sequence[Any], busy: int, seconds: float
) -> float:
    stop, ready = threading.Event(), threading.Barrier(busy + 1)
    threads = [threading.Thread(target=_parse_flat_out, args=(ready, stop), daemon=True) for _ in range(busy)]
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as write:
        for thread in threads:
            thread.start()
        ready.wait()
        began = time.perf_counter()
        written = 0
        for batch in batches:
            write(batch)
            written += 1
            if time.perf_counter() - began > seconds:
                break
        speed = written * BATCH / (time.perf_counter() - began) / 1000
        stop.set()
        for thread in threads:
            thread.join()
    return speed


def _parse_flat_out(ready: threading.Barrier, stop: threading.Event) -> None:
    upbit = Upbit((MARKET,), setup())
    frames = list(upbit_frames(50))
    ready.wait()
    while not stop.is_set():
        for frame in frames:
            upbit.parse(frame, 0)


def _deliveries(number: int) -> list[Delivery]:
    made = []
    first = number * ROWS + 1
    for epoch in range(1, FEEDS + 1):
        rows = (BookRow(epoch, n, n * 100_000, 68_000, None, 0, BIDS, None) for n in range(first, first + ROWS))
        until_us = (first + ROWS) * 100_000
        mark = CoverageMark(epoch, until_us, until_us, first + ROWS - 1)
        made.append(Delivery("upbit", ROWS, (*rows, mark), ROWS))
    return made


def _tuples(number: int) -> list[tuple[object, ...]]:
    first = number * BATCH + 1
    return [(n, n * 100_000, 68_000, None, 0, BIDS, None) for n in range(first, first + BATCH)]


@contextmanager
def _store(folder: Path) -> Iterator[Write]:
    store = SQLiteStore(folder / "b.sqlite")
    store.open()
    run = Run("b", "b", "b", 1)
    opened = [
        EpochOpened(epoch, "UPBIT", f"M{epoch}-KRW", "orderbook", "websocket", 1) for epoch in range(1, FEEDS + 1)
    ]
    store.write(Batch(run, 1, (Delivery("upbit", 0, tuple(opened), 1),)), 1)
    written = 0

    def write(deliveries: list[Delivery]) -> None:
        nonlocal written
        store.write(Batch(run, 2 + written // BATCH, tuple(deliveries)), 1)
        written += BATCH

    yield write
    (stored,) = store.connection.execute("SELECT count(*) FROM book").fetchone()
    store.release()
    if stored != written:
        raise RuntimeError(f"{written} rows were written, {stored} are stored")


@contextmanager
def _executemany(folder: Path) -> Iterator[Write]:
    db = sqlite3.connect(folder / "b.sqlite", isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE book (id INTEGER PRIMARY KEY, at_us, lag_us, sequence, flags, bids, asks)")

    def write(rows: list[tuple[object, ...]]) -> None:
        db.execute("BEGIN")
        db.executemany("INSERT INTO book VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")

    yield write
    db.close()
