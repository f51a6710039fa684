"""Recordings are played byte for byte and told truly in the ledger."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.front import venue_class
from simulator.recording import Recorded, exact, load, real
from tests.conftest import WaitUntil
from tests.simulator.conftest import SUBSCRIBE, Stage, decoded

Start = Callable[..., Stage]
UPBIT_FILE = "cryptofeed_ws_simple_20210417.ndjson"
URL = "wss://api.upbit.com/websocket/v1"


def line(data: str, **changes: Any) -> str:
    return json.dumps({"t": None, "dir": "in", "kind": "ws", "url": URL, "data": data, **changes})


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def frames_of(path: Path, exchange: str) -> tuple[Recorded, ...]:
    kind = venue_class(exchange)
    assert kind is not None
    return load(path, kind.hosts, kind.recorded).frames


def test_the_145_upbit_books_arrive_byte_for_byte_and_stand_in_the_ledger(stage: Start, wire: Path) -> None:
    path = wire / "upbit" / UPBIT_FILE
    recorded = entries(path)
    sent = [entry["data"].encode() for entry in recorded if entry["dir"] == "in"]
    s = stage("upbit", recording=path, speed=None)
    client = s.dial("upbit")
    client.send(recorded[0]["data"])  # the recorded subscription itself
    received = [client.raw()[1] for _ in sent]
    assert received == sent
    assert client.silent()  # and the connection stays open
    books = [exact(data) for data in map(bytes.decode, sent) if '"ty":"orderbook"' in data]
    lines = s.ledger(kind="message", what="book")
    assert len(books) == len(lines) == 145
    told = {(entry["subscription"], entry["i"]): entry for entry in lines}
    markets = {entry["subscription"]: entry["market"] for entry in s.ledger(kind="subscribe", channel="orderbook")}
    for (subscription, _), entry in told.items():
        symbol, currency = markets[subscription].split("-")
        book = next(
            b for b in books if b["cd"] == f"{currency}-{symbol}" and b["tms"] == str(entry["venue_us"] // 1000)
        )
        assert entry["asks"] == [[unit["ap"], unit["as"]] for unit in book["obu"]]
        assert entry["bids"] == [[unit["bp"], unit["bs"]] for unit in book["obu"]]


def test_only_what_was_subscribed_is_played(stage: Start, wire: Path) -> None:
    path = wire / "upbit" / UPBIT_FILE
    s = stage("upbit", recording=path, speed=None)
    client = s.dial("upbit")
    client.send('[{"ticket":"t"},{"type":"orderbook","codes":["KRW-WAVES"]},{"format":"SIMPLE"}]')
    wanted = [e["data"].encode() for e in entries(path) if '"ty":"orderbook","cd":"KRW-WAVES"' in e["data"]]
    assert [client.raw()[1] for _ in wanted] == wanted
    assert client.silent()
    assert {entry["market"] for entry in s.ledger(kind="subscribe")} == {"WAVES-KRW"}


def test_frames_come_in_their_own_time_unless_it_is_to_go_as_fast_as_it_goes(stage: Start, tmp_path: Path) -> None:
    path = tmp_path / "r.ndjson"
    data = '{"type":"orderbook","code":"KRW-BTC","timestamp":%d,"orderbook_units":[]}'
    path.write_text("".join(line(data % (1618678262000 + i), t=1618678262 + 3600 * i) + "\n" for i in range(3)))
    slow, quick, flat_out = (stage("upbit", recording=path, speed=speed).dial("upbit") for speed in (10, 1e6, None))
    for client in (slow, quick, flat_out):
        client.send(SUBSCRIBE["upbit"])
    slow.frame()
    assert slow.silent()
    for client in (quick, flat_out):
        assert [frame["timestamp"] for frame in client.frames(3)] == [1618678262000, 1618678262001, 1618678262002]


def test_a_looped_recording_goes_on_with_later_times(stage: Start, wire: Path) -> None:
    s = stage("upbit", recording=wire / "upbit" / UPBIT_FILE, speed=None, loop=True)
    client = s.dial("upbit")
    client.send('[{"ticket":"t"},{"type":"orderbook","codes":["KRW-WAVES"]}]')
    count = sum('"ty":"orderbook","cd":"KRW-WAVES"' in e["data"] for e in entries(wire / "upbit" / UPBIT_FILE))
    frames = client.frames(2 * count)
    first, second = frames[:count], frames[count:]
    assert [frame["obu"] for frame in first] == [frame["obu"] for frame in second]
    assert {b["tms"] - a["tms"] for a, b in zip(first, second, strict=True)} == {second[0]["tms"] - first[0]["tms"]}
    assert second[0]["tms"] > first[-1]["tms"]
    stamps = [entry["venue_us"] // 1000 for entry in s.ledger(kind="message")[: 2 * count]]
    assert stamps == [frame["tms"] for frame in frames]


def test_rest_shows_the_book_played_last(stage: Start, wire: Path) -> None:
    s = stage("upbit", recording=wire / "upbit" / UPBIT_FILE, speed=None)
    client = s.dial("upbit")
    client.send('[{"ticket":"t"},{"type":"orderbook","codes":["KRW-WAVES"]}]')
    last = client.frame()
    while not client.silent(0.2):
        last = s.ledger(kind="message")[-1]
    answer = requests.get(s.rest("upbit", "/v1/orderbook?markets=KRW-WAVES&count=15"), timeout=5)
    book = decoded(answer.content)[0]
    assert [[unit["bid_price"], unit["bid_size"]] for unit in book["orderbook_units"]] == [
        [Decimal(price), Decimal(volume)] for price, volume in last["bids"]
    ]


@pytest.mark.parametrize(
    ("exchange", "file", "books"),
    [
        ("bithumb", "samples_ws_trimmed_2026.ndjson", 5),
        ("bithumb", "both_apis_reserialised_20241128.ndjson", 3),
        ("coinone", "samples_ws_trimmed_20260923.ndjson", 4),
        ("coinone", "samples_ws_documentation_20230901.ndjson", 2),
        ("korbit", "samples_ws_trimmed_20260923.ndjson", 3),
        ("korbit", "samples_ws_complete.ndjson", 1),
        ("korbit", "samples_ws_documentation.ndjson", 1),
        ("upbit", "samples_ws_verbatim.ndjson", 1),
        ("upbit", "samples_ws_trimmed_2026.ndjson", 6),
        ("upbit", "samples_ws_reserialised.ndjson", 2),
        ("upbit", "samples_ws_documentation.ndjson", 2),
        ("gopax", "samples_ws_complete_20260923.ndjson", 0),
        ("gopax", "samples_trimmed_20260923.ndjson", 1),
    ],
)
def test_the_other_recordings_are_understood(wire: Path, exchange: str, file: str, books: int) -> None:
    frames = frames_of(wire / exchange / file, exchange)
    assert sum(frame.what == "book" for frame in frames) == books
    for frame in frames:
        if frame.what == "book" and len(frame.bids) > 1:
            assert Decimal(frame.bids[0][0]) > Decimal(frame.bids[-1][0])
        if frame.what == "book" and len(frame.asks) > 1:
            assert Decimal(frame.asks[0][0]) < Decimal(frame.asks[-1][0])


@pytest.mark.parametrize("exchange", ["bithumb", "coinone", "korbit"])
def test_every_recorded_book_of_a_market_is_played(stage: Start, wire: Path, exchange: str) -> None:
    file = {"bithumb": "samples_ws_trimmed_2026.ndjson"}.get(exchange, "samples_ws_trimmed_20260923.ndjson")
    wanted = [f for f in frames_of(wire / exchange / file, exchange) if f.market == "BTC-KRW" and f.what == "book"]
    s = stage(exchange, recording=wire / exchange / file)
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    received: list[str] = []
    while len(received) < len(wanted):
        data = client.raw()[1].decode()
        if data in {f.data for f in wanted}:
            received.append(data)
    assert received == [f.data for f in wanted]
    told = [(entry["bids"], entry["asks"]) for entry in s.ledger(kind="message")]
    assert told == [([list(level) for level in f.bids], [list(level) for level in f.asks]) for f in wanted]


def test_recorded_gopax_changes_get_a_snapshot_before_them(stage: Start, wire: Path, wait_until: WaitUntil) -> None:
    s = stage("gopax", recording=wire / "gopax" / "samples_ws_complete_20260923.ndjson")
    client = s.dial("gopax")
    client.send({"i": 5, "n": "SubscribeToOrderBook", "o": {"tradingPairName": "XRP-KRW"}})
    snapshot, change = client.frames(2)
    assert (snapshot["i"], snapshot["n"]) == (5, "SubscribeToOrderBook")
    assert change["o"]["ask"][0]["entryId"] == 84564675 == snapshot["o"]["maxEntryId"] + 1
    first, second = s.ledger(kind="message")
    assert (first["what"], second["what"], second["asks"]) == ("book", "change", [["2217", "196.50812855"]])
    assert (second["venue_us"], second["sequence"]) == (1790139101814000, 84564675)


def test_a_recorded_gopax_snapshot_echoes_the_client(stage: Start, wire: Path) -> None:
    s = stage("gopax", recording=wire / "gopax" / "samples_trimmed_20260923.ndjson")
    client = s.dial("gopax")
    client.send({"i": 42, "n": "SubscribeToOrderBook", "o": {"tradingPairName": "BTC-KRW"}})
    snapshot = client.frame()
    assert (snapshot["i"], snapshot["o"]["maxEntryId"]) == (42, 84563415)
    assert s.ledger(kind="message")[0]["bids"][0] == ["115010000", "0.0015"]


def test_padding_and_empty_levels_are_no_orders() -> None:
    levels = [("1.16539E8", "7.9276E-4"), ("0", "0"), ("116215000", "0"), ("116215000", "0.0"), ("5", "0E-8")]
    assert real(levels) == (("1.16539E8", "7.9276E-4"),)


@pytest.mark.parametrize(
    "bad",
    [
        "no json",
        "[]",
        '{"t":null,"dir":"in","kind":"ws","url":"x"}',
        line("{}", dir="up"),
        line("{}", kind="http"),
        line("{}", t="soon"),
        line("{}", extra=1),
        json.dumps({"t": None, "dir": "in", "kind": "ws", "url": URL, "data": {}}),
        line('{"type":"orderbook","code":"KRW-BTC"}'),
    ],
)
def test_a_line_that_is_not_right_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "r.ndjson"
    path.write_text(line('{"status":"UP"}') + "\n" + bad + "\n")
    with pytest.raises(ValueError, match=r"r\.ndjson:2: not a line of a recording"):
        frames_of(path, "upbit")
