"""One client's connection as the simulated exchange sees it: its subscriptions, and what waits to go out."""

import asyncio
import base64
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simulator.faults import Faults
from simulator.ledger import Ledger
from simulator.markets import Level
from simulator.tape import Row

if TYPE_CHECKING:
    from simulator.venue import Venue

log = logging.getLogger(__name__)

CHANNELS = ("orderbook", "trades", "ticker", "candles")
OUTBOX_HIGH, OUTBOX_MAX = 64, 10_000  # messages waiting: when a fast sender pauses; when a slow client is cut


@dataclass(frozen=True, slots=True)
class Message:
    """A data frame (bytes go out as a binary frame, text as a text frame) and what it means, for the ledger.

    `what` is `book` or `change` with levels, or `trade`, `ticker` or `candle` with `rows`: each of them as the frame
    has it (a time that is sent in milliseconds is one of whole milliseconds here).
    """

    data: str | bytes
    what: str = "book"
    bids: tuple[Level, ...] = ()
    asks: tuple[Level, ...] = ()
    venue_us: int | None = None
    sequence: int | None = None
    rows: tuple[Row, ...] = ()

    def meaning(self) -> dict[str, Any]:
        """Spell the content as the ledger wants it: levels, rows, or of garbage the very bytes."""
        content: dict[str, Any]
        if self.what == "garbage":
            data = self.data.encode() if isinstance(self.data, str) else self.data
            content = {"frame": base64.b64encode(data).decode()}
        elif self.rows:
            content = {"rows": [row.meaning() for row in self.rows]}
        else:
            content = {"bids": self.bids, "asks": self.asks}
        return {**content, "venue_us": self.venue_us, "sequence": self.sequence}


@dataclass(slots=True)
class Subscription:
    """One market's channel on one connection. `code` is how the client spelled it, `i` counts its data messages."""

    id: str
    market: str
    channel: str
    code: str
    options: dict[str, Any] = field(default_factory=dict)
    i: int = 0
    forgotten: bool = False  # by a fault: nothing more comes until it is made anew
    late: Message | None = None  # by a fault: comes after the next one


