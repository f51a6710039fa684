"""OKX (global), spot, swaps, futures and options.  Docs: https://www.okx.com/docs-v5/en (API v5, 2026)

Books are sent whole once (400 levels a side), then as changes that name the `seqId` they follow. Quirks:
- `seqId` may fall after maintenance and is repeated by a keep-alive without levels: only `prevSeqId` proves the chain;
- `checksum` is always 0 today. In 2022 it was not, and there was no `seqId`: a checksum is still compared where one is
  sent, and a book with neither is refused;
- the exchange itself tells which levels leave the 400;
- candles have an address of their own (`/business`), which does not know the other channels;
- sizes of contracts count contracts; `volCcy` of tickers and candles is then the amount in the symbol, while on the
  spot market it is the amount in the currency;
- a connection without data in either direction for 30 s is cut: the text `ping` is answered with `pong`;
- 480 requests an hour on one connection, and 64 KB each.
"""

import functools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, zip_longest
from typing import Any

import msgspec

from collector.errors import BadFrame, UnknownFrame, VenueRefused
from collector.numbers import EXACT, Number, decoder, to_decimal
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
    Subscribed,
    Ticker,
    Trade,
)
from collector.settings import MARKET_PATTERN
from controllers.book import OrderBook
from controllers.contracts import Contract, contract
from controllers.levels import Levels, decode_any, listed, minute_us, shaped, trade_id
from controllers.websocket import WSController

CHANNELS = {ORDERBOOK: "books", TRADES: "trades", TICKER: "tickers", CANDLES: "candle1m"}
REQUEST_BYTES_MAX = 48 * 1024  # the exchange takes 64 KB
CHECKED_LEVELS = 25  # of each side, in the old checksum
LEAVING = "64008"

_names = {name: channel for channel, name in CHANNELS.items()}
_about = re.compile(r"channel:([^,\s]+),\s*instId:([^,\s]+)")
_is_market = re.compile(MARKET_PATTERN).match


class _Arg(msgspec.Struct, gc=False):
    channel: str = ""
    instrument: str = msgspec.field(name="instId", default="")


class _Row(msgspec.Struct, gc=False):
    # What the public channels say, one of them at a time.
    time_ms: str | None = msgspec.field(name="ts", default=None)
    # books
    bids: list[list[str]] | None = None
    asks: list[list[str]] | None = None
    sequence: int | None = msgspec.field(name="seqId", default=None)
    previous: int | None = msgspec.field(name="prevSeqId", default=None)
    checksum: int = 0
    # trades
    trade_id: str = msgspec.field(name="tradeId", default="")
    price: str = msgspec.field(name="px", default="")
    size: str = msgspec.field(name="sz", default="")
    side: str = ""
    # tickers
    last: str | None = None
    bid: str = msgspec.field(name="bidPx", default="")
    ask: str = msgspec.field(name="askPx", default="")
    volume: str = msgspec.field(name="vol24h", default="")
    volume_in_currency: str = msgspec.field(name="volCcy24h", default="")


class _Envelope(msgspec.Struct, gc=False):
    arg: _Arg | None = None
    event: str = ""
    code: str = ""
    msg: str = ""
    action: str = ""


class _Frame(_Envelope, gc=False):
    data: list[_Row] | None = None


class _CandleFrame(_Envelope, gc=False):
    data: list[list[str]] | None = None


_decode = decoder(_Frame)
_decode_candles = decoder(_CandleFrame)


