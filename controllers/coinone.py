"""Coinone (Korea), spot.  Docs: https://docs.coinone.co.kr/reference/public-websocket-orderbook (read 2026-11-21)

Every frame of a book is the whole book, 16 levels a side; numbers are text. Trades and tickers come on the same socket,
candles are polled. Quirks:
- asks come worst first on the socket, best first over REST: order is never relied on;
- the first frame's `timestamp` is about ten seconds old, its `id` (a millisecond and three digits) is not;
- a frame whose `id` is not above the last is a repeat: an `id` from the future, which would make repeats of all that
  follow, is refused;
- a wrong pair is acknowledged first, then an error that names no pair follows, and the socket stays open;
- a socket that sends nothing is cut after a minute: `PING` every 20 s;
- `is_seller_maker` is true where the taker bought;
- the socket has a channel `CHART`, but what the documentation shows of it are figures of 24 hours (the volume of its
  example falls within one minute), and nobody recorded it: candles are taken from REST, newest first.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from collector.errors import BadFrame, RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import CANDLES, ORDERBOOK, TICKER, TRADES, Book, Candle, Message, Refused, Ticker, Trade
from controllers.base import Controller
from controllers.levels import (
    decode_any,
    house_form,
    in_order,
    listed,
    minute_us,
    quoted,
    shaped,
    side,
    stated_us,
    trade_id,
    venue_us,
)
from controllers.rest import RESTController
from controllers.websocket import WSController


class _Level(msgspec.Struct, gc=False):
    price: Any
    size: Any = msgspec.field(name="qty")


class _Data(msgspec.Struct, gc=False):
    quote: str | None = msgspec.field(name="quote_currency", default=None)
    target: str | None = msgspec.field(name="target_currency", default=None)
    timestamp: Any = None
    id: str | None = None
    asks: list[_Level] | None = None
    bids: list[_Level] | None = None


class _Frame(msgspec.Struct, gc=False):
    response_type: str | None = None
    channel: str | None = None
    data: _Data | None = None
    error_code: Any = None
    message: Any = None


class _ShortLevel(msgspec.Struct, gc=False):
    price: Any = msgspec.field(name="p")
    size: Any = msgspec.field(name="q")


class _ShortData(msgspec.Struct, gc=False):
    quote: str | None = msgspec.field(name="qc", default=None)
    target: str | None = msgspec.field(name="tc", default=None)
    timestamp: Any = msgspec.field(name="t", default=None)
    id: str | None = msgspec.field(name="i", default=None)
    asks: list[_ShortLevel] | None = msgspec.field(name="a", default=None)
    bids: list[_ShortLevel] | None = msgspec.field(name="b", default=None)


class _ShortFrame(msgspec.Struct, gc=False):
    response_type: str = msgspec.field(name="r")
    channel: str | None = msgspec.field(name="c", default=None)
    data: _ShortData | None = msgspec.field(name="d", default=None)


class _Event(msgspec.Struct, gc=False):
    # A trade or a ticker; what one kind does not have is None.
    quote: str = msgspec.field(name="quote_currency")
    target: str = msgspec.field(name="target_currency")
    timestamp: Any = None
    id: Any = None
    price: Any = None
    size: Any = msgspec.field(name="qty", default=None)
    is_seller_maker: bool | None = None
    last: Any = None
    bid: Any = msgspec.field(name="bid_best_price", default=None)
    ask: Any = msgspec.field(name="ask_best_price", default=None)
    volume: Any = msgspec.field(name="target_volume", default=None)


class _EventFrame(msgspec.Struct, gc=False):
    data: _Event


AHEAD_US_MAX = 60_000_000
CANDLES_A_POLL = 10

_decode = decoder(_Frame)
_decode_short = decoder(_ShortFrame)
_decode_event = decoder(_EventFrame)
_CHANNELS = {ORDERBOOK: "ORDERBOOK", TRADES: "TRADE", TICKER: "TICKER"}
_BLOCKED = "4"  # "Blocked user access": too many requests from this address
_CONTROL = frozenset(("CONNECTED", "SUBSCRIBED", "UNSUBSCRIBED", "PONG"))


class _Coinone(Controller):
    rest_url = "https://api.coinone.co.kr"
    listing_path = "/public/v2/markets/KRW"
    budget_per_s = 20.0
    text_numbers = True

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the markets priced in KRW, the only ones, without those that are halted."""
        return house_form(
            f"{row['target_currency'].upper()}-{row['quote_currency'].upper()}"
            for row in _answer(body)["markets"]
            if row["trade_status"] and not row["maintenance_status"]
        )


