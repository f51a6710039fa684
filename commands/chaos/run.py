"""A chaos run: the daemon and the simulator, what the schedule says, an end in order, and the judge."""

import queue
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import orjson
import requests

from collector.records import CHANNELS
from commands.chaos.clock import NoCompiler, SteppedClock
from commands.chaos.daemon import SETTINGS, ChildDaemon
from commands.chaos.schedule import EXCHANGES, KOREAN, NUMBERED, Act, schedule
from commands.chaos.stores import Subject
from simulator import Simulator, Timing
from simulator.judge import Verdict, judge

TICK_S = 0.05
LIVE_S = 60.0  # all is live again so long after the last fault, at the most
RATE_HZ = 10.0
HEARTBEATS = Timing(status_s=1, ping_s=1)  # so that data can stop while they go on
MARKETS = ("BTC-KRW", "ETH-KRW")
DOLLARS = ("BTC-USDT", "ETH-USDT")  # of the exchanges that are not Korean
ENDED_BY_US = ("database", "disk_full")  # what lasts otherwise ends by itself


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

    `say` gets a line for each fault and event, `progress` the seconds that are over; `program` goes to `ChildDaemon`.
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
        self._say, self._progress = say, progress
        self.acts = schedule(seed, seconds, kills, kinds=kinds, outages=subject.outages)
        self._ledger = folder / "ledger.jsonl"
        self._spool = folder / "spool"
        self._simulator = Simulator(
            EXCHANGES, (*MARKETS, *DOLLARS), seed=seed, rate_hz=RATE_HZ, timing=HEARTBEATS, ledger=self._ledger
        )
        self._port = _free_port()
        self._clock = self._make_clock()
        preloaded = {} if self._clock is None else self._clock.environment
        self._daemon = ChildDaemon(folder, {**subject.environment, **preloaded}, program)
        self._told = 0  # of the daemon's problems
        self._problems: list[str] = []
        self._done: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
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
        self._daemon.close()
        self._subject.end()
        self._simulator.stop()
        if self._clock is not None:
            self._clock.close()

    def run(self) -> Outcome:
        """Do all of it."""
        self._simulator.start()
        self._write_settings()
        self._daemon.start()
        self._began = time.monotonic()
        due: queue.PriorityQueue[tuple[float, int, Callable[[], None]]] = queue.PriorityQueue()
        for number, act in enumerate(self.acts):
            due.put((act.at_s, 2 * number, self._beginning(act)))
            if act.kind in ENDED_BY_US:
                end = self._daemon.heal_disk if act.kind == "disk_full" else self._subject.end
                due.put((act.end_s, 2 * number + 1, end))
        while not due.empty():
            at_s, _, do = due.get()
            self._wait_until(at_s)
            do()
        self._wait_until(self._seconds)
        self._end()
        verdict = judge(self._ledger, self._subject.judged, spool=self._spool)
        problems = self._daemon.problems + self._problems
        return Outcome(verdict, problems, self._daemon.starts, dict(self._done), dict(self._skipped))

    def _wait_until(self, at_s: float) -> None:
        never = Event()
        while True:
            self._look_after_the_daemon()
            now_s = time.monotonic() - self._began
            self._progress(min(now_s, self._seconds))
            if now_s >= at_s:
                return
            never.wait(min(TICK_S, at_s - now_s))

    def _look_after_the_daemon(self) -> None:
        self._daemon.look_after()
        for problem in self._daemon.problems[self._told :]:
            self._say(problem)
        self._told = len(self._daemon.problems)

    def _end(self) -> None:
        """Let everything heal, see that all is live, stop in order."""
        self._simulator.fault("clear")
        self._subject.end()
        self._daemon.heal_disk()
        self._say("all faults are over")
        deadline = time.monotonic() + LIVE_S
        never = Event()
        while waiting := self._waited_for():
            self._look_after_the_daemon()
            if time.monotonic() > deadline:
                self._problems.append(f"not every feed was live again within {LIVE_S:g} s: {waiting}")
                break
            never.wait(0.2)
        self._daemon.end()
        self._simulator.stop()

    def _waited_for(self) -> str:
        """Say what is not as it should be before the end; nothing where all is well."""
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

    def _write_settings(self) -> None:
        exchanges: dict[str, Any] = {
            name: {
                "endpoint": endpoint,
                "markets": [MARKETS[0]] if name in KOREAN else list(DOLLARS),
                "markets_per_connection": 1 if name in KOREAN else 2,
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
            "channels": list(CHANNELS),
            "storage": {**self._subject.settings, "batch_ms": 50, "spool": {"path": str(self._spool)}},
            "log": {"path": str(self._folder / "logs"), "stderr": False},
            "metrics": {"port": self._port},
        }
        (self._folder / SETTINGS).write_bytes(orjson.dumps(settings))  # JSON is YAML

    # --- faults -------------------------------------------------------------------------------------------------------

    def _beginning(self, act: Act) -> Callable[[], None]:
        def do() -> None:
            possible = self._begin(act)
            (self._done if possible else self._skipped)[act.kind] += 1
            self._say(str(act) if possible else f"{act} (not possible now)")

        return do

    def _begin(self, act: Act) -> bool:
        """Do what an act says; False where it is not possible at this moment."""
        match act.kind:
            case "kill":
                self._daemon.kill()
            case "term":
                self._daemon.terminate()
            case "thread":
                return self._daemon.end_thread(act.target, act.parameters["nth"])
            case "clock":
                if self._clock is None:
                    return False
                self._clock.step(act.parameters["step_s"])
            case "database":
                return self._subject.begin(act.target)
            case "disk_full":
                self._daemon.fill_disk(act.target)
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
                fault("swap" if exchange in NUMBERED else "late", exchange)
            case _:
                fault(act.kind, exchange, **lasting, **act.parameters)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
