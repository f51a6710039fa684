import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.errors import BadFrame, RateLimited, SourceError, VenueRefused
from collector.records import CHANNELS, Book, BookChange, Candle, Refused, Subscribed, Ticker, Trade
from controllers.bybit import Bybit, BybitInverse, BybitLinear, native
from tests.controllers.live import Live
from tests.controllers.proved import Judged, check_streams, ended, frames_of, hear, judged, wait_for_rejected
from tests.controllers.reference import Reference, repeated, skipped, swapped
from tests.controllers.venue import (
    Case,
    cases,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    told,
)
from tests.fakes import make_setup, numbers

ARCHIVE = "bybit/v5_archive_orderbook500_xrpusdt_20241201.ndjson"
CURRENT = "bybit/v5_current_ccxt_202608.ndjson"
SYMBOLS = {
    "BTC-USDT": "BTCUSDT",
    "BTC-USDT:USDT": "BTCUSDT",
    "BTC-USDC:USDC": "BTCPERP",
    "BTC-USDT:USDT-261225": "BTCUSDT-25DEC26",
    "BTC-USDC:USDC-260605": "BTC-5JUN26",
    "BTC-USD:BTC": "BTCUSD",
    "BTC-USD:BTC-261225": "BTCUSDZ26",
    "ETH-USD:ETH-270326": "ETHUSDH27",
    "1000PEPE-USDT:USDT": "1000PEPEUSDT",
}


class Archive(BybitLinear):
    """The same at the depth of the archive, which is not offered any more."""

    depth = 500


class Touch(Bybit):
    """The same at the depth of the touch, whose messages are all complete."""

    depth = 1


@pytest.mark.parametrize("case", cases("bybit"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Bybit))


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Bybit, "bybit")


# --- markets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("market", SYMBOLS)
def test_a_market_is_spelled_by_its_kind(market: str) -> None:
    assert native(market) == SYMBOLS[market]


@pytest.mark.parametrize("market", SYMBOLS)
def test_a_market_belongs_to_one_class_alone(market: str) -> None:
    kind = Bybit if ":" not in market else BybitInverse if market.startswith(market.split(":")[1][:3]) else BybitLinear
    for cls in (Bybit, BybitLinear, BybitInverse):
        assert cls.carries(market, "orderbook") == (cls is kind), cls


@pytest.mark.parametrize(
    "market",
    ["BTC-USD:BTC-261225-100000-C", "BTC-USDT:USDT-261325", "BTC-USD:BTC-261125", "BTC-USDT:BTC", "BTC-EUR:EUR"],
)
def test_what_has_no_book_here_belongs_to_none(market: str) -> None:
    assert not any(cls.carries(market, "orderbook") for cls in (Bybit, BybitLinear, BybitInverse))


def test_the_same_symbol_is_another_market_in_each_category() -> None:
    frame = frame_of("bybit", "the complete book").replace(b"BTCKRW", b"BTCUSDT")
    for cls, market in ((Bybit, "BTC-USDT"), (BybitLinear, "BTC-USDT:USDT")):
        (book,) = make(cls, market).parse(frame, 0)
        assert isinstance(book, Book)
        assert book.market == market
    assert Bybit.url != BybitLinear.url != BybitInverse.url
    assert [cls.product for cls in (Bybit, BybitLinear, BybitInverse)] == ["", "linear", "inverse"]


def test_only_an_inverse_contract_counts_in_dollars() -> None:
    assert make(BybitInverse, "ETH-USD:ETH").unit("ETH-USD:ETH") == "1 USD"
    assert make(BybitLinear, "ETH-USDT:USDT").unit("ETH-USDT:USDT") is None
    assert make(Bybit, "ETH-USDT").unit("ETH-USDT") is None


# --- subscribing ------------------------------------------------------------------------------------------------------


def test_each_market_has_a_request_of_its_own_named_after_it() -> None:
    linear = make(BybitLinear, "BTC-USDT:USDT", "ETH-USDC:USDC", setup=replace(make_setup(), channels=CHANNELS))
    assert [json.loads(text) for text in linear.subscribe_messages(linear.markets)] == [
        {
            "req_id": market,
            "op": "subscribe",
            "args": [f"orderbook.200.{symbol}", f"publicTrade.{symbol}", f"tickers.{symbol}", f"kline.1.{symbol}"],
        }
        for market, symbol in (("BTC-USDT:USDT", "BTCUSDT"), ("ETH-USDC:USDC", "ETHPERP"))
    ]


