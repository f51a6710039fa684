"""Reading WebSocket frames out of a byte stream, many at a time (RFC 6455, the client's side).

`websocket-client` makes the connection and sends; receiving is done here because it is the hot path: one system call
fetches whatever has arrived, and every whole frame in it is handed on at once.
"""

import struct

from collector.errors import ConnectionLost

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_DATA = (TEXT, BINARY)
_KNOWN = (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)


class FrameReader:
    """Cuts received bytes into messages. A message of several fragments comes out as one."""

    def __init__(self, message_bytes_max: int = 16 << 20) -> None:
        self._message_bytes_max = message_bytes_max
        self._buffer = bytearray()  # the beginning of a frame that is not whole yet
        self._wanted = 0  # bytes until there is anything to do
        self._opcode = 0  # of the message whose fragments are being collected; 0: none is
        self._message = bytearray()
        self.broken: ConnectionLost | None = None  # what came after the last messages, which are whole

    def feed(self, received: bytes) -> list[tuple[int, bytes]]:
        """Take received bytes, return the whole messages and control frames in them as (opcode, payload), in order.

        Raises `ConnectionLost` when the bytes are not what a server may send; nothing after that can be trusted. What
        is whole before it is returned first, and the error kept in `broken`.
        """
        messages: list[tuple[int, bytes]] = []
        try:
            self._cut(received, messages)
        except ConnectionLost as error:
            if not messages:
                raise
            self.broken = error
        return messages

    def _cut(self, received: bytes, messages: list[tuple[int, bytes]]) -> None:
        data = received
        if self._buffer:
            self._buffer += received
            if len(self._buffer) < self._wanted:
                return
            data = bytes(self._buffer)
        at, end = 0, len(data)
        self._wanted = 0
        while end - at >= 2:
            first, length = data[at], data[at + 1]
            head = 2
            if length == 126:
                if end - at < 4:
                    break
                (length,) = struct.unpack_from("!H", data, at + 2)
                head = 4
            elif length == 127:
                if end - at < 10:
                    break
                (length,) = struct.unpack_from("!Q", data, at + 2)
                head = 10
            elif length > 127:
                raise ConnectionLost("protocol error: a frame from the server is masked")
            if length > self._message_bytes_max:
                raise ConnectionLost(f"a frame of {length} bytes is larger than {self._message_bytes_max}")
            if end - at < head + length:
                self._wanted = head + length
                break
            payload = data[at + head : at + head + length]
            at += head + length
            if first & 0x8F in (0x81, 0x82) and not first & 0x70 and not self._opcode:
                messages.append((first & 0x0F, payload))
            else:
                self._unusual(first, payload, messages)
        self._buffer = bytearray(data[at:])

    def _unusual(self, first: int, payload: bytes, messages: list[tuple[int, bytes]]) -> None:
        # Control frames, fragments, and everything that is not allowed.
        final, opcode = bool(first & 0x80), first & 0x0F
        if first & 0x70 or opcode not in _KNOWN:
            raise ConnectionLost(f"protocol error: first byte of a frame was 0x{first:02x}")
        if opcode >= CLOSE:
            if not final or len(payload) > 125:
                raise ConnectionLost("protocol error: a control frame is cut up or too long")
            messages.append((opcode, payload))
            return
        if (opcode in _DATA) == bool(self._opcode):
            raise ConnectionLost("protocol error: fragments of a message are out of order")
        self._opcode = self._opcode or opcode
        self._message += payload
        if len(self._message) > self._message_bytes_max:
            raise ConnectionLost(f"a message is larger than {self._message_bytes_max} bytes")
        if final:
            messages.append((self._opcode, bytes(self._message)))
            self._opcode, self._message = 0, bytearray()


def close_reason(payload: bytes) -> str:
    """Return what a close frame says, for a log line: `code 1000 bye`."""
    if len(payload) < 2:
        return "no code"
    (code,) = struct.unpack_from("!H", payload)
    text = payload[2:].decode("utf-8", "replace").strip()
    return f"code {code} {text}" if text else f"code {code}"
