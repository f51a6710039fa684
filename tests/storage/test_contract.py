"""What every store keeps to, whichever database is behind it; and that what was written alike is read alike."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collector.records import (
    KEYFRAME,
    BookRow,
    CandleRow,
    CoverageMark,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    RecordsLost,
    Rejected,
    TickerRow,
    TradeRow,
)
from storage import maintenance, postgres_maintenance
from storage.convert import DataConverter
from storage.coverage import coverage
from storage.reader import BookAt, Gap, Reader
from storage.sqlite import SQLiteStore
from storage.store import Run, Store
from tests.conftest import ROOT
from tests.storage.places import Place, alike
from tests.storage.story import DAY, DAY_US, FEEDS, MIDNIGHT, S, batch, story, write_all

T0 = MIDNIGHT
RUN = Run("run 1", "here", "1.2.3", T0)
OPENED = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0, 30)
BOOK = BookRow(1, 1, 0, 5, 77, KEYFRAME, '[["99","1.5"],["98","2"]]', '[["101","0.10"]]')


@pytest.fixture
def store(place: Place) -> Store:
    return place.store()


def row(n: int, at_us: int = 0, epoch: int = 1) -> BookRow:
    return BookRow(epoch, n, at_us, None, None, 0, '[["99","3"]]', None)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_everything_of_a_batch_is_there(place: Place, store: Store) -> None:
    records = (
        OPENED,
        BOOK,
        row(2, 10),
        CoverageMark(1, T0 + 20, T0 + 10, 2),
        EpochVerdict(1, "linked"),
        Rejected("upbit", None, T0 + 3, "no JSON", b"\x00\xff"),
        Event(T0 + 4, "INFO", "UPBIT-BTC", "한글"),
    )
    assert store.write(batch(RUN, 1, *records), T0 + 5) == 0
    assert place.rows() == [(1, 1), (1, 2)]
    assert place.ledger() == [(T0, T0 + 20, T0 + 10, 2, None, None, None, "linked")]
    assert place.ask("SELECT exchange, market, received_us, reason, frame FROM rejected") == [
        ("UPBIT", None, T0 + 3, "no JSON", b"\x00\xff")
    ]
    assert place.ask("SELECT time_us, level, tag, text FROM event") == [(T0 + 4, "INFO", "UPBIT-BTC", "한글")]
    assert place.ask("SELECT uid, collector_id, version, batch, started_us, alive_us, closed_us FROM run") == [
        ("run 1", "here", "1.2.3", 1, T0, T0 + 5, None)
    ]
    assert place.ask(
        "SELECT exchange, symbol, currency, received_us, venue_us, sequence, keyframe, bids, asks FROM book_update "
        "ORDER BY n"
    ) == [
        ("UPBIT", "BTC", "KRW", T0, T0 - 5, 77, 1, BOOK.bids, BOOK.asks),
        ("UPBIT", "BTC", "KRW", T0 + 10, None, None, 0, '[["99","3"]]', None),
    ]


def test_a_batch_written_twice_is_there_once(place: Place, store: Store) -> None:
    """Fails without the comparison of `batch.number` with the run's newest in `_write`."""
    twice = batch(RUN, 1, OPENED, BOOK, Event(T0, "INFO", "TAG", "once"), Rejected("upbit", None, T0, "why", b"{"))
    assert store.write(twice, T0) == 0
    assert store.write(twice, T0) == 4
    place.close()
    assert place.store().write(twice, T0) == 4  # by whoever comes after a kill, too
    assert place.rows() == [(1, 1)]
    assert place.ask("SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM rejected)") == [(1, 1)]


