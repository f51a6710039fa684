"""From socket to commit: ten connections that send 30-level Upbit books as fast as they are taken.

CPU per message of the whole collecting process (ten controllers, intake, writer, SQLite), over CPU per message of a
process that receives the same and throws it away. The sender is a process of its own; every receiver is a fresh process
as well.
"""

import base64
import hashlib
import json
import multiprocessing
import resource
import socket
import sqlite3
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import websocket

from bench.frames import upbit_frames
from bench.measure import Row
from bench.parse import setup
from collector.clock import Clock
from collector.config import Exchange
from collector.intake import Intake
from collector.log import Log
from collector.settings import Endpoint
from controllers.connection import Connection
from controllers.upbit import Upbit
from run_controller import SWITCH_INTERVAL_S
from storage.sqlite import SQLiteStore
from storage.writer import Writer

CONNECTIONS = 10
FRAMES = 400  # different ones; sent again and again with their times
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def run(*, seconds: float = 4.0) -> Iterator[Row]:
    """Measure and yield the report."""
    receivers = {"recv_data of websocket-client": _throw_away, "our reader": _read_away, "collector": _collect}
    found = {}
    for name, receiver in receivers.items():
        found[name] = _measure(receiver, seconds)
    base = found["recv_data of websocket-client"]["cpu_us"]
    for name, figures in found.items():
        what = "receive and throw away" if name != "collector" else "socket to commit"
        aim = "2.0" if name == "collector" else ""
        yield Row(f"{what}: {name}", figures["cpu_us"], "µs CPU/msg", figures["cpu_us"] / base, aim)
    told = found["collector"]
    yield Row(
        "socket to commit over our reader", told["cpu_us"], "µs CPU/msg", told["cpu_us"] / found["our reader"]["cpu_us"]
    )
    yield Row("collector, messages accounted for", told["messages"] / told["wall_s"], "msg/s")
    if told["messages"] != told["committed"]:
        raise RuntimeError(
            f"{told['messages']} messages were counted as stored or repeated, {told['committed']} committed"
        )


def _measure(receiver: Any, seconds: float) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    ports, sender_end = spawn.Pipe()
    sender = spawn.Process(target=_send_flat_out, args=(sender_end,), daemon=True)
    sender.start()
    url = f"ws://127.0.0.1:{ports.recv()}/websocket/v1"
    results, receiver_end = spawn.Pipe()
    process = spawn.Process(target=_in_child, args=(receiver, url, seconds, receiver_end), daemon=True)
    process.start()
    figures: dict[str, float] = results.recv()
    process.join(30)
    sender.terminate()
    sender.join(30)
    return figures


def _in_child(receiver: Any, url: str, seconds: float, results: Pipe) -> None:
    results.send(receiver(url, seconds))


# --- receivers --------------------------------------------------------------------------------------------------------


class _Meter:
    """CPU and wall time of this process from now on."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = self._cpu(), time.perf_counter()

    def read(self, messages: int) -> dict[str, float]:
        cpu_s, wall_s = self._cpu() - self._cpu_s, time.perf_counter() - self._wall_s
        return {"cpu_us": cpu_s / max(messages, 1) * 1e6, "wall_s": wall_s, "messages": messages, "committed": messages}

    @staticmethod
    def _cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def _throw_away(url: str, seconds: float) -> dict[str, float]:
    def one(counts: list[int], at: int, stop: threading.Event) -> None:
        connection = websocket.create_connection(url, skip_utf8_validation=True)
        connection.send("[]")
        while not stop.is_set():
            connection.recv_data()
            counts[at] += 1

    return _threads(one, seconds)


def _read_away(url: str, seconds: float) -> dict[str, float]:
    def one(counts: list[int], at: int, stop: threading.Event) -> None:
        connection = Connection(url)
        connection.send_text("[]")
        while not stop.is_set():
            counts[at] += len(connection.receive())

    return _threads(one, seconds)


def _threads(one: Any, seconds: float) -> dict[str, float]:
    stop, counts = threading.Event(), [0] * CONNECTIONS
    threads = [threading.Thread(target=one, args=(counts, at, stop), daemon=True) for at in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    while not all(counts):
        stop.wait(0.01)
    meter, before = _Meter(), sum(counts)
    stop.wait(seconds)
    figures = meter.read(sum(counts) - before)
    stop.set()
    return figures


def _collect(url: str, seconds: float) -> dict[str, float]:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with tempfile.TemporaryDirectory() as folder:
        clock, intake = Clock(), Intake(64 << 20)
        store = SQLiteStore(
            Path(folder) / "f.sqlite", collector_id="f", version="f", run_uid="f", started_us=clock.wall_us()
        )
        store.open()
        given = setup(Exchange(endpoint=Endpoint(websocket=url, rest=None)), intake)
        writer = Writer(store, intake, clock=clock, log=Log("WRITER"), metrics=given.metrics)
        feeds = [Upbit((f"M{number}-KRW",), given) for number in range(CONNECTIONS)]
        meter = _Meter()
        for worker in (writer, *feeds):
            worker.start()
        threading.Event().wait(seconds)
        for feed in feeds:
            feed.stop()
        ended = not [feed for feed in feeds if not feed.join(10)]
        writer.stop()
        if not (ended and writer.join(30)):
            raise RuntimeError("the collector did not stop")
        received = sum(state.total for feed in feeds for state in feed.feeds.values())
        figures = meter.read(received)
        store.release()
        db = sqlite3.connect(store.path)
        figures["committed"] = db.execute("SELECT sum(frames) FROM coverage").fetchone()[0]
        db.close()
        return figures


# --- the sender -------------------------------------------------------------------------------------------------------


def _send_flat_out(ports: Pipe) -> None:
    """Accept connections, greet them as a WebSocket server, send each its market's frames as fast as it takes them."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    ports.send(server.getsockname()[1])
    while True:
        client, _ = server.accept()
        threading.Thread(target=_serve, args=(client,), daemon=True).start()


def _serve(client: socket.socket) -> None:
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
        bursts = _bursts(_asked_for(client))
        while True:
            for burst in bursts:
                client.sendall(burst)
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
    request = json.loads(text)
    return str(request[1]["codes"][0]) if request else "KRW-BTC"


def _bursts(market: str) -> list[bytes]:
    frames = [b"\x82\x7e" + struct.pack("!H", len(frame)) + frame for frame in upbit_frames(FRAMES, market=market)]
    return [b"".join(frames[at : at + 20]) for at in range(0, FRAMES, 20)]
