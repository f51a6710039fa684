"""The PostgreSQL store, writing side: one session, whole batches in single transactions, several collectors at once.

Rows go by binary COPY into a staging table and from there, by one statement, to where they belong; what is there
already is counted and left out. A batch's number is committed with it, under a lock on its run's row: so a COMMIT whose
answer was lost settles itself when the batch is written again, also while the server still works on the first one.

Whatever goes wrong ends the session; the next call makes a new one and reads again what it has to know. A server that
is not there, not ours or from a newer collector is nothing a daemon ends for: `write` says so every time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import psycopg

from collector.errors import StorageError
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
from storage.postgres_database import Address, Session, check_version, migrate_schema
from storage.postgres_partitions import DAY_US, TABLES, days, make_day
from storage.postgres_rows import (
    BOOK_TYPES,
    CANDLE,
    COPY_BOOK,
    COPY_EVENT,
    COPY_REJECTED,
    EVENT_TYPES,
    INSERT_BOOK,
    REJECTED_TYPES,
    STAGE_BOOK,
    TICKER,
    TRADE,
    Table,
    copy_rows,
    storable,
    storable_int,
)
from storage.store import Batch, Run, not_stored, sort_out, stretches

DAYS_AHEAD = 2
DAYS_BACK = 400  # what was received before is odd, and goes to the default partition

_ENTER = "SELECT id, batch, (SELECT max(version) FROM collector_schema) FROM run WHERE uid = %s FOR UPDATE"
_NEW_RUN = """
INSERT INTO run (uid, collector_id, version, started_us, alive_us) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (uid) DO UPDATE SET uid = excluded.uid RETURNING id, batch
"""
# The server must not give up waiting for a standby and call that a commit: only who asked for it may give up.
_LEAVE = "UPDATE run SET batch = %s, alive_us = %s WHERE id = %s RETURNING set_config('statement_timeout', '0', true)"

_FEEDS = """
SELECT x.name, m.symbol, m.currency, f.channel, f.id
FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
"""
_NEW_FEED = """
INSERT INTO feed (exchange, market, channel)
SELECT x.id, m.id, %s FROM exchange AS x, market AS m WHERE x.name = %s AND m.symbol = %s AND m.currency = %s
ON CONFLICT DO NOTHING
"""
_NEW_EPOCH = """
INSERT INTO epoch (run, number, feed, transport, depth, verdict, opened_us, unit)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (run, number) DO NOTHING
"""
_NEW_COVERAGE = """
INSERT INTO coverage (epoch, from_us, heard_until_us, confirmed_until_us, frames)
SELECT id, opened_us, opened_us, opened_us, 0 FROM epoch WHERE run = %s AND number = ANY(%s)
ON CONFLICT DO NOTHING
"""
_EPOCHS = "SELECT number, id, opened_us, feed FROM epoch WHERE run = %s AND number = ANY(%s)"
_OPEN_EPOCHS = "SELECT e.number FROM epoch AS e JOIN run AS r ON r.id = e.run WHERE r.uid = %s AND e.ended_us IS NULL"

# Marks move forward while an epoch is open; what has ended is only taken back.
_MARK = """
UPDATE coverage AS c SET heard_until_us = greatest(c.heard_until_us, m.heard_us),
                         confirmed_until_us = greatest(c.confirmed_until_us, m.confirmed_us),
                         frames = greatest(c.frames, m.frames)
FROM unnest(%s::integer[], %s::bigint[], %s::bigint[], %s::bigint[]) AS m (epoch, heard_us, confirmed_us, frames)
WHERE c.epoch = m.epoch AND c.reason IS NULL
"""
_END_EPOCH = "UPDATE epoch SET ended_us = %s, reason = %s WHERE id = %s"
_END_COVERAGE = """
UPDATE coverage SET reason = %s, heard_until_us = least(heard_until_us, %s),
                    confirmed_until_us = least(confirmed_until_us, %s)
