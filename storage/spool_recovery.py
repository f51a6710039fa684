"""What an earlier process left in the spool: where writing goes on, and from where to read."""

import os
from pathlib import Path
from typing import NamedTuple

from storage.spool_files import Count, Segment, Source, is_lost, look, next_known, segment_path
from storage.spool_format import PREFIX_BYTES, Framed, Header, Scanner, minus, plus


class Cut(NamedTuple):
    """What is torn off the end of the spool: frames whose writing was cut short, and a segment without a header."""

    segment: int
    offset: int
    size: int


class Recovered(NamedTuple):
    """The state of a spool on disk.

    `last` is the segment that writing may go on in, with its header; `litter` are files of which nothing counts, since
    a later segment begins with the same number: they were given up after an error and could not be deleted.
    """

    segments: list[Segment]
    aside: dict[Path, int]
    cuts: tuple[Cut, ...]
    oldest: Count
    written: Count
    last: tuple[Segment, Header] | None
    number: int
    litter: tuple[Path, ...]


def recover(directory: Path, *, repair: bool = True) -> Recovered:
    """Find out what is there, cut off a torn end, finish what a crash interrupted; raises `NotOurs` and `OSError`.

    With `repair=False` nothing on disk is changed; what is returned is the same.

    Where the newest file can't be read, the count leaves room for all frames that may be in it: if they can be read
    another day, they are in their place.
    """
    segments, damaged = look(directory)
    numbers = [int(path.stem) for path in damaged] + [segment.number for segment in segments]
    cuts = _torn_segments(segments)
    written, last, torn = _end(segments)
    known = [segment.header for segment in segments if segment.header is not None]
    oldest = Count(1, {})
    if known:
        hidden = segments[0].header is None and known[0].first > 1  # how many were in it, nobody knows
        oldest = Count(known[0].first - hidden, known[0].totals)
    for segment in segments:
        if segment.dropped:
            _account_for_dropped(segment, next_known(segments, segment.number, written))
    aside = {path: path.stat().st_size for path in damaged}
    litter = [
        segment for segment in segments[:-1] if _is_litter(segment, next_known(segments, segment.number, written))
    ]
    found = Recovered(
        [segment for segment in segments if segment not in litter],
        aside,
        (*cuts, *torn),
        oldest,
        written,
        last,
        max(numbers, default=0) + 1,
        tuple(segment.path for segment in litter),
    )
    if repair:
        _repair(directory, found)
    return found


def _repair(directory: Path, found: Recovered) -> None:
    for cut in found.cuts:
        path = segment_path(directory, cut.segment)
        if cut.offset:
            os.truncate(path, cut.offset)
        else:
            path.unlink()
    for segment in found.segments:
        if segment.dropped:
            os.truncate(segment.path, segment.start)
    for path in found.litter:
        path.unlink()


def _is_litter(segment: Segment, following: Count) -> bool:
    header = segment.header
    return header is not None and following.sequence == header.first


def _torn_segments(segments: list[Segment]) -> list[Cut]:
    # Files at the end that a crash left without a whole header; they are no part of the spool.
    cuts: list[Cut] = []
    while segments and segments[-1].torn:
        torn = segments.pop()
        cuts.append(Cut(torn.number, 0, torn.size))
    return cuts


def _end(segments: list[Segment]) -> tuple[Count, tuple[Segment, Header] | None, list[Cut]]:
    last = next((segment for segment in reversed(segments) if segment.header is not None), None)
    count, end = Count(1, {}), 0
    if last is not None and last.header is not None:
        count, end, readable = _good_frames(last, last.header)
        if readable and last is segments[-1]:
            return count, (last, last.header), _cut(last, end)
    unread = sum(segment.size for segment in segments if last is None or segment.number > last.number)
    unread += last.size - end if last is not None else 0
    skipped = unread // PREFIX_BYTES + 1 if segments else 0
    return Count(count.sequence + skipped, count.totals, skipped), None, []


def _cut(last: Segment, end: int) -> list[Cut]:
    cuts = []
    if end < last.size:
        cuts.append(Cut(last.number, end, last.size - end))
        last.size = end
    return cuts


def _good_frames(segment: Segment, header: Header) -> tuple[Count, int, bool]:
    # The count behind the last frame that verifies, where that one ends, and whether all of the file could be read.
    count, end = Count(header.first, header.totals), segment.start
    if segment.dropped:
        return count, end, False
    source = Source(segment.path)
    try:
        scanner = Scanner(source.read, header.salt, segment.start)
        while (found := scanner.next(segment.size)) is not None:
            if isinstance(found, Framed):
                end = found.offset + found.size
                if found.head.sequence >= count.sequence:  # else it stands there twice, and is read once
                    count = Count(found.head.sequence + 1, plus(count.totals, found.head.counts))
    except OSError as error:
        if not is_lost(error):
            raise
        return count, end, False
    finally:
        source.close()
    return count, end, True


def _account_for_dropped(segment: Segment, following: Count) -> None:
    # Only the header of a dropped segment stays: what comes after it tells how much is gone.
    assert segment.header is not None
    segment.batches = max(0, following.sequence - following.skipped - segment.header.first)
    segment.gone = minus(following.totals, segment.header.totals)
    segment.size = segment.start
