"""Bybit, spot and contracts.  Docs: https://bybit-exchange.github.io/docs/v5/ws/connect (read 2026-11-21)

One complete book after subscribing, then what changed; a later complete one replaces it at any time. Quirks:
- a socket for each category, and `BTCUSDT` is another market on each: spot, linear and inverse are three classes;
- `u` rises by exactly one with every message of a book; 1 means that the service began anew, and that the message is a
  complete book whatever its type says;
- 200 levels every 100 ms: the deepest of the books that are sent often; levels that fall out of it are removed by name;
- tickers of contracts hold only what changed; an empty text is a field without a value;
- inverse contracts count in dollars: their `turnover` is what others call volume;
- a refusal names the topic and leaves the socket open; a request for each market keeps one from spoiling another;
- text numbers; the client pings every 20 s.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from collector.errors import BadFrame, RateLimited, UnknownFrame, VenueRefused
from collector.numbers import decoder
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
from controllers.base import Setup
from controllers.contracts import contract
from controllers.levels import house_form, listed, minute_us, shaped, venue_us
from controllers.websocket import WSController

Rows = list[tuple[str, str]]

# A repeated or a late message is never further behind: the numbers began anew, and the book with them.
REPEATS_MAX = 10_000
TOO_MANY_REQUESTS = 10006
PAGE = 1000  # instruments in one answer, at most
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
QUARTERS = {3: "H", 6: "M", 9: "U", 12: "Z"}  # letters of the months in which inverse futures expire


class _Frame(msgspec.Struct, gc=False):
    topic: str = ""
    type: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    ts: int | None = None
    cts: int | None = None
    op: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str = ""


class _Book(msgspec.Struct, gc=False):
    bids: Rows = msgspec.field(name="b")
    asks: Rows = msgspec.field(name="a")
    update: int = msgspec.field(name="u")


class _Trade(msgspec.Struct, gc=False):
    id: str = msgspec.field(name="i")
    side: str = msgspec.field(name="S")
    price: str = msgspec.field(name="p")
    size: str = msgspec.field(name="v")
    filled: int = msgspec.field(name="T")


class _Ticker(msgspec.Struct, gc=False):
    last: str | None = msgspec.field(name="lastPrice", default=None)
    bid: str | None = msgspec.field(name="bid1Price", default=None)
    ask: str | None = msgspec.field(name="ask1Price", default=None)
    volume: str | None = msgspec.field(name="volume24h", default=None)
    turnover: str | None = msgspec.field(name="turnover24h", default=None)


class _Candle(msgspec.Struct, gc=False):
    start: int
    interval: str
    open: str
    high: str
    low: str
    close: str
    volume: str
    turnover: str
    confirm: bool = False
    timestamp: int | None = None


class _Listed(msgspec.Struct, gc=False):
    symbol: str
    status: str
    base: str = msgspec.field(name="baseCoin")
    quote: str = msgspec.field(name="quoteCoin")
    settle: str = msgspec.field(name="settleCoin", default="")
    kind: str = msgspec.field(name="contractType", default="")
    delivery_ms: str = msgspec.field(name="deliveryTime", default="0")


class _Result(msgspec.Struct, gc=False):
    bids: Rows | None = msgspec.field(name="b", default=None)
    asks: Rows | None = msgspec.field(name="a", default=None)
    rows: list[_Listed] | None = msgspec.field(name="list", default=None)
    next_page: str = msgspec.field(name="nextPageCursor", default="")
    time_ms: int | None = msgspec.field(name="ts", default=None)


class _Answer(msgspec.Struct, gc=False):
    code: int = msgspec.field(name="retCode")
    text: str = msgspec.field(name="retMsg", default="")
    result: _Result | None = None


_decode = decoder(_Frame)
_decode_book = decoder(_Book)
_decode_trades = decoder(list[_Trade])
_decode_ticker = decoder(_Ticker)
_decode_candles = decoder(list[_Candle])
_decode_answer = decoder(_Answer)

_is_id = re.compile(r"[0-9A-Za-z-]{1,64}").fullmatch  # digits, or a UUID
_symbol_of_topic = re.compile(r"\.([A-Z0-9-]+)$").search


class Bybit(WSController):
    """Bybit's spot markets, and what its categories share."""

    exchange = "bybit"
    category: ClassVar[str] = "spot"
    in_dollars: ClassVar[bool] = False  # what is called volume counts in the currency, and the turnover in the symbol
    offers = CHANNELS
    url = "wss://stream.bybit.com/v5/public/spot"
    rest_url = "https://api.bybit.com"
    listing_path = "/v5/market/instruments-info?category=spot"
    depth = 200
    changes_only = True
    verdict = "linked"
    text_numbers = True
    keepalive_text = '{"op":"ping"}'
    keepalive_s = 20.0
    stale_s = 50.0
    budget_per_s = 50.0  # 120 are allowed
    connects_per_s = 1.5

    def __init__(self, markets: Sequence[str], setup: Setup, *, generation: int = 1) -> None:
        super().__init__(tuple(markets), setup, generation=generation)
        self._markets = {native(market): market for market in markets}

    # --- the socket -------------------------------------------------------------------------------------------------

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each market, named after it: a request of spot takes ten topics at most."""
        for market in markets:
            yield _request("subscribe", [self._topic(channel, market) for channel in self.channels], market)

    def resync_messages(self, market: str) -> Iterable[str]:
        """Leave the book of a market and subscribe to it again, which begins with a complete one."""
        topics = [self._topic(ORDERBOOK, market)]
        return (_request("unsubscribe", topics), _request("subscribe", topics))

    def _topic(self, channel: str, market: str) -> str:
        names = {ORDERBOOK: f"orderbook.{self.depth}", TRADES: "publicTrade", TICKER: "tickers", CANDLES: "kline.1"}
        return f"{names[channel]}.{native(market)}"

    def is_old(self, change: BookChange, sequence: int) -> bool:
        """Tell whether the book holds a change; one from far below is of another count, and no repeat."""
        return change.sequence is not None and sequence - REPEATS_MAX <= change.sequence <= sequence

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether `u` is the next number."""
        return change.sequence == sequence + 1

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        message = _decode(frame)
        if not message.topic:
            return self._control(message)
        kind, _, symbol = message.topic.rpartition(".")
        market = self._markets.get(symbol, symbol)
        data = bytes(message.data)
        if kind == f"orderbook.{self.depth}":
            return (_book(market, message, _decode_book(data)),)
        if kind == "publicTrade":
            return [_trade(market, row) for row in _decode_trades(data)]
        if kind == "tickers":
            return (self._ticker(market, message, _decode_ticker(data)),)
        if kind == "kline.1":
            return [self._candle(market, row) for row in _decode_candles(data)]
        raise UnknownFrame(f"topic was {message.topic!r}")

    def _control(self, message: _Frame) -> Iterable[Message]:
        if message.op in ("ping", "pong", "unsubscribe"):
            return ()
        if message.success is False:
            found = _symbol_of_topic(message.ret_msg)
            named = self._markets.get(found[1]) if found else None
            return (Refused(message.ret_msg, message.req_id if message.req_id in self.markets else named),)
        if message.op != "subscribe":
            raise UnknownFrame(f"op was {message.op!r}")
        if message.req_id not in self.markets:
            return ()  # a book that was asked for anew
        return [Subscribed(channel, message.req_id) for channel in self.channels if channel != ORDERBOOK]

    def _ticker(self, market: str, message: _Frame, row: _Ticker) -> Ticker:
        volume = row.turnover if self.in_dollars else row.volume
        return Ticker(market, row.last or None, row.bid or None, row.ask or None, volume or None, venue_us(message.ts))

    def _candle(self, market: str, row: _Candle) -> Candle:
        opened_us = venue_us(row.start)
        if row.interval != "1" or opened_us is None:
            raise UnknownFrame(f"interval was {row.interval!r}")
        volume = row.turnover if self.in_dollars else row.volume
        return Candle(
            market, 60, minute_us(opened_us), row.open, row.high, row.low, row.close, volume, row.confirm,
            venue_us(row.timestamp),
        )  # fmt: skip

    # --- REST -------------------------------------------------------------------------------------------------------

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST, whose own `u` is that of a deeper stream."""
        return f"/v5/market/orderbook?category={self.category}&symbol={native(market)}&limit={self.depth}"

    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a REST book."""
        result = _result(body)
        if result.bids is None or result.asks is None:
            raise BadFrame("an answer without a book")
        return Book(market, listed(result.bids), listed(result.asks), venue_us(result.time_ms))

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the instruments that trade; one whose name does not follow the rules can't be asked for."""
        result = _result(body)
        if result.rows is None:
            raise BadFrame("an answer without a list")
        if result.next_page and len(result.rows) >= PAGE:
            raise BadFrame(f"the list goes on after {len(result.rows)} instruments")
        return house_form(market for row in result.rows for market in cls._listed(row))

    @classmethod
    def _listed(cls, row: _Listed) -> Iterator[str]:
        market = f"{row.base}-{row.quote}"
        if cls.category != "spot":
            market += f":{row.settle}"
            if row.kind.endswith("Futures"):
                market += f"-{datetime.fromtimestamp(int(row.delivery_ms) // 1000, UTC):%y%m%d}"
        if row.status == "Trading" and cls.carries(market, ORDERBOOK) and native(market) == row.symbol:
            yield market