@functools.lru_cache(maxsize=8192)
def house_form(instrument: str) -> str:
    """Return `BTC-USDT:USDT` for `BTC-USDT-SWAP` and the like; raises `BadFrame` for what is no instrument.

    What is priced in USD is settled in the symbol, all else in what it is priced in.
    """
    match instrument.split("-"):
        case [symbol, currency]:
            found = Contract(symbol, currency)
        case [symbol, currency, "SWAP"]:
            found = Contract(symbol, currency, _settle(symbol, currency))
        case [symbol, currency, expiry]:
            found = Contract(symbol, currency, _settle(symbol, currency), expiry)
        case [symbol, currency, expiry, strike, right]:
            found = Contract(symbol, currency, _settle(symbol, currency), expiry, strike, right)
        case _:
            raise BadFrame(f"{instrument!r} is no instrument")
    if not _is_market(str(found)):
        raise BadFrame(f"{instrument!r} is no instrument")
    return str(found)


def native(market: str) -> str:
    """Return `BTC-USDT-SWAP` for `BTC-USDT:USDT` and the like."""
    parts = contract(market)
    tail = ["SWAP"] if parts.perpetual else [part for part in parts[3:] if part is not None]
    return "-".join((parts.symbol, parts.currency, *tail))


def _settle(symbol: str, currency: str) -> str:
    return symbol if currency == "USD" else currency


def crc(bids: Iterable[tuple[Number, Number]], asks: Iterable[tuple[Number, Number]]) -> int:
    """Return the checksum of 2022 over levels that stand best first, in the exchange's own digits.

    Price and size of the best bid, the best ask, the second bid and so on, 25 of each side, joined by colons: the CRC32
    of that text as a signed number. A side that is thinner is left out where it has no more.
    """
    pairs = zip_longest(_first(bids), _first(asks))
    text = ":".join(str(token) for level in chain.from_iterable(pairs) if level is not None for token in level)
    value = zlib.crc32(text.encode())
    return value - (1 << 32) if value >= 1 << 31 else value


def _first(levels: Iterable[tuple[Number, Number]]) -> list[tuple[Number, Number]]:
    return list(levels)[:CHECKED_LEVELS]


