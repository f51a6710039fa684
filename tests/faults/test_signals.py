"""Stopped, reloaded, started a second time at random moments: the end comes in time and in order, its status is true.

Rounds of the real daemon as a child process: SIGTERM, SIGINT, two of them, SIGHUP with a good, a changed and a broken
configuration, and a second daemon on the same database. After all of them the judge looks at every message.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import Simulator
from simulator.judge import judge
from simulator.venue import Timing
from tests.conftest import ROOT, wait_until
from tests.faults.child import Daemon, options
from tests.faults.dose import dose

EXCHANGES = ("upbit", "korbit", "gopax")
ROUNDS = dose(5, 600)
WITHIN_S = 10.0
SHARED = {"markets": ["BTC-KRW"], "markets_per_connection": 2}
BROKEN = "exchanges:\n  upbit: {markets: [nothing]}\n"
PATIENT = Timing(rest_limits=False, connects_per_s=100_000, connections_max=1000)


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Three exchanges that bear any number of connections, with a ledger."""
    with Simulator(
        EXCHANGES, ("BTC-KRW", "ETH-KRW"), rate_hz=20, ledger=tmp_path / "ledger", timing=PATIENT
    ) as running:
        yield running


class Operator:
    """Whoever stops, reloads and starts the daemon, at random."""

    def __init__(self, daemon: Daemon, settings: dict[str, object], seed: int) -> None:
        self.daemon = daemon
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._good = settings
        self._starts = self._ends = 0

    def pause(self, most_s: float) -> None:
        """Let some time pass; the moment is what is random here."""
        threading.Event().wait(self.dice.uniform(0, most_s))

    def start(self) -> None:
        """Start the daemon; the next signal may come at any moment of its beginning, once it obeys signals at all."""
        self.write(self._good)
        self.daemon.start()
        self._starts += 1
        wait_until(lambda: self.daemon.logged("collector started", self._starts), 30, "the start")
        self.pause(0.7)

    def write(self, settings: object) -> None:
        """Put a configuration in the place of the one there is, as an editor does: at once."""
        new = self.daemon.config.with_suffix(".new")
        new.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        new.rename(self.daemon.config)

    # --- what can happen while it runs

    def reload_unchanged(self) -> None:
        """A hang-up with nothing new."""
        self._hang_up(self._good, "configuration reloaded changed=nothing")

    def reload_changed(self) -> None:
        """A market more, or another setting of an exchange, or an exchange less."""
        exchanges = json.loads(json.dumps(self._good["exchanges"]))
        kind = self.dice.choice(("market", "setting", "exchange"))
        if kind == "market":
            exchanges["upbit"]["markets"] = ["BTC-KRW", "ETH-KRW"]
        elif kind == "setting":
            exchanges["korbit"]["stale_s"] = self.dice.randint(40, 50)
        else:
            del exchanges["gopax"]
        self._hang_up({**self._good, "exchanges": exchanges}, "configuration reloaded changed=")
        self.pause(1.0)

    def reload_broken(self) -> None:
        """A mistake in the file: it is told, and what runs goes on as it did."""
        before = self.daemon.rows("SELECT count(*) FROM epoch WHERE reason IS NOT NULL")
        self._hang_up(BROKEN, "the configuration can't be applied, nothing was changed")
        assert "'nothing' is not a market" in self.daemon.log
        self.daemon.goes_on(frames=3)
        assert self.daemon.rows("SELECT count(*) FROM epoch WHERE reason IS NOT NULL") == before
        self.write(self._good)

    def storm(self) -> None:
        """Many hang-ups at once, good and bad."""
        for _ in range(20):
            self.write(self.dice.choice((self._good, BROKEN)))
            self.daemon.send(signal.SIGHUP)
        self.write(self._good)

    def second(self) -> None:
        """Another daemon on the same database leaves at once, with status 2 and one line."""
        command = [sys.executable, str(ROOT / "run_controller.py"), "--config", str(self.daemon.config)]
        ended = subprocess.run(
            command, cwd=self.daemon.folder, capture_output=True, text=True, check=False, timeout=WITHIN_S + 20
        )
        assert ended.returncode == 2, ended.stderr
        assert "is in use by another collector" in ended.stderr and len(ended.stderr.splitlines()) == 1
        self.daemon.must_run()

    def _hang_up(self, settings: object, answer: str) -> None:
        times = self.daemon.log.count(answer)
        self.write(settings)
        self.daemon.send(signal.SIGHUP)
        wait_until(lambda: self.daemon.logged(answer, times + 1), 30, answer)

    # --- how it ends

    def end(self, kind: str) -> None:
        """End it by one signal, or by two; it must be gone in time and its status must be true."""
        self._ends += 1
        began = time.monotonic()
        first, *more = {
            "TERM": [signal.SIGTERM],
            "INT": [signal.SIGINT],
            "INT INT": [signal.SIGINT, signal.SIGINT],
            "TERM INT": [signal.SIGTERM, signal.SIGINT],
            "HUP TERM": [signal.SIGHUP, signal.SIGTERM],
        }[kind]
        self.daemon.send(first)
        for number in more:
            self.pause(0.1)
            if self.daemon.runs:
                self.daemon.send(number)
        status = self.daemon.wait(WITHIN_S + 20)
        took_s = time.monotonic() - began
        assert took_s < WITHIN_S, f"{kind} took {took_s:.1f} s"
        log = self.daemon.log
        assert log.count("collector stopped status=") == self._ends, log[-3000:]
        told = int(log.rpartition("collector stopped status=")[2].split()[0])
        assert status == told, f"{kind} ended with {status}, the log says {told}"
        in_haste = kind.endswith("INT") and " " in kind
        assert status == 0 or (in_haste and "leaving at once" in log), f"{kind} ended with {status}"
        if status == 0:
            open_ = self.daemon.rows(
                "SELECT count(*) FROM epoch WHERE reason IS NULL AND run = (SELECT max(id) FROM run)"
            )
            assert open_ == [(0,)], "what was heard is not all in the store"
            closed = self.daemon.rows("SELECT closed_us FROM run ORDER BY id DESC LIMIT 1")
            assert closed[0][0] is not None, "the run is not closed"


