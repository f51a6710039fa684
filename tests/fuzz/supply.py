"""Good messages of an exchange: what its simulated twin sends, what was recorded, what was made by hand.

The simulator is asked as a client would ask, without a socket and with a clock of its own, so that the same messages
come every time. Of each of its messages it tells what it means; that is the truth a good message is held to.
"""

import asyncio
import functools
import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from aiohttp.test_utils import make_mocked_request

from collector.records import CHANNELS, ORDERBOOK
from controllers import venues
from controllers.base import Controller
from controllers.rest import RESTController
from controllers.websocket import WSController
from simulator import markets as simulated
from simulator.connection import Connection, Message, Subscription
from simulator.faults import Faults
from simulator.front import venue_class
from simulator.ledger import Ledger
from simulator.markets import Character, Level
from simulator.tape import Row
from simulator.venue import Timing, Venue
from tests.controllers.streams import hearing
from tests.controllers.venue import DATA, recorded
from tests.fakes import NOON_US
from tests.fuzz.mutate import Material

# The two markets that a session hears; those of recorded messages where there is a choice.
MARKETS = {
    "binance/websocket": ("BTC-USDT", "ETH-USDT"),
    "binance/websocket/usdm": ("BTC-USDT:USDT", "ETH-USDT:USDT-261225"),
    "binance/websocket/usdm_market": ("BTC-USDT:USDT", "ETH-USDT:USDT-261225"),
    "bybit/websocket": ("BTC-USDT", "ETH-USDT"),
    "bybit/websocket/linear": ("BTC-USDT:USDT", "ETH-USDC:USDC"),
    "bybit/websocket/inverse": ("BTC-USD:BTC", "ETH-USD:ETH-261225"),
    "coinbase/rest": ("BTC-USD", "ETH-USD"),
    "coinbase/websocket": ("BTC-USD", "ETH-USDC"),
    "kraken/websocket": ("BTC-USD", "ETH-USD"),
    "kucoin/websocket": ("BTC-USDT", "ETH-USDT"),
    "okx/websocket": ("BTC-USDT", "BTC-USD:BTC-261225-100000-C"),
    "okx/websocket/business": ("BTC-USDT", "BTC-USDT:USDT"),
}
KOREAN = ("BTC-KRW", "ETH-KRW")
STEPS, POLLS = 60, 10
STEP_US = 1_000_000
RECORDED_MAX = 200  # of one kind, evenly chosen
LARGEST = 32 << 10  # bytes of a recorded one: spoiling a list of two megabytes takes as long as hearing for minutes
DEPTHS = (40, 6)  # levels a side at most; most sessions have the shorter books, which are quicker

Side = dict[Decimal, Decimal]
Books = tuple[Side, Side]


def classes() -> dict[str, type[Controller]]:
    """Return the classes of all exchanges, found by name: `binance/websocket/usdm` and the like."""
    found: dict[str, type[Controller]] = {}
    for exchange in venues():
        module = importlib.import_module(f"controllers.{exchange}")
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, Controller) and vars(thing).get("exchange") == exchange:
                found[name_of(thing)] = thing
    return found


def name_of(cls: type[Controller]) -> str:
    """Return the name of a class: its exchange, its transport, and its product where it has one."""
    return "/".join(part for part in (cls.exchange, cls.transport, cls.product) if part)


def markets_of(cls: type[Controller]) -> tuple[str, ...]:
    """Return the markets that are heard."""
    return MARKETS.get(name_of(cls), KOREAN)


@dataclass(frozen=True, slots=True)
class Good:
    """A message as it was sent. `book` holds bids and asks as they are after it, where it is the last of its step.

    Of a control message `market` is None. `rows` are its trades, tickers or candles.
    """

    material: Material
    market: str | None = None
    channel: str = ORDERBOOK
    complete: bool = False  # a whole book
    book: Books | None = None
    rows: tuple[Row, ...] = ()

    @property
    def frame(self) -> bytes:
        """The message itself."""
        return self.material.frame


@dataclass(frozen=True, slots=True)
class Play:
    """What a subscriber hears: what comes first, at any step, and what follows each step.

    `snapshots` are the books over REST, by market, where the stream continues one.
    """

    openings: list[list[Good]]
    updates: list[list[Good]]
    snapshots: list[dict[str, Good]]


class Supply:
    """All good messages of one controller class; without *wire* the recorded ones are left out."""

    def __init__(self, cls: type[Controller], wire: Path | None) -> None:
        self._cls = cls
        polled = issubclass(cls, RESTController)
        others = [_by_hand(path) for path in sorted((DATA / cls.exchange).glob("*.ndjson"))]
        self.answers = [Material(body) for body in _answers(cls)]  # to REST calls
        if wire is not None:
            others.append(_recorded(wire, cls.exchange, "rest" if polled else "ws"))
            self.answers += _recorded(wire, cls.exchange, "rest")
        self.others = [group for group in others if group]  # made by hand, and recorded: only to be spoiled

    @functools.cached_property
    def deep(self) -> Play:
        """What is heard with many levels a side."""
        return _play(self._cls, DEPTHS[0])

    @functools.cached_property
    def shallow(self) -> Play:
        """What is heard with few levels a side."""
        return _play(self._cls, DEPTHS[1])


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
        return [_good(message, said) for said, message in heard]


def _play(cls: type[Controller], depth: int) -> Play:
    time = _Time()
    with mock.patch.object(simulated, "time", time):
        return asyncio.run(_heard(cls, depth, time))


