"""KuCoin, spot.  Docs: https://www.kucoin.com/docs-new/websocket-api/base-info/introduction-uta (read 2026-11-21)

The public socket of its unified ("Pro") interface needs no key. A book comes complete after subscribing, then as
changes aggregated over 10 ms, for the best 500 levels a side. Quirks:
- frames are JSON in binary frames; the first one is a welcome, and the client has to ping;
- `T` names channel and product (`obu.SPOT`), in either case; keys differ by case only (`t` and `T`, `o` and `O`);
- each change has the numbers of its first (`O`) and last (`C`) event; it may begin before the book's own number, never
  after the next one. A level that leaves the best 500 is sent with size 0, so nothing has to be cut;
- `C` and `O` are other things in a candle (seconds of its end and beginning), as are `a` and `b` in a ticker;
- times are nanoseconds, as JSON integers beyond 2^53; documentation shows micro- and milliseconds at times;
- `side` of a trade is the taker's: of 14 recorded matches of the older interface, which had the same trade ids, 8 buys
  stood at our best ask, 1 sell at our best bid, none the other way round;
- a connection bears 600 topics (a channel of a market each) and 300 messages of the client in 10 s: with every channel
  that is 75 markets, or what is asked for at the start is more than that;
- a candle's `S` says that it is the first of its minute, not that it is over; nothing says that.

The older interface (`/market/level2` with a token) is not spoken here: the complete REST book that its changes continue
needs a key since, and the free one of 100 levels goes wrong below them. For a comparison that one is enough.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from collector.errors import BadFrame, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import (
    CANDLES,
    CHANNELS,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    BookChange,
    Candle,
    Message,
    Refused,
    Subscribed,
    Ticker,
    Trade,
)
from controllers.levels import decode_any, house_form, listed, minute_us, quoted, shaped, stated_us, trade_id, venue_us
from controllers.websocket import WSController

NATIVE: dict[str, dict[str, Any]] = {
    ORDERBOOK: {"channel": "obu", "depth": "increment@10ms"},
    TRADES: {"channel": "trade"},
    TICKER: {"channel": "ticker"},
    CANDLES: {"channel": "kline", "interval": "1min"},
}
NANOSECONDS = 10**17  # times above it, which is in 1973 for those and in 5138 for microseconds


class _Frame(msgspec.Struct, gc=False):
    topic: str = msgspec.field(name="T", default="")
    kind: str = msgspec.field(name="t", default="")
    depth: str = msgspec.field(name="dp", default="")
    pushed: int | None = msgspec.field(name="P", default=None)
    data: msgspec.Raw = msgspec.field(name="d", default=msgspec.Raw(b""))
    # replies
    id: Any = None
    type: str | None = None
    result: Any = None
    code: Any = None
    message: Any = None
    reason: Any = None
    msg: Any = None


class _Book(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    first: int = msgspec.field(name="O")
    last: int = msgspec.field(name="C")
    bids: list[tuple[str, str]] = msgspec.field(name="b")
    asks: list[tuple[str, str]] = msgspec.field(name="a")
    matched: int | None = msgspec.field(name="M", default=None)


class _Trade(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    id: str | int = msgspec.field(name="ti")
    side: str = msgspec.field(name="S")
    price: str = msgspec.field(name="p")
    size: str = msgspec.field(name="q")
    matched: int = msgspec.field(name="M")


class _Ticker(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    last: str | None = msgspec.field(name="l", default=None)
    bid: str | None = msgspec.field(name="b", default=None)
    ask: str | None = msgspec.field(name="a", default=None)
    matched: int | None = msgspec.field(name="M", default=None)


class _Candle(msgspec.Struct, gc=False):
    symbol: str = msgspec.field(name="s")
    interval: str = msgspec.field(name="i")
    begins_s: int = msgspec.field(name="O")
    open: str = msgspec.field(name="o")
    high: str = msgspec.field(name="h")
    low: str = msgspec.field(name="l")
    close: str = msgspec.field(name="c")
    volume: str = msgspec.field(name="v")


_decode = decoder(_Frame)
_decode_book = decoder(_Book)
_decode_trade = decoder(_Trade)
_decode_ticker = decoder(_Ticker)
_decode_candle = decoder(_Candle)


class KuCoin(WSController):
    """KuCoin's spot markets."""

    exchange = "kucoin"
    url = "wss://x-push-spot.kucoin.com"
    rest_url = "https://api.kucoin.com"
    listing_path = "/api/v2/symbols"
    offers = CHANNELS
    changes_only = True
    verdict = "linked"
    depth = 500
    probe_depth = 100
    text_numbers = True
    keepalive_text = '{"id":"0","type":"ping"}'
    keepalive_s = 15.0  # the welcome asks for one every 30 s
    stale_s = 45.0
    connection_age_s = 86_400.0
    budget_per_s = 20.0
    connects_per_s = 1.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each channel of each market; its answer has nothing but its number."""
        for market in markets:
            for channel in self.channels:
                yield self._request("SUBSCRIBE", market, channel)

    def resync_messages(self, market: str) -> Iterable[str]:
        """Return what ends the subscription of one book and makes it anew."""
        return [self._request("UNSUBSCRIBE", market, ORDERBOOK), self._request("SUBSCRIBE", market, ORDERBOOK)]

    def _request(self, action: str, market: str, channel: str) -> str:
        # The number tells market and channel; what ends a subscription has one that tells neither.
        number = 0
        if action == "SUBSCRIBE" and market in self.markets:
            number = 1 + self.markets.index(market) * len(CHANNELS) + CHANNELS.index(channel)
        request = {"id": str(number), "action": action, "tradeType": "SPOT", "symbol": market, **NATIVE[channel]}
        return msgspec.json.encode(request).decode()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        message = _decode(frame)
        channel, _, product = message.topic.lower().partition(".")
        if not channel:
            return self._reply(message)
        if product == "spot":
            data = bytes(message.data)
            if channel == "obu":
                return (_book(message, _decode_book(data)),)
            if channel == "trade":
                return (_trade(_decode_trade(data)),)
            if channel == "ticker":
                return (_ticker(_decode_ticker(data)),)
            if channel == "kline":
                return (_candle(message, _decode_candle(data)),)
        raise UnknownFrame(f"T was {message.topic!r}")

    def _reply(self, message: _Frame) -> Iterable[Message]:
        asked = self._asked(message.id)
        text = message.msg or message.message or message.reason
        if message.result in (False, "false") or message.type == "error" or message.code is not None:
            detail = " ".join(str(part) for part in (message.code, text) if part is not None)
            return (Refused(detail or "refused without a word", asked[0] if asked else None),)
        if message.result in (True, "true"):
            # A book says itself that it is heard.
            return (Subscribed(asked[1], asked[0]),) if asked and asked[1] != ORDERBOOK else ()
        if message.type == "pong" or message.message == "welcome":
            return ()
        raise UnknownFrame(f"type was {message.type!r}, message {message.message!r}")

    def _asked(self, number: object) -> tuple[str, str] | None:
        # Which market and channel a request was about.
        if not (isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 10):
            return None
        place, channel = divmod(int(number) - 1, len(CHANNELS))
        return (self.markets[place], CHANNELS[channel]) if 0 <= place < len(self.markets) else None

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether no event is missing before a change; it may tell some again that the book has."""
        return change.first is not None and change.first <= sequence + 1

    def probe_path(self, market: str) -> str:
        """Return the path of the best levels that are given without a key."""
        return f"/api/v1/market/orderbook/level2_100?symbol={market}"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read `{"code":"200000","data":{"bids":[["1","2"],...],...}}`; errors come with status 200 as well."""
        answer = decode_any(body)
        if answer["code"] != "200000":
            raise VenueRefused(f"{answer['code']} {answer.get('msg')}")
        return Book(market, listed(answer["data"]["bids"]), listed(answer["data"]["asks"]))

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the symbols that can be traded; their names are in house form."""
        rows = decode_any(body)["data"]
        return house_form(row["symbol"] for row in rows if row["enableTrading"] is True)


