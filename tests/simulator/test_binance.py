"""Binance's rules, by the protocol notes."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

from simulator import Timing
from simulator.binance import SPOT, USDM, weight_of
from tests.simulator.conftest import Client, Stage, shape

Start = Callable[..., Stage]
MARKETS = ["BTC-USDT", "ETH-USDT", "BTC-USDT:USDT", "ETH-USDT:USDT-261225"]
SPOT_BOOK, USDM_BOOK = "btcusdt@depth@100ms", "btcusdt@depth@100ms"
Side = dict[Decimal, Decimal]


@pytest.fixture
def venue(stage: Start) -> Callable[..., Stage]:
    def start(**options: Any) -> Stage:
        return stage("binance", **{"markets": MARKETS, "rate_hz": 100, **options})

    return start


@pytest.fixture
def dial() -> Iterator[Callable[..., Client]]:
    """Connect to a product's own path, "" for spot."""
    clients: list[Client] = []

    def connect(stage: Stage, product: str = "") -> Client:
        found: Any = stage.simulator.endpoints["binance"]
        clients.append(Client((found["products"][product] if product else found)["websocket"]))
        return clients[-1]

    yield connect
    for client in clients:
        client.socket.close(timeout=1)
        client.socket.shutdown()


def subscribe(*streams: str, number: Any = 1, method: str = "SUBSCRIBE") -> dict[str, Any]:
    return {"method": method, "params": list(streams), "id": number}


def get(stage: Stage, path: str, product: str = "") -> requests.Response:
    found: Any = stage.simulator.endpoints["binance"]
    return requests.get((found["products"][product] if product else found)["rest"] + path, timeout=5)


def events(client: Client, count: int) -> list[dict[str, Any]]:
    return [frame["data"] for frame in client.frames(count)]


def sides(levels: list[list[str]]) -> Side:
    return {Decimal(price): Decimal(size) for price, size in levels}


def test_a_request_is_acknowledged_and_followed_by_changes_alone(venue: Start, dial: Any) -> None:
    client = dial(venue())
    client.send(subscribe(SPOT_BOOK, "ethusdt@depth@100ms", number=7))
    assert client.frame() == {"result": None, "id": 7}
    frames = client.frames(20)
    assert {frame["stream"] for frame in frames} == {SPOT_BOOK, "ethusdt@depth@100ms"}
    assert {frame["data"]["e"] for frame in frames} == {"depthUpdate"}


def test_spot_numbers_every_change_of_a_market(venue: Start, dial: Any) -> None:
    s = venue()
    client = dial(s)
    client.send(subscribe(SPOT_BOOK))
    client.frame()
    found = events(client, 60)
    assert all(event["U"] == before["u"] + 1 for before, event in pairwise(found))
    assert all(event["u"] - event["U"] + 1 >= len(event["b"]) + len(event["a"]) for event in found)
    assert {len(price.partition(".")[2]) for event in found for price, _ in event["b"] + event["a"]} == {8}
    lines = s.ledger(kind="message", what="change")
    assert [line["sequence"] for line in lines[:60]] == [event["u"] for event in found]
    assert [line["venue_us"] for line in lines[:60]] == [event["E"] * 1000 for event in found]


def test_futures_number_the_changes_of_all_markets_together(venue: Start, dial: Any) -> None:
    client = dial(venue(), "usdm")
    client.send(subscribe(USDM_BOOK, "ethusdt_261225@depth@100ms"))
    client.frame()
    found = events(client, 80)
    numbers = [event["u"] for event in found]
    assert numbers == sorted(set(numbers))
    for symbol in ("BTCUSDT", "ETHUSDT_261225"):
        mine = [event for event in found if event["s"] == symbol]
        assert all(event["pu"] == before["u"] < event["U"] for before, event in pairwise(mine))
        assert any(event["U"] > before["u"] + 1 for before, event in pairwise(mine))


