"""Coinbase's rules, by the protocol notes."""

import json
import time
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import ABNF

from simulator import Simulator, Timing
from simulator.coinbase import microseconds, spelt
from tests.simulator.conftest import Stage, shape

Start = Callable[..., Stage]
Sides = dict[str, dict[Decimal, Decimal]]


def ask(channel: str, *products: str, action: str = "subscribe") -> dict[str, Any]:
    return {"type": action, "channel": channel, **({"product_ids": list(products)} if products else {})}


def started(stage: Start, **options: Any) -> Stage:
    return stage("coinbase", **{"markets": ["BTC-USD", "ETH-USD"], "rate_hz": 200, **options})


def levels(event: dict[str, Any]) -> list[tuple[str, Decimal, Decimal]]:
    return [(u["side"], Decimal(u["price_level"]), Decimal(u["new_quantity"])) for u in event["updates"]]


def put(book: Sides, event: dict[str, Any]) -> None:
    for side, price, size in levels(event):
        if size:
            book[side][price] = size
        else:
            book[side].pop(price, None)


def documented(wire: Path, name: str, channel: str) -> Any:
    lines = (wire / "coinbase" / name).read_text().splitlines()
    frames = [json.loads(json.loads(line)["data"]) for line in lines]
    return next(frame for frame in frames if frame.get("channel") == channel and "events" in frame)


def test_times_are_spelt_and_read_exactly() -> None:
    assert spelt(1_788_742_678_894_355_123) == "2026-09-07T00:57:58.894355123Z"
    assert spelt(1_788_742_678_894_355_123, 6) == "2026-09-07T00:57:58.894355Z"
    for text in ("2026-09-07T00:57:58.894355123Z", "2026-09-07T00:57:58.894355Z"):
        assert microseconds(text) == 1_788_742_678_894_355
    assert microseconds("2026-09-07T00:57:58Z") == 1_788_742_678_000_000
    assert microseconds("2026-09-07T00:57:58.5Z") == 1_788_742_678_500_000


def test_the_book_comes_first_mixed_and_then_the_acknowledgement(stage: Start, wire: Path) -> None:
    client = started(stage, rate_hz=0.01).dial("coinbase")
    client.send(ask("level2", "BTC-USD"))
    opcode, data = client.raw()
    snapshot = json.loads(data)
    assert opcode == ABNF.OPCODE_TEXT
    assert shape(snapshot) == shape(documented(wire, "advanced_level2_frames_20260907.ndjson", "l2_data"))
    (event,) = snapshot["events"]
    assert (snapshot["sequence_num"], event["type"], event["product_id"]) == (0, "snapshot", "BTC-USD")
    sides = [side for side, _, _ in levels(event)]
    assert set(sides) == {"bid", "offer"} and sides != sorted(sides)
    assert len(sides) > 500
    assert client.frame()["events"] == [{"subscriptions": {"level2": ["BTC-USD"]}}]


def test_every_frame_of_a_connection_has_the_next_number(stage: Start) -> None:
    s = started(stage, timing=Timing(status_s=0.02))
    client, other = s.dial("coinbase"), s.dial("coinbase")
    for c in (client, other):
        c.send(ask("heartbeats"))
        for channel in ("level2", "market_trades", "ticker"):
            c.send(ask(channel, "BTC-USD", "ETH-USD"))
    for c in (client, other):
        frames = c.frames(200)
        assert [frame["sequence_num"] for frame in frames] == list(range(200))
        assert {"heartbeats", "l2_data", "market_trades", "ticker", "subscriptions"} == {f["channel"] for f in frames}
        counters = [f["events"][0]["heartbeat_counter"] for f in frames if f["channel"] == "heartbeats"]
        assert counters == list(range(counters[0], counters[0] + len(counters)))
        held = [f for f in frames if f["channel"] == "subscriptions"][-1]["events"][0]["subscriptions"]
        both = ["BTC-USD", "ETH-USD"]
        assert held == {"heartbeats": ["heartbeats"], "level2": both, "market_trades": both, "ticker": both}


def test_changes_lead_to_the_book_that_a_later_subscription_gets(stage: Start) -> None:
    s = started(stage, rate_hz=None, speed=None)
    client = s.dial("coinbase")
    client.send(ask("level2", "BTC-USD"))
    book: Sides = {"bid": {}, "offer": {}}
    several = 0
    for frame in client.frames(100):
        if frame["channel"] == "l2_data":
            several += len(frame["events"]) > 1
            for event in frame["events"]:
                put(book, event)
    assert several
    s.simulator.fault("quiet", "coinbase")
    client.send(ask("level2", "BTC-USD", action="unsubscribe"))
    for _ in range(10_000):
        frame = client.frame()
        if frame["channel"] == "subscriptions":
            break
        for event in frame["events"]:
            put(book, event)
    assert frame["events"] == [{"subscriptions": {}}]
    client.send(ask("level2", "BTC-USD"))
    fresh: Sides = {"bid": {}, "offer": {}}
    put(fresh, client.until(lambda f: f["channel"] == "l2_data")["events"][0])
    assert book == fresh
    assert len(s.ledger(kind="subscribe")) == 2


