"""SQLite into PostgreSQL: equal to the last digit, whatever came between, and nothing claimed before it is."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest

from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError
from collector.records import KEYFRAME, BookRow, CoverageMark, EpochEnded, EpochOpened, Event, Rejected
from storage import migrate as migrate_module
from storage.coverage import coverage
from storage.migrate import Receipt, migrate
from storage.postgres import PostgresStore
from storage.postgres_database import Session
from storage.reader import BookAt, Gap, Reader
from storage.sqlite import SQLiteStore
from storage.store import Run
from tests.postgres import Door
from tests.storage.story import DAY_US, MIDNIGHT, S, batch, story, write_all

_T = TypeVar("_T")
RUN = Run("run 0", "here", "1.2.3", MIDNIGHT)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_module, "CHUNK_ROWS", 40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "collector.sqlite"
    store = SQLiteStore(path)
    store.open()
    write_all(store, story(3))
    store.release()
    with closing(sqlite3.connect(path)) as db, db:
        for number in range(100):
            time_us = MIDNIGHT + number * DAY_US // 30
            feed, epoch = number % 3 + 1, number % 5 + 1
            db.execute(
                "INSERT INTO trade VALUES (?, ?, ?, ?, ?, 'buy', '1.50', '2')", (feed, time_us, f"t{number}", 5, epoch)
            )
            db.execute("INSERT INTO ticker VALUES (?, ?, NULL, ?, '1', NULL, '2.0', NULL)", (feed, time_us, epoch))
            db.execute(
                "INSERT INTO candle VALUES (?, 60, ?, '1', '2', '3', '4', '5', 0, ?, ?)", (feed, time_us, 5, epoch)
            )
    return path


def ask(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


def ask_file(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


TOLD = {
    "feeds": "SELECT x.name, m.symbol, m.currency, f.channel FROM feed AS f JOIN exchange AS x ON x.id = f.exchange "
    "JOIN market AS m ON m.id = f.market ORDER BY 1, 2, 3, 4",
    "runs": "SELECT uid, collector_id, version, batch, started_us, alive_us, closed_us FROM run ORDER BY uid",
    "ledger": "SELECT r.uid, e.opened_us, e.transport, e.depth, e.verdict, e.ended_us, e.reason, c.from_us, "
    "c.heard_until_us, c.confirmed_until_us, c.frames, c.reason FROM coverage AS c JOIN epoch AS e ON e.id = c.epoch "
    "JOIN run AS r ON r.id = e.run ORDER BY r.uid, e.opened_us, e.feed, e.id",
    "trade": "SELECT venue_us, trade_id, received_us, side, price, volume FROM trade ORDER BY 1, 2",
    "ticker": "SELECT received_us, venue_us, last, bid, ask, volume FROM ticker ORDER BY 1, 2",
    "candle": "SELECT interval_s, open_us, open, high, low, close, volume, closed, received_us FROM candle "
    "ORDER BY 1, 2",
    "rejected": "SELECT r.uid, exchange, market, received_us, reason, frame FROM rejected JOIN run AS r ON r.id = run "
    "ORDER BY rejected.id",
    "event": "SELECT r.uid, time_us, level, tag, text FROM event JOIN run AS r ON r.id = run ORDER BY event.id",
}


def books(database: Path | str) -> list[Any]:
    """Every book and gap there is, without the epochs' ids, which are the database's own."""
    found: list[Any] = []
    with Reader(database) as reader:
        for exchange in ("upbit", "gopax"):
            for item in reader.books(exchange, gaps=True):
                if isinstance(item, BookAt):
                    item = msgspec.structs.replace(item, source=msgspec.structs.replace(item.source, id=0))
                found.append(item)
        return [*found, *coverage(reader)]


def assert_equal(path: Path, url: str) -> None:
    for name, sql in TOLD.items():
        assert ask(url, sql) == ask_file(path, sql), name
    assert books(url) == books(path)
    assert any(isinstance(item, Gap) for item in books(url))


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_the_copy_is_equal_and_the_receipt_says_so(path: Path, postgres_url: str) -> None:
    seen: list[float] = []
    receipt = migrate(path, postgres_url, seen.append)
    assert_equal(path, postgres_url)
    counts = {name: ask_file(path, f"SELECT count(*) FROM {name}")[0][0] for name in receipt.rows}
    assert receipt.rows == counts
    assert counts["book"] > 100 < counts["trade"] + counts["event"]
    assert receipt.epochs == ask_file(path, "SELECT count(*) FROM epoch")[0][0]
    assert (receipt.left_out, len(receipt.sha256), receipt.source) == (0, 64, "collector.sqlite")
    assert receipt.summary().startswith(f"collector.sqlite: {counts['book']} book, 100 trade, ")
    assert seen == sorted(seen)
    assert (seen[0] < 0.5, seen[-1]) == (True, 1.0)
    assert ask(postgres_url, "SELECT DISTINCT tableoid::regclass::text LIKE 'book_20241%' FROM book") == [(True,)]


def test_copying_again_changes_nothing(path: Path, postgres_url: str) -> None:
    first = migrate(path, postgres_url)
    assert migrate(path, postgres_url) == first
    assert_equal(path, postgres_url)


def test_an_empty_database_is_copied(tmp_path: Path, postgres_url: str) -> None:
    store = SQLiteStore(tmp_path / "empty.sqlite")
    store.open()
    store.release()
    receipt = migrate(tmp_path / "empty.sqlite", postgres_url)
    assert (sum(receipt.rows.values()), receipt.epochs) == (0, 0)
    assert receipt.summary().startswith("empty.sqlite: no rows in 0 epochs copied")


class Killed(BaseException):
    """What nobody handles."""


@pytest.mark.parametrize("after", ["commit", "work"])
def test_it_goes_on_after_a_kill_at_any_point(
    path: Path, postgres_url: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every start gets one transaction further than the one before, if it has to write; then it dies.

    Fails where the position is committed apart from the rows: events, which have no key of their own, are there twice
    or not at all. Fails where the ledger goes before the books.
    """
    in_transaction = PostgresStore.in_transaction
    left = 0

    def dying(self: PostgresStore, work: Callable[[Session], _T]) -> _T:
        nonlocal left
        left -= 1
        if left > 0:
            return in_transaction(self, work)

        def work_and_die(db: Session) -> _T:
            work(db)
            raise Killed

        if after == "work":
            return in_transaction(self, work_and_die)
        in_transaction(self, work)
        raise Killed

    monkeypatch.setattr(PostgresStore, "in_transaction", dying)
    receipt: Receipt | None = None
    ((rows,),) = ask_file(path, "SELECT count(*) FROM book")
    kills = 0
    while receipt is None:
        left = 3 + kills
        try:
            receipt = migrate(path, postgres_url)
        except Killed:
            kills += 1
            ((claimed, there),) = ask(
                postgres_url, "SELECT (SELECT count(*) FROM coverage), (SELECT count(*) FROM book)"
            )
            assert claimed == 0 or there == rows
    monkeypatch.undo()
    assert kills > 20
    assert_equal(path, postgres_url)
    assert receipt == migrate(path, postgres_url)


