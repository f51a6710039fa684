"""What holds for all simulated exchanges: the ledger tells what was sent, and frames look like the recorded ones."""

import json
from collections.abc import Callable
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import requests
from websocket import ABNF

from simulator import Timing, venues
from simulator.front import venue_class
from simulator.venue import Bucket
from tests.simulator.conftest import BOOK_PATHS, SUBSCRIBE, Stage, decoded, noted, shape, understood

Start = Callable[..., Stage]
EXCHANGES = sorted(SUBSCRIBE)

# the recorded frames (exchange, file, numbers of lines) that frames of the same kind must look like
COMPLETE_BOOKS = {
    "bithumb": ("samples_ws_trimmed_2026.ndjson", [1, 2]),
    "coinone": ("samples_ws_trimmed_20260923.ndjson", [1, 2]),
    "korbit": ("samples_ws_trimmed_20260923.ndjson", [1, 2]),
    "upbit": ("samples_ws_trimmed_2026.ndjson", [2, 3]),
}


def recorded(wire: Path, exchange: str, file: str) -> list[Any]:
    lines = [json.loads(line) for line in (wire / exchange / file).read_text().splitlines()]
    return [None, *(decoded(line["data"]) if line["data"][0] in "[{" else line["data"] for line in lines)]


def test_the_exchanges_are_found_by_name() -> None:
    assert {*EXCHANGES, "binance", "bybit", "coinbase", "kraken", "kucoin", "okx"} == {*venues()}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_ledger_holds_every_frame_as_it_was_sent_to_each_client(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=150)
    clients = [s.dial(exchange) for _ in range(2)]
    for client in clients:
        client.send(SUBSCRIBE[exchange])
    frames = [[frame for frame in client.frames(60) if understood(exchange, frame)][:50] for client in clients]
    subscriptions = s.ledger(kind="subscribe", exchange=exchange, market="BTC-KRW", channel="orderbook")
    assert len(subscriptions) == 2
    for subscription, received in zip(subscriptions, frames, strict=True):
        lines = s.ledger(kind="message", subscription=subscription["subscription"])
        assert [line["i"] for line in lines[:50]] == list(range(1, 51))
        assert [noted(line) for line in lines[:50]] == [understood(exchange, frame) for frame in received]
        assert [(line["venue_us"], line["sequence"]) for line in lines[:50]] == [stamps(exchange, f) for f in received]
        assert {line["fate"] for line in lines} == {"sent"}
    opened = s.ledger(kind="open", exchange=exchange, transport="websocket")
    assert [line["connection"] for line in opened] == [line["connection"] for line in subscriptions]


def stamps(exchange: str, frame: Any) -> tuple[int, int | None]:
    """Read the venue's time in microseconds and its sequence from a data frame."""
    match exchange:
        case "upbit":
            return frame["timestamp"] * 1000, None
        case "bithumb":
            return frame["timestamp"], None
        case "coinone":
            return frame["data"]["timestamp"] * 1000, int(frame["data"]["id"])
        case "korbit":
            return frame["data"]["timestamp"] * 1000, None
        case _:
            entries = frame["o"]["ask"] + frame["o"]["bid"]
            sequence = frame["o"].get("maxEntryId") or max(entry["entryId"] for entry in entries)
            return int(max(Decimal(entry["updatedAt"]) for entry in entries) * 10**6), sequence


@pytest.mark.parametrize("exchange", [e for e in EXCHANGES if e != "gopax"])
def test_every_subscriber_sees_the_same_books(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=150)
    early = s.dial(exchange)
    early.send(SUBSCRIBE[exchange])
    early.frames(20)
    late = s.dial(exchange)
    late.send(SUBSCRIBE[exchange])
    # some venues repeat a book: repeats are folded, so that a book is found at one place
    seen = [book for book, _ in groupby(understood(exchange, frame) for frame in late.frames(40)) if book]
    other = [book for book, _ in groupby(understood(exchange, frame) for frame in early.frames(80)) if book]
    start = other.index(seen[1])
    assert other[start : start + 15] == seen[1:16]


