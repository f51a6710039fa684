"""Requests to one exchange are evenly spaced, however many ask; an idle time is not saved up."""

import threading

import pytest

from collector.budget import Budget
from tests.fakes import FakeClock


class Stopping(threading.Event):
    """Notes how long it was waited for and lets the clock pass instead of waiting."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if not self.is_set():
            self.clock.advance(timeout)
        return self.is_set()


class Standing(threading.Event):
    """Time stands still: everybody asks at the same moment."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__()
        self.waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


def test_the_first_request_goes_at_once_and_the_next_ones_are_spaced() -> None:
    clock = FakeClock()
    stopping = Stopping(clock)
    budget = Budget(4, clock)

    assert all(budget.wait(stopping) for _ in range(4))

    assert stopping.waits == pytest.approx([0, 0.25, 0.25, 0.25])


def test_who_asks_while_others_wait_gets_the_slot_after_theirs() -> None:
    waits: list[float] = []
    budget = Budget(10, FakeClock())
    standing = Standing(waits)

    for _ in range(3):
        budget.wait(standing)

    assert waits == pytest.approx([0, 0.1, 0.2])


def test_no_two_threads_get_the_same_slot() -> None:
    waits: list[float] = []
    budget = Budget(1000, FakeClock())
    standing = Standing(waits)
    threads = [threading.Thread(target=lambda: [budget.wait(standing) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(waits) == pytest.approx([slot / 1000 for slot in range(800)])


def test_time_in_which_nobody_asked_is_not_saved_up() -> None:
    clock = FakeClock()
    stopping = Stopping(clock)
    budget = Budget(2, clock)
    budget.wait(stopping)
    clock.advance(60)

    budget.wait(stopping)
    budget.wait(stopping)

    assert stopping.waits == pytest.approx([0, 0, 0.5])


def test_stop_ends_the_wait_and_uses_the_slot_up() -> None:
    clock = FakeClock()
    stopping = Stopping(clock)
    budget = Budget(1, clock)
    budget.wait(stopping)
    stopping.set()

    assert not budget.wait(stopping)

    other = Stopping(clock)
    assert budget.wait(other)
    assert sum(other.waits) == pytest.approx(2)  # the slot after the one that was given up


def test_another_rate_counts_from_the_next_slot_on() -> None:
    clock = FakeClock()
    budget = Budget(1, clock)
    budget.wait(Stopping(clock))
    budget.set_rate(10)

    assert [seconds_until_a_slot(budget, clock) for _ in range(3)] == pytest.approx([1, 0.1, 0.1])


def test_a_slot_too_far_away_is_not_taken() -> None:
    clock, never = FakeClock(), threading.Event()
    budget = Budget(1, clock)
    assert budget.wait(never, within_s=0.5)
    assert not budget.wait(never, within_s=0.5)  # the next one is a second away
    clock.advance(1)
    assert budget.wait(never, within_s=0.5)  # and nobody has used it up


# --- long waits -------------------------------------------------------------------------------------------------------


def test_who_waits_long_shows_a_sign_of_life_once_a_second() -> None:
    """The mutation that must make this fail: wait for the slot in one piece."""
    clock = FakeClock()
    stopping = Stopping(clock)
    budget = Budget(0.2, clock)
    budget.wait(stopping)
    alive: list[int] = []

    assert budget.wait(stopping, meanwhile=lambda: alive.append(clock.monotonic_us()))

    assert len(alive) == 4
    assert sum(stopping.waits) == pytest.approx(5)


def test_a_stop_in_a_long_wait_is_not_waited_out() -> None:
    clock = FakeClock()
    stopping = Stopping(clock)
    budget = Budget(0.01, clock)
    budget.wait(stopping)

    assert not budget.wait(stopping, meanwhile=lambda: stopping.set() if len(stopping.waits) > 3 else None)
    assert sum(stopping.waits) <= 5


# --- pauses -----------------------------------------------------------------------------------------------------------


def seconds_until_a_slot(budget: Budget, clock: FakeClock) -> float:
    """Wait for a slot; return how long that took."""
    began_us = clock.monotonic_us()
    assert budget.wait(Stopping(clock))
    return (clock.monotonic_us() - began_us) / 1e6


def test_a_pause_holds_for_everything_the_exchange_is_asked_for() -> None:
    """The mutation that must make this fail: `beside` with a pause of its own."""
    clock = FakeClock()
    requests = Budget(10, clock)
    connects = requests.beside(5)

    assert connects.pause(7) == 7

    assert requests.paused_s == connects.paused_s == 7
    assert seconds_until_a_slot(requests, clock) == 7
    assert seconds_until_a_slot(connects, clock) == 0, "it is over for all at once"


def test_a_pause_holds_for_those_who_wait_for_their_slot_already() -> None:
    """The mutation that must make this fail: return True after the wait without looking at the pause again."""
    clock = FakeClock()
    budget = Budget(0.5, clock)
    budget.wait(Stopping(clock))
    began_us = clock.monotonic_us()
    asked: list[float] = []

    assert budget.wait(Stopping(clock), meanwhile=lambda: None if asked else asked.append(budget.pause(30)))

    assert (clock.monotonic_us() - began_us) / 1e6 == 31, "a second had gone by when the pause began"


def test_after_a_pause_those_who_waited_come_one_after_the_other() -> None:
    """The mutation that must make this fail: hand out the end of the pause itself, not a slot behind it."""
    clock = FakeClock()
    budget = Budget(4, clock)
    budget.wait(Stopping(clock))
    budget.pause(10)

    assert [seconds_until_a_slot(budget, clock) for _ in range(3)] == pytest.approx([10, 0.25, 0.25])


def test_a_refusal_without_a_time_pauses_for_a_second_and_longer_each_time() -> None:
    clock = FakeClock()
    budget = Budget(10, clock)
    pauses = []
    for _ in range(8):
        pauses.append(budget.pause())
        clock.advance(pauses[-1])

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_ban_pauses_for_longer() -> None:
    clock = FakeClock()
    budget = Budget(10, clock)
    pauses = []
    for _ in range(8):
        pauses.append(budget.pause(banned=True))
        clock.advance(pauses[-1])

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_refusals_of_what_was_on_its_way_when_the_pause_began_count_once() -> None:
    """The mutation that must make this fail: count every refusal."""
    clock = FakeClock()
    budget = Budget(10, clock)

    assert [budget.pause() for _ in range(50)] == [1] * 50
    clock.advance(1)
    assert budget.pause() == 2


def test_a_longer_wish_makes_the_pause_longer_and_a_shorter_one_changes_nothing() -> None:
    clock = FakeClock()
    budget = Budget(10, clock)
    budget.pause(10)
    clock.advance(4)

    assert budget.pause(30) == 30
    clock.advance(10)
    assert budget.pause(5) == 20


def test_a_minute_without_a_refusal_forgives() -> None:
    clock = FakeClock()
    budget = Budget(10, clock)
    for _ in range(5):
        clock.advance(budget.pause())
    clock.advance(61)

    assert budget.pause() == 1


def test_a_slot_behind_a_pause_is_not_taken_by_who_can_not_wait() -> None:
    clock, never = FakeClock(), threading.Event()
    budget = Budget(10, clock)
    budget.pause(40)

    assert not budget.wait(never, within_s=30)
    clock.advance(15)
    assert budget.paused_s == 25
    clock.advance(25)
    assert budget.wait(never, within_s=0)


def test_a_clock_that_is_set_neither_shortens_nor_lengthens_anything() -> None:
    """The mutation that must make this fail: the wall clock in place of the monotonic one."""
    for step_s in (-3600, 3600):
        clock = FakeClock()
        budget = Budget(0.5, clock)
        budget.wait(Stopping(clock))
        clock.step_wall(step_s)
        assert seconds_until_a_slot(budget, clock) == 2
        budget.pause(5)
        clock.step_wall(step_s)
        assert budget.paused_s == 5
        assert seconds_until_a_slot(budget, clock) == 5
