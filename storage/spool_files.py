"""The files of the spool: what stands in its directory, the segment being written, how one is read.

Whatever goes wrong here is an `OSError` for the caller to translate.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from collector.errors import NotOurs
from storage.spool_format import (
    MARKER,
    READ_AHEAD,
    SEGMENT_PREFIX_BYTES,
    Damaged,
    Framed,
    Garbage,
    Head,
    Header,
    Scanner,
    Tally,
    decode_header,
    encode_frame,
    encode_header,
    header_bytes,
)

LOCK = "lock"
SEGMENT = ".spool"
DROPPED = ".dropped"  # the header of a segment that was deleted to make room
HEADS_READ_AHEAD = 8192
DAMAGED = ".damaged"  # a segment with a damaged place, kept for a person to look at

DAMAGED_MAX = 3

_NAME = re.compile(r"(\d{10})(\.spool|\.dropped|\.damaged)")
_LOST = {errno.EIO, errno.ENOENT, errno.ENODATA, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


@dataclass(eq=False)
class Segment:
    """A segment as the spool knows it; `header` is None where it can't be read.

    `size` is where its good frames end, the segment being written included. A file that ends within its own header is
    `torn`: nothing that counts was ever in it. Of a dropped one, which has only its header left, `batches` and `gone`
    tell what went with it.
    """

    number: int
    path: Path
    size: int
    header: Header | None = None
    torn: bool = False
    start: int = 0
    dropped: bool = False
    batches: int = 0
    gone: Tally = field(default_factory=dict)
    damaged: bool = False


@dataclass
class Count:
    """How far the spool was written or read: the next frame's sequence number, and the totals of all before it.

    `skipped` numbers right before it were left out: nobody knows how many frames stood there.
    """

    sequence: int
    totals: Tally
    skipped: int = 0


def next_known(segments: list[Segment], number: int, written: Count) -> Count:
    """Return where the count stands behind segment `number`, as far as any header tells."""
    for segment in segments:
        if segment.number > number and segment.header is not None:
            return Count(segment.header.first, segment.header.totals, segment.header.skipped)
    return written


class Found(NamedTuple):
    """What stands in a spool's directory: segments and tombstones by number, and the damaged ones kept aside."""

    segments: list[Segment]
    damaged: list[Path]


def is_part(name: str) -> bool:
    """Say whether a file of this name is a segment, or the tombstone of one."""
    match = _NAME.fullmatch(name)
    return match is not None and match[2] != DAMAGED


def segment_path(directory: Path, number: int) -> Path:
    """Return where a segment's file stands."""
    return directory / f"{number:010d}{SEGMENT}"


def look(directory: Path) -> Found:
    """Read the headers of all segments; raises `NotOurs` for one of a newer version."""
    segments: list[Segment] = []
    damaged: list[Path] = []
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        name = _NAME.fullmatch(entry.name)
        if name is None or not entry.is_file(follow_symlinks=False):
            continue
        path = Path(entry.path)
        if name[2] == DAMAGED:
            damaged.append(path)
            continue
        with contextlib.suppress(FileNotFoundError):  # it was drained while we looked
            segments.append(_segment(path, int(name[1]), dropped=name[2] == DROPPED))
    return Found(segments, damaged)


def _segment(path: Path, number: int, *, dropped: bool) -> Segment:
    with path.open("rb", buffering=0) as file:
        segment = Segment(number, path, os.fstat(file.fileno()).st_size)
        data = b""
        try:
            data = os.pread(file.fileno(), READ_AHEAD, 0)
            length = header_bytes(data)
            if length is not None and length > len(data):
                data = os.pread(file.fileno(), length, 0)
            header, start = decode_header(data)
        except Damaged:
            too_short = len(data) < (header_bytes(data) or SEGMENT_PREFIX_BYTES)
            segment.torn = too_short and MARKER not in data  # else the length is what is wrong
            return segment
        except NotOurs as error:
            raise NotOurs(f"{path} {error}") from None
        except OSError as error:
            if not is_lost(error):
                raise
            return segment
    if header.segment == number:  # else it is another segment under this one's name
        segment.header, segment.start, segment.dropped = header, start, dropped
    return segment


def heads(segment: Segment, first_after: int) -> Iterator[Framed | Garbage]:
    """Yield the frames of a segment that count, without their bodies, and what lies between them.

    A file that can't be read any further ends it; raises `FileNotFoundError` for one that is gone.
    """
    assert segment.header is not None
    source = Source(segment.path, HEADS_READ_AHEAD)
    try:
        scanner = Scanner(source.read, segment.header.salt, segment.start, bodies=False)
        while (found := scanner.next(segment.size)) is not None:
            if isinstance(found, Garbage) or found.head.sequence < first_after:
                yield found
    except OSError as error:
        if not is_lost(error):
            raise
    finally:
        source.close()


