"""WebSocket servers that do not keep to the protocol: the right error, the right delay, bounded memory, and on it goes.

Every wrong thing a server can say ends the connection with an error of the right kind, never with another exception;
what the messages on it meant is the venue's business and is rejected there. RFC 6455, https://www.rfc-editor.org/rfc/rfc6455
"""

import datetime
import ipaddress
import json
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import controllers.websocket
from collector.clock import Clock
from collector.errors import ConnectionLost, RateLimited, SourceError, StaleConnection, VenueRefused
from collector.log import Log
from controllers.connection import Connection
from controllers.upbit import Upbit
from tests.conftest import wait_until
from tests.fakes import HeardLog, Stored, make_setup
from tests.faults.dose import dose
from tests.faults.scripted import BINARY, CLOSE, PING, PONG, TEXT, Client, Server, frame

Talk = Callable[[Client], None]
MIB = 1 << 20
SOCKETS = 16 * MIB  # more than the buffers of two sockets ever hold
BOOK: dict[str, Any] = {
    "ty": "orderbook",
    "cd": "KRW-BTC",
    "tms": 1_790_000_000_000,
    "tas": 3,
    "tbs": 2,
    "obu": [{"ap": 101, "bp": 100, "as": 1, "bs": 2}, {"ap": 102, "bp": 0, "as": 2, "bs": 0}],
}


def book(bid_size: int = 2) -> bytes:
    """Return a message with a book whose best bid has this size."""
    unit = {**BOOK["obu"][0], "bs": bid_size}
    return json.dumps({**BOOK, "tbs": bid_size, "obu": [unit, BOOK["obu"][1]]}).encode()


def upbit(url: str, log: Log | None = None, **options: Any) -> Upbit:
    """Return a controller that hears the server, not started yet."""
    setup = make_setup(clock=Clock(), log=log or HeardLog(), endpoint={"websocket": url}, **options)
    return Upbit(("BTC-KRW",), setup)


def listen(talk: Talk, **options: Any) -> tuple[SourceError, Upbit, Server]:
    """Connect once to a server that does this; return how it ended."""
    with Server(talk) as server:
        controller = upbit(server.url, **options)
        with pytest.raises(SourceError) as raised:
            controller.run_once()
        assert not controller.connected
        assert controller._connection is None
        assert not any(feed.epoch for feed in controller.feeds.values()), "no epoch is left open"
        return raised.value, controller, server


def says(*frames: bytes) -> Talk:
    """Return a server that upgrades, sends these and waits for the client to leave."""

    def talk(client: Client) -> None:
        client.upgrade()
        client.send(frame(BINARY, book()))
        for data in frames:
            client.send(data)
        client.stay()

    return talk


# --- the end of a connection ------------------------------------------------------------------------------------------

CODES = [*range(1000, 1016), 3000, 4000, 4999, 0, 999, 5000, 65535]


@pytest.mark.parametrize("code", CODES)
def test_a_close_with_any_code_is_a_lost_connection_that_names_it(code: int) -> None:
    """Mutation: answer a close frame and go on in `WSController._listen`."""
    error, controller, _ = listen(says(frame(CLOSE, struct.pack("!H", code) + b"bye")))

    assert type(error) is ConnectionLost
    assert f"code {code} bye" in str(error)
    assert Stored(controller.setup.intake).take().only.reason == "disconnect"


@pytest.mark.parametrize("payload", [b"", b"\x03", b"\x03\xe8\xff\xfe\x00", b"\x03\xe8" + b"x" * 123])
def test_a_close_with_any_text_is_one_too(payload: bytes) -> None:
    error, _, _ = listen(says(frame(CLOSE, payload)))

    assert type(error) is ConnectionLost
    assert str(error).isprintable() or "\ufffd" in str(error)


def test_who_says_goodbye_is_not_waited_for() -> None:
    """A server that never answers our close, nor its own, holds nobody up."""
    left = threading.Event()

    def talk(client: Client) -> None:
        client.upgrade()
        client.send(frame(BINARY, book()))
        assert left.wait(20)

    with Server(talk) as server:
        controller = upbit(server.url)
        controller.start()
        wait_until(lambda: controller.books["BTC-KRW"].epoch)
        controller.stop()
        assert controller.join(5)
        left.set()
    assert controller.state == "stopped"


# --- frames that must not be ------------------------------------------------------------------------------------------

