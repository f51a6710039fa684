"""The PostgreSQL store: several collectors at once, servers that go, hang and come back, and what must not get in."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest

from collector.errors import ConfigError, NotOurs, StorageBusy, StorageCorrupt, StorageError, StorageFull
from collector.records import (
    KEYFRAME,
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    Rejected,
    TickerRow,
    TradeRow,
)
from storage import postgres_database
from storage.postgres import PostgresStore
from storage.postgres_database import SCHEMA_VERSION, Address, Session, migrations
from storage.postgres_partitions import DAY_US, days, make_day, partition
from storage.reader import Reader
from storage.store import Batch, Run
from tests.conftest import WaitUntil
from tests.postgres import PASSWORD, Door, Server

T0 = 1_790_000_000_000_000
DAY = T0 // DAY_US
RUN = Run("run 1", "here", "1.2.3", T0)
OPENED = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0, 30)
FIRST = BookRow(1, 1, 0, 5, 77, KEYFRAME, '[["99","1.5"],["98","2"]]', '[["101","0.10"]]')
MARK = CoverageMark(1, T0 + 10, T0 + 5, 1)


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_url)
    store.open()
    yield store
    store.release()


def batch(number: int, *records: Record, run: Run = RUN) -> Batch:
    return Batch(run, number, (Delivery("upbit", 1, records, 100),))


def query(url: str, sql: str, *values: object) -> list[Any]:
    """Ask the server itself, with a session of its own; what is changed stays changed."""
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(sql, values or None)
        return cursor.fetchall() if cursor.description else []


def rows(url: str) -> list[Any]:
    return query(url, "SELECT epoch, n FROM book ORDER BY epoch, n")


# --- opening ----------------------------------------------------------------------------------------------------------


def test_many_that_start_at_once_make_the_schema_once(postgres_url: str) -> None:
    """Fails without `lock(db, LOCK_SCHEMA)` in migrate_schema."""
    stores = [PostgresStore(postgres_url) for _ in range(6)]
    begin = threading.Barrier(len(stores))

    def start(store: PostgresStore) -> None:
        begin.wait()
        store.check()
        store.release()

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(start, stores))
    assert query(postgres_url, "SELECT version FROM collector_schema ORDER BY 1") == [(n,) for n, _ in migrations()]


def test_what_an_older_schema_holds_is_read_and_kept(postgres_url: str) -> None:
    """A database from before trades, tickers and candles came."""
    with psycopg.connect(postgres_url) as db:
        db.execute(dict(migrations())[1].encode())
        db.execute("CREATE TABLE collector_schema (version integer, applied_at timestamptz NOT NULL DEFAULT now())")
        db.execute("INSERT INTO collector_schema (version) VALUES (1)")
        db.execute(
            "INSERT INTO exchange (name) VALUES ('UPBIT'); INSERT INTO market (symbol, currency) VALUES ('B', 'K')"
        )
        db.execute("INSERT INTO feed (exchange, market, channel) VALUES (1, 1, 'ticker')")
        db.execute("INSERT INTO run (uid, collector_id, version, started_us, alive_us) VALUES ('u', 'here', '1', 0, 5)")
        db.execute(
            "INSERT INTO epoch (run, number, feed, transport, verdict, opened_us) VALUES (1, 1, 1, 'rest', 'x', 5)"
        )
        db.execute("INSERT INTO ticker VALUES (1, 7, NULL, 1, '1.50', NULL, NULL, NULL)")
        db.execute("INSERT INTO candle VALUES (1, 60, 0, '1', '2', '3', '4', '5', 1, 7, 1)")
    with Reader(postgres_url) as reader:
        (epoch,) = reader.epochs("upbit", "b-k", channel="ticker")
        assert (epoch.unit, epoch.opened_us) == (None, 5)
    store = PostgresStore(postgres_url)
    store.check()
    store.release()
    with Reader(postgres_url) as reader:
        assert reader.epochs("upbit", "b-k", channel="ticker") == [epoch]
    assert query(postgres_url, "SELECT * FROM ticker") == [(1, 7, None, 1, "1.50", None, None, None)]
    assert query(postgres_url, "SELECT * FROM candle") == [(1, 60, 0, "1", "2", "3", "4", "5", 1, 7, 1)]


def test_what_is_promised_is_in_force_whatever_the_server_says(postgres_url: str) -> None:
    """Fails without `SET synchronous_commit = on` in Address.connect."""
    name = urlsplit(postgres_url).path[1:]
    for wrong in ("synchronous_commit = off", "default_transaction_isolation = 'serializable'"):
        query(postgres_url, f"ALTER DATABASE {name} SET {wrong}")
    store = PostgresStore(postgres_url)

    def setting(name: str) -> str:
        return store.in_transaction(lambda db: str(db.execute("SELECT current_setting(%s)", (name,)).fetchall()[0][0]))

    assert setting("synchronous_commit") == "on"
    assert setting("transaction_isolation") == "read committed"
    assert (setting("statement_timeout"), setting("lock_timeout")) == ("8s", "4s")
    assert setting("TimeZone") == "UTC"
    asked = store.in_transaction(lambda db: db.info.get_parameters())
    assert {name: asked[name] for name in ("keepalives_idle", "tcp_user_timeout", "target_session_attrs")} == {
        "keepalives_idle": "5",
        "tcp_user_timeout": "10000",
        "target_session_attrs": "read-write",
    }
    store.release()


def other_program(url: str) -> None:
    query(url, "CREATE TABLE wallet (coins integer)")


def newer(url: str) -> None:
    store = PostgresStore(url)
    store.check()
    store.release()
    query(url, "INSERT INTO collector_schema (version) VALUES (%s)", SCHEMA_VERSION + 1)


@pytest.mark.parametrize(
    ("spoil", "mend", "told"),
    [
        (other_program, "DROP TABLE wallet", r"tables of another program \(wallet in schema public\); name an empty"),
        (newer, f"DELETE FROM collector_schema WHERE version > {SCHEMA_VERSION}", "from a newer collector .*; install"),
    ],
)
def test_a_database_that_is_not_ours_is_told_until_it_is_right(
    postgres_url: str, spoil: Callable[[str], None], mend: str, told: str
) -> None:
    """Fails without `check_schema` in migrate_schema."""
    spoil(postgres_url)
    before = query(postgres_url, "SELECT relname FROM pg_class ORDER BY relname")
    store = PostgresStore(postgres_url)
    store.open()  # no reason to end for a daemon that can spool
    for _ in range(2):
        with pytest.raises(NotOurs, match=told):
            store.write(batch(1, OPENED), T0)
    assert query(postgres_url, "SELECT relname FROM pg_class ORDER BY relname") == before
    query(postgres_url, mend)
    assert store.write(batch(1, OPENED), T0) == 0
    store.release()


def test_a_newer_collector_that_changes_the_schema_ends_the_writing_of_an_older_one(
    store: PostgresStore, postgres_url: str
) -> None:
    """Fails without `check_version` in PostgresStore._enter."""
    store.write(batch(1, OPENED), T0)
    query(postgres_url, "INSERT INTO collector_schema (version) VALUES (%s)", SCHEMA_VERSION + 1)
    with pytest.raises(NotOurs, match="from a newer collector"):
        store.write(batch(2, FIRST), T0)
    assert rows(postgres_url) == []


def test_tables_may_stand_in_a_schema_of_their_own_beside_another_programs(postgres_url: str) -> None:
    other_program(postgres_url)
    query(postgres_url, "CREATE SCHEMA market")
    url = f"{postgres_url}?options=-csearch_path%3Dmarket"
    with closing_store(url) as store:
        store.write(batch(1, OPENED, FIRST), T0)
    assert query(postgres_url, "SELECT count(*) FROM market.book") == [(1,)]
    assert rows(url) == [(1, 1)]


def test_tables_of_an_extension_are_nobody_elses(postgres_url: str) -> None:
    other_program(postgres_url)
    query(postgres_url, "ALTER EXTENSION plpgsql ADD TABLE wallet")
    with closing_store(postgres_url) as store:
        store.check()


def test_no_schema_to_write_to_is_told(postgres_url: str) -> None:
    store = PostgresStore(f"{postgres_url}?options=-csearch_path%3Dnowhere")
    with pytest.raises(NotOurs, match="no schema this role may use; grant it"):
        store.check()


def test_a_database_that_has_no_room_for_every_letter_is_refused(postgres_address: str) -> None:
    name = "test_of_another_encoding"
    query(postgres_address, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    url = urlunsplit(urlsplit(postgres_address)._replace(path=f"/{name}"))
    try:
        with pytest.raises(NotOurs, match="is encoded in LATIN1; make a database with ENCODING 'UTF8'"):
            PostgresStore(url).check()
    finally:
        query(postgres_address, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def closing_store(url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(url)
    try:
        yield store
    finally:
        store.release()


# --- a server that is away --------------------------------------------------------------------------------------------


def test_a_server_that_can_not_be_reached_is_waited_for(postgres_door: tuple[Door, str]) -> None:
    door, url = postgres_door
    door.shut()
    store = PostgresStore(url)
    store.open()
    for _ in range(2):
        with pytest.raises(StorageBusy, match=r"refused.*; the collector goes on by itself"):
            store.write(batch(1, OPENED, FIRST), T0)
    door.open()
    assert store.write(batch(1, OPENED, FIRST), T0) == 0
    door.shut()
    with pytest.raises(StorageBusy):
        store.write(batch(2, MARK), T0)
    with pytest.raises(StorageBusy):
        store.open_epochs(RUN)
    door.open()
    assert store.write(batch(2, MARK), T0) == 0
    assert store.open_epochs(RUN) == {1}
    store.release()


def test_a_server_that_says_nothing_is_given_up(
    postgres_door: tuple[Door, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails (stands for ever) with `return super().wait(gen, interval, timeout)` in Session.wait."""
    monkeypatch.setattr(Session, "patience_s", 0.3)
    door, url = postgres_door
    with closing_store(url) as store:
        store.write(batch(1, OPENED), T0)
        door.jam()
        with pytest.raises(StorageBusy, match=r"the server was silent for 0.3 s"):
            store.write(batch(2, FIRST), T0)
        door.open()
        assert store.write(batch(2, FIRST), T0) == 0
    assert rows(url) == [(1, 1)]


