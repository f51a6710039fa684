"""Looks at a spool from outside, without its lock: a collector may be writing to it and draining it meanwhile.

Nothing on disk is changed. The spool keeps no note of what was drained from its oldest segment, so batches that are in
the database already are counted there. A last frame that is just being written looks torn.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from collector.errors import StorageError
from storage.spool_files import heads, is_part, next_known
from storage.spool_format import Framed, Tally, minus
from storage.spool_reader import MISSING, Hole, SpoolReader
from storage.spool_recovery import Cut, Recovered, recover
from storage.store import Run

LISTED_MAX = 1000
_ATTEMPTS = 100


@dataclass
class RunSpan:
    """The batches of a run: the lowest and highest number, how many, and pairs of numbers with others missing between.

    `gaps` lists at most 1,000.
    """

    run: Run
    first: int
    last: int
    batches: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Status:
    """How a spool stands; times of day are when batches were put there, `waiting` is what they account for.

    `damage` lists bytes between frames (segment, offset, size), at most 1,000: `check` finds more, since this reads no
    records. `unreadable` names segments without a header, `aside` damaged segments that were kept, `dropped` counts
    batches that were deleted to make room and no hole told of yet.
    """

    segments: int = 0
    size: int = 0
    batches: int = 0
    oldest_us: int | None = None
    newest_us: int | None = None
    waiting: Tally = field(default_factory=dict)
    runs: list[RunSpan] = field(default_factory=list)
    dropped: int = 0
    torn: tuple[Cut, ...] = ()
    damage: list[tuple[int, int, int]] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)

    def saw(self, time_us: int) -> None:
        """Count a batch that was put there at this time."""
        self.batches += 1
        self.oldest_us = time_us if self.oldest_us is None else self.oldest_us
        self.newest_us = time_us


@dataclass
class Check:
    """What reading all of a spool found: whether every batch is there, equal to what was put in.

    `holes` is what the collector will report as lost, at most 1,000 of `holes_found`; `torn` is what it will cut off.
    """

    batches: int = 0
    records: int = 0
    size: int = 0
    runs: list[RunSpan] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    holes_found: int = 0
    torn: tuple[Cut, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is missing; a torn end was never acknowledged and is no loss."""
        return not self.holes_found


def status(path: Path) -> Status:
    """Return how a spool stands, from the heads of its frames; an empty status where there is no directory.

    Raises `NotOurs` for segments of a newer version, `StorageError` where something can't be read.
    """
    found = _found(path)
    if found is None:
        return Status()
    result = Status(torn=found.cuts, aside=list(found.aside), waiting=minus(found.written.totals, found.oldest.totals))
    spans = _Spans()
    for segment in found.segments:
        result.size += segment.size
        if segment.header is None:
            result.unreadable.append(segment.path)
        if segment.dropped:
            result.dropped += segment.batches
            result.waiting = minus(result.waiting, segment.gone)
        if segment.header is None or segment.dropped:
            continue
        result.segments += 1
        try:
            for frame in heads(segment, next_known(found.segments, segment.number, found.written).sequence):
                if isinstance(frame, Framed):
                    result.saw(frame.head.time_us)
                    spans.saw(frame.head.run, frame.head.number)
                elif len(result.damage) < LISTED_MAX:
                    result.damage.append((segment.number, frame.offset, frame.size))
        except FileNotFoundError:
            spans.left_out()
        except OSError as error:
            raise StorageError(f"the spool {path} can't be read: {error.strerror or error}") from None
    result.runs = spans.list()
    return result


def check(path: Path, progress: Callable[[int], None] | None = None) -> Check:
    """Read a spool as the collector will, verify and decode everything; `progress` is told the bytes of each batch.

    Raises `NotOurs` for segments of a newer version, `StorageError` where something can't be read for the moment.
    """
    result = Check()
    found = _found(path)
    if found is None:
        return result
    result.torn = found.cuts
    spans = _Spans()
    reader = SpoolReader(found.segments, found.oldest, found.written, 0)
    try:
        while (read := reader.next()) is not None:
            item = read.item
            if isinstance(item, Hole):
                if _is_there(item, path):
                    spans.left_out()
                    continue
                result.holes_found += 1
                result.holes += [item] if len(result.holes) < LISTED_MAX else []
                continue
            result.batches += 1
            result.records += sum(len(delivery.records) for delivery in item.batch.deliveries)
            result.size += item.size
            spans.saw(item.batch.run, item.batch.number)
            if progress is not None:
                progress(item.size)
    except OSError as error:
        raise StorageError(f"the spool {path} can't be read: {error.strerror or error}") from None
    finally:
        reader.close()
    result.runs = spans.list()
    return result


class _Spans:
    """Collects runs and their batch numbers, in the order they are read."""

    def __init__(self) -> None:
        self._runs: dict[str, RunSpan] = {}
        self._left_out: set[str] = set()

    def saw(self, run: Run, number: int) -> None:
        span = self._runs.setdefault(run.uid, RunSpan(run, number, number))
        if number > span.last + 1 and span.run.uid not in self._left_out and len(span.gaps) < LISTED_MAX:
            span.gaps.append((span.last, number))
        self._left_out.discard(run.uid)
        span.first, span.last = min(span.first, number), max(span.last, number)
        span.batches += 1

    def left_out(self) -> None:
        """Say that what comes next does not follow what was seen, and that nothing is wrong with that."""
        self._left_out = set(self._runs)

    def list(self) -> list[RunSpan]:
        return list(self._runs.values())


def _found(path: Path) -> Recovered | None:
    # A collector that drains deletes files between two looks at them; then we look again.
    for attempt in range(_ATTEMPTS):
        try:
            return recover(path, repair=False)
        except FileNotFoundError as error:
            if not path.exists():
                return None
            if attempt + 1 == _ATTEMPTS:
                raise StorageError(f"the spool {path} changes too fast to be looked at: {error}") from None
        except OSError as error:
            raise StorageError(f"the spool {path} can't be read: {error.strerror or error}") from None
    return None


def _is_there(hole: Hole, path: Path) -> bool:
    # What is missing may just have been drained, with all that was older, or have come while we looked.
    if hole.reason != MISSING:
        return False
    try:
        numbers = [int(entry.name[:10]) for entry in os.scandir(path) if is_part(entry.name)]
    except OSError:
        return False
    return hole.segment in numbers or all(number > hole.segment for number in numbers)
