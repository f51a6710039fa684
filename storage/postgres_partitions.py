"""The days of a partitioned table in PostgreSQL: `book_20261121` holds what was received on that UTC day. Trades are
put down by the exchange's time, candles by their beginning.

A day is made in the caller's transaction, under a lock that collectors of one schema share. What stands in the default
partition for that day moves over, so that a day that could not be made in time is made later.
"""

from datetime import UTC, datetime
from typing import Final

from storage.postgres_database import LOCK_PARTITIONS, Session, lock

DAY_US: Final = 86_400_000_000
TABLES = {"book": "received_us", "trade": "venue_us", "ticker": "received_us", "candle": "open_us"}

_MOVED_ROWS_MAX = 100_000  # more than that is not moved while collectors wait: the day stays where it is
_DAYS = """
SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %s::regclass AND c.relname ~ %s ORDER BY c.relname
"""


def partition(table: str, day: int) -> str:
    """Return the name of a day's partition; `day` counts from 1970."""
    return f"{table}_{datetime.fromtimestamp(day * 86_400, UTC):%Y%m%d}"


def days(db: Session, table: str) -> set[int]:
    """Return the days that have a partition of their own."""
    rows = db.execute(_DAYS, (table, f"^{table}_[0-9]{{8}}$")).fetchall()
    dates = (datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC) for (name,) in rows)
    return {int(date.timestamp()) // 86_400 for date in dates}


def make_day(db: Session, table: str, day: int) -> bool:
    """Make the partition of a day if it is missing; return whether it is there now.

    It is not where the default partition holds too much of that day.
    """
    lock(db, LOCK_PARTITIONS)
    if day in days(db, table):
        return True
    name, column = partition(table, day), TABLES[table]
    between = day * DAY_US, (day + 1) * DAY_US
    # Before anything is counted: until the new partition is attached nobody may add to that day in the default one.
    db.execute(f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE")
    some = db.execute(
        f"SELECT 1 FROM {table}_default WHERE {column} >= %s AND {column} < %s LIMIT {_MOVED_ROWS_MAX + 1}", between
    ).rowcount
    if some > _MOVED_ROWS_MAX:
        return False
    db.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
    if some:
        db.execute(
            f"WITH moved AS (DELETE FROM {table}_default WHERE {column} >= %s AND {column} < %s RETURNING *) "
            f"INSERT INTO {name} SELECT * FROM moved",
            between,
        )
    db.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({between[0]}) TO ({between[1]})")
    return True
