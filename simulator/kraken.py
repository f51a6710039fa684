"""Kraken, WebSocket v2: books without numbers but with a checksum, cut to the depth that was asked for.

Simulated: `book`, `trade`, `ticker` and `ohlc`, the REST book and the list of pairs. Prices and quantities are JSON
numbers of eight places; checksums are made of those very characters. A level that falls out of a client's depth is not
told, one that comes back is; in the ledger it stands as removed, since that is what the frame means.
Candles of other intervals than a minute are acknowledged and silent. Unverified: the texts of refusals other than of an
unknown pair and of a depth, what a client hears that sends no JSON, the close after a minute without a subscription.
"""

import asyncio
import json
import random
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, Step, now_us, tidy, units
from simulator.recording import Recorded, exact
from simulator.tape import Candle, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact
from simulator.window import differences

DEPTHS = (10, 25, 100, 500, 1000)
INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
CHANNELS = {"book": "orderbook", "trade": "trades", "ticker": "ticker", "ohlc": "candles"}
TRADES_FIRST = 50  # in the snapshot of trades
COVERED = 10  # levels a side that a checksum covers
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OLD_CODES = {"BTC": "XBT", "DOGE": "XDG"}
IDLE_CHECK_S = 0.05


def fixed(token: str) -> str:
    """Spell a plain decimal with eight places: 0.00005100."""
    whole, _, fraction = token.partition(".")
    return f"{whole}.{fraction.ljust(8, '0')}"


