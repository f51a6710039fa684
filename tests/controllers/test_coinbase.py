import json
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.errors import SourceError
from collector.records import (
    CANDLES,
    CHANNELS,
    KEYFRAME,
    ORDERBOOK,
    TICKER,
    TRADES,
    BookChange,
    BookRow,
    CandleRow,
    EpochOpened,
    Numbered,
    Subscribed,
    Trade,
)
from controllers import controller_class
from controllers.base import Setup
from controllers.coinbase import Coinbase, CoinbaseCandles
from tests.controllers.linked import check_books, check_stream, epochs_of, subscriptions_of
from tests.controllers.live import Live
from tests.controllers.reference import Player, Reference, each, repeated, skipped, swapped
from tests.controllers.venue import (
    Case,
    cases,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    told,
)
from tests.fakes import FakeClock, HeardLog, make_setup, numbers

EXCHANGE = "cryptofeed_exchange_20210417.ndjson"
REST_BOOK = (
    '{"pricebook":{"product_id":"BTC-USD","bids":[{"price":"1.0","size":"2"}],"asks":[{"price":"3","size":"4"}]}}'
)
PRODUCT = {"product_type": "SPOT", "status": "online", "is_disabled": False, "trading_disabled": False}
PRODUCTS = json.dumps({"products": [{"product_id": "BTC-USD", **PRODUCT}, {"product_id": "BTC-USDC", **PRODUCT}]})
ROWS = [
    {"start": "1712192460", "low": "1", "high": "4", "open": "2", "close": "3.0", "volume": "5.10"},
    {"start": "1712192340", "low": "2", "high": "2", "open": "2", "close": "2", "volume": "0.1"},
]
POLL = json.dumps({"candles": ROWS})


@pytest.mark.parametrize("case", cases("coinbase"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Coinbase))


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Coinbase, "coinbase")


# --- subscribing ------------------------------------------------------------------------------------------------------


def test_heartbeats_and_each_channel_are_asked_for_in_a_message_of_their_own() -> None:
    coinbase = make(Coinbase, "BTC-USD", "ETH-USDC", setup=replace(make_setup(), channels=CHANNELS))
    both = ["BTC-USD", "ETH-USDC"]
    assert [json.loads(text) for text in coinbase.subscribe_messages(coinbase.markets)] == [
        {"type": "subscribe", "channel": "heartbeats"},
        {"type": "subscribe", "channel": "level2", "product_ids": both},
        {"type": "subscribe", "channel": "market_trades", "product_ids": both},
        {"type": "subscribe", "channel": "ticker", "product_ids": both},
    ]
    assert [json.loads(text) for text in make(Coinbase).resync_messages("BTC-USD")] == [
        {"type": "unsubscribe", "channel": "level2", "product_ids": ["BTC-USD"]},
        {"type": "subscribe", "channel": "level2", "product_ids": ["BTC-USD"]},
    ]


def test_candles_are_polled_and_nothing_else_is() -> None:
    assert controller_class("coinbase") is Coinbase
    assert controller_class("coinbase", "rest") is CoinbaseCandles
    assert [cls.carries("BTC-USD", CANDLES) for cls in (Coinbase, CoinbaseCandles)] == [False, True]
    assert [cls.carries("BTC-USD", ORDERBOOK) for cls in (Coinbase, CoinbaseCandles)] == [True, False]
    assert not Coinbase.carries("BTC-USD:USD", TRADES)


