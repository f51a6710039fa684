"""KuCoin's public spot socket ("Pro", unified): a book of the best 500 levels, then numbered changes; no key.

Simulated: `obu` in the mode `increment@10ms`, `trade`, `ticker`, `kline` of one minute, the list of symbols and the
REST books of 20 and 100 levels. Everything is JSON in binary frames. A change is numbered from its first to its last
event (`O` to `C`); events outside the best 500 levels are counted and not sent, so the numbers of what is sent stay
without a hole. A level that leaves the best 500 is sent with size 0. Now and then a change follows that the complete
book holds already, or begins before the book's own number.

Unverified, here as follows: a second subscription of the same is acknowledged and brings nothing; a request the venue
does not understand is answered with `"result":false` and a text of our own; a client that says nothing for a minute is
cut; more than 600 topics are refused, more than 300 messages in 10 s end the connection.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, Market, Step, now_us
from simulator.recording import Recorded, exact
from simulator.tape import Candle, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

CHANNELS = {"obu": "orderbook", "trade": "trades", "ticker": "ticker", "kline": "candles"}
MESSAGES = 300, 30  # from a client: at once, and a second
WINDOW = 500
Side = dict[str, str]


class KuCoin(Venue):
    """The simulated KuCoin."""

    name = "kucoin"
    hosts = ("x-push-spot.kucoin.com",)
    rates_hz = (5, 20)
    jitter = 0.9
    depth = WINDOW
    character = Character(depth=WINDOW + 20)
    timing = Timing(
        ping_s=30,
        idle_s=60,
        idle_client_only=True,
        session_s=86_400,
        connects_per_s=30,
        books_max=600,
        rest_limits=True,
    )
    volume = re.compile(r'(\["[^"]*",)("[^"]*")')
    surprise = '{"T":"surprise.SPOT","P":1768217874990007701,"d":{}}'
    stamps = re.compile(r'("[PM]":)(\d{19})\b')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counted: dict[str, int] = {}  # events of a market, also those that nobody is told
        self._told: dict[str, int] = {}  # the last of them that was told
        self._windows: dict[str, tuple[Side, Side]] = {}
        self._changes: dict[str, Message] = {}  # what the last step of a market meant for its subscribers
        self._calls = Bucket(2000, 66)
        for market in self.markets.values():
            self._counted[market.name] = self._told[market.name] = market.random.randrange(10**9, 10**10)
            self._windows[market.name] = _window(market.book)

    def native(self, market: str) -> str:
        """KuCoin writes markets as the house does."""
        return market

    def sends_bytes(self) -> bool:
        """Everything is binary here."""
        return True

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Cut a client that says nothing, and end a socket at its greatest age."""
        super().keepalive(c)
        if self.timing.session_s is not None:
            c.close_later(self.timing.session_s, 1000, "maximum age")

    async def greet(self, c: Connection) -> None:
        """Say welcome before anything else."""
        c.memory["messages"] = Bucket(*MESSAGES)
        interval_ms = round((self.timing.ping_s or 30) * 1000)
        self._say(c, {"sessionId": f"{c.id}-{now_us()}", "message": "welcome", "pingInterval": interval_ms})

    async def received(self, c: Connection, text: str) -> None:
        """Answer one request."""
        if not c.memory["messages"].take():
            await c.close(1008, "too many messages")
            return
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("id"), str):
            self._refuse(c, None, "the request is not an object with an id")
            return
        if request.get("type") == "ping":
            if not c.muted():
                self._say(c, {"id": request["id"], "type": "pong", "ts": str(now_us() * 1000)})
            return
        action = str(request.get("action")).upper()
        if action not in ("SUBSCRIBE", "UNSUBSCRIBE"):
            self._refuse(c, request["id"], f"unknown action {request.get('action')!r}")
            return
        markets = self._asked(request)
        if isinstance(markets, str):
            self._refuse(c, request["id"], markets)
            return
        channel = CHANNELS[request["channel"]]
        if action == "UNSUBSCRIBE":
            for market in markets:
                c.subscriptions.pop((channel, market), None)
            self._say(c, {"id": request["id"], "result": True})
            return
        fresh = [market for market in markets if self._is_new(c, channel, market)]
        if len(c.subscriptions) + len(fresh) > (self.timing.books_max or 600):
            self._refuse(c, request["id"], "too many topics")
            return
        self._say(c, {"id": request["id"], "result": True})
        self.subscribed(c, [c.subscribe(channel, market, market) for market in fresh])

    def _is_new(self, c: Connection, channel: str, market: str) -> bool:
        known = c.subscriptions.get((channel, market))
        return known is None or known.forgotten

    def _asked(self, request: dict[str, Any]) -> list[str] | str:
        """Name the markets of a request, or say what is wrong with it."""
        channel = request.get("channel")
        if channel not in CHANNELS:
            return f"unknown channel {channel!r}"
        if request.get("tradeType") != "SPOT":
            return f"unknown tradeType {request.get('tradeType')!r}"
        if channel == "obu" and request.get("depth") != "increment@10ms":
            return f"depth {request.get('depth')!r} is not simulated"
        if channel == "kline" and request.get("interval") != "1min":
            return f"interval {request.get('interval')!r} is not simulated"
        symbols = request.get("symbols", [request.get("symbol")])
        if not isinstance(symbols, list) or not symbols:
            return "no symbol"
        markets = [market for symbol in symbols if isinstance(symbol, str) and (market := self.house(symbol))]
        return markets if len(markets) == len(symbols) else f"symbol not exists: {symbols}"

    def _say(self, c: Connection, content: dict[str, Any]) -> None:
        c.say(compact(content).encode())

    def _refuse(self, c: Connection, number: str | None, why: str) -> None:
        self._say(c, {"id": number, "result": False, "message": why})

    # -- frames

    def stepped(self, market: Market, step: Step) -> None:
        """Count the events of a step, and spell what it means for the best levels."""
        name = market.name
        self._counted[name] += len(step.changes)
        before, after = self._windows[name], _window(step.book)
        self._windows[name] = after
        bids, asks = (_difference(old, new) for old, new in zip(before, after, strict=True))
        self._changes.pop(name, None)
        if bids or asks:
            first, self._told[name] = self._told[name] + 1, self._counted[name]
            self._changes[name] = self._change(name, step.book.time_us, first, self._counted[name], bids, asks)

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the complete book: its best levels, at the number of all events."""
        book = book.top(self.depth)
        counted = self._counted[s.market]
        return self._obu("snapshot", s.market, book.time_us, counted, counted, book.bids, book.asks)

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the book; now and then a change follows that it holds already."""
        sent = [self.book_frame(s, self.shown(s.market), True)]
        if s.market in self._changes and self._counted[s.market] % 3 == 0:
            sent.append(self._changes[s.market])
        return sent

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send what changed among the best levels."""
        return [self._changes[s.market]] if s.market in self._changes else []

    def _change(
        self, market: str, time_us: int, first: int, last: int, bids: tuple[Level, ...], asks: tuple[Level, ...]
    ) -> Message:
        return replace(self._obu("delta", market, time_us, first, last, bids, asks), what="change")

    def _obu(
        self, kind: str, market: str, time_us: int, first: int, last: int,
        bids: tuple[Level, ...], asks: tuple[Level, ...],
    ) -> Message:  # fmt: skip
        at_ns = _milliseconds(time_us)
        data = {"C": last, "M": at_ns, "O": first, "a": asks, "b": bids, "s": market}
        frame = {"T": "obu.SPOT", "dp": "increment@10ms", "t": kind, "P": now_us() * 1000, "d": data}
        return Message(compact(frame).encode(), "book", bids, asks, at_ns // 1000, last)

    def sample(self, s: Subscription) -> str:
        """Give the next change, which changes nothing, to be spoiled."""
        book, following = self.shown(s.market), self._told[s.market] + 1
        message = self._change(s.market, now_us(), following, following, book.bids[:1], ())
        assert isinstance(message.data, bytes)
        return message.data.decode()

    def trade_frame(self, s: Subscription, trade: Trade) -> Message | None:
        """Spell a trade."""
        at_ns = _milliseconds(trade.time_us)
        data = {
            "E": trade.id, "M": at_ns, "S": trade.side, "p": trade.price, "q": trade.volume, "s": s.market,
            "ti": str(trade.id),
        }  # fmt: skip
        row = replace(trade, time_us=at_ns // 1000)
        return self._pushed("trade", data, "trade", row)

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker, which has no traded amount."""
        at_ns = _milliseconds(ticker.time_us or now_us())
        last = self.tapes[s.market].trades[-1]
        data = {
            "A": ticker.ask_volume, "B": ticker.bid_volume, "E": self._told[s.market], "M": at_ns,
            "S": last.side.upper(), "a": ticker.ask, "b": ticker.bid, "l": ticker.last, "q": ticker.last_volume,
            "s": s.market,
        }  # fmt: skip
        return self._pushed("ticker", data, "ticker", replace(ticker, volume=None, time_us=at_ns // 1000))

    def candle_frame(self, s: Subscription, candle: Candle) -> Message | None:
        """Spell a candle; `S` tells its first one, and nothing tells the last."""
        begins_s = candle.open_us // 1_000_000
        data = {
            "o": candle.open, "c": candle.close, "l": candle.low, "h": candle.high, "S": candle.trades < 2,
            "v": candle.volume, "i": "1min", "a": candle.turnover, "C": begins_s + 60, "s": s.market, "O": begins_s,
        }  # fmt: skip
        return self._pushed("kline", data, "candle", replace(candle, closed=False))

    def _pushed(self, channel: str, data: dict[str, Any], what: str, row: Trade | Ticker | Candle) -> Message:
        at_ns = now_us() * 1000
        if isinstance(row, Candle):
            row = replace(row, time_us=at_ns // 1000)
        text = compact({"T": f"{channel}.SPOT", "P": at_ns, "d": data})
        return Message(text.encode(), what, venue_us=row.time_us, rows=(row,))

    # -- recordings

    def shifted(self, data: str, by_us: int) -> str:
        """Move the nanoseconds of a recorded frame on."""
        return self.stamps.sub(lambda m: f"{m[1]}{int(m[2]) + by_us * 1000}", data)

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded book or change."""
        frame = exact(data)
        if not isinstance(frame, dict) or frame.get("T") != "obu.SPOT" or frame.get("dp") != "increment@10ms":
            return None
        content = frame["d"]
        bids, asks = (tuple((row[0], row[1]) for row in content[side]) for side in "ba")
        what = "book" if frame["t"] == "snapshot" else "change"
        return Recorded(data, content["s"], "orderbook", what, bids, asks, int(content["M"]) // 1000, int(content["C"]))

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the list of symbols and the books that need no key."""
        if self.timing.rest_limits and not self._calls.take():
            headers = {"gw-ratelimit-limit": "2000", "gw-ratelimit-remaining": "0", "gw-ratelimit-reset": "1000"}
            return Reply(compact({"code": "429000", "msg": "too many requests"}), 429, headers=headers)
        match path:
            case "api/v2/symbols":
                return _answer([self._listing(market) for market in self.markets])
            case "api/v1/market/orderbook/level2_20" | "api/v1/market/orderbook/level2_100":
                return self._rest_book(request.query.get("symbol", ""), int(path.rpartition("_")[2]))
            case "api/v3/market/orderbook/level2":
                return Reply(compact({"code": "400001", "msg": "Please check the header of your request"}), 401)
            case _:
                return Reply(compact({"code": "404", "msg": "Not Found"}), 404)

    def _rest_book(self, symbol: str, depth: int) -> Reply:
        if self.house(symbol) is None:
            return Reply(compact({"code": "900001", "msg": f"symbol not exists : {symbol}"}))
        book, number = self.shown(symbol).top(depth), self._counted[symbol]
        at_ms = now_us() // 1000
        reply = _answer({"time": at_ms, "sequence": str(number), "bids": book.bids, "asks": book.asks})
        told = Message(reply.body, "book", book.bids, book.asks, at_ms * 1000, number)
        return replace(reply, books={symbol: told})

    def _listing(self, market: str) -> dict[str, Any]:
        symbol, currency = market.split("-")
        return {
            "symbol": market, "name": market, "baseCurrency": symbol, "quoteCurrency": currency, "market": currency,
            "baseMinSize": "0.00001", "quoteMinSize": "0.1", "baseIncrement": "0.00000001",
            "quoteIncrement": "0.000001", "priceIncrement": "0.1", "enableTrading": True,
        }  # fmt: skip


def _answer(data: Any) -> Reply:
    return Reply(compact({"code": "200000", "data": data}))


def _window(book: Book) -> tuple[Side, Side]:
    return dict(book.bids[:WINDOW]), dict(book.asks[:WINDOW])


def _difference(old: Side, new: Side) -> tuple[Level, ...]:
    """List what has to be told of a side, first what left it."""
    gone = [(price, "0") for price in old if price not in new]
    return (*gone, *((price, size) for price, size in new.items() if old.get(price) != size))


def _milliseconds(time_us: int) -> int:
    """Spell a time in nanoseconds as the matching engine does: whole milliseconds."""
    return time_us // 1000 * 1_000_000
