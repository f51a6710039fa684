"""Processes that are killed while they work on a store, for tests of what is left behind.

`python -m tests.storage.victim migrate DATABASE MIGRATIONS`: for each statement of opening DATABASE, a process opens a
copy of it and kills itself before that statement; the copies are named `DATABASE.1`, `DATABASE.2`...

`python -m tests.storage.victim kills DATABASE TIMES SEED`: as often as told, a process commits one batch after another
and is killed at a random moment. A line each says up to which batch the store had taken its data.

`python -m tests.storage.victim ledger DATABASE LEDGER together|apart`: writes books into a store and their messages
into a simulator's ledger, and is killed between the coverage of a batch and the end of it. `together` is the store as
it is, `apart` one that commits coverage first.

Processes are forked, which costs no start of Python each, and this program has only one thread.
"""

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import storage.sqlite
from collector.clock import Clock
from collector.records import KEYFRAME, BookRow, CoverageMark, Delivery, EpochOpened, Event, Record
from simulator.ledger import Ledger
from storage.store import Batch
from tests.storage.build import OneRun

LEVELS = 15


def open_store(database: Path, uid: str, kind: type[OneRun] = OneRun) -> OneRun:
    store = kind(database, uid, started_us=1)
    store.open()
    return store


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object]) -> int:
    """Start a process that does `work`; return its number."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def status(child: int) -> int:
    """Wait for a process and return its exit status, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(heard: Callable[[str], object]) -> None:
    """Let `heard` know each SQL statement of new connections before it is run."""
    connect = sqlite3.connect

    def tracing(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **kwargs)
        db.set_trace_callback(heard)
        return db

    vars(sqlite3)["connect"] = tracing


# --- migrate ----------------------------------------------------------------------------------------------------------


def use_migrations(folder: Path) -> None:
    vars(storage.sqlite)["MIGRATIONS"] = folder
    vars(storage.sqlite)["SCHEMA_VERSION"] = storage.sqlite.migrations()[-1][0]


def migrate(database: Path, folder: Path) -> None:
    use_migrations(folder)
    number = 0
    while True:
        number += 1
        copy = database.with_name(f"{database.name}.{number}")
        if database.exists():
            shutil.copy(database, copy)
        ended = status(forked(partial(_open_until, copy, number)))
        print(number, ended, flush=True)
        if ended != -signal.SIGKILL:
            break


def _open_until(database: Path, number: int) -> None:
    left = number

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            die()

    traced(count)
    open_store(database, "killed").release()


# --- kills ------------------------------------------------------------------------------------------------------------


def batch(number: int) -> list[Delivery]:
    """Return the `number`-th batch of a run: rows of one epoch, some with large books, and what they account for."""
    rows = range(rows_until(number - 1) + 1, rows_until(number) + 1)
    records: list[Record] = []
    if number == 1:
        records.append(EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", 1_000_000))
    for n in rows:
        side = json.dumps([[str(n), "1.5"]] * (LEVELS if n % 7 == 1 else 1))
        records.append(BookRow(1, n, n * 1000, None, n, KEYFRAME if n % 7 == 1 else 0, side, None))
    records.append(Event(number, "INFO", "TEST", "x" * (number % 5) * 1000))
    records.append(CoverageMark(1, 1_000_000 + rows[-1] * 1000, 1_000_000 + rows[-1] * 1000, rows[-1]))
    return [Delivery("upbit", len(rows), tuple(records), 1)]


def rows_until(number: int) -> int:
    """Return how many rows the first `number` batches have together."""
    return sum(1 + (i * 7919) % 60 for i in range(1, number + 1))


def kills(database: Path, times: int, seed: int) -> None:
    moments = random.Random(seed)
    for run in range(times):
        heard, told = os.pipe()
        child = forked(partial(_write_forever, database, f"run {run}", told))
        os.close(told)
        taken = len(os.read(heard, 1))  # the first one is waited for
        deadline = time.monotonic() + moments.uniform(0, 0.08)
        while (left_s := deadline - time.monotonic()) > 0:
            if select.select([heard], [], [], left_s)[0]:
                taken += len(os.read(heard, 65536))
        os.kill(child, signal.SIGKILL)
        if status(child) != -signal.SIGKILL:
            sys.exit("the child ended by itself")
        while more := len(os.read(heard, 65536)):
            taken += more
        os.close(heard)
        print(run, taken, flush=True)


def _write_forever(database: Path, uid: str, told: int) -> None:
    store = open_store(database, uid)
    number = 0
    while True:
        number += 1
        store.put(batch(number), number)
        os.write(told, b".")


# --- ledger -----------------------------------------------------------------------------------------------------------


class ApartStore(OneRun):
    """Commits coverage before what it speaks of."""

    between: Callable[[], object] = staticmethod(lambda: None)

    def write(self, batch: Batch, now_us: int) -> int:
        """Write in two transactions what belongs into one."""
        rest, rows = apart(batch)
        there = super().write(rest, now_us)
        self.between()
        return there + super().write(rows, now_us)


def apart(batch: Batch) -> tuple[Batch, Batch]:
    """Return a batch in two, everything but its rows and its rows, as a store without transactions would have it."""
    records = [record for delivery in batch.deliveries for record in delivery.records]
    rows = tuple(record for record in records if isinstance(record, BookRow))
    rest = tuple(record for record in records if not isinstance(record, BookRow))
    halves = [(Delivery("", 0, half, 0),) for half in (rest, rows)]
    return Batch(batch.run, 2 * batch.number - 1, halves[0]), Batch(batch.run, 2 * batch.number, halves[1])


def ledger(database: Path, path: Path, *, split: bool) -> None:
    sent = Ledger(path)
    subscription = sent.subscribe(sent.open("upbit", "websocket"), "upbit", "BTC-KRW", "orderbook")
    left = 4

    def die_at_the_fourth() -> None:
        nonlocal left
        left -= 1
        if not left:
            die()

    if split:
        ApartStore.between = staticmethod(die_at_the_fourth)
    else:
        # The rows and coverage are written, the transaction is not over.
        traced(lambda statement: die_at_the_fourth() if statement.startswith("UPDATE run SET batch") else None)
    store = open_store(database, "1", ApartStore if split else OneRun)
    opened_us = Clock().wall_us()
    n = 0
    while True:
        records: list[Record] = []
        if not n:
            records.append(EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", opened_us))
        for _ in range(3):
            n += 1
            bids, asks = [[str(100 - n % 7), f"{n}.5"]], [["101", "1"]]
            sent.message(subscription, n, "book", "sent", bids=bids, asks=asks, sequence=n)
            records.append(BookRow(1, n, n, None, n, KEYFRAME, json.dumps(bids), json.dumps(asks)))
        records.append(CoverageMark(1, opened_us + n, opened_us + n, n))
        store.put([Delivery("upbit", 3, tuple(records), 1)], opened_us + n)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["migrate", database, folder]:
            migrate(Path(database), Path(folder))
        case ["kills", database, times, seed]:
            kills(Path(database), int(times), int(seed))
        case ["ledger", database, path, how]:
            ledger(Path(database), Path(path), split=how == "apart")
        case other:
            sys.exit(f"what is {other}?")
