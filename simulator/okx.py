"""OKX as of 2026 (API v5), spot and contracts: books as one snapshot and linked changes, trades, tickers, candles.

Simulated: `books`, `trades` and `tickers` at /public, `candle1m` at /business, with acknowledgements, refusals by code,
`ping` and the limit of requests; instruments, books and candles over REST. Other public channels are acknowledged and
stay silent. `checksum` is 0 throughout, as it is today. Unverified: what a request with one bad argument does to the
others (here they are served), and what unsubscribing from what was not subscribed is answered with (here the same).
"""

import asyncio
import json
import random
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import UNIT, Book, Change, Character, Level, Market, Step, now_us
from simulator.recording import Recorded
from simulator.tape import Candle, Row, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

CHANNELS = {
    "public": {"books": "orderbook", "trades": "trades", "tickers": "ticker"},
    "business": {"candle1m": "candles"},
}
SILENT = {
    "public": re.compile(r"books5|bbo-tbt|mark-price|price-limit|funding-rate|open-interest|opt-summary"),
    "business": re.compile(r"(mark-price-|index-)?candle(1s|[1-9]\d?[mHDWMY])(utc)?|trades-all"),
}
FOR_VIPS = ("books-l2-tbt", "books50-l2-tbt")
WRONG = "Please use the correct URL, channel and parameters referring to API document."
CONTRACT = "0.001"  # what a linear contract is worth in the symbol; an inverse one is worth 100 USD
REQUEST_BYTES_MAX = 64 * 1024


