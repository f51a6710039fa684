"""The supervisor: starts, watches, restarts, replaces and stops every worker, and answers signals.

Its tick is plain: read signals, restart the dead, give up on the stuck, let those take over that are due, tell systemd.
It stops in the order data flows: sources first, then the writer, which commits what is left. A thread can't be killed;
one that does not stop in time is named with its stack and abandoned, and what it delivers afterwards is refused.

Nothing that goes wrong here ends it: what raises is told and counted, and the next tick goes on with the rest. Only
where that is so for a minute on end it stops everything, so that a fresh process can begin.
"""

import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from collector.clock import Clock
from collector.log import Log
from collector.metrics import Metrics
from collector.slot import Part, Slot
from collector.systemd import Notifier
from collector.takeover import SETTLE_S, Takeover
from collector.worker import Worker

TICK_S = 0.5
STUCK_S = 120.0  # a worker beats at least every few seconds; connecting may take ten
FAILING_TICKS_MAX = 120

Signals = queue.SimpleQueue[int]


class Change(NamedTuple):
    """What a new plan asks for: the old parts go, the new ones come; where there are both, these take over from those.

    Parts are known by their `plan`.
    """

    old: tuple[Part, ...]
    new: tuple[Part, ...]


def catch_signals(caught: Signals) -> None:
    """Put SIGTERM, SIGINT and SIGHUP into a queue from now on; only possible in the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: caught.put(received))


def ignore_signals() -> None:
    """Let the same signals do nothing any more: all is done, and the exit status must still be able to say so."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class Supervisor:
    """Runs workers until a signal, or `stop`, ends it.

    `writer` is the last to stop; it is never replaced while it lives, since nobody else may write. `watchdog_s` is how
    long the writer may go without finishing a cycle before systemd is no longer told that all is well. `reload` is
    called at SIGHUP, and may `apply` changes. `gone` is called with a worker that has ended because it is not wanted
    any more. `signals` is a queue that is being filled already.
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
        settle_s: float = SETTLE_S,
        watchdog_s: float = 30.0,
        describe: Callable[[], str] = lambda: "",
        reload: Callable[[], None] | None = None,
        gone: Callable[[Worker], None] = lambda worker: None,
        signals: Signals | None = None,
    ) -> None:
        self.writer = writer
        self.clock, self.log, self.metrics = clock, log, metrics
        self.stop_timeout_s = stop_timeout_s
        self._notifier = notifier or Notifier()
        self._stuck_us = int(stuck_s * 1e6)
        self._settle_s = settle_s
        self._watchdog_us = int(watchdog_s * 1e6)
        self._describe, self._reload, self._gone = describe, reload, gone
        self._slots: dict[str, Slot] = {}
        self._takeovers: list[Takeover] = []
        self._leaving: list[tuple[Worker, int]] = []  # asked to stop, and how long they may take
        self._abandoned: list[Worker] = []
        self._signals: Signals = queue.SimpleQueue() if signals is None else signals
        self._errands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._at_once = False
        self._failing_ticks = 0
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    # --- what is supervised -----------------------------------------------------------------------------------------

    def add(self, make: Callable[[int], Worker], *, group: str | None = None, plan: object = None) -> None:
        """Supervise the worker that `make(generation)` builds; it starts with `run`."""
        worker = make(1)
        self._put(Slot(Part(make, worker.name if group is None else group, plan), worker, self.clock))

    @property
    def workers(self) -> list[Worker]:
        """The workers of the present generation, without the writer."""
        return [slot.worker for slot in self._present()]

    @property
    def parts(self) -> list[Part]:
        """What is being done at present."""
        return [slot.part for slot in self._present()]

    @property
    def takeovers(self) -> list[Takeover]:
        """Those that are under way or wait for their turn."""
        with self._lock:
            return self._takeovers.copy()

    def _present(self) -> list[Slot]:
        with self._lock:
            return list(self._slots.values())

    def _put(self, slot: Slot) -> None:
        with self._lock:
            self._slots[slot.worker.name] = slot

    def apply(self, changes: Sequence[Change]) -> None:
        """Begin what a new plan asks for, compared with `parts`; for `reload` and errands, in the supervisor's thread.

        What begins, begins at once; where something takes over from something else, that may last. A takeover that an
        earlier plan asked for goes on if this one asks for the same.
        """
        changes = list(changes)
        for takeover in self.takeovers:
            same = next((change for change in changes if _asks_for(change, takeover)), None)
            if same is None:
                self._forget(takeover)
            else:
                changes.remove(same)
        for change in changes:
            old = [slot for slot in self._present() if any(slot.part.plan == part.plan for part in change.old)]
            if change.new:
                self._await(Takeover(old, change.new, why="reload", clock=self.clock, settle_s=self._settle_s))
            else:
                for slot in old:
                    self._remove(slot, "stop")
        self._look_after_takeovers()

    def later(self, errand: Callable[[], object]) -> None:
        """Have something done in the supervisor's own thread at its next tick; any thread may ask."""
        self._errands.put(errand)

    # --- running ----------------------------------------------------------------------------------------------------

    def install_signals(self) -> None:
        """Let SIGTERM and SIGINT end `run`, and SIGHUP reload; only possible in the main thread."""
        catch_signals(self._signals)

    def stop(self) -> None:
        """End `run` from another thread, in order."""
        self._signals.put(signal.SIGTERM)

    def run(self) -> int:
        """Start everything, watch until told to stop, stop in order; return the exit status.

        0: everything handed in was committed. 1: something was not, or a second signal left no time to see to it, or
        the supervisor itself could not go on.
        """
        try:
            self.writer.start()
            for slot in self._present():
                self._guarded(self._start, slot)
            self._notifier.ready(self._status())
            asked = self._watch()
        except Exception as error:
            self._failed(error)
            asked = False
        self.stopping.set()
        try:
            self._notifier.stopping()
            status = self._stop_in_order()
        except Exception as error:
            self._failed(error)
            return 1
        return status if asked else 1

    def _watch(self) -> bool:
        # Tells whether somebody asked for the end; else too much went wrong here for too long.
        while self._failing_ticks < FAILING_TICKS_MAX:
            first = received = self._next_signal(TICK_S)
            while received == signal.SIGHUP:  # any number of them asks for one reload
                received = self._next_signal(0)
            if received is not None:
                self.log.info("stop_asked", signal=signal.Signals(received).name)
                return True
            if first == signal.SIGHUP:
                self._guarded(self._hang_up)
            self.tick()
        self.log.error("supervisor_gave_up", ticks=self._failing_ticks)
        return False

    def tick(self) -> None:
        """Look after everything once."""
        errands = [self._errands.get() for _ in range(self._errands.qsize())]
        good = [self._guarded(errand) for errand in errands]
        good += [self._guarded(self._look_after, slot) for slot in self._present()]
        good += [self._guarded(self._ask_for_replacement, slot) for slot in self._present()]
        good.append(self._guarded(self._look_after_takeovers))
        good.append(self._guarded(self._look_after_leaving))
        good.append(self._guarded(self._look_after_writer))
        good.append(self._guarded(self._tell))
        self._failing_ticks = 0 if all(good) else self._failing_ticks + 1

    def _guarded(self, action: Callable[..., object], *arguments: object) -> bool:
        # Tells whether it was done. An error here concerns one thing; the others still need somebody.
        try:
            action(*arguments)
        except Exception as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self.metrics.supervisor_failures.inc()
        self.log.exception("supervisor_failed", error=repr(error))

    def _tell(self) -> None:
        second = [worker for takeover in self._takeovers for worker in takeover.workers]
        leaving = [worker for worker, _ in self._leaving]
        workers = dict.fromkeys([*self.workers, *second, *leaving, *self._abandoned, self.writer])
        self.metrics.show_workers(Counter(worker.state for worker in workers))
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

    def _hang_up(self) -> None:
        if self._reload is None:
            self.log.warning("reload_unsupported")
            return
        self._notifier.reloading()
        try:
            self._reload()
        finally:
            self._notifier.ready(self._status())

    # --- the dead and the stuck ---------------------------------------------------------------------------------------

    def _look_after(self, slot: Slot) -> None:
        worker = slot.worker
        now_us = self.clock.monotonic_us()
        if any(takeover.workers and takeover.replaces(slot) for takeover in self._takeovers):
            return  # another worker is on its way already
        if slot.restart_at_us is not None:
            if now_us >= slot.restart_at_us:
                slot.restart_at_us = None
                self._restart(slot)
        elif not worker.alive:
            worker.state = "dead"
            self._restart_later(slot, "died")
        elif self._is_stuck(worker, now_us):
            stack = worker.abandon()
            self.log.error(
                "worker_stuck", worker=worker.name, seconds=(now_us - worker.beat_us) // 1_000_000, stack=stack
            )
            self._abandoned.append(worker)
            self._restart_later(slot, "stuck")

    def _is_stuck(self, worker: Worker, now_us: int) -> bool:
        # A wait may be as long as asked for.
        return worker.state != "waiting" and now_us - worker.beat_us > self._stuck_us

    def _start(self, slot: Slot) -> None:
        slot.began()
        try:
            slot.worker.start()
        except Exception as error:  # no memory for a thread: the other workers must not hear of it
            self.log.exception("worker_failed", worker=slot.worker.name, error=repr(error))
            self._restart_later(slot, "failed")

    def _restart(self, slot: Slot) -> None:
        slot.began()
        try:
            worker = slot.make(slot.worker.generation + 1)
            worker.start()
        except Exception as error:  # the same, or our bug
            self.log.exception("worker_failed", worker=slot.worker.name, error=repr(error))
            self._restart_later(slot, "failed")
            return
        slot.worker = worker
        self.log.warning("worker_restarted", worker=worker.name, generation=worker.generation)

    def _restart_later(self, slot: Slot, reason: str) -> None:
        delay_s, parked = slot.died()
        worker = slot.worker
        self.metrics.restarts.labels(worker.name, reason).inc()
        self.log.error("worker_died", worker=worker.name, reason=reason, after_s=round(delay_s, 1))
        if parked:
            if worker.state != "abandoned":
                worker.state = "parked"
            self.log.error("worker_parked", worker=worker.name, after_s=round(delay_s, 1))

    def _look_after_leaving(self) -> None:
        now_us = self.clock.monotonic_us()
        for worker, deadline_us in self._leaving.copy():
            if worker.join(0):
                self._leaving.remove((worker, deadline_us))
                self._gone(worker)
            elif now_us >= deadline_us or worker.state == "abandoned":
                self._leaving.remove((worker, deadline_us))
                if worker.state != "abandoned":
                    self._give_up(worker)
                self._gone(worker)
        self._abandoned = [worker for worker in self._abandoned if worker.alive]

    def _give_up(self, worker: Worker) -> None:
        self.log.error("worker_abandoned", worker=worker.name, stack=worker.abandon())
        self._abandoned.append(worker)

    def _look_after_writer(self) -> None:
        if not self.writer.alive and self.writer.state != "dead":
            self.writer.state = "dead"
            self.metrics.restarts.labels(self.writer.name, "died").inc()
            self.log.error("writer_died")
            # The store belongs to the process: a fresh one is the only clean start.
            self._signals.put(signal.SIGTERM)

    # --- taking over --------------------------------------------------------------------------------------------------

    def _ask_for_replacement(self, slot: Slot) -> None:
        if slot.worker.due_for_replacement() and not any(takeover.replaces(slot) for takeover in self._takeovers):
            self._await(Takeover([slot], [slot.part], why="planned", clock=self.clock, settle_s=self._settle_s))

    def _look_after_takeovers(self) -> None:
        for takeover in self.takeovers:
            if takeover.workers:
                self._judge(takeover)
        now_us = self.clock.monotonic_us()
        for takeover in self.takeovers:
            if not takeover.workers and now_us >= takeover.not_before_us:
                if not takeover.wanted:
                    self._forget(takeover)
                elif not takeover.old or takeover.group not in self._busy_groups():
                    self._begin(takeover)

    def _busy_groups(self) -> set[str]:
        return {takeover.group for takeover in self._takeovers if takeover.workers}

    def _begin(self, takeover: Takeover) -> None:
        try:
            takeover.begin()
        except Exception as error:  # no memory for a thread, or our bug: what there is goes on
            names = ",".join(slot.worker.name for slot in takeover.old)
            self.log.exception("worker_failed", worker=names or takeover.group, error=repr(error))
            takeover.give_up()
            self.metrics.takeovers.labels(takeover.group, "failed").inc()
            return
        if takeover.old:
            self._say("takeover_started", takeover)
        self._judge(takeover)

    def _judge(self, takeover: Takeover) -> None:
        verdict = takeover.look()
        if verdict == "done":
            self._finish(takeover)
        elif verdict:
            self.metrics.takeovers.labels(takeover.group, "failed").inc()
            self._say("takeover_failed", takeover, reason=verdict)
            for worker in takeover.give_up():
                self._dismiss(worker, "superseded")

    def _finish(self, takeover: Takeover) -> None:
        with self._lock:
            self._takeovers.remove(takeover)
            pairs = zip(takeover.new, takeover.workers, strict=True)
            new = {worker.name: Slot(part, worker, self.clock) for part, worker in pairs}
            slots: dict[str, Slot] = {}
            for name, slot in self._slots.items():
                slots |= new if takeover.replaces(slot) else {name: slot}
            self._slots = slots | new
        if not takeover.old:
            return
        for slot in takeover.old:
            self._dismiss(slot.worker, "superseded")
        self.metrics.takeovers.labels(takeover.group, "done").inc()
        self._say("takeover_done", takeover)

    def _await(self, takeover: Takeover) -> None:
        with self._lock:
            self._takeovers.append(takeover)

    def _forget(self, takeover: Takeover) -> None:
        with self._lock:
            self._takeovers.remove(takeover)
        for worker in takeover.give_up():
            self._dismiss(worker, "superseded")

    def _remove(self, slot: Slot, reason: str) -> None:
        with self._lock:
            self._slots.pop(slot.worker.name, None)
        self._dismiss(slot.worker, reason)

    def _dismiss(self, worker: Worker, reason: str) -> None:
        worker.stop_reason = reason
        worker.stop()
        self._leaving.append((worker, self.clock.monotonic_us() + int(self.stop_timeout_s * 1e6)))

    def _say(self, key: str, takeover: Takeover, **details: object) -> None:
        names = ",".join(dict.fromkeys(worker.name for worker in takeover.workers))
        generations = ",".join(dict.fromkeys(str(worker.generation) for worker in takeover.workers))
        details = {"worker": names, "generation": generations, "why": takeover.why, **details}
        self.log.event("WARNING" if key == "takeover_failed" else "INFO", key, **details)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stop_in_order(self) -> int:
        deadline_us = self.clock.monotonic_us() + int(self.stop_timeout_s * 1e6)
        second = [worker for takeover in self._takeovers for worker in takeover.workers]
        leaving = [worker for worker, _ in self._leaving]
        sources = [w for w in [*self.workers, *second, *leaving] if w.alive and w.state != "abandoned"]
        for worker in sources:
            worker.stop()
        for worker in sources:
            if not self._join(worker, deadline_us):
                self._give_up(worker)
        self.writer.stop()
        if self._join(self.writer, self.clock.monotonic_us() + int(self.stop_timeout_s * 1e6)):
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


def _asks_for(change: Change, takeover: Takeover) -> bool:
    old, new = [part.plan for part in change.old], [part.plan for part in change.new]
    return (
        takeover.why == "reload"
        and len(old) == len(takeover.old)
        and all(slot.part.plan in old for slot in takeover.old)
        and new == [part.plan for part in takeover.new]
    )
