"""Retention against a naive account, limits of side tables, space given back, copies that are exact or not there."""

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from collector.clock import Clock
from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError
from collector.log import Log
from collector.records import Delivery, Event
from storage import maintenance
from storage.coverage import coverage
from storage.maintenance import (
    DAY_US,
    Housekeeping,
    backup,
    delete_days_before,
    give_back_space,
    trim_events,
    trim_rejected,
)
from storage.reader import BookAt, Gap, Reader
from storage.rounds import ROUND_EVERY_US
from tests.storage.build import T0, Builder, OneRun

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import given, settings
from hypothesis import strategies as st

_T = TypeVar("_T")
DAY = 20_000  # a day in 2024
MIDNIGHT = DAY * DAY_US


class TestStore:
    """The builder's connection as a store that notes how large its transactions are."""

    __test__ = False

    def __init__(self, builder: Builder) -> None:
        self.db = builder.db
        self.largest = 0

    def in_transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        before = self.db.total_changes
        self.db.execute("BEGIN IMMEDIATE")
        try:
            result = work(self.db)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        self.largest = max(self.largest, self.db.total_changes - before)
        return result


class StepClock(Clock):
    def __init__(self, wall_us: int) -> None:
        self.wall, self.monotonic = wall_us, 0

    def wall_us(self) -> int:
        return self.wall

    def monotonic_us(self) -> int:
        return self.monotonic


class QuietLog(Log):
    def __init__(self) -> None:
        super().__init__("TEST")
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        self.lines.append((key, details))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "books.sqlite")
    yield builder
    builder.close()


@pytest.fixture
def store(db: Builder) -> TestStore:
    return TestStore(db)