def test_gopax_changes_lead_a_late_subscriber_to_the_same_book(stage: Start) -> None:
    s = stage("gopax", rate_hz=100)
    client = s.dial("gopax")
    client.send(SUBSCRIBE["gopax"])
    books: dict[str, dict[Decimal, Decimal]] = {}
    for frame in client.frames(120):
        _, bids, asks = understood("gopax", frame) or ("", [], [])
        if "maxEntryId" in frame["o"]:
            books = {"bid": dict(bids), "ask": dict(asks)}
            continue
        for side, levels in (("bid", bids), ("ask", asks)):
            books[side].update(levels)
        last = max(entry["entryId"] for side in ("bid", "ask") for entry in frame["o"][side])
    kept = {side: {price: volume for price, volume in levels.items() if volume} for side, levels in books.items()}
    again = s.dial("gopax")
    again.send(SUBSCRIBE["gopax"])
    snapshot = again.frame()
    changed = [client.frame() for _ in range(60)]
    for frame in changed:
        _, bids, asks = understood("gopax", frame) or ("", [], [])
        entry = max(entry["entryId"] for side in ("bid", "ask") for entry in frame["o"][side])
        assert entry >= last
        if entry > snapshot["o"]["maxEntryId"]:
            break
        for side, levels in (("bid", bids), ("ask", asks)):
            kept[side].update(levels)
    kept = {side: {price: volume for price, volume in levels.items() if volume} for side, levels in kept.items()}
    _, bids, asks = understood("gopax", snapshot) or ("", [], [])
    assert kept == {"bid": dict(bids), "ask": dict(asks)}


@pytest.mark.parametrize("exchange", sorted(COMPLETE_BOOKS))
def test_books_have_the_keys_order_and_types_of_recorded_ones(stage: Start, wire: Path, exchange: str) -> None:
    file, numbers = COMPLETE_BOOKS[exchange]
    samples = [recorded(wire, exchange, file)[n] for n in numbers]
    s = stage(exchange, rate_hz=50)
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    first = client.until(lambda frame: understood(exchange, frame))
    later = client.frame()
    assert [json.dumps(shape(frame)) for frame in (first, later)] == [json.dumps(shape(frame)) for frame in samples]


def test_gopax_frames_have_the_keys_order_and_types_of_recorded_ones(stage: Start, wire: Path) -> None:
    s = stage("gopax", rate_hz=50)
    client = s.dial("gopax")
    client.send(SUBSCRIBE["gopax"])
    snapshot = recorded(wire, "gopax", "samples_trimmed_20260923.ndjson")[1]
    change = recorded(wire, "gopax", "samples_ws_complete_20260923.ndjson")[3]
    assert json.dumps(shape(client.frame())) == json.dumps(shape(snapshot))
    asked = client.until(lambda frame: frame["o"]["ask"] and not frame["o"]["bid"])
    assert json.dumps(shape(asked)) == json.dumps(shape(change))