class BybitLinear(Bybit):
    """Contracts that are settled in USDT or USDC; sizes count in the symbol."""

    exchange = "bybit"
    product = "linear"
    category = "linear"
    url = "wss://stream.bybit.com/v5/public/linear"
    listing_path = f"/v5/market/instruments-info?category=linear&limit={PAGE}"
    ticker_changes = True

    @classmethod
    def carries(cls, market: str, channel: str) -> bool:
        """Tell whether it is such a contract."""
        it = contract(market)
        kind = it.settle in ("USDT", "USDC") and it.settle == it.currency and it.strike is None
        return channel in cls.offers and kind and (it.expiry is None or 1 <= int(it.expiry[2:4]) <= 12)


class BybitInverse(Bybit):
    """Contracts of one dollar each that are settled in the symbol."""

    exchange = "bybit"
    product = "inverse"
    category = "inverse"
    in_dollars = True
    url = "wss://stream.bybit.com/v5/public/inverse"
    listing_path = f"/v5/market/instruments-info?category=inverse&limit={PAGE}"
    ticker_changes = True

    @classmethod
    def carries(cls, market: str, channel: str) -> bool:
        """Tell whether it is such a contract."""
        it = contract(market)
        kind = it.inverse and it.currency == "USD" and it.strike is None
        return channel in cls.offers and kind and (it.expiry is None or int(it.expiry[2:4]) in QUARTERS)

    def unit(self, market: str) -> str:
        """Return what a size of one is."""
        return f"1 {contract(market).currency}"


