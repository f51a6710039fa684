"""Threads that die or get stuck at any moment: they are replaced, others go on, and no message is lost in silence."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.records import Record
from controllers.feed import HeardFeed
from controllers.upbit import Upbit
from tests.conftest import ROOT
from tests.faults.dose import dose
from tests.faults.house import House

THROWS = dose(15, 100)
SEEDS = dose(range(1, 2), range(1, 11))
Block = Callable[[threading.Event], None]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_error_at_any_line_costs_no_message_in_silence(seed: int, tmp_path: Path) -> None:
    """Mutation: take the call of `distrust` out of `Controller.end_epochs`.

    What ends a thread (`SystemExit`, or anything else that is no `Exception`) is left to the supervisor, mutation: take
    `elif not worker.alive` out of `Supervisor._look_after`.
    """
    # Coverage and this both want to hear of every line.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.thrown", str(tmp_path), str(THROWS), str(seed)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )

    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    assert result.stdout.count(" at ") >= THROWS, "it was thrown as often"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the struck run's socket is left to gc
def test_an_error_while_an_epoch_is_ended_does_not_carry_it_into_the_next_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mutation: take the call of `distrust` out of `Controller.anchor`."""
    end = HeardFeed.end
    struck: list[str] = []

    def end_or_strike(feed: HeardFeed, reason: str, heard_at_us: int) -> list[Record]:
        if not struck:
            struck.append(reason)
            raise MemoryError
        return end(feed, reason, heard_at_us)

    with House(tmp_path, "upbit") as house:
        house.start()
        house.goes_on()
        monkeypatch.setattr(HeardFeed, "end", end_or_strike)
        house.simulator.fault("disconnect", "upbit")
        house.until(lambda: struck, what="the error")
        house.goes_on()
        verdict = house.stop()
    gc.collect()

    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert epochs(house.database, "UPBIT") == ["disconnect", "stop"]


def blocked(free: threading.Event) -> None:
    """Wait for what does not come."""
    free.wait(60)


def busy(free: threading.Event) -> None:
    """Go round and round."""
    while not free.is_set():
        pass


class Stuck:
    """Makes the next message that Upbit's controller reads take for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.block: Block | None = None
        parse = Upbit.parse

        def parse_or_block(controller: Upbit, frame: bytes, received_us: int) -> Any:
            block, self.block = self.block, None
            if block is not None:
                block(self.free)
            return parse(controller, frame, received_us)

        monkeypatch.setattr(Upbit, "parse", parse_or_block)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """Let threads get stuck, and free them in the end."""
    made = Stuck(monkeypatch)
    yield made
    made.free.set()


@pytest.mark.parametrize("block", [blocked, busy])
def test_a_stuck_thread_is_named_and_replaced_and_what_it_says_late_is_refused(
    block: Block, stuck: Stuck, tmp_path: Path
) -> None:
    """Mutation: take `worker.abandon()` out of `Supervisor._look_after`, or `"abandoned"` out of `Controller.flush`."""
    with House(tmp_path, "upbit", "coinone") as house:
        house.start()
        house.goes_on(frames=5)
        old = house.worker("upbit")

        stuck.block = block
        house.until(lambda: stuck.block is None, 20, "it is stuck")
        old.beat_us -= 130_000_000  # it has been so for longer than two minutes, and nobody else has
        house.until(lambda: old.state == "abandoned", 20, "it is noticed")
        house.until(lambda: house.worker("upbit").generation == 2 and house.live(), 20, "it is replaced")
        stuck.free.set()
        assert old.join(10)

        house.goes_on(frames=5)
        log, database = house.log, house.database
        verdict = house.stop()

    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    named = log[log.index("worker is stuck: upbit/BTC-KRW") :]
    assert f"in {block.__name__}" in named[: named.index("[INFO]")], "with its stack"
    reasons = epochs(database, "UPBIT")
    assert reasons == ["superseded", "stop"]
    assert epochs(database, "COINONE") == ["stop"], "the other one heard nothing of it"


def epochs(database: Path, exchange: str) -> list[str]:
    """Return why the epochs of an exchange ended."""
    import sqlite3

    with sqlite3.connect(database) as db:
        rows = db.execute(
            "SELECT e.reason FROM epoch e JOIN feed f ON f.id = e.feed JOIN exchange x ON x.id = f.exchange "
            "WHERE x.name = ? ORDER BY e.id",
            (exchange,),
        ).fetchall()
    db.close()
    return [row[0] for row in rows]


def test_a_thread_that_lets_nobody_else_run_costs_time_and_nothing_else(stuck: Stuck, tmp_path: Path) -> None:
    """An extension that keeps the interpreter to itself: all of it stands still and goes on."""

    def hog(_: threading.Event) -> None:
        ctypes.PyDLL(None).usleep(int(dose(0.8, 5.0) * 1e6))

    with House(tmp_path, "upbit", "coinone") as house:
        house.start()
        house.goes_on(frames=5)
        for _ in range(dose(2, 20)):
            stuck.block = hog
            house.until(lambda: stuck.block is None, 20, "it is stuck")
            house.goes_on(frames=20)
        verdict = house.stop()

    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert epochs(house.database, "COINONE") == ["stop"]
