"""The spool: what it keeps, in which order, and what it says of what is gone."""

import errno
import os
import resource
import stat
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

import storage.spool
import storage.spool_reader
from collector.errors import NotOurs, StorageBusy, StorageError, StorageFull
from collector.records import (
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    RecordsLost,
    Rejected,
    TickerRow,
    TradeRow,
)
from storage import spool_format
from storage.spool import BatchId, Counts, Hole, Spool, Spooled
from storage.spool_inspect import check, status
from storage.spool_reader import DAMAGED, DROPPED, MISSING, SHORT
from storage.store import Batch, Run
from tests.conftest import ROOT
from tests.fakes import FakeClock

RUN = Run("run-1", "here", "test", 1)
LIMIT = 64 << 20


def row(n: int, epoch: int = 1) -> BookRow:
    return BookRow(epoch, n, n * 1000, 50, n, 0, f'[["{n}","1.5"]]', None)


def batch(number: int, run: Run = RUN, *, rows: int = 3, exchange: str = "upbit") -> Batch:
    records: tuple[Record, ...] = tuple(row(number * 100 + i, epoch=number) for i in range(rows))
    return Batch(run, number, (Delivery(exchange, 1, records, 300, 0, number),))


def spool_at(path: Path, **settings: Any) -> Spool:
    settings.setdefault("limit_bytes", LIMIT)
    settings.setdefault("fsync", "never")
    spool = Spool(path, **settings)
    spool.open()
    return spool


@contextmanager
def opened(path: Path, **settings: Any) -> Iterator[Spool]:
    spool = spool_at(path, **settings)
    try:
        yield spool
    finally:
        spool.close()


def fill(path: Path, numbers: Iterable[int], **settings: Any) -> None:
    with opened(path, **settings) as spool:
        for number in numbers:
            spool.append(batch(number))


def is_empty(spool: Spool) -> bool:
    return spool.empty


def drained(spool: Spool, limit: int = 8) -> list[Spooled | Hole]:
    """Take everything out."""
    items: list[Spooled | Hole] = []
    while found := spool.peek(limit):
        items += found
        spool.advance(found[-1].position)
    return items


def read_all(path: Path, **settings: Any) -> list[Spooled | Hole]:
    with opened(path, **settings) as spool:
        return drained(spool)


def numbers(items: Iterable[Spooled | Hole]) -> list[int | str]:
    """The numbers of batches, and of holes why they are there."""
    return [item.reason if isinstance(item, Hole) else item.batch.number for item in items]


def segments(path: Path, kind: str = ".spool") -> list[Path]:
    return sorted(path.glob(f"*{kind}"))


def frames_of(segment: Path) -> list[tuple[int, int]]:
    """Where the frames of an undamaged segment begin and how long they are."""
    data = segment.read_bytes()
    header, start = spool_format.decode_header(data)
    scanner = spool_format.Scanner(lambda at, size: data[at : at + size], header.salt, start)
    found = []
    while (frame := scanner.next(len(data))) is not None:
        assert isinstance(frame, spool_format.Framed)
        found.append((frame.offset, frame.size))
    return found


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


SMALL = {"segment_bytes": 12_000}  # a few frames a segment, the room kept for a header counted in


# --- what goes in comes out ------------------------------------------------------------------------------------------


EVERY_KIND: tuple[Record, ...] = (
    EpochOpened(1, "upbit", "BTC-KRW", "orderbook", "websocket", 5, None, "unverified", "0.01 BTC"),
    BookRow(1, 1, 0, None, None, 1, '[["1.10","2"]]', "[]"),
    CoverageMark(1, 7, 6, 5),
    EpochVerdict(1, "compared"),
    EpochEnded(1, 8, "stale"),
    RecordsLost("no_space"),
    Rejected("upbit", None, 9, "no JSON", b"\x00\xff\xc1SPF"),
    Event(10, "INFO", "writer", "데이터 수집 시작"),
    TradeRow(2, "7", "buy", "1.10", "2E-8", 11, 10),
    TickerRow(3, 12, None, "1.10", "1.09", "1.11", None),
    CandleRow(4, 60, 0, "1", "2", "0.50", "1.5", "0", True, 13),
)


def test_every_kind_of_record_comes_back_equal(tmp_path: Path) -> None:
    """Fails with one entry of `spool_format.COLUMNS` changed for another."""
    assert {type(record) for record in EVERY_KIND} == set(get_args(Record))
    deliveries = (
        Delivery("upbit", 2, EVERY_KIND, 900, 1, 77),
        Delivery("", 0, (), 0),
        Delivery("gopax", 3, EVERY_KIND[::-1], 10),
    )
    put = Batch(Run("uid", "서울", "0.2", 1 << 60), 1 << 40, deliveries)
    with opened(tmp_path / "s") as spool:
        spool.append(put)
        (item,) = spool.peek()
    assert isinstance(item, Spooled) and item.batch == put
    assert [[type(r) for r in d.records] for d in item.batch.deliveries] == [
        [type(r) for r in d.records] for d in deliveries
    ]


def test_every_kind_of_record_has_a_column() -> None:
    """Fails with one entry of `spool_format.COLUMNS` removed."""
    assert set(spool_format.COLUMNS.values()) == set(get_args(Record))


def test_batches_come_out_in_order_through_many_segments_and_a_restart(tmp_path: Path) -> None:
    """Fails with `sorted` left out of `spool_files.look` on a file system that lists at random, or with the number of
    a new segment not counted on."""
    fill(tmp_path / "s", range(1, 100), **SMALL)
    fill(tmp_path / "s", range(100, 200), **SMALL)
    assert len(segments(tmp_path / "s")) > 3
    with opened(tmp_path / "s", **SMALL) as spool:
        assert spool.frames == 199
        assert spool.waiting == {"upbit": Counts(199, 0, 597)}
        items = drained(spool)
        assert [item.batch for item in items if isinstance(item, Spooled)] == [batch(n) for n in range(1, 200)]
        assert numbers(items) == list(range(1, 200))
        assert is_empty(spool) and not spool.frames and not spool.waiting and not spool.bytes
        assert not segments(tmp_path / "s")


def test_frames_that_stand_there_twice_count_once(tmp_path: Path) -> None:
    """Mutation: count every good frame of the newest segment in `_good_frames`."""
    fill(tmp_path, range(1, 4))
    (newest,) = segments(tmp_path)
    (at, size), *_ = frames_of(newest)[2:]
    data = newest.read_bytes()
    newest.write_bytes(data + data[at : at + size])
    with opened(tmp_path) as spool:
        assert numbers(drained(spool)) == [1, 2, 3]
        assert (spool.empty, spool.waiting, spool.frames) == (True, {}, 0)


