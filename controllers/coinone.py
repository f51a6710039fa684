"""Coinone (Korea), spot.  Docs: https://docs.coinone.co.kr/reference/public-websocket-orderbook (read 2026-11-21)

Every frame is the whole book, 16 levels a side; numbers are text. Quirks:
- asks come worst first on the socket, best first over REST: order is never relied on;
- the first frame's `timestamp` is about ten seconds old, its `id` (a millisecond and three digits) is not;
- a frame whose `id` is not above the last is a repeat: an `id` from the future, which would make repeats of all that
  follow, is refused;
- a wrong pair is acknowledged first, then an error that names no pair follows, and the socket stays open;
- a socket that sends nothing is cut after a minute: `PING` every 20 s.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from collector.errors import BadFrame, RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import Book, Message, Refused
from controllers.levels import decode_any, house_form, listed, shaped, side, venue_us
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


AHEAD_US_MAX = 60_000_000

_decode = decoder(_Frame)
_decode_short = decoder(_ShortFrame)
_BLOCKED = "4"  # "Blocked user access": too many requests from this address
_CONTROL = frozenset(("CONNECTED", "SUBSCRIBED", "UNSUBSCRIBED", "PONG"))


class Coinone(WSController):
    """Coinone's order books."""

    exchange = "coinone"
    url = "wss://stream.coinone.co.kr"
    rest_url = "https://api.coinone.co.kr"
    listing_path = "/public/v2/markets/KRW"
    budget_per_s = 20.0
    depth = 16
    rising_sequence = True
    text_numbers = True
    keepalive_text = '{"request_type":"PING"}'
    keepalive_s = 20.0
    stale_s = 60.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each market."""
        for market in markets:
            symbol, currency = market.split("-")
            topic = {"quote_currency": currency, "target_currency": symbol}
            request = {"request_type": "SUBSCRIBE", "channel": "ORDERBOOK", "topic": topic}
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

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the markets priced in KRW, the only ones, without those that are halted."""
        return house_form(
            f"{row['target_currency'].upper()}-{row['quote_currency'].upper()}"
            for row in _answer(body)["markets"]
            if row["trade_status"] and not row["maintenance_status"]
        )


def _answer(body: bytes) -> Any:
    answer = decode_any(body)
    if answer["result"] != "success":  # with HTTP 200
        text = f"{answer.get('error_code')} {answer.get('error_msg')}"
        raise RateLimited(text, banned=True) if answer.get("error_code") == _BLOCKED else VenueRefused(text)
    return answer
