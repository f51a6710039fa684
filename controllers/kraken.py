"""Kraken, spot.  Docs: https://docs.kraken.com/exchange/api-reference/spot-websocket (v2, read 2026-11-21)

One complete book after subscribing, then what changed, each with a checksum of the book after it. Quirks:
- no message has a number: only the checksum tells that one was lost, and it covers the ten best levels of each side.
  So books are asked for with a depth of ten: every level that is recorded is proved with every message;
- what falls out of that depth is not removed by name: the book is cut after every message, and the checksum holds then;
- the checksum is taken over the very characters of prices and sizes, which are JSON numbers: `0.10` is not `0.1`;
- levels of an update stand in no order, and several updates may share a message;
- every subscription is acknowledged alone; a refusal names its market, and the socket stays open and beats on;
- `BTC` and `DOGE` are `XBT` and `XDG` in everything that is not the socket's second version;
- a market that has not begun to trade has a ticker with bid and ask 0;
- a heartbeat a second while anything is subscribed; candles are never said to be closed.
"""

import zlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from collector.errors import BadFrame, RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder, is_zero
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
from controllers.book import Changes, OrderBook
from controllers.levels import decode_any, house_form, listed, minute_us, shaped, side, trade_id
from controllers.websocket import WSController

COVERED = 10  # levels a side that a checksum covers
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
OLD_CODES = {"XBT": "BTC", "XDG": "DOGE"}
NEW_CODES = {new: old for old, new in OLD_CODES.items()}

# What a channel is called, and what is asked for beside its markets.
ASKED: dict[str, dict[str, Any]] = {
    ORDERBOOK: {"channel": "book", "depth": COVERED, "snapshot": True},
    TRADES: {"channel": "trade", "snapshot": True},
    TICKER: {"channel": "ticker", "event_trigger": "bbo", "snapshot": True},
    CANDLES: {"channel": "ohlc", "interval": 1, "snapshot": True},
}
STREAMS = {"trade": TRADES, "ticker": TICKER, "ohlc": CANDLES}


class _Subscription(msgspec.Struct, gc=False):
    channel: str = ""
    symbol: str = ""


class _Frame(msgspec.Struct, gc=False):
    channel: str = ""
    type: str = ""
    timestamp: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    method: str = ""
    success: bool | None = None
    error: str | None = None
    symbol: str | None = None
    result: _Subscription | None = None


class _Level(msgspec.Struct, gc=False):
    price: Any
    size: Any = msgspec.field(name="qty")


class _Book(msgspec.Struct, gc=False):
    symbol: str
    bids: list[_Level]
    asks: list[_Level]
    checksum: int
    timestamp: str | None = None


class _Trade(msgspec.Struct, gc=False):
    symbol: str
    side: str
    price: Any
    size: Any = msgspec.field(name="qty")
    id: int = msgspec.field(name="trade_id")
    timestamp: str


class _Ticker(msgspec.Struct, gc=False):
    symbol: str
    last: Any
    bid: Any
    ask: Any
    volume: Any
    timestamp: str | None = None


class _Candle(msgspec.Struct, gc=False):
    symbol: str
    interval: int
    interval_begin: str
    open: Any
    high: Any
    low: Any
    close: Any
    volume: Any


_decode = decoder(_Frame)
_decode_books = decoder(list[_Book])
_decode_trades = decoder(list[_Trade])
_decode_tickers = decoder(list[_Ticker])
_decode_candles = decoder(list[_Candle])


class Kraken(WSController):
    """Kraken's spot markets."""

    exchange = "kraken"
    offers = CHANNELS
    url = "wss://ws.kraken.com/v2"
    rest_url = "https://api.kraken.com"
    listing_path = "/0/public/AssetPairs"
    depth = COVERED
    changes_only = True
    verdict = "checksummed"
    cut_to_depth = True
    text_numbers = True  # JSON numbers, but their digits count: whoever reads them back can prove the checksum again
    keepalive_text = '{"method":"ping"}'
    keepalive_s = 30.0
    stale_s = 25.0
    budget_per_s = 1.0
    connects_per_s = 0.25

    # --- the socket -------------------------------------------------------------------------------------------------

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each channel; each market in it is acknowledged, or refused, alone."""
        symbols = [native(market) for market in markets]
        for channel in self.channels:
            yield _request("subscribe", {**ASKED[channel], "symbol": symbols})

    def resync_messages(self, market: str) -> Iterable[str]:
        """Leave the book of a market and subscribe to it again, which begins with a complete one."""
        wanted = {**ASKED[ORDERBOOK], "symbol": [native(market)]}
        left = {key: value for key, value in wanted.items() if key != "snapshot"}
        return (_request("unsubscribe", left), _request("subscribe", wanted))

    def checksum(self, book: OrderBook) -> int:
        """Return the CRC-32 of the digits of the best asks, then of the best bids, without points and leading zeros."""
        asks, bids = book.asks.as_text(highest_first=False), book.bids.as_text(highest_first=True)
        return zlib.crc32((_digits(asks[:COVERED]) + _digits(bids[:COVERED])).encode())

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        message = _decode(frame)
        data = bytes(message.data)
        match message.channel:
            case "":
                return _answer(message)
            case "heartbeat" | "status":
                return ()
            case "book":
                return [_book(message.type, row) for row in _decode_books(data)]
            case "trade":
                return [_trade(row) for row in sorted(_decode_trades(data), key=_trade_id)]
            case "ticker":
                return [_ticker(row) for row in _decode_tickers(data)]
            case "ohlc":
                told_us = _microseconds(message.timestamp)
                return sorted((_candle(row, told_us) for row in _decode_candles(data)), key=_opened_us)
        raise UnknownFrame(f"channel was {message.channel!r}")

    # --- REST -------------------------------------------------------------------------------------------------------

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST, which knows the old codes."""
        symbol, _, currency = market.partition("-")
        return (
            f"/0/public/Depth?pair={NEW_CODES.get(symbol, symbol)}{NEW_CODES.get(currency, currency)}&count={COVERED}"
        )

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a REST book, whose levels are `[price, size, time]` under a name of its own."""
        (book,) = _result(body).values()
        bids = listed((row[0], row[1]) for row in book["bids"][:COVERED])
        asks = listed((row[0], row[1]) for row in book["asks"][:COVERED])
        return Book(market, bids, asks)

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the pairs that trade; those of dark pools have no name here, those of shares one in small letters."""
        rows = [row for row in _result(body).values() if row.get("status", "online") == "online"]
        names = [row["wsname"] for row in rows if row.get("wsname", "").isupper()]
        return house_form("-".join(OLD_CODES.get(code, code) for code in name.split("/")) for name in names)


