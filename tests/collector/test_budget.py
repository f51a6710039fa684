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
    assert other.waits == pytest.approx([2])  # the slot after the one that was given up


def test_a_slot_too_far_away_is_not_taken() -> None:
    clock, never = FakeClock(), threading.Event()
    budget = Budget(1, clock)
    assert budget.wait(never, within_s=0.5)
    assert not budget.wait(never, within_s=0.5)  # the next one is a second away
    clock.advance(1)
    assert budget.wait(never, within_s=0.5)  # and nobody has used it up
