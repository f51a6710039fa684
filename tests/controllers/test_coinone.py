import json
from pathlib import Path

import pytest

from collector.errors import SourceError, VenueRefused
from collector.records import Refused
from controllers.coinone import Coinone
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
from tests.fakes import Stored, frame_counts, numbers

BOOK = frame_of("coinone", "a book")
ID = b"1790134177753001"
MARKET = {
    "quote_currency": "KRW",
    "target_currency": "BTC",
    "trade_status": 1,
    "maintenance_status": 0,
    "order_book_units": ["0.0"],
}
REST_BOOK = {
    "result": "success",
    "error_code": "0",
    "timestamp": 1701071108673,
    "id": "1701071108673001",
    "bids": [{"price": "50048000", "qty": "0.01080229"}, {"price": "50047000", "qty": "1"}],
    "asks": [{"price": "50058000", "qty": "0.0020"}, {"price": "50059000", "qty": "2"}],
}


@pytest.mark.parametrize("case", cases("coinone"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Coinone))


def test_every_market_is_subscribed_to_by_a_frame_of_its_own() -> None:
    coinone = make(Coinone, "BTC-KRW", "ETH-KRW")
    assert [json.loads(text) for text in coinone.subscribe_messages(coinone.markets)] == [
        {
            "request_type": "SUBSCRIBE",
            "channel": "ORDERBOOK",
            "topic": {"quote_currency": "KRW", "target_currency": symbol},
        }
        for symbol in ("BTC", "ETH")
    ]


def test_asks_come_worst_first_and_are_put_in_order() -> None:
    coinone = make(Coinone)
    coinone.handle(BOOK, 1)
    coinone.flush()
    (row,) = Stored(coinone.setup.intake).take().only.rows
    assert row.asks == '[["116460000","0.0230"],["116650000","0.01198956"]]'
    assert row.bids == '[["116450000","0.0118"],["116440000","12"]]'


def test_a_book_whose_id_is_not_above_the_last_is_a_repeat() -> None:
    coinone = make(Coinone)
    coinone.handle(BOOK, 1)
    coinone.handle(BOOK.replace(b'"12"', b'"13"'), 2)  # the same id
    coinone.handle(BOOK.replace(ID, b"1790134177753000").replace(b'"12"', b'"14"'), 3)
    coinone.flush()
    stored = Stored(coinone.setup.intake).take()
    assert len(stored.only.rows) == 1
    assert stored.only.rows[0].sequence == int(ID)
    assert frame_counts(coinone.setup, "coinone")["duplicate"] == 2
    coinone.handle(BOOK.replace(ID, b"1790134177753002").replace(b'"12"', b'"15"'), 4)
    coinone.flush()
    assert len(stored.take().only.rows) == 2
    assert stored.only.book[0]["116440000"] == "15"


def test_equal_levels_under_a_new_id_are_a_duplicate_too() -> None:
    coinone = make(Coinone)
    coinone.handle(BOOK, 1)
    coinone.handle(BOOK.replace(ID, b"1790134177753002"), 2)
    coinone.flush()
    assert len(Stored(coinone.setup.intake).take().only.rows) == 1
    assert frame_counts(coinone.setup, "coinone")["duplicate"] == 1


def test_a_first_frame_with_a_time_ten_seconds_old_is_a_book_like_any_other() -> None:
    old = BOOK.replace(b":1790134177753,", b":1790134167554,")
    (book,) = told(make(Coinone).parse(old, 0))
    assert (book["venue_us"], book["sequence"]) == (1790134167554000, int(ID))


def test_an_error_names_no_pair_and_leaves_the_socket_open() -> None:
    (refused,) = make(Coinone).handle(frame_of("coinone", "an error that names no pair"), 1)
    assert refused == Refused("160012 Invalid Topic", None)


def test_a_socket_that_sends_nothing_is_kept_by_a_request() -> None:
    assert json.loads(Coinone.keepalive_text or "") == {"request_type": "PING"}
    assert Coinone.keepalive_s < 60.7


@pytest.mark.parametrize(
    "frame",
    [
        BOOK.replace(b'"0.0118"', b'"-0.0118"'),
        BOOK.replace(b'"0.0118"', b'"NaN"'),
        BOOK.replace(b'"0.0118"', b'"1E999999999"'),
        BOOK.replace(b'"0.0118"', b'"' + b"9" * 400 + b'"'),
        BOOK.replace(b'"0.0118"', b"null"),
        BOOK.replace(b'"116450000"', b'"-116450000"'),
        BOOK.replace(b'"BTC"', b'"DOGE"'),
    ],
)
def test_an_absurd_book_is_kept_raw_and_never_stored_as_data(frame: bytes) -> None:
    coinone = make(Coinone)
    coinone.handle(frame, 1)
    coinone.flush()
    stored = Stored(coinone.setup.intake).take()
    assert [rejected.frame for rejected in stored.rejected] == [frame]
    assert not stored.epochs


