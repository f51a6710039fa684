import base64
import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from collector.errors import SourceError, VenueRefused
from collector.records import CANDLES, CHANNELS, ORDERBOOK, TICKER, TRADES, BookChange, Reply
from controllers.gopax import Gopax, GopaxCandles, signature
from tests.controllers.streams import hearing, hold_to_any_polls, hold_to_any_streams, korean_us, polled
from tests.controllers.venue import (
    Case,
    cases,
    check_book,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    side,
    told,
)
from tests.fakes import FakeClock, HeardLog, make_setup, numbers

KEY, SECRET = "test-key", base64.b64encode(b"test secret").decode()
REST_BOOK = {"sequence": 5, "ask": [["7", 117020000, "0.5", "1790130106866"]], "bid": [["8", 115010000, 1, "179"]]}


@pytest.mark.parametrize("case", cases("gopax"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Gopax))


def test_a_request_carries_its_market_so_that_a_refusal_names_it() -> None:
    gopax = make(Gopax, "BTC-KRW", "ETH-KRW")
    assert [json.loads(text) for text in gopax.subscribe_messages(gopax.markets)] == [
        {"i": "BTC-KRW", "n": "SubscribeToOrderBook", "o": {"tradingPairName": "BTC-KRW"}},
        {"i": "ETH-KRW", "n": "SubscribeToOrderBook", "o": {"tradingPairName": "ETH-KRW"}},
    ]


@pytest.mark.parametrize("text", ['"primus::ping::1790139005374"', "primus::ping::1790139005374"])
def test_a_ping_is_answered_with_the_same_text(text: str) -> None:
    assert make(Gopax).handle(text.encode(), 1) == [Reply(text.replace("ping", "pong"))]


def test_times_are_seconds_with_a_fraction_read_exactly() -> None:
    for written, microseconds in (
        ("1790138962.965", 1790138962965000),
        ("1790138962", 1790138962000000),
        ("1790138962.1", 1790138962100000),
        ("1.790138962965E9", 1790138962965000),
    ):
        frame = frame_of("gopax", "a change").replace(b"1790139101.814", written.encode())
        (change,) = make(Gopax).parse(frame, 0)
        assert isinstance(change, BookChange)
        assert change.venue_us == microseconds


# --- signing ----------------------------------------------------------------------------------------------------------

# The expected signature was made by another program:
#   printf 't1790138962965' | openssl dgst -sha512 -hmac 'test secret' -binary | base64 -w0
SIGNED = "NsEAPZWg2rS+Da24LQXGzlpG8PtPmu/l1fd0sV7MvJfkxP2+jhUwjHD06TEtQqQ/9LIo+lZ8+ZoXJCr4D5D4PA=="


def test_a_signature_is_the_one_another_program_makes() -> None:
    assert signature(KEY, SECRET, 1790138962965) == {
        "apiKey": KEY,
        "timestamp": "1790138962965",
        "signature": SIGNED,
    }


