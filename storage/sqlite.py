"""The SQLite store, writing side: one connection, one writer, whole batches in single transactions.

WAL with `synchronous=FULL`: what a commit took survives SIGKILL and power cut. Rows of a batch go in by one statement
over `json_each`: every `sqlite3_step` lets go of the interpreter's lock, and a step a row is what a busy collector is
slowed down by most. A batch's number is committed with it, so that a batch written again is known.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError, StorageFull
from collector.records import (
    BookRow,
    CandleRow,
    CoverageMark,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    RecordsLost,
    Rejected,
    StreamRow,
    TickerRow,
    TradeRow,
)
from storage.store import REPLACE_CANDLE, Batch, Run, not_stored, numbered_sql, sort_out, stretches

APPLICATION_ID = 0x434F4C4C  # "COLL"
MIGRATIONS = Path(__file__).parent / "migrations"
WAL_BYTES_MAX = 32 << 20
BUSY_S = 0.5  # somebody else writes to the file: what comes in waits in the spool, not in memory behind this

_INSERT_BOOK = """
INSERT INTO book (id, at_us, lag_us, sequence, flags, bids, asks)
SELECT (? + json_extract(value, '$[0]')) << 24 | json_extract(value, '$[1]'),
       json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]'),
       json_extract(value, '$[5]'), json_extract(value, '$[6]'), json_extract(value, '$[7]')
FROM json_each(?) WHERE true
ON CONFLICT DO NOTHING
"""
_INSERT_TRADES = """
INSERT INTO trade (feed, venue_us, trade_id, received_us, epoch, side, price, volume)
SELECT e.feed, json_extract(r.value, '$[6]'), json_extract(r.value, '$[1]'), json_extract(r.value, '$[5]'), e.id,
       json_extract(r.value, '$[2]'), json_extract(r.value, '$[3]'), json_extract(r.value, '$[4]')
FROM json_each(?) AS r CROSS JOIN epoch AS e ON e.id = ? + json_extract(r.value, '$[0]')
WHERE true
ON CONFLICT DO NOTHING
"""
_INSERT_TICKERS = """
INSERT INTO ticker (feed, received_us, venue_us, epoch, last, bid, ask, volume)
SELECT e.feed, json_extract(r.value, '$[1]'), json_extract(r.value, '$[2]'), e.id, json_extract(r.value, '$[3]'),
       json_extract(r.value, '$[4]'), json_extract(r.value, '$[5]'), json_extract(r.value, '$[6]')
FROM json_each(?) AS r CROSS JOIN epoch AS e ON e.id = ? + json_extract(r.value, '$[0]')
WHERE true
ON CONFLICT DO NOTHING
"""
_INSERT_CANDLES = f"""
INSERT INTO candle (feed, interval_s, open_us, open, high, low, close, volume, closed, received_us, epoch)
SELECT e.feed, json_extract(r.value, '$[1]'), json_extract(r.value, '$[2]'), json_extract(r.value, '$[3]'),
       json_extract(r.value, '$[4]'), json_extract(r.value, '$[5]'), json_extract(r.value, '$[6]'),
       json_extract(r.value, '$[7]'), json_extract(r.value, '$[8]'), json_extract(r.value, '$[9]'), e.id
FROM json_each(?) AS r CROSS JOIN epoch AS e ON e.id = ? + json_extract(r.value, '$[0]')
WHERE true
{REPLACE_CANDLE}
"""
_INSERT_STREAM: dict[type, str] = {TradeRow: _INSERT_TRADES, TickerRow: _INSERT_TICKERS, CandleRow: _INSERT_CANDLES}
_KNOWN_EPOCHS = "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM epoch WHERE id = ? + value)"
_UPDATE_COVERAGE = """
UPDATE coverage SET heard_until_us = max(heard_until_us, ?), confirmed_until_us = max(confirmed_until_us, ?),
                    frames = max(frames, ?)