@pytest.mark.parametrize(
    ("asked", "product", "heard"),
    [
        (["BTC-USDC"], "BTC-USD", ["BTC-USDC"]),
        (["BTC-USD", "BTC-USDC"], "BTC-USD", ["BTC-USD", "BTC-USDC"]),
        (["BTC-USDC", "BTC-USD"], "BTC-USD", ["BTC-USDC", "BTC-USD"]),
        (["BTC-USDC"], "BTC-USDC", ["BTC-USDC"]),
        (["USDT-USDC"], "USDT-USDC", ["USDT-USDC"]),
        (["USDT-USDC"], "USDT-USD", ["USDT-USD"]),  # a product of its own: nobody asked for that one
        (["BTC-USD"], "ETH-USD", ["ETH-USD"]),
    ],
)
def test_what_is_answered_under_the_other_name_finds_its_markets(
    asked: list[str], product: str, heard: list[str]
) -> None:
    coinbase = make(Coinbase, *asked)
    for name in ("a change", "the complete book, in no order", "a ticker", "trades, newest first"):
        frame = frame_of("coinbase", name).replace(b"BTC-KRW", product.encode())
        markets = [getattr(message, "market", None) for message in coinbase.parse(frame, 0)][1:]
        assert list(dict.fromkeys(markets)) == heard
    ack = frame_of("coinbase", "the subscriptions there are").replace(b"BTC-KRW", product.encode())
    opened = [m.market for m in coinbase.parse(ack, 0) if isinstance(m, Subscribed) and m.channel == TICKER]
    assert opened == [market for market in heard if market in asked]


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_a_change_is_old_only_where_it_came_before_the_book() -> None:
    coinbase = make(Coinbase)
    verdicts = [coinbase.is_old(BookChange("BTC-KRW", {}, {}, None, number), 7) for number in (6, 7, 8)]
    assert verdicts == [True, False, False]  # one frame may hold a book and what followed it


def numbered(frame: bytes, number: int) -> bytes:
    return re.sub(rb'"sequence_num":\d+', b'"sequence_num":%d' % number, frame)


@pytest.mark.parametrize(
    ("order", "caught"),
    [
        ([0, 1, 2, 3, 4], None),
        ([0, 1, 3, 4], 2),  # skipped
        ([0, 1, 2, 2, 3], 3),  # repeated
        ([0, 1, 3, 2, 4], 2),  # swapped
    ],
)
@pytest.mark.parametrize("name", ["a change", "a heartbeat", "a ticker", "the subscriptions there are"])
def test_the_first_frame_out_of_order_ends_the_connection(order: list[int], caught: int | None, name: str) -> None:
    setup = replace(make_setup(log=HeardLog()), channels=CHANNELS)
    coinbase = make(Coinbase, setup=setup)
    coinbase.anchor()
    ended = None
    for place, number in enumerate(order):
        frame = frame_of("coinbase", "the complete book, in no order" if number == 0 else name)
        try:
            coinbase.handle(numbered(frame, number), 6_000_000 + place)
        except SourceError as error:
            ended, told_why = place, str(error)
            break
    assert ended == caught
    if caught is not None:
        assert told_why == f"frame {order[caught]} came after {order[caught - 1]}"


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_every_recorded_frame_is_read(wire: Path) -> None:
    found: list[list[dict[str, Any]]] = []
    for line in recorded(wire, "coinbase"):
        if "advanced-trade" in line.url and "doc_examples" not in line.where:
            found.append(told(make(Coinbase, "BTC-USD").parse(line.data.encode(), 0)))
    trades, ticker, rest = found[:3], found[3:6], found[6:]
    assert [[next(iter(each)) for each in frame] for frame in trades] == [
        ["numbered", *["trade"] * 5],
        ["numbered", "subscribed"],
        ["numbered", "trade", "trade"],
    ]
    ids = [each["id"] for frame in trades for each in frame if "trade" in each]
    assert ids == [str(number) for number in (*range(1069726287, 1069726292), 1069726292, 1069726293)]
    assert {each["side"] for frame in trades for each in frame if "trade" in each} == {"sell"}  # makers bought
    assert trades[2][1] == {
        "trade": "BTC-USD", "id": "1069726292", "side": "sell", "price": "63310.25", "size": "0.00000012",
        "venue_us": 1786562868266642,
    }  # fmt: skip
    assert ticker[2][1] == {
        "ticker": "BTC-USD", "last": "63320.73", "bid": "63318.86", "ask": "63318.87", "volume": "6629.927726",
        "venue_us": 1786562853829058,
    }  # fmt: skip
    assert [frame[0]["numbered"]["sequence"] for frame in trades + ticker] == [0, 1, 2, 0, 1, 2]
    assert rest[0][1] == {
        "book": "BTC-PERP-INTX", "bids": [["79943.9", "3.0105"], ["79943.8", "0.5"]],
        "asks": [["79944.1", "1.2"], ["79944", "0.048"]], "venue_us": 1788746278894355, "sequence": 0, "totals": None,
    }  # fmt: skip
    assert rest[1:] == [
        [{"numbered": {"sequence": 1}}],
        [{"numbered": {"sequence": 2}}],
        [{"numbered": {"sequence": 3}}],
        [{"refused": "authentication failure", "market": None}],
    ]


