"""What waits on disk for the store: batches kept in order while it is away, and brought to it when it is back.

Once something waits, everything goes behind it, so order is strict, coverage marks included. A batch carries its run
and number, which the store commits with it: what is drained twice is there once, whichever process drains it.

Where the spool lost something (dropped to make room, or damaged), the epochs it was part of end in the store where
their coverage got to, in the transaction of the next batch; what still comes of them counts from a complete book on, as
an epoch of its own (`storage.sieve`). The feeds of this run are told to open new ones.
"""

from collections import Counter
from collections.abc import Callable

from collector.clock import Clock
from collector.errors import StorageFull
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import Delivery, RecordsLost
from storage.sieve import Epochs, Sieve
from storage.spool import Hole, Spool, Spooled, Tally
from storage.spool_reader import DROPPED
from storage.store import Batch, Run, Store

READ_BATCHES = 64
NO_SPACE, DAMAGED = "no_space", "damaged"  # why records are missing


class Backlog:
    """The way of batches to the store, through the spool or past it; for the writer's thread.

    `batches` and `bytes` are how many wait and what they take on disk; any thread may read them, and `age_s`.
    `drop_oldest`: a full spool makes room at its old end, instead of refusing what is new. `epochs` is what is known of
    those of this run; `dropped` is called with the numbers of its rows that are lost, by epoch.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        run: Run,
        *,
        intake: Intake,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        drop_oldest: bool = False,
        batch_records: int = 1000,
        epochs: Epochs,
        dropped: Callable[[Counter[int]], None] = lambda rows: None,
    ) -> None:
        self._spool, self._store, self._run = spool, store, run
        self._intake, self._clock, self._log, self._metrics = intake, clock, log, metrics
        self._drop_oldest, self._batch_records, self._dropped = drop_oldest, batch_records, dropped
        self._new = False  # the store had nothing of the last batch, so it has nothing of those behind it either
        self._first = 0  # number of this run's first batch that was kept here; 0: none was
        self._sieved = ""  # the run whose records are looked at one by one, since some of its epochs are not whole
        self._sieve = Sieve((), {})
        self._epochs = epochs
        self._lost = ""  # why something is missing before the next batch
        self._told = 0  # the hole that was spoken of last
        self._passed: int | None = None  # a hole that nothing came behind yet
        self._frames: Counter[str] = Counter()  # of this run, by exchange, that wait here
        self._earlier = Counter(_frames(spool.waiting))  # of earlier runs
        metrics.watch_spool(
            batches=lambda: self.batches, size=lambda: self.bytes, age_s=lambda: self.age_s, limit=spool.limit_bytes
        )
        self._show()

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._spool.empty or self._passed is not None

    @property
    def age_s(self) -> float:
        """How long the oldest of them has been waiting."""
        oldest_us = self._oldest_us
        return 0.0 if oldest_us is None else max(0.0, (self._clock.wall_us() - oldest_us) / 1e6)

    def sync(self) -> None:
        """Bring to the disk what is due, where that does not happen with every batch."""
        self._spool.sync()

    # --- in ---------------------------------------------------------------------------------------------------------

    def keep(self, batch: Batch) -> None:
        """Put a batch at the end; raises `StorageError` where there is no room for it, and nothing of it counts."""
        while True:
            try:
                self._spool.append(batch)
                break
            except StorageFull:
                if not (self._drop_oldest and self._make_room()):
                    raise
        self._first = self._first or batch.number
        self._passed = None
        for delivery in batch.deliveries:
            self._frames[delivery.exchange] += delivery.frames + delivery.rejected
        self._show()

    def _make_room(self) -> bool:
        dropped = self._spool.drop_oldest()
        if dropped is None:
            return False
        frames = _frames(dropped.lost)
        self._log.error("spool_dropped", batches=dropped.batches, bytes=dropped.size, frames=sum(frames.values()))
        self._count_lost(frames)
        self._dropped(Counter({epoch: rows for (uid, epoch), rows in dropped.rows.items() if uid == self._run.uid}))
        self._intake.renew(NO_SPACE)
        return True

    # --- out --------------------------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> tuple[Batch, int]:
        """Bring a batch to the store past the spool, when nothing waits there; returns and raises as `drain` does."""
        written = self._bring(batch)
        if self._passed is not None:
            self._spool.advance(self._passed)
            self._passed = None
            self._show()
        return written

    def drain(self) -> tuple[Batch, int] | None:
        """Bring the oldest to the store in one commit; return what was written, and how many records it had already.

        None where nothing but the mark of a loss was waiting. Raises `StorageError` where the store or the disk
        refuses; everything stays then.
        """
        found = self._next()
        if not found:
            return None
        run, last = found[0].batch.run, found[-1]
        deliveries = tuple(delivery for spooled in found for delivery in spooled.batch.deliveries)
        written, there = self._bring(Batch(run, last.batch.number, deliveries))
        self._new = there < sum(len(delivery.records) for delivery in written.deliveries)
        self._spool.advance(last.position)
        waited = self._frames if run.uid == self._run.uid else self._earlier
        for delivery in deliveries:
            waited[delivery.exchange] -= delivery.frames + delivery.rejected
        if self._spool.empty:
            self._settle()
        self._show()
        return written, there

    def _next(self) -> list[Spooled]:
        found: list[Spooled] = []
        records = 0
        items = self._spool.peek(READ_BATCHES)
        for item in items:
            if isinstance(item, Hole):
                if found:
                    break
                self._hole(item)
                continue
            size = sum(len(delivery.records) for delivery in item.batch.deliveries)
            # Batches go together only where the store is sure to have none of them: it knows them by their numbers.
            if found and (
                not self._new or item.batch.run.uid != found[0].batch.run.uid or records + size > self._batch_records
            ):
                break
            found.append(item)
            records += size
        if items and not found:
            self._passed = items[-1].position  # it stays until something can be written that tells of it
            self._settle()
            self._show()
        return found

    def _bring(self, batch: Batch) -> tuple[Batch, int]:
        own = batch.run.uid == self._run.uid
        sieve = None
        if self._sieved == batch.run.uid:
            sieve = self._sieve.after()
        elif not own:  # nobody remembers what of it is whole
            sieve = Sieve(self._store.open_epochs(batch.run), {})
        elif self._lost:
            sieve = Sieve((), self._epochs)
        deliveries = batch.deliveries
        if sieve is not None:
            if self._lost:
                sieve.lose()
            deliveries = sieve.sift(deliveries)
        if self._lost:
            deliveries = (Delivery("", 0, (RecordsLost(self._lost),), 0), *deliveries)
        batch = Batch(batch.run, batch.number, deliveries)
        try:
            there = self._store.write(batch, self._clock.wall_us())
        except BaseException:
            self._new = False  # it may have been committed: the next attempt tells
            raise
        self._lost = ""
        if sieve is not None:
            self._sieved, self._sieve = batch.run.uid, sieve
            if own:
                self._count_left_out(sieve)
        return batch, there

    # --- what is lost -----------------------------------------------------------------------------------------------

    def _hole(self, hole: Hole) -> None:
        self._new = False
        if hole.position <= self._told:
            return  # by an attempt that failed
        self._told = hole.position
        ours = self._concerns_us(hole)
        if ours or (hole.after is not None and hole.after.run_uid != self._run.uid):
            self._lost = NO_SPACE if hole.reason == DROPPED else DAMAGED
        # else nothing comes any more of the run it was part of, whose coverage ends where it got to
        if hole.reason == DROPPED:
            return  # the rest was done when it was dropped
        self._log.error("spool_damaged", segment=hole.segment, offset=hole.offset, batches=hole.batches)
        self._count_lost(_frames(hole.lost))
        if ours:
            self._intake.renew(DAMAGED)

    def _concerns_us(self, hole: Hole) -> bool:
        # Batches stand in order: those of earlier runs, then ours.
        if not self._first:
            return False
        return hole.after is None or (hole.after.run_uid == self._run.uid and hole.after.number > self._first)

    def _count_lost(self, frames: dict[str, int]) -> None:
        # What an earlier run kept here was received by that one, and is in its figures. Where it is not sure whose
        # frames they were, ours are counted when nothing waits any more.
        for exchange, count in frames.items():
            earlier = min(count, max(0, self._earlier[exchange]))
            self._earlier[exchange] -= earlier
            self._drop_frames(exchange, min(count - earlier, self._frames[exchange]))
        self._show()

    def _settle(self) -> None:
        for exchange, count in self._frames.items():
            self._drop_frames(exchange, count)
        self._earlier.clear()

    def _drop_frames(self, exchange: str, count: int) -> None:
        self._frames[exchange] -= count
        if exchange and count:
            self._metrics.count_frames(exchange, dropped=count)

    def _count_left_out(self, sieve: Sieve) -> None:
        for exchange, count in sieve.frames.items():
            if exchange and count:
                self._metrics.count_frames(exchange, dropped=count)
        if sieve.rows:
            self._dropped(sieve.rows)

    def _show(self) -> None:
        # For other threads: the spool itself is the writer's alone.
        self.batches, self.bytes, self._oldest_us = self._spool.frames, self._spool.bytes, self._spool.oldest_us
        for exchange, frames in self._frames.items():
            if exchange:
                self._metrics.spool_frames.labels(exchange).set(frames)


def _frames(lost: Tally) -> dict[str, int]:
    return {exchange: count.frames + count.rejected for exchange, count in lost.items()}
