import json
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from collector.clock import Clock
from collector.errors import SourceError
from collector.numbers import Number
from collector.records import (
    CHANNELS,
    Book,
    BookChange,
    Candle,
    CandleRow,
    EpochEnded,
    EpochOpened,
    Leaving,
    Message,
    Record,
    Rejected,
    Ticker,
    TickerRow,
    Trade,
    TradeRow,
)
from controllers.base import Controller, Setup
from controllers.binance import Binance, UsdmBooks, UsdmMarket
from controllers.contracts import contract
from simulator.venue import Timing
from tests.conftest import wait_until
from tests.controllers.live import Live
from tests.controllers.reference import Player, Reference, each, repeated, skipped, swapped
from tests.controllers.venue import (
    Case,
    cases,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
)
from tests.fakes import FakeClock, make_setup, numbers

Side = Literal["buy", "sell"]
FILES = {"frames": Binance, "usdm": UsdmBooks, "usdm_market": UsdmMarket}
SNAPSHOT = '{"lastUpdateId":160,"bids":[["1.00","2.0"]],"asks":[["1.10","3.0"],["1.20","4.0"]]}'
LISTING = '{"symbols":[{"symbol":"BTCUSDT","status":"TRADING","baseAsset":"BTC","quoteAsset":"USDT"}]}'


@pytest.mark.parametrize(("file", "case"), [(file, case) for file in FILES for case in cases("binance", file)], ids=str)
def test_every_kind_of_message_is_read(file: str, case: Case) -> None:
    case.check(make(FILES[file]))


@pytest.mark.parametrize("cls", FILES.values())
@pytest.mark.parametrize(
    "text",
    [
        '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
        '{"e":"serverShutdown","E":1770123456789}',
    ],
)
def test_the_end_of_a_connection_is_announced(cls: type[Controller], text: str) -> None:
    assert list(make(cls).parse(text.encode(), 0)) == [Leaving("serverShutdown")]


@pytest.mark.parametrize(("file", "cls"), FILES.items())
def test_any_bytes_give_records_or_a_source_error(file: str, cls: type[Controller]) -> None:
    hold_to_any_frames(cls, "binance", file)


@pytest.mark.parametrize("cls", FILES.values())
def test_any_answer_over_rest_is_read_or_a_source_error(cls: type[Controller]) -> None:
    hold_to_any_answers(cls, [SNAPSHOT, LISTING, '{"code":-1121,"msg":"Invalid symbol."}'])


# --- what is sent -----------------------------------------------------------------------------------------------------


def of_all_channels() -> Setup:
    return replace(make_setup(), channels=CHANNELS)


def subscribed(controller: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in controller.subscribe_messages(controller.markets)]


def test_spot_hears_every_channel_on_one_socket() -> None:
    binance = make(Binance, "BTC-USDT", "ETH-BTC", setup=of_all_channels())
    assert subscribed(binance) == [
        {
            "method": "SUBSCRIBE",
            "params": [
                "btcusdt@depth@100ms", "btcusdt@trade", "btcusdt@ticker", "btcusdt@kline_1m",
                "ethbtc@depth@100ms", "ethbtc@trade", "ethbtc@ticker", "ethbtc@kline_1m",
            ],
            "id": 1,
        }
    ]  # fmt: skip
    assert subscribed(make(Binance, "BTC-USDT"))[0]["params"] == ["btcusdt@depth@100ms"]  # as configured


def test_futures_hear_books_and_all_else_on_two_sockets() -> None:
    markets = "BTC-USDT:USDT", "ETH-USDC:USDC-261225"
    books, rest = (make(cls, *markets, setup=of_all_channels()) for cls in (UsdmBooks, UsdmMarket))
    assert subscribed(books)[0]["params"] == ["btcusdt@depth@100ms", "ethusdc_261225@depth@100ms"]
    assert subscribed(rest)[0]["params"] == [
        "btcusdt@aggTrade", "btcusdt@ticker", "btcusdt@kline_1m",
        "ethusdc_261225@aggTrade", "ethusdc_261225@ticker", "ethusdc_261225@kline_1m",
    ]  # fmt: skip
    assert urlsplit(books.address()).path.startswith("/public/")
    assert urlsplit(rest.address()).path.startswith("/market/")


def test_a_full_connection_is_asked_for_in_fewer_messages_than_a_second_bears() -> None:
    markets = [f"A{n}-USDT" for n in range(256)]
    requests = subscribed(make(Binance, *markets, setup=of_all_channels()))
    assert len(requests) <= 4  # a fifth may be the answer to a ping
    assert [request["id"] for request in requests] == [1, 2, 3, 4]
    streams = [stream for request in requests for stream in request["params"]]
    assert len(set(streams)) == len(streams) == 1024