def test_a_book_is_brought_anew_without_its_trades() -> None:
    spot = make(Bybit, "BTC-USDT", setup=replace(make_setup(), channels=CHANNELS))
    assert [json.loads(text) for text in spot.resync_messages("BTC-USDT")] == [
        {"req_id": "", "op": op, "args": ["orderbook.200.BTCUSDT"]} for op in ("unsubscribe", "subscribe")
    ]


def test_an_acknowledgement_opens_the_streams_of_its_market_and_that_of_a_resync_none() -> None:
    spot = make(Bybit, "BTC-USDT", "ETH-USDT", setup=replace(make_setup(), channels=("orderbook", "trades", "candles")))
    answer = {"success": True, "ret_msg": "subscribe", "conn_id": "c", "req_id": "ETH-USDT", "op": "subscribe"}
    assert list(spot.parse(json.dumps(answer).encode(), 0)) == [
        Subscribed("trades", "ETH-USDT"),
        Subscribed("candles", "ETH-USDT"),
    ]
    assert list(spot.parse(json.dumps({**answer, "req_id": ""}).encode(), 0)) == []


# --- books ------------------------------------------------------------------------------------------------------------


def change(update: int) -> BookChange:
    return BookChange("BTC-USDT", {}, {}, None, update)


def test_the_numbers_of_a_book_rise_by_exactly_one() -> None:
    spot = make(Bybit)
    assert spot.follows(change(101), 100, joining=False)
    assert not spot.follows(change(102), 100, joining=False)
    assert spot.is_old(change(100), 100)
    assert spot.is_old(change(99), 100)
    assert not spot.is_old(change(101), 100)


def test_a_count_that_began_anew_unseen_is_a_gap_and_not_a_repeat() -> None:
    spot = make(Bybit)
    assert not spot.is_old(change(2), 72_212_457)
    assert not spot.follows(change(2), 72_212_457, joining=False)


def test_the_recorded_archive_is_linked_message_by_message_and_equals_a_plain_rebuild(wire: Path) -> None:
    frames = frames_of(wire, ARCHIVE)
    found = list(judged(Archive, "XRP-USDT:USDT", frames))
    assert [each.verdict for each in found] == ["row"] * 25
    reference = Reference()
    for frame, each in zip(frames, found, strict=True):
        row = json.loads(frame)
        take = reference.replace if row["type"] == "snapshot" else reference.change
        take(row["data"]["b"], row["data"]["a"])
        assert each.numbers() == reference.both()
        assert len(reference.bids) == len(reference.asks) == 500  # what falls out is removed by name


@pytest.mark.parametrize("at", [1, 2, 7, 15, 23])
@pytest.mark.parametrize("how", [skipped, swapped])
def test_a_difference_that_is_skipped_or_swapped_is_caught_at_the_next_one(wire: Path, how: Any, at: int) -> None:
    frames = frames_of(wire, ARCHIVE)
    good = list(judged(Archive, "XRP-USDT:USDT", frames))
    found = list(judged(Archive, "XRP-USDT:USDT", how(frames, at)))
    assert found[:-1] == good[:at]
    assert found[-1] == Judged("sequence", good[at - 1].book)


@pytest.mark.parametrize("at", [1, 2, 24])
def test_a_difference_that_is_repeated_changes_nothing(wire: Path, at: int) -> None:
    frames = frames_of(wire, ARCHIVE)
    good = list(judged(Archive, "XRP-USDT:USDT", frames))
    found = list(judged(Archive, "XRP-USDT:USDT", repeated(frames, at)))
    assert found == [*good[: at + 1], Judged("nothing", good[at].book), *good[at + 1 :]]


def test_recorded_frames_of_today_are_read(wire: Path) -> None:
    spot, linear = make(Touch, "BTC-USDT"), make(BybitLinear, "BTC-USDT:USDT")
    lines = [line for line in recorded(wire, "bybit") if line.where.startswith("v5_current")]
    found = [message for line in lines for message in _reader(line.url, spot, linear).parse(line.data.encode(), 0)]
    assert found == [
        Book("BTC-USDT", {"63705.3": "2.045546"}, {"63705.4": "2.334566"}, 1786613159748000, 72212457),
        Book("BTC-USDT", {"63705.3": "2.014151"}, {"63705.4": "2.334566"}, 1786613159817000, 72212458),
        Ticker("BTC-USDT:USDT", "63958.60", "63958.60", "63958.70", "61874.6390", 1786540397684000),
        Ticker("BTC-USDT:USDT", None, venue_us=1786540397983000),
        Ticker("BTC-USDT", "64057.7", None, None, "7217.990977", 1786538729776000),
    ]


