"""REST calls that end, whatever the server does."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import requests

from collector.clock import Clock
from collector.errors import ConnectionLost
from controllers.fetch import fetch

Talk = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Talk], str]]:
    """Start servers that read requests and do what the test says, one client after the other."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(talk: Talk) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # the test is over
            with client:
                client.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(4096)
                try:
                    talk(client)
                except OSError:
                    return  # the client had enough

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/book?a=b"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


Serve = Callable[[Talk], str]


def get(url: str) -> tuple[int, bytes]:
    with requests.Session() as session:
        status, _, body = fetch(session, url, Clock())
        return status, body


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])


def test_an_answer_is_status_headers_and_the_bytes_of_its_body(serve: Serve) -> None:
    url = serve(lambda client: client.sendall(head(b"Content-Length: 2", b"Retry-After: 3", status=b"429 X") + b"{}"))
    with requests.Session() as session:
        answer = fetch(session, url, Clock())
    assert (answer.status, answer.body) == (429, b"{}")
    assert answer.headers["retry-after"] == "3"


def test_a_compressed_body_is_unpacked_and_a_chunked_one_put_together(serve: Serve) -> None:
    packed = gzip.compress(b"[1,2]")
    length = b"Content-Length: %d" % len(packed)
    assert get(serve(lambda c: c.sendall(head(b"Content-Encoding: gzip", length) + packed))) == (200, b"[1,2]")
    chunks = head(b"Transfer-Encoding: chunked") + b"2\r\n[1\r\n3\r\n,2]\r\n0\r\n\r\n"
    assert get(serve(lambda c: c.sendall(chunks))) == (200, b"[1,2]")


def test_a_body_that_drips_in_for_ever_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controllers.fetch.TIMEOUT_S", 0.3)
    never = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(head(b"Content-Length: 1000000"))
        for _ in range(1000):
            client.sendall(b"x")
            never.wait(0.02)

    with pytest.raises(ConnectionLost, match="not whole"):
        get(serve(drip))


def test_a_body_without_end_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controllers.fetch.BODY_BYTES_MAX", 100_000)

    def flood(client: socket.socket) -> None:
        client.sendall(head(b"Connection: close"))
        while True:
            client.sendall(b"x" * 10_000)

    with pytest.raises(ConnectionLost, match="larger than 100000 bytes"):
        get(serve(flood))


def test_a_small_body_that_unpacks_to_a_huge_one_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controllers.fetch.BODY_BYTES_MAX", 100_000)
    bomb = gzip.compress(b"0" * 20_000_000)
    answer = head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(bomb)) + bomb
    with pytest.raises(ConnectionLost, match="larger"):
        get(serve(lambda client: client.sendall(answer)))


def hang(client: socket.socket) -> None:
    client.recv(1)


@pytest.mark.parametrize(
    "talk",
    [
        hang,
        lambda client: None,
        lambda client: client.sendall(b"nonsense\r\n\r\n"),
        lambda client: client.sendall(head(b"Content-Length: 100") + b"short"),
        lambda client: client.sendall(head(b"Content-Encoding: gzip", b"Content-Length: 5") + b"plain"),
        lambda client: client.sendall(head(b"Transfer-Encoding: chunked") + b"zz\r\n"),
        lambda client: client.sendall(head(b"Location: ftp://x/", b"Content-Length: 0", status=b"302 Found")),
    ],
    ids=["silence", "a close", "no HTTP", "a cut body", "no gzip", "no chunk", "sent elsewhere"],
)
def test_what_is_no_whole_answer_is_a_lost_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, talk: Talk
) -> None:
    monkeypatch.setattr("controllers.fetch.TIMEOUT_S", 0.3)
    with pytest.raises(ConnectionLost):
        get(serve(talk))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://", "no url", "http://127.0.0.1:99999/", "ftp://x/"])
def test_a_server_that_is_not_there_is_a_lost_connection(url: str) -> None:
    with pytest.raises(ConnectionLost):
        get(url)
