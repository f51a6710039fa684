import json
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collector.errors import BadFrame, SourceError
from collector.records import CHANNELS, CHECKSUM_MISMATCH, TRADES, Book, Candle, Ticker, Trade
from controllers.upbit import Upbit
from tests.controllers.streams import hearing, hold_to_any_streams, korean_us
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
from tests.fakes import Stored, make_setup

BOOK = frame_of("upbit", "a book in SIMPLE, which is asked for")
TRADE = frame_of("upbit", "a trade in SIMPLE")
CANDLE = frame_of("upbit", "a candle in SIMPLE")
LONG = {
    "ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size", "ty": "type", "cd": "code",
    "tms": "timestamp", "obu": "orderbook_units", "tas": "total_ask_size", "tbs": "total_bid_size",
}  # fmt: skip


@pytest.mark.parametrize("case", cases("upbit"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Upbit))


def test_one_frame_subscribes_to_every_market_in_short_keys() -> None:
    upbit = make(Upbit, "BTC-KRW", "ETH-KRW", "ETH-BTC")
    (text,) = upbit.subscribe_messages(upbit.markets)
    ticket, orders, form = json.loads(text)
    assert list(ticket) == ["ticket"]
    assert len(ticket["ticket"]) == 36
    assert orders == {"type": "orderbook", "codes": ["KRW-BTC", "KRW-ETH", "BTC-ETH"]}
    assert form == {"format": "SIMPLE"}
    (again,) = upbit.subscribe_messages(upbit.markets)
    assert json.loads(again)[0] != ticket


def test_a_price_with_an_exponent_is_the_price_without() -> None:
    upbit = make(Upbit)
    upbit.handle(frame_of("upbit", "a book in DEFAULT"), 1)
    upbit.handle(BOOK, 2)  # the same levels, spelt as SIMPLE does
    upbit.flush()
    assert len(Stored(upbit.setup.intake).take().only.rows) == 1
    assert upbit.books["BTC-KRW"].book.bids.as_text(highest_first=True) == [
        ("116534000", "0.00079276"),
        ("116521000", "1"),
    ]


def test_a_thin_side_is_filled_up_with_price_and_size_nought() -> None:
    units = [{"ap": 11, "bp": 10, "as": 1, "bs": 1}] + [{"ap": 0, "bp": 9 - i, "as": 0, "bs": 1} for i in range(3)]
    (book,) = make(Upbit).parse(json.dumps({"ty": "orderbook", "cd": "KRW-BTC", "obu": units}).encode(), 0)
    assert isinstance(book, Book)
    assert book.asks == {11: 1}
    assert book.bids == {10: 1, 9: 1, 8: 1, 7: 1}


@pytest.mark.parametrize("written", [1691530805062000, 1691530805062])
def test_a_time_in_microseconds_is_told_by_its_magnitude(written: int) -> None:
    (book,) = make(Upbit).parse(BOOK.replace(b"1790134742106", str(written).encode()), 0)
    assert isinstance(book, Book)
    assert book.venue_us == 1691530805062000


@pytest.mark.parametrize("spoiled", [(b'"tas":0.15', b'"tas":0.16'), (b'"tbs":1.00079276', b'"tbs":1.00079277')])
def test_totals_that_do_not_add_up_flag_the_book_and_keep_it(spoiled: tuple[bytes, bytes]) -> None:
    upbit = make(Upbit)
    upbit.handle(BOOK.replace(*spoiled), 1)
    upbit.flush()
    (row,) = Stored(upbit.setup.intake).take().only.rows
    assert row.flags & CHECKSUM_MISMATCH


def test_an_idle_socket_is_kept_by_the_text_ping() -> None:
    assert Upbit.keepalive_text == "PING"
    assert Upbit.keepalive_s < 60
    assert Upbit.stale_s < 60


@pytest.mark.parametrize(
    "frame",
    [
        BOOK.replace(b'"as":0.1', b'"as":-0.1'),
        BOOK.replace(b'"ap":116606000', b'"ap":-116606000'),
        BOOK.replace(b'"as":0.1', b'"as":1E999999999'),
        BOOK.replace(b'"as":0.1', b'"as":' + b"9" * 400),
        BOOK.replace(b'"as":0.1', b'"as":"abc"'),
        BOOK.replace(b'"as":0.1', b'"as":null'),
        BOOK.replace(b'"tbs":1.00079276', b'"tbs":null'),
        BOOK.replace(b'"tas":0.15', b'"tas":"x"'),
        BOOK.replace(b"KRW-BTC", b"KRW-DOGE"),
        BOOK[:20] + b"\xff\xfe" + BOOK[20:],
    ],
)
def test_an_absurd_book_is_kept_raw_and_never_stored_as_data(frame: bytes) -> None:
    upbit = make(Upbit)
    upbit.handle(frame, 1)
    upbit.flush()
    stored = Stored(upbit.setup.intake).take()
    assert [rejected.frame for rejected in stored.rejected] == [frame]
    assert not stored.epochs


