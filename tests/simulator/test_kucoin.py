"""KuCoin's rules, by the protocol notes."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import ABNF

from simulator import Timing
from simulator.kucoin import KuCoin
from simulator.markets import Character
from tests.simulator.conftest import Client, Stage, shape

Start = Callable[..., Stage]
Sides = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]
OBU = {"channel": "obu", "tradeType": "SPOT", "symbol": "BTC-USDT", "depth": "increment@10ms"}


def ask(number: str = "1", action: str = "SUBSCRIBE", **more: Any) -> dict[str, Any]:
    return {"id": number, "action": action, **OBU, **more}


def dialled(s: Stage) -> Client:
    client = s.dial("kucoin")
    assert client.frame()["message"] == "welcome"
    return client


def started(stage: Start, **options: Any) -> Stage:
    return stage("kucoin", **{"markets": ["BTC-USDT", "ETH-USDT"], "rate_hz": 500, **options})


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of five levels, so that they leave and enter it all the time."""
    monkeypatch.setattr("simulator.kucoin.WINDOW", 5)
    monkeypatch.setattr(KuCoin, "depth", 5)
    monkeypatch.setattr(KuCoin, "character", Character(depth=12, gap_ticks=2))


def put(book: Sides, data: dict[str, Any]) -> None:
    for side, rows in zip(book, (data["b"], data["a"]), strict=True):
        for price, size in rows:
            if Decimal(size):
                side[Decimal(price)] = Decimal(size)
            else:
                del side[Decimal(price)]  # what was never told is never taken back


def test_welcome_comes_first_and_everything_is_binary(stage: Start) -> None:
    client = started(stage).dial("kucoin")
    opcode, frame = client.raw()
    assert opcode == ABNF.OPCODE_BINARY
    assert shape(json.loads(frame)) == {"sessionId": "str", "message": "str", "pingInterval": "number"}
    assert json.loads(frame)["pingInterval"] == 30_000
    client.send(ask())
    assert {client.raw()[0] for _ in range(5)} == {ABNF.OPCODE_BINARY}


def test_a_subscription_is_acknowledged_by_its_number_and_begins_with_500_levels(stage: Start, wire: Path) -> None:
    client = dialled(started(stage))
    client.send(ask("77"))
    assert client.frame() == {"id": "77", "result": True}
    snapshot = client.frame()
    lines = (wire / "kucoin" / "pro_obu_doc_examples.ndjson").read_text().splitlines()
    documented = [json.loads(json.loads(line)["data"]) for line in lines]
    (like,) = [shape(frame) for frame in documented if frame.get("t") == "snapshot"]
    assert shape(snapshot) == like
    assert (snapshot["t"], snapshot["d"]["s"], snapshot["d"]["O"]) == ("snapshot", "BTC-USDT", snapshot["d"]["C"])
    assert (len(snapshot["d"]["a"]), len(snapshot["d"]["b"])) == (500, 500)
    assert snapshot["P"] > 10**18 and snapshot["d"]["M"] % 1_000_000 == 0


def test_numbers_have_no_hole_and_lead_to_the_book_that_a_later_subscriber_gets(stage: Start, narrow: None) -> None:
    s = started(stage)
    client = dialled(s)
    client.send(ask())
    client.frame()
    first = client.frame()["d"]
    book: Sides = ({}, {})
    put(book, first)
    seen: dict[int, Sides] = {first["C"]: (dict(book[0]), dict(book[1]))}
    last, overlaps, wide = first["C"], 0, 0
    for frame in client.frames(200):
        data = frame["d"]
        assert frame["t"] == "delta"
        if data["C"] <= last:
            continue  # the book had it already
        assert data["O"] <= last + 1 <= data["C"]
        overlaps += data["O"] <= last
        wide += data["O"] < data["C"]
        put(book, data)
        last = data["C"]
        seen[last] = (dict(book[0]), dict(book[1]))
        assert all(len(side) <= 5 for side in book)
    assert overlaps <= 1 < wide
    late = dialled(s)
    late.send(ask())
    late.frame()
    snapshot = late.frame()["d"]
    for frame in client.frames(100):
        if frame["d"]["C"] > snapshot["C"]:
            break
        put(book, frame["d"])
        seen[frame["d"]["C"]] = (dict(book[0]), dict(book[1]))
    newest = max(number for number in seen if number <= snapshot["C"])
    whole: Sides = ({}, {})
    put(whole, snapshot)
    assert seen[newest] == whole


