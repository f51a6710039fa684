import json
from pathlib import Path

import pytest

from collector.errors import SourceError
from collector.records import Book, Refused
from controllers.korbit import Korbit
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
from tests.fakes import Stored, make_setup, numbers

BOOK = frame_of("korbit", "a first book")
REST_BOOK = {
    "success": True,
    "data": {
        "timestamp": 1708057740895,
        "bids": [{"price": "73303000", "qty": "0.00898326"}],
        "asks": [{"price": "73304000", "qty": "0.0010"}],
    },
}


@pytest.mark.parametrize("case", cases("korbit"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Korbit))


def test_a_request_is_an_array_with_a_number_for_each_market() -> None:
    korbit = make(Korbit, "BTC-KRW", "ETH-KRW")
    (text,) = korbit.subscribe_messages(korbit.markets)
    assert json.loads(text) == [
        {"requestId": 1, "method": "subscribe", "type": "orderbook", "symbols": ["btc_krw"]},
        {"requestId": 2, "method": "subscribe", "type": "orderbook", "symbols": ["eth_krw"]},
    ]


def test_hosts_are_configuration_with_the_new_ones_as_default() -> None:
    assert make(Korbit).address() == "wss://ws-api.digitalx.miraeasset.com/v2/public"
    old = make_setup(endpoint={"websocket": "wss://ws-api.korbit.co.kr/v2/public"})
    assert make(Korbit, setup=old).address() == "wss://ws-api.korbit.co.kr/v2/public"


@pytest.mark.parametrize("how", [b'"snapshot":false,', b'"snapshot":null,', b""])
def test_every_frame_is_the_whole_book_whatever_it_says_of_snapshots(how: bytes) -> None:
    korbit = make(Korbit)
    korbit.handle(BOOK, 1)
    korbit.handle(BOOK.replace(b'"snapshot":true,', how).replace(b"116453000", b"116454000"), 2)
    korbit.flush()
    stored = Stored(korbit.setup.intake).take()
    assert stored.only.book[0] == {"116455000": "0.00499", "116454000": "3"}


def test_a_halted_market_has_one_book_with_empty_sides_and_an_old_time() -> None:
    korbit = make(Korbit, "NOPE-KRW")
    korbit.handle(frame_of("korbit", "the one book of a halted market"), 1)
    korbit.flush()
    stored = Stored(korbit.setup.intake).take()
    assert stored.only.book == ({}, {})
    assert stored.only.rows[0].bids == stored.only.rows[0].asks == "[]"


def test_the_time_is_that_of_the_book_not_that_of_sending() -> None:
    (book,) = make(Korbit).parse(BOOK, 0)
    assert isinstance(book, Book)
    assert book.venue_us == 1790134242563000


def test_text_keeps_its_digits() -> None:
    korbit = make(Korbit)
    korbit.handle(BOOK, 1)
    assert korbit.books["BTC-KRW"].book.asks.as_text(highest_first=False)[1] == ("116538000", "0.00665630")


@pytest.mark.parametrize(
    ("message", "market"),
    [
        ("The symbol does not exist (nope_krw)", "NOPE-KRW"),
        ("The symbol (a) does not exist (nope_krw)", "NOPE-KRW"),
        ("The symbol does not exist", None),
        ("broken)", None),
        ("The symbol does not exist (nope_krw", None),
    ],
)
def test_a_refusal_names_its_market_where_the_message_does(message: str, market: str | None) -> None:
    frame = json.dumps({"status": "fail", "code": "INVALID_SYMBOL", "message": message}).encode()
    (refused,) = make(Korbit).handle(frame, 1)
    assert refused == Refused(f"INVALID_SYMBOL {message}", market)


def test_it_needs_no_keepalive_since_the_server_pings() -> None:
    assert Korbit.keepalive_text is None
    assert Korbit.stale_s > 2 * 30