@pytest.mark.parametrize(
    ("market", "spot", "usdm"),
    [
        ("BTC-USDT", True, False),
        ("BTC-USDT:USDT", False, True),
        ("BTC-USDT:USDT-261225", False, True),
        ("BTC-USD:BTC", False, False),
        ("BTC-USD:BTC-261225", False, False),
        ("BTC-USDT:USDT-261225-100000-C", False, False),
    ],
)
def test_each_channel_of_a_market_has_one_class(market: str, spot: bool, usdm: bool) -> None:
    for channel in CHANNELS:
        assert Binance.carries(market, channel) is spot
        assert UsdmBooks.carries(market, channel) is (usdm and channel == "orderbook")
        assert UsdmMarket.carries(market, channel) is (usdm and channel != "orderbook")


def test_limits_are_those_of_the_exchange() -> None:
    for cls in FILES.values():
        assert cls.connection_age_s == 24 * 3600
        assert cls.connects_per_s <= 300 / 300
        assert cls.budget_per_s * 60 * 50 <= 6000 * 0.8  # snapshots of spot
        assert cls.budget_per_s * 60 * 20 <= 2400 * 0.8  # snapshots of USD-M
    assert Binance.stale_s > 3 * 20  # its pings
    for futures in (UsdmBooks, UsdmMarket):
        assert futures.ping_s is not None and futures.stale_s > 3 * futures.ping_s


# --- REST -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "market", "base", "symbol"),
    [
        (Binance, "BTC-USDT", "/api/v3/depth", "BTCUSDT"),
        (Binance, "币安人生-USDT", "/api/v3/depth", "币安人生USDT"),
        (UsdmBooks, "BTC-USDT:USDT-261225", "/fapi/v1/depth", "BTCUSDT_261225"),
    ],
)
def test_a_book_begins_with_the_deepest_snapshot_of_its_price(
    cls: type[Binance | UsdmBooks], market: str, base: str, symbol: str
) -> None:
    controller = make(cls, market)
    for path, limit in ((controller.snapshot_path(market), "1000"), (controller.probe_path(market), "100")):
        assert path.isascii()
        parts = urlsplit(path)
        assert (parts.path, parse_qs(parts.query)) == (base, {"symbol": [symbol], "limit": [limit]})
    assert int(limit) >= controller.probe_depth


def test_a_snapshot_has_the_number_that_changes_continue_from() -> None:
    bids: dict[Number, Number] = {"1.00": "2.0"}
    asks: dict[Number, Number] = {"1.10": "3.0", "1.20": "4.0"}
    assert make(Binance).parse_snapshot("BTC-KRW", SNAPSHOT.encode()) == Book("BTC-KRW", bids, asks, None, 160)
    timed = SNAPSHOT.replace('"bids"', '"E":1626992741264,"T":1626992741261,"bids"')
    assert make(UsdmBooks).parse_snapshot("X", timed.encode()) == Book("X", bids, asks, 1626992741261000, 160)


@pytest.mark.parametrize(
    "body",
    [
        "{}", "[]", "<html>", '{"code":-1121,"msg":"Invalid symbol."}', '{"lastUpdateId":1,"bids":[],"asks":null}',
        '{"lastUpdateId":1,"bids":[["1","1"],["1","2"]],"asks":[]}', '{"lastUpdateId":1.5,"bids":[],"asks":[]}',
    ],
)  # fmt: skip
def test_an_answer_over_rest_of_another_shape_is_a_source_error(body: str) -> None:
    with pytest.raises(SourceError):
        make(Binance).parse_snapshot("BTC-KRW", body.encode())
    for cls in FILES.values():
        with pytest.raises(SourceError):
            cls.parse_listing(body.encode())


@pytest.mark.parametrize(
    "status", ["HALT", "BREAK", "CANCEL_ONLY", "PRE_TRADING", "POST_TRADING", "END_OF_DAY", "AUCTION_MATCH", "SETTLING"]
)
def test_only_what_is_traded_is_listed(status: str) -> None:
    assert Binance.parse_listing(LISTING.encode()) == ["BTC-USDT"]
    assert Binance.parse_listing(LISTING.replace("TRADING", status).encode()) == []


