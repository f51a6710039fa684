"""An SQLite database as the reader needs it; the file is never made and never written."""

import sqlite3
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError
from collector.records import CANDLES, ROWS_MAX, TICKER
from storage.source import PAGE_BYTES, PAGE_ROWS, TIMES, CandleTuple, Row, TickerTuple, TradeTuple
from storage.sqlite import APPLICATION_ID, SCHEMA_VERSION
from storage.timeline import Epoch, StoredFeed, told

_EPOCHS = """
SELECT e.id, x.name, m.symbol, m.currency, f.channel, r.collector_id, e.transport, e.depth, e.unit, e.verdict,
       e.opened_us, coalesce(c.from_us, e.opened_us), coalesce(c.heard_until_us, e.opened_us),
       coalesce(c.confirmed_until_us, e.opened_us), coalesce(c.frames, 0), e.ended_us, coalesce(e.reason, c.reason),
       r.closed_us IS NOT NULL OR r.id < (SELECT max(id) FROM run)
FROM epoch AS e
JOIN run AS r ON r.id = e.run
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
LEFT JOIN coverage AS c ON c.epoch = e.id
"""
WITH_UNITS = 3  # version of the schema that has `epoch.unit`
_OF_FEED = "WHERE f.id = ?"
_OF_RUN = "WHERE r.uid = ? AND e.id = r.epoch_base + ? AND e.run = r.id"
_FEEDS = """
SELECT f.id, x.name, m.symbol, m.currency, f.channel
FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
ORDER BY x.name, m.symbol, m.currency, f.channel
"""
_ROWS = """
SELECT id & 16777215, at_us, lag_us, sequence, flags, bids, asks FROM book WHERE id BETWEEN ? AND ? ORDER BY id
"""
_TIMES = "SELECT id & 16777215, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_KEYFRAME_BEFORE = "SELECT max(id) & 16777215 FROM book WHERE flags & 1 AND id BETWEEN ? AND ?"
_KEYFRAME_AFTER = "SELECT at_us FROM book WHERE flags & 1 AND id BETWEEN ? AND ? ORDER BY id LIMIT 1"
_FIRST = "SELECT id, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1"
_LAST = "SELECT id, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
_TRADES = """
SELECT venue_us, trade_id, received_us, epoch, side, price, volume FROM trade
WHERE feed = :feed AND venue_us BETWEEN :from_us AND :until_us
  AND (venue_us, length(trade_id), trade_id) > (:after_us, length(:after_id), :after_id)
ORDER BY venue_us, length(trade_id), trade_id LIMIT :limit
"""
_TICKERS = """
SELECT received_us, venue_us, last, bid, ask, volume FROM ticker
WHERE feed = (SELECT feed FROM epoch WHERE id = ?) AND received_us BETWEEN ? AND ? AND epoch = ?
ORDER BY received_us LIMIT ?
"""
_CANDLES = """
SELECT open_us, open, high, low, close, volume, closed, received_us, epoch FROM candle
WHERE feed = ? AND interval_s = ? AND open_us BETWEEN ? AND ? ORDER BY open_us LIMIT ?
"""
_TRADE_TIMES = """
SELECT venue_us, received_us FROM trade
WHERE feed = (SELECT feed FROM epoch WHERE id = ?) AND venue_us BETWEEN ? AND ? ORDER BY venue_us LIMIT ?
"""
_TICKER_TIMES = """
SELECT received_us, received_us FROM ticker
WHERE feed = (SELECT feed FROM epoch WHERE id = ?) AND received_us BETWEEN ? AND ? AND epoch = ?
ORDER BY received_us LIMIT ?
"""
_CANDLE_TIMES = """
SELECT open_us, received_us FROM candle
WHERE feed = (SELECT feed FROM epoch WHERE id = ?) AND interval_s = 60 AND open_us BETWEEN ? AND ?
ORDER BY open_us LIMIT ?
"""


