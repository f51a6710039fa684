"""Upbit (Korea), spot.  Docs: https://docs.upbit.com/kr/reference/websocket-orderbook (read 2026-11-21)

Every frame is the whole book: 30 pairs, best first, i-th ask beside i-th bid. Quirks:
- no acknowledgement: an unknown code is served in silence, an error closes the connection with code 1000;
- numbers are JSON numbers, big or small ones with an exponent (`1.16539E8`, `7.9276E-4`);
- a thin side is filled up with price 0 and size 0;
- `timestamp` has been microseconds at times; it is told by magnitude;
- the totals of a frame equal the sum of its levels, digit for digit: a checksum;
- an idle socket is cut after 60 s; `PING` makes the server send `{"status":"UP"}` every 10 s.
"""

import uuid
from collections.abc import Iterable
from typing import Any

import msgspec

from collector.errors import BadFrame, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import Book, Message
from controllers.levels import decode_any, house_form, pairs, shaped, swapped, venue_us
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


class _RestBook(msgspec.Struct, gc=False):
    units: list[_LongUnit] = msgspec.field(name="orderbook_units")


_decode = decoder(_Frame)
_decode_long = decoder(_LongFrame)
_decode_rest = decoder(list[_RestBook])


class Upbit(WSController):
    """Upbit's order books."""

    exchange = "upbit"
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
        """Return the one frame that lists every market; a second one would replace it."""
        codes = [swapped(market) for market in markets]
        request = [{"ticket": str(uuid.uuid4())}, {"type": "orderbook", "codes": codes}, {"format": "SIMPLE"}]
        return [msgspec.json.encode(request).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame, in either format."""
        message = _decode(frame)
        if message.status is not None and not (message.type or message.long_type):
            return ()  # the answer to PING
        if message.error is not None:
            raise VenueRefused(f"{message.error.get('name')}: {message.error.get('message')}")
        if message.long_type is not None:
            message = _decode_long(frame)
        if message.type != "orderbook" or message.units is None:
            raise UnknownFrame(f"type was {message.type!r}")
        quote, dash, base = message.code.partition("-")
        if not dash:
            raise BadFrame(f"code was {message.code!r}")
        bids, asks = pairs(message.units)
        totals = None
        if message.total_ask_size is not None:
            totals = (message.total_ask_size, message.total_bid_size)
        return (Book(f"{base}-{quote}", bids, asks, venue_us(message.timestamp), None, totals),)

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