class Coinone(_Coinone, WSController):
    """Coinone's order books, trades and tickers."""

    exchange = "coinone"
    offers = (ORDERBOOK, TRADES, TICKER)
    url = "wss://stream.coinone.co.kr"
    depth = 16
    rising_sequence = True
    keepalive_text = '{"request_type":"PING"}'
    keepalive_s = 20.0
    stale_s = 60.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each market and channel."""
        for market in markets:
            symbol, currency = market.split("-")
            topic = {"quote_currency": currency, "target_currency": symbol}
            for channel in self.channels:
                request = {"request_type": "SUBSCRIBE", "channel": _CHANNELS[channel], "topic": topic}
                yield msgspec.json.encode(request).decode()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame, in either format."""
        message = _decode(frame)
        if message.response_type is None:
            message = _decode_short(frame)
        if message.response_type in _CONTROL:
            return ()
        if message.response_type == "ERROR" and isinstance(message, _Frame):
            return (Refused(f"{message.error_code} {message.message}"),)
        if message.response_type == "DATA" and message.channel in ("TRADE", "TICKER") and isinstance(message, _Frame):
            return (_event(message.channel, _decode_event(frame).data),)
        data = message.data
        if message.response_type != "DATA" or message.channel != "ORDERBOOK" or data is None:
            raise UnknownFrame(f"response_type was {message.response_type!r}, channel {message.channel!r}")
        if data.asks is None or data.bids is None or not data.quote or not data.target:
            raise BadFrame("a book without pair, asks or bids")
        if data.id is None or not (data.id.isascii() and data.id.isdigit() and len(data.id) < 19):
            raise BadFrame(f"id was {data.id!r}")
        sequence, sent_us = int(data.id), venue_us(data.timestamp)
        if sent_us is not None and sequence > sent_us + AHEAD_US_MAX:
            raise BadFrame(f"id {data.id} is ahead of time {data.timestamp}")
        market = f"{data.target.upper()}-{data.quote.upper()}"
        return (Book(market, side(data.bids), side(data.asks), sent_us, sequence),)

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST."""
        symbol, currency = market.split("-")
        return f"/public/v2/orderbook/{currency}/{symbol}?size=16"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a REST book, whose asks come best first."""
        book = _answer(body)
        bids = listed((row["price"], row["qty"]) for row in book["bids"])
        asks = listed((row["price"], row["qty"]) for row in book["asks"])
        return Book(market, bids, asks)


class CoinoneCandles(_Coinone, RESTController):
    """Coinone's candles, polled."""

    exchange = "coinone"
    offers = (CANDLES,)
    default = False
    poll_every_s: ClassVar[Mapping[str, float]] = {CANDLES: 20.0}

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the call for the newest candles of a market."""
        symbol, currency = market.split("-")
        return f"/public/v2/chart/{currency}/{symbol}?interval=1m&size={CANDLES_A_POLL}"

    @shaped
    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read `{"chart":[{"timestamp":...,"open":...,"target_volume":...},...]}`, which names no market."""
        return in_order(_candle(market, row) for row in _answer(body)["chart"])


def _event(channel: str | None, event: _Event) -> Message:
    market = f"{event.target.upper()}-{event.quote.upper()}"
    if channel == "TICKER":
        last, bid, ask = quoted(event.last), quoted(event.bid), quoted(event.ask)
        return Ticker(market, last, bid, ask, event.volume, venue_us(event.timestamp))
    if event.is_seller_maker is None:
        raise BadFrame("a trade without its side")
    number, traded_us = trade_id(event.id), stated_us(event.timestamp)
    return Trade(market, number, "buy" if event.is_seller_maker else "sell", event.price, event.size, traded_us)


def _candle(market: str, row: dict[str, Any]) -> Candle:
    prices = row["open"], row["high"], row["low"], row["close"]
    return Candle(market, 60, minute_us(stated_us(row["timestamp"])), *prices, row["target_volume"])


def _answer(body: bytes) -> Any:
    answer = decode_any(body)
    if answer["result"] != "success":  # with HTTP 200
        text = f"{answer.get('error_code')} {answer.get('error_msg')}"
        raise RateLimited(text, banned=True) if answer.get("error_code") == _BLOCKED else VenueRefused(text)
    return answer
