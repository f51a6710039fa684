"""The writer: the one thread that takes from the intake and commits.

A batch stays in hand until it is in the store or, while that is away, in the spool; where neither takes it the intake
fills up and, once full, refuses. A cycle is finished by a commit, a spool write, an attempt that came back with an
error, or an intake seen empty; the supervisor feeds the watchdog with finished cycles, so only a writer that hangs gets
the process restarted.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from collector.clock import Clock
from collector.errors import StorageBusy, StorageError, StorageFull
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import Delivery, EpochEnded, EpochOpened, Feed
from collector.worker import Backoff, Worker
from storage.backlog import Backlog
from storage.sieve import AGAIN, Epochs, remember
from storage.spool import Spool
from storage.store import Batch, MarketRow, Run, Store

DRAIN_US = 250_000  # then the intake gets its turn
PAUSE_AT_STOP_US = 200_000  # the supervisor's patience decides how often the store is tried then, not a long wait
DRAIN_AT_STOP_US = 3_000_000  # what is left by then waits for the next start


class Writer(Worker):
    """Commits every `batch_ms`, or as soon as `batch_records` wait.

    `spool` takes what the store does not; None: it waits in memory. `housekeeping` does one small piece of maintenance
    and tells whether more is left; it runs after a cycle that left less than a batch waiting.
    """

    kind = "writer"

    def __init__(
        self,
        store: Store,
        intake: Intake,
        run: Run,
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        batch_ms: int = 250,
        batch_records: int = 1000,
        spool: Spool | None = None,
        drop_oldest: bool = False,
        housekeeping: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__("writer", log, clock, backoff=Backoff(clock, base_s=0.25, cap_s=5.0, healthy_s=1.0))
        self.store, self.intake, self.metrics = store, intake, metrics
        self._run_of = run
        self._batch_s, self._batch_records = batch_ms / 1000, batch_records
        self._housekeeping = housekeeping
        self._batch: Batch | None = None
        self._number = 0
        self._epochs: Epochs = {}
        self._retry_us = 0  # not before then is the store tried again
        self._stop_us: int | None = None
        self.committed_us = 0  # wall clock of the newest commit
        self.failing: str = ""  # why the last attempt failed; empty while commits succeed
        self.backlog: Backlog | None = None
        if spool is not None:
            self.backlog = Backlog(
                spool,
                store,
                run,
                intake=intake,
                clock=clock,
                log=log,
                metrics=metrics,
                drop_oldest=drop_oldest,
                batch_records=batch_records,
                epochs=self._epochs,
                dropped=self._count_dropped,
            )

    def stop(self) -> None:
        """Ask the writer to empty the intake and end."""
        super().stop()
        self.intake.wake()

    def run_once(self) -> None:
        """Write until `stop` was called and everything is in the store or in the spool."""
        if self.backlog is not None and not self.backlog.empty and not self._number:
            self.log.warning("spool_left", batches=self.backlog.batches, bytes=self.backlog.bytes)
        busy = False
        while not self._is_done():
            if self._batch is None and not self.stopping.is_set():
                self.intake.wait(0 if busy else self._batch_s)
            busy = self.cycle()

    def cycle(self) -> bool:
        """Put the next batch where it belongs, then drain or keep house; return whether there is more of the latter."""
        if self._batch is None:
            self._take()
        if self._batch is not None:
            self._put_away(self._batch)
        busy = self._drain() or self._keep_house()
        self.beat()
        return busy

    def finish(self) -> bool:
        """Write what came after the last cycle and note the end of the run; for when the thread has ended in order.

        Returns whether everything is in the store. Raises `StorageError` where the run's end can't be written.
        """
        if self._batch is None:
            self._take(all_of_it=True)
        if self._batch is not None:
            self._retry_us = 0
            self._put_away(self._batch)
        if self._batch is not None or not self._up_to_date():
            return False
        self.store.close_run(self._run_of, self.clock.wall_us())
        return True

    def _take(self, *, all_of_it: bool = False) -> None:
        deliveries = self.intake.take(1 << 62 if all_of_it else self._batch_records)
        if not deliveries:
            return
        self._number += 1
        self._batch = Batch(self._run_of, self._number, tuple(deliveries))
        for delivery in deliveries:
            for record in delivery.records:
                if type(record) is EpochOpened:
                    remember(self._epochs, record)

    def _is_done(self) -> bool:
        if self._batch is not None or not (self.stopping.is_set() and self.intake.empty):
            return False
        # What waits in the spool is brought to the store for some time yet, if that takes it.
        now_us = self.clock.monotonic_us()
        self._stop_us = self._stop_us or now_us + DRAIN_AT_STOP_US
        return self._up_to_date() or bool(self.failing) or now_us >= self._stop_us

    def _keep_house(self) -> bool:
        # Between batches, as long as the writer keeps up.
        keeps_up = not (self.failing or self._batch or self._wait_s()) and self.intake.held[0] < self._batch_records
        if self._housekeeping is None or not keeps_up or self.stopping.is_set():
            return False
        try:
            return self._housekeeping()
        except StorageError as error:
            self.log.error("housekeeping_failed", error=error)
            self._retry_us = self.clock.monotonic_us() + int(self.backoff.next_s() * 1e6)
            return False

    # --- where a batch goes -----------------------------------------------------------------------------------------

    def _put_away(self, batch: Batch) -> None:
        if self.backlog is None:
            if self._wait_s():
                self._pause()
            self._write(batch)
            return
        if self.backlog.empty:
            self._write(batch)
        if self._batch is not None:
            self._keep(self.backlog, batch)

    def _write(self, batch: Batch) -> None:
        began_us = self.clock.monotonic_us()
        try:
            if self.backlog is None:
                written, there = batch, self.store.write(batch, self.clock.wall_us())
            else:
                written, there = self.backlog.write(batch)
        except Exception as error:  # the batch stays in hand whatever it was, nothing may overtake it
            self._failed(error)
            return
        self._batch = None
        self.intake.done(batch.deliveries)
        self._committed(written, there, began_us)

    def _keep(self, backlog: Backlog, batch: Batch) -> None:
        first = backlog.empty
        try:
            backlog.keep(batch)
        except Exception as error:
            self._tell(error)
            records, size = self.intake.held
            self.log.error("spool_failed", error=error, held_records=records, held_bytes=size)
            if self._wait_s():  # else the store is asked at once to make room
                self._pause()
            return
        self._batch = None
        self.intake.done(batch.deliveries)
        if first:
            self.log.warning("spool_started", error=self.failing)

    def _drain(self) -> bool:
        # Tells whether there is more, and the store takes it.
        backlog = self.backlog
        if backlog is None or backlog.empty:
            return False
        self._sync(backlog)
        until_us = self.clock.monotonic_us() + DRAIN_US
        while not self._wait_s():
            began_us = self.clock.monotonic_us()
            if began_us > until_us:
                return True
            try:
                written = backlog.drain()
            except Exception as error:
                self._failed(error)
                return False
            if written is not None:
                self._committed(*written, began_us)
            if self._up_to_date():
                self.log.info("spool_drained")
                return False
            self.beat()
        return False

    def _sync(self, backlog: Backlog) -> None:
        try:
            backlog.sync()
        except StorageError as error:
            self.log.error("spool_failed", error=error)

    def _up_to_date(self) -> bool:
        return self.backlog is None or self.backlog.empty

    def _wait_s(self) -> float:
        # How long the store is left alone yet.
        now_us = self.clock.monotonic_us()
        if self.stopping.is_set():
            self._retry_us = min(self._retry_us, now_us + PAUSE_AT_STOP_US)
        return max(0, self._retry_us - now_us) / 1e6

    def _pause(self) -> None:
        # `stop` cuts it short; after that it is a plain wait.
        if self.stopping.is_set():
            self.intake.wait(self._wait_s())
        else:
            self.stopping.wait(self._wait_s())

    # --- what became of it ------------------------------------------------------------------------------------------

    def _committed(self, batch: Batch, there: int, began_us: int) -> None:
        if self.failing:
            self.log.info("writer_recovered", error=self.failing)
            self.failing = ""
        self.backoff.attempt = 0
        self._retry_us = 0
        self.committed_us = self.clock.wall_us()
        self.metrics.records_known.inc(there)
        if batch.run.uid == self._run_of.uid:
            self._count(batch.deliveries, (self.clock.monotonic_us() - began_us) / 1e6)
            return
        for delivery in batch.deliveries:  # received by an earlier run, and in that one's figures
            if delivery.exchange:
                self.metrics.spool_recovered.labels(delivery.exchange).inc(delivery.frames + delivery.rejected)

    def _failed(self, error: Exception) -> None:
        self._tell(error)
        reason = "full" if isinstance(error, StorageFull) else "busy" if isinstance(error, StorageBusy) else "error"
        self.metrics.commit_failures.labels(reason).inc()
        self.failing = str(error) or repr(error)
        self.backoff.began()  # however long the attempt took: only a commit makes the delays short again
        delay_s = self.backoff.next_s()
        self._retry_us = self.clock.monotonic_us() + int(delay_s * 1e6)
        records, size = self.intake.held
        self.log.error("writer_failed", error=error, held_records=records, held_bytes=size, after_s=round(delay_s, 1))
        self.beat()

    def _tell(self, error: Exception) -> None:
        if not isinstance(error, StorageError):  # our bug
            self.log.exception("worker_failed", worker=self.name, error=repr(error))

    def _count_dropped(self, rows: Counter[int]) -> None:
        for epoch, count in rows.items():
            self._count_rows(epoch, dropped=count)

    def _count_rows(self, epoch: int, **outcome: int) -> None:
        opened = self._epochs.get(epoch % AGAIN)
        if opened is not None:
            feed = Feed(opened.exchange.lower(), opened.market, opened.channel)
            self.metrics.count_records(feed, **outcome)

    def _count(self, batch: Sequence[Delivery], duration_s: float) -> None:
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
                if isinstance(record, MarketRow):
                    rows[record.epoch] += 1
                elif type(record) is EpochEnded:
                    ended.append(record.epoch)
        for exchange in stored.keys() | rejected.keys():
            if exchange:
                self.metrics.count_frames(exchange, stored=stored[exchange], rejected=rejected[exchange])
        for epoch, count in rows.items():
            self._count_rows(epoch, stored=count)
        for epoch in ended:
            self._epochs.pop(epoch % AGAIN, None)
        waited_s = {exchange: max(0.0, (self.committed_us - us) / 1e6) for exchange, us in oldest.items()}
        self.metrics.committed(records=records, duration_s=duration_s, waited_s=waited_s)
