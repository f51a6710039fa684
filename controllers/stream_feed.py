"""Trades, tickers and candles of one market as a controller hears them: the rows that go to the store.

None of them builds on the one before, so an epoch opens with any of them, or when the exchange took the subscription.
What is repeated, as after subscribing anew, makes no row.
"""

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from collector.errors import BadFrame
from collector.numbers import Number, plain, to_decimal
from collector.records import (
    CANDLES,
    TICKER,
    TRADES,
    Candle,
    CandleRow,
    Datum,
    EpochOpened,
    Feed,
    Record,
    StreamRow,
    Ticker,
    TickerRow,
    Trade,
    TradeRow,
)
from controllers.feed import FeedFacts, HeardFeed

TRADES_KNOWN = 4096  # ids that are remembered, to know a repeat
CANDLES_KNOWN = 16
TIME_MAX = 1 << 62


class HeardStream(HeardFeed):
    """The state of a feed whose messages stand alone, however the books beside it are sent."""

    def __init__(self, key: Feed, facts: FeedFacts, epochs: Iterator[int]) -> None:
        super().__init__(key, dataclasses.replace(facts, changes_only=False), epochs)

    def take(self, message: Datum, at_us: int, offset_us: int, records: list[Record]) -> bool:
        """Take a trade, a ticker or a candle; see `HeardFeed.take`."""
        rows = self._rows(message)
        if rows or not self.epoch:
            self._ensure_open(at_us, offset_us, records)
        received_us = self.opened_us + at_us - self.opened_at_us
        for row in rows:
            records.append(self._row(row, received_us))
        return True

    def subscribed(self, at_us: int, offset_us: int) -> list[Record]:
        """Open an epoch because the exchange took the subscription; nothing if one is open."""
        records: list[Record] = []
        self._ensure_open(at_us, offset_us, records)
        return records

    def reopen(self, at_us: int, offset_us: int) -> list[Record]:
        """Open another epoch; see `HeardFeed.reopen`."""
        silent_us = self.silent_us(at_us)
        records = self.subscribed(at_us, offset_us)
        self.silent_before_us = silent_us
        return records

    def forget(self) -> None:
        """Nothing: what is known of earlier messages tells repeats, on any connection."""

    def unsaid(self, row: Record | None = None) -> None:
        """Take back that a row was told; see `HeardFeed.unsaid`."""
        self.forget()

    def _ensure_open(self, at_us: int, offset_us: int, records: list[Record]) -> None:
        if not self.epoch:
            opened: EpochOpened = self._open(at_us, offset_us)
            records.append(opened)

    @abstractmethod
    def _rows(self, message: Datum) -> list[Any]:
        """Return the messages that a message makes rows of: itself, nothing where it is known, or others before it."""

    @abstractmethod
    def _row(self, message: Any, received_us: int) -> StreamRow:
        """Return the row of one of them."""

    def _amount(self, token: Number, *, what: str, zero: bool = False) -> str:
        value = to_decimal(token)
        if value.is_signed() or not (value or zero):  # `-0` is no amount either
            raise BadFrame(f"{what} {token!r} is {'negative' if value.is_signed() else 'nought'}")
        return self._text(token)

    def _text(self, token: Number) -> str:
        text = plain(token)
        trim = not self._facts.text_numbers
        return text.rstrip("0").rstrip(".") if trim and "." in text else text


