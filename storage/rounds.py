"""Work that is due once an hour and is done a small piece at a time, by whoever has a moment between two batches."""

from collections.abc import Iterator

from collector.clock import Clock
from collector.errors import StorageError
from collector.log import Log

ROUND_EVERY_US = 3_600_000_000


class Rounds:
    """Goes through `_work` once an hour, a piece at each `step`; for one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._round: Iterator[int] | None = None
        self._due_us = clock.monotonic_us()
        self._deleted = 0

    def step(self, log: Log) -> bool:
        """Do one small transaction, if it is time; return whether more is waiting to be done.

        A store that refuses is logged, and the round is tried again in an hour.
        """
        if self._round is None:
            if self._clock.monotonic_us() < self._due_us:
                return False
            self._due_us = self._clock.monotonic_us() + ROUND_EVERY_US
            self._round = self._work()
            self._deleted = 0
        try:
            self._deleted += next(self._round)
            return True
        except StopIteration:
            if self._deleted:
                log.info("retention", rows=self._deleted)
        except StorageError as error:
            log.warning("housekeeping_failed", error=error)
        self._round = None
        return False

    def _work(self) -> Iterator[int]:
        """Yield after each transaction how many rows it deleted."""
        raise NotImplementedError
