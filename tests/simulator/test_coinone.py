"""Coinone's rules, by the protocol notes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import requests

from simulator import Timing
from tests.simulator.conftest import SUBSCRIBE, Client, Stage

Start = Callable[..., Stage]
TOPIC = {"quote_currency": "KRW", "target_currency": "BTC"}
BOOK: dict[str, Any] = {"request_type": "SUBSCRIBE", "channel": "ORDERBOOK", "topic": TOPIC}


def greeted(s: Stage) -> Client:
    client = s.dial("coinone")
    assert list(client.frame()["data"]) == ["session_id"]
    return client


def test_an_acknowledgement_then_books_of_sixteen_levels_asks_worst_first(stage: Start) -> None:
    client = greeted(stage("coinone", rate_hz=50))
    client.send(BOOK)
    assert client.frame() == {"response_type": "SUBSCRIBED", "channel": "ORDERBOOK", "data": TOPIC}
    for frame in client.frames(20):
        asks, bids = ([int(level["price"]) for level in frame["data"][side]] for side in ("asks", "bids"))
        assert len(asks) == len(bids) == 16
        assert all(a > b for a, b in pairwise(asks)) and all(a > b for a, b in pairwise(bids)) and asks[-1] > bids[0]


def test_ids_rise_and_the_first_time_is_ten_seconds_old(stage: Start) -> None:
    client = greeted(stage("coinone", rate_hz=400))
    client.send(BOOK)
    client.frame()
    data = [frame["data"] for frame in client.frames(60)]
    ids = [int(d["id"]) for d in data]
    assert all(a < b for a, b in pairwise(ids))
    assert ids[0] // 1000 - data[0]["timestamp"] == 10_000
    assert all(int(d["id"]) // 1000 == d["timestamp"] for d in data[1:])


def test_equal_books_come_with_a_new_id(stage: Start) -> None:
    client = greeted(stage("coinone", rate_hz=400))
    client.send(BOOK)
    client.frames(2)
    data = [frame["data"] for frame in client.frames(120)]
    repeated = [(a, b) for a, b in pairwise(data) if (a["asks"], a["bids"]) == (b["asks"], b["bids"])]
    assert repeated and all(a["id"] != b["id"] for a, b in repeated)


def test_nonsense_is_acknowledged_first(stage: Start) -> None:
    client = greeted(stage("coinone"))
    topic = {"quote_currency": "KRW", "target_currency": "NOPE"}
    client.send({**BOOK, "topic": topic})
    assert client.frame() == {"response_type": "SUBSCRIBED", "channel": "ORDERBOOK", "data": topic}
    assert client.frame() == {"response_type": "ERROR", "error_code": 160012, "message": "Invalid Topic"}
    client.send(BOOK)
    assert client.frame()["response_type"] == "SUBSCRIBED"


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        ("nonsense", 160010, None),
        ("[]", 160010, None),
        ({**BOOK, "request_type": "subscribe"}, 160011, "request_type"),
        ({**BOOK, "channel": "orderbook"}, 160011, "channel"),
        ({**BOOK, "format": "short"}, 160011, "format"),
    ],
)
def test_errors_leave_the_socket_open(stage: Start, request_: Any, code: int, field: str | None) -> None:
    client = greeted(stage("coinone"))
    client.send(request_)
    answer = client.frame()
    assert (answer["error_code"], answer.get("field")) == (code, field)
    client.send({"request_type": "PING"})
    assert client.frame() == {"response_type": "PONG"}


def test_lower_case_markets_are_served_and_spelled_back_in_upper_case(stage: Start) -> None:
    client = greeted(stage("coinone"))
    client.send({**BOOK, "topic": {"quote_currency": "krw", "target_currency": "btc"}})
    assert client.frame()["data"] == TOPIC
    assert client.frame()["data"]["target_currency"] == "BTC"


def test_short_keys(stage: Start) -> None:
    client = greeted(stage("coinone"))
    client.send({**BOOK, "format": "SHORT"})
    client.frame()
    frame = client.frame()
    assert list(frame) == ["r", "c", "d"]
    assert list(frame["d"]) == ["qc", "tc", "t", "i", "a", "b"]
    assert list(frame["d"]["a"][0]) == ["p", "q"]


def test_subscriptions_add_up_and_a_repeated_one_resends_the_same_book(stage: Start) -> None:
    s = stage("coinone", rate_hz=0.01)
    client = greeted(s)
    client.send(BOOK)
    client.send({**BOOK, "topic": {"quote_currency": "KRW", "target_currency": "ETH"}})
    client.send(BOOK)
    frames = client.frames(6)
    books = [frame["data"] for frame in frames if frame["response_type"] == "DATA"]
    assert [book["target_currency"] for book in books] == ["BTC", "ETH", "BTC"]
    assert books[0]["id"] == books[2]["id"]
    assert [line["i"] for line in s.ledger(kind="message", subscription="s1")] == [1, 2]


def test_unsubscribe(stage: Start) -> None:
    client = greeted(stage("coinone", rate_hz=50))
    client.send(BOOK)
    client.send({**BOOK, "request_type": "UNSUBSCRIBE"})
    client.until(lambda f: f["response_type"] == "UNSUBSCRIBED")
    assert client.silent()


def test_a_socket_that_never_speaks_is_cut_and_one_without_pings_later(stage: Start) -> None:
    s = stage("coinone", rate_hz=50, timing=Timing(idle_s=0.6, session_s=1.5))
    mute, busy = greeted(s), greeted(s)
    busy.send(BOOK)
    assert mute.closed() == 1006
    assert busy.closed() == 1006
    assert s.ends(2) == ["idle", "no PING"]


def test_the_connection_too_many_is_closed_with_4290(stage: Start) -> None:
    s = stage("coinone", timing=Timing(connections_max=2))
    greeted(s), greeted(s)
    assert s.dial("coinone").closed() == 4290
    assert SUBSCRIBE["coinone"]


def test_rest_errors_come_with_status_200_and_unknown_paths_with_a_page(stage: Start) -> None:
    s = stage("coinone")
    unknown = requests.get(s.rest("coinone", "/public/v2/orderbook/KRW/NOPE"), timeout=5)
    size = requests.get(s.rest("coinone", "/public/v2/orderbook/KRW/BTC?size=20"), timeout=5)
    page = requests.get(s.rest("coinone", "/public/v2/nope"), timeout=5)
    empty = requests.get(s.rest("coinone", "/public/v2/markets/USDT"), timeout=5)
    assert {answer.status_code for answer in (unknown, size, page, empty)} == {200}
    assert unknown.json() == {"result": "error", "error_code": "108", "error_msg": "Unknown CryptoCurrency"}
    assert size.json() == {"result": "error", "error_code": "107", "error_msg": "Parameter value is wrong"}
    assert page.text.startswith("<!DOCTYPE html>")
    assert empty.json()["markets"] == []


def test_rest_asks_ascend_and_carry_the_socket_s_id(stage: Start) -> None:
    s = stage("coinone", rate_hz=0.01)
    client = greeted(s)
    client.send(BOOK)
    frame = client.frames(2)[1]["data"]
    body = requests.get(s.rest("coinone", "/public/v2/orderbook/krw/btc?size=16"), timeout=5).json()
    assert (body["id"], body["asks"], body["bids"]) == (frame["id"], frame["asks"][::-1], frame["bids"])
    default = requests.get(s.rest("coinone", "/public/v2/orderbook/KRW/BTC"), timeout=5).json()
    assert len(default["asks"]) == 15


def test_the_market_list(stage: Start) -> None:
    s = stage("coinone")
    rows = requests.get(s.rest("coinone", "/public/v2/markets/KRW"), timeout=5).json()["markets"]
    assert [row["target_currency"] for row in rows] == ["BTC", "ETH"]
    assert rows[0]["maintenance_status"] == 0