@pytest.mark.parametrize(("product", "base"), [("", "/api/v3"), ("usdm", "/fapi/v1")])
def test_a_rest_book_falls_between_two_messages_or_into_one(venue: Start, dial: Any, product: str, base: str) -> None:
    s = venue(rate_hz=0.01, timing=Timing(rest_limits=False))
    client = dial(s, product)
    client.send(subscribe(SPOT_BOOK))
    client.frame()
    between = within = 0
    books = [get(s, f"{base}/depth?symbol=BTCUSDT&limit=1000", product).json() for _ in range(16)]
    found: list[dict[str, Any]] = []
    while not found or found[-1]["u"] < books[-1]["lastUpdateId"]:
        found += events(client, 1)
    for book in books:
        assert max(sides(book["bids"])) < min(sides(book["asks"]))
        last = book["lastUpdateId"]
        joins = next((event for event in found if event["u"] > last), None)
        if joins is not None and joins.get("pu", joins["U"] - 1) == last:
            between += 1
        elif joins is not None:
            assert joins["U"] <= last < joins["u"]
            within += 1
    assert between and within


@pytest.mark.parametrize(("product", "base"), [("", "/api/v3"), ("usdm", "/fapi/v1")])
def test_a_book_that_is_joined_to_its_changes_stays_the_venue_s(
    venue: Start, dial: Any, product: str, base: str
) -> None:
    s = venue(timing=Timing(rest_limits=False))
    client = dial(s, product)
    client.send(subscribe(SPOT_BOOK))
    client.frame()
    for _ in range(4):
        snapshot = get(s, f"{base}/depth?symbol=BTCUSDT&limit=1000", product).json()
        book = {"b": sides(snapshot["bids"]), "a": sides(snapshot["asks"])}
        last = snapshot["lastUpdateId"]
        s.simulator.fault("quiet", "binance")
        whole = get(s, f"{base}/depth?symbol=BTCUSDT&limit=1000", product).json()
        while last < whole["lastUpdateId"]:
            (event,) = events(client, 1)
            if event["u"] > last:
                for side in ("b", "a"):
                    book[side].update(sides(event[side]))
                last = event["u"]
        s.simulator.fault("clear", "binance")
        left = {side: {price: size for price, size in levels.items() if size} for side, levels in book.items()}
        assert left == {"b": sides(whole["bids"]), "a": sides(whole["asks"])}


@pytest.mark.parametrize(
    "stream",
    ["btcusdt@dpeth@100ms", "BTCUSDT@depth@100ms", "nopeusdt@depth@100ms", "btcusdt", "btcusdt@aggTrade", "@", ""],
)
def test_a_misspelled_stream_is_acknowledged_and_silent(venue: Start, dial: Any, stream: str) -> None:
    client = dial(venue())
    client.send(subscribe(stream))
    assert client.frame() == {"result": None, "id": 1}
    assert client.silent(0.1)
    client.send({"method": "LIST_SUBSCRIPTIONS", "id": 2})
    assert client.frame() == {"result": [stream], "id": 2}


def test_each_path_of_futures_is_silent_about_what_the_other_has(venue: Start, dial: Any) -> None:
    s = venue()
    public, market = dial(s, "usdm"), dial(s, "usdm_market")
    for client in (public, market):
        client.send(subscribe(USDM_BOOK, "btcusdt@aggTrade", "btcusdt@ticker", "btcusdt@kline_1m"))
        assert client.frame() == {"result": None, "id": 1}
    assert {event["e"] for event in events(public, 30)} == {"depthUpdate"}
    assert {event["e"] for event in events(market, 60)} == {"aggTrade", "24hrTicker", "kline"}


def test_what_is_unsubscribed_falls_silent(venue: Start, dial: Any) -> None:
    client = dial(venue())
    client.send(subscribe(SPOT_BOOK, "ethusdt@depth@100ms"))
    client.frames(5)
    client.send(subscribe(SPOT_BOOK, number=2, method="UNSUBSCRIBE"))
    client.until(lambda frame: frame.get("id") == 2)
    assert {event["s"] for event in events(client, 20)} == {"ETHUSDT"}
    client.send(subscribe(SPOT_BOOK, number=3))
    assert client.until(lambda frame: frame.get("stream") == SPOT_BOOK)


