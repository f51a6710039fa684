"""The supervisor restarts the dead, gives up on the stuck, stops in the order of the data, and exits with the truth."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO

import pytest
from prometheus_client import CollectorRegistry

from collector.clock import Clock
from collector.metrics import Metrics
from collector.records import BookRow, EpochEnded, EpochOpened
from collector.supervisor import Supervisor
from collector.systemd import Notifier
from collector.worker import Worker
from controllers.base import Controller, Setup
from controllers.upbit import Upbit
from tests.conftest import ROOT, WaitUntil
from tests.fakes import FakeClock, HeardLog, frame_counts, make_setup


class HeardNotifier(Notifier):
    def __init__(self) -> None:
        self.told: list[str] = []

    def ready(self, status: str) -> bool:
        self.told.append(f"ready {status}".strip())
        return True

    def status(self, text: str) -> bool:
        self.told.append(f"status {text}".strip())
        return True

    def stopping(self) -> bool:
        self.told.append("stopping")
        return True

    def watchdog(self) -> bool:
        self.told.append("watchdog")
        return True


class Killed(BaseException):
    """What no worker catches."""


class Part(Worker):
    """Runs until it is stopped; `die` ends its thread, `hang` keeps it from stopping until `free`."""

    def __init__(
        self, name: str, clock: Clock, log: HeardLog, order: list[str] | None = None, generation: int = 1
    ) -> None:
        super().__init__(name, log, clock, generation=generation)
        self.order = order if order is not None else []
        self.wake = threading.Event()
        self.free = threading.Event()
        self.error: BaseException | None = None
        self.hangs = False
        self.up = threading.Event()

    def run_once(self) -> None:
        self.up.set()
        self.wake.wait(30)
        if self.error:
            raise self.error
        if self.hangs:
            self.free.wait(30)
        self.order.append(self.name)

    def stop(self) -> None:
        super().stop()
        self.order.append(f"stop {self.name}")
        self.wake.set()

    def die(self) -> None:
        self.error = Killed()
        self.wake.set()
        assert self.join(10)

    def _run(self) -> None:
        with contextlib.suppress(Killed):
            super()._run()

    def end(self) -> None:
        self.stop()
        self.free.set()
        assert self.join(10)


class House:
    """A supervisor on a clock that is set by hand, and every worker it ever made."""

    def __init__(self, clock: Clock | None = None, *, stop_timeout_s: float = 0.3) -> None:
        self.fake = FakeClock()
        self.clock = clock or self.fake
        self.log = HeardLog()
        self.order: list[str] = []
        self.notifier = HeardNotifier()
        self.metrics = Metrics(CollectorRegistry(), version="test", started_s=0)
        self.writer = Part("writer", self.clock, self.log, self.order)
        self.made: dict[str, list[Part]] = {}
        self.supervisor = Supervisor(
            self.writer,
            clock=self.clock,
            log=self.log,
            metrics=self.metrics,
            notifier=self.notifier,
            stop_timeout_s=stop_timeout_s,
            stuck_s=120,
            watchdog_s=30,
            describe=lambda: "2/2 feeds live",
        )

    def add(self, name: str) -> None:
        def make(generation: int) -> Part:
            part = Part(name, self.clock, self.log, self.order, generation)
            self.made.setdefault(name, []).append(part)
            return part

        self.supervisor.add(make)

    def start(self) -> None:
        """Start every thread as `run` does, without its loop."""
        for worker in (self.writer, *self.supervisor.workers):
            worker.start()
        for part in self.parts():
            assert part.up.wait(10)

    def parts(self) -> list[Part]:
        return [self.writer, *(part for parts in self.made.values() for part in parts)]

    def beat(self) -> None:
        for part in self.parts():
            part.beat()

    def advance(self, seconds: float) -> None:
        """Let time pass for everybody who is well."""
        self.fake.advance(seconds)
        self.beat()

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0

    def end(self) -> None:
        for part in self.parts():
            part.end()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    house.add("upbit/BTC-KRW")
    house.add("gopax/BTC-KRW")
    house.start()
    yield house
    house.end()


UPBIT = "upbit/BTC-KRW"


def test_an_errand_is_done_in_its_own_thread_and_may_fail(house: House) -> None:
    done: list[str] = []
    for errand in (lambda: done.append(threading.current_thread().name), lambda: 1 / 0, lambda: done.append("third")):
        thread = threading.Thread(target=house.supervisor.later, args=(errand,), name="asker")
        thread.start()
        thread.join(10)
    assert not done
    house.supervisor.tick()
    assert done == [threading.current_thread().name, "third"]
    assert house.value("supervisor_failures_total") == 1
    house.supervisor.tick()
    assert len(done) == 2


def test_a_dead_worker_is_started_again_under_the_next_generation(house: House) -> None:
    first = house.made[UPBIT][0]
    first.die()

    house.supervisor.tick()
    assert first.state == "dead"
    assert house.value("restarts_total", worker=UPBIT, reason="died") == 1
    assert len(house.made[UPBIT]) == 1  # not at once: there is a pause

    house.advance(1)
    house.supervisor.tick()

    second = house.made[UPBIT][1]
    assert second.generation == 2
    assert second.alive
    assert second in house.supervisor.workers and first not in house.supervisor.workers
    assert house.log.of("worker_restarted") == [{"worker": UPBIT, "generation": 2}]
    assert len(house.made["gopax/BTC-KRW"]) == 1  # the other one never heard of it


def die_again(house: House) -> None:
    """Let the present worker die, and time pass until it was made anew."""
    house.made[UPBIT][-1].die()
    house.supervisor.tick()
    pause_s = house.log.of("worker_died")[-1]["after_s"]
    house.advance(pause_s - 0.001)
    house.supervisor.tick()
    generations = len(house.made[UPBIT])
    house.advance(0.001)
    house.supervisor.tick()
    assert len(house.made[UPBIT]) == generations + 1


def test_a_worker_that_keeps_dying_is_restarted_more_and_more_slowly(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.supervisor._slots[UPBIT].backoff, "_random", lambda: 1.0)
    for _ in range(4):
        die_again(house)
    assert [told["after_s"] for told in house.log.of("worker_died")] == [1, 2, 4, 8]
    house.advance(60)
    die_again(house)
    assert house.log.of("worker_died")[-1]["after_s"] == 1
    assert house.log.of("worker_parked") == []


def test_a_worker_that_dies_five_times_in_a_minute_is_parked(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: `delay_s = self.backoff.next_s()` without what follows, in `Slot.died`."""
    monkeypatch.setattr(house.supervisor._slots[UPBIT].backoff, "_random", lambda: 0.5)
    for _ in range(4):
        die_again(house)
    assert house.log.of("worker_parked") == []

    # 1. It is parked, and the log, the metrics and the state say so.
    house.made[UPBIT][-1].die()
    house.supervisor.tick()
    assert house.log.of("worker_parked") == [{"worker": UPBIT, "after_s": 30}]
    assert house.value("workers", state="parked") == 1
    assert [worker.state for worker in house.supervisor.workers] == ["parked", "running"]
    assert len(house.made["gopax/BTC-KRW"]) == 1

    # 2. It gets one try, and is parked for longer where that fails.
    house.advance(30)
    house.supervisor.tick()
    assert house.value("workers", state="parked") == 0
    die_again(house)
    die_again(house)
    assert [told["after_s"] for told in house.log.of("worker_parked")] == [30, 60, 60]

    # 3. Once it is well for a minute it counts anew.
    house.advance(60)
    die_again(house)
    assert len(house.log.of("worker_parked")) == 3


