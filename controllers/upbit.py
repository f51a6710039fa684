"""Upbit (Korea), spot.  Docs: https://docs.upbit.com/kr/reference/websocket-orderbook (read 2026-11-21)

Every frame is the whole book: 30 pairs, best first, i-th ask beside i-th bid. Trades, tickers and candles come on the
same socket. Quirks:
- no acknowledgement: an unknown code is served in silence, an error closes the connection with code 1000;
- numbers are JSON numbers, big or small ones with an exponent (`1.16539E8`, `7.9276E-4`);
- a thin side is filled up with price 0 and size 0;
- `timestamp` has been microseconds at times; it is told by magnitude;
- the totals of a frame equal the sum of its levels, digit for digit: a checksum;
- an idle socket is cut after 60 s; `PING` makes the server send `{"status":"UP"}` every 10 s;
- the first trade is the latest one again, the first candle maybe that of an earlier minute: both may be known already;
- `sequential_id` is unique and no order: it steps back now and then;
- `ask_bid` is what the taker did; `trade_timestamp` had whole seconds until about 2023;
- tickers have no best bid or ask;
- a candle is sent at most once a second, and only when a trade changed it; nothing says that it is closed.
"""

import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from collector.errors import BadFrame, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import CANDLES, ORDERBOOK, TICKER, TRADES, Book, Candle, Message, Ticker, Trade
from controllers.levels import (
    decode_any,
    house_form,
    minute_us,
    pairs,
    quoted,
    shaped,
    stated_us,
    swapped,
    taker,
    trade_id,
    utc_us,
    venue_us,
)
from controllers.websocket import WSController


class _Unit(msgspec.Struct, gc=False):
    ask_price: Any = msgspec.field(name="ap")
    bid_price: Any = msgspec.field(name="bp")
    ask_size: Any = msgspec.field(name="as")
    bid_size: Any = msgspec.field(name="bs")


class _Frame(msgspec.Struct, gc=False):
    # Short keys (`SIMPLE`), which are asked for: half the bytes.
    type: str = msgspec.field(name="ty", default="")
    code: str = msgspec.field(name="cd", default="")
    timestamp: int | None = msgspec.field(name="tms", default=None)
    units: list[_Unit] | None = msgspec.field(name="obu", default=None)
    total_ask_size: Any = msgspec.field(name="tas", default=None)
    total_bid_size: Any = msgspec.field(name="tbs", default=None)
    status: str | None = None
    error: dict[str, Any] | None = None
    long_type: str | None = msgspec.field(name="type", default=None)


class _LongUnit(msgspec.Struct, gc=False):
    ask_price: Any
    bid_price: Any
    ask_size: Any
    bid_size: Any


class _LongFrame(msgspec.Struct, gc=False):
    type: str
    code: str = ""
    timestamp: int | None = None
    units: list[_LongUnit] | None = msgspec.field(name="orderbook_units", default=None)
    total_ask_size: Any = None
    total_bid_size: Any = None


class _Event(msgspec.Struct, gc=False):
    # A trade, a ticker or a candle in short keys; what one kind does not have is None.
    code: str = msgspec.field(name="cd")
    timestamp: Any = msgspec.field(name="tms", default=None)
    price: Any = msgspec.field(name="tp", default=None)
    size: Any = msgspec.field(name="tv", default=None)
    side: Any = msgspec.field(name="ab", default=None)
    traded: Any = msgspec.field(name="ttms", default=None)
    number: Any = msgspec.field(name="sid", default=None)
    day_volume: Any = msgspec.field(name="atv24h", default=None)
    begins: Any = msgspec.field(name="cdttmu", default=None)
    open: Any = msgspec.field(name="op", default=None)
    high: Any = msgspec.field(name="hp", default=None)
    low: Any = msgspec.field(name="lp", default=None)
    volume: Any = msgspec.field(name="catv", default=None)


