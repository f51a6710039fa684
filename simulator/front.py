"""The part of the simulator that lives on its event loop: it listens, routes, counts connections and causes faults."""

import asyncio
import importlib.util
import inspect
import json
import pkgutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

import simulator
from simulator import faults as fault_kinds
from simulator.connection import Connection, Message
from simulator.faults import Faults
from simulator.ledger import Ledger
from simulator.recording import load
from simulator.venue import Reply, Timing, Venue

MESSAGE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(slots=True)
class Plan:
    """What is to be simulated; see `Simulator` for the meaning of each."""

    exchanges: list[str]
    markets: list[str]
    seed: int = 1
    rate_hz: float | None = None
    speed: float | None = 1.0
    host: str = "127.0.0.1"
    port: int = 0
    ledger: Path | None = None
    recording: Path | None = None
    loop: bool = False
    timing: Timing = field(default_factory=Timing)
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)


def venues() -> list[str]:
    """Name the exchanges that can be simulated: the modules of this folder that hold a venue."""
    return [m.name for m in pkgutil.iter_modules(simulator.__path__) if venue_class(m.name) is not None]


def venue_class(name: str) -> type[Venue] | None:
    """Find the venue in the module of that name; None where the module holds none."""
    module = importlib.import_module(f"simulator.{name}")
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, Venue) and found.name == name:
            return found
    return None