def test_a_frozen_server_is_given_up_and_nothing_is_there_twice(
    postgres_server: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if urlsplit(postgres_url).port != postgres_server.port:
        pytest.skip("COLLECTOR_TEST_POSTGRES is not ours to freeze")
    monkeypatch.setattr(Session, "patience_s", 0.3)
    with closing_store(postgres_url) as store:
        store.write(batch(1, OPENED), T0)
        thaw = postgres_server.freeze()
        try:
            with pytest.raises(StorageBusy, match="silent"):
                store.write(batch(2, FIRST, Event(T0, "INFO", "tag", "once")), T0)
        finally:
            thaw()
        monkeypatch.setattr(Session, "patience_s", 10.0)
        store.write(batch(2, FIRST, Event(T0, "INFO", "tag", "once")), T0)
    assert rows(postgres_url) == [(1, 1)]
    assert query(postgres_url, "SELECT text FROM event") == [("once",)]


def test_a_server_that_accepts_and_never_answers_is_given_up(postgres_door: tuple[Door, str]) -> None:
    door, url = postgres_door
    door.jam()
    store = PostgresStore(f"{url}?connect_timeout=2")  # the least that libpq takes
    with pytest.raises(StorageBusy, match="timeout"):
        store.check()


@pytest.mark.parametrize("word", [b"BEGIN", b"FOR UPDATE", b"COPY stage_book", b"INSERT INTO book", b"COMMIT"])
def test_a_connection_that_is_cut_anywhere_leaves_a_batch_once(
    postgres_door: tuple[Door, str], postgres_url: str, word: bytes
) -> None:
    """Fails without `if batch.number <= newest` in PostgresStore._write: the event is there twice."""
    door, url = postgres_door
    second = batch(2, FIRST, MARK, Event(T0, "INFO", "tag", "once"), Rejected("upbit", None, T0, "why", b"{"))
    with closing_store(url) as store:
        store.write(batch(1, OPENED), T0)
        cut: list[bytes] = []

        def once(data: bytes) -> bool:
            if word in data and not cut:
                cut.append(data)
                return True
            return False

        door.cut_on = once
        with pytest.raises(StorageBusy):
            store.write(second, T0)
        assert cut
        there = store.write(second, T0)
        assert there == (4 if word == b"COMMIT" else 0)
        assert store.write(second, T0) == 4
    assert rows(postgres_url) == [(1, 1)]
    assert query(postgres_url, "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM rejected)") == [(1, 1)]
    assert query(postgres_url, "SELECT frames FROM coverage") == [(1,)]


def waiting(url: str) -> int:
    """How many sessions of this database wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ((count,),) = query(url, sql)
    return int(count)


def test_a_commit_that_still_goes_on_is_waited_for(
    store: PostgresStore, postgres_url: str, wait_until: WaitUntil
) -> None:
    """A session was given up in the middle of a batch, and the server still works on it while it is written again.

    Fails without FOR UPDATE in _ENTER: the event is there twice.
    """
    store.write(batch(1, OPENED), T0)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgres_url) as hanging:
        hanging.execute("INSERT INTO event (run, time_us, level, tag, text) SELECT id, 1, '', '', 'once' FROM run")
        hanging.execute("UPDATE run SET batch = 2")
        again = pool.submit(store.write, batch(2, Event(1, "", "", "once")), T0)
        wait_until(lambda: waiting(postgres_url) == 1)
        hanging.commit()
        assert again.result() == 1
    assert query(postgres_url, "SELECT text FROM event") == [("once",)]


def test_a_lock_that_is_held_for_long_is_no_reason_to_hang(
    store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails (takes as long as the lock) without `SET lock_timeout` in Address.connect."""
    store.write(batch(1, OPENED), T0)
    monkeypatch.setattr(postgres_database, "_LOCK_MS", 200)
    with closing_store(postgres_url) as other, psycopg.connect(postgres_url) as hanging:
        hanging.execute("UPDATE run SET batch = 2")
        with pytest.raises(StorageBusy, match="lock timeout"):
            other.write(batch(2, FIRST), T0)
        hanging.rollback()
        assert other.write(batch(2, FIRST), T0) == 0


def test_nothing_that_was_taken_is_lost_when_the_server_dies(postgres_server: Server, postgres_url: str) -> None:
    if urlsplit(postgres_url).port != postgres_server.port:
        pytest.skip("COLLECTOR_TEST_POSTGRES is not ours to kill")
    with closing_store(postgres_url) as store:
        store.write(batch(1, OPENED), T0)
        for number in range(2, 12):
            if number % 3 == 0:
                postgres_server.kill()
                with pytest.raises(StorageBusy):
                    store.write(batch(number, BookRow(1, number - 1, number, 5, None, 0, "[]", None)), T0)
                postgres_server.start()
            store.write(batch(number, BookRow(1, number - 1, number, 5, None, 0, "[]", None)), T0)
    assert rows(postgres_url) == [(1, n) for n in range(1, 11)]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        ("53100", StorageFull, "free some space on the server"),
        ("XX001", StorageCorrupt, "restore a backup"),
        ("40P01", StorageBusy, "goes on by itself"),
        ("57014", StorageBusy, "goes on by itself"),
        ("58030", StorageBusy, "goes on by itself"),
        ("42501", StorageError, "owner of its database"),
        ("22023", StorageError, "boom"),
    ],
)
def test_errors_mean_what_the_caller_does_next(
    store: PostgresStore, postgres_url: str, state: str, kind: type[StorageError], told: str
) -> None:
    query(
        postgres_url,
        "CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION 'boom' USING ERRCODE = '{state}'; END$$",
    )
    query(postgres_url, "CREATE TRIGGER boom BEFORE INSERT ON coverage EXECUTE FUNCTION boom()")
    for _ in range(2):
        with pytest.raises(StorageError, match=told) as caught:
            store.write(batch(1, OPENED, FIRST), T0)
        assert type(caught.value) is kind
    assert query(postgres_url, "SELECT (SELECT count(*) FROM epoch), (SELECT count(*) FROM run)") == [(0, 0)]
    query(postgres_url, "DROP TRIGGER boom ON coverage")
    assert store.write(batch(1, OPENED, FIRST), T0) == 0
    assert query(postgres_url, "SELECT count(*) FROM epoch JOIN coverage ON epoch = id JOIN book USING (epoch)") == [
        (1,)
    ]