def test_the_documented_book_is_kept(wire: Path) -> None:
    coinbase = make(Coinbase, "BTC-USD")
    player = Player(coinbase)
    for line in recorded(wire, "coinbase"):
        if "doc_examples" in line.where and "l2_data" in line.data:
            for message in coinbase.parse(line.data.encode(), 0):
                player.take(message)
    assert player.verdicts == {"BTC-USD": ["book", "linked"]}
    assert player.books["BTC-USD"].as_numbers() == (
        numbers({"68900": "2", "68899.50": "0.75", "68899": "2.3"}),
        numbers({"68901.5": "1.2", "68902": "0.8"}),
    )


# No stream of this interface was recorded. One of Coinbase Exchange was, the same market by another interface: told
# here as this one would have.


class Recording:
    """The recording of 2021, as frames of Advanced Trade, beside what it says itself."""

    def __init__(self, wire: Path) -> None:
        self.frames: list[bytes] = []
        self.raw: list[dict[str, Any]] = []
        with (wire / "coinbase" / EXCHANGE).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                message = json.loads(row["data"]) if row["dir"] == "in" else {}
                if message.get("type") in ("snapshot", "l2update", "match"):
                    self.frames.append(json.dumps(self._frame(message)).encode())
                    self.raw.append(message)

    def _frame(self, message: dict[str, Any]) -> dict[str, Any]:
        kind, product = message["type"], message["product_id"]
        head = {"timestamp": "2021-04-17T16:43:37.000000000Z", "sequence_num": len(self.frames)}
        if kind == "match":
            row = {key: message[key] for key in ("price", "size", "time")}
            row |= {"product_id": product, "trade_id": str(message["trade_id"]), "side": message["side"].upper()}
            return {"channel": "market_trades", **head, "events": [{"type": "update", "trades": [row]}]}
        rows = [
            {"side": side, "event_time": message.get("time", head["timestamp"]), "price_level": p, "new_quantity": s}
            for side, p, s in levels(message)
        ]
        event = {"type": kind.replace("l2", ""), "product_id": product, "updates": rows}
        return {"channel": "l2_data", "client_id": "", **head, "events": [event]}


def levels(message: dict[str, Any]) -> list[tuple[str, str, str]]:
    if message["type"] == "snapshot":
        return [(side, *row) for side, name in (("bid", "bids"), ("offer", "asks")) for row in message[name]]
    return [("bid" if side == "buy" else "offer", price, size) for side, price, size in message["changes"]]


@pytest.fixture(scope="module")
def recording(wire: Path) -> Recording:
    return Recording(wire)


