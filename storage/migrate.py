"""An SQLite database, copied into PostgreSQL: what is there already stays, and collectors may be writing there.

Every piece is committed with how far the copy has got, so that it goes on after a kill at any point. The books are then
read back, in order, and compared with those of the file; trades, tickers and candles are as they go in. The
ledger goes last: until everything is there and equal, nothing is claimed. Copying again changes nothing.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

import collector
from collector.errors import StorageCorrupt
from storage.postgres import FeedKey, PostgresStore
from storage.postgres_database import Session
from storage.postgres_partitions import DAY_US, TABLES, make_day
from storage.postgres_rows import (
    BOOK_TYPES,
    CANDLE,
    COPY_BOOK,
    INSERT_BOOK,
    TICKER,
    TRADE,
    copy_rows,
    read_columns,
    storable,
    storable_int,
)
from storage.sqlite import SQLiteStore
from storage.sqlite_source import SQLiteSource, translate

CHUNK_ROWS = 10_000

Progress = Callable[[float], None]
_Row = tuple[Any, ...]


class Receipt(msgspec.Struct, frozen=True):
    """What a copy holds: rows by table, and the sha256 of all books in order, the same read from either side.

    `left_out` are rows of epochs that the file knows nothing of, which no reader serves.
    """

    source: str
    database: str
    rows: dict[str, int]
    epochs: int
    left_out: int
    sha256: str
    program: str

    def summary(self) -> str:
        """Return what a person wants to know, in one line."""
        rows = ", ".join(f"{count} {name}" for name, count in self.rows.items() if count)
        left_out = f", {self.left_out} rows of unknown epochs left out" if self.left_out else ""
        return (
            f"{self.source}: {rows or 'no rows'} in {self.epochs} epochs copied to {self.database} and found equal"
            f"{left_out}, sha256 of the books {self.sha256}"
        )


def migrate(path: Path | str, url: str, progress: Progress | None = None) -> Receipt:
    """Copy a database, verify the copy, and return the receipt; call it again after whatever came between.

    No collector may write to the file meanwhile. `progress` is called with the fraction done. Raises what
    `SQLiteSource` and `SQLiteStore.open` raise for the file, what `PostgresStore.write` raises for the server, and
    `StorageCorrupt` where the copy does not equal the file.
    """
    path = Path(path)
    SQLiteSource(path).close()  # says clearly what is wrong with it, and that a file which is not there is not made
    file, store = SQLiteStore(path), PostgresStore(url)
    try:
        file.open()  # takes the collector's lock, brings the schema up to date
        store.check()
        with closing(sqlite3.connect(path, isolation_level=None)) as lite:
            return _Copy(lite, store, path.name, progress or (lambda fraction: None)).run()
    except sqlite3.Error as error:
        raise translate(error, path) from None
    finally:
        store.release()
        file.release()


class _Epoch(NamedTuple):
    file_id: int
    id: int
    uid: str
    number: int
    opened_us: int


class _Table(NamedTuple):
    # How the rows of a table go over: the columns it is read by, all columns with their types, and which row stays
    # where one is there already. Columns called as a table hold ids of its rows.
    key: tuple[str, ...]
    columns: dict[str, str]
    conflict: str = "ON CONFLICT DO NOTHING"


_TABLES = {
    **{table.name: _Table(table.key, table.columns, table.conflict) for table in (TRADE, TICKER, CANDLE)},
    # Without their ids, which the server gives out anew. They rise, so that a row is never behind the position.
    "rejected": _Table(
        ("id",), read_columns("run:int4 exchange:text market:text received_us:int8 reason:text frame:bytea"), ""
    ),
    "event": _Table(("id",), read_columns("run:int4 time_us:int8 level:text tag:text text:text"), ""),
}
# What, besides the key, must be alike where a row is there already: a trade is the same whoever heard it, and a candle
# may have been replaced since.
_ALIKE = {
    "trade": ("side", "price", "volume"),
    "ticker": ("venue_us", "last", "bid", "ask", "volume"),
    "candle": (),
}
# Each row is looked up by its key: a join of another kind would read every day there is.
_LOOK_UP = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"

_FEEDS = """
SELECT f.id, x.name, m.symbol, m.currency, f.channel
FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
"""
_RUNS = "SELECT id, uid, collector_id, version, started_us, alive_us, batch, closed_us, epoch_base FROM run ORDER BY id"
_NEW_RUN = """
INSERT INTO run (uid, collector_id, version, started_us, alive_us) VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_END_RUN = """
UPDATE run SET batch = greatest(batch, %s), alive_us = greatest(alive_us, %s), closed_us = coalesce(closed_us, %s)
WHERE uid = %s
"""
_EPOCHS = "SELECT id, run, feed, transport, depth, verdict, unit, opened_us FROM epoch WHERE id > ? ORDER BY id LIMIT ?"
_NEW_EPOCH = """
INSERT INTO epoch (run, number, feed, transport, depth, verdict, unit, opened_us)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (run, number) DO NOTHING
"""
_ROWS = """
SELECT id >> 24, id & 16777215, at_us, lag_us, sequence, flags, bids, asks FROM book WHERE id > ? ORDER BY id LIMIT ?
"""
_ROWS_OF_EPOCH = _ROWS.replace("id > ?", "id > ? AND id < ?")
_LEDGER = """
SELECT c.epoch, c.from_us, c.heard_until_us, c.confirmed_until_us, c.frames, c.reason, e.ended_us, e.reason
FROM coverage AS c JOIN epoch AS e ON e.id = c.epoch WHERE c.epoch > ? ORDER BY c.epoch LIMIT ?
"""
# What the server knows of an epoch already came later, out of the spool.
_NEW_COVERAGE = """
INSERT INTO coverage AS c (epoch, from_us, heard_until_us, confirmed_until_us, frames, reason)
VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (epoch) DO UPDATE SET
    from_us = least(c.from_us, excluded.from_us), reason = coalesce(c.reason, excluded.reason),
    heard_until_us = CASE WHEN c.reason IS NULL THEN greatest(c.heard_until_us, excluded.heard_until_us)
                          ELSE c.heard_until_us END,
    confirmed_until_us = CASE WHEN c.reason IS NULL THEN greatest(c.confirmed_until_us, excluded.confirmed_until_us)
                              ELSE c.confirmed_until_us END,
    frames = greatest(c.frames, excluded.frames)
"""
_END_EPOCH = "UPDATE epoch SET ended_us = coalesce(ended_us, %s), reason = coalesce(reason, %s) WHERE id = %s"
_STATE = "SELECT count(*), coalesce(sum(batch), 0), coalesce(max(alive_us), 0) FROM run"
_POSITION = "SELECT position, rows FROM migrated WHERE source = %s AND name = %s"
_MOVE = """
INSERT INTO migrated AS m (source, name, position, rows) VALUES (%s, %s, %s, %s)
ON CONFLICT (source, name) DO UPDATE SET position = excluded.position, rows = m.rows + excluded.rows
"""
_START_AGAIN = """
DELETE FROM migrated WHERE source = %s AND name NOT IN ('rejected', 'event')
AND EXISTS (SELECT FROM migrated WHERE source = %s AND name = 'run' AND position <> %s)
"""
_COPIED = """
SELECT n, received_us, venue_us, sequence, flags, bids, asks FROM book
WHERE epoch = %s AND n BETWEEN %s AND %s AND received_us BETWEEN %s AND %s ORDER BY n LIMIT %s
"""


