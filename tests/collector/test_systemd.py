import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.systemd import Notifier, notify, watchdog_interval_s


class Manager:
    """The other end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self) -> str:
        return self.socket.recv(65536).decode()


@pytest.fixture(params=["a file", "an abstract name"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "a file" else f"@collector-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_one_message_holds_all_fields(manager: Manager) -> None:
    assert notify("READY=1", "STATUS=five feeds")

    assert manager.heard() == "READY=1\nSTATUS=five feeds"


def test_a_life(manager: Manager) -> None:
    notifier = Notifier()

    assert notifier.ready("5 feeds live")
    assert manager.heard() == "READY=1\nSTATUS=5 feeds live"
    assert notifier.watchdog()
    assert manager.heard() == "WATCHDOG=1"
    assert notifier.status("수집 중")
    assert manager.heard() == "STATUS=수집 중"
    assert notifier.stopping()
    assert manager.heard() == "STOPPING=1"


def test_reloading_carries_the_monotonic_time_that_systemd_compares(manager: Manager) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert Notifier().reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    fields = dict(line.split("=") for line in manager.heard().splitlines())

    assert fields["RELOADING"] == "1"
    assert before <= int(fields["MONOTONIC_USEC"]) <= after


def test_a_status_can_not_smuggle_in_another_field(manager: Manager) -> None:
    Notifier().status("ws error: bad\nWATCHDOG=trigger\r\nREADY=1")

    assert manager.heard() == "STATUS=ws error: bad WATCHDOG=trigger READY=1"


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier()

    assert not notifier.ready("live")
    assert not notifier.watchdog()
    assert watchdog_interval_s() is None


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/socket", "/nowhere/at/all", "@" + "x" * 200])
def test_an_address_of_no_use_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    assert notify("READY=1") is False


def test_a_manager_that_does_not_read_holds_nobody_up(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.systemd._SEND_TIMEOUT_S", 0.01)

    assert notify("WATCHDOG=1")

    assert not all(notify("STATUS=" + "x" * 1000) for _ in range(5000))


@pytest.mark.parametrize(
    ("limit_us", "pid", "interval_s"),
    [
        ("60000000", None, 30.0),
        ("60000000", "mine", 30.0),
        ("60000000", "another", None),
        ("60000000", "me", None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog_interval(
    limit_us: str | None, pid: str | None, interval_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit_us is not None:
        monkeypatch.setenv("WATCHDOG_USEC", limit_us)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", {"mine": str(os.getpid()), "another": str(os.getpid() + 1)}.get(pid, pid))

    assert watchdog_interval_s() == interval_s
