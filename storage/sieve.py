"""What still counts of a run after some of its records were lost.

Rows can't be used across a hole, so every epoch that was open there is over: `RecordsLost` ends it in the store. What
still comes of a book is left out up to the next complete one. With that another epoch begins, where it is certain which
of the exchange's messages it begins with; where it is not, nothing counts up to the epoch that its feed opens when it
is told of the loss.

Trades, tickers and candles depend on nothing before them: another epoch begins with the first mark that comes, since
from there on it is known how many messages are missing. Only what came with that mark is left out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from msgspec.structs import replace

from collector.records import (
    KEYFRAME,
    ORDERBOOK,
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Record,
    StreamRow,
    TickerRow,
    TradeRow,
)
from storage.store import ROWS

EPOCHS_MAX = 10_000  # that are remembered; the ends of more than these were lost
# What an epoch is continued as: its own number and a multiple of this, far above what a run counts up to.
AGAIN = 1 << 24
NUMBER_MAX = (1 << 31) - 1

Epochs = dict[int, EpochOpened]


def remember(epochs: Epochs, opened: EpochOpened) -> None:
    """Keep with what an epoch was opened; the oldest makes room."""
    epochs[opened.epoch] = opened
    if len(epochs) > EPOCHS_MAX:
        del epochs[next(iter(epochs))]


class _Again(NamedTuple):
    """An epoch that goes on as another one: its number, and what to take from numbers, times and counts."""

    number: int
    rows: int
    at_us: int
    frames: int


class Sieve:
    """Knows which epochs of one run are whole.

    `whole` are those that are open and whole now; `epochs` is what is known of epochs, and learns from what comes.
    `frames` (by exchange) and `rows` (by epoch) count what was left out.
    """

    def __init__(self, whole: Iterable[int], epochs: Epochs) -> None:
        self._whole = set(whole)
        self._epochs = epochs
        self._again: dict[int, _Again] = {}
        self._times: dict[int, int] = {}  # how often an epoch began again
        self._marks: dict[int, int] = {}  # how many messages the ledger counts of an epoch that is not whole
        self.frames: Counter[str] = Counter()
        self.rows: Counter[int] = Counter()

    def after(self) -> "Sieve":
        """Return a sieve for what comes next, which has counted nothing; this one stays as it is.

        So a batch that the store refuses is sifted anew, as if it had not been before.
        """
        sieve = Sieve(self._whole, self._epochs)
        sieve._again, sieve._times, sieve._marks = dict(self._again), dict(self._times), dict(self._marks)
        return sieve

    def lose(self) -> None:
        """Note that records are missing here."""
        self._whole.clear()
        self._again.clear()
        self._marks.clear()

    def sift(self, deliveries: Iterable[Delivery]) -> tuple[Delivery, ...]:
        """Return deliveries without what belongs to epochs that are not whole."""
        return tuple(self._delivery(delivery) for delivery in deliveries)

    def _delivery(self, delivery: Delivery) -> Delivery:
        begin = self._where_to_begin(delivery.records)
        records: list[Record] = []
        over = {record.epoch for record in delivery.records if type(record) is EpochEnded}
        for record in delivery.records:
            records += self._what_counts(record, begin, over)
        if len(records) == len(delivery.records) and all(map(_is, records, delivery.records)):
            return delivery
        lost = _frames_lost(delivery, records)
        self.frames[delivery.exchange] += lost
        return replace(delivery, records=tuple(records), frames=delivery.frames - lost)

    def _what_counts(self, record: Record, begin: dict[int, int], over: Set[int]) -> Sequence[Record]:
        match record:
            case EpochOpened():
                self._whole.add(record.epoch)
                remember(self._epochs, record)
            case EpochEnded() if record.epoch in self._whole:
                self._whole.discard(record.epoch)
            case BookRow() | CoverageMark() | EpochVerdict() | EpochEnded() if record.epoch not in self._whole:
                if type(record) is CoverageMark and not (record.epoch in self._again or record.epoch in over):
                    return self._go_on(record)
                return self._of_a_broken_epoch(record, begin)
            case TradeRow() | TickerRow() | CandleRow() if record.epoch not in self._whole:
                return self._of_a_broken_stream(record)
        return (record,)

    # --- epochs that are not whole ----------------------------------------------------------------------------------

    def _where_to_begin(self, records: Iterable[Record]) -> dict[int, int]:
        # Messages that make no row are counted too, and nobody knows where among the rows of a delivery they stood:
        # only where there are none is it certain which message a row came with.
        rows: Counter[int] = Counter()
        begin: dict[int, int] = {}
        for record in records:
            if type(record) is BookRow:
                rows[record.epoch] += 1
            elif type(record) is CoverageMark and record.epoch not in self._whole:
                before = self._marks.get(record.epoch)
                if before is not None and record.frames - before == rows[record.epoch]:
                    begin[record.epoch] = before
                self._marks[record.epoch] = record.frames
        return begin

    def _of_a_broken_epoch(
        self, record: BookRow | CoverageMark | EpochVerdict | EpochEnded, begin: dict[int, int]
    ) -> Sequence[Record]:
        epoch = record.epoch
        opened: tuple[EpochOpened, ...] = ()
        if epoch not in self._again and type(record) is BookRow and epoch in begin:
            if record.flags & KEYFRAME:
                opened = self._begin_again(record, begin[epoch])
            begin[epoch] += 1  # the next row came with the next message
        again = self._again.get(epoch)
        match record:
            case BookRow() if again is None:
                self.rows[epoch] += 1
                return ()
            case _ if again is None:
                return ()
            case BookRow():
                row = replace(record, epoch=again.number, n=record.n - again.rows, at_us=record.at_us - again.at_us)
                return (*opened, row)
            case CoverageMark():
                return (replace(record, epoch=again.number, frames=record.frames - again.frames),)
            case EpochEnded():
                del self._again[epoch]
        return (replace(record, epoch=again.number),)

    def _begin_again(self, row: BookRow, frames: int) -> tuple[EpochOpened, ...]:
        was = self._epochs.get(row.epoch)
        # Where books are kept from changes only a comparison tells what counts, and that is not in these records.
        if was is None or was.verdict == "compared":
            return ()
        return self._open(was, _Again(0, row.n - 1, row.at_us, frames), was.opened_us + row.at_us)

    def _open(self, was: EpochOpened, again: _Again, opened_us: int) -> tuple[EpochOpened, ...]:
        times = self._times.get(was.epoch, 0) + 1
        number = was.epoch + times * AGAIN
        if number > NUMBER_MAX:
            return ()
        self._times[was.epoch] = times
        self._again[was.epoch] = again._replace(number=number)
        return (replace(was, epoch=number, opened_us=opened_us, verdict="unverified"),)

    # --- streams, which need no complete book to go on --------------------------------------------------------------

    def _go_on(self, mark: CoverageMark) -> Sequence[Record]:
        # Everything heard until the mark's time is among the messages it counts: what comes now comes after them.
        was = self._epochs.get(mark.epoch)
        if was is None or was.channel == ORDERBOOK:
            return ()
        return self._open(was, _Again(0, 0, 0, mark.frames), mark.heard_until_us)

    def _of_a_broken_stream(self, row: StreamRow) -> Sequence[Record]:
        again = self._again.get(row.epoch)
        if again is None:
            self.rows[row.epoch] += 1
            return ()
        return (replace(row, epoch=again.number),)


def _is(one: Record, other: Record) -> bool:
    return one is other


def _frames_lost(delivery: Delivery, kept: Sequence[Record]) -> int:
    # Nobody knows which rows came with which frame; a frame is stored as long as anything of it may be.
    rows_kept = sum(type(record) in ROWS for record in kept)
    if not rows_kept:
        return delivery.frames
    rows_lost = sum(type(record) in ROWS for record in delivery.records) - rows_kept
    return max(0, min(rows_lost, delivery.frames - 1))
