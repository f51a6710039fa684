import json
from pathlib import Path

import pytest

from collector.errors import SourceError
from collector.records import CANDLES, CHANNELS, TICKER, TRADES, Book, Refused, Ticker, Trade
from controllers.korbit import Korbit, KorbitCandles
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


# --- trades, tickers, candles -----------------------------------------------------------------------------------------

MINUTE = {
    "timestamp": 1790134140000, "open": "116440000", "high": "116460000", "low": "116430000", "close": "116450000",
    "volume": "0.12340",
}  # fmt: skip


def test_a_request_is_made_for_each_channel_of_each_market_and_its_number_tells_which() -> None:
    korbit = hearing(Korbit, "BTC-KRW", "ETH-KRW")
    assert korbit.channels == CHANNELS[:3]
    (text,) = korbit.subscribe_messages(korbit.markets)
    asked = [(part["requestId"], part["type"], part["symbols"]) for part in json.loads(text)]
    assert asked == [
        (1, "orderbook", ["btc_krw"]), (2, "orderbook", ["eth_krw"]), (3, "trade", ["btc_krw"]),
        (4, "trade", ["eth_krw"]), (5, "ticker", ["btc_krw"]), (6, "ticker", ["eth_krw"]),
    ]  # fmt: skip
    answers = [korbit.parse(f'{{"status":"success","requestId":{number}}}'.encode(), 0) for number in range(8)]
    assert [told(answer) for answer in answers] == [
        [], [], [], [{"subscribed": "trades", "market": "BTC-KRW"}], [{"subscribed": "trades", "market": "ETH-KRW"}],
        [{"subscribed": "ticker", "market": "BTC-KRW"}], [{"subscribed": "ticker", "market": "ETH-KRW"}], [],
    ]  # fmt: skip


def test_one_market_that_is_subscribed_to_again_keeps_its_numbers() -> None:
    korbit = hearing(Korbit, "BTC-KRW", "ETH-KRW", channels=(TRADES, TICKER))
    (text,) = korbit.subscribe_messages(["ETH-KRW"])
    assert [part["requestId"] for part in json.loads(text)] == [2, 4]


def test_the_latest_trade_that_comes_first_again_is_the_trade_it_was() -> None:
    frame = frame_of("korbit", "a first trade, the latest one again")
    later = frame.replace(b'"snapshot":true,', b"").replace(b"1790134328085", b"1790134317600")
    assert list(make(Korbit).parse(frame, 0)) == list(make(Korbit).parse(later, 0))


def test_trades_of_a_frame_are_told_by_their_number() -> None:
    trades = make(Korbit).parse(frame_of("korbit", "two trades, the later one first"), 0)
    assert [trade.id for trade in trades if isinstance(trade, Trade)] == ["25441721", "25441723"]


def test_candles_are_polled_of_one_market_at_a_time() -> None:
    assert hearing(KorbitCandles).channels == (CANDLES,)
    assert make(KorbitCandles).poll_path(CANDLES, "BTC-KRW", 0) == "/v2/candles?symbol=btc_krw&interval=1&limit=10"


def test_all_polled_candles_but_the_newest_are_closed() -> None:
    rows = [MINUTE, {**MINUTE, "timestamp": 1790134200000}]
    first, second = polled(make(KorbitCandles), CANDLES, {"success": True, "data": rows})
    assert first == {
        "candle": "BTC-KRW", "prices": ["116440000", "116460000", "116430000", "116450000"], "interval_s": 60,
        "open_us": korean_us("2026-09-23T12:29:00"), "volume": "0.12340", "closed": True, "venue_us": None,
    }  # fmt: skip
    assert (second["open_us"], second["closed"]) == (1790134200000000, False)
    assert polled(make(KorbitCandles), CANDLES, {"success": True, "data": []}) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"success": False, "error": {"code": 400, "message": "INVALID_CURRENCY_PAIR"}},
        {"success": True},
        {"success": True, "data": [{**MINUTE, "timestamp": 1790134140001}]},
        {"success": True, "data": [{"timestamp": 1790134140000}]},
        [],
    ],
)
def test_an_answer_that_holds_no_candles_is_a_source_error(answer: object) -> None:
    with pytest.raises(SourceError):
        polled(make(KorbitCandles), CANDLES, answer)


def test_any_answer_to_a_poll_gives_candles_or_a_source_error() -> None:
    good = json.dumps({"success": True, "data": [MINUTE, MINUTE]})
    hold_to_any_polls(KorbitCandles, CANDLES, [good, '{"success":false}'])


def test_any_bytes_on_any_channel_end_in_one_outcome() -> None:
    hold_to_any_streams(Korbit, "korbit")


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
    assert kinds == {"nothing", "refused", "trade", "ticker"}


def test_every_recorded_trade_and_ticker_comes_out_digit_for_digit(wire: Path) -> None:
    korbit = make(Korbit)
    read: list[str] = []
    for line in recorded(wire, "korbit"):
        frame = exactly(line.data)
        if not isinstance(frame, dict) or frame.get("type") not in ("trade", "ticker"):
            continue
        (message,) = korbit.parse(line.data.encode(), 0)
        market = frame["symbol"].upper().replace("_", "-")
        if isinstance(message, Trade):
            (said,) = frame["data"]
            assert (message.market, message.id) == (market, str(said["tradeId"]))
            assert message.side == ("buy" if said["isBuyerTaker"] else "sell")
            assert (message.price, message.size) == (said["price"], said["qty"])
            assert message.venue_us == int(said["timestamp"]) * 1000
        else:
            said = frame["data"]
            prices = said["close"], said["bestBidPrice"], said["bestAskPrice"]
            assert message == Ticker(market, *prices, said["volume"], int(frame["timestamp"]) * 1000)
        read.append(frame["type"])
    assert sorted(read) == ["ticker"] * 5 + ["trade"] * 2


def test_recorded_candles_of_days_begin_at_midnight_in_korea(wire: Path) -> None:
    days = [line for line in recorded(wire, "korbit", "rest") if "interval=1D" in line.url]
    for line in days:
        candles = polled(make(KorbitCandles), CANDLES, line.data)
        said = exactly(line.data)["data"]
        assert [candle["open_us"] for candle in candles] == [
            korean_us(f"2026-08-{day}T00:00:00") for day in (28, 29, 30)
        ]
        assert [candle["prices"] for candle in candles] == [
            [row[name] for name in ("open", "high", "low", "close")] for row in said
        ]
        assert [candle["volume"] for candle in candles] == [row["volume"] for row in said]
    assert len(days) == 1


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