def test_the_book_over_rest_is_the_one_of_the_socket() -> None:
    upbit = make(Upbit)
    assert upbit.probe_path("BTC-KRW") == "/v1/orderbook?markets=KRW-BTC&count=30"
    units = [{"bid_price": 10, "bid_size": 0.5, "ask_price": 11, "ask_size": 1}]
    units += [{"bid_price": 9 - i, "bid_size": 2, "ask_price": 0, "ask_size": 0} for i in range(3)]
    answer = upbit.parse_probe("BTC-KRW", json.dumps([{"market": "KRW-BTC", "orderbook_units": units}]).encode())
    assert told([answer])[0]["bids"] == [[10, "0.5"], [9, 2], [8, 2], [7, 2]]
    assert told([answer])[0]["asks"] == [[11, 1]]


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'[{"market":"KRW-BTC"}]', b"[{},{}]", b"<html>", b"", b"null", b'[{"orderbook_units":[{}]}]',
     b'{"error":{"name":404,"message":"Code not found"}}',
     b'[{"orderbook_units":[{"bid_price":[],"bid_size":1,"ask_price":1,"ask_size":1}]}]'],
)  # fmt: skip
def test_an_answer_over_rest_of_another_shape_is_a_source_error(body: bytes) -> None:
    with pytest.raises(SourceError):
        make(Upbit).parse_probe("BTC-KRW", body)


def test_the_listing_is_given_in_house_form() -> None:
    assert Upbit.parse_listing(b'[{"market":"KRW-BTC","korean_name":"x"},{"market":"BTC-ETH"}]') == [
        "BTC-KRW",
        "ETH-BTC",
    ]
    for body in (b'{"error":{}}', b"[1]", b'[{"name":"KRW-BTC"}]', b'[{"market":5}]', b"x"):
        with pytest.raises(BadFrame):
            Upbit.parse_listing(body)


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Upbit, "upbit")


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    unit = '{"bid_price":10,"bid_size":0.5,"ask_price":11,"ask_size":1}'
    book = f'{{"market":"KRW-BTC","orderbook_units":[{unit},{unit.replace("1", "2")}]}}'
    hold_to_any_answers(Upbit, [f"[{book}]", f"[{book},{book}]", '[{"market":"KRW-BTC"}]', '{"error":{"name":404}}'])


# --- trades, tickers, candles -----------------------------------------------------------------------------------------


def test_one_frame_subscribes_to_every_channel() -> None:
    upbit = hearing(Upbit, "BTC-KRW", "ETH-BTC")
    assert upbit.channels == CHANNELS
    (text,) = upbit.subscribe_messages(upbit.markets)
    _, *wanted, form = json.loads(text)
    codes = ["KRW-BTC", "BTC-ETH"]
    assert wanted == [{"type": name, "codes": codes} for name in ("orderbook", "trade", "ticker", "candle.1m")]
    assert form == {"format": "SIMPLE"}


def test_trades_alone_are_subscribed_to_alone() -> None:
    upbit = hearing(Upbit, channels=(TRADES,))
    (text,) = upbit.subscribe_messages(upbit.markets)
    assert [part.get("type") for part in json.loads(text)] == [None, "trade", None]


def test_the_latest_trade_that_comes_first_again_is_the_trade_it_was() -> None:
    (live,) = make(Upbit).parse(TRADE, 0)
    (again,) = make(Upbit).parse(TRADE.replace(b"REALTIME", b"SNAPSHOT").replace(b"1618678262712", b"1618678299999"), 0)
    assert live == again


@pytest.mark.parametrize("number", [2**53 + 1, 862683813820523889, 2**64 + 1])
def test_a_number_of_a_trade_beyond_what_a_float_holds_is_kept_exactly(number: int) -> None:
    (trade,) = make(Upbit).parse(TRADE.replace(b"1618678262000003", str(number).encode()), 0)
    assert isinstance(trade, Trade)
    assert trade.id == str(number)


