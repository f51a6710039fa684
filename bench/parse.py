"""What it costs to read a message: to a record with exact digits, and on to the row that goes to the store.

Compared with `orjson.loads` of the same bytes, which gives floats and no record.
"""

import time
from collections.abc import Callable, Iterator

import orjson
from prometheus_client import CollectorRegistry

from bench.frames import upbit_frames
from bench.measure import Row, cpu_s_per_call
from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from controllers.base import Controller, Setup
from controllers.upbit import Upbit


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


def run(*, frames: int = 500, rounds: int = 15) -> Iterator[Row]:
    """Measure and yield the report."""
    messages = list(upbit_frames(frames))
    upbit = Upbit(("BTC-KRW",), setup())
    upbit.anchor()

    def decode() -> int:
        for message in messages:
            orjson.loads(message)
        return len(messages)

    def parse() -> int:
        for message in messages:
            for _ in upbit.parse(message, 0):
                pass
        return len(messages)

    found = cpu_s_per_call({"decode": decode, "parse": parse, "handle": _handler(upbit, messages)}, rounds)
    base = found["decode"][0]
    yield Row("orjson.loads, to floats", base * 1e6, "µs", 1.0, "", found["decode"][1])
    yield Row(
        "Upbit parse, to a record", found["parse"][0] * 1e6, "µs", found["parse"][0] / base, "2.5", found["parse"][1]
    )
    yield Row("parse, book and row", found["handle"][0] * 1e6, "µs", found["handle"][0] / base, "", found["handle"][1])


def _handler(controller: Controller, messages: list[bytes]) -> Callable[[], int]:
    intake = controller.setup.intake

    def handle() -> int:
        for at in range(0, len(messages), 25):  # as they arrive when it is busy: some at a time
            now_us = controller.clock.monotonic_us()
            for message in messages[at : at + 25]:
                controller.handle(message, now_us)
            controller.flush()
        intake.done(intake.take(1 << 30))
        return len(messages)

    return handle
