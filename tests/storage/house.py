"""A collector without sockets and threads: real controllers, writer, spool and SQLite, moved on by a clock set by hand.

It writes down every book an exchange "sent", so that what is read back can be compared with the truth, by position.
"""

import itertools
import json
import random
import sqlite3
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Set
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from collector.errors import StorageError, StorageFull
from collector.intake import Intake
from collector.metrics import OUTCOMES
from controllers.base import Controller
from controllers.upbit import Upbit
from storage.reader import Reader
from storage.spool import Spool
from storage.spool_writer import Fsync
from storage.sqlite import SQLiteStore
from storage.store import Batch, Run
from storage.writer import Writer
from tests.fakes import FakeClock, HeardLog, make_setup
from tests.storage.memory import MemoryStore

MARKETS = ("BTC-KRW", "ETH-KRW")
STEP_S = 0.05  # between two books

Side = dict[Decimal, Decimal]


class Sent(NamedTuple):
    """A book as it was sent, and when it was received."""

    at_us: int
    bids: Side
    asks: Side


class FlakyStore(SQLiteStore):
    """The real store, away while `down` is set, and without an answer to as many COMMITs as `unanswered` says."""

    down: StorageError | None = None
    unanswered = 0
    commits = 0

    def write(self, batch: Batch, now_us: int) -> int:
        if self.down is not None:
            raise self.down
        there = super().write(batch, now_us)
        self.commits += 1
        if self.unanswered:
            self.unanswered -= 1
            raise StorageError("the answer to COMMIT was lost")
        return there

    def open_epochs(self, run: Run) -> Set[int]:
        if self.down is not None:
            raise self.down
        return super().open_epochs(run)

    def close_run(self, run: Run, now_us: int) -> None:
        if self.down is not None:
            raise self.down
        super().close_run(run, now_us)


class Killed(BaseException):
    """The process ends here."""


class FlakySpool(Spool):
    """The real spool, on a disk that is full while `full` is set; the process is killed at `advance` number `lives`."""

    full = False
    syncs = 0
    lives = -1

    def append(self, batch: Batch) -> None:
        if self.full:
            raise StorageFull("the disk is full")
        super().append(batch)

    def advance(self, position: int) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        super().advance(position)

    def sync(self) -> None:
        self.syncs += 1
        super().sync()