def test_what_is_there_is_counted_and_never_a_reason_to_lose_its_neighbours(place: Place, store: Store) -> None:
    """Fails without ON CONFLICT DO NOTHING where books go in."""
    store.write(batch(RUN, 1, OPENED, BOOK, row(2), row(4)), T0)
    assert store.write(batch(RUN, 2, OPENED, row(2), row(3), row(4), row(5), Event(T0, "INFO", "TAG", "new")), T0) == 3
    assert place.rows() == [(1, n) for n in range(1, 6)]
    assert place.ask("SELECT text FROM event") == [("new",)]


def test_a_row_that_is_there_stays_as_it_was(place: Place, store: Store) -> None:
    store.write(batch(RUN, 1, OPENED, BOOK), T0)
    assert store.write(batch(RUN, 2, BookRow(1, 1, 0, 9, 9, KEYFRAME, "[]", "[]")), T0) == 1
    assert place.ask("SELECT sequence, bids FROM book") == [(77, BOOK.bids)]


def test_numbers_of_batches_are_those_of_a_run(place: Place, store: Store) -> None:
    other = Run("run 2", "here", "1.2.3", T0 + 1)
    assert store.write(batch(RUN, 7, OPENED, BOOK), T0) == 0
    assert store.write(batch(other, 1, OPENED, BOOK), T0) == 0
    assert store.write(batch(RUN, 7, Event(T0, "INFO", "TAG", "old")), T0) == 1
    assert store.write(batch(other, 1, OPENED, BOOK), T0) == 2
    assert place.ask("SELECT uid, batch FROM run ORDER BY id") == [("run 1", 7), ("run 2", 1)]
    assert place.rows() == [(1, 1), (2, 1)]


def test_a_batch_that_fails_leaves_nothing_of_itself(place: Place, store: Store) -> None:
    """Fails where a batch is committed in two parts."""
    store.write(batch(RUN, 1, OPENED, BOOK), T0)
    before = place.ledger(), place.rows()
    broken: Any = Rejected("upbit", None, T0, "why", object())  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)type|adapt|bytes|object"):
        store.write(batch(RUN, 2, row(2), CoverageMark(1, T0 + 9, T0 + 9, 2), broken), T0)
    assert (place.ledger(), place.rows()) == before
    assert store.write(batch(RUN, 2, row(2)), T0) == 0


# --- trades, tickers, candles -----------------------------------------------------------------------------------------

TRADES = EpochOpened(1, "UPBIT", "BTC-KRW", "trades", "websocket", T0)
TICKER = EpochOpened(2, "UPBIT", "BTC-KRW", "ticker", "websocket", T0)
CANDLES = EpochOpened(3, "UPBIT", "BTC-KRW", "candles", "websocket", T0)
ALL_TRADES = "SELECT trade_id, venue_us, received_us, side, price, volume, epoch FROM trade ORDER BY venue_us, trade_id"
ALL_CANDLES = (
    "SELECT open_us, open, high, low, close, volume, closed, received_us FROM candle ORDER BY interval_s, open_us"
)


def trade(
    trade_id: str, venue_us: int = T0, *, epoch: int = 1, received_us: int = T0 + 9, price: str = "1.10"
) -> TradeRow:
    return TradeRow(epoch, trade_id, "buy", price, "2E-8", received_us, venue_us)


def candle(close: str, received_us: int, *, closed: bool = False, epoch: int = 3, open_us: int = T0) -> CandleRow:
    return CandleRow(epoch, 60, open_us, "1", "2.50", "0.5", close, "0", closed, received_us)


def test_trades_tickers_and_candles_are_there_to_the_digit(place: Place, store: Store) -> None:
    records = (
        TRADES,
        TICKER,
        CANDLES,
        trade("7"),
        TickerRow(2, T0 + 5, None, "1.10", None, "1.2E+3", "0.00"),
        candle("1.50", T0 + 3),
        CoverageMark(1, T0 + 9, T0 + 9, 1),
    )
    assert store.write(batch(RUN, 1, *records), T0 + 9) == 0
    assert place.ask(ALL_TRADES) == [("7", T0, T0 + 9, "buy", "1.10", "2E-8", 1)]
    assert place.ask("SELECT received_us, venue_us, last, bid, ask, volume, epoch FROM ticker") == [
        (T0 + 5, None, "1.10", None, "1.2E+3", "0.00", 2)
    ]
    assert place.ask(ALL_CANDLES) == [(T0, "1", "2.50", "0.5", "1.50", "0", 0, T0 + 3)]
    assert place.ask("SELECT channel, epoch.id FROM epoch JOIN feed ON feed.id = feed ORDER BY epoch.id") == [
        ("trades", 1), ("ticker", 2), ("candles", 3)
    ]  # fmt: skip