def stamp(time_us: int) -> str:
    """Spell a time: 2026-08-16T23:37:04.316445Z."""
    return (EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def microseconds(text: str) -> int:
    """Read a time back."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def checksum(bids: Iterable[tuple[str, str]], asks: Iterable[tuple[str, str]]) -> int:
    """Sum up the best levels, each side best first, in the characters in which they are sent."""
    text = ""
    for levels in (asks, bids):
        for price, volume in list(levels)[:COVERED]:
            text += price.replace(".", "").lstrip("0") + volume.replace(".", "").lstrip("0")
    return zlib.crc32(text.encode())


class Kraken(Venue):
    """The simulated Kraken."""

    name = "kraken"
    hosts = ("ws.kraken.com",)
    socket_path = "v2"
    rates_hz = (5, 20)
    jitter = 0.9
    depth = 10
    character = Character(depth=120, spread_ticks=2, gap_ticks=4)
    timing = Timing(idle_s=60, status_s=1, rest_limits=True)
    totalled = ("book", "change")
    volume = re.compile(r'("qty":|\["[^"]+",)([^,}]+)')
    surprise = '{"channel":"surprise","type":"update","data":[{"symbol":"BTC/USD"}]}'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.timing.connects_per_s is None:
            self.connects = Bucket(150, 0.25)
        self._calls = Bucket(15, 1)
        self._dice = random.Random("kraken")

    def native(self, market: str) -> str:
        """Spell a market with a slash."""
        return market.replace("-", "/")

    def foreign(self, market: str) -> str:
        """Name a market that nobody asked for."""
        return "DOGE-USD" if market != "DOGE-USD" else "XRP-USD"

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Beat once a second while anything is subscribed, and end a socket that subscribes to nothing."""
        c.start(self._beat(c))
        c.start(self._watch(c))

    async def _beat(self, c: Connection) -> None:
        while True:
            await asyncio.sleep(self.timing.status_s or 1)
            if c.subscriptions:
                c.say('{"channel":"heartbeat"}')

    async def _watch(self, c: Connection) -> None:
        clock = asyncio.get_running_loop().time
        since, idle = clock(), self.timing.idle_s or 60
        while clock() - since < idle:
            await asyncio.sleep(min(idle, IDLE_CHECK_S))
            if c.subscriptions:
                since = clock()
        await c.close(1000, "nothing subscribed")

    async def greet(self, c: Connection) -> None:
        """Tell the state of the exchange."""
        number = 769405522530892351 + int(c.id[1:])
        row = {"version": "2.0.10", "system": "online", "api_version": "v2", "connection_id": number}
        c.say(compact({"channel": "status", "type": "update", "data": [row]}))

    async def received(self, c: Connection, text: str) -> None:
        """Answer a ping or a request to subscribe or unsubscribe."""
        came_us = now_us()
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            c.say(compact({"error": "Malformed request", "method": "", "success": False, **_times(came_us)}))
            return
        method, number, given = request["method"], request.get("req_id"), request.get("params")
        params: dict[str, Any] = given if isinstance(given, dict) else {}
        if method == "ping":
            if not c.muted():
                c.say(compact({"method": "pong", **_echo(number), **_times(came_us)}))
            return
        refusal = self._wrong(method, params, number)
        if refusal is not None:
            c.say(compact({"error": refusal, "method": method, **_echo(number), "success": False, **_times(came_us)}))
            return
        new: list[tuple[Subscription, bool]] = []
        for symbol in params["symbol"]:
            new += self._one(c, method, params, number, symbol, came_us)
        self.subscribed(c, new)

    def _wrong(self, method: str, params: dict[str, Any], number: Any) -> str | None:
        """Say what is wrong with a whole request."""
        symbols = params.get("symbol")
        if method not in ("subscribe", "unsubscribe"):
            return "Unsupported method"
        if params.get("channel") not in CHANNELS:
            return "Unsupported channel"
        if not isinstance(symbols, list) or not symbols or not all(isinstance(symbol, str) for symbol in symbols):
            return "Symbol(s) field must be an array"
        if number is not None and type(number) is not int:
            return "Malformed request"
        if params["channel"] == "book" and params.get("depth", 10) not in DEPTHS:
            return "Subscription depth not supported"
        if params["channel"] == "ohlc" and params.get("interval", 1) not in INTERVALS:
            return "Subscription ohlc interval not supported"
        if params["channel"] == "ticker" and params.get("event_trigger", "trades") not in ("bbo", "trades"):
            return "Event trigger not supported"
        return None

    def _one(
        self, c: Connection, method: str, params: dict[str, Any], number: Any, symbol: str, came_us: int
    ) -> list[tuple[Subscription, bool]]:
        """Subscribe to one symbol of a request, or leave it, and acknowledge that."""
        market, channel = self.house(symbol), CHANNELS[params["channel"]]
        if params["channel"] == "ohlc" and params.get("interval", 1) != 1:
            channel = f"ohlc.{params['interval']}"
        refusal = None
        if market is None:
            refusal = f"Currency pair not supported {symbol}"
        elif method == "subscribe" and (channel, market) in c.subscriptions:
            refusal = "Already subscribed"
        elif method == "unsubscribe" and (channel, market) not in c.subscriptions:
            refusal = "Subscription Not Found"
        if market is None or refusal is not None:
            told = {"error": refusal, "method": method, **_echo(number), "success": False, "symbol": symbol}
            c.say(compact({**told, **_times(came_us)}))
            return []
        result = self._result_of(method, params, symbol)
        c.say(compact({"method": method, "result": result, **_echo(number), "success": True, **_times(came_us)}))
        if method == "unsubscribe":
            del c.subscriptions[channel, market]
            return []
        options = {
            "depth": result.get("depth"),
            "snapshot": result["snapshot"],
            "bbo": params.get("event_trigger") == "bbo",
        }
        return [c.subscribe(channel, market, symbol, options)]

    def _result_of(self, method: str, params: dict[str, Any], symbol: str) -> dict[str, Any]:
        result: dict[str, Any] = {"channel": params["channel"]}
        if params["channel"] == "book":
            result["depth"] = params.get("depth", 10)
        if params["channel"] == "ohlc":
            result["interval"] = params.get("interval", 1)
        if method == "subscribe":
            if params["channel"] == "ticker":
                result["event_trigger"] = params.get("event_trigger", "trades")
            result["snapshot"] = params.get("snapshot", True) is True
        return {**result, "symbol": symbol}

    # -- books

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the book, unless only its changes were asked for."""
        s.options["window"] = self.shown(s.market).top(s.options["depth"])
        return super().snapshots(s, fresh) if s.options["snapshot"] else []

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the best levels of a book."""
        window = book.top(s.options["depth"])
        return self._spelled(s, "snapshot", window, window.bids, window.asks)

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send what changed in the levels this client has; what only fell out of its depth is not said."""
        before = s.options["window"]
        window = s.options["window"] = step.book.top(s.options["depth"])
        bids, asks = differences(before, window)
        if not any((*bids, *asks)):
            return []
        told = []
        for side, whole in ((bids, step.book.bids), (asks, step.book.asks)):
            standing = {price for price, _ in whole}
            levels = [*((price, "0") for price in side.gone if price not in standing), *side.put]
            self._dice.shuffle(levels)
            told.append(tuple(levels))
        if not any(told):
            return []
        message = self._spelled(s, "update", window, *told)
        return [replace(message, bids=bids.levels(), asks=asks.levels())]

    def _spelled(
        self, s: Subscription, kind: str, window: Book, bids: tuple[Level, ...], asks: tuple[Level, ...]
    ) -> Message:
        sides = ([(fixed(price), fixed(volume)) for price, volume in levels] for levels in (window.bids, window.asks))
        text = (
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{s.code}","bids":[{_levels(bids)}],'
            f'"asks":[{_levels(asks)}],"checksum":{checksum(*sides)},"timestamp":"{stamp(window.time_us)}"}}]}}'
        )
        return Message(text, "book" if kind == "snapshot" else "change", bids, asks, window.time_us)

    def sample(self, s: Subscription) -> str:
        """Give a change that changes nothing, to be spoiled."""
        window = self.shown(s.market).top(s.options["depth"])
        return str(self._spelled(s, "update", window, window.bids[:1], ()).data)

    def corrupt_total(self, data: str | bytes) -> str | bytes:
        """Make the checksum wrong."""
        text = data.decode() if isinstance(data, bytes) else data
        return re.sub(r'("checksum":)(\d+)', lambda m: f"{m[1]}{int(m[2]) ^ 1}", text, count=1)

    # -- other channels

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the last trades, the ticker, or the candles that are known, unless no snapshot was asked for."""
        if not s.options["snapshot"]:
            return []
        tape = self.tapes[s.market]
        if s.channel == "trades":
            return [self._trades(s, "snapshot", list(tape.trades)[-TRADES_FIRST:])]
        if s.channel == "candles":
            return [self._candles(s, "snapshot", tape.candles(TRADES_FIRST))]
        return [self._ticker(s, "snapshot", tape.ticker)] if s.channel == "ticker" else []

    def trade_frames(self, s: Subscription, trades: Sequence[Trade]) -> Sequence[Message]:
        """Spell the trades of a step in one frame."""
        return [self._trades(s, "update", trades)]

    def _trades(self, s: Subscription, kind: str, trades: Sequence[Trade]) -> Message:
        rows = ",".join(
            f'{{"symbol":"{s.code}","side":"{t.side}","price":{fixed(t.price)},"qty":{fixed(t.volume)},'
            f'"ord_type":"limit","trade_id":{t.id},"timestamp":"{stamp(t.time_us)}"}}'
            for t in trades
        )
        return Message(f'{{"channel":"trade","type":"{kind}","data":[{rows}]}}', "trade", rows=tuple(trades))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker after a trade; after every change of the touch where that was asked for."""
        if not s.options["bbo"] and s.options.get("volume") == ticker.volume:
            return None
        return self._ticker(s, "update", ticker)

    def _ticker(self, s: Subscription, kind: str, ticker: Ticker) -> Message:
        s.options["volume"] = ticker.volume
        change = fixed(_difference(ticker.last or "0", ticker.open))
        text = (
            f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{s.code}","bid":{fixed(ticker.bid or "0")},'
            f'"bid_qty":{fixed(ticker.bid_volume)},"ask":{fixed(ticker.ask or "0")},'
            f'"ask_qty":{fixed(ticker.ask_volume)},'
            f'"last":{fixed(ticker.last or "0")},"volume":{fixed(ticker.volume or "0")},"vwap":{fixed(ticker.open)},'
            f'"low":{fixed(ticker.low)},"high":{fixed(ticker.high)},"change":{change},"change_pct":0.24,'
            f'"timestamp":"{stamp(ticker.time_us or now_us())}"}}]}}'
        )
        return Message(text, "ticker", rows=(ticker,))

    def candle_frame(self, s: Subscription, candle: Candle) -> Message | None:
        """Spell a candle that a trade changed; that a minute is over is never said."""
        return None if candle.closed or not candle.trades else self._candles(s, "update", [candle])

    def _candles(self, s: Subscription, kind: str, candles: Sequence[Candle]) -> Message:
        told_us = now_us()
        rows = ",".join(
            f'{{"symbol":"{s.code}","open":{fixed(c.open)},"high":{fixed(c.high)},"low":{fixed(c.low)},'
            f'"close":{fixed(c.close)},"trades":{c.trades},"volume":{fixed(c.volume)},"vwap":{fixed(c.close)},'
            f'"interval_begin":"{stamp(c.open_us)[:-1]}000Z","interval":1,'
            f'"timestamp":"{stamp(c.open_us + 60_000_000)}"}}'
            for c in candles
        )
        text = f'{{"channel":"ohlc","type":"{kind}","timestamp":"{stamp(told_us)[:-1]}000Z","data":[{rows}]}}'
        sent = tuple(replace(c, closed=False, time_us=told_us) for c in candles)
        return Message(text, "candle", rows=sent)

    # -- recordings

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded book of the second version."""
        frame = exact(data)
        if not isinstance(frame, dict) or frame.get("channel") != "book":
            return None
        (row,) = frame["data"]
        bids, asks = (tuple((level["price"], level["qty"]) for level in row[side]) for side in ("bids", "asks"))
        what = "book" if frame["type"] == "snapshot" else "change"
        market = row["symbol"].replace("/", "-")
        return Recorded(data, market, "orderbook", what, bids, asks, microseconds(row["timestamp"]))

    def _replayed(self, s: Subscription, frame: Recorded, by_us: int) -> Message:
        """Tell the ledger what fell out of the client's depth."""
        message = super()._replayed(s, frame, by_us)
        if frame.what == "book":
            s.options["window"] = frame.book()
            return message
        whole = s.options.get("window", self.shown(s.market)).changed(tidy(frame.bids), tidy(frame.asks))
        window = s.options["window"] = self._played[s.market] = whole.top(s.options["depth"])
        bids, asks = differences(whole, window)
        return replace(message, bids=(*message.bids, *bids.levels()), asks=(*message.asks, *asks.levels()))

    def shifted(self, data: str, by_us: int) -> str:
        """Move the times in a recorded frame on."""
        return re.sub(r'("timestamp":")([^"]+)', lambda m: f"{m[1]}{stamp(microseconds(m[2]) + by_us)}", data)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer `/0/public/Depth` and `/0/public/AssetPairs`; errors have status 200."""
        if path not in ("0/public/Depth", "0/public/AssetPairs"):
            return Reply(compact({"error": ["EGeneral:Unknown method"]}), 404)
        asked = self._asked(request.query.get("pair", "")) if path.endswith("Depth") else None
        if self.timing.rest_limits and not self._calls.take():
            body = compact({"error": ["EAPI:Rate limit exceeded"]})
            return Reply(body, asked=() if asked is None else (asked,))
        if path.endswith("AssetPairs"):
            rows = {self._old(market, ""): self._listing(market) for market in self.markets}
            return Reply(compact({"error": [], "result": rows}))
        if asked is None:
            return Reply(compact({"error": ["EQuery:Unknown asset pair"]}))
        count = request.query.get("count", "100")
        book = self.shown(asked).top(int(count) if count.isdigit() and 1 <= int(count) <= 500 else 100)
        body = (
            f'{{"error":[],"result":{{"{self._old(asked, "")}":{{"asks":[{_rows(book.asks)}],'
            f'"bids":[{_rows(book.bids)}]}}}}}}'
        )
        return Reply(body, books={asked: Message(body, "book", book.bids, book.asks)})

    def _asked(self, pair: str) -> str | None:
        return next((market for market in self.markets if self._old(market, "") == pair), None)

    def _old(self, market: str, between: str) -> str:
        """Spell a market in the codes of REST."""
        return between.join(OLD_CODES.get(code, code) for code in market.split("-"))

    def _listing(self, market: str) -> dict[str, Any]:
        symbol, currency = market.split("-")
        return {
            "altname": self._old(market, ""), "wsname": self._old(market, "/"), "base": symbol, "quote": currency,
            "pair_decimals": 8, "lot_decimals": 8, "status": "online",
        }  # fmt: skip


def _levels(levels: Iterable[Level]) -> str:
    return ",".join(f'{{"price":{fixed(price)},"qty":{fixed(volume)}}}' for price, volume in levels)


def _rows(levels: Iterable[Level]) -> str:
    return ",".join(f'["{fixed(price)}","{fixed(volume)}",{now_us() // 10**6}]' for price, volume in levels)


def _echo(number: Any) -> dict[str, Any]:
    return {} if number is None else {"req_id": number}


def _times(came_us: int) -> dict[str, str]:
    return {"time_in": stamp(came_us), "time_out": stamp(now_us())}


def _difference(one: str, other: str) -> str:
    found = units(one) - units(other)
    sign = "-" if found < 0 else ""
    return f"{sign}{abs(found) // 10**8}.{abs(found) % 10**8:08d}"
