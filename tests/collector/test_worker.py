"""A worker goes on after every error, waits longer and longer in between, and ends at once when asked to."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from collector.clock import Clock
from collector.errors import ConnectionLost, RateLimited, StorageBusy
from collector.worker import Backoff, Worker
from tests.conftest import WaitUntil
from tests.fakes import FakeClock, HeardLog

Outcome = BaseException | Callable[[], None] | None


def backoff(clock: Clock, *, random: float = 1.0) -> Backoff:
    return Backoff(clock, base_s=1, cap_s=30, healthy_s=60, random_=lambda: random)


def test_delays_double_up_to_the_cap() -> None:
    delays = backoff(FakeClock())
    assert [delays.next_s() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_the_jitter_is_full() -> None:
    drawn = iter([0.0, 0.25, 0.999])
    delays = Backoff(FakeClock(), base_s=1, cap_s=30, healthy_s=60, random_=lambda: next(drawn))
    assert [delays.next_s() for _ in range(3)] == pytest.approx([0, 0.5, 3.996])


def test_ten_thousand_failures_still_give_the_cap() -> None:
    delays = backoff(FakeClock())
    assert {delays.next_s() for _ in range(10_000)} == {1, 2, 4, 8, 16, 30}


@pytest.mark.parametrize(("seconds", "next_s"), [(0.0, 8), (59.999999, 8), (60.0, 1), (3600.0, 1)])
def test_only_a_healthy_period_makes_delays_short_again(seconds: float, next_s: float) -> None:
    clock = FakeClock()
    delays = backoff(clock)
    for _ in range(3):
        delays.began()
        delays.next_s()
    delays.began()

    clock.advance(seconds)

    assert delays.next_s() == next_s


def test_a_clock_that_is_set_is_no_healthy_period() -> None:
    clock = FakeClock()
    delays = backoff(clock)
    delays.next_s()
    delays.began()
    clock.step_wall(86_400)
    assert delays.next_s() == 2


def test_the_exchanges_own_wish_is_the_least() -> None:
    delays = backoff(FakeClock(), random=0.5)
    assert delays.next_s(at_least_s=7) == 7
    assert delays.next_s(at_least_s=0.25) == 1
    assert delays.next_s(at_least_s=90) == 90  # above the cap: the exchange decides


class Scripted(Worker):
    """Does one outcome a run; without any left it waits to be stopped. Its pauses are noted, not waited."""

    def __init__(self, *outcomes: Outcome, clock: Clock | None = None) -> None:
        clock = clock or FakeClock()
        self.heard = HeardLog()
        super().__init__("upbit/BTC-KRW", self.heard, clock, backoff=backoff(clock))
        self.outcomes = list(outcomes)
        self.runs = 0
        self.threads: set[str] = set()
        self.pauses: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self.stopping = Pauses(self)

    def run_once(self) -> None:
        self.runs += 1
        self.threads.add(threading.current_thread().name)
        if not self.outcomes:
            self.stopping.wait()
            return
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            outcome()

    def noted(self) -> list[tuple[float, str]]:
        return [self.pauses.get() for _ in range(self.pauses.qsize())]


class Pauses(threading.Event):
    def __init__(self, worker: Scripted) -> None:
        super().__init__()
        self._worker = worker

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            return super().wait(30)
        self._worker.pauses.put((timeout, self._worker.state))
        return self.is_set()


@pytest.fixture
def started(wait_until: WaitUntil) -> Iterator[Callable[[Scripted], Scripted]]:
    """Start a worker and wait until it did everything in its script; stop it at the end."""
    workers: list[Scripted] = []

    def start(worker: Scripted) -> Scripted:
        workers.append(worker)
        worker.start()
        wait_until(lambda: not worker.outcomes and (worker.state == "running" or not worker.alive))
        return worker

    yield start
    for worker in workers:
        worker.stop()
        assert worker.join(10)


Start = Callable[[Scripted], Scripted]


def test_a_source_error_is_waited_out_and_the_work_goes_on(started: Start, wait_until: WaitUntil) -> None:
    worker = Scripted(ConnectionLost("gone"), StorageBusy("locked"), ConnectionLost("gone again"))

    started(worker)
    wait_until(lambda: worker.runs == 4)

    assert worker.noted() == [(1, "waiting"), (2, "waiting"), (4, "waiting")]
    assert [(str(told["error"]), told["attempt"], told["after_s"]) for told in worker.heard.of("retry")] == [
        ("gone", 1, 1),
        ("locked", 2, 2),
        ("gone again", 3, 4),
    ]
    assert worker.heard.of("worker_failed") == []
    assert worker.threads == {"upbit/BTC-KRW"}


def test_an_unexpected_error_is_told_with_its_traceback_and_the_work_goes_on(
    started: Start, wait_until: WaitUntil
) -> None:
    worker = Scripted(ZeroDivisionError("in our own code"), KeyError("market"))

    started(worker)
    wait_until(lambda: worker.runs == 3)

    told = [details["stack"] for details in worker.heard.of("worker_failed")]
    assert len(told) == 2
    assert "in run_once" in told[0] and "ZeroDivisionError: in our own code" in told[0]
    assert [pause for pause, _ in worker.noted()] == [1, 2]


def test_the_exchanges_retry_after_is_waited_for(started: Start, wait_until: WaitUntil) -> None:
    worker = started(Scripted(RateLimited("429", retry_after_s=45), RateLimited("429")))
    wait_until(lambda: worker.runs == 3)
    assert [pause for pause, _ in worker.noted()] == [45, 2]


def test_work_that_ends_unasked_starts_again(started: Start, wait_until: WaitUntil) -> None:
    worker = started(Scripted(None))
    wait_until(lambda: worker.runs == 2)
    assert [told["error"] for told in worker.heard.of("retry")] == ["ended"]


def test_a_healthy_run_makes_the_next_delay_short(started: Start, wait_until: WaitUntil) -> None:
    clock = FakeClock()

    def healthy_then_lost() -> None:
        clock.advance(61)
        raise ConnectionLost("after a good hour")

    worker = started(Scripted(ConnectionLost("1"), ConnectionLost("2"), healthy_then_lost, clock=clock))
    wait_until(lambda: worker.runs == 4)

    assert [pause for pause, _ in worker.noted()] == [1, 2, 1]


def test_waiting_is_a_sign_of_life(started: Start, wait_until: WaitUntil) -> None:
    clock = FakeClock()

    def long_then_lost() -> None:
        clock.advance(500)
        raise ConnectionLost("gone")

    worker = started(Scripted(long_then_lost, clock=clock))
    wait_until(lambda: worker.runs == 2)
    assert worker.beat_us == clock.monotonic_us()


class Stubborn(Worker):
    """Waits for `release`, whatever is asked of it, then raises `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.heard = HeardLog()
        self.running, self.release = threading.Event(), threading.Event()
        self.error = error
        super().__init__("stubborn", self.heard, Clock())

    def run_once(self) -> None:
        self.running.set()
        self.release.wait(30)
        if self.error:
            raise self.error


def test_stop_cuts_the_wait_for_the_next_attempt(wait_until: WaitUntil) -> None:
    class Failing(Worker):
        def run_once(self) -> None:
            raise ConnectionLost("gone")

    clock = Clock()
    waits = Backoff(clock, base_s=1000, cap_s=1000, healthy_s=60, random_=lambda: 1.0)
    worker = Failing("failing", HeardLog(), clock, backoff=waits)
    worker.start()
    wait_until(lambda: worker.state == "waiting")

    worker.stop()

    assert worker.join(10)
    assert worker.state == "stopped"


def test_a_worker_that_was_never_started_can_be_joined() -> None:
    worker = Stubborn()
    assert worker.state == "new"
    assert not worker.alive
    assert worker.join(0)


def test_a_worker_stopped_before_it_starts_does_nothing() -> None:
    worker = Stubborn()
    worker.stop()
    worker.start()
    assert worker.join(10)
    assert worker.state == "stopped"
    assert not worker.running.is_set()


def test_join_tells_that_a_worker_does_not_stop() -> None:
    worker = Stubborn()
    worker.start()
    assert worker.running.wait(10)
    worker.stop()

    assert not worker.join(0.01)
    assert worker.alive

    worker.release.set()
    assert worker.join(10)
    assert worker.state == "stopped"


def test_a_worker_that_is_given_up_shows_where_it_is_stuck() -> None:
    worker = Stubborn()
    worker.start()
    assert worker.running.wait(10)

    stack = worker.abandon()

    assert "self.release.wait(30)" in stack
    assert worker.state == "abandoned"

    worker.release.set()
    assert worker.join(10)
    assert worker.state == "abandoned"  # it stays so when it comes back


@pytest.mark.parametrize("error", [ConnectionLost("late"), ValueError("late")])
def test_an_error_of_a_worker_that_was_given_up_changes_nothing(error: Exception) -> None:
    worker = Stubborn(error)
    worker.start()
    assert worker.running.wait(10)
    worker.abandon()
    worker.release.set()
    assert worker.join(10)
    assert worker.state == "abandoned"


def test_a_worker_that_never_ran_has_no_stack() -> None:
    assert Stubborn().abandon() == ""


@pytest.mark.parametrize(
    ("error", "state"),
    [(ConnectionLost("the socket was shut down"), "stopped"), (ValueError("our bug"), "dead"), (None, "stopped")],
)
def test_only_an_unexpected_error_while_stopping_is_no_orderly_end(error: Exception | None, state: str) -> None:
    worker = Stubborn(error)
    worker.start()
    assert worker.running.wait(10)
    worker.stop()
    worker.release.set()
    assert worker.join(10)
    assert worker.state == state
    assert bool(worker.heard.of("worker_failed")) == (state == "dead")


def test_a_worker_that_does_not_say_what_it_does_is_told_so() -> None:
    with pytest.raises(NotImplementedError, match="Worker does not say"):
        Worker("nameless", HeardLog(), FakeClock()).run_once()


def test_a_worker_that_hears_no_feed_has_no_rows() -> None:
    assert Stubborn().status() == []


def test_a_worker_is_settled_while_it_runs_and_never_wants_to_be_replaced() -> None:
    worker = Worker("plain", HeardLog(), FakeClock())
    seen = [worker.settled]
    worker.state = "running"
    assert [*seen, worker.settled] == [False, True]
    assert not worker.due_for_replacement()
    assert worker.stop_reason == "stop"


def test_the_clocks_are_the_machines_own() -> None:
    clock = Clock()
    assert clock.wall_us() > 1_600_000_000_000_000
    first = clock.monotonic_us()
    assert clock.monotonic_us() >= first
