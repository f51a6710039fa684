"""Every message of the simulator is accounted for, whatever happens to the daemon and its connections.

More goes wrong in `test_chaos.py`; here every kill waits until the daemon hears again.

The mutation that must make this fail: commit coverage and data in two transactions (`split_daemon.py` does it).
"""

import random
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import wait_until
from tests.e2e.daemon import Child
from tests.faults.dose import dose

EXCHANGES = ("upbit", "bithumb", "coinone", "korbit", "gopax")
KILLS = 20
FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("disconnect", {}),
    ("garbage", {}),
    ("duplicate", {}),
    ("crossed", {}),
    ("forget", {}),
    ("swallow", {"exchange": "gopax"}),
    ("slow", {"seconds": 1.0}),
    ("status", {"code": 503, "times": 2}),
    ("corrupt_total", {"exchange": "upbit"}),
)


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Five exchanges in a hurry, with a ledger."""
    with Simulator(list(EXCHANGES), ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger.ndjson") as running:
        yield running


def options(simulator: Simulator) -> dict[str, object]:
    """Return the settings of the five exchanges; backoff is short, since each kill waits for a fresh start."""
    backoff = {"base_s": 0.05, "cap_s": 0.2}
    return {
        name: {"endpoint": endpoint, "backoff": backoff, "probe_interval_s": 2}
        for name, endpoint in simulator.endpoints.items()
    }


def _has_epochs(child: Child, count: int) -> bool:
    return child.epochs_with_data() >= count


@pytest.mark.parametrize("seed", dose([1], [1, 2, 3, 7]))
def test_twenty_kills_and_faults_leave_every_message_accounted_for(
    simulator: Simulator, tmp_path: Path, seed: int
) -> None:
    """Kill -9 at random moments while the venues misbehave; the last run ends in order."""
    moments = random.Random(seed)
    child = Child(tmp_path, options(simulator))
    for kill in range(KILLS):
        before = child.epochs_with_data()
        child.start()
        wait_until(partial(_has_epochs, child, before + 3), 30, f"three feeds live, kill {kill}")
        kind, parameters = moments.choice(FAULTS)
        exchange = parameters.get("exchange") or moments.choice(EXCHANGES)
        simulator.fault(kind, str(exchange), **{k: v for k, v in parameters.items() if k != "exchange"})
        # The moment of the kill is what is random here; some live long enough for the judge to look at times as well.
        threading.Event().wait(moments.uniform(3.5, 5.0) if kill % 7 == 3 else moments.uniform(0, 0.6))
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    before = child.epochs_with_data()
    child.start()
    wait_until(partial(_has_epochs, child, before + 5), 30, "all five live again")
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    simulator.stop()

    verdict = judge(tmp_path / "ledger.ndjson", child.database)

    print(verdict)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert verdict.epochs >= 3 * KILLS
    assert verdict.stored > 20 * KILLS


def test_a_ledger_committed_apart_from_its_data_is_found_out(simulator: Simulator, tmp_path: Path) -> None:
    """The judge must not pass a store whose ledger claims what its tables do not hold."""
    child = Child(tmp_path, options(simulator), program=Path(__file__).with_name("split_daemon.py"))
    child.start(SPLIT_KILL_AFTER="30")
    assert child.wait() == -signal.SIGKILL
    simulator.stop()

    assert not judge(tmp_path / "ledger.ndjson", child.database).good


def test_the_same_daemon_that_is_not_killed_in_between_passes(simulator: Simulator, tmp_path: Path) -> None:
    """The control: what the test above finds is the kill between the two halves, not the halves."""
    child = Child(tmp_path, options(simulator), program=Path(__file__).with_name("split_daemon.py"))
    child.start(SPLIT_KILL_AFTER="0")
    wait_until(lambda: child.epochs_with_data() >= 5, 30, "all five live")
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    simulator.stop()

    verdict = judge(tmp_path / "ledger.ndjson", child.database)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
