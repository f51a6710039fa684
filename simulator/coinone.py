"""Coinone as of 2026: whole books of 16 levels, the asks worst first, numbers as strings, nonsense acknowledged first.

Simulated: order books on the socket (`DEFAULT` and `SHORT`) and over REST, trades and tickers on the socket, candles
over REST, and the market list. Charts on the socket are acknowledged and stay silent unless a recording holds them, as
do trades and tickers in `SHORT`, whose keys are unverified. Unverified as well: what comes first (here the ticker as it
is, and no trade). What the venue does at the end of the 30 minutes without a PING is unverified: here the connection is
cut.
"""

import asyncio
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.faults import damage
from simulator.markets import Book, Character, Level, Market, Step, now_us
from simulator.recording import Recorded, exact, real
from simulator.tape import KEPT, News, Row, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

# What the collector calls them; charts are none of its channels.
CHANNELS = {"ORDERBOOK": "orderbook", "TRADE": "trades", "TICKER": "ticker", "CHART": "chart"}
NOT_FOUND_PAGE = "<!DOCTYPE html><html><head><title>Coinone</title></head><body></body></html>"


class Coinone(Venue):
    """The simulated Coinone."""

    name = "coinone"
    hosts = ("stream.coinone.co.kr",)
    rates_hz = (4, 4)
    jitter = 0.6
    depth = 16
    character = Character(depth=22, spread_ticks=3, gap_ticks=4, coarse=10, repeats=0.2)
    timing = Timing(idle_s=60.7, session_s=1800, connections_max=20, rest_limits=True)
    volume = re.compile(r'("qty":|"q":)("[^"]*")')
    surprise = '{"response_type":"SURPRISE","data":{}}'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = Bucket(1200, 20)
        self._ids = {name: market.book.time_us // 1000 * 1000 + 1 for name, market in self.markets.items()}

    def native(self, market: str) -> str:
        """Spell a market as REST paths do: KRW/BTC."""
        symbol, currency = market.split("-", 1)
        return f"{currency}/{symbol}"

    def stepped(self, market: Market, step: Step) -> None:
        """Give every book an id: its millisecond followed by three digits, always rising."""
        self._ids[market.name] = max(self._ids[market.name] + 1, step.book.time_us // 1000 * 1000 + 1)

    # -- socket

    async def greet(self, c: Connection) -> None:
        """Name the session, or turn away the connection that is one too many."""
        sockets = sum(other.socket is not None for other in self.connections)
        if self.timing.connections_max is not None and sockets > self.timing.connections_max:
            await c.close(4290, "too many connections")
            return
        c.say(compact({"response_type": "CONNECTED", "data": {"session_id": str(uuid.uuid4())}}))

    def keepalive(self, c: Connection) -> None:
        """Cut a socket that never says a word, and later one that stops sending PING."""
        c.memory["pinged_s"] = c.opened_s
        c.start(self._watch_first_word(c))
        c.start(self._watch_pings(c))

    async def _watch_first_word(self, c: Connection) -> None:
        await asyncio.sleep(self.timing.idle_s or 60.7)
        if c.heard_s == c.opened_s:
            c.abort("idle")

    async def _watch_pings(self, c: Connection) -> None:
        session = self.timing.session_s or 1800
        while (left := c.memory["pinged_s"] + session - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
        c.abort("no PING")

    async def received(self, c: Connection, text: str) -> None:
        """Answer one request. The socket stays open whatever comes."""
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            self._error(c, 160010, "Invalid Request")
            return
        match request.get("request_type"):
            case "PING":
                c.memory["pinged_s"] = asyncio.get_running_loop().time()
                if not c.muted():
                    c.say('{"response_type":"PONG"}')
            case "SUBSCRIBE" | "UNSUBSCRIBE" as kind:
                self._topic(c, kind, request)
            case _:
                self._error(c, 160011, "Invalid Type", "request_type")

    def _error(self, c: Connection, code: int, message: str, field: str | None = None) -> None:
        more = {} if field is None else {"field": field}
        c.say(compact({"response_type": "ERROR", "error_code": code, "message": message, **more}))

    def _topic(self, c: Connection, kind: str, request: dict[str, Any]) -> None:
        channel, topic, spelling = request.get("channel"), request.get("topic"), request.get("format", "DEFAULT")
        if not isinstance(channel, str) or channel not in CHANNELS:
            self._error(c, 160011, "Invalid Type", "channel")
        elif spelling not in ("DEFAULT", "SHORT"):
            self._error(c, 160011, "Invalid Type", "format")
        elif not isinstance(topic, dict):
            self._error(c, 160010, "Invalid Request")
        else:
            quote, target = (str(topic.get(key)).upper() for key in ("quote_currency", "target_currency"))
            self._acknowledge(c, f"{kind}D", channel, {**topic, "quote_currency": quote, "target_currency": target})
            market = self.house(f"{quote}/{target}")
            if market is None:
                self._error(c, 160012, "Invalid Topic")
            elif kind == "SUBSCRIBE":
                code = f"{quote}/{target}"
                self.subscribed(c, [c.subscribe(CHANNELS[channel], market, code, {"format": spelling})])
            else:
                c.subscriptions.pop((CHANNELS[channel], market), None)

    def _acknowledge(self, c: Connection, kind: str, channel: str, topic: dict[str, Any]) -> None:
        c.say(compact({"response_type": kind, "channel": channel, "data": topic}))

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the current book; the first one carries a time about ten seconds old."""
        return [self._frame(s, self.shown(s.market), 10_000 if fresh else 0)]

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a book."""
        return self._frame(s, book, 0)

    def _frame(self, s: Subscription, book: Book, stale_ms: int) -> Message:
        book, number = book.top(self.depth), self._ids[s.market]
        quote, target = s.code.split("/")
        stamp = number // 1000 - stale_ms
        short = s.options["format"] == "SHORT"
        keys = ("p", "q") if short else ("price", "qty")
        asks, bids = self._levels(reversed(book.asks), keys), self._levels(book.bids, keys)
        if short:
            text = (
                f'{{"r":"DATA","c":"ORDERBOOK","d":{{"qc":"{quote}","tc":"{target}","t":{stamp},"i":"{number}",'
                f'"a":{asks},"b":{bids}}}}}'
            )
        else:
            text = (
                f'{{"response_type":"DATA","channel":"ORDERBOOK","data":{{"quote_currency":"{quote}",'
                f'"target_currency":"{target}","timestamp":{stamp},"id":"{number}","asks":{asks},"bids":{bids}}}}}'
            )
        return Message(text, "book", book.bids, book.asks, stamp * 1000, number)

    def _levels(self, levels: Any, keys: tuple[str, str]) -> str:
        return "[" + ",".join(f'{{"{keys[0]}":"{p}","{keys[1]}":"{v}"}}' for p, v in levels) + "]"

    def news(self, s: Subscription, news: News) -> Sequence[Message]:
        """Send tickers only with trades: quotes alone move none here."""
        return super().news(s, news) if news.trades else []

    def trade_frame(self, s: Subscription, trade: Trade) -> Message | None:
        """Spell a trade by what its maker did."""
        if s.options["format"] == "SHORT":
            return None
        quote, target = s.code.split("/")
        ms = trade.time_us // 1000
        number = f"{ms}{int(trade.id) % 1000:03d}"
        told = {
            "quote_currency": quote, "target_currency": target, "id": number, "timestamp": ms, "price": trade.price,
            "qty": trade.volume, "is_seller_maker": trade.side == "buy",
        }  # fmt: skip
        data = compact({"response_type": "DATA", "channel": "TRADE", "data": told})
        return Message(data, "trade", rows=(replace(trade, id=number, time_us=ms * 1000),))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker."""
        if s.options["format"] == "SHORT":
            return None
        quote, target = s.code.split("/")
        ms = (ticker.time_us or 0) // 1000
        told = {
            "quote_currency": quote, "target_currency": target, "timestamp": ms, "quote_volume": ticker.turnover,
            "target_volume": ticker.volume, "high": ticker.high, "low": ticker.low, "first": ticker.open,
            "last": ticker.last, "volume_power": "0", "ask_best_price": ticker.ask, "ask_best_qty": ticker.ask_volume,
            "bid_best_price": ticker.bid, "bid_best_qty": ticker.bid_volume, "id": f"{ms}001",
            "yesterday_high": ticker.high, "yesterday_low": ticker.low, "yesterday_first": ticker.open,
            "yesterday_last": ticker.open, "yesterday_quote_volume": ticker.turnover,
            "yesterday_target_volume": ticker.volume,
        }  # fmt: skip
        data = compact({"response_type": "DATA", "channel": "TICKER", "data": told})
        return Message(data, "ticker", rows=(replace(ticker, time_us=ms * 1000),))

    def spoil(self, what: str, text: str, market: str) -> str | bytes:
        """Turn a good frame into garbage; a foreign market differs in its target currency."""
        symbol, foreign = market.split("-")[0], self.foreign(market).split("-")[0]
        return damage(what, text, self.volume, f'"{symbol}"', f'"{foreign}"', self.surprise)

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded frame in long or short keys."""
        frame = exact(data)
        if not isinstance(frame, dict) or frame.get("response_type", frame.get("r")) != "DATA":
            return None
        spelled = str(frame.get("channel", frame.get("c")))
        channel = CHANNELS.get(spelled, spelled.lower())
        content: dict[str, Any] = frame["data"] if "data" in frame else frame["d"]
        target, quote = (
            content.get("target_currency", content.get("tc")),
            content.get("quote_currency", content.get("qc")),
        )
        market = f"{target}-{quote}"
        stamp, number = content.get("timestamp", content.get("t")), content.get("id", content.get("i"))
        venue_us = None if stamp is None else int(stamp) * 1000
        sequence = int(number) if number and number.isdigit() else None
        if channel != "orderbook":
            rows = cls._recorded_rows(channel, content)
            return Recorded(data, market, channel, spelled.lower(), venue_us=venue_us, sequence=sequence, rows=rows)
        asks = cls._recorded_side(content["asks"] if "asks" in content else content["a"])
        bids = cls._recorded_side(content["bids"] if "bids" in content else content["b"])
        return Recorded(data, market, channel, "book", bids, asks[::-1], venue_us, sequence)

    @staticmethod
    def _recorded_rows(channel: str, content: dict[str, Any]) -> tuple[Row, ...]:
        """Tell what a recorded trade or ticker in long keys means."""
        if "timestamp" not in content:
            return ()
        at_us = int(content["timestamp"]) * 1000
        if channel == "trades":
            side = "buy" if content["is_seller_maker"] else "sell"
            return (Trade(content["id"], side, content["price"], content["qty"], at_us),)
        if channel == "ticker":
            best = content["bid_best_price"], content["ask_best_price"]
            return (Ticker(content["last"], *best, content["target_volume"], at_us),)
        return ()

    @staticmethod
    def _recorded_side(rows: list[dict[str, str]]) -> tuple[Level, ...]:
        return real([(row.get("price") or row["p"], row.get("qty") or row["q"]) for row in rows])

    def shifted(self, data: str, by_us: int) -> str:
        """Move the ids on with the times."""
        return re.sub(
            r'("id"\s*:\s*"|"i"\s*:\s*")(\d{16})', lambda m: f"{m[1]}{int(m[2]) + by_us}", super().shifted(data, by_us)
        )

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the calls for books, candles and markets; other paths get a page, not an error."""
        match path.split("/"):
            case ["public", "v2", "orderbook", quote, target]:
                market = self.house(f"{quote}/{target}".upper())
                asked = () if market is None else (market,)
                return self._limited(asked) or self._book(market, request.query.get("size", "15"))
            case ["public", "v2", "chart", quote, target]:
                market = self.house(f"{quote}/{target}".upper())
                asked = () if market is None else (market,)
                limited = self._limited(asked, "candles")
                return limited or self._chart(market, request.query.get("interval"), request.query.get("size", "200"))
            case ["public", "v2", "markets", quote]:
                rows = [self._listing(m) for m in self.markets if m.endswith(f"-{quote.upper()}")]
                return self._limited(()) or self._reply({"server_time": now_us() // 1000, "markets": rows})
            case _:
                return Reply(NOT_FOUND_PAGE, content_type="text/html")

    def _limited(self, asked: tuple[str, ...], channel: str = "orderbook") -> Reply | None:
        if not self.timing.rest_limits or self.calls.take():
            return None
        return replace(self._refused("4", "Blocked user access", asked), channel=channel)

    def _refused(self, code: str, message: str, asked: tuple[str, ...] = ()) -> Reply:
        body = {"result": "error", "error_code": code, "error_msg": message}
        return Reply(compact(body), asked=asked)

    def _reply(self, content: dict[str, Any], books: dict[str, Message] | None = None) -> Reply:
        headers = {
            "public-ratelimit-remaining": str(self.calls.left), "public-ratelimit-replenish-rate": "20",
            "public-ratelimit-burst-capacity": "1200",
        }  # fmt: skip
        body = compact({"result": "success", "error_code": "0", **content})
        return Reply(body, headers=headers, books=books or {})

    def _book(self, market: str | None, size: str) -> Reply:
        if market is None:
            return self._refused("108", "Unknown CryptoCurrency")
        if size not in ("5", "10", "15", "16"):
            return self._refused("107", "Parameter value is wrong", (market,))
        book, number = self.shown(market).top(int(size)), self._ids[market]
        symbol, currency = market.split("-")
        head = {"timestamp": number // 1000, "id": str(number), "quote_currency": currency, "target_currency": symbol}
        rows = {
            name: [{"price": price, "qty": volume} for price, volume in levels]
            for name, levels in (("bids", book.bids), ("asks", book.asks))
        }
        meaning = Message("", "book", book.bids, book.asks, number // 1000 * 1000, number)
        return self._reply({**head, "order_book_unit": "0.0", **rows}, {market: meaning})

    def _chart(self, market: str | None, interval: str | None, size: str) -> Reply:
        """Answer with the newest candles first; a minute without trades has none."""
        if market is None:
            return self._refused("108", "Unknown CryptoCurrency")
        if interval != "1m" or not size.isdigit() or not 1 <= int(size) <= 500:
            return replace(self._refused("107", "Parameter value is wrong", (market,)), channel="candles")
        traded = [candle for candle in self.tapes[market].candles(KEPT) if candle.trades]
        candles = [
            replace(candle, closed=at > 0, time_us=None) for at, candle in enumerate(traded[: -int(size) - 1 : -1])
        ]
        rows = [
            {
                "timestamp": candle.open_us // 1000, "open": candle.open, "high": candle.high, "low": candle.low,
                "close": candle.close, "target_volume": candle.volume, "quote_volume": candle.turnover,
            }
            for candle in candles
        ]  # fmt: skip
        reply = self._reply({"is_last": len(traded) <= int(size), "chart": rows})
        meaning = Message("", "candle", rows=tuple(candles))
        return replace(reply, books={market: meaning}, channel="candles")

    def _listing(self, market: str) -> dict[str, Any]:
        symbol, currency = market.split("-")
        return {
            "quote_currency": currency, "target_currency": symbol, "price_unit": "1000", "qty_unit": "0.00000001",
            "max_order_amount": "1000000000", "max_price": "1000000000000", "max_qty": "100000000",
            "min_order_amount": "5000", "min_price": "0.0001", "min_qty": "0.0001", "maintenance_status": 0,
            "order_book_units": ["1000", "10000"], "trade_status": 1, "order_types": ["limit", "market", "stop_limit"],
        }  # fmt: skip