def test_contracts_settled_in_coins_are_not_listed_among_those_that_are_not() -> None:
    told = [
        ("BTCUSDT", "BTC", "USDT", "USDT", "TRADING"),
        ("BTCUSD_PERP", "BTC", "USD", "BTC", "TRADING"),
        ("BTCUSD_261225", "BTC", "USD", "BTC", "TRADING"),
        ("ETHUSDT_261225", "ETH", "USDT", "USDT", "TRADING"),
        ("ETHUSDC", "ETH", "USDC", "USDC", "PENDING_TRADING"),
    ]
    keys = "symbol", "baseAsset", "quoteAsset", "marginAsset", "status"
    rows = [dict(zip(keys, row, strict=True)) for row in told]
    for cls in (UsdmBooks, UsdmMarket):
        assert cls.parse_listing(json.dumps({"symbols": rows}).encode()) == ["BTC-USDT:USDT", "ETH-USDT:USDT-261225"]


# --- what follows what ------------------------------------------------------------------------------------------------


def change(first: int, last: int, previous: int | None = None) -> BookChange:
    return BookChange("BTC-KRW", {}, {}, None, last, first, previous)


@pytest.mark.parametrize(
    ("first", "last", "old", "joins", "goes_on"),
    [
        (90, 99, True, None, None),
        (90, 100, True, None, None),
        (101, 101, False, True, True),
        (101, 109, False, True, True),  # as recorded
        (95, 105, False, True, False),  # as documented; once begun, no message takes back what the last one said
        (100, 101, False, True, False),
        (102, 109, False, False, False),
        (5000, 5001, False, False, False),
    ],
)
def test_a_spot_book_at_100_is_continued_by(
    first: int, last: int, old: bool, joins: bool | None, goes_on: bool | None
) -> None:
    binance, it = make(Binance), change(first, last)
    assert binance.is_old(it, 100) is old
    if not old:
        assert binance.follows(it, 100, joining=True) is joins
        assert binance.follows(it, 100, joining=False) is goes_on


@pytest.mark.parametrize(
    ("previous", "first", "last", "old", "joins", "goes_on"),
    [
        (80, 90, 99, True, None, None),
        (80, 90, 100, True, None, None),  # it ends where the snapshot was taken, which holds it
        (100, 170, 190, False, True, True),  # as recorded after such a one
        (80, 90, 110, False, True, False),  # as documented
        (80, 100, 110, False, True, False),
        (101, 170, 190, False, False, False),
        (110, 120, 130, False, False, False),
        (None, 101, 130, False, False, False),
    ],
)
def test_a_futures_book_at_100_is_continued_by(
    previous: int | None, first: int, last: int, old: bool, joins: bool | None, goes_on: bool | None
) -> None:
    usdm, it = make(UsdmBooks), change(first, last, previous)
    assert usdm.is_old(it, 100) is old
    if not old:
        assert usdm.follows(it, 100, joining=True) is joins
        assert usdm.follows(it, 100, joining=False) is goes_on


def test_a_quiet_market_whose_snapshot_has_to_wait_for_its_turn_is_no_reason_to_connect_anew() -> None:
    clock = FakeClock()
    binance = make(Binance, setup=make_setup(clock=clock))
    binance.anchor()
    binance._began_us = clock.monotonic_us()
    binance.handle(frame_of("binance", "a change"), clock.advance(1))
    for _ in range(10):
        binance._heard_at_us = clock.advance(40)
        binance._watch(binance._heard_at_us)
    assert binance.books["BTC-KRW"].waits_for_a_book


# --- recorded ---------------------------------------------------------------------------------------------------------

SPOT_2021, SPOT_2024 = "cryptofeed_spot_20211012.ndjson", "hftbacktest_spot_btcusdt_20240808.ndjson"
USDM_2021, USDM_2024 = "cryptofeed_usdm_20210722.ndjson", "hftbacktest_usdm_btcusdt_20240808.ndjson"
STREAMS: dict[str, type[Binance | UsdmBooks]] = {
    SPOT_2021: Binance,
    SPOT_2024: Binance,
    USDM_2021: UsdmBooks,
    USDM_2024: UsdmBooks,
}
MARKETS = {
    "NKNUSDT": "NKN-USDT", "BLZETH": "BLZ-ETH", "LRCBTC": "LRC-BTC", "RUNEEUR": "RUNE-EUR", "BTCUSDT": "BTC-USDT",
    "SUSHIUSDT": "SUSHI-USDT", "AKROUSDT": "AKRO-USDT", "KEEPUSDT": "KEEP-USDT", "CTKUSDT": "CTK-USDT",
}  # fmt: skip


class Line(NamedTuple):
    """A recorded snapshot or change: its text, and what it says read without the code under test."""

    market: str
    text: str
    said: dict[str, Any]

    @property
    def is_book(self) -> bool:
        return "lastUpdateId" in self.said

    def message(self, controller: Binance | UsdmBooks) -> Message:
        if self.is_book:
            return controller.parse_snapshot(self.market, self.text.encode())
        (message,) = controller.parse(self.text.encode(), 0)
        return message


