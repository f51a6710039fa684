import json
import re
from pathlib import Path

import pytest

from collector.errors import SourceError
from collector.records import CANDLES, CHANNELS, SAMPLED, TICKER, TRADES, Book, Candle, Ticker, Trade
from controllers import controller_class
from controllers.bithumb import BithumbREST, BithumbWebSocket
from tests.controllers.streams import hearing, hold_to_any_polls, hold_to_any_streams, korean_us, polled
from tests.controllers.venue import (
    Case,
    Recorded,
    cases,
    check_book,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    side,
)
from tests.fakes import Stored, frame_counts

BOOK = frame_of("bithumb", "a book in DEFAULT, which is asked for")
ANSWER = frame_of("bithumb", "an answer of one book", "polls")
LONG = {
    "ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size", "ty": "type", "cd": "code",
    "tms": "timestamp", "obu": "orderbook_units",
}  # fmt: skip


def units(*rows: tuple[object, object, object, object]) -> list[dict[str, object]]:
    return [dict(zip(("ask_price", "ask_size", "bid_price", "bid_size"), row, strict=True)) for row in rows]


def socket_book(*rows: tuple[object, object, object, object]) -> Book:
    frame = json.dumps({"type": "orderbook", "code": "KRW-BTC", "orderbook_units": units(*rows)}).encode()
    (book,) = make(BithumbWebSocket).parse(frame, 0)
    assert isinstance(book, Book)
    return book


@pytest.mark.parametrize("case", cases("bithumb"), ids=str)
def test_every_kind_of_message_of_the_socket_is_read(case: Case) -> None:
    case.check(make(BithumbWebSocket))


@pytest.mark.parametrize("case", cases("bithumb", "polls"), ids=str)
def test_every_kind_of_answer_to_a_poll_is_read(case: Case) -> None:
    case.check(make(BithumbREST))


def test_it_is_polled_unless_the_socket_is_asked_for() -> None:
    assert controller_class("bithumb") is BithumbREST
    assert controller_class("bithumb", "rest") is BithumbREST
    assert controller_class("bithumb", "websocket") is BithumbWebSocket
    assert make(BithumbREST).name != make(BithumbWebSocket).name


def test_one_frame_subscribes_to_every_market() -> None:
    bithumb = make(BithumbWebSocket, "BTC-KRW", "ETH-BTC")
    (text,) = bithumb.subscribe_messages(bithumb.markets)
    ticket, orders, form = json.loads(text)
    assert len(ticket["ticket"]) == 36
    assert orders == {"type": "orderbook", "codes": ["KRW-BTC", "BTC-ETH"]}
    assert form == {"format": "DEFAULT"}


def test_a_poll_asks_for_one_market_since_only_then_it_has_30_levels() -> None:
    assert make(BithumbREST).request_path("BTC-KRW") == "/v1/orderbook?markets=KRW-BTC"
    assert (BithumbREST.depth, BithumbWebSocket.depth) == (30, 15)


@pytest.mark.parametrize("written", ["1790134742106123", "1790134742106"])
def test_a_time_is_microseconds_or_milliseconds_told_by_its_magnitude(written: str) -> None:
    (book,) = make(BithumbWebSocket).parse(BOOK.replace(b"1790134742106123", written.encode()), 0)
    assert isinstance(book, Book)
    assert book.venue_us == int(written.ljust(16, "0"))


def test_size_nought_at_a_live_price_is_left_out_even_as_the_best_level() -> None:
    bithumb = make(BithumbWebSocket)
    kept = bithumb.books["BTC-KRW"].book
    kept.replace(socket_book((11, "0.0", 10, 0), (12, 1, 9, 2), (13, 0.5, 8, 3)))
    assert [text for text, _ in kept.asks.as_text(highest_first=False)] == ["12", "13"]
    assert [text for text, _ in kept.bids.as_text(highest_first=True)] == ["9", "8"]
    assert not kept.crossed


def test_a_level_that_falls_to_nought_is_removed_and_may_come_back() -> None:
    kept = make(BithumbWebSocket).books["BTC-KRW"].book
    kept.replace(socket_book((11, 1, 10, 1)))
    assert kept.replace(socket_book((11, 0, 10, 1))) == ([], [("11", "0")])
    assert kept.replace(socket_book((11, 0, 10, 1))) == ([], [])
    assert kept.replace(socket_book((11, 2, 10, 1))) == ([], [("11", "2")])


