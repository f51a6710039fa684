"""Korbit (Digital X) as of 2026: requests in an array, whole books of up to 30 levels, protocol pings from the server.

Simulated: order books on the socket and over REST, trades and tickers on the socket, candles of one minute over REST,
the list of pairs (with one stopped pair, which gives one empty book and then nothing, and nothing on other channels)
and the clock. Unverified: whether one bad symbol fails the whole request (here it does) and what happens to a client
that never pongs (here nothing).
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, Step, now_us
from simulator.recording import Recorded, exact, real
from simulator.tape import KEPT, Row, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

TYPES = {"orderbook": "orderbook", "trade": "trades", "ticker": "ticker"}  # what the collector calls them
STOPPED = "KLAY-KRW"
STOPPED_SINCE_MS = 1_789_456_789_897


class Korbit(Venue):
    """The simulated Korbit."""

    name = "korbit"
    hosts = ("ws-api.digitalx.miraeasset.com", "ws-api.korbit.co.kr")
    socket_path = "v2/public"
    rates_hz = (3, 3)
    jitter = 0.65
    character = Character(depth=30, spread_ticks=30, gap_ticks=12)
    timing = Timing(ping_s=30, rest_limits=True)
    volume = re.compile(r'("qty":)("[^"]*")')
    surprise = '{"symbol":"btc_krw","timestamp":1,"type":"surprise","data":{}}'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = Bucket(50, 50)

    def native(self, market: str) -> str:
        """Spell a market in lower case with an underscore: btc_krw."""
        return market.replace("-", "_").lower()

    def house(self, code: str) -> str | None:
        """Know the stopped pair as well."""
        return STOPPED if code == self.native(STOPPED) else super().house(code)

    def shown(self, market: str) -> Book:
        """Show nothing for the stopped pair."""
        if market == STOPPED and market not in self.markets:
            return Book(0, (), (), STOPPED_SINCE_MS * 1000)
        return super().shown(market)

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Send protocol pings; nothing is asked of the client but the pongs of its library."""
        c.start(self._ping(c))

    async def _ping(self, c: Connection) -> None:
        while True:
            await asyncio.sleep(self.timing.ping_s or 30)
            await c.ping(b"ping")

    async def received(self, c: Connection, text: str) -> None:
        """Answer an array of requests; the socket stays open whatever comes."""
        try:
            requests = json.loads(text)
        except ValueError:
            requests = None
        if not isinstance(requests, list) or not all(isinstance(part, dict) for part in requests):
            c.say('{"status":"fail","message":"invalid_format"}')
            return
        for part in requests:
            self._answer(c, part)

    def _answer(self, c: Connection, part: dict[str, Any]) -> None:
        number, method, kind, symbols = (part.get(key) for key in ("requestId", "method", "type", "symbols"))
        if method not in ("subscribe", "unsubscribe"):
            self._fail(c, "INVALID_REQUEST", "invalid_method", number)
        elif not isinstance(kind, str) or kind not in TYPES:
            self._fail(c, "INVALID_REQUEST", "unknown_type", number)
        elif not isinstance(symbols, list) or not symbols:
            self._fail(c, "INVALID_REQUEST", "invalid_symbols", number)
        elif unknown := [s for s in symbols if not isinstance(s, str) or self.house(s) is None]:
            self._fail(c, "INVALID_SYMBOL", f"The symbol does not exist ({unknown[0]})", number)
        elif "level" in part:  # no pair here supports grouping
            self._fail(c, "INVALID_REQUEST", "invalid_level", number)
        else:
            if isinstance(number, int):
                c.say(compact({"status": "success", "requestId": number}))
            self._change(c, method, kind, symbols)

    def _fail(self, c: Connection, code: str, message: str, number: Any) -> None:
        named = {"requestId": number} if isinstance(number, int) else {}
        c.say(compact({"status": "fail", "code": code, "message": message, **named}))

    def _change(self, c: Connection, method: str, kind: str, symbols: list[str]) -> None:
        named = [(market, symbol) for symbol in symbols if (market := self.house(symbol))]
        if method == "subscribe":
            self.subscribed(c, [c.subscribe(TYPES[kind], market, symbol) for market, symbol in named])
            return
        for market, _ in named:
            c.subscriptions.pop((TYPES[kind], market), None)

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the latest trade again, or the ticker; of the stopped pair nothing."""
        tape = self.tapes.get(s.market)
        if tape is None:
            return []
        if s.channel == "trades":
            return [self._trades(s, [tape.trades[-1]], True)]
        return [self._ticker(s, tape.ticker, True)]

    def trade_frames(self, s: Subscription, trades: Sequence[Trade]) -> Sequence[Message]:
        """Put the trades of one step into one frame."""
        return [self._trades(s, trades, False)]

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message:
        """Spell a ticker."""
        return self._ticker(s, ticker, False)

    def _trades(self, s: Subscription, trades: Sequence[Trade], first: bool) -> Message:
        meant = [replace(trade, id=int(trade.id) * 3, time_us=trade.time_us // 1000 * 1000) for trade in trades]
        rows = [
            {
                "timestamp": trade.time_us // 1000, "price": trade.price, "qty": trade.volume,
                "isBuyerTaker": trade.side == "buy", "tradeId": trade.id,
            }
            for trade in meant
        ]  # fmt: skip
        return Message(self._envelope(s, "trade", first, rows)[0], "trade", rows=tuple(meant))

    def _ticker(self, s: Subscription, ticker: Ticker, first: bool) -> Message:
        last = self.tapes[s.market].trades[-1]
        data, sent_us = self._envelope(s, "ticker", first, {
            "open": ticker.open, "high": ticker.high, "low": ticker.low, "close": ticker.last,
            "prevClose": ticker.open, "priceChange": "0", "priceChangePercent": "0", "volume": ticker.volume,
            "quoteVolume": ticker.turnover, "bestAskPrice": ticker.ask, "bestBidPrice": ticker.bid,
            "lastTradedAt": last.time_us // 1000,
        })  # fmt: skip
        return Message(data, "ticker", rows=(replace(ticker, time_us=sent_us),))

    def _envelope(self, s: Subscription, kind: str, first: bool, data: Any) -> tuple[str, int]:
        """Spell a frame that is not a book; return it with the time it says it was sent."""
        ms = now_us() // 1000
        flag = {"snapshot": True} if first else {}
        return compact({"symbol": s.code, "timestamp": ms, "type": kind, **flag, "data": data}), ms * 1000

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a book; only the first frame says that it is a snapshot."""
        book = book.top(self.depth)
        stamp, flag = book.time_us // 1000, '"snapshot":true,' if first else ""
        text = (
            f'{{"symbol":"{s.code}","timestamp":{now_us() // 1000},"type":"orderbook",'
            f'{flag}"data":{{"timestamp":{stamp},'
            f'"asks":{self._levels(book.asks)},"bids":{self._levels(book.bids)}}}}}'
        )
        return Message(text, "book", book.bids, book.asks, stamp * 1000)

    def _levels(self, levels: Sequence[Level]) -> str:
        return "[" + ",".join(f'{{"price":"{price}","qty":"{volume}"}}' for price, volume in levels) + "]"

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send a book only when it changed."""
        return [self.book_frame(s, step.book, False)] if step.changes else []

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded data frame."""
        frame = exact(data)
        if not isinstance(frame, dict) or "symbol" not in frame or "type" not in frame:
            return None
        market, kind, content = frame["symbol"].upper().replace("_", "-"), frame["type"], frame["data"]
        if kind != "orderbook":
            sent_us = int(frame["timestamp"]) * 1000
            rows = cls._recorded_rows(kind, content, sent_us)
            return Recorded(data, market, TYPES.get(kind, str(kind)), str(kind), venue_us=sent_us, rows=rows)
        sides = [real([(row["price"], row["qty"]) for row in content[side]]) for side in ("bids", "asks")]
        return Recorded(data, market, kind, "book", sides[0], sides[1], int(content["timestamp"]) * 1000)

    @staticmethod
    def _recorded_rows(kind: str, content: Any, sent_us: int) -> tuple[Row, ...]:
        """Tell what a recorded frame of trades or a ticker means."""
        if kind == "trade":
            return tuple(
                Trade(
                    row["tradeId"], "buy" if row["isBuyerTaker"] else "sell", row["price"], row["qty"],
                    int(row["timestamp"]) * 1000,
                )
                for row in content
            )  # fmt: skip
        if kind == "ticker":
            best = content["bestBidPrice"], content["bestAskPrice"]
            return (Ticker(content["close"], *best, content["volume"], sent_us),)
        return ()

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the calls for books, candles, pairs and the time."""
        symbol = request.query.get("symbol")
        if self.timing.rest_limits and not self.calls.take():
            market = self.house(symbol or "")
            refused = self._error(429, "RATE_LIMIT_EXCEEDED", (market,) if market else (), {"Retry-After": "1"})
            return replace(refused, channel="candles" if path == "v2/candles" else "orderbook")
        match path:
            case "v2/orderbook":
                return self._book(symbol)
            case "v2/candles":
                return self._candles(symbol, request.query.get("interval"), request.query.get("limit", "200"))
            case "v2/currencyPairs":
                return self._success([self._listing(m) for m in dict.fromkeys((*self.markets, STOPPED))])
            case "v2/time":
                return self._success({"time": now_us() // 1000})
            case _:
                return self._error(404, "NOT_FOUND")

    def _error(
        self, status: int, message: str, asked: tuple[str, ...] = (), headers: dict[str, str] | None = None
    ) -> Reply:
        body = {"success": False, "error": {"code": status, "message": message}}
        return Reply(compact(body), status, asked=asked, headers=headers or {})

    def _success(self, data: Any, books: dict[str, Message] | None = None) -> Reply:
        headers = {"Ratelimit": f"limit=50, remaining={self.calls.left}, reset=1", "Ratelimit-Policy": "50;w=1"}
        body = compact({"success": True, "data": data})
        return Reply(body, books=books or {}, headers=headers)

    def _book(self, symbol: str | None) -> Reply:
        if symbol is None:
            return self._error(400, "BAD_REQUEST")
        market = self.house(symbol)
        if market is None:
            return self._error(400, "INVALID_CURRENCY_PAIR")
        book = self.shown(market).top(self.depth)
        stamp = book.time_us // 1000
        sides = {
            name: [{"price": price, "qty": volume} for price, volume in levels]
            for name, levels in (("bids", book.bids), ("asks", book.asks))
        }
        meaning = Message("", "book", book.bids, book.asks, stamp * 1000)
        return self._success({"timestamp": stamp, **sides}, {market: meaning})

    def _candles(self, symbol: str | None, interval: str | None, limit: str) -> Reply:
        """Answer with candles, oldest first; a minute without trades has none, nor has the stopped pair."""
        market = self.house(symbol or "")
        if market is None:
            return self._error(400, "INVALID_CURRENCY_PAIR" if symbol else "BAD_REQUEST")
        if interval != "1" or not limit.isdigit() or not 1 <= int(limit) <= 200:
            return replace(self._error(400, "BAD_REQUEST", (market,)), channel="candles")
        tape = self.tapes.get(market)
        traded = [candle for candle in tape.candles(KEPT) if candle.trades] if tape else []
        traded = traded[-int(limit) :]
        candles = [
            replace(candle, closed=left > 1, time_us=None)
            for left, candle in zip(range(len(traded), 0, -1), traded, strict=True)
        ]
        rows = [
            {
                "timestamp": candle.open_us // 1000, "open": candle.open, "high": candle.high, "low": candle.low,
                "close": candle.close, "volume": candle.volume,
            }
            for candle in candles
        ]  # fmt: skip
        reply = self._success(rows, {market: Message("", "candle", rows=tuple(candles))})
        return replace(reply, channel="candles")

    def _listing(self, market: str) -> dict[str, str]:
        symbol, currency = market.lower().split("-")
        status = "stopped" if market == STOPPED and market not in self.markets else "launched"
        return {
            "symbol": f"{symbol}_{currency}", "status": status, "baseCurrency": symbol, "quoteCurrency": currency,
            "minOrderValue": "5000", "maxOrderValue": "1000000000",
        }  # fmt: skip
