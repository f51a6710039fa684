"""GOPAX's rules, by the protocol notes."""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
import websocket

from simulator import Timing
from simulator.gopax import microseconds, seconds
from tests.simulator.conftest import SUBSCRIBE, Client, Stage

Start = Callable[..., Stage]
KEY = "k" * 64
SECRET = base64.b64encode(b"a secret of the test").decode()


def ask(pair: Any = "BTC-KRW", i: Any = "BTC-KRW", name: str = "SubscribeToOrderBook", **more: Any) -> dict[str, Any]:
    return {"i": i, "n": name, "o": {"tradingPairName": pair, **more}}


def changes(client: Client, count: int) -> list[dict[str, Any]]:
    """Read changes, leaving out the keepalive."""
    return [frame for frame in client.frames(count) if isinstance(frame, dict)]


def test_times_are_seconds_with_a_fraction_read_exactly() -> None:
    assert [seconds(ms) for ms in (1790138962965, 1790130104340, 1790138983000)] == [
        "1790138962.965", "1790130104.34", "1790138983",
    ]  # fmt: skip
    assert microseconds("1790138962.965") == 1790138962965000
    assert microseconds("1790138983") == 1790138983000000


def test_the_snapshot_echoes_the_request_and_holds_hundreds_of_levels(stage: Start) -> None:
    client = stage("gopax").dial("gopax")
    client.send(ask(i=7))
    snapshot = client.frame()
    assert (snapshot["i"], snapshot["n"], snapshot["o"]["tradingPairName"]) == (7, "SubscribeToOrderBook", "BTC-KRW")
    assert len(snapshot["o"]["ask"]) > 300 and len(snapshot["o"]["bid"]) > 300
    entries = [entry["entryId"] for side in ("ask", "bid") for entry in snapshot["o"][side]]
    assert max(entries) <= snapshot["o"]["maxEntryId"]
    assert len(set(entries)) == len(entries)


def test_changes_are_nearly_always_single_and_their_ids_jump(stage: Start) -> None:
    s = stage("gopax", rate_hz=200)
    client = s.dial("gopax")
    client.send(ask())
    client.frame()
    frames = changes(client, 150)
    counts = [len(frame["o"]["ask"]) + len(frame["o"]["bid"]) for frame in frames]
    assert counts.count(1) > 0.8 * len(counts)
    assert all(frame["i"] == -1 for frame in frames)
    ids = [max(e["entryId"] for side in ("ask", "bid") for e in frame["o"][side]) for frame in frames]
    assert ids == sorted(ids)
    assert max(b - a for a, b in pairwise(ids)) > 1
    lines = s.ledger(kind="message", what="change")
    assert [line["sequence"] for line in lines[: len(ids)]] == ids
    newest = [max(e["updatedAt"] for side in ("ask", "bid") for e in frame["o"][side]) for frame in frames]
    assert [line["venue_us"] for line in lines[: len(ids)]] == [int(Decimal(t) * 10**6) for t in newest]


def test_levels_are_deleted_by_volume_zero_also_some_that_never_were(stage: Start) -> None:
    client = stage("gopax", rate_hz=300).dial("gopax")
    client.send(ask())
    snapshot = client.frame()["o"]
    known = {entry["price"] for side in ("ask", "bid") for entry in snapshot[side]}
    unknown = deleted = 0
    for frame in changes(client, 250):
        for entry in frame["o"]["ask"] + frame["o"]["bid"]:
            if entry["volume"] == 0:
                deleted += 1
                unknown += entry["price"] not in known
                known.discard(entry["price"])
            else:
                known.add(entry["price"])
    assert unknown > 0 and deleted > unknown


def test_a_change_may_repeat_the_snapshot_s_last_id(stage: Start) -> None:
    s = stage("gopax", rate_hz=0.01, markets=["BTC-KRW", "ETH-KRW", "XRP-KRW", "SOL-KRW"])
    client = s.dial("gopax")
    client.send(ask())
    highest = client.frame()["o"]["maxEntryId"]
    if highest % 3 == 0:
        assert client.frame()["o"]["ask"][0]["entryId"] == highest
    else:
        assert client.silent()


def test_a_change_may_overtake_the_snapshot(stage: Start) -> None:
    s = stage("gopax", rate_hz=0.01)
    s.simulator.fault("early_change", "gopax")
    client = s.dial("gopax")
    client.send(ask())
    change, snapshot = client.frames(2)
    (entry,) = change["o"]["ask"] + change["o"]["bid"]
    assert entry["entryId"] > snapshot["o"]["maxEntryId"]
    assert entry not in snapshot["o"]["ask"] + snapshot["o"]["bid"]
    assert [line["what"] for line in s.ledger(kind="message")] == ["change", "book"]


@pytest.mark.parametrize(
    ("sent", "code", "data"),
    [
        (ask("NOPE-KRW"), 10058, "NOPE"),
        (ask("btc-krw"), 10058, "btc"),
        (ask(name="SubscribeToNothing"), 10001, "No such endpoint"),
        (ask(limit=5), 10329, "Invalid limit"),
    ],
)
def test_refusals_leave_the_socket_open(stage: Start, sent: dict[str, Any], code: int, data: str) -> None:
    client = stage("gopax").dial("gopax")
    client.send("no json")  # gets no answer at all
    client.send(sent)
    answer = client.frame()
    assert answer == {"i": "BTC-KRW", "n": sent["n"], "o": {"result": False, "errCode": code, "errData": data}}
    client.send(ask())
    assert "maxEntryId" in client.frame()["o"]


