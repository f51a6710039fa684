"""Keeping house: deleting what is past its time, giving the space back, copying the database.

Deleting is done by the writer's own thread between two batches, in transactions of at most `STEP_ROWS` rows, so that
data never waits for it. The ledger goes first: at no moment, whatever dies, does it claim time whose rows are gone.
What is left of an epoch begins with a complete book.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

from collector.clock import Clock
from collector.errors import NotOurs, StorageCorrupt, StorageError, StorageFull
from collector.records import KEYFRAME, ORDERBOOK, ROWS_MAX
from storage.rounds import Rounds
from storage.sqlite import APPLICATION_ID
from storage.sqlite_source import SQLiteSource, last_key, translate

DAY_US = 86_400_000_000
STEP_ROWS = 5_000
STEP_PAGES = 1_000
LEDGER = ("exchange", "market", "feed", "run", "epoch", "coverage")

_T = TypeVar("_T")

_OLD_EPOCHS = """
SELECT e.id, e.opened_us, f.channel, c.from_us, c.heard_until_us,
       e.ended_us IS NOT NULL OR r.closed_us IS NOT NULL OR r.id < (SELECT max(id) FROM run)
FROM epoch AS e
JOIN run AS r ON r.id = e.run
JOIN feed AS f ON f.id = e.feed
JOIN coverage AS c ON c.epoch = e.id
WHERE e.opened_us < ?
ORDER BY e.id
"""
_OldEpoch = tuple[int, int, str, int, int, int]


class Store(Protocol):
    """What is needed of a store to keep house in it."""

    def in_transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run work in a transaction of its own; raises `StorageError` where nothing of it happened."""