@pytest.mark.parametrize(
    ("sent", "code", "number"),
    [
        ("no json", 3, None),
        ("[]", 2, None),
        ({"method": "subscribe", "params": [], "id": 1}, 2, 1),
        ({"method": "SUBSCRIBE", "params": ["a"], "id": -1}, 2, -1),
        ({"method": "SUBSCRIBE", "params": ["a"]}, 2, None),
        ({"method": "SUBSCRIBE", "params": [1], "id": 4}, 2, 4),
    ],
)
def test_malformed_requests_are_refused_and_the_socket_lives(
    venue: Start, dial: Any, sent: Any, code: int, number: int | None
) -> None:
    client = dial(venue())
    client.send(sent)
    answer = client.frame()
    assert (answer["code"], answer.get("id")) == (code, number)
    assert answer["msg"]
    client.send(subscribe(SPOT_BOOK))
    assert client.frame() == {"result": None, "id": 1}


@pytest.mark.parametrize(("product", "most"), [("", 5), ("usdm", 10), ("usdm_market", 10)])
def test_who_sends_too_many_messages_in_a_second_is_thrown_out(
    venue: Start, dial: Any, product: str, most: int
) -> None:
    s = venue()
    client = dial(s, product)
    for number in range(most - 2):
        client.send(subscribe("x", number=number))
    client.socket.ping(b"counts as well")
    client.socket.pong(b"so does this")
    assert [client.frame()["id"] for _ in range(most - 2)] == list(range(most - 2))
    client.send(subscribe("x", number=99))
    assert client.closed() == 1008
    assert s.ends() == ["Too many requests"]


def test_a_client_that_does_not_pong_is_cut_while_data_flows(venue: Start, dial: Any) -> None:
    s = venue(timing=Timing(ping_s=0.05, pong_s=0.3))
    client = dial(s)
    client.send(subscribe(SPOT_BOOK))
    client.socket.pong = lambda *_: None
    assert client.closed() == 1006
    assert client.pings
    assert s.ends() == ["no pong"]


def test_a_pong_has_to_repeat_what_was_pinged(venue: Start, dial: Any) -> None:
    s = venue(timing=Timing(ping_s=0.1, pong_s=0.2))
    client = dial(s)
    wrong = client.socket.pong
    client.socket.pong = lambda *_: wrong(b"something else")
    assert client.closed() == 1006
    assert s.ends() == ["no pong"]


def test_pongs_keep_a_connection(venue: Start, dial: Any) -> None:
    client = dial(venue(timing=Timing(ping_s=0.25, pong_s=0.4)))
    client.send(subscribe(SPOT_BOOK))
    while len(client.pings) < 4:
        client.frame()


def test_the_end_of_a_connection_is_announced(venue: Start, dial: Any) -> None:
    s = venue(timing=Timing(session_s=0.2, error_close_s=0.05))
    client = dial(s)
    frame = client.frame()
    assert (frame["stream"], frame["data"]["e"]) == ("!serverShutdown", "serverShutdown")
    assert client.closed() == 1001
    assert s.ends() == ["maximum age"]


def test_connections_are_limited_to_300_in_five_minutes(venue: Start) -> None:
    s = venue(timing=Timing(connects_per_s=1))
    s.dial("binance")
    with pytest.raises(websocket.WebSocketBadStatusException):
        s.dial("binance")
    own = venue().simulator._front
    assert own is not None
    connects = own.venues["binance"].connects
    assert connects.capacity / connects.per_s == 300 and connects.per_s == 1


def test_a_connection_has_1024_streams_at_most(venue: Start, dial: Any) -> None:
    client = dial(venue())
    client.send(subscribe(*(f"a{n}@trade" for n in range(1024))))
    assert client.frame() == {"result": None, "id": 1}
    client.send(subscribe("one@more", number=2))
    assert client.closed() == 1008


