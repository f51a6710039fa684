"""OKX's rules, by the protocol notes."""

import json
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import Timing
from simulator.okx import Chain, Okx
from tests.simulator.conftest import Client, Stage, decoded

Start = Callable[..., Stage]
MARKETS = [
    "BTC-USDT", "ETH-USDT", "BTC-USDT:USDT", "BTC-USD:BTC", "BTC-USD:BTC-260626", "BTC-USD:BTC-260626-100000-C",
]  # fmt: skip
CODES = ["BTC-USDT", "ETH-USDT", "BTC-USDT-SWAP", "BTC-USD-SWAP", "BTC-USD-260626", "BTC-USD-260626-100000-C"]


def ask(*wanted: str, op: str = "subscribe") -> dict[str, Any]:
    """Spell a request: `books BTC-USDT` and the like."""
    pairs = (each.split(" ") for each in wanted)
    return {"op": op, "args": [{"channel": channel, "instId": code} for channel, code in pairs]}


def data(client: Client, channel: str = "books", code: str = "BTC-USDT") -> dict[str, Any]:
    """Read on to the next data frame of a channel."""
    frame = client.until(lambda f: "data" in f and f["arg"] == {"channel": channel, "instId": code})
    assert isinstance(frame, dict)
    return frame


def levels(frame: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    sides = [{level[0]: level[1] for level in frame["data"][0][side]} for side in ("bids", "asks")]
    return sides[0], sides[1]


def test_each_argument_is_acknowledged_and_then_served(stage: Start) -> None:
    client = stage("okx", markets=MARKETS, rate_hz=20).dial("okx")
    client.send(ask("books BTC-USDT", "trades BTC-USDT-SWAP", "tickers BTC-USD-260626"))
    acks = [client.until(lambda f: "event" in f) for _ in range(3)]
    assert [(f["event"], f["arg"]["channel"], f["arg"]["instId"]) for f in acks] == [
        ("subscribe", "books", "BTC-USDT"),
        ("subscribe", "trades", "BTC-USDT-SWAP"),
        ("subscribe", "tickers", "BTC-USD-260626"),
    ]
    (connection,) = {f["connId"] for f in acks}
    assert len(connection) == 8
    assert data(client)["action"] == "snapshot"


def test_every_change_names_the_number_before_it_and_leads_to_the_next_book(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=300)
    client = s.dial("okx")
    client.send(ask("books BTC-USDT"))
    snapshot = data(client)
    row = snapshot["data"][0]
    assert (row["prevSeqId"], row["checksum"]) == (-1, 0)
    assert row["asks"][0][2] == "0" and len(row["asks"][0]) == 4
    bids, asks = levels(snapshot)
    assert 300 < len(bids) <= 400
    last = row["seqId"]
    for _ in range(120):
        frame = data(client)
        row = frame["data"][0]
        assert (frame["action"], row["prevSeqId"]) == ("update", last)
        last = row["seqId"]
        for side, changed in zip((bids, asks), levels(frame), strict=True):
            for price, size in changed.items():
                side.pop(price, None) if size == "0" else side.update({price: size})
        assert max(map(Decimal, bids)) < min(map(Decimal, asks))
        assert len(bids) <= 400 and len(asks) <= 400
    lines = s.ledger(kind="message")
    assert [line["what"] for line in lines[:3]] == ["book", "change", "change"]
    assert lines[120]["sequence"] == last
    assert lines[120]["venue_us"] == int(row["ts"]) * 1000


def test_numbers_fall_now_and_then_and_the_same_seed_gives_the_same() -> None:
    def run(seed: int) -> list[int]:
        chain = Chain(f"{seed}/okx/BTC-USDT/seqId")
        numbers = [chain.last]
        for _ in range(1000):
            chain.move()
            assert chain.before == numbers[-1]
            numbers.append(chain.last)
        return numbers

    falls = sum(after < before for before, after in pairwise(run(1)))
    assert 2 <= falls < 40
    assert run(1) == run(1) != run(2)


def test_a_book_that_stands_still_says_so_with_an_empty_change(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=20, timing=Timing(still_s=0.2))
    s.simulator.fault("quiet")
    client = s.dial("okx")
    client.send(ask("books BTC-USDT", "tickers BTC-USDT"))
    number = data(client)["data"][0]["seqId"]
    for _ in range(2):
        row = data(client)["data"][0]
        assert (row["bids"], row["asks"], row["seqId"], row["prevSeqId"]) == ([], [], number, number)
    assert [line["what"] for line in s.ledger(kind="message", sequence=number)[:3]] == ["book", "change", "change"]


def test_what_is_subscribed_already_is_only_acknowledged(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    s.simulator.fault("quiet")
    client = s.dial("okx")
    client.send(ask("books BTC-USDT"))
    data(client)
    client.send(ask("books BTC-USDT"))
    assert client.frame()["event"] == "subscribe"
    assert client.silent()


def test_unsubscribing_and_subscribing_brings_a_snapshot_of_that_market_only(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=50)
    client = s.dial("okx")
    client.send(ask("books BTC-USDT", "books ETH-USDT"))
    data(client), data(client, code="ETH-USDT")
    client.send(ask("books BTC-USDT", op="unsubscribe"))
    client.send(ask("books BTC-USDT"))
    assert client.until(lambda f: f.get("event") == "unsubscribe")["arg"]["instId"] == "BTC-USDT"
    assert data(client)["action"] == "snapshot"
    assert all(data(client, code="ETH-USDT")["action"] == "update" for _ in range(5))
    assert len(s.ledger(kind="subscribe")) == 3


@pytest.mark.parametrize(
    ("sent", "code", "says"),
    [
        ("no json", "60012", "Invalid request: no json"),
        ('{"op":"jump","args":[{"channel":"books"}]}', "60012", "Invalid request"),
        ({"op": "subscribe", "args": []}, "60012", "Invalid request"),
        ({"op": "subscribe", "args": "books"}, "60012", "Invalid request"),
        (ask("books NOPE-USDT"), "60018", "Wrong URL or channel:books,instId:NOPE-USDT doesn't exist."),
        (ask("candle1m BTC-USDT"), "60018", "Wrong URL or channel:candle1m,instId:BTC-USDT doesn't exist."),
        (ask("surprise BTC-USDT"), "60018", "Wrong URL or channel:surprise,instId:BTC-USDT doesn't exist."),
        (ask("books btc-usdt"), "60018", "Wrong URL or channel:books,instId:btc-usdt doesn't exist."),
        (ask("books-l2-tbt BTC-USDT"), "60011", "Please log in"),
    ],
)
def test_refusals_leave_the_socket_open(stage: Start, sent: Any, code: str, says: str) -> None:
    client = stage("okx", markets=MARKETS).dial("okx")
    client.send(sent)
    error = client.frame()
    assert (error["event"], error["code"]) == ("error", code)
    assert error["msg"].startswith(says) and len(error["connId"]) == 8
    client.send(ask("books BTC-USDT"))
    assert data(client)["action"] == "snapshot"


def test_ping_is_plain_text(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, timing=Timing(idle_s=0.5))
    client = s.dial("okx")
    client.send("ping")
    assert client.raw()[1] == b"pong"
    assert client.closed() == 1006
    assert s.ends() == ["idle"]


def test_a_connection_bears_so_many_requests(stage: Start) -> None:
    assert Okx.timing.operations_per_h == 480
    client = stage("okx", markets=MARKETS, timing=Timing(operations_per_h=2)).dial("okx")
    client.send(ask("tickers BTC-USDT", "tickers ETH-USDT", "trades BTC-USDT"))  # one request, however many arguments
    client.send(ask("trades ETH-USDT"))
    client.send(ask("books ETH-USDT"))
    assert client.until(lambda f: f.get("event") == "error")["code"] == "60014"


def test_it_says_that_it_leaves(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    client = s.dial("okx")
    client.send(ask("books BTC-USDT"))
    data(client)
    s.simulator.fault("leave", "okx", after_s=0.2)
    notice = client.until(lambda f: f.get("event") == "notice")
    assert notice["code"] == "64008" and "closed" in notice["msg"]
    assert client.closed() == 1001


def test_trades_follow_from_the_book_and_stand_in_the_ledger(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=300)
    client = s.dial("okx")
    client.send(ask("trades BTC-USDT"))
    rows = [row for _ in range(12) for row in data(client, "trades")["data"]]
    assert all(int(after["tradeId"]) > int(before["tradeId"]) for before, after in pairwise(rows))
    lines = s.ledger(kind="message", what="trade")
    for row, line in zip(rows, lines[: len(rows)], strict=True):
        told = {"id": row["tradeId"], "side": row["side"], "price": row["px"], "volume": row["sz"]}
        assert line["rows"] == [{**told, "venue_us": int(row["ts"]) * 1000}]


def test_tickers_and_candles_stand_in_the_ledger_as_they_are_meant(stage: Start) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=200)
    client, business = s.dial("okx"), s.dial("okx", product="business")
    client.send(ask("tickers BTC-USDT", "tickers BTC-USD-SWAP"))
    business.send(ask("candle1m BTC-USDT", "candle1m BTC-USDT-SWAP"))
    for code, volume in (("BTC-USDT", "vol24h"), ("BTC-USD-SWAP", "volCcy24h")):
        row = data(client, "tickers", code)["data"][0]
        names = {"last": "last", "bid": "bidPx", "ask": "askPx", "volume": volume}
        told = {name: row[key] for name, key in names.items()}
        lines = s.ledger(kind="message", what="ticker")
        assert any(line["rows"] == [{**told, "venue_us": int(row["ts"]) * 1000}] for line in lines)
    for code, column in (("BTC-USDT", 5), ("BTC-USDT-SWAP", 6)):
        row = data(business, "candle1m", code)["data"][0]
        assert len(row) == 9 and row[8] in "01"
        told = dict(zip(("open", "high", "low", "close"), row[1:5], strict=True))
        wanted = {"interval_s": 60, "open_us": int(row[0]) * 1000, "volume": row[column], "closed": row[8] == "1"}
        lines = s.ledger(kind="message", what="candle")
        assert any(line["rows"] == [{**told, **wanted, "venue_us": None}] for line in lines)


def test_candles_are_only_at_their_own_address(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    business = s.dial("okx", product="business")
    business.send(ask("books BTC-USDT"))
    assert business.frame()["code"] == "60018"


def test_contracts_are_counted_whole(stage: Start) -> None:
    client = stage("okx", markets=MARKETS).dial("okx")
    client.send(ask(*(f"books {code}" for code in CODES[2:])))
    for code in CODES[2:]:
        bids, asks = levels(data(client, code=code))
        sizes = {*bids.values(), *asks.values()}
        assert all(size.isdigit() for size in sizes) and len(sizes) > 5


@pytest.mark.parametrize(
    ("query", "codes"),
    [
        ("instType=SPOT", CODES[:2]),
        ("instType=SWAP", CODES[2:4]),
        ("instType=FUTURES", CODES[4:5]),
        ("instType=OPTION&instFamily=BTC-USD", CODES[5:]),
        ("instType=OPTION&uly=ETH-USD", []),
        ("instType=SWAP&instId=BTC-USD-SWAP", ["BTC-USD-SWAP"]),
    ],
)
def test_instruments_are_listed_by_kind(stage: Start, query: str, codes: list[str]) -> None:
    s = stage("okx", markets=MARKETS)
    answer = requests.get(s.rest("okx", f"/api/v5/public/instruments?{query}"), timeout=5).json()
    assert (answer["code"], [row["instId"] for row in answer["data"]]) == ("0", codes)
    assert all(row["state"] == "live" for row in answer["data"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v5/public/instruments", 400, "50014"),
        ("/api/v5/public/instruments?instType=COIN", 400, "51000"),
        ("/api/v5/public/instruments?instType=OPTION", 400, "50015"),
        ("/api/v5/public/instruments?instType=SWAP&instId=NOPE-USD-SWAP", 200, "51001"),
        ("/api/v5/market/books?instId=NOPE-USDT", 200, "51001"),
        ("/api/v5/market/books?instId=BTC-USDT&sz=401", 400, "51000"),
        ("/api/v5/market/candles?instId=BTC-USDT&bar=2m", 400, "51000"),
    ],
)
def test_wrong_calls_are_refused_by_code(stage: Start, path: str, status: int, code: str) -> None:
    answer = requests.get(stage("okx", markets=MARKETS).rest("okx", path), timeout=5)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_polled_book_is_the_one_of_the_socket(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    s.simulator.fault("quiet")
    client = s.dial("okx")
    client.send(ask("books BTC-USDT"))
    snapshot = data(client)
    polled = requests.get(s.rest("okx", "/api/v5/market/books?instId=BTC-USDT&sz=400"), timeout=5).json()
    assert levels(polled) == levels(snapshot)
    assert polled["data"][0]["seqId"] == snapshot["data"][0]["seqId"]


def test_candles_are_answered_newest_first_and_closed_but_for_the_first(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    rows = requests.get(s.rest("okx", "/api/v5/market/candles?instId=BTC-USDT&limit=4"), timeout=5).json()["data"]
    assert [row[8] for row in rows] == ["0", "1", "1", "1"]
    assert all(int(newer[0]) - int(older[0]) == 60_000 for newer, older in pairwise(rows))
    (line,) = s.ledger(kind="message", what="candle")
    assert [row["close"] for row in line["rows"]] == [row[4] for row in rows]
    assert s.ledger(kind="subscribe", channel="candles")


def test_calls_above_the_limit_are_refused(stage: Start) -> None:
    s = stage("okx", markets=MARKETS)
    with requests.Session() as session:
        url = s.rest("okx", "/api/v5/public/instruments?instType=SPOT")
        answers = [session.get(url, timeout=5) for _ in range(40)]
    refused = [answer.json()["code"] for answer in answers if answer.status_code == 429]
    assert refused and set(refused) == {"50011"}


@pytest.mark.parametrize("kind", ["swap", "duplicate", "swallow"])
def test_faults_break_the_chain_at_one_change_of_one_channel(stage: Start, kind: str) -> None:
    s = stage("okx", markets=MARKETS, rate_hz=50)
    client = s.dial("okx")
    client.send(ask("tickers BTC-USDT", "books BTC-USDT"))
    rows = [data(client)["data"][0]]
    s.simulator.fault(kind, "okx", "BTC-USDT")
    rows += [data(client)["data"][0] for _ in range(30)]
    chain = [(row["prevSeqId"], row["seqId"]) for row in rows]
    breaks = [i for i in range(1, len(chain)) if chain[i][0] != chain[i - 1][1]]
    at = breaks[0]
    if kind == "duplicate":
        assert (breaks, chain[at]) == ([at], chain[at - 1])
    elif kind == "swap":  # what came first follows what came second
        assert breaks == [at, at + 1, at + 2]
        assert (chain[at + 1][0], chain[at][0]) == (chain[at - 1][1], chain[at + 1][1])
    else:
        (lost,) = s.ledger(kind="message", fate="withheld")
        assert (lost["what"], lost["sequence"], breaks) == ("change", chain[at][0], [at])


def test_a_recording_of_2022_is_played_as_it_is(stage: Start, tmp_path: Path) -> None:
    arg = {"channel": "books", "instId": "BTC-USD-220527"}
    book = {"asks": [["2", "1", "0", "1"]], "bids": [["1", "3", "0", "1"]], "ts": "1652459225464", "checksum": 5}
    change = {"asks": [["2", "0", "0", "0"]], "bids": [], "ts": "1652459225564", "checksum": 6}
    trade = {"instId": "BTC-USD-220527", "tradeId": "7", "px": "2", "sz": "1", "side": "buy", "ts": "1652459199958"}
    frames = [
        {"arg": arg, "action": "snapshot", "data": [book]},
        {"arg": {**arg, "channel": "trades"}, "data": [trade]},
        {"arg": arg, "action": "update", "data": [change]},
    ]
    written = [
        {"t": None, "dir": "in", "kind": "ws", "url": "wss://ws.okx.com:8443/ws/v5/public", "data": json.dumps(frame)}
        for frame in frames
    ]
    path = tmp_path / "recording.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    s = stage("okx", recording=path)
    client = s.dial("okx")
    client.send(ask("books BTC-USD-220527", "trades BTC-USD-220527"))
    played = [client.until(lambda f: "data" in f) for _ in range(3)]
    assert played == [decoded(json.dumps(frame)) for frame in frames]
    lines = s.ledger(kind="message")
    assert [line["what"] for line in lines] == ["book", "trade", "change"]
    assert lines[1]["rows"][0]["id"] == "7"
