"""The queue on disk that batches go through while the database is away: in order, checked, bounded.

`append` returns when a batch is there (with `fsync="batch"`: there after a power cut too); `peek` and `advance` take
the oldest out again. Nothing on disk says how far that got: a segment goes when all of it was advanced over, and after
a crash the reader starts at the oldest segment anew. A store knows the numbers of the batches it has, so whoever drains
skips batches that are there, and with them a `Hole` whose `after` is there.

What is damaged or gone is never passed over in silence and never an error: it comes out as a `Hole` in its place.
The format, what survives which `fsync`, and sizes: `docs/spool.md`. For one thread at a time, and one process.
"""

import contextlib
import errno
import os
from collections import Counter, deque
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from collector.clock import Clock
from collector.errors import NotOurs, StorageBusy, StorageError, StorageFull
from storage.spool_files import (
    DROPPED,
    Aside,
    Count,
    Pending,
    Segment,
    heads,
    next_known,
    sync_directory,
    take_lock,
)
from storage.spool_format import (
    BODY_BYTES_MAX,
    PREFIX_BYTES,
    READ_AHEAD,
    Counts,
    Framed,
    Tally,
    encode,
    minus,
    plus,
)
from storage.spool_reader import BatchId, Hole, Read, Spooled, SpoolReader
from storage.spool_recovery import Cut, recover
from storage.spool_writer import Fsync, SpoolWriter
from storage.store import Batch

__all__ = ["BatchId", "Counts", "Cut", "Dropped", "Fsync", "Hole", "Spool", "Spooled", "Tally"]

SEGMENT_BYTES = 64 << 20
_HEADER_ROOM = 8192  # for the head of a frame and the header of a new segment...
_EPOCH_ROOM = 18  # ...and for each epoch that the head names
_HOLE_BYTES = 1024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Dropped(NamedTuple):
    """What `drop_oldest` deleted; `rows` are those of market data by run and epoch."""

    segment: int
    size: int
    batches: int
    lost: Tally
    rows: dict[tuple[str, int], int]


