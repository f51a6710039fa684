"""Throws exceptions into the threads of a running daemon, at any line of the collector's own code.

`python -m tests.faults.thrown FOLDER THROWS SEED`: five exchanges are heard from a simulator in this process. So often
a worker is chosen, and at one of the next lines it comes to, an exception of some kind is raised, at times another one
while the first is being dealt with. A line each says where; the last line is what the judge says of it all.

It is a process of its own because it takes the place of whatever else traces lines, and ends threads in earnest.
"""

import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import collector.slot
from collector.budget import Budget
from collector.worker import Backoff
from controllers.base import Controller
from controllers.rest import RESTController
from controllers.websocket import WSController
from tests.conftest import ROOT
from tests.faults.house import House

EXCHANGES = ("upbit", "bithumb", "coinone", "korbit", "gopax")
OURS = str(ROOT / "controllers")
DOUBLE = 0.3
BACK_S = 15  # five are promised; the rest is for this machine, which traces every line


class Boom(Exception):
    """An error nobody expects."""


class Dead(BaseException):
    """An error that ends a thread."""


KINDS = (Boom, SystemExit, MemoryError, RecursionError, Dead)


class Thrower:
    """Raises in one thread at the n-th line of our own code from now; used as the trace function of every worker."""

    def __init__(self) -> None:
        self.where: list[str] = []
        self.thrown = threading.Event()
        self._thread = 0
        self._plan: list[tuple[int, type[BaseException]]] = []
        self._lines = 0

    def arm(self, thread: int, plan: Sequence[tuple[int, type[BaseException]]]) -> None:
        """Raise each of these after so many lines in a thread, counted from the one before."""
        self.where = []
        self.thrown.clear()
        self._plan, self._lines, self._thread = list(plan), 0, thread

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Look at a new frame: only those of the controllers are followed."""
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if threading.get_ident() == self._thread and self._plan and event == "line":
            self._lines += 1
            if self._lines >= self._plan[0][0]:
                _, kind = self._plan.pop(0)
                self._lines = 0
                code = frame.f_code
                self.where.append(f"{kind.__name__} at {Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
                if not self._plan:
                    self.thrown.set()
                raise kind
        return self._line


def traced(cls: type, name: str, thrower: Thrower) -> None:
    """Trace whatever a method of a class calls; Python traces a thread no more that a trace function raised in."""
    original = getattr(cls, name)

    def method(*arguments: Any, **named: Any) -> Any:
        sys.settrace(thrower.trace)
        return original(*arguments, **named)

    setattr(cls, name, method)


def main(folder: Path, throws: int, seed: int) -> int:
    dice = random.Random(seed)
    thrower = Thrower()
    for cls in (WSController, RESTController):
        traced(cls, "run_once", thrower)
    for name in ("handle", "flush", "tick", "end_epochs"):
        traced(Controller, name, thrower)
    Budget.wait = lambda budget, stopping, **within: not stopping.is_set()  # type: ignore[method-assign]
    threading.excepthook = lambda _: None
    collector.slot.CRASHES_MAX = throws + 1  # threads die here more often than in years, and none is to be parked
    with House(folder, *EXCHANGES) as house:
        house.start(options={"gopax": {"probe_interval_s": 2}})
        for slot in house.daemon.supervisor._slots.values():
            slot.backoff = Backoff(house.daemon.clock, base_s=0.01, cap_s=0.02)
        house.goes_on(frames=3)
        for number in range(throws):
            worker = house.worker(dice.choice(EXCHANGES))
            plan = [(dice.randint(1, 400), dice.choice(KINDS))]
            if dice.random() < DOUBLE:
                plan.append((dice.randint(1, 60), dice.choice(KINDS)))
            thrower.arm(worker._thread.ident or 0, plan)
            house.until(thrower.thrown.is_set, BACK_S, f"a line of {worker.name}")
            print(number, worker.name, *thrower.where, flush=True)
            exchange = worker.name.partition("/")[0]
            house.goes_on(exchange, frames=3, seconds=BACK_S)
            if house.simulator.connections(exchange, "websocket") > 1:
                # A second error kept the first one's clean-up from closing the socket: nobody reads what still comes.
                house.simulator.fault("disconnect", exchange)
                house.goes_on(exchange, frames=3, seconds=BACK_S)
        verdict = house.stop()
    # A good frame that was being read when the error struck is kept raw: that is what is to become of it.
    wrong = [note for note in verdict.notes if "was rejected" not in note]
    print(*wrong, verdict, sep="\n")
    return 1 if wrong or verdict.missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
