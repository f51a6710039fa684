"""Upbit as of 2026: whole books of 30 pairs in binary frames, no acknowledgements, silence for what it does not know.

Simulated: order books, trades, tickers and candles of one minute (`DEFAULT`, `SIMPLE` and their list forms), the REST
order book and market list. A candle is told with every trade and not at most once a second; subscriptions to candles of
other lengths are accepted and stay silent. A `level` other than 0 is served with silence, as the venue does for levels
a pair does not support.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, now_us, total
from simulator.recording import Recorded, exact, real
from simulator.tape import KEPT, Candle, News, Row, Ticker, Trade
from simulator.venue import Bucket, Reply, Timing, Venue, compact

SHORT = {
    "type": "ty", "code": "cd", "timestamp": "tms", "total_ask_size": "tas", "total_bid_size": "tbs",
    "orderbook_units": "obu", "ask_price": "ap", "bid_price": "bp", "ask_size": "as", "bid_size": "bs",
    "stream_type": "st", "level": "lv", "opening_price": "op", "high_price": "hp", "low_price": "lp",
    "trade_price": "tp", "prev_closing_price": "pcp", "change": "c", "change_price": "cp", "trade_volume": "tv",
    "ask_bid": "ab", "trade_date": "td", "trade_time": "ttm", "trade_timestamp": "ttms", "sequential_id": "sid",
    "best_ask_price": "bap", "best_ask_size": "bas", "best_bid_price": "bbp", "best_bid_size": "bbs",
    "signed_change_price": "scp", "change_rate": "cr", "signed_change_rate": "scr", "acc_trade_price": "atp",
    "acc_trade_volume": "atv", "acc_trade_price_24h": "atp24h", "acc_trade_volume_24h": "atv24h",
    "acc_ask_volume": "aav", "acc_bid_volume": "abv", "highest_52_week_price": "h52wp",
    "highest_52_week_date": "h52wdt", "lowest_52_week_price": "l52wp", "lowest_52_week_date": "l52wdt",
    "market_state": "ms", "is_trading_suspended": "its", "delisting_date": "dd", "market_warning": "mw",
    "candle_date_time_utc": "cdttmu", "candle_date_time_kst": "cdttmk", "candle_acc_trade_price": "catp",
    "candle_acc_trade_volume": "catv",
}  # fmt: skip
# What the collector calls the channels it knows; others keep the name they have here.
CHANNEL_OF = {"trade": "trades", "candle.1m": "candles"}
LONG = {short: name for name, short in SHORT.items()} | {"tdt": "trade_date"}
SIDES = {"buy": "BID", "sell": "ASK"}
NO_TICKET = "티켓이 존재하지 않거나, 유효하지 않습니다."
WRONG_FORMAT = "Format 이 맞지 않습니다."
MISSING_PARAMETER = "Missing request parameter error. Check the required parameters!"


class BadRequest(Exception):
    """What a subscription is refused with: an error name and its message."""


def as_double(price: str) -> str:
    """Spell a price as the socket's DEFAULT format does, like a Java double: 1.16539E8, 3000.0, 7.9276E-4."""
    whole, _, fraction = price.partition(".")
    digits = (whole + fraction).strip("0") or "0"
    if len(whole) > 7:
        return f"{digits[0]}.{digits[1:] or '0'}E{len(whole) - 1}"
    if whole == "0" and fraction.startswith("000"):
        return f"{digits[0]}.{digits[1:] or '0'}E-{len(fraction) - len(fraction.lstrip('0')) + 1}"
    return price if fraction else f"{whole}.0"


def padded(size: str) -> str:
    """Spell a size with its eight places: 0.00077720."""
    whole, _, fraction = size.partition(".")
    return f"{whole}.{fraction.ljust(8, '0')}"


def as_small(size: str) -> str:
    """Spell a size as SIMPLE does: plain, but with an exponent below a thousandth."""
    return as_double(size) if size.startswith("0.000") else size


def respelled(text: str, spelling: str) -> str:
    """Shorten the keys of a DEFAULT frame or put it into a list, as the format asks."""
    if spelling.startswith("SIMPLE"):
        text = re.sub(r'"(\w+)":', lambda m: f'"{SHORT[m[1]]}":', text)
    return f"[{text}]" if spelling.endswith("LIST") else text


