"""Binance, spot and USD-M futures.  Docs: https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
and https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams (read 2026-11-21)

A book is a REST snapshot that the changes of the stream continue. Quirks:
- spot numbers the changes of a market one by one, so a message begins with the number after the last one's. USD-M
  numbers those of all markets together: a market's numbers jump, and `pu` names the message before;
- the documentation has the snapshot's number inside the first message that is left; recorded ones begin right after it;
- a snapshot has 1000 levels a side, and what lies beyond them is told only when it changes: in a deep market a window
  of prices is known, which the price may leave while every number fits;
- a price is deleted also where nothing stands;
- a misspelled stream is acknowledged and silent, so an acknowledgement proves nothing;
- on spot, six messages from us in a second, pongs among them, end the connection: many streams go into one request;
- USD-M has books and all other channels on two paths since April 2026, each silent about what the other one has; its
  trades are fills of one order at one price taken together (`aggTrade`), its ticker has neither bid nor ask;
- USD-M pings every three minutes only, so it is asked for signs of life;
- `serverShutdown` says that the connection will end;
- contracts settled in coins are to move into USD-M's answers: they are left out, see docs/decisions/0008-coin-m.md.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

import msgspec

from collector.errors import UnknownFrame
from collector.numbers import decoder
from collector.records import (
    CANDLES,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    BookChange,
    Candle,
    Leaving,
    Message,
    Refused,
    Ticker,
    Trade,
)
from controllers.base import Setup
from controllers.contracts import Contract, contract
from controllers.levels import decode_any, house_form, listed, minute_us, quoted, shaped, stated_us, trade_id, venue_us
from controllers.window import WindowedController

STREAMS_A_REQUEST = 256  # a connection's greatest number of streams, 1024, fits into four requests

_Levels = list[tuple[str, str]]


class _Error(msgspec.Struct, gc=False):
    code: Any = None
    text: Any = msgspec.field(name="msg", default=None)


class _Frame(_Error, gc=False):
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()
    result: Any = msgspec.UNSET  # of a request: null
    error: _Error | None = None  # where it was refused; on some of the exchange's services the frame itself is that
    kind: Any = msgspec.field(name="e", default=None)


class _Change(msgspec.Struct, tag_field="e", tag="depthUpdate", gc=False):
    symbol: str = msgspec.field(name="s")
    sent_ms: int = msgspec.field(name="E")
    first: int = msgspec.field(name="U")
    last: int = msgspec.field(name="u")
    bids: _Levels = msgspec.field(name="b")
    asks: _Levels = msgspec.field(name="a")
    made_ms: int | None = msgspec.field(name="T", default=None)
    previous: int | None = msgspec.field(name="pu", default=None)

    def read(self, market: str) -> Message:
        time_us = venue_us(self.sent_ms if self.made_ms is None else self.made_ms)
        bids, asks = listed(self.bids), listed(self.asks)
        return BookChange(market, bids, asks, time_us, self.last, self.first, self.previous)


class _Trade(msgspec.Struct, tag_field="e", tag="trade", gc=False):
    symbol: str = msgspec.field(name="s")
    id: int = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    size: str = msgspec.field(name="q")
    made_ms: int = msgspec.field(name="T")
    buyer_made: bool = msgspec.field(name="m")  # the buyer's order stood in the book, so the taker sold

    def read(self, market: str) -> Message:
        side: Literal["buy", "sell"] = "sell" if self.buyer_made else "buy"
        return Trade(market, trade_id(self.id), side, self.price, self.size, stated_us(self.made_ms))


class _AggregateTrade(_Trade, tag_field="e", tag="aggTrade", gc=False):
    id: int = msgspec.field(name="a")


class _Ticker(msgspec.Struct, tag_field="e", tag="24hrTicker", gc=False):
    symbol: str = msgspec.field(name="s")
    sent_ms: int = msgspec.field(name="E")
    last: str = msgspec.field(name="c")
    volume: str = msgspec.field(name="v")
    bid: str | None = msgspec.field(name="b", default=None)
    ask: str | None = msgspec.field(name="a", default=None)

    def read(self, market: str) -> Message:
        return Ticker(market, self.last, quoted(self.bid), quoted(self.ask), self.volume, venue_us(self.sent_ms))


class _Minute(msgspec.Struct, gc=False):
    interval: str = msgspec.field(name="i")
    open_ms: int = msgspec.field(name="t")
    open: str = msgspec.field(name="o")
    high: str = msgspec.field(name="h")
    low: str = msgspec.field(name="l")
    close: str = msgspec.field(name="c")
    volume: str = msgspec.field(name="v")
    closed: bool = msgspec.field(name="x")


class _Candle(msgspec.Struct, tag_field="e", tag="kline", gc=False):
    symbol: str = msgspec.field(name="s")
    sent_ms: int = msgspec.field(name="E")
    minute: _Minute = msgspec.field(name="k")

    def read(self, market: str) -> Message:
        k = self.minute
        if k.interval != "1m":
            raise UnknownFrame(f"interval was {k.interval!r}")
        prices = k.open, k.high, k.low, k.close, k.volume
        return Candle(market, 60, minute_us(stated_us(k.open_ms)), *prices, k.closed, venue_us(self.sent_ms))


class _Snapshot(msgspec.Struct, gc=False):
    last: int = msgspec.field(name="lastUpdateId")
    bids: _Levels
    asks: _Levels
    made_ms: int | None = msgspec.field(name="T", default=None)


_decode = decoder(_Frame)
_decode_snapshot = decoder(_Snapshot)
_kinds: Mapping[str, Callable[[bytes], Any]] = {
    "depth": decoder(_Change),
    "trade": decoder(_Trade),
    "aggTrade": decoder(_AggregateTrade),
    "ticker": decoder(_Ticker),
    "kline_1m": decoder(_Candle),
}


class _Streams(WindowedController):
    """What spot and futures have in common."""

    streams: ClassVar[Mapping[str, str]]  # of each channel that the class offers
    depth = 100  # that are known of a side at any time; nearly always it is more than five times as many
    changes_only = True
    verdict = "linked"
    text_numbers = True
    probe_depth = depth
    snapshot_levels = 1000
    renewed_below = 500
    connection_age_s = 86_400.0
    connects_per_s = 0.9  # 300 in five minutes
    # Of 6000 units a minute on spot a snapshot costs 50, of 2400 on USD-M 20: both bear two a second.
    budget_per_s = 1.5
    stale_s = 65.0
    book_path: ClassVar[str]

    def __init__(self, markets: tuple[str, ...], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(markets, setup, generation=generation)
        self._markets_of = {self.native(market): market for market in markets}
        kinds = {stream.partition("@")[0] for stream in self.streams.values()}
        self._kinds = {kind: read for kind, read in _kinds.items() if kind in kinds}

    @classmethod
    def native(cls, market: str) -> str:
        """Return the exchange's symbol of a market: `BTCUSDT`."""
        return market.replace("-", "")

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return as few requests as can be: each counts against the messages of a second."""
        names = [self.native(market).lower() for market in markets]
        wanted = [f"{name}@{self.streams[channel]}" for name in names for channel in self.channels]
        for number, at in enumerate(range(0, len(wanted), STREAMS_A_REQUEST), 1):
            request = {"method": "SUBSCRIBE", "params": wanted[at : at + STREAMS_A_REQUEST], "id": number}
            yield msgspec.json.encode(request).decode()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame: an event under the name of its stream, or the answer to a request."""
        envelope = _decode(frame)
        data = bytes(envelope.data)
        if not data:
            return self._control(envelope)
        kind = envelope.stream.partition("@")[2].partition("@")[0]
        decode = self._kinds.get(kind)
        if decode is None:
            if envelope.stream == "!serverShutdown":
                return (Leaving("serverShutdown"),)
            raise UnknownFrame(f"stream was {envelope.stream!r}")
        event = decode(data)
        return (event.read(self._markets_of.get(event.symbol, event.symbol)),)

    def _control(self, envelope: _Frame) -> Iterable[Message]:
        if envelope.kind == "serverShutdown":
            return (Leaving("serverShutdown"),)
        error = envelope.error or envelope
        if error.code is not None:
            return (Refused(f"{error.code} {error.text}"),)
        if envelope.result is None:
            return ()
        raise UnknownFrame("neither an event nor the answer to a request")

    def snapshot_path(self, market: str) -> str:
        """Return the path of the book that the stream continues, as deep as it can be asked for at that price."""
        return f"{self.book_path}?symbol={quote(self.native(market))}&limit={self.snapshot_levels}"

    def parse_snapshot(self, market: str, body: bytes) -> Book:
        """Read `{"lastUpdateId":1,"bids":[["1.0","2.0"],...],"asks":...}`."""
        book = _decode_snapshot(body)
        return Book(market, listed(book.bids), listed(book.asks), venue_us(book.made_ms), book.last)

    def probe_path(self, market: str) -> str:
        """Return the path of the best levels of the same book; it costs a tenth of a snapshot."""
        return f"{self.book_path}?symbol={quote(self.native(market))}&limit={self.depth}"

    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a shallow snapshot."""
        return self.parse_snapshot(market, body)


class Binance(_Streams):
    """Binance's spot markets, all channels on one connection."""

    exchange = "binance"
    url = "wss://stream.binance.com:9443/stream"
    rest_url = "https://api.binance.com"
    listing_path = "/api/v3/exchangeInfo"
    book_path = "/api/v3/depth"
    streams: ClassVar = {ORDERBOOK: "depth@100ms", TRADES: "trade", TICKER: "ticker", CANDLES: "kline_1m"}
    offers = tuple(streams)

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether a change begins with the next number; the first after a snapshot may begin before it."""
        if change.first is None:
            return False
        return change.first <= sequence + 1 if joining else change.first == sequence + 1

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read `{"symbols":[{"baseAsset":"BTC","quoteAsset":"USDT","status":"TRADING",...},...],...}`.

        Other states are HALT, BREAK, CANCEL_ONLY and more: nothing is traded in any of them.
        """
        rows = decode_any(body)["symbols"]
        return house_form(f"{row['baseAsset']}-{row['quoteAsset']}" for row in rows if row["status"] == "TRADING")


