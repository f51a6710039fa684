"""Bithumb (Korea), spot.  Docs: https://apidocs.bithumb.com/reference/호가-orderbook (read 2026-11-21)

Recorded by polling REST (30 levels a side; the default, as the owner wrote it) or over the official WebSocket (15
levels). Every message is the whole book. Trades and tickers come over both, candles over REST alone. Quirks:
- times of the socket are microseconds (16 digits) since some day of 2025 or 2026, milliseconds before, REST
  milliseconds;
- sizes are rounded to four decimals, so a level may stand at a live price with size 0: it is left out;
- a thin side is filled up with price 0;
- errors come with HTTP 200: the body decides;
- unknown codes are served in silence; an error frame is followed by a close with code 1000;
- many frames and answers repeat the one before;
- `trade_date` and `trade_time` of the socket are Korean time, `trade_timestamp` is true; the REST ticker is the other
  way round: its `trade_date` and `trade_time` are UTC, its time stamps are the Korean clock written as if it were UTC;
- `sequential_id` is beyond 2^53, unique and no order; REST has another number for the same trade (17 digits made of the
  time) than the socket (18 or 19), so trades heard over both are not told to be the same;
- `ask_bid` is taken for what the taker did; libraries contradict each other, so `audit sides` holds it to the book;
- tickers have no best bid or ask.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from collector.errors import BadFrame, RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import CANDLES, ORDERBOOK, TICKER, TRADES, Book, Candle, Message, Ticker, Trade
from controllers.base import Controller
from controllers.levels import (
    decode_any,
    house_form,
    in_order,
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


class _Event(msgspec.Struct, gc=False):
    # A trade, a ticker or a candle, of the socket or of REST; what one kind does not have is None.
    code: str | None = None
    market: str | None = None
    timestamp: Any = None
    traded: Any = msgspec.field(name="trade_timestamp", default=None)
    date: Any = msgspec.field(name="trade_date", default=None)
    time: Any = msgspec.field(name="trade_time", default=None)
    price: Any = msgspec.field(name="trade_price", default=None)
    size: Any = msgspec.field(name="trade_volume", default=None)
    side: Any = msgspec.field(name="ask_bid", default=None)
    number: Any = msgspec.field(name="sequential_id", default=None)
    day_volume: Any = msgspec.field(name="acc_trade_volume_24h", default=None)
    begins: Any = msgspec.field(name="candle_date_time_utc", default=None)
    open: Any = msgspec.field(name="opening_price", default=None)
    high: Any = msgspec.field(name="high_price", default=None)
    low: Any = msgspec.field(name="low_price", default=None)
    volume: Any = msgspec.field(name="candle_acc_trade_volume", default=None)


TRADES_A_POLL = 200
CANDLES_A_POLL = 10
KOREA_AHEAD_US = 9 * 3_600_000_000

_TYPES = {ORDERBOOK: "orderbook", TRADES: "trade", TICKER: "ticker"}

_decode = decoder(_Book)
_decode_short = decoder(_ShortBook)
_decode_rest = decoder(list[_Book] | _Book)
_decode_event = decoder(_Event)
_decode_events = decoder(list[_Event] | _Book)


def _market(code: str | None) -> str:
    quote, dash, base = (code or "").partition("-")
    if not dash:
        raise UnknownFrame(f"market was {code!r}")
    return f"{base}-{quote}"


def _book(message: Any, code: str | None) -> Book:
    if message.units is None:
        raise UnknownFrame("neither a book nor an error")
    bids, asks = pairs(message.units)
    return Book(_market(code), bids, asks, venue_us(message.timestamp))


def _trade(event: _Event, code: str | None, traded: object) -> Trade:
    number, side = trade_id(event.number), taker(event.side)
    return Trade(_market(code), number, side, event.price, event.size, stated_us(traded))


def _ticker(event: _Event, code: str | None, sent_us: int | None) -> Ticker:
    return Ticker(_market(code), quoted(event.price), None, None, event.day_volume, sent_us)


def _candle(event: _Event) -> Candle:
    open_us = minute_us(utc_us(event.begins))
    prices = event.open, event.high, event.low, event.price
    return Candle(_market(event.market), 60, open_us, *prices, event.volume, False, venue_us(event.timestamp))


def _polled_ticker_us(event: _Event) -> int:
    """Return the true time of a REST ticker: its last trade's UTC date and time tell by how much its clock is ahead."""
    date, time = event.date, event.time
    if not (isinstance(date, str) and isinstance(time, str) and len(date) == 8 and len(time) == 6):
        raise BadFrame(f"a ticker of date {date!r}, time {time!r}")
    traded_us = utc_us(f"{date[:4]}-{date[4:6]}-{date[6:]}T{time[:2]}:{time[2:4]}:{time[4:]}")
    for ahead_us in (0, KOREA_AHEAD_US):
        if abs(stated_us(event.traded) - ahead_us - traded_us) < 2_000_000:  # what is written has whole seconds
            return stated_us(event.timestamp) - ahead_us
    raise BadFrame(f"the last trade was at {date} {time} UTC, and at {event.traded}")


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
    """Bithumb's order books, trades, tickers and candles, polled."""

    exchange = "bithumb"
    offers = (ORDERBOOK, TRADES, TICKER, CANDLES)
    depth = 30
    poll_every_s: ClassVar[Mapping[str, float]] = {TRADES: 1.0, TICKER: 1.0, CANDLES: 20.0}
    poll_trades = TRADES_A_POLL

    def request_path(self, market: str) -> str:
        """Return the call for one market: only then it has 30 levels."""
        return f"/v1/orderbook?markets={swapped(market)}"

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the call for one channel of a market."""
        code = swapped(market)
        if channel == TRADES:
            return f"/v1/trades/ticks?market={code}&count={TRADES_A_POLL}"
        if channel == TICKER:
            return f"/v1/ticker?markets={code}"
        if channel == CANDLES:
            return f"/v1/candles/minutes/1?market={code}&count={CANDLES_A_POLL}"
        return self.request_path(market)

    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read one answer: trades and candles come newest first, tickers nine hours ahead."""
        if channel == ORDERBOOK:
            return self.parse(body, received_us)
        rows = _decode_events(body)
        if isinstance(rows, _Book):
            if rows.error is not None:
                _raise_error(rows.error)
            raise UnknownFrame("neither a list nor an error")
        if channel == TRADES:
            return [_trade(row, row.market, row.timestamp) for row in reversed(rows)]
        if channel == TICKER:
            return [_ticker(row, row.market, _polled_ticker_us(row)) for row in rows]
        return in_order(_candle(row) for row in rows)

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one answer: a list of books, or an error in spite of HTTP 200."""
        answer = _decode_rest(frame)
        if isinstance(answer, _Book):
            if answer.error is not None:
                _raise_error(answer.error)
            raise UnknownFrame("neither a list nor an error")
        return [_book(book, book.market) for book in answer]


class BithumbWebSocket(_Bithumb, WSController):
    """Bithumb's order books, trades and tickers, over the official socket."""

    exchange = "bithumb"
    offers = (ORDERBOOK, TRADES, TICKER)
    default: ClassVar[bool] = False
    url = "wss://ws-api.bithumb.com/websocket/v1"
    depth = 15
    sends_books_again = True  # what stands in for the REST book, whose sizes are not rounded
    keepalive_text = "PING"
    ping_s = 15.0
    stale_s = 30.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return the one frame that lists every channel and market; a second one would replace it."""
        codes = [swapped(market) for market in markets]
        wanted = [{"type": _TYPES[channel], "codes": codes} for channel in self.channels]
        request = [{"ticket": str(uuid.uuid4())}, *wanted, {"format": "DEFAULT"}]
        return [msgspec.json.encode(request).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame; books in either format."""
        if frame.startswith(b'{"ty"'):
            message: Any = _decode_short(frame)
        else:
            message = _decode(frame)
            if message.error is not None:
                _raise_error(message.error)
            if message.status is not None and not message.type:
                return ()  # the answer to PING
            if message.type == "trade":
                event = _decode_event(frame)
                return (_trade(event, event.code, event.traded),)
            if message.type == "ticker":
                event = _decode_event(frame)
                return (_ticker(event, event.code, venue_us(event.timestamp)),)
        if message.type != "orderbook":
            raise UnknownFrame(f"type was {message.type!r}")
        return (_book(message, message.code),)