def test_the_ledger_has_every_message_as_it_was_sent(stage: Start) -> None:
    s = started(stage)
    client = s.dial("coinbase")
    for channel in ("level2", "market_trades", "ticker"):
        client.send(ask(channel, "BTC-USD"))
    frames = client.frames(150)
    for channel, ours in (("l2_data", "orderbook"), ("market_trades", "trades"), ("ticker", "ticker")):
        mine = [frame for frame in frames if frame["channel"] == channel]
        (subscription,) = s.ledger(kind="subscribe", channel=ours)
        lines = s.ledger(kind="message", subscription=subscription["subscription"])
        assert len(mine) > 2
        for frame, line in zip(mine, lines, strict=False):
            assert line["sequence"] == frame["sequence_num"]
            check(frame, line)


def check(frame: dict[str, Any], line: dict[str, Any]) -> None:
    at_us = microseconds(frame["timestamp"])
    if frame["channel"] == "l2_data":
        told = [level for event in frame["events"] for level in levels(event)]
        noted = [("bid", *map(Decimal, row)) for row in line["bids"]]
        noted += [("offer", *map(Decimal, row)) for row in line["asks"]]
        assert sorted(told) == sorted(noted)
        update = frame["events"][0]["type"] == "update"
        newest = microseconds(frame["events"][-1]["updates"][-1]["event_time"])
        assert (line["what"], line["venue_us"]) == (("change", newest) if update else ("book", at_us))
    elif frame["channel"] == "ticker":
        (row,) = frame["events"][0]["tickers"]
        assert line["rows"] == [
            {"last": row["price"], "bid": row["best_bid"], "ask": row["best_ask"], "volume": row["volume_24_h"],
             "venue_us": at_us}
        ]  # fmt: skip
    else:
        taker = {"BUY": "sell", "SELL": "buy"}
        assert line["rows"] == [
            {"id": t["trade_id"], "side": taker[t["side"]], "price": t["price"], "volume": t["size"],
             "venue_us": microseconds(t["time"])}
            for t in reversed(frame["events"][0]["trades"])
        ]  # fmt: skip


def test_trades_and_tickers_look_like_the_recorded_ones(stage: Start, wire: Path) -> None:
    client = started(stage).dial("coinbase")
    for channel in ("market_trades", "ticker"):
        client.send(ask(channel, "BTC-USD"))
    frames = client.frames(20)
    for channel in ("market_trades", "ticker"):
        frame = next(frame for frame in frames if frame["channel"] == channel)
        assert shape(frame) == shape(documented(wire, "advanced_ccxt_20260812.ndjson", channel))
        assert frame["events"][0]["type"] == "snapshot"


def test_a_usdc_product_is_answered_under_the_other_name(stage: Start) -> None:
    s = stage("coinbase", markets=["BTC-USDC", "USDT-USDC"], rate_hz=100)
    client = s.dial("coinbase")
    client.send(ask("level2", "BTC-USDC", "USDT-USDC"))
    frames = client.frames(10)
    names = {event["product_id"] for f in frames if f["channel"] == "l2_data" for event in f["events"]}
    assert names == {"BTC-USD", "USDT-USDC"}
    assert {line["market"] for line in s.ledger(kind="subscribe")} == {"BTC-USDC", "USDT-USDC"}
    with pytest.raises(ValueError, match="one book"):
        Simulator(["coinbase"], markets=["BTC-USD", "BTC-USDC"]).start()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (ask("level3", "BTC-USD"), "authentication failure"),
        (ask("user", "BTC-USD"), "authentication failure"),
        ({"type": "subscribe", "channels": ["level2"], "product_ids": ["BTC-USD"]}, "authentication failure"),
        ({"type": "listen", "channel": "level2"}, "malformed message"),
        ("no json", "malformed message"),
    ],
)
def test_errors_have_no_number_and_leave_the_socket_open(stage: Start, sent: Any, says: str) -> None:
    client = started(stage, rate_hz=0.01).dial("coinbase")
    client.send(sent)
    assert client.frame() == {"type": "error", "message": says}
    client.send(ask("ticker", "NOPE-USD"))
    assert client.frame()["sequence_num"] == 0
    client.send(ask("ticker", "BTC-USD"))
    assert client.frame()["channel"] == "ticker"


