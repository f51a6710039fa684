"""Reads a spool in order: every frame that verifies, and a `Hole` in the place of what is gone.

After a damaged place it goes on at the next frame that verifies, in the same segment if there is one. What was lost is
told by the numbers, not by the damage: a hole is where frames are missing from the count, and bytes that no frame is
missing for (the rest of a write that failed) are passed over.
"""

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.spool_files import Count, Segment, Source, is_lost, next_known
from storage.spool_format import Damaged, Framed, Garbage, Scanner, Tally, decode, minus, plus
from storage.store import Batch

# Why there is a hole.
DROPPED = "dropped"  # `drop_oldest` deleted it
DAMAGED = "damaged"  # bytes that are no frame, or a file that is no segment
MISSING = "missing"  # a file is gone
SHORT = "short"  # a file ends too early


class BatchId(NamedTuple):
    """A batch by its run and its number in it."""

    run_uid: str
    number: int


class Spooled(NamedTuple):
    """A batch in its place; `size` is its frame's, in bytes, `spooled_us` the time of day when it was put there."""

    position: int
    batch: Batch
    size: int
    spooled_us: int


class Hole(NamedTuple):
    """Frames that stood here are gone: `batches` of them as far as anybody knows, 0 where nobody does.

    `segment`, `offset` and `size` (bytes; 0 where the file is gone) say where it begins and how much can't be read,
    `before` and `after` are the batches on both sides, None where there is none. `lost` is what the frames accounted
    for, without what `drop_oldest` told; where a segment has several holes, the first one tells it for all.
    """

    position: int
    segment: int
    offset: int
    size: int
    batches: int
    before: BatchId | None
    after: BatchId | None
    reason: str
    lost: Tally


class Read(NamedTuple):
    """What the reader yields: an item, and the state of things after it.

    Segments before `keep` are needed no more once everything before this item was advanced over.
    """

    item: Spooled | Hole
    keep: int
    sequence: int
    totals: Tally


@dataclass
class _Gap:
    """A stretch without good frames."""

    segment: int
    offset: int
    reason: str
    size: int = 0
    dropped: int = 0  # batches
    lost: Tally = field(default_factory=dict)
    touched: list[Segment] = field(default_factory=list)


