"""Bithumb as of 2026: Upbit's way of subscribing with habits of its own; REST errors come with status 200.

Simulated: order books on the official socket (15 levels) and on `/v1/orderbook` (30 for one market, 15 for several),
the old `/public/orderbook/BTC_KRW`, and the market list. Sizes have four places; a level may stand there with size 0,
now and then as the best one; many books repeat the one before. How the venue refuses more than 150 calls a second is
unverified: here with 429.
"""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from simulator.connection import Message, Subscription
from simulator.markets import Book, Character, Level, plain, total, units
from simulator.recording import real
from simulator.upbit import MISSING_PARAMETER, WRONG_FORMAT, BadRequest, Upbit, respelled
from simulator.venue import Bucket, Reply, Timing, compact


class Bithumb(Upbit):
    """The simulated Bithumb."""

    name = "bithumb"
    hosts = ("ws-api.bithumb.com",)
    depths = (1, 5, 15)
    character = Character(depth=30, spread_ticks=4, gap_ticks=5, volume_places=4, repeats=0.4)
    timing = Timing(idle_s=60, status_s=10, error_close_s=0.15, connects_per_s=10, rest_limits=True)
    # the snake-case spellings that the documentation shows are ignored
    snapshot_only = ("isOnlySnapshot",)
    realtime_only = ("isOnlyRealtime",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = {group: Bucket(150, 150) for group in ("orderbook", "other")}
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

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer `/v1/orderbook`, `/v1/market/all` and the old `/public/orderbook/BTC_KRW`."""
        match path.split("/"):
            case ["v1", "orderbook"]:
                codes = request.query.get("markets", "")
                return self._limited("orderbook", codes.split(",")) or self._books(codes)
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
        return Reply('{"error":{"name":429,"message":"Too many requests"}}', 429, asked=asked)

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