MIDDLE = ("reload_unchanged", "reload_changed", "reload_broken", "storm", "second")
ENDS = ("TERM", "INT", "INT INT", "TERM INT", "HUP TERM")


def test_signals_at_random_moments(simulator: Simulator, tmp_path: Path, daemons: list[Daemon]) -> None:
    """The mutation that must make this fail: leave `ignore_signals` out of the command line (in some rounds)."""
    plan = options(simulator, probe_interval_s=1)
    plan["upbit"] = {**plan["upbit"], **SHARED}  # type: ignore[dict-item]
    daemon = Daemon(tmp_path, plan)
    daemons.append(daemon)
    operator = Operator(daemon, json.loads(daemon.config.read_text()), seed=17)
    for number in range(ROUNDS):
        operator.start()
        middle = MIDDLE[number % len(MIDDLE)] if number < len(MIDDLE) else operator.dice.choice(MIDDLE)
        end = ENDS[number % len(ENDS)] if number < len(ENDS) else operator.dice.choice(ENDS)
        getattr(operator, middle)()
        operator.pause(0.3)
        operator.end(end)
        operator.done.update((middle, end))
    simulator.stop()

    verdict = judge(tmp_path / "ledger", daemon.database)
    print(verdict, dict(operator.done))
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert set(operator.done) >= {*MIDDLE, *ENDS}
    assert verdict.stored > 10 * ROUNDS


def test_a_signal_in_the_middle_of_the_start_is_obeyed_in_order(tmp_path: Path, daemons: list[Daemon]) -> None:
    """The mutation that must make this fail: catch signals only when the daemon is made."""
    daemon = Daemon(tmp_path, {"upbit": {"endpoint": {"websocket": "ws://127.0.0.1:9/"}}})
    daemons.append(daemon)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        daemon.start()
        wait_until(lambda: _catches(daemon.pid, signal.SIGHUP), 30, "a process that catches signals")
        daemon.send(number)
        if number == signal.SIGHUP:
            wait_until(lambda: daemon.logged("configuration reloaded"), 30, "the reload")
            daemon.send(signal.SIGTERM)
        assert daemon.wait(WITHIN_S + 20) == 0


def _catches(pid: int, number: signal.Signals) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
