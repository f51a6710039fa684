"""Coinbase Advanced Trade's public socket: one number for every frame of a connection, one channel a request; no key.

Simulated: `level2`, `market_trades`, `ticker`, `heartbeats`, and over REST the list of products, their books and their
candles of one minute. `candles` (of five minutes), `status` and `ticker_batch` are acknowledged and stay silent. The
complete book comes before the acknowledgement, mixed; what a step changed is one event, or one of bids and one of
asks. A `-USDC` product is answered under the name of the `-USD` one; both at once are one book there and refused here.

A frame that a fault swallows has taken its number: the hole shows at the next frame. What a stall or a forgotten
subscription keeps back takes none: that is a venue that fell silent.

Unverified, here as follows: a product that is not traded is left out of the acknowledgement, without a word; a second
subscription of the same brings its snapshot again; requests beyond 8 a second are answered with an error; a socket
without a request is closed after 5 s with code 1008, and one on which nothing is said after 75 s.
"""

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, Market, Step, now_us
from simulator.recording import Recorded, exact
from simulator.tape import Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

CHANNELS = {"level2": "orderbook", "market_trades": "trades", "ticker": "ticker"}
SILENT = ("candles", "status", "ticker_batch")
OWN_USDC = ("USDT-USDC", "EURC-USDC")
FIRST_REQUEST_S = 5.0
REQUESTS = 8, 8  # at once, and a second
TRADES_BEFORE = 50  # in the snapshot of trades
_PRODUCT = "api/v3/brokerage/market/products/"
_MICROSECONDS = re.compile(r"\.(\d{1,6})\d*Z")


@dataclass(slots=True)
class Numbers:
    """The numbers of the frames of one connection."""

    following: int = 0

    def take(self) -> int:
        """Use the next number."""
        self.following += 1
        return self.following - 1


