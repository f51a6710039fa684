"""Binance as of 2026: numbered changes of books whose beginning is asked for over REST; spot and USD-M futures.

Simulated: combined streams (`/stream`), `SUBSCRIBE`, `UNSUBSCRIBE` and `LIST_SUBSCRIPTIONS`, changes of books, trades,
tickers and candles of one minute, the REST book and list of markets with their weights. Spot numbers the changes of
each market one by one, USD-M those of all markets together. Of two REST books in a row one was taken between two
messages, the other one in the middle of a message. Streams this venue does not have, or not on that path, are silent.

USD-M lives at `/usdm/public/stream` (books), `/usdm/market/stream` (all other channels) and `/usdm/fapi/...`.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Change, Character, Level, Market, Step, now_us, plain, units
from simulator.tape import Candle, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

STREAMS_MAX = 1024
METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
USDM_LIMITS = (5, 10, 20, 50, 100, 500, 1000)


@dataclass(frozen=True, slots=True)
class Product:
    """What differs between spot and futures."""

    rest: str  # base of REST calls
    weight_max: int  # a minute
    messages_max: int  # from a client, a second
    ping_s: float
    pong_s: float


SPOT = Product("api/v3", 6000, 5, 20, 60)
USDM = Product("usdm/fapi/v1", 2400, 10, 180, 600)
# Path of a socket: whose it is, and the streams it has with the channel of each.
PATHS = {
    "/binance/stream": (
        SPOT,
        {
            "depth": "orderbook",
            "depth@100ms": "orderbook",
            "trade": "trades",
            "ticker": "ticker",
            "kline_1m": "candles",
        },
    ),
    "/binance/usdm/public/stream": (USDM, {"depth": "orderbook", "depth@100ms": "orderbook"}),
    "/binance/usdm/market/stream": (USDM, {"aggTrade": "trades", "ticker": "ticker", "kline_1m": "candles"}),
}


class BadRequest(Exception):
    """What a request is refused with: a code and its message."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a message: of its first and last change, and of the last change of the message before."""

    first: int
    last: int
    previous: int