def test_a_thin_side_is_filled_up_with_price_nought() -> None:
    book = socket_book((120000000, 15.721, 113000000, 5.5544), (0, 0, 112000000, 1), (0, 0, 111000000, 1))
    assert book.asks == {120000000: "15.721"}
    assert len(book.bids) == 3


def test_totals_are_no_checksum_here_since_sizes_are_rounded() -> None:
    (book,) = make(BithumbWebSocket).parse(BOOK, 0)
    assert isinstance(book, Book)
    assert book.totals is None


def test_an_error_with_http_200_is_told_as_the_exchange_words_it() -> None:
    with pytest.raises(SourceError, match="404: Code not found"):
        make(BithumbREST).parse(frame_of("bithumb", "an error with HTTP 200", "polls"), 0)


def test_polled_rows_say_that_they_are_samples_and_a_repeat_is_a_duplicate() -> None:
    bithumb = make(BithumbREST)
    bithumb.handle(ANSWER, 1)
    bithumb.handle(ANSWER, 2)
    bithumb.handle(ANSWER.replace(b"7.1015", b"7"), 3)
    bithumb.flush()
    rows = Stored(bithumb.setup.intake).take().only.rows
    assert len(rows) == 2
    assert all(row.flags & SAMPLED for row in rows)
    assert frame_counts(bithumb.setup, "bithumb")["duplicate"] == 1


def test_an_idle_socket_is_kept_by_the_text_ping() -> None:
    assert BithumbWebSocket.keepalive_text == "PING"
    assert BithumbWebSocket.keepalive_s < 60
    assert BithumbWebSocket.stale_s < 60


def test_the_listing_is_given_in_house_form_whatever_the_transport() -> None:
    body = b'[{"market":"KRW-BTC","market_warning":"NONE"},{"market":"BTC-ETH"}]'
    assert BithumbREST.parse_listing(body) == BithumbWebSocket.parse_listing(body) == ["BTC-KRW", "ETH-BTC"]
    with pytest.raises(SourceError):
        BithumbREST.parse_listing(b'{"error":{"name":404,"message":"Code not found"}}')


def test_any_bytes_of_the_socket_give_records_or_a_source_error() -> None:
    hold_to_any_frames(BithumbWebSocket, "bithumb")


def test_any_answer_to_a_poll_gives_records_or_a_source_error() -> None:
    hold_to_any_frames(BithumbREST, "bithumb", "polls")


def test_any_listing_is_read_or_a_source_error() -> None:
    hold_to_any_answers(BithumbREST, ['[{"market":"KRW-BTC"},{"market":"BTC-ETH"}]', '{"error":{"name":404}}'])


# --- trades, tickers, candles -----------------------------------------------------------------------------------------

ROW = {
    "market": "KRW-BTC", "trade_date_utc": "2026-07-02", "trade_time_utc": "08:41:10", "timestamp": 1782981670705,
    "trade_price": 95539000, "trade_volume": 0.00022664, "ask_bid": "ASK", "sequential_id": 17829816707050000,
}  # fmt: skip
POLLED_TICKER = {
    "market": "KRW-BTC", "trade_date": "20260701", "trade_time": "233533", "trade_date_kst": "20260702",
    "trade_time_kst": "083533", "trade_timestamp": 1782981333650, "trade_price": 95299000, "trade_volume": 1.4,
    "acc_trade_volume_24h": 310.44065227, "timestamp": 1782981333650,
}  # fmt: skip
MINUTE = {
    "market": "KRW-BTC", "candle_date_time_utc": "2026-07-02T08:59:00", "candle_date_time_kst": "2026-07-02T17:59:00",
    "opening_price": 3, "high_price": 5, "low_price": 1, "trade_price": 4, "timestamp": 1782982784329,
    "candle_acc_trade_price": 0.001155, "candle_acc_trade_volume": 70.5, "unit": 1,
}  # fmt: skip


def test_the_socket_has_no_candles_and_polls_have_everything() -> None:
    assert hearing(BithumbWebSocket).channels == CHANNELS[:3]
    assert hearing(BithumbREST).channels == CHANNELS