def test_a_trade_that_is_there_stays_as_it_was_and_costs_its_neighbours_nothing(place: Place, store: Store) -> None:
    """Fails without ON CONFLICT DO NOTHING where trades go in."""
    store.write(batch(RUN, 1, TRADES, trade("7"), trade("9")), T0)
    assert store.write(batch(RUN, 2, trade("7", price="66"), trade("8"), trade("9"), trade("9"), trade("10")), T0) == 3
    assert [line[:2] + line[4:5] for line in place.ask(ALL_TRADES)] == [
        (number, T0, "1.10") for number in ("10", "7", "8", "9")
    ]
    store.write(batch(RUN, 3, trade("7", T0 + 1)), T0)  # venues reuse numbers: of another time it is another trade
    assert [line[1] for line in place.ask(ALL_TRADES)] == [T0] * 4 + [T0 + 1]


def test_two_collectors_trades_unite_and_their_tickers_stay_apart(place: Place, store: Store) -> None:
    """Fails without the epoch in the key of `ticker`."""
    other = Run("run 2", "elsewhere", "1", T0)
    mine = (TRADES, TICKER, trade("7"), TickerRow(2, T0 + 5, T0, "1", None, None, None))
    assert store.write(batch(RUN, 1, *mine), T0) == 0
    theirs = (
        TRADES,
        TICKER,
        trade("7", received_us=T0 + 1),
        trade("8"),
        TickerRow(2, T0 + 5, T0, "2", None, None, None),
    )
    assert store.write(batch(other, 1, *theirs), T0) == 1
    assert [line[0] for line in place.ask(ALL_TRADES)] == ["7", "8"]
    assert place.ask("SELECT last FROM ticker ORDER BY epoch") == [("1",), ("2",)]


@pytest.mark.parametrize("together", [False, True], ids=["in batches", "in one batch"])
def test_a_candle_is_replaced_by_what_is_newer_and_never_opened_again(
    place: Place, store: Store, together: bool
) -> None:
    """Fails without any of the conditions of `REPLACE_CANDLE`."""
    told = [
        (candle("1", T0 + 5), "1"),
        (candle("2", T0 + 7), "2"),
        (candle("3", T0 + 6), "2"),  # received earlier
        (candle("4", T0 + 3, closed=True), "4"),  # by another collector, whose clock is behind
        (candle("5", T0 + 9), "4"),
        (candle("6", T0 + 2, closed=True), "4"),
        (candle("7", T0 + 8, closed=True), "7"),  # the exchange corrected it
    ]
    if together:
        told = [(row, "7") for row, _ in told]
        store.write(batch(RUN, 1, CANDLES, *(row for row, _ in told), candle("8", T0, open_us=T0 + 60 * S)), T0)
        assert [line[4] for line in place.ask(ALL_CANDLES)] == ["7", "8"]
        return
    store.write(batch(RUN, 1, CANDLES), T0)
    for number, (row, close) in enumerate(told, start=2):
        store.write(batch(RUN, number, row), T0)
        assert [line[4] for line in place.ask(ALL_CANDLES)] == [close]