# --- what is sent, field for field ------------------------------------------------------------------------------------


def both_sides(event: dict[str, Any]) -> bool:
    """Tell whether a change has levels on both sides, so that their shape is seen; another event is no change."""
    return event["e"] != "depthUpdate" or bool(event["b"] and event["a"])


def samples(wire: Path, file: str, kind: str) -> Any:
    for line in (wire / "binance" / file).read_text("utf-8").splitlines():
        frame = json.loads(json.loads(line)["data"])
        event = frame.get("data", frame)
        if (
            isinstance(event, dict)
            and event.get("e") == kind
            and (kind != "depthUpdate" or (event["b"] and event["a"]))
        ):
            return event
    pytest.fail(f"{file} has no {kind}")


def met(client: Client, kind: str) -> Any:
    frame = client.until(
        lambda frame: (
            "data" in frame
            and frame["data"]["e"] == kind
            and (kind != "depthUpdate" or (frame["data"]["b"] and frame["data"]["a"]))
        ),
        2000,
    )
    return frame["data"]


SPOT_FILE, OLDER = "hftbacktest_spot_btcusdt_20240808.ndjson", "samples_crypto_msg_parser_2021_2022.ndjson"


def test_spot_events_have_the_keys_order_and_types_of_recorded_ones(venue: Start, dial: Any, wire: Path) -> None:
    client = dial(venue(rate_hz=200))
    client.send(subscribe(SPOT_BOOK, "btcusdt@trade", "btcusdt@ticker", "btcusdt@kline_1m"))
    client.frame()
    for file, kind in ((SPOT_FILE, "depthUpdate"), (SPOT_FILE, "trade"), (OLDER, "24hrTicker"), (OLDER, "kline")):
        assert json.dumps(shape(met(client, kind))) == json.dumps(shape(samples(wire, file, kind)))


def test_futures_events_have_the_keys_order_and_types_of_documented_ones(venue: Start, dial: Any, wire: Path) -> None:
    s = venue(rate_hz=200)
    books, market = dial(s, "usdm"), dial(s, "usdm_market")
    books.send(subscribe(USDM_BOOK))
    market.send(subscribe("btcusdt@aggTrade", "btcusdt@ticker", "btcusdt@kline_1m"))
    for client in (books, market):
        client.frame()
    for client, kind in ((books, "depthUpdate"), (market, "aggTrade"), (market, "24hrTicker"), (market, "kline")):
        documented = samples(wire, "doc_examples_ws_current.ndjson", kind)
        assert json.dumps(shape(met(client, kind))) == json.dumps(shape(documented))


def test_what_is_sent_stands_in_the_ledger(venue: Start, dial: Any) -> None:
    s = venue(rate_hz=100)
    spot, futures = dial(s), dial(s, "usdm_market")
    spot.send(subscribe("btcusdt@trade", "btcusdt@ticker"))
    futures.send(subscribe("btcusdt@aggTrade", "btcusdt@ticker"))
    for client, product in ((spot, "BTC-USDT"), (futures, "BTC-USDT:USDT")):
        client.frame()
        found = events(client, 40)
        for channel, kinds in (("trades", ("trade", "aggTrade")), ("ticker", ("24hrTicker",))):
            (made,) = s.ledger(kind="subscribe", market=product, channel=channel)
            mine = [event for event in found if event["e"] in kinds]
            rows = [row for line in s.ledger(kind="message", subscription=made["subscription"]) for row in line["rows"]]
            assert mine
            for event, row in zip(mine, rows, strict=False):
                if channel == "trades":
                    told = str(event.get("t", event.get("a"))), "sell" if event["m"] else "buy", event["T"] * 1000
                    assert told == (row["id"], row["side"], row["venue_us"])
                    assert (Decimal(event["p"]), Decimal(event["q"])) == (Decimal(row["price"]), Decimal(row["volume"]))
                else:
                    assert Decimal(event["c"]) == Decimal(row["last"])
                    assert ("b" in event) is (row["bid"] is not None) is (product == "BTC-USDT")


