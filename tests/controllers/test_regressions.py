"""What once went wrong, or would have: silence taken for data, faults that never end, books that only look right."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from collector.clock import Clock
from collector.errors import ConnectionLost
from controllers import fetch as fetching
from controllers import rest
from controllers.bithumb import BithumbREST
from controllers.connection import retry_after
from controllers.fetch import Answer, fetch
from tests.controllers.venue import make
from tests.fakes import FakeClock, Stored, make_setup

MARKET = "BTC-KRW"


def polled(price: int, market: str = "KRW-BTC") -> bytes:
    """Return an answer of Bithumb with one level a side."""
    unit = {"ask_price": price + 1, "bid_price": price, "ask_size": 1, "bid_size": 1}
    return json.dumps([{"market": market, "timestamp": 1_790_000_000_000, "orderbook_units": [unit]}]).encode()


class Polls:
    """A poller of Bithumb whose answers, and how long each takes, are written down before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *markets: str) -> None:
        self.clock = FakeClock()
        self.setup = make_setup(clock=self.clock)
        self.poller = make(BithumbREST, *(markets or (MARKET,)), setup=self.setup)
        self.poller.anchor()
        self.stored = Stored(self.setup.intake)
        self.next = Answer(200, {}, b"")
        self.takes_s = 0.0
        monkeypatch.setattr(rest, "fetch", self._fetch)

    def poll(self, body: bytes, *, market: str = MARKET, status: int = 200, takes_s: float = 0.01) -> float:
        """Make one poll and what follows it; return the pause it asks for."""
        self.next, self.takes_s = Answer(status, {}, body), takes_s
        with requests.Session() as session:
            pause_s = self.poller._poll_safely(session, market)
        self.clock.advance(0.1)
        self.poller._end_what_is_too_old(self.clock.monotonic_us())
        self.poller.tick()
        self.stored.take()
        return pause_s

    def _fetch(self, *_: object) -> Answer:
        self.clock.advance(self.takes_s)
        return self.next


# --- polling ----------------------------------------------------------------------------------------------------------


def test_an_answer_without_a_book_keeps_no_old_book_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Polls(monkeypatch)
    polls.poll(polled(100))
    for _ in range(20):
        polls.poll(b"[]")

    epoch = polls.stored.only
    assert epoch.reason == "stale"
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us == epoch.opened.opened_us
    assert epoch.frames == 1


def test_the_book_of_another_market_proves_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Polls(monkeypatch, MARKET, "ETH-KRW")
    polls.poll(polled(100))
    for _ in range(20):
        polls.poll(polled(5, "KRW-ETH"), market=MARKET)

    (bitcoin,) = polls.stored.of(MARKET)
    assert bitcoin.reason == "stale"
    assert bitcoin.frames == 1


def test_a_poll_that_takes_too_long_bridges_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Polls(monkeypatch)
    for price in (100, 100, 200):  # the same bytes, and others
        polls.poll(polled(price), takes_s=4.0)

    assert polls.stored.reasons == ["stale", "stale", None]
    assert all(epoch.frames == 1 for epoch in polls.stored.epochs.values())


def test_pauses_grow_however_long_the_poller_has_been_running(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Polls(monkeypatch)
    polls.poller.backoff._random = lambda: 1.0
    polls.poller.backoff.began()
    polls.clock.advance(3600)
    assert [polls.poll(b"", status=429) for _ in range(5)] == [1, 2, 4, 8, 16]
    polls.clock.advance(60)
    assert polls.poll(b"", status=429) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("-3", 0.0), ("inf", 86_400.0), ("1e300", 86_400.0), ("nan", 0.0), ("Fri, 31 Dec 1999", None)],
)
def test_a_retry_after_is_a_time_that_can_be_waited(value: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": value}) == seconds


class Dripping:
    """A server that begins its answers and goes on for ever."""

    def __init__(self, part: bytes) -> None:
        self._part = part
        self._ended = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(4096)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                while not self._ended.wait(0.01):
                    connection.sendall(self._part)
            except OSError:
                return  # the client left

    def close(self) -> None:
        self._ended.set()
        self._socket.close()


@pytest.fixture
def drips() -> Iterator[Dripping]:
    server = Dripping(b" ")
    yield server
    server.close()


def test_a_body_that_drips_in_is_given_up(drips: Dripping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.3)
    with requests.Session() as session, pytest.raises(ConnectionLost, match="not whole"):
        fetch(session, drips.url, Clock())


def test_a_body_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "BODY_BYTES_MAX", 100_000)
    endless = Dripping(b" " * 50_000)
    try:
        with requests.Session() as session, pytest.raises(ConnectionLost, match="larger than"):
            fetch(session, endless.url, Clock())
    finally:
        endless.close()
