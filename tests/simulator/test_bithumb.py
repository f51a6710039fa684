"""Bithumb's rules, by the protocol notes. What it shares with Upbit is tested there."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import requests

from simulator import Timing
from tests.simulator.conftest import SUBSCRIBE, Stage

Start = Callable[..., Stage]
BOOK = {"type": "orderbook", "codes": ["KRW-BTC"]}


def test_fifteen_levels_with_microseconds_and_exact_totals(stage: Start) -> None:
    client = stage("bithumb", rate_hz=50).dial("bithumb")
    client.send(SUBSCRIBE["bithumb"])
    for frame in client.frames(30):
        assert len(frame["orderbook_units"]) == 15 and frame["level"] == 1
        assert len(str(frame["timestamp"])) == 16
        assert frame["total_ask_size"] == sum(unit["ask_size"] for unit in frame["orderbook_units"])


@pytest.mark.parametrize(("code", "pairs"), [("KRW-BTC.5", 5), ("KRW-BTC.30", 15)])
def test_thirty_pairs_are_never_served(stage: Start, code: str, pairs: int) -> None:
    client = stage("bithumb").dial("bithumb")
    client.send([{"ticket": "t"}, {"type": "orderbook", "codes": [code]}])
    assert len(client.frame()["orderbook_units"]) == pairs


def test_size_zero_stands_at_live_prices_even_the_best_and_not_in_the_ledger(stage: Start) -> None:
    s = stage("bithumb", rate_hz=200)
    client = s.dial("bithumb")
    client.send(SUBSCRIBE["bithumb"])
    frames = client.frames(150)
    for side in ("ask", "bid"):
        dust = [
            i
            for frame in frames
            for i, unit in enumerate(frame["orderbook_units"])
            if unit[f"{side}_price"] and not unit[f"{side}_size"]
        ]
        assert dust and 0 in dust
    for frame in frames:
        asks = [unit["ask_price"] for unit in frame["orderbook_units"] if unit["ask_price"]]
        bids = [unit["bid_price"] for unit in frame["orderbook_units"] if unit["bid_price"]]
        assert all(a < b for a, b in pairwise(asks)) and all(a > b for a, b in pairwise(bids)) and bids[0] < asks[0]
    assert all(volume != "0" for line in s.ledger(kind="message") for _, volume in line["asks"] + line["bids"])


def test_many_books_repeat_the_one_before(stage: Start) -> None:
    client = stage("bithumb", rate_hz=200).dial("bithumb")
    client.send(SUBSCRIBE["bithumb"])
    books = [frame["orderbook_units"] for frame in client.frames(100)]
    assert sum(a == b for a, b in pairwise(books)) > 10


def test_a_realtime_frame_may_overtake_the_snapshot(stage: Start) -> None:
    s = stage("bithumb", rate_hz=0.01)
    first = []
    for _ in range(4):
        client = s.dial("bithumb")
        client.send(SUBSCRIBE["bithumb"])
        first.append(client.frame()["stream_type"])
    assert first == ["SNAPSHOT", "SNAPSHOT", "SNAPSHOT", "REALTIME"]
    assert client.frame()["stream_type"] == "SNAPSHOT"


def test_only_the_camel_case_spelling_of_only_snapshot_works(stage: Start) -> None:
    s = stage("bithumb", rate_hz=50)
    once, ignored = s.dial("bithumb"), s.dial("bithumb")
    once.send([{"ticket": "t"}, {**BOOK, "isOnlySnapshot": True}])
    ignored.send([{"ticket": "t"}, {**BOOK, "is_only_snapshot": True}])
    once.frame()
    assert once.silent()
    assert len(ignored.frames(5)) == 5


def test_an_unknown_format_is_ignored_and_an_unsupported_level_refused(stage: Start) -> None:
    s = stage("bithumb")
    plain, simple, grouped = s.dial("bithumb"), s.dial("bithumb"), s.dial("bithumb")
    plain.send([{"ticket": "t"}, BOOK, {"format": "FANCY"}])
    assert plain.frame()["type"] == "orderbook"
    simple.send([{"ticket": "t"}, BOOK, {"format": "SIMPLE"}])
    assert simple.frame()["ty"] == "orderbook"
    grouped.send([{"ticket": "t"}, {**BOOK, "level": 12345}])
    assert list(grouped.frame()["error"]) == ["name", "message"]
    assert grouped.closed() == 1000


def test_an_idle_socket_is_cut(stage: Start) -> None:
    client = stage("bithumb", timing=Timing(idle_s=0.2)).dial("bithumb")
    assert client.closed() == 1006


def test_rest_depth_depends_on_the_number_of_markets(stage: Start) -> None:
    s = stage("bithumb")
    one = requests.get(s.rest("bithumb", "/v1/orderbook?markets=KRW-BTC"), timeout=5)
    two = requests.get(s.rest("bithumb", "/v1/orderbook?markets=KRW-BTC,KRW-ETH"), timeout=5).json()
    assert len(one.json()[0]["orderbook_units"]) == 30
    assert [len(book["orderbook_units"]) for book in two] == [15, 15]
    assert len(str(one.json()[0]["timestamp"])) == 13
    assert one.headers["x-ratelimit-burst-capacity"] == "150"


def test_errors_come_with_status_200(stage: Start) -> None:
    s = stage("bithumb")
    missing = "Missing request parameter error. Check the required parameters!"
    expected = {
        "/v1/orderbook?markets=KRW-NOPE": (200, {"error": {"name": 404, "message": "Code not found"}}),
        "/v1/orderbook?markets=KRW-BTC,KRW-NOPE": (200, {"error": {"name": 404, "message": "Code not found"}}),
        "/v1/orderbook?markets=krw-btc": (200, {"error": {"name": 404, "message": "Code not found"}}),
        "/v1/orderbook": (200, {"error": {"name": 400, "message": missing}}),
        "/v1/nope": (404, {"name": "not_found", "message": "No Route matched with those values"}),
        "/public/orderbook/NOPE_KRW": (200, {"status": "5500", "message": "상장 코인 아님"}),
        "/public/orderbook/BTC_KRW?count=99": (200, {"status": "5500", "message": "입력값을 확인해 주세요."}),
    }
    for path, wanted in expected.items():
        answer = requests.get(s.rest("bithumb", path), timeout=5)
        assert (answer.status_code, answer.json()) == wanted


def test_the_old_book_is_text_throughout(stage: Start) -> None:
    s = stage("bithumb")
    body = requests.get(s.rest("bithumb", "/public/orderbook/BTC_KRW?count=3"), timeout=5).json()
    assert body["status"] == "0000" and body["data"]["order_currency"] == "BTC"
    assert len(body["data"]["bids"]) == 3
    assert isinstance(body["data"]["asks"][0]["quantity"], str)


def test_the_market_list(stage: Start) -> None:
    s = stage("bithumb")
    rows = requests.get(s.rest("bithumb", "/v1/market/all?isDetails=true"), timeout=5).json()
    assert [(row["market"], row["market_warning"]) for row in rows] == [("KRW-BTC", "NONE"), ("KRW-ETH", "NONE")]
