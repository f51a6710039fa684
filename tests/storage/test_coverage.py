"""The ledger told in states: against a naive account, microsecond by microsecond."""

from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from storage import coverage as coverage_module
from storage.coverage import Interval, coverage
from storage.reader import Epoch, Gap, Reader, UnknownFeed
from tests.storage.build import T0, Builder

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import given, settings
from hypothesis import strategies as st

S = 1_000_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "books.sqlite")
    yield builder
    builder.close()


def day(db: Builder) -> None:
    """Rows at 0, 0.5 and 10 s; confirmed to 20 s, heard to 30 s, gone until 40 s, then killed at 50 s."""
    epoch = db.epoch(heard_us=T0 + 30 * S, confirmed_us=T0 + 20 * S, reason="disconnect")
    for n, at_us in enumerate((0, S // 2, 10 * S), 1):
        db.row(epoch, n, at_us, bids=[("1", str(n))], asks=[], keyframe=n == 1)
    epoch = db.epoch(opened_us=T0 + 40 * S, heard_us=T0 + 50 * S)
    db.row(epoch, 1, 0, bids=[("1", "1")], asks=[], keyframe=True)
    db.run(started_us=T0 + 60 * S)


def test_states_of_a_day(db: Builder) -> None:
    day(db)
    with Reader(db.path) as reader:
        (feed,) = coverage(reader, T0 - 5 * S, T0 + 60 * S)
    assert feed.intervals == (
        Interval("GAP", T0 - 5 * S, T0, "never"),
        Interval("DATA", T0, T0 + S // 2),
        Interval("QUIET", T0 + S // 2, T0 + 20 * S),
        Interval("UNCONFIRMED", T0 + 20 * S, T0 + 30 * S),
        Interval("GAP", T0 + 30 * S, T0 + 40 * S, "disconnect"),
        Interval("QUIET", T0 + 40 * S, T0 + 50 * S),
        Interval("GAP", T0 + 50 * S, T0 + 60 * S, "crash"),
    )
    assert (feed.us("DATA"), feed.us("GAP"), feed.longest_gap_us) == (S // 2, 25 * S, 10 * S)
    assert feed.percent == {
        "DATA": "0.769",
        "QUIET": "45.385",
        "PENDING": "0.000",
        "UNCONFIRMED": "15.385",
        "GAP": "38.461",
    }
    told = feed.as_dict()
    assert orjson.loads(orjson.dumps(told)) == told
    assert told["gaps"][1] == {"reason": "disconnect", "from_us": T0 + 30 * S, "until_us": T0 + 40 * S}


def test_without_a_range_it_is_from_first_to_last(db: Builder) -> None:
    day(db)
    with Reader(db.path) as reader:
        (feed,) = coverage(reader)
    assert (feed.start_us, feed.end_us, len(feed.gaps)) == (T0, T0 + 50 * S, 1)


def test_range_inside_a_silence(db: Builder) -> None:
    day(db)
    with Reader(db.path) as reader:
        (feed,) = coverage(reader, T0 + 5 * S, T0 + 6 * S)
    assert feed.intervals == (Interval("QUIET", T0 + 5 * S, T0 + 6 * S),)


def test_two_transports_are_united(db: Builder) -> None:
    silent = db.epoch(heard_us=T0 + 10 * S, confirmed_us=T0, reason="stop")
    db.row(silent, 1, 0, bids=[], asks=[], keyframe=True)
    polled = db.epoch(opened_us=T0 + 2 * S, heard_us=T0 + 4 * S, reason="stop", transport="rest")
    for n in range(1, 5):
        db.row(polled, n, (n - 1) * S // 2, bids=[("1", str(n))], asks=[], keyframe=n == 1)
    with Reader(db.path) as reader:
        (feed,) = coverage(reader)
    assert [(item.state, item.until_us - item.from_us) for item in feed.intervals] == [
        ("UNCONFIRMED", 2 * S),
        ("DATA", 2 * S),
        ("UNCONFIRMED", 6 * S),
    ]


@pytest.mark.parametrize(("reason", "last"), [(None, "crash"), ("disconnect", "disconnect")])
def test_what_no_comparison_confirmed_is_heard_and_not_claimed(db: Builder, reason: str | None, last: str) -> None:
    """The mutation that must make this fail: serve an epoch whose verdict is `compared` until it was last heard."""
    epoch = db.epoch(heard_us=T0 + 9 * S, confirmed_us=T0 + 4 * S, frames=5, verdict="compared", reason=reason)
    for n in range(1, 10):
        db.row(epoch, n, (n - 1) * S, bids=[("1", str(n))], asks=[], keyframe=n == 1)
    nothing = db.epoch(opened_us=T0 + 20 * S, heard_us=T0 + 22 * S, confirmed_us=T0 + 20 * S, verdict="compared")
    db.row(nothing, 1, 0, bids=[("1", "7")], asks=[], keyframe=True)
    db.run(started_us=T0 + 60 * S)
    with Reader(db.path) as reader:
        (feed,) = coverage(reader, T0, T0 + 30 * S)
        assert feed.intervals == (
            Interval("DATA", T0, T0 + 4 * S),
            Interval("UNCONFIRMED", T0 + 4 * S, T0 + 9 * S),
            Interval("GAP", T0 + 9 * S, T0 + 20 * S, last),
            Interval("UNCONFIRMED", T0 + 20 * S, T0 + 22 * S),
            Interval("GAP", T0 + 22 * S, T0 + 30 * S, "crash"),
        )
        assert [book.n for book in reader.books("UPBIT", "BTC-KRW")] == [1, 2, 3, 4, 5]
        assert reader.book_at("UPBIT", "BTC-KRW", T0 + 5 * S) == Gap("unconfirmed", T0 + 4 * S, T0 + 9 * S)
        assert reader.book_at("UPBIT", "BTC-KRW", T0 + 20 * S) == Gap("unconfirmed", T0 + 20 * S - 1, T0 + 22 * S)
        assert reader.book_at("UPBIT", "BTC-KRW", T0 + 25 * S) == Gap("crash", T0 + 22 * S, None)


def test_what_waits_in_the_spool_is_pending_until_it_is_stored(db: Builder) -> None:
    day(db)
    waiting = {
        ("UPBIT", "BTC-KRW", "orderbook"): [(T0 + 45 * S, T0 + 55 * S)],
        ("GOPAX", "BTC-KRW", "orderbook"): [(T0, T0 + 10 * S)],
    }
    with Reader(db.path) as reader:
        gopax, upbit = coverage(reader, T0, T0 + 60 * S, pending=waiting)
        assert upbit.intervals[-2:] == (
            Interval("PENDING", T0 + 50 * S, T0 + 55 * S),
            Interval("GAP", T0 + 55 * S, T0 + 60 * S, "crash"),
        )
        assert gopax.intervals == (
            Interval("PENDING", T0, T0 + 10 * S),
            Interval("GAP", T0 + 10 * S, T0 + 60 * S, "never"),
        )
        assert [feed.exchange for feed in coverage(reader, exchange="gopax", pending=waiting)] == ["GOPAX"]


def test_feeds_are_chosen_by_name(db: Builder) -> None:
    day(db)
    db.feed("GOPAX", "ETH-KRW")
    with Reader(db.path) as reader:
        assert [feed.exchange for feed in coverage(reader)] == ["GOPAX", "UPBIT"]
        assert [feed.exchange for feed in coverage(reader, exchange="upbit")] == ["UPBIT"]
        assert [feed.market for feed in coverage(reader, market="eth-krw")] == ["ETH-KRW"]
        with pytest.raises(UnknownFeed):
            coverage(reader, exchange="kraken")


def test_feed_never_heard_is_all_gap(db: Builder) -> None:
    db.feed()
    with Reader(db.path) as reader:
        (feed,) = coverage(reader, T0, T0 + S)
        assert feed.intervals == (Interval("GAP", T0, T0 + S, "never"),)
        (feed,) = coverage(reader)
    assert (feed.intervals, feed.percent["GAP"], feed.longest_gap_us) == ((), "100.000", 0)


an_epoch = st.tuples(
    st.integers(0, 40),  # opened so long after the one before opened
    st.lists(st.integers(0, 9), max_size=6),  # rows so long after one another
    st.integers(0, 9),  # confirmed so long after the last row
    st.integers(0, 9),  # heard so long after that
)


@given(st.lists(an_epoch, max_size=4), st.integers(-5, 60), st.integers(0, 90))
@settings(max_examples=150)
def test_coverage_equals_a_naive_account(
    tmp_path_factory: pytest.TempPathFactory, plan: list[Any], start: int, length: int
) -> None:
    db = Builder(tmp_path_factory.mktemp("naive") / "books.sqlite")
    db.feed()
    patched = pytest.MonkeyPatch()
    patched.setattr(coverage_module, "QUIET_AFTER_US", 3)
    kept = []
    opened_us = T0
    for wait, steps, confirmed, silence in plan:
        opened_us += wait
        times = [opened_us]
        for step in steps:
            times.append(times[-1] + step)
        times.append(times[-1] + confirmed)
        epoch = db.epoch(opened_us=opened_us, heard_us=times[-1] + silence, confirmed_us=times[-1], reason="disconnect")
        for n, time_us in enumerate(times[:-1], 1):
            db.row(epoch, n, time_us - opened_us, bids=[], asks=[], keyframe=True)
        kept.append((times, times[-1] + silence))
    db.close()
    with patched.context(), Reader(db.path) as reader:
        (feed,) = coverage(reader, T0 + start, T0 + start + length)
    patched.undo()
    states = [item.state for item in feed.intervals for _ in range(item.from_us, item.until_us)]
    assert states == [naive_state(kept, time_us) for time_us in range(T0 + start, T0 + start + length)]
    at_us = feed.start_us
    for item in feed.intervals:
        assert item.from_us == at_us < item.until_us
        assert (item.reason is None) == (item.state != "GAP")
        at_us = item.until_us
    assert at_us == feed.end_us
    assert sum(map(Decimal, feed.percent.values())) == 100


def naive_state(kept: list[tuple[list[int], int]], time_us: int) -> str:
    best = "GAP"
    for times, until_us in kept:
        if times[-1] <= time_us < until_us and best == "GAP":
            best = "UNCONFIRMED"
        for one, other in pairwise(times):
            if one <= time_us < other:
                state = "QUIET" if other - one > 3 else "DATA"
                best = state if best != "DATA" else best
    return best


def test_times_of_rows_are_read_once_and_books_never(db: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    day(db)
    asked: list[int] = []
    row_times = Reader.row_times

    def counted(self: Reader, epoch: Epoch, start_us: int, end_us: int) -> Iterator[int]:
        asked.append(epoch.id)
        return row_times(self, epoch, start_us, end_us)

    monkeypatch.setattr(Reader, "row_times", counted)
    monkeypatch.setattr(Reader, "_rows", None)
    with Reader(db.path) as reader:
        coverage(reader)
    assert asked == [1, 2]
