"""The SQLite store keeps whole what it takes, through errors, kills and full disks, and spares what is not its own."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import storage.sqlite
from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError, StorageFull
from collector.records import (
    CROSSED,
    KEYFRAME,
    ROWS_MAX,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    Rejected,
)
from simulator.judge import judge
from storage.reader import Reader
from storage.sqlite import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION, SQLiteStore, migrations
from storage.store import Batch
from tests.conftest import ROOT
from tests.storage.build import OneRun
from tests.storage.victim import rows_until

T0 = 1_790_000_000_000_000
OPENED = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0, 30)
FIRST = BookRow(1, 1, 0, 5, 77, KEYFRAME, '[["99","1.5"],["98","2"]]', '[["101","0.10"]]')
MARK = CoverageMark(1, T0 + 10, T0 + 5, 1)


def make(path: Path, uid: str = "run 1", *, started_us: int = T0) -> OneRun:
    return OneRun(path, uid, started_us=started_us)


def deliver(*records: Record) -> list[Delivery]:
    return [Delivery("upbit", 1, records, 100)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "collector.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[OneRun]:
    store = make(path)
    store.open()
    yield store
    store.release()


def query(path: Path, sql: str, *values: object) -> list[Any]:
    """Ask the file itself, with a connection of its own."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql, values).fetchall()


