"""One WebSocket connection: made and written to by `websocket-client`, read in bursts by `FrameReader`."""

import contextlib
import socket
from collections.abc import Mapping

import websocket

from collector.deadlines import deadlines
from collector.errors import ConnectionLost, RateLimited, VenueRefused
from controllers.fetch import date_us
from controllers.frames import FrameReader
from controllers.tcp import SOCKET_OPTIONS

READ_BYTES = 1 << 16
RETRY_AFTER_S_MAX = 86_400.0
BANNED = 418  # the status of those who went on after 429


class Connection:
    """An open socket. Used by one thread, but for `abort`.

    Raises `ConnectionLost` where the connection can't be made or ends, `RateLimited` where the server asks for a pause
    (429, 418, or 503 with a Retry-After), `VenueRefused` where it refuses this client (401, 403, 451).
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None) -> None:
        self._socket = websocket.WebSocket(sockopt=SOCKET_OPTIONS, skip_utf8_validation=True, enable_multithread=False)
        self._reader = FrameReader()
        try:
            # The library's time-out is for each wait; a server that drips its answer byte by byte is ended by this one.
            with deadlines.within(2 * timeout_s, self._give_up):
                # Never an Origin: Upbit limits browsers' connections to one in ten seconds.
                self._socket.connect(url, timeout=timeout_s, suppress_origin=True, header=dict(headers or {}))
        except websocket.WebSocketBadStatusException as error:
            raise _refusal(error) from None
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise ConnectionLost(f"could not connect: {error}") from None
        if self._socket.sock is None:
            raise ConnectionLost("the connection closed while it was made")
        self._socket.sock.settimeout(1.0)

    def _give_up(self) -> None:
        half_open = self._socket.sock
        if half_open is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                half_open.shutdown(socket.SHUT_RDWR)

    def receive(self) -> list[tuple[int, bytes]]:
        """Return what has arrived as (opcode, payload); an empty list after a second without a whole frame."""
        if self._reader.broken is not None:
            raise self._reader.broken
        try:
            socket_ = self._socket.sock
            received = socket_.recv(READ_BYTES) if socket_ is not None else b""
        except TimeoutError:
            return []
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error) or type(error).__name__) from None
        if not received:
            raise ConnectionLost("the server closed the connection without a word")
        return self._reader.feed(received)

    def send_text(self, text: str) -> None:
        """Send one text frame."""
        self._send(text.encode(), websocket.ABNF.OPCODE_TEXT)

    def send_ping(self) -> None:
        """Send a protocol ping."""
        self._send(b"", websocket.ABNF.OPCODE_PING)

    def send_pong(self, payload: bytes) -> None:
        """Answer a protocol ping."""
        self._send(payload, websocket.ABNF.OPCODE_PONG)

    def _send(self, payload: bytes, opcode: int) -> None:
        try:
            self._socket.send(payload, opcode)
        except (websocket.WebSocketException, OSError, AttributeError) as error:
            raise ConnectionLost(f"could not send: {error}") from None

    def abort(self) -> None:
        """End the connection from another thread: whoever waits in `receive` returns at once."""
        self._socket.abort()

    def close(self) -> None:
        """Say goodbye and close the socket, without waiting for the answer."""
        with contextlib.suppress(websocket.WebSocketException, OSError, AttributeError):  # it may be gone already
            self._socket.send_close()
        self._socket.shutdown()


def _refusal(error: websocket.WebSocketBadStatusException) -> Exception:
    status = error.status_code
    text = f"HTTP {status} at the WebSocket handshake"
    if wants_pause(status, error.resp_headers or {}):
        return RateLimited(text, retry_after(error.resp_headers or {}), banned=status == BANNED)
    if status in (401, 403, 451):
        return VenueRefused(text)
    return ConnectionLost(text)


def wants_pause(status: int, headers: Mapping[str, str]) -> bool:
    """Tell whether an answer asks to be left alone for a while."""
    return status in (BANNED, 429) or (status == 503 and retry_after(headers) is not None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, a day at most, None where there is none.

    A date is read by the server's own clock, which is in the same answer.
    """
    value = headers.get("retry-after") or headers.get("Retry-After") or ""
    try:
        seconds = float(value)
    except ValueError:
        until_us, now_us = date_us(value), date_us(headers.get("date") or headers.get("Date") or "")
        if until_us is None or now_us is None:
            return None
        seconds = (until_us - now_us) / 1e6
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX)
