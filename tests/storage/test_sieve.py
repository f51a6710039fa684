"""What counts after a loss: whole epochs, and complete books where it is certain what they follow."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from collector.records import (
    KEYFRAME,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    Rejected,
    TradeRow,
)
from storage import sieve as module
from storage.sieve import AGAIN, Epochs, Sieve, remember

OPENED = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", 1000, 15, "checksummed")
OTHER = EpochOpened(2, "UPBIT", "ETH-KRW", "orderbook", "websocket", 1000, 15, "checksummed")
REJECTED = Rejected("upbit", None, 7, "why", b"{")
EVENT = Event(7, "INFO", "TAG", "text")


def row(n: int, *, epoch: int = 1, key: bool = False) -> BookRow:
    return BookRow(epoch, n, n * 10, None, None, KEYFRAME if key else 0, "[]", "[]")


def mark(frames: int, *, epoch: int = 1) -> CoverageMark:
    return CoverageMark(epoch, 1000 + frames * 10, 1000 + frames * 10, frames)


def deliver(*records: Record, frames: int | None = None) -> Delivery:
    rows = sum(isinstance(record, BookRow) for record in records)
    return Delivery("upbit", rows if frames is None else frames, records, 100)


def sift(sieve: Sieve, *deliveries: Delivery) -> list[Record]:
    return [record for delivery in sieve.sift(deliveries) for record in delivery.records]


def broken(epochs: Iterable[EpochOpened] = (OPENED, OTHER)) -> Sieve:
    known: Epochs = {opened.epoch: opened for opened in epochs}
    sieve = Sieve(known, known)
    sieve.lose()
    return sieve


def test_what_is_whole_goes_through_untouched() -> None:
    sieve = Sieve({1}, {})
    whole = deliver(row(8), mark(8), EpochVerdict(1, "unverified"), REJECTED, EVENT)
    assert sieve.sift([whole])[0] is whole
    new = deliver(OTHER, row(1, epoch=2, key=True), mark(1, epoch=2), EpochEnded(1, 9, "stop"))
    assert sieve.sift([new])[0] is new
    assert not sieve.frames and not sieve.rows


def test_what_is_not_whole_is_left_out_and_counted() -> None:
    """Mutation: leave any of the kinds out of `Sieve._what_counts`."""
    sieve = broken()
    records = (row(8), row(9), mark(9), EpochVerdict(1, "unverified"), REJECTED, EVENT, EpochEnded(1, 9, "stop"))
    assert sift(sieve, deliver(*records)) == [REJECTED, EVENT]
    assert (sieve.frames, sieve.rows) == ({"upbit": 2}, {1: 2})


def test_an_epoch_that_is_over_stays_over() -> None:
    sieve = Sieve({1}, {})
    assert sift(sieve, deliver(EpochEnded(1, 9, "stop"))) == [EpochEnded(1, 9, "stop")]
    assert sift(sieve, deliver(row(9), mark(9), EpochEnded(1, 9, "stop"))) == []


def test_frames_are_lost_with_their_rows() -> None:
    """A delivery of two markets of which one is not whole: some of its frames are stored."""
    sieve = broken()
    sift(sieve, deliver(OTHER))
    (left,) = sieve.sift([deliver(row(8), row(9), row(1, epoch=2), mark(9), mark(1, epoch=2), frames=3)])
    assert left.frames == 1 and sieve.frames == {"upbit": 2}
    (left,) = sieve.sift([deliver(row(10), row(2, epoch=2), mark(10), mark(2, epoch=2), frames=1)])
    assert left.frames == 1 and sieve.frames == {"upbit": 2}, "it came with one frame, and something of it is stored"
    (left,) = sieve.sift([deliver(mark(10), row(3, epoch=2), frames=0)])
    assert left.frames == 0 and sieve.frames == {"upbit": 2}, "a book that no frame brought"


def test_with_the_next_complete_book_another_epoch_begins() -> None:
    """Mutation: a number, a time or a count that is not taken back to the beginning."""
    sieve = broken()
    assert sift(sieve, deliver(row(8), mark(8))) == []
    assert sift(sieve, deliver(row(9), mark(9)), deliver(row(10, key=True), mark(10)), deliver(row(11), mark(11))) == [
        replace(OPENED, epoch=1 + AGAIN, opened_us=1100, verdict="unverified"),
        BookRow(1 + AGAIN, 1, 0, None, None, KEYFRAME, "[]", "[]"),
        CoverageMark(1 + AGAIN, 1100, 1100, 1),
        BookRow(1 + AGAIN, 2, 10, None, None, 0, "[]", "[]"),
        CoverageMark(1 + AGAIN, 1110, 1110, 2),
    ]
    assert sieve.rows == {1: 2}
    ending = deliver(row(12), EpochVerdict(1, "unverified"), mark(12), EpochEnded(1, 1120, "stop"))
    assert sift(sieve, ending)[1:] == [
        EpochVerdict(1 + AGAIN, "unverified"),
        CoverageMark(1 + AGAIN, 1120, 1120, 3),
        EpochEnded(1 + AGAIN, 1120, "stop"),
    ]
    assert sift(sieve, deliver(row(13, key=True), mark(13))) != []  # nobody sends this, and it is no error


def test_a_book_in_the_middle_of_a_burst_counts_from_its_own_message_on() -> None:
    sieve = broken()
    sift(sieve, deliver(row(8), mark(8)))
    kept = sift(sieve, deliver(row(9), row(10), row(11, key=True), row(12), mark(12)))
    assert [(record.n, record.at_us) for record in kept if isinstance(record, BookRow)] == [(1, 0), (2, 10)]
    assert kept[-1] == CoverageMark(1 + AGAIN, 1120, 1120, 2)


@pytest.mark.parametrize(
    ("before", "delivery"),
    [
        ([], deliver(row(9, key=True), mark(9))),
        ([deliver(mark(8))], deliver(row(9, key=True), mark(10))),
        ([deliver(mark(8))], deliver(row(9, key=True))),
        ([deliver(mark(8))], deliver(row(9), mark(9))),
    ],
    ids=["nothing heard since the loss", "a repeat beside it", "nothing in the ledger", "no complete book"],
)
def test_where_it_is_not_certain_nothing_begins(before: list[Delivery], delivery: Delivery) -> None:
    """Mutation: leave out the comparison of messages with rows in `Sieve._where_to_begin`."""
    sieve = broken()
    assert sift(sieve, *before, delivery) == []


@pytest.mark.parametrize(
    "epochs", [[], [replace(OPENED, verdict="compared")]], ids=["of which nothing is known", "kept from changes"]
)
def test_an_epoch_that_can_not_go_on_does_not(epochs: list[EpochOpened]) -> None:
    sieve = broken(epochs)
    assert sift(sieve, deliver(mark(8)), deliver(row(9, key=True), mark(9))) == []


def test_each_loss_begins_another_epoch() -> None:
    sieve = broken()
    numbers = []
    for n in (10, 20, 30):
        first = sift(sieve, deliver(mark(n)), deliver(row(n + 1, key=True), mark(n + 1)))[0]
        assert isinstance(first, EpochOpened)
        numbers.append(first.epoch)
        sieve.lose()
        assert sift(sieve, deliver(row(n + 2, key=True), mark(n + 2))) == [], (
            "what was heard before the loss is no help"
        )
    assert numbers == [1 + AGAIN, 1 + 2 * AGAIN, 1 + 3 * AGAIN]
    for n in range(40, 400, 2):
        sieve.lose()
        for record in sift(sieve, deliver(mark(n)), deliver(row(n + 1, key=True), mark(n + 1))):
            assert isinstance(record, EpochOpened | BookRow | CoverageMark)
            assert record.epoch < 1 << 31


def test_a_sieve_is_not_changed_by_what_comes_after_it() -> None:
    """Mutation: `return self` in `Sieve.after`, or any of its state handed on uncopied."""
    sieve = broken()
    sift(sieve, deliver(OTHER), deliver(mark(8)))
    batch = (deliver(row(9, key=True), mark(9), EpochEnded(2, 5, "stop")), deliver(row(10), mark(10)))
    first = sieve.after().sift(batch)
    for _ in range(3):
        assert sieve.after().sift(batch) == first
    later = sieve.after()
    later.sift(batch)
    later.lose()
    assert sieve.after().sift(batch) == first
    assert not sieve.after().rows and not sieve.after().frames


def test_of_epochs_whose_end_was_lost_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPOCHS_MAX", 3)
    epochs: Epochs = {}
    for number in range(1, 6):
        remember(epochs, replace(OPENED, epoch=number))
    assert list(epochs) == [3, 4, 5]


# --- streams ----------------------------------------------------------------------------------------------------------

TRADES = EpochOpened(3, "UPBIT", "BTC-KRW", "trades", "websocket", 1000)


def trade(n: int, *, epoch: int = 3) -> TradeRow:
    return TradeRow(epoch, str(n), "buy", "1", "2", 1000 + n * 10, 1000 + n * 10)


def test_trades_go_on_behind_the_first_mark_without_a_complete_anything() -> None:
    """Mutation: leave out the case of rows of streams in `_what_counts`, or what `_go_on` takes from the counts."""
    sieve = broken([TRADES])
    again = 3 + AGAIN
    opened = replace(TRADES, epoch=again, opened_us=1080)
    assert sift(sieve, deliver(trade(7), trade(8), mark(8, epoch=3), frames=2)) == [opened]
    assert (sieve.frames, sieve.rows) == ({"upbit": 2}, {3: 2})
    told = mark(9, epoch=3)
    assert sift(sieve, deliver(trade(9), told, EpochEnded(3, 1090, "stop"), frames=1)) == [
        trade(9, epoch=again), replace(told, epoch=again, frames=1), EpochEnded(again, 1090, "stop")
    ]  # fmt: skip
    assert (sieve.frames, sieve.rows) == ({"upbit": 2}, {3: 2})
    assert sift(sieve, deliver(trade(10), mark(10, epoch=3), frames=1)) == [
        replace(opened, epoch=again + AGAIN, opened_us=1100)
    ]


def test_a_stream_that_ends_with_what_was_lost_does_not_begin_again() -> None:
    sieve = broken([TRADES])
    assert sift(sieve, deliver(trade(8), mark(8, epoch=3), EpochEnded(3, 1080, "stop"), frames=1)) == []
    assert (sieve.frames, sieve.rows) == ({"upbit": 1}, {3: 1})


def test_a_stream_that_nobody_remembers_is_left_out() -> None:
    sieve = Sieve((), {})
    assert sift(sieve, deliver(trade(8), mark(8, epoch=3), frames=1)) == []
    assert sift(sieve, deliver(trade(9), mark(9, epoch=3), frames=1)) == []
    assert sieve.rows == {3: 2}