def everything(path: Path) -> dict[str, list[Any]]:
    """Return every row of every table."""
    tables = [name for (name,) in query(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {table: query(path, f"SELECT * FROM {table}") for table in tables}


def on_disk(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file below a folder, with its content and the time of its last change."""
    return {
        str(file.relative_to(folder)): (file.read_bytes() if file.is_file() else b"", file.stat().st_mtime_ns)
        for file in folder.rglob("*")
    }


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_new_file_is_made_with_its_folders(tmp_path: Path) -> None:
    store = make(tmp_path / "data" / "of" / "mine.sqlite")
    store.open()
    store.release()
    assert query(store.path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_a_run_appears_with_its_first_batch(store: OneRun) -> None:
    assert query(store.path, "SELECT count(*) FROM run") == [(0,)]
    store.put(deliver(OPENED), T0 + 7)
    assert query(
        store.path, "SELECT uid, collector_id, version, epoch_base, batch, started_us, alive_us, closed_us FROM run"
    ) == [("run 1", "here", "1.2.3", 0, 1, T0, T0 + 7, None)]


def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    store = make(path)
    store.open()
    store.release()
    assert query(path, "PRAGMA application_id") == [(APPLICATION_ID,)]


def test_everything_that_is_promised_of_the_file_is_in_force(store: OneRun) -> None:
    def pragma(name: str) -> object:
        return store.connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2  # FULL
    assert pragma("auto_vacuum") == 2  # INCREMENTAL
    assert pragma("journal_size_limit") == 32 << 20
    assert pragma("busy_timeout") == 500
    assert pragma("foreign_keys") == 1
    assert pragma("application_id") == APPLICATION_ID
    assert pragma("user_version") == SCHEMA_VERSION


def test_what_is_promised_is_in_force_when_the_file_is_opened_again(store: OneRun) -> None:
    store.release()
    store.open()
    pragmas = ("journal_mode", "synchronous", "auto_vacuum", "foreign_keys")
    assert [store.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 2, 2, 1]


def test_a_run_starts_where_the_epochs_of_earlier_runs_end(store: OneRun) -> None:
    store.put(deliver(OPENED, FIRST, EpochOpened(2, "GOPAX", "BTC-KRW", "orderbook", "websocket", T0)), T0)
    store.release()
    later = make(store.path, "run 2", started_us=T0 + 50)
    later.open()
    later.put(deliver(OPENED, FIRST, MARK), T0 + 60)
    later.release()

    assert query(store.path, "SELECT epoch_base, alive_us FROM run ORDER BY id") == [(0, T0), (2, T0 + 60)]
    assert query(store.path, "SELECT id, run FROM epoch ORDER BY id") == [(1, 1), (2, 1), (3, 2)]
    assert query(store.path, "SELECT id >> 24, id & 16777215 FROM book ORDER BY id") == [(1, 1), (3, 1)]
    assert query(store.path, "SELECT epoch, frames FROM coverage ORDER BY epoch") == [(1, 0), (2, 0), (3, 1)]


def test_the_same_run_that_opens_again_goes_on(store: OneRun) -> None:
    store.put(deliver(OPENED), T0)
    store.release()
    store.open()
    store.put(deliver(FIRST), T0)
    assert query(store.path, "SELECT count(*) FROM run") == [(1,)]
    assert query(store.path, "SELECT id >> 24 FROM book") == [(1,)]


def test_an_orderly_end_is_noted(store: OneRun) -> None:
    store.put(deliver(OPENED), T0)
    store.end_run(T0 + 99)
    assert query(store.path, "SELECT alive_us, closed_us FROM run") == [(T0 + 99, T0 + 99)]


def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    store = make(path)
    with pytest.raises(StorageError, match="is not open"):
        store.put(deliver(OPENED), T0)
    with pytest.raises(StorageError, match="is not open"):
        _ = store.connection
    assert store.sizes() == (0, 0)
    store.release()
    assert not path.exists()


def test_sizes_are_those_of_the_file_and_of_its_log(store: OneRun) -> None:
    store.put(deliver(OPENED, FIRST), T0)
    assert store.sizes() == (store.path.stat().st_size, Path(f"{store.path}-wal").stat().st_size)
    assert store.sizes()[1] > 0
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store.sizes() == (store.size_bytes(), 0)


# --- what is not ours -------------------------------------------------------------------------------------------------


def other_program(path: Path, *, application_id: int = 0) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {application_id}")
        db.execute("CREATE TABLE wallet (coins)")


def ours(path: Path, *, version: int = SCHEMA_VERSION) -> None:
    store = make(path)
    store.open()
    store.put(deliver(OPENED, FIRST, MARK), T0)
    store.connection.execute(f"PRAGMA user_version = {version}")
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.release()


REFUSED: dict[str, tuple[Any, str]] = {
    "text": (lambda path: path.write_text("notes\n" * 50), "is not an SQLite database; set storage.path"),
    "one byte": (lambda path: path.write_bytes(b"S"), "is not an SQLite database; set storage.path"),
    "a cut header": (
        lambda path: path.write_bytes(b"SQLite format 3\x00abc"),
        "is not an SQLite database; set storage",
    ),
    "another program's": (other_program, "is a database of another program; set storage.path"),
    "a named other program's": (
        lambda path: other_program(path, application_id=0x0F055112),
        "is a database of another program; set storage.path",
    ),
    "newer": (
        lambda path: ours(path, version=SCHEMA_VERSION + 1),
        rf"is from a newer collector \(schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION}\); install that",
    ),
    "a folder": (lambda path: path.mkdir(), "is a directory; set storage.path"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_ours_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "collector.sqlite"
    prepare, message = REFUSED[kind]
    prepare(path)
    before = on_disk(tmp_path)

    with pytest.raises(NotOurs, match=message):
        make(path).open()

    assert on_disk(tmp_path) == before


def test_a_newer_database_is_known_also_before_its_log_is_in_the_file(store: OneRun, tmp_path: Path) -> None:
    store.put(deliver(OPENED), T0)
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 3}")
    killed = tmp_path / "killed.sqlite"
    for ending in ("", "-wal"):
        shutil.copy(f"{store.path}{ending}", f"{killed}{ending}")
    assert int.from_bytes(killed.read_bytes()[60:64], "big") == SCHEMA_VERSION

    with pytest.raises(NotOurs, match=f"newer collector .schema {SCHEMA_VERSION + 3}"):
        make(killed, "run 2").open()

    assert query(killed, "PRAGMA user_version") == [(SCHEMA_VERSION + 3,)]
    assert query(killed, "SELECT uid FROM run") == [("run 1",)]


def test_a_second_collector_on_the_same_file_is_refused_while_the_first_one_runs(store: OneRun, tmp_path: Path) -> None:
    store.put(deliver(OPENED, FIRST), T0)
    before = on_disk(tmp_path)

    for path in (store.path, tmp_path / "link.sqlite"):
        if path != store.path:
            path.symlink_to(store.path)
        with pytest.raises(NotOurs, match="in use by another collector; stop that one, or set storage"):
            make(path, "run 2").open()

    (tmp_path / "link.sqlite").unlink()
    assert on_disk(tmp_path) == before
    store.put(deliver(MARK), T0)
    store.release()
    second = make(store.path, "run 2")
    second.open()
    second.release()


def test_a_database_of_ours_that_is_damaged_is_told_from_one_that_is_not_ours(path: Path) -> None:
    ours(path)
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * 3996
    path.write_bytes(content)
    with pytest.raises(StorageCorrupt, match="restore a backup, or move the file away and start anew"):
        make(path).open()


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    before = on_disk(tmp_path)
    with pytest.raises(StorageError, match=r"can't be written: .*; give the directory to the user .* set storage"):
        make(tmp_path / "data" / "collector.sqlite").open()
    assert on_disk(tmp_path) == before


@pytest.mark.parametrize("exclusive", [False, True], ids=["writes", "has it to itself"])
@pytest.mark.parametrize("new", [False, True], ids=["ours", "a new file"])
def test_another_programs_lock_is_no_reason_not_to_open(
    path: Path, new: bool, exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: let `SQLiteStore.open` raise what `_PASSING` names, or leave out making the session in `write`."""
    if not new:
        ours(path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.01}))
    with closing(connect(path, isolation_level=None)) as other:
        if exclusive:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        store = make(path, "run 2")
        store.open()
        for _ in range(2):
            with pytest.raises(StorageBusy, match="database is locked; close whatever else writes to it"):
                store.put(deliver(OPENED, FIRST), T0)
        with pytest.raises(NotOurs, match="in use by another collector"):
            make(path, "run 3").open()
        other.execute("ROLLBACK")
    store.put(deliver(OPENED, FIRST), T0)
    store.release()
    assert query(
        path,
        "SELECT b.n FROM book_update b JOIN epoch e ON e.id = b.epoch JOIN run r ON r.id = e.run WHERE r.uid = 'run 2'",
    ) == [(1,)]
    assert query(path, "PRAGMA auto_vacuum") == [(2,)]


def test_a_disk_without_room_is_no_reason_not_to_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: take SQLITE_FULL out of `_PASSING`."""
    migrations = storage.sqlite.migrations

    def full() -> list[tuple[int, str]]:
        raise error_of("SQLITE_FULL")

    monkeypatch.setattr(storage.sqlite, "migrations", full)
    store = make(path)
    store.open()
    with pytest.raises(StorageFull, match="free some space"):
        store.put(deliver(OPENED, FIRST), T0)
    monkeypatch.setattr(storage.sqlite, "migrations", migrations)
    store.put(deliver(OPENED, FIRST), T0)
    store.release()
    assert query(path, "SELECT count(*) FROM book") == [(1,)]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that this process, being nobody for a while, may read and not write; who runs the tests may be root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours(folder / "collector.sqlite")
        (folder / "collector.sqlite.lock").unlink()
        (folder / "collector.sqlite").chmod(0o444)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
                pytest.skip(f"nobody may look into {folder}")
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_file_that_may_not_be_written_is_told_and_left_alone(as_nobody: Path) -> None:
    before = on_disk(as_nobody)
    with pytest.raises(
        StorageError, match=r"can't be read and written: Permission denied; give it to the user .*DB_PATH"
    ):
        make(as_nobody / "collector.sqlite").open()
    assert on_disk(as_nobody) == before


def test_a_folder_that_may_not_be_written_is_told_and_left_alone(as_nobody: Path) -> None:
    before = on_disk(as_nobody)
    for name in ("new.sqlite", "deep/down/new.sqlite"):
        with pytest.raises(StorageError, match=r"can't be written: Permission denied; give the directory .*DB_PATH"):
            make(as_nobody / name).open()
    assert on_disk(as_nobody) == before


# --- migrations -------------------------------------------------------------------------------------------------------

NEXT = SCHEMA_VERSION + 1
NEXT_MIGRATION = """
CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO note (text) SELECT uid FROM run;
ALTER TABLE event ADD COLUMN more TEXT;
CREATE INDEX note_text ON note (text);
"""


def one_more(folder: Path, sql: str = NEXT_MIGRATION) -> Path:
    """Return a folder with all migrations there are and the next one."""
    shutil.copytree(MIGRATIONS, folder, ignore=lambda _, names: [name for name in names if not name.endswith(".sql")])
    (folder / f"{NEXT:04}_next.sql").write_text(sql)
    (folder / "readme.sql").write_text("this is no migration")
    return folder


def schema(path: Path) -> list[Any]:
    return query(path, "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")


def test_migrations_run_once_and_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours(path)
    before = everything(path)
    monkeypatch.setattr(storage.sqlite, "MIGRATIONS", one_more(tmp_path / "migrations"))
    monkeypatch.setattr(storage.sqlite, "SCHEMA_VERSION", NEXT)
    assert [number for number, _ in storage.sqlite.migrations()] == list(range(1, NEXT + 1))

    for _ in range(2):
        store = make(path)
        store.open()
        store.release()

    assert query(path, "PRAGMA user_version") == [(NEXT,)]
    assert query(path, "SELECT text FROM note") == [("run 1",)]
    found = {table: rows for table, rows in everything(path).items() if table != "note"}
    assert found == {**before, "event": [(*row, None) for row in before["event"]]}


def test_what_an_older_schema_holds_is_read_and_kept(path: Path) -> None:
    """A database from before trades, tickers and candles came."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript("".join(sql for number, sql in migrations() if number < 3))
        db.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 2")
        db.executescript(
            "INSERT INTO exchange VALUES (1, 'UPBIT'); INSERT INTO market VALUES (1, 'BTC', 'KRW');"
            "INSERT INTO feed VALUES (1, 1, 1, 'ticker');"
            "INSERT INTO run VALUES (1, 'u', 'here', '1', 0, 5, 5, NULL, 1);"
            "INSERT INTO epoch VALUES (1, 1, 1, 'websocket', NULL, 'unverified', 5, NULL, NULL);"
            "INSERT INTO ticker VALUES (1, 7, NULL, 1, '1.50', NULL, NULL, NULL)"
        )
    with Reader(path) as reader:
        (epoch,) = reader.epochs("upbit", "BTC-KRW", channel="ticker")
        assert (epoch.unit, epoch.opened_us) == (None, 5)
    store = SQLiteStore(path)
    store.open()
    store.release()
    with Reader(path) as reader:
        assert reader.epochs("upbit", "BTC-KRW", channel="ticker") == [epoch]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM ticker").fetchall() == [(1, 7, None, 1, "1.50", None, None, None)]


def test_a_migration_that_fails_leaves_the_old_schema(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours(path)
    before = schema(path), everything(path)
    folder = one_more(tmp_path / "migrations", NEXT_MIGRATION + "CREATE TABLE book (id);")
    monkeypatch.setattr(storage.sqlite, "MIGRATIONS", folder)
    monkeypatch.setattr(storage.sqlite, "SCHEMA_VERSION", NEXT)

    with pytest.raises(StorageError, match="table book already exists"):
        make(path).open()

    assert (schema(path), everything(path)) == before
    assert query(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def victim(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.storage.victim", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("old", [0, SCHEMA_VERSION])
def test_a_migration_killed_before_any_of_its_statements_leaves_the_old_or_the_new(
    old: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = one_more(tmp_path / "migrations")
    if old:
        ours(path)
    before = schema(path) if old else []

    told = victim("migrate", path, folder)

    assert told.returncode == 0, told.stderr
    ended = [int(line.split()[1]) for line in told.stdout.splitlines()]
    assert ended[:-1] == [-signal.SIGKILL] * (len(ended) - 1) and ended[-1] == 0
    # Every statement of the migrations that are due, and BEGIN, version and COMMIT of each.
    due = "".join(sql for number, sql in [*storage.sqlite.migrations(), (NEXT, NEXT_MIGRATION)] if number > old)
    assert len(ended) > len(re.findall(r"^(?:CREATE|ALTER|INSERT)\b", due, re.MULTILINE)) + 3
    copies = [path.with_name(f"{path.name}.{number + 1}") for number in range(len(ended))]
    new = schema(copies[-1])
    found = []
    middle: dict[int, list[Any]] = {}  # between two migrations the file is whole as well
    for copy in copies:
        assert query(copy, "PRAGMA integrity_check") == [("ok",)]
        (version,) = query(copy, "PRAGMA user_version")[0]
        found.append(version)
        middle.setdefault(version, schema(copy))
        assert schema(copy) == {old: before, NEXT: new}.get(version, middle[version])
        if old:
            assert query(copy, "SELECT count(*) FROM book") == [(1,)]
    assert found == sorted(found)
    assert set(found) == set(range(old, NEXT + 1))

    monkeypatch.setattr(storage.sqlite, "MIGRATIONS", folder)
    monkeypatch.setattr(storage.sqlite, "SCHEMA_VERSION", NEXT)
    for copy in copies:
        store = make(copy, "afterwards")
        store.open()
        store.release()
        assert schema(copy) == new


# --- writing ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_record_arrives(store: OneRun) -> None:
    change = BookRow(1, 2, 20, None, None, CROSSED, None, '[["101","0"]]')
    mark = CoverageMark(1, T0 + 30, T0 + 20, 2)
    rejected = Rejected("upbit", "BTC-KRW", T0 + 40, "is no JSON", b"\x00\xff{")
    event = Event(T0 + 41, "ERROR", "UPBIT-BTC", "거절")
    ended = EpochEnded(1, T0 + 30, "rejected")
    store.put(
        [
            *deliver(OPENED, FIRST, EpochVerdict(1, "compared")),
            *deliver(change, mark, ended),
            *deliver(rejected),
            Delivery("", 0, (event,), 10),
        ],
        T0 + 50,
    )

    found = everything(store.path)
    assert found["exchange"] == [(1, "UPBIT")]
    assert found["market"] == [(1, "BTC", "KRW")]
    assert found["feed"] == [(1, 1, 1, "orderbook")]
    assert found["epoch"] == [(1, 1, 1, "websocket", 30, "compared", T0, T0 + 30, "rejected", None)]
    assert found["coverage"] == [(1, T0, T0 + 30, T0 + 20, 2, "rejected")]
    assert found["book"] == [
        (1 << 24 | 1, 0, 5, 77, KEYFRAME, '[["99","1.5"],["98","2"]]', '[["101","0.10"]]'),
        (1 << 24 | 2, 20, None, None, CROSSED, None, '[["101","0"]]'),
    ]
    assert found["rejected"] == [(1, 1, "UPBIT", "BTC-KRW", T0 + 40, "is no JSON", b"\x00\xff{")]
    assert found["event"] == [(1, 1, T0 + 41, "ERROR", "UPBIT-BTC", "거절")]
    assert query(store.path, "SELECT alive_us FROM run") == [(T0 + 50,)]


def test_the_same_records_in_another_batch_leave_their_books_and_their_ledger_once(store: OneRun) -> None:
    second = BookRow(1, 2, 20, None, None, 0, None, '[["101","0"]]')
    batch = deliver(
        OPENED,
        FIRST,
        second,
        EpochVerdict(1, "compared"),
        CoverageMark(1, T0 + 30, T0 + 25, 2),
        EpochEnded(1, T0 + 28, "stale"),
    )
    assert store.put(batch, T0) == 0
    once = everything(store.path)

    assert store.put(batch, T0) == 3  # the epoch and its rows

    assert {**everything(store.path), "run": once["run"]} == once
    assert once["coverage"] == [(1, T0, T0 + 28, T0 + 25, 2, "stale")]


def test_the_same_batch_again_leaves_everything_once(store: OneRun) -> None:
    """Rejected frames and events too, which have no keys of their own.

    Mutation: leave out the comparison of `batch.number` in `SQLiteStore._write`.
    """
    rejected = Rejected("upbit", "BTC-KRW", T0 + 40, "is no JSON", b"{")
    batch = Batch(store.run, 1, tuple(deliver(OPENED, FIRST, MARK, rejected, Event(T0, "INFO", "X", "once"))))
    assert store.write(batch, T0) == 0
    once = everything(store.path)
    assert len(once["rejected"]) == len(once["event"]) == 1

    assert store.write(batch, T0 + 5) == 5

    assert everything(store.path) == once


def test_an_older_mark_does_not_take_coverage_back(store: OneRun) -> None:
    store.put(deliver(OPENED, CoverageMark(1, T0 + 90, T0 + 80, 9)), T0)
    store.put(deliver(CoverageMark(1, T0 + 50, T0 + 40, 5)), T0)
    assert query(store.path, "SELECT heard_until_us, confirmed_until_us, frames FROM coverage") == [
        (T0 + 90, T0 + 80, 9)
    ]


def test_only_the_newest_mark_of_a_batch_counts(store: OneRun) -> None:
    store.put(deliver(OPENED, MARK, CoverageMark(1, T0 + 90, T0 + 80, 9)), T0)
    assert query(store.path, "SELECT heard_until_us, confirmed_until_us, frames FROM coverage") == [
        (T0 + 90, T0 + 80, 9)
    ]


def test_epochs_whose_rows_are_mixed_in_a_batch_keep_their_order(store: OneRun) -> None:
    other = EpochOpened(2, "GOPAX", "ETH-KRW", "orderbook", "websocket", T0)
    rows = [BookRow(epoch, n, n, None, None, 0, f'[["{epoch}","{n}"]]', None) for n in range(1, 50) for epoch in (2, 1)]
    store.put([*deliver(OPENED, other), *(delivery for row in rows for delivery in deliver(row))], T0)
    assert query(store.path, "SELECT epoch, n, exchange, symbol, bids FROM book_update ORDER BY epoch, n") == [
        (epoch, n, exchange, symbol, f'[["{epoch}","{n}"]]')
        for epoch, exchange, symbol in ((1, "UPBIT", "BTC"), (2, "GOPAX", "ETH"))
        for n in range(1, 50)
    ]


@pytest.mark.parametrize(
    ("poison", "error"),
    [
        (Event(T0, "INFO", "X", None), StorageError),  # type: ignore[arg-type]
        (Event(T0, "INFO", "X", "half a pair \ud83d"), UnicodeEncodeError),
    ],
    ids=["what SQLite refuses", "what Python can't hand over"],
)
def test_a_batch_that_fails_at_its_end_leaves_nothing(store: OneRun, poison: Record, error: type[Exception]) -> None:
    before = everything(store.path)

    with pytest.raises(error):
        store.put(deliver(OPENED, FIRST, MARK, poison), T0)

    assert everything(store.path) == before
    store.put(deliver(OPENED, FIRST, MARK), T0)
    assert query(store.path, "SELECT epoch, n FROM book_update") == [(1, 1)]


def test_ids_given_out_in_a_transaction_that_did_not_happen_are_forgotten(store: OneRun) -> None:
    bad = Event(T0, "INFO", "X", None)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        store.put(deliver(OPENED, FIRST, bad), T0)
    gopax = EpochOpened(1, "GOPAX", "ETH-USDT", "orderbook", "websocket", T0)
    upbit = EpochOpened(2, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0)

    store.put(deliver(gopax, upbit), T0)
    store.put(deliver(EpochOpened(3, "GOPAX", "ETH-USDT", "orderbook", "rest", T0)), T0)

    assert query(
        store.path,
        "SELECT e.id, x.name, m.symbol, m.currency FROM epoch e JOIN feed f ON f.id = e.feed "
        "JOIN exchange x ON x.id = f.exchange JOIN market m ON m.id = f.market ORDER BY e.id",
    ) == [(1, "GOPAX", "ETH", "USDT"), (2, "UPBIT", "BTC", "KRW"), (3, "GOPAX", "ETH", "USDT")]
    assert query(store.path, "PRAGMA foreign_key_check") == []
    assert query(store.path, "SELECT count(*) FROM feed") == [(2,)]


def test_a_full_disk_is_told_loses_nothing_and_goes_on_when_there_is_space(store: OneRun) -> None:
    store.put(deliver(OPENED, FIRST, MARK), T0)
    before = everything(store.path)
    (pages,) = store.connection.execute("PRAGMA page_count").fetchone()
    store.connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    batch = deliver(
        *(BookRow(1, n, n, None, None, 0, "x" * 1000, None) for n in range(2, 100)),
        CoverageMark(1, T0 + 99, T0 + 99, 99),
    )

    for _ in range(3):
        with pytest.raises(StorageFull, match="free some space, the collector goes on by itself"):
            store.put(batch, T0 + 1)
        assert everything(store.path) == before

    store.connection.execute("PRAGMA max_page_count = 1000000")
    store.put(batch, T0 + 2)
    assert query(store.path, "SELECT count(*), frames FROM book, coverage") == [(99, 99)]
    assert query(store.path, "PRAGMA integrity_check") == [("ok",)]


def test_a_locked_database_is_busy_and_takes_the_batch_later(store: OneRun) -> None:
    store.connection.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy, match="locked"):
            store.put(deliver(OPENED, FIRST), T0)
        other.execute("ROLLBACK")
    store.put(deliver(OPENED, FIRST), T0)
    assert query(store.path, "SELECT count(*) FROM book") == [(1,)]


def test_who_reads_does_not_hold_up_who_writes(store: OneRun) -> None:
    store.connection.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM book").fetchone()
        store.put(deliver(OPENED, FIRST), T0)
        assert reader.execute("SELECT count(*) FROM book").fetchone() == (0,)


class BeyondRollback:
    """A connection whose disk fails in the middle of a transaction, also for the roll-back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    in_transaction = True

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql in ("COMMIT", "ROLLBACK"):
            raise sqlite3.OperationalError("disk I/O error")
        return self.db.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


def test_a_connection_that_cannot_even_roll_back_is_replaced_as_soon_as_that_works(
    store: OneRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: OneRun) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(store, "_db", BeyondRollback(store.connection))
    with pytest.raises(StorageError, match="disk I/O error"):
        store.put(deliver(OPENED, FIRST), T0)
    with monkeypatch.context() as away:
        away.setattr(SQLiteStore, "_connect", fail)
        for _ in range(2):
            with pytest.raises(StorageError, match="unable to open database file"):
                store.put(deliver(OPENED, FIRST), T0)

    store.put(deliver(OPENED, FIRST), T0)

    assert query(store.path, "SELECT epoch, n FROM book_update") == [(1, 1)]
    assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,)


def error_of(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError("what happened")
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("name", "kind", "advice"),
    [
        ("SQLITE_BUSY", StorageBusy, "close whatever else writes to it"),
        ("SQLITE_BUSY_SNAPSHOT", StorageBusy, "close whatever else writes to it"),
        ("SQLITE_LOCKED_SHAREDCACHE", StorageBusy, "close whatever else writes to it"),
        ("SQLITE_FULL", StorageFull, "free some space"),
        ("SQLITE_CORRUPT_INDEX", StorageCorrupt, "restore a backup"),
        ("SQLITE_NOTADB", StorageCorrupt, "restore a backup"),
        ("SQLITE_READONLY_DBMOVED", StorageBusy, "give the file and its directory to the user"),
        ("SQLITE_CANTOPEN", StorageBusy, "give the file and its directory to the user"),
        ("SQLITE_IOERR_FSYNC", StorageBusy, "what happened"),
        ("SQLITE_NOMEM", StorageBusy, "what happened"),
        ("SQLITE_CONSTRAINT_NOTNULL", StorageError, "what happened"),
        ("", StorageError, "what happened"),
    ],
)
def test_an_error_of_sqlite_is_what_the_writer_does_next(
    store: OneRun, name: str, kind: type[StorageError], advice: str
) -> None:
    def fail(db: sqlite3.Connection) -> None:
        raise error_of(name)

    with pytest.raises(kind, match=advice) as told:
        store.in_transaction(fail)

    assert type(told.value) is kind
    assert str(told.value).startswith(f"{store.path}: what happened")


def test_maintenance_is_all_or_nothing_too(store: OneRun) -> None:
    def note(db: sqlite3.Connection, fail: bool) -> int:
        db.execute("INSERT INTO exchange (name) VALUES ('X')")
        if fail:
            raise KeyError("our bug")
        return 42

    with pytest.raises(KeyError):
        store.in_transaction(lambda db: note(db, True))
    assert query(store.path, "SELECT count(*) FROM exchange") == [(0,)]
    assert store.in_transaction(lambda db: note(db, False)) == 42
    assert query(store.path, "SELECT count(*) FROM exchange") == [(1,)]


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '[["0.00000000000000000001","99999999999999999999999999999.123456789"]]',
        '[["1","0.10"],["01","1.0"]]',
        'not JSON at all: "quoted", \\back\\slash, {brace',
        "한글 \u2028 \U0001f4c8 \x01 \x7f \ufeff\n\t",
        "",
        "null",
        "x" * 200_000,
    ],
)
def test_the_text_of_a_side_is_stored_byte_for_byte(store: OneRun, text: str) -> None:
    store.put(deliver(OPENED, BookRow(1, 1, 0, None, None, KEYFRAME, text, None)), T0)
    assert query(store.path, "SELECT CAST(bids AS BLOB), typeof(bids), asks FROM book") == [
        (text.encode(), "text", None)
    ]


@pytest.mark.parametrize("number", [0, 1, -1, 2**31, 2**53 + 1, 2**62 - 1, 2**63 - 1, -(2**63)])
def test_integers_are_exact_up_to_the_limits(store: OneRun, number: int) -> None:
    store.put(deliver(OPENED, BookRow(1, 1, number, number, number, 15, None, None)), T0)
    assert query(store.path, "SELECT at_us, lag_us, sequence, flags, typeof(sequence) FROM book") == [
        (number, number, number, 15, "integer")
    ]


def test_the_last_number_of_an_epoch_does_not_reach_into_the_next_one(store: OneRun) -> None:
    store.put(deliver(OPENED, BookRow(1, ROWS_MAX, 0, None, None, KEYFRAME, "[]", "[]")), T0)
    store.put(deliver(EpochOpened(2, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0)), T0)
    assert query(store.path, "SELECT epoch, n FROM book_update") == [(1, ROWS_MAX)]


def test_high_epochs_are_told_apart(store: OneRun) -> None:
    epochs = (1, 1000, 2**31 - 1)
    for epoch in epochs:
        opened = EpochOpened(epoch, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0)
        store.put(deliver(opened, BookRow(epoch, 7, 0, None, None, KEYFRAME, "[]", "[]")), T0)
    assert query(store.path, "SELECT epoch, n FROM book_update ORDER BY epoch") == [(epoch, 7) for epoch in epochs]


# --- the views --------------------------------------------------------------------------------------------------------

OWNERS_COLUMNS = ["exchange", "symbol", "currency", "timestamp", "side", "price", "volume"]


def columns(path: Path, view: str) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [column[0] for column in db.execute(f"SELECT * FROM {view}").description]


@pytest.fixture
def viewed(store: OneRun) -> Path:
    change = BookRow(1, 2, 1_500_000, 500_000, 78, 0, '[["98","0"]]', '[["100.5","1E-8"]]')
    store.put(deliver(OPENED, FIRST, change), T0)
    return store.path


def test_orderbook_is_the_owners_table(viewed: Path) -> None:
    assert columns(viewed, "orderbook") == OWNERS_COLUMNS
    assert sorted(query(viewed, "SELECT * FROM orderbook")) == [
        ("UPBIT", "BTC", "KRW", T0 / 1e6, "ask", 101, 0.1),
        ("UPBIT", "BTC", "KRW", T0 / 1e6, "bid", 98, 2),
        ("UPBIT", "BTC", "KRW", T0 / 1e6, "bid", 99, 1.5),
    ]


def test_prices_of_the_views_compare_as_numbers(viewed: Path) -> None:
    assert query(viewed, "SELECT price FROM orderbook WHERE price > 98.5 AND price < 100.0") == [(99,)]
    assert query(viewed, "SELECT DISTINCT typeof(price) FROM orderbook") == [("integer",)]
    assert {kind for (kind,) in query(viewed, "SELECT typeof(volume) FROM orderbook")} == {"integer", "real"}
    assert query(viewed, "SELECT sum(price * volume) FROM orderbook WHERE side = 'bid'") == [(344.5,)]


def test_orderbook_change_has_the_same_columns_for_what_lies_between(viewed: Path) -> None:
    assert columns(viewed, "orderbook_change") == OWNERS_COLUMNS
    assert sorted(query(viewed, "SELECT * FROM orderbook_change")) == [
        ("UPBIT", "BTC", "KRW", (T0 + 1_500_000) / 1e6, "ask", 100.5, 1e-8),
        ("UPBIT", "BTC", "KRW", (T0 + 1_500_000) / 1e6, "bid", 98, 0),
    ]


def test_book_update_spells_everything_out(viewed: Path) -> None:
    names = columns(viewed, "book_update")
    rows = [dict(zip(names, row, strict=True)) for row in query(viewed, "SELECT * FROM book_update ORDER BY n")]
    assert names == [
        "epoch", "n", "exchange", "symbol", "currency", "received_us", "venue_us", "sequence", "keyframe", "crossed",
        "checksum_mismatch", "sampled", "bids", "asks",
    ]  # fmt: skip
    assert [(row["n"], row["received_us"], row["venue_us"], row["sequence"], row["keyframe"]) for row in rows] == [
        (1, T0, T0 - 5, 77, 1),
        (2, T0 + 1_500_000, T0 + 1_000_000, 78, 0),
    ]
    assert rows[0]["asks"] == '[["101","0.10"]]'


@pytest.mark.parametrize(("bit", "name"), [(1, "keyframe"), (2, "crossed"), (4, "checksum_mismatch"), (8, "sampled")])
def test_each_flag_has_its_column(store: OneRun, bit: int, name: str) -> None:
    store.put(deliver(OPENED, BookRow(1, 1, 0, None, None, bit, "[]", "[]")), T0)
    assert query(store.path, "SELECT keyframe, crossed, checksum_mismatch, sampled FROM book_update") == [
        tuple(int(name == other) for other in ("keyframe", "crossed", "checksum_mismatch", "sampled"))
    ]


def test_keyframes_are_found_by_their_index(store: OneRun) -> None:
    plan = query(store.path, "EXPLAIN QUERY PLAN SELECT id FROM book WHERE flags & 1 AND id < ? ORDER BY id DESC", 9)
    assert any("book_keyframe" in step[3] for step in plan)


# --- kills ------------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_is_there_after_twenty_kills(path: Path) -> None:
    kills = 20
    told = victim("kills", path, kills, 7)

    assert told.returncode == 0, told.stderr
    acknowledged = [int(line.split()[1]) for line in told.stdout.splitlines()]
    assert len(acknowledged) == kills
    assert sum(acknowledged) > kills  # the moments differ
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "PRAGMA foreign_key_check") == []
    whole = {rows_until(number): number for number in range(1000)}
    for run, batches in enumerate(acknowledged):
        ((epoch, frames, heard_us),) = query(
            path,
            "SELECT c.epoch, c.frames, c.heard_until_us FROM coverage c JOIN epoch e ON e.id = c.epoch "
            "JOIN run r ON r.id = e.run WHERE r.uid = ?",
            f"run {run}",
        )
        ((rows, first, last),) = query(path, "SELECT count(*), min(n), max(n) FROM book_update WHERE epoch = ?", epoch)
        ((events,),) = query(
            path, "SELECT count(*) FROM event e JOIN run r ON r.id = e.run WHERE uid = ?", f"run {run}"
        )
        assert rows >= rows_until(batches), f"run {run}: {batches} batches were acknowledged"
        assert rows in whole and events == whole[rows], "a batch is there in part"
        assert (first, last) == (1, rows)
        assert frames == rows and heard_us == 1_000_000 + 1000 * rows, "the ledger claims what is not there"


def test_coverage_moves_in_the_transaction_of_its_data(path: Path, tmp_path: Path) -> None:
    """Killed between coverage and the end of a batch: the store as it is holds neither."""
    told = victim("ledger", path, tmp_path / "ledger", "together")
    assert told.returncode == -signal.SIGKILL, told.stderr

    verdict = judge(tmp_path / "ledger", path)

    assert verdict.good, verdict.notes
    assert (verdict.sent, verdict.stored, verdict.outside) == (12, 9, 3)


def test_the_judge_finds_out_a_store_that_commits_coverage_first(path: Path, tmp_path: Path) -> None:
    """The same kill with the transaction split in two."""
    told = victim("ledger", path, tmp_path / "ledger", "apart")
    assert told.returncode == -signal.SIGKILL, told.stderr

    verdict = judge(tmp_path / "ledger", path)

    assert not verdict.good
    assert verdict.wrong + verdict.missing > 0
    assert any("has no row" in note for note in verdict.notes), verdict.notes


def test_books_are_kept_as_json_that_others_can_read(store: OneRun) -> None:
    store.put(deliver(OPENED, FIRST), T0)
    ((bids,),) = query(store.path, "SELECT bids FROM book")
    assert json.loads(bids) == [["99", "1.5"], ["98", "2"]]