def test_every_recorded_book_that_is_stored_equals_a_plain_rebuild(recording: Recording) -> None:
    markets = tuple(dict.fromkeys(message["product_id"] for message in recording.raw))
    clock = FakeClock()
    setup = replace(make_setup(clock=clock), channels=(ORDERBOOK, TRADES))
    coinbase = make(Coinbase, *markets, setup=setup)
    coinbase.anchor()
    books = {market: Reference() for market in markets}
    changes = 0
    for frame, message in zip(recording.frames, recording.raw, strict=True):
        coinbase.handle(frame, clock.advance(0.001))
        if message["type"] == "match":
            continue
        book, rows = books[message["product_id"]], levels(message)
        bids, asks = ([row[1:] for row in rows if row[0] == side] for side in ("bid", "offer"))
        if message["type"] == "snapshot":
            book.replace(bids, asks)
        else:
            book.change(bids, asks)
            changes += 1
        kept = coinbase.books[message["product_id"]].book
        assert not kept.crossed
        if changes % 250 == 0:
            assert kept.as_numbers() == book.both()
        # Between two comparisons level by level: what was touched is alike, and so is the number of levels.
        for side, name, truth in ((kept.bids, "bid", book.bids), (kept.asks, "offer", book.asks)):
            assert len(side.levels) == len(truth)
            for _, price, _ in (row for row in rows if row[0] == name and message["type"] == "l2update"):
                ours = side.levels.get(price)
                assert (None if ours is None else Decimal(str(ours))) == truth.get(Decimal(price))
    coinbase.flush()
    assert (len(markets), changes) == (10, 4745)
    opened, kept_books = rebuilt(setup)
    assert {epoch.market: epoch.verdict for epoch in opened} == dict.fromkeys(markets, "linked")
    assert len(opened) == len(markets)  # one epoch each
    assert {market: book.both() for market, book in kept_books.items()} == {
        market: book.both() for market, book in books.items()
    }


def rebuilt(setup: Setup) -> tuple[list[EpochOpened], dict[str, Reference]]:
    """Return the epochs of books that were stored, and each market's book as its rows make it."""
    opened: dict[int, EpochOpened] = {}
    books: dict[str, Reference] = {}
    for delivery in setup.intake.take(1_000_000):
        for record in delivery.records:
            if isinstance(record, EpochOpened) and record.channel == ORDERBOOK:
                opened[record.epoch] = record
                books[record.market] = Reference()
            elif isinstance(record, BookRow):
                sides = json.loads(record.bids or "[]"), json.loads(record.asks or "[]")
                book = books[opened[record.epoch].market]
                (book.replace if record.flags & KEYFRAME else book.change)(*sides)
    return list(opened.values()), books


@pytest.mark.parametrize("spoil", [skipped, repeated, swapped])
def test_a_recorded_frame_that_is_skipped_repeated_or_swapped_is_caught_there(recording: Recording, spoil: Any) -> None:
    coinbase = make(Coinbase)
    whole = [message.sequence for frame in recording.frames for message in coinbase.parse(frame, 0)
             if isinstance(message, Numbered)]  # fmt: skip
    assert whole == list(range(len(recording.frames)))
    for at in each(len(whole) - 2, 400):
        found = spoil(whole, at + 1)
        broken = next(i for i in range(1, len(found)) if found[i] != found[i - 1] + 1)
        assert broken == at + (2 if spoil is repeated else 1)


def test_the_recorded_matches_name_the_maker(recording: Recording, wire: Path) -> None:
    tickers: dict[tuple[str, str], dict[str, Any]] = {}
    for line in recorded(wire, "coinbase"):
        message = json.loads(line.data)
        if EXCHANGE in line.where and message.get("type") == "ticker" and "trade_id" in message:
            tickers[message["product_id"], str(message["trade_id"])] = message
    at_best = [m["side"] == "buy" for m in tickers.values() if m["price"] == m["best_ask"] != m["best_bid"]]
    at_best += [m["side"] == "sell" for m in tickers.values() if m["price"] == m["best_bid"] != m["best_ask"]]
    assert at_best == [True] * 24  # so a ticker tells what the taker did
    coinbase, agreed = make(Coinbase), 0
    for frame in recording.frames:
        for trade in coinbase.parse(frame, 0):
            if isinstance(trade, Trade) and (ticker := tickers.get((trade.market, str(trade.id)))):
                assert trade.side == ticker["side"]
                agreed += 1
    assert agreed == 31


