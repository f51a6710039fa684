"""A local server that speaks the protocols of the exchanges, each under /<exchange>, all on one port.

`Simulator` runs in a thread of its own (`start`, `stop`, or as a context manager) or alone in a process (`run`). Faults
are asked for by `fault` from any thread, or by `POST /control/fault` from anywhere else. What was sent stands in the
ledger, see `simulator.ledger`.
"""

import asyncio
import importlib.util
import inspect
import json
import pkgutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web

import simulator
from simulator import faults as fault_kinds
from simulator.connection import Connection, Message
from simulator.faults import Faults
from simulator.ledger import Ledger
from simulator.recording import load
from simulator.venue import Reply, Timing, Venue

START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


def venues() -> list[str]:
    """Name the exchanges that can be simulated: the modules of this folder that hold a venue."""
    return [m.name for m in pkgutil.iter_modules(simulator.__path__) if _venue_class(m.name) is not None]


def _venue_class(name: str) -> type[Venue] | None:
    module = importlib.import_module(f"simulator.{name}")
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, Venue) and found.name == name:
            return found
    return None


class _Server(web.Server):
    """The HTTP server, which also tells when a TCP connection is gone."""

    def __init__(self, front: "_Front") -> None:
        super().__init__(front.handle, handler_cancellation=False, access_log=None)
        self._front = front

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Note the end of a keep-alive connection."""
        super().connection_lost(handler, exc)
        self._front.gone(handler)


class _Front:
    """Everything that lives on the event loop: venues, connections, faults, ledger."""

    def __init__(self, owner: "Simulator") -> None:
        self.owner = owner
        self.faults = Faults()
        self.venues: dict[str, Venue] = {}
        self.ledger = Ledger(owner.ledger_path)
        self._kept: dict[tuple[object, str], Connection] = {}  # HTTP connections by (protocol, exchange)
        self._background: set[asyncio.Task[None]] = set()
        for name in owner.exchanges:
            self.venues[name] = self._build(name)
        if owner.recording is not None and not any(v.recording and v.recording.frames for v in self.venues.values()):
            raise ValueError(f"{owner.recording} holds no frames of {', '.join(owner.exchanges)}")

    def _build(self, name: str) -> Venue:
        known = name.isidentifier() and importlib.util.find_spec(f"simulator.{name}") is not None
        kind = _venue_class(name) if known else None
        if kind is None:
            raise ValueError(f"no simulated exchange {name!r}: one of {', '.join(venues())}")
        recording = None
        if self.owner.recording is not None:
            found = load(self.owner.recording, kind.hosts, kind.recorded)
            recording = found if found.frames else None
        venue = kind(
            self.faults, self.owner.markets, self.owner.seed, self.owner.timing, recording, self.owner.keys.get(name)
        )
        venue.speed, venue.loop_recording = self.owner.speed, self.owner.loop
        return venue

    async def serve(self, ready: threading.Event, stopping: asyncio.Event) -> None:
        """Listen, move the markets, and take everything down again when told to stop."""
        loop = asyncio.get_running_loop()
        server = _Server(self)
        listener = await loop.create_server(server, self.owner.host, self.owner.port, backlog=1024)
        self.owner.port = listener.sockets[0].getsockname()[1]
        clocks = [
            loop.create_task(venue.run_market(market, self.owner.rate_hz))
            for venue in self.venues.values()
            if venue.recording is None
            for market in venue.markets.values()
        ]
        for clock in clocks:
            clock.add_done_callback(self._clock_ended)
        ready.set()
        try:
            await stopping.wait()
        finally:
            listener.close()
            for task in clocks:
                task.cancel()
            await asyncio.gather(*clocks, return_exceptions=True)
            for c in self.everyone():
                c.abort("the simulator stops")
                await c.ended("the simulator stops")
            await server.shutdown(1)
            await asyncio.gather(*self._background, return_exceptions=True)
            self.ledger.flush()

    def _clock_ended(self, task: "asyncio.Task[None]") -> None:
        """A market must never stand still unnoticed: an error in it ends the simulator."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.owner.fail(error)

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
        if request.headers.get("Upgrade", "").lower() == "websocket" and path == venue.socket_path:
            return await self._socket(venue, request)
        return await self._rest(venue, request, path)

    async def _control(self, request: web.BaseRequest, path: str) -> web.Response:
        if request.method == "GET" and path == "":
            counted = {v.name: len(v.connections) for v in self.venues.values()}
            state = {"endpoints": self.owner.endpoints, "connections": counted, "faults": self.faults.listed()}
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
            autoping=False, compress=venue.compresses, max_msg_size=MESSAGE_BYTES_MAX, timeout=1.0
        )
        await socket.prepare(request)
        c = Connection(venue, self.ledger, self.faults, request.transport, socket)
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
            match message.type:
                case WSMsgType.TEXT:
                    c.heard_s = asyncio.get_running_loop().time()
                    await venue.received(c, message.data)
                case WSMsgType.BINARY:
                    c.heard_s = asyncio.get_running_loop().time()
                    await venue.received(c, message.data.decode(errors="replace"))
                case WSMsgType.PING:
                    await c.pong(message.data)
                case WSMsgType.PONG:
                    continue
                case WSMsgType.CLOSE:
                    return f"the client closed with {message.data}"
                case _:
                    return "the client went away"

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
        refused = await self._refusal(venue)
        reply = venue.rest(request, path)
        if refused is not None:
            reply = replace(refused, asked=reply.markets())
        held = [m for m in reply.markets() if self.faults.withholding(venue.name, m)]
        lost = [m for m in reply.markets() if m not in held and self.faults.take("swallow", venue.name, m)]
        if held or lost:
            return await self._withhold(c, reply, held)
        reply = self._spoiled(venue, reply)
        for market in reply.markets():
            s, _ = c.subscribe("orderbook", market, market)
            if market in reply.books:
                c.record(s, reply.books[market], "sent")
            else:
                c.record_error(s, reply.status)
        return _response(reply)

    async def _withhold(self, c: Connection, reply: Reply, held: list[str]) -> web.StreamResponse:
        """Let a client wait for its answer until a stall is over, then drop the connection unanswered."""
        for market in reply.markets():
            s, _ = c.subscribe("orderbook", market, market)
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
                books[market] = replace(book, what="garbage")
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
            case "garbage":
                self._garbage(exchange, market, parameters)
            case _:
                self.faults.add(kind, exchange, market, parameters)

    def _meant(self, exchange: str | None) -> Iterator[Venue]:
        return (v for v in self.venues.values() if exchange in (None, v.name))

    def _hit(self, exchange: str | None, market: str | None) -> list[Connection]:
        return [
            c
            for venue in self._meant(exchange)
            for c in list(venue.connections)
            if market is None or any(m == market for _, m in c.subscriptions)
        ]

    async def _disconnect(self, exchange: str | None, market: str | None, parameters: dict[str, Any]) -> None:
        code, reason = parameters.get("code"), str(parameters.get("reason", "asked for by a test"))
        transport = parameters.get("transport")
        for c in self._hit(exchange, market):
            if transport not in (None, c.kind):
                continue
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