class Spool:
    """A directory of segments.

    `limit_bytes` is what all files may take together; `segment_bytes` is what is freed at a time, at most a quarter of
    it. `fsync` is `batch` (every `append`), `interval` (at least every `fsync_interval_s`, if `sync` is called as
    often) or `never`.

    `cuts` is what `open` found torn; `damaged` counts segments that were kept aside since then.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
        fsync: Fsync = "batch",
        fsync_interval_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self.path, self.limit_bytes = path, limit_bytes
        self.segment_bytes = min(segment_bytes, limit_bytes // 4)
        self.cuts: tuple[Cut, ...] = ()
        self.damaged = 0
        self._fsync: Fsync = fsync
        self._fsync_interval_s = fsync_interval_s
        self._clock = clock or Clock()
        self._lock: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._segments: list[Segment] = []
        self._aside = Aside({})
        self._writer: SpoolWriter | None = None
        self._written, self._advanced = Count(1, {}), Count(1, {})
        self._reader: SpoolReader | None = None
        self._position = 0
        self._ahead: deque[Read] = deque()
        self._ahead_bytes = 0
        self._passed_us: int | None = None

    # --- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the directory's lock, find what an earlier process left, cut off a torn end.

        Makes the directory. Raises `NotOurs` where another collector has it, or where its segments are of a newer
        version; `StorageError` where it can't be read or written.
        """
        if self._lock is not None:
            return
        try:
            self._take_directory()
            self._load()
        except BlockingIOError:
            self._release()
            raise NotOurs(
                f"the spool {self.path} is in use by another collector; stop that one, or give this one a spool "
                "directory of its own"
            ) from None
        except OSError as error:
            self._release()
            raise StorageError(
                f"the spool {self.path} can't be used: {error.strerror or error}; give the directory to the user the "
                "collector runs as, or set another one"
            ) from None
        except StorageError:
            self._release()
            raise

    def close(self) -> None:
        """Sync what waits for it and give the lock back; raises `StorageError` where the disk refused."""
        try:
            if self._writer is not None:
                self._writer.sync(at_once=True)
        except OSError as error:
            raise self._translated(error) from None
        finally:
            self._release()

    def _take_directory(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if not self.path.is_dir():
                raise NotOurs(f"the spool {self.path} is no directory; set another one") from None
        else:
            sync_directory(self.path.parent)
        self._lock = take_lock(self.path)

    def _release(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._forget()

    def _load(self) -> None:
        found = recover(self.path)
        self._segments, self._aside, self.cuts = found.segments, Aside(found.aside), found.cuts
        self._written, self._advanced = found.written, found.oldest
        self._writer = SpoolWriter(
            self.path,
            self._segments,
            self._written,
            found.number,
            segment_bytes=self.segment_bytes,
            fsync=self._fsync,
            fsync_interval_s=self._fsync_interval_s,
            clock=self._clock,
        )
        if found.last is not None:
            self._writer.reopen(*found.last)

    # --- in ----------------------------------------------------------------------------------------------------------

    def append(self, batch: Batch) -> None:
        """Put a batch at the end; it is there when this returns.

        Raises `StorageFull` at the limit or when the disk is full, `StorageBusy` for other errors of the disk: nothing
        of the batch counts then, and the same call may succeed later. A `StorageError` proper is for a batch that can't
        be written down at all.
        """
        writer = self._open_writer()
        try:
            head, body = encode(batch, self._written.sequence, self._clock.wall_us())
        except (ValueError, OverflowError) as error:
            raise StorageError(f"batch {batch.number} can't be written down for the spool: {error}") from None
        if len(body) > BODY_BYTES_MAX:
            raise StorageError(f"batch {batch.number} is too large for the spool: {len(body)} bytes")
        size = PREFIX_BYTES + len(body) + _HEADER_ROOM + _EPOCH_ROOM * len(head.rows)
        self._make_room(size)
        try:
            writer.put(Pending(head, body, self._written.totals), size)
        except OSError as error:
            raise self._translated(error) from None

    def sync(self) -> None:
        """Sync what is due with `fsync="interval"`; to be called now and then, since the spool has no thread.

        Raises `StorageFull` or `StorageBusy`; what was acknowledged stays in hand for the next call.
        """
        try:
            self._open_writer().sync()
        except OSError as error:
            raise self._translated(error) from None

    def _make_room(self, size: int) -> None:
        # Damaged segments are worth less than what comes in.
        def over() -> bool:
            return self.bytes + self._aside.size + size > self.limit_bytes

        while over() and self._aside.delete_oldest():
            pass
        if over():
            raise StorageFull(f"the spool {self.path} has reached its limit of {self.limit_bytes} bytes")

    # --- out ---------------------------------------------------------------------------------------------------------

    def peek(self, limit: int = 1) -> list[Spooled | Hole]:
        """Return the oldest items, at most `limit` and about 1 MiB of them; they stay until `advance`.

        Raises `StorageBusy` where a file can't be opened or read for the moment.
        """
        writer = self._open_writer()
        if self.empty and (self._segments or writer.untidy):
            self._clear(writer)  # what could not be deleted before
        self._fill(limit)
        return [read.item for read in islice(self._ahead, limit)]

    def advance(self, position: int) -> None:
        """Take out everything up to and with the item at `position`: the store has it.

        Files that hold nothing else are deleted; one that can't be is tried again the next time.
        """
        while self._ahead and self._ahead[0].item.position <= position:
            item, _, sequence, totals = self._ahead.popleft()
            self._ahead_bytes -= _bytes(item)
            self._advanced = Count(sequence, totals)
            if isinstance(item, Spooled):
                self._passed_us = item.spooled_us
        if self._reader is None or self._writer is None:
            return
        if self.empty:
            self._clear(self._writer)
            return
        if not self._ahead and self._reader.at_end_of_segment:
            with contextlib.suppress(StorageBusy):
                self._fill(1)  # whether something is missing after this segment, or it can go
        if self._ahead:
            self._retire(self._ahead[0].keep)
        elif self._reader.segment is not None:
            self._retire(self._reader.segment.number)

    def _fill(self, limit: int) -> None:
        if self._reader is None and self._segments:
            self._reader = SpoolReader(self._segments, self._advanced, self._written, self._position)
        try:
            while self._reader is not None and len(self._ahead) < limit and self._ahead_bytes < READ_AHEAD:
                read = self._reader.next()
                if read is None:
                    return
                self._position = read.item.position
                self._ahead.append(read)
                self._ahead_bytes += _bytes(read.item)
        except OSError as error:
            raise self._translated(error) from None

    def _clear(self, writer: SpoolWriter) -> None:
        writer.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._passed_us = None
        self._retire(writer.number)

    def _retire(self, keep: int) -> None:
        gone = 0
        for segment in [segment for segment in self._segments if segment.number < keep]:
            try:
                self._bury(segment)
            except OSError:
                break  # it is counted in `bytes` until it goes, and the reader does not yield it again
            self._segments.remove(segment)
            gone += 1
        if gone:
            with contextlib.suppress(OSError):
                sync_directory(self.path)

    def _bury(self, segment: Segment) -> None:
        if not segment.damaged:
            segment.path.unlink(missing_ok=True)
        elif self._aside.keep(segment):
            self.damaged += 1

    # --- away --------------------------------------------------------------------------------------------------------

    def drop_oldest(self) -> Dropped | None:
        """Delete the oldest segment that is neither being read nor being written; None where there is none.

        A `Hole` comes out in its place, after a restart too. Raises `StorageBusy` where the disk refuses.
        """
        self._open_writer()
        reader = self._reader
        reading = reader.segment.number if reader is not None and reader.segment is not None else -1
        read = (reader or self._advanced).sequence
        for place, segment in enumerate(self._segments[:-1]):
            if segment.header is None or segment.dropped:
                continue
            if segment.number > reading and segment.header.first >= read:
                before = self._segments[place - 1] if place else None
                try:
                    return self._drop(segment, before if before is not None and before.number > reading else None)
                except OSError as error:
                    raise self._translated(error) from None
        return None

    def _drop(self, segment: Segment, before: Segment | None) -> Dropped:
        assert segment.header is not None
        following = next_known(self._segments, segment.number, self._written)
        batches = max(0, following.sequence - following.skipped - segment.header.first)
        lost = minus(following.totals, segment.header.totals)
        size, rows = segment.size, _rows(segment, following.sequence)
        if before is not None and before.dropped:
            # One tombstone for all that is gone in one stretch.
            segment.path.unlink(missing_ok=True)
            self._segments.remove(segment)
            before.batches += batches
            before.gone = plus(before.gone, lost)
        else:
            tombstone = segment.path.with_suffix(DROPPED)
            segment.path.rename(tombstone)
            segment.path, segment.dropped, segment.batches, segment.gone = tombstone, True, batches, lost
            size -= segment.start
        # Gone it is, whatever the disk says to the rest: what it did not free stays counted in `bytes`.
        with contextlib.suppress(OSError):
            sync_directory(self.path)
        if segment.dropped:
            with contextlib.suppress(OSError):
                os.truncate(segment.path, segment.start)
                segment.size = segment.start
        return Dropped(segment.number, size, batches, lost, rows)

    # --- how things stand --------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether nothing waits, no hole either."""
        return self._advanced.sequence == self._written.sequence

    @property
    def bytes(self) -> int:
        """What the segments take on disk, the parts that were advanced over included."""
        return sum(segment.size for segment in self._segments)

    @property
    def frames(self) -> int:
        """How many batches wait, lost ones that no hole told of yet included."""
        unused = self._written.skipped + sum(segment.batches for segment in self._tombstones())
        for segment in self._segments:
            if segment.header is not None and segment.header.first > self._advanced.sequence:
                unused += segment.header.skipped
        return max(0, self._written.sequence - self._advanced.sequence - unused)

    @property
    def waiting(self) -> Tally:
        """What the batches that wait account for, by exchange."""
        waiting = minus(self._written.totals, self._advanced.totals)
        for segment in self._tombstones():
            waiting = minus(waiting, segment.gone)
        return waiting

    @property
    def oldest_us(self) -> int | None:
        """About when the oldest batch that waits was put here (time of day); None when nothing waits."""
        if self.empty:
            return None
        for read in self._ahead:
            if isinstance(read.item, Spooled):
                return read.item.spooled_us
        known = (segment.header.time_us for segment in self._segments if segment.header is not None)
        return self._passed_us if self._passed_us is not None else next(known, None)

    def _tombstones(self) -> list[Segment]:
        return [
            segment
            for segment in self._segments
            if segment.dropped and segment.header is not None and segment.header.first >= self._advanced.sequence
        ]

    def _open_writer(self) -> SpoolWriter:
        if self._writer is None:
            raise StorageError(f"the spool {self.path} is not open")
        return self._writer

    def _translated(self, error: OSError) -> StorageError:
        text = f"the spool {self.path}: {error.strerror or error}"
        if error.errno in _FULL:
            return StorageFull(f"{text}; free some space, the collector goes on by itself")
        return StorageBusy(text)


def _bytes(item: Spooled | Hole) -> int:
    return item.size if isinstance(item, Spooled) else _HOLE_BYTES


def _rows(segment: Segment, first_after: int) -> dict[tuple[str, int], int]:
    rows: Counter[tuple[str, int]] = Counter()
    with contextlib.suppress(FileNotFoundError):
        for found in heads(segment, first_after):
            if isinstance(found, Framed):
                for epoch, count in found.head.rows.items():
                    rows[found.head.run.uid, epoch] += count
    return dict(rows)
