"""GOPAX (Korea), spot.  Docs: https://gopax.github.io/wsapi and https://gopax.github.io/API (read 2026-11-21)

One complete book after subscribing, then only what changes; trades come with the book, tickers of all markets together,
candles are polled. Quirks:
- no key is needed for books; with one, the address is signed and good for 5 s;
- the server sends the text `"primus::ping::<n>"` every 30 s and closes 30 s later unless `pong` comes back;
- `entryId` counts over the whole exchange, so a lost change can't be seen: the book is compared with the REST book;
- changes up to the `maxEntryId` of the complete book are in it already, and such a change did come after it;
- a level is replaced by an entry at its price, volume 0 deletes; deleting what is not there is harmless;
- times are seconds with a fraction;
- tickers come for all markets or none, those of this connection are picked out; their best bid and ask are those of the
  last trade, their only time is that of it, and nought stands for none;
- rows of candles are `[time, low, high, open, close, volume]`, low first, and the call wants a beginning and an end.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlencode

import msgspec

from collector.errors import UnknownFrame, VenueRefused
from collector.numbers import decoder, to_decimal
from collector.records import (
    CANDLES,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    BookChange,
    Candle,
    Message,
    Refused,
    Reply,
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


class _Entry(msgspec.Struct, gc=False):
    price: Any
    size: Any = msgspec.field(name="volume")
    entry_id: int = msgspec.field(name="entryId")
    updated_at: Any = msgspec.field(name="updatedAt", default=None)

    @property
    def venue_us(self) -> int | None:
        """The time of the change in microseconds."""
        return None if self.updated_at is None else _seconds_us(self.updated_at)


class _Body(msgspec.Struct, gc=False):
    ask: list[_Entry] | None = None
    bid: list[_Entry] | None = None
    market: str | None = msgspec.field(name="tradingPairName", default=None)
    max_entry_id: int | None = msgspec.field(name="maxEntryId", default=None)
    result: bool = True
    code: int | None = msgspec.field(name="errCode", default=None)
    data: Any = msgspec.field(name="errData", default=None)


class _Frame(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="n")
    body: _Body = msgspec.field(name="o")
    request: Any = msgspec.field(name="i", default=None)


class _Trade(msgspec.Struct, gc=False):
    market: str = msgspec.field(name="tradingPairName")
    number: Any = msgspec.field(name="tradeId")
    size: Any = msgspec.field(name="baseAmount")
    price: Any
    is_buy: bool = msgspec.field(name="isBuy")
    occurred_at: Any = msgspec.field(name="occurredAt")


class _TradeFrame(msgspec.Struct, gc=False):
    body: _Trade = msgspec.field(name="o")


class _Ticker(msgspec.Struct, gc=False):
    market: str = msgspec.field(name="tradingPairName")
    last: Any = None
    bid: Any = msgspec.field(name="highestBid", default=None)
    ask: Any = msgspec.field(name="lowestAsk", default=None)
    volume: Any = msgspec.field(name="baseVolume", default=None)
    traded: Any = msgspec.field(name="lastTraded", default=None)


class _TickerList(msgspec.Struct, gc=False):
    data: list[_Ticker]


class _TickersFrame(msgspec.Struct, gc=False):
    body: dict[str, _Ticker] = msgspec.field(name="o")


class _TickerListFrame(msgspec.Struct, gc=False):
    body: _TickerList = msgspec.field(name="o")


CANDLES_OVER_MS = 900_000

_decode = decoder(_Frame)
_decode_trade = decoder(_TradeFrame)
_decode_tickers = decoder(_TickersFrame)
_decode_ticker_list = decoder(_TickerListFrame)
_WITH_BOOK = ("SubscribeToOrderBook", "SubscribeToTradingPair")
_REQUESTS = (*_WITH_BOOK, "SubscribeToTickers")


class _Gopax(Controller):
    rest_url = "https://api.gopax.co.kr"
    listing_path = "/trading-pairs"

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the live pairs; their names are in house form already."""
        return house_form(row["name"] for row in decode_any(body))


