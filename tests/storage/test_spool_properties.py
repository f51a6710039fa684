"""The spool against a model of it, under every order of appends, crashes, power cuts and errors of the disk."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collector.errors import StorageBusy, StorageError, StorageFull
from collector.records import (
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    RecordsLost,
    Rejected,
)
from storage import spool_format
from storage.spool import Counts, Hole, Spool, Spooled
from storage.spool_inspect import check
from storage.spool_reader import SpoolReader
from storage.spool_recovery import recover
from storage.store import Batch, Run
from tests.fakes import FakeClock

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.sampled_from(["upbit", "gopax", ""])


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


RECORDS = st.one_of(
    st.builds(EpochOpened, INTEGERS, TEXT, TEXT, TEXT, TEXT, INTEGERS, maybe(INTEGERS), TEXT),
    st.builds(
        BookRow,
        INTEGERS,
        INTEGERS,
        INTEGERS,
        maybe(INTEGERS),
        maybe(INTEGERS),
        INTEGERS,
        maybe(TEXT),
        maybe(TEXT),
    ),
    st.builds(CoverageMark, INTEGERS, INTEGERS, INTEGERS, INTEGERS),
    st.builds(EpochEnded, INTEGERS, INTEGERS, TEXT),
    st.builds(EpochVerdict, INTEGERS, TEXT),
    st.builds(RecordsLost, TEXT),
    st.builds(Rejected, TEXT, maybe(TEXT), INTEGERS, TEXT, st.binary()),
    st.builds(Event, INTEGERS, TEXT, TEXT, TEXT),
)
DELIVERIES = st.builds(
    Delivery, NAMES, INTEGERS, st.lists(RECORDS, max_size=6).map(tuple), INTEGERS, INTEGERS, INTEGERS
)
BATCHES = st.builds(
    Batch, st.builds(Run, TEXT, TEXT, TEXT, INTEGERS), INTEGERS, st.lists(DELIVERIES, max_size=5).map(tuple)
)


@given(BATCHES)
def test_a_batch_comes_back_equal_and_of_the_same_types(batch: Batch) -> None:
    """Fails with `omit_defaults` and a default that is no empty list, or with a column decoded as another kind."""
    try:
        head, body = spool_format.encode(batch, 5, 6)
        frame = spool_format.encode_frame(head, body, 7)
    except OverflowError:  # a sum of frames above 64 bits
        return
    scanner = spool_format.Scanner(lambda at, size: frame[at : at + size], 7, 0)
    found = scanner.next(len(frame))
    assert isinstance(found, spool_format.Framed) and found.head == head
    back = spool_format.decode(found.head, found.body)
    assert back == batch
    for put, got in zip(batch.deliveries, back.deliveries, strict=True):
        assert [type(record) for record in got.records] == [type(record) for record in put.records]


@given(st.binary(max_size=300), st.binary(max_size=100), st.integers(0, 300))
def test_reading_arbitrary_bytes_raises_nothing(data: bytes, more: bytes, place: int) -> None:
    spool_format.fuzz(data)
    header = spool_format.encode_header(spool_format.Header(1, 9, 1, 0, {}))
    head, body = spool_format.encode(batch_of(1), 1, 2)
    segment = header + spool_format.encode_frame(head, body, 9) * 2
    spool_format.fuzz(segment[:place] + more + segment[place + len(data) :])


def batch_of(number: int) -> Batch:
    run = Run("uid", "here", "test", 1)
    rows = tuple(BookRow(number, n, n, None, n, 0, "[]", None) for n in range(number % 3 + 1))
    return Batch(run, number, (Delivery("upbit", 1, rows, 10), Delivery("gopax", 2, (), 0, 1)))


# --- the disk under it -----------------------------------------------------------------------------------------------


class PowerCut:
    """Knows what of a directory is on the disk: what was synced, and of the rest whatever chance decides."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[int, bytes] = {}  # what each file held when it was synced
        self.names: dict[str, int] = {}  # what the directory held when it was
        self._fsync = os.fsync
        self._alive: list[int] = []  # descriptors that keep numbers of files from being used again

    def fsync(self, fd: int) -> None:
        self._fsync(fd)
        info = os.fstat(fd)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            self.names = {entry.name: entry.inode() for entry in os.scandir(self.path)}
            for entry in os.scandir(self.path):
                self._alive.append(os.open(entry.path, os.O_RDONLY))
        else:
            self.files[info.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def happens(self, random: Random) -> None:
        """Leave in the directory what a power cut leaves."""
        now = {entry.name: entry.inode() for entry in os.scandir(self.path)}
        held = {entry.inode(): Path(entry.path).read_bytes() for entry in os.scandir(self.path)}
        names = self.names if random.random() < 0.5 else now
        after: dict[str, bytes] = {}
        for name, inode in names.items():
            synced = self.files.get(inode, b"")
            content = held.get(inode, synced)
            if content.startswith(synced):  # some of what was written since may be there, or its length without it
                more = content[len(synced) :]
                kept = random.randrange(len(more) + 1)
                content = synced + (more[:kept] if random.random() < 0.7 else bytes(kept))
            elif random.random() < 0.5:
                content = synced
            after[name] = content
        for name in now:
            (self.path / name).unlink()
        for name, content in after.items():
            (self.path / name).write_bytes(content)
        self.close()
        self.files = {entry.inode(): Path(entry.path).read_bytes() for entry in os.scandir(self.path)}
        self.names = {entry.name: entry.inode() for entry in os.scandir(self.path)}

    def close(self) -> None:
        for fd in self._alive:
            os.close(fd)
        self._alive.clear()


class SpoolMachine(RuleBasedStateMachine):
    """A writer with a spool, and a store that keeps what was drained.

    `due` are the batches that were acknowledged and are not in the store, in order; `dropped` those of them that were
    dropped; `maybe` those that an error left in doubt and a crash made unknowable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="spool"))
        self.path = self.root / "s"
        self.clock = FakeClock()
        self.power = PowerCut(self.path)
        self.errors: dict[str, list[int]] = {}
        self.patches = [
            mock.patch.object(os, "fsync", self._failing("fsync", lambda *a: self.power.fsync(*a))),
            mock.patch.object(os, "pwrite", self._failing("pwrite", os.pwrite)),
            mock.patch.object(os, "ftruncate", self._failing("ftruncate", os.ftruncate)),
            mock.patch.object(os, "unlink", self._failing("unlink", os.unlink)),
        ]
        for patch in self.patches:
            patch.start()
        self.due: list[int] = []
        self.dropped: set[int] = set()
        self.maybe: set[int] = set()
        self.stored = 0  # the highest batch in the store
        self.number = 1
        self.ahead: list[int] = []  # what the spool should yield, batches only, in this process

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            errors = self.errors.get(name)
            error = errors.pop(0) if errors else 0
            if error:
                if name == "pwrite":
                    real(args[0], args[1][: len(args[1]) // 2], args[2])
                raise OSError(error, os.strerror(error))
            return real(*args)

        return call

    def _open(self) -> None:
        self.spool = Spool(
            self.path, limit_bytes=90_000, segment_bytes=9000, fsync=self.fsync, fsync_interval_s=5, clock=self.clock
        )
        self.spool.open()

    @initialize(fsync=st.sampled_from(["batch", "batch", "interval", "never"]))
    def begin(self, fsync: Any) -> None:
        self.fsync = fsync
        self._open()

    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(1)
            try:
                self.spool.append(batch_of(self.number))
            except StorageFull:
                return
            self._acknowledged()

    def _acknowledged(self) -> None:
        self.maybe.discard(self.number)
        self.due.append(self.number)
        self.ahead.append(self.number)
        self.number += 1

    @rule(
        data=st.dictionaries(
            st.sampled_from(["fsync", "pwrite", "ftruncate", "unlink"]),
            st.lists(st.sampled_from([0, errno.EIO, errno.ENOSPC]), max_size=4),
        ),
        tries=st.integers(1, 4),
    )
    def append_on_a_failing_disk(self, data: dict[str, list[int]], tries: int) -> None:
        self.errors = data
        for _ in range(tries):
            self.clock.advance(2)
            try:
                self.spool.append(batch_of(self.number))
            except StorageError:
                self.maybe.add(self.number)
            else:
                self._acknowledged()
        self.errors = {}

    @rule(again=st.booleans())
    def sync(self, again: bool) -> None:
        self.errors = {"fsync": [errno.EIO] * (2 if again else 0)}
        self.clock.advance(10)
        try:
            self.spool.sync()
        except StorageBusy:
            assert again
        self.errors = {}

    @rule(limit=st.integers(1, 20), forgets=st.booleans(), unlinks=st.booleans())
    def drain(self, limit: int, forgets: bool, unlinks: bool) -> None:
        items = self.spool.peek(limit)
        for place, item in enumerate(items):
            if isinstance(item, Spooled):
                self._take_batch(item)
            else:
                after = items[place + 1] if place + 1 < len(items) else None
                self._take_hole(item, after)
        if items and not forgets:  # as a crash between the commit and `advance` does
            self.errors = {"unlink": [] if unlinks else [errno.EIO] * 3}
            self.spool.advance(items[-1].position)
            self.errors = {}
            del self.ahead[: sum(isinstance(item, Spooled) for item in items)]

    def _take_batch(self, item: Spooled) -> None:
        number = item.batch.number
        assert item.batch == batch_of(number)
        assert number not in self.dropped
        if number <= self.stored:
            return  # the store skips it
        if self.due and number == self.due[0]:
            self.due.pop(0)
        else:
            assert number in self.maybe, (number, self.due[:3], self.maybe)
            assert not self.due or number < self.due[0]
        self.stored = number

    def _take_hole(self, hole: Hole, after: Spooled | Hole | None) -> None:
        assert hole.reason == "dropped", hole
        assert hole.after is not None and not hole.lost
        if after is not None:
            assert isinstance(after, Spooled) and after.batch.number == hole.after.number
        if hole.after.number <= self.stored:
            return
        gone = [number for number in self.due if number < hole.after.number]
        assert set(gone) <= self.dropped
        assert self.dropped & set(range(1, hole.after.number))
        self.due = self.due[len(gone) :]

    @rule()
    def drop_oldest(self) -> None:
        gone = self.spool.drop_oldest()
        if gone is None:
            return
        assert gone.batches and gone.lost["upbit"].frames == gone.batches == gone.lost["gopax"].rejected
        numbers = sorted({epoch for _, epoch in gone.rows})
        assert sum(gone.rows.values()) == gone.lost.get("upbit", Counts()).records
        assert len(numbers) == gone.batches
        self.dropped |= set(numbers)
        assert set(numbers) <= set(self.ahead)
        self.ahead = [number for number in self.ahead if number not in self.dropped]

    @rule()
    def crash(self) -> None:
        self.spool._release()
        self._reopened()

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self._reopened()

    @precondition(lambda self: self.fsync == "batch")
    @rule(seed=st.integers(0, 1 << 20))
    def cut_the_power(self, seed: int) -> None:
        self.spool._release()
        self.power.happens(Random(seed))
        self._reopened()

    def _reopened(self) -> None:
        if self.number in self.maybe:
            self.number += 1  # nobody sends it again
        self._open()
        waiting = self.spool.waiting.get("upbit", Counts()).frames
        assert waiting == self.spool.frames
        found = check(self.path)
        assert all(hole.reason == "dropped" for hole in found.holes)
        assert found.batches == self.spool.frames
        self.ahead = self._listed()
        due = [number for number in self.due if number not in self.dropped]
        assert set(due) <= set(self.ahead)

    def _listed(self) -> list[int]:
        # What is on disk, by a reader of its own.
        found = recover(self.path, repair=False)
        reader = SpoolReader(found.segments, found.oldest, found.written, 0)
        numbers = []
        while (read := reader.next()) is not None:
            if isinstance(read.item, Spooled):
                numbers.append(read.item.batch.number)
        reader.close()
        return numbers

    @invariant()
    def the_counts_are_right(self) -> None:
        if not hasattr(self, "spool"):
            return
        assert self.spool.frames == len(self.ahead), (self.spool.frames, self.ahead)
        assert self.spool.waiting.get("upbit", Counts()).frames == len(self.ahead)
        assert self.spool.bytes <= 90_000
        assert len(list(self.path.glob("*.damaged"))) == 0

    def teardown(self) -> None:
        try:
            if hasattr(self, "spool"):
                while self.spool.peek():
                    self.drain(50, False, True)
                assert not self.due or set(self.due) <= self.dropped
                assert self.spool.empty and not self.ahead
                assert not self.spool.bytes and not list(self.path.glob("0*"))
                self.spool.close()
        finally:
            for patch in self.patches:
                patch.stop()
            self.power.close()
            shutil.rmtree(self.root)


SpoolMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSpoolAgainstAModel = SpoolMachine.TestCase
