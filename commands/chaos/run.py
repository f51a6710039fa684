"""A chaos run: the daemon and the simulator, what the schedule says, an end in order, and the judge."""

import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import orjson
import requests

from collector.settings import CONFIG_VARIABLE, PATH_VARIABLES, SECRET_VARIABLES
from commands.chaos.clock import NoCompiler, SteppedClock
from commands.chaos.schedule import EXCHANGES, Act, schedule
from commands.chaos.stores import Subject
from simulator import Simulator, Timing
from simulator.judge import Verdict, judge

ROOT = Path(__file__).resolve().parents[2]
TICK_S = 0.05
LIVE_S = 60.0  # all is live again so long after the last fault, at the most
END_S = 30.0
RATE_HZ = 10.0
HEARTBEATS = Timing(status_s=1, ping_s=1)  # so that data can stop while they go on
MARKETS = ("BTC-KRW", "ETH-KRW")
ENDED_BY_US = ("database", "disk_full")  # what lasts otherwise ends by itself
PROGRAM = ("-m", "commands.chaos.child")
# Variables that would tell the daemon something else than the run does.
FOREIGN = (
    CONFIG_VARIABLE,
    *PATH_VARIABLES,
    *SECRET_VARIABLES,
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
)


@dataclass
class Outcome:
    """How a run ended."""

    verdict: Verdict
    problems: list[str]  # what the daemon must not do, whatever the store holds
    starts: int = 0
    done: dict[str, int] = field(default_factory=dict)  # faults by kind
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing is missing, wrong or corrupt, and the daemon behaved."""
        return self.verdict.good and not self.problems


class Chaos:
    """One run; a context manager that leaves no process behind.

    `say` gets a line for each fault and event, `progress` the seconds that are over. `program` is what Python is given
    to run the daemon: another one than ours has to take its orders as well.
    """

    def __init__(
        self,
        folder: Path,
        subject: Subject,
        *,
        seed: int,
        seconds: float,
        kills: int,
        kinds: Collection[str],
        program: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
        progress: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._folder, self._subject, self._seconds = folder, subject, seconds
        self._program, self._say, self._progress = program or PROGRAM, say, progress
        self.acts = schedule(seed, seconds, kills, kinds=kinds, outages=subject.outages)
        self._ledger = folder / "ledger.jsonl"
        self._spool = folder / "spool"
        self._simulator = Simulator(
            EXCHANGES, MARKETS, seed=seed, rate_hz=RATE_HZ, timing=HEARTBEATS, ledger=self._ledger
        )
        self._port = _free_port()
        self._clock = self._make_clock()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._errors = (folder / "daemon.err").open("ab")
        self._asked: set[str] = set()  # why the daemon may end: "kill", "term", "writer"
        self._limit: tuple[int, int] | None = None
        self._problems: list[str] = []
        self._starts = 0
        self._done: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self._began = 0.0

    def _make_clock(self) -> SteppedClock | None:
        if not any(act.kind == "clock" for act in self.acts):
            return None
        try:
            return SteppedClock(self._folder)
        except NoCompiler as error:
            self._say(f"the clock is left alone: {error}")
            return None

    # --- the run ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()
        if self._daemon is not None and self._daemon.stdin is not None:
            self._daemon.stdin.close()
        self._errors.close()
        self._subject.end()
        self._simulator.stop()
        if self._clock is not None:
            self._clock.close()

    def run(self) -> Outcome:
        """Do all of it."""
        self._simulator.start()
        self._write_settings()
        self._start()
        self._began = time.monotonic()
        queue_: queue.PriorityQueue[tuple[float, int, Callable[[], None]]] = queue.PriorityQueue()
        for number, act in enumerate(self.acts):
            queue_.put((act.at_s, 2 * number, self._beginning(act)))
            if act.seconds is not None and act.kind in ENDED_BY_US:
                queue_.put((act.end_s, 2 * number + 1, self._ending(act)))
        while not queue_.empty():
            at_s, _, do = queue_.get()
            self._wait_until(at_s)
            do()
        self._wait_until(self._seconds)
        self._end()
        verdict = judge(self._ledger, self._subject.judged, spool=self._spool)
        return Outcome(verdict, self._problems, self._starts, self._done, self._skipped)

    def _wait_until(self, at_s: float) -> None:
        never = Event()
        while True:
            self._look_after_the_daemon()
            now_s = time.monotonic() - self._began
            self._progress(min(now_s, self._seconds))
            if now_s >= at_s:
                return
            never.wait(min(TICK_S, at_s - now_s))

    def _end(self) -> None:
        """Let everything heal, see that all is live, stop in order."""
        self._simulator.fault("clear")
        self._subject.end()
        self._heal_disk()
        self._say("all faults are over")
        self._until(self._all_live, LIVE_S, "not every feed was live again")
        self._asked.add("end")
        assert self._daemon is not None
        self._daemon.terminate()
        try:
            status = self._daemon.wait(END_S)
        except subprocess.TimeoutExpired:
            self._problems.append(f"the daemon did not end within {END_S:g} s of SIGTERM")
            self._daemon.kill()
            status = self._daemon.wait()
        if status:
            self._problems.append(f"the daemon's last exit status was {status}")
        self._simulator.stop()

    def _until(self, condition: Callable[[], str], seconds: float, problem: str) -> None:
        # The condition says what it waits for; nothing when it holds.
        deadline = time.monotonic() + seconds
        never = Event()
        while waiting := condition():
            self._look_after_the_daemon()
            if time.monotonic() > deadline:
                self._problems.append(f"{problem} within {seconds:g} s: {waiting}")
                return
            never.wait(0.2)

    def _all_live(self) -> str:
        try:
            state = requests.get(f"http://127.0.0.1:{self._port}/status.json", timeout=5).json()
        except (requests.RequestException, ValueError) as error:
            return f"no status: {error}"
        down = [f"{row['exchange']} {row['market']} is {row['state']}" for row in state["feeds"]]
        down = [text for text in down if not text.endswith(" live")]
        if down:
            return ", ".join(down)
        if state["spool"]["batches"]:
            return f"{state['spool']['batches']} batches are in the spool"
        return str(state["store"]["failing"])

    # --- the daemon ---------------------------------------------------------------------------------------------------

    def _write_settings(self) -> None:
        exchanges: dict[str, Any] = {
            name: {
                "endpoint": endpoint,
                "markets": [MARKETS[0]],
                "backoff": {"base_s": 0.05, "cap_s": 0.5},
                "probe_interval_s": 2,
                "stale_s": 3,
                "stall": {"floor_s": 2, "ceiling_s": 3},
            }
            for name, endpoint in self._simulator.endpoints.items()
        }
        exchanges["upbit"] |= {"markets": list(MARKETS), "markets_per_connection": 2}
        exchanges["coinone"]["markets"] = list(MARKETS)
        exchanges["bithumb"]["markets"] = [MARKETS[0], {MARKETS[1]: {"transport": "websocket"}}]
        settings = {
            "language": "en",
            "collector_id": "chaos",
            "exchanges": exchanges,
            "storage": {**self._subject.settings, "batch_ms": 50, "spool": {"path": str(self._spool)}},
            "log": {"path": str(self._folder / "logs"), "stderr": False},
            "metrics": {"port": self._port},
        }
        (self._folder / "collector.yaml").write_bytes(orjson.dumps(settings))  # JSON is YAML

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment |= {"PYTHONPATH": str(ROOT), **self._subject.environment}
        if self._clock is not None:
            environment |= self._clock.environment
        self._daemon = subprocess.Popen(
            [sys.executable, *self._program, "--config", "collector.yaml"],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
        )
        self._starts += 1
        self._asked.clear()
        if self._limit is not None:
            resource.prlimit(self._daemon.pid, resource.RLIMIT_FSIZE, self._limit)

    def _look_after_the_daemon(self) -> None:
        """Start it again where it has ended, and note an end that nobody asked for."""
        daemon = self._daemon
        if daemon is None or daemon.poll() is None:
            return
        status = daemon.returncode
        fine = {0} if "term" in self._asked else set()
        if "term early" in self._asked:
            fine |= {0, -signal.SIGTERM}
        if "kill" in self._asked:
            fine |= {0, -signal.SIGKILL}
        if "writer" in self._asked:
            fine.add(1)
        if status not in fine:
            self._problems.append(
                f"the daemon ended with status {status}, asked to: {sorted(self._asked) or 'nothing'}"
            )
            self._say(self._problems[-1])
        if daemon.stdin is not None:
            daemon.stdin.close()
        self._start()

    # --- faults -------------------------------------------------------------------------------------------------------

    def _beginning(self, act: Act) -> Callable[[], None]:
        def do() -> None:
            if self._begin(act):
                self._done[act.kind] = self._done.get(act.kind, 0) + 1
                self._say(str(act))
            else:
                self._skipped[act.kind] = self._skipped.get(act.kind, 0) + 1
                self._say(f"{act} (not possible now)")

        return do

    def _ending(self, act: Act) -> Callable[[], None]:
        return self._heal_disk if act.kind == "disk_full" else self._subject.end

    def _begin(self, act: Act) -> bool:
        """Do what an act says; False where it is not possible at this moment."""
        match act.kind:
            case "kill":
                return self._signal(signal.SIGKILL, "kill")
            case "term":
                return self._signal(signal.SIGTERM, "term")
            case "thread":
                return self._end_thread(act.target, act.parameters["nth"])
            case "clock":
                if self._clock is not None:
                    self._clock.step(act.parameters["step_s"])
                return self._clock is not None
            case "database":
                return self._subject.begin(act.target)
            case "disk_full":
                return self._fill_disk(act.target)
            case _:
                self._misbehave(act)
                return True

    def _misbehave(self, act: Act) -> None:
        """Let an exchange do what the act says."""
        fault, exchange = self._simulator.fault, act.target
        lasting: dict[str, Any] = {} if act.seconds is None else {"seconds": act.seconds}
        match act.kind:
            case "rate_limit":
                fault("status", exchange, **act.parameters)
                fault("disconnect", exchange)  # whoever is connected asks for nothing
            case "refuse":
                fault("refuse", exchange, **lasting)
                fault("disconnect", exchange)
            case "reorder" if exchange == "gopax":
                fault("early_change", exchange)
                fault("disconnect", exchange)
            case "reorder":
                fault("late", exchange)
            case _:
                fault(act.kind, exchange, **lasting, **act.parameters)

    def _signal(self, number: signal.Signals, why: str) -> bool:
        self._look_after_the_daemon()
        assert self._daemon is not None
        if number == signal.SIGTERM and not _catches(self._daemon.pid, number):
            why = "term early"  # it ends by the signal itself: nothing has begun
        self._asked.add(why)
        self._daemon.send_signal(number)
        if number == signal.SIGKILL:
            self._daemon.wait()
        return True

    def _end_thread(self, name: str, nth: int) -> bool:
        assert self._daemon is not None
        if self._daemon.stdin is None:
            return False
        if name == "writer":
            self._asked.add("writer")  # the process ends for a fresh start
        try:
            self._daemon.stdin.write(f"{name} {nth}\n".encode())
            self._daemon.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _fill_disk(self, what: str) -> bool:
        """Forbid the daemon's files to grow: all of them, or those that are as large as the database."""
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            return False
        sizes = [file.stat().st_size for file in self._folder.glob("collector.sqlite*")]
        size = max([4096, *sizes]) if what == "database" else 1
        _, hard = resource.prlimit(self._daemon.pid, resource.RLIMIT_FSIZE)
        self._limit = size, hard
        resource.prlimit(self._daemon.pid, resource.RLIMIT_FSIZE, self._limit)
        return True

    def _heal_disk(self) -> None:
        if self._limit is None:
            return
        self._limit = None
        assert self._daemon is not None
        if self._daemon.poll() is None:
            _, hard = resource.prlimit(self._daemon.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self._daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))


def _catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