def test_deaths_that_lie_far_apart_park_nobody(house: House) -> None:
    """The mutation that must make this fail: leave out `now_us - self._deaths[0] <= CRASHES_US`."""
    for _ in range(8):
        house.advance(40)
        house.made[UPBIT][-1].die()
        house.supervisor.tick()
        house.advance(30)
        house.supervisor.tick()
    assert house.log.of("worker_parked") == []


def test_a_worker_that_does_not_move_is_given_up_by_name_and_stack(house: House) -> None:
    stuck = house.made[UPBIT][0]
    house.fake.advance(120)
    house.writer.beat()
    house.made["gopax/BTC-KRW"][0].beat()
    house.supervisor.tick()
    assert stuck.state == "running"  # not yet

    house.fake.advance(0.001)
    house.supervisor.tick()

    (told,) = house.log.of("worker_stuck")
    assert told["worker"] == UPBIT and told["seconds"] == 120
    assert "self.wake.wait(30)" in told["stack"]
    assert stuck.state == "abandoned"
    assert stuck.alive
    assert house.value("restarts_total", worker=UPBIT, reason="stuck") == 1
    assert house.value("workers", state="abandoned") == 1

    house.advance(1)
    house.supervisor.tick()
    assert [part.generation for part in house.made[UPBIT]] == [1, 2]
    assert house.value("workers", state="abandoned") == 1
    assert house.value("workers", state="running") == 3

    stuck.wake.set()
    assert stuck.join(10)
    house.supervisor.tick()
    assert house.value("workers", state="abandoned") == 0
    assert len(house.made["gopax/BTC-KRW"]) == 1