@pytest.mark.parametrize(
    "frame",
    [
        BOOK.replace(b'"0.00499"', b'"-0.00499"'),
        BOOK.replace(b'"0.00499"', b'"NaN"'),
        BOOK.replace(b'"0.00499"', b'"1E999999999"'),
        BOOK.replace(b'"0.00499"', b"null"),
        BOOK.replace(b'"116455000"', b'"0"'),
        BOOK.replace(b"btc_krw", b"doge_krw"),
    ],
)
def test_an_absurd_book_is_kept_raw_and_never_stored_as_data(frame: bytes) -> None:
    korbit = make(Korbit)
    korbit.handle(frame, 1)
    korbit.flush()
    stored = Stored(korbit.setup.intake).take()
    assert [rejected.frame for rejected in stored.rejected] == [frame]
    assert not stored.epochs


def test_the_book_over_rest_is_in_an_envelope() -> None:
    korbit = make(Korbit)
    assert korbit.probe_path("BTC-KRW") == "/v2/orderbook?symbol=btc_krw"
    (book,) = told([korbit.parse_probe("BTC-KRW", json.dumps(REST_BOOK).encode())])
    assert (book["bids"], book["asks"]) == ([["73303000", "0.00898326"]], [["73304000", "0.0010"]])
    with pytest.raises(SourceError):
        korbit.parse_probe("BTC-KRW", b'{"success":false,"error":{"code":400,"message":"INVALID_CURRENCY_PAIR"}}')


def test_the_listing_holds_launched_pairs_only() -> None:
    rows = [{"symbol": "btc_krw", "status": "launched"}, {"symbol": "luna_krw", "status": "stopped"}]
    assert Korbit.parse_listing(json.dumps({"success": True, "data": rows}).encode()) == ["BTC-KRW"]
    with pytest.raises(SourceError):
        Korbit.parse_listing(b'{"success":false,"error":{"code":404,"message":"NOT_FOUND"}}')


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Korbit, "korbit")


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    listing = '{"success":true,"data":[{"symbol":"btc_krw","status":"launched"}]}'
    hold_to_any_answers(Korbit, [json.dumps(REST_BOOK), listing, '{"success":false}'])


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_every_recorded_book_comes_out_level_for_level_and_digit_for_digit(wire: Path) -> None:
    korbit = make(Korbit)
    books = 0
    for line in recorded(wire, "korbit"):
        frame = exactly(line.data)
        if not isinstance(frame, dict) or frame.get("type") != "orderbook":
            continue
        symbol, currency = frame["symbol"].upper().split("_")
        data = frame["data"]
        bids, asks = side(data["bids"], "price", "qty"), side(data["asks"], "price", "qty")
        message = check_book(korbit, line.data, f"{symbol}-{currency}", bids, asks)
        assert message.venue_us == data["timestamp"] * 1000
        assert message.bids == {row["price"]: row["qty"] for row in data["bids"]}
        assert message.asks == {row["price"]: row["qty"] for row in data["asks"]}
        books += 1
    assert books == 1 + 3 + 1


def test_what_is_recorded_beside_books_is_known_or_refused(wire: Path) -> None:
    korbit = make(Korbit)
    kinds: set[str] = set()
    for line in recorded(wire, "korbit"):
        if '"orderbook"' in line.data:
            continue
        try:
            kinds |= {next(iter(each)) for each in told(korbit.parse(line.data.encode(), 0))} or {"nothing"}
        except SourceError as error:
            kinds.add(str(error))
    assert kinds == {"nothing", "refused", "type was 'ticker', status None", "type was 'trade', status None"}


def test_recorded_answers_over_rest_are_read(wire: Path) -> None:
    korbit = make(Korbit)
    read = 0
    for line in recorded(wire, "korbit", "rest"):
        answer = exactly(line.data)
        if "/v2/currencyPairs" in line.url:
            launched = [row for row in answer["data"] if row["status"] == "launched"]
            assert Korbit.parse_listing(line.data.encode()) == [
                row["symbol"].replace("_", "-").upper() for row in launched
            ]
        elif not answer["success"]:
            with pytest.raises(SourceError):
                korbit.parse_probe("BTC-KRW", line.data.encode())
        elif "/v2/orderbook" in line.url:
            book = korbit.parse_probe("BTC-KRW", line.data.encode())
            assert numbers(book.bids) == side(answer["data"]["bids"], "price", "qty")
            assert numbers(book.asks) == side(answer["data"]["asks"], "price", "qty")
            read += 1
    assert read == 1