def test_appending_goes_on_while_it_is_drained(tmp_path: Path) -> None:
    random, taken, put = Random(1), [], 0
    with opened(tmp_path / "s", **SMALL) as spool:
        for _ in range(400):
            for _ in range(random.randrange(4)):
                put += 1
                spool.append(batch(put))
            if random.random() < 0.6 and (items := spool.peek(random.randrange(1, 6))):
                taken += numbers(items)
                spool.advance(items[-1].position)
            assert spool.frames == put - len(taken)
            assert spool.waiting.get("upbit", Counts()).frames == put - len(taken)
        assert taken + numbers(drained(spool)) == list(range(1, put + 1))


def test_what_was_peeked_stays_until_it_is_advanced_over(tmp_path: Path) -> None:
    fill(tmp_path / "s", range(1, 10))
    with opened(tmp_path / "s") as spool:
        first = spool.peek(3)
        assert spool.peek(3) == first and numbers(spool.peek(2)) == [1, 2]
        spool.advance(first[1].position)
        assert numbers(spool.peek(2)) == [3, 4]
        spool.advance(first[1].position)  # again
        assert numbers(spool.peek(1)) == [3]


def test_a_segment_goes_when_all_of_it_was_advanced_over(tmp_path: Path) -> None:
    """Fails with `segment.number < keep` turned into `<=` in `Spool._retire`, or with the deletion left out."""
    fill(tmp_path / "s", range(1, 60), **SMALL)
    names = segments(tmp_path / "s")
    first = len(frames_of(names[0]))
    with opened(tmp_path / "s", **SMALL) as spool:
        for done in range(1, first + 1):
            assert segments(tmp_path / "s") == names
            spool.advance(spool.peek()[0].position)
            del done
        assert segments(tmp_path / "s") == names[1:]
    assert numbers(read_all(tmp_path / "s"))[0] == first + 1


def test_the_deletion_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with `sync_directory` left out of `Spool._retire`."""
    synced: list[Path] = []
    with opened(tmp_path / "s") as spool:
        spool.append(batch(1))
        monkeypatch.setattr(storage.spool, "sync_directory", synced.append)
        spool.advance(spool.peek()[0].position)
    assert synced == [tmp_path / "s"]


def test_after_a_crash_the_oldest_segment_is_read_anew(tmp_path: Path) -> None:
    spool = spool_at(tmp_path / "s", **SMALL)
    for number in range(1, 60):
        spool.append(batch(number))
    first = len(frames_of(segments(tmp_path / "s")[0]))
    for item in spool.peek(first + 2):
        spool.advance(item.position)
    spool.close()  # nothing of this is noted anywhere: a kill leaves the same
    assert numbers(read_all(tmp_path / "s")) == list(range(first + 1, 60))


def test_the_count_goes_on_after_it_was_empty(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        for number in range(1, 5):
            spool.append(batch(number))
            assert numbers(drained(spool)) == [number]
            assert is_empty(spool)


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_second_collector_is_refused(tmp_path: Path) -> None:
    """Fails with `flock` left out of `spool_files.take_lock`."""
    with opened(tmp_path / "s") as spool:
        spool.append(batch(1))
        with pytest.raises(NotOurs, match="in use by another collector"):
            spool_at(tmp_path / "s")
        spool.append(batch(2))
    assert numbers(read_all(tmp_path / "s")) == [1, 2]


def test_nothing_is_made_before_open(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "deep" / "s", limit_bytes=LIMIT)
    assert not list(tmp_path.iterdir())
    assert is_empty(spool) and spool.frames == 0 and spool.oldest_us is None
    for call in (lambda: spool.append(batch(1)), spool.peek, spool.sync, spool.drop_oldest):
        with pytest.raises(StorageError, match="not open"):
            call()
    spool.open()
    spool.open()
    spool.close()
    spool.close()


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    """Fails with 0o600 or 0o700 changed."""
    old = os.umask(0)
    try:
        fill(tmp_path / "s", [1])
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()} == {0o600}


def test_a_file_in_the_place_of_the_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("mine")
    with pytest.raises(NotOurs, match="no directory"):
        spool_at(tmp_path / "s")
    with pytest.raises(StorageError, match="can't be used: Not a directory"):
        spool_at(tmp_path / "s" / "t")
    assert (tmp_path / "s").read_text() == "mine"


def test_segments_of_a_newer_version_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with the version not looked at in `decode_header`."""
    monkeypatch.setattr(spool_format, "VERSION", 2)
    fill(tmp_path / "s", range(1, 3))
    monkeypatch.undo()
    (segment,) = segments(tmp_path / "s")
    with segment.open("ab") as file:
        file.write(b"torn")
    before = segment.read_bytes()
    with pytest.raises(NotOurs, match="is of version 2 of the spool, and this collector knows 1"):
        spool_at(tmp_path / "s")
    assert segment.read_bytes() == before


def test_other_files_in_the_directory_are_none_of_its_business(tmp_path: Path) -> None:
    fill(tmp_path / "s", range(1, 3))
    (tmp_path / "s" / "notes.txt").write_text("mine")
    (tmp_path / "s" / "0000000007.spool").mkdir()
    (tmp_path / "s" / "0000000000.spool").symlink_to(tmp_path / "s" / "notes.txt")
    assert numbers(read_all(tmp_path / "s")) == [1, 2]
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"


def test_what_can_t_be_written_down_says_so_and_harms_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        spool.append(batch(1))
        for record in (Event(1 << 70, "INFO", "", ""), Event(1, "INFO", "", "\udc80")):
            with pytest.raises(StorageError, match="batch 2 can't be written down") as caught:
                spool.append(Batch(RUN, 2, (Delivery("", 0, (record,), 1),)))
            assert type(caught.value) is StorageError
        spool.append(batch(2))
        assert numbers(drained(spool)) == [1, 2]


def test_a_batch_that_is_larger_than_the_format_allows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.spool, "BODY_BYTES_MAX", 10)
    with opened(tmp_path / "s") as spool, pytest.raises(StorageError, match="too large for the spool"):
        spool.append(batch(1))


def test_the_oldest_time_is_that_of_the_oldest_batch(tmp_path: Path) -> None:
    clock = FakeClock(wall_us=0)
    with opened(tmp_path / "s", clock=clock) as spool:
        for number in range(1, 4):
            clock.advance(1)
            spool.append(batch(number))
        assert spool.oldest_us == 1_000_000
        items = spool.peek(3)
        assert [item.spooled_us for item in items if isinstance(item, Spooled)] == [1_000_000, 2_000_000, 3_000_000]
        spool.advance(items[0].position)
        assert spool.oldest_us == 2_000_000
        drained(spool)
        oldest_us: int | None = spool.oldest_us
        assert oldest_us is None
    fill(tmp_path / "s", [5], clock=clock)
    with opened(tmp_path / "s") as spool:
        assert spool.oldest_us == 3_000_000


# --- torn and damaged ------------------------------------------------------------------------------------------------


