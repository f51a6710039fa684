"""One socket: how it is made, read and lost."""

import base64
import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from collector.errors import ConnectionLost, RateLimited, VenueRefused
from controllers.connection import Connection, retry_after
from controllers.frames import BINARY, PING, TEXT

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Talk = Callable[[socket.socket], None]


class Server:
    """Accepts one client, reads the request, and does what the test says."""

    def __init__(self, talk: Talk) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/path?a=b"
        self.request = b""
        self.received = b""
        self._talk = talk
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            client.settimeout(10)
            while b"\r\n\r\n" not in self.request:
                self.request += client.recv(4096)
            self._talk(client)

    def upgrade(self, client: socket.socket) -> None:
        key = next(line for line in self.request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key.split(b": ")[1] + GUID).digest())
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def read_all(self, client: socket.socket) -> None:
        while part := client.recv(4096):
            self.received += part

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Server, socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(talk: Callable[[Server, socket.socket], None]) -> Server:
        servers.append(Server(lambda client: talk(servers[-1], client)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


Serve = Callable[[Callable[[Server, socket.socket], None]], Server]


def listen(server: Server, client: socket.socket) -> None:
    """Upgrade, then read to the end."""
    server.upgrade(client)
    server.read_all(client)


def read_on(connection: Connection) -> None:
    """Receive until something goes wrong."""
    while True:
        connection.receive()


def patience(connection: Connection, seconds: float) -> None:
    sock = connection._socket.sock
    assert sock is not None
    sock.settimeout(seconds)


def answers(text: bytes) -> Callable[[Server, socket.socket], None]:
    return lambda server, client: client.sendall(text)


def test_it_asks_for_the_upgrade_without_an_origin(serve: Serve) -> None:
    server = serve(listen)
    connection = Connection(server.url, headers={"X-Test": "yes"})
    connection.close()
    assert server.request.startswith(b"GET /path?a=b HTTP/1.1\r\n")
    assert b"\r\nX-Test: yes\r\n" in server.request
    assert b"origin" not in server.request.lower()


def test_what_arrives_in_one_piece_comes_out_together_and_in_order(serve: Serve) -> None:
    def talk(server: Server, client: socket.socket) -> None:
        server.upgrade(client)
        client.sendall(b"\x81\x02{}\x82\x01x\x89\x04ping")
        server.read_all(client)

    connection = Connection(serve(talk).url)
    arrived: list[tuple[int, bytes]] = []
    while len(arrived) < 3:
        arrived += connection.receive()
    assert arrived == [(TEXT, b"{}"), (BINARY, b"x"), (PING, b"ping")]
    connection.close()


def test_a_frame_that_comes_with_the_answer_to_the_upgrade_is_not_lost(serve: Serve) -> None:
    def talk(server: Server, client: socket.socket) -> None:
        class Together:
            """Sends the upgrade and the first frame in one piece."""

            def sendall(self, data: bytes) -> None:
                client.sendall(data + b"\x81\x05first")

        server.upgrade(Together())  # type: ignore[arg-type]
        server.read_all(client)

    connection = Connection(serve(talk).url)
    arrived: list[tuple[int, bytes]] = []
    while not arrived:
        arrived += connection.receive()
    assert arrived == [(TEXT, b"first")]
    connection.close()


def test_what_is_sent_arrives_masked(serve: Serve) -> None:
    server = serve(listen)
    connection = Connection(server.url)
    connection.send_text("{}")
    connection.send_ping()
    connection.send_pong(b"abc")
    connection.close()
    server.close()
    frames, rest = [], server.received
    while rest:
        length = rest[1] & 0x7F
        mask, payload = rest[2:6], rest[6 : 6 + length]
        assert rest[1] & 0x80
        frames.append((rest[0], bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))))
        rest = rest[6 + length :]
    assert frames[:3] == [(0x81, b"{}"), (0x89, b""), (0x8A, b"abc")]
    assert frames[3][0] == 0x88


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", RateLimited, "HTTP 429"),
        (b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", RateLimited, "HTTP 418"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", VenueRefused, "HTTP 401"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", VenueRefused, "HTTP 403"),
        (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", ConnectionLost, "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ConnectionLost, "HTTP 200"),
        (b"nonsense\r\n\r\n", ConnectionLost, "could not connect"),
        (b"", ConnectionLost, "could not connect"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: wrong\r\n\r\n",
            ConnectionLost,
            "could not connect",
        ),
    ],
)
def test_a_handshake_that_fails_says_how(serve: Serve, answer: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as raised:
        Connection(serve(answers(answer)).url)
    if isinstance(raised.value, RateLimited):
        assert raised.value.retry_after_s == (7 if b"Retry-After" in answer else None)


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1:1/", "ws://", "no url", "ws://127.0.0.1:99999/", "http://127.0.0.1:1/"]
)
def test_a_server_that_is_not_there_is_a_lost_connection(url: str) -> None:
    with pytest.raises(ConnectionLost, match="could not connect"):
        Connection(url, timeout_s=2)