def native(market: str) -> str:
    """Spell a market in house form as Bybit does; which category it belongs to is not in the name.

    Spot and perpetuals of USDT are `BTCUSDT`, perpetuals of USDC `BTCPERP`, inverse ones `BTCUSD`. Futures are
    `BTCUSDT-25DEC26` and `BTC-25DEC26` (USDC); inverse ones, which end with a quarter, `BTCUSDZ26`.
    """
    it = contract(market)
    if it.expiry is not None:
        year, month, day = it.expiry[:2], int(it.expiry[2:4]), it.expiry[4:]
        if it.inverse:
            return f"{it.symbol}{it.currency}{QUARTERS[month]}{year}"
        name = it.symbol if it.settle == "USDC" else f"{it.symbol}{it.currency}"
        return f"{name}-{int(day)}{MONTHS[month - 1]}{year}"
    return f"{it.symbol}PERP" if it.settle == "USDC" else f"{it.symbol}{it.currency}"


def _request(op: str, topics: list[str], name: str = "") -> str:
    return msgspec.json.encode({"req_id": name, "op": op, "args": topics}).decode()


def _book(market: str, message: _Frame, row: _Book) -> Book | BookChange:
    bids, asks = listed(row.bids), listed(row.asks)
    told_us = venue_us(message.ts if message.cts is None else message.cts)
    if message.type == "snapshot" or row.update == 1:
        return Book(market, bids, asks, told_us, row.update)
    if message.type != "delta":
        raise UnknownFrame(f"type of a book was {message.type!r}")
    return BookChange(market, bids, asks, told_us, row.update)


def _trade(market: str, row: _Trade) -> Trade:
    filled_us = venue_us(row.filled)
    if not _is_id(row.id):
        raise BadFrame(f"id of a trade was {row.id!r}")
    if row.side not in ("Buy", "Sell") or filled_us is None:
        raise BadFrame(f"side of a trade was {row.side!r}")
    return Trade(market, row.id, "buy" if row.side == "Buy" else "sell", row.price, row.size, filled_us)


def _result(body: bytes) -> _Result:
    answer: _Answer = _decode_answer(body)
    if answer.code == TOO_MANY_REQUESTS:
        raise RateLimited(f"{answer.code} {answer.text}")
    if answer.code or answer.result is None:
        raise VenueRefused(f"{answer.code} {answer.text}")
    return answer.result
