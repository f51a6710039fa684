"""A connection that is open and silent: the way is cut without a word, or the exchange stands still.

It is noticed within the threshold, its coverage ends where data was last confirmed, and it is back when the way is;
a feed on another connection sees nothing of it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import ROOT, wait_until
from tests.faults.child import START_S, Daemon, options
from tests.faults.dose import dose

TIMES = dose(1, 60)
STALE_S = 1.0
NOTICED_S = 30  # the threshold, and a good deal for a slow machine
BACK_S = 40  # a connection being made when the way comes back may have to time out first


def merged(ledgers: Sequence[Path], file: Path) -> Path:
    """Write several ledgers into one, with the names of connections and subscriptions kept apart."""
    with file.open("w") as out:
        for number, ledger in enumerate(ledgers):
            for line in ledger.read_text().splitlines():
                entry = json.loads(line)
                for name in ("connection", "subscription"):
                    if name in entry:
                        entry[name] = f"{number}/{entry[name]}"
                out.write(json.dumps(entry) + "\n")
    return file


def goes_silent_and_comes_back(daemon: Daemon, silence: Callable[[], None], back: Callable[[], None]) -> None:
    """Let Upbit fall silent as often as it is to; what is on the other connection goes on."""
    for _ in range(TIMES):
        ended = daemon.reasons().count("stale")
        silence()
        wait_until(lambda ended=ended: daemon.reasons().count("stale") == ended + 1, NOTICED_S, "the silence")  # type: ignore[misc]
        daemon.goes_on(exchange="coinone")
        back()
        daemon.goes_on(exchange="upbit", seconds=BACK_S)
    epochs = daemon.rows(
        "SELECT count(*) FROM epoch e JOIN feed f ON f.id = e.feed JOIN exchange x ON x.id = f.exchange "
        "WHERE x.name = 'COINONE'"
    )
    assert epochs == [(1,)], "the other connection is the one it was"


def ends_well(daemon: Daemon, ledgers: Sequence[Path], folder: Path) -> int:
    """Let the judge see what became of every message; return how many nobody heard."""
    verdict = judge(merged(ledgers, folder / "ledgers"), daemon.database)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    return verdict.outside


# --- the way is cut ---------------------------------------------------------------------------------------------------


class Network:
    """A network of its own for the daemon, with one way out that drops packets when it is told to."""

    def __init__(self) -> None:
        number = os.getpid() % 16_000
        self.name = f"collector{number}"
        self.here, self.there = (f"10.213.{number // 64}.{number % 64 * 4 + host}" for host in (1, 2))
        end = f"c{number}"
        self._ip("netns", "add", self.name)
        self._ip("link", "add", f"{end}a", "type", "veth", "peer", "name", f"{end}b", "netns", self.name)
        self._ip("address", "add", f"{self.here}/30", "dev", f"{end}a")
        self._ip("link", "set", f"{end}a", "up")
        self._ip("-n", self.name, "address", "add", f"{self.there}/30", "dev", f"{end}b")
        self._ip("-n", self.name, "link", "set", f"{end}b", "up")
        self._ip("-n", self.name, "link", "set", "lo", "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)

    @property
    def enter(self) -> list[str]:
        """What a command follows that is to run in there."""
        return ["ip", "netns", "exec", self.name]

    def cut(self, port: int) -> None:
        """Drop every packet to and from a port, in both directions."""
        rules = [
            "table inet cut {",
            f"chain out {{ type filter hook output priority 0; tcp dport {port} drop; }}",
            f"chain in {{ type filter hook input priority 0; tcp sport {port} drop; }}",
            "}",
        ]
        self._nft("\n".join(rules))

    def mend(self) -> None:
        """Let everything through."""
        self._nft("flush ruleset")

    def _nft(self, rules: str) -> None:
        subprocess.run([*self.enter, "nft", "-f", "-"], input=rules, text=True, check=True, timeout=30)

    def close(self) -> None:
        """Take it away again; its way out goes with it."""
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True, timeout=30)


@pytest.fixture
def network() -> Iterator[Network]:
    """Make a network, where that is possible."""
    if os.geteuid():
        pytest.skip("a network namespace needs root")
    if missing := [tool for tool in ("ip", "nft") if shutil.which(tool) is None]:
        pytest.skip(f"no {' and no '.join(missing)}; apt install iproute2 nftables")
    try:
        made = Network()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    yield made
    made.close()


def test_packets_that_are_dropped_without_a_word(network: Network, tmp_path: Path, daemons: list[Daemon]) -> None:
    """Mutation: take the look at `_stale_us` out of `WSController._watch`."""
    ledgers = [tmp_path / "upbit", tmp_path / "coinone"]
    with (
        Simulator(["upbit"], ["BTC-KRW"], rate_hz=20, ledger=ledgers[0], host=network.here) as upbit,
        Simulator(["coinone"], ["BTC-KRW"], rate_hz=20, ledger=ledgers[1], host=network.here) as coinone,
    ):
        daemon = Daemon(tmp_path, {**options(upbit, stale_s=STALE_S), **options(coinone)})
        daemons.append(daemon)
        daemon.before = network.enter
        daemon.start()
        daemon.goes_on(exchange="upbit")
        port = int(upbit.url.rpartition(":")[2])

        goes_silent_and_comes_back(daemon, lambda: network.cut(port), network.mend)

        assert daemon.stop() == 0
    assert ends_well(daemon, ledgers, tmp_path) > 0, "what was sent into the void is outside coverage"


# --- the exchange stands still ----------------------------------------------------------------------------------------


class SimulatorProcess:
    """A simulator in a process of its own, so that it can be stopped in the middle of everything."""

    def __init__(self, exchange: str, ledger: Path) -> None:
        arguments = ["simulate", "--exchange", exchange, "--market", "BTC-KRW", "--rate", "20", "--ledger", str(ledger)]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_controller.py"), *arguments],
            cwd=ledger.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()
        wait_until(lambda: any("rest:" in line for line in self._output), START_S, "a simulator")
        self.exchanges = yaml.safe_load("".join(self._output))["exchanges"]

    def _read(self, stdout: object) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End it in order."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        assert self.process.wait(30) == 0
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_an_exchange_that_stands_still(tmp_path: Path, daemons: list[Daemon]) -> None:
    """Its machine still answers for it, so nothing but silence tells."""
    ledgers = [tmp_path / "upbit", tmp_path / "coinone"]
    upbit = SimulatorProcess("upbit", ledgers[0])
    try:
        with Simulator(["coinone"], ["BTC-KRW"], rate_hz=20, ledger=ledgers[1]) as coinone:
            settings = {**upbit.exchanges["upbit"], "stale_s": STALE_S, "backoff": {"base_s": 0.05, "cap_s": 0.2}}
            daemon = Daemon(tmp_path, {"upbit": settings, **options(coinone)})
            daemons.append(daemon)
            daemon.start()
            daemon.goes_on(exchange="upbit")

            goes_silent_and_comes_back(daemon, lambda: upbit.send(signal.SIGSTOP), lambda: upbit.send(signal.SIGCONT))

            assert daemon.stop() == 0
    finally:
        upbit.close()
    ends_well(daemon, ledgers, tmp_path)