def lines(wire: Path, file: str) -> Iterator[dict[str, Any]]:
    with (wire / "binance" / file).open(encoding="utf-8") as rows:
        yield from map(json.loads, rows)


def house(symbol: str, cls: type) -> str:
    return MARKETS[symbol] + ("" if cls is Binance else ":USDT")


def books_of(wire: Path, file: str) -> tuple[Binance | UsdmBooks, list[Line]]:
    """Return the controller of a recorded file's markets, its snapshots and changes."""
    cls, found = STREAMS[file], []
    for row in lines(wire, file):
        if row["kind"] == "rest":
            symbol = parse_qs(urlsplit(row["url"]).query)["symbol"][0]
            found.append(Line(house(symbol, cls), row["data"], json.loads(row["data"])))
        elif "@depth@" in row["data"][:60]:
            said = json.loads(row["data"])["data"]
            found.append(Line(house(said["s"], cls), row["data"], said))
    markets = tuple(dict.fromkeys(line.market for line in found))
    return make(cls, *markets), found


def right_verdicts(found: list[Line], market: str) -> list[str]:
    """Work out, from the raw numbers alone, what each message of a market is."""
    mine = [line.said for line in found if line.market == market]
    (snapshot,) = (said["lastUpdateId"] for said in mine if "lastUpdateId" in said)
    verdicts, reached = [], None
    for said in mine:
        if "lastUpdateId" in said:
            verdicts.append("book")
        elif said["u"] <= snapshot:
            verdicts.append("old")
        elif reached is None:
            verdicts.append("joined")
            reached = said["u"]
        else:
            assert said.get("pu", said["U"] - 1) == reached  # as the README of the recordings has it: no gap
            verdicts.append("linked")
            reached = said["u"]
    return verdicts


@pytest.mark.parametrize("file", STREAMS)
def test_every_recorded_change_gets_its_verdict_and_every_book_is_the_reference_s(wire: Path, file: str) -> None:
    controller, found = books_of(wire, file)
    player = Player(controller)
    references: dict[str, Reference] = {}
    waiting: dict[str, list[Line]] = {}
    begun: dict[str, int] = {}
    for line in found:
        player.take(line.message(controller))
        market, said = line.market, line.said
        if line.is_book:
            references[market] = Reference()
            references[market].replace(said["bids"], said["asks"])
            begun[market] = said["lastUpdateId"]
        else:
            waiting.setdefault(market, []).append(line)
        if market in references:
            for earlier in waiting.pop(market, []):
                if earlier.said["u"] > begun[market]:
                    references[market].change(earlier.said["b"], earlier.said["a"])
            assert player.books[market].as_numbers() == (references[market].bids, references[market].asks)
    assert player.verdicts == {market: right_verdicts(found, market) for market in controller.markets}
    joined = [market for market, verdicts in player.verdicts.items() if "joined" in verdicts]
    assert [market for market in controller.markets if market not in joined] == (
        ["RUNE-EUR"] if file == SPOT_2021 else []  # its one change is older than its snapshot
    )


@pytest.mark.parametrize("file", STREAMS)
def test_recorded_streams_are_one_epoch_of_linked_books_each(wire: Path, file: str) -> None:
    (reader, found), clock = books_of(wire, file), FakeClock()
    setup = make_setup(clock=clock)
    controller = make(STREAMS[file], *reader.markets, setup=setup)
    controller.anchor()
    for line in found:
        at_us = clock.advance(0.001)
        if line.is_book:
            message = controller.parse_snapshot(line.market, line.text.encode())
            controller._join(controller.books[line.market], message, at_us)
        else:
            assert controller.handle(line.text.encode(), at_us) == []
    controller.flush()
    records = [record for delivery in setup.intake.take(10_000) for record in delivery.records]
    opened = [record for record in records if isinstance(record, EpochOpened)]
    assert {record.market: record.verdict for record in opened} == dict.fromkeys(reader.markets, "linked")
    assert len(opened) == len(reader.markets)
    assert not [record for record in records if isinstance(record, EpochEnded | Rejected)]
    for market, heard in controller.books.items():
        verdicts = right_verdicts(found, market)
        after, before = verdicts[verdicts.index("book") + 1 :], verdicts[: verdicts.index("book")]
        assert heard.frames == len(after) + len(before) - before.count("old")
        mine = sorted((line for line in found if line.market == market), key=lambda line: not line.is_book)
        whole = Reference()
        whole.replace(mine[0].said["bids"], mine[0].said["asks"])
        for line in mine[1:]:
            if line.said["u"] > mine[0].said["lastUpdateId"]:
                whole.change(line.said["b"], line.said["a"])
        assert heard.book.as_numbers() == whole.both()


