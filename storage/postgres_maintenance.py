"""Keeping house in PostgreSQL: days made ahead of time, whole days dropped, side tables trimmed.

The ledger goes first: at no moment, whatever dies, does it claim time whose rows are gone. What is left of an epoch
begins with a complete book; where that one stands in a day that is dropped, it moves to the default partition with all
that follows it. Several collectors may do this at once; the shortest `retention_days` counts.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from collector.clock import Clock
from collector.records import ORDERBOOK
from storage.postgres import DAYS_AHEAD
from storage.postgres_database import LOCK_PARTITIONS, Session, lock
from storage.postgres_partitions import DAY_US, TABLES, days, make_day, partition
from storage.rounds import Rounds

STEP_ROWS = 5_000
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"  # who waits for a whole table makes others wait behind it

_T = TypeVar("_T")

# A run is over when it was closed, or when the same collector began another.
_OLD_EPOCHS = """
SELECT e.id, f.channel, c.from_us, c.heard_until_us,
       e.ended_us IS NOT NULL OR r.closed_us IS NOT NULL
       OR EXISTS (SELECT FROM run AS later WHERE later.collector_id = r.collector_id AND later.id > r.id)
FROM epoch AS e
JOIN run AS r ON r.id = e.run
JOIN feed AS f ON f.id = e.feed
JOIN coverage AS c ON c.epoch = e.id
WHERE c.from_us < %s
ORDER BY e.id
"""
_FIRST_ROW = """
SELECT n, received_us, flags & 1 FROM book WHERE epoch = %s AND received_us BETWEEN %s AND %s ORDER BY n LIMIT 1
"""
_KEYFRAME = """
SELECT n, received_us FROM book WHERE epoch = %s AND received_us BETWEEN %s AND %s AND flags & 1 = 1
ORDER BY n DESC LIMIT 1
"""
_CLEAR_DEFAULT = """
DELETE FROM book_default WHERE ctid IN
    (SELECT b.ctid FROM book_default AS b LEFT JOIN coverage AS c ON c.epoch = b.epoch
     WHERE b.received_us < %s AND (c.epoch IS NULL OR b.received_us < c.from_us) LIMIT %s)