def test_a_frame_torn_at_any_byte_is_cut_and_told(tmp_path: Path) -> None:
    """Fails with `os.truncate` left out of `spool_recovery._repair`, or with `cuts` left empty."""
    fill(tmp_path / "s", range(1, 5))
    (segment,) = segments(tmp_path / "s")
    whole = segment.read_bytes()
    offset, size = frames_of(segment)[-1]
    for cut in range(1, size):
        segment.write_bytes(whole[: offset + cut])
        with opened(tmp_path / "s") as spool:
            assert spool.cuts == ((1, offset, cut),)
            assert segment.stat().st_size == offset
            assert spool.frames == 3
            spool.append(batch(9))
            assert numbers(spool.peek(9)) == [1, 2, 3, 9]
    segment.write_bytes(whole)
    with opened(tmp_path / "s") as spool:
        assert spool.cuts == () and numbers(spool.peek(9)) == [1, 2, 3, 4]


def test_a_segment_torn_at_any_byte_of_its_header_was_never_there(tmp_path: Path) -> None:
    """Fails with `_torn_segments` returning nothing."""
    with opened(tmp_path / "s", **SMALL) as spool:
        number = 0
        while len(segments(tmp_path / "s")) < 2:
            number += 1
            spool.append(batch(number))
    first, second = segments(tmp_path / "s")
    whole = second.read_bytes()
    for cut in range(frames_of(second)[0][0]):
        second.write_bytes(whole[:cut])
        with opened(tmp_path / "s") as spool:
            assert spool.cuts == (((2, 0, cut),))
            assert segments(tmp_path / "s") == [first]
            assert numbers(spool.peek(99)) == list(range(1, number))
    fill(tmp_path / "s", [77])
    assert numbers(read_all(tmp_path / "s")) == [*range(1, number), 77]


def test_zeros_at_the_end_are_cut(tmp_path: Path) -> None:
    """What a file system leaves of a write that had its place but not its bytes on the disk."""
    fill(tmp_path / "s", range(1, 5))
    (segment,) = segments(tmp_path / "s")
    size = segment.stat().st_size
    os.truncate(segment, size + 5000)
    with opened(tmp_path / "s") as spool:
        assert spool.cuts == ((1, size, 5000),)
        assert numbers(drained(spool)) == [1, 2, 3, 4]


def ledger(items: list[Spooled | Hole], known: dict[int, Batch]) -> set[int]:
    """Check that batches are what was put in, in order, with a hole where some are missing; return the missing ones
    that no hole stands for."""
    last, silent = 0, set(known)
    for place, item in enumerate(items):
        if isinstance(item, Spooled):
            assert item.batch == known[item.batch.number]
            assert item.batch.number > last
            if item.batch.number > last + 1:
                assert place and isinstance(items[place - 1], Hole)
                silent -= set(range(last + 1, item.batch.number))
            last = item.batch.number
            silent.discard(last)
            continue
        following = items[place + 1] if place + 1 < len(items) else None
        assert not isinstance(following, Hole)
        assert item.after == (BatchId(RUN.uid, following.batch.number) if following else None)
        assert item.before in (BatchId(RUN.uid, last) if last else None, None)
        assert item.batches >= (following is not None)  # what was in a newest segment, nobody knows
        if following is None:
            silent -= set(range(last + 1, max(known) + 1))
    return silent