FORBIDDEN = {
    "masked": bytes((0x82, 0x85)) + b"mask" + b"hello",
    "compressed and not agreed on": frame(TEXT, b"\xaa" * 10, reserved=0x40),
    "reserved bit 2": frame(TEXT, b"{}", reserved=0x20),
    "reserved bit 3": frame(TEXT, b"{}", reserved=0x10),
    **{f"opcode {opcode}": frame(opcode, b"{}") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "continuation of nothing": frame(0, b"{}"),
    "text within a message": frame(TEXT, b"{", final=False) + frame(TEXT, b"}"),
    "binary within a message": frame(TEXT, b"{", final=False) + frame(BINARY, b"}", final=False),
    "ping in fragments": frame(PING, b"a", final=False),
    "close in fragments": frame(CLOSE, b"\x03\xe8", final=False),
    "ping too long": frame(PING, b"x" * 126),
    "close too long": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "a length of 2^63": frame(BINARY, b"x", length=1 << 63),
    "a length of 2^64-1": frame(BINARY, b"x", length=(1 << 64) - 1),
}


@pytest.mark.parametrize("data", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_a_forbidden_frame_ends_the_connection_and_is_no_data(data: bytes) -> None:
    """Mutation: `if first & 0x70 or opcode not in _KNOWN` never true in `FrameReader._unusual`."""
    error, controller, _ = listen(says(data))

    assert type(error) is ConnectionLost
    assert "protocol error" in str(error) or "larger than" in str(error)
    stored = Stored(controller.setup.intake).take()
    assert stored.only.frames == 1, "what came before it counts, and nothing else"
    assert stored.rejected == []


def test_fragments_with_pings_in_between_are_one_message() -> None:
    """Mutation: let `FrameReader` hand out a message at its first fragment."""
    text = book(7)
    pieces = [text[at : at + 1] for at in range(len(text))]
    data = frame(BINARY, pieces[0], final=False)
    for piece in pieces[1:]:
        data += frame(PING, b"still there") + frame(0, b"", final=False) + frame(0, piece, final=False)
    answers = b""

    def talk(client: Client) -> None:
        nonlocal answers
        client.upgrade()
        client.send(data + frame(0, b"") + frame(PONG, b"unasked"))
        while answers.count(b"\x8a\x8b") < len(pieces) - 1:
            answers += client.end.recv(1 << 16)
        client.send(frame(CLOSE, b"\x03\xe8"))
        client.stay()

    _, controller, _ = listen(talk)

    assert Stored(controller.setup.intake).take().only.book[0] == {"100": "7"}


@pytest.mark.parametrize("text", [b"\xff\xfe\xfd", b'{"ty":"\xc3\x28"}', b"\xed\xa0\x80", b"", b"\x00"])
def test_text_that_is_none_is_kept_raw_and_costs_only_its_own_coverage(text: bytes) -> None:
    """Mutation: let `Controller.handle` raise what `parse` raises."""
    _, controller, _ = listen(says(frame(TEXT, text), frame(BINARY, book(3)), frame(CLOSE)))

    stored = Stored(controller.setup.intake).take()
    assert [rejected.frame for rejected in stored.rejected] == [text]
    assert stored.reasons == ["rejected", "disconnect"]


# --- too much ---------------------------------------------------------------------------------------------------------


TOO_MUCH = {  # a piece, how often it comes, and how many MiB of it are taken
    "a frame of 64 MiB": (frame(BINARY, bytes(MIB), length=64 * MIB), 64, 0),
    "fragments of a MiB": (frame(0, bytes(MIB), final=False), 64, 16),
    "fragments of 100 bytes": (frame(0, b"x" * 100, final=False) * 1000, 1000, 17),
}


@pytest.mark.parametrize(("data", "times", "mib"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_message_without_end_is_given_up(data: bytes, times: int, mib: int) -> None:
    """Mutation: take either limit out of `FrameReader`."""

    def talk(client: Client) -> None:
        client.upgrade()
        client.send(frame(TEXT, b"{", final=False) if mib else b"")
        for _ in range(times):
            client.send(data)
        client.stay()

    error, _, server = listen(talk)

    assert type(error) is ConnectionLost
    assert "larger than" in str(error)
    assert server.clients[0].sent <= mib * MIB + SOCKETS


def test_empty_fragments_without_end_fill_no_memory() -> None:
    """Mutation: keep the fragments of a message in a list in `FrameReader`."""
    from controllers.frames import FrameReader

    reader = FrameReader()
    reader.feed(frame(TEXT, b"{", final=False))
    for _ in range(100):
        assert reader.feed(frame(0, b"", final=False) * 1000) == []
    assert sum(len(held) for held in vars(reader).values() if hasattr(held, "__len__")) < 100


def test_a_flood_of_pings_is_answered_and_data_still_comes_through() -> None:
    pings = dose(20_000, 1_000_000)

    def talk(client: Client) -> None:
        client.upgrade()
        reading = threading.Thread(target=client.stay, daemon=True)
        reading.start()
        for number in range(pings // 1000):
            client.send(frame(PING, b"x" * 125) * 1000 + frame(BINARY, book(number + 1)))
        client.send(frame(CLOSE, b"\x03\xe8"))
        reading.join(20)

    error, controller, _ = listen(talk)

    assert "code 1000" in str(error)
    assert len(Stored(controller.setup.intake).take().only.rows) == pings // 1000


def test_a_flood_of_pings_whose_answers_nobody_takes_ends_the_connection() -> None:
    """Mutation: let `Connection` wait for ever when it sends (`settimeout(None)`)."""

    def talk(client: Client) -> None:
        client.upgrade()
        while True:
            client.send(frame(PING, b"x" * 125) * 1000)

    error, _, server = listen(talk)

    assert type(error) is ConnectionLost
    assert "could not send" in str(error)
    assert server.clients[0].sent < 4 * SOCKETS


def test_a_server_that_talks_without_saying_anything_is_stale() -> None:
    """Half a frame, byte by byte: bytes are no sign of life."""
    over = threading.Event()

    def talk(client: Client) -> None:
        client.upgrade()
        client.send(frame(BINARY, book()) + frame(BINARY, b"", length=100_000))
        while not over.wait(0.05):
            client.send(b" ")

    error, controller, _ = listen(talk, stale_s=0.3)
    over.set()

    assert type(error) is StaleConnection
    assert Stored(controller.setup.intake).take().only.reason == "stale"


# --- the handshake ----------------------------------------------------------------------------------------------------


def answers(answer: bytes) -> Talk:
    """Return a server that answers the request with this."""

    def talk(client: Client) -> None:
        client.ask()
        client.send(answer)

    return talk


def status(line: str, *headers: str, body: bytes = b"no") -> bytes:
    """Return an answer that is no upgrade."""
    return "\r\n".join([f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


REFUSALS = [
    (status("301 Moved"), ConnectionLost, None),
    (status("302 Found", "Location: http://127.0.0.1:1/"), ConnectionLost, None),
    (status("307 Temporary", "Location: ws://127.0.0.1:1/"), ConnectionLost, None),
    (status("308 Permanent", "Location: nonsense"), ConnectionLost, None),
    (status("400 Bad"), ConnectionLost, None),
    (status("401 Unauthorized"), VenueRefused, None),
    (status("403 Forbidden"), VenueRefused, None),
    (status("404 Not Found"), ConnectionLost, None),
    (status("418 Teapot", "Retry-After: 120"), RateLimited, 120.0),
    (status("429 Too Many"), RateLimited, None),
    (status("429 Too Many", "Retry-After: 7"), RateLimited, 7.0),
    (status("429 Too Many", "Retry-After: soon"), RateLimited, None),
    (status("429 Too Many", "Retry-After: 9e99"), RateLimited, 86_400.0),
    (status("451 Unavailable For Legal Reasons"), VenueRefused, None),
    (status("500 Error"), ConnectionLost, None),
    (status("502 Bad Gateway", body=b"<html>" * 1000), ConnectionLost, None),
    (status("503 Unavailable"), ConnectionLost, None),
    (status("503 Unavailable", "Retry-After: 30"), RateLimited, 30.0),
    (status("200 OK"), ConnectionLost, None),
    (status("999 What"), ConnectionLost, None),
    (b"HTTP/1.1 101\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1 nine nine\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1\r\n\r\n", ConnectionLost, None),
    (b"\r\n\r\n", ConnectionLost, None),
    (b"\xff\xfe\x00\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1 503 X\r\nContent-Length: many\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1 503 X\r\nContent-Length: -1\r\n\r\n", ConnectionLost, None),
    (b"HTTP/1.1 503 X\r\nno colon at all\r\n\r\n", ConnectionLost, None),
    (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionLost, None),
]


@pytest.mark.parametrize(
    ("answer", "kind", "pause_s"), REFUSALS, ids=[repr(answer[:32])[2:-1] for answer, _, _ in REFUSALS]
)
def test_an_answer_that_is_no_upgrade(answer: bytes, kind: type[SourceError], pause_s: float | None) -> None:
    """Mutation: take 451 or 503 out of `_refusal` or `wants_pause` in `controllers/connection.py`."""
    error, _, _ = listen(answers(answer))

    assert type(error) is kind, repr(error)
    assert getattr(error, "retry_after_s", None) == pause_s


def test_a_redirect_is_followed_but_not_for_ever() -> None:
    with Server(says(frame(CLOSE))) as other:
        error, controller, _ = listen(answers(status("301 Moved", f"Location: {other.url}")))
    assert "no code" in str(error) and controller.books["BTC-KRW"].total == 1, "it got there"

    moved: list[int] = []

    def talk(client: Client) -> None:
        client.ask()
        moved.append(1)
        client.send(status("301 Moved", f"Location: ws://127.0.0.1:{server.port}/"))

    with Server(talk) as server, pytest.raises(ConnectionLost):
        Connection(server.url)
    assert len(moved) < 10


@pytest.mark.parametrize(
    "beginning",
    [b"HTTP/1.1 503 X\r\nContent-Length: 99999999999\r\n\r\n", b"HTTP/1.1 101 X\r\nX-Long: ", b"HTTP/1.1 101 X\r\n"],
    ids=["body", "header", "headers"],
)
def test_an_answer_without_end_is_given_up(beginning: bytes) -> None:
    """Mutation: take the deadline out of `Connection.__init__`."""

    def talk(client: Client) -> None:
        client.ask()
        client.send(beginning)
        while True:
            client.send(b"X-More: yes\r\n" * 1000 if beginning.endswith(b"X\r\n") else b"x" * 10_000)

    with Server(talk) as server, pytest.raises(ConnectionLost, match="could not connect"):
        Connection(server.url, timeout_s=0.2)
    assert server.clients[0].sent < 1024 * MIB


def test_answers_that_were_damaged_on_their_way_raise_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded damage to a good handshake: one connection each, a `SourceError` or a connection."""
    monkeypatch.setattr(controllers.websocket, "Connection", partial(Connection, timeout_s=0.5))
    dice = random.Random(9)

    def talk(client: Client) -> None:
        data = bytearray(client.upgraded() + frame(BINARY, book()) + frame(CLOSE))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randint(1, 30)]
                case 2:
                    data[at:at] = dice.randbytes(dice.randint(1, 10))
                case 3:
                    data[at:at] = data[at : at + 40]
        client.end.sendall(data)

    log = HeardLog()
    with Server(talk) as server:
        controller = upbit(server.url, log)
        for _ in range(dose(150, 20_000)):
            with pytest.raises(SourceError):
                controller.run_once()
    assert log.of("parse_failed") == []


# --- before the handshake ---------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, *, days: int) -> ssl.SSLContext:
    """Return a server's side of TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


@pytest.mark.parametrize(
    ("vouched", "name", "days", "says"),
    [
        (False, "127.0.0.1", 10, "certificate verify failed"),
        (True, "127.0.0.1", -1, "certificate has expired"),
        (True, "127.0.0.1", 10, None),
    ],
    ids=["unknown", "expired", "good"],
)
def test_a_certificate(
    vouched: bool, name: str, days: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: `sslopt={"cert_reqs": ssl.CERT_NONE}` in `Connection`."""
    context = certificate(tmp_path, name, days=days)
    if vouched:
        monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", str(tmp_path / "cert"))
    with Server(lambda client: client.upgrade(), tls=context) as server:
        if says is None:
            Connection(server.url).close()
        else:
            with pytest.raises(ConnectionLost, match=says):
                Connection(server.url)


def test_no_tls_where_there_should_be(tmp_path: Path) -> None:
    with Server(answers(status("400 Bad"))) as server, pytest.raises(ConnectionLost, match="could not connect"):
        Connection(server.url.replace("ws://", "wss://"), timeout_s=0.3)


@pytest.mark.parametrize("error", [socket.EAI_AGAIN, socket.EAI_NONAME, socket.EAI_FAIL])
def test_a_name_that_is_not_found(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*_: object, **__: object) -> None:
        raise socket.gaierror(error, "not found")

    monkeypatch.setattr(socket, "getaddrinfo", not_found)
    with pytest.raises(ConnectionLost, match="could not connect"):
        Connection("wss://api.upbit.test/websocket/v1")


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "x..y", "\udc80.test", "", "[::1", "1.2.3.4.5"])
def test_a_name_that_can_be_none(name: str) -> None:
    with pytest.raises(ConnectionLost, match="could not connect"):
        Connection(f"ws://{name}:1/", timeout_s=2)


# --- delays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "event", "at_least_s"),
    [
        (status("429 Too Many", "Retry-After: 40"), "ws_error", 40.0),
        (status("503 Unavailable", "Retry-After: 40"), "ws_error", 40.0),
        (status("403 Forbidden"), "api_error", 0.0),
        (status("500 Error"), "ws_error", 0.0),
    ],
)
def test_how_long_is_waited_after_a_refusal(answer: bytes, event: str, at_least_s: float) -> None:
    """Mutation: `self.backoff.next_s()` without what the exchange asked for, in `Worker._run`."""
    log = HeardLog()
    with Server(answers(answer)) as server:
        controller = upbit(server.url, log, backoff={"base_s": 0.02, "cap_s": 0.05})
        controller.start()
        wait_until(lambda: log.of(event))
        if at_least_s:
            wait_until(lambda: controller.state == "waiting")
            assert len(server.clients) == 1
        else:
            wait_until(lambda: len(server.clients) >= 3)
        controller.stop()
        assert controller.join(10)

    waited_s = [details["after_s"] for details in log.of(event)]
    assert min(waited_s) >= at_least_s
    assert max(waited_s) <= max(at_least_s, 0.05)