@pytest.mark.parametrize(
    ("exchange", "opcode"),
    [
        ("upbit", ABNF.OPCODE_BINARY),
        ("bithumb", ABNF.OPCODE_BINARY),
        ("coinone", ABNF.OPCODE_TEXT),
        ("korbit", ABNF.OPCODE_TEXT),
        ("gopax", ABNF.OPCODE_TEXT),
    ],
)
def test_frames_are_binary_or_text_as_the_venue_s(stage: Start, exchange: str, opcode: int) -> None:
    s = stage(exchange, rate_hz=50)
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    assert {client.raw()[0] for _ in range(4)} == {opcode}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_polled_book_is_the_one_of_the_ledger(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=50, timing=Timing(rest_limits=False))
    with requests.Session() as session:
        answers = [session.get(s.rest(exchange, BOOK_PATHS[exchange]), timeout=5) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    lines = s.ledger(kind="message")
    assert [line["i"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len(s.ledger(kind="open", transport="rest")) == 1
    for answer, line in zip(answers, lines, strict=True):
        what, bids, asks = noted(line)
        assert (what, polled(exchange, decoded(answer.content))) == ("book", (bids, asks))


def polled(exchange: str, body: Any) -> tuple[Any, Any]:
    """Read a REST book by the protocol notes."""
    match exchange:
        case "upbit" | "bithumb":
            understood_book = understood(exchange, body[0])
        case "korbit":
            understood_book = understood(exchange, body)
        case "coinone":
            frame = {"response_type": "DATA", "data": {"bids": body["bids"], "asks": body["asks"][::-1]}}
            understood_book = understood(exchange, frame)
        case _:
            rows = [[(Decimal(row[1]), Decimal(row[2])) for row in body[side]] for side in ("bid", "ask")]
            return rows[0], rows[1]
    assert understood_book is not None
    return understood_book[1], understood_book[2]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_socket_and_rest_show_the_same_book(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=50, timing=Timing(rest_limits=False))
    s.simulator.fault("quiet")
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    frame = understood(exchange, client.until(lambda f: understood(exchange, f)))
    body = decoded(requests.get(s.rest(exchange, BOOK_PATHS[exchange]), timeout=5).content)
    bids, asks = polled(exchange, body)
    assert frame is not None
    depth = min(len(bids), len(frame[1]), 14)
    assert (bids[:depth], asks[:depth]) == (frame[1][:depth], frame[2][:depth])


@pytest.mark.parametrize(
    ("exchange", "limits", "status", "says"),
    [
        ("upbit", (10, 10), 429, "too_many_requests"),
        ("bithumb", (150, 150), 429, "429"),
        ("coinone", (1200, 20), 200, '"error_code":"4"'),
        ("korbit", (50, 50), 429, '"code":429'),
        ("gopax", (20, 20), 429, "10105"),
    ],
)
def test_calls_above_the_limit_are_refused(
    stage: Start, monkeypatch: pytest.MonkeyPatch, exchange: str, limits: tuple[float, float], status: int, says: str
) -> None:
    made: list[tuple[float, float]] = []

    def small(capacity: float, per_s: float) -> Bucket:
        made.append((capacity, per_s))
        return Bucket(1, 0)

    monkeypatch.setattr(f"simulator.{exchange}.Bucket", small)
    s = stage(exchange)
    first, second = (requests.get(s.rest(exchange, BOOK_PATHS[exchange]), timeout=5) for _ in range(2))
    assert limits in made
    assert (first.status_code, second.status_code) == (200, status)
    assert says in second.text
    assert [line["status"] for line in s.ledger(kind="message", what="error")] == [status]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_garbage_does_not_stop_the_good_frames(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=20)
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    client.until(lambda f: understood(exchange, f))
    s.simulator.fault("garbage", exchange, what="not_json")
    garbage = next(data for _ in range(100) if (data := client.raw()[1]).startswith(b"<html>"))
    assert b"Bad Gateway" in garbage
    assert client.until(lambda f: understood(exchange, f))
    (line,) = s.ledger(kind="message", what="garbage")
    assert line["fate"] == "sent"
    assert "bids" not in line


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_negative_volume_reaches_clients_and_pollers(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=20, timing=Timing(rest_limits=False))
    url = s.rest(exchange, BOOK_PATHS[exchange])
    s.simulator.fault("garbage", exchange, what="negative_volume", times=1)
    assert "-1.5" in requests.get(url, timeout=5).text
    assert "-1.5" not in requests.get(url, timeout=5).text
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    client.until(lambda f: understood(exchange, f))
    s.simulator.fault("garbage", exchange, what="negative_volume")
    assert any(b"-1.5" in client.raw()[1] for _ in range(50))
    s.simulator.fault("garbage", exchange, what="foreign_market")
    assert any(b"DOGE" in client.raw()[1].upper() for _ in range(50))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_recording_without_frames_of_the_venue_is_refused(stage: Start, tmp_path: Path, exchange: str) -> None:
    empty = tmp_path / "empty.ndjson"
    empty.write_text('{"t":null,"dir":"in","kind":"ws","url":"wss://example.org","data":"{}"}\n')
    with pytest.raises(ValueError, match="holds no frames"):
        stage(exchange, recording=empty)
    assert venue_class(exchange) is not None