@pytest.mark.parametrize("file", STREAMS)
def test_recorded_books_have_the_exchange_s_own_best_prices(wire: Path, file: str) -> None:
    controller, found = books_of(wire, file)
    best: dict[str, tuple[list[int], list[Any]]] = {}
    for row in lines(wire, file):
        if row["kind"] == "ws" and "@bookTicker" in row["data"][:60]:
            said = json.loads(row["data"])["data"]
            ids, tickers = best.setdefault(house(said["s"], STREAMS[file]), ([], []))
            ids.append(said["u"])
            tickers.append(numbers([(said["b"], said["B"]), (said["a"], said["A"])]))
    player = Player(controller)
    compared = 0
    for line in found:
        verdict = player.take(line.message(controller))
        ids, tickers = best.get(line.market, ([], []))
        newest = bisect_right(ids, line.said["u"]) if verdict in ("joined", "linked") else 0
        if newest:
            book = player.books[line.market]
            bids, asks = book.as_numbers()
            bid, ask = max(bids), min(asks)
            assert {bid: bids[bid], ask: asks[ask]} == tickers[newest - 1]
            compared += 1
    assert compared > 60


@pytest.mark.parametrize("file", STREAMS)
def test_a_skipped_repeated_or_swapped_change_is_caught_where_it_stands(wire: Path, file: str) -> None:
    controller, found = books_of(wire, file)
    for market in controller.markets:
        messages = snapshot_first(controller, found, market)[:100]
        verdicts = judged(controller, messages)[0]
        linked = [at for at, verdict in enumerate(verdicts) if verdict == "linked"][:60]
        for at in (linked[place] for place in each(len(linked) - 1, 3)):
            until, before = messages[: at + 3], verdicts[:at]
            assert judged(controller, skipped(until, at))[0][: at + 1] == [*before, "broken"]
            assert judged(controller, swapped(until, at))[0][: at + 1] == [*before, "broken"]
            found_again, book = judged(controller, repeated(until, at))
            assert found_again == [*before, "linked", "old", *verdicts[at + 1 : at + 3]]
            assert book == judged(controller, until)[1]


@pytest.mark.parametrize("file", STREAMS)
def test_without_the_change_that_continues_the_snapshot_no_book_begins(wire: Path, file: str) -> None:
    controller, found = books_of(wire, file)
    for market in controller.markets:
        messages = snapshot_first(controller, found, market)
        verdicts = judged(controller, messages)[0]
        if "linked" in verdicts:
            at = verdicts.index("joined")
            assert judged(controller, skipped(messages, at)[: at + 1])[0] == [*verdicts[:at], "broken"]


def snapshot_first(controller: Binance | UsdmBooks, found: list[Line], market: str) -> list[Message]:
    messages = [line.message(controller) for line in found if line.market == market]
    return sorted(messages, key=lambda message: not isinstance(message, Book))


def judged(controller: Binance | UsdmBooks, messages: list[Message]) -> tuple[list[str | None], Any]:
    """Return the verdict of each message and the book after them, None where it is forgotten."""
    player = Player(controller)
    verdicts = [player.take(message) for message in messages]
    return verdicts, next((book.as_numbers() for book in player.books.values()), None)


def test_recorded_trades_are_read_with_the_taker_s_side(wire: Path) -> None:
    binance = make(Binance, "BTC-USDT")
    ids = []
    for row in lines(wire, SPOT_2024):
        if "@trade" in row["data"][:40]:
            said = json.loads(row["data"])["data"]
            (trade,) = binance.parse(row["data"].encode(), 0)
            side: Side = "sell" if said["m"] else "buy"
            assert trade == Trade("BTC-USDT", str(said["t"]), side, said["p"], said["q"], said["T"] * 1000)
            ids.append(said["t"])
    assert ids == list(range(ids[0], ids[0] + 1381))