class _LongEvent(msgspec.Struct, gc=False):
    code: str
    timestamp: Any = None
    price: Any = msgspec.field(name="trade_price", default=None)
    size: Any = msgspec.field(name="trade_volume", default=None)
    side: Any = msgspec.field(name="ask_bid", default=None)
    traded: Any = msgspec.field(name="trade_timestamp", default=None)
    number: Any = msgspec.field(name="sequential_id", default=None)
    day_volume: Any = msgspec.field(name="acc_trade_volume_24h", default=None)
    begins: Any = msgspec.field(name="candle_date_time_utc", default=None)
    open: Any = msgspec.field(name="opening_price", default=None)
    high: Any = msgspec.field(name="high_price", default=None)
    low: Any = msgspec.field(name="low_price", default=None)
    volume: Any = msgspec.field(name="candle_acc_trade_volume", default=None)


class _RestBook(msgspec.Struct, gc=False):
    units: list[_LongUnit] = msgspec.field(name="orderbook_units")


_decode = decoder(_Frame)
_decode_long = decoder(_LongFrame)
_decode_event = decoder(_Event)
_decode_long_event = decoder(_LongEvent)
_decode_rest = decoder(list[_RestBook])
_TYPES = {ORDERBOOK: "orderbook", TRADES: "trade", TICKER: "ticker", CANDLES: "candle.1m"}


class Upbit(WSController):
    """Upbit's order books, trades, tickers and candles."""

    exchange = "upbit"
    offers = (ORDERBOOK, TRADES, TICKER, CANDLES)
    url = "wss://api.upbit.com/websocket/v1"
    rest_url = "https://api.upbit.com"
    listing_path = "/v1/market/all"
    budget_per_s = 10.0  # a group of calls
    connects_per_s = 5.0
    depth = 30
    keepalive_text = "PING"
    ping_s = 15.0
    stale_s = 30.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return the one frame that lists every channel and market; a second one would replace it."""
        codes = [swapped(market) for market in markets]
        wanted = [{"type": _TYPES[channel], "codes": codes} for channel in self.channels]
        request = [{"ticket": str(uuid.uuid4())}, *wanted, {"format": "SIMPLE"}]
        return [msgspec.json.encode(request).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame, in either format."""
        message = _decode(frame)
        if message.status is not None and not (message.type or message.long_type):
            return ()  # the answer to PING
        if message.error is not None:
            raise VenueRefused(f"{message.error.get('name')}: {message.error.get('message')}")
        kind = message.type or message.long_type
        if kind == "trade" or kind == "ticker" or kind == "candle.1m":
            return (_event(kind, _decode_event(frame) if message.type else _decode_long_event(frame)),)
        if message.long_type is not None:
            message = _decode_long(frame)
        if message.type != "orderbook" or message.units is None:
            raise UnknownFrame(f"type was {message.type!r}")
        market = _market(message.code)
        bids, asks = pairs(message.units)
        totals = None
        if message.total_ask_size is not None:
            totals = (message.total_ask_size, message.total_bid_size)
        return (Book(market, bids, asks, venue_us(message.timestamp), None, totals),)

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST."""
        return f"/v1/orderbook?markets={swapped(market)}&count=30"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a list of one book, which has the long keys and the padding of the socket."""
        (book,) = _decode_rest(body)
        return Book(market, *pairs(book.units))

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read `[{"market":"KRW-BTC",...},...]`; a market that is not listed does not trade."""
        return house_form(swapped(row["market"]) for row in decode_any(body))


def _market(code: str) -> str:
    quote, dash, base = code.partition("-")
    if not dash:
        raise BadFrame(f"code was {code!r}")
    return f"{base}-{quote}"


def _event(kind: str, event: _Event | _LongEvent) -> Message:
    market = _market(event.code)
    if kind == "trade":
        number, side = trade_id(event.number), taker(event.side)
        return Trade(market, number, side, event.price, event.size, stated_us(event.traded))
    sent_us = venue_us(event.timestamp)
    if kind == "ticker":
        return Ticker(market, quoted(event.price), None, None, event.day_volume, sent_us)
    open_us = minute_us(utc_us(event.begins))
    prices = event.open, event.high, event.low, event.price
    return Candle(market, 60, open_us, *prices, event.volume, False, sent_us)
