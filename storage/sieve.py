"""What still counts of a run after some of its records were lost.

Rows can't be used across a hole, so every epoch that was open there is over: `RecordsLost` ends it in the store, and
what still comes of it is left out, up to the next epoch that its feed opens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from collector.records import (
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Record,
)


class Sieve:
    """Knows which epochs of one run are whole; `open_epochs` are those that are open and whole now.

    `frames` (by exchange) and `rows` (by epoch) count what was left out.
    """

    def __init__(self, open_epochs: Iterable[int] = ()) -> None:
        self._open = set(open_epochs)
        self.frames: Counter[str] = Counter()
        self.rows: Counter[int] = Counter()

    def after(self) -> "Sieve":
        """Return a sieve for what comes next, which has counted nothing; this one stays as it is.

        So a batch that the store refuses is sifted anew, as if it had not been before.
        """
        return Sieve(self._open)

    def lose(self) -> None:
        """Note that records are missing here."""
        self._open.clear()

    def sift(self, deliveries: Iterable[Delivery]) -> tuple[Delivery, ...]:
        """Return deliveries without what belongs to epochs that are not whole."""
        return tuple(self._delivery(delivery) for delivery in deliveries)

    def _delivery(self, delivery: Delivery) -> Delivery:
        records = tuple(record for record in delivery.records if self._counts(record))
        if len(records) == len(delivery.records):
            return delivery
        lost = _frames_lost(delivery, records)
        self.frames[delivery.exchange] += lost
        return replace(delivery, records=records, frames=delivery.frames - lost)

    def _counts(self, record: Record) -> bool:
        match record:
            case EpochOpened():
                self._open.add(record.epoch)
            case EpochEnded() if record.epoch in self._open:
                self._open.discard(record.epoch)
            case BookRow() if record.epoch not in self._open:
                self.rows[record.epoch] += 1
                return False
            case CoverageMark() | EpochVerdict() | EpochEnded() if record.epoch not in self._open:
                return False
        return True


def _frames_lost(delivery: Delivery, kept: Sequence[Record]) -> int:
    # Nobody knows which rows came with which frame; a frame is stored as long as anything of it may be.
    rows_kept = sum(type(record) is BookRow for record in kept)
    if not rows_kept:
        return delivery.frames
    rows_lost = sum(type(record) is BookRow for record in delivery.records) - rows_kept
    return min(rows_lost, delivery.frames - 1)