class Weight:
    """The weight of REST calls in the present minute."""

    def __init__(self, most: int) -> None:
        self.most, self.used, self._minute, self.refusals = most, 0, 0, 0

    def take(self, weight: int) -> float | None:
        """Count a call; return None, or in how many seconds to come again."""
        now_s = now_us() / 1e6
        if int(now_s // 60) != self._minute:
            self._minute, self.used, self.refusals = int(now_s // 60), 0, 0
        if self.used + weight > self.most:
            self.refusals += 1
            return 60 - now_s % 60
        self.used += weight
        return None


def is_spot(market: str) -> bool:
    """Tell whether a market is one of spot; else it is one of USD-M."""
    return ":" not in market


def padded(token: str) -> str:
    """Spell a number of spot with its eight places: 61837.63000000."""
    whole, _, fraction = token.partition(".")
    return f"{whole}.{fraction.ljust(8, '0')}"


def rows(levels: Sequence[Level], *, spot: bool) -> str:
    """Spell levels as pairs of text."""
    spell = padded if spot else str
    return ",".join(f'["{spell(price)}","{spell(volume)}"]' for price, volume in levels)


def to_ms(time_us: int | None) -> int:
    """Cut a time to the milliseconds that are sent."""
    return (time_us or 0) // 1000


class Binance(Venue):
    """The simulated Binance."""

    name = "binance"
    hosts = ()  # recordings have their books in REST answers, which are not played
    socket_path = "stream"
    products: ClassVar = {"usdm": ("usdm/public/stream", "usdm"), "usdm_market": ("usdm/market/stream", "usdm")}
    rates_hz = (5, 10)
    jitter = 0.3
    character = Character(depth=150, spread_ticks=2, gap_ticks=3, volume_places=5)
    timing = Timing(session_s=86_400, error_close_s=10, rest_limits=True)
    volume = re.compile(r'(\["[0-9.]+",)("[^"]*")')
    surprise = '{"stream":"btcusdt@surprise","data":{"e":"surprise","E":1,"s":"BTCUSDT"}}'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._named = {(is_spot(name), self.native(name)): name for name in self.markets}
        self._weights = {product: Weight(product.weight_max) for product in (SPOT, USDM)}
        if self.timing.connects_per_s is None:
            self.connects = Bucket(300, 1)
        self._newest = 5_123_107_832_006  # number of the last change on USD-M
        self._numbers: dict[str, Numbers] = {}
        for market in self.markets.values():
            last = market.dice.randrange(10**9, 10**11) if is_spot(market.name) else self._newest
            self._numbers[market.name] = Numbers(last, last, last)
        self._books_asked: dict[str, int] = {}

    def native(self, market: str) -> str:
        """Write BTC-USDT and BTC-USDT:USDT as BTCUSDT, BTC-USDT:USDT-261225 as BTCUSDT_261225."""
        pair, _, settled = market.partition(":")
        expiry = settled.partition("-")[2]
        return pair.replace("-", "") + (f"_{expiry}" if expiry else "")

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Ping the client, and end a socket at its greatest age."""
        c.start(self._ping(c))
        c.start(self._end(c))

    async def _ping(self, c: Connection) -> None:
        product, _ = PATHS[c.path]
        pong_s = self.timing.pong_s or product.pong_s
        while True:
            await asyncio.sleep(self.timing.ping_s or product.ping_s)
            payload = str(now_us() // 1000).encode()
            c.memory.setdefault("unanswered", {})[payload] = asyncio.get_running_loop().time() + pong_s
            await c.ping(payload)
            c.start(self._expect_pong(c, payload, pong_s))

    async def _expect_pong(self, c: Connection, payload: bytes, pong_s: float) -> None:
        await asyncio.sleep(pong_s)
        if payload in c.memory["unanswered"]:
            c.abort("no pong")

    async def _end(self, c: Connection) -> None:
        await asyncio.sleep(self.timing.session_s or 86_400)
        c.say(f'{{"stream":"!serverShutdown","data":{{"e":"serverShutdown","E":{now_us() // 1000}}}}}')
        await asyncio.sleep(self.timing.error_close_s or 10)
        await c.close(1001, "maximum age")

    async def pinged(self, c: Connection) -> None:
        """Count a client's ping."""
        await self._count(c)

    async def ponged(self, c: Connection, payload: bytes) -> None:
        """Take the answer to a ping, which has to repeat its payload, and to those before it."""
        await self._count(c)
        unanswered: dict[bytes, float] = c.memory.get("unanswered", {})
        if payload in unanswered:
            for sent in list(unanswered):
                del unanswered[sent]
                if sent == payload:
                    break

    async def _count(self, c: Connection) -> bool:
        """Count what a client sends; one that sends too much in a second is thrown out."""
        times: deque[float] = c.memory.setdefault("times", deque())
        now = asyncio.get_running_loop().time()
        times.append(now)
        while times[0] <= now - 1:
            times.popleft()
        if len(times) <= PATHS[c.path][0].messages_max:
            return True
        await c.close(1008, "Too many requests")
        return False

    async def received(self, c: Connection, text: str) -> None:
        """Answer one request."""
        if not await self._count(c):
            return
        request: Any = None
        try:
            request = json.loads(text)
            result = self._answer(c, request)
        except ValueError:
            c.say(compact({"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}))
        except BadRequest as refused:
            code, message = refused.args
            known = request.get("id") if isinstance(request, dict) else None
            c.say(compact({"code": code, "msg": message, **({} if known is None else {"id": known})}))
        else:
            c.say(compact({"result": result, "id": request["id"]}))
            if request["method"] == "SUBSCRIBE":
                await self._begin(c, request["params"])

    def _answer(self, c: Connection, request: Any) -> list[str] | None:
        if not isinstance(request, dict) or "method" not in request:
            raise BadRequest(2, "Invalid request: missing field `method`")
        method, params, number = request["method"], request.get("params", []), request.get("id")
        if method not in METHODS[:3]:
            raise BadRequest(2, f"Invalid request: unknown variant `{method}`, expected one of {', '.join(METHODS)}")
        if not isinstance(number, int | str) or isinstance(number, bool) or (isinstance(number, int) and number < 0):
            raise BadRequest(2, "Invalid request: request ID must be an unsigned integer")
        held: dict[str, None] = c.memory.setdefault("streams", {})
        if method == "LIST_SUBSCRIPTIONS":
            return list(held)
        if not isinstance(params, list) or not all(isinstance(stream, str) for stream in params):
            raise BadRequest(2, "Invalid request: params must be a list of text")
        for stream in params if method == "UNSUBSCRIBE" else ():
            held.pop(stream, None)
            found = self._meant(c, stream)
            if found is not None and (s := c.subscriptions.get(found)) is not None and s.code == stream:
                del c.subscriptions[found]
        return None

    async def _begin(self, c: Connection, streams: list[str]) -> None:
        held: dict[str, None] = c.memory["streams"]
        held |= dict.fromkeys(streams)
        if len(held) > STREAMS_MAX:
            await c.close(1008, "too many streams")
            return
        found = [(self._meant(c, stream), stream) for stream in streams]
        self.subscribed(c, [c.subscribe(*meant, stream) for meant, stream in found if meant is not None])

    def _meant(self, c: Connection, stream: str) -> tuple[str, str] | None:
        """Find channel and market of a stream; None for one that stays silent."""
        product, streams = PATHS[c.path]
        symbol, _, kind = stream.partition("@")
        market = self._named.get((product is SPOT, symbol.upper()))
        if market is None or symbol != symbol.lower() or kind not in streams:
            return None
        return streams[kind], market

    # -- frames

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send nothing: a book begins over REST."""
        return []

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send nothing: every stream begins with what happens next."""
        return []

    def stepped(self, market: Market, step: Step) -> None:
        """Number the changes of a step, one or more for each; of a step that changed nothing there are none."""
        told = self._told(step)
        if not told:
            return
        before, spare = self._numbers[market.name].last, step.book.n % 3
        if is_spot(market.name):
            first = before + 1
            last = first + len(told) - 1 + spare
        else:
            first = self._newest + 1 + int(market.dice.expovariate(1 / 300))
            last = self._newest = first + len(told) - 1 + 40 * spare
        self._numbers[market.name] = Numbers(first, last, before)

    def _told(self, step: Step) -> tuple[Change, ...]:
        """List what a step changed; now and then with the deletion of a price at which nobody ever offered."""
        if not step.changes or step.book.n % 40 != 7:
            return step.changes
        return (*step.changes, Change("ask", plain(3 * units(step.book.asks[-1][0])), "0"))

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send the changes of a step."""
        told = self._told(step)
        return [self._change(s, told, self._numbers[s.market], step.book.time_us)] if told else []

    def _change(self, s: Subscription, changes: Sequence[Change], numbers: Numbers, time_us: int) -> Message:
        bids = tuple((c.price, c.volume) for c in changes if c.side == "bid")
        asks = tuple((c.price, c.volume) for c in changes if c.side == "ask")
        spot, ms = is_spot(s.market), time_us // 1000
        head = f'"s":"{self.native(s.market)}"'
        if spot:
            about = f'"E":{ms},{head},"U":{numbers.first},"u":{numbers.last}'
        else:
            ids = f'"U":{numbers.first},"u":{numbers.last},"pu":{numbers.previous}'
            about = f'"E":{ms + 3},"T":{ms},{head},"ps":"{self.native(s.market).partition("_")[0]}","st":1,{ids}'
        data = f'{{"e":"depthUpdate",{about},"b":[{rows(bids, spot=spot)}],"a":[{rows(asks, spot=spot)}]}}'
        return Message(self._combined(s, data), "change", bids, asks, ms * 1000, numbers.last)

    def _combined(self, s: Subscription, data: str) -> str:
        return f'{{"stream":"{s.code}","data":{data}}}'

    def trade_frame(self, s: Subscription, trade: Trade) -> Message:
        """Spell a trade, of USD-M as an aggregate of one."""
        ms, maker = to_ms(trade.time_us), trade.side == "sell"
        symbol = self.native(s.market)
        event: dict[str, Any]
        if is_spot(s.market):
            price, size = padded(trade.price), padded(trade.volume)
            event = {"e": "trade", "E": ms, "s": symbol, "t": trade.id, "p": price, "q": size, "T": ms}
            event |= {"m": maker, "M": True}
        else:
            event = {"e": "aggTrade", "E": ms + 2, "a": trade.id, "s": symbol, "p": trade.price, "q": trade.volume}
            event |= {"f": trade.id, "l": trade.id, "T": ms, "m": maker, "st": 1}
        told = replace(trade, time_us=ms * 1000)
        return Message(self._combined(s, compact(event)), "trade", venue_us=ms * 1000, rows=(told,))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message:
        """Spell the figures of 24 hours; USD-M leaves out the best prices."""
        ms, spot = to_ms(ticker.time_us), is_spot(s.market)
        spell = padded if spot else str
        last, bid, ask, volume = (spell(token or "0") for token in (ticker.last, ticker.bid, ticker.ask, ticker.volume))
        best = {"b": bid, "B": spell(ticker.bid_volume), "a": ask, "A": spell(ticker.ask_volume)}
        event: dict[str, Any] = {"e": "24hrTicker", "E": ms, "s": self.native(s.market)}
        event |= {"p": spell("0"), "P": "0.000", "w": last} | ({"x": spell(ticker.open)} if spot else {})
        event |= {"c": last, "Q": spell(ticker.last_volume)} | (best if spot else {})
        event |= {"o": spell(ticker.open), "h": spell(ticker.high), "l": spell(ticker.low), "v": volume}
        event |= {"q": ticker.turnover, "O": ms - 86_400_000, "C": ms, "F": 0, "L": 1, "n": 2}
        event |= {} if spot else {"st": 1}
        told = replace(ticker, time_us=ms * 1000) if spot else replace(ticker, time_us=ms * 1000, bid=None, ask=None)
        return Message(self._combined(s, compact(event)), "ticker", venue_us=ms * 1000, rows=(told,))

    def candle_frame(self, s: Subscription, candle: Candle) -> Message:
        """Spell the candle of a minute."""
        ms, open_ms, symbol = to_ms(candle.time_us), candle.open_us // 1000, self.native(s.market)
        spell = padded if is_spot(s.market) else str
        k: dict[str, Any] = {"t": open_ms, "T": open_ms + 59_999, "s": symbol, "i": "1m", "f": 0, "L": 1}
        k |= {"o": spell(candle.open), "c": spell(candle.close), "h": spell(candle.high), "l": spell(candle.low)}
        k |= {"v": spell(candle.volume), "n": candle.trades, "x": candle.closed, "q": candle.turnover}
        k |= {"V": spell("0"), "Q": spell("0"), "B": "0"}
        event = {"e": "kline", "E": ms, "s": symbol, "k": k}
        told = replace(candle, time_us=ms * 1000)
        return Message(self._combined(s, compact(event)), "candle", venue_us=ms * 1000, rows=(told,))

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a REST book."""
        return self._book(s.market, book, self._numbers[s.market].last)

    def sample(self, s: Subscription) -> str:
        """Give a change that fits and changes nothing, to be spoiled."""
        book, last = self.shown(s.market), self._numbers[s.market].last
        same = Change("bid", *book.bids[0])
        return str(self._change(s, [same], Numbers(last + 1, last + 1, last), book.time_us).data)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer `depth` and `exchangeInfo` of either product."""
        for product in (SPOT, USDM):
            if path == f"{product.rest}/depth":
                return self._rest_book(product, request.query)
            if path == f"{product.rest}/exchangeInfo":
                return self._weighed(product, 20 if product is SPOT else 1) or self._listing(product)
        return Reply("<html><body>404 Not found</body></html>", 404, content_type="text/html")

    def _weighed(self, product: Product, weight: int, asked: tuple[str, ...] = ()) -> Reply | None:
        """Count a call; answer it where the weight of this minute is used up, those who go on with a bar."""
        counted = self._weights[product]
        again_s = counted.take(weight) if self.timing.rest_limits else None
        if again_s is None:
            return None
        message = f"Too much request weight used; current limit is {counted.most} request weight per 1 MINUTE."
        banned = counted.refusals > 10
        headers = {"Retry-After": str(120 if banned else int(again_s) + 1)}
        return self._error(418 if banned else 429, -1003, message, asked, headers)

    def _error(
        self, status: int, code: int, message: str, asked: tuple[str, ...] = (), headers: dict[str, str] | None = None
    ) -> Reply:
        return Reply(compact({"code": code, "msg": message}), status, asked=asked, headers=headers or {})

    def _rest_book(self, product: Product, query: Any) -> Reply:
        symbol, limit = query.get("symbol", ""), query.get("limit", "100" if product is SPOT else "500")
        if not symbol:
            return self._error(400, -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
        market = self._named.get((product is SPOT, symbol))
        if market is None:
            return self._error(400, -1121, "Invalid symbol.")
        if not limit.isdigit() or int(limit) < 1 or (product is USDM and int(limit) not in USDM_LIMITS):
            return self._error(400, -1130, "Data sent for parameter 'limit' is not valid.", (market,))
        depth = min(int(limit), 5000)
        refused = self._weighed(product, weight_of(product, depth), (market,))
        if refused is not None:
            return refused
        message = self._taken(market, depth)
        used = {"X-MBX-USED-WEIGHT-1M": str(self._weights[product].used)}
        return Reply(message.data, books={market: message}, headers=used)

    def _taken(self, market: str, depth: int) -> Message:
        """Give a book as it is between two messages and, every other time, as it was in the middle of one."""
        times = self._books_asked[market] = self._books_asked.get(market, 0) + 1
        before = self.shown(market)
        if times % 2 == 0 and not self.faults.active("quiet", self.name, market):
            step = self.advance(self.markets[market])
            if len(step.changes) > 1:
                done = step.changes[: len(step.changes) // 2]
                bids = [(c.price, c.volume) for c in done if c.side == "bid"]
                asks = [(c.price, c.volume) for c in done if c.side == "ask"]
                return self._book(
                    market, before.changed(bids, asks), self._numbers[market].first + len(done) - 1, depth
                )
        return self._book(market, self.shown(market), self._numbers[market].last, depth)

    def _book(self, market: str, book: Book, last: int, depth: int = 5000) -> Message:
        book = book.top(depth)
        spot, ms = is_spot(market), book.time_us // 1000
        times = "" if spot else f'"E":{ms + 5},"T":{ms},'
        text = (
            f'{{"lastUpdateId":{last},{times}"bids":[{rows(book.bids, spot=spot)}],'
            f'"asks":[{rows(book.asks, spot=spot)}]}}'
        )
        return Message(text, "book", book.bids, book.asks, None if spot else ms * 1000, last)

    def _listing(self, product: Product) -> Reply:
        limit = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": product.weight_max}
        symbols = [self._listed(name) for (spot, _), name in self._named.items() if spot is (product is SPOT)]
        symbols.append({**symbols[0], "symbol": "OLDUSDT", "baseAsset": "OLD", "status": "BREAK"} if symbols else {})
        now_ms = now_us() // 1000
        body = {"timezone": "UTC", "serverTime": now_ms, "rateLimits": [limit], "exchangeFilters": []}
        return Reply(compact({**body, "symbols": [symbol for symbol in symbols if symbol]}))

    def _listed(self, market: str) -> dict[str, Any]:
        pair, _, settled = market.partition(":")
        symbol, currency = pair.split("-", 1)
        margin, _, expiry = settled.partition("-")
        row: dict[str, Any] = {"symbol": self.native(market)}
        if settled:
            kind = "CURRENT_QUARTER" if expiry else "PERPETUAL"
            row |= {"pair": symbol + currency, "contractType": kind, "marginAsset": margin}
        row |= {"status": "TRADING", "baseAsset": symbol, "quoteAsset": currency}
        return row if settled else row | {"isSpotTradingAllowed": True, "permissions": ["SPOT"]}


def weight_of(product: Product, depth: int) -> int:
    """Return what a REST book of so many levels costs."""
    steps = ((100, 5), (500, 25), (1000, 50)) if product is SPOT else ((50, 2), (100, 5), (500, 10))
    dearest = 250 if product is SPOT else 20
    return next((weight for most, weight in steps if depth <= most), dearest)