def test_recorded_takers_took_what_stood_in_the_book(wire: Path) -> None:
    # Buyers pay the ask, sellers get the bid, of a moment before: the best prices that are told together with a trade
    # have often changed by it already.
    binance = make(Binance, "BTC-USDT")
    agrees: Counter[bool] = Counter()
    told: deque[tuple[float, Decimal]] = deque()
    middle: Decimal | None = None
    for row in lines(wire, SPOT_2024):
        if "@bookTicker" in row["data"][:40]:
            best = json.loads(row["data"])["data"]
            told.append((row["t"], (Decimal(best["b"]) + Decimal(best["a"])) / 2))
        elif "@trade" in row["data"][:40]:
            while told and told[0][0] < row["t"] - 0.1:
                middle = told.popleft()[1]
            (trade,) = binance.parse(row["data"].encode(), 0)
            assert isinstance(trade, Trade)
            if middle is not None and Decimal(trade.price) != middle:
                agrees[(trade.side == "buy") is (Decimal(trade.price) > middle)] += 1
    assert agrees.total() > 1300
    assert agrees[True] > 0.98 * agrees.total()


def test_recorded_trades_and_candles_of_futures_are_read(wire: Path) -> None:
    markets = [house(symbol, UsdmMarket) for symbol in ("SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT")]
    usdm = make(UsdmMarket, *markets)
    kinds: Counter[str] = Counter()
    for row in lines(wire, USDM_2021):
        head = row["data"][:60]
        if "@aggTrade" not in head and "@kline_1m" not in head:
            continue
        said = json.loads(row["data"])["data"]
        (message,) = usdm.parse(row["data"].encode(), 0)
        market = house(said["s"], UsdmMarket)
        if said["e"] == "aggTrade":
            side: Side = "sell" if said["m"] else "buy"
            assert message == Trade(market, str(said["a"]), side, said["p"], said["q"], said["T"] * 1000)
        else:
            k = said["k"]
            prices = (k["o"], k["h"], k["l"], k["c"], k["v"])
            assert message == Candle(market, 60, k["t"] * 1000, *prices, k["x"], said["E"] * 1000)
        kinds[said["e"]] += 1
    assert kinds == {"aggTrade": 34, "kline": 26}


def test_recorded_single_frames_are_read_or_refused(wire: Path) -> None:
    known: Counter[str] = Counter()
    for line in recorded(wire, "binance"):
        if not line.where.startswith("samples_crypto_msg_parser"):
            continue
        for cls in FILES.values():
            try:
                (message,) = make(cls).parse(line.data.encode(), 0)
            except SourceError:
                continue
            known[f"{cls.__name__} {type(message).__name__}"] += 1
    assert known == {
        "Binance BookChange": 5, "Binance Ticker": 5, "Binance Candle": 4,
        "UsdmBooks BookChange": 5, "UsdmMarket Trade": 5, "UsdmMarket Ticker": 5, "UsdmMarket Candle": 4,
    }  # fmt: skip


def test_documented_frames_of_2026_are_read(wire: Path) -> None:
    streams = {"aggTrade": "aggTrade", "depthUpdate": "depth@100ms", "kline": "kline_1m", "24hrTicker": "ticker"}
    books, rest = make(UsdmBooks, "BTC-USDT:USDT"), make(UsdmMarket, "BTC-USDT:USDT")
    found: list[Message] = []
    for row in lines(wire, "doc_examples_ws_current.ndjson"):
        kind = json.loads(row["data"]).get("e")
        if kind in streams:
            frame = f'{{"stream":"btcusdt@{streams[kind]}","data":{row["data"]}}}'
            found += (books if kind == "depthUpdate" else rest).parse(frame.encode(), 0)
    prices = "0.0010", "0.0025", "0.0010", "0.0020", "1000"
    lower = "0.0010", "0.0025", "0.0015", "0.0020", "1000"
    minute = 1638747660000000
    assert found[0] == Trade("BTC-USDT:USDT", "5933014", "sell", "0.001", "100", 123456785000000)
    assert found[1] == BookChange("BTC-USDT:USDT", {"0.0024": "10"}, {"0.0026": "100"}, 123456788000000, 160, 157, 149)
    assert [candle for candle in found if isinstance(candle, Candle)] == [
        Candle("BTC-USDT:USDT", 60, minute, *prices, True, minute),
        Candle("BTC-USDT:USDT", 60, minute, *lower, False, minute),
    ]
    assert found[-1] == Ticker("BTC-USDT:USDT", "16584.60000000", None, None, "122474.816", 1672515782136000)