def test_a_worker_that_cannot_be_made_again_is_tried_again_and_harms_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = house.supervisor._slots[UPBIT]
    make = slot.make
    fails = [RuntimeError("can't start new thread"), ValueError("our bug")]

    def sometimes(generation: int) -> Worker:
        if fails:
            raise fails.pop(0)
        return make(generation)

    monkeypatch.setattr(slot, "make", sometimes)
    house.made[UPBIT][0].die()
    for _ in range(6):
        house.supervisor.tick()
        house.advance(5)

    assert house.value("restarts_total", worker=UPBIT, reason="failed") == 2
    assert [told["worker"] for told in house.log.of("worker_failed")] == [UPBIT, UPBIT]
    assert "our bug" in house.log.of("worker_failed")[1]["stack"]
    assert house.made[UPBIT][-1].generation == 2
    assert house.made[UPBIT][-1].alive
    assert house.made["gopax/BTC-KRW"][0].alive


# --- what an abandoned controller still delivers ----------------------------------------------------------------------


def frame(price: int) -> bytes:
    return b'{"ty":"orderbook","cd":"KRW-BTC","tms":1,"obu":[{"ap":%d,"bp":1,"as":1,"bs":1}]}' % price


class Hanging(Upbit):
    """Hears one book, hangs, and hears another one after it was given up."""

    def __init__(self, setup: Setup, generation: int) -> None:
        super().__init__(("BTC-KRW",), setup, generation=generation)
        self.hung, self.free = threading.Event(), threading.Event()

    def run_once(self) -> None:
        self.anchor()
        self._hear(5)
        if self.generation == 1:
            self.hung.set()
            self.free.wait(30)
            self._hear(7)
        self.stopping.wait(30)
        self.end_epochs("stop")

    def _hear(self, price: int) -> None:
        self.handle(frame(price), self.clock.monotonic_us())
        self.flush()


def test_what_a_controller_delivers_after_it_was_given_up_is_refused(wait_until: WaitUntil) -> None:
    clock = FakeClock()
    setup = make_setup(clock=clock)
    house = House(clock)
    made: list[Hanging] = []

    def make(generation: int) -> Controller:
        made.append(Hanging(setup, generation))
        return made[-1]

    house.supervisor.add(make)
    house.start()
    assert made[0].hung.wait(10)
    clock.advance(121)
    house.supervisor.tick()
    clock.advance(1)
    house.supervisor.tick()
    wait_until(lambda: len(made) == 2 and made[1].books["BTC-KRW"].epoch)

    made[0].free.set()
    assert made[0].join(10)
    made[1].stop()
    assert made[1].join(10)
    house.end()

    records = [record for delivery in setup.intake.take(1000) for record in delivery.records]
    assert [(r.epoch, r.n) for r in records if isinstance(r, BookRow)] == [(1, 1), (2, 1)]
    assert [r.epoch for r in records if isinstance(r, EpochOpened)] == [1, 2]
    assert [(r.epoch, r.reason) for r in records if isinstance(r, EpochEnded)] == [(1, "superseded"), (2, "stop")]
    assert frame_counts(setup, "upbit")["received"] == 3
    assert frame_counts(setup, "upbit")["dropped"] == 1


