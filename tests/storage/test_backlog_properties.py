"""Whatever happens to store, spool and process, in whatever order.

The store holds every batch once and in order, or what is missing is outside coverage and counted.
"""

import json
import random
import shutil
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import storage.backlog
from collector.errors import StorageBusy
from collector.records import KEYFRAME, BookRow, CoverageMark, EpochEnded, EpochOpened, RecordsLost
from storage.store import Batch
from tests.storage.house import MARKETS, House, Killed, Sent, Side
from tests.storage.memory import MemoryStore, records_of


@dataclass
class Kept:
    """An epoch as the store has it, read as naively as can be."""

    opened: EpochOpened
    times: list[int] = field(default_factory=list)
    books: list[tuple[Side, Side]] = field(default_factory=list)
    frames: int = 0
    heard_us: int = 0
    reason: str | None = None


def read(batches: Iterable[Batch]) -> dict[tuple[str, int], Kept]:
    """Return the epochs of all runs; fails where records are not as they must be."""
    epochs: dict[tuple[str, int], Kept] = {}
    newest: dict[str, int] = {}
    for batch in batches:
        uid = batch.run.uid
        assert batch.number > newest.get(uid, 0), "a batch twice, or out of order"
        assert list(newest)[-1:] in ([], [uid]) or uid not in newest, "an earlier run after a later one"
        newest[uid] = batch.number
        for record in records_of(batch):
            match record:
                case EpochOpened():
                    assert (uid, record.epoch) not in epochs, "an epoch twice"
                    epochs[uid, record.epoch] = Kept(record)
                case RecordsLost():
                    for (owner, _), kept in epochs.items():
                        if owner == uid:
                            kept.reason = kept.reason or record.reason
                case BookRow() | CoverageMark() | EpochEnded():
                    kept = epochs[uid, record.epoch]
                    assert kept.reason is None, "something after the end"
                    _keep(kept, record)
    return epochs


def _keep(kept: Kept, record: BookRow | CoverageMark | EpochEnded) -> None:
    match record:
        case BookRow():
            assert record.n == len(kept.books) + 1, "a row is missing"
            assert kept.books or record.flags & KEYFRAME
            bids, asks = ({}, {}) if record.flags & KEYFRAME else map(dict, kept.books[-1])
            for side, text in ((bids, record.bids), (asks, record.asks)):
                for price, size in json.loads(text or "[]"):
                    side[Decimal(price)] = Decimal(size)
            kept.books.append((bids, asks))
            kept.times.append(kept.opened.opened_us + record.at_us)
        case CoverageMark():
            assert record.frames >= kept.frames
            kept.frames, kept.heard_us = record.frames, record.heard_until_us
        case EpochEnded():
            kept.reason = record.reason


def accounted(kept: Kept, sent: list[Sent]) -> list[int]:
    """Return the places of the books that an epoch accounts for, each of which must be there as it was sent."""
    times = [book.at_us for book in sent]
    first = bisect_left(times, kept.opened.opened_us)
    opening = [] if kept.opened.opened_us in times else [kept.opened.opened_us]
    mine = times[first : first + kept.frames]
    assert len(mine) == kept.frames and all(at_us <= kept.heard_us for at_us in mine)
    assert kept.times == opening + mine
    for at_us, book in zip(kept.times, kept.books, strict=True):
        truth = sent[bisect_right(times, at_us) - 1]
        assert book == (truth.bids, truth.asks), "a book that never was"
    return list(range(first, first + kept.frames))