def test_a_candle_begins_in_utc_and_is_never_said_to_be_closed() -> None:
    (candle,) = make(Upbit).parse(CANDLE, 0)
    assert isinstance(candle, Candle)
    assert candle.open_us == korean_us("2026-09-25T03:26:00")
    assert (candle.interval_s, candle.closed) == (60, False)


def test_any_bytes_on_any_channel_end_in_one_outcome() -> None:
    hold_to_any_streams(Upbit, "upbit")


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_every_recorded_book_comes_out_level_for_level(wire: Path) -> None:
    upbit = make(Upbit)
    books = complete = 0
    for line in recorded(wire, "upbit"):
        frame = exactly(line.data)
        if not isinstance(frame, dict) or "orderbook" not in (frame.get("type"), frame.get("ty")):
            continue
        frame = {LONG.get(key, key): value for key, value in frame.items()}
        rows = [{LONG.get(key, key): value for key, value in unit.items()} for unit in frame["orderbook_units"]]
        bids, asks = side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size")
        quote, base = frame["code"].split("-")
        message = check_book(upbit, line.data, f"{base}-{quote}", bids, asks)
        assert message.venue_us in (frame["timestamp"], frame["timestamp"] * 1000), line.where
        assert (message.venue_us or 0) > 10**15, line.where
        totals = (frame.get("total_ask_size"), frame.get("total_bid_size"))
        if None not in totals:
            assert message.totals is not None
            assert tuple(Decimal(str(token)) for token in message.totals) == totals
        books += 1
        if line.where.startswith("cryptofeed"):
            complete += 1
            assert len(message.bids) == len(message.asks) == 15
    assert complete == 145
    assert books >= 145 + 1 + 6 + 2 + 1


def test_the_totals_of_every_complete_recorded_book_add_up(wire: Path) -> None:
    upbit = make(Upbit)
    checked = 0
    for line in recorded(wire, "upbit"):
        if line.where.startswith("cryptofeed") or line.where in ("samples_ws_verbatim.ndjson:4",):
            if '"orderbook"' not in line.data:
                continue
            (message,) = upbit.parse(line.data.encode(), 0)
            assert isinstance(message, Book)
            assert message.totals is not None
            kept = make(Upbit).books["BTC-KRW"].book
            kept.replace(message)
            assert kept.adds_up_to(message.totals), line.where
            checked += 1
    assert checked == 146


LONG_EVENT = {
    "ty": "type", "cd": "code", "tms": "timestamp", "tp": "trade_price", "tv": "trade_volume", "ab": "ask_bid",
    "td": "trade_date", "ttm": "trade_time", "ttms": "trade_timestamp", "sid": "sequential_id",
}  # fmt: skip


