"""Bithumb (Korea), spot.  Docs: https://apidocs.bithumb.com/reference/호가-orderbook (read 2026-11-21)

Recorded by polling REST (30 levels a side; the default, as the owner wrote it) or over the official WebSocket (15
levels). Every message is the whole book. Quirks:
- times of the socket are microseconds (16 digits) since some day of 2025 or 2026, milliseconds before, REST
  milliseconds;
- sizes are rounded to four decimals, so a level may stand at a live price with size 0: it is left out;
- a thin side is filled up with price 0;
- errors come with HTTP 200: the body decides;
- unknown codes are served in silence; an error frame is followed by a close with code 1000;
- many frames and answers repeat the one before.
"""

import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec

from collector.errors import RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import Book, Message
from controllers.base import Controller
from controllers.levels import decode_any, house_form, pairs, shaped, swapped, venue_us
from controllers.rest import RESTController
from controllers.websocket import WSController


class _Unit(msgspec.Struct, gc=False):
    ask_price: Any
    bid_price: Any
    ask_size: Any
    bid_size: Any


class _Book(msgspec.Struct, gc=False):
    timestamp: Any = None
    units: list[_Unit] | None = msgspec.field(name="orderbook_units", default=None)
    type: str | None = None
    code: str | None = None  # on the socket
    market: str | None = None  # in REST
    status: Any = None
    error: dict[str, Any] | None = None


class _ShortUnit(msgspec.Struct, gc=False):
    ask_price: Any = msgspec.field(name="ap")
    bid_price: Any = msgspec.field(name="bp")
    ask_size: Any = msgspec.field(name="as")
    bid_size: Any = msgspec.field(name="bs")


class _ShortBook(msgspec.Struct, gc=False):
    type: str = msgspec.field(name="ty")
    code: str = msgspec.field(name="cd")
    units: list[_ShortUnit] = msgspec.field(name="obu")
    timestamp: Any = msgspec.field(name="tms", default=None)


_decode = decoder(_Book)
_decode_short = decoder(_ShortBook)
_decode_rest = decoder(list[_Book] | _Book)


def _book(message: Any, code: str | None) -> Book:
    quote, dash, base = (code or "").partition("-")
    if not dash or message.units is None:
        raise UnknownFrame("neither a book nor an error")
    bids, asks = pairs(message.units)
    return Book(f"{base}-{quote}", bids, asks, venue_us(message.timestamp))


class _Bithumb(Controller):
    rest_url = "https://api.bithumb.com"
    listing_path = "/v1/market/all"
    budget_per_s = 150.0  # a category of calls
    connects_per_s = 10.0

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read `[{"market":"KRW-BTC",...},...]`; a market that is not listed does not trade."""
        return house_form(swapped(row["market"]) for row in decode_any(body))


def _raise_error(error: dict[str, Any]) -> None:
    text = f"{error.get('name')}: {error.get('message')}"
    raise RateLimited(text) if error.get("name") in (429, "429") else VenueRefused(text)


class BithumbREST(_Bithumb, RESTController):
    """Bithumb's order books, polled."""

    exchange = "bithumb"
    depth = 30

    def request_path(self, market: str) -> str:
        """Return the call for one market: only then it has 30 levels."""
        return f"/v1/orderbook?markets={swapped(market)}"

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one answer: a list of books, or an error in spite of HTTP 200."""
        answer = _decode_rest(frame)
        if isinstance(answer, _Book):
            if answer.error is not None:
                _raise_error(answer.error)
            raise UnknownFrame("neither a list nor an error")
        return [_book(book, book.market) for book in answer]


class BithumbWebSocket(_Bithumb, WSController):
    """Bithumb's order books, over the official socket."""

    exchange = "bithumb"
    default: ClassVar[bool] = False
    url = "wss://ws-api.bithumb.com/websocket/v1"
    depth = 15
    sends_books_again = True  # what stands in for the REST book, whose sizes are not rounded
    keepalive_text = "PING"
    ping_s = 15.0
    stale_s = 30.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return the one frame that lists every market; a second one would replace it."""
        codes = [swapped(market) for market in markets]
        request = [{"ticket": str(uuid.uuid4())}, {"type": "orderbook", "codes": codes}, {"format": "DEFAULT"}]
        return [msgspec.json.encode(request).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame, in either format."""
        if frame.startswith(b'{"ty"'):
            message: Any = _decode_short(frame)
        else:
            message = _decode(frame)
            if message.error is not None:
                _raise_error(message.error)
            if message.status is not None and not message.type:
                return ()  # the answer to PING
        if message.type != "orderbook":
            raise UnknownFrame(f"type was {message.type!r}")
        return (_book(message, message.code),)