class HeardTrades(HeardStream):
    """Trades, each once."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._known: dict[str, None] = {}  # ids, the oldest first
        self._price: Number | None = None

    @property
    def last(self) -> Decimal | None:
        """The price of the trade that was heard last."""
        return None if self._price is None else to_decimal(self._price)

    def unsaid(self, row: Record | None = None) -> None:
        """Take back that a trade was told; see `HeardFeed.unsaid`."""
        if isinstance(row, TradeRow):
            self._known.pop(row.trade_id, None)
        else:
            self._known.clear()

    def knows_one_of(self, trades: Iterable[Trade]) -> bool:
        """Tell whether one of these trades was heard before."""
        return any(_trade_id(trade) in self._known for trade in trades)

    def _rows(self, message: Datum) -> list[Any]:
        assert isinstance(message, Trade)
        _check_time(message.venue_us)
        if message.side not in ("buy", "sell"):
            raise BadFrame(f"side {message.side!r} is neither buy nor sell")
        known = _trade_id(message)
        if known in self._known:
            return []
        # Checked before it counts as known: a rejected one may come again, well.
        self._amount(message.price, what="price")
        self._amount(message.size, what="size")
        self._known[known] = None
        self._price = message.price
        if len(self._known) > TRADES_KNOWN:
            del self._known[next(iter(self._known))]
        return [message]

    def _row(self, message: Any, received_us: int) -> StreamRow:
        self.lag_us = received_us - message.venue_us
        return TradeRow(
            self.epoch, _trade_id(message), message.side, self._text(message.price), self._text(message.size),
            received_us, message.venue_us,
        )  # fmt: skip


class HeardTicker(HeardStream):
    """Tickers, each that says something new."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._last: tuple[Number | None, ...] = (None, None, None, None)
        self._received_us = 0

    @property
    def best(self) -> tuple[Decimal | None, Decimal | None]:
        """The best bid and ask of the last one."""
        _, bid, ask, _ = self._last
        return (None if bid is None else to_decimal(bid)), (None if ask is None else to_decimal(ask))

    @property
    def last(self) -> Decimal | None:
        """The last price that it told."""
        price = self._last[0]
        return None if price is None else to_decimal(price)

    def forget(self) -> None:
        """Forget the last one: what it says is told again in the next epoch."""
        self._last = (None, None, None, None)

    def _rows(self, message: Datum) -> list[Any]:
        assert isinstance(message, Ticker)
        if message.venue_us is not None:
            _check_time(message.venue_us)
        told: tuple[Number | None, ...] = (message.last, message.bid, message.ask, message.volume)
        for what, token in zip(("last", "bid", "ask", "volume"), told, strict=True):
            if token is not None:
                self._amount(token, what=what, zero=True)
        if self._facts.ticker_changes:
            told = tuple(old if new is None else new for new, old in zip(told, self._last, strict=True))
        if self.epoch and told == self._last:
            return []
        self._last = told
        return [message]

    def _row(self, message: Any, received_us: int) -> StreamRow:
        # Times tell tickers apart: two of one frame are a microsecond apart.
        self._received_us = received_us = max(received_us, self._received_us + 1)
        if message.venue_us is not None:
            self.lag_us = received_us - message.venue_us
        texts = (None if token is None else self._text(token) for token in self._last)
        return TickerRow(self.epoch, received_us, message.venue_us, *texts)


class HeardCandles(HeardStream):
    """Candles: each state of the one that forms, and its end.

    Where the exchange does not say that a candle is closed, the next one does.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._known: dict[tuple[int, int], Candle] = {}  # by interval and beginning

    def forget(self) -> None:
        """Forget them: what they say is told again in the next epoch."""
        self._known.clear()

    def _rows(self, message: Datum) -> list[Any]:
        assert isinstance(message, Candle)
        _check_time(message.open_us)
        for what in ("open", "high", "low", "close"):
            self._amount(getattr(message, what), what=what)
        self._amount(message.volume, what="volume", zero=True)
        key = message.interval_s, message.open_us
        known = self._known.get(key)
        if known is not None and (_state(known) == _state(message) or (known.closed and not message.closed)):
            return []
        ended = [
            _closed(candle)
            for candle in self._known.values()
            if candle.interval_s == message.interval_s and candle.open_us < message.open_us and not candle.closed
        ]
        for candle in (*ended, message):
            self._known[candle.interval_s, candle.open_us] = candle
        while len(self._known) > CANDLES_KNOWN:
            del self._known[min(self._known, key=lambda one: one[1])]
        return [*ended, message]

    def _row(self, message: Any, received_us: int) -> StreamRow:
        c: Candle = message
        texts = map(self._text, (c.open, c.high, c.low, c.close, c.volume))
        opened, high, low, close, volume = texts
        return CandleRow(self.epoch, c.interval_s, c.open_us, opened, high, low, close, volume, c.closed, received_us)


STREAMS: dict[str, type[HeardStream]] = {TRADES: HeardTrades, TICKER: HeardTicker, CANDLES: HeardCandles}


def _check_time(time_us: int) -> None:
    if not 0 <= time_us < TIME_MAX:
        raise BadFrame(f"time {time_us} is out of range")


def _trade_id(trade: Trade) -> str:
    if trade.id is not None:
        return trade.id
    content = f"{trade.venue_us} {trade.side} {trade.price} {trade.size}"
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _state(candle: Candle) -> tuple[Any, ...]:
    return candle.open, candle.high, candle.low, candle.close, candle.volume, candle.closed


def _closed(candle: Candle) -> Candle:
    return Candle(
        candle.market, candle.interval_s, candle.open_us, candle.open, candle.high, candle.low, candle.close,
        candle.volume, True, candle.venue_us,
    )  # fmt: skip