class Housekeeping(Rounds):
    """Deletes what is too old or too much, once an hour, a small piece at each `step`. For the writer's thread.

    `retention_days` are whole UTC days before today that are kept, 0 for all. Of frames nobody could read (`rejected`)
    and of the log (`event`) so many days are kept, and of those no more than so many bytes, the newest.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        retention_days: int = 0,
        rejected_days: int = 30,
        rejected_bytes: int = 1 << 30,
        event_days: int = 30,
        event_bytes: int = 1 << 30,
    ) -> None:
        super().__init__(clock)
        self._store = store
        self._retention_days = retention_days
        self._rejected = rejected_days, rejected_bytes
        self._event = event_days, event_bytes

    def _work(self) -> Iterator[int]:
        now_us = self._clock.wall_us()
        if self._retention_days:
            yield from delete_days_before(self._store, now_us // DAY_US - self._retention_days)
        yield from trim_rejected(self._store, now_us, *self._rejected)
        yield from trim_events(self._store, now_us, *self._event)
        yield from give_back_space(self._store)


# --- days ------------------------------------------------------------------------------------------------------------


def delete_days_before(store: Store, day: int) -> Iterator[int]:
    """Delete all market data of the UTC days before `day` (days since 1970); yield the rows of each transaction.

    Books are judged by when they were received, trades, tickers and candles by their own key. An epoch that reaches
    into the kept days keeps its rows from the first keyframe of these days on, or, where none of them opens with one,
    from the keyframe before. Its coverage begins there; an epoch that is over before them goes altogether.
    """
    before_us = day * DAY_US
    old: list[_OldEpoch] = store.in_transaction(lambda db: db.execute(_OLD_EPOCHS, (before_us,)).fetchall())
    for epoch in old:
        yield from _delete_of_epoch(store, epoch, before_us)
    feeds = store.in_transaction(lambda db: db.execute("SELECT id FROM feed").fetchall())
    for (feed,) in feeds:
        yield from _delete_by_key(store, "trade", "feed = ?", (feed,), "venue_us", before_us)
        yield from _delete_by_key(store, "ticker", "feed = ?", (feed,), "received_us", before_us)
        for interval_s in store.in_transaction(lambda db, feed=feed: _intervals(db, feed)):  # type: ignore[misc]
            yield from _delete_by_key(
                store, "candle", "feed = ? AND interval_s = ?", (feed, interval_s), "open_us", before_us
            )


def _delete_of_epoch(store: Store, epoch: _OldEpoch, before_us: int) -> Iterator[int]:
    epoch_id, opened_us, channel, from_us, heard_us, is_over = epoch
    gone = bool(is_over) and heard_us < before_us
    end_id = (epoch_id + 1) << 24
    if gone:
        kept_us = heard_us
    elif channel == ORDERBOOK:
        kept = store.in_transaction(lambda db: _first_kept(db, epoch_id, before_us - opened_us))
        if kept is None:
            return
        end_id, kept_us = kept[0], opened_us + kept[1]
    else:
        kept_us = min(before_us, heard_us)
    if kept_us > from_us:
        store.in_transaction(
            lambda db: db.execute("UPDATE coverage SET from_us = ? WHERE epoch = ?", (kept_us, epoch_id)).rowcount
        )
        yield 0
    if gone or channel == ORDERBOOK:
        yield from _delete_by_key(store, "book", "id >= ?", (epoch_id << 24,), "id", end_id)
    if gone:
        yield store.in_transaction(lambda db: _delete_epoch(db, epoch_id))


def _first_kept(db: sqlite3.Connection, epoch_id: int, before_at_us: int) -> tuple[int, int] | None:
    # Key and time of the keyframe that what is kept begins with; None where all of it is.
    last_id = epoch_id << 24 | ROWS_MAX
    newest_old = last_key(db, epoch_id, before_at_us - 1)
    if newest_old is None:
        return None
    row = db.execute(
        "SELECT id, at_us, flags FROM book WHERE id > ? AND id <= ? ORDER BY id LIMIT 1", (newest_old, last_id)
    ).fetchone()
    if row is not None and row[2] & KEYFRAME:
        return int(row[0]), int(row[1])
    found: tuple[int, int] | None = db.execute(
        "SELECT id, at_us FROM book WHERE flags & 1 AND id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
        (epoch_id << 24, newest_old),
    ).fetchone()
    return found


def _delete_epoch(db: sqlite3.Connection, epoch_id: int) -> int:
    db.execute("DELETE FROM coverage WHERE epoch = ?", (epoch_id,))
    return db.execute("DELETE FROM epoch WHERE id = ?", (epoch_id,)).rowcount


def _intervals(db: sqlite3.Connection, feed: int) -> list[int]:
    found: list[int] = []
    while True:
        (interval_s,) = db.execute(
            "SELECT min(interval_s) FROM candle WHERE feed = ? AND interval_s > ?", (feed, found[-1] if found else -1)
        ).fetchone()
        if interval_s is None:
            return found
        found.append(interval_s)


def _delete_by_key(
    store: Store, table: str, where: str, values: tuple[int, ...], key: str, before: int
) -> Iterator[int]:
    # Deletes in the order of the key, so that each transaction touches few pages. Names are ours, never from outside.
    def delete_some(db: sqlite3.Connection) -> int:
        row = db.execute(
            f"SELECT {key} FROM {table} WHERE {where} AND {key} < ? ORDER BY {key} LIMIT 1 OFFSET ?",
            (*values, before, STEP_ROWS - 1),
        ).fetchone()
        until = before if row is None else row[0] + 1
        return db.execute(f"DELETE FROM {table} WHERE {where} AND {key} < ?", (*values, until)).rowcount

    while True:
        deleted = store.in_transaction(delete_some)
        if not deleted:
            return
        yield deleted


# --- side tables -----------------------------------------------------------------------------------------------------


def trim_rejected(store: Store, now_us: int, days: int, bytes_max: int) -> Iterator[int]:
    """Delete frames nobody could read that are older than `days` or beyond `bytes_max`, the oldest first."""
    return _trim(store, "rejected", "received_us", "length(frame)", now_us - days * DAY_US, bytes_max)


def trim_events(store: Store, now_us: int, days: int, bytes_max: int) -> Iterator[int]:
    """Delete lines of the log that are older than `days` or beyond `bytes_max`, the oldest first."""
    return _trim(store, "event", "time_us", "length(CAST(text AS BLOB))", now_us - days * DAY_US, bytes_max)


def _trim(store: Store, table: str, time: str, size: str, before_us: int, bytes_max: int) -> Iterator[int]:
    def whole_file(db: sqlite3.Connection) -> int:
        (pages,), (page,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
        return int(pages * page)

    def weigh(db: sqlite3.Connection) -> list[tuple[int, int, int]]:
        return db.execute(
            f"SELECT id, {time}, {size} FROM {table} WHERE id < ? ORDER BY id DESC LIMIT ?", (oldest_kept, STEP_ROWS)
        ).fetchall()

    # From the newest to the oldest until the first that is too old or too much: it and all before it go.
    oldest_kept = 1 << 62
    left = bytes_max if store.in_transaction(whole_file) > bytes_max else 1 << 62
    first_gone: int | None = None
    while first_gone is None:
        rows = store.in_transaction(weigh)
        if not rows:
            return
        for row_id, time_us, row_bytes in rows:
            left -= row_bytes
            if time_us < before_us or left < 0:
                first_gone = row_id
                break
            oldest_kept = row_id
        yield 0
    yield from _delete_by_key(store, table, "id > ?", (-1,), "id", first_gone + 1)


def give_back_space(store: Store) -> Iterator[int]:
    """Give free pages back to the file system, a few megabytes at a time."""

    def free_pages(db: sqlite3.Connection) -> int:
        return int(db.execute("PRAGMA freelist_count").fetchone()[0])

    def vacuum_some(db: sqlite3.Connection) -> int:
        db.execute(f"PRAGMA incremental_vacuum({STEP_PAGES})").fetchall()
        return free_pages(db)

    free = store.in_transaction(free_pages)
    while free:
        left = store.in_transaction(vacuum_some)
        yield 0
        if left >= free:
            return  # a file that was not made for it
        free = left


# --- backup ----------------------------------------------------------------------------------------------------------


def backup(path: Path | str, out: Path | str, progress: Callable[[float], None] | None = None) -> None:
    """Copy a database while it is in use, verify the copy, and give it its name only then.

    The copy is the state of one moment, whatever is written meanwhile, in one file that stands alone. `progress` is
    called with the fraction done. Raises `StorageError` where the name is taken or can't be written, `StorageFull`
    where the disk is full, `StorageCorrupt` where the copy is damaged (then so is the database), and what
    `SQLiteSource` raises.
    """
    path, out = Path(path), Path(out)
    part = out.with_name(out.name + ".part")
    with closing(SQLiteSource(path)) as source:  # says clearly what is wrong with it
        _refuse(out)
        lock = _own(part)
        try:
            _copy(source, part, progress)
            _refuse(out)
            os.fsync(lock)
            os.replace(part, out)
            _sync_directory(out.parent)
        except sqlite3.Error as error:
            raise _failed(error, out) from None
        except OSError as error:
            raise StorageError(f"{out} can't be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
            Path(f"{part}-journal").unlink(missing_ok=True)
            os.close(lock)
    if progress is not None:
        progress(1.0)


def _copy(source: SQLiteSource, part: Path, progress: Callable[[float], None] | None) -> None:
    def pages_done(_: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress(0.8 * (total - remaining) / max(total, 1))

    db = source.connection
    copy = sqlite3.connect(part, isolation_level=None)
    try:
        # A read transaction around it: without, every commit of the collector would make the copy start again.
        db.execute("BEGIN")
        try:
            expected = _ledger(db)
            db.backup(copy, pages=STEP_PAGES, progress=pages_done)
        finally:
            db.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, readable where nothing can be written
        (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StorageCorrupt(f"the copy of {source.path} is damaged ({verdict}); no backup was made")
        if copy.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            raise NotOurs(f"the copy of {source.path} is no database of the collector; no backup was made")
        if _ledger(copy) != expected:
            raise StorageCorrupt(f"the copy of {source.path} does not hold the same rows; no backup was made")
    finally:
        copy.close()


def _ledger(db: sqlite3.Connection) -> list[tuple[int, ...]]:
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in LEDGER]
    return [*counts, db.execute("SELECT min(id), max(id) FROM book").fetchone()]


def _own(part: Path) -> int:
    # What an interrupted backup left behind is ours to replace; what another one is writing is not.
    try:
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{part} can't be written: {error.strerror or error}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
    except OSError:
        os.close(handle)
        raise StorageError(f"another backup to {part} is under way") from None
    return handle


def _refuse(out: Path) -> None:
    if out.exists():
        raise StorageError(f"{out} is there already; name another file")


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(error: sqlite3.Error, out: Path) -> StorageError:
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL"):
        return StorageFull(f"{out}: {error}; free some space or name another place")
    return translate(error, out)
