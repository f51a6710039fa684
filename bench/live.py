"""What the live view adds to the work on a message, with nobody listening and with a callback on every feed.

Compared with the whole work of a controller, from the bytes to the row, of the same messages.
"""

from collections.abc import Callable, Iterator, Sequence

from bench.frames import MARKET, upbit_frames
from bench.measure import Row, cpu_us, in_turns, row
from bench.parse import BURST, setup
from collector.clock import Clock
from collector.intake import Intake
from collector.latest import LiveBook
from collector.live import LiveView
from collector.log import Log
from collector.records import ORDERBOOK, Delivery
from controllers.upbit import Upbit


def run(*, frames: int = 500, rounds: int = 15) -> Iterator[Row]:
    """Measure and yield the report."""
    intake = Intake(1 << 30)
    controller = Upbit((MARKET,), setup(intake=intake))
    controller.anchor()
    messages = list(upbit_frames(frames))

    def handle() -> Sequence[Delivery]:
        for at in range(0, frames, BURST):
            now_us = controller.clock.monotonic_us()
            for message in messages[at : at + BURST]:
                controller.handle(message, now_us)
            controller.flush()
        controller.end_epochs("stop")
        made = intake.take(1 << 30)
        intake.done(made)
        return made

    deliveries = handle()
    heard = LiveView(Clock(), Log("BENCH"))
    heard.subscribe(controller.exchange, ORDERBOOK, "*", lambda update: None, waiting_max=10 * frames)
    read = LiveView(Clock(), Log("BENCH"))
    candidates = {
        "handle": cpu_us(lambda: len(handle()) and frames),
        "silent": cpu_us(_taking(LiveView(Clock(), Log("BENCH")), deliveries, frames)),
        "heard": cpu_us(_taking(heard, deliveries, frames)),
        "read": cpu_us(_taking(read, deliveries, frames, lambda: read.book(controller.exchange, MARKET))),
    }
    found = in_turns(candidates, rounds)
    heard.close()
    base = found["handle"]
    yield row("a message of Upbit, parse, book and row", base, "µs", base)
    yield row("the live view, nobody listens", found["silent"], "µs", base, "0.05")
    yield row("with a callback that does nothing", found["heard"], "µs", base)
    yield row("with the book read and sorted after every burst", found["read"], "µs", base)


def _taking(
    view: LiveView, deliveries: Sequence[Delivery], frames: int, read: Callable[[], LiveBook | None] = lambda: None
) -> Callable[[], int]:
    def take() -> int:
        for delivery in deliveries:
            view.take(delivery)
            book = read()
            if book is not None:
                _ = book.bids, book.asks
        return frames

    return take
