"""GOPAX: a snapshot of the whole book, then changes; text pings to be answered; no sequence that would show a loss.

Simulated: order books by `SubscribeToOrderBook` and `SubscribeToTradingPair`, trades by the latter, tickers by
`SubscribeToTickers` (all of them in the reply, then each alone with its trades, not collected over a second), candles
of one minute over REST, the REST book and the list of pairs. A signed socket URL is checked against the key the
simulator was given; how the venue refuses a bad one is unverified: here the upgrade is answered with 401.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Change, Character, Level, Market, Step, now_us, plain, units
from simulator.recording import Recorded, exact
from simulator.tape import KEPT, News, Row, Ticker, Trade, amount, times
from simulator.venue import Bucket, Reply, Timing, Venue, compact

BOOK_REQUESTS = ("SubscribeToOrderBook", "SubscribeToTradingPair")
Mark = tuple[int, int]
"""The entryId of a level and the millisecond of its last change."""


def seconds(ms: int) -> str:
    """Spell a time as `updatedAt` does: seconds with a fraction of as many digits as it needs."""
    whole, fraction = divmod(ms, 1000)
    return f"{whole}.{fraction:03d}".rstrip("0") if fraction else str(whole)


def microseconds(updated_at: str) -> int:
    """Read `updatedAt` exactly."""
    whole, _, fraction = updated_at.partition(".")
    return int(whole) * 10**6 + int(fraction[:6].ljust(6, "0"))


class Gopax(Venue):
    """The simulated GOPAX."""

    name = "gopax"
    hosts = ("wsapi.gopax.co.kr",)
    rates_hz = (0.5, 2)
    jitter = 0.9
    character = Character(depth=420, spread_ticks=40, gap_ticks=6, coarse=10, changes_max=1)
    timing = Timing(ping_s=30, pong_s=30.2, session_s=86_400, connects_per_s=20, books_max=50, rest_limits=True)
    volume = re.compile(r'("volume":|\["\d+",[^,\]]+,)([^,}]+)')
    surprise = '{"i":-1,"n":"SurpriseEvent","o":{}}'

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entry = 84_000_000  # one counter for the whole exchange
        self._marks: dict[tuple[str, str, str], Mark] = {}
        self._calls, self._book_calls = Bucket(20, 20), Bucket(1, 1)
        started_ms = now_us() // 1000
        for market in self.markets.values():
            levels = [("bid", p) for p, _ in market.book.bids] + [("ask", p) for p, _ in market.book.asks]
            market.random.shuffle(levels)
            for age, (side, price) in enumerate(levels):
                self._marks[market.name, side, price] = self._next(market), started_ms - (len(levels) - age) * 977

    def native(self, market: str) -> str:
        """GOPAX writes markets as the house does."""
        return market

    def _next(self, market: Market) -> int:
        self._entry += min(1 + int(market.random.expovariate(0.2)), 315)
        return self._entry

    # -- socket

    def admit(self, request: web.BaseRequest) -> Reply | None:
        """Let anybody in without a key; check a signature where one is shown."""
        given = {k: request.query.get(k, "") for k in ("apiKey", "timestamp", "signature")}
        if not any(given.values()):
            return None
        good = self.key is not None and given["apiKey"] == self.key[0] and self._signed(self.key[1], given)
        return None if good else Reply('{"errorMessage":"Unauthorized"}', 401)

    def _signed(self, secret: str, given: dict[str, str]) -> bool:
        stamp = given["timestamp"]
        if not stamp.isdigit() or abs(int(stamp) / 1000 - time.time()) > 5:
            return False
        try:
            key = base64.b64decode(secret, validate=True)
        except binascii.Error:
            return False
        wanted = base64.b64encode(hmac.new(key, f"t{stamp}".encode(), hashlib.sha512).digest())
        return hmac.compare_digest(wanted, given["signature"].encode())

    def keepalive(self, c: Connection) -> None:
        """Ask for a sign of life, and end a socket at its greatest age."""
        c.start(self._ping(c))
        if self.timing.session_s is not None:
            c.close_later(self.timing.session_s, 1000, "maximum age")

    async def _ping(self, c: Connection) -> None:
        while True:
            await asyncio.sleep(self.timing.ping_s or 30)
            c.memory.setdefault("asked_s", asyncio.get_running_loop().time())
            c.say(f'"primus::ping::{now_us() // 1000}"')
            c.start(self._expect_pong(c, c.memory["asked_s"]))

    async def _expect_pong(self, c: Connection, asked_s: float) -> None:
        await asyncio.sleep(self.timing.pong_s or 30.2)
        if c.memory.get("asked_s") == asked_s:
            await c.close(1000, "no pong")

    async def received(self, c: Connection, text: str) -> None:
        """Answer one request; what is no JSON gets no answer."""
        if re.fullmatch(r'"?primus::pong::\d+"?', text):
            c.memory.pop("asked_s", None)
            return
        try:
            request = json.loads(text)
        except ValueError:
            return
        if not isinstance(request, dict):
            return
        options: Any = request.get("o")
        options = options if isinstance(options, dict) else {}
        i, name, pair, limit = request.get("i"), request.get("n"), options.get("tradingPairName"), options.get("limit")
        refusal = self._refusal(c, name, pair, limit)
        if refusal is not None:
            code, data = refusal
            self._answer(c, i, name, {"result": False, "errCode": code, "errData": data})
        elif name == "SubscribeToTickers":
            self._start_tickers(c, i)
        else:
            made = [c.subscribe("orderbook", str(pair), str(pair), {"i": i, "n": name, "limit": limit})]
            if name == "SubscribeToTradingPair":
                made.append(c.subscribe("trades", str(pair), str(pair)))
            self.subscribed(c, made)

    def _refusal(self, c: Connection, name: Any, pair: Any, limit: Any) -> tuple[int, str] | None:
        if name == "SubscribeToTickers":
            return (10325, "Already subscribed") if any(channel == "ticker" for channel, _ in c.subscriptions) else None
        if name not in BOOK_REQUESTS:
            return 10001, "No such endpoint"
        if not isinstance(pair, str) or self.house(pair) is None:
            return 10058, str(pair).partition("-")[0]
        if ("orderbook", pair) in c.subscriptions:
            return 10325, "Already subscribed"
        if sum(channel == "orderbook" for channel, _ in c.subscriptions) >= (self.timing.books_max or 50):
            return 10321, "Too many order books are subscribed"
        if limit is not None and (not isinstance(limit, int) or limit < 20):
            return 10329, "Invalid limit"
        return None

    def _answer(self, c: Connection, i: Any, name: Any, content: dict[str, Any]) -> None:
        c.say(compact({"i": i, "n": name, "o": content}))

    def _start_tickers(self, c: Connection, i: Any) -> None:
        """Answer with the tickers of all pairs; each of them is a message of its own subscription."""
        rows = []
        for market in self.markets:
            row, meant = self._ticker(market, self.tapes[market].ticker)
            rows.append(row)
            if not self.recording:
                s, _ = c.subscribe("ticker", market, market)
                c.record(s, Message("", "ticker", rows=(meant,)), "sent")
        if self.recording:
            self.subscribed(c, [c.subscribe("ticker", market, market) for market in self.markets])
            rows = []
        c.say(f'{{"i":{compact(i)},"n":"SubscribeToTickers","o":{{"data":[{",".join(rows)}]}}}}')

    # -- frames

    def news(self, s: Subscription, news: News) -> Sequence[Message]:
        """Send tickers only with trades: their bid and ask are those of the last trade."""
        return super().news(s, news) if news.trades else []

    def trade_frame(self, s: Subscription, trade: Trade) -> Message:
        """Spell a trade; its time has whole seconds, as in the documentation's example."""
        at_s = trade.time_us // 1_000_000
        worth = amount(times(trade.price, trade.volume))
        data = (
            f'{{"i":-1,"n":"PublicTradeEvent","o":{{"tradeId":{trade.id},"baseAmount":{trade.volume},'
            f'"quoteAmount":{worth},"price":{trade.price},"isBuy":{compact(trade.side == "buy")},'
            f'"occurredAt":{at_s},"tradingPairName":"{s.market}"}}}}'
        )
        return Message(data, "trade", rows=(replace(trade, time_us=at_s * 1_000_000),))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message:
        """Spell the event of one ticker."""
        row, meant = self._ticker(s.market, ticker)
        data = f'{{"i":-1,"n":"TickerEvent","o":{{"{s.market}":{row}}}}}'
        return Message(data, "ticker", rows=(meant,))

    def _ticker(self, market: str, ticker: Ticker) -> tuple[str, Ticker]:
        """Spell a ticker as JSON numbers, and tell what it means."""
        ms = self.tapes[market].trades[-1].time_us // 1000
        text = (
            f'{{"lastTraded":{ms},"high":{ticker.high},"low":{ticker.low},"open":{ticker.open},"last":{ticker.last},'
            f'"lowestAsk":{ticker.ask},"highestBid":{ticker.bid},"baseVolume":{ticker.volume},'
            f'"quoteVolume":{ticker.turnover},"tradingPairName":"{market}"}}'
        )
        return text, replace(ticker, time_us=ms * 1000)

    def stepped(self, market: Market, step: Step) -> None:
        """Give every level that a step touched its entryId and time."""
        for change in self._told(step):
            key = market.name, change.side, change.price
            self._marks[key] = self._next(market), step.book.time_us // 1000

    def _mark(self, market: str, side: str, price: str) -> Mark:
        """Find the mark of a level; one that a recording brought has none and gets the newest."""
        return self._marks.get((market, side, price)) or (self._entry, now_us() // 1000)

    def _entries(self, market: str, side: str, levels: Sequence[Level]) -> str:
        found = ((*self._mark(market, side, price), price, volume) for price, volume in levels)
        return ",".join(
            f'{{"entryId":{entry},"price":{price},"volume":{volume},"updatedAt":{seconds(ms)}}}'
            for entry, ms, price, volume in found
        )

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the snapshot: the reply to the request, with the whole book."""
        book = book.top(s.options["limit"] or len(book.bids) + len(book.asks))
        newest = max(
            self._mark(s.market, side, price)[1]
            for side, levels in (("bid", book.bids), ("ask", book.asks))
            for price, _ in levels
        )
        text = (
            f'{{"i":{compact(s.options["i"])},"n":"{s.options["n"]}","o":'
            f'{{"ask":[{self._entries(s.market, "ask", book.asks)}],'
            f'"bid":[{self._entries(s.market, "bid", book.bids)}],'
            f'"tradingPairName":"{s.market}","maxEntryId":{self._entry}}}}}'
        )
        return Message(text, "book", book.bids, book.asks, newest * 1000, self._entry)

    def snapshots(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the book; now and then a change follows that the snapshot already holds, of the same entryId.

        With the fault `early_change` the next change of the market overtakes the snapshot.
        """
        sent = [self.book_frame(s, self.shown(s.market), True)]
        market = self.markets[s.market]
        if self.faults.take("early_change", self.name, s.market):
            while not self.advance(market).changes:
                continue
            return sent
        if self._entry % 3 == 0:
            gone = self._unknown(market.book)
            self._marks[s.market, gone.side, gone.price] = self._entry, market.book.time_us // 1000
            sent.append(self._change(s.market, [gone]))
        return sent

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send each entry alone, nearly always."""
        told = self._told(step)
        if told and step.book.n % 50 == 0:
            return [self._change(s.market, told)]
        return [self._change(s.market, [change]) for change in told]

    def _told(self, step: Step) -> tuple[Change, ...]:
        """List what a step changed; now and then with the deletion of a price that is not there."""
        return (*step.changes, self._unknown(step.book)) if step.book.n % 40 == 7 else step.changes

    def _unknown(self, book: Book) -> Change:
        """Delete a price at which nobody ever offered."""
        return Change("ask", plain(3 * units(book.asks[-1][0])), "0")

    def _change(self, market: str, changes: Sequence[Change]) -> Message:
        bids = tuple((c.price, c.volume) for c in changes if c.side == "bid")
        asks = tuple((c.price, c.volume) for c in changes if c.side == "ask")
        marks = [self._mark(market, c.side, c.price) for c in changes]
        text = (
            f'{{"i":-1,"n":"OrderBookEvent","o":{{"ask":[{self._entries(market, "ask", asks)}],'
            f'"bid":[{self._entries(market, "bid", bids)}],"tradingPairName":"{market}"}}}}'
        )
        return Message(text, "change", bids, asks, max(ms for _, ms in marks) * 1000, max(e for e, _ in marks))

    def sample(self, s: Subscription) -> str:
        """Give a change that changes nothing, to be spoiled."""
        price, volume = self.shown(s.market).bids[0]
        return str(self._change(s.market, [Change("bid", price, volume)]).data)

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded snapshot or change."""
        frame = exact(data)
        content = frame.get("o") if isinstance(frame, dict) else None
        if not isinstance(content, dict):
            return None
        if frame["n"] in ("PublicTradeEvent", "TickerEvent"):
            return cls._recorded_stream(data, frame["n"], content)
        if "tradingPairName" not in content or "ask" not in content:
            return None
        entries = content["bid"] + content["ask"]
        bids = tuple((e["price"], e["volume"]) for e in content["bid"])
        asks = tuple((e["price"], e["volume"]) for e in content["ask"])
        newest = max((microseconds(e["updatedAt"]) for e in entries), default=None)
        highest = max((int(e["entryId"]) for e in entries), default=None)
        if frame["n"] == "OrderBookEvent":
            return Recorded(data, content["tradingPairName"], "orderbook", "change", bids, asks, newest, highest)
        top = int(content["maxEntryId"]) if "maxEntryId" in content else highest
        return Recorded(data, content["tradingPairName"], "orderbook", "book", bids, asks, newest, top)

    @classmethod
    def _recorded_stream(cls, data: str, name: str, content: dict[str, Any]) -> Recorded | None:
        """Understand a recorded trade, or an event of one ticker."""
        rows: tuple[Row, ...]
        if name == "PublicTradeEvent":
            at_us = microseconds(content["occurredAt"])
            side = "buy" if content["isBuy"] else "sell"
            rows = (Trade(content["tradeId"], side, content["price"], content["baseAmount"], at_us),)
            return Recorded(data, content["tradingPairName"], "trades", "trade", venue_us=at_us, rows=rows)
        if len(content) != 1:
            return None
        ((market, row),) = content.items()
        at_us = int(row["lastTraded"]) * 1000
        bid, ask = (None if row[key] == "0" else str(row[key]) for key in ("highestBid", "lowestAsk"))
        rows = (Ticker(row["last"], bid, ask, row["baseVolume"], at_us),)
        return Recorded(data, market, "ticker", "ticker", venue_us=at_us, rows=rows)

    def prelude(self, s: Subscription, frames: Sequence[Recorded]) -> Sequence[Message]:
        """Put a generated snapshot, older than the first change, before a recording that has none."""
        if s.channel != "orderbook" or not frames or frames[0].what == "book":
            return []
        self._entry = (frames[0].sequence or self._entry + 1) - 1
        return [self.book_frame(s, self.markets[s.market].book, True)]

    def addressed(self, s: Subscription, data: str) -> str:
        """Echo the client's own `i` in a recorded snapshot."""
        return re.sub(r'^\{"i":("[^"]*"|\d+),', lambda _: f'{{"i":{compact(s.options["i"])},', data)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the calls for books, candles, pairs and the time."""
        match path.split("/"):
            case ["trading-pairs", pair, "book"]:
                return self._rest_book(pair, request.query.get("level", "3"))
            case ["trading-pairs", pair, "candles"]:
                return self._rest_candles(pair, dict(request.query))
            case ["trading-pairs"] if self._free():
                return Reply(compact([self._listing(i, m) for i, m in enumerate(self.markets, 1)]))
            case ["time"] if self._free():
                return Reply(compact({"serverTime": now_us() // 1000}))
            case ["trading-pairs"] | ["time"]:
                return self._error(429, 10105, "Too many requests", "")
            case _:
                return self._error(404, 10001, "No such endpoint", path)

    def _free(self) -> bool:
        return not self.timing.rest_limits or self._calls.take()

    def _error(self, status: int, code: int, message: str, data: str, asked: tuple[str, ...] = ()) -> Reply:
        body = compact({"errorMessage": message, "errorCode": code, "errorData": data})
        return Reply(body, status, asked=asked)

    def _rest_book(self, pair: str, level: str) -> Reply:
        if self.house(pair) is None:
            asset = pair.partition("-")[0]
            return self._error(404, 10058, f"Invalid asset code: {asset}", asset)
        if not self._free() or (self.timing.rest_limits and not self._book_calls.take()):
            return self._error(429, 10105, "Too many requests", "", (pair,))
        whole = self.shown(pair)
        book = whole.top({"1": 1, "2": 50}.get(level, len(whole.bids) + len(whole.asks)))
        sides = (self._rows(pair, "bid", book.bids), self._rows(pair, "ask", book.asks))
        body = f'{{"sequence":{self._entry},"bid":[{sides[0]}],"ask":[{sides[1]}]}}'
        return Reply(body, books={pair: Message(body, "book", book.bids, book.asks, None, self._entry)})

    def _rest_candles(self, pair: str, asked: dict[str, str]) -> Reply:
        """Answer with the candles that begin in a window, oldest first; refusals of other windows are unverified."""
        market = self.house(pair)
        if market is None:
            asset = pair.partition("-")[0]
            return self._error(404, 10058, f"Invalid asset code: {asset}", asset)
        if not self._free():
            return replace(self._error(429, 10105, "Too many requests", "", (pair,)), channel="candles")
        window = asked.get("start", ""), asked.get("end", "")
        if not all(bound.isdigit() for bound in window) or asked.get("interval") != "1":
            return replace(self._error(400, 10155, "Invalid parameter", "", (pair,)), channel="candles")
        start_us, end_us = (int(bound) * 1000 for bound in window)
        traded = [candle for candle in self.tapes[market].candles(KEPT) if candle.trades]
        traded = [candle for candle in traded if start_us <= candle.open_us < end_us][:1024]
        candles = [
            replace(candle, closed=left > 1, time_us=None)
            for left, candle in zip(range(len(traded), 0, -1), traded, strict=True)
        ]
        rows = (
            f"[{candle.open_us // 1000},{candle.low},{candle.high},{candle.open},{candle.close},{candle.volume}]"
            for candle in candles
        )
        body = f"[{','.join(rows)}]"
        return Reply(body, books={pair: Message(body, "candle", rows=tuple(candles))}, channel="candles")

    def _rows(self, market: str, side: str, levels: Sequence[Level]) -> str:
        marks = ((self._mark(market, side, p), p, v) for p, v in levels)
        return ",".join(f'["{entry}",{price},{volume},"{ms}"]' for (entry, ms), price, volume in marks)

    def _listing(self, number: int, market: str) -> dict[str, Any]:
        symbol, currency = market.split("-")
        least = {"amount": 500, "unit": currency}
        return {
            "id": number, "name": market, "baseAsset": symbol, "quoteAsset": currency, "baseAssetScale": 8,
            "quoteAssetScale": 0, "priceMin": 1, "restApiOrderAmountMin": {"limitAsk": least, "limitBid": least},
            "makerFeePercent": 0.2, "takerFeePercent": 0.2,
        }  # fmt: skip
