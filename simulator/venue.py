"""What all simulated exchanges share: markets on their clocks, snapshots and updates, keepalive, limits, playback.

A venue is one module of this folder holding one subclass of `Venue` whose `name` is the module's name; nothing else has
to know of it. It gives facts (class attributes), spells frames (`book_frame`), answers clients (`received`) and REST
calls (`rest`); the rest are hooks with a plain default.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.faults import Faults, damage
from simulator.markets import Book, Character, Market, Step, tidy
from simulator.recording import Recorded, Recording
from simulator.tape import Candle, News, Tape, Ticker, Trade


@dataclass(frozen=True, slots=True)
class Timing:
    """Times and limits of a venue; None keeps the venue's own. Tests shorten them."""

    idle_s: float | None = None  # a socket without data in either direction is cut after this
    idle_client_only: bool | None = None  # only what the client sends counts against `idle_s`
    status_s: float | None = None  # distance of the heartbeats a client asked for
    ping_s: float | None = None  # distance of the server's own pings
    pong_s: float | None = None  # how long a ping may stay unanswered
    error_close_s: float | None = None  # from an error frame to the close
    session_s: float | None = None  # longest life of a socket (Coinone: since the last PING)
    connects_per_s: int | None = None
    connections_max: int | None = None
    books_max: int | None = None  # order books on one connection
    still_s: float | None = None  # a book that did not change for so long says so
    operations_per_h: int | None = None  # requests on one connection
    rest_limits: bool | None = None

    def over(self, own: "Timing") -> "Timing":
        """Lay these values over a venue's own."""
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(own, **given)


@dataclass(frozen=True, slots=True)
class Reply:
    """A REST answer. `books` are the order books it carries by market, `asked` the markets a refusal is about.

    Of another `channel`, `books` are its trades, tickers or candles.
    """

    body: str | bytes
    status: int = 200
    books: dict[str, Message] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    channel: str = "orderbook"

    def markets(self) -> tuple[str, ...]:
        """Name every market the call was about."""
        return tuple(self.books) or self.asked


