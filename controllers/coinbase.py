"""Coinbase Advanced, spot.  Docs: https://docs.cdp.coinbase.com/api-reference/advanced-trade-api (read 2026-11-21)

One complete book after subscribing (every level there is), then what changes; no key is needed. Quirks:
- one channel a request; `level2` is answered as `l2_data`, its sides are called `bid` and `offer`;
- `sequence_num` counts every frame of the connection, acknowledgements and heartbeats too: a frame that is missing
  shows at the next one, of whatever channel, and nobody knows whose it was;
- the complete book may come before the acknowledgement; one frame may hold events of several products;
- channels without news are closed after 60 to 90 s unless `heartbeats`, one a second, is subscribed as well;
- `-USDC` products are the `-USD` ones by another name, and answered under that (but for a few of their own);
- trades stand newest first in a frame, and a subscription begins with some that were before it;
- `side` of a trade is the maker's, so the taker did the opposite. The documentation of this interface does not say;
  that of Coinbase Exchange, whose matching engine and trade ids these are, does. In a recording of it all 31 matches
  have another side than the ticker of the same trade, and 24 of 24 ticker prices at a best price were at that of the
  ticker's side: the ticker tells the taker's, the match the maker's. Two other adapters for this interface agree;
- the candles of the socket last five minutes: those of one minute are only had over REST;
- an unknown channel is answered with `authentication failure`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import msgspec

from collector.errors import BadFrame, UnknownFrame
from collector.numbers import Number, decoder
from collector.records import (
    CANDLES,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    BookChange,
    Candle,
    Message,
    Numbered,
    Refused,
    Subscribed,
    Ticker,
    Trade,
)
from collector.times import parse_time
from controllers.base import Controller
from controllers.levels import (
    Levels,
    decode_any,
    house_form,
    in_order,
    listed,
    minute_us,
    quoted,
    shaped,
    stated_us,
    trade_id,
)
from controllers.rest import RESTController
from controllers.websocket import WSController

NATIVE = {ORDERBOOK: "level2", TRADES: "market_trades", TICKER: "ticker"}
MINUTES_A_POLL = 5
OWN_USDC = frozenset(("USDT-USDC", "EURC-USDC"))  # products that are no other name of one in USD


class _Frame(msgspec.Struct, gc=False):
    channel: str = ""
    timestamp: str | None = None
    sequence: int | None = msgspec.field(name="sequence_num", default=None)
    events: msgspec.Raw = msgspec.Raw(b"[]")
    type: str | None = None
    message: Any = None


class _Level(msgspec.Struct, gc=False):
    side: str
    price: str = msgspec.field(name="price_level")
    size: str = msgspec.field(name="new_quantity")
    event_time: str | None = None


class _BookEvent(msgspec.Struct, gc=False):
    type: str
    product: str = msgspec.field(name="product_id")
    updates: list[_Level]


class _Trade(msgspec.Struct, gc=False):
    product: str = msgspec.field(name="product_id")
    id: str = msgspec.field(name="trade_id")
    price: str
    size: str
    time: str
    side: str


class _TradeEvent(msgspec.Struct, gc=False):
    trades: list[_Trade]


class _Ticker(msgspec.Struct, gc=False):
    product: str = msgspec.field(name="product_id")
    last: str | None = msgspec.field(name="price", default=None)
    bid: str | None = msgspec.field(name="best_bid", default=None)
    ask: str | None = msgspec.field(name="best_ask", default=None)
    volume: str | None = msgspec.field(name="volume_24_h", default=None)


class _TickerEvent(msgspec.Struct, gc=False):
    tickers: list[_Ticker]


class _SubscriptionsEvent(msgspec.Struct, gc=False):
    subscriptions: dict[str, list[str]]


_decode = decoder(_Frame)
_decode_books = decoder(list[_BookEvent])
_decode_trades = decoder(list[_TradeEvent])
_decode_tickers = decoder(list[_TickerEvent])
_decode_subscriptions = decoder(list[_SubscriptionsEvent])


class _Coinbase(Controller):
    rest_url = "https://api.coinbase.com"
    listing_path = "/api/v3/brokerage/market/products?product_type=SPOT"
    text_numbers = True
    budget_per_s = 5.0
    connects_per_s = 4.0

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the spot products that can be traded; their names are in house form."""
        rows = decode_any(body)["products"]
        return house_form(row["product_id"] for row in rows if row["product_type"] == "SPOT" and _trades_now(row))


