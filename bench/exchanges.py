"""All KRW markets of the Korean exchanges at once, played by the simulator from a process of its own.

What costs most in a simulated exchange is moving its markets and spelling their books, so here both are done once: a
market plays a short rehearsed piece forth and back, and a book that was spelled before only gets new times. All else is
the simulator's: protocols, limits, REST books, and the ledger where one is asked for.
"""

import asyncio
import math
import multiprocessing
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from simulator.connection import Connection, Message, Subscription
from simulator.front import Front, Plan, venue_class
from simulator.markets import Book, Character, Market, Step, now_us
from simulator.tape import Tape
from simulator.venue import Timing, Venue

PLACES = 12  # books of a rehearsed piece
START_S = 120.0
STEEP = 5.0  # the busiest market of an exchange has so many times the rate of its average one
BUSIEST_HZ = 10.0  # books of one market come no faster than on a grid of 100 ms
_spawn = multiprocessing.get_context("spawn")


def rates(markets: int, per_second: float) -> dict[str, float]:
    """Spread messages a second over markets as exchanges do: a few busy ones, many quiet ones; name each.

    Rates fall from market to market by the same factor; where the busiest would pass 10 a second the slope is gentler.
    """
    mean = per_second / markets
    fall = _fall(min(STEEP, BUSIEST_HZ / mean))
    weights = [math.exp(-fall * at / markets) for at in range(markets)]
    scale = per_second / sum(weights)
    return {f"M{at}-KRW": weight * scale for at, weight in enumerate(weights)}


def _fall(steep: float) -> float:
    # Solves x / (1 - exp(-x)) = steep: the largest of exponentially falling rates over their mean.
    if steep <= 1.0:
        return 0.0
    x = steep
    for _ in range(60):
        x = steep * (1.0 - math.exp(-x))
    return x


class Exchanges:
    """The exchanges, as the process that measures sees them."""

    def __init__(self, pipe: Pipe, endpoints: dict[str, Any], pid: int) -> None:
        self._pipe = pipe
        self.endpoints = endpoints  # the `endpoint:` settings that lead a collector there, by exchange
        self.pid = pid

    def speed(self, factor: float) -> None:
        """Let every market send so many times its usual rate."""
        self._ask("speed", factor)

    def hush(self) -> None:
        """Let all markets fall silent."""
        self._ask("hush", 0.0)

    def sent(self) -> dict[str, dict[str, int]]:
        """Count the messages sent over WebSockets so far, by exchange and market."""
        counted: dict[str, dict[str, int]] = self._ask("sent", 0.0)
        return counted

    def sent_last(self) -> dict[str, dict[str, int]]:
        """Count them once no more are on their way, after `hush`."""
        never, found = threading.Event(), self.sent()
        while True:
            never.wait(0.5)
            before, found = found, self.sent()
            if found == before:
                return found

    def _ask(self, what: str, value: float) -> Any:
        self._pipe.send((what, value))
        if not self._pipe.poll(START_S):
            raise RuntimeError("the exchanges do not answer")
        return self._pipe.recv()


@contextmanager
def exchanges(wanted: Mapping[str, Mapping[str, float]], *, ledger: Path | None = None) -> Iterator[Exchanges]:
    """Run the exchanges in a process of their own; `wanted` holds messages a second by exchange and market.

    GOPAX is not rehearsed, since its changes are numbered: it gets as many updates as said, each of one message or two.
    """
    pipe, child_end = _spawn.Pipe()
    plain = {name: dict(markets) for name, markets in wanted.items()}
    process = _spawn.Process(target=_serve, args=(child_end, plain, ledger), daemon=True)
    process.start()
    child_end.close()
    try:
        try:
            if not pipe.poll(START_S):
                raise RuntimeError("the exchanges did not start")
            endpoints = pipe.recv()
        except EOFError:
            raise RuntimeError("the exchanges died at their start") from None
        yield Exchanges(pipe, endpoints, process.pid or 0)
    finally:
        pipe.close()
        process.join(10)
        process.kill()
        process.join()


def _serve(pipe: Pipe, wanted: dict[str, dict[str, float]], ledger: Path | None) -> None:
    front = Front(Plan(exchanges=[], markets=[], ledger=ledger))
    for name, markets in wanted.items():
        venue = _playing(name)(front.faults, markets, 1, Timing(), None)
        venue.rates = markets
        front.venues[name] = venue
    asyncio.run(_run(front, pipe))


