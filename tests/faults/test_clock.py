"""The clock of the machine is set, forward and back, by an hour and by a day, under the running daemon.

Nothing stalls and nothing is tried in a hurry; the books go on where they were, each step ends an epoch with `clock`,
and the ledger still adds up. A small preloaded library steps the wall clock of the child process only.
"""

import json
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from controllers.upbit import Upbit
from simulator import Simulator
from storage.coverage import coverage
from storage.reader import Reader
from tests.conftest import wait_until
from tests.fakes import FakeClock, HeardLog, make_setup
from tests.faults.child import START_S, Daemon, options
from tests.faults.dose import dose

HOUR, DAY = 3600, 86_400
EXCHANGES = ("upbit", "coinone")
SEEDED = random.Random(13)
STEPS_S = [HOUR, -HOUR, DAY, -DAY] + [SEEDED.choice((-1, 1)) * SEEDED.randint(2, 2 * DAY) for _ in range(dose(0, 46))]
Side = dict[Decimal, Decimal]
Book = tuple[Side, Side]


class WallClock:
    """The wall clock of a child: the machine's, and what is added to it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._offset_s = 0
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set it forward, or back."""
        self._offset_s += seconds
        with self.file.open("r+b" if self.file.exists() else "wb") as file:  # in place: the child has it mapped
            file.write(struct.pack("=q", self._offset_s * 1_000_000))

    def environment(self, library: Path) -> dict[str, str]:
        """Return the variables of a process that has this clock."""
        return {"LD_PRELOAD": str(library), "COLLECTOR_FAULTS_CLOCK": str(self.file)}


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Two exchanges, with a ledger; on the machine's own clock."""
    with Simulator(EXCHANGES, ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger") as running:
        yield running


def side(levels: object) -> Side:
    """Return one side of a book as numbers."""
    assert isinstance(levels, list)
    return {Decimal(price): Decimal(size) for price, size in levels}


def sent(ledger: Path, exchange: str) -> list[Book]:
    """Return the books that were sent on the only subscription of an exchange, in order."""
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    (subscription,) = {e["subscription"] for e in entries if e["kind"] == "subscribe" and e["exchange"] == exchange}
    messages = [e for e in entries if e["kind"] == "message" and e["subscription"] == subscription]
    return [(side(message["bids"]), side(message["asks"])) for message in messages]


def stored(database: Path, exchange: str) -> Iterator[tuple[str, int, int, Book]]:
    """Yield each epoch of an exchange: why it ended, frames, rows, and its last book."""
    db = sqlite3.connect(database)
    epochs = db.execute(
        "SELECT e.id, e.reason, c.frames FROM epoch e JOIN coverage c ON c.epoch = e.id JOIN feed f ON f.id = e.feed "
        "JOIN exchange x ON x.id = f.exchange WHERE x.name = ? ORDER BY e.id",
        (exchange.upper(),),
    ).fetchall()
    for epoch, reason, frames in epochs:
        book: Book = ({}, {})
        rows = db.execute("SELECT flags, bids, asks FROM book WHERE id >> 24 = ? ORDER BY id", (epoch,)).fetchall()
        for flags, *changed in rows:
            if flags & 1:
                book = ({}, {})
            for levels, text in zip(book, changed, strict=True):
                levels |= side(json.loads(text or "[]"))
                for price in [price for price, size in levels.items() if not size]:
                    del levels[price]
        yield reason, frames, len(rows), book
    db.close()


class HaltingClock(FakeClock):
    """A clock that is looked at by a thread which at times stands still for two seconds after a look."""

    halts = 0

    def wall_us(self) -> int:
        seen_us = super().wall_us()
        if self.halts:
            self.halts -= 1
            self.advance(2)
        return seen_us

    def monotonic_us(self) -> int:
        seen_us = super().monotonic_us()
        if self.halts:
            self.halts -= 1
            self.advance(2)
        return seen_us


@pytest.mark.parametrize("halts", [1, 2, 3, 4])
def test_a_thread_that_stands_still_between_two_looks_sees_no_step(halts: int) -> None:
    """Mutation: look only once in `Controller._offset_now_us`."""
    clock, log = HaltingClock(), HeardLog()
    controller = Upbit(("BTC-KRW",), make_setup(clock=clock, log=log))
    clock.halts = halts
    controller.anchor()
    clock.advance(60)
    clock.halts = halts
    controller.tick()

    assert log.of("clock_step") == []
    assert controller._offset_us == FakeClock().wall_us() - FakeClock().monotonic_us()


def test_steps_of_an_hour_and_of_a_day(
    simulator: Simulator, preload: Callable[[str], Path], tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Mutation: take the look at `CLOCK_STEP_US` out of `Controller.tick`, or measure a wait by the wall clock."""
    clock = WallClock(tmp_path / "clock")
    daemon = Daemon(tmp_path, options(simulator))
    daemons.append(daemon)
    daemon.start(**clock.environment(preload("clock")))
    daemon.goes_on()
    for number, seconds in enumerate(STEPS_S, 1):
        clock.step(seconds)
        noticed = number * len(EXCHANGES)
        wait_until(lambda wanted=noticed: daemon.reasons().count("clock") >= wanted, START_S, f"a step of {seconds} s")  # type: ignore[misc]
        for exchange in EXCHANGES:
            daemon.goes_on(frames=8, exchange=exchange)
    days = {path.name[: len("collector.2026-01-01")] for path in (tmp_path / "logs").glob("collector.*-001.log")}
    assert days, "the log of a day that is over is closed"
    assert daemon.stop() == 0
    simulator.stop()

    for exchange in EXCHANGES:
        messages = sent(tmp_path / "ledger", exchange)  # of one subscription: nobody reconnected
        at = 0
        reasons = []
        for reason, frames, rows, book in stored(daemon.database, exchange):
            reasons.append(reason)
            told = messages[at : at + frames]
            assert len(told) == frames and told[-1] == book, "the books go on where they were"
            known = messages[max(0, at - 1) : at + frames]  # the next epoch begins with the book of the one before
            assert rows == 1 + sum(one != other for one, other in pairwise(known))
            at += frames
        assert reasons == ["clock"] * len(STEPS_S) + ["stop"]
        assert len(messages) - at < 20, "what was sent last may have been on its way"
    with Reader(daemon.database) as reader:
        for feed in coverage(reader, None, None):
            assert sum(feed.us(state) for state in ("DATA", "QUIET", "UNCONFIRMED", "PENDING", "GAP")) == (
                feed.end_us - feed.start_us
            )
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in (tmp_path / "logs").glob("collector*.log"))
    assert lines < 30 + 6 * len(STEPS_S), "no storm"