def test_one_frame_subscribes_to_every_channel() -> None:
    bithumb = hearing(BithumbWebSocket, "BTC-KRW", "ETH-BTC")
    (text,) = bithumb.subscribe_messages(bithumb.markets)
    _, *wanted, form = json.loads(text)
    codes = ["KRW-BTC", "BTC-ETH"]
    assert wanted == [{"type": name, "codes": codes} for name in ("orderbook", "trade", "ticker")]
    assert form == {"format": "DEFAULT"}


def test_a_trade_is_dated_in_korea_and_stored_in_utc_under_its_exact_number() -> None:
    (trade,) = make(BithumbWebSocket).parse(
        frame_of("bithumb", "a trade, its number beyond 2^53, its written time Korean"), 0
    )
    assert isinstance(trade, Trade)
    assert trade.venue_us == korean_us("2026-07-10T13:39:41") + 138_000
    assert trade.id == "862683813820523888"
    assert int(float("862683813820523889")) != 862683813820523889, "what a float would make of it"


def test_the_latest_trade_that_comes_first_again_is_the_trade_it_was() -> None:
    frame = frame_of("bithumb", "a trade, its number beyond 2^53, its written time Korean")
    again = frame.replace(b"REALTIME", b"SNAPSHOT").replace(b'"timestamp":1783658381398', b'"timestamp":1783658399999')
    assert list(make(BithumbWebSocket).parse(frame, 0)) == list(make(BithumbWebSocket).parse(again, 0))


def test_every_channel_is_polled_at_a_path_of_its_own() -> None:
    bithumb = make(BithumbREST)
    assert [bithumb.poll_path(channel, "BTC-KRW", 0) for channel in CHANNELS] == [
        "/v1/orderbook?markets=KRW-BTC",
        "/v1/trades/ticks?market=KRW-BTC&count=200",
        "/v1/ticker?markets=KRW-BTC",
        "/v1/candles/minutes/1?market=KRW-BTC&count=10",
    ]
    assert set(BithumbREST.poll_every_s) == set(CHANNELS[1:])


def test_polled_books_are_read_as_before() -> None:
    assert list(make(BithumbREST).parse_poll("orderbook", "BTC-KRW", ANSWER, 0)) == list(
        make(BithumbREST).parse(ANSWER, 0)
    )


def test_polled_trades_come_newest_first_and_are_told_oldest_first() -> None:
    newer = {**ROW, "timestamp": 1782981670706, "sequential_id": 17829816707060000, "ask_bid": "BID"}
    older, newest = polled(make(BithumbREST), TRADES, [newer, ROW])
    assert older == {
        "trade": "BTC-KRW", "id": "17829816707050000", "side": "sell", "price": 95539000, "size": "0.00022664",
        "venue_us": 1782981670705000,
    }  # fmt: skip
    assert (newest["id"], newest["side"]) == ("17829816707060000", "buy")


def test_a_polled_ticker_is_nine_hours_ahead() -> None:
    (ticker,) = polled(make(BithumbREST), TICKER, [POLLED_TICKER])
    assert ticker == {
        "ticker": "BTC-KRW", "last": 95299000, "bid": None, "ask": None, "volume": "310.44065227",
        "venue_us": korean_us("2026-07-02T08:35:33") + 650_000,
    }  # fmt: skip


def test_a_polled_ticker_is_right_should_the_exchange_mend_its_clock() -> None:
    true_ms = 1782981333650 - 9 * 3_600_000
    (ticker,) = polled(make(BithumbREST), TICKER, [{**POLLED_TICKER, "trade_timestamp": true_ms, "timestamp": true_ms}])
    assert ticker["venue_us"] == korean_us("2026-07-02T08:35:33") + 650_000


@pytest.mark.parametrize(
    "wrong", [{"trade_time": "233633"}, {"trade_date": "20260731"}, {"trade_time": None}, {"trade_date": "2026-7-1"}]
)
def test_a_polled_ticker_whose_times_contradict_each_other_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SourceError):
        polled(make(BithumbREST), TICKER, [{**POLLED_TICKER, **wrong}])


def test_all_polled_candles_but_the_newest_are_closed() -> None:
    later = {**MINUTE, "candle_date_time_utc": "2026-07-02T09:01:00"}
    first, second = polled(make(BithumbREST), CANDLES, [later, MINUTE])
    assert first == {
        "candle": "BTC-KRW", "prices": [3, 5, 1, 4], "interval_s": 60, "open_us": korean_us("2026-07-02T17:59:00"),
        "volume": "70.5", "closed": True, "venue_us": 1782982784329000,
    }  # fmt: skip
    assert (second["open_us"] - first["open_us"], second["closed"]) == (120_000_000, False)


