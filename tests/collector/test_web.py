import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

from collector import web as web_module
from collector.metrics import Metrics
from collector.web import WebServer
from tests.conftest import wait_until


class Daemon:
    """What the server shows, changeable while it runs."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"feeds": [{"exchange": "upbit", "market": "BTC-KRW"}], "상태": "수집 중"}
        self.health = (True, "writer finished a cycle")
        self.readiness = (True, "commits succeed")
        self.errors: list[Exception] = []
        self.metrics = Metrics(CollectorRegistry(), version="1.2.3", started_s=0)
        self.server = self.another(0)

    def another(self, port: int, host: str = "127.0.0.1") -> WebServer:
        return WebServer(
            host,
            port,
            registry=self.metrics.registry,
            status=lambda: self.state,
            healthy=lambda: self.health,
            ready=lambda: self.readiness,
            prices=lambda market, depth: {"market": market, "depth": depth},
            on_error=self.errors.append,
        )

    def request(self, method: str, path: str, **headers: str) -> requests.Response:
        return requests.request(method, f"http://127.0.0.1:{self.server.port}{path}", headers=headers, timeout=10)

    def raw(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))


def handlers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request" in thread.name]


@pytest.fixture
def daemon(capfd: pytest.CaptureFixture[str]) -> Iterator[Daemon]:
    daemon = Daemon()
    assert daemon.server.start()
    yield daemon
    daemon.server.stop()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_metrics(daemon: Daemon) -> None:
    daemon.metrics.count_frames("upbit", received=7)

    answer = daemon.request("GET", "/metrics")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Content-Encoding"] == "gzip"  # requests asks for it
    assert 'collector_frames_total{exchange="upbit",outcome="received"} 7.0' in answer.text


def test_metrics_are_plain_for_who_does_not_ask_for_gzip(daemon: Daemon) -> None:
    answer = daemon.request("GET", "/metrics?name[]=any", **{"Accept-Encoding": "identity", "Accept": "*/*;version=x"})

    assert "Content-Encoding" not in answer.headers
    assert 'collector_build_info{version="1.2.3"} 1.0' in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_and_readiness_say_why(daemon: Daemon, path: str) -> None:
    good = daemon.request("GET", path)
    daemon.health = daemon.readiness = (False, "no commit\nfor 70 s")
    bad = daemon.request("GET", path)

    assert (good.status_code, good.json()["ok"]) == (200, True)
    assert (bad.status_code, bad.json()) == (503, {"ok": False, "reason": "no commit\nfor 70 s"})
    assert bad.text.count("\n") == 1
    assert bad.text.endswith("\n")


def test_health_and_readiness_are_two_things(daemon: Daemon) -> None:
    daemon.readiness = (False, "no feed is live")

    assert daemon.request("GET", "/healthz").status_code == 200
    assert daemon.request("GET", "/readyz").status_code == 503


def test_prices(daemon: Daemon) -> None:
    assert daemon.request("GET", "/prices.json?market=BTC-KRW").json() == {"market": "BTC-KRW", "depth": 20}
    assert daemon.request("GET", "/prices.json?depth=3&market=BTC-USD:BTC").json() == {
        "market": "BTC-USD:BTC",
        "depth": 3,
    }
    for wrong in ("", "?depth=3", "?market=BTC-KRW&depth=-1", "?market=BTC-KRW&depth=x", "?market=BTC-KRW&book=1"):
        answer = daemon.request("GET", f"/prices.json{wrong}")
        assert (answer.status_code, answer.json()) == (400, {"error": "allowed: /prices.json?market=BTC-KRW&depth=20"})
    daemon.server.prices = None
    assert daemon.request("GET", "/prices.json?market=BTC-KRW").status_code == 404


def test_status(daemon: Daemon) -> None:
    answer = daemon.request("GET", "/status.json")

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json() == daemon.state


def test_index_names_every_page(daemon: Daemon) -> None:
    index = daemon.request("GET", "/").text

    for path in ("/metrics", "/healthz", "/readyz", "/status.json"):
        assert path in index


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/status.json", "/nothing"])
def test_head_is_get_without_a_body(daemon: Daemon, path: str) -> None:
    head = daemon.raw(f"HEAD {path} HTTP/1.0\r\n\r\n".encode()).decode()
    get = daemon.raw(f"GET {path} HTTP/1.0\r\n\r\n".encode()).decode()

    def lasting(answer: str) -> list[str]:
        # Figures such as the processor time change from one answer to the next, and so may the length.
        return [line for line in answer.splitlines() if not line.startswith(("Date:", "Content-Length:"))]

    assert head.endswith("\r\n\r\n")
    assert "Content-Length: " in head
    assert lasting(head) == lasting(get.partition("\r\n\r\n")[0] + "\r\n\r\n")


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/../etc/passwd", "/%6detrics"])
def test_other_paths_are_not_found(daemon: Daemon, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.server.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()

    assert answer.status == 404
    assert json.loads(answer.read()) == {"error": "Not Found"}
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "STOP"])
def test_other_methods_are_not_allowed(daemon: Daemon, method: str) -> None:
    answer = daemon.request(method, "/metrics")

    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.json() == {"error": "Method Not Allowed"}


@pytest.mark.parametrize(
    "request_",
    [b"", b"\r\n", b"GET", b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 70_000],
)
def test_nonsense_gets_an_answer_or_none_and_harms_nobody(daemon: Daemon, request_: bytes) -> None:
    try:
        answer = daemon.raw(request_)
    except ConnectionError:  # the server hung up before it had read all of it
        answer = b""

    assert b"Traceback" not in answer
    assert daemon.request("GET", "/healthz").status_code == 200


def test_a_state_that_is_no_json_is_answered_and_reported(daemon: Daemon) -> None:
    daemon.state = {"feeds": {1: 2}}  # JSON has no keys that are numbers

    answer = daemon.request("GET", "/status.json")

    assert (answer.status_code, answer.json()) == (500, {"error": "TypeError while answering"})
    assert [type(error) for error in daemon.errors] == [TypeError]
    assert daemon.request("GET", "/healthz").status_code == 200


def test_our_own_error_is_not_taken_for_a_lost_client(daemon: Daemon) -> None:
    def full_disk() -> tuple[bool, str]:
        raise OSError(28, "No space left on device")

    daemon.server.ready = full_disk

    assert daemon.request("GET", "/readyz").status_code == 500
    assert [str(error) for error in daemon.errors] == ["[Errno 28] No space left on device"]


def test_clients_that_dawdle_block_nobody(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module._Handler, "timeout", 300)  # so that only their number can end them
    address = ("127.0.0.1", daemon.server.port)
    with contextlib.ExitStack() as clients:
        dawdlers = [
            clients.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(web_module.CONNECTIONS_MAX + 5)
        ]
        dawdlers[-1].sendall(b"GET /metr")

        assert daemon.request("GET", "/healthz").status_code == 200
        assert dawdlers[0].recv(1) == b""  # the oldest was cut off to make room


def test_a_silent_client_is_timed_out(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    assert web_module._Handler.timeout == web_module.CLIENT_TIMEOUT_S
    monkeypatch.setattr(web_module._Handler, "timeout", 0.05)

    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=10) as client:
        assert client.recv(1) == b""


def test_a_client_that_leaves_in_the_middle_is_no_error(daemon: Daemon) -> None:
    daemon.state = {"text": "x" * 5_000_000}
    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=10) as client:
        client.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
        client.recv(100)

    assert daemon.request("GET", "/healthz").status_code == 200
    assert daemon.errors == []


def test_a_taken_port_is_told_and_not_raised(daemon: Daemon) -> None:
    second = daemon.another(daemon.server.port)

    assert second.start() is False

    assert "in use" in second.error
    assert second.port == daemon.server.port
    second.stop()
    assert daemon.request("GET", "/healthz").status_code == 200


def test_a_foreign_address_is_told_and_not_raised(daemon: Daemon) -> None:
    assert daemon.another(0, host="192.0.2.1").start() is False


def test_stop_frees_port_and_threads_and_start_works_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module._Handler, "timeout", 300)
    port = daemon.server.port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as idle:
        idle.sendall(b"GET /")
        wait_until(handlers, what="the connection is being served")
        assert "web" in {thread.name for thread in threading.enumerate()}

        daemon.server.stop()

        assert idle.recv(1) == b""
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    wait_until(lambda: not handlers(), what="the thread of the connection is gone")
    assert "web" not in {thread.name for thread in threading.enumerate()}

    assert daemon.server.start()
    assert daemon.request("GET", "/healthz").status_code == 200


def test_over_ipv6() -> None:
    daemon = Daemon()
    server = daemon.another(0, host="::1")
    if not server.start():
        pytest.skip(f"no IPv6 on this machine: {server.error}")
    try:
        assert requests.get(f"http://[::1]:{server.port}/healthz", timeout=10).status_code == 200
    finally:
        server.stop()
