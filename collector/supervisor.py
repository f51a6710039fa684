"""The supervisor: starts, watches, restarts and stops every worker, and answers signals.

Its tick is plain: read signals, restart the dead, give up on the stuck, tell systemd. It stops in the order data flows:
sources first, then the writer, which commits what is left. A thread can't be killed; one that does not stop in time is
named with its stack and abandoned, and what it delivers afterwards is refused.
"""

import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from collector.clock import Clock
from collector.log import Log
from collector.metrics import Metrics
from collector.systemd import Notifier
from collector.worker import Backoff, Worker

TICK_S = 0.5
STUCK_S = 120.0  # a worker beats at least every few seconds; connecting may take ten


@dataclass
class _Slot:
    """A place that always holds one worker; `make` builds the worker of a generation."""

    make: Callable[[int], Worker]
    worker: Worker
    backoff: Backoff
    restart_at_us: int | None = None
    abandoned: list[Worker] = field(default_factory=list)


class Supervisor:
    """Runs workers until a signal, or `stop`, ends it.

    `writer` is the last to stop; it is never replaced while it lives, since nobody else may write. `watchdog_s` is how
    long the writer may go without finishing a cycle before systemd is no longer told that all is well.
    """

    def __init__(
        self,
        writer: Worker,
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        notifier: Notifier | None = None,
        stop_timeout_s: float = 10.0,
        stuck_s: float = STUCK_S,
        watchdog_s: float = 30.0,
        describe: Callable[[], str] = lambda: "",
    ) -> None:
        self.writer = writer
        self.clock, self.log, self.metrics = clock, log, metrics
        self._notifier = notifier or Notifier()
        self._stop_timeout_s = stop_timeout_s
        self._stuck_us = int(stuck_s * 1e6)
        self._watchdog_us = int(watchdog_s * 1e6)
        self._describe = describe
        self._slots: dict[str, _Slot] = {}
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._at_once = False
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    # --- what is supervised -----------------------------------------------------------------------------------------

    def add(self, make: Callable[[int], Worker]) -> None:
        """Supervise the worker that `make(generation)` builds; it starts with `run`."""
        worker = make(1)
        with self._lock:
            self._slots[worker.name] = _Slot(make, worker, Backoff(self.clock))

    @property
    def workers(self) -> list[Worker]:
        """The workers of the present generation, without the writer."""
        with self._lock:
            return [slot.worker for slot in self._slots.values()]

    # --- running ----------------------------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Let SIGTERM and SIGINT end `run`; only possible in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _frame: self._signals.put(received))

    def stop(self) -> None:
        """End `run` from another thread, in order."""
        self._signals.put(signal.SIGTERM)

    def run(self) -> int:
        """Start everything, watch until told to stop, stop in order; return the exit status.

        0: everything handed in was committed. 1: something was not, or a second signal left no time to see to it.
        """
        self.writer.start()
        for worker in self.workers:
            worker.start()
        self._notifier.ready(self._status())
        while True:
            received = self._next_signal(TICK_S)
            if received == signal.SIGHUP:
                self.log.warning("reload_unsupported")
            elif received is not None:
                self.log.info("stop_asked", signal=signal.Signals(received).name)
                break
            self.tick()
        self.stopping.set()
        self._notifier.stopping()
        return self._stop_in_order()

    def tick(self) -> None:
        """Look after every worker once."""
        with self._lock:
            slots = list(self._slots.values())
        for slot in slots:
            self._look_after(slot)
        self._look_after_writer()
        states: dict[str, int] = {}
        for worker in [slot.worker for slot in slots] + [self.writer]:
            states[worker.state] = states.get(worker.state, 0) + 1
        abandoned = sum(1 for slot in slots for worker in slot.abandoned if worker.alive)
        if abandoned:
            states["abandoned"] = abandoned
        self.metrics.show_workers(states)
        if self.healthy()[0]:
            self._notifier.watchdog()
        self._notifier.status(self._status())

    def _status(self) -> str:
        try:
            return self._describe()
        except Exception as error:  # a line for people must not end what it speaks of
            self.log.exception("worker_failed", worker="supervisor", error=repr(error))
            return ""

    def healthy(self) -> tuple[bool, str]:
        """Tell whether the writer finishes cycles, which is what the watchdog and `/healthz` speak of."""
        silent_us = self.clock.monotonic_us() - self.writer.beat_us
        if silent_us > self._watchdog_us:
            return False, f"the writer has not finished a cycle for {silent_us / 1e6:.0f} s"
        if self.writer.state in ("dead", "stopped"):
            return False, "the writer is not running"
        return True, "ok"

    def _look_after(self, slot: _Slot) -> None:
        worker = slot.worker
        now_us = self.clock.monotonic_us()
        if slot.restart_at_us is not None:
            if now_us >= slot.restart_at_us:
                slot.restart_at_us = None
                self._restart(slot)
        elif not worker.alive:
            worker.state = "dead"
            self._replace_soon(slot, "died")
        elif (
            worker.state != "waiting" and now_us - worker.beat_us > self._stuck_us
        ):  # a wait may be as long as asked for
            stack = worker.abandon()
            self.log.error(
                "worker_stuck", worker=worker.name, seconds=(now_us - worker.beat_us) // 1_000_000, stack=stack
            )
            slot.abandoned.append(worker)
            self._replace_soon(slot, "stuck")
        slot.abandoned = [old for old in slot.abandoned if old.alive]

    def _restart(self, slot: _Slot) -> None:
        slot.backoff.began()
        try:
            worker = slot.make(slot.worker.generation + 1)
            worker.start()
        except Exception as error:  # no memory for a thread, or our bug: the other workers must not hear of it
            self.log.exception("worker_failed", worker=slot.worker.name, error=repr(error))
            self._replace_soon(slot, "failed")
            return
        slot.worker = worker
        self.log.warning("worker_restarted", worker=worker.name, generation=worker.generation)

    def _replace_soon(self, slot: _Slot, reason: str) -> None:
        delay_s = slot.backoff.next_s()
        slot.restart_at_us = self.clock.monotonic_us() + int(delay_s * 1e6)
        self.metrics.restarts.labels(slot.worker.name, reason).inc()
        self.log.error("worker_died", worker=slot.worker.name, reason=reason, after_s=round(delay_s, 1))

    def _look_after_writer(self) -> None:
        if not self.writer.alive and self.writer.state != "dead":
            self.writer.state = "dead"
            self.metrics.restarts.labels(self.writer.name, "died").inc()
            self.log.error("writer_died")
            # The store belongs to the process: a fresh one is the only clean start.
            self._signals.put(signal.SIGTERM)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stop_in_order(self) -> int:
        deadline_us = self.clock.monotonic_us() + int(self._stop_timeout_s * 1e6)
        sources = [worker for worker in self.workers if worker.alive]
        for worker in sources:
            worker.stop()
        for worker in sources:
            if not self._join(worker, deadline_us):
                self.log.error("worker_abandoned", worker=worker.name, stack=worker.abandon())
        self.writer.stop()
        if self._join(self.writer, self.clock.monotonic_us() + int(self._stop_timeout_s * 1e6)):
            return 0 if self.writer.state == "stopped" and not self._at_once else 1
        self.log.error("writer_abandoned", stack=self.writer.abandon())
        return 1

    def _join(self, worker: Worker, deadline_us: int) -> bool:
        # In slices, so that a second signal leaves at once: nothing is waited for any more, the writer included.
        while True:
            left_us = 0 if self._at_once else deadline_us - self.clock.monotonic_us()
            if worker.join(max(0.0, min(0.2, left_us / 1e6))):
                return True
            if left_us <= 0:
                return False
            if self._next_signal(0) not in (None, signal.SIGHUP):
                self._at_once = True
                self.log.error("stop_at_once")

    def _next_signal(self, timeout_s: float) -> int | None:
        try:
            return self._signals.get(timeout=timeout_s) if timeout_s else self._signals.get_nowait()
        except queue.Empty:
            return None