def test_what_leaves_the_window_is_sent_with_size_nought(stage: Start, narrow: None) -> None:
    client = dialled(started(stage))
    client.send(ask())
    client.frame()
    book: Sides = ({}, {})
    snapshot = client.frame()["d"]
    put(book, snapshot)
    pushed_out = 0
    for frame in client.frames(200):
        if frame["d"]["C"] <= snapshot["C"]:
            continue  # the book had it already
        before = dict(book[0]), dict(book[1])
        put(book, frame["d"])
        pushed_out += any(
            Decimal(size) == 0 and Decimal(price) == (min if bids else max)(before[not bids])
            for bids, rows in ((True, frame["d"]["b"]), (False, frame["d"]["a"]))
            for price, size in rows
        )
    assert pushed_out > 10


def test_the_ledger_has_every_message_as_it_was_sent(stage: Start) -> None:
    s = started(stage)
    client = dialled(s)
    client.send(ask())
    for number, channel in (("2", "trade"), ("3", "ticker"), ("4", "kline")):
        extra = {"interval": "1min"} if channel == "kline" else {}
        client.send({"id": number, "action": "subscribe", "channel": channel, **extra, "tradeType": "SPOT",
                     "symbols": ["BTC-USDT"]})  # fmt: skip
    frames = [frame for frame in client.frames(250) if "T" in frame]
    kinds = {"obu.SPOT": "orderbook", "trade.SPOT": "trades", "ticker.SPOT": "ticker", "kline.SPOT": "candles"}
    for topic, channel in kinds.items():
        mine = [frame for frame in frames if frame["T"] == topic]
        assert mine, topic
        (subscription,) = s.ledger(kind="subscribe", channel=channel)
        lines = s.ledger(kind="message", subscription=subscription["subscription"])
        for frame, line in zip(mine, lines, strict=False):
            check(frame, line)


