"""A PostgreSQL database as the reader needs it: single statements, none of which changes anything.

Every question about rows says between which moments they were received, so that only the partitions of these days are
looked at.
"""

from typing import Any, LiteralString

import psycopg

from collector.errors import NotOurs
from collector.records import CANDLES, TICKER
from storage.postgres_database import Address, check_schema
from storage.source import PAGE_BYTES, PAGE_ROWS, TIMES, CandleTuple, Row, TickerTuple, TradeTuple
from storage.timeline import Epoch, StoredFeed, told

_DAY_US = 86_400_000_000
_FIRST_PAGE_ROWS = 250
_STATEMENT_S = 60  # a reader has time

_FEEDS = """
SELECT f.id, x.name, m.symbol, m.currency, f.channel
FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
"""
# The run of a collector is over when it was closed, or when the same collector began another.
_EPOCHS = """
SELECT greatest(c.heard_until_us, coalesce(e.ended_us, r.alive_us)),
       e.id, x.name, m.symbol, m.currency, f.channel, r.collector_id, e.transport, e.depth, e.unit, e.verdict,
       e.opened_us, coalesce(c.from_us, e.opened_us), coalesce(c.heard_until_us, e.opened_us),
       coalesce(c.confirmed_until_us, e.opened_us), coalesce(c.frames, 0), e.ended_us, coalesce(e.reason, c.reason),
       r.closed_us IS NOT NULL
       OR EXISTS (SELECT FROM run AS later WHERE later.collector_id = r.collector_id AND later.id > r.id)
FROM epoch AS e
JOIN run AS r ON r.id = e.run
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
LEFT JOIN coverage AS c ON c.epoch = e.id
"""
WITH_UNITS = 2  # version of the schema that has `epoch.unit`
_OF_FEED = "WHERE f.id = %s"
_OF_RUN = "WHERE r.uid = %s AND e.number = %s"
_OF_EPOCH = "FROM book WHERE epoch = %(epoch)s AND received_us BETWEEN %(from_us)s AND %(until_us)s"
_ROWS = f"""
SELECT n, received_us - %(opened_us)s, received_us - venue_us, sequence, flags, bids, asks
{_OF_EPOCH} AND n >= %(first)s ORDER BY n LIMIT %(limit)s
"""
_TIMES = f"SELECT n, received_us - %(opened_us)s {_OF_EPOCH} AND n >= %(first)s ORDER BY n LIMIT %(limit)s"
_LAST = f"SELECT n, received_us - %(opened_us)s {_OF_EPOCH} ORDER BY n DESC LIMIT 1"
_KEYFRAME = f"SELECT n, received_us - %(opened_us)s {_OF_EPOCH} AND flags & 1 = 1 ORDER BY n DESC LIMIT 1"
_KEYFRAME_AFTER = f"SELECT received_us - %(opened_us)s {_OF_EPOCH} AND flags & 1 = 1 ORDER BY n LIMIT 1"
# Ids are compared byte by byte, whatever the database's own order of letters is, as SQLite does.
_TRADES = """
SELECT venue_us, trade_id, received_us, epoch, side, price, volume FROM trade
WHERE feed = %(feed)s AND venue_us BETWEEN %(from_us)s AND %(until_us)s
  AND (venue_us > %(after_us)s
       OR (length(trade_id), trade_id COLLATE "C") > (length(%(after_id)s::text), %(after_id)s::text))
ORDER BY venue_us, length(trade_id), trade_id COLLATE "C" LIMIT %(limit)s
"""
_TICKERS = """
SELECT received_us, venue_us, last, bid, ask, volume FROM ticker
WHERE feed = (SELECT feed FROM epoch WHERE id = %s) AND received_us BETWEEN %s AND %s AND epoch = %s
ORDER BY received_us LIMIT %s
"""
_CANDLES = """
SELECT open_us, open, high, low, close, volume, closed, received_us, epoch FROM candle
WHERE feed = %s AND interval_s = %s AND open_us BETWEEN %s AND %s ORDER BY open_us LIMIT %s
"""
_TRADE_TIMES = """
SELECT venue_us, received_us FROM trade
WHERE feed = (SELECT feed FROM epoch WHERE id = %s) AND venue_us BETWEEN %s AND %s ORDER BY venue_us LIMIT %s
"""
_TICKER_TIMES = """
SELECT received_us, received_us FROM ticker
WHERE feed = (SELECT feed FROM epoch WHERE id = %s) AND received_us BETWEEN %s AND %s AND epoch = %s
ORDER BY received_us LIMIT %s
"""
_CANDLE_TIMES = """
SELECT open_us, received_us FROM candle
WHERE feed = (SELECT feed FROM epoch WHERE id = %s) AND interval_s = 60 AND open_us BETWEEN %s AND %s
ORDER BY open_us LIMIT %s
"""


