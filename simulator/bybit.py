"""Bybit v5: a socket for each category, numbered differences, tickers of contracts that hold only what changed.

Simulated: `orderbook.1`, `.50`, `.200` and `.1000`, `publicTrade`, `tickers` and `kline.1` of spot, linear and inverse
markets, the REST book and the instruments. One depth a market and connection. A book that was sent 1,500 times is begun
anew, as after a restart of the service: a complete one with `u` 1.
Other candles than those of one minute are acknowledged and silent. Options, spreads and full depth are unknown topics.
"""

import itertools
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, Market, Step, now_us
from simulator.recording import Recorded, exact
from simulator.tape import Candle, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact
from simulator.window import differences

CATEGORIES = ("spot", "linear", "inverse")
DEPTHS = (1, 50, 200, 1000)
INTERVALS = ("1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W", "M")
SPOT_ARGS_MAX = 10
ARGS_LENGTH_MAX = 21_000
MESSAGES_BEFORE_RESTART = 1_500
QUARTER = {"03": "H", "06": "M", "09": "U", "12": "Z"}
MONTH = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
QUOTES = ("USDT", "USDC", "USD", "EUR", "BTC", "KRW")

SPOT = Character(depth=220, spread_ticks=2, gap_ticks=3, volume_places=6)
LINEAR = Character(depth=220, spread_ticks=2, gap_ticks=3, volume_places=3)
INVERSE = Character(depth=220, spread_ticks=2, gap_ticks=3, volume_places=0)


def category_of(market: str) -> str:
    """Tell on which socket a market in house form trades."""
    pair, _, settle = market.partition(":")
    if not settle:
        return "spot"
    return "inverse" if pair.startswith(f"{settle.partition('-')[0]}-") else "linear"


def symbol_of(market: str) -> str:
    """Spell a market in house form; the same symbol may trade in two categories."""
    pair, _, rest = market.partition(":")
    symbol, _, currency = pair.partition("-")
    settle, _, expiry = rest.partition("-")
    if not expiry:
        return f"{symbol}PERP" if settle == "USDC" else f"{symbol}{currency}"
    year, month, day = expiry[:2], expiry[2:4], expiry[4:]
    if settle == symbol:
        return f"{symbol}{currency}{QUARTER[month]}{year}"
    return f"{symbol if settle == 'USDC' else symbol + currency}-{day.lstrip('0')}{MONTH[int(month) - 1]}{year}"


def ms(time_us: int) -> int:
    """Turn microseconds into the milliseconds that are sent."""
    return time_us // 1000


@dataclass(slots=True)
class Shown:
    """One depth of one market's book, as all its subscribers have it."""

    update: int
    book: Book
    message: Message | None = None  # what the last step changed in it
    sent: int = 0