class Coinbase(_Coinbase, WSController):
    """Coinbase's books, trades and tickers."""

    exchange = "coinbase"
    url = "wss://advanced-trade-ws.coinbase.com"
    offers = (ORDERBOOK, TRADES, TICKER)
    changes_only = True
    verdict = "linked"
    probe_depth = 100
    stale_s = 25.0

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        # The product under which the exchange speaks of markets, to those markets.
        names: dict[str, tuple[str, ...]] = {}
        for market in self.markets:
            product = market
            if market.endswith("-USDC") and market not in OWN_USDC:
                names[market] = (*names.get(market, ()), market)  # should it ever be answered as it was asked
                product = market.removesuffix("C")
            names[product] = (*names.get(product, ()), market)
        return names

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for the heartbeats and one for each channel, with all markets."""
        yield _request("subscribe", "heartbeats")
        products = list(markets)
        for channel in self.channels:
            yield _request("subscribe", NATIVE[channel], products)

    def resync_messages(self, market: str) -> Iterable[str]:
        """Return what ends the subscription of one book and makes it anew."""
        return [_request(action, NATIVE[ORDERBOOK], [market]) for action in ("unsubscribe", "subscribe")]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame; its number comes first."""
        message = _decode(frame)
        if message.type == "error":
            return (Refused(str(message.message)),)
        if message.sequence is None or message.sequence < 0:
            raise BadFrame("a frame without its number")
        messages: list[Message] = [Numbered(message.sequence)]
        events = bytes(message.events)
        match message.channel:
            case "l2_data":
                for book in _joined(_decode_books(events)):
                    messages += self._book(message, book)
            case "market_trades":
                messages += self._trades(_decode_trades(events))
            case "ticker":
                at_us = _us(message.timestamp)
                for ticker in (ticker for event in _decode_tickers(events) for ticker in event.tickers):
                    prices = _known(ticker.last), _known(ticker.bid), _known(ticker.ask)
                    for market in self._markets(ticker.product):
                        messages.append(Ticker(market, *prices, ticker.volume or None, at_us))
            case "subscriptions":
                messages += self._subscribed(_decode_subscriptions(events))
            case "heartbeats":
                pass
            case _:
                raise UnknownFrame(f"channel was {message.channel!r}")
        return messages

    def _markets(self, product: str) -> tuple[str, ...]:
        return self._names.get(product) or (product,)

    def _book(self, message: _Frame, event: _BookEvent) -> Iterable[Message]:
        bids: Levels = {}
        asks: Levels = {}
        for level in event.updates:
            if level.side == "bid":
                bids[level.price] = level.size
            elif level.side == "offer":
                asks[level.price] = level.size
            else:
                raise BadFrame(f"side was {level.side!r}")
        if event.type == "snapshot":
            if len(bids) + len(asks) != len(event.updates):
                raise BadFrame("a price stands in the book twice")
            at_us = _us(message.timestamp)
            return [Book(market, bids, asks, at_us, message.sequence) for market in self._markets(event.product)]
        if event.type == "update":  # a level told twice stands as it was told last
            at_us = _us(event.updates[-1].event_time if event.updates else message.timestamp)
            return [BookChange(market, bids, asks, at_us, message.sequence) for market in self._markets(event.product)]
        raise UnknownFrame(f"type of an event was {event.type!r}")

    def _trades(self, events: Iterable[_TradeEvent]) -> Iterable[Message]:
        trades: list[Trade] = []
        for event in events:
            for trade in reversed(event.trades):
                at_us = _us(trade.time)
                if at_us is None or trade.side not in ("BUY", "SELL"):
                    raise BadFrame(f"a trade of side {trade.side!r} at {trade.time!r}")
                maker, number = trade.side, trade_id(trade.id)
                for market in self._markets(trade.product):
                    trades.append(
                        Trade(market, number, "sell" if maker == "BUY" else "buy", trade.price, trade.size, at_us)
                    )
        return sorted(trades, key=lambda trade: trade.venue_us)

    def _subscribed(self, events: Iterable[_SubscriptionsEvent]) -> Iterable[Message]:
        # The list is of all subscriptions that the connection has.
        for event in events:
            for channel in (TRADES, TICKER):
                for product in event.subscriptions.get(NATIVE[channel], ()):
                    for market in self._names.get(product, ()):
                        yield Subscribed(channel, market)

    def is_old(self, change: BookChange, sequence: int) -> bool:
        """Tell whether a change came before the complete book; what came with it or later is not in it."""
        return change.sequence is not None and change.sequence < sequence

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        """Return yes: the numbers of the connection's frames prove it, and a hole in them ends the connection."""
        return True

    def probe_path(self, market: str) -> str:
        """Return the path of the best levels over REST."""
        return f"/api/v3/brokerage/market/product_book?product_id={market}&limit={self.probe_depth}"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read `{"pricebook":{"bids":[{"price":"1","size":"2"},...],...}}`."""
        book = decode_any(body)["pricebook"]
        bids, asks = (listed((row["price"], row["size"]) for row in book[name]) for name in ("bids", "asks"))
        return Book(market, bids, asks)


class CoinbaseCandles(_Coinbase, RESTController):
    """Coinbase's candles of one minute, polled; minutes without a trade have none."""

    exchange = "coinbase"
    offers = (CANDLES,)
    default = False
    poll_every_s: ClassVar[Mapping[str, float]] = {CANDLES: 20.0}

    def poll_path(self, channel: str, market: str, now_us: int) -> str:
        """Return the call for the candles of the last minutes, both ends included."""
        end_s = now_us // 1_000_000
        period = f"start={end_s - MINUTES_A_POLL * 60}&end={end_s}"
        return f"/api/v3/brokerage/market/products/{market}/candles?{period}&granularity=ONE_MINUTE"

    @shaped
    def parse_poll(self, channel: str, market: str, body: bytes, received_us: int) -> Iterable[Message]:
        """Read `{"candles":[{"start":"1712192400","low":...},...]}`, newest first, which names no market."""
        return in_order(_candle(market, row) for row in decode_any(body)["candles"])