def test_recorded_listings_are_read_and_every_symbol_is_spelt_as_it_was(wire: Path) -> None:
    for file, cls, states in (
        ("rest_exchangeinfo_spot_20211012.ndjson", Binance, {"TRADING": 1262, "BREAK": 433}),
        ("rest_exchangeinfo_usdm_20210722.ndjson", UsdmBooks, {"TRADING": 121, "PENDING_TRADING": 1}),
    ):
        (row,) = lines(wire, file)
        symbols = json.loads(row["data"])["symbols"]
        assert Counter(symbol["status"] for symbol in symbols) == states
        listed = cls.parse_listing(row["data"].encode())
        wanted = [symbol["symbol"] for symbol in symbols if symbol["status"] == "TRADING"]
        assert [cls.native(market) for market in listed] == wanted
        assert len(set(listed)) == len(listed)
        assert all(cls.carries(market, "orderbook") for market in listed)
        if cls is UsdmBooks:
            assert UsdmMarket.parse_listing(row["data"].encode()) == listed
            assert [market for market in listed if contract(market).expiry] == [
                "BTC-USDT:USDT-210924", "ETH-USDT:USDT-210924",
            ]  # fmt: skip


def test_recorded_shallow_books_are_read(wire: Path) -> None:
    read = 0
    for line in recorded(wire, "binance", "rest"):
        if line.where.startswith("samples_crypto_msg_parser") and "lastUpdateId" in line.data:
            answer = exactly(line.data)
            book = make(UsdmBooks).parse_probe("X", line.data.encode())
            assert (numbers(book.bids), numbers(book.asks)) == (numbers(answer["bids"]), numbers(answer["asks"]))
            read += 1
    assert read == 5


def test_a_frame_of_an_unknown_market_names_its_symbol() -> None:
    (message,) = make(Binance).parse(frame_of("binance", "a market that was not asked for"), 0)
    assert isinstance(message, BookChange) and message.market == "DOGEKRW"


# --- against the simulator --------------------------------------------------------------------------------------------

LIVE = "BTC-USDT", "ETH-USDT"
CONTRACTS = "BTC-USDT:USDT", "ETH-USDT:USDT-261225"


def start(live: Callable[..., Live], cls: type[Binance | UsdmBooks], **options: Any) -> tuple[Live, tuple[str, ...]]:
    markets = LIVE if cls is Binance else CONTRACTS
    stage = live("binance", markets=[*LIVE, *CONTRACTS], **options)
    stage.start(cls, *markets, rate={"requests_per_s": 1000, "connects_per_s": 1000})
    return stage, markets


def check_epochs(stage: Live, market: str) -> None:
    """Hold every row to the truth: a REST book that was sent and, in order, the changes that were sent after it."""
    books = {line["sequence"]: line for line in stage.lines(kind="message", what="book")}
    polled = {line["subscription"] for line in stage.lines(kind="subscribe", market=market)}
    books = {number: line for number, line in books.items() if line["subscription"] in polled}
    changes = [line for line in stage.lines(kind="message", what="change") if line["subscription"] in polled]
    for epoch in stage.stored.of(market):
        assert epoch.verdict == "linked"
        assert epoch.rows[0].sequence is not None
        truth = Reference()
        truth.replace(books[epoch.rows[0].sequence]["bids"], books[epoch.rows[0].sequence]["asks"])
        states = {epoch.rows[0].sequence: truth.both()}
        for line in changes:
            if line["sequence"] > epoch.rows[0].sequence:
                truth.change(line["bids"], line["asks"])
                states[line["sequence"]] = truth.both()
        for row, (bids, asks) in zip(epoch.rows, epoch.books, strict=True):
            assert row.sequence is not None
            assert (numbers(bids), numbers(asks)) == states[row.sequence]


def snapshots(stage: Live, market: str) -> int:
    polled = {line["subscription"] for line in stage.lines(kind="subscribe", market=market)}
    return sum(line["subscription"] in polled for line in stage.lines(kind="message", what="book"))


@pytest.mark.parametrize("cls", [Binance, UsdmBooks])
def test_books_begin_with_a_snapshot_each_and_go_on(live: Callable[..., Live], cls: type[Binance | UsdmBooks]) -> None:
    stage, markets = start(live, cls)
    for market in markets:
        stage.heard(15, market)
    stage.stop()
    for market in markets:
        (epoch,) = stage.stored.of(market)
        assert epoch.opened.depth == 100 and epoch.opened.unit is None
        assert snapshots(stage, market) == 1
        check_epochs(stage, market)
    stage.counts()