class Chain:
    """The numbers of one market's books: each change names the one before it, and after maintenance they fall."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.last = self.random.randrange(70_000_000_000, 80_000_000_000)
        self.before = -1

    def move(self) -> None:
        """Number another change."""
        self.before = self.last
        if self.random.random() < 0.01:
            self.last -= self.random.randint(10_000, 10_000_000)
        else:
            self.last += self.random.randint(1, 90)


class Okx(Venue):
    """The simulated OKX."""

    name = "okx"
    hosts = ("ws.okx.com",)
    socket_path = "ws/v5/public"
    products = {"business": ("ws/v5/business", "")}  # noqa: RUF012 - as the base has it
    rates_hz = (10, 10)
    depth = 400
    character = Character(depth=390, spread_ticks=2, gap_ticks=5)  # it never has more than the 400 that are told
    timing = Timing(idle_s=30, still_s=60, operations_per_h=480, connects_per_s=3, rest_limits=True)
    volume = re.compile(r'(\["[^"]*",)("[^"]*")')
    surprise = '{"arg":{"channel":"surprise","instId":"BTC-USDT"},"data":[{}]}'
    stamps = re.compile(r'("ts":")(\d{13})\b')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        seed = args[2] if len(args) > 2 else kwargs["seed"]
        self._chains = {name: Chain(f"{seed}/okx/{name}/seqId") for name in self.markets}
        self._calls = {"instruments": Bucket(20, 10), "books": Bucket(40, 20), "candles": Bucket(40, 20)}

    def native(self, market: str) -> str:
        """Spell BTC-USDT:USDT as BTC-USDT-SWAP, a future with its day, an option with its strike as well."""
        pair, _, rest = market.partition(":")
        if not rest:
            return pair
        _, _, tail = rest.partition("-")
        return f"{pair}-{tail or 'SWAP'}"

    def foreign(self, market: str) -> str:
        """Name the like of a market in another symbol."""
        symbol, _, rest = market.partition("-")
        other = "DOGE" if symbol != "DOGE" else "XRP"
        return f"{other}-{rest.replace(f':{symbol}', f':{other}')}"

    def character_of(self, market: str) -> Character:
        """Let contracts be traded whole."""
        if ":" not in market:
            return self.character
        return replace(self.character, volume_places=0, lot=int(Decimal(CONTRACT) * UNIT))

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Cut the silent, and tell clients of books that stand still."""
        super().keepalive(c)
        c.start(self._tell_the_still(c))

    async def greet(self, c: Connection) -> None:
        """Name the connection, without a word, and begin to count its requests."""
        operations = self.timing.operations_per_h or 10**9
        c.memory["connId"] = secrets.token_hex(4)
        c.memory["operations"] = Bucket(operations, operations / 3600)

    async def _tell_the_still(self, c: Connection) -> None:
        still = self.timing.still_s
        clock = asyncio.get_running_loop().time
        while still is not None:
            await asyncio.sleep(still / 10)
            for s in [] if self.recording else list(c.subscriptions.values()):
                if s.channel == "orderbook" and clock() - s.options["told_s"] >= still:
                    number = self._chains[s.market].last
                    c.publish(s, self._change(s, (), now_us(), number, number))

    async def received(self, c: Connection, text: str) -> None:
        """Answer `ping`, or a request argument by argument."""
        if text == "ping":
            if not c.muted():
                c.say("pong")
            return
        request = self._parsed(text)
        if request is None:
            self._refuse(c, "60012", f"Invalid request: {text[:200]}")
        elif not c.memory["operations"].take():
            self._refuse(c, "60014", "Requests too frequent.")
        else:
            fresh: list[tuple[Subscription, bool]] = []
            for argument in request["args"]:
                fresh += self._obey(c, request["op"], argument)
            self.subscribed(c, fresh)

    def _parsed(self, text: str) -> dict[str, Any] | None:
        try:
            request = json.loads(text)
        except ValueError:
            return None
        if not isinstance(request, dict) or request.get("op") not in ("subscribe", "unsubscribe"):
            return None
        arguments = request.get("args")
        if not isinstance(arguments, list) or not arguments or len(text) > REQUEST_BYTES_MAX:
            return None
        known = all(isinstance(one, dict) and isinstance(one.get("channel"), str) for one in arguments)
        return request if known else None

    def _obey(self, c: Connection, op: str, argument: dict[str, Any]) -> list[tuple[Subscription, bool]]:
        where = "business" if c.path.endswith("/business") else "public"
        name, code = argument["channel"], argument.get("instId")
        market = self.house(code) if isinstance(code, str) else None
        if name in FOR_VIPS and where == "public":
            self._refuse(c, "60011", "Please log in")
            return []
        known = name in CHANNELS[where] or SILENT[where].fullmatch(name)
        if market is None or not known:
            self._refuse(c, "60018", f"Wrong URL or channel:{name},instId:{code} doesn't exist. {WRONG}")
            return []
        channel = CHANNELS[where].get(name, name)
        if op == "unsubscribe":
            c.subscriptions.pop((channel, market), None)
            self._acknowledge(c, op, argument)
            return []
        now = asyncio.get_running_loop().time()
        standing = c.subscriptions.get((channel, market))
        options = standing.options if standing else {"told_s": now}
        subscription, new = c.subscribe(channel, market, str(code), options)
        self._acknowledge(c, op, argument)
        return [(subscription, new)] if new else []  # what is subscribed already is acknowledged, and that is all

    def _acknowledge(self, c: Connection, op: str, argument: dict[str, Any]) -> None:
        c.say(compact({"event": op, "arg": argument, "connId": c.memory["connId"]}))

    def _refuse(self, c: Connection, code: str, message: str) -> None:
        c.say(compact({"event": "error", "msg": message, "code": code, "connId": c.memory["connId"]}))

    def farewell(self, c: Connection) -> str:
        """Announce that the connection will be closed."""
        message = "The connection will soon be closed for a service upgrade. Please reconnect."
        return compact({"event": "notice", "code": "64008", "msg": message, "connId": c.memory["connId"]})

    # -- frames

    def stepped(self, market: Market, step: Step) -> None:
        """Number a step that changed anything."""
        if step.changes:
            self._chains[market.name].move()

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the snapshot."""
        s.options["told_s"] = asyncio.get_running_loop().time()
        number = self._chains[s.market].last
        sides = self._sides(s, book.bids, book.asks, book.time_us)
        return self._book(s, "snapshot", sides, number, -1, Message("", "book", book.bids, book.asks))

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Spell what a step changed; nothing where it changed nothing."""
        if not step.changes:
            return []
        s.options["told_s"] = asyncio.get_running_loop().time()
        chain = self._chains[s.market]
        return [self._change(s, step.changes, step.book.time_us, chain.last, chain.before)]

    def _change(self, s: Subscription, changes: Sequence[Change], at_us: int, number: int, before: int) -> Message:
        if not changes:
            s.options["told_s"] = asyncio.get_running_loop().time()
        bids, asks = (tuple((c.price, c.volume) for c in changes if c.side == side) for side in ("bid", "ask"))
        message = Message("", "change", bids, asks)
        return self._book(s, "update", self._sides(s, bids, asks, at_us), number, before, message)

    def _sides(self, s: Subscription, bids: Sequence[Level], asks: Sequence[Level], at_us: int) -> tuple[str, int]:
        def rows(levels: Sequence[Level]) -> str:
            orders = (0 if volume == "0" else 1 + len(price) * len(volume) % 17 for price, volume in levels)
            return ",".join(f'["{p}","{v}","0","{n}"]' for (p, v), n in zip(levels, orders, strict=True))

        return f'"asks":[{rows(asks)}],"bids":[{rows(bids)}],"ts":"{at_us // 1000}"', at_us // 1000 * 1000

    def _book(
        self, s: Subscription, action: str, sides: tuple[str, int], number: int, before: int, message: Message
    ) -> Message:
        text, at_us = sides
        data = (
            f'{{"arg":{{"channel":"books","instId":"{s.code}"}},"action":"{action}",'
            f'"data":[{{{text},"checksum":0,"seqId":{number},"prevSeqId":{before}}}]}}'
        )
        return replace(message, data=data, venue_us=at_us, sequence=number)

    def sample(self, s: Subscription) -> str:
        """Give a change that changes nothing, to be spoiled."""
        price, volume = self.shown(s.market).bids[0]
        number = self._chains[s.market].last
        return str(self._change(s, [Change("bid", price, volume)], now_us(), number, number).data)

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the last trade as well to who subscribes to trades."""
        if s.channel == "trades":
            return [self.trade_frame(s, self.tapes[s.market].trades[-1])]
        return super().opening(s, fresh)

    def trade_frame(self, s: Subscription, trade: Trade) -> Message:
        """Spell one trade."""
        row = {"instId": s.code, "tradeId": str(trade.id), "px": trade.price, "sz": trade.volume, "side": trade.side}
        more = {"ts": str(trade.time_us // 1000), "count": "1", "source": "0", "seqId": self._chains[s.market].last}
        data = compact({"arg": {"channel": "trades", "instId": s.code}, "data": [{**row, **more}]})
        return Message(data, "trade", rows=(replace(trade, time_us=trade.time_us // 1000 * 1000),))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message:
        """Spell a ticker."""
        in_currency = self._in_currency(s.market, str(ticker.volume), str(ticker.turnover), str(ticker.last))
        row = {
            "instType": self._kind(s.market), "instId": s.code, "last": ticker.last, "lastSz": ticker.last_volume,
            "askPx": ticker.ask, "askSz": ticker.ask_volume, "bidPx": ticker.bid, "bidSz": ticker.bid_volume,
            "open24h": ticker.open, "high24h": ticker.high, "low24h": ticker.low, "sodUtc0": ticker.open,
            "sodUtc8": ticker.open, "volCcy24h": in_currency, "vol24h": ticker.volume,
            "ts": str((ticker.time_us or 0) // 1000),
        }  # fmt: skip
        meant = replace(
            ticker,
            volume=in_currency if ":" in s.market else ticker.volume,
            time_us=(ticker.time_us or 0) // 1000 * 1000,
        )
        data = compact({"arg": {"channel": "tickers", "instId": s.code}, "data": [row]})
        return Message(data, "ticker", rows=(meant,))

    def candle_frame(self, s: Subscription, candle: Candle) -> Message:
        """Spell the candle of a minute."""
        row, meant = self._candle(s.market, candle)
        data = compact({"arg": {"channel": "candle1m", "instId": s.code}, "data": [row]})
        return Message(data, "candle", rows=(meant,))

    def _candle(self, market: str, candle: Candle) -> tuple[list[str], Candle]:
        """Spell the nine columns of a candle, and tell what they mean."""
        base = self._in_currency(market, candle.volume, candle.turnover, candle.close)
        row = [
            str(candle.open_us // 1000), candle.open, candle.high, candle.low, candle.close, candle.volume,
            base, candle.turnover, "1" if candle.closed else "0",
        ]  # fmt: skip
        return row, replace(candle, volume=base if ":" in market else candle.volume, time_us=None)

    def _in_currency(self, market: str, volume: str, turnover: str, price: str) -> str:
        """Spell `volCcy`: the amount in the currency on the spot market, in the symbol where contracts are counted."""
        if ":" not in market:
            return turnover
        if market.partition(":")[0].endswith("-USD"):
            return f"{(Decimal(volume) * 100 / Decimal(price)).quantize(Decimal('0.0001')):f}"
        return f"{Decimal(volume) * Decimal(CONTRACT):f}"

    def _kind(self, market: str) -> str:
        tail = market.partition(":")[2].split("-")
        return ("SPOT" if tail == [""] else "SWAP", "FUTURES", "OPTION", "OPTION")[len(tail) - 1]

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded book, trade or ticker, of today or of 2022 (without numbers)."""
        if not data.startswith("{"):
            return None
        frame = json.loads(data)
        argument = frame.get("arg") or {}
        if "data" not in frame or argument.get("channel") not in CHANNELS["public"]:
            return None
        channel = CHANNELS["public"][argument["channel"]]
        market = _house(argument["instId"])
        row = frame["data"][0]
        at_us = int(row["ts"]) * 1000
        if channel == "orderbook":
            bids, asks = (tuple((level[0], level[1]) for level in row[side]) for side in ("bids", "asks"))
            what = "book" if frame["action"] == "snapshot" else "change"
            return Recorded(data, market, channel, what, bids, asks, at_us, row.get("seqId"))
        rows: tuple[Row, ...]
        if channel == "trades":
            rows = tuple(Trade(t["tradeId"], t["side"], t["px"], t["sz"], int(t["ts"]) * 1000) for t in frame["data"])
            return Recorded(data, market, channel, "trade", venue_us=at_us, rows=rows)
        volume = row["volCcy24h" if ":" in market else "vol24h"]
        rows = (Ticker(row["last"] or None, row["bidPx"] or None, row["askPx"] or None, volume, at_us),)
        return Recorded(data, market, channel, "ticker", venue_us=at_us, rows=rows)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the calls for instruments, books, candles and the time."""
        asked = request.query
        match path:
            case "api/v5/public/time":
                return self._answer([{"ts": str(now_us() // 1000)}])
            case "api/v5/public/instruments":
                return self._instruments(dict(asked))
            case "api/v5/market/books":
                return self._rest_book(asked.get("instId", ""), asked.get("sz", "1"))
            case "api/v5/market/candles":
                return self._rest_candles(asked.get("instId", ""), asked.get("bar", "1m"), asked.get("limit", "100"))
            case _:
                return self._error("404", "Not Found", 404)

    def _answer(self, data: list[Any]) -> Reply:
        return Reply(compact({"code": "0", "msg": "", "data": data}))

    def _error(self, code: str, message: str, status: int = 200, asked: tuple[str, ...] = ()) -> Reply:
        return Reply(compact({"code": code, "msg": message, "data": []}), status, asked=asked)

    def _limited(self, call: str, asked: tuple[str, ...] = ()) -> Reply | None:
        if not self.timing.rest_limits or self._calls[call].take():
            return None
        return Reply('{"msg":"Too Many Requests","code":"50011"}', 429, asked=asked)

    def _instruments(self, asked: dict[str, str]) -> Reply:
        if (refused := self._limited("instruments")) is not None:
            return refused
        kind, family = asked.get("instType", ""), asked.get("instFamily") or asked.get("uly")
        if not kind:
            return self._error("50014", "Parameter instType can not be empty.", 400)
        if kind not in ("SPOT", "MARGIN", "SWAP", "FUTURES", "OPTION"):
            return self._error("51000", "Parameter instType error", 400)
        if kind == "OPTION" and not family:
            return self._error("50015", "Either parameter uly or instFamily is required", 400)
        rows = [self._instrument(market) for market in self.markets if self._kind(market) == kind]
        rows = [row for row in rows if family in (None, row["instFamily"])]
        if "instId" in asked:
            rows = [row for row in rows if row["instId"] == asked["instId"]]
            if not rows:
                return self._error("51001", "Instrument ID doesn't exist.")
        return self._answer(rows)

    def _instrument(self, market: str) -> dict[str, str]:
        pair, _, rest = market.partition(":")
        symbol, currency = pair.split("-")
        settle, *tail = rest.split("-")
        inverse = settle == symbol and len(tail) < 3
        worth = {"ctVal": "", "ctMult": "", "ctValCcy": "", "ctType": ""}
        if rest:
            worth = {
                "ctVal": "100" if inverse else "1" if len(tail) == 3 else CONTRACT,
                "ctMult": CONTRACT if len(tail) == 3 else "1",
                "ctValCcy": currency if inverse else symbol,
                "ctType": "" if len(tail) == 3 else "inverse" if inverse else "linear",
            }
        return {
            "instType": self._kind(market), "instId": self.native(market), "uly": pair if rest else "",
            "instFamily": pair if rest else "", "baseCcy": "" if rest else symbol, "quoteCcy": "" if rest else currency,
            "settleCcy": settle, **worth, "optType": tail[2] if len(tail) == 3 else "",
            "stk": tail[1] if len(tail) == 3 else "", "state": "live", "lotSz": "1" if rest else "0.00000001",
        }  # fmt: skip

    def _rest_book(self, code: str, size: str) -> Reply:
        market = self.house(code)
        if market is None:
            return self._error("51001", "Instrument ID doesn't exist.")
        if (refused := self._limited("books", (market,))) is not None:
            return refused
        if not size.isdigit() or not 0 < int(size) <= 400:
            return self._error("51000", "Parameter sz error", 400)
        book = self.shown(market).top(int(size))
        number = self._chains[market].last
        stamp = book.time_us // 1000
        sides = ([[p, v, "0", "1"] for p, v in levels] for levels in (book.asks, book.bids))
        asks, bids = sides
        reply = self._answer([{"asks": asks, "bids": bids, "ts": str(stamp), "seqId": number}])
        message = Message(reply.body, "book", book.bids, book.asks, stamp * 1000, number)
        return replace(reply, books={market: message})

    def _rest_candles(self, code: str, bar: str, limit: str) -> Reply:
        market = self.house(code)
        if market is None:
            return self._error("51001", "Instrument ID doesn't exist.")
        if (refused := self._limited("candles", (market,))) is not None:
            return replace(refused, channel="candles")
        if bar != "1m" or not limit.isdigit() or not 0 < int(limit) <= 300:
            return self._error("51000", "Parameter bar error" if bar != "1m" else "Parameter limit error", 400)
        found = [self._candle(market, candle) for candle in self.tapes[market].candles(int(limit))]
        reply = self._answer([row for row, _ in reversed(found)])
        message = Message(reply.body, "candle", rows=tuple(meant for _, meant in reversed(found)))
        return replace(reply, books={market: message}, channel="candles")


def _house(code: str) -> str:
    """Name a market by its code: BTC-USD-SWAP is BTC-USD:BTC."""
    symbol, currency, *tail = code.split("-")
    settle = symbol if currency == "USD" else currency
    if not tail:
        return code
    return "-".join((f"{symbol}-{currency}:{settle}", *(part for part in tail if part != "SWAP")))
