"""Work on a store whose every book is known beforehand, and what must be true of the store afterwards.

`python -m tests.faults.work trace DATABASE SYNCHRONOUS`: three runs, one after another, that open, migrate, commit
and delete; a line in the file `acknowledged` beside the database follows each commit.

`python -m tests.faults.work spool DATABASE FSYNC BATCHES`: likewise, but the store is away half of the time, and the
batches wait in the spool beside it.

`python -m tests.faults.work fail FOLDER ORDERS ERROR once|ever KINDS FIRST EVERY`: opens, migrates, commits, deletes
and closes again and again, each time in a fresh folder; the first time the disk fails at call number FIRST, then at a
later one. A line each: the call, how many steps failed with it, and what was wrong in the end, nothing if all is well.
"""

import errno
import json
import os
import shutil
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path

from collector.errors import StorageError
from collector.records import (
    KEYFRAME,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    Event,
    Record,
    Rejected,
)
from storage.coverage import coverage
from storage.reader import Reader
from storage.spool import Fsync, Spool, Spooled
from storage.sqlite import SCHEMA_VERSION, SQLiteStore
from storage.store import Batch, Run
from tests.faults.disk import FOR_GOOD, Orders

LEVELS = 20
ROWS = 7  # a batch
KEYFRAME_EVERY = 40
T0 = 1_790_000_000_000_000
STEP_US = 10_000


