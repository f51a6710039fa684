"""From socket to commit: ten connections that send 30-level Upbit books as fast as they are taken.

CPU per message of the whole collecting process (ten controllers, intake, writer, SQLite), over CPU per message of a
process that receives the same and throws it away. The sender is a process of its own; every receiver is a fresh process
as well, all with the daemon's switch interval, so that only the work differs.

Measured twice, since it is the base that moves: a loop of many short calls that lets go of the interpreter's lock at
each spends as much again on handing it from core to core. On one core there is none of that, and figures repeat.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

import websocket

from bench.measure import Row, in_turns, row
from bench.parse import setup
from bench.sender import START_S, sender
from collector.clock import Clock
from collector.config import Exchange
from collector.intake import Intake
from collector.log import Log
from collector.settings import Endpoint
from commands.daemon import SWITCH_INTERVAL_S
from controllers.connection import Connection
from controllers.upbit import Upbit
from storage.sqlite import SQLiteStore
from storage.store import Run
from storage.writer import Writer

CONNECTIONS = 10
MARKETS = tuple(f"M{number}-KRW" for number in range(CONNECTIONS))
_spawn = multiprocessing.get_context("spawn")

PINS = hasattr(os, "sched_setaffinity")
RECV_DATA, OUR_READER, COLLECTOR = "recv_data of websocket-client", "our reader", "collector"


def run(*, seconds: float = 1.0, rounds: int = 4) -> Iterator[Row]:
    """Measure and yield the report; raises `RuntimeError` where a message that was counted is not in the store."""
    receivers: dict[str, Receiver] = {RECV_DATA: _throw_away, OUR_READER: _read_away, COLLECTOR: _collect}
    one_core = {f"{name}, one core": (receiver, True) for name, receiver in receivers.items()}
    any_core = {f"{name}, any core": (receivers[name], False) for name in (RECV_DATA, COLLECTOR)}
    with sender(MARKETS) as url:
        found = in_turns(
            {
                name: partial(_measure, receiver, url, seconds, pinned)
                for name, (receiver, pinned) in {**(one_core if PINS else {}), **any_core}.items()
            },
            rounds,
        )
    unit = "µs CPU/msg"
    for cores in ("one core", "any core") if PINS else ("any core",):
        cpu_us = {
            name: [round_.cpu_us for round_ in found[f"{name}, {cores}"]]
            for name in receivers
            if f"{name}, {cores}" in found
        }
        base = cpu_us[RECV_DATA]
        yield row(f"receive and throw away: {RECV_DATA}, {cores}", base, unit, base)
        if OUR_READER in cpu_us:
            yield row(f"receive and throw away: {OUR_READER}, {cores}", cpu_us[OUR_READER], unit, base)
        yield row(f"socket to commit, {cores}", cpu_us[COLLECTOR], unit, base, "2.0")
    told = found[f"{COLLECTOR}, any core"]
    yield row("collector, messages committed", [each.messages / each.wall_s for each in told], "msg/s")
    yield row("collector, rows for each message", [each.rows / each.messages for each in told], "")


class Figures(NamedTuple):
    """What one receiver did in one round."""

    messages: int
    cpu_us: float  # for each message
    wall_s: float
    rows: int = 0


Receiver = Callable[[str, float], Figures]


def _measure(receiver: Receiver, url: str, seconds: float, one_core: bool) -> Figures:
    results, child_end = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_in_child, args=(receiver, url, seconds, one_core, child_end), daemon=True)
    process.start()
    child_end.close()  # so that a child that dies is noticed here
    try:
        if not results.poll(START_S + seconds):
            raise RuntimeError("a receiver did not end")
        told: Figures | str = results.recv()
    except EOFError:
        raise RuntimeError("a receiver died") from None
    finally:
        process.join(5)
        process.kill()
        process.join()
    if isinstance(told, str):
        raise RuntimeError(told)
    return told


def _in_child(receiver: Receiver, url: str, seconds: float, one_core: bool, results: Pipe) -> None:
    try:
        if one_core:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        results.send(receiver(url, seconds))
    except Exception as error:  # for whoever runs the benchmark to see
        results.send(f"a receiver failed: {error!r}")


# --- receivers --------------------------------------------------------------------------------------------------------


class _Meter:
    """CPU and wall time of this process from now on."""

    def __init__(self) -> None:
        self._cpu_s, self._wall_s = self._cpu(), time.perf_counter()

    def read(self, messages: int, rows: int = 0) -> Figures:
        cpu_s, wall_s = self._cpu() - self._cpu_s, time.perf_counter() - self._wall_s
        if not messages:
            raise RuntimeError("not one message was received")
        return Figures(messages, cpu_s / messages * 1e6, wall_s, rows)

    @staticmethod
    def _cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def _throw_away(url: str, seconds: float) -> Figures:
    def one(counts: list[int], at: int, stop: threading.Event) -> None:
        connection = websocket.create_connection(url, skip_utf8_validation=True)
        connection.send(_subscription(MARKETS[at]))
        while not stop.is_set():
            connection.recv_data()
            counts[at] += 1

    return _threads(one, seconds)


def _read_away(url: str, seconds: float) -> Figures:
    def one(counts: list[int], at: int, stop: threading.Event) -> None:
        connection = Connection(url)
        connection.send_text(_subscription(MARKETS[at]))
        while not stop.is_set():
            counts[at] += len(connection.receive())

    return _threads(one, seconds)


def _subscription(market: str) -> str:
    symbol, currency = market.split("-")
    return json.dumps([{"ticket": "bench"}, {"type": "orderbook", "codes": [f"{currency}-{symbol}"]}])


def _threads(one: Callable[[list[int], int, threading.Event], None], seconds: float) -> Figures:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop, counts = threading.Event(), [0] * CONNECTIONS
    threads = [threading.Thread(target=one, args=(counts, at, stop), daemon=True) for at in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    _wait_until(lambda: all(counts))
    meter, before = _Meter(), sum(counts)
    stop.wait(seconds)
    figures = meter.read(sum(counts) - before)
    stop.set()
    return figures


def _wait_until(heard: Callable[[], bool]) -> None:
    """Return once every connection has been heard, so that a slow start is nobody's."""
    never, deadline_s = threading.Event(), time.monotonic() + START_S
    while not heard():
        if time.monotonic() > deadline_s:
            raise RuntimeError("not every connection was heard")
        never.wait(0.01)