class Outages(RuleBasedStateMachine):
    """A collector to which everything happens."""

    @initialize(drop_oldest=st.booleans(), small=st.booleans())
    def begin(self, drop_oldest: bool, small: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(storage.backlog, "READ_BATCHES", 4)  # what was read is not damaged any more
        self.options = {
            "drop_oldest": drop_oldest,
            "limit_bytes": 20_000 if small else 1 << 30,
            "segment_bytes": 1000,  # a batch each
            "intake_bytes": 6000 if small else 1 << 30,
            "store": MemoryStore(),
        }
        self.store: MemoryStore = self.options["store"]  # type: ignore[assignment]
        self.house = House(self.folder, **self.options)  # type: ignore[arg-type]
        self.damage = random.Random(5)
        self.unanswered = self.damaged = False

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3, 10]), then=st.sampled_from(["", "tick", "beat", "write", "wait"]))
    def live(self, seconds: float, then: str) -> None:
        self.house.live(seconds)
        match then:
            case "tick":
                self.house.tick()
            case "beat":
                self.house.beat()
            case "write":
                self.house.cycles(3)
            case "wait":
                self.house.clock.advance(6)

    @rule(market=st.sampled_from(MARKETS))
    def reconnect(self, market: str) -> None:
        self.house.controllers[market].end_epochs("disconnect")

    @rule(seconds=st.sampled_from([1, 10]))
    def outage(self, seconds: float) -> None:
        self.store.down = StorageBusy("away")
        self.house.live(seconds)

    @rule()
    def store_comes_back(self) -> None:
        self.store.down = None

    @rule(times=st.integers(1, 3))
    def answers_get_lost(self, times: int) -> None:
        self.store.unanswered = times
        self.unanswered = True

    @rule(full=st.booleans())
    def disk(self, full: bool) -> None:
        self.house.spool.full = full

    @precondition(lambda self: any(self.house.spool.path.glob("*.spool")))
    @rule(place=st.integers(0, 50), gone=st.booleans())
    def spool_is_damaged(self, place: int, gone: bool) -> None:
        files = sorted(self.house.spool.path.glob("*.spool"))
        file = files[place % len(files)]
        if gone:
            file.unlink()
        else:
            content = bytearray(file.read_bytes())
            if content:
                content[self.damage.randrange(len(content))] ^= 255
            file.write_bytes(content)
        self.damaged = True

    @rule(lives=st.integers(0, 3))
    def killed(self, lives: int) -> None:
        """Between a commit and its advance, if it comes to that, or else right away."""
        self.house.spool.lives = lives
        with suppress(Killed):
            self.house.cycles()
        self.again()

    @rule()
    def stopped(self) -> None:
        self.house.stop()
        self.again()

    def again(self) -> None:
        self.house.crash()
        self.house = House(self.folder, before=self.house, **self.options)  # type: ignore[arg-type]

    # --- what must be true ------------------------------------------------------------------------------------------

    @invariant()
    def the_sums_close(self) -> None:
        if hasattr(self, "house"):
            self.house.frames()

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        try:
            self._settle()
            self._judge()
        finally:
            self.house.crash()
            self.patch.undo()
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        house, self.store.down, self.store.unanswered = self.house, None, 0
        house.spool.full, house.spool.lives = False, -1
        for _ in range(200):
            house.clock.advance(6)
            house.cycles()
            if house.writer.backlog is not None and house.writer.backlog.empty and house.intake.empty:
                break
        house.tick()
        house.hear(4)
        assert house.stop(), "everything is in the store in the end"

    def _judge(self) -> None:
        house = self.house
        mine = dict.fromkeys(MARKETS, 0)
        everything: dict[str, list[int]] = {market: [] for market in MARKETS}
        for (uid, _), kept in read(self.store.committed).items():
            places = accounted(kept, house.sent[kept.opened.market])
            everything[kept.opened.market] += places
            if uid == house.run.uid:
                mine[kept.opened.market] += len(places)
                assert kept.reason is not None
        for places in everything.values():
            assert places == sorted(set(places)), "a book twice, or out of order"
        frames = house.frames()
        # A batch whose commit had no answer is lost with its place in the spool, as far as anybody knows.
        unknown = sum(mine.values()) - frames["stored"]
        assert unknown == 0 or (unknown > 0 and self.unanswered and self.damaged)
        assert frames["intake"] == frames["spool"] == 0
        missing = sum(map(len, house.sent.values())) - sum(map(len, everything.values()))
        if house.number == 1:
            assert missing == frames["dropped"] - unknown


Outages.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestOutages = Outages.TestCase