def test_a_connection_that_ends_is_told_and_the_next_try_goes_on(
    path: Path, postgres_door: tuple[Door, str], postgres_url: str
) -> None:
    door, url = postgres_door
    pieces = 0

    def cut(data: bytes) -> bool:
        nonlocal pieces
        pieces += b"COPY stage" in data
        return pieces == 4

    door.cut_on = cut
    with pytest.raises(StorageBusy):
        migrate(path, url)
    door.cut_on = lambda data: False
    migrate(path, url)
    assert_equal(path, postgres_url)


def test_what_was_written_between_two_tries_is_copied_too(
    path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without `_START_AGAIN`: rows behind the position are left out."""
    migrate(path, postgres_url)
    store = SQLiteStore(path)
    store.open()
    ((newest, runs),) = ask_file(path, "SELECT max(batch), count(*) FROM run WHERE uid = 'run 0'")
    assert runs == 1
    # Out of the spool: rows of the first run, whose keys are before all others.
    store.write(
        batch(RUN, newest + 1, BookRow(1, 5_000, DAY_US, None, None, KEYFRAME, "[]", "[]")), MIDNIGHT + 9 * DAY_US
    )
    store.release()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO trade VALUES (1, 1, 'early', 1, 1, 'buy', '1', '1')")
        db.execute("UPDATE candle SET close = '9', closed = 1, received_us = received_us + 1 WHERE feed = 2")
    migrate(path, postgres_url)
    assert_equal(path, postgres_url)
    assert ask(postgres_url, "SELECT count(*) FROM book WHERE n = 5000") == [(1,)]


def test_a_collector_may_be_writing_there_and_its_own_is_left_alone(path: Path, postgres_url: str) -> None:
    other = PostgresStore(postgres_url)
    run = Run("another", "there", "1", MIDNIGHT)
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", MIDNIGHT, 15)
    other.write(
        batch(
            run, 1, opened, BookRow(1, 1, 0, None, None, KEYFRAME, "[]", "[]"), CoverageMark(1, MIDNIGHT, MIDNIGHT, 1)
        ),
        1,
    )
    migrate(path, postgres_url)
    other.write(batch(run, 2, CoverageMark(1, MIDNIGHT + S, MIDNIGHT + S, 2)), 1)
    other.release()
    mine = (
        "SELECT c.frames FROM coverage AS c JOIN epoch AS e ON e.id = c.epoch JOIN run ON run.id = e.run "
        "WHERE uid = 'another'"
    )
    assert ask(postgres_url, mine) == [(2,)]
    ((count,),) = ask_file(path, "SELECT count(*) FROM book")
    assert ask(postgres_url, "SELECT count(*) FROM book") == [(count + 1,)]


def test_what_the_spool_brought_before_stays(tmp_path: Path, postgres_url: str) -> None:
    """The address was changed first: what waited in the spool went to the server before the file was copied."""
    path = tmp_path / "collector.sqlite"
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", MIDNIGHT, 15)
    book = BookRow(1, 1, 0, None, None, KEYFRAME, "[]", "[]")
    first = batch(RUN, 1, opened, book, CoverageMark(1, MIDNIGHT + S, MIDNIGHT + S, 1), Event(1, "INFO", "T", "one"))
    file = SQLiteStore(path)
    file.open()
    file.write(first, MIDNIGHT + 1)
    file.release()
    server = PostgresStore(postgres_url)
    server.write(first, MIDNIGHT + 1)  # its outcome was not known
    change = BookRow(1, 2, 2 * S, None, None, 0, '[["1","1"]]', None)
    marks = CoverageMark(1, MIDNIGHT + 3 * S, MIDNIGHT + 3 * S, 2), EpochEnded(1, MIDNIGHT + 3 * S, "stop")
    server.write(batch(RUN, 2, change, *marks), MIDNIGHT + 5)
    server.close_run(RUN, MIDNIGHT + 6)
    server.release()
    migrate(path, postgres_url)
    assert ask(postgres_url, "SELECT batch, alive_us, closed_us FROM run") == [(2, MIDNIGHT + 6, MIDNIGHT + 6)]
    assert ask(postgres_url, "SELECT heard_until_us, frames, reason FROM coverage") == [(MIDNIGHT + 3 * S, 2, "stop")]
    assert ask(postgres_url, "SELECT n FROM book ORDER BY n") == [(1,), (2,)]


def test_what_can_not_be_stored_as_it_is_is_spelt_out_on_both_sides(tmp_path: Path, postgres_url: str) -> None:
    path = tmp_path / "collector.sqlite"
    store = SQLiteStore(path)
    store.open()
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", MIDNIGHT, 15)
    records = (
        BookRow(1, 1, 0, 1 << 70, 1 << 70, KEYFRAME, '[["1","1"]]', "[]"),
        Rejected("upbit", None, 1, "a\0b", b"\0"),
    )
    store.write(batch(RUN, 1, opened, *records), 1)
    store.release()
    migrate(path, postgres_url)
    assert ask(postgres_url, "SELECT venue_us, sequence, bids FROM book") == [(None, None, '[["1","1"]]')]
    assert ask(postgres_url, "SELECT reason, frame FROM rejected") == [("a\\x00b", b"\0")]


def test_rows_of_unknown_epochs_are_counted_and_left_out(path: Path, postgres_url: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO book VALUES (?, 0, NULL, NULL, 1, '[]', '[]')", (999 << 24 | 1,))
    receipt = migrate(path, postgres_url)
    assert receipt.left_out == 1
    assert "1 rows of unknown epochs left out" in receipt.summary()
    assert_equal(path, postgres_url)


# --- what stops it ----------------------------------------------------------------------------------------------------


def test_a_difference_is_found_and_nothing_is_claimed(
    path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without the comparison in `_compare_books`, or with the ledger before it."""
    monkeypatch.setattr(migrate_module._Copy, "_compare_books", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        migrate(path, postgres_url)
    monkeypatch.undo()
    ask(postgres_url, 'UPDATE book SET bids = \'[["1","2"]]\' WHERE epoch = 5 AND n = 1')
    with pytest.raises(StorageCorrupt, match=r"epoch \d+ of run run \d does not hold the books of collector.sqlite"):
        migrate(path, postgres_url)
    assert ask(postgres_url, "SELECT count(*) FROM coverage") == [(0,)]


@pytest.fixture
def running(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    store.open()
    yield store
    store.release()


@pytest.mark.usefixtures("running")
def test_a_file_that_is_being_written_is_not_copied(path: Path, postgres_url: str) -> None:
    """Fails without `file.open()`."""
    with pytest.raises(NotOurs, match="in use by another collector"):
        migrate(path, postgres_url)
    assert ask(postgres_url, "SELECT count(*) FROM pg_class WHERE relname = 'book'") == [(0,)]


def test_what_is_no_database_of_ours_is_told(tmp_path: Path, path: Path, postgres_url: str) -> None:
    with pytest.raises(StorageError, match="there is no database at"):
        migrate(tmp_path / "nothing.sqlite", postgres_url)
    assert not (tmp_path / "nothing.sqlite").exists()
    ask(postgres_url, "CREATE TABLE wallet (coins integer)")
    with pytest.raises(NotOurs, match="tables of another program"):
        migrate(path, postgres_url)
