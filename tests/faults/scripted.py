"""A WebSocket server that says byte for byte what a test wants it to say."""

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, length: int | None = None
) -> bytes:
    """Return one frame from a server; `length` is what it says of itself where that is not the truth."""
    length = len(payload) if length is None else length
    first = opcode | (0x80 if final else 0) | reserved
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return bytes((first, 126)) + struct.pack("!H", length) + payload
    return bytes((first, 127)) + struct.pack("!Q", length) + payload


class Client:
    """The other end of a connection, as the server sees it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.request = b""
        self.sent = 0  # bytes that the client's machine took

    def ask(self) -> None:
        """Read the request."""
        while b"\r\n\r\n" not in self.request:
            self.request += self.end.recv(4096) or b"\r\n\r\n"

    def upgrade(self) -> None:
        """Answer the request as it wishes."""
        self.send(self.upgraded())

    def upgraded(self) -> bytes:
        """Read the request and return the answer that it wishes."""
        self.ask()
        key = next(line for line in self.request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key.split(b": ")[1] + GUID).digest())
        lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
        return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept, b"", b""])

    def send(self, data: bytes) -> None:
        """Send bytes."""
        for at in range(0, len(data), 1 << 16):
            self.end.sendall(data[at : at + (1 << 16)])
            self.sent += len(data[at : at + (1 << 16)])

    def stay(self) -> None:
        """Read until the client goes away."""
        with contextlib.suppress(OSError):
            while self.end.recv(1 << 16):
                pass


class Server:
    """Does with each client what `talk` says, then closes; a client that leaves early is nobody's fault."""

    def __init__(self, talk: Callable[[Client], None], *, tls: ssl.SSLContext | None = None) -> None:
        self._talk, self._tls = talk, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{self.port}/path"
        self.clients: list[Client] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="scripted", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for client in self.clients.copy():
            with contextlib.suppress(OSError):
                client.end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError, ssl.SSLError):
                end, _ = self._listener.accept()
                end.settimeout(20)
                with end:
                    talking = self._tls.wrap_socket(end, server_side=True) if self._tls else end
                    with talking:
                        self.clients.append(Client(talking))
                        self._talk(self.clients[-1])
