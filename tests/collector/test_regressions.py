"""What once went wrong in the engine, or would have."""

import threading

import pytest

from collector.errors import RateLimited
from collector.supervisor import Supervisor
from collector.worker import Worker
from tests.conftest import WaitUntil
from tests.fakes import FakeClock, HeardLog, make_setup


class Waiting(Worker):
    """Its exchange wants to be left alone for ten minutes."""

    def run_once(self) -> None:
        raise RateLimited("HTTP 429", 600.0)


class Idle(Worker):
    """A writer with nothing to write."""

    def run_once(self) -> None:
        self.stopping.wait(30)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def supervisor(clock: FakeClock, log: HeardLog, describe: str | Exception = "") -> Supervisor:
    def told() -> str:
        if isinstance(describe, Exception):
            raise describe
        return describe

    writer = Idle("writer", log, clock)
    return Supervisor(writer, clock=clock, log=log, metrics=make_setup(clock=clock).metrics, describe=told)


def test_a_worker_may_wait_as_long_as_its_exchange_asks_for(clock: FakeClock, wait_until: WaitUntil) -> None:
    log = HeardLog()
    watched = supervisor(clock, log)
    watched.add(lambda generation: Waiting("upbit/BTC-KRW", log, clock, generation=generation))
    (worker,) = watched.workers
    watched.writer.start()
    worker.start()
    wait_until(lambda: worker.state == "waiting")

    clock.advance(599)
    watched.tick()

    assert watched.workers == [worker]
    assert worker.state == "waiting"
    assert not log.of("worker_stuck")
    for one in (worker, watched.writer):
        one.stop()
        assert one.join(10)


def test_a_line_for_people_that_can_not_be_made_ends_nothing(clock: FakeClock, wait_until: WaitUntil) -> None:
    log = HeardLog()
    watched = supervisor(clock, log, IndexError("the book changed meanwhile"))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(watched.run()))
    thread.start()
    wait_until(lambda: log.of("worker_failed"))
    watched.stop()
    thread.join(10)
    assert found == [0]