# --- REST -------------------------------------------------------------------------------------------------------------


def test_the_best_levels_are_compared_over_rest() -> None:
    coinbase = make(Coinbase, "BTC-USD")
    assert coinbase.probe_path("BTC-USD") == "/api/v3/brokerage/market/product_book?product_id=BTC-USD&limit=100"
    (book,) = told([coinbase.parse_probe("BTC-USD", REST_BOOK.encode())])
    assert (book["market"] if "market" in book else book["book"], book["bids"], book["asks"]) == (
        "BTC-USD", [["1.0", "2"]], [["3", "4"]],
    )  # fmt: skip
    for body in (b"{}", b"[]", b'{"pricebook":null}', b'{"error":"NOT_FOUND","message":"x"}'):
        with pytest.raises(SourceError):
            coinbase.parse_probe("BTC-USD", body)


def test_the_listing_has_the_spot_products_that_trade() -> None:
    rows = [
        {"product_id": "BTC-USD", **PRODUCT},
        {"product_id": "ETH-USDC", **PRODUCT},
        {"product_id": "A-USD", **PRODUCT, "status": "delisted"},
        {"product_id": "B-USD", **PRODUCT, "is_disabled": True},
        {"product_id": "C-USD", **PRODUCT, "trading_disabled": True},
        {"product_id": "BIT-24APR26-CDE", **PRODUCT, "product_type": "FUTURE"},
    ]
    assert Coinbase.parse_listing(json.dumps({"products": rows}).encode()) == ["BTC-USD", "ETH-USDC"]
    assert CoinbaseCandles.parse_listing(PRODUCTS.encode()) == ["BTC-USD", "BTC-USDC"]
    for body in (b"[]", b'{"products":[{}]}', b'{"error":"x"}'):
        with pytest.raises(SourceError):
            Coinbase.parse_listing(body)


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    hold_to_any_answers(Coinbase, [PRODUCTS, REST_BOOK, '{"error":"NOT_FOUND","message":"x"}'])


def test_candles_are_asked_for_by_the_minute_and_told_oldest_first() -> None:
    candles = make(CoinbaseCandles, "BTC-USD", setup=replace(make_setup(), channels=(CANDLES,)))
    assert candles.poll_path(CANDLES, "BTC-USD", 1712192465_123456) == (
        "/api/v3/brokerage/market/products/BTC-USD/candles?start=1712192165&end=1712192465&granularity=ONE_MINUTE"
    )
    older, newer = told(candles.parse_poll(CANDLES, "BTC-USD", POLL.encode(), 0))
    assert newer == {
        "candle": "BTC-USD", "prices": ["2", "4", "1", "3.0"], "interval_s": 60, "open_us": 1712192460000000,
        "volume": "5.10", "closed": False, "venue_us": None,
    }  # fmt: skip
    assert (older["open_us"], older["closed"]) == (1712192340000000, True)
    assert list(candles.parse_poll(CANDLES, "BTC-USD", b'{"candles":[]}', 0)) == []
    for body in (b"{}", b"[]", b'{"candles":[{}]}', POLL.replace("1712192340", "1712192341").encode()):
        with pytest.raises(SourceError):
            list(candles.parse_poll(CANDLES, "BTC-USD", body, 0))


# --- against the simulator --------------------------------------------------------------------------------------------

MARKETS = "BTC-USD", "ETH-USDC"
RATE = {"requests_per_s": 1000, "connects_per_s": 1000}


def start(live: Callable[..., Live], **options: Any) -> Live:
    stage = live("coinbase", markets=MARKETS, rate_hz=100)
    stage.start(Coinbase, *MARKETS, rate=RATE, **options)
    return stage


def heard(stage: Live, count: int, market: str) -> None:
    """Wait until the newest book of a market is covered and has so many rows."""

    def enough() -> bool:
        epochs = epochs_of(stage, market)
        return bool(epochs) and epochs[-1].reason is None and len(epochs[-1].rows) >= count

    stage.until(enough, what=f"{count} rows of {market}")