def test_rows_that_no_epoch_or_no_time_has_are_told_and_hold_up_nothing(place: Place, store: Store) -> None:
    strays = (trade("1", epoch=9), TickerRow(9, T0, None, "1", None, None, None), candle("1", T0, epoch=9))
    odd = (trade("2", 1 << 63), candle("1", T0, open_us=-(1 << 64)))
    store.write(batch(RUN, 1, TRADES, CANDLES, *strays, *odd, trade("7")), T0)
    assert [line[0] for line in place.ask(ALL_TRADES)] == ["7"]
    ((text,),) = place.ask("SELECT text FROM event")
    assert text.startswith("5 rows ")
    assert place.ask("SELECT count(*) FROM candle") == place.ask("SELECT count(*) FROM ticker") == [(0,)]


def test_what_was_lost_ends_epochs_of_streams_as_well_and_their_rows_stay(place: Place, store: Store) -> None:
    store.write(batch(RUN, 1, TRADES, trade("7"), CoverageMark(1, T0 + 9, T0 + 9, 1)), T0)
    again = EpochOpened(5, "UPBIT", "BTC-KRW", "trades", "websocket", T0 + 50)
    late = trade("8", T0 + 60, epoch=5)
    store.write(batch(RUN, 2, RecordsLost("no_space"), again, late, CoverageMark(5, T0 + 60, T0 + 60, 1)), T0)
    assert [line[:6] for line in place.ledger()] == [
        (T0, T0 + 9, T0 + 9, 1, "no_space", T0 + 9),
        (T0 + 50, T0 + 60, T0 + 60, 1, None, None),
    ]
    assert [line[0] for line in place.ask(ALL_TRADES)] == ["7", "8"]


def test_an_epoch_tells_what_its_sizes_count(place: Place, store: Store) -> None:
    swap = EpochOpened(1, "OKX", "BTC-USDT:USDT", "orderbook", "websocket", T0, 400, "linked", "0.01 BTC")
    store.write(batch(RUN, 1, swap, msgspec.structs.replace(TRADES, epoch=2)), T0)
    assert place.ask("SELECT unit FROM epoch ORDER BY id") == [("0.01 BTC",), (None,)]
    with Reader(place.database) as reader:
        (epoch,) = reader.epochs("okx", "BTC-USDT:USDT")
        assert (epoch.unit, epoch.verdict) == ("0.01 BTC", "linked")


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_marks_only_move_forward(place: Place, store: Store) -> None:
    """Fails without max/greatest in the statement that marks."""
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 8, 7)), T0)
    store.write(batch(RUN, 2, CoverageMark(1, T0 + 5, T0 + 9, 6)), T0)
    assert place.ledger()[0][:5] == (T0, T0 + 9, T0 + 9, 7, None)


def test_an_end_may_take_back(place: Place, store: Store) -> None:
    """Fails without min/least in the statement that ends."""
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 8, 7)), T0)
    store.write(batch(RUN, 2, EpochEnded(1, T0 + 5, "probe")), T0)
    assert place.ledger() == [(T0, T0 + 5, T0 + 5, 7, "probe", T0 + 5, "probe", "unverified")]


def test_an_end_never_claims_more(place: Place, store: Store) -> None:
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 8, 7), EpochEnded(1, T0 + 50, "stop")), T0)
    assert place.ledger() == [(T0, T0 + 9, T0 + 8, 7, "stop", T0 + 50, "stop", "unverified")]


def test_nothing_moves_after_the_end(place: Place, store: Store) -> None:
    """Fails without `reason IS NULL` in the statement that marks."""
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 8, 7), EpochEnded(1, T0 + 5, "probe")), T0)
    store.write(batch(RUN, 2, CoverageMark(1, T0 + 9, T0 + 8, 7)), T0)
    assert place.ledger()[0][:4] == (T0, T0 + 5, T0 + 5, 7)