# --- REST -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "path", "status", "code"),
    [
        ("", "/api/v3/depth", 400, -1102),
        ("", "/api/v3/depth?symbol=NOPEUSDT", 400, -1121),
        ("", "/api/v3/depth?symbol=btcusdt", 400, -1121),
        ("", "/api/v3/depth?symbol=BTCUSDT&limit=x", 400, -1130),
        ("", "/api/v3/depth?symbol=ETHUSDT_261225", 400, -1121),
        ("usdm", "/fapi/v1/depth?symbol=BTCUSDT&limit=1001", 400, -1130),
        ("usdm", "/fapi/v1/depth?symbol=ETHUSDT", 400, -1121),
    ],
)
def test_wrong_calls_get_the_venue_s_errors(venue: Start, product: str, path: str, status: int, code: int) -> None:
    answer = get(venue(), path, product)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_rest_book_is_as_deep_as_was_asked_and_stands_in_the_ledger(venue: Start) -> None:
    s = venue()
    for path, product, depth in (
        ("/api/v3/depth?symbol=BTCUSDT&limit=20", "", 20),
        ("/api/v3/depth?symbol=BTCUSDT", "", 100),
        ("/fapi/v1/depth?symbol=BTCUSDT&limit=5", "usdm", 5),
    ):
        body = get(s, path, product).json()
        assert (len(body["bids"]), len(body["asks"])) == (depth, depth)
        assert ("T" in body) is (product == "usdm")
        line = s.ledger(kind="message", what="book")[-1]
        assert line["sequence"] == body["lastUpdateId"]
        assert (sides(line["bids"]), sides(line["asks"])) == (sides(body["bids"]), sides(body["asks"]))


def test_what_a_book_costs() -> None:
    spot = [weight_of(SPOT, depth) for depth in (1, 100, 101, 500, 501, 1000, 1001, 5000)]
    assert spot == [5, 5, 25, 25, 50, 50, 250, 250]
    assert [weight_of(USDM, depth) for depth in (5, 50, 100, 500, 1000)] == [2, 2, 5, 10, 20]


def test_who_uses_up_the_weight_of_a_minute_is_refused_then_barred(
    venue: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.binance.now_us", lambda: 1_795_235_940_000_000)  # the minute does not end
    s = venue(rate_hz=0.01)
    answers = [get(s, "/api/v3/depth?symbol=BTCUSDT&limit=5000") for _ in range(36)]
    assert [answer.status_code for answer in answers] == [200] * 24 + [429] * 10 + [418] * 2
    assert answers[23].headers["X-MBX-USED-WEIGHT-1M"] == "6000"
    assert answers[24].json()["code"] == -1003
    assert (answers[24].headers["Retry-After"], answers[-1].headers["Retry-After"]) == ("61", "120")
    assert get(s, "/fapi/v1/depth?symbol=BTCUSDT", "usdm").status_code == 200  # counted apart


def test_the_listing_has_every_market_of_its_product_with_its_state(venue: Start) -> None:
    s = venue()
    spot = get(s, "/api/v3/exchangeInfo").json()
    assert [(row["symbol"], row["status"]) for row in spot["symbols"]] == [
        ("BTCUSDT", "TRADING"), ("ETHUSDT", "TRADING"), ("OLDUSDT", "BREAK"),
    ]  # fmt: skip
    assert spot["rateLimits"][0]["limit"] == 6000
    futures = get(s, "/fapi/v1/exchangeInfo", "usdm").json()
    found = [(row["symbol"], row["contractType"], row["marginAsset"]) for row in futures["symbols"][:2]]
    assert found == [("BTCUSDT", "PERPETUAL", "USDT"), ("ETHUSDT_261225", "CURRENT_QUARTER", "USDT")]