class PostgresSource:
    """A PostgreSQL database, opened for reading; see `storage.source.Source`.

    Raises `StorageBusy` where it can't be reached, `NotOurs` where it is not one of this program or from a newer
    version, `ConfigError` where `url` is no address.
    """

    def __init__(self, url: str) -> None:
        self._address = Address(url)
        self.shown, self.name = self._address.shown, self._address.database
        self._row_bytes = 0
        self._ends: dict[int, int] = {}  # no row of the epoch is later
        self._seen = (0, 0, 0)  # an epoch, a number in it, and its time: what follows it is not earlier
        self._db = self._address.connect(writes=False)
        try:
            self._db.prepare_threshold = None  # a plan for these very days is made faster than one for all is run
            self._db.patience_s = _STATEMENT_S + 5
            self._db.execute(f"SET statement_timeout = '{_STATEMENT_S}s'")
            version = check_schema(self._db, self._address)
            self._epochs_sql = _EPOCHS if version >= WITH_UNITS else _EPOCHS.replace("e.unit", "NULL")
            if not version:
                raise NotOurs(f"{self.shown} holds no tables yet; the collector has not reached it so far")
        except psycopg.Error as error:
            self._db.close()
            raise self._address.translate(error) from None
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the session."""
        self._db.close()

    def feeds(self) -> list[StoredFeed]:
        """Return every feed, in order of exchange, market and channel."""
        return sorted((StoredFeed(*row) for row in self._all(_FEEDS, ())), key=lambda feed: feed[1:])

    def epochs(self, feed: int) -> list[Epoch]:
        """Return what the ledger says of a feed."""
        found = []
        for last_us, *row in self._all(self._epochs_sql + _OF_FEED, (feed,)):
            epoch = told(row)
            # Rows are committed after they were received, by clocks that may disagree; and an epoch may have ended
            # before its last row.
            self._ends[epoch.id] = last_us + _DAY_US
            found.append(epoch)
        return found

    def epoch_of(self, run_uid: str, number: int) -> Epoch | None:
        """Return the epoch that a run counts as its `number`; None where it is not there."""
        rows = self._all(self._epochs_sql + _OF_RUN, (run_uid, number))
        return told(rows[0][1:]) if rows else None

    def rows(self, epoch: Epoch, first: int) -> list[Row]:
        """Return a page of rows in order, from number `first` on."""
        limit = min(PAGE_ROWS, PAGE_BYTES // self._row_bytes) if self._row_bytes else _FIRST_PAGE_ROWS
        page: list[Row] = self._of(_ROWS, epoch, first=first, limit=max(limit, 1))
        if page:
            held_bytes = sum(len(row[5] or "") + len(row[6] or "") for row in page)
            self._row_bytes = max(held_bytes // len(page), 1)
            self._seen = epoch.id, *page[-1][:2]
        return page

    def times(self, epoch: Epoch, first: int) -> list[tuple[int, int]]:
        """Return number and time of up to `TIMES` rows in order, from number `first` on."""
        page: list[tuple[int, int]] = self._of(_TIMES, epoch, first=first, limit=TIMES)
        if page:
            self._seen = epoch.id, *page[-1]
        return page

    def last(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest row received at `at_us` or before."""
        return self._one(_LAST, epoch, at_us)

    def keyframe(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest keyframe received at `at_us` or before."""
        return self._one(_KEYFRAME, epoch, at_us)

    def keyframe_after(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the time of the first keyframe received after `at_us`."""
        rows = self._of(_KEYFRAME_AFTER, epoch, from_us=epoch.opened_us + at_us + 1)
        return rows[0][0] if rows else None

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

    def _one(self, sql: LiteralString, epoch: Epoch, at_us: int) -> int | None:
        rows = self._of(sql, epoch, until_us=epoch.opened_us + at_us)
        if not rows:
            return None
        self._seen = epoch.id, *rows[0]
        return self._seen[1]

    def _of(self, sql: LiteralString, epoch: Epoch, **values: int) -> list[Any]:
        whole = {
            "epoch": epoch.id,
            "opened_us": epoch.opened_us,
            "from_us": epoch.opened_us,
            "until_us": self._ends.get(epoch.id, epoch.heard_until_us + _DAY_US),
        }
        seen, n, at_us = self._seen
        if seen == epoch.id and values.get("first", -1) >= n:
            whole["from_us"] += at_us
        return self._all(sql, whole | values)

    def _all(self, sql: LiteralString, values: Any) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except psycopg.Error as error:
            raise self._address.translate(error) from None
