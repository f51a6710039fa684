"""The way from controllers to the writer: a bounded hand-over in memory.

Many threads put, one takes. What was taken still counts as held until the writer says it is done with it, so the bound
holds while the store is slow or away. A full intake refuses data at once (the caller ends its coverage and says so);
marks that end an epoch are small and always taken. One lock, held for a few list operations once a burst of frames,
never while waiting.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count

from collector.records import Delivery


class Intake:
    """A bounded queue of deliveries; the bound is in bytes."""

    def __init__(self, limit_bytes: int, *, wake_records: int = 1000) -> None:
        self.limit_bytes = limit_bytes
        self._wake_records = wake_records
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._waiting: deque[Delivery] = deque()
        self._waiting_records = 0
        self._held_bytes = 0
        self._held_records = 0
        self._held_frames: dict[str, int] = {}
        self.epochs: Iterator[int] = count(1)
        self.renewals = 0  # how often records were lost after they had been taken, and why the last time
        self.renewed_for = ""
        self.tap: Callable[[Delivery], None] | None = None  # hears what was taken, in the thread that put it

    def put(self, delivery: Delivery, *, force: bool = False) -> bool:
        """Hand a delivery over; False means it was refused because the intake is full, and nothing of it was kept."""
        with self._lock:
            if self._held_bytes + delivery.size > self.limit_bytes and not force:
                return False
            self._waiting.append(delivery)
            self._held_bytes += delivery.size
            self._held_records += len(delivery.records)
            self._waiting_records += len(delivery.records)
            self._held_frames[delivery.exchange] = (
                self._held_frames.get(delivery.exchange, 0) + delivery.frames + delivery.rejected
            )
            enough = self._waiting_records >= self._wake_records
        if enough:
            self._ready.set()
        if self.tap is not None:
            self.tap(delivery)
        return True

    def wait(self, timeout_s: float) -> None:
        """Return when a whole batch waits, when `wake` is called, or after `timeout_s`."""
        self._ready.wait(timeout_s)
        self._ready.clear()

    def renew(self, reason: str) -> None:
        """Say that records were lost after they had been taken: every feed must open a new epoch to be of use."""
        self.renewed_for = reason
        self.renewals += 1

    def wake(self) -> None:
        """End a `wait` now."""
        self._ready.set()

    def take(self, records_max: int) -> list[Delivery]:
        """Return the oldest deliveries, at least one if any waits, and about `records_max` records at the most."""
        taken: list[Delivery] = []
        records = 0
        with self._lock:
            while self._waiting and (not taken or records + len(self._waiting[0].records) <= records_max):
                delivery = self._waiting.popleft()
                records += len(delivery.records)
                taken.append(delivery)
            self._waiting_records -= records
            if self._waiting_records >= self._wake_records:
                self._ready.set()
        return taken

    def done(self, deliveries: Iterable[Delivery]) -> None:
        """Free the room of deliveries that are stored (or lost for good)."""
        with self._lock:
            for delivery in deliveries:
                self._held_bytes -= delivery.size
                self._held_records -= len(delivery.records)
                self._held_frames[delivery.exchange] -= delivery.frames + delivery.rejected

    @property
    def empty(self) -> bool:
        """Whether nothing waits or is being written."""
        return not self._held_records

    @property
    def held(self) -> tuple[int, int]:
        """Records and bytes that are waiting or being written."""
        return self._held_records, self._held_bytes

    def held_frames(self) -> dict[str, int]:
        """Frames per exchange that are received and not yet stored."""
        with self._lock:
            return dict(self._held_frames)