class UsdmBooks(_Streams):
    """The order books of Binance's USD-M futures, on the path that has nothing else."""

    exchange = "binance"
    product = "usdm"
    url = "wss://fstream.binance.com/public/stream"
    rest_url = "https://fapi.binance.com"
    listing_path = "/fapi/v1/exchangeInfo"
    book_path = "/fapi/v1/depth"
    ping_s = 20.0
    streams: ClassVar = {ORDERBOOK: "depth@100ms"}
    offers = tuple(streams)

    @classmethod
    def carries(cls, market: str, channel: str) -> bool:
        """Tell whether a market is a perpetual contract or a future that is not settled in its own symbol."""
        return channel in cls.offers and _is_linear(contract(market))

    @classmethod
    def native(cls, market: str) -> str:
        """Return `BTCUSDT` for a perpetual contract, `BTCUSDT_261225` for a future."""
        found = contract(market)
        return f"{found.symbol}{found.currency}" + (f"_{found.expiry}" if found.expiry else "")

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether a change names the one before it; the first after a snapshot may hold its number instead."""
        if change.previous == sequence:
            return True
        return joining and change.first is not None and change.first <= sequence

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read `{"symbols":[{"symbol":"BTCUSDT_261225","marginAsset":"USDT","status":"TRADING",...},...],...}`."""
        markets = (_listed(row) for row in decode_any(body)["symbols"] if row["status"] == "TRADING")
        return house_form(str(market) for market in markets if _is_linear(market))


class UsdmMarket(UsdmBooks):
    """Trades, tickers and candles of Binance's USD-M futures."""

    exchange = "binance"
    product = "usdm_market"
    url = "wss://fstream.binance.com/market/stream"
    changes_only = False
    verdict = ""
    streams: ClassVar = {TRADES: "aggTrade", TICKER: "ticker", CANDLES: "kline_1m"}
    offers = tuple(streams)


def _is_linear(market: Contract) -> bool:
    return market.settle is not None and market.strike is None and not market.inverse


def _listed(row: Mapping[str, str]) -> Contract:
    expiry = row["symbol"].partition("_")[2]
    return Contract(row["baseAsset"], row["quoteAsset"], row["marginAsset"], expiry or None)