def hmac_sha512(key: bytes, text: bytes) -> bytes:
    """Compute an HMAC by its definition (RFC 2104)."""
    key = (hashlib.sha512(key).digest() if len(key) > 128 else key).ljust(128, b"\0")
    inner = hashlib.sha512(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return hashlib.sha512(bytes(byte ^ 0x5C for byte in key) + inner).digest()


@pytest.mark.parametrize("secret", [b"test secret", b"x" * 200, bytes(range(64))])
def test_a_signature_is_a_keyed_hash_of_t_and_the_time(secret: bytes) -> None:
    signed = signature(KEY, base64.b64encode(secret).decode(), 1700000000123)
    assert base64.b64decode(signed["signature"]) == hmac_sha512(secret, b"t1700000000123")


def test_an_address_is_signed_anew_each_time_and_only_with_a_key() -> None:
    clock = FakeClock()
    assert make(Gopax).address() == "wss://wsapi.gopax.co.kr"
    gopax = make(Gopax, setup=make_setup(clock=clock, keys=(KEY, SECRET)))
    parts = urlsplit(gopax.address())
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == "wss://wsapi.gopax.co.kr"
    asked = {name: values[0] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
    assert asked == signature(KEY, SECRET, clock.wall_us() // 1000)
    clock.advance(10)
    assert urlsplit(gopax.address()).query != parts.query


def test_a_refused_key_is_left_out_and_told_but_a_refusal_without_one_stays() -> None:
    log = HeardLog()
    gopax = make(Gopax, setup=make_setup(keys=(KEY, SECRET), log=log))
    gopax.refused(VenueRefused("HTTP 401"))
    assert gopax.address() == "wss://wsapi.gopax.co.kr"
    assert log.keys() == ["key_refused"]
    with pytest.raises(VenueRefused):
        gopax.refused(VenueRefused("HTTP 401"))


# --- REST -------------------------------------------------------------------------------------------------------------


def test_the_complete_book_over_rest_is_asked_for_with_all_its_levels() -> None:
    gopax = make(Gopax)
    assert gopax.probe_path("BTC-KRW") == "/trading-pairs/BTC-KRW/book?level=3"
    (book,) = told([gopax.parse_probe("BTC-KRW", json.dumps(REST_BOOK).encode())])
    assert (book["bids"], book["asks"]) == ([[115010000, 1]], [[117020000, "0.5"]])
    assert Gopax.budget_per_s <= 1


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"ask":[],"bid":[[1]]}', b"<html>", b'{"errorCode":10058}'])
def test_an_answer_over_rest_of_another_shape_is_a_source_error(body: bytes) -> None:
    with pytest.raises(SourceError):
        make(Gopax).parse_probe("BTC-KRW", body)


def test_the_listing_is_in_house_form_already() -> None:
    assert Gopax.parse_listing(b'[{"id":1,"name":"ETH-KRW"},{"id":2,"name":"BTC-USDC"}]') == ["ETH-KRW", "BTC-USDC"]
    with pytest.raises(SourceError):
        Gopax.parse_listing(b'{"errorMessage":"x","errorCode":1}')


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Gopax, "gopax")


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    hold_to_any_answers(Gopax, [json.dumps(REST_BOOK), '[{"id":1,"name":"ETH-KRW"}]', '{"errorCode":10058}'])


# --- trades, tickers, candles -----------------------------------------------------------------------------------------

WITH_TRADES = frame_of("gopax", "the complete book with which trades come")
CHANGE = (
    b'{"i":-1,"n":"OrderBookEvent","o":{"ask":[],"bid":[{"entryId":9,"price":1,"volume":0}],"tradingPairName":"A-KRW"}}'
)


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ((ORDERBOOK,), ["SubscribeToOrderBook", "SubscribeToOrderBook"]),
        ((TRADES,), ["SubscribeToTradingPair", "SubscribeToTradingPair"]),
        ((ORDERBOOK, TRADES), ["SubscribeToTradingPair", "SubscribeToTradingPair"]),
        ((TICKER,), ["SubscribeToTickers"]),
        ((ORDERBOOK, TICKER), ["SubscribeToOrderBook", "SubscribeToOrderBook", "SubscribeToTickers"]),
        (CHANNELS, ["SubscribeToTradingPair", "SubscribeToTradingPair", "SubscribeToTickers"]),
    ],
)
def test_book_and_trades_come_by_one_subscription_and_tickers_by_one_for_all(
    channels: tuple[str, ...], names: list[str]
) -> None:
    gopax = hearing(Gopax, "BTC-KRW", "XRP-KRW", channels=channels)
    asked = [json.loads(text) for text in gopax.subscribe_messages(gopax.markets)]
    assert [part["n"] for part in asked] == names
    markets = [part["i"] for part in asked if part["n"] != "SubscribeToTickers"]
    assert markets in ([], ["BTC-KRW", "XRP-KRW"])
    assert all(part["o"] == ({} if part["i"] == "tickers" else {"tradingPairName": part["i"]}) for part in asked)