class Connection:
    """A WebSocket (`socket` given) or a keep-alive HTTP connection. Lives on the simulator's own thread."""

    def __init__(
        self, venue: "Venue", ledger: Ledger, faults: Faults, transport: asyncio.Transport | None,
        socket: web.WebSocketResponse | None = None, path: str = "",
    ) -> None:  # fmt: skip
        self.venue, self.socket, self.path = venue, socket, path
        self.kind = "rest" if socket is None else "websocket"
        self.id = ledger.open(venue.name, self.kind)
        self.subscriptions: dict[tuple[str, str], Subscription] = {}
        self.memory: dict[str, Any] = {}  # what a venue wants to remember about this client
        self.why = ""
        self.half_open = False  # by a fault: the client believes in it, and nothing passes any more
        loop = asyncio.get_running_loop()
        self.opened_s = self.heard_s = self.said_s = loop.time()
        self._clock = loop.time
        self._ledger, self._faults, self._transport = ledger, faults, transport
        self._outbox: asyncio.Queue[str | bytes | asyncio.Event | tuple[Subscription, Message]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- subscriptions

    def subscribe(
        self, channel: str, market: str, code: str = "", options: dict[str, Any] | None = None
    ) -> tuple[Subscription, bool]:
        """Add a subscription, or find the one there is and give it the new options; say whether it is new."""
        known = self.subscriptions.get((channel, market))
        if known is not None:
            known.code, known.options, known.forgotten = code, options or {}, False
            return known, False
        name = self._ledger.subscribe(self.id, self.venue.name, market, channel)
        subscription = Subscription(name, market, channel, code, options or {})
        self.subscriptions[channel, market] = subscription
        return subscription, True

    def of_market(self, market: str) -> list[Subscription]:
        """List the subscriptions of a market to the channels that every venue has under these names."""
        return [s for channel in CHANNELS if (s := self.subscriptions.get((channel, market)))]

    def holds(self, subscription: Subscription) -> bool:
        """Tell whether a subscription still stands."""
        return self.subscriptions.get((subscription.channel, subscription.market)) is subscription

    # -- going out

    def say(self, data: str | bytes) -> None:
        """Queue a control frame: an acknowledgement, an error, a heartbeat. It is no data and not in the ledger."""
        self._queue(data)

    def publish(self, subscription: Subscription, message: Message) -> None:
        """Queue a data message of a subscription."""
        self._queue((subscription, message))

    def _queue(self, item: str | bytes | tuple[Subscription, Message]) -> None:
        if self._closed:
            return
        self._outbox.put_nowait(item)
        if self._outbox.qsize() >= OUTBOX_HIGH:
            self._room.clear()
        if self._outbox.qsize() > OUTBOX_MAX:
            self.abort("the client reads too slowly")

    async def room(self) -> None:
        """Wait until the client has taken most of what was queued."""
        await self._room.wait()

    async def emptied(self) -> None:
        """Wait until nothing is queued any more."""
        while not (self._closed or self._outbox.empty()):
            passed = asyncio.Event()
            self._outbox.put_nowait(passed)
            await passed.wait()

    async def send_loop(self) -> None:
        """Send what is queued, in order, for as long as the connection lives."""
        while not self._closed:
            item = await self._outbox.get()
            if self._outbox.qsize() < OUTBOX_HIGH // 2:
                self._room.set()
            try:
                if isinstance(item, asyncio.Event):
                    item.set()
                elif isinstance(item, tuple):
                    await self._deliver(*item)
                elif not self.dumb:
                    await self._send(item)
            except ConnectionError:
                self.abort("the client went away")

    async def _deliver(self, subscription: Subscription, message: Message) -> None:
        """Decide the fate of one data message, write it down, then send it."""
        if not self.holds(subscription):
            return
        where = self.venue.name, subscription.market, subscription.channel
        late, subscription.late = subscription.late, None
        overtaken = {"book": "late", "change": "swap"}.get(message.what)
        if late is None and overtaken and subscription.i and self._faults.take(overtaken, *where):
            subscription.late = message
            return
        await self._pass(subscription, message)
        if late is not None:
            await self._pass(subscription, late)

    async def _pass(self, subscription: Subscription, message: Message) -> None:
        where = self.venue.name, subscription.market, subscription.channel
        if self._faults.take("forget", *where):
            subscription.forgotten = True
        kept = self.half_open or subscription.forgotten or self._faults.withholding(*where[:2])
        if kept or self._faults.take("swallow", *where):
            self.record(subscription, message, "withheld")
            return
        if message.what in self.venue.totalled and self._faults.take("corrupt_total", *where):
            message = replace(message, data=self.venue.corrupt_total(message.data))
        copies = 2 if message.what != "garbage" and self._faults.take("duplicate", *where) else 1
        for _ in range(copies):
            self.record(subscription, message, "sent")
            await self._send(message.data)

    def record(self, subscription: Subscription, message: Message, fate: str) -> None:
        """Write the next data message of a subscription into the ledger."""
        subscription.i += 1
        self._ledger.message(subscription.id, subscription.i, message.what, fate, **message.meaning())

    def record_error(self, subscription: Subscription, status: int) -> None:
        """Write an HTTP error that was answered in place of data into the ledger."""
        subscription.i += 1
        self._ledger.message(subscription.id, subscription.i, "error", "sent", status=status)

    async def _send(self, data: str | bytes) -> None:
        if self._closed or self.socket is None or self.socket.closed:
            return
        self.said_s = self._clock()
        if isinstance(data, bytes):
            await self.socket.send_bytes(data)
        else:
            await self.socket.send_str(data)

    async def ping(self, payload: bytes) -> None:
        """Send a protocol ping unless everything is frozen."""
        if self.socket is not None and not self.socket.closed and not self.dumb:
            await self.socket.ping(payload)

    async def pong(self, payload: bytes) -> None:
        """Answer a client's protocol ping unless a fault forbids it."""
        if self.socket is not None and not (self.dumb or self.muted()):
            await self.socket.pong(payload)

    @property
    def dumb(self) -> bool:
        """Whether not one byte is to go out."""
        return self.half_open or self._faults.active("freeze", self.venue.name) is not None

    def muted(self) -> bool:
        """Tell whether heartbeats are to be left unanswered."""
        return self._faults.active("drop_pong", self.venue.name) is not None

    # -- life

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the connection; it ends with it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ConnectionError):
            self.abort("the client went away")
        elif error is not None:  # our own bug or a full disk: the client must not be left with half a simulator
            log.error("connection %s of %s is cut", self.id, self.venue.name, exc_info=error)
            self.abort(f"error in the simulator: {error!r}")

    async def close(self, code: int, why: str) -> None:
        """Say goodbye with a close frame; a half-open connection does not pass it on."""
        if self.half_open:
            return
        self.why = self.why or why
        if self.socket is not None and not self._closed:
            await self.socket.close(code=code, message=why.encode()[:120])

    def close_later(self, delay_s: float, code: int, why: str) -> None:
        """Close with a code after a moment, as a venue does after an error frame."""

        async def work() -> None:
            await asyncio.sleep(delay_s)
            await self.close(code, why)

        self.start(work())

    def abort(self, why: str) -> None:
        """Cut the TCP connection without a close frame: the client sees code 1006, of a half-open one nothing."""
        if self.half_open:
            return
        self.why = self.why or why
        if self._transport is not None:
            self._transport.abort()

    @property
    def gone(self) -> bool:
        """Whether the client has ended the TCP connection, or we have."""
        return self._closed or self._transport is None or self._transport.is_closing()

    async def ended(self, why: str) -> None:
        """Stop what runs beside the connection and write its end into the ledger. The last thing in its life."""
        if self._closed:
            return
        self._closed = True
        self._room.set()
        while not self._outbox.empty():
            item = self._outbox.get_nowait()
            if isinstance(item, asyncio.Event):
                item.set()
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ledger.close(self.id, self.why or why)