@pytest.mark.parametrize("kind", ["swallow", "swap"])
@pytest.mark.parametrize("cls", [Binance, UsdmBooks])
def test_a_change_that_does_not_follow_costs_one_market_one_snapshot(
    live: Callable[..., Live], cls: type[Binance | UsdmBooks], kind: str
) -> None:
    stage, (hit, spared) = start(live, cls)
    stage.heard(10, hit)
    stage.heard(10, spared)
    stage.simulator.fault(kind, "binance", hit)
    stage.until(lambda: len(stage.stored.of(hit)) == 2, what="a second epoch")
    stage.heard(10, hit)
    stage.stop()
    first, second = stage.stored.of(hit)
    (other,) = stage.stored.of(spared)
    assert (first.reason, second.reason, other.reason) == ("sequence", "stop", "stop")
    assert (snapshots(stage, hit), snapshots(stage, spared)) == (2, 1)
    assert len(stage.lines(kind="open", transport="websocket")) == 1
    # The gap is in the ledger: it begins with the last change that was all right.
    assert first.ended is not None and first.mark is not None
    assert first.ended.ended_us == first.mark.confirmed_until_us < second.opened.opened_us
    assert first.rows[-1].sequence is not None and second.rows[0].sequence is not None
    lost = [line["sequence"] for line in stage.lines(kind="message", fate="withheld")]
    if kind == "swallow":
        assert first.rows[-1].sequence < lost[0] <= second.rows[0].sequence
    check_epochs(stage, hit)
    check_epochs(stage, spared)
    assert stage.counts()["dropped"] >= 1


@pytest.mark.parametrize("cls", [Binance, UsdmBooks])
def test_a_change_that_comes_twice_changes_nothing(live: Callable[..., Live], cls: type[Binance | UsdmBooks]) -> None:
    stage, (hit, _) = start(live, cls)
    stage.heard(10, hit)
    stage.simulator.fault("duplicate", "binance", hit, times=3)
    stage.heard(30, hit)
    stage.stop()
    assert len(stage.stored.of(hit)) == 1
    check_epochs(stage, hit)
    assert stage.counts()["duplicate"] >= 3


def test_trades_tickers_and_candles_are_those_that_were_sent(live: Callable[..., Live]) -> None:
    each_class: list[tuple[type[Binance | UsdmMarket], str]] = [(Binance, "BTC-USDT"), (UsdmMarket, "BTC-USDT:USDT")]
    for cls, market in each_class:
        stage = live("binance", markets=["BTC-USDT", "BTC-USDT:USDT"], rate_hz=100)
        options: dict[str, Any] = {"endpoint": stage.simulator.endpoints["binance"], "rate": {"connects_per_s": 1000}}
        setup = replace(make_setup(clock=Clock(), **options), channels=("trades", "ticker", "candles"))
        controller = cls((market,), setup)
        stage.controllers.append(controller)
        records: list[Record] = []

        def kinds(setup: Setup = setup, records: list[Record] = records) -> bool:
            for delivery in setup.intake.take(10_000):
                records.extend(delivery.records)
            counted = Counter(type(record) for record in records)
            return counted[TradeRow] > 20 and counted[TickerRow] > 20 and counted[CandleRow] > 5

        controller.start()
        wait_until(kinds)
        controller.stop()
        assert controller.join(10)
        kinds()
        sent: dict[str, list[dict[str, Any]]] = {}
        for line in stage.lines(kind="message", fate="sent"):
            sent.setdefault(line["what"], []).extend(line["rows"])
        opened = [record.channel for record in records if isinstance(record, EpochOpened)]
        assert sorted(opened) == ["candles", "ticker", "trades"]
        trades = [record for record in records if isinstance(record, TradeRow)]
        for row, trade in zip(trades, sent["trade"], strict=False):
            assert (row.trade_id, row.side, row.venue_us) == (trade["id"], trade["side"], trade["venue_us"])
            assert Decimal(row.price) == Decimal(trade["price"]) and Decimal(row.volume) == Decimal(trade["volume"])
        told = [(as_number(t["last"]), as_number(t["bid"]), as_number(t["volume"])) for t in sent["ticker"]]
        stood = [
            (c["open_us"], *(Decimal(c[name]) for name in ("open", "high", "low", "close"))) for c in sent["candle"]
        ]
        for record in records:
            if isinstance(record, TickerRow):
                assert (as_number(record.last), as_number(record.bid), as_number(record.volume)) in told
            elif isinstance(record, CandleRow):
                prices = map(Decimal, (record.open, record.high, record.low, record.close))
                assert (record.open_us, *prices) in stood


def as_number(token: str | None) -> Decimal | None:
    return None if token is None else Decimal(token)


def test_a_connection_that_will_end_is_replaced_before(live: Callable[..., Live]) -> None:
    soon = Timing(rest_limits=False, connects_per_s=10_000, session_s=0.5, error_close_s=30)
    stage, (market, _) = start(live, Binance, timing=soon)
    (controller,) = stage.controllers
    assert isinstance(controller, Binance)
    stage.heard(1, market)
    stage.until(controller.due_for_replacement)
    assert stage.log.of("leaving")
    assert stage.stored.of(market)[-1].reason is None