# --- the writer, health and the watchdog ------------------------------------------------------------------------------


def test_systemd_hears_of_life_only_while_the_writer_finishes_cycles(house: House) -> None:
    house.supervisor.tick()
    assert house.notifier.told == ["watchdog", "status 2/2 feeds live"]

    house.fake.advance(30)
    house.supervisor.tick()
    assert house.notifier.told.count("watchdog") == 2
    assert house.supervisor.healthy() == (True, "ok")

    house.fake.advance(0.001)
    house.supervisor.tick()
    assert house.notifier.told.count("watchdog") == 2
    assert house.notifier.told.count("status 2/2 feeds live") == 3
    assert house.supervisor.healthy() == (False, "the writer has not finished a cycle for 30 s")

    house.writer.beat()
    house.supervisor.tick()
    assert house.notifier.told.count("watchdog") == 3


def test_sources_that_fail_do_not_make_the_daemon_unhealthy(house: House) -> None:
    for name in house.made:
        house.made[name][0].die()
    house.supervisor.tick()
    assert house.supervisor.healthy() == (True, "ok")
    assert "watchdog" in house.notifier.told


def test_a_writer_that_died_is_never_replaced_and_is_told_once(house: House) -> None:
    house.writer.die()
    house.supervisor.tick()
    house.supervisor.tick()

    assert house.supervisor.healthy() == (False, "the writer is not running")
    assert house.log.of("writer_died") == [{}]
    assert house.value("restarts_total", worker="writer", reason="died") == 1
    assert house.value("workers", state="dead") == 1
    assert "watchdog" not in house.notifier.told


# --- running and stopping ---------------------------------------------------------------------------------------------


