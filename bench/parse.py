"""What it costs to read a message: to a record with exact digits, and on to the row that goes to the store.

Compared with `orjson.loads` of the same bytes, which gives floats and no record.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import orjson
from prometheus_client import CollectorRegistry

import controllers
from bench.frames import MARKET, recorded_frames, upbit_frames, venue_frames
from bench.measure import Row, cpu_us, in_turns, row
from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import Rejected
from controllers.base import Controller, Setup
from controllers.upbit import Upbit

BURST = 25  # messages handed over together, as they arrive when it is busy
OTHERS = (
    ("bithumb", "rest"),
    ("bithumb", "websocket"),
    ("coinone", "websocket"),
    ("gopax", "websocket"),
    ("korbit", "websocket"),
)


def setup(exchange: Exchange | None = None, intake: Intake | None = None) -> Setup:
    """Return what a controller needs, without a daemon around it."""
    clock = Clock()
    metrics = Metrics(CollectorRegistry(), version="bench", started_s=time.time())
    return Setup(
        clock=clock,
        intake=intake or Intake(1 << 30),
        metrics=metrics,
        log=Log("BENCH"),
        options=exchange or Exchange(),
        budget=Budget(10, clock),
    )


def run(*, frames: int = 500, rounds: int = 15, other_rounds: int = 7) -> Iterator[Row]:
    """Measure and yield the report."""
    yield from _rows("Upbit", Upbit((MARKET,), setup()), list(upbit_frames(frames)), rounds, "2.5")
    recorded = recorded_frames()
    if recorded:
        markets = tuple(dict.fromkeys(frame.market for frame in recorded))
        messages = [frame.data.encode() for frame in recorded]
        yield from _rows("Upbit's recording", Upbit(markets, setup()), messages, other_rounds)
    for exchange, transport in OTHERS:
        controller = controllers.controller_class(exchange, transport)((MARKET,), setup())
        messages = venue_frames(exchange, frames, polled=transport == "rest")
        yield from _rows(f"{exchange} {transport}", controller, messages, other_rounds)


def _rows(name: str, controller: Controller, messages: Sequence[bytes], rounds: int, aim: str = "") -> Iterator[Row]:
    def decode() -> int:
        for message in messages:
            orjson.loads(message)
        return len(messages)

    def parse() -> int:
        for message in messages:
            for _ in controller.parse(message, 0):
                pass
        return len(messages)

    controller.anchor()
    candidates = {"decode": decode, "parse": parse, "handle": _handler(controller, messages)}
    found = in_turns({each: cpu_us(work) for each, work in candidates.items()}, rounds)
    base = found["decode"]
    yield row(f"{name}: orjson.loads, to floats", base, "µs", base)
    yield row(f"{name}: parse, to a record", found["parse"], "µs", base, aim)
    yield row(f"{name}: parse, book and row", found["handle"], "µs", base)


def _handler(controller: Controller, messages: Sequence[bytes]) -> Callable[[], int]:
    intake = controller.setup.intake

    def handle() -> int:
        for at in range(0, len(messages), BURST):
            now_us = controller.clock.monotonic_us()
            for message in messages[at : at + BURST]:
                controller.handle(message, now_us)
            controller.flush()
        controller.end_epochs("stop")  # the next round opens an epoch of its own: its first message would be a repeat
        made = intake.take(1 << 30)
        intake.done(made)
        if any(isinstance(record, Rejected) for delivery in made for record in delivery.records):
            raise RuntimeError(f"{controller.name} rejected a message it was measured with")
        return len(messages)

    return handle
