"""What waits on disk for the store: batches kept in order while it is away, and brought to it when it is back.

Once something waits, everything goes behind it, so order is strict, coverage marks included. A batch carries its run
and number, which the store commits with it: what is drained twice is there once, whichever process drains it.

Where the spool lost something (dropped to make room, or damaged), the epochs it was part of end in the store where
their coverage got to, and what still comes of them is left out: rows can't be used across a hole. The feeds of this run
are told to open new ones.
"""

from collections import Counter
from collections.abc import Callable

from msgspec.structs import replace

from collector.clock import Clock
from collector.errors import StorageFull
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import (
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Record,
    RecordsLost,
)
from storage.spool import Hole, Spool, Spooled
from storage.spool_reader import DROPPED
from storage.store import Batch, Run, Store

MERGED_BATCHES = 64  # brought to the store at once, when it is sure that it has none of them yet


class Backlog:
    """The spool between the writer and the store; for the writer's thread.

    `batches` and `bytes` are how many wait and what they take on disk; any thread may read them, and `age_s`.
    `drop_oldest`: a full spool makes room at its old end, instead of refusing what is new. `dropped` is called with
    the numbers of lost book rows by epoch of this run.
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
        dropped: Callable[[Counter[int]], None] = lambda rows: None,
    ) -> None:
        self._spool, self._store, self._run = spool, store, run
        self._intake, self._clock, self._log, self._metrics = intake, clock, log, metrics
        self._drop_oldest, self._batch_records, self._dropped = drop_oldest, batch_records, dropped
        self._merge = False
        self._sieve: Sieve | None = None
        self._lost: str | None = None  # why something is missing before the next batch
        self._frames: Counter[str] = Counter()  # of this run, by exchange
        self._told = 0  # the hole that was spoken of last
        metrics.watch_spool(
            batches=lambda: self.batches, size=lambda: self.bytes, age_s=lambda: self.age_s, limit=spool.limit_bytes
        )
        self._show()

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._spool.empty

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
        for delivery in batch.deliveries:
            self._frames[delivery.exchange] += delivery.frames + delivery.rejected
        self._show()

    def _make_room(self) -> bool:
        dropped = self._spool.drop_oldest()
        if dropped is None:
            return False
        frames = {exchange: count.frames + count.rejected for exchange, count in dropped.lost.items()}
        self._log.error("spool_dropped", batches=dropped.batches, bytes=dropped.size, frames=sum(frames.values()))
        own: Counter[int] = Counter()
        for (uid, epoch), rows in dropped.rows.items():
            if uid == self._run.uid:
                own[epoch] += rows
        self._drop_frames(frames)
        self._dropped(own)
        self._intake.renew("no_space")
        return True

    def _drop_frames(self, frames: dict[str, int]) -> None:
        # What an earlier run kept here was received by that one, and is in its figures.
        for exchange, count in frames.items():
            own = min(count, self._frames[exchange])
            self._frames[exchange] -= own
            if exchange:
                self._metrics.count_frames(exchange, dropped=own)

    # --- out --------------------------------------------------------------------------------------------------------

    def drain(self) -> tuple[Batch, int] | None:
        """Bring the oldest to the store in one commit; return them and how many of their records it had.

        None where nothing but the mark of a loss was waiting. Raises `StorageError` where the store or the disk
        refuses; everything stays then.
        """
        try:
            return self._drain()
        except BaseException:
            self._merge = False  # the store may have committed: the next batch tells
            raise

    def _drain(self) -> tuple[Batch, int] | None:
        found = self._next()
        if not found:
            return None
        run, last = found[0].batch.run, found[-1]
        deliveries = tuple(delivery for spooled in found for delivery in spooled.batch.deliveries)
        own = run.uid == self._run.uid
        frames: Counter[str] = Counter()
        for delivery in deliveries:
            frames[delivery.exchange] += delivery.frames + delivery.rejected
        sieve = self._sieve_for(run)
        if sieve is not None:
            deliveries = tuple(sieve.let_through(delivery) for delivery in deliveries)
        if self._lost is not None:
            deliveries = (Delivery("", 0, (RecordsLost(self._lost),), 0), *deliveries)
        batch = Batch(run, last.batch.number, deliveries)
        there = self._store.write(batch, self._clock.wall_us())
        self._merge = there < sum(len(delivery.records) for delivery in deliveries)
        # Only now: what a failed attempt found out does not count, the next one finds it again.
        self._lost, self._sieve = None, sieve
        self._spool.advance(last.position)
        if own:
            self._frames.subtract(frames)
            if sieve is not None:
                self._dropped(sieve.rows)
                for exchange, count in sieve.frames.items():
                    self._metrics.count_frames(exchange, dropped=count)
        self._show()
        return batch, there

    def _next(self) -> list[Spooled]:
        found: list[Spooled] = []
        records = 0
        passed: int | None = None
        for item in self._spool.peek(MERGED_BATCHES if self._merge else 2):
            if isinstance(item, Hole):
                if found:
                    break
                self._hole(item)
                passed = item.position
                continue
            size = sum(len(delivery.records) for delivery in item.batch.deliveries)
            if found and (
                not self._merge or item.batch.run.uid != found[0].batch.run.uid or records + size > self._batch_records
            ):
                break
            found.append(item)
            records += size
        if not found and passed is not None:
            self._spool.advance(passed)
        return found

    def _hole(self, hole: Hole) -> None:
        self._merge = False
        if hole.position <= self._told:
            return  # by an attempt that failed
        self._told = hole.position
        self._lost = "no_space" if hole.reason == DROPPED else "damaged"
        if hole.reason == DROPPED:
            return  # told when it was dropped
        self._log.error("spool_damaged", segment=hole.segment, offset=hole.offset, batches=hole.batches)
        self._drop_frames({exchange: count.frames + count.rejected for exchange, count in hole.lost.items()})
        self._intake.renew("damaged")

    def _sieve_for(self, run: Run) -> "Sieve | None":
        if self._lost is not None:
            return Sieve(run, set())
        if self._sieve is not None and self._sieve.run.uid == run.uid:
            return Sieve(run, set(self._sieve.open))
        if run.uid == self._run.uid:
            return None  # nothing of it is broken
        # Of an earlier run nobody remembers what of it was.
        return Sieve(run, set(self._store.open_epochs(run)))

    def _show(self) -> None:
        # For other threads: the spool itself is the writer's alone.
        self.batches, self.bytes, self._oldest_us = self._spool.frames, self._spool.bytes, self._spool.oldest_us
        for exchange, frames in self._frames.items():
            if exchange:
                self._metrics.spool_frames.labels(exchange).set(frames)


class Sieve:
    """Lets through what belongs to epochs that are whole; `rows` (by epoch) and `frames` count what it holds back."""

    def __init__(self, run: Run, open_: set[int]) -> None:
        self.run, self.open = run, open_
        self.rows: Counter[int] = Counter()
        self.frames: Counter[str] = Counter()

    def let_through(self, delivery: Delivery) -> Delivery:
        """Return the delivery without what is of no use; its frames go with the last of its rows."""
        records = tuple(record for record in delivery.records if self._is_of_use(record))
        if len(records) == len(delivery.records):
            return delivery
        lost = 0 if any(type(record) is BookRow for record in records) else delivery.frames
        if lost:
            self.frames[delivery.exchange] += lost
        return replace(delivery, records=records, frames=delivery.frames - lost)

    def _is_of_use(self, record: Record) -> bool:
        match record:
            case EpochOpened():
                self.open.add(record.epoch)
            case BookRow() | CoverageMark() | EpochVerdict() | EpochEnded() if record.epoch not in self.open:
                if type(record) is BookRow:
                    self.rows[record.epoch] += 1
                return False
            case EpochEnded():
                self.open.discard(record.epoch)
        return True