class _Server(web.Server):
    """The HTTP server, which also tells when a TCP connection is gone."""

    def __init__(self, front: "Front") -> None:
        super().__init__(front.handle, handler_cancellation=False, access_log=None)
        self._front = front

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Note the end of a keep-alive connection."""
        super().connection_lost(handler, exc)
        self._front.gone(handler)


class Front:
    """Everything that lives on the event loop: venues, connections, faults, ledger."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.error: BaseException | None = None
        self.faults = Faults()
        self.venues: dict[str, Venue] = {}
        self.ledger = Ledger(plan.ledger)
        self._stopping: asyncio.Event | None = None
        self._kept: dict[tuple[object, str], Connection] = {}  # HTTP connections by (protocol, exchange)
        self._background: set[asyncio.Task[None]] = set()
        for name in plan.exchanges:
            self.venues[name] = self._build(name)
        if plan.recording is not None and not any(venue.recording for venue in self.venues.values()):
            raise ValueError(f"{plan.recording} holds no frames of {', '.join(plan.exchanges)}")

    def _build(self, name: str) -> Venue:
        known = name.isidentifier() and importlib.util.find_spec(f"simulator.{name}") is not None
        kind = venue_class(name) if known else None
        if kind is None:
            raise ValueError(f"no simulated exchange {name!r}: one of {', '.join(venues())}")
        recording = None
        if self.plan.recording is not None:
            found = load(self.plan.recording, kind.hosts, kind.recorded)
            recording = found if found.frames else None
        venue = kind(
            self.faults, self.plan.markets, self.plan.seed, self.plan.timing, recording, self.plan.keys.get(name)
        )
        venue.speed, venue.loop_recording = self.plan.speed, self.plan.loop
        return venue

    async def serve(self, ready: threading.Event) -> None:
        """Listen, move the markets, and take everything down again when told to stop."""
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = _Server(self)
        listener = await loop.create_server(server, self.plan.host, self.plan.port, backlog=1024)
        self.plan.port = listener.sockets[0].getsockname()[1]
        clocks = [
            loop.create_task(venue.run_market(market, self.plan.rate_hz))
            for venue in self.venues.values()
            if venue.recording is None
            for market in venue.markets.values()
        ]
        for clock in clocks:
            clock.add_done_callback(self._clock_ended)
        ready.set()
        try:
            await self._stopping.wait()
        finally:
            listener.close()
            for task in clocks:
                task.cancel()
            await asyncio.gather(*clocks, return_exceptions=True)
            for c in self.everyone():
                c.half_open = False
                c.abort("the simulator stops")
                await c.ended("the simulator stops")
            open_ones = [handler.transport for handler in server.connections if handler.transport is not None]
            await server.shutdown(1)
            await asyncio.gather(*self._background, return_exceptions=True)
            for transport in open_ones:  # whoever does not read would keep one open that is only closed
                transport.abort()
            await asyncio.sleep(0)  # for the loop to let go of their sockets

    def _clock_ended(self, task: "asyncio.Task[None]") -> None:
        """A market must never stand still unnoticed: an error in it ends the simulator."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.error = error
            self.stop()

    def stop(self) -> None:
        """Let `serve` come to its end."""
        if self._stopping is not None:
            self._stopping.set()

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """Name the socket URL and the REST base of every venue, and of its products."""
        found: dict[str, dict[str, Any]] = {}
        for name, venue in self.venues.items():
            found[name] = self._addresses(name, venue.socket_path, "")
            if venue.products:
                found[name]["products"] = {
                    product: self._addresses(name, *paths) for product, paths in venue.products.items()
                }
        return found

    def _addresses(self, name: str, socket_path: str, rest_base: str) -> dict[str, str]:
        where = f"{self.plan.host}:{self.plan.port}/{name}"
        return {
            "websocket": f"ws://{where}/{socket_path}".rstrip("/"),
            "rest": f"http://{where}/{rest_base}".rstrip("/"),
        }

    def everyone(self) -> list[Connection]:
        """List every open connection of every venue."""
        return [c for venue in self.venues.values() for c in list(venue.connections)]

    # -- requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Find the venue of a request and the part of it that answers."""
        head, _, path = request.path.lstrip("/").partition("/")
        if head == "control":
            return await self._control(request, path)
        venue = self.venues.get(head)
        if venue is None:
            return web.Response(status=404, text=f"no exchange {head!r} here\n")
        sockets = {venue.socket_path, *(socket_path for socket_path, _ in venue.products.values())}
        if request.headers.get("Upgrade", "").lower() == "websocket" and path in sockets:
            return await self._socket(venue, request)
        return await self._rest(venue, request, path)

    async def _control(self, request: web.BaseRequest, path: str) -> web.Response:
        if request.method == "GET" and path == "":
            counted = {v.name: len(v.connections) for v in self.venues.values()}
            state = {"endpoints": self.endpoints(), "connections": counted, "faults": self.faults.listed()}
            return web.json_response(state)
        if request.method != "POST" or path != "fault":
            return web.Response(status=404, text="GET /control or POST /control/fault\n")
        try:
            wanted = json.loads(await request.read())
            kind, exchange, market = wanted.pop("kind"), wanted.pop("exchange", None), wanted.pop("market", None)
            await self.fault(kind, exchange, market, wanted)
        except KeyError:
            return web.Response(status=400, text="a fault needs its kind\n")
        except (ValueError, TypeError, AttributeError) as e:
            return web.Response(status=400, text=f"{e}\n")
        return web.json_response({"ok": True})

    # -- sockets

    async def _refusal(self, venue: Venue) -> Reply | None:
        """Give the answer that a fault puts in place of any other."""
        if slow := self.faults.take("slow", venue.name):
            await asyncio.sleep(float(slow.parameters.get("delay_s", 1.0)))
        if self.faults.take("refuse", venue.name):
            return Reply("Service Unavailable", 503, content_type="text/plain")
        if status := self.faults.take("status", venue.name):
            after = status.parameters.get("retry_after")
            headers = {} if after is None else {"Retry-After": str(after)}
            code = int(status.parameters.get("code", 429))
            return Reply(f"<html><body>{code}</body></html>", code, headers=headers, content_type="text/html")
        return None

    async def _socket(self, venue: Venue, request: web.BaseRequest) -> web.StreamResponse:
        refused = await self._refusal(venue) or venue.admit(request)
        if refused is None and not venue.connects.take():
            refused = Reply("Too Many Requests", 429, content_type="text/plain")
        if refused is not None:
            return _response(refused)
        socket = web.WebSocketResponse(
            autoping=False, autoclose=False, compress=venue.compresses, max_msg_size=MESSAGE_BYTES_MAX, timeout=1.0
        )
        await socket.prepare(request)
        c = Connection(venue, self.ledger, self.faults, request.transport, socket, path=request.path)
        venue.connections.add(c)
        c.start(c.send_loop())
        venue.keepalive(c)
        why = "the client went away"
        try:
            await venue.greet(c)
            why = await self._listen(venue, c, socket)
        finally:
            venue.connections.discard(c)
            await c.ended(why)
        return socket

    async def _listen(self, venue: Venue, c: Connection, socket: web.WebSocketResponse) -> str:
        while True:
            message = await socket.receive()
            if c.half_open:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG):
                    continue
                await self._until_gone(c)
                return "the client gave up a half-open connection"
            match message.type:
                case WSMsgType.TEXT:
                    c.heard_s = asyncio.get_running_loop().time()
                    await venue.received(c, message.data)
                case WSMsgType.BINARY:
                    c.heard_s = asyncio.get_running_loop().time()
                    await venue.received(c, message.data.decode(errors="replace"))
                case WSMsgType.PING:
                    await venue.pinged(c)
                    await c.pong(message.data)
                case WSMsgType.PONG:
                    await venue.ponged(c, bytes(message.data))
                case WSMsgType.CLOSE:
                    await socket.close(drain=False)
                    return f"the client closed with {message.data}"
                case _:
                    return "the client went away"

    async def _until_gone(self, c: Connection) -> None:
        while not c.gone:
            await asyncio.sleep(0.02)

    # -- REST

    def _kept_connection(self, venue: Venue, request: web.BaseRequest) -> Connection:
        key = (request.protocol, venue.name)
        if key not in self._kept:
            self._kept[key] = Connection(venue, self.ledger, self.faults, request.transport)
            venue.connections.add(self._kept[key])
        return self._kept[key]

    def gone(self, protocol: object) -> None:
        """Note that a TCP connection ended."""
        for key in [k for k in self._kept if k[0] is protocol]:
            c = self._kept.pop(key)
            c.venue.connections.discard(c)
            task = asyncio.get_running_loop().create_task(c.ended("the client went away"))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _rest(self, venue: Venue, request: web.BaseRequest, path: str) -> web.StreamResponse:
        c = self._kept_connection(venue, request)
        if c.half_open:
            await self._until_gone(c)
            return web.Response()
        refused = await self._refusal(venue)
        reply = venue.rest(request, path)
        if refused is not None:
            reply = replace(refused, asked=reply.markets())
        held = [m for m in reply.markets() if self.faults.withholding(venue.name, m)]
        lost = [
            m for m in reply.markets() if m not in held and self.faults.take("swallow", venue.name, m, reply.channel)
        ]
        if held or lost:
            return await self._withhold(c, reply, held)
        reply = self._spoiled(venue, reply)
        for market in reply.markets():
            s, _ = c.subscribe(reply.channel, market, market)
            if market in reply.books:
                c.record(s, reply.books[market], "sent")
            else:
                c.record_error(s, reply.status)
        return _response(reply)

    async def _withhold(self, c: Connection, reply: Reply, held: list[str]) -> web.StreamResponse:
        """Let a client wait for its answer until a stall is over, then drop the connection unanswered."""
        for market in reply.markets():
            s, _ = c.subscribe(reply.channel, market, market)
            c.record(s, reply.books.get(market, Message("", "error")), "withheld")
        while held and c in c.venue.connections and any(self.faults.withholding(c.venue.name, m) for m in held):
            await asyncio.sleep(0.02)
        c.abort("an answer was withheld")
        return web.Response()

    def _spoiled(self, venue: Venue, reply: Reply) -> Reply:
        if not reply.books:
            return reply
        body: str | bytes = reply.body
        books = dict(reply.books)
        for market, book in reply.books.items():
            if self.faults.take("corrupt_total", venue.name, market):
                body = venue.corrupt_total(body)
            if fault := self.faults.take("garbage", venue.name, market):
                text = body.decode(errors="replace") if isinstance(body, bytes) else body
                body = venue.spoil(str(fault.parameters.get("what", fault_kinds.GARBAGE[0])), text, market)
                books[market] = replace(book, what="garbage", data=body)
        return replace(reply, body=body, books=books)

    # -- faults

    async def fault(self, kind: str, exchange: str | None, market: str | None, parameters: dict[str, Any]) -> None:
        """Put a fault in force or do it at once; raise ValueError for one that does not exist."""
        fault_kinds.check(kind, parameters)
        if exchange is not None and exchange not in self.venues:
            raise ValueError(f"exchange {exchange!r} is not simulated here: {', '.join(self.venues)}")
        if market is not None and not any(market in v.markets for v in self._meant(exchange)):
            raise ValueError(f"market {market!r} is not simulated here")
        match kind:
            case "clear":
                self.faults.clear(exchange, market, parameters.get("what"))
            case "crossed":
                for venue in self._meant(exchange):
                    for name, m in venue.markets.items():
                        if market in (None, name):
                            m.cross()
            case "disconnect":
                await self._disconnect(exchange, market, parameters)
            case "leave":
                for c in self._hit(exchange, market, "websocket"):
                    if (text := c.venue.farewell(c)) is not None:
                        c.say(text)
                    c.close_later(float(parameters.get("after_s", 30)), 1001, "the venue leaves")
            case "half_open":
                for c in self._hit(exchange, market, parameters.get("transport")):
                    c.half_open = True
            case "garbage":
                self._garbage(exchange, market, parameters)
            case _:
                self.faults.add(kind, exchange, market, parameters)

    def _meant(self, exchange: str | None) -> Iterator[Venue]:
        return (v for v in self.venues.values() if exchange in (None, v.name))

    def _hit(self, exchange: str | None, market: str | None, transport: object = None) -> list[Connection]:
        return [
            c
            for venue in self._meant(exchange)
            for c in list(venue.connections)
            if (market is None or any(m == market for _, m in c.subscriptions)) and transport in (None, c.kind)
        ]

    async def _disconnect(self, exchange: str | None, market: str | None, parameters: dict[str, Any]) -> None:
        code, reason = parameters.get("code"), str(parameters.get("reason", "asked for by a test"))
        for c in self._hit(exchange, market, parameters.get("transport")):
            if code is None or c.socket is None:
                c.abort(reason)
            else:
                c.close_later(0, int(code), reason)

    def _garbage(self, exchange: str | None, market: str | None, parameters: dict[str, Any]) -> None:
        """Send garbage to sockets at once; polling clients find it in their next answers."""
        what = str(parameters.get("what", fault_kinds.GARBAGE[0]))
        sockets = False
        for c in self._hit(exchange, market):
            for s in list(c.subscriptions.values()) if c.socket is not None else []:
                if market in (None, s.market) and s.channel == "orderbook":
                    for _ in range(int(parameters.get("times", 1))):
                        c.venue.send_garbage(c, s, what)
                    sockets = True
        if not sockets:
            self.faults.add("garbage", exchange, market, parameters)


def _response(reply: Reply) -> web.Response:
    body = reply.body if isinstance(reply.body, bytes) else reply.body.encode()
    return web.Response(
        body=body, status=reply.status, headers=reply.headers, content_type=reply.content_type, charset="utf-8"
    )