def is_lost(error: OSError) -> bool:
    """Say whether what could not be read is gone for good; anything else may be better the next time."""
    return error.errno in _LOST


class Aside:
    """Damaged segments that are kept for a person to look at, a few and as long as there is room."""

    def __init__(self, sizes: Mapping[Path, int]) -> None:
        self._sizes = dict(sizes)  # oldest first

    @property
    def size(self) -> int:
        """What they take on disk, in bytes."""
        return sum(self._sizes.values())

    def keep(self, segment: Segment) -> bool:
        """Give a segment its other name; return False where it is gone."""
        path = segment.path.with_suffix(DAMAGED)
        try:
            segment.path.rename(path)
        except FileNotFoundError:
            return False
        self._sizes[path] = path.stat().st_size
        while len(self._sizes) > DAMAGED_MAX and self.delete_oldest():
            pass
        return True

    def delete_oldest(self) -> bool:
        """Return whether there was one, and it could be deleted."""
        oldest = next(iter(self._sizes), None)
        if oldest is None:
            return False
        try:
            oldest.unlink(missing_ok=True)
        except OSError:
            return False
        del self._sizes[oldest]
        return True


def sync_directory(directory: Path) -> None:
    """Make names that were made, changed or deleted in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def take_lock(directory: Path) -> int:
    """Return the descriptor that holds the directory's lock; raises `BlockingIOError` where another has it."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Source:
    """Reads a segment's file with a bounded read-ahead."""

    def __init__(self, path: Path, read_ahead: int = READ_AHEAD) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._read_ahead = read_ahead
        self._buffer, self._at = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer at the end of the file."""
        skip = offset - self._at
        if skip < 0 or skip + size > len(self._buffer):
            if size > self._read_ahead:
                return os.pread(self._fd, size, offset)
            self._buffer, self._at, skip = os.pread(self._fd, self._read_ahead, offset), offset, 0
        return self._buffer[skip : skip + size]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Pending(NamedTuple):
    """A frame that was handed over and is not known to be on the disk."""

    head: Head
    body: bytes
    totals: Tally  # of everything before it


class Tail:
    """The segment being written.

    `unsynced` are the frames since the last fsync; they stay in memory, since after a failed fsync nobody knows what
    of the file reached the disk. `trusted` is False from then on: nothing more is written to this file.
    """

    def __init__(self, segment: Segment, header: Header, fd: int, *, known: bool) -> None:
        self.segment, self.header = segment, header
        self.unsynced: list[Pending] = []
        self.trusted = True
        self._fd = fd
        self._known = known  # the directory's entry is on the disk
        self._synced = segment.size

    @classmethod
    def create(cls, directory: Path, header: Header) -> "Tail":
        """Begin a segment; where that fails, a file without frames may stay."""
        data = encode_header(header)
        path = segment_path(directory, header.segment)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(fd, data, 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(Segment(header.segment, path, len(data), header, start=len(data)), header, fd, known=False)

    @classmethod
    def reopen(cls, segment: Segment, header: Header) -> "Tail":
        """Go on with a segment that an earlier process wrote."""
        return cls(segment, header, os.open(segment.path, os.O_WRONLY), known=True)

    @property
    def empty(self) -> bool:
        """Whether no frame is in it."""
        return self.segment.size == self.segment.start

    def write(self, frame: Pending) -> None:
        """Put a frame at the end; where that fails the file ends as before, or is not trusted any more."""
        data = encode_frame(frame.head, frame.body, self.header.salt)
        end = self.segment.size
        try:
            _write(self._fd, data, end)
        except BaseException:
            self._truncate(end)
            raise
        self.segment.size = end + len(data)
        self.unsynced.append(frame)

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        try:
            os.fsync(self._fd)
            if not self._known:
                sync_directory(self.segment.path.parent)
        except BaseException:
            self.trusted = False
            raise
        self._known = True
        self.passed()

    def passed(self) -> None:
        """Take what is written as good."""
        self._synced = self.segment.size
        self.unsynced.clear()

    def withdraw(self, size: int) -> None:
        """Take back the newest frame; the segment ended at `size` before it."""
        if self.segment.size > size:
            self.segment.size = size
            self.unsynced.pop()
            self._truncate(size)

    def cut_unsynced(self) -> None:
        """Take back everything since the last fsync, which stands in another segment now."""
        self.segment.size = self._synced
        self.unsynced.clear()
        self._truncate(self._synced)

    def _truncate(self, size: int) -> None:
        # What stays behind where this fails has sequence numbers that the next segment begins with: readers skip it.
        try:
            os.ftruncate(self._fd, size)
        except OSError:
            self.trusted = False

    def close(self) -> None:
        """Close the file, as it is."""
        os.close(self._fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