def test_the_order_within_a_batch_is_that_of_an_epochs_life(place: Place, store: Store) -> None:
    later = EpochOpened(2, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0 + 20, 30)
    records = (
        OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 9, 1), EpochEnded(1, T0 + 9, "disconnect"),
        later, row(1, epoch=2), CoverageMark(2, T0 + 30, T0 + 30, 1),
    )  # fmt: skip
    store.write(batch(RUN, 1, *records), T0)
    assert [line[:6] for line in place.ledger()] == [
        (T0, T0 + 9, T0 + 9, 1, "disconnect", T0 + 9),
        (T0 + 20, T0 + 30, T0 + 30, 1, None, None),
    ]


def test_what_was_lost_ends_every_open_epoch_of_its_run_where_it_got_to(place: Place, store: Store) -> None:
    """Fails without the statements that lose, or with the epochs of other runs among them."""
    other = Run("run 2", "elsewhere", "1", T0)
    gopax = EpochOpened(2, "GOPAX", "BTC-KRW", "orderbook", "websocket", T0, 30)
    store.write(batch(other, 1, OPENED, BOOK, CoverageMark(1, T0 + 5, T0 + 5, 1)), T0)
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 9, 1)), T0)
    store.write(batch(RUN, 2, gopax, EpochEnded(2, T0 + 1, "stop")), T0)
    assert store.open_epochs(RUN) == {1}
    assert (
        store.write(batch(RUN, 9, RecordsLost("no_space"), CoverageMark(1, T0 + 99, T0 + 99, 99), row(2, 99)), T0) == 0
    )
    assert [line[1:7] for line in place.ledger()] == [
        (T0 + 5, T0 + 5, 1, None, None, None),
        (T0 + 9, T0 + 9, 1, "no_space", T0 + 9, "no_space"),
        (T0, T0, 0, "stop", T0 + 1, "stop"),
    ]
    assert (store.open_epochs(RUN), store.open_epochs(other)) == (set(), {1})
    again = EpochOpened(3, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0 + 200, 30)
    store.write(batch(RUN, 10, again, CoverageMark(3, T0 + 300, T0 + 300, 1)), T0)
    assert place.ledger()[-1][:4] == (T0 + 200, T0 + 300, T0 + 300, 1)


def test_what_came_before_the_loss_in_the_same_batch_counts(place: Place, store: Store) -> None:
    """Fails where a batch is not cut at `RecordsLost`."""
    again = EpochOpened(2, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0 + 50, 30)
    lost = RecordsLost("no_space")
    store.write(batch(RUN, 1, OPENED, BOOK, CoverageMark(1, T0 + 9, T0 + 9, 1), lost, again, row(1, epoch=2)), T0)
    assert [line[:7] for line in place.ledger()] == [
        (T0, T0 + 9, T0 + 9, 1, "no_space", T0 + 9, "no_space"),
        (T0 + 50, T0 + 50, T0 + 50, 0, None, None, None),
    ]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_closed_in_order_once_it_is_known(place: Place, store: Store) -> None:
    store.close_run(RUN, T0 + 1)
    assert place.ask("SELECT count(*) FROM run") == [(0,)]
    store.write(batch(RUN, 1, OPENED), T0)
    store.close_run(RUN, T0 + 99)
    assert place.ask("SELECT alive_us, closed_us FROM run") == [(T0 + 99, T0 + 99)]


def test_open_epochs_are_numbered_as_their_run_does(place: Place, store: Store) -> None:
    other = Run("run 2", "here", "1", T0)
    assert store.open_epochs(RUN) == set()
    store.write(batch(other, 1, *[OPENED]), T0)
    store.write(batch(RUN, 1, OPENED, EpochOpened(2, "GOPAX", "BTC-KRW", "orderbook", "rest", T0)), T0)
    store.write(batch(RUN, 2, EpochEnded(1, T0 + 1, "stop")), T0)
    assert (store.open_epochs(RUN), store.open_epochs(other)) == ({2}, {1})


def test_a_store_may_be_released_twice(place: Place, store: Store) -> None:
    store.write(batch(RUN, 1, OPENED), T0)
    store.release()
    store.release()


