"""The daemon's window: `/metrics`, `/healthz`, `/readyz`, `/status.json` and `/prices.json` over plain HTTP.

It only shows what the functions handed in return. A port that is taken is no reason to stop collecting, so `start` says
so instead of raising. Every request has a thread of its own and every number a limit: a client that dawdles is timed
out, and when there are too many of them the oldest is cut off, so that a new one always gets its answer.

The surprise: nothing here ever writes to stderr, where the standard server prints every request and every traceback.
"""

import gzip
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Verdict = Callable[[], tuple[bool, str]]

CLIENT_TIMEOUT_S = 10.0
CONNECTIONS_MAX = 32
DEPTH = 20  # levels a side, unless asked for otherwise

_INDEX = b"""The collector.

/metrics      figures for Prometheus
/healthz      200 while the daemon works
/readyz       200 while commits succeed and feeds are live
/status.json  what every feed, the intake and the store are doing
/prices.json  prices of one market at all exchanges: ?market=BTC-KRW&depth=20
"""


class WebServer:
    """Serves the daemon's state on *host*:*port* (port 0: any free one) from a thread named `web`.

    *status* returns what `/status.json` shows, *prices* what `/prices.json` shows of a market and a depth. *healthy*
    and *ready* return whether `/healthz` and `/readyz` answer 200 (else 503), and why, in one line. They are called
    from several threads and should return at once. What they raise is answered with 500 and handed to *on_error*.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        status: Callable[[], dict[str, Any]],
        healthy: Verdict,
        ready: Verdict,
        prices: Callable[[str, int], dict[str, Any]] | None = None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.registry = registry
        self.status = status
        self.healthy = healthy
        self.ready = ready
        self.prices = prices
        self.on_error = on_error
        self.error = ""  # why `start` returned False
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is being listened on, or the one asked for while none is."""
        return self._server.server_port if self._server else self._address[1]

    def start(self) -> bool:
        """Listen; return False when the address can't be had, with the reason in `error`."""
        try:
            self._server = _Server(self._address, self)
        except OSError as error:
            self.error = str(error)
            return False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """Stop listening and cut off who is still connected; does nothing when not started."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_off(keep=0)
        self._thread.join()
        self._server = self._thread = None


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], web: WebServer) -> None:
        self.web = web
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._connections: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The inherited one asks the name service for our own name, which can take long when the network is down.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
        self.cut_off(keep=CONNECTIONS_MAX)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def cut_off(self, *, keep: int) -> None:
        with self._lock:
            too_many = list(self._connections)[: max(len(self._connections) - keep, 0)]
            for connection in too_many:
                del self._connections[connection]
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it went by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: only the connection failed here, errors of our own are answered in the handler."""


class _Page(NamedTuple):
    body: bytes
    code: int = 200
    content_type: str = "application/json"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "collector"
    sys_version = ""
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        web = self.server.web
        pages: dict[str, Callable[[], _Page]] = {
            "/": lambda: _Page(_INDEX, content_type="text/plain; charset=utf-8"),
            "/metrics": lambda: _Page(generate_latest(web.registry), content_type=CONTENT_TYPE_PLAIN_0_0_4),
            "/healthz": lambda: _verdict(web.healthy),
            "/readyz": lambda: _verdict(web.ready),
            "/status.json": lambda: _Page(_line(web.status())),
        }
        path, _, query = self.path.partition("?")
        if path == "/prices.json" and web.prices is not None:
            asked = _asked(query)
            if asked is None:
                self.send_error(HTTPStatus.BAD_REQUEST, "allowed: /prices.json?market=BTC-KRW&depth=20")
                return
            prices = web.prices
            pages[path] = lambda: _Page(_line(prices(*asked)))
        make_page = pages.get(path)
        if make_page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            page = make_page()
        except Exception as error:
            web.on_error(error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__} while answering")
        else:
            self._answer(page)

    def do_HEAD(self) -> None:
        self.do_GET()  # `_answer` leaves the body out

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with one line of JSON, also where the base class wants a page of HTML."""
        headers = {}
        if code == HTTPStatus.NOT_IMPLEMENTED:  # what the base class says to a method it finds no do_... for
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, None
            headers["Allow"] = "GET, HEAD"
        self._answer(_Page(_line({"error": message or HTTPStatus(code).phrase}), code), **headers)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: who reads the figures is no event of the collector."""

    def _answer(self, page: _Page, **headers: str) -> None:
        body = page.body
        if page.code == HTTPStatus.OK and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        self.send_response(page.code)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _asked(query: str) -> tuple[str, int] | None:
    """Return market and depth of a question for prices, None where it is not one."""
    asked = {name: values[0] for name, values in parse_qs(query).items()}
    market, depth = asked.pop("market", ""), asked.pop("depth", str(DEPTH))
    return None if asked or not market or not depth.isascii() or not depth.isdigit() else (market, int(depth[:6]))


def _verdict(verdict: Verdict) -> _Page:
    good, reason = verdict()
    return _Page(_line({"ok": good, "reason": reason}), 200 if good else 503)


def _line(answer: dict[str, Any]) -> bytes:
    return orjson.dumps(answer, default=str) + b"\n"