WHERE epoch = ? AND reason IS NULL
"""
_END_COVERAGE = """
UPDATE coverage SET reason = ?, heard_until_us = min(heard_until_us, ?),
                    confirmed_until_us = min(confirmed_until_us, ?)
WHERE epoch = ?
"""

_LOSE_EPOCHS = """
UPDATE epoch SET reason = ?, ended_us = (SELECT heard_until_us FROM coverage WHERE epoch = epoch.id)
WHERE run = ? AND ended_us IS NULL
"""
_LOSE_COVERAGE = """
UPDATE coverage SET reason = (SELECT reason FROM epoch WHERE id = coverage.epoch)
WHERE reason IS NULL AND epoch IN (SELECT id FROM epoch WHERE run = ? AND ended_us IS NOT NULL)
"""
_OPEN_EPOCHS = """
SELECT e.id - r.epoch_base FROM epoch AS e JOIN run AS r ON r.id = e.run WHERE r.uid = ? AND e.ended_us IS NULL
"""
# What goes away by itself, or when a person mends something while the collector keeps its records elsewhere.
_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM")

_encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")


def migrations() -> list[tuple[int, str]]:
    """Return the numbered schema steps as (number, SQL), in order."""
    return numbered_sql(MIGRATIONS)


SCHEMA_VERSION = migrations()[-1][0]


class SQLiteStore:
    """The store as the writer uses it, from one thread at a time.

    `open` raises `NotOurs` for a file that is no database of this program, is from a newer version, or belongs to a
    collector that is running; `StorageError` where the path can't be used. Nothing on disk is changed in these cases.
    A disk that is full or a database that is busy is left to the first `write`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None
        self._db: sqlite3.Connection | None = None
        self._run = 0
        self._epoch_base = 0
        self._feeds: dict[tuple[str, str, str], int] = {}
        self._file: tuple[int, int] | None = None  # which file it is, whatever stands at its path

    # --- opening ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the writer's lock, look at the file and bring its schema up to date."""
        self._check_before_anything_is_written()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._begin_session()
        except OSError as error:
            self.release()
            raise StorageError(
                f"{self.path} can't be written: {error.strerror or error}; give the directory to the user the "
                "collector runs as, or set storage.path (DB_PATH)"
            ) from None
        except sqlite3.Error as error:
            if not _name(error).startswith(_PASSING):
                self.release()
                raise _translate(error, self.path) from None
        except StorageError:
            self.release()
            raise

    def _session(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        if self._lock is None:
            raise StorageError(f"{self.path} is not open")
        try:
            return self._begin_session()
        except sqlite3.Error as error:
            raise _translate(error, self.path) from None

    def _begin_session(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            self._migrate(db)
        except BaseException:
            db.close()
            raise
        self._db, self._file = db, _identity(self.path)
        return db

    def _check_before_anything_is_written(self) -> None:
        try:
            with self.path.open("r+b") as file:  # to be written, but nothing is written yet
                head = file.read(100)
        except (FileNotFoundError, NotADirectoryError):
            return
        except IsADirectoryError:
            raise NotOurs(f"{self.path} is a directory; set storage.path (DB_PATH) to a file") from None
        except OSError as error:
            raise StorageError(
                f"{self.path} can't be read and written: {error.strerror}; give it to the user the collector runs as, "
                "or set storage.path (DB_PATH)"
            ) from None
        if not head:
            return
        if not head.startswith(b"SQLite format 3\x00") or len(head) < 100:
            raise NotOurs(f"{self.path} is not an SQLite database; set storage.path (DB_PATH) to another file")
        if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            raise NotOurs(f"{self.path} is a database of another program; set storage.path (DB_PATH) to another file")
        version = int.from_bytes(head[60:64], "big")
        if version > SCHEMA_VERSION:
            raise NotOurs(_newer(self.path, version))

    def _take_lock(self) -> None:
        lock = self._beside(".lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise NotOurs(
                f"{self.path} is in use by another collector; stop that one, or set storage.path (DB_PATH) to "
                "another file"
            ) from None
        self._lock = lock

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
        try:
            if not db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
                # At one stroke: a header without our name would be taken for another program's ever after.
                db.execute("BEGIN")
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible in a file without pages
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA temp_store = MEMORY")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise NotOurs(_newer(self.path, version))
        for number, sql in migrations():
            if number > version:
                db.executescript(f"BEGIN;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, batch: Batch, now_us: int) -> int:
        """Commit all of a batch or none of it; return how many of its records were there already.

        Raises `StorageBusy` or `StorageFull` where the same call may succeed later, `StorageCorrupt` where only a
        person can help. After an error nothing of the batch is in the store, or (a commit whose outcome is unknown)
        all of it is.
        """
        return self.in_transaction(lambda db: self._write(db, batch, now_us))

    def open_epochs(self, run: Run) -> Set[int]:
        """Return the epochs of a run (as its batches number them) that are in the store and have not ended."""
        return self.in_transaction(lambda db: {number for (number,) in db.execute(_OPEN_EPOCHS, (run.uid,))})

    def _write(self, db: sqlite3.Connection, batch: Batch, now_us: int) -> int:
        newest = self._enter(db, batch.run)
        if batch.number <= newest:
            return sum(len(delivery.records) for delivery in batch.deliveries)
        there = 0
        for records in stretches(record for delivery in batch.deliveries for record in delivery.records):
            there += self._write_records(db, records, now_us)
        db.execute("UPDATE run SET batch = ?, alive_us = ? WHERE id = ?", (batch.number, now_us, self._run))
        return there

    def _enter(self, db: sqlite3.Connection, run: Run) -> int:
        # The epochs of a run follow those of the run before: its own count starts where the table ends.
        db.execute(
            "INSERT INTO run (uid, collector_id, version, epoch_base, started_us, alive_us) "
            "SELECT ?, ?, ?, (SELECT coalesce(max(id), 0) FROM epoch), ?, ? WHERE true ON CONFLICT DO NOTHING",
            (run.uid, run.collector_id, run.version, run.started_us, run.started_us),
        )
        row = db.execute("SELECT id, epoch_base, batch FROM run WHERE uid = ?", (run.uid,)).fetchone()
        self._run, self._epoch_base, newest = row
        return int(newest)

    def _write_records(self, db: sqlite3.Connection, records: Sequence[Record], now_us: int) -> int:
        base = self._epoch_base
        kinds: dict[type, list[Any]] = {}
        for record in records:
            kinds.setdefault(type(record), []).append(record)
        for lost in kinds.get(RecordsLost, ()):
            db.execute(_LOSE_EPOCHS, (lost.reason, self._run))
            db.execute(_LOSE_COVERAGE, (self._run,))
        there = sum(not self._open_epoch(db, opened) for opened in kinds.get(EpochOpened, ()))
        rows = kinds.get(BookRow)
        if rows:
            rows.sort(key=_epoch_of)  # neighbours in the tree go in side by side; n rises within an epoch already
            there += len(rows) - db.execute(_INSERT_BOOK, (base, _encode(rows).decode())).rowcount
        streamed = [row for kind in _INSERT_STREAM for row in kinds.get(kind, ())]
        left_out = 0
        if streamed:
            known, left_out = self._insert_streams(db, streamed)
            there += known
        marks: dict[int, CoverageMark] = {mark.epoch: mark for mark in kinds.get(CoverageMark, ())}
        db.executemany(
            _UPDATE_COVERAGE,
            [(mark.heard_until_us, mark.confirmed_until_us, mark.frames, base + mark.epoch) for mark in marks.values()],
        )
        verdicts: list[EpochVerdict] = kinds.get(EpochVerdict, [])
        db.executemany("UPDATE epoch SET verdict = ? WHERE id = ?", [(v.verdict, base + v.epoch) for v in verdicts])
        ended: list[EpochEnded] = kinds.get(EpochEnded, [])
        db.executemany(
            "UPDATE epoch SET ended_us = ?, reason = ? WHERE id = ?",
            [(e.ended_us, e.reason, base + e.epoch) for e in ended],
        )
        db.executemany(
            _END_COVERAGE,
            [(e.reason, e.ended_us, e.ended_us, base + e.epoch) for e in ended],
        )
        rejected: list[Rejected] = kinds.get(Rejected, [])
        db.executemany(
            "INSERT INTO rejected (run, exchange, market, received_us, reason, frame) VALUES (?, ?, ?, ?, ?, ?)",
            [(self._run, r.exchange.upper(), r.market, r.received_us, r.reason, r.frame) for r in rejected],
        )
        events: list[Event] = kinds.get(Event, [])
        if left_out:
            events.append(Event(now_us, "WARNING", "store", not_stored(left_out)))
        db.executemany(
            "INSERT INTO event (run, time_us, level, tag, text) VALUES (?, ?, ?, ?, ?)",
            [(self._run, e.time_us, e.level, e.tag, e.text) for e in events],
        )
        return there

    def _insert_streams(self, db: sqlite3.Connection, rows: Sequence[StreamRow]) -> tuple[int, int]:
        # Returns how many were there already, and how many can't be stored.
        base = self._epoch_base
        numbers = _encode({row.epoch for row in rows}).decode()
        known = {number for (number,) in db.execute(_KNOWN_EPOCHS, (numbers, base))}
        kinds, left_out = sort_out(rows, known)
        there = 0
        for kind, some in kinds.items():
            if some:
                some.sort(key=_epoch_of)  # a feed's rows side by side, in the order they came
                there += len(some) - db.execute(_INSERT_STREAM[kind], (_encode(some).decode(), base)).rowcount
        return there, left_out

    def _open_epoch(self, db: sqlite3.Connection, opened: EpochOpened) -> bool:
        feed = self._feed(db, opened.exchange, opened.market, opened.channel)
        epoch = self._epoch_base + opened.epoch
        inserted = db.execute(
            "INSERT INTO epoch (id, run, feed, transport, depth, verdict, opened_us, unit) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (epoch, self._run, feed, opened.transport, opened.depth, opened.verdict, opened.opened_us, opened.unit),
        )
        db.execute(
            "INSERT INTO coverage (epoch, from_us, heard_until_us, confirmed_until_us, frames) VALUES (?, ?, ?, ?, 0) "
            "ON CONFLICT DO NOTHING",
            (epoch, opened.opened_us, opened.opened_us, opened.opened_us),
        )
        if not inserted.rowcount:
            self._require_own(db, opened.epoch)
        return inserted.rowcount > 0

    def _require_own(self, db: sqlite3.Connection, number: int) -> None:
        # Epochs of a run have the ids behind its base as long as no later run has begun.
        owner, uid = db.execute(
            "SELECT epoch.run, mine.uid FROM epoch, run AS mine WHERE epoch.id = ? AND mine.id = ?",
            (self._epoch_base + number, self._run),
        ).fetchone()
        if owner != self._run:
            raise StorageCorrupt(
                f"{self.path}: batches of run {uid} come out of a spool after those of a later run, and their epoch "
                f"{number} would be mixed with another; stop the collector and move that spool's files away"
            )

    def _feed(self, db: sqlite3.Connection, exchange: str, market: str, channel: str) -> int:
        known = self._feeds.get((exchange, market, channel))
        if known is not None:
            return known
        symbol, _, currency = market.partition("-")
        exchange_id = _id(db, "exchange", {"name": exchange})
        market_id = _id(db, "market", {"symbol": symbol, "currency": currency})
        feed = _id(db, "feed", {"exchange": exchange_id, "market": market_id, "channel": channel})
        self._feeds[exchange, market, channel] = feed
        return feed

    def in_transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run work in a transaction of the writer's own connection and return its result."""
        feeds = dict(self._feeds)
        try:
            self._check_file()
            db = self._session()
            db.execute("BEGIN IMMEDIATE")
            result = work(db)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._feeds = feeds  # ids given out in a transaction that did not happen
            self._roll_back()
            if _name(error).startswith("SQLITE_READONLY") and self._db is not None:
                # Where the file can't be opened for writing SQLite opens it for reading, for as long as the connection
                # lives: the next transaction tries again.
                self._db.close()
                self._db = None
            raise _translate(error, self.path) from None
        except BaseException:
            self._feeds = feeds
            self._roll_back()
            raise
        return result

    def _check_file(self) -> None:
        # SQLite goes on writing into a file that was deleted, and all of that is gone with the process.
        if self._file is not None and _identity(self.path) != self._file:
            raise StorageCorrupt(
                f"{self.path} was removed or replaced while the collector runs, and nothing is written; put it back, "
                "or restart the collector to begin a new one"
            )

    def _roll_back(self) -> None:
        db = self._db
        if db is not None and db.in_transaction:
            try:
                db.execute("ROLLBACK")
            except sqlite3.Error:
                # The connection is beyond that: the next transaction makes a new one, which starts clean.
                self._db = None
                db.close()

    # --- the rest ---------------------------------------------------------------------------------------------------

    @property
    def connection(self) -> sqlite3.Connection:
        """The writer's connection, for maintenance that makes transactions of its own."""
        return self._session()

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of the database file and of its write-ahead log."""
        return _size(self.path), _size(self._beside("-wal"))

    def size_bytes(self) -> int:
        """Return the bytes of all pages, those that still stand in the log included; for the writer's thread."""
        db = self._session()
        try:
            (pages,), (size,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error as error:
            raise _translate(error, self.path) from None
        return int(pages) * int(size)

    def close_run(self, run: Run, now_us: int) -> None:
        """Note that a run ended in order; nothing happens where the store does not know it."""
        sql = "UPDATE run SET closed_us = ?, alive_us = ? WHERE uid = ?"
        self.in_transaction(lambda db: db.execute(sql, (now_us, now_us, run.uid)))

    def release(self) -> None:
        """Close the file and give the lock back."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _beside(self, ending: str) -> Path:
        # Next to the file itself: whoever takes another way to it, by a link, must meet the same lock.
        file = self.path.resolve()
        return file.with_name(file.name + ending)


def _newer(path: Path, version: int) -> str:
    return (
        f"{path} is from a newer collector (schema {version}, this one knows {SCHEMA_VERSION}); install that version, "
        "or set storage.path (DB_PATH) to another file"
    )


def _epoch_of(row: BookRow | StreamRow) -> int:
    return row.epoch


def _id(db: sqlite3.Connection, table: str, key: dict[str, object]) -> int:
    where = " AND ".join(f"{column} = ?" for column in key)
    row = db.execute(f"SELECT id FROM {table} WHERE {where}", tuple(key.values())).fetchone()
    if row is None:
        marks = ", ".join("?" * len(key))
        row = db.execute(
            f"INSERT INTO {table} ({', '.join(key)}) VALUES ({marks}) RETURNING id", tuple(key.values())
        ).fetchone()
    return int(row[0])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _translate(error: sqlite3.Error, path: Path) -> StorageError:
    name = _name(error)
    text = f"{path}: {error}"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy(f"{text}; close whatever else writes to it, the collector goes on by itself")
    if name.startswith("SQLITE_FULL"):
        return StorageFull(f"{text}; free some space, the collector goes on by itself")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StorageCorrupt(f"{text}; restore a backup, or move the file away and start anew")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return StorageBusy(f"{text}; give the file and its directory to the user the collector runs as")
    if name.startswith(("SQLITE_IOERR", "SQLITE_NOMEM", "SQLITE_INTERRUPT")):
        return StorageBusy(text)
    return StorageError(text)