def test_a_socket_without_a_request_is_closed(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.coinbase.FIRST_REQUEST_S", 0.2)
    s = started(stage)
    kept, idle = s.dial("coinbase"), s.dial("coinbase")
    kept.send(ask("heartbeats"))
    assert idle.closed() == 1008
    assert kept.until(lambda f: f["channel"] == "heartbeats")


def test_a_channel_without_news_and_heartbeats_is_cut(stage: Start) -> None:
    s = started(stage, rate_hz=0.01, timing=Timing(idle_s=0.3, status_s=0.05))
    kept, quiet = s.dial("coinbase"), s.dial("coinbase")
    kept.send(ask("heartbeats"))
    for client in (kept, quiet):
        client.send(ask("level2", "BTC-USD"))
    assert quiet.closed() == 1006
    before = time.monotonic()
    kept.until(lambda f: f["channel"] == "heartbeats" and time.monotonic() > before + 0.3)
    assert s.ends() == ["idle"]


def test_requests_are_limited(stage: Start) -> None:
    client = started(stage, rate_hz=0.01).dial("coinbase")
    for _ in range(12):
        client.send(ask("status"))
    assert client.until(lambda f: "message" in f) == {"type": "error", "message": "rate limit exceeded"}


@pytest.mark.parametrize(("fault", "steps"), [("swallow", {1, 2}), ("duplicate", {0, 1}), ("swap", {2, -1, 1})])
def test_faults_show_in_the_numbers(stage: Start, fault: str, steps: set[int]) -> None:
    s = started(stage)
    client = s.dial("coinbase")
    client.send(ask("level2", "BTC-USD"))
    client.frames(4)
    s.simulator.fault(fault, "coinbase", "BTC-USD")
    numbers = [frame["sequence_num"] for frame in client.frames(60)]
    assert {b - a for a, b in pairwise(numbers)} == steps


def test_a_venue_that_falls_silent_leaves_no_hole(stage: Start) -> None:
    s = started(stage, timing=Timing(status_s=0.02))
    client = s.dial("coinbase")
    client.send(ask("heartbeats"))
    client.send(ask("level2", "BTC-USD"))
    client.until(lambda f: f["channel"] == "l2_data")
    s.simulator.fault("stall", "coinbase", "BTC-USD")
    silent: list[int] = []  # what was on its way when the stall began may have left a hole
    while len(silent) < 10:
        frame = client.frame()
        silent = [*silent, frame["sequence_num"]] if frame["channel"] == "heartbeats" else []
    assert silent[5:] == list(range(silent[5], silent[5] + 5))
    assert len(s.ledger(fate="withheld")) > 5


def test_products_books_and_candles_over_rest(stage: Start) -> None:
    s = started(stage, rate_hz=0.01)
    base = s.rest("coinbase", "/api/v3/brokerage/market")
    rows = requests.get(f"{base}/products?product_type=SPOT", timeout=5).json()["products"]
    assert [(row["product_id"], row["status"]) for row in rows] == [("BTC-USD", "online"), ("ETH-USD", "online")]
    book = requests.get(f"{base}/product_book?product_id=BTC-USD&limit=7", timeout=5).json()["pricebook"]
    assert (len(book["bids"]), len(book["asks"])) == (7, 7)
    now_s = int(time.time())
    query = f"start={now_s - 1200}&end={now_s}&granularity=ONE_MINUTE"
    candles = requests.get(f"{base}/products/BTC-USD/candles?{query}", timeout=5).json()["candles"]
    starts = [int(candle["start"]) for candle in candles]
    assert starts == sorted(starts, reverse=True) and len(starts) > 3
    assert all(start % 60 == 0 for start in starts)
    (line,) = s.ledger(kind="message", what="candle")
    assert [row["open_us"] // 10**6 for row in line["rows"]] == sorted(starts)
    wide = query.replace(str(now_s - 1200), str(now_s - 90_000))
    for path, status in (
        (f"products/NOPE-USD/candles?{query}", 404),
        ("products/BTC-USD/candles", 400),
        (f"products/BTC-USD/candles?{wide}", 400),
        ("product_book?product_id=NOPE-USD", 404),
    ):
        assert requests.get(f"{base}/{path}", timeout=5).status_code == status


def test_the_recorded_book_can_be_played(stage: Start, wire: Path) -> None:
    s = stage("coinbase", recording=wire / "coinbase" / "doc_examples_ws_current.ndjson")
    client = s.dial("coinbase")
    client.send(ask("heartbeats"))
    client.send(ask("level2", "BTC-USD"))
    frames = [client.until(lambda f: f["channel"] == "l2_data") for _ in range(2)]
    assert [event["type"] for frame in frames for event in frame["events"]] == ["snapshot", "update"]
    assert frames[1]["sequence_num"] == frames[0]["sequence_num"] + 1
    book, change = s.ledger(kind="message")
    assert (book["what"], change["what"]) == ("book", "change")
    assert change["bids"] == [["68900.00", "2.00000000"]]