async def _run(front: Front, pipe: Pipe) -> None:
    ready = threading.Event()
    server = asyncio.get_running_loop().create_task(front.serve(ready))
    while not ready.is_set() and not server.done():
        await asyncio.sleep(0.01)
    pipe.send(front.endpoints())
    asyncio.get_running_loop().add_reader(pipe.fileno(), _answer, front, pipe)
    await server
    front.ledger.flush()


def _answer(front: Front, pipe: Pipe) -> None:
    venues = [venue for venue in front.venues.values() if isinstance(venue, _Playing)]
    try:
        what, value = pipe.recv()
    except EOFError:  # nobody wants them any more
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        front.stop()
        return
    told: Any = None
    if what == "speed":
        for venue in venues:
            venue.speed = value
    elif what == "hush":
        front.faults.add("quiet", None, None, {})
    else:
        told = {venue.name: venue.sent() for venue in venues}
    pipe.send(told)


class _Rehearsed(Market):
    """A market that plays a few books forth and back."""

    def __init__(self, exchange: str, name: str, seed: int, character: Character) -> None:
        super().__init__(exchange, name, seed, character)
        forth = [super(_Rehearsed, self).step() for _ in range(PLACES)]
        self._steps = forth + forth[-2:0:-1]
        self.place = 0  # of the book that was played last
        self.book = self._steps[0].book

    def step(self) -> Step:
        """Play the next book."""
        self.place = (self.place + 1) % len(self._steps)
        step = self._steps[self.place]
        # It keeps its number: some venues spell a book by that.
        self.book = Book(step.book.n, step.book.bids, step.book.asks, now_us())
        return Step(self.book, step.changes, step.eaten)


class _Playing(Venue):
    """A venue whose markets each have a rate of their own; counts what was sent to every subscription."""

    rates: Mapping[str, float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counted: list[Subscription] = []

    async def run_market(self, market: Market, rate_hz: float | None) -> None:
        """Move a market at its own rate, and let not all begin together."""
        rate = self.rates[market.name]
        await asyncio.sleep(market.random.random() / rate)
        await super().run_market(market, rate)

    def subscribed(self, c: Connection, subscriptions: Sequence[tuple[Subscription, bool]]) -> None:
        """Remember whose messages are to be counted."""
        self._counted += [s for s, new in subscriptions if new]
        super().subscribed(c, subscriptions)

    def sent(self) -> dict[str, int]:
        """Count the messages that went to all subscriptions of each market."""
        counted = dict.fromkeys(self.rates, 0)
        for s in self._counted:
            counted[s.market] += s.i
        return counted


class _Rehearsing(_Playing):
    """A venue that sends complete books, each of them spelled once for every subscription."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        seed = args[2]
        self.markets = {name: _Rehearsed(self.name, name, seed, self.character_of(name)) for name in self.markets}
        self.tapes = {name: Tape(market) for name, market in self.markets.items()}
        self._ready_frames: dict[tuple[str, int], Sequence[Message]] = {}

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Take what was spelled before, with the time of now."""
        market = self.markets[s.market]
        assert isinstance(market, _Rehearsed)
        known = self._ready_frames.get((s.id, market.place))
        if known is None:
            known = self._ready_frames[s.id, market.place] = super().updates(s, step)
            return known
        return [_at(message, step.book.time_us) for message in known]


def _at(message: Message, time_us: int) -> Message:
    """Move a message to another time, of which it has microseconds or milliseconds; a number may begin with it."""
    assert message.venue_us is not None
    whole_ms = message.venue_us % 1000 == 0
    old, new = (str(us // 1000 if whole_ms else us) for us in (message.venue_us, time_us))
    data = message.data
    moved = data.replace(old, new) if isinstance(data, str) else data.replace(old.encode(), new.encode())
    sequence = message.sequence and int(str(message.sequence).replace(old, new))
    return replace(message, data=moved, venue_us=time_us // 1000 * 1000 if whole_ms else time_us, sequence=sequence)


def _playing(name: str) -> type[_Playing]:
    found = venue_class(name)
    if found is None:
        raise ValueError(f"there is no simulated {name}")
    base = _Playing if name == "gopax" else _Rehearsing
    return type(f"{base.__name__}{found.__name__}", (base, found), {})
