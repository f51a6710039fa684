"""What an update costs on the disk: books through controllers and store, driven by their own times.

The growth of the database file, its write-ahead log emptied into it, over the number of updates: rows, keyframes,
indexes, keys and ledger. Where pages split depends on which rows share a commit, so a byte or two means nothing.
"""

import itertools
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench.frames import MARKET, recorded_frames, upbit_frames
from bench.measure import Row
from bench.parse import setup
from collector.clock import Clock
from controllers.upbit import Upbit
from storage.sqlite import SQLiteStore
from storage.store import Batch, Run

BATCH_US, TICK_US = 250_000, 1_000_000  # how often the writer commits and controllers move the ledger
START_US = 1_790_000_000_000_000


class Heard(NamedTuple):
    """A frame, and when it comes after the first one."""

    after_us: int
    market: str
    frame: bytes


class Clocked(Clock):
    """Both clocks stand where the frames have come to."""

    def __init__(self) -> None:
        self.now_us = START_US

    def wall_us(self) -> int:
        """Return the time of day of the frames."""
        return self.now_us

    def monotonic_us(self) -> int:
        """Return the same: nobody sets this clock."""
        return self.now_us


def run(*, updates: int = 3000) -> Iterator[Row]:
    """Measure and yield the report."""
    recorded = recorded_frames()
    if recorded:
        yield Row("Upbit's recording, looped", bytes_per_update(looped(updates)), "B/update", aim="110")
    generated = (Heard(n * 100_000, MARKET, frame) for n, frame in enumerate(upbit_frames(updates)))
    yield Row("generated books of 30 levels", bytes_per_update(generated), "B/update")


def bytes_per_update(heard: Iterable[Heard], *, full_books: bool = False) -> float:
    """Record the frames and return by how much each made the file grow; each must be accounted for in the ledger.

    `full_books` stores a complete book for each, as `mode: full` does. Raises `RuntimeError` where the sums do not
    close.
    """
    clock = Clocked()
    given = replace(setup(), clock=clock, full_books=full_books)
    controllers: dict[str, Upbit] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "s.sqlite")
        store.open()
        run, numbers = Run("s", "s", "s", clock.now_us), itertools.count(1)

        def commit() -> None:
            deliveries = given.intake.take(1000)
            store.write(Batch(run, next(numbers), tuple(deliveries)), clock.now_us)
            given.intake.done(deliveries)

        before, count = _file_bytes(store), 0
        batch_us = tick_us = START_US
        for after_us, market, frame in heard:
            while min(batch_us, tick_us) <= START_US + after_us:
                clock.now_us = min(batch_us, tick_us)
                if tick_us == clock.now_us:
                    tick_us += TICK_US
                    for controller in controllers.values():
                        controller.tick()
                if batch_us == clock.now_us:
                    batch_us += BATCH_US
                    commit()
            clock.now_us = START_US + after_us
            if market not in controllers:
                controllers[market] = Upbit((market,), given)
                controllers[market].anchor()
            controllers[market].handle(frame, clock.now_us)
            controllers[market].flush()
            count += 1
        for controller in controllers.values():
            controller.end_epochs("stop")
        commit()
        grown = _file_bytes(store) - before
        (accounted,) = store.connection.execute("SELECT sum(frames) FROM coverage").fetchone()
        store.release()
    if accounted != count:
        raise RuntimeError(f"{count} updates were recorded, {accounted} are accounted for in the store")
    return grown / count


def looped(updates: int) -> Iterator[Heard]:
    """Yield the recording again and again, the exchange's times shifted like ours."""
    frames = recorded_frames()
    times_s = [frame.time_s or 0.0 for frame in frames]
    length_ms = round((times_s[-1] - times_s[0] + 0.1) * 1000)
    for number in range(updates):
        lap, at = divmod(number, len(frames))
        frame, after_ms = frames[at], round((times_s[at] - times_s[0]) * 1000) + lap * length_ms
        shift_ms = START_US // 1000 - round(times_s[0] * 1000) + lap * length_ms
        yield Heard(after_ms * 1000, frame.market, _later(frame.data, shift_ms).encode())


def _later(data: str, by_ms: int) -> str:
    return re.sub(r'(?<="tms":)\d+', lambda found: str(int(found[0]) + by_ms), data)


def _file_bytes(store: SQLiteStore) -> int:
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    database, wal = store.sizes()
    return database + wal