@pytest.mark.parametrize("channel", CHANNELS[1:])
def test_a_poll_may_hold_nothing_or_an_error_with_http_200(channel: str) -> None:
    assert polled(make(BithumbREST), channel, []) == []
    with pytest.raises(SourceError, match="404: Code not found"):
        polled(make(BithumbREST), channel, {"error": {"name": 404, "message": "Code not found"}})


def test_any_answer_to_a_poll_of_a_stream_gives_messages_or_a_source_error() -> None:
    for channel, row in ((TRADES, ROW), (TICKER, POLLED_TICKER), (CANDLES, MINUTE)):
        hold_to_any_polls(BithumbREST, channel, [json.dumps([row]), json.dumps([row, row]), '{"error":{"name":404}}'])


def test_any_bytes_on_any_channel_end_in_one_outcome() -> None:
    hold_to_any_streams(BithumbWebSocket, "bithumb")


# --- recorded ---------------------------------------------------------------------------------------------------------


def as_sent(line: Recorded) -> str:
    """Undo what publishers did to frames: ccxt shows long integers as text, one frame lost its first two fields."""
    if line.where.startswith("samples_ws_ccxt_comments"):
        return re.sub(r'"(timestamp|sequential_id)":"(\d+)"', r'"\1":\2', line.data)
    if line.data.startswith('{"orderbook_units"'):
        return '{"type":"orderbook","code":"KRW-EGG",' + line.data[1:]
    return line.data


def test_every_recorded_book_of_the_official_socket_comes_out_level_for_level(wire: Path) -> None:
    bithumb = make(BithumbWebSocket)
    books = []
    for line in recorded(wire, "bithumb"):
        text = as_sent(line)
        frame = exactly(text)
        if "ws-api.bithumb.com" not in line.url or "orderbook" not in (frame.get("type"), frame.get("ty")):
            continue
        frame = {LONG.get(key, key): value for key, value in frame.items()}
        rows = [{LONG.get(key, key): value for key, value in unit.items()} for unit in frame["orderbook_units"]]
        quote, base = frame["code"].split("-")
        bids, asks = side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size")
        message = check_book(bithumb, text, f"{base}-{quote}", bids, asks)
        if "timestamp" in frame:
            assert message.venue_us in (frame["timestamp"], frame["timestamp"] * 1000), line.where
            assert (message.venue_us or 0) > 10**15, line.where
        books.append(line.where)
    assert len(books) == 3 + 1 + 6


def test_every_recorded_poll_comes_out_level_for_level(wire: Path) -> None:
    bithumb = make(BithumbREST)
    books = errors = 0
    for line in recorded(wire, "bithumb", "rest"):
        if "/v1/orderbook?" in line.url and line.data.startswith("["):
            (book,) = exactly(line.data)
            quote, base = book["market"].split("-")
            rows = book["orderbook_units"]
            bids, asks = side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size")
            message = check_book(bithumb, line.data, f"{base}-{quote}", bids, asks)
            assert message.venue_us == book["timestamp"] * 1000
            books += 1
        elif line.where.startswith("samples_rest_errors"):
            with pytest.raises(SourceError):
                bithumb.parse(line.data.encode(), 0)
            errors += 1
    assert (books, errors) == (2, 5)


def test_recorded_trades_and_tickers_of_the_socket_come_out_exactly_and_in_utc(wire: Path) -> None:
    bithumb = make(BithumbWebSocket)
    read = 0
    for line in recorded(wire, "bithumb"):
        text = as_sent(line)
        said = exactly(text)
        if "ws-api.bithumb.com" not in line.url or said.get("type") not in ("trade", "ticker"):
            continue
        (message,) = bithumb.parse(text.encode(), 0)
        korean = f"{said['trade_date']}{said['trade_time']}".replace("-", "").replace(":", "")
        traded_us = korean_us(f"{korean[:4]}-{korean[4:6]}-{korean[6:8]}T{korean[8:10]}:{korean[10:12]}:{korean[12:]}")
        assert traded_us == said["trade_timestamp"] // 1000 * 1_000_000, line.where
        if isinstance(message, Trade):
            assert message.venue_us == said["trade_timestamp"] * 1000
            assert message.id == str(said["sequential_id"])
            assert message.side == {"ASK": "sell", "BID": "buy"}[said["ask_bid"]]
            assert (exactly(str(message.price)), exactly(str(message.size))) == (
                said["trade_price"],
                said["trade_volume"],
            )
        else:
            assert isinstance(message, Ticker)
            assert message.venue_us == said["timestamp"] * 1000
            assert exactly(str(message.last)) == said["trade_price"]
            assert message.volume == (str(said["acc_trade_volume_24h"]) if "acc_trade_volume_24h" in said else None)
        read += 1
    assert read == 2 + 2