class _Channels(WSController):
    """What both addresses have in common."""

    rest_url = "https://www.okx.com"
    listing_path = "/api/v5/public/instruments?instType=SPOT"
    text_numbers = True
    keepalive_text = "ping"
    keepalive_s = 15.0
    stale_s = 40.0
    budget_per_s = 10.0  # of 20 in 2 s for instruments and 40 in 2 s for books
    connects_per_s = 3.0

    @classmethod
    def listing_paths(cls) -> Sequence[str]:
        """Return a call for each kind of instrument; options are listed by family only, and are recorded by name."""
        return tuple(f"/api/v5/public/instruments?instType={kind}" for kind in ("SPOT", "SWAP", "FUTURES"))

    @classmethod
    def carries(cls, market: str, channel: str) -> bool:
        """Tell whether this address has a channel, and whether a market is settled in what it would be settled in."""
        if channel not in cls.offers:
            return False
        try:
            return house_form(native(market)) == market
        except BadFrame:
            return False

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return as few requests as hold every channel of every market: they are counted, not what is in them."""
        arguments = [_argument(channel, market) for market in markets for channel in self.channels]
        batch: list[dict[str, str]] = []
        size = 0
        for argument in arguments:
            size += len(msgspec.json.encode(argument)) + 1
            if batch and size > REQUEST_BYTES_MAX:
                yield _request("subscribe", batch)
                batch, size = [], len(msgspec.json.encode(argument)) + 1
            batch.append(argument)
        if batch:
            yield _request("subscribe", batch)

    def read_event(self, message: _Envelope) -> Iterable[Message]:
        """Read what is no data: acknowledgements, refusals, notices."""
        match message.event:
            case "subscribe" if message.arg is not None:
                channel = _names.get(message.arg.channel)
                if channel is None:
                    raise UnknownFrame(f"channel was {message.arg.channel!r}")
                market = house_form(message.arg.instrument)
                return () if channel == ORDERBOOK else (Subscribed(channel, market),)  # a book opens with its snapshot
            case "unsubscribe":
                return ()
            case "notice" if message.code == LEAVING:
                return (Leaving(message.msg or message.code),)
            case "error":
                detail = f"{message.code}: {message.msg}"
                about = _about.search(message.msg)
                if about is None:
                    raise VenueRefused(detail)
                try:
                    return (Refused(detail, house_form(about[2])),)
                except BadFrame:
                    return (Refused(detail),)
            case other:
                raise UnknownFrame(f"event was {other!r}, code {message.code!r}")

    # --- REST ---------------------------------------------------------------------------------------------------------

    def unit_path(self, market: str) -> str | None:
        """Return the path of a contract's description; sizes on the spot market need none."""
        parts = contract(market)
        if parts.settle is None:
            return None
        family = f"{parts.symbol}-{parts.currency}"
        kind = "SWAP" if parts.perpetual else "FUTURES" if parts.strike is None else f"OPTION&instFamily={family}"
        return f"/api/v5/public/instruments?instType={kind}&instId={native(market)}"

    @shaped
    def parse_unit(self, market: str, body: bytes) -> str:
        """Read what one contract is worth: `ctVal` times `ctMult`, in `ctValCcy`."""
        wanted = native(market)
        row = next((row for row in _answer(body) if row["instId"] == wanted), None)
        if row is None:
            raise BadFrame(f"{wanted} is not listed")
        worth = EXACT.multiply(to_decimal(row["ctVal"]), to_decimal(row["ctMult"]))
        if not worth > Decimal(0) or not row["ctValCcy"]:
            raise BadFrame(f"a contract of {wanted} is worth {row['ctVal']!r} {row['ctValCcy']!r}")
        return f"{worth.normalize(EXACT):f} {row['ctValCcy']}"

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read one list of instruments, of whatever kind: those that trade now.

        Left out is what is settled in something else than its name tells (`house_form`): it could not be asked for.
        """
        found: list[str] = []
        for row in _answer(body):
            try:
                market = house_form(row["instId"])
            except BadFrame:
                continue
            if row["state"] == "live" and (contract(market).settle or "") == row["settleCcy"]:
                found.append(market)
        return found


class Okx(_Channels):
    """OKX's books, trades and tickers."""

    exchange = "okx"
    offers = (ORDERBOOK, TRADES, TICKER)
    url = "wss://ws.okx.com:8443/ws/v5/public"
    depth = 400
    changes_only = True
    verdict = "linked"
    probe_depth = 100  # the far end of 400 levels moves while one asks

    def resync_messages(self, market: str) -> Iterable[str]:
        """Return the requests that end one market's book and begin it anew."""
        argument = _argument(ORDERBOOK, market)
        return _request("unsubscribe", [argument]), _request("subscribe", [argument])

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        if frame == b"pong":
            return ()
        message: _Frame = _decode(frame)
        if message.event:
            return self.read_event(message)
        if message.arg is None or message.data is None:
            raise UnknownFrame("it is neither an event nor data")
        channel = _names.get(message.arg.channel)
        if channel not in self.offers:
            raise UnknownFrame(f"channel was {message.arg.channel!r}")
        market = house_form(message.arg.instrument)
        if channel == ORDERBOOK:
            return [_book(market, message.action, row) for row in message.data]
        if channel == TRADES:
            return sorted((_trade(market, row) for row in message.data), key=_number)
        return [_ticker(market, row) for row in message.data]

    def is_old(self, change: BookChange, sequence: int) -> bool:
        """Say never: numbers may fall, so a lower one proves nothing."""
        return False

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Tell whether a change names the book's number as the one before it."""
        return change.previous == sequence

    def checksum(self, book: OrderBook) -> int:
        """Return the checksum of 2022; today's messages have none to compare it with."""
        return crc(book.bids.as_text(highest_first=True), book.asks.as_text(highest_first=False))

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST."""
        return f"/api/v5/market/books?instId={native(market)}&sz=400"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a list of one book, whose levels are those of the socket."""
        (book,) = _answer(body)
        bids, asks = (listed((row[0], row[1]) for row in book[side]) for side in ("bids", "asks"))
        return Book(market, bids, asks, _time_us(book["ts"]), book.get("seqId"))