class Bybit(Venue):
    """The simulated Bybit."""

    name = "bybit"
    hosts = ("stream.bybit.com",)
    socket_path = "v5/public/spot"
    products: ClassVar[Mapping[str, tuple[str, str]]] = {
        "linear": ("v5/public/linear", ""),
        "inverse": ("v5/public/inverse", ""),
    }
    rates_hz = (5, 10)
    depth = 200
    character = SPOT
    timing = Timing(idle_s=600, rest_limits=True)
    totalled = ()
    volume = re.compile(r'(\["[^"]+",)("[^"]*")')
    surprise = '{"topic":"surprise.1.BTCUSDT","type":"snapshot","ts":1786613159749,"data":{}}'
    stamps = re.compile(r'("(?:ts|cts|T)"\s*:\s*)(\d{13})\b')

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.timing.connects_per_s is None:
            self.connects = Bucket(500, 500 / 300)
        self._calls = Bucket(600, 120)
        self._shown: dict[tuple[str, int], Shown] = {}
        self._cross = itertools.count(112_603_120_278, 7)
        self._traders = {(category_of(market), symbol_of(market)): market for market in self.markets}

    def native(self, market: str) -> str:
        """Spell a market without its category."""
        return symbol_of(market)

    def foreign(self, market: str) -> str:
        """Name another market of the same kind."""
        symbol = market.partition("-")[0]
        return market.replace(symbol, "DOGE" if symbol != "DOGE" else "XRP")

    def character_of(self, market: str) -> Character:
        """Let sizes be those of the category: coins, thousandths of them, dollars."""
        return {"spot": SPOT, "linear": LINEAR, "inverse": INVERSE}[category_of(market)]

    # -- socket

    async def received(self, c: Connection, text: str) -> None:
        """Answer a ping or a request to subscribe or unsubscribe."""
        category = c.path.rpartition("/")[2]
        try:
            request = json.loads(text)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            self._answer(c, category, "", None, "Request format error")
            return
        op, name, topics = request.get("op"), request.get("req_id"), request.get("args")
        if op == "ping":
            if not c.muted():
                self._answer(c, category, "ping", name, None)
        elif op not in ("subscribe", "unsubscribe"):
            self._answer(c, category, str(op), name, f"unknown op: {op}")
        elif not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
            self._answer(c, category, op, name, "Params Error")
        elif op == "unsubscribe":
            self._unsubscribe(c, category, topics)
            self._answer(c, category, op, name, None)
        else:
            self._subscribe(c, category, topics, name)

    def _answer(self, c: Connection, category: str, op: str, name: Any, refused: str | None) -> None:
        said = "pong" if op == "ping" else op if category == "spot" else ""
        answer = {"success": refused is None, "ret_msg": said if refused is None else refused, "conn_id": f"sim-{c.id}"}
        if name is not None or category != "spot":
            answer["req_id"] = "" if name is None else str(name)
        c.say(compact({**answer, "op": op}))

    def _subscribe(self, c: Connection, category: str, topics: list[str], name: Any) -> None:
        taken: int = c.memory.get("length", 0)
        if category == "spot" and len(topics) > SPOT_ARGS_MAX:
            return self._answer(c, category, "subscribe", name, f"args size >{SPOT_ARGS_MAX}")
        if taken + sum(map(len, topics)) > ARGS_LENGTH_MAX:
            return self._answer(c, category, "subscribe", name, "args length is too long")
        wanted: list[tuple[str, str, str, dict[str, Any]]] = []
        for topic in topics:
            found = self._topic(category, topic)
            if found is None:
                return self._answer(c, category, "subscribe", name, f"error:handler not found,topic:{topic}")
            if found[:2] in c.subscriptions or found[:2] in [other[:2] for other in wanted]:
                return self._answer(c, category, "subscribe", name, f"error:already subscribed,topic:{topic}")
            wanted.append(found)
        c.memory["length"] = taken + sum(map(len, topics))
        self._answer(c, category, "subscribe", name, None)
        return self.subscribed(c, [c.subscribe(*each) for each in wanted])

    def _unsubscribe(self, c: Connection, category: str, topics: list[str]) -> None:
        for topic in topics:
            found = self._topic(category, topic)
            if found is not None and found[:2] in c.subscriptions:
                del c.subscriptions[found[:2]]
                c.memory["length"] -= len(topic)

    def _topic(self, category: str, topic: str) -> tuple[str, str, str, dict[str, Any]] | None:
        """Understand a topic: channel, market, spelling and options; None for one that is not served."""
        kind, _, symbol = topic.rpartition(".")
        market = self._traders.get((category, symbol))
        if market is None:
            return None
        head, _, detail = kind.partition(".")
        if head == "orderbook" and detail.isdigit() and int(detail) in DEPTHS:
            return "orderbook", market, topic, {"depth": int(detail)}
        if head == "kline" and detail in INTERVALS:
            return "candles" if detail == "1" else f"kline.{detail}", market, topic, {}
        channel = {"publicTrade": "trades", "tickers": "ticker"}.get(kind)
        return None if channel is None else (channel, market, topic, {})

    # -- books

    def _look(self, market: str, depth: int) -> Shown:
        """Find one depth of a market's book; its numbers begin with its first subscriber."""
        known = self._shown.get((market, depth))
        if known is None:
            update = 72_000_000 + len(self._shown) * 1_000_003
            known = self._shown[market, depth] = Shown(update, self.shown(market).top(depth))
        return known

    def stepped(self, market: Market, step: Step) -> None:
        """Number what changed in each depth that anybody follows."""
        for (name, depth), shown in self._shown.items():
            if name != market.name:
                continue
            before, shown.book = shown.book, step.book.top(depth)
            bids, asks = (side.levels() for side in differences(before, shown.book))
            shown.message = None
            if not bids and not asks:
                continue
            shown.sent += 1
            shown.update = 1 if shown.sent % MESSAGES_BEFORE_RESTART == 0 else shown.update + 1
            if depth == 1 or shown.update == 1:
                shown.message = self._whole(name, depth, shown)
            else:
                shown.message = self._spelled(name, depth, "delta", bids, asks, shown)

    def _whole(self, market: str, depth: int, shown: Shown) -> Message:
        return self._spelled(market, depth, "snapshot", shown.book.bids, shown.book.asks, shown)

    def _spelled(
        self, market: str, depth: int, kind: str, bids: tuple[Level, ...], asks: tuple[Level, ...], shown: Shown
    ) -> Message:
        matched = ms(shown.book.time_us)
        data = {"s": symbol_of(market), "b": bids, "a": asks, "u": shown.update, "seq": next(self._cross)}
        text = self._frame(market, f"orderbook.{depth}", kind, data, matched + 1, {"cts": matched})
        what = "book" if kind == "snapshot" else "change"
        return Message(text, what, bids, asks, matched * 1000, shown.update)

    def _frame(
        self, market: str, topic: str, kind: str, data: Any, told: int, more: dict[str, Any] | None = None
    ) -> str:
        """Put a frame together: spot has the time before the type, the others have it after."""
        when: dict[str, Any] = (
            {"ts": told, "type": kind} if category_of(market) == "spot" else {"type": kind, "ts": told}
        )
        return compact({"topic": f"{topic}.{symbol_of(market)}", **when, "data": data, **(more or {})})

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell the complete book at the depth that was asked for."""
        return self._whole(s.market, s.options["depth"], self._look(s.market, s.options["depth"]))

    def updates(self, s: Subscription, step: Step) -> Sequence[Message]:
        """Send what the step changed in the levels that this subscriber sees, numbered the same for everybody."""
        message = self._look(s.market, s.options["depth"]).message
        return [] if message is None else [message]

    def sample(self, s: Subscription) -> str:
        """Give a change that was sent before, to be spoiled."""
        shown = self._look(s.market, s.options["depth"])
        return str(self._spelled(s.market, s.options["depth"], "delta", shown.book.bids[:1], (), shown).data)

    # -- other channels

    def trade_frames(self, s: Subscription, trades: Sequence[Trade]) -> Sequence[Message]:
        """Spell the trades of a step in one frame."""
        spot = category_of(s.market) == "spot"
        sent = tuple(replace(t, id=self._trade_id(s.market, t), time_us=ms(t.time_us) * 1000) for t in trades)
        rows = [
            {
                "T": ms(t.time_us), "s": symbol_of(s.market), "S": t.side.capitalize(), "v": t.volume, "p": t.price,
                **({} if spot else {"L": "PlusTick"}), "i": t.id, "BT": False, "RPI": False, "seq": next(self._cross),
            }
            for t in sent
        ]  # fmt: skip
        told = ms(sent[-1].time_us) + 1
        return [Message(self._frame(s.market, "publicTrade", "snapshot", rows, told), "trade", rows=sent)]

    def _trade_id(self, market: str, trade: Trade) -> str:
        if category_of(market) == "spot":
            return str(2_290_000_000_000_000_000 + int(trade.id))
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{market}/{trade.id}"))

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message | None:
        """Spell a ticker: of spot whole and without the touch, of contracts whole only at first."""
        told = ms(ticker.time_us or now_us())
        if category_of(s.market) == "spot":
            row = self._day(ticker, {"volume24h": ticker.volume, "turnover24h": ticker.turnover})
            meaning = replace(ticker, bid=None, ask=None, time_us=told * 1000)
            return Message(self._ticker_text(s, "snapshot", row, told), "ticker", rows=(meaning,))
        amounts = {"volume24h": ticker.volume, "turnover24h": ticker.turnover}
        volume = ticker.volume
        if category_of(s.market) == "inverse":
            volume = amounts["turnover24h"] = _quotient(ticker.volume or "0", ticker.last or "1")
        touch = {
            "bid1Price": ticker.bid, "bid1Size": ticker.bid_volume,
            "ask1Price": ticker.ask, "ask1Size": ticker.ask_volume,
        }  # fmt: skip
        row = self._day(ticker, amounts) | touch
        before: dict[str, Any] | None = s.options.get("ticker")
        changed = row if before is None else {key: value for key, value in row.items() if before[key] != value}
        s.options["ticker"] = row
        if not changed:
            return None
        text = self._ticker_text(s, "snapshot" if before is None else "delta", changed, told)
        return Message(text, "ticker", rows=(replace(ticker, volume=volume, time_us=told * 1000),))

    def _day(self, ticker: Ticker, amounts: dict[str, str | None]) -> dict[str, str | None]:
        prices = {"lastPrice": ticker.last, "highPrice24h": ticker.high, "lowPrice24h": ticker.low}
        return {**prices, "prevPrice24h": ticker.open, **amounts}

    def _ticker_text(self, s: Subscription, kind: str, row: dict[str, Any], told: int) -> str:
        data, cross = {"symbol": symbol_of(s.market), **row}, next(self._cross)
        topic = f"tickers.{symbol_of(s.market)}"
        if category_of(s.market) == "spot":
            return compact({"topic": topic, "ts": told, "type": kind, "cs": cross, "data": data})
        return compact({"topic": topic, "type": kind, "data": data, "cs": cross, "ts": told})

    def candle_frame(self, s: Subscription, candle: Candle) -> Message:
        """Spell a candle; `confirm` says that its minute is over."""
        began, matched = ms(candle.open_us), ms(candle.time_us or candle.open_us)
        turnover, volume = candle.turnover, candle.volume
        if category_of(s.market) == "inverse":
            volume = turnover = _quotient(candle.volume, candle.close)
        row = {
            "start": began, "end": began + 59_999, "interval": "1", "open": candle.open, "close": candle.close,
            "high": candle.high, "low": candle.low, "volume": candle.volume, "turnover": turnover,
            "confirm": candle.closed, "timestamp": matched,
        }  # fmt: skip
        text = compact(
            {"topic": f"kline.1.{symbol_of(s.market)}", "data": [row], "ts": ms(now_us()), "type": "snapshot"}
        )
        return Message(text, "candle", rows=(replace(candle, volume=volume, time_us=matched * 1000),))

    # -- recordings

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded book; its category shows in the order of its keys."""
        frame = exact(data)
        topic = frame.get("topic", "") if isinstance(frame, dict) else ""
        if not topic.startswith("orderbook."):
            return None
        row, symbol = frame["data"], topic.rpartition(".")[2]
        currency = next(quote for quote in QUOTES if symbol.endswith(quote))
        market = f"{symbol.removesuffix(currency)}-{currency}"
        if list(frame)[1] == "type":
            market += f":{currency}" if currency != "USD" else f":{symbol.removesuffix(currency)}"
        bids, asks = (tuple((price, volume) for price, volume in row[side]) for side in "ba")
        what = "book" if frame["type"] == "snapshot" or row["u"] == "1" else "change"
        matched_us = int(frame.get("cts", frame["ts"])) * 1000
        return Recorded(data, market, "orderbook", what, bids, asks, matched_us, int(row["u"]))

    def addressed(self, s: Subscription, data: str) -> str:
        """Name the depth that the client asked for."""
        return re.sub(r'("topic"\s*:\s*"orderbook\.)\d+', rf"\g<1>{s.options['depth']}", data, count=1)

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer `/v5/market/orderbook`, `instruments-info` and `time`; errors have status 200, limits 403."""
        if self.timing.rest_limits and not self._calls.take():
            return Reply('{"retCode":10006,"retMsg":"access too frequent"}', 403)
        category = request.query.get("category", "")
        match path:
            case "v5/market/time":
                return self._result({"timeSecond": str(now_us() // 10**6)})
            case "v5/market/orderbook" | "v5/market/instruments-info" if category not in CATEGORIES:
                return self._refusal(10001, "params error: Category is invalid")
            case "v5/market/orderbook":
                return self._rest_book(category, request.query.get("symbol", ""), request.query.get("limit", ""))
            case "v5/market/instruments-info":
                return self._instruments(category, request.query.get("limit", "500"))
            case _:
                return Reply("", 404, content_type="text/plain")

    def _result(self, result: dict[str, Any], books: dict[str, Message] | None = None) -> Reply:
        body = {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": ms(now_us())}
        return Reply(compact(body), books={m: replace(b, data=compact(body)) for m, b in (books or {}).items()})

    def _refusal(self, code: int, text: str) -> Reply:
        body = {"retCode": code, "retMsg": text, "result": {}, "retExtInfo": {}, "time": ms(now_us())}
        return Reply(compact(body))

    def _rest_book(self, category: str, symbol: str, limit: str) -> Reply:
        market = self._traders.get((category, symbol))
        if market is None:
            return self._refusal(10001, "Not supported symbols")
        most = int(limit) if limit.isdigit() and 1 <= int(limit) <= 1000 else 1 if category == "spot" else 25
        book, numbered = self.shown(market).top(most), self._look(market, 1000)
        matched = ms(book.time_us)
        row = {
            "s": symbol, "b": book.bids, "a": book.asks, "ts": matched + 1, "u": numbered.update,
            "seq": next(self._cross), "cts": matched,
        }  # fmt: skip
        return self._result(row, {market: Message("", "book", book.bids, book.asks, (matched + 1) * 1000)})

    def _instruments(self, category: str, limit: str) -> Reply:
        rows = [self._instrument(market) for market in self.markets if category_of(market) == category]
        if category == "spot":
            return self._result({"category": category, "list": rows})
        most = int(limit) if limit.isdigit() else 500
        more = "more" if len(rows) > most else ""
        return self._result({"category": category, "list": rows[:most], "nextPageCursor": more})

    def _instrument(self, market: str) -> dict[str, Any]:
        pair, _, rest = market.partition(":")
        symbol, _, currency = pair.partition("-")
        row = {"symbol": symbol_of(market), "baseCoin": symbol, "quoteCoin": currency, "status": "Trading"}
        if not rest:
            return row
        settle, _, expiry = rest.partition("-")
        kind = category_of(market).capitalize() + ("Futures" if expiry else "Perpetual")
        delivery = f"20{expiry[:2]}-{expiry[2:4]}-{expiry[4:]}T08:00:00+00:00" if expiry else ""
        return {**row, "contractType": kind, "settleCoin": settle, "deliveryTime": _ms_of(delivery)}


def _ms_of(moment: str) -> str:
    return str(int(datetime.fromisoformat(moment).timestamp()) * 1000) if moment else "0"


def _quotient(dollars: str, price: str) -> str:
    """Turn dollars into coins, to eight places."""
    return f"{Decimal(dollars) / Decimal(price):.8f}"
