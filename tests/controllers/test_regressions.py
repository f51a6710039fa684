"""What once went wrong, or would have: silence taken for data, faults that never end, books that only look right."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from collector.clock import Clock
from collector.errors import BadFrame, BookDiffers, ConnectionLost, StaleConnection, UnknownFrame, VenueRefused
from collector.numbers import to_decimal
from collector.records import Book, Delivery
from controllers import fetch as fetching
from controllers import rest
from controllers.base import Controller
from controllers.bithumb import BithumbREST, BithumbWebSocket
from controllers.coinone import Coinone
from controllers.connection import retry_after
from controllers.fetch import Answer, fetch
from controllers.gopax import Gopax
from controllers.korbit import Korbit
from controllers.upbit import Upbit
from storage.reader import Gap, Reader
from tests.controllers.test_doubts import BOOK, OTHER, Changing, Played, Stage, Steps
from tests.controllers.venue import check_sums, make
from tests.fakes import FakeClock, HeardLog, Stored, make_setup
from tests.storage.build import OneRun

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
            pause_s = self.poller._poll_safely(session, self.poller.books[market])
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


# --- faults that end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a book", "garbage"])
def test_a_quiet_market_is_heard_again_after_a_rejected_frame(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    scene = Stage(monkeypatch)

    def steps() -> Steps:
        if first == "a book":
            yield scene.frame(BOOK, after=0)
        yield [(1, b"what is this")]
        yield from scene.chatter(60)

    with pytest.raises(StaleConnection, match="subscribing anew"):
        scene.play(steps())
    assert scene.clock.monotonic_us() - 5_000_000 <= 32_000_000


def test_a_quiet_market_goes_on_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: end the epochs at a step and open none."""
    scene = Stage(monkeypatch)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.clock.step_wall(-3600)
        scene.rest.answers.extend([BOOK] * 9)
        yield from scene.chatter(60)

    scene.play(steps())
    assert scene.stored.reasons == ["clock", "stop"]
    second = scene.stored.last
    assert second.mark is not None
    assert second.mark.confirmed_until_us > second.opened.opened_us + 30_000_000, "its REST book agreed"
    assert scene.seconds[0] == 11, "a step ends no silence"


def test_a_market_that_never_spoke_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Stage(monkeypatch, Played, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        for number in range(120):
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]


def test_an_unexpected_error_amid_a_book_rejects_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Polls(monkeypatch)
    polls.poll(polled(100))
    book = polls.poller.books[MARKET].book
    replace = book.replace

    def half(message: Book) -> Any:
        replace(message)
        raise MemoryError

    monkeypatch.setattr(book, "replace", half)
    polls.poll(polled(200))
    monkeypatch.setattr(book, "replace", replace)
    polls.poll(polled(300))

    assert polls.stored.reasons == ["rejected", None]
    assert polls.stored.last.book == ({"300": "1"}, {"301": "1"})
    assert [rejected.frame for rejected in polls.stored.rejected] == [polled(200)]
    check_sums(polls.setup, polls.stored, "bithumb", 3)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_without_a_name_takes_no_market_with_it_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Stage(monkeypatch, Played, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "Invalid Topic"})
        yield scene.frame(BOOK)
        assert [row["state"] for row in scene.controller.status()] == ["live", "refused"]
        yield from scene.chatter(10)

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]


def test_when_no_book_follows_such_a_refusal_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Stage(monkeypatch, Played, "A-KRW", "B-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "Invalid Topic"})
        yield from scene.chatter(20)

    with pytest.raises(VenueRefused):
        scene.play(steps())


# --- books that only look right ---------------------------------------------------------------------------------------


def test_a_book_of_changes_that_differs_counts_up_to_where_it_last_agreed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scene = Stage(monkeypatch, Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for number in range(90):
            scene.rest.answers.clear()
            right = {**BOOK, "bids": {"10": number + 100, "9": 2}}
            scene.rest.answers.extend([right if number < 30 else OTHER] * 2)
            change = {"bids": {"10": number + 100}, "asks": {}, "change": True, "sequence": number + 2}
            yield scene.frame(change, after=1)
            scene.probed()

    with pytest.raises(BookDiffers):
        scene.play(steps())
    epoch = scene.stored.only
    assert epoch.ended is not None
    assert epoch.ended.ended_us == epoch.opened.opened_us + 25_000_000
    assert epoch.frames == 26, "the first book and twenty-five changes"
    assert len(epoch.rows) > 40, "more was written"
    assert scene.controller.books[MARKET].gap_since_us == 30_000_000

    store = OneRun(tmp_path / "c.sqlite", "u", started_us=1)
    store.open()
    for delivery in scene.stored.deliveries:
        store.put([delivery], 1)
    store.release()
    with Reader(store.path) as reader:
        (kept,) = reader.epochs("VENUE", MARKET)
        assert (kept.until_us, kept.frames) == (epoch.ended.ended_us, 26)
        assert len(list(reader.books("VENUE", MARKET))) == 26
        assert isinstance(reader.book_at("VENUE", MARKET, epoch.ended.ended_us + 1), Gap)


@pytest.mark.parametrize("size", ["-1", "NaN", None, True])
def test_a_change_that_the_complete_book_holds_already_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    scene = Stage(monkeypatch, Changing)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 9}, after=0)
        yield scene.frame({"bids": {"10": size}, "asks": {}, "change": True, "sequence": 5})

    with pytest.raises(ConnectionLost):
        scene.play(steps())
    assert scene.stored.reasons == ["rejected"]
    assert len(scene.stored.rejected) == 1


