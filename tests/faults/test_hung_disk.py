"""A disk that hangs under the writer: systemd hears that the daemon lives but no sign of life of the writer.

This is what the watchdog is for: only a fresh process comes out of it. What it had not committed then is outside
coverage.
"""

import signal
import socket
from collections.abc import Callable
from pathlib import Path

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import wait_until
from tests.faults.child import START_S, Daemon, options
from tests.faults.disk import Orders

WATCHDOG_US = 2_000_000  # of which the daemon takes half


class Manager:
    """Stands for systemd: hears what is sent to the notification socket."""

    def __init__(self, file: Path) -> None:
        self.address = str(file)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(START_S)

    def hear(self, word: str, times: int = 1) -> list[str]:
        """Listen until a word has been said so often; return everything that was said meanwhile."""
        heard: list[str] = []
        while sum(word in text for text in heard) < times:
            heard.append(self._socket.recv(4096).decode())
        return heard

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def test_the_watchdog_falls_silent_while_the_writer_is_stuck(
    preload: Callable[[str], Path], tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Mutation: `if self.healthy()[0]` always true in `Supervisor.tick`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    manager = Manager(tmp_path / "notify")
    with (
        Simulator(["upbit", "coinone"], ["BTC-KRW"], rate_hz=20, ledger=tmp_path / "ledger") as simulator,
        Orders(tmp_path / "orders") as orders,
    ):
        daemon = Daemon(tmp_path, options(simulator), storage={"path": str(disk / "db")})
        daemons.append(daemon)
        environment = {
            **orders.environment(preload("disk"), disk),
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": str(WATCHDOG_US),
        }
        # 1. It starts, and shows signs of life.
        daemon.start(**environment)
        assert "READY=1" in manager.hear("READY=1")[-1]
        manager.hear("WATCHDOG=1", times=3)
        daemon.goes_on()
        # 2. The disk hangs: a last sign or two may be on its way, then there is none, while the daemon goes on talking.
        orders.hold(True)
        wait_until(lambda: orders.held, START_S, "the writer hangs")
        manager.hear("STATUS=", times=6)
        assert [text for text in manager.hear("STATUS=", times=4) if "WATCHDOG" in text] == []
        # 3. A disk that comes back is enough.
        orders.hold(False)
        manager.hear("WATCHDOG=1", times=2)
        daemon.goes_on()
        # 4. One that does not is what systemd kills it for; the next process finds the database as it was.
        orders.hold(True)
        wait_until(lambda: orders.held, START_S, "the writer hangs again")
        manager.hear("STATUS=", times=6)
        daemon.send(signal.SIGKILL)
        orders.hold(False)
        assert daemon.wait() == -signal.SIGKILL
        daemon.start(**environment)
        manager.hear("WATCHDOG=1")
        daemon.goes_on()
        # 5. It says that it stops.
        daemon.send(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert daemon.wait() == 0
    manager.close()

    verdict = judge(tmp_path / "ledger", daemon.database)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
