"""The writer: the one thread that takes from the intake and commits.

A batch stays in hand until it is committed, however often the store fails: while it is away the intake fills up and,
once full, refuses. A cycle is finished by a commit, by an attempt that came back with an error, or by an intake seen
empty; the supervisor feeds the watchdog with finished cycles, so only a writer that hangs gets the process restarted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from collector.clock import Clock
from collector.errors import StorageBusy, StorageError, StorageFull
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import BookRow, Delivery, EpochEnded, EpochOpened, Feed
from collector.worker import Backoff, Worker


class Store(Protocol):
    """What the writer needs of a store; `storage.sqlite.SQLiteStore` says what each does."""

    def write(self, deliveries: Sequence[Delivery], now_us: int) -> None:
        """Commit all of it or none of it; raises `StorageError`."""


class Writer(Worker):
    """Commits every `batch_ms`, or as soon as `batch_records` wait.

    `housekeeping` does one small piece of maintenance and tells whether more is left; it runs after a cycle that
    left less than a batch waiting.
    """

    kind = "writer"

    def __init__(
        self,
        store: Store,
        intake: Intake,
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        batch_ms: int = 250,
        batch_records: int = 1000,
        housekeeping: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__("writer", log, clock, backoff=Backoff(clock, base_s=0.25, cap_s=10.0, healthy_s=1.0))
        self.store, self.intake, self.metrics = store, intake, metrics
        self._batch_s, self._batch_records = batch_ms / 1000, batch_records
        self._housekeeping = housekeeping
        self._batch: list[Delivery] = []
        self._feeds: dict[int, Feed] = {}
        self.committed_us = 0  # wall clock of the newest commit
        self.failing: str = ""  # why the last attempt failed; empty while commits succeed

    def stop(self) -> None:
        """Ask the writer to empty the intake and end."""
        super().stop()
        self.intake.wake()

    def run_once(self) -> None:
        """Write until `stop` was called and everything is committed."""
        busy = False
        while True:
            if not self._batch:
                if not self.stopping.is_set():
                    self.intake.wait(0 if busy else self._batch_s)
                self._batch = self.intake.take(self._batch_records)
            if self._batch:
                self._write_batch()
            elif self.stopping.is_set() and self.intake.empty:
                return
            # Maintenance goes in between as long as the writer keeps up.
            keeps_up = not self._batch and self.intake.held[0] < self._batch_records
            if self._housekeeping is not None and keeps_up and not self.stopping.is_set():
                busy = self._housekeeping()
            self.beat()

    def _write_batch(self) -> None:
        began_us = self.clock.monotonic_us()
        now_us = self.clock.wall_us()
        try:
            self.store.write(self._batch, now_us)
        except StorageError as error:
            self._failed(error)
            return
        except Exception as error:  # our bug: the batch stays in hand all the same, nothing may overtake it
            self.log.exception("worker_failed", worker=self.name, error=repr(error))
            self._failed(error)
            return
        batch, self._batch = self._batch, []
        self.intake.done(batch)
        if self.failing:
            self.log.info("writer_recovered", error=self.failing)
            self.failing = ""
        self.backoff.attempt = 0
        self.committed_us = self.clock.wall_us()
        self._count(batch, (self.clock.monotonic_us() - began_us) / 1e6)

    def _failed(self, error: Exception) -> None:
        reason = "full" if isinstance(error, StorageFull) else "busy" if isinstance(error, StorageBusy) else "error"
        self.metrics.commit_failures.labels(reason).inc()
        self.failing = str(error) or repr(error)
        self.backoff.began()  # however long the attempt took: only a commit makes the delays short again
        delay_s = self.backoff.next_s()
        records, size = self.intake.held
        self.log.error("writer_failed", error=error, held_records=records, held_bytes=size, after_s=round(delay_s, 1))
        self.beat()
        if self.stopping.is_set():
            # Asked to end: the supervisor's patience decides how often this is tried, not a long wait.
            delay_s = min(delay_s, 0.2)
        self._pause(delay_s)

    def _pause(self, seconds: float) -> None:
        # A wait that `stop` cuts short once; after that it is a plain wait.
        if self.stopping.is_set():
            self.intake.wait(seconds)
        else:
            self.stopping.wait(seconds)

    def _count(self, batch: list[Delivery], duration_s: float) -> None:
        stored: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        oldest: dict[str, int] = {}
        rows: Counter[int] = Counter()
        records = 0
        ended: list[int] = []
        for delivery in batch:
            stored[delivery.exchange] += delivery.frames
            rejected[delivery.exchange] += delivery.rejected
            records += len(delivery.records)
            if delivery.received_us:
                oldest[delivery.exchange] = min(
                    delivery.received_us, oldest.get(delivery.exchange, delivery.received_us)
                )
            for record in delivery.records:
                if type(record) is BookRow:
                    rows[record.epoch] += 1
                elif type(record) is EpochOpened:
                    self._feeds[record.epoch] = Feed(record.exchange.lower(), record.market, record.channel)
                elif type(record) is EpochEnded:
                    ended.append(record.epoch)
        for exchange in stored.keys() | rejected.keys():
            if exchange:
                self.metrics.count_frames(exchange, stored=stored[exchange], rejected=rejected[exchange])
        for epoch, count in rows.items():
            if epoch in self._feeds:
                self.metrics.count_records(self._feeds[epoch], stored=count)
        for epoch in ended:
            self._feeds.pop(epoch, None)
        waited_s = {exchange: max(0.0, (self.committed_us - us) / 1e6) for exchange, us in oldest.items()}
        self.metrics.committed(records=records, duration_s=duration_s, waited_s=waited_s)