def test_recorded_trades_tickers_and_candles_over_rest_come_out_in_utc(wire: Path) -> None:
    bithumb = make(BithumbREST)
    read: list[str] = []
    for line in recorded(wire, "bithumb", "rest"):
        text = re.sub(r'"(timestamp|sequential_id)":"(\d+)"', r'"\1":\2', line.data)  # ccxt shows long integers as text
        said = exactly(text)
        if "/v1/trades/ticks" in line.url:
            (trade,) = bithumb.parse_poll(TRADES, "BTC-KRW", text.encode(), 0)
            (row,) = said
            assert isinstance(trade, Trade)
            assert (trade.id, trade.venue_us) == (str(row["sequential_id"]), row["timestamp"] * 1000)
            utc = f"{row['trade_date_utc']}T{row['trade_time_utc']}"
            assert trade.venue_us // 1_000_000 * 1_000_000 == korean_us(utc) + 9 * 3_600_000_000
            read.append("trade")
        elif "/v1/ticker?" in line.url and text.startswith("["):
            (ticker,) = bithumb.parse_poll(TICKER, "BTC-KRW", text.encode(), 0)
            (row,) = said
            assert isinstance(ticker, Ticker)
            date, time = row["trade_date_kst"], row["trade_time_kst"]
            traded = f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}"
            assert ticker.venue_us == korean_us(traded) + row["timestamp"] % 1000 * 1000
            assert ticker.venue_us == row["timestamp"] * 1000 - 9 * 3_600_000_000
            read.append("ticker")
        elif "/v1/candles/" in line.url:
            candles = list(bithumb.parse_poll(CANDLES, "BTC-KRW", text.encode(), 0))
            for candle, row in zip(candles, reversed(said), strict=True):
                assert isinstance(candle, Candle)
                assert candle.open_us == korean_us(row["candle_date_time_kst"])
                if "/days" in line.url:
                    assert row["candle_date_time_kst"].endswith("T00:00:00")
            assert [candle.closed for candle in candles if isinstance(candle, Candle)][-1] is False
            read.append("candles")
    assert sorted(read) == ["candles", "candles", "ticker", "ticker", "trade"]


def test_the_recorded_book_before_a_recorded_trade_says_that_a_taker_who_bids_bought(wire: Path) -> None:
    """The one trade of the official socket with a book of its market close before it: eight seconds, best levels."""
    lines = {line.where: as_sent(line) for line in recorded(wire, "bithumb")}
    (book,) = make(BithumbWebSocket).parse(lines["samples_ws_trimmed_2026.ndjson:3"].encode(), 0)
    (trade,) = make(BithumbWebSocket).parse(lines["samples_ws_trimmed_2026.ndjson:7"].encode(), 0)
    assert isinstance(book, Book)
    assert isinstance(trade, Trade)
    assert book.market == trade.market
    assert 0 < trade.venue_us - (book.venue_us or 0) < 10_000_000
    best_ask, best_bid = min(map(int, book.asks)), max(map(int, book.bids))
    assert (int(trade.price), trade.side) == (best_ask, "buy")
    assert best_bid < best_ask


def test_what_is_recorded_beside_data_is_known_or_refused(wire: Path) -> None:
    bithumb = make(BithumbWebSocket)
    kinds: set[str] = set()
    for line in recorded(wire, "bithumb"):
        if "ws-api.bithumb.com" not in line.url or any(
            f'"{kind}"' in as_sent(line) for kind in ("orderbook", "trade", "ticker")
        ):
            continue
        try:
            assert list(bithumb.parse(line.data.encode(), 0)) == []
            kinds.add("nothing")
        except SourceError as error:
            kinds.add(str(error).split(":")[0])
    assert kinds == {"nothing", "NO_TICKET", "WRONG_FORMAT", "INVALID_PARAM"}