def _reader(url: str, spot: Bybit, linear: Bybit) -> Bybit:
    return spot if url.endswith("spot") else linear


def test_frames_of_the_second_version_are_refused_and_never_taken_for_data(wire: Path) -> None:
    linear = make(BybitLinear, "BTC-USDT:USDT")
    kinds = {"Refused": 0, "nothing": 0, "SourceError": 0}
    for line in recorded(wire, "bybit"):
        if line.where.startswith(("cryptofeed_v2", "samples_")):
            try:
                (message,) = list(linear.parse(line.data.encode(), 0)) or (None,)
            except SourceError:
                kinds["SourceError"] += 1
                continue
            if isinstance(message, Ticker | Trade | Book | BookChange):  # frames of the third version use `tickers`
                assert "publicTrade" in line.data or "tickers" in line.data, line.where
                continue
            kinds["nothing" if message is None else type(message).__name__] += 1
    assert kinds["SourceError"] > 2_000
    assert not kinds["Refused"]


# --- other channels ---------------------------------------------------------------------------------------------------

TRADED = {"T": 1672304486865, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "L": "PlusTick", "i": "20f4"}
CANDLE = {
    "start": 1672324800000, "end": 1672324859999, "interval": "1", "open": "16649.5", "close": "16677", "high": "16678",
    "low": "16608", "volume": "2081", "turnover": "0.12500000", "confirm": False, "timestamp": 1672324988882,
}  # fmt: skip


def framed(topic: str, data: Any, kind: str = "snapshot") -> bytes:
    return json.dumps({"topic": topic, "ts": 1672324988999, "type": kind, "data": data}).encode()


def test_trades_come_in_their_order_with_the_side_of_the_taker() -> None:
    rows = [TRADED, {**TRADED, "S": "Sell", "i": "2290000000068683805", "v": "1"}]
    assert list(make(Bybit, "BTC-USDT").parse(framed("publicTrade.BTCUSDT", rows), 0)) == [
        Trade("BTC-USDT", "20f4", "buy", "16578.50", "0.001", 1672304486865000),
        Trade("BTC-USDT", "2290000000068683805", "sell", "16578.50", "1", 1672304486865000),
    ]
    with pytest.raises(BadFrame, match="side of a trade was 'None'"):
        list(make(Bybit, "BTC-USDT").parse(framed("publicTrade.BTCUSDT", [{**TRADED, "S": "None"}]), 0))


def test_a_ticker_of_a_contract_holds_what_changed_and_nothing_of_what_is_empty() -> None:
    linear = make(BybitLinear, "BTC-USDT:USDT")
    row = {"symbol": "BTCUSDT", "bid1Price": "17215.50", "ask1Price": "", "turnover24h": "5", "preOpenPrice": ""}
    assert list(linear.parse(framed("tickers.BTCUSDT", row, "delta"), 0)) == [
        Ticker("BTC-USDT:USDT", None, "17215.50", None, None, 1672324988999000)
    ]
    assert BybitLinear.ticker_changes and BybitInverse.ticker_changes and not Bybit.ticker_changes


def test_volumes_of_inverse_contracts_are_their_turnover() -> None:
    inverse, linear = make(BybitInverse, "BTC-USD:BTC"), make(BybitLinear, "BTC-USDT:USDT")
    row = {"symbol": "BTCUSD", "volume24h": "105944", "turnover24h": "1.5"}
    (ticker,) = inverse.parse(framed("tickers.BTCUSD", row), 0)
    assert isinstance(ticker, Ticker)
    assert ticker.volume == "1.5"
    found = [
        *inverse.parse(framed("kline.1.BTCUSD", [CANDLE]), 0),
        *linear.parse(framed("kline.1.BTCUSDT", [CANDLE]), 0),
    ]
    assert [candle.volume for candle in found if isinstance(candle, Candle)] == ["0.12500000", "2081"]