# --- kills ------------------------------------------------------------------------------------------------------------


def test_a_kill_leaves_whole_batches_and_a_ledger_that_claims_no_more(place: Place, store: Store) -> None:
    """Each kill comes at some moment of a stream of batches; what was acknowledged is there, and at most one more.

    Fails where coverage is committed before the rows it speaks of.
    """
    place.close()
    taken = 0
    for acknowledged in (1, 7, 25):
        victim = subprocess.Popen(
            [sys.executable, "-m", "tests.storage.contract_victim", str(place.database), str(taken + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdout is not None
        with victim:
            told = [int(victim.stdout.readline()) for _ in range(acknowledged)]
            victim.send_signal(signal.SIGKILL)
            told += [int(line) for line in victim.stdout.read().split()]
        ((newest,),) = place.ask("SELECT batch FROM run")
        assert told[-1] <= newest <= told[-1] + 1
        assert place.rows() == [(1, n) for n in range(1, 3 * newest + 1)]
        assert place.ledger()[0][:4] == (T0, T0 + 3 * newest, T0 + 3 * newest, 3 * newest)
        assert place.ask("SELECT count(*) FROM event") == [(newest,)]
        taken = told[-1]  # the next one begins with a batch that may be there


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_same_batches_are_read_the_same(both: list[Place], tmp_path: Path, seed: int) -> None:
    for place in both:
        write_all(place.store(), story(seed))
    found = alike(both, lambda reader: [*reader.books("upbit", gaps=True), *reader.books("gopax", gaps=True)])
    books = [item for item in found if isinstance(item, BookAt)]
    assert len(books) > 50
    assert {item.reason for item in found if isinstance(item, Gap)} >= {"never"}
    alike(both, coverage)
    alike(both, lambda reader: coverage(reader, MIDNIGHT + DAY_US // 2, MIDNIGHT + 2 * DAY_US))
    for exchange, market in FEEDS:
        alike(both, lambda reader: reader.newest(exchange, market))  # noqa: B023
        parts = alike(both, lambda reader: reader.timeline(reader.feeds(exchange, market)[0]))  # noqa: B023
        alike(both, lambda reader: reader.rows_about(parts, MIDNIGHT + DAY_US, None))  # noqa: B023
    for moment_us in (MIDNIGHT + hour * 3600 * S for hour in range(0, 72, 5)):
        alike(both, lambda reader: reader.book_at("upbit", "eth-krw", moment_us))  # noqa: B023
    for name in ("json", "csv"):
        content = []
        for place in both:
            out = tmp_path / f"{type(place.database).__name__}.{name}"
            receipt = DataConverter(place.database).export("upbit", out, format=name)
            assert receipt.database == str(place.database).rpartition("/")[2]
            content.append((out.read_bytes(), receipt.gaps, receipt.covered_seconds, receipt.epochs))
        assert content[0] == content[1]


@pytest.mark.parametrize("seed", range(3, 5))
def test_what_is_left_after_some_days_is_the_same(both: list[Place], seed: int) -> None:
    before = None
    for place in both:
        store = place.store()
        write_all(store, story(seed))
        with Reader(place.database) as reader:
            before = list(reader.books("upbit"))
        if isinstance(store, SQLiteStore):
            list(maintenance.delete_days_before(store, DAY + 1))
        else:
            list(postgres_maintenance.delete_days_before(store, DAY + 1))
            list(postgres_maintenance.delete_days_before(store, DAY + 1))  # twice changes nothing
    assert before is not None
    left = alike(both, lambda reader: list(reader.books("upbit", None, MIDNIGHT + DAY_US)))
    assert 0 < len(left) < len(before)
    alike(both, lambda reader: [*reader.books("upbit", gaps=True), *reader.books("gopax", gaps=True)])
    alike(both, coverage)
    ledgers = [place.ledger() for place in both]
    assert ledgers[0] == ledgers[1]
