"""A second generation takes over when nothing would be missed, and is let go when it does not get there."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from collector import supervisor
from collector.clock import Clock
from collector.errors import ConfigError
from collector.slot import Part as Task
from collector.supervisor import FAILING_TICKS_MAX, Change
from collector.worker import Worker
from tests.collector.test_supervisor import HeardNotifier, House, Part, Run, running
from tests.conftest import WaitUntil

__all__ = ["running"]

UPBIT, GOPAX = "upbit/BTC-KRW", "gopax/BTC-KRW"


class Moving(Part):
    """A worker whose answers a test sets."""

    due = False
    ready = False
    covered = True  # by those that are to take over
    seamless = True

    @property
    def settled(self) -> bool:
        return self.ready

    def due_for_replacement(self) -> bool:
        return self.due

    def covered_by(self, successors: Sequence[Worker], *, seamlessly: bool) -> bool:
        return self.covered and (self.seamless or not seamlessly)


class Scene(House):
    """A house of such workers, each known by its name and grouped by its exchange."""

    def task(self, name: str) -> Task:
        def make(generation: int) -> Moving:
            part = Moving(name, self.clock, self.log, self.order, generation)
            self.made.setdefault(name, []).append(part)
            return part

        return Task(make, name.partition("/")[0], name)

    def put(self, name: str) -> None:
        task = self.task(name)
        self.supervisor.add(task.make, group=task.group, plan=name)

    def newest(self, name: str) -> Moving:
        part = self.made[name][-1]
        assert isinstance(part, Moving)
        return part

    def names(self) -> list[tuple[str, int]]:
        return [(worker.name, worker.generation) for worker in self.supervisor.workers]

    def taken_over(self, outcome: str, exchange: str = "upbit") -> float:
        return self.value("takeovers_total", exchange=exchange, outcome=outcome)

    def pass_time(self, seconds: float) -> None:
        self.advance(seconds)
        self.supervisor.tick()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    for name in (UPBIT, GOPAX):
        scene.put(name)
    scene.start()
    yield scene
    scene.end()


def test_one_that_is_due_goes_on_until_the_second_has_settled(scene: Scene) -> None:
    """The mutation that must make this fail: leave `late or all(... settled ...)` out of `Takeover.look`."""
    first = scene.newest(UPBIT)
    first.due = True
    scene.supervisor.tick()
    second = scene.newest(UPBIT)
    assert (second.generation, second.alive) == (2, True)
    assert scene.names() == [(UPBIT, 1), (GOPAX, 1)]

    scene.pass_time(30)
    assert not first.stopping.is_set()
    assert scene.log.of("takeover_started") == [{"worker": UPBIT, "generation": "2", "why": "planned"}]

    second.ready = True
    scene.pass_time(1)
    assert first.stopping.is_set() and first.stop_reason == "superseded"
    assert not second.stopping.is_set()
    assert scene.names() == [(UPBIT, 2), (GOPAX, 1)]
    assert scene.taken_over("done") == 1
    assert scene.supervisor.takeovers == []
    assert scene.newest(GOPAX).generation == 1

    # It is watched like any other from then on.
    second.die()
    scene.pass_time(0)
    scene.pass_time(2)
    assert scene.names() == [(UPBIT, 3), (GOPAX, 1)]


def test_one_that_settles_but_leaves_a_gap_is_waited_for(scene: Scene) -> None:
    """The mutation that must make this fail: `seamlessly=False` where `Takeover.look` asks first."""
    first = scene.newest(UPBIT)
    first.due, first.seamless = True, False
    scene.supervisor.tick()
    scene.newest(UPBIT).ready = True
    scene.pass_time(59)
    assert not first.stopping.is_set()
    first.seamless = True
    scene.pass_time(0)
    assert first.stopping.is_set()


def test_one_that_can_never_prove_it_is_not_waited_for_for_ever(scene: Scene) -> None:
    first = scene.newest(UPBIT)
    first.due, first.seamless = True, False
    scene.supervisor.tick()
    scene.newest(UPBIT).ready = True
    scene.pass_time(119)
    assert not first.stopping.is_set()
    scene.pass_time(1)
    assert first.stopping.is_set()


def test_a_second_that_does_not_settle_is_dropped_and_tried_again_later(scene: Scene) -> None:
    """The mutation that must make this fail: `delay_s = 0` in `Takeover.give_up`."""
    first = scene.newest(UPBIT)
    first.due, first.covered = True, False
    for attempt, pause_s in enumerate((30, 60, 120), start=1):
        scene.supervisor.tick()
        second = scene.newest(UPBIT)
        assert second.generation == 2 and len(scene.made[UPBIT]) == attempt + 1
        scene.pass_time(59.9)
        assert not second.stopping.is_set()
        scene.pass_time(0.1)
        assert second.stopping.is_set() and not first.stopping.is_set()
        assert scene.taken_over("failed") == attempt
        assert scene.log.of("takeover_failed")[-1]["reason"] == "late"
        scene.pass_time(pause_s - 0.1)
        assert len(scene.made[UPBIT]) == attempt + 1
        scene.advance(0.1)
    assert scene.names() == [(UPBIT, 1), (GOPAX, 1)]

    # Once there is no reason any more, nothing is tried.
    first.due = False
    scene.supervisor.tick()
    assert scene.supervisor.takeovers == []
    assert len(scene.made[UPBIT]) == 4


def test_a_second_that_dies_is_dropped(scene: Scene) -> None:
    first = scene.newest(UPBIT)
    first.due = True
    scene.supervisor.tick()
    scene.newest(UPBIT).die()
    scene.pass_time(1)
    assert scene.log.of("takeover_failed")[-1]["reason"] == "died"
    assert scene.names() == [(UPBIT, 1), (GOPAX, 1)]
    assert not first.stopping.is_set()
    assert scene.value("restarts_total", worker=UPBIT, reason="died") == 0


def test_one_exchange_replaces_one_at_a_time(scene: Scene) -> None:
    """The mutation that must make this fail: an empty set from `_busy_groups`."""
    scene.put("upbit/ETH-KRW")
    scene.newest("upbit/ETH-KRW").start()
    for name in (UPBIT, "upbit/ETH-KRW", GOPAX):
        scene.newest(name).due = True
    scene.supervisor.tick()
    assert [len(scene.made[name]) for name in (UPBIT, "upbit/ETH-KRW", GOPAX)] == [2, 1, 2]
    scene.newest(UPBIT).ready = True
    scene.pass_time(1)
    scene.pass_time(1)
    assert [len(scene.made[name]) for name in (UPBIT, "upbit/ETH-KRW", GOPAX)] == [2, 2, 2]


def test_one_that_fails_does_not_hold_up_the_others_of_its_exchange(scene: Scene) -> None:
    scene.put("upbit/ETH-KRW")
    scene.newest("upbit/ETH-KRW").start()
    scene.newest(UPBIT).due = scene.newest("upbit/ETH-KRW").due = True
    scene.newest(UPBIT).covered = False
    scene.supervisor.tick()
    scene.pass_time(60)
    scene.pass_time(1)
    assert len(scene.made["upbit/ETH-KRW"]) == 2


def test_an_old_one_that_does_not_stop_is_abandoned_and_its_successor_goes_on(scene: Scene) -> None:
    """The mutation that must make this fail: leave `_look_after_leaving` out of the tick."""
    first = scene.newest(UPBIT)
    first.due = first.hangs = True
    scene.supervisor.tick()
    scene.newest(UPBIT).ready = True
    scene.pass_time(1)
    assert first.state == "running"
    scene.pass_time(0.31)
    (told,) = scene.log.of("worker_abandoned")
    assert told["worker"] == UPBIT and "in run_once" in told["stack"]
    assert first.state == "abandoned"
    assert scene.value("workers", state="abandoned") == 1
    assert scene.names() == [(UPBIT, 2), (GOPAX, 1)]
    first.free.set()
    assert first.join(10)
    scene.pass_time(0)
    assert scene.value("workers", state="abandoned") == 0


def test_a_second_that_cannot_be_made_leaves_the_first_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(generation: int) -> Worker:
        raise RuntimeError("can't start new thread")

    first = scene.newest(UPBIT)
    slot = scene.supervisor._slots[UPBIT]
    monkeypatch.setattr(slot, "part", slot.part._replace(make=broken))
    first.due = True
    scene.supervisor.tick()
    assert "can't start new thread" in scene.log.of("worker_failed")[0]["stack"]
    assert scene.taken_over("failed") == 1
    assert not first.stopping.is_set()
    assert scene.value("supervisor_failures_total") == 0


# --- a new plan -------------------------------------------------------------------------------------------------------


def test_a_plan_begins_ends_and_replaces(scene: Scene) -> None:
    gone: list[str] = []
    scene.supervisor._gone = lambda worker: gone.append(worker.name)
    upbit, gopax = scene.supervisor.parts
    korbit, both = scene.task("korbit/BTC-KRW"), scene.task("upbit/BTC-KRW+1")
    scene.supervisor.apply([Change((), (korbit,)), Change((gopax,), ()), Change((upbit,), (both,))])

    assert scene.newest(GOPAX).stop_reason == "stop"
    assert scene.newest(GOPAX).stopping.is_set()
    assert scene.names() == [(UPBIT, 1), ("korbit/BTC-KRW", 1)]
    scene.newest("upbit/BTC-KRW+1").ready = True
    assert scene.newest(GOPAX).join(10)
    scene.pass_time(1)
    assert scene.names() == [("upbit/BTC-KRW+1", 2), ("korbit/BTC-KRW", 1)]
    assert [part.plan for part in scene.supervisor.parts] == ["upbit/BTC-KRW+1", "korbit/BTC-KRW"]
    assert gone[0] == GOPAX  # the other one may have ended already as well
    assert scene.made[UPBIT][0].join(10)
    scene.pass_time(0)
    assert gone == [GOPAX, UPBIT]


def test_a_later_plan_takes_back_what_is_not_done_yet(scene: Scene) -> None:
    """The mutation that must make this fail: leave `_forget` out of `apply`."""
    upbit = scene.supervisor.parts[0]
    scene.supervisor.apply([Change((upbit,), (scene.task("upbit/BTC-KRW+1"),))])
    second = scene.newest("upbit/BTC-KRW+1")
    assert second.alive

    # The same again goes on where it is.
    scene.supervisor.apply([Change((upbit,), (scene.task("upbit/BTC-KRW+1"),))])
    assert scene.newest("upbit/BTC-KRW+1") is second and not second.stopping.is_set()

    # Nothing of it any more.
    scene.supervisor.apply([])
    assert second.stopping.is_set() and second.stop_reason == "superseded"
    scene.pass_time(200)
    assert scene.names() == [(UPBIT, 1), (GOPAX, 1)]
    assert not scene.newest(UPBIT).stopping.is_set()


def test_what_is_dead_or_parked_is_replaced_by_a_new_plan_at_once(scene: Scene) -> None:
    first = scene.newest(UPBIT)
    first.die()
    scene.supervisor.tick()
    scene.supervisor.apply([Change((scene.supervisor.parts[0],), (scene.task("upbit/BTC-KRW+1"),))])
    scene.pass_time(20)
    assert len(scene.made[UPBIT]) == 1, "its restart would only be in the way"
    scene.newest("upbit/BTC-KRW+1").ready = True
    scene.pass_time(1)
    assert scene.names() == [("upbit/BTC-KRW+1", 2), (GOPAX, 1)]


def test_whatever_is_under_way_stops_with_the_rest(wait_until: WaitUntil) -> None:
    """The mutation that must make this fail: `sources` of the present generation only, in `_stop_in_order`."""
    scene = Scene(stop_timeout_s=10)
    scene.put(UPBIT)
    scene.start()
    scene.newest(UPBIT).due = True
    scene.supervisor.tick()
    second = scene.newest(UPBIT)
    assert scene.supervisor._stop_in_order() == 0
    assert second.stopping.is_set() and not second.alive
    assert scene.order[-1] == "writer"


# --- reading the configuration again ----------------------------------------------------------------------------------


class TellsReloading(HeardNotifier):
    def reloading(self) -> bool:
        self.told.append("reloading")
        return True


Start = Callable[[House], Run]


def hang_up(house: House) -> None:
    house.supervisor._signals.put(signal.SIGHUP)


def test_systemd_hears_of_a_reload_and_of_its_end(running: Start, wait_until: WaitUntil) -> None:
    house = House(Clock())
    house.add("a")
    notifier = house.supervisor._notifier = TellsReloading()
    asked = threading.Event()

    def reload() -> None:
        notifier.told.append("read")
        asked.set()

    house.supervisor._reload = reload
    run = running(house)
    hang_up(house)
    assert asked.wait(10)
    house.supervisor.stop()
    assert run.result() == 0
    told = [text for text in notifier.told if text != "watchdog" and not text.startswith("status")]
    assert told == ["ready 2/2 feeds live", "reloading", "read", "ready 2/2 feeds live", "stopping"]


def test_many_hang_ups_at_once_are_one_reload_and_a_stop_is_not_kept_waiting_by_them(running: Start) -> None:
    house = House(Clock())
    reloads: list[None] = []
    house.supervisor._reload = lambda: reloads.append(None)
    for _ in range(100):
        hang_up(house)
    run = running(house)
    house.supervisor.stop()
    assert run.result() == 0
    assert len(reloads) <= 1


def test_a_reload_that_raises_ends_nothing(running: Start, wait_until: WaitUntil) -> None:
    house = House(Clock())

    def reload() -> None:
        raise ConfigError("our bug")

    house.supervisor._reload = reload
    run = running(house)
    hang_up(house)
    wait_until(lambda: house.value("supervisor_failures_total") == 1)
    house.supervisor.stop()
    assert run.result() == 0
    assert house.notifier.told.count("ready 2/2 feeds live") == 2


# --- mistakes of the supervisor itself --------------------------------------------------------------------------------


def test_what_goes_wrong_with_one_worker_keeps_nobody_from_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation that must make this fail: call `_ask_for_replacement` without `_guarded`."""

    def broken() -> bool:
        raise RuntimeError("our bug")

    monkeypatch.setattr(scene.newest(UPBIT), "due_for_replacement", broken)
    scene.newest(GOPAX).die()
    scene.supervisor.tick()
    scene.pass_time(2)
    assert scene.newest(GOPAX).generation == 2
    assert "watchdog" in scene.notifier.told
    assert scene.value("supervisor_failures_total") == 2
    assert "our bug" in scene.log.of("supervisor_failed")[0]["stack"]
    assert scene.supervisor._failing_ticks == 2

    monkeypatch.undo()
    scene.supervisor.tick()
    assert scene.supervisor._failing_ticks == 0


def test_a_supervisor_that_can_do_nothing_any_more_ends_the_program_in_order(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation that must make this fail: `while True` in `_watch`."""
    house = House(Clock())
    house.add("a")
    monkeypatch.setattr(supervisor, "TICK_S", 0.001)

    def broken() -> None:
        raise RuntimeError("our bug")

    monkeypatch.setattr(house.supervisor, "_look_after_takeovers", broken)
    assert running(house).result() == 1
    assert house.log.of("supervisor_gave_up") == [{"ticks": FAILING_TICKS_MAX}]
    assert house.order[-2:] == ["stop writer", "writer"]
    assert house.writer.state == "stopped"


def test_a_loop_that_raises_outside_of_its_guards_ends_the_program_in_order(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation that must make this fail: call `_watch` without `try`."""
    house = House(Clock())
    house.add("a")

    def broken() -> None:
        raise RuntimeError("our bug")

    monkeypatch.setattr(house.supervisor, "tick", broken)
    assert running(house).result() == 1
    assert "our bug" in house.log.of("supervisor_failed")[0]["stack"]
    assert house.writer.state == "stopped"
