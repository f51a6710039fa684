"""Prices across exchanges: only what may be compared is, exactly, and whatever is left out is named."""

from decimal import Decimal

import pytest

from collector.aggregate import NEVER, LeftOut, MergedLevel, Part, Prices, Quote, Rate, compare, thing
from collector.records import ORDERBOOK, TICKER, TRADES, EpochEnded, EpochOpened, Feed, TickerRow, TradeRow
from tests.collector.test_live import Fed

BTC = "BTC-KRW"
D = Decimal
RATE = Rate("USDT", "KRW", D("1400.5"), "set by hand")
Sides = tuple[dict[str, str], dict[str, str]]


class Venues(Fed):
    """Feeds of many exchanges, each heard on an epoch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[Feed, int] = {}

    def hear(self, feed: Feed, unit: str | None = None) -> int:
        if feed not in self.epochs:
            epoch = self.epochs[feed] = len(self.epochs) + 1
            opened = EpochOpened(
                epoch, feed.exchange.upper(), feed.market, feed.channel, "websocket", self.clock.wall_us(), unit=unit
            )
            self.give(opened, exchange=feed.exchange)
        return self.epochs[feed]

    def books(self, market: str = BTC, unit: str | None = None, **sides: Sides) -> None:
        for exchange, (bids, asks) in sides.items():
            self.book(self.hear(Feed(exchange, market), unit), bids, asks)

    def ticker(self, exchange: str, last: str | None, bid: str | None = None, ask: str | None = None) -> None:
        epoch = self.hear(Feed(exchange, BTC, TICKER))
        now_us = self.clock.wall_us()
        self.give(TickerRow(epoch, now_us, now_us - 1, last, bid, ask, None), exchange=exchange)

    def paid(self, exchange: str, price: str) -> None:
        epoch = self.hear(Feed(exchange, BTC, TRADES))
        now_us = self.clock.wall_us()
        self.give(TradeRow(epoch, str(now_us), "sell", price, "1", now_us, now_us), exchange=exchange)

    def lose(self, feed: Feed, reason: str = "disconnect") -> None:
        self.give(EpochEnded(self.epochs.pop(feed), self.clock.wall_us(), reason), exchange=feed.exchange)

    def prices(self, *rates: Rate, stale_s: float = 60) -> Prices:
        return Prices(self.view, rates=rates, stale_s=stale_s)


@pytest.fixture
def venues() -> Venues:
    return Venues()


# --- comparing -------------------------------------------------------------------------------------------------------


def test_the_best_price_is_the_highest_bid_and_the_lowest_ask_of_all(venues: Venues) -> None:
    venues.books(
        upbit=({"100": "1", "99": "5"}, {"102": "2"}),
        bithumb=({"101": "3"}, {"103": "1"}),
        korbit=({}, {"101.5": "4"}),
    )
    found = venues.prices().compare(BTC)
    assert [one.exchange for one in found.venues] == ["bithumb", "korbit", "upbit"]
    assert (found.left_out, found.rates) == ((), ())
    assert found.best_bid is not None
    assert found.best_ask is not None
    assert (found.best_bid.exchange, found.best_bid.bid, found.best_bid.bid_size) == ("bithumb", D(101), D(3))
    assert (found.best_ask.exchange, found.best_ask.ask, found.best_ask.ask_size) == ("korbit", D("101.5"), D(4))
    assert found.spread == D("0.5")
    assert [one.spread for one in found.venues] == [D(2), None, D(2)]


def test_where_one_bids_more_than_another_asks_the_spread_is_below_nought(venues: Venues) -> None:
    venues.books(upbit=({"100": "1"}, {"101": "1"}), korbit=({"103": "1"}, {"104": "1"}))
    assert venues.prices().compare(BTC).spread == D(-2)


def test_nothing_known_is_no_price(venues: Venues) -> None:
    found = venues.prices().compare(BTC)
    assert (found.venues, found.best_bid, found.best_ask, found.spread) == ((), None, None, None)


def test_last_is_the_newest_of_trade_and_ticker(venues: Venues) -> None:
    venues.paid("upbit", "100")
    venues.clock.advance(1)
    venues.ticker("upbit", "101", bid="99", ask="103")
    (one,) = venues.prices().compare(BTC).venues
    assert (one.last, one.bid, one.ask, one.bid_size) == (D(101), D(99), D(103), None)
    assert (one.received_us, one.venue_us) == (venues.clock.wall_us(), venues.clock.wall_us() - 1)
    venues.clock.advance(1)
    venues.paid("upbit", "102.50")
    venues.books(upbit=({"98": "1"}, {"104": "1"}))
    (one,) = venues.prices().compare(BTC).venues
    assert (str(one.last), one.bid, one.ask) == ("102.50", D(98), D(104))  # bid and ask are the book's


def test_a_ticker_stands_in_for_a_book_that_is_gone_and_the_book_is_named(venues: Venues) -> None:
    venues.books(upbit=({"98": "1"}, {"104": "1"}))
    venues.ticker("upbit", None, bid="99", ask="103")
    venues.lose(Feed("upbit", BTC), "checksum")
    found = venues.prices().compare(BTC)
    assert [(one.bid, one.ask, one.last) for one in found.venues] == [(D(99), D(103), None)]
    assert found.left_out == (LeftOut("upbit", BTC, "orderbook: checksum"),)


def test_what_is_gone_stale_or_was_never_heard_takes_no_part_and_is_named(venues: Venues) -> None:
    venues.books(gopax=({"500": "1"}, {"501": "1"}), korbit=({"400": "1"}, {"1": "1"}))
    venues.clock.advance(61)
    venues.books(upbit=({"100": "1"}, {"101": "1"}))
    venues.lose(Feed("korbit", BTC))
    venues.view.expect(Feed("coinone", BTC))
    left_out = (
        LeftOut("coinone", BTC, NEVER),
        LeftOut("gopax", BTC, "orderbook: stale, heard 61 s ago"),
        LeftOut("korbit", BTC, "orderbook: disconnect"),
    )
    found = venues.prices().compare(BTC)
    assert [one.exchange for one in found.venues] == ["upbit"]
    assert found.left_out == left_out
    merged = venues.prices().merged(BTC)
    assert merged.venues == ("upbit",)
    assert sorted((one.exchange, one.why) for one in merged.left_out) == [
        ("coinone", NEVER),
        ("gopax", "stale, heard 61 s ago"),
        ("korbit", "disconnect"),
    ]
    assert len(venues.prices(stale_s=62).compare(BTC).venues) == 2


def test_a_last_price_does_not_age_while_trades_are_heard(venues: Venues) -> None:
    venues.paid("upbit", "100")
    venues.clock.advance(3600)
    assert [one.last for one in venues.prices().compare(BTC).venues] == [D(100)]
    venues.lose(Feed("upbit", BTC, TRADES))
    found = venues.prices().compare(BTC)
    assert (found.venues, found.left_out) == ((), (LeftOut("upbit", BTC, "trades: disconnect"),))


# --- currencies ------------------------------------------------------------------------------------------------------


def test_other_currencies_are_joined_only_at_a_rate_which_is_shown(venues: Venues) -> None:
    venues.books(upbit=({"140000": "1"}, {"141000": "1"}))
    venues.books("BTC-USDT", binance=({"100.00000001": "2"}, {"100.1": "3"}))
    venues.books("ETH-KRW", upbit=({"1": "1"}, {"2": "1"}))

    without = venues.prices().compare(BTC)
    assert [one.exchange for one in without.venues] == ["upbit"]
    assert without.left_out == (LeftOut("binance", "BTC-USDT", "priced in USDT, and no rate to KRW is configured"),)
    assert venues.prices().merged(BTC).left_out == without.left_out

    found = venues.prices(RATE).compare(BTC)
    assert found.left_out == ()
    binance = found.venues[0]
    assert binance.bid == D("140050.0000140050")
    assert binance.spread == D("140.049985995")
    assert found.best_bid is binance
    assert found.best_bid.market == "BTC-USDT"
    assert (binance.rate, found.venues[1].rate, found.rates) == (RATE, None, (RATE,))
    assert str(RATE) == "1 USDT = 1400.5 KRW (set by hand)"

    # A rate is not turned round: one divided by it would not be exact.
    assert [one.exchange for one in venues.prices(RATE).compare("BTC-USDT").left_out] == ["upbit"]


def test_contracts_are_joined_with_the_same_contract_only(venues: Venues) -> None:
    assert thing("BTC-KRW") == thing("BTC-USDT")
    assert len(set(map(thing, ("BTC-USDT", "BTC-USDT:USDT", "BTC-USDT:USDT-261225", "ETH-USDT")))) == 4
    venues.books("BTC-USDT", binance=({"1": "1"}, {"2": "1"}))
    venues.books("BTC-USDT:USDT", bybit=({"3": "1"}, {"4": "1"}), okx=({"3": "1"}, {"5": "1"}))
    found = venues.prices(RATE).compare("BTC-USDT:USDT")
    assert [one.exchange for one in found.venues] == ["bybit", "okx"]
    assert found.left_out == ()


def test_quotes_from_elsewhere_are_compared_alike() -> None:
    quotes = [
        Quote("upbit", BTC, bid=D(1), ask=D(2)),
        Quote("okx", "ETH-KRW", bid=D(9)),
        Quote("gopax", BTC, bid=D(7), unfit="down"),
    ]
    found = compare(BTC, quotes)
    assert [one.exchange for one in found.venues] == ["upbit"]
    assert found.left_out == (
        LeftOut("gopax", BTC, "down"),
        LeftOut("okx", "ETH-KRW", "not the same thing as BTC-KRW"),
    )


# --- one book of many ------------------------------------------------------------------------------------------------


def test_a_merged_book_adds_up_what_stands_at_one_price_and_says_whose_it_is(venues: Venues) -> None:
    venues.books(
        upbit=({"100": "1.5", "99": "1"}, {"101": "1", "102": "2"}),
        korbit=({"100.0": "0.25", "98": "1"}, {"100": "9"}),
    )
    book = venues.prices().merged(BTC, depth=2)
    hundred = D(100)
    assert book.bids == (
        MergedLevel(
            hundred,
            D("1.75"),
            (Part("korbit", BTC, hundred, D("0.25")), Part("upbit", BTC, hundred, D("1.5"))),
        ),
        MergedLevel(D(99), D(1), (Part("upbit", BTC, D(99), D(1)),)),
    )
    assert [(level.price, level.size) for level in book.asks] == [(D(100), D(9)), (D(101), D(1))]
    assert (book.counts_in, book.venues, book.rates, book.left_out) == ("BTC", ("korbit", "upbit"), (), ())


def test_a_merged_book_over_two_currencies_keeps_the_original_prices(venues: Venues) -> None:
    venues.books(upbit=({"140050": "1"}, {}))
    venues.books("BTC-USDT", binance=({"100": "2"}, {"101": "1"}))
    book = venues.prices(RATE).merged(BTC)
    assert [(level.price, level.size) for level in book.bids] == [(D(140050), D(3))]
    assert {part.price for part in book.bids[0].parts} == {D(100), D(140050)}
    assert (book.asks[0].price, book.rates) == (D("141450.5"), (RATE,))


def test_contracts_count_in_the_symbol_where_they_can(venues: Venues) -> None:
    market = "BTC-USDT:USDT"
    venues.books(market, unit="0.01 BTC", okx=({"100": "150"}, {}))
    venues.books(market, binance=({"100": "2"}, {}))
    venues.books(market, unit="100 USDT", bybit=({"100": "7"}, {}))
    book = venues.prices().merged(market)
    assert [(level.price, level.size) for level in book.bids] == [(D(100), D("3.50"))]
    assert book.left_out == (LeftOut("bybit", market, "sizes count USDT, not BTC"),)


def test_inverse_contracts_count_in_the_currency(venues: Venues) -> None:
    market = "BTC-USD:BTC"
    venues.books(market, unit="1 USD", bybit=({"100": "700"}, {}))
    venues.books(market, unit="100 USD", okx=({"100": "3"}, {}))
    book = venues.prices().merged(market)
    assert (book.counts_in, book.bids[0].size) == ("USD", D(1000))


def test_figures_of_any_length_stay_exact(venues: Venues) -> None:
    long = "9" * 40 + "." + "9" * 40
    rate = Rate("USDT", "KRW", D(long), "a test")
    venues.books("BTC-USDT", binance=({long: "1"}, {}))
    found = venues.prices(rate).compare(BTC).venues[0].bid
    digits = int(long.replace(".", ""))
    assert str(found).replace(".", "") == str(digits * digits)


def test_markets_are_those_of_all_feeds(venues: Venues) -> None:
    venues.books(upbit=({"1": "1"}, {}), korbit=({"1": "1"}, {}))
    venues.view.expect(Feed("upbit", "ETH-KRW", ORDERBOOK))
    assert venues.prices().markets() == [BTC, "ETH-KRW"]
