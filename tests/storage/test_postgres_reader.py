"""Reading from PostgreSQL: pages, days, sessions that hold nothing up, and what several collectors heard."""

import re
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from collector.errors import ConfigError, NotOurs, StorageBusy, StorageCorrupt, StorageError
from collector.records import KEYFRAME, BookRow, CoverageMark, EpochEnded, EpochOpened, Record
from storage import DataConverter, postgres_source, source
from storage.coverage import Interval, coverage
from storage.postgres import PostgresStore
from storage.postgres_source import PostgresSource
from storage.reader import BookAt, Gap, Reader, UnknownFeed
from storage.store import Run
from tests.postgres import Door
from tests.storage.story import DAY_US, MIDNIGHT, S, batch

T0 = MIDNIGHT
RUN = Run("run 1", "here", "1.2.3", T0)
_numbers = count(1)


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_url)
    store.check()
    yield store
    store.release()


def write(store: PostgresStore, *records: Record, run: Run = RUN, now_us: int = T0 + 30 * DAY_US) -> None:
    store.write(batch(run, next(_numbers), *records), now_us)


def opened(epoch: int, at_us: int = T0, market: str = "BTC-KRW") -> EpochOpened:
    return EpochOpened(epoch, "UPBIT", market, "orderbook", "websocket", at_us, 15)


def row(n: int, at_us: int, *, epoch: int = 1, keyframe: bool = False) -> BookRow:
    asks = '[["101","1"]]' if keyframe else None
    return BookRow(epoch, n, at_us, 7, n, KEYFRAME * keyframe, f'[["99","{n}"]]', asks)


def mark(until_us: int, *, epoch: int = 1, frames: int = 1) -> CoverageMark:
    return CoverageMark(epoch, until_us, until_us, frames)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_database_without_tables_is_told(postgres_url: str) -> None:
    with pytest.raises(NotOurs, match="holds no tables yet; the collector has not reached it"):
        Reader(postgres_url)


