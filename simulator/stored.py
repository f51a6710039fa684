"""What a store holds, read for the judge: straight from the tables, sharing nothing with the collector's own reader."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_RUNS = "SELECT id, closed_us FROM run ORDER BY id"
_EPOCHS = """
SELECT e.id, e.run, x.name, m.symbol, m.currency, f.channel, e.transport, e.opened_us, e.ended_us, e.reason,
       c.heard_until_us, c.confirmed_until_us, c.frames, c.reason
FROM epoch AS e
JOIN feed AS f ON f.id = e.feed JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
LEFT JOIN coverage AS c ON c.epoch = e.id
ORDER BY e.id
"""
_FEED = "JOIN feed AS f ON f.id = t.feed JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market"
# Of each channel but the book: the row's key, its content and what else the judge asks for.
_STREAMS = {
    "trades": f"""
SELECT x.name, m.symbol, m.currency, t.epoch, t.received_us, t.venue_us, t.trade_id, t.side, t.price, t.volume
FROM trade AS t {_FEED} ORDER BY t.received_us
""",
    "ticker": f"""
SELECT x.name, m.symbol, m.currency, t.epoch, t.received_us, t.venue_us, t.last, t.bid, t.ask, t.volume
FROM ticker AS t {_FEED} ORDER BY t.received_us
""",
    "candles": f"""
SELECT x.name, m.symbol, m.currency, t.epoch, t.received_us, t.interval_s, t.open_us, t.open, t.high, t.low, t.close,
       t.volume, t.closed
FROM candle AS t {_FEED} ORDER BY t.received_us
""",
}
_REJECTED = "SELECT run, exchange, market, frame FROM rejected ORDER BY id"
_SQLITE_ROWS = """
SELECT b.id >> 24, b.id & 16777215, e.opened_us + b.at_us, e.opened_us + b.at_us - b.lag_us, b.sequence, b.flags,
       b.bids, b.asks
FROM book AS b LEFT JOIN epoch AS e ON e.id = b.id >> 24 ORDER BY b.id
"""
_POSTGRES_ROWS = """
SELECT epoch, n, received_us, venue_us, sequence, flags, bids, asks FROM book ORDER BY epoch, n, received_us
"""
_KEYFRAME, _MISMATCH = 1, 4

Feed = tuple[str, str, str]
"""Exchange in upper case, market in house form, channel."""
Ask = Callable[[str], Iterable[tuple[Any, ...]]]


@dataclass(slots=True)
class Row:
    """One update of a book; `bids` and `asks` are its JSON text."""

    n: int
    received_us: int
    venue_us: int | None
    sequence: int | None
    keyframe: bool
    mismatch: bool  # of the exchange's own totals and its levels
    bids: str | None
    asks: str | None


@dataclass(slots=True)
class StreamRow:
    """A trade (time, id, side, price, volume), a ticker (time, four prices) or a candle as it stands in its table."""

    epoch: int
    received_us: int
    values: tuple[Any, ...]


@dataclass(slots=True)
class Epoch:
    """One subscription as the collector heard it, with its part of the ledger."""

    id: int
    run: int
    exchange: str
    market: str
    channel: str
    transport: str
    opened_us: int
    ended_us: int | None
    end_reason: str | None
    heard_until_us: int
    confirmed_until_us: int
    frames: int
    reason: str | None
    rows: list[Row] = field(default_factory=list)
    told: list[StreamRow] = field(default_factory=list)  # of another channel than the book, by time of receipt


@dataclass(slots=True)
class Rejected:
    """A frame that the collector could not read."""

    run: int
    exchange: str
    market: str | None
    frame: bytes


@dataclass(slots=True)
class Contents:
    """Everything the judge looks at; `broken` says what contradicts itself."""

    closed_runs: set[int] = field(default_factory=set)
    epochs: list[Epoch] = field(default_factory=list)
    streams: dict[Feed, list[StreamRow]] = field(default_factory=dict)  # whichever epoch brought them
    rejected: list[Rejected] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def read_store(store: Path | str) -> Contents:
    """Read an SQLite file, or the PostgreSQL database at an address; nothing may be writing to it."""
    found = Contents()
    if isinstance(store, str):
        with _postgres(store) as ask:
            _read(ask, _POSTGRES_ROWS, found)
        return found
    try:
        with _sqlite(store) as ask:
            for (problem,) in ask("PRAGMA integrity_check"):
                if problem != "ok":
                    found.broken.append(f"the database is corrupt: {problem}")
            for table, *_ in ask("PRAGMA foreign_key_check"):
                found.broken.append(f"a row of {table} refers to one that is not there")
            _read(ask, _SQLITE_ROWS, found)
    except sqlite3.DatabaseError as error:
        found.broken.append(f"the database can't be read: {error}")
    return found


@contextlib.contextmanager
def _sqlite(path: Path) -> Iterator[Ask]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        yield db.execute


@contextlib.contextmanager
def _postgres(url: str) -> Iterator[Ask]:
    import psycopg  # only who judges such a store needs it

    with psycopg.connect(url, autocommit=True) as db:
        yield lambda sql: db.execute(sql.encode())


def _read(ask: Ask, rows_sql: str, found: Contents) -> None:
    found.closed_runs = {run for run, closed_us in ask(_RUNS) if closed_us is not None}
    epochs: dict[int, Epoch] = {}
    for id_, run, exchange, symbol, currency, *facts in ask(_EPOCHS):
        if facts[5] is None:
            found.broken.append(f"epoch {id_} has no coverage")
            continue
        epochs[id_] = Epoch(id_, run, exchange, f"{symbol}-{currency}", *facts)
    found.epochs = list(epochs.values())
    for id_, n, received_us, venue_us, sequence, flags, bids, asks in ask(rows_sql):
        epoch = epochs.get(id_)
        if epoch is None:
            found.broken.append(f"row {n} belongs to epoch {id_}, which is not there")
            continue
        epoch.rows.append(
            Row(n, received_us, venue_us, sequence, bool(flags & _KEYFRAME), bool(flags & _MISMATCH), bids, asks)
        )
    for channel, sql in _STREAMS.items():
        for exchange, symbol, currency, id_, received_us, *values in ask(sql):
            told = StreamRow(id_, received_us, tuple(values))
            market = f"{symbol}-{currency}"
            found.streams.setdefault((exchange, market, channel), []).append(told)
            if id_ in epochs:
                epochs[id_].told.append(told)
            else:
                found.broken.append(f"{exchange}: {market}: one of its {channel} is of epoch {id_}, which is not there")
    found.rejected = [Rejected(run, exchange, market, bytes(frame)) for run, exchange, market, frame in ask(_REJECTED)]
