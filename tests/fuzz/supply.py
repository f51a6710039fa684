"""Good messages of an exchange: what its simulated twin sends, what was recorded, what was made by hand.

The simulator is asked as a client would ask, without a socket and with a clock of its own, so that the same messages
come every time. Of each of its books it tells what it means; that is the truth a good message is held to.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from aiohttp.test_utils import make_mocked_request

from controllers.base import Controller
from controllers.rest import RESTController
from controllers.websocket import WSController
from simulator import markets as simulated
from simulator.connection import Connection, Message, Subscription
from simulator.faults import Faults
from simulator.front import venue_class
from simulator.ledger import Ledger
from simulator.markets import Level
from simulator.venue import Timing, Venue
from tests.controllers.venue import DATA, make, recorded
from tests.fakes import NOON_US
from tests.fuzz.mutate import Material

MARKETS = ("BTC-KRW", "ETH-KRW")
STEPS = 120
RECORDED_MAX = 200  # of one kind, evenly chosen
DEPTHS = (40, 6)  # levels a side at most; most sessions have the shorter books, which are quicker

Side = dict[Decimal, Decimal]


@dataclass(frozen=True, slots=True)
class Good:
    """A message as it was sent; `book` holds bids and asks where it is a complete book of a market."""

    material: Material
    market: str | None = None
    book: tuple[Side, Side] | None = None

    @property
    def frame(self) -> bytes:
        """The message itself."""
        return self.material.frame


@dataclass(frozen=True, slots=True)
class Play:
    """What a subscriber hears: what comes first, at any step, and what follows each step."""

    openings: list[list[Good]]
    updates: list[list[Good]]


@dataclass(frozen=True, slots=True)
class Supply:
    """All good messages of one controller class."""

    plays: list[Play]
    others: list[list[Material]]  # made by hand, and recorded: only to be spoiled
    answers: list[Material]  # to REST calls


def supply(cls: type[Controller], wire: Path | None) -> Supply:
    """Gather the good messages of a controller's exchange; without *wire* the recorded ones are left out."""
    plays = [_play(cls, depth) for depth in DEPTHS]
    polled = issubclass(cls, RESTController)
    others = [_by_hand(cls, "polls" if polled else "frames")]
    answers = [Material(body) for body in _answers(cls)]
    if wire is not None:
        others.append(_recorded(wire, cls.exchange, "rest" if polled else "ws"))
        answers += _recorded(wire, cls.exchange, "rest")
    return Supply(plays, [group for group in others if group], answers)


# --- the simulated exchange -------------------------------------------------------------------------------------------


class _Time:
    """The time of the simulated exchange; it stands still between two steps."""

    def __init__(self) -> None:
        self.now_us = NOON_US

    def time_ns(self) -> int:
        return self.now_us * 1000


class _Ear(Connection):
    """A client's connection that keeps what would be sent."""

    heard: list[tuple[Subscription | None, Message]]

    def _queue(self, item: str | bytes | tuple[Subscription, Message]) -> None:
        self.heard.append(item if isinstance(item, tuple) else (None, Message(item, "control")))

    def start(self, work: Any) -> None:
        work.close()

    def take(self) -> list[Good]:
        """Return what was said since the last time."""
        heard, self.heard = self.heard, []
        return [_good(message, said.market if said else None) for said, message in heard]


def _play(cls: type[Controller], depth: int) -> Play:
    time = _Time()
    with mock.patch.object(simulated, "time", time):
        return asyncio.run(_heard(cls, depth, time))


async def _heard(cls: type[Controller], depth: int, time: _Time) -> Play:
    venue = _venue(cls.exchange, depth)
    controller = make(cls, *MARKETS)
    play = Play([], [])
    ear: _Ear | None = None
    for _ in range(STEPS):
        if isinstance(controller, WSController):
            play.openings.append((await _subscribed(venue, controller)).take())
            if ear is None:
                ear = await _subscribed(venue, controller)
                ear.take()
                venue.connections.add(ear)
            _step(venue, time)
            play.updates.append(ear.take())
        else:
            play.openings.append(_polled(venue, controller))
            _step(venue, time)
            play.updates.append(_polled(venue, controller))
    return play


def _venue(exchange: str, depth: int) -> Venue:
    found = venue_class(exchange)
    assert found is not None, f"there is no simulated {exchange}"
    character = replace(found.character, depth=min(depth, found.character.depth))
    found = type(found.__name__, (found,), {"character": character})
    return found(Faults(), MARKETS, 1, Timing(rest_limits=False), None)


async def _subscribed(venue: Venue, controller: WSController) -> _Ear:
    ear = _Ear(venue, Ledger(), venue.faults, None, socket=mock.sentinel.socket)
    ear.heard = []
    await venue.greet(ear)
    for text in controller.subscribe_messages(controller.markets):
        await venue.received(ear, text)
    return ear


def _step(venue: Venue, time: _Time) -> None:
    time.now_us += 100_000
    for market in venue.markets.values():
        venue.advance(market)


def _polled(venue: Venue, controller: Controller) -> list[Good]:
    assert isinstance(controller, RESTController)
    return [_asked(venue, controller.request_path(market), market) for market in MARKETS]


def _asked(venue: Venue, path: str, market: str | None = None) -> Good:
    reply = venue.rest(make_mocked_request("GET", path), path.strip("/").partition("?")[0])
    meaning = reply.books.get(market or "")
    if meaning is None:
        return _good(Message(reply.body, "control"), None)
    return _good(replace(meaning, data=reply.body), market)


def _good(message: Message, market: str | None) -> Good:
    frame = message.data.encode() if isinstance(message.data, str) else message.data
    book = (_side(message.bids), _side(message.asks)) if message.what == "book" else None
    return Good(Material(frame), market, book)


def _side(levels: Iterable[Level]) -> Side:
    return {Decimal(price): Decimal(size) for price, size in levels}


def _answers(cls: type[Controller]) -> Iterator[bytes]:
    controller = make(cls)
    time = _Time()
    with mock.patch.object(simulated, "time", time):
        venue = _venue(cls.exchange, DEPTHS[-1])
        paths = [cls.listing_path]
        if isinstance(controller, WSController) and (path := controller.probe_path("BTC-KRW")):
            paths.append(path)
        for _ in range(10):
            yield from (_asked(venue, path).frame for path in paths)
            _step(venue, time)


# --- recorded and made by hand ----------------------------------------------------------------------------------------


def _recorded(wire: Path, exchange: str, kind: str) -> list[Material]:
    found = [Material(line.data.encode()) for line in recorded(wire, exchange, kind)]
    return found[:: max(1, len(found) // RECORDED_MAX)]


def _by_hand(cls: type[Controller], file: str) -> list[Material]:
    path = DATA / cls.exchange / f"{file}.ndjson"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [Material(json.loads(line)["frame"].encode()) for line in lines]