def test_a_database_of_another_program_is_told(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as db:
        db.execute("CREATE TABLE wallet (coins integer)")
    with pytest.raises(NotOurs, match="tables of another program"):
        Reader(postgres_url)


def test_a_newer_database_is_told(store: PostgresStore, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as db:
        db.execute("INSERT INTO collector_schema (version) VALUES (99)")
    with pytest.raises(NotOurs, match="from a newer collector"):
        Reader(postgres_url)


def test_what_can_not_be_reached_or_read_is_told(postgres_door: tuple[Door, str]) -> None:
    door, url = postgres_door
    door.shut()
    with pytest.raises(StorageBusy, match="refused"):
        Reader(url)
    with pytest.raises(ConfigError, match="can't be read"):
        Reader("postgresql://me:p@ss@/x")


def test_a_connection_that_ends_meanwhile_is_told(store: PostgresStore, postgres_door: tuple[Door, str]) -> None:
    write(store, opened(1), row(1, 0, keyframe=True), mark(T0 + S))
    door, url = postgres_door
    with Reader(url) as reader:
        door.shut()
        with pytest.raises(StorageBusy):
            list(reader.books("upbit"))


def test_a_reader_can_not_write(store: PostgresStore, postgres_url: str) -> None:
    with closing(PostgresSource(postgres_url)) as opened_source:
        with pytest.raises(StorageError, match="read-only transaction"):
            opened_source._all("DELETE FROM book", ())
        with pytest.raises(StorageError, match="read-only transaction"):
            opened_source._all("CREATE TABLE x (y integer)", ())


def test_a_role_that_may_only_read_can_read(store: PostgresStore, postgres_url: str) -> None:
    """The grants are those of docs/postgresql.md."""
    write(store, opened(1), row(1, 0, keyframe=True), mark(T0 + S))
    name = urlsplit(postgres_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE reader_{name} LOGIN PASSWORD 'x'")
        db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}")
    parts = urlsplit(postgres_url)
    url = parts._replace(netloc=f"reader_{name}:x@{parts.hostname}:{parts.port}").geturl()
    try:
        with Reader(url) as reader:
            assert [book.n for book in reader.books("upbit")] == [1]
            assert coverage(reader)[0].us("DATA") > 0
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as db:
            db.execute(f"DROP OWNED BY reader_{name}")
            db.execute(f"DROP ROLE reader_{name}")


def test_names_are_those_of_the_database(store: PostgresStore, postgres_url: str) -> None:
    write(store, opened(1), row(1, 0, keyframe=True), mark(T0 + S))
    name = urlsplit(postgres_url).path[1:]
    with Reader(postgres_url) as reader:
        assert reader.name == name
        with pytest.raises(
            UnknownFeed, match=rf"postgresql://.*/{name} holds nothing of exchange 'upbitt'.*mean 'UPBIT'"
        ):
            reader.books("upbitt")
        with pytest.raises(UnknownFeed, match="holds nothing of market"):
            reader.book_at("upbit", "xrp-krw", T0)


def test_rows_nobody_wrote_are_corrupt(store: PostgresStore, postgres_url: str) -> None:
    write(store, opened(1), row(1, 0, keyframe=True), mark(T0 + S))
    with psycopg.connect(postgres_url) as db:
        db.execute("UPDATE book SET bids = '{'")
    with (
        Reader(postgres_url) as reader,
        pytest.raises(StorageCorrupt, match=r"postgresql://.*: book 1/1: levels can't"),
    ):
        list(reader.books("upbit"))


# --- pages and days ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 1 << 20), (5_000, 40), (5_000, 1 << 20)])
def test_pages_join_without_seam(
    store: PostgresStore, postgres_url: str, rows: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (source, postgres_source):
        monkeypatch.setattr(module, "PAGE_ROWS", rows)
        monkeypatch.setattr(module, "PAGE_BYTES", size)
        monkeypatch.setattr(module, "TIMES", rows)
    monkeypatch.setattr(postgres_source, "_FIRST_PAGE_ROWS", 2)
    ns = range(2, 60)
    write(store, opened(1), row(1, 0, keyframe=True), *(row(n, n * DAY_US // 20) for n in ns), mark(T0 + 3 * DAY_US))
    with Reader(postgres_url) as reader:
        books = list(reader.books("upbit"))
        (epoch,) = reader.epochs("upbit", "btc-krw")
        assert list(reader.row_times(epoch, T0, T0 + 9 * DAY_US)) == [T0] + [T0 + n * DAY_US // 20 for n in ns]
    assert [(book.n, book.bids) for book in books] == [(n, (("99", str(n)),)) for n in range(1, 60)]


def test_only_the_days_that_are_asked_for_are_looked_at(store: PostgresStore, postgres_url: str) -> None:
    """Fails without the bounds of received_us in _OF_EPOCH."""
    write(store, opened(1), *(row(n, n * DAY_US // 2, keyframe=n % 2 == 0) for n in range(40)), mark(T0 + 20 * DAY_US))
    write(store, EpochEnded(1, T0 + 20 * DAY_US, "stop"))
    write(store, opened(2, T0 + 30 * DAY_US), row(1, 0, epoch=2, keyframe=True), mark(T0 + 30 * DAY_US + 5, epoch=2))
    write(store, EpochEnded(2, T0 + 30 * DAY_US + 5, "stop"))
    with psycopg.connect(postgres_url) as db:
        assert len(db.execute("SELECT FROM pg_inherits WHERE inhparent = 'book'::regclass").fetchall()) == 22
    asked: list[tuple[str, set[str]]] = []
    execute = psycopg.Connection.execute

    def explained(self: Any, sql: Any, values: Any = None, **options: Any) -> Any:
        if "FROM book" in sql:
            plan = execute(self, f"EXPLAIN {sql}", values).fetchall()
            asked.append((sql, {day for (line,) in plan for day in re.findall(r"book_\d{8}", line)}))
        return execute(self, sql, values, **options)

    with Reader(postgres_url) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", explained)
        book = reader.book_at("upbit", "btc-krw", T0 + 30 * DAY_US + 1)
        assert isinstance(book, BookAt)
        assert [len(days) for _, days in asked] == [1] * 3
        asked.clear()
        assert [book.n for book in reader.books("upbit", None, T0 + 18 * DAY_US, T0 + 19 * DAY_US)] == [36, 37]
    pages = [days for sql, days in asked if "n >= " in sql]
    assert pages
    assert set.union(*pages) <= {f"book_202410{day}" for day in (21, 22, 23, 24, 25)}


def test_nothing_is_held_up_between_two_pages(store: PostgresStore, postgres_url: str) -> None:
    """Fails with `autocommit` off for readers: a transaction stands open as long as the export."""
    write(store, opened(1), row(1, 0, keyframe=True), *(row(n, n) for n in range(2, 900)), mark(T0 + S))
    with Reader(postgres_url) as reader:
        books = reader.books("upbit")
        next(books)
        with psycopg.connect(postgres_url, autocommit=True) as db:
            sessions = db.execute(
                "SELECT state, backend_xmin FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND query LIKE '%FROM book%' AND application_name = 'collector'"
            ).fetchall()
            assert ("idle", None) in sessions
            assert {state for state, _ in sessions} == {"idle"}
            db.execute("SET lock_timeout = '2s'")
            db.execute("ALTER TABLE book ADD COLUMN anything integer")  # needs that nobody reads
        assert len(list(books)) == 898


def test_an_export_holds_little_in_memory(store: PostgresStore, postgres_url: str, tmp_path: Path) -> None:
    side = "[" + ",".join(f'["{price}","1.23456789"]' for price in range(1, 101)) + "]"
    write(
        store, opened(1), *(BookRow(1, n, n, None, None, KEYFRAME, side, side) for n in range(1, 5_001)), mark(T0 + S)
    )
    tracemalloc.start()
    try:
        receipt = DataConverter(postgres_url).export("upbit", tmp_path / "a.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert receipt.bytes > 20_000_000
    assert receipt.books == 5_000
    assert peak < 12_000_000


# --- holes ------------------------------------------------------------------------------------------------------------


def test_a_missing_row_is_a_gap_until_the_next_complete_book(store: PostgresStore, postgres_url: str) -> None:
    records = [row(1, 0, keyframe=True), row(2, 10), row(4, 30), row(5, 40, keyframe=True), row(7, 60)]
    write(store, opened(1), *records, mark(T0 + 100))
    with Reader(postgres_url) as reader:
        items = list(reader.books("upbit", gaps=True))
        assert [
            item.n if isinstance(item, BookAt) else (item.reason, item.from_us, item.until_us) for item in items
        ] == [
            ("never", None, T0),
            1,
            2,
            ("missing", T0 + 10, T0 + 40),
            5,
            ("missing", T0 + 40, T0 + 100),
            ("open", T0 + 100, None),
        ]
        assert reader.book_at("upbit", "btc-krw", T0 + 35) == Gap("missing", T0 + 10, T0 + 40)


def test_rows_beyond_coverage_are_not_served(store: PostgresStore, postgres_url: str) -> None:
    write(
        store,
        opened(1),
        row(1, 0, keyframe=True),
        row(2, 10),
        row(3, 20),
        mark(T0 + 20),
        EpochEnded(1, T0 + 15, "probe"),
    )
    with Reader(postgres_url) as reader:
        assert [book.n for book in reader.books("upbit")] == [1, 2]


# --- several collectors -----------------------------------------------------------------------------------------------


def collect(url: str, name: str, spans: list[tuple[int, int]]) -> None:
    """Write what a collector heard in some spans of seconds, a row a second; then it is killed."""
    store = PostgresStore(url)
    run = Run(f"run of {name}", name, "1", T0)
    for epoch, (start, end) in enumerate(spans, 1):
        at_us = T0 + start * S
        records: list[Record] = [opened(epoch, at_us)]
        for n, second in enumerate(range(start, end), 1):
            bids = f'[["99","{second + 1}"]]'
            records.append(BookRow(epoch, n, (second - start) * S, None, None, KEYFRAME, bids, "[]"))
        records.append(mark(T0 + end * S, epoch=epoch, frames=end - start))
        if epoch < len(spans):
            records.append(EpochEnded(epoch, T0 + end * S, "disconnect"))
        for number, part in enumerate(pairwise(range(0, len(records) + 8, 4)), 100 * epoch):
            store.write(batch(run, number, *records[slice(*part)]), at_us)
    store.release()


def test_coverage_is_the_union_and_killing_either_leaves_no_gap(postgres_url: str) -> None:
    """Two collectors write at once; each is killed once while the other goes on.

    Fails where a run counts as over, or an epoch's id is taken from the run's own count.
    """
    with ThreadPoolExecutor(2) as pool:
        seoul = pool.submit(collect, postgres_url, "seoul", [(0, 20), (30, 60)])
        busan = pool.submit(collect, postgres_url, "busan", [(10, 40)])
        seoul.result()
        busan.result()
    with Reader(postgres_url) as reader:
        (feed,) = coverage(reader)
        assert feed.intervals == (Interval("DATA", T0, T0 + 60 * S),)
        assert feed.as_dict()["collectors"] == ["busan", "seoul"]
        assert coverage(reader, T0, T0 + 5 * S)[0].collectors == ("seoul",)
        assert [(epoch.collector_id, epoch.reason) for epoch in reader.epochs("upbit", "btc-krw")] == [
            ("seoul", "disconnect"),
            ("busan", None),
            ("seoul", None),
        ]
        books = list(reader.books("upbit", gaps=True))
    assert {item.reason for item in books if isinstance(item, Gap)} == {"never", "open"}
    served = [book for book in books if isinstance(book, BookAt)]
    # One collector speaks at a time, and each book is one it heard itself.
    assert [book.source.collector_id for book in served] == ["seoul"] * 20 + ["busan"] * 20 + ["seoul"] * 20
    assert sorted({int(book.bids[0][1]) - 1 for book in served}) == list(range(60))
    assert all(book.received_us == T0 + (int(book.bids[0][1]) - 1) * S for book in served)


def test_a_collector_that_comes_back_was_killed_before(postgres_url: str) -> None:
    collect(postgres_url, "seoul", [(0, 5)])
    collect(postgres_url, "busan", [(20, 25)])
    with Reader(postgres_url) as reader:
        assert [epoch.reason for epoch in reader.epochs("upbit", "btc-krw")] == [None, None]
    store = PostgresStore(postgres_url)
    write(store, opened(1, T0 + 50 * S), run=Run("again", "seoul", "1", T0 + 50 * S))
    store.release()
    with Reader(postgres_url) as reader:
        assert [epoch.reason for epoch in reader.epochs("upbit", "btc-krw")] == ["crash", None, None]