def test_the_book_that_comes_with_trades_is_left_out_where_nobody_asked_for_it() -> None:
    gopax = hearing(Gopax, channels=(TRADES,))
    assert told(gopax.parse(WITH_TRADES, 0)) == [{"subscribed": "trades", "market": "BTC-KRW"}]
    assert list(gopax.parse(CHANGE, 0)) == []
    assert len(list(hearing(Gopax).parse(CHANGE, 0))) == 1


def test_tickers_of_other_markets_are_left_out() -> None:
    frame = frame_of("gopax", "tickers of two markets, one of them ours")
    assert [row["ticker"] for row in told(make(Gopax, "WOORI-KRW").parse(frame, 0))] == ["WOORI-KRW"]
    assert told(make(Gopax, "XRP-KRW").parse(frame, 0)) == []


def test_candles_are_polled_over_a_window_that_ends_now() -> None:
    assert hearing(GopaxCandles).channels == (CANDLES,)
    assert make(GopaxCandles).poll_path(CANDLES, "BTC-KRW", 1601033046191_999) == (
        "/trading-pairs/BTC-KRW/candles?start=1601032146191&end=1601033046191&interval=1"
    )


def test_a_row_of_a_candle_has_its_low_first_and_its_opening_price_fourth() -> None:
    rows = [[1601032200000, 10, 40, 20, 30, 0.5902], [1601032260000, 1, 4, 2, 3, 5]]
    first, second = polled(make(GopaxCandles), CANDLES, rows)
    assert first == {
        "candle": "BTC-KRW", "prices": [20, 40, 10, 30], "interval_s": 60, "volume": "0.5902", "closed": True,
        "open_us": korean_us("2020-09-25T20:10:00"), "venue_us": None,
    }  # fmt: skip
    assert (second["prices"], second["closed"]) == ([2, 4, 1, 3], False)
    assert polled(make(GopaxCandles), CANDLES, []) == []


@pytest.mark.parametrize(
    "answer", [{}, [5], [[1]], [[1601032200000, 1, 2, 3, 4, 5, 6]], [[1601032200001, 1, 2, 3, 4, 5]]]
)
def test_an_answer_that_holds_no_candles_is_a_source_error(answer: object) -> None:
    with pytest.raises(SourceError):
        polled(make(GopaxCandles), CANDLES, answer if answer != {} else {"errorMessage": "x", "errorCode": 10058})


def test_any_answer_to_a_poll_gives_candles_or_a_source_error() -> None:
    row = [1601032200000, 10, 40, 20, 30, 0.5902]
    hold_to_any_polls(GopaxCandles, CANDLES, [json.dumps([row, row]), '{"errorCode":10058}'])


def test_any_bytes_on_any_channel_end_in_one_outcome() -> None:
    hold_to_any_streams(Gopax, "gopax")


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_every_recorded_snapshot_and_change_comes_out_level_for_level(wire: Path) -> None:
    gopax = make(Gopax)
    books = changes = 0
    for line in recorded(wire, "gopax"):
        frame = json.loads(line.data) if line.data.startswith('"') else exactly(line.data)
        if not isinstance(frame, dict) or "bid" not in frame["o"]:
            continue
        body = frame["o"]
        if frame["n"] == "SubscribeToOrderBook":
            bids, asks = side(body["bid"], "price", "volume"), side(body["ask"], "price", "volume")
            message = check_book(gopax, line.data, body["tradingPairName"], bids, asks)
            assert message.sequence == body["maxEntryId"]
            books += 1
            continue
        entries = sorted(
            ((entry["updatedAt"], entry["entryId"], name, entry) for name in ("ask", "bid") for entry in body[name]),
            key=lambda row: row[:2],
        )
        found = list(gopax.parse(line.data.encode(), 0))
        assert len(found) == len(entries)
        for change, (updated_at, entry_id, name, entry) in zip(found, entries, strict=True):
            assert isinstance(change, BookChange)
            assert (change.market, change.sequence) == (body["tradingPairName"], entry_id)
            assert change.venue_us == updated_at * 1_000_000
            told_side, other = (change.asks, change.bids) if name == "ask" else (change.bids, change.asks)
            assert numbers(told_side) == {entry["price"]: entry["volume"]}
            assert not other
            changes += 1
    assert (books, changes) == (2, 2 + 2)


