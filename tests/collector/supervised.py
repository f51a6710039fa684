"""A small daemon for tests that send real signals: one source, a writer that drains, and a supervisor over both.

`python -m tests.collector.supervised MODE` says on standard output what happens, a line each. Modes: `orderly`;
`stuck`: three sources that never stop; `failing`: the writer can't commit; `dying`: the writer's thread ends unasked.
"""

import sys
import threading
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from collector.clock import Clock
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import Delivery, Event
from collector.supervisor import Supervisor
from collector.systemd import Notifier
from collector.worker import Worker
from storage.store import Batch, Run
from storage.writer import Writer

_output = threading.Lock()


def say(*words: object) -> None:
    with _output:
        print(*words, flush=True)


class SaidLog(Log):
    """Writes every event where the test reads it."""

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        say("log", key, details.get("worker", ""))


class SaidNotifier(Notifier):
    """Says what systemd would be told, apart from the routine."""

    def ready(self, status: str) -> bool:
        say("READY")
        return True

    def stopping(self) -> bool:
        say("STOPPING")
        return True


class Source(Worker):
    """Delivers one record after another, and a last one when it is asked to stop."""

    def __init__(self, intake: Intake, generation: int) -> None:
        super().__init__("source", SaidLog("SOURCE"), Clock(), generation=generation)
        self.intake = intake
        self.made = 0

    def run_once(self) -> None:
        while not self.stopping.wait(0.005):
            self._deliver("data")
        self._deliver("end")
        say("made", self.made)

    def _deliver(self, text: str) -> None:
        self.intake.put(Delivery("upbit", 1, (Event(0, "INFO", "SOURCE", text),), 100))
        self.made += 1
        if self.made == 5:
            say("delivering")
        self.beat()


class Stuck(Worker):
    """Takes no notice of being stopped."""

    def run_once(self) -> None:
        threading.Event().wait(60)


def stuck(name: str) -> Callable[[int], Worker]:
    return lambda generation: Stuck(name, SaidLog("STUCK"), Clock(), generation=generation)


class Store:
    """Counts what it is given."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.records = 0

    def open(self) -> None: ...

    def write(self, batch: Batch, now_us: int) -> int:
        if self.mode == "failing":
            raise OSError("no disk")
        if self.mode == "dying":
            raise SystemExit
        self.records += sum(len(delivery.records) for delivery in batch.deliveries)
        return 0

    def open_epochs(self, run: Run) -> set[int]:
        return set()

    def close_run(self, run: Run, now_us: int) -> None: ...

    def size_bytes(self) -> int:
        return 0

    def release(self) -> None: ...


def main(mode: str) -> int:
    clock, log = Clock(), SaidLog("TEST")
    metrics = Metrics(CollectorRegistry(), version="test", started_s=0)
    intake, store = Intake(1 << 20), Store(mode)
    writer = Writer(store, intake, Run("", "test", "test", 0), clock=clock, log=log, metrics=metrics, batch_ms=20)
    supervisor = Supervisor(
        writer,
        clock=clock,
        log=log,
        metrics=metrics,
        notifier=SaidNotifier(),
        stop_timeout_s=60 if mode == "stuck" else 0.5,
    )
    supervisor.add(lambda generation: Source(intake, generation))
    if mode == "stuck":
        for number in range(3):
            supervisor.add(stuck(f"stuck {number}"))
    supervisor.install_signals()
    status = supervisor.run()
    say("stored", store.records)
    say("held", intake.held[0])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
