"""The writing end of the spool: frames go to the newest segment, and a frame counts only when its `fsync` went well.

The kernel forgets pages that it failed to write: asking again would be answered with a success that means nothing. So
after a failed fsync the frames that are not known to be on the disk, which stay in memory until then, begin a new
segment. Sequence numbers say what counts of the old one, should it be impossible to shorten it.
"""

import contextlib
import secrets
from pathlib import Path
from typing import Literal

from collector.clock import Clock
from storage.spool_files import Count, Pending, Segment, Tail, segment_path
from storage.spool_format import Header, plus

Fsync = Literal["batch", "interval", "never"]

UNSYNCED_BYTES_MAX = 4 << 20  # with `interval`, an fsync comes early when so much waits for it


class SpoolWriter:
    """Writes to the end of `segments` in `directory`; `written` is kept up to date.

    Every method raises `OSError`; what was acknowledged before is as it was then.
    """

    def __init__(
        self,
        directory: Path,
        segments: list[Segment],
        written: Count,
        number: int,
        *,
        segment_bytes: int,
        fsync: Fsync,
        fsync_interval_s: float,
        clock: Clock,
    ) -> None:
        self.written = written
        self.number = number  # of the next segment
        self._directory, self._segments, self._segment_bytes = directory, segments, segment_bytes
        self._fsync, self._fsync_interval_us, self._clock = fsync, round(fsync_interval_s * 1e6), clock
        self._tail: Tail | None = None
        self._litter: list[Path] = []  # files of segments that were given up
        self._synced_us = clock.monotonic_us()

    def reopen(self, segment: Segment, header: Header) -> None:
        """Go on in a segment that an earlier process wrote."""
        self._tail = Tail.reopen(segment, header)

    def put(self, frame: Pending, size: int) -> None:
        """Write a frame of about `size` bytes; where that fails nothing of it counts."""
        tail, before = None, 0
        try:
            tail = self._tail_for(size)
            before = tail.segment.size
            tail.write(frame)
            self._sync_if_due(tail)
        except OSError:
            if tail is not None:
                tail.withdraw(before)
                if tail.empty:
                    self._discard(tail)
            raise
        self.written.sequence, self.written.skipped = self.written.sequence + 1, 0
        self.written.totals = plus(self.written.totals, frame.head.counts)

    def sync(self, *, at_once: bool = False) -> None:
        """Sync what is due."""
        if self._tail is not None and self._tail.unsynced:
            if at_once:
                self._sync()
            else:
                self._sync_if_due(self._tail)

    def close(self) -> None:
        """Close the newest segment; the next frame begins another."""
        self._sweep()
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    @property
    def untidy(self) -> bool:
        """Whether files that were given up could not be deleted yet; `close` tries again."""
        return bool(self._litter)

    def _tail_for(self, size: int) -> Tail:
        if self._tail is not None and not self._tail.trusted:
            self._replace(self._tail)
        if self._tail is not None and not self._tail.empty and self._tail.segment.size + size > self._segment_bytes:
            self.sync(at_once=True)
            self.close()
        if self._tail is None:
            self._tail = self._begin(self.written)
            self._segments.append(self._tail.segment)
        return self._tail

    def _begin(self, count: Count) -> Tail:
        now_us = self._clock.wall_us()
        header = Header(self.number, secrets.randbits(32), count.sequence, now_us, dict(count.totals), count.skipped)
        self.number += 1
        try:
            return Tail.create(self._directory, header)
        except OSError:
            self._litter.append(segment_path(self._directory, header.segment))
            self._sweep()
            raise

    def _sync_if_due(self, tail: Tail) -> None:
        waited_us = self._clock.monotonic_us() - self._synced_us
        if self._fsync == "never":
            tail.passed()
        elif (
            self._fsync == "batch"
            or waited_us >= self._fsync_interval_us
            or sum(len(frame.body) for frame in tail.unsynced) >= UNSYNCED_BYTES_MAX
        ):
            self._sync()

    def _sync(self) -> None:
        tail = self._tail
        assert tail is not None
        if tail.trusted:
            with contextlib.suppress(OSError):
                tail.sync()
        if not tail.trusted:
            self._replace(tail)
        self._synced_us = self._clock.monotonic_us()

    def _replace(self, old: Tail) -> None:
        # Goes on in a new segment, which begins with what is not known to be on the disk.
        new: Tail | None = None
        if old.unsynced:
            first = old.unsynced[0]
            new = self._begin(Count(first.head.sequence, first.totals))
            try:
                for frame in old.unsynced:
                    new.write(frame)
                new.sync()
            except BaseException:
                self._discard(new)
                raise
            self._segments.append(new.segment)
            old.cut_unsynced()
        if old.empty:
            self._discard(old)
        else:
            old.close()
        self._tail = new

    def _discard(self, tail: Tail) -> None:
        tail.close()
        if tail.segment in self._segments:
            self._segments.remove(tail.segment)
        if self._tail is tail:
            self._tail = None
        self._litter.append(tail.segment.path)
        self._sweep()

    def _sweep(self) -> None:
        # What can't be deleted holds nothing that counts (the next segment has the same numbers), until that one is
        # gone: so it is tried again.
        while self._litter:
            try:
                self._litter[-1].unlink(missing_ok=True)
            except OSError:
                return
            self._litter.pop()