def test_the_book_over_rest_has_its_asks_best_first() -> None:
    coinone = make(Coinone)
    assert coinone.probe_path("BTC-KRW") == "/public/v2/orderbook/KRW/BTC?size=16"
    (book,) = told([coinone.parse_probe("BTC-KRW", json.dumps(REST_BOOK).encode())])
    assert book["bids"] == [["50048000", "0.01080229"], ["50047000", "1"]]
    assert book["asks"] == [["50058000", "0.0020"], ["50059000", "2"]]


def test_errors_come_with_http_200() -> None:
    body = b'{"result":"error","error_code":"108","error_msg":"Unknown CryptoCurrency"}'
    with pytest.raises(VenueRefused, match="108 Unknown CryptoCurrency"):
        make(Coinone).parse_probe("BTC-KRW", body)
    with pytest.raises(VenueRefused, match="108 Unknown CryptoCurrency"):
        Coinone.parse_listing(body)


def test_a_page_of_html_with_http_200_is_no_answer() -> None:
    for read in (Coinone.parse_listing, lambda body: make(Coinone).parse_probe("BTC-KRW", body)):
        with pytest.raises(SourceError):
            read(b"<!DOCTYPE html><html></html>")


def test_the_listing_leaves_out_what_is_halted() -> None:
    markets = [
        MARKET,
        {**MARKET, "target_currency": "ETH", "trade_status": 0},
        {**MARKET, "target_currency": "XRP", "maintenance_status": 1},
        {**MARKET, "target_currency": "doge", "quote_currency": "krw"},
    ]
    body = json.dumps({"result": "success", "error_code": "0", "markets": markets}).encode()
    assert Coinone.parse_listing(body) == ["BTC-KRW", "DOGE-KRW"]
    assert Coinone.parse_listing(b'{"result":"success","error_code":"0","markets":[]}') == []


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Coinone, "coinone")


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    listing = {"result": "success", "markets": [MARKET]}
    hold_to_any_answers(Coinone, [json.dumps(REST_BOOK), json.dumps(listing), '{"result":"error"}'])


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_every_recorded_book_comes_out_level_for_level_and_digit_for_digit(wire: Path) -> None:
    coinone = make(Coinone)
    books = 0
    for line in recorded(wire, "coinone"):
        frame = exactly(line.data)
        if "ORDERBOOK" not in (frame.get("channel"), frame.get("c")) or "DATA" not in line.data:
            continue
        if "d" in frame:
            data, price, size = frame["d"], "p", "q"
            pair, bids, asks, number = f"{data['tc']}-{data['qc']}", data["b"], data["a"], data["i"]
        else:
            data, price, size = frame["data"], "price", "qty"
            pair = f"{data['target_currency']}-{data['quote_currency']}"
            bids, asks, number = data["bids"], data["asks"], data["id"]
        message = check_book(coinone, line.data, pair, side(bids, price, size), side(asks, price, size))
        assert message.sequence == int(number)
        assert message.venue_us == data.get("timestamp", data.get("t")) * 1000
        assert message.bids == {row[price]: row[size] for row in bids}
        assert message.asks == {row[price]: row[size] for row in asks}
        books += 1
    assert books == 1 + 2 + 4


def test_what_is_recorded_beside_books_is_known_or_refused(wire: Path) -> None:
    coinone = make(Coinone)
    kinds: set[str] = set()
    for line in recorded(wire, "coinone"):
        if '"ORDERBOOK"' in line.data and "DATA" in line.data:
            continue
        try:
            kinds |= {next(iter(each)) for each in told(coinone.parse(line.data.encode(), 0))} or {"nothing"}
        except SourceError as error:
            kinds.add(str(error))
    assert kinds == {
        "nothing", "refused", "response_type was 'DATA', channel 'TICKER'", "response_type was 'DATA', channel 'TRADE'",
    }  # fmt: skip


def test_recorded_answers_over_rest_are_read(wire: Path) -> None:
    coinone = make(Coinone)
    read = refused = 0
    for line in recorded(wire, "coinone", "rest"):
        if "/public/v2/markets" in line.url:
            assert Coinone.parse_listing(line.data.encode()) == []
        elif "/public/v2/orderbook" in line.url:
            answer = exactly(line.data)
            if answer["result"] != "success":
                with pytest.raises(VenueRefused):
                    coinone.parse_probe("BTC-KRW", line.data.encode())
                refused += 1
                continue
            book = coinone.parse_probe("BTC-KRW", line.data.encode())
            assert numbers(book.bids) == side(answer["bids"], "price", "qty")
            assert numbers(book.asks) == side(answer["asks"], "price", "qty")
            read += 1
    assert (read, refused) == (1, 2)


def test_the_recorded_subscription_is_ours(wire: Path) -> None:
    sent = [json.loads(line.data) for line in recorded(wire, "coinone", direction="out")]
    (ours,) = make(Coinone).subscribe_messages(["BTC-KRW"])
    assert json.loads(ours) in sent
    assert json.loads(Coinone.keepalive_text or "") in sent