def moment(at_us: int, ahead_h: int = 0) -> datetime:
    """Return a time as a clock shows it that is so many hours ahead of UTC: nine in Korea."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC) + timedelta(hours=ahead_h)


def spelled(told: dict[str, Any], keys: Sequence[str]) -> str:
    """Spell values that are JSON already as an object, in this order."""
    return "{" + ",".join(f'"{key}":{told[key]}' for key in keys) + "}"


def either(row: dict[str, str], key: str) -> str:
    """Look a value up by its long or its short key."""
    return row[key] if key in row else row[SHORT[key]]


class Upbit(Venue):
    """The simulated Upbit."""

    name = "upbit"
    hosts = ("api.upbit.com",)
    socket_path = "websocket/v1"
    compresses = True
    rates_hz = (10, 10)
    depths: tuple[int, ...] = (1, 5, 15, 30)
    types = re.compile(r"orderbook|trade|ticker|candle\.(1s|(1|3|5|10|15|30|60|240)m)")
    delisting = "null"  # how a market that stays is told
    ticker_keys: tuple[str, ...] = (
        "type", "code", "opening_price", "high_price", "low_price", "trade_price", "prev_closing_price",
        "acc_trade_price", "change", "change_price", "signed_change_price", "change_rate", "signed_change_rate",
        "ask_bid", "trade_volume", "acc_trade_volume", "trade_date", "trade_time", "trade_timestamp", "acc_ask_volume",
        "acc_bid_volume", "highest_52_week_price", "highest_52_week_date", "lowest_52_week_price",
        "lowest_52_week_date", "market_state", "is_trading_suspended", "delisting_date", "market_warning", "timestamp",
        "acc_trade_price_24h", "acc_trade_volume_24h", "stream_type",
    )  # fmt: skip
    character = Character(depth=32, spread_ticks=2, gap_ticks=4)
    timing = Timing(idle_s=60, status_s=10, error_close_s=0.15, connects_per_s=5, rest_limits=True)
    snapshot_only: tuple[str, ...] = ("is_only_snapshot", "isOnlySnapshot")
    realtime_only: tuple[str, ...] = ("is_only_realtime", "isOnlyRealtime")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = {group: Bucket(10, 10) for group in ("orderbook", "market")}
        self.browser_calls = Bucket(1, 0.1)
        self._refusals = 0

    def sends_bytes(self) -> bool:
        """Upbit's frames are binary."""
        return True

    # -- socket

    async def received(self, c: Connection, text: str) -> None:
        """Answer PING, a subscription (which replaces the one before) or a question what is subscribed."""
        if text == "PING":
            if not c.memory.get("status"):
                c.memory["status"] = True
                c.start(self._say_up(c))
            return
        try:
            self._subscribe(c, self._parsed(text))
        except BadRequest as refused:
            c.say(self.error(*refused.args))
            c.close_later(self.timing.error_close_s or 0, 1000, refused.args[0])

    async def _say_up(self, c: Connection) -> None:
        while True:
            if not c.muted():
                c.say(b'{"status":"UP"}')
            await asyncio.sleep(self.timing.status_s or 10)

    def error(self, name: str, message: str) -> bytes:
        """Spell an error frame."""
        body = {"message": message, "name": name} if name != "NO_TICKET" else {"name": name, "message": message}
        return compact({"error": body}).encode()

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        try:
            request = json.loads(text)
        except ValueError:
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT) from None
        if not isinstance(request, list) or not all(isinstance(part, dict) for part in request):
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT)
        if not any(isinstance(part.get("ticket"), str) and part["ticket"] for part in request):
            raise BadRequest("NO_TICKET", NO_TICKET)
        return request

    def _subscribe(self, c: Connection, request: list[dict[str, Any]]) -> None:
        if any(part.get("method") == "LIST_SUBSCRIPTIONS" for part in request):
            c.say(self._listed(c, next(part["ticket"] for part in request if "ticket" in part)))
            return
        channels = [part for part in request if "type" in part]
        if not channels:
            raise BadRequest("NO_TYPE", "타입이 존재하지 않습니다.")
        spelling = self.spelling([part["format"] for part in request if "format" in part])
        wanted: list[tuple[str, str, str, dict[str, Any]]] = []
        for part in channels:
            wanted += self._channel(part, spelling)
        kept = {(channel, market) for channel, market, _, _ in wanted}
        c.subscriptions = {k: s for k, s in c.subscriptions.items() if k in kept}
        self.subscribed(c, [c.subscribe(*item) for item in wanted])

    def spelling(self, formats: list[Any]) -> str:
        """Choose the format of the frames; an unknown one is refused."""
        if not formats:
            return "DEFAULT"
        if formats[-1] not in ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"):
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT)
        return str(formats[-1])

    def _channel(self, part: dict[str, Any], spelling: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        kind, codes = part["type"], part.get("codes")
        if not isinstance(kind, str) or not self.types.fullmatch(kind):
            raise BadRequest("INVALID_PARAM", f"{kind} 은 지원하지 않는 타입입니다.")
        if not codes:
            raise BadRequest("NO_CODES", "코드가 존재하지 않습니다.")
        if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT)
        if not self.level_served(part.get("level", 0)):
            return []
        options = {
            "type": kind,
            "format": spelling,
            "snapshot_only": any(part.get(key) is True for key in self.snapshot_only),
            "realtime_only": any(part.get(key) is True for key in self.realtime_only),
        }
        found = []
        for spelled in codes:
            code, _, count = spelled.partition(".")
            market = self.house(code)
            if market is not None:  # an unknown code is met with silence, the others are served
                depth = int(count) if count.isdigit() and int(count) in self.depths else self.depths[-1]
                found.append((CHANNEL_OF.get(kind, kind), market, code, {**options, "depth": depth}))
        return found

    def level_served(self, level: Any) -> bool:
        """Tell whether books of this grouping are served; here others than 0 get silence."""
        return level in (0, None)

    def _listed(self, c: Connection, ticket: str) -> bytes:
        result = [{"type": s.options["type"], "codes": [s.code]} for s in c.subscriptions.values()]
        return compact({"method": "LIST_SUBSCRIPTIONS", "result": result, "ticket": ticket}).encode()

    def subscribed(self, c: Connection, subscriptions: Any) -> None:
        """Leave out the snapshot where only changes were asked for."""
        wanted = [(s, new) for s, new in subscriptions if self.recording or not s.options["realtime_only"]]
        super().subscribed(c, wanted)

    def opening(self, s: Subscription, fresh: bool) -> Sequence[Message]:
        """Send the latest trade again, the ticker, or the newest candle that has a trade."""
        tape = self.tapes[s.market]
        match s.channel:
            case "trades":
                return [self._trade(s, tape.trades[-1], "SNAPSHOT")]
            case "ticker":
                return [self._ticker(s, tape.ticker, "SNAPSHOT")]
            case "candles":
                traded = [candle for candle in tape.candles(KEPT) if candle.trades]
                return [self._candle(s, candle, "SNAPSHOT") for candle in traded[-1:]]
        return []

    def news(self, s: Subscription, news: News) -> Sequence[Message]:
        """Send nothing more where only the snapshot was asked for."""
        return [] if s.options["snapshot_only"] else super().news(s, news)

    def updates(self, s: Subscription, step: Any) -> list[Message]:
        """Send every book that differs from the one before, unless only the snapshot was asked for."""
        worth_telling = step.changes or self.character.repeats
        return [self.book_frame(s, step.book, False)] if worth_telling and not s.options["snapshot_only"] else []

    # -- frames

    def book_frame(self, s: Subscription, book: Book, first: bool) -> Message:
        """Spell a book; a thin side is filled up with price 0 and size 0."""
        depth, spelling = s.options["depth"], s.options["format"]
        bids, asks = book.bids[:depth], book.asks[:depth]
        simple = spelling.startswith("SIMPLE")
        price, size = (str, as_small) if simple else (as_double, padded)
        stream = "SNAPSHOT" if first else "REALTIME"
        text = (
            f'{{"type":"orderbook","code":"{s.code}","timestamp":{book.time_us // 1000},'
            f'"total_ask_size":{size(total(asks))},"total_bid_size":{size(total(bids))},'
            f'"orderbook_units":[{self.pairs(bids, asks, depth, price, size)}],"stream_type":"{stream}","level":0}}'
        )
        return Message(respelled(text, spelling).encode(), "book", bids, asks, book.time_us // 1000 * 1000)

    def trade_frame(self, s: Subscription, trade: Trade) -> Message:
        """Spell a trade."""
        return self._trade(s, trade, "REALTIME")

    def ticker_frame(self, s: Subscription, ticker: Ticker) -> Message:
        """Spell a ticker, which has no best bid or ask."""
        return self._ticker(s, ticker, "REALTIME")

    def candle_frame(self, s: Subscription, candle: Candle) -> Message | None:
        """Spell the candle that is forming; nothing says that one is closed, and one without trades is not told."""
        return None if candle.closed or not candle.trades else self._candle(s, candle, "REALTIME")

    def _trade(self, s: Subscription, trade: Trade, stream: str) -> Message:
        price, size = self._spelling_of(s)
        at, ms = moment(trade.time_us), trade.time_us // 1000
        number = self.number(trade)
        bid, ask = self.shown(s.market).bids[:1], self.shown(s.market).asks[:1]
        touch = "".join(
            f'"best_{side}_price":{price(levels[0][0])},"best_{side}_size":{size(levels[0][1])},'
            for side, levels in (("ask", ask), ("bid", bid))
            if levels
        )
        text = (
            f'{{"type":"trade","code":"{s.code}","timestamp":{now_us() // 1000},"trade_date":"{at:%Y-%m-%d}",'
            f'"trade_time":"{at:%H:%M:%S}","trade_timestamp":{ms},"trade_price":{price(trade.price)},'
            f'"trade_volume":{size(trade.volume)},"ask_bid":"{SIDES[trade.side]}",'
            f'"prev_closing_price":{price(trade.price)},"change":"EVEN","change_price":0,"sequential_id":{number},'
            f'{touch}"stream_type":"{stream}"}}'
        )
        data = respelled(text, s.options["format"]).encode()
        return Message(data, "trade", rows=(replace(trade, id=number, time_us=ms * 1000),))

    def number(self, trade: Trade) -> int:
        """Number a trade as the venue does: its millisecond and four digits, unique and no order."""
        return trade.time_us // 1000 * 10_000 + int(trade.id) * 7919 % 10_000

    def _ticker(self, s: Subscription, ticker: Ticker, stream: str) -> Message:
        figures = self.ticker_figures(s.market, ticker, *self._spelling_of(s))
        ms = (ticker.time_us or 0) // 1000
        told = {"type": '"ticker"', "code": f'"{s.code}"', **figures, "timestamp": ms, "stream_type": f'"{stream}"'}
        text = spelled(told, self.ticker_keys)
        # The date is the only key that is short in another way than a trade's.
        data = respelled(text, s.options["format"]).replace('"td":', '"tdt":').encode()
        return Message(data, "ticker", rows=(replace(ticker, bid=None, ask=None, time_us=ms * 1000),))

    def ticker_figures(self, market: str, ticker: Ticker, price: Any, size: Any) -> dict[str, Any]:
        """Spell the figures that the socket and REST share."""
        last = self.tapes[market].trades[-1]
        at = self.ticker_moment(last.time_us)
        return {
            "opening_price": price(ticker.open), "high_price": price(ticker.high), "low_price": price(ticker.low),
            "trade_price": price(str(ticker.last)), "prev_closing_price": price(ticker.open), "change": '"EVEN"',
            "change_price": 0, "signed_change_price": 0, "change_rate": 0, "signed_change_rate": 0,
            "ask_bid": f'"{SIDES[last.side]}"', "trade_volume": size(last.volume),
            "acc_trade_volume": size(str(ticker.volume)), "acc_trade_volume_24h": size(str(ticker.volume)),
            "acc_trade_price": ticker.turnover, "acc_trade_price_24h": ticker.turnover,
            "trade_date": f'"{at:%Y%m%d}"', "trade_time": f'"{at:%H%M%S}"', "trade_timestamp": last.time_us // 1000,
            "acc_ask_volume": size(str(ticker.volume)), "acc_bid_volume": 0,
            "highest_52_week_price": price(ticker.high), "highest_52_week_date": f'"{at:%Y-%m-%d}"',
            "lowest_52_week_price": price(ticker.low), "lowest_52_week_date": f'"{at:%Y-%m-%d}"',
            "market_state": '"ACTIVE"', "is_trading_suspended": "false", "delisting_date": self.delisting,
            "market_warning": '"NONE"',
        }  # fmt: skip

    def ticker_moment(self, at_us: int) -> datetime:
        """Return what date and time a ticker of the socket shows: UTC."""
        return moment(at_us)

    def _candle(self, s: Subscription, candle: Candle, stream: str) -> Message:
        figures = self.candle_figures(candle, *self._spelling_of(s))
        told = {"type": '"candle.1m"', "code": f'"{s.code}"', **figures, "stream_type": f'"{stream}"'}
        data = respelled(spelled(told, tuple(told)), s.options["format"]).encode()
        return Message(data, "candle", rows=(replace(candle, closed=False, time_us=figures["timestamp"] * 1000),))

    def candle_figures(self, candle: Candle, price: Any, size: Any) -> dict[str, Any]:
        """Spell the figures that the socket and REST share."""
        return {
            "candle_date_time_utc": f'"{moment(candle.open_us):%Y-%m-%dT%H:%M:%S}"',
            "candle_date_time_kst": f'"{moment(candle.open_us, 9):%Y-%m-%dT%H:%M:%S}"',
            "opening_price": price(candle.open), "high_price": price(candle.high), "low_price": price(candle.low),
            "trade_price": price(candle.close), "candle_acc_trade_volume": size(candle.volume),
            "candle_acc_trade_price": candle.turnover, "timestamp": (candle.time_us or 0) // 1000,
        }  # fmt: skip

    def _spelling_of(self, s: Subscription) -> tuple[Any, Any]:
        """Return how this subscription has its prices and sizes spelled."""
        return (str, as_small) if s.options["format"].startswith("SIMPLE") else (as_double, padded)

    def pairs(self, bids: tuple[Level, ...], asks: tuple[Level, ...], depth: int, price: Any, size: Any) -> str:
        """Spell the levels side by side, padding the thinner side."""
        pad = (("0", "0"),) * depth
        rows = zip((asks + pad)[:depth], (bids + pad)[:depth], strict=True)
        return ",".join(
            f'{{"ask_price":{price(ap) if ap != "0" else 0},"bid_price":{price(bp) if bp != "0" else 0},'
            f'"ask_size":{size(av) if ap != "0" else 0},"bid_size":{size(bv) if bp != "0" else 0}}}'
            for (ap, av), (bp, bv) in rows
        )

    def corrupt_total(self, data: str | bytes) -> str | bytes:
        """Add one to the declared total of the asks."""
        text = data.decode() if isinstance(data, bytes) else data
        wrong = re.sub(r'("total_ask_size":|"tas":)(\d*)', lambda m: f"{m[1]}{int(m[2]) + 1}", text, count=1)
        return wrong.encode() if isinstance(data, bytes) else wrong

    @classmethod
    def recorded(cls, data: str) -> Recorded | None:
        """Understand a recorded frame in long or short keys, alone or in a list."""
        frame = exact(data)
        if isinstance(frame, list):
            frame = frame[0] if len(frame) == 1 else None
        if not isinstance(frame, dict):
            return None
        kind, code = frame.get("type", frame.get("ty")), frame.get("code", frame.get("cd"))
        if kind is None or code is None:
            return None
        currency, _, symbol = code.partition("-")
        stamp = frame.get("timestamp", frame.get("tms"))
        venue_us = None if stamp is None else int(stamp) * (1 if len(stamp) > 13 else 1000)
        if kind != "orderbook":
            what = str({"candle.1m": "candle"}.get(kind, kind))
            rows = cls.recorded_rows(what, {str(LONG.get(key, key)): value for key, value in frame.items()}, venue_us)
            channel = str(CHANNEL_OF.get(kind, kind))
            return Recorded(data, f"{symbol}-{currency}", channel, what, venue_us=venue_us, rows=rows)
        units: list[dict[str, str]] = frame["orderbook_units"] if "orderbook_units" in frame else frame["obu"]
        bids = real([(either(row, "bid_price"), either(row, "bid_size")) for row in units])
        asks = real([(either(row, "ask_price"), either(row, "ask_size")) for row in units])
        return Recorded(data, f"{symbol}-{currency}", "orderbook", "book", bids, asks, venue_us)

    @classmethod
    def recorded_rows(cls, what: str, frame: dict[str, str], venue_us: int | None) -> tuple[Row, ...]:
        """Tell what a recorded trade, ticker or candle means; nothing where its publisher cut it."""
        try:
            if what == "trade":
                side = "buy" if frame["ask_bid"] == "BID" else "sell"
                at_us = int(frame["trade_timestamp"]) * 1000
                return (Trade(frame["sequential_id"], side, frame["trade_price"], frame["trade_volume"], at_us),)
            if what == "ticker":
                return (Ticker(frame["trade_price"], None, None, frame["acc_trade_volume_24h"], venue_us),)
            if what == "candle":
                began = datetime.fromisoformat(frame["candle_date_time_utc"]).replace(tzinfo=UTC)
                first, high, low, last = (frame[f"{name}_price"] for name in ("opening", "high", "low", "trade"))
                open_us, volume = int(began.timestamp()) * 1_000_000, frame["candle_acc_trade_volume"]
                return (Candle(open_us, first, high, low, last, volume, time_us=venue_us),)
        except KeyError:
            return ()
        return ()

    # -- REST

    def rest(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer `/v1/orderbook` and `/v1/market/all`."""
        group = {"v1/orderbook": "orderbook", "v1/market/all": "market"}.get(path)
        if group is None or request.method != "GET":
            return self.refusal(404, "not_found", "no Route matched with those values")
        asked = request.query.get("markets", "")
        if (refused := self.limited(group, "Origin" in request.headers)) is not None:
            markets = tuple(m for code in asked.upper().split(",") if (m := self.house(code)))
            return Reply(refused.body, refused.status, asked=markets if group == "orderbook" else ())
        headers = {"remaining-req": f"group={group}; min=600; sec={self.calls[group].left}"}
        if group == "market":
            detailed = request.query.get("is_details") == "true"
            return Reply(compact([self.listing(m, detailed) for m in self.markets]), headers=headers)
        count = request.query.get("count", "30")
        if not asked:
            return self.refusal(400, 400, MISSING_PARAMETER)
        if not count.isdigit():
            return self.refusal(400, 400, "Type mismatch error. Check the parameters type!")
        found = [self.house(code) for code in asked.upper().split(",")]
        markets = tuple(m for m in found if m is not None)
        if len(markets) < len(found):
            return self.refusal(404, 404, "Code not found")
        depth = min(int(count), 30) or 30
        books = {m: self.rest_book(m, depth) for m in markets}
        return Reply(f"[{','.join(str(b.data) for b in books.values())}]", books=books, headers=headers)

    def refusal(self, status: int, name: int | str, message: str) -> Reply:
        """Spell a REST error."""
        return Reply(compact({"error": {"name": name, "message": message}}), status)

    def limited(self, group: str, from_browser: bool) -> Reply | None:
        """Refuse what exceeds the limits: 429, and 418 for those who go on. The bodies are unverified."""
        if not self.timing.rest_limits:
            return None
        if self.calls[group].take() and (not from_browser or self.browser_calls.take()):
            self._refusals = 0
            return None
        self._refusals += 1
        return self.refusal(418 if self._refusals > 10 else 429, "too_many_requests", "Too many API requests.")

    def listing(self, market: str, detailed: bool) -> dict[str, Any]:
        """Describe a market for the market list."""
        symbol = market.split("-")[0]
        row: dict[str, Any] = {"market": self.native(market), "korean_name": symbol, "english_name": symbol}
        if detailed:
            cautions = ("PRICE_FLUCTUATIONS", "TRADING_VOLUME_SOARING", "DEPOSIT_AMOUNT_SOARING")
            more = ("GLOBAL_PRICE_DIFFERENCES", "CONCENTRATION_OF_SMALL_ACCOUNTS")
            row["market_event"] = {"warning": False, "caution": dict.fromkeys(cautions + more, False)}
        return row

    def rest_book(self, market: str, depth: int) -> Message:
        """Spell a book as the REST call does: plain numbers, bid first."""
        book = self.shown(market)
        bids, asks = book.bids[:depth], book.asks[:depth]
        pad = (("0", "0"),) * depth
        rows = zip((asks + pad)[:depth], (bids + pad)[:depth], strict=True)
        units = ",".join(
            f'{{"bid_price":{bp},"ask_price":{ap},"bid_size":{bv},"ask_size":{av}}}' for (ap, av), (bp, bv) in rows
        )
        text = (
            f'{{"market":"{self.native(market)}","timestamp":{book.time_us // 1000},'
            f'"total_bid_size":{total(bids)},"total_ask_size":{total(asks)},"orderbook_units":[{units}],"level":0}}'
        )
        return Message(text, "book", bids, asks, book.time_us // 1000 * 1000)
