"""Bybit's rules, by the protocol notes."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

import simulator.bybit as played
from simulator import Timing
from simulator.bybit import category_of, symbol_of
from simulator.venue import Bucket
from tests.simulator.conftest import Client, Stage, decoded, shape

Start = Callable[..., Stage]
MARKETS = ["BTC-USDT", "BTC-USDT:USDT", "BTC-USD:BTC", "BTC-USDC:USDC-261225"]
Levels = dict[Decimal, Decimal]


def dial(stage: Stage, category: str) -> Client:
    return stage.dial("bybit", product="" if category == "spot" else category)


def ask(*topics: Any, op: str = "subscribe", **more: Any) -> dict[str, Any]:
    return {"op": op, "args": list(topics), **more}


def books(frames: list[Any]) -> Iterator[tuple[int, Levels, Levels]]:
    """Rebuild a book from its messages."""
    bids: Levels = {}
    asks: Levels = {}
    for frame in frames:
        if frame["type"] == "snapshot":
            bids, asks = {}, {}
        for side, rows in ((bids, frame["data"]["b"]), (asks, frame["data"]["a"])):
            side.update((Decimal(price), Decimal(size)) for price, size in rows)
            for price in [price for price, size in side.items() if not size]:
                del side[price]
        yield frame["data"]["u"], dict(bids), dict(asks)


@pytest.mark.parametrize(
    ("market", "category", "symbol"),
    [
        ("BTC-USDT", "spot", "BTCUSDT"),
        ("BTC-USDT:USDT", "linear", "BTCUSDT"),
        ("BTC-USDC:USDC", "linear", "BTCPERP"),
        ("BTC-USDC:USDC-261225", "linear", "BTC-25DEC26"),
        ("ETH-USDT:USDT-270305", "linear", "ETHUSDT-5MAR27"),
        ("BTC-USD:BTC", "inverse", "BTCUSD"),
        ("BTC-USD:BTC-260626", "inverse", "BTCUSDM26"),
    ],
)
def test_markets_are_spelled_and_sorted_by_their_kind(market: str, category: str, symbol: str) -> None:
    assert (category_of(market), symbol_of(market)) == (category, symbol)


def test_answers_differ_between_spot_and_contracts(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=0.01)
    spot, linear = dial(s, "spot"), dial(s, "linear")
    for client in (spot, linear):
        client.send({"op": "ping"})
        client.send(ask("publicTrade.BTCUSDT", req_id=7))
    (pong, ack), (other_pong, other_ack) = spot.frames(2), linear.frames(2)
    assert list(pong) == ["success", "ret_msg", "conn_id", "op"]
    assert list(other_pong) == list(ack) == list(other_ack) == ["success", "ret_msg", "conn_id", "req_id", "op"]
    assert (pong["ret_msg"], pong["op"], other_pong["req_id"]) == ("pong", "ping", "")
    assert [(each["success"], each["ret_msg"], each["req_id"]) for each in (ack, other_ack)] == [
        (True, "subscribe", "7"), (True, "", "7"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("category", "sent", "says"),
    [
        ("spot", ask("orderbook.500.BTCUSDT"), "error:handler not found,topic:orderbook.500.BTCUSDT"),
        (
            "spot",
            ask("orderbook.200.BTCUSDT", "orderbook.200.NOPE"),
            "error:handler not found,topic:orderbook.200.NOPE",
        ),
        ("spot", ask("orderbook.200.BTCUSD"), "error:handler not found,topic:orderbook.200.BTCUSD"),
        ("inverse", ask("orderbook.200.BTCUSDT"), "error:handler not found,topic:orderbook.200.BTCUSDT"),
        ("linear", ask("kline.2.BTCUSDT"), "error:handler not found,topic:kline.2.BTCUSDT"),
        ("spot", ask(*["publicTrade.BTCUSDT"] * 11), "args size >10"),
        ("linear", ask("publicTrade.BTCUSDT", "publicTrade.BTCUSDT"), "error:already subscribed"),
        ("linear", ask("x" * 21_001), "args length is too long"),
        ("linear", ask(), "Params Error"),
        ("linear", {"op": "subscribe"}, "Params Error"),
        ("linear", ask(5), "Params Error"),
        ("linear", {"op": "dance"}, "unknown op"),
        ("linear", "no json", "Request format error"),
    ],
)
def test_refusals_leave_the_socket_open_and_everything_of_a_request_undone(
    stage: Start, category: str, sent: Any, says: str
) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=100)
    client = dial(s, category)
    client.send(sent)
    answer = client.frame()
    assert answer["success"] is False
    assert answer["ret_msg"].startswith(says)
    assert client.silent(0.1)
    client.send({"op": "ping"})
    assert client.frame()["ret_msg"] == "pong"
    assert s.ledger(kind="subscribe") == []


def test_a_symbol_is_another_market_on_each_socket(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=0.01)
    bests = []
    for category, symbol in (
        ("spot", "BTCUSDT"),
        ("linear", "BTCUSDT"),
        ("inverse", "BTCUSD"),
        ("linear", "BTC-25DEC26"),
    ):
        client = dial(s, category)
        client.send(ask(f"orderbook.50.{symbol}"))
        bests.append(client.frames(2)[1]["data"]["b"][0])
    assert len({tuple(best) for best in bests}) == 4
    assert [line["market"] for line in s.ledger(kind="subscribe")] == MARKETS


@pytest.mark.parametrize("depth", [50, 200])
def test_differences_are_numbered_and_lead_to_what_the_ledger_says(stage: Start, depth: int) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=400)
    client = dial(s, "linear")
    client.send(ask(f"orderbook.{depth}.BTCUSDT"))
    frames = client.frames(100)[1:]
    assert [frame["type"] for frame in frames] == ["snapshot"] + ["delta"] * 98
    assert all(b - a == 1 for a, b in pairwise(frame["data"]["u"] for frame in frames))
    assert all(a < b for a, b in pairwise(frame["data"]["seq"] for frame in frames))
    assert len(frames[0]["data"]["b"]) == len(frames[0]["data"]["a"]) == depth
    lines = s.ledger(kind="message")[: len(frames)]
    assert [(line["sequence"], line["venue_us"]) for line in lines] == [
        (frame["data"]["u"], frame["cts"] * 1000) for frame in frames
    ]
    for frame, line in zip(frames, lines, strict=True):
        assert (frame["data"]["b"], frame["data"]["a"]) == (line["bids"], line["asks"])
    for _, bids, asks in books(frames):
        assert len(bids) <= depth and len(asks) <= depth  # what falls out is removed by name
        assert max(bids) < min(asks)


def test_every_subscriber_hears_the_same_numbers_and_a_late_one_the_same_book(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=300)
    early = dial(s, "spot")
    early.send(ask("orderbook.50.BTCUSDT"))
    heard = early.frames(30)[1:]
    late = dial(s, "spot")
    late.send(ask("orderbook.50.BTCUSDT"))
    heard += early.frames(60)
    told = {update: (bids, asks) for update, bids, asks in books(heard)}
    others = [(update, (bids, asks)) for update, bids, asks in books(late.frames(20)[1:])]
    assert others == [(update, told[update]) for update, _ in others]


def test_the_touch_comes_complete_every_time(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=200)
    client = dial(s, "spot")
    client.send(ask("orderbook.1.BTCUSDT"))
    frames = client.frames(20)[1:]
    assert {frame["type"] for frame in frames} == {"snapshot"}
    assert {len(frame["data"]["b"]) for frame in frames} == {1}


def test_now_and_then_a_book_is_begun_anew_with_number_one(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(played, "MESSAGES_BEFORE_RESTART", 10)
    s = stage("bybit", markets=MARKETS, rate_hz=200)
    client = dial(s, "spot")
    client.send(ask("orderbook.200.BTCUSDT"))
    frames = client.frames(30)[1:]
    anew = [frame for frame in frames[1:] if frame["type"] == "snapshot"]
    assert [frame["data"]["u"] for frame in anew] == [1, 1]
    at = frames.index(anew[0])
    assert frames[at + 1]["data"]["u"] == 2
    before, after = list(books(frames))[at - 1 : at + 1]
    assert len(set(before[1]) & set(after[1])) > 100
    assert [line["what"] for line in s.ledger(kind="message")[: at + 1]].count("book") == 2


def test_leaving_a_book_and_subscribing_again_brings_it_anew(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=100)
    client = dial(s, "spot")
    client.send(ask("orderbook.200.BTCUSDT"))
    client.frames(10)
    client.send(ask("orderbook.200.BTCUSDT", op="unsubscribe"))
    client.send(ask("orderbook.200.BTCUSDT"))
    client.until(lambda frame: frame.get("op") == "unsubscribe")
    ack, snapshot = client.frames(2)
    assert (ack["op"], ack["success"], snapshot["type"]) == ("subscribe", True, "snapshot")
    assert len(s.ledger(kind="subscribe")) == 2


def test_trades_tickers_and_candles_say_what_the_ledger_says(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=600)
    client = dial(s, "linear")
    client.send(ask("publicTrade.BTCUSDT", "tickers.BTCUSDT", "kline.1.BTCUSDT"))
    frames = client.frames(200)[1:]
    trades = [frame for frame in frames if frame["topic"] == "publicTrade.BTCUSDT"]
    lines = s.ledger(kind="message", what="trade")[: len(trades)]
    assert trades
    for frame, line in zip(trades, lines, strict=True):
        assert [
            {"id": t["i"], "side": t["S"].lower(), "price": t["p"], "volume": t["v"], "venue_us": t["T"] * 1000}
            for t in frame["data"]
        ] == line["rows"]
    tickers = [frame for frame in frames if frame["topic"] == "tickers.BTCUSDT"]
    assert [frame["type"] for frame in tickers] == ["snapshot"] + ["delta"] * (len(tickers) - 1)
    now: dict[str, str] = {}
    for frame, line in zip(tickers, s.ledger(kind="message", what="ticker"), strict=False):
        changed = {key: value for key, value in frame["data"].items() if key != "symbol"}
        assert changed and not any(now.get(key) == value for key, value in changed.items())
        now |= changed
        (row,) = line["rows"]
        assert (row["last"], row["bid"], row["ask"]) == (now["lastPrice"], now["bid1Price"], now["ask1Price"])
        assert (row["volume"], row["venue_us"]) == (now["volume24h"], frame["ts"] * 1000)
    candles = [frame["data"][0] for frame in frames if frame["topic"] == "kline.1.BTCUSDT"]
    for candle, line in zip(candles, s.ledger(kind="message", what="candle"), strict=False):
        (row,) = line["rows"]
        assert [row[key] for key in ("open", "high", "low", "close", "volume")] == [
            candle[key] for key in ("open", "high", "low", "close", "volume")
        ]
        assert (row["open_us"], row["closed"]) == (candle["start"] * 1000, candle["confirm"])


def test_inverse_contracts_count_in_dollars(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=200)
    client = dial(s, "inverse")
    client.send(ask("orderbook.200.BTCUSD", "tickers.BTCUSD"))
    _, book, ticker = client.frames(3)
    assert all(Decimal(size) == int(Decimal(size)) for _, size in book["data"]["b"])
    (row,) = s.ledger(kind="message", what="ticker")[0]["rows"]
    assert row["volume"] == ticker["data"]["turnover24h"] != ticker["data"]["volume24h"]


def test_frames_have_the_keys_order_and_types_of_recorded_ones(stage: Start, wire: Path) -> None:
    file = wire / "bybit" / "v5_current_ccxt_202608.ndjson"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    recorded = {
        (line["url"].rpartition("/")[2], decoded(line["data"])["topic"]): decoded(line["data"])
        for line in reversed(lines)
        if '"topic"' in line["data"]
    }
    s = stage("bybit", markets=MARKETS, rate_hz=50)
    spot, linear = dial(s, "spot"), dial(s, "linear")
    spot.send(ask("orderbook.1.BTCUSDT", "tickers.BTCUSDT"))
    linear.send(ask("tickers.BTCUSDT"))
    (_, book, ticker), (_, contract) = spot.frames(3), linear.frames(2)
    assert json.dumps(shape(book)) == json.dumps(shape(recorded["spot", "orderbook.1.BTCUSDT"]))
    for found, name in ((ticker, "spot"), (contract, "linear")):
        sample = recorded[name, "tickers.BTCUSDT"]
        assert list(found) == list(sample)
        assert found["data"].keys() <= sample["data"].keys()
    archive = (wire / "bybit" / "v5_archive_orderbook500_xrpusdt_20241201.ndjson").read_text("utf-8").splitlines()
    linear.send(ask("orderbook.200.BTCUSDT"))
    snapshot = linear.until(lambda frame: frame.get("topic") == "orderbook.200.BTCUSDT")
    assert json.dumps(shape(snapshot)) == json.dumps(shape(decoded(json.loads(archive[0])["data"])))


def test_a_recording_is_played_at_the_depth_that_was_asked_for(stage: Start, wire: Path) -> None:
    file = wire / "bybit" / "v5_archive_orderbook500_xrpusdt_20241201.ndjson"
    s = stage("bybit", recording=file, speed=None)
    client = dial(s, "linear")
    client.send(ask("orderbook.200.XRPUSDT"))
    frames = client.frames(26)[1:]
    lines = [json.loads(json.loads(line)["data"]) for line in file.read_text("utf-8").splitlines()]
    assert {frame["topic"] for frame in frames} == {"orderbook.200.XRPUSDT"}
    assert [frame["data"] for frame in frames] == [line["data"] for line in lines]
    assert [line["sequence"] for line in s.ledger(kind="message")] == [line["data"]["u"] for line in lines]


def test_a_silent_socket_is_cut_and_one_that_pings_is_not(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, timing=Timing(idle_s=0.3))
    silent, pinging = dial(s, "spot"), dial(s, "spot")
    for _ in range(6):
        pinging.send({"op": "ping"})
        assert pinging.frame()["ret_msg"] == "pong"
        assert pinging.silent(0.08)
    assert silent.closed() == 1006
    assert s.ends() == ["idle"]


def test_rest_has_the_same_book_and_lists_each_category(stage: Start) -> None:
    s = stage("bybit", markets=MARKETS, rate_hz=0.01)
    client = dial(s, "linear")
    client.send(ask("orderbook.200.BTCUSDT"))
    snapshot = client.frames(2)[1]["data"]
    url = s.rest("bybit", "/v5/market/orderbook?category=linear&symbol=BTCUSDT&limit=200")
    body = requests.get(url, timeout=5).json()
    assert body["retCode"] == 0
    assert (body["result"]["b"], body["result"]["a"]) == (snapshot["b"], snapshot["a"])
    rows = {}
    for category in ("spot", "linear", "inverse"):
        answer = requests.get(s.rest("bybit", f"/v5/market/instruments-info?category={category}"), timeout=5).json()
        rows[category] = [row["symbol"] for row in answer["result"]["list"]]
        assert ("nextPageCursor" in answer["result"]) == (category != "spot")
    assert rows == {"spot": ["BTCUSDT"], "linear": ["BTCUSDT", "BTC-25DEC26"], "inverse": ["BTCUSD"]}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v5/market/orderbook?category=linear&symbol=NOPE", 10001),
        ("/v5/market/orderbook?symbol=BTCUSDT", 10001),
        ("/v5/market/instruments-info?category=margin", 10001),
    ],
)
def test_errors_over_rest_have_status_200(stage: Start, path: str, code: int) -> None:
    answer = requests.get(stage("bybit", markets=MARKETS).rest("bybit", path), timeout=5)
    assert (answer.status_code, answer.json()["retCode"]) == (200, code)


def test_connections_and_calls_have_the_limits_of_the_venue(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, float]] = []

    def small(capacity: float, per_s: float) -> Bucket:
        made.append((capacity, per_s))
        return Bucket(1, 0)

    monkeypatch.setattr("simulator.bybit.Bucket", small)
    s = stage("bybit", markets=MARKETS)
    url = s.rest("bybit", "/v5/market/time")
    assert [requests.get(url, timeout=5).status_code for _ in range(2)] == [200, 403]
    assert made == [(500, 500 / 300), (600, 120)]