class Run:
    """`Supervisor.run` in a thread of its own, on the machine's clock."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        for part in house.parts():
            assert part.up.wait(10)

    def _run(self) -> None:
        self.status = self.house.supervisor.run()

    def result(self) -> int | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.status


@pytest.fixture
def running() -> Iterator[Callable[[House], Run]]:
    runs: list[Run] = []

    def start(house: House) -> Run:
        runs.append(Run(house))
        return runs[-1]

    yield start
    for run in runs:
        run.house.supervisor.stop()
        run.house.end()
        run.thread.join(10)


Start = Callable[[House], Run]


def two(stop_timeout_s: float = 0.3) -> House:
    house = House(Clock(), stop_timeout_s=stop_timeout_s)
    house.add("a")
    house.add("b")
    return house


def test_sources_stop_before_the_writer(running: Start) -> None:
    house = two()
    run = running(house)
    house.supervisor.stop()

    assert run.result() == 0

    assert sorted(house.order[:4]) == ["a", "b", "stop a", "stop b"]
    assert house.order[4:] == ["stop writer", "writer"]
    assert house.notifier.told[0] == "ready 2/2 feeds live"
    assert house.notifier.told[-1] == "stopping"
    assert house.log.of("stop_asked") == [{"signal": "SIGTERM"}]
    assert house.supervisor.stopping.is_set()


def test_run_looks_after_the_workers(running: Start, wait_until: WaitUntil) -> None:
    house = two()
    run = running(house)
    house.made["a"][0].die()
    wait_until(lambda: len(house.made["a"]) == 2)
    house.supervisor.stop()
    assert run.result() == 0


def test_a_source_that_does_not_stop_is_named_with_its_stack_and_the_writer_still_drains(running: Start) -> None:
    house = two()
    house.made["a"][0].hangs = True
    run = running(house)
    house.supervisor.stop()

    assert run.result() == 0

    (told,) = house.log.of("worker_abandoned")
    assert told["worker"] == "a" and "self.free.wait(30)" in told["stack"]
    assert house.made["a"][0].state == "abandoned"
    assert house.order[-1] == "writer"


def test_a_source_that_is_down_is_not_waited_for(running: Start) -> None:
    house = two(stop_timeout_s=60)
    run = running(house)
    house.made["a"][0].die()
    house.supervisor.stop()
    assert run.result() == 0
    assert "stop b" in house.order and "stop a" not in house.order


def test_a_writer_that_does_not_stop_is_told_by_the_exit_status(running: Start) -> None:
    house = two()
    house.writer.hangs = True
    run = running(house)
    house.supervisor.stop()

    assert run.result() == 1

    (told,) = house.log.of("writer_abandoned")
    assert "self.free.wait(30)" in told["stack"]


def test_a_writer_that_fails_while_draining_is_told_by_the_exit_status(running: Start) -> None:
    house = two()
    house.writer.error = ValueError("our bug")
    run = running(house)
    house.supervisor.stop()
    assert run.result() == 1
    assert house.writer.state == "dead"


def test_a_writer_that_dies_ends_the_program_in_order(running: Start) -> None:
    house = two()
    run = running(house)
    house.writer.die()

    assert run.result() == 1

    assert house.log.of("writer_died") == [{}]
    assert {"a", "b"} <= set(house.order)


# --- real signals, in a process of its own ----------------------------------------------------------------------------


class Daemon:
    def __init__(self, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.collector.supervised", mode], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.output: IO[str] = self.process.stdout
        self.lines: list[str] = []
        self.until("READY")

    def until(self, line: str) -> None:
        """Read what it says up to a line."""
        while line not in self.lines:
            said = self.output.readline()
            if not said:
                pytest.fail(f"it never said {line!r}: {self.lines}")
            self.lines.append(said.strip())

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def result(self) -> int:
        status = self.process.wait(20)
        self.lines += [line.strip() for line in self.output]
        return status

    def count(self, word: str) -> int:
        return next(int(line.split()[1]) for line in self.lines if line.startswith(f"{word} "))


@pytest.fixture
def daemon() -> Iterator[Callable[[str], Daemon]]:
    daemons: list[Daemon] = []

    def start(mode: str) -> Daemon:
        daemons.append(Daemon(mode))
        return daemons[-1]

    yield start
    for one in daemons:
        one.process.kill()
        one.process.wait(10)
        one.output.close()


Begin = Callable[[str], Daemon]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order_with_everything_committed(daemon: Begin, number: signal.Signals) -> None:
    process = daemon("orderly")
    process.until("delivering")

    process.send(number)

    assert process.result() == 0
    assert process.count("stored") == process.count("made") > 0
    assert process.count("held") == 0
    order = [process.lines.index(line) for line in ("log stop_asked", "STOPPING", f"made {process.count('made')}")]
    assert order == sorted(order)


def test_sighup_changes_nothing_and_is_told(daemon: Begin) -> None:
    process = daemon("orderly")
    process.send(signal.SIGHUP)
    process.until("log reload_unsupported")
    process.send(signal.SIGTERM)
    assert process.result() == 0


def test_a_second_signal_leaves_at_once_however_many_are_stuck(daemon: Begin) -> None:
    process = daemon("stuck")  # three that do not stop, and a patience of a minute with each
    process.send(signal.SIGTERM)
    process.until("STOPPING")
    process.send(signal.SIGHUP)  # not what leaves at once
    process.send(signal.SIGINT)

    assert process.result() == 1

    assert process.lines.count("log stop_at_once") == 1
    # The writer had nothing to do: whether it was gone in the same moment is open, that the end was not in order is
    # not.
    assert [line for line in process.lines if "worker_abandoned" in line] == [
        "log worker_abandoned stuck 0",
        "log worker_abandoned stuck 1",
        "log worker_abandoned stuck 2",
    ]


def test_the_exit_status_tells_that_something_was_not_committed(daemon: Begin) -> None:
    process = daemon("failing")
    process.until("delivering")
    process.send(signal.SIGTERM)

    assert process.result() == 1

    assert process.count("held") == process.count("made") > 0
    assert process.count("stored") == 0
    assert "log writer_abandoned" in process.lines


def test_a_writer_that_died_ends_the_process_by_itself(daemon: Begin) -> None:
    process = daemon("dying")
    assert process.result() == 1
    assert "log writer_died" in process.lines