class Simulator:
    """A local exchange server for tests, demonstrations and benchmarks.

    `exchanges` names the venues to simulate, `markets` the markets each of them trades. `rate_hz` is the number of
    updates a second and market (None: each venue's own), multiplied by `speed` (None: as fast as clients read). With
    a `recording`, the venue it was recorded from plays it to every subscriber instead, again and again if `loop`.
    `timing` shortens keepalive times and widens limits; `keys` holds (key, base64 secret) of an exchange that signs.
    All public methods may be called from any thread.
    """

    def __init__(
        self, exchanges: Iterable[str], markets: Iterable[str] = ("BTC-KRW", "ETH-KRW"), *,
        seed: int = 1, rate_hz: float | None = None, host: str = "127.0.0.1", port: int = 0, ledger: Path | None = None,
        recording: Path | None = None, speed: float | None = 1.0, loop: bool = False, timing: Timing | None = None,
        keys: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self.exchanges, self.markets = list(exchanges), list(markets)
        self.seed, self.rate_hz, self.speed, self.loop = seed, rate_hz, speed, loop
        self.host, self.port = host, port
        self.ledger_path, self.recording = ledger, recording
        self.timing, self.keys = timing or Timing(), dict(keys or {})
        self._front: _Front | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    # -- life

    def start(self) -> None:
        """Start the thread; returns when the server listens. Raises what kept it from that."""
        ready = threading.Event()
        self._front = _Front(self)
        self._thread = threading.Thread(target=self._run, args=(ready,), name="simulator", daemon=True)
        self._thread.start()
        if not ready.wait(START_TIMEOUT_S) or self._error is not None:
            raise self._error or TimeoutError("the simulator did not start")

    def stop(self) -> None:
        """Close every connection, put the ledger on the disk, end the thread; raise the simulator's own error."""
        if self._thread is None:
            return
        self._end()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the simulator did not stop within {STOP_TIMEOUT_S} s")
        self._thread = None
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def fail(self, error: BaseException) -> None:
        """End the simulator with an error of its own, which `stop` raises."""
        self._error = self._error or error
        self._end()

    def _end(self) -> None:
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except Exception as e:
            self._error = self._error or e
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        assert self._front is not None
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        await self._front.serve(ready, self._stopping)

    def failed(self) -> bool:
        """Tell whether the simulator ended by an error of its own."""
        return self._error is not None

    # -- what others ask

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://{self.host}:{self.port}"

    @property
    def endpoints(self) -> dict[str, dict[str, str]]:
        """The `endpoint:` settings that lead a collector here, by exchange."""
        return {name: self._endpoint(name) for name in self.exchanges}

    def _endpoint(self, name: str) -> dict[str, str]:
        kind = _venue_class(name)
        assert kind is not None
        socket = f"ws://{self.host}:{self.port}/{name}/{kind.socket_path}".rstrip("/")
        return {"websocket": socket, "rest": f"{self.url}/{name}"}

    def connections(self, exchange: str, transport: str | None = None) -> int:
        """Count the open connections of an exchange: all, or only "websocket" or "rest" ones."""
        front = self._started()
        return sum(transport in (None, c.kind) for c in front.venues[exchange].connections.copy())

    def fault(self, kind: str, exchange: str | None = None, market: str | None = None, **parameters: Any) -> None:
        """Cause a fault (see docs/simulator.md), in force when this returns. Raises ValueError for an unknown one."""
        front = self._started()
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(front.fault(kind, exchange, market, parameters), self._loop).result(5)

    def _started(self) -> _Front:
        if self._front is None or self._thread is None:
            raise RuntimeError("the simulator is not running")
        return self._front


def run(simulator: Simulator, stop_event: threading.Event) -> None:
    """Run a simulator until the event is set; raises the error if it ends by one of its own."""
    with simulator:
        while not stop_event.wait(0.5) and not simulator.failed():
            pass