# --- frames -----------------------------------------------------------------------------------------------------------


def test_a_book_with_one_more_field_is_no_heartbeat() -> None:
    upbit = {
        "ty": "orderbook",
        "cd": "KRW-BTC",
        "tms": 1,
        "status": "UP",
        "obu": [{"ap": 2, "bp": 1, "as": 1, "bs": 1}],
    }
    unit = {"ask_price": 2, "bid_price": 1, "ask_size": 1, "bid_size": 1}
    long = {"type": "orderbook", "code": "KRW-BTC", "timestamp": 1, "status": "UP", "orderbook_units": [unit]}
    for cls, frame in ((Upbit, upbit), (Upbit, long), (BithumbWebSocket, long)):
        (book,) = make(cls).parse(json.dumps(frame).encode(), 0)
        assert isinstance(book, Book)
        assert (book.bids, book.asks) == ({1: 1}, {2: 1})


# --- a full intake ----------------------------------------------------------------------------------------------------


def test_a_full_intake_does_not_fill_the_log_with_beginnings() -> None:
    log = HeardLog()
    setup = make_setup(limit_bytes=1000, log=log)
    setup.intake.put(Delivery("", 0, (), 1000))
    poller = make(BithumbREST, setup=setup)
    for price in range(1, 50):
        poller.handle(polled(price), setup.clock.monotonic_us())
        poller.flush()
    assert not log.of("collect_start")


def test_a_clock_that_is_set_while_the_intake_is_full_costs_no_coverage_of_before() -> None:
    clock = FakeClock()
    setup = make_setup(limit_bytes=100_000, clock=clock)
    poller, stored = make(BithumbREST, setup=setup), Stored(setup.intake)
    poller.anchor()
    for price in range(1, 10):
        poller.handle(polled(price), clock.advance(1))
        poller.flush()
    stored.take()
    setup.intake.put(Delivery("", 0, (), 100_000))
    clock.step_wall(-3600)
    poller.tick()

    epoch = stored.take().only
    assert epoch.ended is not None
    assert epoch.mark is not None
    assert (epoch.reason, epoch.ended.ended_us) == ("no_space", epoch.mark.heard_until_us)


# --- found by spoiling messages: see tests/fuzz ----------------------------------------------------------------------


@pytest.mark.parametrize("token", ["1e9999999999999999999", "1E-9999999999999999999"])
def test_an_exponent_of_twenty_digits_is_no_number_and_no_bug(token: str) -> None:
    with pytest.raises(BadFrame, match="out of range"):
        to_decimal(token)


@pytest.mark.parametrize("spoiled", [b'"extra":"\xff"', b'"\xb3m\xdd":1'])
def test_what_is_not_utf_8_is_refused_also_in_fields_nobody_reads(spoiled: bytes) -> None:
    unit = b'{"ap":2,"bp":1,"as":1,"bs":1}'
    frame = b'{"ty":"orderbook","cd":"KRW-BTC","obu":[' + unit + b"]," + spoiled + b"}"
    with pytest.raises(BadFrame, match="utf-8"):
        make(Upbit).parse(frame, 0)
    (book,) = make(Upbit).parse(frame.replace(spoiled, '"extra":"값"'.encode()), 0)
    assert isinstance(book, Book)


@pytest.mark.parametrize(
    ("cls", "listing"),
    [
        (Upbit, '[{"market":"KRWBTC"}]'),
        (Upbit, '[{"market":"KRW-"}]'),
        (BithumbREST, '[{"market":["KRW-BTC"]}]'),
        (Coinone, '{"result":"success","markets":[{"target_currency":{},"quote_currency":"KRW","trade_status":1,'
                  '"maintenance_status":0}]}'),
        (Gopax, '[{"name":"BTC-KRW"},{"name":1000}]'),
        (Gopax, '[{"name":null}]'),
        (Korbit, '{"data":[{"symbol":"btckrw","status":"launched"}]}'),
    ],
)  # fmt: skip
def test_a_listing_holds_markets_and_nothing_else(cls: type[Controller], listing: str) -> None:
    with pytest.raises(BadFrame):
        cls.parse_listing(listing.encode())


def coinone_book(number: int, price: int) -> bytes:
    level = [{"price": str(price), "qty": "1"}]
    pair = {"quote_currency": "KRW", "target_currency": "BTC", "timestamp": 1_790_134_177_753, "id": str(number)}
    data = {**pair, "asks": [], "bids": level}
    return json.dumps({"response_type": "DATA", "channel": "ORDERBOOK", "data": data}).encode()


def test_an_id_from_the_future_does_not_make_repeats_of_all_that_follow() -> None:
    number = 1_790_134_177_753_001
    coinone = make(Coinone)
    for n, price in ((number, 100), (999_999_999_999_999_999, 101), (number + 1000, 102)):
        coinone.handle(coinone_book(n, price), 1)
    coinone.flush()
    stored = Stored(coinone.setup.intake).take()
    assert stored.reasons == ["rejected", None]
    assert stored.last.book[0] == {"102": "1"}


def test_an_error_in_short_keys_is_kept_raw() -> None:
    with pytest.raises(UnknownFrame):
        make(Coinone).parse(b'{"r":"ERROR","c":"ORDERBOOK"}', 0)