class _Span:
    # The smallest and the largest of some numbers.
    def __init__(self) -> None:
        self.first, self.last = 1 << 62, -(1 << 62)

    def add(self, number: int) -> None:
        self.first, self.last = min(self.first, number), max(self.last, number)


class _Copy:
    def __init__(self, lite: sqlite3.Connection, store: PostgresStore, name: str, progress: Progress) -> None:
        self._lite, self._store, self._name, self._progress = lite, store, name, progress
        self._runs = lite.execute(_RUNS).fetchall()
        self._source = storable(self._runs[0][1]) if self._runs else ""
        self._maps: dict[str, Mapping[int, int]] = {}  # table to (id in the file to id on the server)
        self._epochs: list[_Epoch] = []
        self._days: set[tuple[str, int]] = set()
        self._total = 2 * self._count("book") + sum(map(self._count, _TABLES)) + 1
        self._done = 0

    def run(self) -> Receipt:
        self._store.in_transaction(self._begin)
        self._open_epochs()
        copied = {name: self._copy_table(name, table) for name, table in _TABLES.items()}
        self._copy_books()
        books, left_out, sha256 = self._compare_books()
        for name, count in copied.items():
            if count < self._count(name):
                raise StorageCorrupt(f"{self._name} has {self._count(name)} rows in {name}, {count} were copied")
        self._close_ledger()
        self._progress(1.0)
        return Receipt(
            self._name,
            self._store.address.shown,
            {"book": books, **copied},
            len(self._epochs),
            left_out,
            sha256,
            f"exchange-collector {collector.__version__}",
        )

    # --- names ------------------------------------------------------------------------------------------------------

    def _begin(self, db: Session) -> None:
        # Where the file was written to since a part of it was copied, all of it is copied again.
        state = orjson.dumps(self._lite.execute(_STATE).fetchone()).decode()
        db.execute(_START_AGAIN, (self._source, self._source, state))
        db.execute(_MOVE, (self._source, "run", state, 0))
        self._name_feeds_and_runs(db)

    def _name_feeds_and_runs(self, db: Session) -> None:
        keys: dict[int, FeedKey] = {
            feed: (storable(exchange), storable(symbol), storable(currency), storable(channel))
            for feed, exchange, symbol, currency, channel in self._lite.execute(_FEEDS)
        }
        known = self._store.know_feeds(db, set(keys.values()))
        self._maps["feed"] = {feed: known[key] for feed, key in keys.items()}
        runs = {file_id: tuple(map(_value, facts)) for file_id, *facts in self._runs}
        db.cursor().executemany(_NEW_RUN, [facts[:5] for facts in runs.values()])
        uids = [facts[0] for facts in runs.values()]
        ids: dict[str, int] = dict(db.execute("SELECT uid, id FROM run WHERE uid = ANY(%s)", (uids,)).fetchall())
        self._maps["run"] = {file_id: ids[facts[0]] for file_id, facts in runs.items()}

    def _open_epochs(self) -> None:
        bases = {run[0]: (storable(run[1]), run[8]) for run in self._runs}
        for page in self._pages(_EPOCHS):
            self._store.in_transaction(partial(self._open_some, page=page, bases=bases))
        self._maps["epoch"] = {epoch.file_id: epoch.id for epoch in self._epochs}

    def _open_some(self, db: Session, page: list[_Row], bases: Mapping[int, tuple[str, int]]) -> None:
        feeds, runs = self._maps["feed"], self._maps["run"]
        rows = [
            (runs[run], file_id - bases[run][1], feeds[feed], *map(_value, facts))
            for file_id, run, feed, *facts in page
        ]
        db.cursor().executemany(_NEW_EPOCH, rows)
        numbers = [row[1] for row in rows]
        sql = "SELECT run, number, id FROM epoch WHERE run = ANY(%s) AND number = ANY(%s)"
        ids: dict[Any, int] = {
            (run, n): epoch for run, n, epoch in db.execute(sql, (list({row[0] for row in rows}), numbers))
        }
        for (file_id, run, *_, opened_us), row in zip(page, rows, strict=True):
            self._epochs.append(_Epoch(file_id, ids[row[:2]], bases[run][0], row[1], opened_us))

    # --- rows -------------------------------------------------------------------------------------------------------

    def _copy_table(self, name: str, table: _Table) -> int:
        width = len(table.columns)
        key, columns = ", ".join(table.key), ", ".join(table.columns)
        marks = ", ".join("?" * len(table.key))
        maps = [self._maps.get(column) for column in table.columns]
        sql = f"SELECT {columns}, {key} FROM {name} WHERE ({key}) > ({marks}) ORDER BY {key} LIMIT ?"
        position, copied = self._position(name, (-(1 << 62),) * len(table.key))
        self._step(copied)
        while page := self._lite.execute(sql, (*position, CHUNK_ROWS)).fetchall():
            position = list(page[-1][width:])
            rows = [
                tuple(
                    _value(value) if map_ is None else map_.get(value, 0)
                    for value, map_ in zip(row[:width], maps, strict=True)
                )
                for row in page
            ]
            self._store.in_transaction(partial(self._copy_chunk, name=name, table=table, rows=rows, position=position))
            copied += len(page)
            self._step(len(page))
        return copied

    def _copy_chunk(self, db: Session, name: str, table: _Table, rows: list[_Row], position: Sequence[object]) -> None:
        columns = ", ".join(table.columns)
        if name in TABLES:
            time = list(table.columns).index(TABLES[name])
            self._make_days(db, name, (row[time] for row in rows))
        db.execute(f"CREATE TEMPORARY TABLE stage ON COMMIT DROP AS SELECT {columns} FROM {name} LIMIT 0")
        copy_rows(db, f"COPY stage ({columns}) FROM STDIN (FORMAT BINARY)", list(table.columns.values()), rows)
        db.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM stage {table.conflict}")
        if name in _ALIKE:
            self._compare_chunk(db, name, table, len(rows))
        db.execute(_MOVE, (self._source, name, orjson.dumps(position).decode(), len(rows)))

    def _compare_chunk(self, db: Session, name: str, table: _Table, count: int) -> None:
        key = [f"t.{column} = s.{column}" for column in table.key]
        alike = [f"t.{column} IS NOT DISTINCT FROM s.{column}" for column in _ALIKE[name]]
        db.execute(_LOOK_UP)
        found = db.execute(
            f"SELECT count(*) FROM stage AS s JOIN {name} AS t ON {' AND '.join(key + alike)}"
        ).fetchone()
        if found is None or found[0] != count:
            raise StorageCorrupt(f"{self._store.address.shown}: {name} does not hold the rows of {self._name}")

    def _copy_books(self) -> None:
        epochs = {epoch.file_id: epoch for epoch in self._epochs}
        (position,), copied = self._position("book", (-1,))
        self._step(copied)
        while page := self._lite.execute(_ROWS, (position, CHUNK_ROWS)).fetchall():
            position = page[-1][0] << 24 | page[-1][1]
            rows = [(epochs[row[0]].id, *_stored(epochs[row[0]], row[1:])) for row in page if row[0] in epochs]
            self._store.in_transaction(partial(self._copy_some_books, rows=rows, position=position, count=len(page)))
            self._step(len(page))

    def _copy_some_books(self, db: Session, rows: list[_Row], position: int, count: int) -> None:
        self._make_days(db, "book", (row[2] for row in rows))
        copy_rows(db, COPY_BOOK, BOOK_TYPES, rows)
        db.execute(INSERT_BOOK)
        db.execute(_MOVE, (self._source, "book", orjson.dumps([position]).decode(), count))

    def _make_days(self, db: Session, table: str, times_us: Iterable[int]) -> None:
        for day in {time_us // DAY_US for time_us in times_us}:
            if (table, day) not in self._days:
                make_day(db, table, day)
                self._days.add((table, day))

    # --- comparing --------------------------------------------------------------------------------------------------

    def _compare_books(self) -> tuple[int, int, str]:
        # Returns how many rows were compared, how many the file has besides, and their sha256.
        ours, theirs = hashlib.sha256(), hashlib.sha256()
        count = 0
        for epoch in self._epochs:
            numbers, times = _Span(), _Span()
            for row in self._file_rows(epoch):
                ours.update(_line(epoch, row))
                numbers.add(row[0])
                times.add(row[1])
                count += 1
            for row in self._server_rows(epoch, numbers, times):
                theirs.update(_line(epoch, row))
            if ours.digest() != theirs.digest():
                raise StorageCorrupt(
                    f"{self._store.address.shown}: epoch {epoch.number} of run {epoch.uid} does not hold the books of "
                    f"{self._name}"
                )
        return count, self._count("book") - count, ours.hexdigest()

    def _file_rows(self, epoch: _Epoch) -> Iterator[_Row]:
        position, end = (epoch.file_id << 24) - 1, (epoch.file_id + 1) << 24
        while page := self._lite.execute(_ROWS_OF_EPOCH, (position, end, CHUNK_ROWS)).fetchall():
            yield from (_stored(epoch, row[1:]) for row in page)
            position = epoch.file_id << 24 | page[-1][1]
            self._step(len(page))

    def _server_rows(self, epoch: _Epoch, numbers: _Span, times: _Span) -> Iterator[_Row]:
        # Between the first and the last that the file has: more than these may be there.
        first = numbers.first
        while first <= numbers.last:
            values = epoch.id, first, numbers.last, times.first, times.last
            page = self._store.in_transaction(partial(_ask, values=values))
            if not page:
                return
            yield from page
            first = page[-1][0] + 1

    # --- the ledger -------------------------------------------------------------------------------------------------

    def _close_ledger(self) -> None:
        for page in self._pages(_LEDGER):
            self._store.in_transaction(partial(self._close_some, page=page))
        ends = [
            (batch, alive_us, closed_us, storable(uid)) for _, uid, _, _, _, alive_us, batch, closed_us, _ in self._runs
        ]
        self._store.in_transaction(lambda db: db.cursor().executemany(_END_RUN, ends))

    def _close_some(self, db: Session, page: list[_Row]) -> None:
        ids = self._maps["epoch"]
        ends = [(ended_us, _value(reason), ids[epoch]) for epoch, *_, ended_us, reason in page if ended_us is not None]
        db.cursor().executemany(_END_EPOCH, ends)
        db.cursor().executemany(_NEW_COVERAGE, [(ids[epoch], *map(_value, facts)) for epoch, *facts, _, _ in page])

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _pages(self, sql: str) -> Iterator[list[_Row]]:
        position = -1
        while page := self._lite.execute(sql, (position, CHUNK_ROWS)).fetchall():
            yield page
            position = page[-1][0]

    def _position(self, name: str, start: Sequence[object]) -> tuple[list[Any], int]:
        row = self._store.in_transaction(lambda db: db.execute(_POSITION, (self._source, name)).fetchone())
        return (list(start), 0) if row is None else (orjson.loads(row[0]), row[1])

    def _count(self, table: str) -> int:
        return int(self._lite.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _step(self, rows: int) -> None:
        self._done += rows
        self._progress(min(self._done / self._total, 0.999))


def _value(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else storable_int(value) if isinstance(value, int) else value


def _stored(epoch: _Epoch, row: _Row) -> _Row:
    # A row of the file as it is on the server, without the epoch.
    n, at_us, lag_us, sequence, flags, bids, asks = row
    received_us = epoch.opened_us + at_us
    venue_us = None if lag_us is None else _whole(received_us - lag_us)
    return n, received_us, venue_us, _whole(sequence), flags, storable(bids), storable(asks)


def _whole(number: int | float | None) -> int | None:
    # SQLite makes a float of what 64 bits do not hold.
    return storable_int(number) if isinstance(number, int) else None


def _ask(db: Session, values: tuple[int, ...]) -> list[_Row]:
    return db.execute(_COPIED, (*values, CHUNK_ROWS)).fetchall()


def _line(epoch: _Epoch, row: _Row) -> bytes:
    return orjson.dumps((epoch.uid, epoch.number, *row), option=orjson.OPT_APPEND_NEWLINE)
