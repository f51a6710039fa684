"""A server that sends Upbit's 30-level books to whoever subscribes, from a process of its own.

It costs next to nothing beside what it is sent to: the frames are made beforehand, and only their times are written
anew.
"""

import base64
import hashlib
import json
import multiprocessing
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe

from bench.frames import upbit_frames

FRAMES = 300  # different ones of each market; played forth and back, so that neighbours differ by a few levels always
BURST = 20  # frames in one write
START_S = 60.0
_spawn = multiprocessing.get_context("spawn")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@contextmanager
def sender(markets: Sequence[str], *, per_second: float | None = None) -> Iterator[str]:
    """Run the sender in a process of its own; yield its address.

    Every connection asks for one of the markets. `per_second` frames go to each; None: as fast as they are taken.
    """
    ports, sender_end = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_send, args=(sender_end, tuple(markets), per_second), daemon=True)
    process.start()
    try:
        if not ports.poll(START_S):
            raise RuntimeError("the sender did not start")
        yield f"ws://127.0.0.1:{ports.recv()}/websocket/v1"
    finally:
        process.kill()
        process.join()


def _send(ports: Pipe, markets: Sequence[str], per_second: float | None) -> None:
    """Accept connections, greet them as a WebSocket server, send each its market's frames."""
    burst = BURST if per_second is None else max(1, min(BURST, round(per_second / 10)))
    pause_s = 0.0 if per_second is None else burst / per_second
    made = {market: _bursts(market, burst) for market in markets}
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    ports.send(server.getsockname()[1])
    while True:
        client, _ = server.accept()
        threading.Thread(target=_serve, args=(client, made, pause_s), daemon=True).start()


def _serve(client: socket.socket, made: dict[str, list[bytes]], pause_s: float) -> None:
    try:
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        key = next(
            line.split(b":", 1)[1].strip()
            for line in request.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept
            + b"\r\n\r\n"
        )
        _play(client, made[_asked_for(client)], pause_s)
    except OSError:
        client.close()  # it has heard enough


def _asked_for(client: socket.socket) -> str:
    # The first frame from the client: masked, short or with two bytes of length.
    head = client.recv(2, socket.MSG_WAITALL)
    length = head[1] & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", client.recv(2, socket.MSG_WAITALL))
    mask = client.recv(4, socket.MSG_WAITALL)
    payload = client.recv(length, socket.MSG_WAITALL)
    text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    quote, _, base = json.loads(text)[1]["codes"][0].partition("-")
    return f"{base}-{quote}"


def _play(client: socket.socket, made: Sequence[bytes], pause_s: float) -> None:
    bursts = [(bytearray(burst), [found.end() for found in re.finditer(rb'"tms":', burst)]) for burst in made]
    never, due_s = threading.Event(), time.monotonic()
    while True:
        for burst, stamps in bursts:
            due_s += pause_s
            if due_s > time.monotonic():
                never.wait(due_s - time.monotonic())
            now_ms = b"%d" % (time.time_ns() // 1_000_000)
            for at in stamps:
                burst[at : at + len(now_ms)] = now_ms
            client.sendall(burst)


def _bursts(market: str, burst: int) -> list[bytes]:
    symbol, currency = market.split("-")
    forth = list(upbit_frames(FRAMES, market=f"{currency}-{symbol}"))
    frames = [b"\x82\x7e" + struct.pack("!H", len(frame)) + frame for frame in forth + forth[-2:0:-1]]
    return [b"".join(frames[at : at + burst]) for at in range(0, len(frames), burst)]
