"""What systemd does for a service of `Type=notify` with a watchdog, as far as a test needs it."""

import signal
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import wait_until
from tests.e2e.daemon import Child


class Systemd:
    """Listens to what a child tells its service manager; kills it where it says nothing for longer than it may.

    Closes its socket as a context manager. `told` are all messages so far.
    """

    def __init__(self, folder: Path, child: Child, *, watchdog_s: float) -> None:
        self.child = child
        self.told: list[str] = []
        self._watchdog_s = watchdog_s
        self._alive_at = 0.0
        self._path = folder / "notify.socket"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(0.1)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="systemd", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Start the child and return when it is ready."""
        self.told.clear()
        self.child.start(
            NOTIFY_SOCKET=str(self._path), WATCHDOG_USEC=str(int(self._watchdog_s * 1e6)), PYTHONFAULTHANDLER="1"
        )
        wait_until(lambda: self.heard("READY=1"), 30, "READY=1")

    def heard(self, word: str, times: int = 1) -> bool:
        """Tell whether a message with this word came so often since the start."""
        return sum(word in message for message in self.told.copy()) >= times

    def starve(self, seconds: float = 30) -> int:
        """Wait until the child shows no sign of life for longer than it may, kill it, and return its exit status."""
        wait_until(lambda: time.monotonic() - self._alive_at > self._watchdog_s, seconds, "a missed watchdog")
        self.child.send(signal.SIGABRT)
        return self.child.wait()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            if "WATCHDOG=1" in message or "READY=1" in message:
                self._alive_at = time.monotonic()
            self.told.append(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join(10)
        self._socket.close()