def test_books_trades_and_tickers_are_stored_as_they_were_sent(live: Callable[..., Live]) -> None:
    stage = start(live, channels=CHANNELS)
    streams = [(market, channel) for market in MARKETS for channel in (TRADES, TICKER)]
    stage.until(
        lambda: all((each := epochs_of(stage, *feed)) and len(each[0].stream) >= 4 for feed in streams), what="rows"
    )
    for market in MARKETS:
        heard(stage, 20, market)
    stage.stop()
    for market in MARKETS:
        (book,) = epochs_of(stage, market)
        assert (book.opened.depth, book.reason) == (None, "stop")
        check_books(stage, market)
    assert all(check_stream(stage, *feed) >= 4 for feed in streams)
    counts = stage.counts()
    assert (counts["rejected"], counts["dropped"]) == (0, 0)


@pytest.mark.parametrize(
    ("fault", "channel"),
    [
        ("swallow", ORDERBOOK),
        ("swap", ORDERBOOK),
        ("duplicate", ORDERBOOK),
        ("swallow", TRADES),
        ("duplicate", TRADES),
    ],
)
def test_a_frame_that_is_lost_repeated_or_late_begins_everything_anew(
    live: Callable[..., Live], fault: str, channel: str
) -> None:
    stage = start(live, channels=(ORDERBOOK, TRADES))
    for market in MARKETS:
        heard(stage, 5, market)
    stage.simulator.fault(fault, "coinbase", MARKETS[0], channel=channel)
    stage.until(lambda: all(len(epochs_of(stage, market)) == 2 for market in MARKETS), what="a second epoch of both")
    for market in MARKETS:
        heard(stage, 5, market)
    stage.stop()
    assert len(stage.lines(kind="open", transport="websocket")) == 2
    for market in MARKETS:
        assert [epoch.reason for epoch in epochs_of(stage, market)] == ["sequence", "stop"]
        check_books(stage, market)
    assert stage.counts()["dropped"] == 1


def test_a_market_whose_change_is_spoiled_is_begun_anew_alone(live: Callable[..., Live]) -> None:
    stage = start(live)
    for market in MARKETS:
        heard(stage, 5, market)
    stage.simulator.fault("garbage", "coinbase", MARKETS[0], what="negative_volume")
    stage.until(lambda: len(epochs_of(stage, MARKETS[0])) == 2, what="a second epoch")
    heard(stage, 5, MARKETS[0])
    stage.stop()
    assert [epoch.reason for epoch in epochs_of(stage, MARKETS[0])] == ["rejected", "stop"]
    assert [epoch.reason for epoch in epochs_of(stage, MARKETS[1])] == ["stop"]
    assert [len(subscriptions_of(stage, market)) for market in MARKETS] == [2, 1]
    assert stage.counts()["rejected"] == 1


def test_candles_are_stored_as_they_were_answered(live: Callable[..., Live]) -> None:
    stage = live("coinbase", markets=MARKETS, rate_hz=20)
    stage.start(CoinbaseCandles, *MARKETS, channels=CHANNELS, rate=RATE)
    stage.until(lambda: all(epochs_of(stage, market, CANDLES) for market in MARKETS), what="candles")
    stage.stop()
    for market in MARKETS:
        (epoch,) = epochs_of(stage, market, CANDLES)
        (name,) = [line["subscription"] for line in stage.lines(kind="subscribe", market=market, channel=CANDLES)]
        answer = stage.lines(kind="message", subscription=name)[0]["rows"]
        assert len(epoch.stream) >= len(answer) > 2
        for row, sent in zip(epoch.stream, answer, strict=False):
            assert isinstance(row, CandleRow)
            found = row.open_us, row.open, row.high, row.low, row.close, row.volume
            assert found == tuple(sent[key] for key in ("open_us", "open", "high", "low", "close", "volume"))
