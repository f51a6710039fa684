"""What still counts of a run after some of its records were lost.

Rows can't be used across a hole, so every epoch that was open there is over: `RecordsLost` ends it in the store. What
still comes of it is left out up to its next complete book. With that another epoch begins, where it is certain which
of the exchange's messages it begins with; where it is not, nothing counts up to the epoch that its feed opens when it
is told of the loss.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from collector.records import (
    KEYFRAME,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Record,
)

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
        for record in delivery.records:
            records += self._what_counts(record, begin)
        if len(records) == len(delivery.records) and all(map(_is, records, delivery.records)):
            return delivery
        lost = _frames_lost(delivery, records)
        self.frames[delivery.exchange] += lost
        return replace(delivery, records=tuple(records), frames=delivery.frames - lost)

    def _what_counts(self, record: Record, begin: dict[int, int]) -> Sequence[Record]:
        match record:
            case EpochOpened():
                self._whole.add(record.epoch)
                remember(self._epochs, record)
            case EpochEnded() if record.epoch in self._whole:
                self._whole.discard(record.epoch)
            case BookRow() | CoverageMark() | EpochVerdict() | EpochEnded() if record.epoch not in self._whole:
                return self._of_a_broken_epoch(record, begin)
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
        times = self._times.get(row.epoch, 0) + 1
        number = row.epoch + times * AGAIN
        # Where books are kept from changes only a comparison tells what counts, and that is not in these records.
        if was is None or was.verdict == "compared" or number > NUMBER_MAX:
            return ()
        self._times[row.epoch] = times
        self._again[row.epoch] = _Again(number, row.n - 1, row.at_us, frames)
        return (replace(was, epoch=number, opened_us=was.opened_us + row.at_us, verdict="unverified"),)


def _is(one: Record, other: Record) -> bool:
    return one is other


def _frames_lost(delivery: Delivery, kept: Sequence[Record]) -> int:
    # Nobody knows which rows came with which frame; a frame is stored as long as anything of it may be.
    rows_kept = sum(type(record) is BookRow for record in kept)
    if not rows_kept:
        return delivery.frames
    rows_lost = sum(type(record) is BookRow for record in delivery.records) - rows_kept
    return max(0, min(rows_lost, delivery.frames - 1))