class OkxBusiness(_Channels):
    """OKX's candles."""

    exchange = "okx"
    product = "business"
    offers = (CANDLES,)
    url = "wss://ws.okx.com:8443/ws/v5/business"

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        if frame == b"pong":
            return ()
        message: _CandleFrame = _decode_candles(frame)
        if message.event:
            return self.read_event(message)
        if message.arg is None or message.data is None:
            raise UnknownFrame("it is neither an event nor data")
        if message.arg.channel != CHANNELS[CANDLES]:
            raise UnknownFrame(f"channel was {message.arg.channel!r}")
        market = house_form(message.arg.instrument)
        return sorted((_candle(market, row) for row in message.data), key=lambda candle: candle.open_us)


def _argument(channel: str, market: str) -> dict[str, str]:
    return {"channel": CHANNELS[channel], "instId": native(market)}


def _request(what: str, arguments: list[dict[str, str]]) -> str:
    return msgspec.json.encode({"op": what, "args": arguments}).decode()


def _book(market: str, action: str, row: _Row) -> Book | BookChange:
    if row.bids is None or row.asks is None:
        raise BadFrame("a book has no bids or no asks")
    checksum = row.checksum or None
    if row.sequence is None and checksum is None:
        raise BadFrame("a book has neither seqId nor checksum: nothing would prove it")
    bids, asks, at_us = _levels(row.bids), _levels(row.asks), _time_us(row.time_ms)
    if action == "snapshot":
        return Book(market, bids, asks, at_us, row.sequence, None, checksum)
    if action != "update":
        raise UnknownFrame(f"action was {action!r}")
    return BookChange(market, bids, asks, at_us, row.sequence, None, row.previous, checksum)


def _levels(rows: list[list[str]]) -> Levels:
    """Read `[price, size, "0", orders]`."""
    try:
        levels: Levels = {row[0]: row[1] for row in rows}
    except IndexError:
        raise BadFrame("a level has no size") from None
    if len(levels) != len(rows):
        raise BadFrame("a price stands there twice")
    return levels


def _trade(market: str, row: _Row) -> Trade:
    if row.side not in ("buy", "sell"):
        raise BadFrame(f"side was {row.side!r}")
    return Trade(market, trade_id(row.trade_id), row.side, row.price, row.size, _time_us(row.time_ms))  # type: ignore[arg-type]


def _number(trade: Trade) -> int:
    return int(trade.id or 0)


def _ticker(market: str, row: _Row) -> Ticker:
    if row.last is None:
        raise BadFrame("a ticker has no last price")
    volume = row.volume_in_currency if ":" in market else row.volume
    # An option that never traded has no last price, an empty side no best one: the text is empty then.
    return Ticker(market, row.last or None, row.bid or None, row.ask or None, volume or None, _time_us(row.time_ms))


def _candle(market: str, row: list[str]) -> Candle:
    """Read `[time, open, high, low, close, vol, volCcy, volCcyQuote, confirm]`; in 2022 the last two were not there."""
    if len(row) < 7:
        raise BadFrame(f"a candle has {len(row)} fields")
    opened, first, high, low, last, volume, in_currency = row[:7]
    if ":" in market:
        volume = in_currency
    return Candle(market, 60, minute_us(_time_us(opened)), first, high, low, last, volume, row[8:9] == ["1"])


def _time_us(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) == 13):
        raise BadFrame(f"time {text!r} is not in milliseconds")
    return int(text) * 1000


def _answer(body: bytes) -> Iterator[dict[str, Any]]:
    """Return the rows of a REST answer; raises `VenueRefused` where it is a refusal."""
    answer = decode_any(body)
    if answer["code"] != "0":
        raise VenueRefused(f"{answer['code']}: {answer['msg']}")
    return iter(answer["data"])