class House:
    """One run of a collector in `folder`; another one in the same folder is what comes after a crash or a stop."""

    def __init__(
        self,
        folder: Path,
        *,
        before: "House | None" = None,
        limit_bytes: int = 64 << 20,
        segment_bytes: int = 1 << 20,
        batch_records: int = 1000,
        intake_bytes: int = 64 << 20,
        drop_oldest: bool = False,
        fsync: Fsync = "never",  # nothing here loses what the kernel was given
        spool: bool = True,
        store: FlakyStore | MemoryStore | None = None,
        markets: tuple[str, ...] = MARKETS,
    ) -> None:
        self.folder = folder
        self.database = folder / "db.sqlite"
        self.clock: FakeClock = before.clock if before else FakeClock()
        self.sent: dict[str, list[Sent]] = before.sent if before else {market: [] for market in markets}
        self._random: random.Random = before._random if before else random.Random(1)
        self._turns = itertools.cycle(markets)
        self.log = HeardLog()
        self.setup = make_setup(clock=self.clock, log=self.log, limit_bytes=intake_bytes)
        self.setup.intake._wake_records = 1
        self.controllers = {market: Upbit((market,), self.setup) for market in markets}
        for controller in self.controllers.values():
            controller.anchor()
        self.store = store or FlakyStore(self.database)
        self.store.open()
        self.number: int = before.number + 1 if before else 1
        self.run = Run(f"run {self.number}", "here", "1.2.3", self.clock.wall_us())
        self.spool = FlakySpool(
            folder / "spool", limit_bytes=limit_bytes, segment_bytes=segment_bytes, fsync=fsync, clock=self.clock
        )
        self.spool.open()
        self.writer = Writer(
            self.store,
            self.intake,
            self.run,
            clock=self.clock,
            log=self.log,
            metrics=self.setup.metrics,
            batch_ms=0,
            batch_records=batch_records,
            spool=self.spool if spool else None,
            drop_oldest=drop_oldest,
        )
        self.writer.backoff._random = lambda: 1.0
        self.writer.stopping = _Pause(self.clock)

    @property
    def intake(self) -> Intake:
        return self.setup.intake

    # --- what happens -----------------------------------------------------------------------------------------------

    def hear(self, books: int = 1, market: str | None = None) -> None:
        """Receive so many books, of one market or of all in turn, each different from the one before."""
        for _ in range(books):
            self.clock.advance(STEP_S)
            name = market or next(self._turns)
            controller, at_us = self.controllers[name], self.clock.monotonic_us()
            before = self.sent[name][-1] if self.sent[name] else Sent(0, {}, {})
            bids = {Decimal(100 - i): before.bids.get(Decimal(100 - i), Decimal(i + 1)) for i in range(5)}
            asks = {Decimal(101 + i): before.asks.get(Decimal(101 + i), Decimal(i + 1)) for i in range(5)}
            bids[Decimal(100 - self._random.randrange(5))] += self._random.randrange(1, 1000)
            if self._random.random() < 0.3:
                asks[Decimal(101 + self._random.randrange(5))] += self._random.randrange(1, 1000)
            controller.handle(_frame(name, bids, asks), at_us)
            controller.flush()
            self.sent[name].append(Sent(self.clock.wall_us(), bids, asks))

    def beat(self, market: str = MARKETS[0]) -> int:
        """Receive a sign of life that is no data; return when."""
        self.clock.advance(1)
        heard_us = self.clock.wall_us()
        self.controllers[market].handle(b'{"status":"UP"}', self.clock.monotonic_us())
        self.tick()
        return heard_us

    def tick(self) -> None:
        """Do what controllers do once a second, between two books."""
        self.clock.advance(0.001)
        for controller in self.controllers.values():
            Controller.tick(controller)

    def cycles(self, count: int = 1) -> None:
        """Let the writer finish so many cycles."""
        for _ in range(count):
            self.writer.cycle()

    def live(self, seconds: float) -> None:
        """Let time pass while books come, controllers tick and the writer writes."""
        for step in range(round(seconds / STEP_S)):
            self.hear()
            if step % 20 == 19:
                self.tick()
            if step % 5 == 4:
                self.cycles()

    def goes_away(self, error: StorageError | None = None) -> None:
        """Take the store away."""
        self.store.down = error or StorageError("nobody answers")

    def comes_back(self) -> None:
        """Bring the store back, long enough for the writer to try it."""
        self.store.down = None
        self.clock.advance(5)

    def stop(self) -> bool:
        """End in order, unless that takes the writer too long; return whether everything is in the store."""
        for controller in self.controllers.values():
            controller.end_epochs("stop")
        deadline_us = self.clock.monotonic_us() + 10_000_000

        def wait(seconds: float) -> None:
            if self.clock.advance(seconds) > deadline_us:
                raise Killed

        self.writer.stop()
        try:
            with pytest.MonkeyPatch.context() as patch, suppress(StorageError, Killed):
                patch.setattr(self.intake, "wait", wait)
                self.writer.run_once()
                return self.writer.finish()
            return False
        finally:
            self.crash()

    def crash(self) -> None:
        """Give back what the end of a process gives back, and no more."""
        self.store.release()
        self.spool.close()

    # --- what must be true ------------------------------------------------------------------------------------------

    def value(self, name: str, **labels: str) -> int:
        """Return what a metric stands at."""
        return int(self.setup.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0)

    def frames(self) -> dict[str, int]:
        """Return the frames of this run by outcome, with those that wait; they must add up."""
        counts = {outcome: self.value("frames_total", exchange="upbit", outcome=outcome) for outcome in OUTCOMES}
        counts["intake"] = sum(self.intake.held_frames().values())
        counts["spool"] = self.value("spool_frames", exchange="upbit")
        assert counts["received"] == sum(counts.values()) - counts["received"], counts
        assert min(counts.values()) >= 0, counts
        return counts

    def accounted(self, market: str = MARKETS[0]) -> list[int]:
        """Compare the store with the truth; return the places of all books that it accounts for."""
        sent = self.sent[market]
        times = [book.at_us for book in sent]
        found: dict[int, list[int]] = {}
        accounted: list[int] = []
        with Reader(self.database) as reader:
            for book in reader.books("upbit", market):
                found.setdefault(book.epoch, []).append(book.received_us)
                truth = sent[bisect_right(times, book.received_us) - 1]
                assert (_side(book.bids), _side(book.asks)) == (truth.bids, truth.asks), "a book that never was"
            for epoch in reader.epochs("upbit", market):
                # It opens with a book that comes, or with the one that is known and stands as it is.
                first = bisect_left(times, epoch.opened_us)
                opening = [] if epoch.opened_us in times else [epoch.opened_us]
                mine = times[first : first + epoch.frames]
                assert len(mine) == epoch.frames
                assert all(epoch.from_us <= at_us <= epoch.until_us for at_us in mine), "more than it covers"
                assert found.get(epoch.id, opening) == opening + mine, "other rows than that"
                rows = ask(self.database, "SELECT count(*) FROM book WHERE id >> 24 = ?", epoch.id)
                assert rows == [(len(opening + mine),)], "rows that nothing accounts for"
                accounted += range(first, first + epoch.frames)
        assert accounted == sorted(set(accounted)), "the same book twice"
        self._whole()
        return accounted

    def everything_is_there(self, *, but: int = 0) -> None:
        """Require every book of every market in the store, once; `but` so many."""
        lost = {
            market: sorted(set(range(len(sent))) - set(self.accounted(market))) for market, sent in self.sent.items()
        }
        assert sum(map(len, lost.values())) == but

    def _whole(self) -> None:
        assert ask(self.database, "PRAGMA foreign_key_check") == []
        assert ask(self.database, "SELECT count(*) FROM book WHERE id >> 24 NOT IN (SELECT id FROM epoch)") == [(0,)]


class _Pause(threading.Event):
    """Waits on the clock that is set by hand."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.advance(timeout or 0)
        return self.is_set()


def ask(database: Path, sql: str, *values: object) -> list[Any]:
    """Ask a file with a connection of its own."""
    with closing(sqlite3.connect(database)) as db:
        return db.execute(sql, values).fetchall()


def _frame(market: str, bids: Side, asks: Side) -> bytes:
    symbol, _, currency = market.partition("-")
    units = [
        {"ap": int(ask), "as": int(ask_size), "bp": int(bid), "bs": int(bid_size)}
        for (ask, ask_size), (bid, bid_size) in zip(asks.items(), bids.items(), strict=True)
    ]
    return json.dumps({"ty": "orderbook", "cd": f"{currency}-{symbol}", "tms": 1, "obu": units}).encode()


def _side(levels: object) -> Side:
    assert isinstance(levels, tuple)
    return {Decimal(price): Decimal(size) for price, size in levels}