def test_a_candle_says_when_it_is_closed() -> None:
    rows = [{**CANDLE, "confirm": True}, {**CANDLE, "start": CANDLE["start"] + 60_000}]  # type: ignore[operator]
    first, second = make(Bybit, "BTC-USDT").parse(framed("kline.1.BTCUSDT", rows), 0)
    assert first == Candle(
        "BTC-USDT", 60, 1672324800000000, "16649.5", "16678", "16608", "16677", "2081", True, 1672324988882000
    )
    assert isinstance(second, Candle)
    assert (second.open_us, second.closed) == (1672324860000000, False)


@pytest.mark.parametrize("interval", ["5", "D"])
def test_a_candle_of_another_interval_is_refused(interval: str) -> None:
    with pytest.raises(SourceError):
        list(make(Bybit, "BTC-USDT").parse(framed("kline.1.BTCUSDT", [{**CANDLE, "interval": interval}]), 0))


def test_documented_frames_are_read(wire: Path) -> None:
    linear = make(BybitLinear, "BTC-USDT:USDT")
    found: list[type] = []
    for line in recorded(wire, "bybit"):
        if line.where.startswith("doc_examples"):
            try:
                found += [type(message) for message in linear.parse(line.data.encode(), 0)]
            except SourceError as error:
                found.append(type(error))
    assert found.count(Ticker) == 1
    assert found.count(Refused) == 2  # an invalid topic, and a key that is none
    assert len(found) == 11  # books of depth 1, the private channels and an old name of trades are not known here


# --- REST -------------------------------------------------------------------------------------------------------------


def answer(result: Any, code: int = 0) -> bytes:
    return json.dumps({"retCode": code, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1}).encode()


REST_BOOK = {"s": "BTCUSDT", "b": [["1", "2"]], "a": [["3", "4"]], "ts": 1786613159749, "u": 5, "seq": 6}


def listed(symbol: str, base: str, quote: str, **more: str) -> dict[str, str]:
    return {"symbol": symbol, "baseCoin": base, "quoteCoin": quote, "status": "Trading", **more}


def test_a_rest_book_is_asked_for_in_its_category_and_has_no_number_of_the_stream() -> None:
    inverse = make(BybitInverse, "BTC-USD:BTC")
    assert inverse.probe_path("BTC-USD:BTC") == "/v5/market/orderbook?category=inverse&symbol=BTCUSD&limit=200"
    (book,) = told([inverse.parse_probe("BTC-USD:BTC", answer(REST_BOOK))])
    assert (book["bids"], book["asks"], book["sequence"]) == ([["1", "2"]], [["3", "4"]], None)


def test_errors_with_status_200_are_told_apart() -> None:
    spot = make(Bybit)
    with pytest.raises(VenueRefused, match="10001"):
        spot.parse_probe("BTC-USDT", answer({}, 10001))
    with pytest.raises(RateLimited):
        spot.parse_probe("BTC-USDT", answer({}, 10006))
    with pytest.raises(BadFrame):
        spot.parse_probe("BTC-USDT", answer({"list": []}))


def test_the_list_of_a_category_is_turned_into_house_form() -> None:
    rows = [listed("BTCUSDT", "BTC", "USDT"), {**listed("OLDUSDT", "OLD", "USDT"), "status": "Closed"}]
    assert Bybit.parse_listing(answer({"category": "spot", "list": rows})) == ["BTC-USDT"]
    perpetual, future = {"contractType": "LinearPerpetual"}, {"contractType": "LinearFutures"}
    delivery = {"deliveryTime": "1798185600000"}  # 2026-12-25 08:00
    rows = [
        listed("BTCUSDT", "BTC", "USDT", settleCoin="USDT", **perpetual, deliveryTime="0"),
        listed("ETHPERP", "ETH", "USDC", settleCoin="USDC", **perpetual, **delivery),  # to be delisted then
        listed("BTCUSDT-25DEC26", "BTC", "USDT", settleCoin="USDT", **future, **delivery),
        listed("BTC-25DEC26", "BTC", "USDC", settleCoin="USDC", **future, **delivery),
        listed("ODDNAME", "BTC", "USDC", settleCoin="USDC", **perpetual),
    ]
    assert BybitLinear.parse_listing(answer({"list": rows, "nextPageCursor": "first%3DBTC"})) == [
        "BTC-USDT:USDT", "ETH-USDC:USDC", "BTC-USDT:USDT-261225", "BTC-USDC:USDC-261225",
    ]  # fmt: skip
    rows = [
        listed("BTCUSD", "BTC", "USD", settleCoin="BTC", contractType="InversePerpetual"),
        listed("BTCUSDZ26", "BTC", "USD", settleCoin="BTC", contractType="InverseFutures", **delivery),
    ]
    assert BybitInverse.parse_listing(answer({"list": rows})) == ["BTC-USD:BTC", "BTC-USD:BTC-261225"]