def test_a_server_that_never_answers_is_given_up(serve: Serve) -> None:
    server = serve(lambda server, client: server.read_all(client))
    with pytest.raises(ConnectionLost, match="could not connect"):
        Connection(server.url, timeout_s=0.2)


def test_a_server_that_drips_its_answer_is_given_up(serve: Serve) -> None:
    dripped: list[bool] = []

    def drip(server: Server, client: socket.socket) -> None:
        never = threading.Event()
        client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nX-Drip: ")
        with contextlib.suppress(OSError):  # until nobody takes it any more
            while len(dripped) < 200:
                client.sendall(b"x")
                dripped.append(never.wait(0.05))

    server = serve(drip)
    with pytest.raises(ConnectionLost, match="could not connect"):
        Connection(server.url, timeout_s=0.2)
    assert len(dripped) < 200


def test_silence_is_an_empty_list_and_an_end_is_an_error(serve: Serve) -> None:
    go_on = threading.Event()

    def talk(server: Server, client: socket.socket) -> None:
        server.upgrade(client)
        client.sendall(b"\x81\x05part")
        assert go_on.wait(10)

    connection = Connection(serve(talk).url)
    patience(connection, 0.05)
    assert [connection.receive() for _ in range(2)] == [[], []], "half a frame is none"
    go_on.set()
    with pytest.raises(ConnectionLost, match="without a word"):
        read_on(connection)
    connection.close()


def test_an_abort_wakes_who_receives(serve: Serve) -> None:
    server = serve(listen)
    connection = Connection(server.url)
    patience(connection, 3600)
    ended: list[Exception] = []

    def receive() -> None:
        try:
            connection.receive()
        except ConnectionLost as error:
            ended.append(error)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    connection.abort()
    thread.join(10)
    assert len(ended) == 1
    connection.close()


def test_a_socket_that_is_closed_neither_sends_nor_receives(serve: Serve) -> None:
    connection = Connection(serve(lambda server, client: server.upgrade(client)).url)
    connection.close()
    with pytest.raises(ConnectionLost):
        connection.receive()
    with pytest.raises(ConnectionLost, match="could not send"):
        connection.send_text("{}")
    connection.close()


def test_a_socket_that_the_server_reset_says_so(serve: Serve) -> None:
    def talk(server: Server, client: socket.socket) -> None:
        server.upgrade(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # no farewell

    connection = Connection(serve(talk).url)
    with pytest.raises(ConnectionLost, match=r"reset|without a word"):
        read_on(connection)
    connection.close()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "1e9"}, 86_400),
        ({"Retry-After": "inf"}, 86_400),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:27:15 GMT"}, 45),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "now"}, None),
        ({"Retry-After": "soon", "Date": "Wed, 21 Oct 2026 07:27:15 GMT"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_wait_that_is_no_number_at_all_is_none() -> None:
    waited = retry_after({"Retry-After": "nan"})
    assert waited is None or 0 <= waited <= 86_400