def _collect(url: str, seconds: float) -> Figures:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with tempfile.TemporaryDirectory() as folder:
        clock, intake = Clock(), Intake(64 << 20)
        store = SQLiteStore(Path(folder) / "f.sqlite")
        store.open()
        given = setup(Exchange(endpoint=Endpoint(websocket=url, rest=None)), intake)
        writer = Writer(
            store, intake, Run("f", "f", "f", clock.wall_us()), clock=clock, log=Log("WRITER"), metrics=given.metrics
        )
        feeds = [Upbit((market,), given) for market in MARKETS]
        meter = _Meter()
        for worker in (writer, *feeds):
            worker.start()
        _wait_until(lambda: all(heard.total for feed in feeds for heard in feed.feeds.values()))
        threading.Event().wait(seconds)
        for feed in feeds:
            feed.stop()
        ended = all(feed.join(10) for feed in feeds)
        writer.stop()
        if not (ended and writer.join(30)):
            raise RuntimeError("the collector did not stop")
        received = sum(heard.total for feed in feeds for heard in feed.feeds.values())
        figures = meter.read(received)
        (committed,) = store.connection.execute("SELECT sum(frames) FROM coverage").fetchone()
        (rows,) = store.connection.execute("SELECT count(*) FROM book").fetchone()
        store.release()
        if committed != received:
            raise RuntimeError(f"{received} messages were received, {committed} are accounted for in the store")
        return figures._replace(rows=rows)
