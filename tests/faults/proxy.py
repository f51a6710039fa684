"""A proxy between the collector and an exchange that cuts, slows down, slices and swallows what goes through it."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Ending = Literal["close", "reset", "silence", "slow close"]


@dataclass(frozen=True)
class Toxic:
    """What is done to one direction of a connection. The default does nothing."""

    bytes_max: int | None = None  # so many go through, then comes the ending
    ending: Ending = "close"
    latency_s: float = 0.0  # before each piece
    slice_bytes: int = 1 << 16  # a piece has so many at the most
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class Toxics:
    """What is done to a connection: `up` to what the client sends, `down` to what it receives."""

    up: Toxic = Toxic()
    down: Toxic = Toxic()


HARMLESS = Toxics()


class Proxy:
    """Listens on a port of this machine; `toxics` is asked for what to do to each new connection, by its number from 1.

    Threads: one that accepts, two a connection.
    """

    def __init__(self, url: str, toxics: Callable[[int], Toxics] = lambda _: HARMLESS) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.toxics = toxics
        self.accepted = 0
        self.passed = {"up": 0, "down": 0}  # bytes, of the newest connection
        self.head = b""  # the first bytes of the newest connection's answers
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def endpoint(self, endpoint: Mapping[str, str]) -> dict[str, str]:
        """Return an endpoint of the exchange as it is reached through here."""
        return {
            kind: urlsplit(url)._replace(netloc=f"127.0.0.1:{self.port}").geturl() for kind, url in endpoint.items()
        }

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            open_ = list(self._open)
        for end in open_:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name="proxy", daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                continue  # the proxy closes, or the exchange is away: `over` tells
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            self.accepted += 1
            self.passed = passed = {"up": 0, "down": 0}
            self.head = b""
            toxics = self.toxics(self.accepted)
            both = [threading.Event(), threading.Event()]
            self._run(self._pump, client, server, toxics.up, passed, "up", both)
            self._run(self._pump, server, client, toxics.down, passed, "down", both[::-1])

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        toxic: Toxic,
        passed: dict[str, int],
        way: str,
        done: list[threading.Event],
    ) -> None:
        mine, other = done
        with contextlib.suppress(OSError):  # one of the ends is gone
            if self._carry(source, sink, toxic, passed, way):
                sink.shutdown(socket.SHUT_WR)
        mine.set()
        if other.is_set():
            for end in (source, sink):
                end.close()
            with self._lock:
                self._open -= {source, sink}

    def _carry(
        self, source: socket.socket, sink: socket.socket, toxic: Toxic, passed: dict[str, int], way: str
    ) -> bool:
        """Carry bytes until the source ends; return whether the sink is to hear of that."""
        left = toxic.bytes_max
        while left != 0 and (data := source.recv(1 << 16)):
            if left is not None:
                data = data[:left]
                left -= len(data)
            for at in range(0, len(data), toxic.slice_bytes):
                piece = data[at : at + toxic.slice_bytes]
                delay_s = toxic.latency_s + (len(piece) / toxic.bytes_per_s if toxic.bytes_per_s else 0)
                if delay_s and self._over.wait(delay_s):
                    return False
                sink.sendall(piece)
                passed[way] += len(piece)
                if way == "down" and passed is self.passed and len(self.head) < 8192:
                    self.head += piece
        if "reset" in passed:
            return False  # no farewell from this side either
        if left is None or toxic.ending == "close":
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)
            return False
        if toxic.ending == "reset":
            passed["reset"] = 1
            for end in (source, sink):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)
            return False
        if toxic.ending == "slow close":  # a farewell that comes long after the last word
            self._over.wait(0.5)
            return True
        while source.recv(1 << 16):  # silence: taken, and never passed on
            pass
        return False