def check(frame: dict[str, Any], line: dict[str, Any]) -> None:
    data = frame["d"]
    match line["what"]:
        case "book" | "change":
            assert (line["bids"], line["asks"]) == (data["b"], data["a"])
            assert (line["sequence"], line["venue_us"]) == (data["C"], data["M"] // 1000)
        case "trade":
            assert line["rows"] == [
                {"id": data["ti"], "side": data["S"], "price": data["p"], "volume": data["q"],
                 "venue_us": data["M"] // 1000}
            ]  # fmt: skip
        case "ticker":
            assert line["rows"] == [
                {"last": data["l"], "bid": data["b"], "ask": data["a"], "volume": None, "venue_us": data["M"] // 1000}
            ]
        case "candle":
            assert line["rows"] == [
                {"interval_s": 60, "open_us": data["O"] * 10**6, "open": data["o"], "high": data["h"],
                 "low": data["l"], "close": data["c"], "volume": data["v"], "closed": False,
                 "venue_us": frame["P"] // 1000}
            ]  # fmt: skip
            assert data["C"] == data["O"] + 60
        case other:
            pytest.fail(other)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ask(symbol="NOPE-USDT"), "symbol not exists"),
        (ask(symbol="btc-usdt"), "symbol not exists"),
        (ask(channel="level2"), "unknown channel"),
        (ask(tradeType="FUTURES"), "unknown tradeType"),
        (ask(depth="increment"), "depth 'increment'"),
        (ask(action="LISTEN"), "unknown action"),
        (ask(channel="kline", interval="5min"), "interval '5min'"),
    ],
)
def test_what_it_does_not_have_is_refused_and_the_socket_stays(
    stage: Start, request_: dict[str, Any], says: str
) -> None:
    client = dialled(started(stage))
    client.send(request_)
    answer = client.frame()
    assert (answer["id"], answer["result"]) == ("1", False)
    assert answer["message"].startswith(says)
    client.send(ask("2"))
    assert client.frame() == {"id": "2", "result": True}


def test_a_subscription_made_anew_begins_with_its_book_and_a_second_one_brings_nothing(stage: Start) -> None:
    s = started(stage, rate_hz=0.01)
    client = dialled(s)
    client.send(ask("1"))
    assert client.frame()["result"] is True
    assert client.until(lambda f: f.get("t") == "snapshot")
    client.send(ask("2"))
    client.until(lambda f: f.get("id") == "2")
    assert client.silent()
    client.send(ask("3", "UNSUBSCRIBE"))
    assert client.frame() == {"id": "3", "result": True}
    client.send(ask("4"))
    assert client.frame() == {"id": "4", "result": True}
    assert client.frame()["t"] == "snapshot"
    assert len(s.ledger(kind="subscribe")) == 2


def test_only_pings_of_the_client_keep_it_open(stage: Start) -> None:
    s = started(stage, timing=Timing(idle_s=0.4))
    client, mute = dialled(s), dialled(s)
    mute.send(ask())
    for number in range(5):
        client.send({"id": str(number), "type": "ping"})
        pong = client.frame()
        assert (pong["id"], pong["type"]) == (str(number), "pong")
        assert int(pong["ts"]) > 10**18
        assert client.silent(0.1)
    assert mute.closed() == 1006
    assert s.ends() == ["idle"]


def test_topics_and_messages_are_limited(stage: Start) -> None:
    s = started(stage, rate_hz=0.01, timing=Timing(books_max=1))
    client = dialled(s)
    client.send(ask("1"))
    client.send(ask("2", symbol="ETH-USDT"))
    assert client.until(lambda f: f.get("id") == "2")["message"] == "too many topics"
    for number in range(400):
        client.send({"id": str(number), "type": "ping"})
    assert client.closed() == 1008


def test_the_symbols_and_the_books_that_need_no_key(stage: Start) -> None:
    s = started(stage, rate_hz=0.01)
    rows = requests.get(s.rest("kucoin", "/api/v2/symbols"), timeout=5).json()["data"]
    assert [(row["symbol"], row["enableTrading"]) for row in rows] == [("BTC-USDT", True), ("ETH-USDT", True)]
    book = requests.get(s.rest("kucoin", "/api/v1/market/orderbook/level2_20?symbol=BTC-USDT"), timeout=5).json()
    assert len(book["data"]["bids"]) == 20
    assert isinstance(book["data"]["sequence"], str)
    missing = requests.get(s.rest("kucoin", "/api/v1/market/orderbook/level2_100?symbol=NOPE"), timeout=5)
    assert (missing.status_code, missing.json()["code"]) == (200, "900001")
    private = requests.get(s.rest("kucoin", "/api/v3/market/orderbook/level2?symbol=BTC-USDT"), timeout=5)
    assert private.status_code == 401


def test_the_documented_frames_can_be_played(stage: Start, wire: Path) -> None:
    recording = wire / "kucoin" / "pro_obu_doc_examples.ndjson"
    s = stage("kucoin", recording=recording)
    client = dialled(s)
    client.send({"id": "1", "action": "SUBSCRIBE", **OBU, "symbol": "ETH-USDT"})
    assert client.frame()["result"] is True
    played = client.raw()[1].decode()
    assert played in [json.loads(line)["data"] for line in recording.read_text().splitlines()]
    (line,) = s.ledger(kind="message")
    assert (line["what"], line["sequence"], line["venue_us"]) == ("book", 25984468414, 1768217874986000)


@pytest.mark.parametrize(("fault", "gap"), [("swallow", True), ("swap", True), ("duplicate", False)])
def test_faults_show_in_the_numbers(stage: Start, fault: str, gap: bool) -> None:
    s = started(stage)
    client = dialled(s)
    client.send(ask())
    client.frame()
    last = client.frames(4)[-1]["d"]["C"]
    s.simulator.fault(fault, "kucoin", "BTC-USDT")
    holes = repeats = 0
    for frame in client.frames(60):
        repeats += frame["d"]["C"] <= last
        holes += frame["d"]["O"] > last + 1
        last = frame["d"]["C"]
    assert bool(holes) is gap
    assert repeats or fault == "swallow"
