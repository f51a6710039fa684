"""The simulator's own truth: what it sent, what it withheld, to whom, and in which order.

JSON lines, each handed to the operating system in one write before the bytes it speaks of go to a socket. So a line may
stand for a message that a dying connection never delivered, but no message is ever delivered without its line, and a
SIGKILL of the simulator loses none. A ledger is appended to: numbering goes on where an earlier run ended.
"""

import os
from pathlib import Path
from typing import Any

import orjson

from simulator.markets import now_us


class Ledger:
    """Writes the lines and hands out the names of connections (c1, c2...) and subscriptions (s1, s2...)."""

    def __init__(self, path: Path | None = None) -> None:
        self._fd: int | None = None
        self._connections = self._subscriptions = 0
        if path is not None:
            self._resume(path)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _resume(self, path: Path) -> None:
        """Count what an earlier run named and cut off a line that it could not finish."""
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._connections += line.startswith(b'{"kind":"open"')
                self._subscriptions += line.startswith(b'{"kind":"subscribe"')
        os.truncate(path, whole)

    def open(self, exchange: str, transport: str) -> str:
        """Note a new connection and name it."""
        self._connections += 1
        name = f"c{self._connections}"
        self._write({"kind": "open", "connection": name, "exchange": exchange, "transport": transport})
        return name

    def subscribe(self, connection: str, exchange: str, market: str, channel: str) -> str:
        """Note a new subscription and name it."""
        self._subscriptions += 1
        name = f"s{self._subscriptions}"
        where = {"connection": connection, "exchange": exchange, "market": market, "channel": channel}
        self._write({"kind": "subscribe", "subscription": name, **where})
        return name

    def message(self, subscription: str, i: int, what: str, fate: str, **content: Any) -> None:
        """Note the i-th data message of a subscription just before it is sent, or when it is withheld."""
        self._write({"kind": "message", "subscription": subscription, "i": i, "what": what, "fate": fate, **content})

    def close(self, connection: str, why: str) -> None:
        """Note the end of a connection."""
        self._write({"kind": "close", "connection": connection, "why": why})

    def flush(self) -> None:
        """Put everything on the disk and close the file; later lines are not written."""
        if self._fd is not None:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None

    def _write(self, entry: dict[str, Any]) -> None:
        if self._fd is None:
            return
        entry["time_us"] = now_us()
        line = memoryview(orjson.dumps(entry) + b"\n")
        while line:
            line = line[os.write(self._fd, line) :]
