"""Upbit's rules, by the protocol notes."""

from collections.abc import Callable
from decimal import Decimal

import pytest
import requests
import websocket

from simulator import Timing
from simulator.upbit import as_double, as_small, padded
from simulator.venue import Bucket
from tests.simulator.conftest import SUBSCRIBE, Stage

Start = Callable[..., Stage]
TICKET = {"ticket": "t"}
BOOK = {"type": "orderbook", "codes": ["KRW-BTC"]}


def test_numbers_are_spelled_like_the_recorded_ones() -> None:
    assert [as_double(p) for p in ("116539000", "93332000", "3000", "64330.6", "0.00079276")] == [
        "1.16539E8", "9.3332E7", "3000.0", "64330.6", "7.9276E-4",
    ]  # fmt: skip
    assert [padded(s) for s in ("0.0007772", "12")] == ["0.00077720", "12.00000000"]
    assert [as_small(s) for s in ("0.0005", "0.00079276", "0.01624318", "2")] == [
        "5.0E-4", "7.9276E-4", "0.01624318", "2",
    ]  # fmt: skip


def test_totals_are_the_exact_sums_of_the_thirty_levels(stage: Start) -> None:
    client = stage("upbit", rate_hz=100).dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    for frame in client.frames(40):
        assert len(frame["orderbook_units"]) == 30
        assert frame["total_ask_size"] == sum(unit["ask_size"] for unit in frame["orderbook_units"])
        assert frame["total_bid_size"] == sum(unit["bid_size"] for unit in frame["orderbook_units"])


def test_default_and_simple_spell_numbers_differently(stage: Start) -> None:
    client = stage("upbit").dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    assert b'"ask_price":1.16' in (raw := client.raw()[1]) and b"E8" in raw
    client.send([TICKET, BOOK, {"format": "SIMPLE"}])
    for _ in range(3):
        raw = client.raw()[1]
    assert b'"ap":116' in raw and b"E8" not in raw
    client.send([TICKET, BOOK, {"format": "SIMPLE_LIST"}])
    assert client.until(lambda f: isinstance(f, list))[0]["ty"] == "orderbook"


def test_thin_sides_are_padded_and_the_ledger_leaves_padding_out(stage: Start) -> None:
    s = stage("upbit", speed=None)
    client = s.dial("upbit")
    client.send(SUBSCRIBE["upbit"])

    def thin(frame: dict[str, list[dict[str, Decimal]]]) -> bool:
        return frame["orderbook_units"][-1]["ask_price"] == 0 or frame["orderbook_units"][-1]["bid_price"] == 0

    client.until(thin, most=3000)
    assert any(len(line["asks"]) < 30 or len(line["bids"]) < 30 for line in s.ledger(kind="message"))
    assert all(volume != "0" for line in s.ledger(kind="message") for _, volume in line["asks"] + line["bids"])


def test_first_a_snapshot_then_realtime(stage: Start) -> None:
    client = stage("upbit").dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    assert [frame["stream_type"] for frame in client.frames(4)] == ["SNAPSHOT", *["REALTIME"] * 3]


