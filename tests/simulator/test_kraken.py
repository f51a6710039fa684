"""Kraken's rules, by the protocol notes."""

import json
import zlib
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import Timing
from simulator.kraken import checksum, fixed, microseconds, stamp
from simulator.venue import Bucket
from tests.simulator.conftest import Client, Stage, decoded, shape

Start = Callable[..., Stage]
MARKETS = ["BTC-USD", "DOGE-USD"]
BTC = "v2_book10_btcusd_20260816.ndjson"
MINA = "v2_book25_minagbp_resync_20260818.ndjson"


def ask(channel: str, *symbols: Any, method: str = "subscribe", req_id: Any = None, **more: Any) -> dict[str, Any]:
    request = {"method": method, "params": {"channel": channel, "symbol": list(symbols), **more}}
    return request if req_id is None else {**request, "req_id": req_id}


def literally(data: bytes) -> Any:
    """Decode a frame with its numbers as they are spelled."""
    return json.loads(data, parse_float=str, parse_int=str)


class Kept:
    """A client's book, by the recipe of the notes."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.sides: dict[str, dict[Decimal, tuple[str, str]]] = {}

    def take(self, frame: Any) -> bool:
        """Take a message, cut to depth; tell whether the checksum holds."""
        (row,) = frame["data"]
        if frame["type"] == "snapshot":
            self.sides = {"asks": {}, "bids": {}}
        for name, levels in self.sides.items():
            for level in row[name]:
                levels[Decimal(level["price"])] = (level["price"], level["qty"])
            kept = sorted((each for each in levels.items() if Decimal(each[1][1])), reverse=name == "bids")
            self.sides[name] = dict(kept[: self.depth])
        text = ""
        for name in ("asks", "bids"):
            for tokens in list(self.sides[name].values())[:10]:
                text += "".join(token.replace(".", "").lstrip("0") for token in tokens)
        return zlib.crc32(text.encode()) == int(row["checksum"])

    def levels(self, name: str) -> dict[Decimal, Decimal]:
        return {price: Decimal(tokens[1]) for price, tokens in self.sides[name].items()}


def heard(client: Client, channel: str, count: int) -> list[Any]:
    """Read so many frames of a channel, leaving out heartbeats, acknowledgements and the state of the exchange."""
    found: list[Any] = []
    while len(found) < count:
        frame = literally(client.raw()[1])
        if frame.get("channel") == channel:
            found.append(frame)
    return found


def test_numbers_have_eight_places_and_times_six() -> None:
    assert [fixed(token) for token in ("62802.5", "1", "0.000051")] == ["62802.50000000", "1.00000000", "0.00005100"]
    assert stamp(1786923424316445) == "2026-08-16T23:37:04.316445Z"
    assert microseconds("2026-08-16T23:37:04.316445Z") == 1786923424316445


def test_the_recorded_snapshots_have_the_checksum_that_is_made_here(wire: Path) -> None:
    found = 0
    for file in (BTC, MINA):
        for line in (wire / "kraken" / file).read_text("utf-8").splitlines():
            frame = literally(json.loads(line)["data"].encode())
            if frame.get("channel") == "book" and frame["type"] == "snapshot":
                (row,) = frame["data"]
                sides = ([(level["price"], level["qty"]) for level in row[side]] for side in ("bids", "asks"))
                assert checksum(*sides) == int(row["checksum"])
                found += 1
    assert found == 3


def test_the_state_comes_first_and_each_symbol_is_acknowledged_alone(stage: Start) -> None:
    client = stage("kraken", markets=MARKETS, rate_hz=0.01).dial("kraken")
    state = client.frame()
    assert (state["channel"], state["data"][0]["system"]) == ("status", "online")
    assert state["data"][0]["connection_id"] > 2**53
    client.send(ask("book", "BTC/USD", "XBT/USD", "DOGE/USD", req_id=5, depth=25))
    one, refused, other = client.frames(3)
    assert list(one) == ["method", "result", "req_id", "success", "time_in", "time_out"]
    assert one["result"] == {"channel": "book", "depth": 25, "snapshot": True, "symbol": "BTC/USD"}
    assert (other["result"]["symbol"], other["req_id"]) == ("DOGE/USD", 5)
    assert refused["error"] == "Currency pair not supported XBT/USD"
    assert (refused["success"], refused["symbol"]) == (False, "XBT/USD")
    assert {frame["data"][0]["symbol"] for frame in client.frames(2)} == {"BTC/USD", "DOGE/USD"}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (ask("book", "BTC/USD", depth=27), "Subscription depth not supported"),
        (ask("book", "BTC/USD", depth=200), "Subscription depth not supported"),
        (ask("ohlc", "BTC/USD", interval=2), "Subscription ohlc interval not supported"),
        (ask("ticker", "BTC/USD", event_trigger="often"), "Event trigger not supported"),
        (ask("level9", "BTC/USD"), "Unsupported channel"),
        (ask("book"), "Symbol(s) field must be an array"),
        (
            {"method": "subscribe", "params": {"channel": "book", "symbol": "BTC/USD"}},
            "Symbol(s) field must be an array",
        ),
        (ask("book", "BTC/USD", req_id="five"), "Malformed request"),
        (ask("book", "btc/usd"), "Currency pair not supported btc/usd"),
        (ask("book", "BTC/USD", method="unsubscribe"), "Subscription Not Found"),
        (ask("book", "BTC/USD", method="dance"), "Unsupported method"),
        ("no json", "Malformed request"),
    ],
)
def test_refusals_leave_the_socket_open(stage: Start, sent: Any, says: str) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=100)
    client = s.dial("kraken")
    client.frame()
    client.send(sent)
    answer = client.frame()
    assert (answer["success"], answer["error"]) == (False, says)
    client.send({"method": "ping", "req_id": 3})
    pong = client.frame()
    assert (pong["method"], pong["req_id"]) == ("pong", 3)
    assert s.ledger(kind="subscribe") == []


def test_a_channel_of_a_symbol_can_be_asked_for_once(stage: Start) -> None:
    client = stage("kraken", markets=MARKETS, rate_hz=0.01).dial("kraken")
    client.send(ask("book", "BTC/USD", depth=10))
    client.send(ask("book", "BTC/USD", depth=25))
    assert client.until(lambda frame: frame.get("success") is False)["error"] == "Already subscribed"


@pytest.mark.parametrize("depth", [10, 25, 100])
def test_every_checksum_holds_and_the_book_is_the_one_of_the_ledger(stage: Start, depth: int) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=600)
    client = s.dial("kraken")
    client.send(ask("book", "BTC/USD", depth=depth))
    kept = Kept(depth)
    bids: dict[Decimal, Decimal] = {}
    asks: dict[Decimal, Decimal] = {}
    fell_out = 0
    frames = heard(client, "book", 150)
    lines = s.ledger(kind="message")[: len(frames)]
    for frame, line in zip(frames, lines, strict=True):
        assert kept.take(frame)
        if line["what"] == "book":
            bids, asks = {}, {}
        for side, name in ((bids, "bids"), (asks, "asks")):
            side.update((Decimal(price), Decimal(size)) for price, size in line[name])
            for price in [price for price, size in side.items() if not size]:
                del side[price]
            fell_out += len(line[name]) - len(frame["data"][0][name])
        assert (kept.levels("bids"), kept.levels("asks")) == (bids, asks)
        assert line["venue_us"] == microseconds(frame["data"][0]["timestamp"])
    assert fell_out > 5  # in the ledger, and not in the frames
    assert len(kept.levels("bids")) <= depth


def test_levels_that_come_back_are_told_again_and_a_book_that_is_not_cut_breaks(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=600)
    client = s.dial("kraken")
    client.send(ask("book", "BTC/USD", depth=10))
    kept = Kept(10_000)
    assert not all(kept.take(frame) for frame in heard(client, "book", 150))


def test_a_loss_breaks_the_checksum_of_the_next_message_and_a_wrong_one_is_wrong_alone(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=60)
    client = s.dial("kraken")
    client.send(ask("book", "BTC/USD", depth=10))
    kept = Kept(10)
    assert all(kept.take(frame) for frame in heard(client, "book", 3))
    s.simulator.fault("corrupt_total", "kraken")
    sums = [kept.take(frame) for frame in heard(client, "book", 10)]
    assert sums.count(False) == 1
    s.simulator.fault("swallow", "kraken")
    assert not all(kept.take(frame) for frame in heard(client, "book", 10))


def test_leaving_a_book_and_subscribing_again_brings_it_anew(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=100)
    client = s.dial("kraken")
    client.send(ask("book", "BTC/USD", depth=10))
    heard(client, "book", 10)
    client.send(ask("book", "BTC/USD", depth=10, method="unsubscribe"))
    client.send(ask("book", "BTC/USD", depth=10))
    left = client.until(lambda frame: frame.get("method") == "unsubscribe")
    assert left["result"] == {"channel": "book", "depth": 10, "symbol": "BTC/USD"}
    ack, snapshot = client.frames(2)
    assert (ack["success"], snapshot["type"]) == (True, "snapshot")
    assert len(s.ledger(kind="subscribe")) == 2


def test_it_beats_while_anything_is_subscribed_and_ends_what_is_not(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=0.01, timing=Timing(status_s=0.05, idle_s=0.4))
    client, other = s.dial("kraken"), s.dial("kraken")
    client.send(ask("trade", "BTC/USD", snapshot=False))
    client.until(lambda frame: frame.get("success"))
    assert [client.frame() for _ in range(12)] == [{"channel": "heartbeat"}] * 12
    assert other.closed() == 1000
    assert s.ends() == ["nothing subscribed"]


def test_trades_tickers_and_candles_say_what_the_ledger_says(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=600)
    client = s.dial("kraken")
    for channel, more in (("trade", {}), ("ticker", {"event_trigger": "bbo"}), ("ohlc", {"interval": 1})):
        client.send(ask(channel, "BTC/USD", snapshot=True, **more))
    frames: dict[str, list[Any]] = {"trade": [], "ticker": [], "ohlc": []}
    while min(map(len, frames.values())) < 5:
        frame = literally(client.raw()[1])
        if frame.get("channel") in frames:
            frames[frame["channel"]].append(frame)
    assert all(each[0]["type"] == "snapshot" and each[1]["type"] == "update" for each in frames.values())
    assert len(frames["trade"][0]["data"]) == 50
    ids = [int(row["trade_id"]) for frame in frames["trade"] for row in frame["data"]]
    assert all(b == a + 1 for a, b in pairwise(ids))
    for frame, line in zip(frames["trade"], s.ledger(kind="message", what="trade"), strict=False):
        assert [
            (row["trade_id"], row["side"], Decimal(row["price"]), Decimal(row["qty"]), microseconds(row["timestamp"]))
            for row in frame["data"]
        ] == [
            (row["id"], row["side"], Decimal(row["price"]), Decimal(row["volume"]), row["venue_us"])
            for row in line["rows"]
        ]
    for frame, line in zip(frames["ticker"], s.ledger(kind="message", what="ticker"), strict=False):
        ((row,), (noted,)) = frame["data"], line["rows"]
        for name in ("last", "bid", "ask", "volume"):
            assert Decimal(row[name]) == Decimal(noted[name])
        assert microseconds(row["timestamp"]) == noted["venue_us"]
    for frame, line in zip(frames["ohlc"], s.ledger(kind="message", what="candle"), strict=False):
        begun = [microseconds(row["interval_begin"]) for row in frame["data"]]
        assert begun == [row["open_us"] for row in line["rows"]]
        assert not any(row["closed"] for row in line["rows"])
        assert microseconds(frame["timestamp"]) == line["rows"][0]["venue_us"]


def test_a_ticker_of_trades_waits_for_one(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=600)
    clients = []
    for trigger in ("trades", "bbo"):
        client = s.dial("kraken")
        client.send(ask("ticker", "BTC/USD", event_trigger=trigger))
        clients.append([frame["data"][0]["volume"] for frame in heard(client, "ticker", 30)])
    assert len(set(clients[0])) == 30
    assert len(set(clients[1])) < 30


def test_frames_have_the_keys_order_and_types_of_recorded_ones(stage: Start, wire: Path) -> None:
    lines = [json.loads(line) for line in (wire / "kraken" / BTC).read_text("utf-8").splitlines()]
    recorded = [decoded(line["data"]) for line in lines if line["dir"] == "in"]
    client = stage("kraken", markets=MARKETS, rate_hz=100).dial("kraken")
    client.send(json.loads(lines[0]["data"]))
    found = client.frames(3)
    for frame, sample in zip(found, recorded[:3], strict=True):
        assert json.dumps(shape(frame)) == json.dumps(shape(sample))
    asks = client.until(lambda f: f.get("channel") == "book" and f["data"][0]["asks"] and not f["data"][0]["bids"])
    sample = next(f for f in recorded[3:] if f.get("channel") == "book" and f["data"][0]["asks"])
    assert json.dumps(shape(asks)) == json.dumps(shape(sample))


@pytest.mark.parametrize(("file", "market", "depth"), [(BTC, "BTC/USD", 10), (MINA, "MINA/GBP", 25)])
def test_a_recording_is_played_byte_for_byte_and_the_ledger_has_what_it_means(
    stage: Start, wire: Path, file: str, market: str, depth: int
) -> None:
    rows = [json.loads(line) for line in (wire / "kraken" / file).read_text("utf-8").splitlines()]
    sent = [row["data"] for row in rows if row["dir"] == "in" and '"checksum"' in row["data"]]
    s = stage("kraken", recording=wire / "kraken" / file, speed=None)
    client = s.dial("kraken")
    client.send(ask("book", market, depth=depth))
    client.frames(2)
    kept = Kept(depth)
    bids: dict[Decimal, Decimal] = {}
    asks: dict[Decimal, Decimal] = {}
    for text in sent:
        data = client.raw()[1]
        assert data.decode() == text
        assert kept.take(literally(data))
    for line in s.ledger(kind="message"):
        if line["what"] == "book":
            bids, asks = {}, {}
        for side, name in ((bids, "bids"), (asks, "asks")):
            side.update((Decimal(price), Decimal(size)) for price, size in line[name])
    assert {price: size for price, size in bids.items() if size} == kept.levels("bids")
    assert {price: size for price, size in asks.items() if size} == kept.levels("asks")


def test_rest_has_the_same_book_under_the_old_codes(stage: Start) -> None:
    s = stage("kraken", markets=MARKETS, rate_hz=0.01)
    client = s.dial("kraken")
    client.send(ask("book", "DOGE/USD", depth=10))
    (snapshot,) = heard(client, "book", 1)
    body = requests.get(s.rest("kraken", "/0/public/Depth?pair=XDGUSD&count=10"), timeout=5).json()
    (book,) = body["result"].values()
    for side in ("bids", "asks"):
        levels = [[level["price"], level["qty"]] for level in snapshot["data"][0][side]]
        assert [row[:2] for row in book[side]] == levels
    rows = requests.get(s.rest("kraken", "/0/public/AssetPairs"), timeout=5).json()["result"]
    assert [row["wsname"] for row in rows.values()] == ["XBT/USD", "XDG/USD"]
    refused = requests.get(s.rest("kraken", "/0/public/Depth?pair=NOPE"), timeout=5)
    assert (refused.status_code, refused.json()) == (200, {"error": ["EQuery:Unknown asset pair"]})


def test_calls_above_the_limit_are_refused_with_status_200(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[float, float]] = []

    def small(capacity: float, per_s: float) -> Bucket:
        made.append((capacity, per_s))
        return Bucket(1, 0)

    monkeypatch.setattr("simulator.kraken.Bucket", small)
    s = stage("kraken", markets=MARKETS)
    url = s.rest("kraken", "/0/public/Depth?pair=XBTUSD")
    answers = [requests.get(url, timeout=5) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json() == {"error": ["EAPI:Rate limit exceeded"]}
    assert made == [(150, 0.25), (15, 1)]