def recorded_events(wire: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the recorded frames of a channel with an independent reading of each, in long keys."""
    found = []
    for line in recorded(wire, "upbit"):
        frame = exactly(line.data)
        if isinstance(frame, dict) and kind in (frame.get("type"), frame.get("ty")):
            found.append((line.data, {str(LONG_EVENT.get(key, key)): value for key, value in frame.items()}))
    return found


def test_every_recorded_trade_comes_out_exactly(wire: Path) -> None:
    upbit, read = make(Upbit), 0
    for text, said in recorded_events(wire, "trade"):
        if "sequential_id" not in said:  # cut by its publisher
            with pytest.raises(BadFrame, match="trade id was None"):
                upbit.parse(text.encode(), 0)
            continue
        (trade,) = upbit.parse(text.encode(), 0)
        assert isinstance(trade, Trade)
        assert trade.id == str(said["sequential_id"])
        assert Decimal(trade.price) == said["trade_price"]
        assert Decimal(trade.size) == said["trade_volume"]
        assert trade.side == {"ASK": "sell", "BID": "buy"}[said["ask_bid"]]
        assert trade.venue_us == said["trade_timestamp"] * 1000
        in_korea = korean_us(f"{said['trade_date']}T{said['trade_time']}")
        assert trade.venue_us // 1_000_000 * 1_000_000 == in_korea + 9 * 3_600_000_000, "what is written is UTC"
        read += 1
    assert read == 304 + 2 + 2 + 1


def test_recorded_numbers_of_trades_are_unique_and_step_back(wire: Path) -> None:
    numbers = [
        int(said["sequential_id"])
        for _, said in recorded_events(wire, "trade")
        if said["code"] == "KRW-LAMB" and "sequential_id" in said
    ]
    assert len(set(numbers)) == len(numbers) == 299
    assert sum(later < earlier for earlier, later in pairwise(numbers)) == 6


def test_every_recorded_ticker_comes_out_exactly(wire: Path) -> None:
    tickers = recorded_events(wire, "ticker")
    for text, said in tickers:
        (ticker,) = make(Upbit).parse(text.encode(), 0)
        assert isinstance(ticker, Ticker)
        assert ticker.last is not None
        assert ticker.volume is not None
        assert Decimal(ticker.last) == said["trade_price"]
        assert Decimal(ticker.volume) == said["acc_trade_volume_24h"]
        assert (ticker.bid, ticker.ask) == (None, None)
        assert ticker.venue_us == said["timestamp"] * 1000
    assert len(tickers) == 3


def test_every_recorded_candle_comes_out_exactly_unless_no_minute_begins_there(wire: Path) -> None:
    (live, said), (documented, _) = sorted(recorded_events(wire, "candle.1m"), key=lambda row: row[1]["code"])
    (candle,) = make(Upbit).parse(live.encode(), 0)
    assert isinstance(candle, Candle)
    assert candle.open_us == korean_us(said["candle_date_time_kst"])
    prices = [candle.open, candle.high, candle.low, candle.close]
    keys = ("opening_price", "high_price", "low_price", "trade_price")
    assert [Decimal(price) for price in prices] == [said[key] for key in keys]
    assert Decimal(candle.volume) == said["candle_acc_trade_volume"]
    with pytest.raises(BadFrame, match="a candle of one minute can't begin"):
        make(Upbit).parse(documented.encode(), 0)


def test_what_is_recorded_beside_data_is_known_or_refused(wire: Path) -> None:
    upbit = make(Upbit)
    kinds: set[object] = set()
    for line in recorded(wire, "upbit"):
        if any(f'"{kind}"' in line.data for kind in ("orderbook", "trade", "ticker", "candle.1m")):
            continue
        try:
            kinds.add(len(list(upbit.parse(line.data.encode(), 0))))
        except SourceError as error:
            kinds.add(str(error).split(":")[0])
    assert kinds == {0, "NO_TICKET", "WRONG_FORMAT", "INVALID_PARAM"}


def test_recorded_books_over_rest_are_read(wire: Path) -> None:
    upbit = make(Upbit)
    read = 0
    for line in recorded(wire, "upbit", "rest"):
        if "/v1/market/all" in line.url:
            rows = exactly(line.data)
            assert Upbit.parse_listing(line.data.encode()) == [
                "-".join(reversed(row["market"].split("-"))) for row in rows
            ]
        elif "/v1/orderbook?" in line.url and line.data.startswith("["):
            (book,) = exactly(line.data)
            kept = make(Upbit).books["BTC-KRW"].book
            kept.replace(upbit.parse_probe("BTC-KRW", line.data.encode()))
            rows = book["orderbook_units"]
            assert kept.as_numbers() == (side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size"))
            read += 1
        elif '"error"' in line.data:
            with pytest.raises(SourceError):
                upbit.parse_probe("BTC-KRW", line.data.encode())
    assert read == 2


def test_the_recorded_feed_becomes_one_epoch_a_market_without_a_frame_unaccounted(wire: Path) -> None:
    markets: list[str] = []
    frames = [line.data for line in recorded(wire, "upbit") if line.where.startswith("cryptofeed")]
    frames = [frame for frame in frames if '"orderbook"' in frame]
    for frame in frames:
        quote, base = exactly(frame)["cd"].split("-")
        if f"{base}-{quote}" not in markets:
            markets.append(f"{base}-{quote}")
    setup = make_setup()
    upbit = make(Upbit, *markets, setup=setup)
    for at, frame in enumerate(frames):
        upbit.handle(frame.encode(), at)
    upbit.flush()
    stored = Stored(setup.intake).take()
    assert len(stored.epochs) == len(markets)
    assert sum(epoch.frames for epoch in stored.epochs.values()) == 145
    assert {epoch.verdict for epoch in stored.epochs.values()} == {"checksummed"}
    last = {}
    for frame in frames:
        decoded = exactly(frame)
        last[decoded["cd"]] = decoded["obu"]
    for code, rows in last.items():
        quote, base = code.split("-")
        (epoch,) = stored.of(f"{base}-{quote}")
        bids, asks = ({Decimal(p): Decimal(s) for p, s in part.items()} for part in epoch.book)
        assert (bids, asks) == (side(rows, "bp", "bs"), side(rows, "ap", "as"))