class Gopax(_Gopax, WSController):
    """GOPAX's order books, trades and tickers."""

    exchange = "gopax"
    offers = (ORDERBOOK, TRADES, TICKER)
    url = "wss://wsapi.gopax.co.kr"
    changes_only = True
    stale_s = 65.0
    connection_age_s = 86_400.0
    budget_per_s = 0.9  # of one book call a second for the whole address: no two of them may come close together

    def address(self) -> str:
        """Return the address, signed when the configuration asks for it."""
        url = super().address()
        if self.keys is None:
            return url
        try:
            return f"{url}?{urlencode(signature(*self.keys, self.clock.wall_us() // 1000))}"
        except ValueError:
            self.refused(VenueRefused("GOPAX_SECRET_KEY is not base64; copy it again from the exchange"))
            return url

    def refused(self, error: VenueRefused) -> None:
        """Go on without the key: books need none."""
        if self.keys is None:
            raise error
        self.log.warning("key_refused", error=error)
        self.keys = None

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each market, which brings its book or book and trades, and one for all tickers.

        A refusal names the request `i`.
        """
        if {ORDERBOOK, TRADES} & set(self.channels):
            name = "SubscribeToTradingPair" if TRADES in self.channels else "SubscribeToOrderBook"
            for market in markets:
                request: dict[str, object] = {"i": market, "n": name, "o": {"tradingPairName": market}}
                yield msgspec.json.encode(request).decode()
        if TICKER in self.channels:
            yield msgspec.json.encode({"i": "tickers", "n": "SubscribeToTickers", "o": {}}).decode()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        ping = frame.strip(b'"')
        if ping.startswith(b"primus::ping::") and len(ping) < 64:
            return (Reply(frame.replace(b"ping", b"pong", 1).decode("ascii", "replace")),)
        message = _decode(frame)
        body = message.body
        if not body.result and message.name in _REQUESTS:
            market = message.request if message.name in _WITH_BOOK and isinstance(message.request, str) else None
            return (Refused(f"{body.code} {body.data}", market),)
        if message.name == "PublicTradeEvent":
            return (_trade(_decode_trade(frame).body),)
        if message.name == "TickerEvent":
            return self._tickers(_decode_tickers(frame).body.values())
        if message.name == "SubscribeToTickers":
            return self._tickers(_decode_ticker_list(frame).body.data)
        if body.market is None or body.ask is None or body.bid is None:
            raise UnknownFrame(f"n was {message.name!r}")
        if message.name in _WITH_BOOK and body.max_entry_id is not None:
            newest = max((entry.venue_us or 0 for entry in body.ask + body.bid), default=0) or None
            told: list[Message] = [Book(body.market, side(body.bid), side(body.ask), newest, body.max_entry_id)]
            if message.name == "SubscribeToTradingPair":  # an unknown market is refused
                told.append(Subscribed(TRADES, body.market))
            return told if ORDERBOOK in self.channels else told[1:]
        if message.name != "OrderBookEvent":
            raise UnknownFrame(f"n was {message.name!r}")
        changes = [BookChange(body.market, {}, side([entry]), entry.venue_us, entry.entry_id) for entry in body.ask]
        changes += [BookChange(body.market, side([entry]), {}, entry.venue_us, entry.entry_id) for entry in body.bid]
        if ORDERBOOK not in self.channels:
            return ()  # trades don't come without the book
        return sorted(changes, key=lambda change: (change.venue_us or 0, change.sequence or 0))

    def _tickers(self, rows: Iterable[_Ticker]) -> list[Message]:
        return [_ticker(row) for row in rows if row.market in self.markets]

    def probe_path(self, market: str) -> str:
        """Return the path of the complete REST book."""
        return f"/trading-pairs/{market}/book?level=3"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a REST book, whose entries are `[id, price, volume, time]`."""
        book = decode_any(body)
        bids = listed((row[1], row[2]) for row in book["bid"])
        asks = listed((row[1], row[2]) for row in book["ask"])
        return Book(market, bids, asks)


class GopaxCandles(_Gopax, RESTController):
    """GOPAX's candles, polled."""

    exchange = "gopax"
    offers = (CANDLES,)
    default = False
    budget_per_s = 10.0  # of 20 for the whole address; only the book call has less
    poll_every_s: ClassVar[Mapping[str, float]] = {CANDLES: 20.0}

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the call for the candles of the last quarter of an hour; minutes without a trade have none."""
        now_ms = now_us // 1000
        return f"/trading-pairs/{market}/candles?start={now_ms - CANDLES_OVER_MS}&end={now_ms}&interval=1"

    @shaped
    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read `[[time, low, high, open, close, volume],...]`, which names no market."""
        return in_order(_candle(market, *row) for row in decode_any(body))


def _seconds_us(seconds: Any) -> int:
    return stated_us(int(to_decimal(seconds).scaleb(6).to_integral_value()))


def _trade(trade: _Trade) -> Trade:
    number, traded_us = trade_id(trade.number), _seconds_us(trade.occurred_at)
    return Trade(trade.market, number, "buy" if trade.is_buy else "sell", trade.price, trade.size, traded_us)


def _ticker(row: _Ticker) -> Ticker:
    prices = quoted(row.last), quoted(row.bid), quoted(row.ask)
    return Ticker(row.market, *prices, row.volume, venue_us(row.traded))


def _candle(market: str, time: Any, low: Any, high: Any, first: Any, last: Any, volume: Any) -> Candle:
    return Candle(market, 60, minute_us(stated_us(time)), first, high, low, last, volume)


def signature(key: str, secret: str, now_ms: int) -> dict[str, str]:
    """Return the query parameters that sign a socket's address.

    HMAC-SHA512 over `t<timestamp>` with the base64-decoded secret, base64-encoded (gopax.github.io/wsapi).
    """
    mac = hmac.new(base64.b64decode(secret), f"t{now_ms}".encode(), hashlib.sha512)
    return {"apiKey": key, "timestamp": str(now_ms), "signature": base64.b64encode(mac.digest()).decode()}
