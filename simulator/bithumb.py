"""Bithumb as of 2026: Upbit's way of subscribing with habits of its own; REST errors come with status 200.

Simulated: order books on the official socket (15 levels) and on `/v1/orderbook` (30 for one market, 15 for several),
the old `/public/orderbook/BTC_KRW`, trades and tickers over both, candles of one minute over REST, and the market list.
Sizes have four places in books; a level may stand there with size 0, now and then as the best one; many books repeat
the one before. A trade has another number over REST than on the socket; the time stamps of the REST ticker are nine
hours ahead. How the venue refuses more than 150 calls a second is unverified: here with 429.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from aiohttp import web

from simulator.connection import Message, Subscription
from simulator.markets import Book, Character, Level, now_us, plain, total, units
from simulator.recording import real
from simulator.tape import KEPT, Trade
from simulator.upbit import MISSING_PARAMETER, SIDES, WRONG_FORMAT, BadRequest, Upbit, moment, respelled, spelled
from simulator.venue import Bucket, Reply, Timing, compact

REST_TICKER_KEYS = (
    "market", "trade_date", "trade_time", "trade_date_kst", "trade_time_kst", "trade_timestamp", "opening_price",
    "high_price", "low_price", "trade_price", "prev_closing_price", "change", "change_price", "change_rate",
    "signed_change_price", "signed_change_rate", "trade_volume", "acc_trade_price", "acc_trade_price_24h",
    "acc_trade_volume", "acc_trade_volume_24h", "highest_52_week_price", "highest_52_week_date",
    "lowest_52_week_price", "lowest_52_week_date", "timestamp",
)  # fmt: skip
REST_CANDLE_KEYS = (
    "market", "candle_date_time_utc", "candle_date_time_kst", "opening_price", "high_price", "low_price",
    "trade_price", "timestamp", "candle_acc_trade_price", "candle_acc_trade_volume", "unit",
)  # fmt: skip


class Bithumb(Upbit):
    """The simulated Bithumb."""

    name = "bithumb"
    hosts = ("ws-api.bithumb.com",)
    depths = (1, 5, 15)
    types = re.compile(r"orderbook|trade|ticker")
    delisting = '""'
    ticker_keys = (
        "type", "code", "opening_price", "high_price", "low_price", "trade_price", "prev_closing_price", "change",
        "change_price", "signed_change_price", "change_rate", "signed_change_rate", "trade_volume", "acc_trade_volume",
        "acc_trade_volume_24h", "acc_trade_price", "acc_trade_price_24h", "trade_date", "trade_time",
        "trade_timestamp", "ask_bid", "acc_ask_volume", "acc_bid_volume", "highest_52_week_price",
        "highest_52_week_date", "lowest_52_week_price", "lowest_52_week_date", "market_state", "is_trading_suspended",
        "delisting_date", "market_warning", "timestamp", "stream_type",
    )  # fmt: skip
    character = Character(depth=30, spread_ticks=4, gap_ticks=5, volume_places=4, repeats=0.4)
    timing = Timing(idle_s=60, status_s=10, error_close_s=0.15, connects_per_s=10, rest_limits=True)
    # the snake-case spellings that the documentation shows are ignored
    snapshot_only = ("isOnlySnapshot",)
    realtime_only = ("isOnlyRealtime",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = {group: Bucket(150, 150) for group in ("orderbook", "ticker", "trades", "candles", "other")}
        self._greeted = 0

    # -- socket

    def error(self, name: str, message: str) -> bytes:
        """Spell an error frame; the name comes first here."""
        body = {"error": {"name": name, "message": message}}
        return compact(body).encode()

    def spelling(self, formats: list[Any]) -> str:
        """Choose the format of the frames; an unknown one is ignored."""
        return formats[-1] if formats and formats[-1] in ("SIMPLE", "JSON_LIST", "SIMPLE_LIST") else "DEFAULT"

    def level_served(self, level: Any) -> bool:
        """Refuse a grouping other than none."""
        if level not in (None, 0, 1):
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT)
        return True

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the snapshot; now and then a REALTIME frame of the same book overtakes it."""
        book = self.shown(s.market)
        self._greeted += 1
        first = [] if self._greeted % 4 else [self.book_frame(s, book, False)]
        return [*first, self.book_frame(s, book, True)]

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a book: plain numbers, a time of sixteen digits."""
        text, bids, asks = self._spelled(s.market, book, s.options["depth"])
        stream = "SNAPSHOT" if first else "REALTIME"
        text = (
            f'{{"type":"orderbook","code":"{s.code}",{text},"level":1,'
            f'"timestamp":{book.time_us},"stream_type":"{stream}"}}'
        )
        return Message(respelled(text, s.options["format"]).encode(), "book", bids, asks, book.time_us)

    def _spelled(self, market: str, book: Book, depth: int) -> tuple[str, tuple[Level, ...], tuple[Level, ...]]:
        """Spell totals and levels; return with them the levels that have a size."""
        bids, asks = self._dusted(market, book)
        bids, asks = bids[:depth], asks[:depth]
        text = (
            f'"total_ask_size":{total(asks)},"total_bid_size":{total(bids)},'
            f'"orderbook_units":[{self.pairs(bids, asks, depth, str, str)}]'
        )
        return text, real(bids), real(asks)

    def _dusted(self, market: str, book: Book) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """Put a level of size 0 into every fifth book: what is left there is less than the venue's four places show."""
        if book.n % 5 != 2 or not book.bids or not book.asks:
            return book.bids, book.asks
        asks_too = book.n % 2 == 0
        side, sign = (book.asks, 1) if asks_too else (book.bids, -1)
        facing = units(book.bids[0][0] if asks_too else book.asks[0][0])
        prices = [facing, *(units(price) for price, _ in side)]
        for i in range(book.n // 10 % 4, len(side)):
            price = prices[i + 1] - sign * self.markets[market].tick(prices[i + 1])
            if (price - prices[i]) * sign > 0:
                dusted = (*side[:i], (plain(price), "0"), *side[i:])
                return (book.bids, dusted) if asks_too else (dusted, book.asks)
        return book.bids, book.asks

    def _spelling_of(self, s: Subscription) -> tuple[Any, Any]:
        return str, str

    def _trade(self, s: Subscription, trade: Trade, stream: str) -> Message:
        """Spell a trade: its date and time are those of a clock in Korea."""
        at, ms = moment(trade.time_us, 9), trade.time_us // 1000
        number = 862_683_813_820_000_000 + int(trade.id) * 7919  # unique, and above 2^53
        text = (
            f'{{"type":"trade","code":"{s.code}","trade_price":{trade.price},"trade_volume":{trade.volume},'
            f'"ask_bid":"{SIDES[trade.side]}","prev_closing_price":{trade.price},"change":"EVEN","change_price":0,'
            f'"trade_date":"{at:%Y-%m-%d}","trade_time":"{at:%H:%M:%S}","trade_timestamp":{ms},'
            f'"sequential_id":{number},"timestamp":{now_us() // 1000},"stream_type":"{stream}"}}'
        )
        data = respelled(text, s.options["format"]).replace('"td":', '"tdt":').encode()
        return Message(data, "trade", rows=(replace(trade, id=number, time_us=ms * 1000),))

    def ticker_moment(self, at_us: int) -> datetime:
        """Return what date and time a ticker of the socket shows: those of a clock in Korea."""
        return moment(at_us, 9)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the calls for books, trades, tickers, candles and markets, and the old `/public/orderbook/BTC_KRW`."""
        match path.split("/"):
            case ["v1", "orderbook"]:
                codes = request.query.get("markets", "")
                return self._limited("orderbook", codes.split(",")) or self._books(codes)
            case ["v1", "trades", "ticks"]:
                asked = request.query.get("market", "")
                count = request.query.get("count", "1")
                return self._limited("trades", [asked]) or self._rest_trades(asked, count)
            case ["v1", "ticker"]:
                codes = request.query.get("markets", "")
                return self._limited("ticker", codes.split(",")) or self._rest_tickers(codes)
            case ["v1", "candles", "minutes", "1"]:
                asked = request.query.get("market", "")
                count = request.query.get("count", "1")
                return self._limited("candles", [asked]) or self._rest_candles(asked, count)
            case ["v1", "market", "all"]:
                detailed = request.query.get("isDetails") == "true"
                rows = [self.listing(market, detailed) for market in self.markets]
                return self._limited("other", []) or Reply(compact(rows))
            case ["public", "orderbook", pair]:
                return self._limited("orderbook", []) or self._old_book(pair, request.query.get("count", "30"))
            case _:
                return Reply('{"name":"not_found","message":"No Route matched with those values"}', 404)

    def _limited(self, group: str, codes: list[str]) -> Reply | None:
        if not self.timing.rest_limits or self.calls[group].take():
            return None
        asked = tuple(market for code in codes if (market := self.house(code)))
        channel = group if group in ("trades", "ticker", "candles") else "orderbook"
        return Reply('{"error":{"name":429,"message":"Too many requests"}}', 429, asked=asked, channel=channel)

    def refusal(self, status: int, name: int | str, message: str) -> Reply:
        """Spell a REST error, which comes with status 200."""
        body = {"error": {"name": name, "message": message}}
        return Reply(compact(body))

    def listing(self, market: str, detailed: bool) -> dict[str, Any]:
        """Describe a market for the market list."""
        symbol = market.split("-")[0]
        row = {"market": self.native(market), "korean_name": symbol, "english_name": symbol}
        return {**row, "market_warning": "NONE"} if detailed else row

    def _books(self, codes: str) -> Reply:
        if not codes:
            return self.refusal(200, 400, MISSING_PARAMETER)
        found = [self.house(code) for code in codes.split(",")]
        markets = [market for market in found if market is not None]
        if len(markets) < len(found):
            return self.refusal(200, 404, "Code not found")
        books = {market: self.rest_book(market, 30 if len(markets) == 1 else 15) for market in markets}
        left = str(self.calls["orderbook"].left)
        headers = {
            "x-ratelimit-remaining": left, "x-ratelimit-burst-capacity": "150", "x-ratelimit-replenish-rate": "150",
        }  # fmt: skip
        return Reply(f"[{','.join(str(book.data) for book in books.values())}]", books=books, headers=headers)

    def rest_book(self, market: str, depth: int) -> Message:
        """Spell a book as the REST call does: its time in milliseconds."""
        book = self.shown(market)
        text, bids, asks = self._spelled(market, book, depth)
        stamp = book.time_us // 1000
        data = f'{{"market":"{self.native(market)}","timestamp":{stamp},{text}}}'
        return Message(data, "book", bids, asks, stamp * 1000)

    def _rest_trades(self, code: str, count: str) -> Reply:
        market = self.house(code)
        if market is None or not count.isdigit() or not 1 <= int(count) <= 500:
            return self._unserved(market)
        trades = [
            replace(trade, id=self.number(trade), time_us=trade.time_us // 1000 * 1000)
            for trade in list(self.tapes[market].trades)[: -int(count) - 1 : -1]
        ]
        rows = (
            f'{{"market":"{code}","trade_date_utc":"{moment(trade.time_us):%Y-%m-%d}",'
            f'"trade_time_utc":"{moment(trade.time_us):%H:%M:%S}","timestamp":{trade.time_us // 1000},'
            f'"trade_price":{trade.price},"trade_volume":{trade.volume},"prev_closing_price":{trade.price},'
            f'"change_price":0,"ask_bid":"{SIDES[trade.side]}","sequential_id":{trade.id}}}'
            for trade in trades
        )
        body = f"[{','.join(rows)}]"
        return Reply(body, books={market: Message(body, "trade", rows=tuple(trades))}, channel="trades")

    def _rest_tickers(self, codes: str) -> Reply:
        found = [self.house(code) for code in codes.split(",")]
        markets = [market for market in found if market is not None]
        if not codes or len(markets) < len(found):
            return self._unserved(None)
        rows, books = [], {}
        for market in markets:
            ticker, last = self.tapes[market].ticker, self.tapes[market].trades[-1]
            utc, korean = moment(last.time_us), moment(last.time_us, 9)
            figures = self.ticker_figures(market, ticker, str, str)
            ms = last.time_us // 1000
            told = {
                **figures, "market": f'"{self.native(market)}"', "trade_date": f'"{utc:%Y%m%d}"',
                "trade_time": f'"{utc:%H%M%S}"', "trade_date_kst": f'"{korean:%Y%m%d}"',
                "trade_time_kst": f'"{korean:%H%M%S}"', "trade_timestamp": ms + 9 * 3_600_000,
                "timestamp": ms + 9 * 3_600_000,
            }  # fmt: skip
            rows.append(spelled(told, REST_TICKER_KEYS))
            meant = replace(ticker, bid=None, ask=None, time_us=ms * 1000)
            books[market] = Message("", "ticker", rows=(meant,))
        return Reply(f"[{','.join(rows)}]", books=books, channel="ticker")

    def _rest_candles(self, code: str, count: str) -> Reply:
        market = self.house(code)
        if market is None or not count.isdigit() or not 1 <= int(count) <= 200:
            return self._unserved(market)
        traded = [candle for candle in self.tapes[market].candles(KEPT) if candle.trades]
        candles = [
            replace(candle, closed=at > 0, time_us=(candle.time_us or 0) // 1000 * 1000)
            for at, candle in enumerate(traded[: -int(count) - 1 : -1])
        ]
        rows = (
            spelled({"market": f'"{code}"', "unit": 1, **self.candle_figures(candle, str, str)}, REST_CANDLE_KEYS)
            for candle in candles
        )
        body = f"[{','.join(rows)}]"
        return Reply(body, books={market: Message(body, "candle", rows=tuple(candles))}, channel="candles")

    def _unserved(self, market: str | None) -> Reply:
        return self.refusal(200, 404, "Code not found") if market is None else self.refusal(200, 400, MISSING_PARAMETER)

    def _old_book(self, pair: str, count: str) -> Reply:
        market = pair.replace("_", "-")
        if market not in self.markets:
            return Reply('{"status":"5500","message":"상장 코인 아님"}')
        if not count.isdigit() or not 1 <= int(count) <= 30:
            return Reply('{"status":"5500","message":"입력값을 확인해 주세요."}')
        book = self.shown(market).top(int(count))
        stamp = book.time_us // 1000
        symbol, currency = market.split("-")
        sides = {
            name: [{"price": price, "quantity": volume} for price, volume in levels]
            for name, levels in (("bids", book.bids), ("asks", book.asks))
        }
        data = {"timestamp": str(stamp), "payment_currency": currency, "order_currency": symbol, **sides}
        body = compact({"status": "0000", "data": data})
        return Reply(body, books={market: Message(body, "book", book.bids, book.asks, stamp * 1000)})
