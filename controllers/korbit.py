"""Korbit, since 2026 Digital X (Korea), spot.  Docs: https://docs.digitalx.miraeasset.com (read 2026-11-21)

Every frame of a book is the whole book, up to 30 levels a side; numbers are text. Trades and tickers come on the same
socket, candles are polled. Quirks:
- the exchange moved to new hosts and may leave the old ones (`wss://ws-api.korbit.co.kr/v2/public`) any day:
  `endpoint:`;
- requests are always an array, and success is told only when `requestId` is given;
- `snapshot` is true in the first frame and missing in the others;
- a halted market sends one book with empty sides and nothing more;
- the server sends a protocol ping every 30 s;
- the first frame of trades repeats the latest trade; `tradeId` rises within a market, with holes;
- a market without bids or asks has a best price of `"0"`;
- candles come oldest first; one of a day begins at 00:00 in Korea.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from collector.errors import BadFrame, UnknownFrame, VenueRefused
from collector.numbers import decoder
from collector.records import (
    CANDLES,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    Candle,
    Message,
    Refused,
    Subscribed,
    Ticker,
    Trade,
)
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
    timestamp: Any = None
    asks: list[_Level] | None = None
    bids: list[_Level] | None = None


class _Frame(msgspec.Struct, gc=False):
    type: str | None = None
    symbol: str | None = None
    data: Any = None
    status: str | None = None
    code: Any = None
    message: Any = None
    request: Any = msgspec.field(name="requestId", default=None)


class _BookFrame(msgspec.Struct, gc=False):
    data: _Data
    symbol: str
    type: str | None = None
    status: str | None = None


class _Trade(msgspec.Struct, gc=False):
    timestamp: Any
    price: Any
    size: Any = msgspec.field(name="qty")
    is_buyer_taker: bool = msgspec.field(name="isBuyerTaker")
    number: int = msgspec.field(name="tradeId")


class _TradesFrame(msgspec.Struct, gc=False):
    data: list[_Trade]
    symbol: str


class _Ticker(msgspec.Struct, gc=False):
    last: Any = msgspec.field(name="close")
    volume: Any = None
    bid: Any = msgspec.field(name="bestBidPrice", default=None)
    ask: Any = msgspec.field(name="bestAskPrice", default=None)


class _TickerFrame(msgspec.Struct, gc=False):
    data: _Ticker
    symbol: str
    timestamp: Any = None


CANDLES_A_POLL = 10

_decode = decoder(_Frame)
_decode_book = decoder(_BookFrame)
_decode_trades = decoder(_TradesFrame)
_decode_ticker = decoder(_TickerFrame)
_TYPES = {ORDERBOOK: "orderbook", TRADES: "trade", TICKER: "ticker"}


class _Korbit(Controller):
    rest_url = "https://api.digitalx.miraeasset.com"
    listing_path = "/v2/currencyPairs"
    budget_per_s = 50.0
    text_numbers = True

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the launched pairs."""
        rows = decode_any(body)["data"]
        return house_form(row["symbol"].upper().replace("_", "-") for row in rows if row["status"] == "launched")


class Korbit(_Korbit, WSController):
    """Korbit's order books, trades and tickers."""

    exchange = "korbit"
    offers = (ORDERBOOK, TRADES, TICKER)
    url = "wss://ws-api.digitalx.miraeasset.com/v2/public"
    depth = 30
    stale_s = 90.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return one array with a request for each market and channel, so that a refusal concerns only one.

        Requests are numbered by their place among all of this connection, so that an answer tells which it is to.
        """
        requests = [
            {
                "requestId": at * len(self.markets) + self.markets.index(market) + 1,
                "method": "subscribe",
                "type": _TYPES[channel],
                "symbols": [_native(market)],
            }
            for at, channel in enumerate(self.channels)
            for market in markets
        ]
        return [msgspec.json.encode(requests).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        if b'"orderbook"' not in frame:
            return self._control(frame)
        message = _decode_book(frame)
        data = message.data
        if message.type != "orderbook" or data.asks is None or data.bids is None:
            raise BadFrame("a book without type, asks or bids")
        return (Book(_house(message.symbol), side(data.bids), side(data.asks), venue_us(data.timestamp)),)

    def _control(self, frame: bytes) -> Iterable[Message]:
        message = _decode(frame)
        if message.type == "trade":
            return _trades(_decode_trades(frame))
        if message.type == "ticker":
            return (_ticker(_decode_ticker(frame)),)
        if message.status == "success":
            return self._subscribed(message.request)
        if message.status in ("fail", "error"):
            market = None
            text = str(message.message)
            if "(" in text and text.endswith(")"):  # The symbol does not exist (nope_krw)
                market = text[text.rindex("(") + 1 : -1].upper().replace("_", "-")
            return (Refused(f"{message.code or message.status} {text}", market),)
        raise UnknownFrame(f"type was {message.type!r}, status {message.status!r}")

    def _subscribed(self, request: object) -> Iterable[Message]:
        # An unknown market is refused, so this says that one is heard; a book says so itself.
        if type(request) is int and 0 < request <= len(self.channels) * len(self.markets):
            at, market = divmod(request - 1, len(self.markets))
            if self.channels[at] != ORDERBOOK:
                return (Subscribed(self.channels[at], self.markets[market]),)
        return ()

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST."""
        return f"/v2/orderbook?symbol={_native(market)}"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read `{"success":true,"data":{...}}`."""
        data = decode_any(body)["data"]
        bids = listed((row["price"], row["qty"]) for row in data["bids"])
        asks = listed((row["price"], row["qty"]) for row in data["asks"])
        return Book(market, bids, asks)


class KorbitCandles(_Korbit, RESTController):
    """Korbit's candles, polled."""

    exchange = "korbit"
    offers = (CANDLES,)
    default = False
    poll_every_s: ClassVar[Mapping[str, float]] = {CANDLES: 20.0}

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the call for the newest candles of a market."""
        return f"/v2/candles?symbol={_native(market)}&interval=1&limit={CANDLES_A_POLL}"

    @shaped
    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read `{"success":true,"data":[{"timestamp":...,"open":...},...]}`, which names no market."""
        answer = decode_any(body)
        if answer["success"] is not True:
            raise VenueRefused(str(answer.get("error")))
        return in_order(_candle(market, row) for row in answer["data"])


def _native(market: str) -> str:
    return market.lower().replace("-", "_")


def _house(symbol: str) -> str:
    name, underline, currency = symbol.upper().partition("_")
    if not underline:
        raise BadFrame(f"symbol was {symbol!r}")
    return f"{name}-{currency}"


def _trades(message: _TradesFrame) -> list[Trade]:
    market = _house(message.symbol)
    return [
        Trade(
            market,
            trade_id(trade.number),
            "buy" if trade.is_buyer_taker else "sell",
            trade.price,
            trade.size,
            stated_us(trade.timestamp),
        )
        for trade in sorted(message.data, key=lambda trade: trade.number)
    ]


def _ticker(message: _TickerFrame) -> Ticker:
    data = message.data
    prices = quoted(data.last), quoted(data.bid), quoted(data.ask)
    return Ticker(_house(message.symbol), *prices, data.volume, venue_us(message.timestamp))


def _candle(market: str, row: dict[str, Any]) -> Candle:
    prices = row["open"], row["high"], row["low"], row["close"]
    return Candle(market, 60, minute_us(stated_us(row["timestamp"])), *prices, row["volume"])
