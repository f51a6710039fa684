"""The reader against a naive one, and the holes it must not build across."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.errors import NotOurs, StorageCorrupt, StorageError
from collector.records import CHECKSUM_MISMATCH, CROSSED, KEYFRAME, SAMPLED
from storage import sqlite_source
from storage.reader import BookAt, Gap, Reader, UnknownFeed, timeline
from storage.sqlite import SCHEMA_VERSION
from storage.sqlite_source import SQLiteSource
from tests.storage.build import T0, Builder

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import given, settings
from hypothesis import strategies as st

BIDS = [("100.50", "1.0"), ("100", "2")]
ASKS = [("101", "0.00000001"), ("102", "3")]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "books.sqlite")
    yield builder
    builder.close()


def three_rows(db: Builder, **options: object) -> int:
    epoch = db.epoch(opened_us=T0, heard_us=T0 + 100, **options)  # type: ignore[arg-type]
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True, lag_us=7, sequence=40)
    db.row(epoch, 2, 10, bids=[("100.50", "0"), ("99", "1")])
    db.row(epoch, 3, 20, asks=[("102", "5"), ("101.5", "1")], flags=CROSSED)
    return epoch


# --- what may be opened ----------------------------------------------------------------------------------------------


def test_missing_file_is_an_error_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "nothing.sqlite"
    with pytest.raises(StorageError, match="there is no database"):
        Reader(path)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 4096])
def test_file_that_is_no_database_is_not_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.sqlite"
    path.write_bytes(content)
    with pytest.raises(NotOurs, match="not an SQLite database"):
        Reader(path)


def test_database_of_another_program_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE book (id)")
    other.commit()
    other.close()
    with pytest.raises(NotOurs, match="another program"):
        Reader(path)


def test_newer_database_is_not_ours(db: Builder) -> None:
    db.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(NotOurs, match="newer collector"):
        Reader(db.path)


def test_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't be read"):
        Reader(tmp_path)


def test_damaged_file_says_so(db: Builder) -> None:
    epoch = db.epoch(heard_us=T0 + 10_000)
    db.rows((epoch << 24 | n, n, None, None, KEYFRAME, '[["1","1"]]' * 40, None) for n in range(1, 500))
    db.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    content = bytearray(db.path.read_bytes())
    content[40_960:] = b"\xff" * (len(content) - 40_960)
    db.path.write_bytes(content)
    with pytest.raises(StorageCorrupt), Reader(db.path) as reader:
        list(reader.books("upbit"))


def test_reader_can_not_write(db: Builder) -> None:
    with closing(SQLiteSource(db.path)) as source, pytest.raises(sqlite3.OperationalError, match="readonly"):
        source.connection.execute("DELETE FROM book")


# --- feeds -----------------------------------------------------------------------------------------------------------


def test_feeds_are_listed_and_found_in_any_case(db: Builder) -> None:
    db.feed("UPBIT", "BTC-KRW")
    db.feed("GOPAX", "ETH-KRW")
    with Reader(db.path) as reader:
        assert [(feed.exchange, feed.market, feed.channel) for feed in reader.feeds()] == [
            ("GOPAX", "ETH-KRW", "orderbook"),
            ("UPBIT", "BTC-KRW", "orderbook"),
        ]
        assert len(reader.feeds("Upbit", "btc-krw")) == 1


def test_unknown_names_say_what_is_there_and_what_may_be_meant(db: Builder) -> None:
    three_rows(db)
    with Reader(db.path) as reader:
        with pytest.raises(UnknownFeed, match=r"has UPBIT.*mean 'UPBIT'"):
            reader.books("upbitt")
        with pytest.raises(UnknownFeed, match=r"'BTC-USD'.*has BTC-KRW"):
            reader.book_at("upbit", "BTC-USD", T0)
        db.feed("KORBIT", "BTC-KRW", "trades")
        with pytest.raises(UnknownFeed, match="no order books"):
            reader.book_at("korbit", "BTC-KRW", T0)


# --- books -----------------------------------------------------------------------------------------------------------


def test_changes_are_applied_in_order_and_told_with_their_times(db: Builder) -> None:
    epoch = three_rows(db)
    with Reader(db.path) as reader:
        first, second, third = reader.books("upbit", "BTC-KRW")
    assert (first.bids, first.asks) == (tuple(BIDS), tuple(ASKS))
    assert (first.n, first.received_us, first.venue_us, first.sequence) == (1, T0, T0 - 7, 40)
    assert second.bids == (("100", "2"), ("99", "1"))
    assert second.venue_us is None
    assert third.asks == (("101", "0.00000001"), ("101.5", "1"), ("102", "5"))
    assert (third.exchange, third.market, third.epoch, third.transport) == ("UPBIT", "BTC-KRW", epoch, "websocket")
    assert (third.flag_names, first.flag_names, third.verdict) == (["crossed"], [], "unverified")


def test_sides_that_did_not_change_are_the_same_object(db: Builder) -> None:
    three_rows(db)
    with Reader(db.path) as reader:
        first, second, third = reader.books("upbit")
    assert first.asks is second.asks
    assert second.bids is third.bids


@pytest.mark.parametrize(("bit", "name"), [(2, "crossed"), (4, "checksum_mismatch"), (8, "sampled")])
def test_every_flag_has_its_word(db: Builder, bit: int, name: str) -> None:
    assert {CROSSED, CHECKSUM_MISMATCH, SAMPLED} == {2, 4, 8}
    epoch = db.epoch()
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True, flags=bit)
    with Reader(db.path) as reader:
        assert [book.flag_names for book in reader.books("upbit")] == [[name]]


def test_prices_of_forty_digits_keep_their_order(db: Builder) -> None:
    low, high = "1.000000000000000000000000000000000001", "1.000000000000000000000000000000000002"
    epoch = db.epoch(heard_us=T0 + 9)
    db.row(epoch, 1, 0, bids=[(low, "1")], asks=[], keyframe=True)
    db.row(epoch, 2, 1, bids=[(high, "1")])
    with Reader(db.path) as reader:
        assert [price for price, _ in list(reader.books("upbit"))[-1].bids] == [high, low]


def test_range_holds_its_start_and_not_its_end(db: Builder) -> None:
    three_rows(db)
    with Reader(db.path) as reader:
        assert [book.n for book in reader.books("upbit", None, T0 + 10, T0 + 20)] == [2]
        assert [book.n for book in reader.books("upbit", None, T0 + 11, T0 + 21)] == [3]
        assert list(reader.books("upbit", None, T0 + 21, T0 + 90)) == []


def test_pages_join_without_seam(db: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_source, "PAGE_ROWS", 250)
    epoch = db.epoch(heard_us=T0 + 10_000)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    for n in range(2, 1001):
        db.row(epoch, n, n, bids=[("100", str(n))])
    with Reader(db.path) as reader:
        books = list(reader.books("upbit"))
    assert [book.n for book in books] == list(range(1, 1001))
    assert books[-1].bids == (("100.50", "1.0"), ("100", "1000"))


def test_no_read_transaction_outlives_a_page(db: Builder) -> None:
    three_rows(db)
    with Reader(db.path) as reader:
        books = reader.books("upbit")
        next(books)
        db.row(2, 1, 0, bids=[], keyframe=True)
        busy, _, _ = db.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert len(list(books)) == 2


@pytest.mark.parametrize(
    "bids",
    ['[["98","0"]]', '[["100.500","1"]]', '[["x","1"]]', "[[1,2]]", "{"],
    ids=["removes what is not there", "spelt twice", "no number", "numbers", "no JSON"],
)
def test_rows_no_writer_wrote_are_corrupt(db: Builder, bids: str) -> None:
    epoch = db.epoch(heard_us=T0 + 10)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    db.rows([(epoch << 24 | 2, 1, None, None, 0, bids, None)])
    with Reader(db.path) as reader, pytest.raises(StorageCorrupt, match=f"book {epoch}/2"):
        list(reader.books("upbit"))


def test_complete_book_in_any_order_is_sorted_and_must_not_repeat_a_price(db: Builder) -> None:
    epoch = db.epoch(heard_us=T0 + 10)
    db.row(epoch, 1, 0, bids=BIDS[::-1], asks=ASKS[::-1], keyframe=True)
    with Reader(db.path) as reader:
        (book,) = reader.books("upbit")
        assert (book.bids, book.asks) == (tuple(BIDS), tuple(ASKS))
        db.row(epoch, 2, 1, bids=[("1", "1"), ("1.0", "1")], asks=[], keyframe=True)
        with pytest.raises(StorageCorrupt, match="twice"):
            list(reader.books("upbit"))


def test_newest_book(db: Builder) -> None:
    db.feed("UPBIT", "ETH-KRW")
    three_rows(db)
    with Reader(db.path) as reader:
        newest = reader.newest("upbit", "BTC-KRW")
        assert isinstance(newest, BookAt)
        assert newest.n == 3
        assert reader.newest("upbit", "ETH-KRW") == Gap("never", None, None)


def test_gaps_speak() -> None:
    assert str(Gap("stale", T0, T0 + 1)) == ("stale from 2023-11-14T22:13:20.000000Z until 2023-11-14T22:13:20.000001Z")
    assert str(Gap("never", None, None)) == "never"


def test_times_of_rows_reach_one_beyond_the_range(db: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_source, "TIMES", 2)
    three_rows(db)
    with Reader(db.path) as reader:
        (epoch,) = reader.epochs("upbit", "BTC-KRW")
        assert list(reader.row_times(epoch, T0 + 5, T0 + 9)) == [T0, T0 + 10]
        assert list(reader.row_times(epoch, T0 + 10, T0 + 99)) == [T0 + 10, T0 + 20]
        assert list(reader.row_times(epoch, T0 - 5, T0 + 99)) == [T0, T0 + 10, T0 + 20]


# --- holes -----------------------------------------------------------------------------------------------------------


def test_missing_row_is_a_gap_until_the_next_keyframe(db: Builder) -> None:
    epoch = db.epoch(heard_us=T0 + 100)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    db.row(epoch, 2, 10, bids=[("100", "3")])
    db.row(epoch, 4, 30, bids=[("100", "5")])
    db.row(epoch, 5, 40, bids=BIDS, asks=ASKS, keyframe=True)
    hole = Gap("missing", T0 + 10, T0 + 40)
    with Reader(db.path) as reader:
        items = list(reader.books("upbit", gaps=True))
        assert [item if isinstance(item, Gap) else item.n for item in items] == [
            Gap("never", None, T0), 1, 2, hole, 5, Gap("open", T0 + 100, None)
        ]  # fmt: skip
        assert [book.n for book in reader.books("upbit")] == [1, 2, 5]
        for time_us in (11, 20, 30, 39):
            assert reader.book_at("upbit", "BTC-KRW", T0 + time_us) == hole
        assert n_at(reader, 10) == 2
        assert n_at(reader, 40) == n_at(reader, 100) == 5
        assert list(reader.books("upbit", None, T0 + 15, T0 + 20, gaps=True)) == [Gap("missing", T0 + 15, T0 + 19)]


def test_missing_row_before_the_end_of_coverage_is_a_gap(db: Builder) -> None:
    epoch = db.epoch(heard_us=T0 + 100)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    db.row(epoch, 3, 30, bids=[("100", "5")])
    with Reader(db.path) as reader:
        assert reader.book_at("upbit", "BTC-KRW", T0 + 60) == Gap("missing", T0, T0 + 100)
        assert reader.book_at("upbit", "BTC-KRW", T0 + 20) == Gap("missing", T0, T0 + 100)
        assert Gap("missing", T0, T0 + 100) in list(reader.books("upbit", gaps=True))


def test_covered_time_without_any_row_is_a_gap(db: Builder) -> None:
    db.epoch(heard_us=T0 + 100)
    with Reader(db.path) as reader:
        assert reader.book_at("upbit", "BTC-KRW", T0 + 60) == Gap("missing", T0, T0 + 100)
        assert list(reader.books("upbit")) == []


@pytest.mark.parametrize(
    ("reason", "heard", "confirmed", "end"),
    [("disconnect", 100, 50, 100), ("stale", 100, 50, 50), ("probe", 100, 50, 50), ("checksum", 100, 50, 50)],
)
def test_coverage_ends_where_the_reason_allows(db: Builder, reason: str, heard: int, confirmed: int, end: int) -> None:
    epoch = db.epoch(heard_us=T0 + heard, confirmed_us=T0 + confirmed, reason=reason)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    with Reader(db.path) as reader:
        assert n_at(reader, end) == 1
        assert reader.book_at("upbit", "BTC-KRW", T0 + end + 1) == Gap(reason, T0 + end, None)
        assert reader.book_at("upbit", "BTC-KRW", T0 - 1) == Gap("never", None, T0)


def test_rows_beyond_coverage_are_not_served(db: Builder) -> None:
    epoch = db.epoch(heard_us=T0 + 100, confirmed_us=T0 + 50, reason="checksum")
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    db.row(epoch, 2, 60, bids=[("100", "9")])
    with Reader(db.path) as reader:
        assert [book.n for book in reader.books("upbit")] == [1]


def test_open_epoch_of_a_run_that_is_over_crashed(db: Builder) -> None:
    """1. a run is killed; 2. it still counts as running; 3. the next start shows that it is over."""
    three_rows(db)
    with Reader(db.path) as reader:
        assert reader.book_at("upbit", "BTC-KRW", T0 + 101) == Gap("open", T0 + 100, None)
        db.run(started_us=T0 + 500)
        assert reader.book_at("upbit", "BTC-KRW", T0 + 101) == Gap("crash", T0 + 100, None)
        assert reader.epochs("upbit", "BTC-KRW")[0].reason == "crash"


def test_open_epoch_of_a_closed_run_crashed(db: Builder) -> None:
    db.run(closed_us=T0 + 200)
    three_rows(db)
    with Reader(db.path) as reader:
        assert reader.epochs("upbit", "BTC-KRW")[0].reason == "crash"


def test_trimmed_epoch_is_told_as_deleted(db: Builder) -> None:
    epoch = three_rows(db)
    db.db.execute("DELETE FROM book WHERE id = ?", (epoch << 24 | 1,))
    db.db.execute("UPDATE book SET flags = 1, bids = '[]', asks = '[]' WHERE id = ?", (epoch << 24 | 2,))
    db.db.execute("UPDATE coverage SET from_us = ?", (T0 + 10,))
    with Reader(db.path) as reader:
        assert reader.book_at("upbit", "BTC-KRW", T0) == Gap("deleted", None, T0 + 10)
        assert n_at(reader, 15) == 2


def test_epochs_of_a_range(db: Builder) -> None:
    one = db.epoch(opened_us=T0, heard_us=T0 + 10, reason="disconnect")
    two = db.epoch(opened_us=T0 + 20, heard_us=T0 + 30)
    with Reader(db.path) as reader:
        for span, expected in (
            ((None, None), [one, two]),
            ((T0 + 10, T0 + 20), [one]),
            ((T0 + 11, T0 + 20), []),
            ((T0 + 11, T0 + 21), [two]),
        ):
            assert [epoch.id for epoch in reader.epochs("upbit", "BTC-KRW", *span)] == expected


# --- epochs that overlap ---------------------------------------------------------------------------------------------


def test_overlapping_epochs_are_served_one_after_the_other(db: Builder) -> None:
    old = db.epoch(opened_us=T0, heard_us=T0 + 100, reason="superseded")
    new = db.epoch(opened_us=T0 + 50, heard_us=T0 + 200)
    db.row(old, 1, 0, bids=[("1", "1")], asks=[], keyframe=True)
    db.row(new, 1, 0, bids=[("1", "1")], asks=[], keyframe=True)
    db.row(old, 2, 60, bids=[("1", "2")])
    db.row(new, 2, 11, bids=[("1", "2")])
    db.row(new, 3, 60, bids=[("1", "3")])
    with Reader(db.path) as reader:
        assert [(book.epoch, book.n) for book in reader.books("upbit")] == [(old, 1), (old, 2), (new, 3)]
        assert [reader.book_at("upbit", "BTC-KRW", T0 + time).epoch for time in (100, 101)] == [old, new]  # type: ignore[union-attr]


def test_book_taken_over_is_given_when_it_differs(db: Builder) -> None:
    old = db.epoch(opened_us=T0, heard_us=T0 + 100, reason="superseded")
    new = db.epoch(opened_us=T0 + 50, heard_us=T0 + 200)
    db.row(old, 1, 0, bids=[("1", "1")], asks=[], keyframe=True)
    db.row(new, 1, 0, bids=[("1", "7")], asks=[], keyframe=True)
    with Reader(db.path) as reader:
        assert [(book.epoch, book.bids[0][1]) for book in reader.books("upbit")] == [(old, "1"), (new, "7")]


def test_epoch_inside_another_is_never_served(db: Builder) -> None:
    outer = db.epoch(opened_us=T0, heard_us=T0 + 100, reason="stop")
    inner = db.epoch(opened_us=T0 + 10, heard_us=T0 + 90, reason="stop", transport="rest")
    for epoch in (outer, inner):
        db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    with Reader(db.path) as reader:
        assert {book.epoch for book in reader.books("upbit")} == {outer}
        parts = timeline(reader.epochs("upbit", "BTC-KRW"))
    assert [type(part).__name__ for part in parts] == ["Gap", "Segment", "Gap"]


# --- against a naive reader ------------------------------------------------------------------------------------------

prices = st.integers(1, 12).map(lambda price: f"{price}.50")
volumes = st.integers(0, 5).map(str)
update = st.tuples(
    st.integers(0, 3),  # microseconds since the row before
    st.dictionaries(prices, volumes, max_size=4),
    st.dictionaries(prices, volumes, max_size=4),
    st.booleans(),  # keyframe
    st.integers(0, 9),  # 0: the row was lost
)
Update = tuple[int, dict[str, str], dict[str, str], bool, int]
Plan = tuple[int, list[Update], int, str | None]
an_epoch = st.tuples(
    st.integers(0, 30),  # opens so long after the one before
    st.lists(update, max_size=12),
    st.integers(0, 8),  # heard so long after its last row
    st.sampled_from(["disconnect", "stop", "superseded", None]),
)


@given(st.lists(an_epoch, min_size=1, max_size=4))
@settings(max_examples=150)
def test_reader_equals_a_naive_replay(tmp_path_factory: pytest.TempPathFactory, plan: list[Plan]) -> None:
    db = Builder(tmp_path_factory.mktemp("naive") / "books.sqlite")
    try:
        epochs = write(db, plan)
    finally:
        db.close()
    with Reader(db.path) as reader:
        assert [told(book) for book in reader.books("upbit")] == naive_books(epochs)
        last = max(epoch.until_us for epoch in epochs)
        for time_us in range(T0 - 1, last + 2):
            book = reader.book_at("upbit", "BTC-KRW", time_us)
            assert (told(book) if isinstance(book, BookAt) else None) == naive_at(epochs, time_us)
        for start_us, end_us in ((T0, T0 + 10), (T0 + 7, T0 + 31), (T0 + 25, last + 1)):
            books = reader.books("upbit", None, start_us, end_us)
            assert [told(book) for book in books] == naive_books(epochs, start_us, end_us)


class Row(NamedTuple):
    n: int
    received_us: int
    book: tuple[object, object] | None  # None: it can't be known, for a row since the keyframe was lost


class NaiveEpoch(NamedTuple):
    id: int
    from_us: int
    until_us: int
    rows: list[Row]


Told = tuple[int, int, int, object, object]


def told(book: BookAt) -> Told:
    return book.epoch, book.n, book.received_us, book.bids, book.asks


def naive_at(epochs: list[NaiveEpoch], time_us: int) -> Told | None:
    end = -1
    for epoch in epochs:
        if epoch.until_us <= end:
            continue
        if max(end + 1, epoch.from_us) <= time_us <= epoch.until_us:
            return naive_state(epoch, time_us)
        end = epoch.until_us
    return None


def naive_state(epoch: NaiveEpoch, time_us: int) -> Told | None:
    earlier = [row for row in epoch.rows if row.received_us <= time_us]
    later = epoch.rows[len(earlier) :]
    if not earlier or earlier[-1].book is None:
        return None
    row = earlier[-1]
    if later and later[0].n != row.n + 1 and time_us > row.received_us:
        return None
    assert row.book is not None
    return epoch.id, row.n, row.received_us, *row.book


def naive_books(epochs: list[NaiveEpoch], start_us: int = 0, end_us: int = 1 << 62) -> list[Told]:
    books: list[Told] = []
    end = -1
    for epoch in epochs:
        if epoch.until_us <= end:
            continue
        after_us = max(end, epoch.from_us - 1)
        last_us = min(epoch.until_us, end_us - 1)
        if epoch.from_us <= end and books and after_us < last_us:
            state = naive_state(epoch, after_us)
            following = [row for row in epoch.rows if row.received_us > after_us][:1]
            whole = state is not None and (not following or following[0].n == state[1] + 1)
            if state is not None and whole and state[3:] != books[-1][3:]:
                books.append(state)
        books += [
            (epoch.id, row.n, row.received_us, *row.book)
            for row in epoch.rows
            if row.book is not None and max(after_us, start_us - 1) < row.received_us <= last_us
        ]
        end = epoch.until_us
    return books


def write(db: Builder, plan: list[Plan]) -> list[NaiveEpoch]:
    """Store what hypothesis made up and return what is known of it, in order of time."""
    epochs = []
    opened_us = T0
    for wait, updates, silence, reason in plan:
        opened_us += wait
        at_us = 0
        bids: dict[str, str] = {}
        asks: dict[str, str] = {}
        whole = False
        rows, stored = [], []
        for n, (step, new_bids, new_asks, keyframe, luck) in enumerate(updates, 1):
            at_us += step if n > 1 else 0
            keyframe = keyframe or n == 1
            changes = change(bids, new_bids), change(asks, new_asks)
            book = levels(bids, highest_first=True), levels(asks, highest_first=False)
            if luck == 0:  # the row is lost
                whole = False
                continue
            whole = whole or keyframe
            rows.append(Row(n, opened_us + at_us, book if whole else None))
            stored.append((n, at_us, keyframe, book if keyframe else [side or None for side in changes]))
        heard_us = opened_us + at_us + silence
        epoch = db.epoch(opened_us=opened_us, heard_us=heard_us, reason=reason)
        for n, row_at_us, keyframe, (bid_levels, ask_levels) in stored:
            db.row(epoch, n, row_at_us, bids=bid_levels, asks=ask_levels, keyframe=keyframe)
        epochs.append(NaiveEpoch(epoch, opened_us, heard_us, rows))
    return epochs


def change(side: dict[str, str], new: dict[str, str]) -> list[tuple[str, str]]:
    changed = []
    for price, volume in new.items():
        if volume == "0":
            if side.pop(price, None) is not None:
                changed.append((price, "0"))
        elif side.get(price) != volume:
            side[price] = volume
            changed.append((price, volume))
    return changed


def levels(side: dict[str, str], *, highest_first: bool) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(side.items(), key=lambda level: Decimal(level[0]), reverse=highest_first))


def n_at(reader: Reader, after_us: int) -> int:
    book = reader.book_at("upbit", "BTC-KRW", T0 + after_us)
    assert isinstance(book, BookAt)
    return book.n
