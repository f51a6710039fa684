"""Korbit's (Digital X's) rules, by the protocol notes."""

from collections.abc import Callable
from typing import Any

import pytest
import requests

from simulator import Timing
from tests.simulator.conftest import SUBSCRIBE, Stage

Start = Callable[..., Stage]


def request(**changes: Any) -> list[dict[str, Any]]:
    return [{"requestId": 1, "method": "subscribe", "type": "orderbook", "symbols": ["btc_krw"], **changes}]


def test_success_is_said_only_to_who_gives_a_number(stage: Start) -> None:
    s = stage("korbit")
    numbered, plain = s.dial("korbit"), s.dial("korbit")
    numbered.send(request())
    plain.send(SUBSCRIBE["korbit"])
    assert numbered.frame() == {"status": "success", "requestId": 1}
    assert numbered.frame()["snapshot"] is True
    assert plain.frame()["snapshot"] is True
    assert "snapshot" not in plain.frame()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("nonsense", {"status": "fail", "message": "invalid_format"}),
        (request()[0], {"status": "fail", "message": "invalid_format"}),
        (
            request(symbols=["btc_krw", "nope_krw"]),
            {
                "status": "fail",
                "code": "INVALID_SYMBOL",
                "message": "The symbol does not exist (nope_krw)",
                "requestId": 1,
            },
        ),
        (
            request(symbols=["BTC_KRW"], requestId=None),
            {"status": "fail", "code": "INVALID_SYMBOL", "message": "The symbol does not exist (BTC_KRW)"},
        ),
        (
            request(type="nope"),
            {"status": "fail", "code": "INVALID_REQUEST", "message": "unknown_type", "requestId": 1},
        ),
        (
            request(level="7"),
            {"status": "fail", "code": "INVALID_REQUEST", "message": "invalid_level", "requestId": 1},
        ),
    ],
)
def test_failures_are_named_and_the_socket_stays_open(stage: Start, sent: Any, answer: dict[str, Any]) -> None:
    client = stage("korbit").dial("korbit")
    client.send(sent)
    assert client.frame() == answer
    client.send(request(requestId=9))
    assert client.frame() == {"status": "success", "requestId": 9}


def test_books_have_thirty_levels_with_the_time_of_their_last_change(stage: Start) -> None:
    s = stage("korbit", rate_hz=30)
    client = s.dial("korbit")
    client.send(SUBSCRIBE["korbit"])
    frames = client.frames(40)
    assert max(len(frame["data"]["asks"]) for frame in frames) == 30
    times = [frame["data"]["timestamp"] for frame in frames]
    assert times == sorted(times)
    assert [line["venue_us"] for line in s.ledger(kind="message")[:40]] == [t * 1000 for t in times]


def test_a_stopped_pair_gives_one_empty_book_and_then_nothing(stage: Start) -> None:
    s = stage("korbit", rate_hz=50)
    client = s.dial("korbit")
    client.send(request(symbols=["klay_krw"]))
    assert client.frame()["status"] == "success"
    book = client.frame()
    assert (book["snapshot"], book["data"]["asks"], book["data"]["bids"]) == (True, [], [])
    assert client.silent()


def test_unsubscribe(stage: Start) -> None:
    client = stage("korbit", rate_hz=50).dial("korbit")
    client.send(request())
    client.frames(3)
    client.send(request(method="unsubscribe", requestId=2))
    client.until(lambda f: f.get("requestId") == 2)
    assert client.silent()


def test_the_server_pings(stage: Start) -> None:
    client = stage("korbit", rate_hz=20, timing=Timing(ping_s=0.1)).dial("korbit")
    client.send(request())
    client.until(lambda _: len(client.pings) >= 2)
    assert set(client.pings) == {b"ping"}


def test_rest_errors_are_those_recorded(stage: Start) -> None:
    s = stage("korbit")
    expected = {
        "/v2/orderbook": (400, "BAD_REQUEST"),
        "/v2/orderbook?symbol=nope_krw": (400, "INVALID_CURRENCY_PAIR"),
        "/v2/nope": (404, "NOT_FOUND"),
    }
    for path, (status, message) in expected.items():
        answer = requests.get(s.rest("korbit", path), timeout=5)
        assert answer.status_code == status
        assert answer.json() == {"success": False, "error": {"code": status, "message": message}}


def test_the_pairs_and_the_clock(stage: Start) -> None:
    s = stage("korbit")
    answer = requests.get(s.rest("korbit", "/v2/currencyPairs"), timeout=5)
    assert [(row["symbol"], row["status"]) for row in answer.json()["data"]] == [
        ("btc_krw", "launched"), ("eth_krw", "launched"), ("klay_krw", "stopped"),
    ]  # fmt: skip
    assert answer.headers["Ratelimit-Policy"] == "50;w=1"
    assert requests.get(s.rest("korbit", "/v2/time"), timeout=5).json()["data"]["time"] > 10**12
