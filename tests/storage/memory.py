"""A store in memory that keeps to what a store promises, and fails when it is told to."""

import threading
from collections.abc import Callable, Iterator, Set

from collector.errors import StorageError
from collector.records import BookRow, Delivery, EpochEnded, EpochOpened, Event, Record, RecordsLost
from storage.store import Batch, Run


class MemoryStore:
    """Takes batches, each once, after failing as often as it is told to: `errors` are raised one a `write`.

    It is away while `down` is set, and so many commits as `unanswered` says raise when all is done.
    """

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.down: StorageError | None = None
        self.unanswered = 0
        self.commits = 0
        self.tries: list[list[str]] = []
        self.committed: list[Batch] = []
        self.times: list[int] = []
        self.newest: dict[str, int] = {}
        self.closed: set[str] = set()
        self.hangs: threading.Event | None = None
        self.entered = threading.Event()
        self.during: Callable[[], object] = lambda: None

    def open(self) -> None: ...

    def release(self) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def write(self, batch: Batch, now_us: int) -> int:
        self.tries.append([record.text for record in records_of(batch) if isinstance(record, Event)])
        self.entered.set()
        self.during()
        if self.hangs:
            self.hangs.wait(30)
        error = self.errors.pop(0) if self.errors else self.down
        if error is not None:
            raise error
        there = self._commit(batch, now_us)
        self.commits += 1
        if self.unanswered:
            self.unanswered -= 1
            raise StorageError("the answer to COMMIT was lost")
        return there

    def _commit(self, batch: Batch, now_us: int) -> int:
        if batch.number <= self.newest.get(batch.run.uid, 0):
            return sum(1 for _ in records_of(batch))
        self.newest[batch.run.uid] = batch.number
        self.committed.append(batch)
        self.times.append(now_us)
        return 0

    def open_epochs(self, run: Run) -> Set[int]:
        if self.down is not None:
            raise self.down
        found: set[int] = set()
        for batch in self.committed:
            if batch.run.uid != run.uid:
                continue
            for record in records_of(batch):
                if isinstance(record, EpochOpened):
                    found.add(record.epoch)
                elif isinstance(record, EpochEnded):
                    found.discard(record.epoch)
                elif isinstance(record, RecordsLost):
                    found.clear()
        return found

    def close_run(self, run: Run, now_us: int) -> None:
        if self.down is not None:
            raise self.down
        self.closed.add(run.uid)

    # --- what it holds ----------------------------------------------------------------------------------------------

    @property
    def texts(self) -> list[list[str]]:
        """The events of each batch."""
        return [[record.text for record in records_of(batch) if isinstance(record, Event)] for batch in self.committed]

    @property
    def flat(self) -> list[str]:
        """All events, in order."""
        return [text for texts in self.texts for text in texts]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Epoch and number of every row, in order."""
        return [(r.epoch, r.n) for batch in self.committed for r in records_of(batch) if isinstance(r, BookRow)]


def records_of(batch: Batch) -> Iterator[Record]:
    """Yield the records of a batch."""
    return (record for delivery in batch.deliveries for record in delivery.records)


def deliveries_of(batches: list[Batch]) -> list[Delivery]:
    """Return the deliveries of batches, in order."""
    return [delivery for batch in batches for delivery in batch.deliveries]