def copied(path: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for old in to.iterdir():
        old.unlink()
    for file in path.iterdir():
        if file.name != "lock":
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_bit_flipped_at_any_byte_is_found_and_nothing_else_is_lost(tmp_path: Path) -> None:
    """Fails with any of the three checksums not compared in `Scanner._frame` or the one in `decode_header`, with
    the holes left out of `SpoolReader._yield_frame`, or with the marker not looked for in `spool_files._segment`."""
    with opened(tmp_path / "s", limit_bytes=1 << 20, segment_bytes=9000) as spool:
        known = {number: batch(number, rows=1) for number in range(1, 5)}
        for put in known.values():
            spool.append(put)
    files = segments(tmp_path / "s")
    assert [len(frames_of(file)) for file in files] == [3, 1]
    for index, file in enumerate(files):
        places = frames_of(file)
        for offset in range(file.stat().st_size):
            there = copied(tmp_path / "s", tmp_path / "t")
            flip(there / file.name, offset, offset % 8)
            found = check(there) if offset % 5 == 0 else None
            with opened(there) as spool:
                waiting = spool.waiting.get("upbit", Counts())
                items = drained(spool)
                assert is_empty(spool) and spool.frames == 0 and spool.waiting == {}
                cuts = spool.cuts
            silent = ledger(items, known)
            batches = [item for item in items if isinstance(item, Spooled)]
            holes = [item for item in items if isinstance(item, Hole)]
            if found is not None:
                assert (found.holes, found.batches, found.torn) == (holes, len(batches), cuts)
            if offset < places[0][0]:
                assert not cuts
                assert len(batches) == len(known) - len(places)
            else:
                assert len(batches) == len(known) - 1
            assert len(holes) + len(cuts) == 1
            if index < len(files) - 1:
                assert not silent
                lost = sum(hole.lost.get("upbit", Counts()).frames for hole in holes)
                assert lost + len(batches) == waiting.frames
                assert len(segments(there, ".damaged")) == 1
            elif cuts:  # nobody can tell a damaged last frame from one that was never finished
                assert silent == {4}


def test_damage_in_the_middle_of_the_newest_segment_is_no_torn_end(tmp_path: Path) -> None:
    """Fails with `_good_frames` ending at the first garbage."""
    fill(tmp_path / "s", range(1, 6))
    (segment,) = segments(tmp_path / "s")
    flip(segment, frames_of(segment)[1][0] + 9)
    with opened(tmp_path / "s") as spool:
        assert spool.cuts == ()
        spool.append(batch(6))
        assert numbers(drained(spool)) == [1, "damaged", 3, 4, 5, 6]


def test_damage_that_happens_while_it_is_open_is_told_even_at_the_end(tmp_path: Path) -> None:
    """Fails with `_end` left out of `SpoolReader.next`."""
    with opened(tmp_path / "s") as spool:
        for number in range(1, 4):
            spool.append(batch(number))
        (segment,) = segments(tmp_path / "s")
        offset, size = frames_of(segment)[-1]
        flip(segment, offset + size - 1)
        *_, hole = items = drained(spool)
        assert numbers(items) == [1, 2, "damaged"]
        assert hole == Hole(3, 1, offset, size, 1, BatchId(RUN.uid, 2), None, "damaged", {"upbit": Counts(1, 0, 3)})
        assert is_empty(spool) and spool.damaged == 1
        spool.append(batch(4))
        assert numbers(drained(spool)) == [4]


def three_segments(path: Path) -> tuple[list[Path], list[list[int]]]:
    """A spool of three segments, and the numbers of the batches in each."""
    fill(path, range(1, 40), **SMALL)
    files = segments(path)
    for file in files[3:]:
        file.unlink()
    files, inside, number = files[:3], [], 0
    for file in files:
        count = len(frames_of(file))
        inside.append(list(range(number + 1, number + count + 1)))
        number += count
    return files, inside


def test_a_missing_segment_is_a_hole(tmp_path: Path) -> None:
    """Fails with `header.first > self._sequence` not asked for in `SpoolReader._enter_next`."""
    files, (first, second, third) = three_segments(tmp_path / "s")
    files[1].unlink()
    with opened(tmp_path / "s") as spool:
        items = drained(spool)
    assert numbers(items) == [*first, "missing", *third]
    assert items[len(first)] == Hole(
        len(first) + 1,
        2,
        0,
        0,
        len(second),
        BatchId(RUN.uid, first[-1]),
        BatchId(RUN.uid, third[0]),
        "missing",
        {"upbit": Counts(len(second), 0, 3 * len(second))},
    )


@pytest.mark.parametrize("keep_frames", [0, 1, 3])
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_segment_that_ends_too_early_is_a_hole(tmp_path: Path, keep_frames: int, torn: int) -> None:
    files, (first, second, third) = three_segments(tmp_path / "s")
    end = frames_of(files[1])[keep_frames][0]
    os.truncate(files[1], end + torn)
    with opened(tmp_path / "s") as spool:
        waiting = spool.waiting["upbit"]
        items = drained(spool)
        assert is_empty(spool) and not spool.waiting
    reason = "damaged" if torn else "short"
    assert numbers(items) == [*first, *second[:keep_frames], reason, *third]
    (hole,) = [item for item in items if isinstance(item, Hole)]
    assert (hole.segment, hole.offset, hole.size, hole.batches) == (2, end, torn, len(second) - keep_frames)
    assert hole.lost == {"upbit": Counts(hole.batches, 0, hole.batches * 3)}
    assert waiting.frames == len(items) - 1 + hole.batches


@pytest.mark.parametrize("content", [b"", b"COLSPOOL", b"\0" * 5000, b"#!/bin/sh\n", b"COLSPOOL" + b"\xff" * 4000])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_that_is_no_segment_is_a_hole(tmp_path: Path, content: bytes, place: int) -> None:
    """Fails with unreadable segments left out by `spool_files.look`."""
    files, inside = three_segments(tmp_path / "s")
    files[place].write_bytes(content)
    with opened(tmp_path / "s") as spool:
        assert not is_empty(spool)
        spool.append(batch(99))
        items = drained(spool)
        assert is_empty(spool) and spool.frames == 0 and not spool.waiting
        cuts = spool.cuts
    expected = [*inside[0], *inside[1], *inside[2], 99]
    gone = set(inside[place])
    left: list[int | str] = [number for number in expected if number not in gone]
    if place == 2 and len(content) < 20:  # nothing was in it yet when it was torn
        assert cuts == ((3, 0, len(content)),)
    else:
        left.insert(left.index(inside[place][-1] + 1 if place < 2 else 99), "damaged")
        assert cuts == ()
        assert [path.read_bytes() for path in segments(tmp_path / "s", ".damaged")] == [content]
    assert numbers(items) == left


def test_a_spool_without_any_segment_left_still_says_that_something_is_gone(tmp_path: Path) -> None:
    fill(tmp_path / "s", range(1, 4))
    (segment,) = segments(tmp_path / "s")
    segment.write_bytes(b"x" * 300)
    with opened(tmp_path / "s") as spool:
        assert not is_empty(spool)
        spool.append(batch(9))
        assert numbers(drained(spool)) == ["damaged", 9]


def test_another_segment_under_this_name_is_no_segment(tmp_path: Path) -> None:
    """Fails with `header.segment == number` left out of `spool_files._segment`."""
    files, (first, _second, third) = three_segments(tmp_path / "s")
    files[1].write_bytes(files[0].read_bytes())
    assert numbers(read_all(tmp_path / "s")) == [*first, "damaged", *third]


def test_bytes_cut_out_of_the_middle_lose_only_what_they_held(tmp_path: Path) -> None:
    fill(tmp_path / "s", range(1, 10))
    (segment,) = segments(tmp_path / "s")
    data, frames = segment.read_bytes(), frames_of(segment)
    segment.write_bytes(data[: frames[2][0]] + data[frames[4][0] : frames[6][0] + 10] + data[frames[7][0] + 20 :])
    with opened(tmp_path / "s") as spool:
        items = drained(spool)
    assert numbers(items) == [1, 2, "damaged", 5, 6, "damaged", 9]
    assert [item.batches for item in items if isinstance(item, Hole)] == [2, 2]


def test_several_holes_of_one_segment_account_for_all_that_is_lost(tmp_path: Path) -> None:
    """Fails with `lost` not told by `SpoolReader._explain`."""
    files, (first, second, third) = three_segments(tmp_path / "s")
    frames = frames_of(files[1])
    for index in (1, 3):
        flip(files[1], frames[index][0] + 40)
    items = read_all(tmp_path / "s")
    holes = [item for item in items if isinstance(item, Hole)]
    assert [hole.lost.get("upbit", Counts()).frames for hole in holes] == [2, 0]
    assert numbers(items) == [*first, second[0], "damaged", second[2], "damaged", *second[4:], *third]


def test_bytes_of_an_exchange_never_pass_for_a_frame(tmp_path: Path) -> None:
    """Fails with the salt left out of `encode_frame` and `Scanner._frame`."""
    fill(tmp_path / "forge", [2])
    (forged,) = segments(tmp_path / "forge")
    offset, size = frames_of(forged)[0]
    bait = forged.read_bytes()[offset : offset + size]
    with opened(tmp_path / "s") as spool:
        spool.append(Batch(RUN, 1, (Delivery("gopax", 0, (Rejected("gopax", None, 1, "?", bait * 3),), 1, 1),)))
        spool.append(batch(2))
    (segment,) = segments(tmp_path / "s")
    flip(segment, frames_of(segment)[0][0])
    items = read_all(tmp_path / "s")
    assert numbers(items) == ["damaged", 2]
    assert isinstance(items[1], Spooled) and items[1].batch == batch(2)


def test_a_frame_that_verifies_but_makes_no_batch_is_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = spool_format.encode

    def other(put: Batch, sequence: int, time_us: int) -> tuple[spool_format.Head, bytes]:
        head, body = real(put, sequence, time_us)
        return head, body if put.number != 2 else b"\x80"

    monkeypatch.setattr(storage.spool, "encode", other)
    fill(tmp_path / "s", range(1, 4))
    items = read_all(tmp_path / "s")
    assert numbers(items) == [1, "damaged", 3]
    assert isinstance(items[1], Hole) and items[1].batches == 1


def test_only_a_few_damaged_segments_are_kept(tmp_path: Path) -> None:
    """Fails with `DAMAGED_MAX` not compared in `Aside.keep`."""
    with opened(tmp_path / "s") as spool:
        for number in range(1, 8):
            spool.append(batch(number))
            (segment,) = segments(tmp_path / "s")
            flip(segment, segment.stat().st_size - 1)
            assert numbers(drained(spool)) == ["damaged"]
        assert spool.damaged == 7
    kept = [path.stem for path in segments(tmp_path / "s", ".damaged")]
    assert kept == ["0000000005", "0000000006", "0000000007"]
    fill(tmp_path / "s", [9])
    assert [path.stem for path in segments(tmp_path / "s")] == ["0000000008"]  # a name is never used twice


def test_damaged_segments_make_room_for_what_comes_in(tmp_path: Path) -> None:
    """Fails with `delete_oldest` left out of `Spool._make_room`."""

    def fill_up(number: int) -> int:
        while number < 10_000:
            try:
                spool.append(batch(number, rows=30))
            except StorageFull:
                return number
            number += 1
        raise AssertionError("it has no limit")

    with opened(tmp_path / "s", limit_bytes=100_000, segment_bytes=25_000) as spool:
        spool.append(batch(1, rows=300))
        (segment,) = segments(tmp_path / "s")
        flip(segment, segment.stat().st_size - 1)
        drained(spool)
        assert segments(tmp_path / "s", ".damaged")
        number = fill_up(2)
        assert not segments(tmp_path / "s", ".damaged")
        assert numbers(drained(spool)) == list(range(2, number))


# --- the disk says no ------------------------------------------------------------------------------------------------


class Disk:
    """Stands between the spool and the disk: counts calls, and fails those it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, list[int]] = {}  # of each call, the errors of the next ones; 0 lets one through
        self.write_at_most: int | None = None
        for name in ("pwrite", "pread", "fsync", "ftruncate", "open", "unlink"):
            monkeypatch.setattr(os, name, self._through(name, getattr(os, name)))

    def _through(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if name == "pwrite" and self.write_at_most is not None:
                real(args[0], args[1][: self.write_at_most], args[2])  # so much is written when it fails
            errors = self.fail.get(name)
            error = errors.pop(0) if errors else 0
            if error:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        return call


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_full_disk_refuses_a_batch_and_harms_no_other(tmp_path: Path) -> None:
    """With the kernel's own limit. Fails with `_truncate` left out of `Tail.write`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path / "s") as spool:
        for number in range(1, 4):
            spool.append(batch(number))
        (segment,) = segments(tmp_path / "s")
        size = segment.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            for _ in range(3):
                with pytest.raises(StorageFull, match="File too large; free some space"):
                    spool.append(batch(4))
                assert segment.stat().st_size == size
                assert (spool.frames, spool.bytes) == (3, size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        spool.append(batch(4))
        assert numbers(spool.peek(9)) == [1, 2, 3, 4]
    assert numbers(read_all(tmp_path / "s")) == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_write_that_fails_leaves_nothing_that_counts(
    tmp_path: Path, disk: Disk, error: int, truncates: bool, first: bool
) -> None:
    """Fails with `self.trusted = False` left out of `Tail._truncate`."""
    spool = spool_at(tmp_path / "s")
    put = [] if first else [1, 2]
    for number in put:
        spool.append(batch(number))
    disk.write_at_most = 50
    disk.fail = {"pwrite": [error], "ftruncate": [] if truncates else [errno.EIO]}
    if first:
        disk.fail["pwrite"].insert(0, 0)  # the header goes well
    with pytest.raises(StorageBusy if error == errno.EIO else StorageFull):
        spool.append(batch(3))
    disk.write_at_most = None
    assert spool.frames == len(put) and numbers(spool.peek(9)) == put
    spool.append(batch(4))
    assert numbers(spool.peek(9)) == [*put, 4]
    spool.close()
    assert numbers(read_all(tmp_path / "s")) == [*put, 4]


def test_a_segment_that_can_t_be_begun_is_no_hole(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path / "s", **SMALL) as spool:
        disk.fail = {"open": [errno.ENOSPC]}
        with pytest.raises(StorageFull):
            spool.append(batch(1))
        for failing in ("pwrite", "unlink"):
            disk.fail = {"pwrite": [errno.ENOSPC], "unlink": [errno.EIO] if failing == "unlink" else []}
            disk.write_at_most = 10
            with pytest.raises(StorageFull):
                spool.append(batch(1))
            disk.write_at_most = None
        assert not spool.frames
        spool.append(batch(1))
    assert numbers(read_all(tmp_path / "s")) == [1]


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("before", [0, 2])
def test_after_a_failed_fsync_the_frame_goes_into_another_file(
    tmp_path: Path, disk: Disk, truncates: bool, before: int
) -> None:
    """Fails with `_replace` left out of `SpoolWriter._sync`: asking again would be believed."""
    with opened(tmp_path / "s", fsync="batch") as spool:
        for number in range(before):
            spool.append(batch(number + 1))
        disk.fail = {"fsync": [errno.EIO], "ftruncate": [] if truncates else [errno.EIO]}
        spool.append(batch(8))
        last = segments(tmp_path / "s")[-1]
        assert last.name == "0000000002.spool" and len(frames_of(last)) == 1
        spool.append(batch(9))
        expected = [*range(1, before + 1), 8, 9]
        assert numbers(spool.peek(9)) == expected
    assert numbers(read_all(tmp_path / "s")) == expected


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("before", [0, 2])
def test_a_frame_that_no_fsync_took_is_not_acknowledged(
    tmp_path: Path, disk: Disk, truncates: bool, before: int
) -> None:
    """Fails with `_following_count` not asked for in `SpoolReader.next`: what was taken back would come out."""
    with opened(tmp_path / "s", fsync="batch") as spool:
        for number in range(before):
            spool.append(batch(number + 1))
        for error, kind in ((errno.EIO, StorageBusy), (errno.ENOSPC, StorageFull)):
            disk.fail = {"fsync": [error] * 2, "ftruncate": [] if truncates else [errno.EIO] * 9}
            with pytest.raises(kind):
                spool.append(batch(7))
            disk.fail = {}
            expected = list(range(1, before + 1))
            assert spool.frames == before and numbers(spool.peek(9)) == expected
        spool.append(batch(8))
        spool.append(batch(9))
        assert numbers(spool.peek(9)) == [*expected, 8, 9]
    assert numbers(read_all(tmp_path / "s")) == [*expected, 8, 9]


def test_with_interval_a_failed_fsync_moves_all_that_is_not_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    """Fails with `tail.trusted` not asked for in `SpoolWriter._sync`."""
    clock = FakeClock()
    with opened(tmp_path / "s", fsync="interval", fsync_interval_s=10, clock=clock) as spool:
        spool.append(batch(1))
        clock.advance(10)
        spool.append(batch(2))  # both are synced now
        spool.append(batch(3))
        spool.append(batch(4))
        assert numbers(spool.peek(9)) == [1, 2, 3, 4]  # read from the file that is about to be given up
        clock.advance(10)
        disk.fail = {"fsync": [errno.EIO] * 2}
        with pytest.raises(StorageBusy):
            spool.append(batch(5))
        assert spool.frames == 4
        disk.fail = {"fsync": [errno.EIO]}
        with pytest.raises(StorageBusy):
            spool.sync()
        spool.sync()  # the file that failed is not asked again
        assert [len(frames_of(path)) for path in segments(tmp_path / "s")] == [2, 2]
        spool.append(batch(5))
        assert numbers(drained(spool)) == [1, 2, 3, 4, 5]
        assert spool.empty and not segments(tmp_path / "s")


def test_what_interval_did_not_sync_survives_a_failed_write_whose_rest_stays(tmp_path: Path, disk: Disk) -> None:
    with opened(tmp_path / "s", fsync="interval", fsync_interval_s=10, clock=FakeClock()) as spool:
        for number in (1, 2):
            spool.append(batch(number))
        disk.write_at_most = 30
        disk.fail = {"pwrite": [errno.EIO], "ftruncate": [errno.EIO]}
        with pytest.raises(StorageBusy):
            spool.append(batch(3))
        disk.write_at_most = None
        spool.append(batch(4))
        assert numbers(spool.peek(9)) == [1, 2, 4]
    assert numbers(read_all(tmp_path / "s")) == [1, 2, 4]


def test_when_it_is_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    """Fails with `_sync_if_due` left out of `SpoolWriter.put`, or with `sync_directory` left out of `Tail.sync`."""

    def syncs(work: Callable[[], object]) -> int:
        disk.calls.clear()
        work()
        return disk.calls.count("fsync")

    clock = FakeClock()
    with opened(tmp_path / "a", fsync="batch") as spool:
        assert syncs(lambda: spool.append(batch(1))) == 2  # the file and its name
        assert syncs(lambda: spool.append(batch(2))) == 1
        assert syncs(spool.sync) == 0
    with opened(tmp_path / "b", fsync="never") as spool:
        assert syncs(lambda: spool.append(batch(1))) == 0
        assert syncs(spool.close) == 0
    with opened(tmp_path / "c", fsync="interval", fsync_interval_s=2, clock=clock) as spool:
        assert syncs(lambda: spool.append(batch(1))) == 0
        clock.advance(1)
        assert syncs(spool.sync) == 0
        clock.advance(1)
        assert syncs(spool.sync) == 2
        assert syncs(spool.sync) == 0
        clock.advance(2)
        assert syncs(lambda: spool.append(batch(2))) == 1
        assert syncs(lambda: spool.append(batch(3, rows=200_000))) == 1  # too much to hold in memory until it is due
        spool.append(batch(4))
        assert syncs(spool.close) == 1


def test_close_says_when_the_disk_refuses_the_end(tmp_path: Path, disk: Disk) -> None:
    spool = spool_at(tmp_path / "s", fsync="interval", fsync_interval_s=10, clock=FakeClock())
    spool.append(batch(1))
    disk.fail = {"fsync": [errno.EIO] * 2}
    with pytest.raises(StorageBusy):
        spool.close()
    assert numbers(read_all(tmp_path / "s")) == [1]


@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_file_that_can_t_be_read_for_the_moment_is_no_damage(tmp_path: Path, disk: Disk, call: str) -> None:
    """Fails with `is_lost` returning True."""
    fill(tmp_path / "s", range(1, 40), **SMALL)
    with opened(tmp_path / "s", **SMALL) as spool:
        taken: list[int | str] = []
        failed = 0
        while not spool.empty:
            disk.fail = {call: [errno.ENOMEM]}
            try:
                spool.peek(1)
            except StorageBusy:
                failed += 1
            items = spool.peek(1)
            taken += numbers(items)
            spool.advance(items[-1].position)
        assert taken == list(range(1, 40)) and spool.damaged == 0
        assert failed >= 1


def test_a_frame_after_a_hole_is_not_lost_to_a_moment_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with `scanner.offset = found.offset` left out of `SpoolReader._take`."""
    files, (first, second, third) = three_segments(tmp_path / "s")
    flip(files[1], frames_of(files[1])[0][0])

    def refused(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no")

    with opened(tmp_path / "s") as spool:
        assert numbers(spool.peek(len(first))) == first
        with monkeypatch.context() as patched:
            patched.setattr(storage.spool_reader.SpoolReader, "_rest", refused)
            for _ in range(2):
                with pytest.raises(StorageBusy):
                    spool.peek(len(first) + 1)
        assert numbers(drained(spool)) == [*first, "damaged", *second[1:], *third]


def test_a_sector_that_can_t_be_read_is_a_hole(tmp_path: Path, disk: Disk) -> None:
    """Fails with the `except` left out of `SpoolReader._scan`."""
    _, (first, second, third) = three_segments(tmp_path / "s")
    with opened(tmp_path / "s") as spool:
        assert numbers(spool.peek(len(first))) == first
        disk.fail = {"pread": [errno.EIO]}
        items = drained(spool)
        assert numbers(items) == [*first, "damaged", *third]
        assert isinstance(items[len(first)], Hole)
        assert items[len(first)].lost == {"upbit": Counts(len(second), 0, 3 * len(second))}  # type: ignore[union-attr]
        assert len(segments(tmp_path / "s", ".damaged")) == 1


def test_a_newest_segment_that_can_t_be_read_to_its_end_is_left_as_it_is(tmp_path: Path, disk: Disk) -> None:
    fill(tmp_path / "s", range(1, 4))
    (segment,) = segments(tmp_path / "s")
    content = segment.read_bytes()
    spool = Spool(tmp_path / "s", limit_bytes=LIMIT, fsync="never")
    disk.fail = {"pread": [0, errno.EIO]}  # the header can be read
    spool.open()
    assert segment.read_bytes() == content and spool.cuts == ()
    spool.append(batch(9))
    assert numbers(drained(spool)) == [1, 2, 3, 9]  # it can be read now
    spool.close()


def test_a_file_that_vanishes_while_it_is_open_is_a_hole(tmp_path: Path) -> None:
    files, (first, _second, _third) = three_segments(tmp_path / "s")
    with opened(tmp_path / "s") as spool:
        files[1].unlink()
        files[2].unlink()
        assert numbers(drained(spool)) == [*first, "missing"]
        assert is_empty(spool) and not spool.waiting and not spool.bytes


def test_what_can_t_be_deleted_is_not_read_again_and_goes_later(tmp_path: Path, disk: Disk) -> None:
    """Fails with the `except` left out of `Spool._retire`, or with the reader starting at the oldest count."""
    fill(tmp_path / "s", range(1, 20), **SMALL)
    with opened(tmp_path / "s", **SMALL) as spool:
        disk.fail = {"unlink": [errno.EIO] * 99}
        assert numbers(drained(spool)) == list(range(1, 20))
        assert is_empty(spool) and spool.bytes
        spool.append(batch(20))
        assert spool.frames == 1 and numbers(spool.peek(9)) == [20]
        disk.fail = {}
        assert numbers(drained(spool)) == [20]
        assert not segments(tmp_path / "s") and not spool.bytes


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 100, 2000])
def test_it_never_takes_more_than_its_limit(tmp_path: Path, rows: int) -> None:
    """Fails with `_make_room` left out of `Spool.append`."""
    limit = 300_000
    with opened(tmp_path / "s", limit_bytes=limit) as spool:
        put = 0
        while spool.bytes + 30 * rows + 9000 < limit:
            put += 1
            spool.append(batch(put, rows=rows))
        refused = 0
        for _ in range(200):
            try:
                spool.append(batch(put + 1, rows=rows))
                put += 1
            except StorageFull as error:
                refused += "has reached its limit of 300000 bytes" in str(error)
        assert refused
        used = sum(path.stat().st_size for path in segments(tmp_path / "s"))
        assert used == spool.bytes
        assert limit * 2 // 3 - 100 * rows < used <= limit
        first = len(frames_of(segments(tmp_path / "s")[0]))
        for _ in range(first):
            spool.advance(spool.peek()[0].position)
        spool.append(batch(put + 1, rows=rows))
        assert numbers(drained(spool)) == list(range(first + 1, put + 2))


def test_draining_holds_a_little_in_memory_however_large_the_spool_is(tmp_path: Path) -> None:
    """Fails with `_ahead_bytes` not compared in `Spool._fill`, or with the whole file read by `Source.read`."""
    with opened(tmp_path / "s", limit_bytes=1 << 30, segment_bytes=24 << 20) as spool:
        records = tuple(row(n) for n in range(1000))
        number = 0
        while spool.bytes < 10 << 20:
            number += 1
            spool.append(Batch(RUN, number, (Delivery("upbit", 1000, records, 1),)))
        del records
        tracemalloc.start()
        try:
            taken = 0
            while items := spool.peek(10_000):
                spool.advance(items[-1].position)
                taken += len(items)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert taken == number
        assert peak < 24 << 20  # a MiB read ahead, as objects


# --- room for the newest ---------------------------------------------------------------------------------------------


def grown(path: Path, count: int = 59) -> tuple[Spool, list[list[int]]]:
    spool = spool_at(path, **SMALL)
    for number in range(1, count + 1):
        spool.append(batch(number))
    inside, number = [], 0
    for file in segments(path):
        frames = len(frames_of(file))
        inside.append(list(range(number + 1, number + frames + 1)))
        number += frames
    assert len(inside) >= 4
    return spool, inside


def test_the_oldest_segment_is_dropped_and_a_hole_stands_for_it(tmp_path: Path) -> None:
    """Fails with `lost` left out of what is dropped, or with the tombstone left out of `spool_files.look`."""
    spool, inside = grown(tmp_path / "s")
    size = spool.bytes
    gone = spool.drop_oldest()
    assert gone is not None
    assert (gone.segment, gone.batches) == (1, len(inside[0]))
    assert gone.lost == {"upbit": Counts(gone.batches, 0, 3 * gone.batches)}
    assert gone.rows == {(RUN.uid, number): 3 for number in inside[0]}
    assert spool.bytes == size - gone.size == sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert segments(tmp_path / "s", ".dropped")[0].stat().st_size < 200
    for _ in range(2):  # in this process, and in the next
        rest = [number for numbers in inside[1:] for number in numbers]
        assert spool.frames == len(rest)
        assert spool.waiting == {"upbit": Counts(len(rest), 0, 3 * len(rest))}
        items = spool.peek(999)
        assert numbers(items) == ["dropped", *rest]
        assert items[0] == Hole(1, 1, 0, 0, len(inside[0]), None, BatchId(RUN.uid, rest[0]), "dropped", {})
        spool.close()
        spool.open()
    assert len(drained(spool)) == 1 + len(rest)
    assert not spool.bytes and not list((tmp_path / "s").glob("0*"))
    spool.close()


def test_many_dropped_segments_leave_one_small_file(tmp_path: Path) -> None:
    """Fails with the branch for one tombstone left out of `Spool._drop`."""
    spool, inside = grown(tmp_path / "s")
    total = 0
    while (gone := spool.drop_oldest()) is not None:
        total += gone.batches
    assert total == sum(map(len, inside[:-1]))
    assert len(segments(tmp_path / "s", ".dropped")) == len(segments(tmp_path / "s")) == 1
    assert spool.frames == len(inside[-1])
    spool.close()
    with opened(tmp_path / "s", **SMALL) as spool:
        assert spool.frames == len(inside[-1]) == spool.waiting["upbit"].frames
        hole, *rest = spool.peek(99)
        assert isinstance(hole, Hole) and hole.batches == total and not hole.lost
        assert numbers(rest) == inside[-1]
        spool.advance(hole.position)
        assert not segments(tmp_path / "s", ".dropped")


def test_a_segment_that_is_being_read_is_not_dropped(tmp_path: Path) -> None:
    """Fails with what is being read not asked for in `Spool.drop_oldest`."""
    spool, inside = grown(tmp_path / "s")
    assert numbers(spool.peek(2)) == [1, 2]
    spool.advance(spool.peek(1)[0].position)
    for index in (1, 2):
        gone = spool.drop_oldest()
        assert gone is not None and gone.segment == index + 1
    assert numbers(spool.peek(1)) == [2]
    assert numbers(drained(spool)) == [*inside[0][1:], "dropped", *[n for some in inside[3:] for n in some]]
    spool.close()


def test_the_segment_being_written_is_not_dropped(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as spool:
        assert spool.drop_oldest() is None
        spool.append(batch(1))
        assert spool.drop_oldest() is None
        assert numbers(drained(spool)) == [1]


def test_what_was_peeked_is_not_dropped_though_it_moved_to_another_file(tmp_path: Path, disk: Disk) -> None:
    """Fails with `segment.header.first >= read` left out of `Spool.drop_oldest`."""
    clock = FakeClock()
    with opened(tmp_path / "s", fsync="interval", fsync_interval_s=10, clock=clock, **SMALL) as spool:
        for number in (1, 2, 3):
            spool.append(batch(number))
        assert numbers(spool.peek(3)) == [1, 2, 3]
        clock.advance(10)
        disk.fail = {"fsync": [errno.EIO]}
        spool.sync()
        for number in range(4, 60):
            spool.append(batch(number))
        gone = spool.drop_oldest()
        assert gone is not None and gone.segment > 2
        assert numbers(drained(spool))[:4] == [1, 2, 3, 4]


def test_damage_beside_what_was_dropped_is_told_apart(tmp_path: Path) -> None:
    """Fails with `segment.gone` left out of `_enter_without_frames`: the dropped would be told as lost twice."""
    spool, inside = grown(tmp_path / "s")
    assert spool.drop_oldest() is not None
    second = segments(tmp_path / "s")[0]
    flip(second, frames_of(second)[0][0])
    hole, *rest = drained(spool)
    assert isinstance(hole, Hole) and hole.reason == "damaged"
    assert hole.batches == len(inside[0]) + 1 and hole.lost == {"upbit": Counts(1, 0, 3)}
    assert numbers(rest)[0] == inside[1][1]
    spool.close()


def test_a_drop_that_a_crash_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with the truncation of dropped segments left out of `spool_recovery._repair`."""
    spool, inside = grown(tmp_path / "s")
    size = spool.bytes

    def refused(path: Path, length: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patched:
        patched.setattr(os, "truncate", refused)
        assert spool.drop_oldest() is not None
    assert spool.bytes == size
    spool.close()
    with opened(tmp_path / "s") as spool:
        assert spool.bytes == whole_size(tmp_path / "s") < size
        assert numbers(drained(spool)) == ["dropped", *[n for some in inside[1:] for n in some]]


def test_a_drop_that_the_disk_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, inside = grown(tmp_path / "s")

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refused)
        with pytest.raises(StorageBusy, match="Read-only file system"):
            spool.drop_oldest()
    assert numbers(drained(spool)) == [n for some in inside for n in some]
    spool.close()


# --- seen from outside -----------------------------------------------------------------------------------------------


def test_status_and_check_tell_how_it_stands_while_it_is_in_use(tmp_path: Path) -> None:
    clock, other = FakeClock(wall_us=0), Run("run-2", "here", "test", 9)
    assert status(tmp_path / "s").segments == 0 and check(tmp_path / "s").sound
    with opened(tmp_path / "s", clock=clock, **SMALL) as spool:
        for number in range(1, 41):
            clock.advance(1)
            spool.append(batch(number))
        for number in (5, 6, 9):
            clock.advance(1)
            spool.append(batch(number, other, exchange="gopax"))
        before = copied(tmp_path / "s", tmp_path / "t")
        report, whole = status(tmp_path / "s"), check(tmp_path / "s")
        assert report.segments == len(segments(tmp_path / "s")) > 3
        assert report.size == whole_size(tmp_path / "s")
        assert (report.oldest_us, report.newest_us) == (1_000_000, 43_000_000)
        assert report.batches == whole.batches == 43
        assert report.waiting == spool.waiting == {"upbit": Counts(40, 0, 120), "gopax": Counts(3, 0, 9)}
        assert report.runs == whole.runs
        assert [(span.run, span.first, span.last, span.batches, span.gaps) for span in report.runs] == [
            (RUN, 1, 40, 40, []),
            (other, 5, 9, 3, [(6, 9)]),
        ]
        assert whole.sound and whole.records == 129 and not whole.torn
        sizes: list[int] = []
        check(tmp_path / "s", sizes.append)
        assert sum(sizes) == whole.size < report.size
        assert {path.name: path.read_bytes() for path in before.iterdir()} == {
            path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.name != "lock"
        }
        assert len(drained(spool)) == 43


def whole_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_check_says_what_is_wrong_and_changes_nothing(tmp_path: Path) -> None:
    """Fails with `repair` ignored by `spool_recovery.recover`."""
    spool, inside = grown(tmp_path / "s")
    assert spool.drop_oldest() is not None
    spool.close()
    files = segments(tmp_path / "s")
    flip(files[0], sum(frames_of(files[0])[1]) - 1)
    files[1].write_bytes(b"")
    flip(files[2], frames_of(files[2])[0][0] + 3)
    (tmp_path / "s" / "0000000000.damaged").write_bytes(b"old")
    os.truncate(files[-1], files[-1].stat().st_size - 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    report, whole = status(tmp_path / "s"), check(tmp_path / "s")
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
    assert not whole.sound
    assert [hole.reason for hole in whole.holes] == ["dropped", "damaged", "damaged"]
    assert len(whole.torn) == 1 and whole.torn == report.torn
    assert report.dropped == len(inside[0])
    assert report.unreadable == [files[1]]
    assert [path.name for path in report.aside] == ["0000000000.damaged"]
    assert [place[0] for place in report.damage] == [4]  # what stands in a body, only `check` sees
    with opened(tmp_path / "s") as spool:
        assert [item for item in drained(spool) if isinstance(item, Hole)] == whole.holes


def test_looking_at_a_spool_that_is_filled_and_drained_finds_no_fault(tmp_path: Path) -> None:
    """Fails with `_is_there` returning False."""
    done = threading.Event()
    wrong: list[object] = []
    looks = 0

    def look_on() -> None:
        nonlocal looks
        while not done.is_set():
            try:
                whole, report = check(tmp_path / "s"), status(tmp_path / "s")
                wrong.extend(whole.holes)
                wrong.extend(report.damage)
                wrong.extend(span.gaps for span in (*whole.runs, *report.runs) if span.gaps)
                looks += 1
            except Exception as error:
                wrong.append(error)

    watcher = threading.Thread(target=look_on)
    with opened(tmp_path / "s", **SMALL) as spool:
        watcher.start()
        try:
            random, put = Random(3), 0
            while (put < 3000 or looks < 5) and not wrong:
                done.wait(0.001)  # files that last no longer than this can't be looked at
                for _ in range(random.randrange(30)):
                    put += 1
                    spool.append(batch(put))
                for _ in range(random.randrange(1, 8)):
                    if items := spool.peek(4):
                        spool.advance(items[-1].position)
                if random.random() < 0.1:
                    drained(spool)
        finally:
            done.set()
            watcher.join()
    assert not wrong


def test_what_can_t_be_looked_at_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for look in (status, check):
        with pytest.raises(StorageError, match="can't be read: Not a directory"):
            look(tmp_path / "file")


# --- arbitrary bytes -------------------------------------------------------------------------------------------------


def test_whatever_stands_in_a_file_reading_it_raises_nothing(tmp_path: Path) -> None:
    """Fails with `RecursionError` left out of what `decode` takes for damage."""
    with opened(tmp_path / "s") as spool:
        spool.append(Batch(RUN, 1, (Delivery("upbit", 2, EVERY_KIND, 900, 1, 77),)))
        spool.append(batch(2))
    (segment,) = segments(tmp_path / "s")
    whole, random = segment.read_bytes(), Random(7)
    assert len(spool_format.parse(whole)) == 2
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(random.randrange(1, 5)):
            data[random.randrange(len(data))] = random.randrange(256)
        spool_format.fuzz(bytes(data[: random.randrange(len(data) + 1)]))
    spool_format.fuzz(b"\x83\xaadeliveries\x90\xa5order\xc4\x00\xa1x" + b"\x91" * 100_000 + b"\x90")
    spool_format.fuzz(spool_format.MARKER * 1000)


# --- what is written about it ----------------------------------------------------------------------------------------


def test_the_docs_have_every_field_as_it_stands_on_the_disk() -> None:
    """A record that changes fails here: an older spool must still be read, or the version be raised."""
    lines = (ROOT / "docs" / "spool.md").read_text("utf-8").splitlines()
    for number, (key, kind) in enumerate(spool_format.COLUMNS.items()):
        form = "arrays" if kind.__struct_config__.array_like else "maps"
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
        assert f"| {number} | `{key}` | {form} | {fields} |" in lines
    text = " ".join(lines)
    for struct in (spool_format.Header, spool_format.Head, Run):
        for name in struct.__struct_fields__:
            assert f"`{name}`" in text
    names = list(spool_format._Delivery.__struct_fields__)
    assert f"`[{', '.join(names)}]`" in text
    assert set(Delivery.__struct_fields__) == set(names)
    assert Batch.__struct_fields__ == ("run", "number", "deliveries")
    assert " ".join(f"{byte:02X}" for byte in spool_format.MARKER) in text
    for reason in (DROPPED, DAMAGED, MISSING, SHORT):
        assert f"`missing ({reason})`" in text