def spelt(time_ns: int, digits: int = 9) -> str:
    """Spell a time as Coinbase does: with nanoseconds, or with microseconds (6 digits)."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{f'{rest:09d}'[:digits]}Z"


def microseconds(text: str) -> int:
    """Read such a time, down to whole microseconds."""
    whole = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    fraction = _MICROSECONDS.search(text)
    return int(whole.timestamp()) * 10**6 + int((fraction[1] if fraction else "").ljust(6, "0"))


class Coinbase(Venue):
    """The simulated Coinbase."""

    name = "coinbase"
    hosts = ("advanced-trade-ws.coinbase.com",)
    rates_hz = (5, 20)
    jitter = 0.9
    character = Character(depth=300)
    timing = Timing(status_s=1, idle_s=75, connects_per_s=8, rest_limits=True)
    volume = re.compile(r'("new_quantity":)("[^"]*")')
    surprise = '{"channel":"surprise","timestamp":"2026-09-07T01:57:58.894355Z","sequence_num":0,"events":[]}'
    stamps = re.compile(r'("(?:timestamp|event_time)":")([^"]*)(")')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for market in self.markets:
            if self.product(market) != market and self.product(market) in self.markets:
                raise ValueError(f"{market} and {self.product(market)} are one book on Coinbase: simulate one of them")
        self._steps: dict[str, tuple[str, Step]] = {}  # events of the last step of a market
        self._calls = Bucket(10, 10)
        self._mixer = random.Random(1)

    def native(self, market: str) -> str:
        """Coinbase writes markets as the house does."""
        return market

    @staticmethod
    def product(market: str) -> str:
        """Give the name under which a market is spoken of on the socket."""
        return market.removesuffix("C") if market.endswith("-USDC") and market not in OWN_USDC else market

    def foreign(self, market: str) -> str:
        """Name a market that nobody asked for."""
        return "DOGE-USD" if market != "DOGE-USD" else "XRP-USD"

    def spoil(self, what: str, text: str, market: str) -> str | bytes:
        """Turn a good frame into garbage; the name in it is that of the product."""
        if what == "foreign_market":
            return text.replace(self.product(market), self.foreign(market))
        return super().spoil(what, text, market)

    # -- socket

    def keepalive(self, c: Connection) -> None:
        """Cut a socket on which nothing is said, and close one without a request."""
        super().keepalive(c)
        c.start(self._await_request(c))

    async def _await_request(self, c: Connection) -> None:
        await asyncio.sleep(FIRST_REQUEST_S)
        if "asked" not in c.memory:
            await c.close(1008, "no subscribe message")

    async def greet(self, c: Connection) -> None:
        """Begin to count; nothing is said."""
        c.memory["numbers"], c.memory["requests"] = Numbers(), Bucket(*REQUESTS)

    async def received(self, c: Connection, text: str) -> None:
        """Answer one request."""
        if self.timing.rest_limits and not c.memory["requests"].take():
            self._error(c, "rate limit exceeded")
            return
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict) or request.get("type") not in ("subscribe", "unsubscribe"):
            self._error(c, "malformed message")
            return
        channel, products = request.get("channel"), request.get("product_ids", [])
        if channel not in (*CHANNELS, *SILENT, "heartbeats"):
            self._error(c, "authentication failure")  # of `user` it is true
            return
        if not isinstance(products, list) or not all(isinstance(product, str) for product in products):
            self._error(c, "malformed message")
            return
        c.memory["asked"] = True
        if request["type"] == "subscribe":
            self._subscribe(c, channel, products)
        else:
            await c.emptied()  # what is queued has its numbers
            self._unsubscribe(c, channel, products)
        self._acknowledge(c)

    def _subscribe(self, c: Connection, channel: str, products: list[str]) -> None:
        if channel == "heartbeats":
            if not c.memory.get("heartbeats"):
                c.memory["heartbeats"] = True
                c.start(self._beat(c))
        elif channel in SILENT:
            c.memory.setdefault("silent", {})[channel] = products
        else:
            markets = dict.fromkeys(market for product in products if (market := self.house(product)))
            options = {"numbers": c.memory["numbers"]}
            self.subscribed(c, [c.subscribe(CHANNELS[channel], m, self.product(m), options) for m in markets])

    def _unsubscribe(self, c: Connection, channel: str, products: list[str]) -> None:
        if channel == "heartbeats":
            c.memory["heartbeats"] = False
        elif channel in SILENT:
            c.memory.get("silent", {}).pop(channel, None)
        else:
            for known, market in list(c.subscriptions):
                if known == CHANNELS[channel] and (not products or market in products):
                    del c.subscriptions[known, market]

    def _acknowledge(self, c: Connection) -> None:
        """List every subscription the connection has."""
        held: dict[str, list[str]] = {"heartbeats": ["heartbeats"]} if c.memory.get("heartbeats") else {}
        for channel, ours in CHANNELS.items():
            if products := [s.code for s in c.subscriptions.values() if s.channel == ours]:
                held[channel] = products
        held |= c.memory.get("silent", {})
        self._say(c, "subscriptions", [{"subscriptions": held}])

    async def _beat(self, c: Connection) -> None:
        counter = 139_650
        while c.memory.get("heartbeats"):
            if not (c.dumb or c.muted()):
                counter += 1
                now = datetime.now(UTC)
                told = f"{now:%Y-%m-%d %H:%M:%S.%f} +0000 UTC m=+{counter}.272674714"
                self._say(c, "heartbeats", [{"current_time": told, "heartbeat_counter": counter}])
            await asyncio.sleep(self.timing.status_s or 1)

    def _say(self, c: Connection, channel: str, events: list[Any]) -> None:
        numbers: Numbers = c.memory["numbers"]
        content = {"channel": channel, "timestamp": spelt(now_us() * 1000), "sequence_num": numbers.take()}
        c.say(compact({**content, "events": events}))

    def _error(self, c: Connection, why: str) -> None:
        c.say(compact({"type": "error", "message": why}))

    # -- frames

    def _number(self, s: Subscription) -> int:
        numbers: Numbers = s.options["numbers"]
        if s.forgotten or self.faults.withholding(self.name, s.market):
            return numbers.following
        return numbers.take()

    def _frame(self, channel: str, number: int, at_ns: int, events: str) -> str:
        client = '"client_id":"",' if channel == "l2_data" else ""
        at = spelt(at_ns)
        return f'{{"channel":"{channel}",{client}"timestamp":"{at}","sequence_num":{number},"events":[{events}]}}'

    def _event(self, kind: str, market: str, time_us: int, levels: Sequence[tuple[str, Level]]) -> str:
        at = spelt(time_us * 1000, 6)
        updates = ",".join(
            f'{{"side":"{side}","event_time":"{at}","price_level":"{price}","new_quantity":"{size}"}}'
            for side, (price, size) in levels
        )
        return f'{{"type":"{kind}","product_id":"{self.product(market)}","updates":[{updates}]}}'

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the complete book, its levels in no order."""
        number, at_ns = self._number(s), now_us() * 1000
        levels = [("bid", level) for level in book.bids] + [("offer", level) for level in book.asks]
        self._mixer.shuffle(levels)
        text = self._frame("l2_data", number, at_ns, self._event("snapshot", s.market, at_ns // 1000, levels))
        return Message(text, "book", book.bids, book.asks, at_ns // 1000, number)

    def stepped(self, market: Market, step: Step) -> None:
        """Spell what a step changed, for all who hear of it."""
        levels = [("bid" if c.side == "bid" else "offer", (c.price, c.volume)) for c in step.changes]
        parts = [levels]
        if step.book.n % 4 == 0:
            parts = [[level for level in levels if level[0] == side] for side in ("bid", "offer")]
        events = [self._event("update", market.name, step.book.time_us, part) for part in parts if part]
        self._steps[market.name] = ",".join(events), step

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send what a step changed."""
        if not step.changes:
            return []
        events, _ = self._steps[s.market]
        number = self._number(s)
        bids, asks = (tuple((c.price, c.volume) for c in step.changes if c.side == side) for side in ("bid", "ask"))
        text = self._frame("l2_data", number, now_us() * 1000, events)
        return [Message(text, "change", bids, asks, step.book.time_us, number)]

    def sample(self, s: Subscription) -> str:
        """Give a change that changes nothing, to be spoiled."""
        level = self.shown(s.market).bids[0]
        event = self._event("update", s.market, now_us(), [("bid", level)])
        return self._frame("l2_data", self._number(s), now_us() * 1000, event)

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the last trades, or the ticker, as a snapshot."""
        tape = self.tapes[s.market]
        if s.channel == "trades":
            return [self._trades(s, "snapshot", list(tape.trades)[-TRADES_BEFORE:])]
        return [self._ticker(s, "snapshot", tape.ticker)]

    def trade_frames(self, s: Subscription, trades: Sequence[Trade]) -> Sequence[Message | None]:
        """Put the trades of a step into one frame, newest first."""
        return [self._trades(s, "update", trades)]

    def _trades(self, s: Subscription, kind: str, trades: Sequence[Trade]) -> Message:
        rows = [
            {
                "product_id": self.product(s.market), "trade_id": str(trade.id), "price": trade.price,
                "size": trade.volume, "time": spelt(trade.time_us * 1000, 6),
                "side": "BUY" if trade.side == "sell" else "SELL",
            }
            for trade in reversed(trades)
        ]  # fmt: skip
        number, at_ns = self._number(s), now_us() * 1000
        text = self._frame("market_trades", number, at_ns, compact({"type": kind, "trades": rows}))
        return Message(text, "trade", venue_us=at_ns // 1000, sequence=number, rows=tuple(trades))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker."""
        return self._ticker(s, "update", ticker)

    def _ticker(self, s: Subscription, kind: str, ticker: Ticker) -> Message:
        row = {
            "type": "ticker", "product_id": self.product(s.market), "price": ticker.last, "volume_24_h": ticker.volume,
            "low_24_h": ticker.low, "high_24_h": ticker.high, "low_52_w": ticker.low, "high_52_w": ticker.high,
            "price_percent_chg_24_h": "0.03813791548644", "best_bid": ticker.bid, "best_ask": ticker.ask,
            "best_bid_quantity": ticker.bid_volume, "best_ask_quantity": ticker.ask_volume,
        }  # fmt: skip
        number, at_ns = self._number(s), now_us() * 1000
        text = self._frame("ticker", number, at_ns, compact({"type": kind, "tickers": [row]}))
        told = replace(ticker, time_us=at_ns // 1000)
        return Message(text, "ticker", venue_us=told.time_us, sequence=number, rows=(told,))

    # -- recordings

    def shifted(self, data: str, by_us: int) -> str:
        """Move the written times of a recorded frame on."""
        return self.stamps.sub(lambda m: f"{m[1]}{spelt((microseconds(m[2]) + by_us) * 1000, 6)}{m[3]}", data)

    def addressed(self, s: Subscription, data: str) -> str:
        """Give a recorded frame the number it has on the connection that it is played to."""
        return re.sub(r'("sequence_num":\s*)\d+', lambda m: f"{m[1]}{self._number(s)}", data, count=1)

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded book or change of one product."""
        frame = exact(data)
        if not isinstance(frame, dict) or frame.get("channel") != "l2_data" or len(frame["events"]) != 1:
            return None
        (event,) = frame["events"]
        bids, asks = (
            tuple((u["price_level"], u["new_quantity"]) for u in event["updates"] if u["side"] == side)
            for side in ("bid", "offer")
        )
        if event["type"] == "snapshot":
            what, at = "book", frame["timestamp"]
        else:
            what, at = "change", event["updates"][-1]["event_time"] if event["updates"] else frame["timestamp"]
        number = int(frame["sequence_num"])
        return Recorded(data, event["product_id"], "orderbook", what, bids, asks, microseconds(at), number)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer the list of products, their books and their candles."""
        if self.timing.rest_limits and not self._calls.take():
            return _refusal(429, "RATE_LIMIT_EXCEEDED", "too many requests")
        if path == "api/v3/brokerage/market/products":
            rows = [self._listing(market) for market in self.markets]
            return Reply(compact({"products": rows, "num_products": len(rows), "pagination": None}))
        if path == "api/v3/brokerage/market/product_book":
            return self._rest_book(request.query.get("product_id", ""), request.query.get("limit", ""))
        if path.startswith(_PRODUCT) and path.endswith("/candles"):
            return self._rest_candles(path.removeprefix(_PRODUCT).removesuffix("/candles"), request)
        return _refusal(404, "NOT_FOUND", "no such call")

    def _rest_book(self, product: str, limit: str) -> Reply:
        if self.house(product) is None:
            return _refusal(404, "NOT_FOUND", f"product {product!r}")
        book = self.shown(product)
        if limit.isdigit():
            book = book.top(int(limit))
        at_us = now_us()
        bids, asks = ([{"price": p, "size": v} for p, v in side] for side in (book.bids, book.asks))
        body = compact(
            {"pricebook": {"product_id": product, "bids": bids, "asks": asks, "time": spelt(at_us * 1000, 6)}}
        )
        return Reply(body, books={product: Message(body, "book", book.bids, book.asks, at_us)})

    def _rest_candles(self, product: str, request: web.BaseRequest) -> Reply:
        start, end = request.query.get("start", ""), request.query.get("end", "")
        if self.house(product) is None:
            return _refusal(404, "NOT_FOUND", f"product {product!r}")
        if request.query.get("granularity") != "ONE_MINUTE" or not (start.isdigit() and end.isdigit()):
            return _refusal(400, "INVALID_ARGUMENT", "start, end and granularity=ONE_MINUTE are wanted")
        if int(end) - int(start) > 350 * 60:
            return _refusal(400, "INVALID_ARGUMENT", "start and end argument is too far apart")
        candles = [
            replace(candle, closed=False, time_us=None)
            for candle in self.tapes[product].candles(350)
            if candle.trades and int(start) <= candle.open_us // 10**6 <= int(end)
        ]
        rows = [
            {
                "start": str(c.open_us // 10**6), "low": c.low, "high": c.high, "open": c.open, "close": c.close,
                "volume": c.volume,
            }
            for c in reversed(candles)
        ]  # fmt: skip
        body = compact({"candles": rows})
        return Reply(body, books={product: Message(body, "candle", rows=tuple(candles))}, channel="candles")

    def _listing(self, market: str) -> dict[str, Any]:
        symbol, currency = market.split("-")
        product = self.product(market)
        return {
            "product_id": market, "price": self.tapes[market].ticker.last, "base_increment": "0.00000001",
            "quote_increment": "0.01", "is_disabled": False, "new": False, "status": "online", "cancel_only": False,
            "limit_only": False, "post_only": False, "trading_disabled": False, "auction_mode": False,
            "product_type": "SPOT", "quote_currency_id": currency, "base_currency_id": symbol,
            "alias": product if product != market else "", "alias_to": [], "view_only": False,
        }  # fmt: skip


def _refusal(status: int, error: str, why: str) -> Reply:
    return Reply(compact({"error": error, "error_details": why, "message": why}), status)
