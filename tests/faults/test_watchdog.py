"""A writer that hangs gets the process restarted by the watchdog, and the next one stores what this one had put by."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import ROOT, wait_until
from tests.e2e.daemon import Child
from tests.faults.systemd import Systemd

EXCHANGES = ("upbit", "korbit")
WATCHDOG_S = 4.0


class Hindered(Child):
    """A daemon whose store a test can make busy, or let hang."""

    @property
    def log(self) -> str:
        """The log so far."""
        file = self.folder / "logs" / "collector.log"
        return file.read_text("utf-8") if file.exists() else ""


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Two exchanges with a ledger."""
    with Simulator(EXCHANGES, ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger") as running:
        yield running


@pytest.fixture
def child(simulator: Simulator, tmp_path: Path) -> Iterator[Hindered]:
    """The daemon, not started; killed in the end if it still runs."""
    exchanges = {name: {"endpoint": endpoint} for name, endpoint in simulator.endpoints.items()}
    hindered = Hindered(tmp_path, exchanges, program=ROOT / "tests" / "faults" / "hindered_daemon.py")
    yield hindered
    if hindered.process is not None and hindered.process.poll() is None:
        hindered.send(signal.SIGKILL)
        hindered.wait()


def test_a_hanging_writer_gets_the_process_restarted_and_the_spool_is_drained(
    simulator: Simulator, child: Hindered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mutation that must make this fail: `self._notifier.watchdog()` in every tick, `healthy()` or not."""
    with Systemd(tmp_path, child, watchdog_s=WATCHDOG_S) as systemd:
        systemd.start()
        wait_until(lambda: child.epochs_with_data() >= len(EXCHANGES), 30, "data stored")

        # 1. The store is away: what comes goes to the disk, and the daemon is healthy.
        (tmp_path / "busy").touch()
        wait_until(lambda: "records are kept in the spool" in child.log, 30, "the spool in use")
        said = len(systemd.told)
        wait_until(lambda: sum("WATCHDOG=1" in text for text in systemd.told[said:]) > 6, 30, "signs of life")

        # 2. It hangs: no signs of life, and that is the end of this process. What it was doing is told.
        (tmp_path / "hang").touch()
        assert systemd.starve() == -signal.SIGABRT
        assert "in hang_for_ever" in capsys.readouterr().err

        # 3. The next one stores what the disk holds, and records.
        (tmp_path / "hang").unlink()
        (tmp_path / "busy").unlink()
        before = child.epochs_with_data()
        systemd.start()
        wait_until(lambda: "everything kept in the spool is stored" in child.log, 30, "the spool drained")
        wait_until(lambda: child.epochs_with_data() >= before + len(EXCHANGES), 30, "recording again")
        child.send(signal.SIGTERM)
        assert child.wait() == 0
        assert systemd.heard("STOPPING=1")
    simulator.stop()

    verdict = judge(tmp_path / "ledger", child.database, spool=child.database.with_name("collector.sqlite.spool"))
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert verdict.epochs == 2 * len(EXCHANGES)


def test_a_database_that_is_away_gets_nobody_killed(simulator: Simulator, child: Hindered, tmp_path: Path) -> None:
    """The mutation that must make this fail: call the writer unhealthy while its store fails."""
    (tmp_path / "busy").touch()
    with Systemd(tmp_path, child, watchdog_s=1.5) as systemd:
        systemd.start()
        wait_until(lambda: systemd.heard("WATCHDOG=1", 8), 30, "signs of life")
        assert systemd.heard("store failing")
        (tmp_path / "busy").unlink()
        wait_until(lambda: child.epochs_with_data() >= len(EXCHANGES), 30, "data stored")
        child.send(signal.SIGTERM)
        assert child.wait() == 0
