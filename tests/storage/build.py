"""Databases for the tests of the reading side: made by the migrations, filled by hand."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from collector.records import Delivery
from storage.sqlite import APPLICATION_ID, SCHEMA_VERSION, SQLiteStore, migrations
from storage.store import Batch, Run

T0 = 1_700_000_000_000_000  # when the first epoch of most tests opens
Changes = Sequence[tuple[str, str]]


class OneRun(SQLiteStore):
    """An SQLite store as one run of a collector uses it: every `put` is its next batch."""

    def __init__(
        self,
        path: Path,
        uid: str = "run 1",
        *,
        started_us: int = T0,
        collector_id: str = "here",
        version: str = "1.2.3",
    ) -> None:
        super().__init__(path)
        self.run = Run(uid, collector_id, version, started_us)
        self.number = 0

    def put(self, deliveries: Iterable[Delivery], now_us: int) -> int:
        """Write the run's next batch; where that fails the number is used again."""
        there = self.write(Batch(self.run, self.number + 1, tuple(deliveries)), now_us)
        self.number += 1
        return there

    def end_run(self, now_us: int) -> None:
        """Close the run."""
        self.close_run(self.run, now_us)


class Builder:
    """Writes rows as the contract in `migrations/` has them, one run after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.db.execute("PRAGMA journal_mode = WAL")
        for _, sql in migrations():
            self.db.executescript(sql)
        self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.current_run = 0
        self._epochs = 0

    def close(self) -> None:
        self.db.close()

    def run(self, *, started_us: int = T0, closed_us: int | None = None) -> int:
        row = self.db.execute(
            "INSERT INTO run (uid, collector_id, version, epoch_base, started_us, alive_us, closed_us) "
            "VALUES (hex(randomblob(8)), 'here', '0.1.0', 0, ?, ?, ?) RETURNING id",
            (started_us, started_us, closed_us),
        ).fetchone()
        self.current_run = int(row[0])
        return self.current_run

    def feed(self, exchange: str = "UPBIT", market: str = "BTC-KRW", channel: str = "orderbook") -> int:
        symbol, currency = market.split("-")
        self.db.execute("INSERT OR IGNORE INTO exchange (name) VALUES (?)", (exchange,))
        self.db.execute("INSERT OR IGNORE INTO market (symbol, currency) VALUES (?, ?)", (symbol, currency))
        self.db.execute(
            "INSERT OR IGNORE INTO feed (exchange, market, channel) SELECT x.id, m.id, ? "
            "FROM exchange AS x, market AS m WHERE x.name = ? AND m.symbol = ? AND m.currency = ?",
            (channel, exchange, symbol, currency),
        )
        row = self.db.execute(
            "SELECT f.id FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market "
            "WHERE x.name = ? AND m.symbol = ? AND m.currency = ? AND f.channel = ?",
            (exchange, symbol, currency, channel),
        ).fetchone()
        return int(row[0])

    def epoch(
        self,
        *,
        exchange: str = "UPBIT",
        market: str = "BTC-KRW",
        opened_us: int = T0,
        heard_us: int | None = None,
        confirmed_us: int | None = None,
        reason: str | None = None,
        ended_us: int | None = None,
        transport: str = "websocket",
        frames: int = 0,
        verdict: str = "unverified",
    ) -> int:
        """Open an epoch that is heard until `heard_us`; a `reason` ends it there."""
        if not self.current_run:
            self.run()
        self._epochs += 1
        heard_us = opened_us if heard_us is None else heard_us
        confirmed_us = heard_us if confirmed_us is None else confirmed_us
        if reason is not None and ended_us is None:
            ended_us = heard_us
        self.db.execute(
            "INSERT INTO epoch VALUES (?, ?, ?, ?, 15, ?, ?, ?, ?, NULL)",
            (
                self._epochs,
                self.current_run,
                self.feed(exchange, market),
                transport,
                verdict,
                opened_us,
                ended_us,
                reason,
            ),
        )
        self.db.execute(
            "INSERT INTO coverage VALUES (?, ?, ?, ?, ?, ?)",
            (self._epochs, opened_us, heard_us, confirmed_us, frames, reason),
        )
        return self._epochs

    def row(
        self,
        epoch: int,
        n: int,
        at_us: int,
        *,
        bids: Changes | None = None,
        asks: Changes | None = None,
        keyframe: bool = False,
        flags: int = 0,
        lag_us: int | None = None,
        sequence: int | None = None,
    ) -> None:
        self.rows([(epoch << 24 | n, at_us, lag_us, sequence, flags | keyframe, text(bids), text(asks))])

    def rows(self, rows: Iterable[tuple[object, ...]]) -> None:
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO book VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.db.execute("COMMIT")


def text(levels: Changes | None) -> str | None:
    return None if levels is None else json.dumps([list(level) for level in levels], separators=(",", ":"))