def compact(value: Any) -> str:
    """Spell JSON as exchanges do, without spaces and with Korean as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Bucket:
    """A rate limit: `capacity` calls at once, refilled by `per_s` a second."""

    def __init__(self, capacity: float, per_s: float) -> None:
        self.capacity, self.per_s = capacity, per_s
        self._left = capacity
        self._at_s: float | None = None

    def take(self) -> bool:
        """Use one call, or say that there is none left."""
        now = asyncio.get_running_loop().time()
        if self._at_s is not None:
            self._left = min(self.capacity, self._left + (now - self._at_s) * self.per_s)
        self._at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def left(self) -> int:
        """Calls still allowed now."""
        return int(self._left)


class Venue(ABC):
    """One simulated exchange: its markets and its connections."""

    name = ""
    hosts: tuple[str, ...] = ()  # of the real venue, to recognise its recordings
    socket_path = ""  # under /<exchange>
    products: ClassVar[Mapping[str, tuple[str, str]]] = {}  # with addresses of their own: socket path and REST base
    compresses = False  # permessage-deflate when the client offers it
    rates_hz: tuple[float, float] = (10, 10)  # each market's own rate lies between these
    jitter = 0.0  # share by which the distance of two updates varies
    depth = 30  # levels a side on the socket
    totalled: tuple[str, ...] = ("book",)  # kinds of messages that `corrupt_total` can spoil
    character = Character()
    timing = Timing(rest_limits=True)
    volume = re.compile(r'("ask_size":|"as":)([^,}]+)')  # the first volume of a frame, for spoiling it
    surprise = '{"type":"surprise","content":1}'  # well formed, but of no kind this venue has
    stamps = re.compile(r'("(?:timestamp|tms|t)"\s*:\s*)(\d{13,16})\b')  # times that move on in a looped recording

    def __init__(
        self, faults: Faults, markets: Iterable[str], seed: int, timing: Timing, recording: Recording | None,
        key: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.faults = faults
        self.timing = timing.over(type(self).timing)
        self.recording = recording
        self.key = key
        names = recording.markets() if recording else dict.fromkeys(markets)
        self.markets = {name: Market(self.name, name, seed, self.character_of(name)) for name in names}
        self.tapes = {name: Tape(market) for name, market in self.markets.items()}
        self.connections: set[Connection] = set()
        self.connects = Bucket(self.timing.connects_per_s or 10**9, self.timing.connects_per_s or 10**9)
        self.speed: float | None = 1.0
        self.loop_recording = False
        self._codes = {self.native(name): name for name in self.markets}
        self._played: dict[str, Book] = {}

    # -- names

    def native(self, market: str) -> str:
        """Spell a market as the venue does: KRW-BTC unless the venue says otherwise."""
        symbol, currency = market.split("-", 1)
        return f"{currency}-{symbol}"

    def house(self, code: str) -> str | None:
        """Find the market of a venue's code; None where it is not traded here."""
        return self._codes.get(code)

    def foreign(self, market: str) -> str:
        """Name a market that nobody asked for."""
        return "DOGE-KRW" if market != "DOGE-KRW" else "XRP-KRW"

    def character_of(self, market: str) -> Character:
        """Say how the books of a market look and move: all of a venue alike unless it says otherwise."""
        return self.character

    def shown(self, market: str) -> Book:
        """Give the book of a market as it is now: generated, or the last one played from the recording."""
        if market in self._played:
            return self._played[market]
        if self.recording and (first := self.recording.first_book(market)):
            return first
        return self.markets[market].book

    # -- what a venue writes

    def admit(self, request: web.BaseRequest) -> Reply | None:
        """Refuse a socket before the upgrade; None lets it in."""
        return None

    async def greet(self, c: Connection) -> None:  # noqa: B027 - a hook
        """Say something to a fresh socket, or close it."""

    async def pinged(self, c: Connection) -> None:  # noqa: B027 - a hook
        """Take note of a client's protocol ping, which is answered."""

    async def ponged(self, c: Connection, payload: bytes) -> None:  # noqa: B027 - a hook
        """Take note of a client's protocol pong."""

    @abstractmethod
    async def received(self, c: Connection, text: str) -> None:
        """Answer a client's frame."""

    @abstractmethod
    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a whole book as a frame for a subscription; `first` for the snapshot."""

    @abstractmethod
    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer a REST call; `path` is what follows /<exchange>."""

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded frame; None for one that belongs to no market."""
        return None

    # -- hooks

    def keepalive(self, c: Connection) -> None:
        """Start what watches over a socket."""
        c.start(self.watch_idle(c))

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Spell what a subscriber gets first; `fresh` is false when it subscribes again."""
        return [self.book_frame(s, self.shown(s.market), True)]

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Spell what a subscriber gets after a step of its market."""
        return [self.book_frame(s, step.book, False)]

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Spell what a subscriber of another channel than the book gets first: its ticker or the forming candle."""
        tape, message = self.tapes[s.market], None
        if s.channel == "ticker":
            message = self.ticker_frame(s, tape.ticker)
        elif s.channel == "candles":
            message = self.candle_frame(s, tape.candle)
        return [message] if message else []

    def news(self, s: Subscription, news: News) -> Sequence[Message]:
        """Spell what a subscriber of another channel than the book gets after a step of its market."""
        found: list[Message | None] = []
        match s.channel:
            case "trades" if news.trades:
                found += self.trade_frames(s, news.trades)
            case "ticker" if news.ticker:
                found.append(self.ticker_frame(s, news.ticker))
            case "candles":
                found += [self.candle_frame(s, candle) for candle in news.candles]
        return [message for message in found if message]

    def trade_frames(self, s: Subscription, trades: Sequence[Trade]) -> Sequence[Message | None]:
        """Spell the trades of one step: each alone unless a venue puts several into one frame."""
        return [self.trade_frame(s, trade) for trade in trades]

    def trade_frame(self, s: Subscription, trade: Trade) -> Message | None:
        """Spell a trade; None: this venue does not say it."""
        return None

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker; None: this venue does not say it."""
        return None

    def candle_frame(self, s: Subscription, candle: Candle) -> Message | None:
        """Spell a candle of one minute as it stands; None: this venue does not say it."""
        return None

    def stepped(self, market: Market, step: Step) -> None:  # noqa: B027 - a hook
        """Take note of a step before subscribers hear of it."""

    def prelude(self, s: Subscription, frames: Sequence[Recorded]) -> Sequence[Message]:
        """Complete a recording that lacks what a subscriber needs first."""
        return []

    def farewell(self, c: Connection) -> str | None:
        """Spell the announcement that a connection will be closed soon; None: this venue closes without one."""
        return None

    def sample(self, s: Subscription) -> str:
        """Give a good frame to be spoiled."""
        data = self.book_frame(s, self.shown(s.market), False).data
        return data.decode() if isinstance(data, bytes) else data

    def spoil(self, what: str, text: str, market: str) -> str | bytes:
        """Turn a good frame or answer of a market into garbage."""
        return damage(what, text, self.volume, self.native(market), self.native(self.foreign(market)), self.surprise)

    def corrupt_total(self, data: str | bytes) -> str | bytes:
        """Make the declared totals of a frame wrong; venues without totals leave it alone."""
        return data

    def shifted(self, data: str, by_us: int) -> str:
        """Move the times in a recorded frame on, for a recording that starts over."""

        def later(m: re.Match[str]) -> str:
            return f"{m[1]}{int(m[2]) + (by_us if len(m[2]) == 16 else by_us // 1000)}"

        return self.stamps.sub(later, data)

    # -- what they share

    def subscribed(self, c: Connection, subscriptions: Sequence[tuple[Subscription, bool]]) -> None:
        """Send what follows new (true) and repeated (false) subscriptions of one request."""
        if self.recording:
            fresh = [s for s, new in subscriptions if new]
            if fresh:
                c.start(self._play(c, fresh, self.recording))
            return
        for s, new in subscriptions:
            for message in self.snapshots(s, new) if s.channel == "orderbook" else self.opening(s, new):
                c.publish(s, message)

    async def run_market(self, market: Market, rate_hz: float | None) -> None:
        """Move one market on its own clock for ever, and tell the subscribers."""
        loop = asyncio.get_running_loop()
        rate = rate_hz or market.random.uniform(*self.rates_hz)
        jitter = 0.0 if rate_hz else self.jitter
        due = loop.time()
        while True:
            if self.speed is None:
                await self._room(market.name)
            else:
                due = max(due, loop.time() - 1) + market.random.uniform(1 - jitter, 1 + jitter) / (rate * self.speed)
                await asyncio.sleep(max(due - loop.time(), 0))
            if not self.faults.active("quiet", self.name, market.name):
                self.advance(market)

    def advance(self, market: Market) -> Step:
        """Move a market by one step and tell its subscribers."""
        step = market.step()
        news = self.tapes[market.name].hear(step)
        self.stepped(market, step)
        for c in list(self.connections):
            for s in c.of_market(market.name) if c.socket is not None else ():
                for message in self.updates(s, step) if s.channel == "orderbook" else self.news(s, news):
                    c.publish(s, message)
        return step

    async def _room(self, market: str) -> None:
        """Going as fast as it goes: wait for the slowest subscriber, or a moment where there is none."""
        listeners = [c for c in self.connections if c.socket is not None and c.of_market(market)]
        await asyncio.sleep(0 if listeners else 0.02)
        for c in listeners:
            await c.room()

    async def watch_idle(self, c: Connection) -> None:
        """Cut a socket that carried no data for too long."""
        idle = self.timing.idle_s
        while idle is not None:
            last = c.heard_s if self.timing.idle_client_only else max(c.heard_s, c.said_s)
            left = last + idle - asyncio.get_running_loop().time()
            if left <= 0:
                c.abort("idle")
                return
            await asyncio.sleep(left)

    def send_garbage(self, c: Connection, s: Subscription, what: str) -> None:
        """Send a spoiled frame on a subscription, beside what it gets anyway."""
        data = self.spoil(what, self.sample(s), s.market)
        if isinstance(data, str) and self.sends_bytes():
            data = data.encode()
        c.publish(s, Message(data, "garbage"))

    def sends_bytes(self) -> bool:
        """Tell whether data frames are binary here."""
        return False

    async def _play(self, c: Connection, subscriptions: list[Subscription], recording: Recording) -> None:
        """Play the recorded frames of some subscriptions in order, with their own timing or as fast as it goes."""
        loop = asyncio.get_running_loop()
        wanted = {(s.channel, s.market): s for s in subscriptions}
        frames = [f for f in recording.frames if (f.channel, f.market) in wanted]
        for s in subscriptions:
            for message in self.prelude(s, [f for f in frames if (f.channel, f.market) == (s.channel, s.market)]):
                c.publish(s, message)
        stamped = [f.time_s for f in frames if f.time_s is not None]
        span_s = max(stamped) - min(stamped) + 1 if stamped else 1.0
        started, lap = loop.time(), 0
        while frames:
            for frame in frames:
                if self.speed is not None and frame.time_s is not None:
                    due = started + (frame.time_s - stamped[0] + lap * span_s) / self.speed
                    await asyncio.sleep(max(due - loop.time(), 0))
                await c.room()
                await asyncio.sleep(0)
                s = wanted[frame.channel, frame.market]
                if c.holds(s):
                    c.publish(s, self._replayed(s, frame, round(lap * span_s * 1e6)))
            lap += 1
            if not self.loop_recording:
                return

    def _replayed(self, s: Subscription, frame: Recorded, by_us: int) -> Message:
        data = self.shifted(frame.data, by_us) if by_us else frame.data
        again = self.recorded(data) if by_us else frame
        frame = again or frame
        if frame.what == "book":
            self._played[frame.market] = frame.book()
        elif frame.what == "change":
            self._played[frame.market] = self.shown(frame.market).changed(tidy(frame.bids), tidy(frame.asks))
        sent = self.addressed(s, data)
        return Message(
            sent.encode() if self.sends_bytes() else sent,
            frame.what, frame.bids, frame.asks, frame.venue_us, frame.sequence, frame.rows,
        )  # fmt: skip

    def addressed(self, s: Subscription, data: str) -> str:
        """Adapt a recorded frame to the client it is played to, where a venue echoes what clients sent."""
        return data