async def _heard(cls: type[Controller], depth: int, time: _Time) -> Play:
    venue = _venue(cls, depth)
    controller = hearing(cls, *markets_of(cls))
    play = Play([], [], [])
    ear: _Ear | None = None
    for _ in range(STEPS if isinstance(controller, WSController) else POLLS):
        if isinstance(controller, WSController):
            play.openings.append((await _subscribed(venue, controller)).take())
            if ear is None:
                ear = await _subscribed(venue, controller)
                ear.take()
                venue.connections.add(ear)
            play.snapshots.append(_snapshots(venue, controller))
            _step(venue, time)
            play.updates.append(_with_books(venue, controller, ear.take()))
        elif isinstance(controller, RESTController):
            play.openings.append(_polled(venue, controller, time.now_us))
            _step(venue, time)
            play.updates.append(_polled(venue, controller, time.now_us))
    return play


def _venue(cls: type[Controller], depth: int) -> Venue:
    found = venue_class(cls.exchange)
    assert found is not None, f"there is no simulated {cls.exchange}"
    of = found.character_of

    def character_of(self: Venue, market: str) -> Character:
        character = of(self, market)
        return replace(character, depth=min(depth, character.depth))

    found = type(found.__name__, (found,), {"character_of": character_of})
    return found(Faults(), markets_of(cls), 1, Timing(rest_limits=False), None)


async def _subscribed(venue: Venue, controller: WSController) -> _Ear:
    product = venue.products.get(controller.product) if controller.product else None
    path = f"/{venue.name}/{product[0] if product else venue.socket_path}".rstrip("/")
    ear = _Ear(venue, Ledger(), venue.faults, None, socket=mock.sentinel.socket, path=path)
    ear.heard = []
    await venue.greet(ear)
    for text in controller.subscribe_messages(controller.markets):
        await venue.received(ear, text)
    return ear


def _step(venue: Venue, time: _Time) -> None:
    time.now_us += STEP_US
    for market in venue.markets.values():
        venue.advance(market)


def _with_books(venue: Venue, controller: Controller, goods: list[Good]) -> list[Good]:
    # The book of a market as it is after a step is that after its last message.
    last = {good.market: at for at, good in enumerate(goods) if good.market and good.channel == ORDERBOOK}
    for market, at in last.items():
        if market is not None and goods[at].book is None:
            book = venue.shown(market)
            if controller.depth is not None:
                book = book.top(controller.depth)
            goods[at] = replace(goods[at], book=(_side(book.bids), _side(book.asks)))
    return goods


def _snapshots(venue: Venue, controller: WSController) -> dict[str, Good]:
    if ORDERBOOK not in controller.channels:
        return {}
    paths = {market: controller.snapshot_path(market) for market in controller.markets}
    return {market: _asked(venue, controller, path, market) for market, path in paths.items() if path is not None}


def _polled(venue: Venue, controller: RESTController, now_us: int) -> list[Good]:
    return [
        _asked(venue, controller, controller.poll_path(channel, market, now_us), market, channel)
        for market, channel in controller.feeds
    ]


def _asked(
    venue: Venue, controller: Controller, path: str, market: str | None = None, channel: str = ORDERBOOK
) -> Good:
    base = venue.products[controller.product][1] if controller.product in venue.products else ""
    path = f"/{base}{path}" if base else path
    reply = venue.rest(make_mocked_request("GET", path), path.strip("/").partition("?")[0])
    body = reply.body.encode() if isinstance(reply.body, str) else reply.body
    meaning = reply.books.get(market or "")
    if meaning is None:
        return Good(Material(body), market, channel)
    book = (_side(meaning.bids), _side(meaning.asks)) if meaning.what == "book" else None
    return Good(Material(body), market, channel, book is not None, book, meaning.rows)


def _good(message: Message, said: Subscription | None) -> Good:
    frame = message.data.encode() if isinstance(message.data, str) else message.data
    if said is None or said.channel not in CHANNELS:
        return Good(Material(frame))
    book = (_side(message.bids), _side(message.asks)) if message.what == "book" else None
    return Good(Material(frame), said.market, said.channel, book is not None, book, message.rows)


def _side(levels: Iterable[Level]) -> Side:
    return {Decimal(price): Decimal(size) for price, size in levels}


def _answers(cls: type[Controller]) -> Iterator[bytes]:
    controller = hearing(cls, *markets_of(cls))
    time = _Time()
    with mock.patch.object(simulated, "time", time):
        venue = _venue(cls, DEPTHS[-1])
        paths: list[str | None] = [cls.listing_path]
        for market in controller.markets:
            paths += [controller.snapshot_path(market), controller.unit_path(market)]
            if isinstance(controller, WSController):
                paths.append(controller.probe_path(market))
        for _ in range(5):
            yield from (_asked(venue, controller, path).frame for path in paths if path is not None)
            _step(venue, time)


# --- recorded and made by hand ----------------------------------------------------------------------------------------


def _recorded(wire: Path, exchange: str, kind: str) -> list[Material]:
    found = [Material(frame) for line in recorded(wire, exchange, kind) if len(frame := line.data.encode()) <= LARGEST]
    return found[:: max(1, len(found) // RECORDED_MAX)]


def _by_hand(path: Path) -> list[Material]:
    return [Material(json.loads(line)["frame"].encode()) for line in path.read_text("utf-8").splitlines()]
