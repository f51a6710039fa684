import json
from pathlib import Path

import pytest

from collector.errors import SourceError, VenueRefused
from collector.records import CANDLES, CHANNELS, TRADES, Refused, Ticker, Trade
from controllers.coinone import Coinone, CoinoneCandles
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


# --- trades, tickers, candles -----------------------------------------------------------------------------------------

TRADE = frame_of("coinone", "a trade whose maker sold")
MINUTE = {
    "timestamp": 1790134140000, "open": "116440000", "high": "116460000", "low": "116430000", "close": "116450000.0",
    "target_volume": "0.12340", "quote_volume": "14370000",
}  # fmt: skip


def chart(*rows: dict[str, object]) -> dict[str, object]:
    return {"result": "success", "error_code": "0", "is_last": False, "chart": list(rows)}


def test_a_frame_subscribes_to_each_channel_of_each_market() -> None:
    coinone = hearing(Coinone, "BTC-KRW", "XRP-KRW")
    assert coinone.channels == CHANNELS[:3]
    asked = [json.loads(text) for text in coinone.subscribe_messages(coinone.markets)]
    assert [(part["channel"], part["topic"]["target_currency"]) for part in asked] == [
        ("ORDERBOOK", "BTC"), ("TRADE", "BTC"), ("TICKER", "BTC"),
        ("ORDERBOOK", "XRP"), ("TRADE", "XRP"), ("TICKER", "XRP"),
    ]  # fmt: skip
    assert all(part["request_type"] == "SUBSCRIBE" and "format" not in part for part in asked)


def test_trades_alone_are_subscribed_to_alone() -> None:
    coinone = hearing(Coinone, channels=(TRADES,))
    assert [json.loads(text)["channel"] for text in coinone.subscribe_messages(coinone.markets)] == ["TRADE"]


def test_the_taker_bought_where_the_maker_sold() -> None:
    coinone = make(Coinone)
    (bought,) = coinone.parse(TRADE, 0)
    (sold,) = coinone.parse(TRADE.replace(b"true", b"false"), 0)
    assert isinstance(bought, Trade)
    assert isinstance(sold, Trade)
    assert (bought.side, sold.side) == ("buy", "sell")


def test_candles_are_polled_of_one_market_at_a_time() -> None:
    assert hearing(CoinoneCandles).channels == (CANDLES,)
    assert make(CoinoneCandles).poll_path(CANDLES, "BTC-KRW", 0) == "/public/v2/chart/KRW/BTC?interval=1m&size=10"


def test_polled_candles_come_newest_first_and_all_but_that_are_closed() -> None:
    later = {**MINUTE, "timestamp": 1790134200000}
    first, second = polled(make(CoinoneCandles), CANDLES, chart(later, MINUTE))
    assert first == {
        "candle": "BTC-KRW", "prices": ["116440000", "116460000", "116430000", "116450000.0"], "interval_s": 60,
        "open_us": korean_us("2026-09-23T12:29:00"), "volume": "0.12340", "closed": True, "venue_us": None,
    }  # fmt: skip
    assert (second["open_us"], second["closed"]) == (1790134200000000, False)
    assert polled(make(CoinoneCandles), CANDLES, chart()) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"result": "error", "error_code": "108", "error_msg": "Unknown CryptoCurrency"},
        {"result": "success"},
        chart({**MINUTE, "timestamp": 1790134140001}),
        chart({**MINUTE, "timestamp": None}),
        chart({"timestamp": 1790134140000}),
        [],
        "<html>",
    ],
)
def test_an_answer_that_holds_no_candles_is_a_source_error(answer: object) -> None:
    with pytest.raises(SourceError):
        polled(make(CoinoneCandles), CANDLES, answer)


def test_any_answer_to_a_poll_gives_candles_or_a_source_error() -> None:
    hold_to_any_polls(CoinoneCandles, CANDLES, [json.dumps(chart(MINUTE, MINUTE)), '{"result":"error"}'])


def test_any_bytes_on_any_channel_end_in_one_outcome() -> None:
    hold_to_any_streams(Coinone, "coinone")


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
    assert kinds == {"nothing", "refused", "trade", "ticker"}


def test_every_recorded_trade_and_ticker_comes_out_digit_for_digit(wire: Path) -> None:
    coinone = make(Coinone)
    read: list[str] = []
    for line in recorded(wire, "coinone"):
        frame = exactly(line.data)
        if frame.get("channel") not in ("TRADE", "TICKER") or frame["response_type"] != "DATA":
            continue
        (message,) = coinone.parse(line.data.encode(), 0)
        said = frame["data"]
        if isinstance(message, Trade):
            assert (message.market, message.id) == ("BTC-KRW", said["id"])
            assert message.side == ("buy" if said["is_seller_maker"] else "sell")
            assert (message.price, message.size) == (said["price"], said["qty"])
            assert message.venue_us == int(said["timestamp"]) * 1000
            assert said["id"].startswith(str(said["timestamp"]))
        else:
            prices = said["last"], said["bid_best_price"], said["ask_best_price"]
            assert message == Ticker("BTC-KRW", *prices, said["target_volume"], int(said["timestamp"]) * 1000)
        read.append(frame["channel"])
    assert sorted(read) == ["TICKER", "TICKER", "TRADE", "TRADE"]


def test_the_recorded_book_before_a_recorded_trade_says_that_the_taker_bought_where_the_maker_sold(wire: Path) -> None:
    """The one recorded trade with a book of its market right before it: 82 ms, its four best asks and three bids."""
    lines = {line.where: line.data for line in recorded(wire, "coinone")}
    book = exactly(lines["samples_ws_trimmed_20260923.ndjson:2"])["data"]
    (trade,) = make(Coinone).parse(lines["samples_ws_complete_20260923.ndjson:10"].encode(), 0)
    assert isinstance(trade, Trade)
    assert trade.venue_us - int(book["timestamp"]) * 1000 == 82_000
    best_ask, best_bid = min(int(row["price"]) for row in book["asks"]), max(int(row["price"]) for row in book["bids"])
    assert best_bid < best_ask
    assert (int(trade.price), trade.side) == (best_ask, "buy")


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