def _joined(events: Iterable[_BookEvent]) -> list[_BookEvent]:
    # What one frame changes of a product is one change, in however many events it is told.
    joined: list[_BookEvent] = []
    last: dict[str, _BookEvent] = {}
    for event in events:
        before = last.get(event.product)
        if before is not None and before.type == event.type == "update":
            before.updates += event.updates
        else:
            joined.append(event)
            last[event.product] = event
    return joined


def _trades_now(row: dict[str, Any]) -> bool:
    return row["status"] == "online" and not (row["is_disabled"] or row["trading_disabled"])


def _candle(market: str, row: dict[str, Any]) -> Candle:
    prices = row["open"], row["high"], row["low"], row["close"]
    return Candle(market, 60, minute_us(stated_us(int(row["start"]))), *prices, row["volume"])


def _request(action: str, channel: str, products: list[str] | None = None) -> str:
    request: dict[str, Any] = {"type": action, "channel": channel}
    if products is not None:
        request["product_ids"] = products
    return msgspec.json.encode(request).decode()


def _known(token: str | None) -> Number | None:
    return quoted(token or None)  # a market without offers has an empty text


def _us(text: str | None) -> int | None:
    """Return a written time in microseconds; None where there is none, or one before 1970."""
    if text is None:
        return None
    try:
        time_us = parse_time(text)
    except ValueError as error:
        raise BadFrame(str(error)) from None
    return time_us if time_us > 0 else None