def test_a_list_of_which_only_the_first_page_came_is_no_list() -> None:
    rows = [
        listed(f"A{n}USDT", f"A{n}", "USDT", settleCoin="USDT", contractType="LinearPerpetual") for n in range(1000)
    ]
    assert len(BybitLinear.parse_listing(answer({"list": rows, "nextPageCursor": ""}))) == 1000
    with pytest.raises(BadFrame, match="goes on"):
        BybitLinear.parse_listing(answer({"list": rows, "nextPageCursor": "more"}))


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    rows = [listed("BTCUSDT", "BTC", "USDT")]
    hold_to_any_answers(
        Bybit, [answer(REST_BOOK).decode(), answer({"list": rows}).decode(), answer({}, 10001).decode()]
    )


def test_recorded_levels_come_out_digit_for_digit(wire: Path) -> None:
    archive = make(Archive, "XRP-USDT:USDT")
    frame = frames_of(wire, ARCHIVE)[0]
    (book,) = archive.parse(frame.encode(), 0)
    assert isinstance(book, Book)
    row = exactly(frame)["data"]
    assert list(book.bids.items()) == [tuple(level) for level in row["b"]]
    assert numbers(book.asks) == {Decimal(price): Decimal(size) for price, size in row["a"]}


# --- against the simulator --------------------------------------------------------------------------------------------

LIVE = {
    Bybit: ("BTC-USDT", "ETH-USDT"),
    BybitLinear: ("BTC-USDT:USDT", "ETH-USDC:USDC-261225"),
    BybitInverse: ("BTC-USD:BTC", "ETH-USD:ETH-261225"),
}
Stages = Callable[..., Live]


def played(live: Stages) -> Live:
    return live("bybit", markets=[market for markets in LIVE.values() for market in markets], rate_hz=100)


@pytest.mark.parametrize("cls", LIVE)
def test_books_of_each_category_are_linked_and_those_that_were_sent(live: Stages, cls: type[Bybit]) -> None:
    stage = played(live)
    hear(stage, cls, *LIVE[cls])
    for market in LIVE[cls]:
        stage.heard(15, market)
    stage.stop()
    for market in LIVE[cls]:
        (epoch,) = stage.stored.of(market)
        assert (epoch.verdict, epoch.reason, epoch.opened.depth) == ("linked", "stop", 200)
        assert epoch.opened.unit == ("1 USD" if cls is BybitInverse else None)
        stage.check(market)
    counts = stage.counts()
    assert counts["rejected"] == counts["dropped"] == 0


@pytest.mark.parametrize("kind", ["swallow", "swap"])
def test_a_difference_that_is_lost_costs_one_market_one_snapshot(live: Stages, kind: str) -> None:
    stage = played(live)
    hit, spared = LIVE[BybitLinear]
    hear(stage, BybitLinear, hit, spared)
    stage.heard(10, hit)
    stage.simulator.fault(kind, "bybit", hit)
    ended(stage, hit, 1)
    stage.stop()
    first, second = stage.stored.of(hit)
    (other,) = stage.stored.of(spared)
    assert (first.reason, second.reason, other.reason) == ("sequence", "stop", "stop")
    assert first.ended is not None and first.mark is not None
    assert first.ended.ended_us == first.mark.confirmed_until_us < second.opened.opened_us
    stage.check(hit, 0, 0)
    stage.check(hit, 1, 1)
    stage.check(spared)
    assert len(stage.lines(kind="message", what="book")) == 3
    assert len(stage.lines(kind="open", transport="websocket")) == 1
    stage.counts()


