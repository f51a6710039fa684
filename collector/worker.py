"""A worker: a named thread with a heartbeat, a state others can read, and a loop that no error leaves.

`run_once` does the work until it is stopped or fails; it is apart from the thread, so tests call it directly. A thread
can't be killed: `stop` asks, `join` waits, and whoever gives up on one starts another `Worker` under a new generation.
"""

import random
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

from collector.clock import Clock
from collector.errors import RateLimited, SourceError, StorageError
from collector.log import Log


class Backoff:
    """Full-jitter exponential delays, reset only after a healthy period (not after a mere connect)."""

    def __init__(
        self,
        clock: Clock,
        *,
        base_s: float = 1.0,
        cap_s: float = 30.0,
        healthy_s: float = 60.0,
        random_: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._base_s, self._cap_s, self._healthy_us = base_s, cap_s, int(healthy_s * 1e6)
        self._random = random_
        self._began_us = clock.monotonic_us()
        self.attempt = 0

    def began(self) -> None:
        """Note that an attempt starts now; how long it lasts decides whether it was healthy."""
        self._began_us = self._clock.monotonic_us()

    def next_s(self, at_least_s: float | None = None) -> float:
        """Return how long to wait before the next attempt, at least what the exchange asked for."""
        if self._clock.monotonic_us() - self._began_us >= self._healthy_us:
            self.attempt = 0
        ceiling_s = min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 30))
        self.attempt += 1
        return max(ceiling_s * self._random(), at_least_s or 0.0)


class Worker:
    """The lifecycle every controller, writer and sync job shares.

    `state` is `new`, `running`, `waiting` (for the next attempt), `stopped`, `dead` (its thread ended unasked, or by an
    unexpected error while it was stopping), `parked` (dead, and left so for a while) or `abandoned`.
    """

    kind = "worker"

    def __init__(
        self, name: str, log: Log, clock: Clock, *, backoff: Backoff | None = None, generation: int = 1
    ) -> None:
        self.name = name
        self.log = log
        self.clock = clock
        self.generation = generation
        self.backoff = backoff or Backoff(clock)
        self.stopping = threading.Event()
        self.stop_reason = "stop"  # why the work ends when `stop` ends it; `superseded` where another takes it over
        self.state = "new"
        self.beat_us = clock.monotonic_us()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def run_once(self) -> None:
        """Work until `stopping` is set; raise `SourceError` or `StorageError` to be started again after a while."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    def beat(self) -> None:
        """Say that the worker is alive and moving."""
        self.beat_us = self.clock.monotonic_us()

    def start(self) -> None:
        """Start the thread; a worker starts once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to end; returns at once."""
        self.stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end and tell whether it did."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def settled(self) -> bool:
        """Whether everything this worker is for has begun, so that the one it replaces may stop."""
        return self.state == "running"

    def due_for_replacement(self) -> bool:
        """Tell whether a second generation should take over now, before what is known to come ends this one."""
        return False

    def covered_by(self, successors: Sequence["Worker"], *, seamlessly: bool) -> bool:
        """Tell whether these do what this one does at present, so that it may end.

        `seamlessly`: and have done so since before what this one accounts for ends.
        """
        return True

    def abandon(self) -> str:
        """Give the worker up and return the stack it is stuck in; its late records are refused from now on."""
        self.state = "abandoned"
        self.stopping.set()
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame else ""

    def report(self, problem: object, delay_s: float) -> None:
        """Log why the last attempt ended and when the next one comes."""
        self.log.warning("retry", error=problem, attempt=self.backoff.attempt, after_s=round(delay_s, 1))

    def status(self) -> list[dict[str, object]]:
        """Return a row for each feed this worker hears; none for a worker that hears none."""
        return []

    def _run(self) -> None:
        while not self.stopping.is_set():
            self.state = "running"
            self.backoff.began()
            at_least_s = None
            try:
                self.run_once()
                if self.stopping.is_set():
                    break
                problem: object = "ended"
            except (SourceError, StorageError) as error:
                problem = error
                at_least_s = error.retry_after_s if isinstance(error, RateLimited) else None
            except Exception as error:
                problem = error
                self.log.exception("worker_failed", worker=self.name, error=repr(error))
                if self.stopping.is_set() and self.state != "abandoned":
                    self.state = "dead"  # whatever it still had to do is not done
                    return
            if self.stopping.is_set():
                break
            delay_s = self.backoff.next_s(at_least_s)
            self.report(problem, delay_s)
            if self.state != "abandoned":
                self.state = "waiting"
            self.beat()
            self.stopping.wait(delay_s)
        if self.state != "abandoned":
            self.state = "stopped"