def count(db: Builder, table: str) -> int:
    return int(db.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def ns(db: Builder, epoch: int) -> list[int]:
    return [row[0] for row in db.db.execute("SELECT id & 16777215 FROM book WHERE id >> 24 = ? ORDER BY id", (epoch,))]


def rows_around_midnight(db: Builder, keyframes: set[int], **options: Any) -> int:
    """Rows 1 to 8, one a second, of which 5 is the first after midnight."""
    epoch = db.epoch(opened_us=MIDNIGHT - 4_000_000, heard_us=MIDNIGHT + 10_000_000, **options)
    for n in range(1, 9):
        db.row(epoch, n, (n - 1) * 1_000_000, bids=[("1", str(n))], asks=[], keyframe=n in keyframes)
    return epoch


# --- days ------------------------------------------------------------------------------------------------------------


def test_what_is_kept_begins_with_the_keyframe_of_midnight(db: Builder, store: TestStore) -> None:
    epoch = rows_around_midnight(db, {1, 3, 5})
    list(delete_days_before(store, DAY))
    assert ns(db, epoch) == [5, 6, 7, 8]
    with Reader(db.path) as reader:
        book = reader.book_at("upbit", "BTC-KRW", MIDNIGHT + 2_000_000)
        assert isinstance(book, BookAt)
        assert book.bids == (("1", "7"),)
        assert reader.book_at("upbit", "BTC-KRW", MIDNIGHT - 1) == Gap("deleted", None, MIDNIGHT)
        assert coverage(reader)[0].start_us == MIDNIGHT


def test_without_a_keyframe_at_midnight_the_one_before_is_kept(db: Builder, store: TestStore) -> None:
    epoch = rows_around_midnight(db, {1, 3, 7})
    list(delete_days_before(store, DAY))
    assert ns(db, epoch) == [3, 4, 5, 6, 7, 8]
    with Reader(db.path) as reader:
        assert [book.bids[0][1] for book in reader.books("upbit")] == ["3", "4", "5", "6", "7", "8"]
        assert coverage(reader)[0].start_us == MIDNIGHT - 2_000_000


def test_silent_market_keeps_the_book_it_stands_on(db: Builder, store: TestStore) -> None:
    epoch = db.epoch(opened_us=MIDNIGHT - 5 * DAY_US, heard_us=MIDNIGHT + 10)
    for n in range(1, 5):
        db.row(epoch, n, n, bids=[("1", str(n))], asks=[], keyframe=n in (1, 3))
    list(delete_days_before(store, DAY))
    assert ns(db, epoch) == [3, 4]


def test_epochs_that_are_over_go_with_their_ledger(db: Builder, store: TestStore) -> None:
    """1. ended; 2. killed with its run; 3. still open, though not heard of for long; 4. of the kept days."""
    old = MIDNIGHT - 3 * DAY_US
    db.run()
    db.epoch(opened_us=old, heard_us=old + 10, reason="stop")
    db.epoch(opened_us=old + 20, heard_us=old + 30)
    db.run()
    still_open = db.epoch(opened_us=old + 40, heard_us=old + 50)
    kept = db.epoch(opened_us=MIDNIGHT, heard_us=MIDNIGHT + 50)
    for epoch in (1, 2, still_open, kept):
        db.row(epoch, 1, 0, bids=[], asks=[], keyframe=True)
    list(delete_days_before(store, DAY))
    for table in ("epoch", "coverage"):
        assert [row[0] for row in db.db.execute(f"SELECT * FROM {table}")] == [still_open, kept]
    assert [row[0] >> 24 for row in db.db.execute("SELECT id FROM book")] == [still_open, kept]


def test_ledger_never_claims_what_is_gone(db: Builder, store: TestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after any step, as a crash would: whatever coverage claims can be rebuilt."""
    monkeypatch.setattr(maintenance, "STEP_ROWS", 2)
    rows_around_midnight(db, {1, 3, 5})
    gone = db.epoch(opened_us=MIDNIGHT - 9_000_000, heard_us=MIDNIGHT - 8_000_000, reason="stop")
    for n in range(1, 6):
        db.row(gone, n, n - 1, bids=[("1", str(n))], asks=[], keyframe=n == 1)
    steps = 0
    for _ in delete_days_before(store, DAY):
        steps += 1
        with Reader(db.path) as reader:
            for epoch in reader.epochs("upbit", "BTC-KRW"):
                if epoch.from_us < epoch.until_us:
                    book = reader._book_at(epoch, epoch.from_us)
                    assert isinstance(book, BookAt), (steps, book)
    assert steps > 5


def test_transactions_stay_small_and_a_second_round_finds_nothing(db: Builder, store: TestStore) -> None:
    epoch = db.epoch(opened_us=MIDNIGHT - DAY_US, heard_us=MIDNIGHT + 10)
    db.rows((epoch << 24 | n, n, None, None, int(n == 1), "[]", "[]") for n in range(1, 12_001))
    db.row(epoch, 12_001, DAY_US + 5, bids=[], asks=[], keyframe=True)
    assert sum(delete_days_before(store, DAY)) == 12_000
    assert 0 < store.largest <= 5_000
    assert list(delete_days_before(store, DAY)) == []


def test_trades_tickers_and_candles_go_by_their_own_times(db: Builder, store: TestStore) -> None:
    feed, other = db.feed(channel="trades"), db.feed("GOPAX", channel="trades")
    for feed_id in (feed, other):
        for time_us in (MIDNIGHT - 1, MIDNIGHT):
            db.db.execute("INSERT INTO trade VALUES (?, ?, 'x', 0, 1, 'buy', '1', '1')", (feed_id, time_us))
            db.db.execute("INSERT INTO ticker VALUES (?, ?, 0, 1, '1', '1', '1', '1')", (feed_id, time_us))
            for interval_s in (0, 60, 3600):
                db.db.execute(
                    "INSERT INTO candle VALUES (?, ?, ?, '1', '1', '1', '1', '1', 1, 0, 1)",
                    (feed_id, interval_s, time_us),
                )
    assert sum(delete_days_before(store, DAY)) == 2 * (1 + 1 + 3)
    for table, column in (("trade", "venue_us"), ("ticker", "received_us"), ("candle", "open_us")):
        assert {row[0] for row in db.db.execute(f"SELECT {column} FROM {table}")} == {MIDNIGHT}
    assert count(db, "candle") == 6


def test_epoch_of_another_channel_is_covered_from_midnight(db: Builder, store: TestStore) -> None:
    epoch = db.epoch(opened_us=MIDNIGHT - 10, heard_us=MIDNIGHT + 10)
    db.db.execute("UPDATE epoch SET feed = ?", (db.feed(channel="trades"),))
    list(delete_days_before(store, DAY))
    assert db.db.execute("SELECT epoch, from_us FROM coverage").fetchall() == [(epoch, MIDNIGHT)]


a_row = st.tuples(st.integers(0, 6), st.booleans())


@given(st.lists(a_row, min_size=1, max_size=20), st.integers(-30, 60), st.integers(0, 9), st.booleans())
@settings(max_examples=150)
def test_every_kept_moment_reads_as_before(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bool]], opened: int, silence: int, ended: bool
) -> None:
    db = Builder(tmp_path_factory.mktemp("naive") / "books.sqlite")
    opened_us = MIDNIGHT + opened
    at_us = 0
    stored = []
    for n, (step, keyframe) in enumerate(rows, 1):
        at_us += step if n > 1 else 0
        stored.append((n, at_us, keyframe or n == 1))
    heard_us = opened_us + at_us + silence
    epoch = db.epoch(opened_us=opened_us, heard_us=heard_us, reason="stop" if ended else None)
    for n, row_at_us, keyframe in stored:
        db.row(epoch, n, row_at_us, bids=[("1", str(n))], asks=[], keyframe=keyframe)
    with Reader(db.path) as reader:
        before = {time: reader.book_at("upbit", "BTC-KRW", time) for time in range(MIDNIGHT - 9, heard_us + 1)}
        list(delete_days_before(TestStore(db), DAY))
        first_us = min((e.from_us for e in reader.epochs("upbit", "BTC-KRW")), default=heard_us + 1)
        for time, book in before.items():
            after = reader.book_at("upbit", "BTC-KRW", time)
            assert isinstance(after, BookAt) == (isinstance(book, BookAt) and time >= first_us)
            if isinstance(after, BookAt) and isinstance(book, BookAt):
                assert (after.n, after.bids) == (book.n, book.bids)
    # Nothing of the kept days is lost, and no more of the others is kept than must be.
    kept = [row for row in stored if row[0] in ns(db, epoch)]
    assert [row for row in stored if opened_us + row[1] >= MIDNIGHT and row not in kept] == []
    assert not kept or kept[0][2]
    assert not [row for row in kept[1:] if row[2] and opened_us + row[1] < MIDNIGHT and ended and heard_us < MIDNIGHT]
    db.close()


# --- side tables -----------------------------------------------------------------------------------------------------


def fill(db: Builder, table: str, sizes: list[tuple[int, int]]) -> None:
    run = db.current_run or db.run()
    for time_us, size in sizes:
        if table == "rejected":
            row: tuple[object, ...] = (run, "UPBIT", None, time_us, "why", b"x" * size)
            names = "run, exchange, market, received_us, reason, frame"
        else:
            row = (run, time_us, "INFO", "UPBIT", "가" * (size // 3))
            names = "run, time_us, level, tag, text"
        db.db.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", row)


@pytest.mark.parametrize(("table", "trim"), [("rejected", trim_rejected), ("event", trim_events)])
def test_side_tables_are_trimmed_by_age(db: Builder, store: TestStore, table: str, trim: Any) -> None:
    fill(db, table, [(MIDNIGHT - DAY_US - 1, 3), (MIDNIGHT - DAY_US, 3), (MIDNIGHT, 3)])
    assert sum(trim(store, MIDNIGHT, 1, 1 << 30)) == 1
    assert count(db, table) == 2


@pytest.mark.parametrize("step_rows", [2, 5_000])
@pytest.mark.parametrize(("table", "trim"), [("rejected", trim_rejected), ("event", trim_events)])
def test_side_tables_are_trimmed_by_size(
    db: Builder, store: TestStore, table: str, trim: Any, step_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "STEP_ROWS", step_rows)
    fill(db, table, [(MIDNIGHT + n, 300) for n in range(10)])
    assert sum(trim(store, MIDNIGHT, 30, 1199)) == 7
    left = db.db.execute(f"SELECT id FROM {table} ORDER BY id").fetchall()
    assert left == [(8,), (9,), (10,)]
    assert sum(trim(store, MIDNIGHT, 30, 1199)) == 0


def test_free_space_is_given_back_in_pieces(db: Builder, store: TestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "STEP_PAGES", 50)
    epoch = db.epoch(opened_us=MIDNIGHT - DAY_US, heard_us=MIDNIGHT - 1, reason="stop")
    db.rows((epoch << 24 | n, n, None, None, 0, "x" * 500, None) for n in range(1, 2_001))
    db.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full = db.path.stat().st_size
    list(delete_days_before(store, DAY))
    assert len(list(give_back_space(store))) > 2
    assert db.db.execute("PRAGMA freelist_count").fetchone() == (0,)
    db.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert db.path.stat().st_size < full / 10


# --- the rounds ------------------------------------------------------------------------------------------------------


def test_a_round_an_hour_in_steps_with_the_real_store(tmp_path: Path) -> None:
    """1. old rows are there; 2. steps delete them between batches; 3. nothing more is done for an hour; 4. next day."""
    path = tmp_path / "collector.sqlite"
    builder = Builder(path)
    for days in (3, 2, 1):
        opened_us = MIDNIGHT - days * DAY_US
        epoch = builder.epoch(opened_us=opened_us, heard_us=opened_us + 10, reason="stop")
        builder.row(epoch, 1, 0, bids=[], asks=[], keyframe=True)
    builder.close()
    store = OneRun(path, "one", started_us=MIDNIGHT)
    store.open()
    clock, log = StepClock(MIDNIGHT + 5), QuietLog()
    try:
        keeping = Housekeeping(store, clock, retention_days=1)
        while keeping.step(log):
            continue
        assert log.lines == [("retention", {"rows": 4})]  # two rows and two epochs
        assert store.connection.execute("SELECT id >> 24 FROM book").fetchall() == [(3,)]
        clock.wall += DAY_US
        assert not keeping.step(log)
        assert store.connection.execute("SELECT count(*) FROM book").fetchone() == (1,)
        clock.monotonic += ROUND_EVERY_US
        while keeping.step(log):
            continue
        assert store.connection.execute("SELECT count(*) FROM book").fetchone() == (0,)
    finally:
        store.release()


def test_nothing_is_deleted_without_a_retention(db: Builder, store: TestStore) -> None:
    rows_around_midnight(db, {1}, reason="stop")
    keeping = Housekeeping(store, StepClock(MIDNIGHT + 900 * DAY_US))
    while keeping.step(QuietLog()):
        continue
    assert count(db, "book") == 8


def test_store_that_refuses_is_tried_again_in_an_hour() -> None:
    class Refusing:
        asked = 0

        def in_transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
            self.asked += 1
            raise StorageBusy("locked")

    refusing, clock, log = Refusing(), StepClock(MIDNIGHT), QuietLog()
    keeping = Housekeeping(refusing, clock, retention_days=1)
    assert not keeping.step(log)
    assert not keeping.step(log)
    assert (refusing.asked, [key for key, _ in log.lines]) == (1, ["housekeeping_failed"])
    clock.monotonic += ROUND_EVERY_US
    keeping.step(log)
    assert refusing.asked == 2


# --- backup ----------------------------------------------------------------------------------------------------------


def test_backup_is_one_file_with_the_same_content(db: Builder, tmp_path: Path) -> None:
    rows_around_midnight(db, {1, 5})
    seen: list[float] = []
    backup(db.path, tmp_path / "copy.sqlite", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with Reader(db.path) as one, Reader(tmp_path / "copy.sqlite") as other:
        assert list(one.books("upbit")) == list(other.books("upbit"))
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.sqlite"]


def test_backup_ends_although_the_database_is_written_all_the_time(
    db: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "STEP_PAGES", 5)
    epoch = db.epoch(opened_us=T0, heard_us=T0 + 9)
    db.rows((epoch << 24 | n, n, None, None, 1, "[]", "[]" + " " * 400) for n in range(1, 1_001))
    n = 1_000

    def write_between(_: float) -> None:
        nonlocal n
        n += 1
        assert n < 2_000, "the copy starts again and again"
        db.row(epoch, n, n, bids=[], asks=[], keyframe=True)

    backup(db.path, tmp_path / "copy.sqlite", write_between)
    copy = sqlite3.connect(tmp_path / "copy.sqlite")
    assert copy.execute("SELECT count(*) FROM book").fetchone() == (1_000,)
    copy.close()
    assert n > 1_010


def test_backup_never_overwrites(db: Builder, tmp_path: Path) -> None:
    (tmp_path / "copy.sqlite").write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        backup(db.path, tmp_path / "copy.sqlite")
    with pytest.raises(StorageError, match="is there already"):
        backup(db.path, db.path)
    assert (tmp_path / "copy.sqlite").read_text() == "mine"


def test_backup_of_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello" * 100)
    with pytest.raises(NotOurs):
        backup(tmp_path / "text", tmp_path / "copy.sqlite")
    with pytest.raises(StorageError, match="there is no database"):
        backup(tmp_path / "missing", tmp_path / "copy.sqlite")
    assert list(tmp_path.glob("copy*")) == []


def test_backup_to_a_place_that_can_not_be_written(db: Builder, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't be written"):
        backup(db.path, tmp_path / "missing" / "copy.sqlite")


def test_second_backup_to_one_name_is_refused(db: Builder, tmp_path: Path) -> None:
    with (tmp_path / "copy.sqlite.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="under way"):
            backup(db.path, tmp_path / "copy.sqlite")
    backup(db.path, tmp_path / "copy.sqlite")  # what was left behind is replaced


def test_damaged_database_gives_no_backup(db: Builder, tmp_path: Path) -> None:
    epoch = db.epoch(heard_us=T0 + 10_000)
    db.rows((epoch << 24 | n, n, None, None, 1, "[]" + " " * 300, None) for n in range(1, 500))
    db.close()
    content = bytearray(db.path.read_bytes())
    content[80_000:90_000] = b"\xff" * 10_000
    db.path.write_bytes(content)
    with pytest.raises(StorageCorrupt):
        backup(db.path, tmp_path / "copy.sqlite")
    assert list(tmp_path.glob("copy*")) == []


def test_copy_that_differs_is_no_backup(db: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_around_midnight(db, {1})
    told = iter([[(1,)], [(2,)]])
    monkeypatch.setattr(maintenance, "_ledger", lambda _: next(told))
    with pytest.raises(StorageCorrupt, match="same rows"):
        backup(db.path, tmp_path / "copy.sqlite")
    assert list(tmp_path.glob("copy*")) == []


def test_reading_beside_a_writer_gives_up_none_of_its_locks(tmp_path: Path) -> None:
    """A file that is opened and closed loses the locks of its whole process; a writer's must survive a reader."""
    path = tmp_path / "collector.sqlite"
    store = OneRun(path, "one", started_us=T0)
    store.open()
    store.put([Delivery("", 0, (Event(T0, "INFO", "TEST", "text"),), 1)], T0)
    try:
        locks = held_locks(path)
        if not locks:
            pytest.skip("the system does not tell its locks")
        with Reader(path) as reader:
            reader.feeds()
        backup(path, tmp_path / "copy.sqlite")
        assert held_locks(path) == locks
    finally:
        store.release()


def held_locks(path: Path) -> list[str]:
    inode = str(path.stat().st_ino)
    table = Path("/proc/locks")
    lines = table.read_text().splitlines() if table.exists() else []
    return sorted(" ".join(line.split()[1:4]) for line in lines if inode in line.split()[5].split(":"))


def test_an_export_and_a_deletion_at_once(db: Builder, store: TestStore) -> None:
    """A day is deleted while it is read: what comes is right, and the rest is told as missing."""
    rows_around_midnight(db, {1, 3, 5})
    with Reader(db.path) as reader:
        parts = reader.timeline(reader.book_feeds()[0])
        list(delete_days_before(store, DAY))
        items = list(reader.replay(parts))
    assert [item.n for item in items if isinstance(item, BookAt)] == [5, 6, 7, 8]
    assert Gap("missing", MIDNIGHT - 4_000_000, MIDNIGHT) in items