def test_only_snapshot_and_only_realtime(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    once, live = s.dial("upbit"), s.dial("upbit")
    once.send([TICKET, {**BOOK, "is_only_snapshot": True}])
    live.send([TICKET, {**BOOK, "isOnlyRealtime": True}])
    assert once.frame()["stream_type"] == "SNAPSHOT"
    assert once.silent()
    assert live.frame()["stream_type"] == "REALTIME"


@pytest.mark.parametrize(("code", "pairs"), [("KRW-BTC.5", 5), ("KRW-BTC.15", 15), ("KRW-BTC.7", 30)])
def test_the_number_of_pairs_can_be_chosen_among_four(stage: Start, code: str, pairs: int) -> None:
    client = stage("upbit").dial("upbit")
    client.send([TICKET, {"type": "orderbook", "codes": [code]}])
    frame = client.frame()
    assert (frame["code"], len(frame["orderbook_units"])) == ("KRW-BTC", pairs)


def test_unknown_and_lower_case_codes_are_met_with_silence_and_others_are_served(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client, silent, grouped = s.dial("upbit"), s.dial("upbit"), s.dial("upbit")
    client.send([TICKET, {"type": "orderbook", "codes": ["KRW-NOPE", "krw-eth", "KRW-BTC"]}])
    assert {frame["code"] for frame in client.frames(8)} == {"KRW-BTC"}
    silent.send([TICKET, {"type": "orderbook", "codes": ["krw-btc", "BTC-KRW"]}])
    grouped.send([TICKET, {**BOOK, "level": 12345}])
    assert silent.silent() and grouped.silent()


def test_a_second_subscription_replaces_the_first(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client = s.dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    client.frames(3)
    client.send([TICKET, {"type": "orderbook", "codes": ["KRW-ETH"]}])
    client.until(lambda f: f["code"] == "KRW-ETH")
    assert {frame["code"] for frame in client.frames(10)} == {"KRW-ETH"}
    client.send(SUBSCRIBE["upbit"])
    client.until(lambda f: f["code"] == "KRW-BTC")
    assert [line["market"] for line in s.ledger(kind="subscribe")] == ["BTC-KRW", "ETH-KRW", "BTC-KRW"]


def test_a_market_that_stays_keeps_its_subscription_and_its_numbering(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client = s.dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    client.frames(3)
    client.send([TICKET, {"type": "orderbook", "codes": ["KRW-BTC", "KRW-ETH"]}])
    client.until(lambda f: f["code"] == "KRW-ETH")
    client.frames(6)
    assert [line["market"] for line in s.ledger(kind="subscribe")] == ["BTC-KRW", "ETH-KRW"]
    numbers = [line["i"] for line in s.ledger(kind="message", subscription="s1")]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ("nonsense", "WRONG_FORMAT"),
        ("{}", "WRONG_FORMAT"),
        ('[{"type":"orderbook","codes":["KRW-BTC"]}]', "NO_TICKET"),
        ('[{"ticket":"t"}]', "NO_TYPE"),
        ('[{"ticket":"t"},{"type":"nope","codes":["KRW-BTC"]}]', "INVALID_PARAM"),
        ('[{"ticket":"t"},{"type":"orderbook"}]', "NO_CODES"),
    ],
)
def test_a_wrong_request_gets_an_error_and_a_close(stage: Start, request_: str, name: str) -> None:
    client = stage("upbit").dial("upbit")
    client.send(request_)
    assert client.frame()["error"]["name"] == name
    assert client.closed() == 1000


def test_list_subscriptions(stage: Start) -> None:
    client = stage("upbit", rate_hz=0.01).dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    client.frame()
    client.send([TICKET, {"method": "LIST_SUBSCRIPTIONS"}])
    answer = client.frame()
    assert (answer["method"], answer["ticket"]) == ("LIST_SUBSCRIPTIONS", "t")
    assert answer["result"] == [{"type": "orderbook", "codes": ["KRW-BTC"]}]


def test_an_idle_socket_is_cut_without_a_close_frame(stage: Start) -> None:
    s = stage("upbit", timing=Timing(idle_s=0.2))
    client = s.dial("upbit")
    assert client.closed() == 1006
    assert s.ends() == ["idle"]


def test_a_quiet_subscribed_socket_is_cut_too_and_ping_keeps_it(stage: Start) -> None:
    s = stage("upbit", rate_hz=0.01, timing=Timing(idle_s=1, status_s=0.1))
    quiet, kept = s.dial("upbit"), s.dial("upbit")
    quiet.send(SUBSCRIBE["upbit"])
    kept.send("PING")
    assert quiet.closed() == 1006
    assert all(frame == {"status": "UP"} for frame in kept.frames(15))


def test_where_only_the_client_counts_a_busy_socket_is_cut_as_well(stage: Start) -> None:
    s = stage("upbit", rate_hz=50, timing=Timing(idle_s=0.3, idle_client_only=True))
    client = s.dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    assert client.closed() == 1006


def test_protocol_pings_are_answered(stage: Start) -> None:
    client = stage("upbit").dial("upbit")
    client.socket.ping(b"x")
    opcode, frame = client.socket.recv_data_frame(control_frame=True)
    assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"x")


def test_connects_too_close_together_are_refused(stage: Start) -> None:
    s = stage("upbit", timing=Timing(connects_per_s=2))
    with pytest.raises(websocket.WebSocketBadStatusException, match="429"):  # noqa: PT012
        for _ in range(50):
            s.dial("upbit")


def test_rest_errors_are_those_recorded(stage: Start) -> None:
    s = stage("upbit")
    missing = "Missing request parameter error. Check the required parameters!"
    expected = {
        "/v1/orderbook?markets=KRW-NOPE": (404, {"name": 404, "message": "Code not found"}),
        "/v1/orderbook": (400, {"name": 400, "message": missing}),
        "/v1/orderbook?markets=KRW-BTC&count=abc": (
            400,
            {"name": 400, "message": "Type mismatch error. Check the parameters type!"},
        ),
        "/v1/nope": (404, {"name": "not_found", "message": "no Route matched with those values"}),
    }  # fmt: skip
    for path, (status, error) in expected.items():
        answer = requests.get(s.rest("upbit", path), timeout=5)
        assert (answer.status_code, answer.json()) == (status, {"error": error})


def test_rest_serves_several_markets_in_lower_case_too(stage: Start) -> None:
    s = stage("upbit")
    answer = requests.get(s.rest("upbit", "/v1/orderbook?markets=krw-btc,KRW-ETH&count=5"), timeout=5)
    assert [(book["market"], len(book["orderbook_units"])) for book in answer.json()] == [
        ("KRW-BTC", 5),
        ("KRW-ETH", 5),
    ]
    assert next(iter(answer.json()[0]["orderbook_units"][0])) == "bid_price"
    assert answer.headers["remaining-req"] == "group=orderbook; min=600; sec=9"
    assert [line["market"] for line in s.ledger(kind="subscribe")] == ["BTC-KRW", "ETH-KRW"]


def test_too_many_calls_are_refused_then_blocked(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.upbit.Bucket", lambda capacity, per_s: Bucket(capacity, 0))
    s = stage("upbit")
    with requests.Session() as session:
        codes = [
            session.get(s.rest("upbit", "/v1/orderbook?markets=KRW-BTC"), timeout=5).status_code for _ in range(25)
        ]
    assert codes[:10] == [200] * 10
    assert codes[10:] == [429] * 10 + [418] * 5
    assert {line["status"] for line in s.ledger(kind="message", what="error")} == {429, 418}


def test_the_market_list(stage: Start) -> None:
    s = stage("upbit")
    rows = requests.get(s.rest("upbit", "/v1/market/all"), timeout=5).json()
    assert [row["market"] for row in rows] == ["KRW-BTC", "KRW-ETH"]
    detailed = requests.get(s.rest("upbit", "/v1/market/all?is_details=true"), timeout=5).json()
    assert detailed[0]["market_event"]["warning"] is False
    assert len(detailed[0]["market_event"]["caution"]) == 5


def test_a_corrupt_total_is_wrong_and_the_book_is_not(stage: Start) -> None:
    s = stage("upbit", rate_hz=20)
    client = s.dial("upbit")
    client.send(SUBSCRIBE["upbit"])
    s.simulator.fault("corrupt_total", "upbit", "BTC-KRW")
    wrong = client.until(lambda f: f["total_ask_size"] != sum(u["ask_size"] for u in f["orderbook_units"]))
    assert wrong["total_ask_size"] - 1 == sum(unit["ask_size"] for unit in wrong["orderbook_units"])
    right = client.frame()
    assert right["total_ask_size"] == sum(unit["ask_size"] for unit in right["orderbook_units"])