"""


class _OldEpoch(NamedTuple):
    id: int
    channel: str
    from_us: int
    heard_us: int
    is_over: bool


class Store(Protocol):
    """What is needed of a store to keep house in it."""

    def in_transaction(self, work: Callable[[Session], _T]) -> _T:
        """Run work in a transaction of its own; raises `StorageError` where nothing of it happened."""


class PostgresHousekeeping(Rounds):
    """Makes partitions ahead of time and deletes what is too old or too much, as `Housekeeping` does for SQLite."""

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
        yield from make_days(self._store, now_us // DAY_US)
        if self._retention_days:
            yield from delete_days_before(self._store, now_us // DAY_US - self._retention_days)
        yield from trim(self._store, "rejected", "received_us", "frame", now_us, *self._rejected)
        yield from trim(self._store, "event", "time_us", "text", now_us, *self._event)


def make_days(store: Store, today: int) -> Iterator[int]:
    """Make the partitions of `today` (days since 1970) and of the days after it."""
    for table in TABLES:
        for day in range(today, today + DAYS_AHEAD + 1):
            store.in_transaction(partial(_make_day, table=table, day=day))
            yield 0


def _make_day(db: Session, table: str, day: int) -> None:
    db.execute(_LOCK_TIMEOUT)
    make_day(db, table, day)


# --- days ------------------------------------------------------------------------------------------------------------


def delete_days_before(store: Store, day: int) -> Iterator[int]:
    """Delete all market data of the UTC days before `day` (days since 1970); yield about how many rows went.

    Books are judged by when they were received, trades, tickers and candles by their own key. An epoch that reaches
    into the kept days keeps its rows from the first keyframe of these days on, or, where none of them opens with one,
    from the keyframe before. Its coverage begins there; an epoch that is over before them goes altogether.
    """
    before_us = day * DAY_US
    for old in store.in_transaction(lambda db: db.execute(_OLD_EPOCHS, (before_us,)).fetchall()):
        yield store.in_transaction(partial(_trim_epoch, old=_OldEpoch(*old), before_us=before_us))
    for table in TABLES:
        for old_day in sorted(store.in_transaction(partial(days, table=table))):
            if old_day < day:
                yield store.in_transaction(partial(_drop_day, table=table, day=old_day))
    yield from _delete_some(store, _CLEAR_DEFAULT, before_us)
    for table, column in TABLES.items():
        if table != "book":
            odd = f"{table}_default"
            sql = f"DELETE FROM {odd} WHERE ctid IN (SELECT ctid FROM {odd} WHERE {column} < %s LIMIT %s)"
            yield from _delete_some(store, sql, before_us)


def _trim_epoch(db: Session, old: _OldEpoch, before_us: int) -> int:
    # Let the ledger claim no more of an epoch than will be kept.
    if old.is_over and old.heard_us < before_us:
        db.execute("DELETE FROM coverage WHERE epoch = %s", (old.id,))
        return db.execute("DELETE FROM epoch WHERE id = %s", (old.id,)).rowcount
    from_us = min(before_us, old.heard_us)
    if old.channel == ORDERBOOK:
        row = db.execute(_FIRST_ROW, (old.id, before_us, max(before_us, old.heard_us) + DAY_US)).fetchone()
        if row is None or not row[2]:
            row = db.execute(_KEYFRAME, (old.id, old.from_us, before_us - 1)).fetchone()
        if row is None:
            return 0  # nothing of it can be rebuilt, whatever is kept
        from_us = row[1]
    db.execute("UPDATE coverage SET from_us = greatest(from_us, %s) WHERE epoch = %s", (from_us, old.id))
    return 0


def _drop_day(db: Session, table: str, day: int) -> int:
    db.execute(_LOCK_TIMEOUT)
    lock(db, LOCK_PARTITIONS)
    name = partition(table, day)
    row = db.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%s)", (name,)).fetchone()
    if row is None:
        return 0  # another collector was faster
    db.execute(f"ALTER TABLE {table} DETACH PARTITION {name}")
    if table == "book":
        # What the ledger still claims goes to the default partition. From here on nobody can add to the day.
        claimed = db.execute("SELECT epoch, from_us FROM coverage WHERE from_us < %s", ((day + 1) * DAY_US,)).fetchall()
        for epoch in claimed:
            db.execute(f"INSERT INTO book SELECT * FROM {name} WHERE epoch = %s AND received_us >= %s", epoch)
    db.execute(f"DROP TABLE {name}")
    return max(int(row[0]), 0)  # the server's own estimate; counting would read all of it


def _delete_some(store: Store, sql: str, *values: object) -> Iterator[int]:
    while deleted := store.in_transaction(lambda db: db.execute(sql, (*values, STEP_ROWS)).rowcount):
        yield deleted


# --- side tables -----------------------------------------------------------------------------------------------------


def trim(store: Store, table: str, time: str, size: str, now_us: int, days_kept: int, bytes_max: int) -> Iterator[int]:
    """Delete rows of `rejected` or `event` that are older than `days_kept` or beyond `bytes_max`, the oldest first."""

    def weigh(db: Session) -> list[tuple[int, int, int]]:
        return db.execute(
            f"SELECT id, {time}, octet_length({size}) FROM {table} WHERE id < %s ORDER BY id DESC LIMIT %s",
            (oldest_kept, STEP_ROWS),
        ).fetchall()

    # From the newest to the oldest until the first that is too old or too much: it and all before it go.
    before_us = now_us - days_kept * DAY_US
    oldest_kept = 1 << 62
    left = bytes_max
    while rows := store.in_transaction(weigh):
        for row_id, time_us, row_bytes in rows:
            left -= row_bytes
            if time_us < before_us or left < 0:
                sql = f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id <= %s ORDER BY id LIMIT %s)"
                yield from _delete_some(store, sql, row_id)
                return
            oldest_kept = row_id
        yield 0