def book(n: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return bids and asks after the `n`-th row, best first: row n changes the size of one level a side to n."""
    sizes = {price % LEVELS: price for price in range(max(1, n - LEVELS + 1), n + 1)}
    bids = [(str(1000 - level), str(sizes.get(level, 1))) for level in range(LEVELS)]
    asks = [(str(2000 + level), str(sizes.get(level, 1))) for level in range(LEVELS)]
    return bids, asks


def opened_us(run: int) -> int:
    """Return when the only epoch of a run begins."""
    return T0 + run * 60_000_000


def deliveries(run: int, number: int) -> list[Delivery]:
    """Return the `number`-th batch of a run: rows, the marks that account for them, a rejected frame, an event."""
    records: list[Record] = []
    rows = range((number - 1) * ROWS + 1, number * ROWS + 1)
    if number == 1:
        records.append(EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", opened_us(run)))
    for n in rows:
        bids, asks = book(n)
        keyframe = n % KEYFRAME_EVERY == 1
        if not keyframe:
            bids, asks = [bids[n % LEVELS]], [asks[n % LEVELS]]
        flags = KEYFRAME if keyframe else 0
        records.append(BookRow(1, n, n * STEP_US, None, n, flags, json.dumps(bids), json.dumps(asks)))
    until_us = opened_us(run) + rows[-1] * STEP_US
    records.append(Rejected("upbit", "BTC-KRW", until_us, "test", b"\x00\xff" * (number % 9) * 100))
    records.append(Event(until_us, "INFO", "TEST", "x" * (number % 5) * 500))
    records.append(CoverageMark(1, until_us, until_us, rows[-1]))
    return [Delivery("upbit", len(rows), tuple(records), 1)]


def ending(run: int, batches: int) -> list[Delivery]:
    """Return what ends the epoch of a run."""
    ended = EpochEnded(1, opened_us(run) + batches * ROWS * STEP_US, "stop")
    return [Delivery("upbit", 0, (ended,), 1)]


def open_store(database: Path, kind: type[SQLiteStore] = SQLiteStore) -> SQLiteStore:
    """Return the store, open."""
    store = kind(database)
    store.open()
    return store


def run_of(number: int) -> Run:
    """Return what a store knows a run by."""
    return Run(f"run {number}", "here", "test", opened_us(number))


def batch(run: int, number: int, batches: int = 0) -> Batch:
    """Return the `number`-th batch of a run; the one after the last of `batches` ends its epoch."""
    content = ending(run, batches) if batches and number > batches else deliveries(run, number)
    return Batch(run_of(run), number, tuple(content))


def write(store: SQLiteStore, run: int, number: int, batches: int = 0) -> None:
    """Commit the `number`-th batch of a run."""
    store.write(batch(run, number, batches), opened_us(run) + number * ROWS * STEP_US)


# --- what must be true ------------------------------------------------------------------------------------------------


def check(database: Path, acknowledged: dict[int, int]) -> str:
    """Return what is wrong with a store that acknowledged so many batches of each run; nothing if all is well."""
    if not database.exists() or not database.stat().st_size:
        return "lost: the database" if any(acknowledged.values()) else ""
    db = sqlite3.connect(database)
    try:
        return _check(db, acknowledged)
    except sqlite3.Error as error:
        return f"{type(error).__name__}: {error}"
    finally:
        db.close()


def _check(db: sqlite3.Connection, acknowledged: dict[int, int]) -> str:
    if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
        return "it is corrupt"
    if db.execute("PRAGMA foreign_key_check").fetchall():
        return "it has rows without their parents"
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table'").fetchone()
    if not version:
        return "it has half a schema" if tables else "lost: all of it" if any(acknowledged.values()) else ""
    if version < SCHEMA_VERSION:  # cut between two migrations
        return "lost: all of it" if any(acknowledged.values()) else ""
    stored = {
        run: (frames, heard_us, rows, last, rejected)
        for run, frames, heard_us, rows, last, rejected in db.execute(
            "SELECT CAST(substr(r.uid, 5) AS INTEGER), c.frames, c.heard_until_us, "
            "(SELECT count(*) FROM book b WHERE b.id >> 24 = e.id), "
            "(SELECT max(b.id & 0xFFFFFF) FROM book b WHERE b.id >> 24 = e.id), "
            "(SELECT count(*) FROM rejected j WHERE j.run = r.id) "
            "FROM run r JOIN epoch e ON e.run = r.id JOIN coverage c ON c.epoch = e.id"
        )
    }
    for run, batches in acknowledged.items():
        if batches and run not in stored:
            return f"lost: run {run}"
    for run, (frames, heard_us, rows, last, rejected) in stored.items():
        if frames < acknowledged.get(run, 0) * ROWS:
            return f"lost: run {run} acknowledged {acknowledged[run]} batches, {frames / ROWS:g} are there"
        if (rows, last) != (frames, frames) or heard_us != opened_us(run) + frames * STEP_US:
            return f"the ledger of run {run} tells of {frames} rows until {heard_us}, there are {rows} up to {last}"
        if rows % ROWS or rejected != rows // ROWS:
            return f"a batch of run {run} is there in part"
    return ""


def read_back(database: Path) -> str:
    """Return what is wrong with the books and the coverage that the reader gives; nothing if all is well."""
    with Reader(database) as reader:
        if not reader.feeds():
            return ""
        for found in reader.books("UPBIT", "BTC-KRW"):
            bids, asks = book(found.n)
            if (_numbers(found.bids), _numbers(found.asks)) != (_numbers(bids), _numbers(asks)):
                return f"book {found.n} of epoch {found.epoch} is not what was written"
        for feed in coverage(reader, None, None):
            if sum(feed.us(state) for state in ("DATA", "QUIET", "UNCONFIRMED", "GAP")) != feed.end_us - feed.start_us:
                return "the coverage does not add up"
    return ""


def _numbers(levels: object) -> list[tuple[Decimal, Decimal]]:
    assert isinstance(levels, list | tuple)
    return [(Decimal(price), Decimal(size)) for price, size in levels]


def goes_on(database: Path, run: int = 99) -> str:
    """Return what keeps a collector from opening the store and going on with it; nothing if it can."""
    try:
        store = open_store(database)
        try:
            for number in (1, 2):
                write(store, run, number)
        finally:
            store.release()
    except StorageError as error:
        return f"{type(error).__name__}: {error}"
    return check(database, {run: 2})


# --- as a process of its own ------------------------------------------------------------------------------------------


class Loose(SQLiteStore):
    """The store without what makes a commit survive a power cut."""

    def _connect(self) -> sqlite3.Connection:
        db = super()._connect()
        db.execute("PRAGMA synchronous = NORMAL")
        return db


def trace(database: Path, synchronous: str, batches: int) -> None:
    """Do the work of three runs: the first ends in order, the others just stop, as if killed."""
    acknowledged = (database.parent / "acknowledged").open("ab", buffering=0)
    kind = SQLiteStore if synchronous == "FULL" else Loose
    for run in (1, 2, 3):
        store = open_store(database, kind)
        store.connection.execute("PRAGMA wal_autocheckpoint = 60")  # often enough to be cut in the middle
        for number in range(1, batches + 1):
            write(store, run, number)
            acknowledged.write(b"%d %d\n" % (run, number))
        if run == 1:
            write(store, run, batches + 1, batches)
            store.close_run(run_of(run), opened_us(run) + 1)
        if run == 2:
            store.in_transaction(lambda db: db.execute("DELETE FROM event"))
            store.connection.execute("PRAGMA incremental_vacuum").fetchall()
        store.release()


def spool_of(database: Path, fsync: Fsync = "batch") -> Spool:
    """Return the spool beside a database, open; its segments are small, so that many come and go."""
    spool = Spool(database.with_name("db.spool"), limit_bytes=1 << 24, segment_bytes=1 << 13, fsync=fsync)
    spool.open()
    return spool


def drain(spool: Spool, store: SQLiteStore) -> None:
    """Bring what waits to the store, a batch at a time."""
    while found := spool.peek(1):
        if not isinstance(found[0], Spooled):
            raise StorageError(f"a hole in the spool: {found[0]}")
        store.write(found[0].batch, T0)
        spool.advance(found[0].position)


def trace_spool(database: Path, fsync: Fsync, batches: int) -> None:
    """Let the store be away for half of the batches of three runs."""
    acknowledged = (database.parent / "acknowledged").open("ab", buffering=0)
    for run in (1, 2, 3):
        store, spool = open_store(database), spool_of(database, fsync)
        drain(spool, store)
        for number in range(1, batches + 1):
            away = number % 12 in range(4, 10)
            if away or not spool.empty:
                spool.append(batch(run, number))
            else:
                write(store, run, number)
            acknowledged.write(b"%d %d\n" % (run, number))
            if not away:
                drain(spool, store)
        spool.close()
        store.release()


def bring_home(database: Path) -> str:
    """Open store and spool as they were found, bring what waits to the store; return what keeps that from working."""
    try:
        store, spool = open_store(database), spool_of(database)
        try:
            drain(spool, store)
        finally:
            spool.close()
            store.release()
    except StorageError as error:
        return f"lost: {error}" if "hole" in str(error) else f"{type(error).__name__}: {error}"
    return ""


BATCHES = 4
PATIENCE = 3  # failures that are borne before the disk is mended


def fail(folder: Path, orders: Orders, error: int, *, once: bool, kinds: tuple[str, ...], calls: Iterator[int]) -> None:
    """Let call after call fail, each in a process of its own, until the work needs no such call."""
    for call in calls:
        (folder / "now").mkdir()
        child = os.fork()
        if not child:
            try:
                orders.fail(error, first=call, last=call if once else FOR_GOOD, kinds=kinds)
                made, failures, problem = _work_on(folder / "now" / "db", orders)
                print(call, failures, problem, flush=True)
                os._exit(0 if made >= call else 1)
            except BaseException:
                print(call, 0, f"died: {traceback.format_exc()!r}", flush=True)
                os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended < 0:
            print(call, 0, f"killed by signal {-ended}", flush=True)
        shutil.rmtree(folder / "now")
        if ended == 1:
            return


def _work_on(database: Path, orders: Orders) -> tuple[int, int, str]:
    # Returns how many calls there were, how many steps failed, and what is wrong in the end.
    failures = 0

    def persist(step: Callable[[], object]) -> None:
        # As the collector does: the same again, until it works.
        nonlocal failures
        while True:
            try:
                step()
                return
            except StorageError:
                failures += 1
                if failures == PATIENCE:
                    orders.heal()
                if failures > 2 * PATIENCE:
                    raise

    store = SQLiteStore(database)
    persist(store.open)
    persist(lambda: store.in_transaction(lambda db: db.execute("PRAGMA cache_size = 5")))  # so that much is read again
    persist(lambda: store.in_transaction(_delete_events))
    for number in range(1, BATCHES + 1):
        if number == 3:
            store.release()
            store = SQLiteStore(database)
            persist(store.open)
        persist(partial(write, store, 1, number))
        persist(partial(store.in_transaction, _delete_events))
    persist(lambda: write(store, 1, BATCHES + 1, BATCHES))
    persist(lambda: store.close_run(run_of(1), opened_us(1) + 1))
    store.release()
    calls = orders.calls
    orders.heal()
    whole = check(database, {1: BATCHES}) or read_back(database) or goes_on(database)
    return calls, failures, whole


def _delete_events(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_autocheckpoint = 5")
    db.execute("DELETE FROM event")


def main() -> None:
    match sys.argv[1:]:
        case ["trace", database, synchronous, batches]:
            trace(Path(database), synchronous, int(batches))
        case ["spool", database, ("batch" | "never") as fsync, batches]:
            trace_spool(Path(database), fsync, int(batches))
        case ["fail", folder, control, error, how, kinds, first, every]:
            with Orders(Path(control)) as orders:
                fail(
                    Path(folder),
                    orders,
                    getattr(errno, error),
                    once=how == "once",
                    kinds=tuple(kinds.split(",")),
                    calls=count(int(first), int(every)),
                )
        case other:
            sys.exit(f"what is {other}?")


if __name__ == "__main__":
    main()
