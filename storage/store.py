"""What a store is to the writer, whatever database is behind it, and what is handed to it.

A batch belongs to a run and has a number in it. A store commits a batch, its number and the ledger it moves in one
transaction and skips a batch whose number it has: so a batch may be written again after a crash, after a commit whose
outcome nobody knows, or out of the spool, and is there once.
"""

import re
from collections.abc import Container, Iterable, Iterator, Set
from pathlib import Path
from typing import Protocol

import msgspec

from collector.records import BookRow, CandleRow, Delivery, Record, RecordsLost, StreamRow, TickerRow, TradeRow

MarketRow = BookRow | StreamRow
ROWS: frozenset[type] = frozenset((BookRow, TradeRow, TickerRow, CandleRow))  # the kinds of market data


class Run(msgspec.Struct, frozen=True):
    """One start of one collector; `uid` is what a store knows it by."""

    uid: str
    collector_id: str
    version: str
    started_us: int


class Batch(msgspec.Struct, frozen=True):
    """Deliveries that are committed together; `number` counts 1, 2, 3... within the run."""

    run: Run
    number: int
    deliveries: tuple[Delivery, ...]


class Store(Protocol):
    """The writing side of a database, used from one thread at a time.

    Every method raises `StorageError`: `StorageBusy` or `StorageFull` where the same call may succeed later,
    `StorageCorrupt` and `NotOurs` where only a person can help.
    """

    def open(self) -> None:
        """Find out what a person must mend before anything starts, and take what no second collector may have.

        A database that can't be reached, or has no room, is no reason to fail here: the first `write` tries again.
        """

    def write(self, batch: Batch, now_us: int) -> int:
        """Commit all of a batch or none of it; return how many of its records were there already.

        The first batch of a run makes the run known. `now_us` (wall clock) becomes the time the run was last alive.
        """

    def open_epochs(self, run: Run) -> Set[int]:
        """Return the epochs of a run (as its batches number them) that are in the store and have not ended."""

    def close_run(self, run: Run, now_us: int) -> None:
        """Note that a run ended in order; nothing happens where the store does not know it."""

    def size_bytes(self) -> int:
        """Return what the database takes, in bytes."""

    def release(self) -> None:
        """Close everything and give back what `open` took; may be called twice."""


# A candle takes the place of one that is not closed where it is, and of one that is as closed and was not received
# later: so it does not matter in which order two collectors bring theirs. Both databases understand it alike.
REPLACE_CANDLE = """
ON CONFLICT (feed, interval_s, open_us) DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close, volume = excluded.volume,
    closed = excluded.closed, received_us = excluded.received_us, epoch = excluded.epoch
WHERE excluded.closed > candle.closed
   OR (excluded.closed = candle.closed AND excluded.received_us >= candle.received_us)
"""
_INT8 = 1 << 63


# --- what stores share ------------------------------------------------------------------------------------------------


def stretches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut the records of a batch where `RecordsLost` stands among them: each stretch but the first begins with one.

    Within one nothing depends on the order of kinds, but that an epoch opens first and ends last.
    """
    stretch: list[Record] = []
    for record in records:
        if type(record) is RecordsLost and stretch:
            yield stretch
            stretch = []
        stretch.append(record)
    if stretch:
        yield stretch


def sort_out(rows: Iterable[StreamRow], known: Container[int]) -> tuple[dict[type, list[StreamRow]], int]:
    """Return the rows that can be stored, by kind, and how many can't.

    These are of epochs that are not `known`, or have a time in their key that no 64 bits hold, which nobody can mean.
    """
    kinds: dict[type, list[StreamRow]] = {TradeRow: [], TickerRow: [], CandleRow: []}
    left_out = 0
    for row in rows:
        kind = type(row)
        time_us = row.venue_us if kind is TradeRow else row.open_us if kind is CandleRow else 0  # type: ignore[union-attr]
        if row.epoch in known and time_us is not None and -_INT8 <= time_us < _INT8:
            kinds[kind].append(row)
        else:
            left_out += 1
    return kinds, left_out


def not_stored(rows: int) -> str:
    """Return the text of the event that tells of rows which were left out."""
    return f"{rows} rows belong to epochs that were never opened, or to no possible time, and are not stored"


def numbered_sql(folder: Path) -> list[tuple[int, str]]:
    """Return the files of a folder that are called `0001_name.sql` as (number, text), in order."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        number = re.match(r"(\d{4})_", path.name)
        if number:
            found.append((int(number[1]), path.read_text("utf-8")))
    return found
