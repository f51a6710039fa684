"""Upbit as of 2026: whole books of 30 pairs in binary frames, no acknowledgements, silence for what it does not know.

Simulated: order books (`DEFAULT`, `SIMPLE` and their list forms), the REST order book and market list. Subscriptions to
trades, tickers and candles are accepted and stay silent unless a recording holds them. A `level` other than 0 is served
with silence, as the venue does for levels a pair does not support.
"""

import asyncio
import json
import re
from typing import Any

from aiohttp import web

from simulator.connection import Connection, Message, Subscription
from simulator.markets import Book, Character, Level, total
from simulator.recording import Recorded, exact, real
from simulator.venue import Bucket, Reply, Timing, Venue, compact

TYPES = re.compile(r"orderbook|trade|ticker|candle\.(1s|(1|3|5|10|15|30|60|240)m)")
SHORT = {
    "type": "ty", "code": "cd", "timestamp": "tms", "total_ask_size": "tas", "total_bid_size": "tbs",
    "orderbook_units": "obu", "ask_price": "ap", "bid_price": "bp", "ask_size": "as", "bid_size": "bs",
    "stream_type": "st", "level": "lv",
}  # fmt: skip
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
        if not isinstance(kind, str) or not TYPES.fullmatch(kind):
            raise BadRequest("INVALID_PARAM", f"{kind} 은 지원하지 않는 타입입니다.")
        if not codes:
            raise BadRequest("NO_CODES", "코드가 존재하지 않습니다.")
        if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
            raise BadRequest("WRONG_FORMAT", WRONG_FORMAT)
        if not self.level_served(part.get("level", 0)):
            return []
        options = {
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
                found.append((kind, market, code, {**options, "depth": depth}))
        return found

    def level_served(self, level: Any) -> bool:
        """Tell whether books of this grouping are served; here others than 0 get silence."""
        return level in (0, None)

    def _listed(self, c: Connection, ticket: str) -> bytes:
        result = [{"type": s.channel, "codes": [s.code]} for s in c.subscriptions.values()]
        return compact({"method": "LIST_SUBSCRIPTIONS", "result": result, "ticket": ticket}).encode()

    def subscribed(self, c: Connection, subscriptions: Any) -> None:
        """Leave out the snapshot where only changes were asked for."""
        wanted = [(s, new) for s, new in subscriptions if self.recording or not s.options["realtime_only"]]
        super().subscribed(c, wanted)

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
            return Recorded(data, f"{symbol}-{currency}", kind, kind, venue_us=venue_us)
        rows: list[dict[str, str]] = frame["orderbook_units"] if "orderbook_units" in frame else frame["obu"]
        bids = real([(either(row, "bid_price"), either(row, "bid_size")) for row in rows])
        asks = real([(either(row, "ask_price"), either(row, "ask_size")) for row in rows])
        return Recorded(data, f"{symbol}-{currency}", "orderbook", "book", bids, asks, venue_us)

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