def _book(message: _Frame, data: _Book) -> Book | BookChange:
    if message.depth != "increment@10ms":
        raise UnknownFrame(f"dp was {message.depth!r}")
    if data.first > data.last:
        raise BadFrame(f"a change from {data.first} to {data.last}")
    if message.kind == "snapshot":
        return Book(data.symbol, listed(data.bids), listed(data.asks), _us(data.matched), data.last)
    if message.kind == "delta":
        bids, asks = listed(data.bids), listed(data.asks)
        return BookChange(data.symbol, bids, asks, _us(data.matched), data.last, data.first)
    raise UnknownFrame(f"t was {message.kind!r}")


def _trade(data: _Trade) -> Trade:
    side = data.side.lower()
    if side not in ("buy", "sell"):
        raise BadFrame(f"S was {data.side!r}")
    at_us = stated_us(_us(data.matched))
    return Trade(data.symbol, trade_id(data.id), "buy" if side == "buy" else "sell", data.price, data.size, at_us)


def _ticker(data: _Ticker) -> Ticker:
    return Ticker(data.symbol, quoted(data.last), quoted(data.bid), quoted(data.ask), None, _us(data.matched))


def _candle(message: _Frame, data: _Candle) -> Candle:
    if data.interval != "1min":
        raise UnknownFrame(f"i was {data.interval!r}")
    open_us = minute_us(stated_us(data.begins_s))
    prices = data.open, data.high, data.low, data.close
    return Candle(data.symbol, 60, open_us, *prices, data.volume, venue_us=_us(message.pushed))


def _us(time: int | None) -> int | None:
    return time // 1000 if time is not None and NANOSECONDS <= time < NANOSECONDS * 100 else venue_us(time)
