"""What an earlier process left in the spool: where writing goes on, and from where to read."""

import os
from pathlib import Path
from typing import NamedTuple

from storage.spool_files import Count, Segment, Source, is_lost, is_torn_at_birth, look, next_known
from storage.spool_format import Framed, Header, Scanner, minus, plus


class Cut(NamedTuple):
    """What `open` took off the end of the spool: a frame whose writing was cut short, never acknowledged."""

    segment: int
    offset: int
    size: int


class Recovered(NamedTuple):
    """The state of a spool on disk; `last` is the segment that writing may go on in, with its header."""

    segments: list[Segment]
    aside: dict[Path, int]
    cuts: tuple[Cut, ...]
    oldest: Count
    written: Count
    last: tuple[Segment, Header] | None
    number: int


def recover(directory: Path) -> Recovered:
    """Find out what is there, cut off a torn end, finish what a crash interrupted; raises `NotOurs` and `OSError`.

    Where nobody knows how many frames were at an end of the spool, because the file there is no segment any more, the
    count leaves room for one: something is missing there.
    """
    segments, damaged = look(directory)
    numbers = [int(path.stem) for path in damaged] + [segment.number for segment in segments]
    cuts = _cut_torn_segments(segments)
    written, last, cut = _end(segments)
    known = [segment.header for segment in segments if segment.header is not None]
    oldest = Count(1, {})
    if known:
        oldest = Count(known[0].first - (segments[0].header is None), known[0].totals)
    for segment in segments:
        if segment.dropped:
            _finish_dropping(segment, next_known(segments, segment.number, written))
    aside = {path: path.stat().st_size for path in damaged}
    return Recovered(segments, aside, (*cuts, *cut), oldest, written, last, max(numbers, default=0) + 1)


def _cut_torn_segments(segments: list[Segment]) -> list[Cut]:
    cuts: list[Cut] = []
    while segments and segments[-1].header is None and is_torn_at_birth(segments[-1].path):
        torn = segments.pop()
        torn.path.unlink()
        if torn.size:
            cuts.append(Cut(torn.number, 0, torn.size))
    return cuts


def _end(segments: list[Segment]) -> tuple[Count, tuple[Segment, Header] | None, list[Cut]]:
    last = next((segment for segment in reversed(segments) if segment.header is not None), None)
    if last is None or last.header is None:
        return Count(2 if segments else 1, {}), None, []
    header = last.header
    count, end, sure = Count(header.first, header.totals), last.start, last is segments[-1] and not last.dropped
    if not last.dropped:
        count, end, readable = _good_frames(last, header)
        sure = sure and readable
    if not sure:
        return Count(count.sequence + 1, count.totals), None, []
    cuts = []
    if end < last.size:
        cuts.append(Cut(last.number, end, last.size - end))
        os.truncate(last.path, end)
        last.size = end
    return count, (last, header), cuts


def _good_frames(segment: Segment, header: Header) -> tuple[Count, int, bool]:
    # The count behind the last frame that verifies, where that one ends, and whether all of the file could be read.
    count, end = Count(header.first, header.totals), segment.start
    source = Source(segment.path)
    try:
        scanner = Scanner(source.read, header.salt, segment.start)
        while (found := scanner.next(segment.size)) is not None:
            if isinstance(found, Framed):
                end = found.offset + found.size
                count = Count(found.head.sequence + 1, plus(count.totals, found.head.counts))
    except OSError as error:
        if not is_lost(error):
            raise
        return count, end, False
    finally:
        source.close()
    return count, end, True


def _finish_dropping(segment: Segment, following: Count) -> None:
    # Only the header of a dropped segment stays: what comes after it tells how much is gone.
    assert segment.header is not None
    segment.batches = max(0, following.sequence - segment.header.first)
    segment.gone = minus(following.totals, segment.header.totals)
    if segment.size > segment.start:
        os.truncate(segment.path, segment.start)
        segment.size = segment.start