class SQLiteSource:
    """A database file, opened for reading, also while it is being written; see `storage.source.Source`.

    Raises `StorageError` where the file is missing or can't be opened, `NotOurs` where it is no database, not one of
    this program, or from a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown, self.name = str(path), path.name
        self._epochs_sql = _EPOCHS
        _check_file(path)
        try:
            uri = path.resolve().as_uri() + "?mode=ro"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
        except sqlite3.Error as error:
            raise StorageError(f"{path} can't be opened: {error}") from None
        try:
            self._check_ours()
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def feeds(self) -> list[StoredFeed]:
        """Return every feed, in order of exchange, market and channel."""
        return [StoredFeed(*row) for row in self._all(_FEEDS)]

    def epochs(self, feed: int) -> list[Epoch]:
        """Return what the ledger says of a feed."""
        return [told(row) for row in self._all(self._epochs_sql + _OF_FEED, (feed,))]

    def epoch_of(self, run_uid: str, number: int) -> Epoch | None:
        """Return the epoch that a run counts as its `number`; None where it is not there."""
        rows = self._all(self._epochs_sql + _OF_RUN, (run_uid, number))
        return told(rows[0]) if rows else None

    def rows(self, epoch: Epoch, first: int) -> list[Row]:
        """Return a page of rows in order, from number `first` on."""
        page: list[Row] = []
        held_bytes = 0
        try:
            cursor = self.connection.execute(_ROWS, ((epoch.id << 24) + first, _last_key(epoch)))
            while len(page) < PAGE_ROWS and held_bytes < PAGE_BYTES:
                some = cursor.fetchmany(250)
                if not some:
                    break
                page += some
                held_bytes += sum(len(row[5] or "") + len(row[6] or "") for row in some)
            cursor.close()  # ends the read transaction
        except sqlite3.Error as error:
            raise translate(error, self.path) from None
        return page

    def times(self, epoch: Epoch, first: int) -> list[tuple[int, int]]:
        """Return number and time of up to `TIMES` rows in order, from number `first` on."""
        return self._all(_TIMES, ((epoch.id << 24) + first, _last_key(epoch), TIMES))

    def last(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest row received at `at_us` or before."""
        try:
            key = last_key(self.connection, epoch.id, at_us)
        except sqlite3.Error as error:
            raise translate(error, self.path) from None
        return None if key is None else key & ROWS_MAX

    def keyframe(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest keyframe received at `at_us` or before."""
        newest = self.last(epoch, at_us)
        if newest is None:
            return None
        ((found,),) = self._all(_KEYFRAME_BEFORE, (epoch.id << 24, epoch.id << 24 | newest))
        return None if found is None else int(found)

    def keyframe_after(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the time of the first keyframe received after `at_us`."""
        newest = self.last(epoch, at_us) or 0
        found = self._all(_KEYFRAME_AFTER, ((epoch.id << 24) + newest + 1, _last_key(epoch)))
        return int(found[0][0]) if found else None

    def trades(self, feed: int, from_us: int, until_us: int, after: tuple[int, str] | None) -> list[TradeTuple]:
        """Return a page of the trades of a time, behind the one at `after`."""
        after_us, after_id = after or (from_us - 1, "")
        values = {"feed": feed, "from_us": max(from_us, after_us), "until_us": until_us, "limit": PAGE_ROWS}
        return self._all(_TRADES, values | {"after_us": after_us, "after_id": after_id})

    def tickers(self, epoch: Epoch, from_us: int, until_us: int) -> list[TickerTuple]:
        """Return a page of the tickers of an epoch received then."""
        return self._all(_TICKERS, (epoch.id, from_us, until_us, epoch.id, PAGE_ROWS))

    def candles(self, feed: int, interval_s: int, from_us: int, until_us: int) -> list[CandleTuple]:
        """Return a page of the candles of one length that begin then."""
        return self._all(_CANDLES, (feed, interval_s, from_us, until_us, PAGE_ROWS))

    def stream_times(self, epoch: Epoch, from_us: int, until_us: int) -> list[tuple[int, int]]:
        """Return a page of rows of an epoch's feed as (time, received)."""
        if epoch.channel == TICKER:
            return self._all(_TICKER_TIMES, (epoch.id, from_us, until_us, epoch.id, TIMES))
        if epoch.channel == CANDLES:
            return self._all(_CANDLE_TIMES, (epoch.id, from_us, until_us, TIMES))
        return self._all(_TRADE_TIMES, (epoch.id, from_us, until_us, TIMES))

    def _all(self, sql: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        try:
            return self.connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self.path) from None

    def _check_ours(self) -> None:
        try:
            (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise _no_database(self.path) from None
            raise translate(error, self.path) from None
        if application != APPLICATION_ID:
            raise NotOurs(f"{self.path} is a database of another program; name one the collector wrote")
        ((version,),) = self._all("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise NotOurs(
                f"{self.path} is from a newer collector (schema {version}, this one knows {SCHEMA_VERSION}); "
                "read it with that version"
            )
        if not version:
            raise NotOurs(f"{self.path} holds no tables yet; the collector that made it has not finished starting")
        if version < WITH_UNITS:
            self._epochs_sql = _EPOCHS.replace("e.unit", "NULL")


def last_key(db: sqlite3.Connection, epoch: int, at_us: int) -> int | None:
    """Return the key of the newest row of an epoch received `at_us` or less after it opened, None where there is none.

    Times rise with the keys, so that it is found by halving, without an index on times.
    """
    low, high = epoch << 24, epoch << 24 | ROWS_MAX
    first = db.execute(_FIRST, (low, high)).fetchone()
    last = db.execute(_LAST, (low, high)).fetchone()
    if first is None or first[1] > at_us:
        return None
    if last[1] <= at_us:
        return int(last[0])
    found, beyond = int(first[0]), int(last[0])
    while beyond - found > 1:
        middle = (found + beyond) // 2
        row_id, row_at_us = db.execute(_FIRST, (middle, last[0])).fetchone()
        if row_at_us <= at_us:
            found = row_id
        else:
            beyond = middle
    return found


def translate(error: sqlite3.Error, path: Path) -> StorageError:
    """Return what an error of SQLite while reading means to the caller."""
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StorageCorrupt(f"{path}: {error}; restore a backup")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy(f"{path}: {error}; try again")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return StorageError(f"{path}: {error}; a reader needs to write beside the file: run it as the collector's user")
    return StorageError(f"{path}: {error}")


def _check_file(path: Path) -> None:
    # Only looked at, never opened: closing a file gives up the locks that SQLite may hold on it elsewhere in this
    # process.
    try:
        state = path.stat()
    except FileNotFoundError:
        raise StorageError(f"there is no database at {path}; name the one the collector writes (DB_PATH)") from None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror or error}") from None
    if not stat.S_ISREG(state.st_mode):
        raise StorageError(f"{path} can't be read: it is no file")
    if not state.st_size:
        raise _no_database(path)


def _no_database(path: Path) -> NotOurs:
    return NotOurs(f"{path} is not an SQLite database; name the one the collector writes (DB_PATH)")


def _last_key(epoch: Epoch) -> int:
    return epoch.id << 24 | ROWS_MAX