def native(market: str) -> str:
    """Return `BTC/USD` for `BTC-USD`."""
    return market.replace("-", "/")


def _house(symbol: str) -> str:
    return symbol.replace("/", "-")


def _request(method: str, params: dict[str, Any]) -> str:
    return msgspec.json.encode({"method": method, "params": params}).decode()


def _digits(levels: Changes) -> str:
    return "".join(token.replace(".", "").lstrip("0") for level in levels for token in level)


def _answer(message: _Frame) -> Iterable[Message]:
    if message.method in ("pong", "unsubscribe"):
        return ()
    if message.success is False:
        detail = message.error or "refused without a reason"
        if "rate limit" in detail.lower() or "msg rate" in detail.lower():
            raise RateLimited(detail)
        return (Refused(detail, None if message.symbol is None else _house(message.symbol)),)
    if message.method != "subscribe" or message.result is None:
        raise UnknownFrame(f"method was {message.method!r}")
    channel = STREAMS.get(message.result.channel)
    return () if channel is None else (Subscribed(channel, _house(message.result.symbol)),)


def _book(kind: str, row: _Book) -> Book | BookChange:
    if kind not in ("snapshot", "update"):
        raise UnknownFrame(f"type of a book was {kind!r}")
    bids, asks, told_us = side(row.bids), side(row.asks), _microseconds(row.timestamp)
    if kind == "snapshot":
        return Book(_house(row.symbol), bids, asks, told_us, checksum=row.checksum)
    return BookChange(_house(row.symbol), bids, asks, told_us, checksum=row.checksum)


def _trade_id(row: _Trade) -> int:
    return row.id


def _trade(row: _Trade) -> Trade:
    traded_us = _microseconds(row.timestamp)
    if row.side not in ("buy", "sell") or traded_us is None:
        raise BadFrame(f"side of a trade was {row.side!r}")
    taker: Literal["buy", "sell"] = "buy" if row.side == "buy" else "sell"
    return Trade(_house(row.symbol), trade_id(row.id), taker, row.price, row.size, traded_us)


def _ticker(row: _Ticker) -> Ticker:
    last, bid, ask = (None if is_zero(price) else price for price in (row.last, row.bid, row.ask))
    return Ticker(_house(row.symbol), last, bid, ask, row.volume, _microseconds(row.timestamp))


def _opened_us(candle: Candle) -> int:
    return candle.open_us


def _candle(row: _Candle, told_us: int | None) -> Candle:
    opened_us = _microseconds(row.interval_begin)
    if row.interval != 1 or opened_us is None:
        raise UnknownFrame(f"interval was {row.interval}")
    prices = row.open, row.high, row.low, row.close
    return Candle(_house(row.symbol), 60, minute_us(opened_us), *prices, row.volume, venue_us=told_us)


def _microseconds(text: str | None) -> int | None:
    # `2026-08-16T23:37:04.316445Z`; of candles with nine places, of which the last three are nought.
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadFrame(f"time {text!r} is not a date") from None
    if time.tzinfo is None or time < EPOCH:
        raise BadFrame(f"time {text!r} is not a moment since 1970")
    return (time - EPOCH) // timedelta(microseconds=1)


def _result(body: bytes) -> dict[str, Any]:
    answer = decode_any(body)
    if answer["error"]:
        detail = ", ".join(map(str, answer["error"]))
        raise RateLimited(detail) if "rate limit" in detail.lower() else VenueRefused(detail)
    return dict(answer["result"])