WHERE epoch = %s
"""
_LOSE_EPOCHS = """
UPDATE epoch AS e SET ended_us = c.heard_until_us, reason = %s
FROM coverage AS c WHERE c.epoch = e.id AND e.run = %s AND e.ended_us IS NULL
"""
_LOSE_COVERAGE = """
UPDATE coverage AS c SET reason = e.reason FROM epoch AS e
WHERE e.id = c.epoch AND e.run = %s AND e.ended_us IS NOT NULL AND c.reason IS NULL
"""

_STREAMS: dict[type, Table] = {TradeRow: TRADE, TickerRow: TICKER, CandleRow: CANDLE}

_T = TypeVar("_T")
FeedKey = tuple[str, str, str, str]  # exchange, symbol, currency, channel


class _Epoch(NamedTuple):
    id: int
    opened_us: int
    feed: int


class PostgresStore:
    """The store as the writer uses it, from one thread at a time.

    `url` is `postgresql://...`, as libpq has it; `ConfigError` where it is no address.
    """

    def __init__(self, url: str) -> None:
        self.address = Address(url, advice="the collector goes on by itself")
        self._db: Session | None = None
        self._uid = ""  # the run that _epochs belong to
        self._epochs: dict[int, _Epoch] = {}
        self._feeds: dict[FeedKey, int] = {}
        self._days: dict[str, set[int]] = {}  # of each table, those whose partition was made or tried

    # --- as a store -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Reach the database and bring its schema up to date, if that is possible now; else the first `write` does."""
        with suppress(StorageError):  # it is told by `write`, until it is right
            self.check()

    def check(self) -> None:
        """Do what `open` does, and raise what stands in the way."""
        self.in_transaction(lambda db: None)

    def write(self, batch: Batch, now_us: int) -> int:
        """Commit all of a batch or none of it; return how many of its records were there already."""
        return self.in_transaction(lambda db: self._write(db, batch, now_us))

    def open_epochs(self, run: Run) -> Set[int]:
        """Return the epochs of a run (as its batches number them) that are in the store and have not ended."""
        return self.in_transaction(lambda db: {number for (number,) in db.execute(_OPEN_EPOCHS, (storable(run.uid),))})

    def close_run(self, run: Run, now_us: int) -> None:
        """Note that a run ended in order; nothing happens where the store does not know it."""
        sql = "UPDATE run SET closed_us = %s, alive_us = %s WHERE uid = %s"
        self.in_transaction(lambda db: db.execute(sql, (now_us, now_us, storable(run.uid))))

    def size_bytes(self) -> int:
        """Return what the whole database takes on the server, in bytes."""
        sql = "SELECT pg_database_size(current_database())"
        return self.in_transaction(lambda db: int(db.execute(sql).fetchone()[0]))  # type: ignore[index]

    def release(self) -> None:
        """Close the session; may be called twice."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def in_transaction(self, work: Callable[[Session], _T]) -> _T:
        """Run work in a transaction of the writer's own session and return its result."""
        db = self._session()
        try:
            result = work(db)
            db.commit()
        except psycopg.Error as error:
            self.release()
            raise self.address.translate(error) from None
        except BaseException:
            self.release()
            raise
        return result

    def know_feeds(self, db: Session, wanted: Set[FeedKey]) -> Mapping[FeedKey, int]:
        """Return the ids of feeds, those of `wanted` among them, whether they were known before or not."""
        missing = sorted(wanted - self._feeds.keys())  # in order: two collectors never wait for each other crosswise
        if missing:
            cursor = db.cursor()
            names = sorted({(exchange,) for exchange, *_ in missing})
            cursor.executemany("INSERT INTO exchange (name) VALUES (%s) ON CONFLICT DO NOTHING", names)
            markets = sorted({(symbol, currency) for _, symbol, currency, _ in missing})
            cursor.executemany("INSERT INTO market (symbol, currency) VALUES (%s, %s) ON CONFLICT DO NOTHING", markets)
            cursor.executemany(_NEW_FEED, [(key[3], *key[:3]) for key in missing])
            self._feeds = _feeds(db)
        return self._feeds

    def _session(self) -> Session:
        if self._db is not None and not self._db.closed:
            return self._db
        db = self.address.connect(writes=True)
        try:
            migrate_schema(db, self.address)
            db.execute(STAGE_BOOK)
            for table in _STREAMS.values():
                db.execute(table.stage)
            self._days = {name: days(db, name) for name in TABLES}
            self._feeds = _feeds(db)
            db.commit()
        except psycopg.Error as error:
            db.close()
            raise self.address.translate(error) from None
        except BaseException:
            db.close()
            raise
        self._uid, self._epochs = "", {}
        self._db = db
        return db

    # --- a batch ----------------------------------------------------------------------------------------------------

    def _write(self, db: Session, batch: Batch, now_us: int) -> int:
        run, newest = self._enter(db, batch.run)
        if batch.number <= newest:
            return sum(len(delivery.records) for delivery in batch.deliveries)
        there = 0
        for records in stretches(record for delivery in batch.deliveries for record in delivery.records):
            there += self._write_records(db, run, records, now_us)
        with db.pipeline():
            db.execute(_LEAVE, (batch.number, now_us, run))
            db.commit()
        return there

    def _enter(self, db: Session, run: Run) -> tuple[int, int]:
        if run.uid != self._uid:
            self._uid, self._epochs = run.uid, {}
        with db.pipeline():  # BEGIN goes with it
            row = db.execute(_ENTER, (storable(run.uid),)).fetchone()
        if row is None:
            told = storable(run.uid), storable(run.collector_id), storable(run.version), run.started_us, run.started_us
            row = db.execute(_NEW_RUN, told).fetchone()
            assert row is not None
        else:
            check_version(row[2], self.address)
        return row[0], row[1]

    def _write_records(self, db: Session, run: int, records: Sequence[Record], now_us: int) -> int:
        kinds: dict[type, list[Any]] = {}
        for record in records:
            kinds.setdefault(type(record), []).append(record)
        for lost in kinds.get(RecordsLost, ()):
            self._lose_epochs(db, run, lost)
        there = self._open_epochs(db, run, kinds.get(EpochOpened, []))
        rows: list[BookRow] = kinds.get(BookRow, [])
        marks: list[CoverageMark] = kinds.get(CoverageMark, [])
        verdicts: list[EpochVerdict] = kinds.get(EpochVerdict, [])
        ended: list[EpochEnded] = kinds.get(EpochEnded, [])
        streamed: list[StreamRow] = [row for kind in _STREAMS for row in kinds.get(kind, ())]
        epochs = (record.epoch for some in (rows, streamed, marks, verdicts, ended) for record in some)
        self._learn_epochs(db, run, epochs)
        events: list[Event] = kinds.get(Event, [])
        staged = self._stage_rows(db, rows, now_us)
        kept, left_out = sort_out(streamed, self._epochs)
        left_out += len(rows) - staged
        if left_out:
            events.append(Event(now_us, "WARNING", "store", not_stored(left_out)))
        brought = [(table, self._stage_stream(db, table, kept[kind], now_us)) for kind, table in _STREAMS.items()]
        self._copy_rejected(db, run, kinds.get(Rejected, []))
        self._copy_events(db, run, events)
        with db.pipeline():
            inserted = [db.execute(INSERT_BOOK)] if staged else []
            inserted += [db.execute(table.merge) for table, count in brought if count]
            self._move_ledger(db, marks, verdicts, ended)
        for end in ended:
            self._epochs.pop(end.epoch, None)
        staged += sum(count for _, count in brought)
        return there + staged - sum(cursor.rowcount for cursor in inserted)

    def _lose_epochs(self, db: Session, run: int, lost: RecordsLost) -> None:
        db.execute(_LOSE_EPOCHS, (storable(lost.reason), run))
        db.execute(_LOSE_COVERAGE, (run,))
        self._epochs.clear()

    def _open_epochs(self, db: Session, run: int, opened: Sequence[EpochOpened]) -> int:
        if not opened:
            return 0
        feeds = [_feed_key(record) for record in opened]
        known = self.know_feeds(db, set(feeds))
        cursor = db.cursor()
        cursor.executemany(
            _NEW_EPOCH,
            [
                (
                    *(run, e.epoch, known[feed], storable(e.transport), e.depth, storable(e.verdict), e.opened_us),
                    storable(e.unit),
                )
                for e, feed in zip(opened, feeds, strict=True)
            ],
        )
        db.execute(_NEW_COVERAGE, (run, [record.epoch for record in opened]))
        return len(opened) - cursor.rowcount

    def _learn_epochs(self, db: Session, run: int, numbers: Iterable[int]) -> None:
        missing = list(set(numbers) - self._epochs.keys())
        if missing:
            for number, *facts in db.execute(_EPOCHS, (run, missing)):
                self._epochs[number] = _Epoch(*facts)

    def _stage_rows(self, db: Session, rows: list[BookRow], now_us: int) -> int:
        staged: list[tuple[object, ...]] = []
        rows.sort(key=_epoch_of)  # a feed's rows stand side by side, n rises within an epoch already
        found: set[int] = set()
        for row in rows:
            epoch = self._epochs.get(row.epoch)
            if epoch is None:
                continue
            received_us = epoch.opened_us + row.at_us
            found.add(received_us // DAY_US)
            venue_us = None if row.lag_us is None else storable_int(received_us - row.lag_us)
            sides = storable(row.bids), storable(row.asks)
            staged.append((epoch.id, row.n, received_us, venue_us, storable_int(row.sequence), row.flags, *sides))
        self._make_days(db, "book", found, now_us)
        copy_rows(db, COPY_BOOK, BOOK_TYPES, staged)
        return len(staged)

    def _stage_stream(self, db: Session, table: Table, rows: Sequence[StreamRow], now_us: int) -> int:
        if not rows:
            return 0
        staged = [_columns_of(row, self._epochs[row.epoch]) for row in rows]
        if table is CANDLE:
            # A statement touches a row once: of the same candle the one that counts goes.
            newest: dict[tuple[object, ...], tuple[object, ...]] = {}
            for candle in sorted(staged, key=_rank):
                newest[candle[:3]] = candle
            staged = list(newest.values())
        days_of = {row[list(table.columns).index(TABLES[table.name])] // DAY_US for row in staged}
        self._make_days(db, table.name, days_of, now_us)
        copy_rows(db, table.copy, tuple(table.columns.values()), staged)
        return len(staged)

    def _make_days(self, db: Session, table: str, wanted: Set[int], now_us: int) -> None:
        today = now_us // DAY_US
        for day in wanted - self._days[table]:
            if not today - DAYS_BACK <= day <= today + DAYS_AHEAD:
                continue
            try:
                with db.transaction():
                    make_day(db, table, day)
            except psycopg.Error:
                if db.closed:
                    raise
                # Its rows go to the default partition; housekeeping tries again.
            self._days[table].add(day)

    def _copy_rejected(self, db: Session, run: int, records: Sequence[Rejected]) -> None:
        rows = [
            (run, storable(r.exchange.upper()), storable(r.market), r.received_us, storable(r.reason), r.frame)
            for r in records
        ]
        copy_rows(db, COPY_REJECTED, REJECTED_TYPES, rows)

    def _copy_events(self, db: Session, run: int, records: Sequence[Event]) -> None:
        rows = [(run, e.time_us, storable(e.level), storable(e.tag), storable(e.text)) for e in records]
        copy_rows(db, COPY_EVENT, EVENT_TYPES, rows)

    def _move_ledger(
        self,
        db: Session,
        marks: Sequence[CoverageMark],
        verdicts: Sequence[EpochVerdict],
        ended: Sequence[EpochEnded],
    ) -> None:
        last = {self._epochs[mark.epoch].id: mark for mark in marks if mark.epoch in self._epochs}
        if last:
            heard = [mark.heard_until_us for mark in last.values()]
            confirmed = [mark.confirmed_until_us for mark in last.values()]
            db.execute(_MARK, (list(last), heard, confirmed, [mark.frames for mark in last.values()]))
        for verdict in verdicts:
            if verdict.epoch in self._epochs:
                epoch = self._epochs[verdict.epoch].id
                db.execute("UPDATE epoch SET verdict = %s WHERE id = %s", (storable(verdict.verdict), epoch))
        for end in ended:
            if end.epoch in self._epochs:
                epoch, reason = self._epochs[end.epoch].id, storable(end.reason)
                db.execute(_END_EPOCH, (end.ended_us, reason, epoch))
                db.execute(_END_COVERAGE, (reason, end.ended_us, end.ended_us, epoch))


def _feeds(db: Session) -> dict[FeedKey, int]:
    return {
        (exchange, symbol, currency, channel): feed for exchange, symbol, currency, channel, feed in db.execute(_FEEDS)
    }


def _feed_key(record: EpochOpened) -> FeedKey:
    symbol, _, currency = record.market.partition("-")
    return storable(record.exchange), storable(symbol), storable(currency), storable(record.channel)


def _columns_of(row: StreamRow, epoch: _Epoch) -> tuple[Any, ...]:
    # In the order of the table's columns.
    match row:
        case TradeRow():
            what = storable(row.side), storable(row.price), storable(row.volume)
            return epoch.feed, row.venue_us, storable(row.trade_id), row.received_us, epoch.id, *what
        case TickerRow():
            prices = [storable(price) for price in (row.last, row.bid, row.ask, row.volume)]
            return epoch.feed, row.received_us, storable_int(row.venue_us), epoch.id, *prices
        case CandleRow():
            prices = [storable(price) for price in (row.open, row.high, row.low, row.close, row.volume)]
            key = epoch.feed, row.interval_s, row.open_us
            return *key, *prices, int(row.closed), row.received_us, epoch.id


def _rank(candle: tuple[Any, ...]) -> tuple[int, int]:
    *_, closed, received_us, _ = candle
    return closed, received_us


def _epoch_of(row: BookRow) -> int:
    return row.epoch