def test_a_difference_that_comes_twice_changes_nothing(live: Stages) -> None:
    stage = played(live)
    hear(stage, Bybit, *LIVE[Bybit])
    stage.heard(10, "BTC-USDT")
    stage.simulator.fault("duplicate", "bybit", "BTC-USDT", times=3)
    stage.until(lambda: stage.so_far("duplicate") >= 3, what="three repeats")
    stage.heard(20, "BTC-USDT")
    stage.stop()
    assert len(stage.stored.of("BTC-USDT")) == 1
    stage.check("BTC-USDT")
    assert stage.counts()["duplicate"] >= 3


def test_a_book_that_the_service_begins_anew_opens_an_epoch_on_the_same_subscription(
    live: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.bybit.MESSAGES_BEFORE_RESTART", 20)
    stage = played(live)
    hear(stage, Bybit, "BTC-USDT")
    ended(stage, "BTC-USDT", 2)
    stage.stop()
    first, second, *_ = stage.stored.of("BTC-USDT")
    assert (first.reason, second.reason) == ("sequence", "sequence")
    assert [row.sequence for row in second.rows] == list(range(1, 21))
    assert len(stage.lines(kind="subscribe")) == 1
    stage.counts()


def test_a_book_begun_anew_that_never_came_is_missed_at_the_next_difference(
    live: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.bybit.MESSAGES_BEFORE_RESTART", 30)
    stage = played(live)
    hear(stage, Bybit, "BTC-USDT")
    stage.heard(25, "BTC-USDT")
    stage.simulator.fault("swallow", "bybit", "BTC-USDT", times=8)
    ended(stage, "BTC-USDT", 1)
    stage.stop()
    first, second, *_ = stage.stored.of("BTC-USDT")
    assert first.reason == "sequence"
    assert first.rows[-1].sequence is not None and first.rows[-1].sequence > 72_000_000
    assert second.rows[0].sequence is not None and second.rows[0].sequence < 30
    stage.check("BTC-USDT", 1, 1)


@pytest.mark.parametrize("cls", LIVE)
def test_trades_tickers_and_candles_are_those_that_were_sent(live: Stages, cls: type[Bybit]) -> None:
    stage = played(live)
    market = LIVE[cls][0]
    hear(stage, cls, market, channels=CHANNELS)
    stage.until(
        lambda: sum(len(epoch.stream) >= 10 for epoch in stage.stored.of(market)) == 3, what="rows of all channels"
    )
    stage.stop()
    assert len(stage.stored.of(market)) == 4
    check_streams(stage, market, sent_as={"trades": "trade", "ticker": "ticker", "candles": "candle"})
    assert stage.counts()["rejected"] == 0


def test_a_market_that_is_not_traded_is_refused_and_the_others_go_on(live: Stages) -> None:
    stage = played(live)
    controller = hear(stage, Bybit, "NOPE-USDT", "BTC-USDT", channels=CHANNELS)
    stage.heard(10, "BTC-USDT")
    states = {(row["market"], row["state"]) for row in controller.status()}
    stage.stop()
    assert states == {("NOPE-USDT", "refused"), ("BTC-USDT", "live")}
    assert stage.log.of("api_error")[0]["market"] == "NOPE-USDT"
    assert {line["market"] for line in stage.lines(kind="subscribe")} == {"BTC-USDT"}


def test_the_recorded_archive_is_recorded_as_it_was_sent(live: Stages, wire: Path) -> None:
    stage = live("bybit", recording=wire / ARCHIVE, speed=None)
    hear(stage, BybitLinear, "XRP-USDT:USDT")
    stage.heard(25, "XRP-USDT:USDT")
    stage.stop()
    (epoch,) = stage.stored.of("XRP-USDT:USDT")
    assert (epoch.verdict, epoch.reason, epoch.frames) == ("linked", "stop", 25)
    stage.check("XRP-USDT:USDT")


def test_no_garbage_is_ever_recorded_and_the_book_comes_back(live: Stages) -> None:
    stage = played(live)
    hear(stage, Bybit, "BTC-USDT")
    garbage = ("not_json", "foreign_market", "negative_volume", "unknown_type", "not_utf8")
    for number, what in enumerate(garbage, 1):
        stage.heard(3, "BTC-USDT")
        stage.simulator.fault("garbage", "bybit", "BTC-USDT", what=what)
        wait_for_rejected(stage, number)
    stage.heard(3, "BTC-USDT")
    stage.stop()
    assert set(stage.stored.reasons[:-1]) == {"rejected"}
    assert stage.counts()["rejected"] == len(garbage)