def test_passwords_stand_in_no_error_and_no_log(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fails without `_without_secrets` for the server's own words, and with `url` in Address's error."""
    caplog.set_level(logging.DEBUG)
    secret = "p@ss/wörd#1"
    parts = urlsplit(postgres_url)
    wrong = urlunsplit(parts._replace(netloc=f"stranger:{quote(secret, safe='')}@{parts.hostname}:{parts.port}"))
    store = PostgresStore(wrong)
    with pytest.raises(StorageBusy, match="stranger") as caught:
        store.check()
    told = [str(caught.value), repr(store.address), store.address.shown]
    for url in (
        f"postgresql://me:{secret}@127.0.0.1/db",  # not spelt as it must be
        f"postgresql://me:x@127.0.0.1/db?{secret}",
        f"postgresql://me:x@127.0.0.1:{secret}/db",
        secret,
    ):
        with pytest.raises(ConfigError, match="can't be read; allowed: postgresql://USER") as unreadable:
            PostgresStore(url)
        told.append(str(unreadable.value))
    error = psycopg.OperationalError(f"server says {secret}")
    told.append(str(Address(wrong).translate(error)))
    for text in [*told, caplog.text]:
        assert not any(piece in text for piece in ("p@ss", "wörd", PASSWORD)), text


def test_an_address_is_shown_by_where_it_leads() -> None:
    assert (
        Address("postgresql://me:x@db.example:6432/market?sslmode=require").shown
        == "postgresql://db.example:6432/market"
    )
    assert Address("postgres://me@/?host=/run/postgresql").shown == "postgresql:///run/postgresql/me"


# --- what gets in -----------------------------------------------------------------------------------------------------


def test_no_text_makes_a_batch_unstorable(store: PostgresStore, postgres_url: str) -> None:
    """Fails with `return text` at the end of storable."""
    bad = "a\0b\ud800c한"
    run = Run("run\0", bad, bad, T0)
    records = (
        EpochOpened(1, bad, f"{bad}-{bad}", bad, bad, T0, 15, bad),
        BookRow(1, 1, 0, None, None, KEYFRAME, f'[["{bad}","1"]]', None),
        EpochVerdict(1, bad),
        Rejected(bad, bad, T0, bad, bytes(range(256))),
        Event(T0, bad, bad, bad),
        EpochEnded(1, T0 + 1, bad),
    )
    assert store.write(batch(1, *records, run=run), T0) == 0
    assert store.write(batch(1, *records, run=run), T0) == 6
    store.close_run(run, T0)
    good = r"a\x00b\ud800c한"
    assert query(postgres_url, "SELECT reason, market, frame FROM rejected") == [(good, good, bytes(range(256)))]
    assert query(postgres_url, "SELECT level, tag, text FROM event") == [(good, good, good)]
    assert query(postgres_url, "SELECT bids FROM book") == [(f'[["{good}","1"]]',)]
    assert query(postgres_url, "SELECT closed_us FROM run") == [(T0,)]
    assert store.open_epochs(run) == set()


def test_numbers_beyond_all_measure_are_left_out(store: PostgresStore, postgres_url: str) -> None:
    huge = 1 << 200
    records = [
        BookRow(1, 1, 0, huge, huge, KEYFRAME, "[]", "[]"),
        BookRow(1, 2, 1, -huge, (1 << 63) - 1, 0, "[]", "[]"),
        BookRow(1, 3, 2, T0, -(1 << 63), 0, "[]", "[]"),
    ]
    store.write(batch(1, OPENED, *records), T0)
    assert query(postgres_url, "SELECT venue_us, sequence FROM book ORDER BY n") == [
        (None, None),
        (None, (1 << 63) - 1),
        (2, -(1 << 63)),
    ]


def test_rows_of_an_epoch_nobody_opened_are_told_and_hold_up_nothing(store: PostgresStore, postgres_url: str) -> None:
    stray = BookRow(7, 1, 0, None, None, KEYFRAME, "[]", "[]")
    more = (CoverageMark(7, T0, T0, 9), EpochVerdict(7, "linked"), EpochEnded(7, T0, "stop"))
    assert store.write(batch(1, OPENED, stray, FIRST, stray, *more), T0) == 0
    assert rows(postgres_url) == [(1, 1)]
    assert query(postgres_url, "SELECT level, text FROM event") == [
        ("WARNING", "2 rows belong to epochs that were never opened, or to no possible time, and are not stored")
    ]


def test_the_views_are_those_of_the_owner(store: PostgresStore, postgres_url: str) -> None:
    change = BookRow(1, 2, 1_000_000, None, None, 2, None, '[["101","0"],["102.50","0.00000001"]]')
    store.write(batch(1, OPENED, FIRST, change), T0)
    columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = %s::regclass"
    for view in ("orderbook", "orderbook_change"):
        assert query(postgres_url, columns, view) == [("exchange symbol currency timestamp side price volume",)]
        shown = query(postgres_url, f"SELECT timestamp::text, side, price::text, volume::text FROM {view}")
        assert (
            sorted(shown)
            == {
                "orderbook": [
                    ("1790000000.000000", "ask", "101", "0.10"),
                    ("1790000000.000000", "bid", "98", "2"),
                    ("1790000000.000000", "bid", "99", "1.5"),
                ],
                "orderbook_change": [
                    ("1790000001.000000", "ask", "101", "0"),
                    ("1790000001.000000", "ask", "102.50", "0.00000001"),
                ],
            }[view]
        )
    assert query(
        postgres_url, "SELECT epoch, n, exchange, symbol, currency, received_us, venue_us, sequence, keyframe, crossed "
        "FROM book_update ORDER BY n"
    ) == [
        (1, 1, "UPBIT", "BTC", "KRW", T0, T0 - 5, 77, 1, 0),
        (1, 2, "UPBIT", "BTC", "KRW", T0 + 1_000_000, None, None, 0, 1),
    ]  # fmt: skip


# --- days -------------------------------------------------------------------------------------------------------------


def where(url: str) -> list[tuple[str, int]]:
    return query(url, "SELECT tableoid::regclass::text, n FROM book ORDER BY n")


def test_rows_go_to_the_partition_of_their_day_and_odd_times_to_the_default_one(
    store: PostgresStore, postgres_url: str
) -> None:
    moments = [0, DAY_US, -3 * DAY_US, 2 * DAY_US, 3 * DAY_US, -T0, 500 * DAY_US]
    records = [BookRow(1, n, at_us, None, None, KEYFRAME, "[]", "[]") for n, at_us in enumerate(moments, 1)]
    store.write(batch(1, OPENED, *records), T0)
    assert where(postgres_url) == [
        ("book_20260921", 1),
        ("book_20260922", 2),
        ("book_20260918", 3),
        ("book_20260923", 4),
        ("book_default", 5),
        ("book_default", 6),
        ("book_default", 7),
    ]


def test_streams_go_to_the_partitions_of_their_own_days(store: PostgresStore, postgres_url: str) -> None:
    """Trades by the exchange's time, candles by their beginning, tickers by receipt."""
    day_us = T0 // DAY_US * DAY_US
    records = (
        EpochOpened(1, "UPBIT", "BTC-KRW", "trades", "websocket", T0),
        TradeRow(1, "7", "buy", "1", "1", T0, day_us - 1),
        TradeRow(1, "8", "buy", "1", "1", T0, 0),
        TickerRow(1, T0, day_us - 1, "1", None, None, None),
        CandleRow(1, 60, day_us - 60_000_000, "1", "1", "1", "1", "1", True, T0),
    )
    assert store.write(batch(1, *records), T0) == 0
    today, before = T0 // DAY_US, T0 // DAY_US - 1
    sql = "SELECT tableoid::regclass::text FROM {} ORDER BY 1"
    assert query(postgres_url, sql.format("trade")) == [(partition("trade", before),), ("trade_default",)]
    assert query(postgres_url, sql.format("ticker")) == [(partition("ticker", today),)]
    assert query(postgres_url, sql.format("candle")) == [(partition("candle", before),)]


def test_a_day_that_is_made_late_takes_its_rows_from_the_default_partition(
    store: PostgresStore, postgres_url: str
) -> None:
    records = [BookRow(1, n, n * DAY_US, None, None, KEYFRAME, "[]", "[]") for n in (3, 4, 5)]
    store.write(batch(1, OPENED, *records), T0)
    assert store.in_transaction(lambda db: make_day(db, "book", DAY + 4))
    assert where(postgres_url) == [("book_default", 3), ("book_20260925", 4), ("book_default", 5)]
    assert store.write(batch(2, *records), T0) == 3  # they are the same rows still
    assert store.in_transaction(lambda db: days(db, "book")) == {DAY + 4}


def test_a_day_can_be_made_by_several_at_once(postgres_url: str, wait_until: WaitUntil) -> None:
    """Fails without `lock(db, LOCK_PARTITIONS)` in make_day."""
    stores = [PostgresStore(postgres_url) for _ in range(3)]
    for store in stores:
        store.check()
    with ThreadPoolExecutor(len(stores)) as pool, psycopg.connect(postgres_url) as holding:
        holding.execute("LOCK TABLE book_default")
        making = [pool.submit(store.in_transaction, lambda db: make_day(db, "book", DAY)) for store in stores]
        wait_until(lambda: waiting(postgres_url) == len(stores))  # each has seen that it is missing
        holding.commit()
        assert [made.result() for made in making] == [True] * len(stores)
    for store in stores:
        store.release()


def test_a_day_that_can_not_be_made_holds_up_nothing(
    store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without `except psycopg.Error` in PostgresStore._make_days."""
    store.release()
    monkeypatch.setattr(postgres_database, "_LOCK_MS", 200)
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM book")  # a long report: it holds a lock on every partition
        store.write(batch(1, OPENED, FIRST), T0)
        assert store.write(batch(2, BookRow(1, 2, 9, None, None, 0, "[]", None)), T0) == 0
    assert where(postgres_url) == [("book_default", 1), ("book_default", 2)]


def test_what_is_too_much_stays_in_the_default_partition(
    store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres_partitions._MOVED_ROWS_MAX", 1)
    records = [BookRow(1, n, 9 * DAY_US, None, None, KEYFRAME, "[]", "[]") for n in (1, 2)]
    store.write(batch(1, OPENED, *records), T0)
    assert not store.in_transaction(lambda db: make_day(db, "book", DAY + 9))
    assert where(postgres_url) == [("book_default", 1), ("book_default", 2)]


def test_days_are_named_by_their_date() -> None:
    assert [partition("book", day) for day in (0, DAY, 40_000)] == ["book_19700101", "book_20260921", "book_20790708"]


def test_every_day_has_the_indexes_of_the_whole(store: PostgresStore, postgres_url: str) -> None:
    store.write(batch(1, OPENED, FIRST), T0)
    sql = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass"
    kinds = [
        {text.partition(" USING ")[2] for (text,) in query(postgres_url, sql, name)}
        for name in ("book", "book_20260921")
    ]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 2


# --- several collectors -----------------------------------------------------------------------------------------------


def test_two_collectors_write_at_once(postgres_url: str) -> None:
    """Epochs are numbered by each on its own and given ids by the database; names are shared.

    Fails with `self._feeds[feed]` counted by the store itself, or without ON CONFLICT where names go in.
    """
    runs = [Run(f"run {name}", name, "1", T0) for name in ("seoul", "busan")]
    markets = [f"C{n}-KRW" for n in range(12)]
    begin = threading.Barrier(2)

    def collect(run: Run) -> None:
        with closing_store(postgres_url) as store:
            begin.wait()
            order = markets if run is runs[0] else markets[::-1]
            for number, market in enumerate(order, 1):
                opened = EpochOpened(number, "UPBIT", market, "orderbook", "websocket", T0)
                book = BookRow(number, 1, 5, None, None, KEYFRAME, f'[["{number}","1"]]', "[]")
                assert (
                    store.write(batch(number, opened, book, CoverageMark(number, T0 + 9, T0 + 9, 1), run=run), T0) == 0
                )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(collect, runs))
    found = query(
        postgres_url,
        "SELECT collector_id, symbol, number, bids, frames FROM epoch AS e JOIN run ON run.id = e.run "
        "JOIN coverage ON coverage.epoch = e.id JOIN feed ON feed.id = e.feed JOIN market AS m ON m.id = feed.market "
        "JOIN book ON book.epoch = e.id ORDER BY collector_id, number",
    )
    assert found == [
        (run.collector_id, market.removesuffix("-KRW"), number, f'[["{number}","1"]]', 1)
        for run in runs[::-1]
        for number, market in enumerate(markets if run is runs[0] else markets[::-1], 1)
    ]
    assert query(postgres_url, "SELECT count(*) FROM feed") == [(12,)]


def test_the_same_trade_heard_by_two_collectors_is_one(store: PostgresStore, postgres_url: str) -> None:
    store.write(batch(1, OPENED), T0)
    sql = "INSERT INTO trade VALUES (1, %s, %s, %s, 1, 'buy', '1', '2') ON CONFLICT DO NOTHING"
    for received_us in (1, 2):
        query(postgres_url, sql, T0, "t1", received_us)
    query(postgres_url, sql, T0 + 1, "t1", 3)
    assert query(postgres_url, "SELECT received_us FROM trade ORDER BY 1") == [(1,), (3,)]