def test_a_pair_can_be_asked_for_once_and_a_socket_holds_so_many(stage: Start) -> None:
    client = stage("gopax", rate_hz=0.01, markets=["A-KRW", "B-KRW", "C-KRW"], timing=Timing(books_max=2)).dial("gopax")
    client.send(ask("A-KRW"))
    client.send(ask("A-KRW", i="again"))
    again = client.until(lambda f: f["i"] == "again")
    assert again["o"]["errCode"] == 10325
    client.send(ask("B-KRW"))
    client.send(ask("C-KRW", i="third"))
    assert client.until(lambda f: f["i"] == "third")["o"]["errCode"] == 10321


def test_a_limit_shortens_the_snapshot(stage: Start) -> None:
    client = stage("gopax").dial("gopax")
    client.send(ask(name="SubscribeToTradingPair", limit=20))
    snapshot = client.frame()
    assert snapshot["n"] == "SubscribeToTradingPair"
    assert len(snapshot["o"]["ask"]) == 20


def test_a_socket_that_does_not_pong_is_closed_while_data_flows(stage: Start) -> None:
    s = stage("gopax", rate_hz=50, timing=Timing(ping_s=0.1, pong_s=0.3))
    client = s.dial("gopax")
    client.send(ask())
    assert str(client.until(lambda f: isinstance(f, str))).startswith("primus::ping::")
    assert client.closed() == 1000
    assert s.ends() == ["no pong"]


@pytest.mark.parametrize("quotes", [True, False])
def test_pongs_keep_it_open_with_or_without_quotes(stage: Start, quotes: bool) -> None:
    client = stage("gopax", timing=Timing(ping_s=0.1, pong_s=1)).dial("gopax")
    for _ in range(15):
        ping = client.until(lambda f: isinstance(f, str))
        pong = ping.replace("ping", "pong")
        client.send(f'"{pong}"' if quotes else pong)
    client.send(ask())
    assert client.until(lambda f: isinstance(f, dict))["o"]["maxEntryId"]


def test_a_socket_ends_at_its_greatest_age(stage: Start) -> None:
    assert stage("gopax", timing=Timing(session_s=0.2)).dial("gopax").closed() == 1000


def signed(key: str = KEY, secret: str = SECRET, age_s: float = 0) -> str:
    stamp = str(round((time.time() - age_s) * 1000))
    signature = hmac.new(base64.b64decode(secret), f"t{stamp}".encode(), hashlib.sha512).digest()
    return "?" + urlencode({"apiKey": key, "timestamp": stamp, "signature": base64.b64encode(signature).decode()})


def test_a_signed_url_is_checked(stage: Start) -> None:
    s = stage("gopax", keys={"gopax": (KEY, SECRET)})
    good = s.dial("gopax", signed())
    good.send(SUBSCRIBE["gopax"])
    assert good.frame()["o"]["maxEntryId"]
    other = base64.b64encode(b"another").decode()
    for query in (signed(key="x" * 64), signed(secret=other), signed(age_s=6), "?apiKey=" + KEY):
        with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
            s.dial("gopax", query)


def test_the_book_call_is_allowed_once_a_second(stage: Start) -> None:
    s = stage("gopax")
    with requests.Session() as session:
        first = session.get(s.rest("gopax", "/trading-pairs/BTC-KRW/book"), timeout=5)
        others = [session.get(s.rest("gopax", "/trading-pairs/ETH-KRW/book"), timeout=5) for _ in range(10)]
    assert first.status_code == 200 and len(first.json()["ask"]) > 300
    refused = [answer.json()["errorCode"] for answer in others if answer.status_code == 429]
    assert refused == [10105] * len(refused) and refused
    assert [line["status"] for line in s.ledger(kind="message", what="error")] == [429] * len(refused)


def test_book_levels_and_errors(stage: Start) -> None:
    s = stage("gopax", timing=Timing(rest_limits=False))
    for level, rows in (("1", 1), ("2", 50)):
        body = requests.get(s.rest("gopax", f"/trading-pairs/BTC-KRW/book?level={level}"), timeout=5).json()
        assert len(body["bid"]) == rows
    entry = body["bid"][0]
    assert [type(field) for field in entry] == [str, int, float, str]
    missing = requests.get(s.rest("gopax", "/trading-pairs/NOPE-KRW/book"), timeout=5)
    assert missing.status_code == 404
    assert missing.json() == {"errorMessage": "Invalid asset code: NOPE", "errorCode": 10058, "errorData": "NOPE"}
    assert [row["name"] for row in requests.get(s.rest("gopax", "/trading-pairs"), timeout=5).json()] == [
        "BTC-KRW", "ETH-KRW",
    ]  # fmt: skip
    assert requests.get(s.rest("gopax", "/time"), timeout=5).json()["serverTime"] > 10**12
