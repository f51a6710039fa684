"""Days made ahead and dropped whole; what stays begins with a complete book; side tables stay in their limits."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import psycopg
import pytest

from collector.clock import Clock
from collector.errors import StorageBusy
from collector.log import Log
from collector.records import KEYFRAME, BookRow, CoverageMark, EpochEnded, EpochOpened, Event, Rejected
from storage import postgres_maintenance
from storage.coverage import coverage
from storage.postgres import PostgresStore
from storage.postgres_maintenance import PostgresHousekeeping, delete_days_before, make_days, trim
from storage.postgres_partitions import TABLES, days
from storage.reader import Gap, Reader
from storage.rounds import ROUND_EVERY_US
from storage.store import Run
from tests.storage.story import DAY, DAY_US, MIDNIGHT, S, batch

RUN = Run("run 1", "here", "1.2.3", MIDNIGHT)
_numbers = count(1)


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_url)
    store.check()
    yield store
    store.release()


def write(store: PostgresStore, *records: Any, run: Run = RUN, now_us: int = MIDNIGHT) -> None:
    store.write(batch(run, next(_numbers), *records), now_us)


def opened(epoch: int, at_us: int, exchange: str = "UPBIT", channel: str = "orderbook") -> EpochOpened:
    return EpochOpened(epoch, exchange, "BTC-KRW", channel, "websocket", at_us, 15)


def row(epoch: int, n: int, at_us: int, *, keyframe: bool = False) -> BookRow:
    bids = f'[["{n}","1"]]'
    return BookRow(epoch, n, at_us, None, None, KEYFRAME * keyframe, bids, "[]" if keyframe else None)


def mark(epoch: int, until_us: int, frames: int) -> CoverageMark:
    return CoverageMark(epoch, until_us, until_us, frames)


def ask(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


def rows(url: str) -> list[Any]:
    return ask(url, "SELECT epoch, n, tableoid::regclass::text FROM book ORDER BY epoch, n")


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


# --- days -------------------------------------------------------------------------------------------------------------


def test_days_are_made_ahead(store: PostgresStore) -> None:
    """Fails without `make_days` in PostgresHousekeeping._work."""
    clock, log = StepClock(MIDNIGHT + 5 * S), QuietLog()
    housekeeping = PostgresHousekeeping(store, clock)
    while housekeeping.step(log):
        pass
    for table in TABLES:
        assert store.in_transaction(lambda db, table=table: days(db, table)) == {DAY, DAY + 1, DAY + 2}  # type: ignore[misc]
    clock.wall += DAY_US
    clock.monotonic += ROUND_EVERY_US
    while housekeeping.step(log):
        pass
    assert store.in_transaction(lambda db: days(db, "book")) == {DAY, DAY + 1, DAY + 2, DAY + 3}
    assert log.lines == []


def test_a_new_day_needs_no_table_to_be_made_while_books_go_in(store: PostgresStore, postgres_url: str) -> None:
    list(make_days(store, DAY))
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM book")
        write(store, opened(1, MIDNIGHT), row(1, 1, 0, keyframe=True), row(1, 2, DAY_US), row(1, 3, 2 * DAY_US))
    assert [name for _, _, name in rows(postgres_url)] == ["book_20241004", "book_20241005", "book_20241006"]


def test_whole_days_go_and_what_is_left_begins_with_a_complete_book(store: PostgresStore, postgres_url: str) -> None:
    """Three epochs that reach into the kept days, and one that does not.

    Fails without the rows that `_drop_day` saves, or with coverage that still begins where rows are gone.
    """
    write(
        store,
        opened(1, MIDNIGHT),  # a complete book at midnight
        *(row(1, 1, 0, keyframe=True), row(1, 2, 10 * S), row(1, 3, DAY_US, keyframe=True), row(1, 4, DAY_US + S)),
        mark(1, MIDNIGHT + DAY_US + 2 * S, 4),
        opened(2, MIDNIGHT, "GOPAX"),  # none at midnight: the newest before it is needed
        *(row(2, 1, 0, keyframe=True), row(2, 2, 5 * S, keyframe=True), row(2, 3, 6 * S), row(2, 4, DAY_US + S)),
        mark(2, MIDNIGHT + DAY_US + 2 * S, 4),
        opened(3, MIDNIGHT, "KORBIT"),  # quiet since
        *(row(3, 1, 0, keyframe=True), row(3, 2, 7 * S)),
        mark(3, MIDNIGHT + DAY_US + 2 * S, 2),
        opened(4, MIDNIGHT, "COINONE"),
        *(row(4, 1, 0, keyframe=True), mark(4, MIDNIGHT + 9 * S, 1), EpochEnded(4, MIDNIGHT + 9 * S, "stop")),
    )
    whole = "book_20241005"
    assert sum(delete_days_before(store, DAY + 1)) >= 1
    kept = [
        (1, 3, whole), (1, 4, whole),
        (2, 2, "book_default"), (2, 3, "book_default"), (2, 4, whole),
        (3, 1, "book_default"), (3, 2, "book_default"),
    ]  # fmt: skip
    assert rows(postgres_url) == kept
    assert ask(postgres_url, "SELECT epoch, from_us FROM coverage ORDER BY epoch") == [
        (1, MIDNIGHT + DAY_US),
        (2, MIDNIGHT + 5 * S),
        (3, MIDNIGHT),
    ]
    assert ask(postgres_url, "SELECT id FROM epoch ORDER BY id") == [(1,), (2,), (3,)]
    with Reader(postgres_url) as reader:
        for exchange, ns in (("upbit", [3, 4]), ("gopax", [2, 3, 4]), ("korbit", [1, 2])):
            items = list(reader.books(exchange, gaps=True))
            assert [item.n for item in items if not isinstance(item, Gap)] == ns
            assert "missing" not in {item.reason for item in items if isinstance(item, Gap)}
        assert {feed.exchange: feed.longest_gap_us for feed in coverage(reader)}["GOPAX"] == 0
    list(delete_days_before(store, DAY + 1))
    assert rows(postgres_url) == kept


def test_what_was_saved_goes_as_soon_as_nothing_needs_it(store: PostgresStore, postgres_url: str) -> None:
    write(
        store,
        opened(1, MIDNIGHT),
        *(row(1, 1, 0, keyframe=True), row(1, 2, DAY_US), row(1, 3, 2 * DAY_US, keyframe=True)),
        mark(1, MIDNIGHT + 2 * DAY_US, 3),
    )
    list(delete_days_before(store, DAY + 1))
    assert [n for _, n, _ in rows(postgres_url)] == [1, 2, 3]
    list(delete_days_before(store, DAY + 2))
    assert rows(postgres_url) == [(1, 3, "book_20241006")]


def test_what_arrives_late_for_a_day_that_is_gone_is_kept_until_the_ledger_is_trimmed(
    store: PostgresStore, postgres_url: str
) -> None:
    """An epoch written between the look at the ledger and the end of its day: what the ledger claims is there.

    Fails with rows that are saved by a list made before the day is taken out.
    """
    write(
        store,
        opened(1, MIDNIGHT),
        row(1, 1, 0, keyframe=True),
        mark(1, MIDNIGHT + S, 1),
        EpochEnded(1, MIDNIGHT, "stop"),
    )
    work = delete_days_before(store, DAY + 1)
    next(work)  # the ledger of what was known is trimmed
    write(store, opened(2, MIDNIGHT, "GOPAX"), row(2, 1, 0, keyframe=True), mark(2, MIDNIGHT + S, 1))
    list(work)
    assert rows(postgres_url) == [(2, 1, "book_default")]
    list(delete_days_before(store, DAY + 1))
    assert rows(postgres_url) == [(2, 1, "book_default")]  # it is open, and that book stands until another comes


def test_the_run_of_one_collector_is_not_over_because_another_started(store: PostgresStore, postgres_url: str) -> None:
    """Fails where a run counts as over as soon as any later one is there."""
    write(store, opened(1, MIDNIGHT), row(1, 1, 0, keyframe=True), mark(1, MIDNIGHT + S, 1))
    write(store, opened(1, MIDNIGHT + DAY_US), run=Run("run 2", "there", "1", MIDNIGHT))
    list(delete_days_before(store, DAY + 1))
    assert [epoch for epoch, *_ in rows(postgres_url)] == [1]
    write(store, opened(1, MIDNIGHT + DAY_US), run=Run("run 3", "here", "1", MIDNIGHT))
    list(delete_days_before(store, DAY + 1))
    assert rows(postgres_url) == []


def test_trades_tickers_and_candles_are_judged_by_their_own_time(
    store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_maintenance, "STEP_ROWS", 2)
    write(store, opened(1, MIDNIGHT, channel="trades"), mark(1, MIDNIGHT + 3 * DAY_US, 9))
    list(make_days(store, DAY))
    for hour in range(-24, 60, 6):
        time_us = MIDNIGHT + hour * 3600 * S
        ask(postgres_url, f"INSERT INTO trade VALUES (1, {time_us}, 't', {time_us}, 1, 'buy', '1', '1')")
        ask(postgres_url, f"INSERT INTO ticker VALUES (1, {time_us}, NULL, 1, '1', NULL, NULL, NULL)")
        ask(postgres_url, f"INSERT INTO candle VALUES (1, 60, {time_us}, '1', '1', '1', '1', '1', 1, {time_us}, 1)")
    list(delete_days_before(store, DAY + 1))
    for table, column in (("trade", "venue_us"), ("ticker", "received_us"), ("candle", "open_us")):
        ((first_us, number),) = ask(postgres_url, f"SELECT min({column}), count(*) FROM {table}")
        assert (first_us, number) == (MIDNIGHT + DAY_US, 6)
    assert ask(postgres_url, "SELECT from_us FROM coverage") == [(MIDNIGHT + DAY_US,)]
    for table in TABLES:
        assert store.in_transaction(lambda db, table=table: days(db, table)) == {DAY + 1, DAY + 2}  # type: ignore[misc]


def test_a_day_that_somebody_reads_is_dropped_another_time(
    store: PostgresStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_maintenance, "_LOCK_TIMEOUT", "SET LOCAL lock_timeout = '200ms'")
    write(store, opened(1, MIDNIGHT), row(1, 1, 0, keyframe=True), EpochEnded(1, MIDNIGHT, "stop"))
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM book")
        with pytest.raises(StorageBusy):
            list(delete_days_before(store, DAY + 1))
    assert sum(delete_days_before(store, DAY + 1)) >= 0
    assert store.in_transaction(lambda db: days(db, "book")) == set()


def test_two_collectors_keep_house_at_once(store: PostgresStore, postgres_url: str) -> None:
    write(
        store,
        opened(1, MIDNIGHT),
        row(1, 1, 0, keyframe=True),
        row(1, 2, DAY_US),
        EpochEnded(1, MIDNIGHT + 2 * DAY_US, "stop"),
    )
    other = PostgresStore(postgres_url)
    works = [delete_days_before(store, DAY + 2), delete_days_before(other, DAY + 2)]
    while works:
        for work in list(works):
            if next(work, None) is None:
                works.remove(work)
    other.release()
    assert rows(postgres_url) == []


# --- side tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_rows", [2, 5_000])
def test_side_tables_keep_the_newest_within_days_and_bytes(
    store: PostgresStore, postgres_url: str, step_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails without `left < 0` or `time_us < before_us` in trim."""
    monkeypatch.setattr(postgres_maintenance, "STEP_ROWS", step_rows)
    now_us = MIDNIGHT + 10 * DAY_US
    events = [Event(now_us - age * DAY_US, "INFO", "TAG", "가" * 10) for age in range(9, -1, -1)]
    frames = [Rejected("upbit", None, now_us - age * DAY_US, "why", b"x" * 30) for age in range(9, -1, -1)]
    write(store, *events, *frames)
    for table, time, size in (("event", "time_us", "text"), ("rejected", "received_us", "frame")):
        assert sum(trim(store, table, time, size, now_us, 30, 1 << 30)) == 0
        assert sum(trim(store, table, time, size, now_us, 6, 1 << 30)) == 3
        assert sum(trim(store, table, time, size, now_us, 6, 100)) == 4
        assert ask(postgres_url, f"SELECT min({time}), count(*) FROM {table}") == [(now_us - 2 * DAY_US, 3)]


def test_a_round_does_it_all_and_tells_what_went(store: PostgresStore, postgres_url: str) -> None:
    now_us = MIDNIGHT + 10 * DAY_US
    write(
        store,
        opened(1, MIDNIGHT),
        row(1, 1, 0, keyframe=True),
        EpochEnded(1, MIDNIGHT, "stop"),
        Event(1, "INFO", "T", "t"),
    )
    clock, log = StepClock(now_us), QuietLog()
    housekeeping = PostgresHousekeeping(store, clock, retention_days=1)
    while housekeeping.step(log):
        pass
    assert (
        rows(postgres_url) == ask(postgres_url, "SELECT * FROM event") == ask(postgres_url, "SELECT * FROM epoch") == []
    )
    assert log.lines == [("retention", {"rows": 2})]
    store.release()
    ask(postgres_url, "ALTER TABLE collector_schema RENAME TO hidden")
    clock.monotonic += ROUND_EVERY_US
    assert not housekeeping.step(log)
    assert log.lines[-1][0] == "housekeeping_failed"