class SpoolReader:
    """Reads `segments`, a list that grows at its end, from the frame `start` names up to where `written` stands."""

    def __init__(self, segments: list[Segment], start: Count, written: Count, position: int) -> None:
        self.segment: Segment | None = None  # where it stands; None: before all of them
        self.sequence = start.sequence  # of the next frame
        self.position = position
        self._segments, self._written = segments, written
        self._totals = start.totals
        self._source: Source | None = None
        self._scanner: Scanner | None = None
        self._gap: _Gap | None = None
        self._skipped = 0  # of the numbers before the next frame, so many were never used
        self._explained = False  # a hole told what is missing of this segment
        self._before: BatchId | None = None
        self._keep = segments[0].number if segments else 0
        self._ready: deque[Read] = deque()

    def next(self) -> Read | None:
        """Return the next item, None when everything was read; raises `OSError` for what may be better later."""
        while not self._ready:
            found = self._scan()
            if isinstance(found, Garbage):
                self._note(DAMAGED, found.offset, found.size)
            elif found is not None:
                if self.sequence <= found.head.sequence < self._following_count().sequence:
                    self._take(found)
                # else it was read before, or was taken back by whoever wrote it
            elif not self._enter_next():
                if self.sequence < self._written.sequence:
                    self._end()
                break
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Close the file that is being read."""
        if self._source is not None:
            self._source.close()
        self._source = self._scanner = None

    @property
    def at_end_of_segment(self) -> bool:
        """Whether the file it stands in has nothing more."""
        segment, scanner = self.segment, self._scanner
        return segment is None or scanner is None or scanner.offset >= segment.size

    # --- from one place to the next ----------------------------------------------------------------------------------

    def _scan(self) -> Framed | Garbage | None:
        if self._scanner is None or self.segment is None:
            return None
        try:
            return self._scanner.next(self.segment.size)
        except OSError as error:
            if not is_lost(error):
                raise
            start, self._scanner.offset = self._scanner.offset, self.segment.size
            return Garbage(start, self.segment.size - start)

    def _following(self) -> Segment | None:
        number = self.segment.number if self.segment is not None else -1
        return next((segment for segment in self._segments if segment.number > number), None)

    def _following_count(self) -> Count:
        return next_known(self._segments, self.segment.number if self.segment is not None else -1, self._written)

    def _enter_next(self) -> bool:
        segment = self._following()
        if segment is None:
            return False
        header, before = segment.header, self.segment
        source = _opened(segment)
        self.close()
        self.segment, self._explained = segment, False
        if header is None or source is None:
            self._enter_without_frames(segment)
            return True
        self._source = source
        self._scanner = Scanner(source.read, header.salt, segment.start)
        whole = self._gap is None and header.first - header.skipped <= self.sequence <= header.first
        if whole or header.first == self.sequence:
            self._gap = None  # whatever lay in between was not part of it
            self.sequence, self._totals = header.first, header.totals
        elif header.first > self.sequence:
            self._skipped += header.skipped
            if self._gap is None and before is not None and before.number + 1 == segment.number:
                self._gap = _Gap(before.number, before.size, SHORT)
            elif self._gap is None:
                self._gap = _Gap(before.number + 1 if before is not None else segment.number, 0, MISSING)
            self._gap.lost = plus(self._gap.lost, minus(header.totals, self._totals))
            self._totals = header.totals
        return True

    def _enter_without_frames(self, segment: Segment) -> None:
        if segment.header is None:
            self._note(DAMAGED, 0, segment.size)
        elif not segment.dropped:
            self._note(MISSING, 0, 0)
        elif segment.header.first >= self.sequence:
            self._note(DROPPED, 0, 0).dropped += segment.batches
            self._totals = plus(self._totals, segment.gone)

    # --- what is yielded ---------------------------------------------------------------------------------------------

    def _note(self, reason: str, offset: int, size: int) -> _Gap:
        segment = self.segment
        assert segment is not None
        if self._gap is None:
            self._gap = _Gap(segment.number, offset, reason)
        self._gap.size += size
        if reason == DAMAGED:
            self._gap.touched.append(segment)
        return self._gap

    def _take(self, found: Framed) -> None:
        scanner = self._scanner
        assert scanner is not None
        try:
            batch = decode(found.head, found.body)
            if found.head.sequence > self.sequence:
                self._explain(found)
        except Damaged:
            self._note(DAMAGED, found.offset, found.size)
            return
        except OSError:
            scanner.offset = found.offset  # the same frame again, when the file can be read
            raise
        self._yield_frame(found, batch)

    def _explain(self, found: Framed) -> None:
        # Frames are missing before this one. What is missing of its own segment is what the next segment's header
        # counts and no frame of this one does.
        segment = self.segment
        assert segment is not None
        assert segment.header is not None
        here = self._rest(found) if not self._explained and found.head.sequence > segment.header.first else None
        if self._gap is None:
            self._gap = _Gap(segment.number, found.offset, DAMAGED, touched=[segment])
        if here is not None:
            self._explained = True
            lost = minus(self._following_count().totals, plus(self._totals, here))
            self._gap.lost = plus(self._gap.lost, lost)
            self._totals = plus(self._totals, lost)

    def _rest(self, found: Framed) -> Tally:
        # What the good frames of this segment account for, from this one on.
        segment, source = self.segment, self._source
        assert segment is not None
        assert segment.header is not None
        assert source is not None
        scanner = Scanner(source.read, segment.header.salt, found.offset)
        first_after = self._following_count().sequence
        total: Tally = {}
        try:
            while (frame := scanner.next(segment.size)) is not None:
                if isinstance(frame, Framed) and frame.head.sequence < first_after:
                    with contextlib.suppress(Damaged):
                        decode(frame.head, frame.body)
                        total = plus(total, frame.head.counts)
        except OSError as error:
            if not is_lost(error):
                raise
        return total

    def _yield_frame(self, found: Framed, batch: Batch) -> None:
        segment, head = self.segment, found.head
        assert segment is not None
        name = BatchId(head.run.uid, head.number)
        if head.sequence > self.sequence:
            self._hole(name, head.sequence)
        self._gap = None
        self.sequence = head.sequence + 1
        self._totals = plus(self._totals, head.counts)
        self._keep, self._before = segment.number, name
        self.position += 1
        item = Spooled(self.position, batch, found.size, head.time_us)
        self._ready.append(Read(item, segment.number, self.sequence, self._totals))

    def _end(self) -> None:
        # Frames were written after the last good one, and nothing follows to tell more.
        lost = minus(self._written.totals, self._totals)
        if self._gap is None:
            segment = self.segment
            self._gap = _Gap(segment.number if segment else 0, segment.size if segment else 0, MISSING)
        self._gap.lost = plus(self._gap.lost, lost)
        self._totals = self._written.totals
        self._skipped += self._written.skipped
        self._hole(None, self._written.sequence)

    def _hole(self, after: BatchId | None, sequence: int) -> None:
        gap = self._gap
        assert gap is not None
        self.position += 1
        batches = max(0, sequence - self.sequence - self._skipped)
        if gap.dropped == batches > 0:
            gap.reason = DROPPED
        else:
            gap.reason = DAMAGED if gap.touched else MISSING if gap.reason == DROPPED else gap.reason
            for segment in gap.touched:
                segment.damaged = True
        self.sequence, self._skipped, self._gap = sequence, 0, None
        item = Hole(
            self.position, gap.segment, gap.offset, gap.size, batches, self._before, after, gap.reason, gap.lost
        )
        self._ready.append(Read(item, self._keep, sequence, self._totals))


def _opened(segment: Segment) -> Source | None:
    if segment.header is None or segment.dropped:
        return None
    try:
        return Source(segment.path)
    except OSError as error:
        if not is_lost(error):
            raise
        return None