def test_the_recorded_ping_is_answered_as_it_was(wire: Path) -> None:
    gopax = make(Gopax)
    pongs = [line.data for line in recorded(wire, "gopax", direction="out") if "pong" in line.data]
    answers = [
        message.text
        for line in recorded(wire, "gopax")
        if "primus" in line.data
        for message in gopax.parse(line.data.encode(), 0)
        if isinstance(message, Reply)
    ]
    assert answers == pongs
    assert len(pongs) == 2


def test_what_is_recorded_beside_books_is_known_or_refused(wire: Path) -> None:
    gopax = make(Gopax)
    kinds: set[str] = set()
    for line in recorded(wire, "gopax"):
        try:
            kinds |= {next(iter(each)) for each in told(gopax.parse(line.data.encode(), 0))}
        except SourceError as error:
            kinds.add(str(error))
    assert kinds == {
        "book", "change", "reply", "refused", "trade", "ticker", "n was 'SubscribeToNothing'",
    }  # fmt: skip


def test_the_recorded_deletion_that_the_snapshot_holds_already_changes_nothing(wire: Path) -> None:
    frames = [line.data for line in recorded(wire, "gopax")]
    deletion = next(exactly(frame) for frame in frames if "84553130" in frame and "OrderBookEvent" in frame)
    number = int(deletion["o"]["ask"][0]["entryId"])
    price = int(deletion["o"]["ask"][0]["price"])
    later = {"entryId": number, "price": price, "volume": 0.5}  # what would show if the deletion were applied
    snapshot = {"ask": [later], "bid": [], "tradingPairName": "BTC-KRW", "maxEntryId": number}
    gopax = make(Gopax)
    gopax.handle(json.dumps({"i": "BTC-KRW", "n": "SubscribeToOrderBook", "o": snapshot}).encode(), 1)
    gopax.handle(next(frame for frame in frames if "84553130" in frame).encode(), 2)
    assert gopax.books["BTC-KRW"].book.as_numbers() == ({}, numbers({price: "0.5"}))


def test_recorded_answers_over_rest_are_read(wire: Path) -> None:
    gopax = make(Gopax)
    read = 0
    for line in recorded(wire, "gopax", "rest"):
        answer = exactly(line.data)
        if line.url.endswith("/trading-pairs"):
            assert Gopax.parse_listing(line.data.encode()) == [row["name"] for row in answer]
        elif "/book" in line.url:
            book = gopax.parse_probe("BTC-KRW", line.data.encode())
            assert numbers(book.bids) == numbers(row[1:3] for row in answer["bid"])
            assert numbers(book.asks) == numbers(row[1:3] for row in answer["ask"])
            read += 1
    assert read == 3


def test_recorded_tickers_are_those_of_their_last_trade(wire: Path) -> None:
    (frame,) = [line.data for line in recorded(wire, "gopax") if "WOORI-KRW" in line.data]
    said = exactly(frame)["o"]["WOORI-KRW"]
    (ticker,) = told(make(Gopax, "WOORI-KRW").parse(frame.encode(), 0))
    assert numbers({1: ticker["last"], 2: ticker["bid"], 3: ticker["ask"], 4: ticker["volume"]}) == numbers(
        {1: said["last"], 2: said["highestBid"], 3: said["lowestAsk"], 4: said["baseVolume"]}
    )
    assert ticker["venue_us"] == said["lastTraded"] * 1000


def test_the_documented_candle_is_read_low_first(wire: Path) -> None:
    (answer,) = [line.data for line in recorded(wire, "gopax", "rest") if "/candles?" in line.url]
    ((time, low, high, first, last, volume),) = exactly(answer)
    (candle,) = polled(make(GopaxCandles), CANDLES, answer)
    assert (candle["open_us"], candle["volume"]) == (time * 1000, str(volume))
    assert candle["prices"] == [first, high, low, last]
    assert low <= min(first, last) <= max(first, last) <= high
