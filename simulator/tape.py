"""What follows from a market's trades: the trades themselves, its ticker and its candles of one minute.

A `Tape` hears every step of one market and turns what takers took in it into numbered trades. Its figures are exact,
and it starts with some minutes of trades behind it, as every market that one subscribes to has them. The traded amount
of "24 hours" counts from there.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulator.markets import UNIT, Market, Step, now_us, plain, units

MINUTE_US = 60_000_000
KEPT = 500  # trades and closed candles that can be asked for
BEHIND = 50  # trades before the first step
BEHIND_APART_US = 7_000_000


@dataclass(frozen=True, slots=True)
class Trade:
    """One trade; `side` is what the taker did. A venue with ids of another kind replaces `id` in what it sends."""

    id: int | str
    side: str
    price: str
    volume: str
    time_us: int

    def meaning(self) -> dict[str, Any]:
        """Spell it for the ledger."""
        return {
            "id": str(self.id),
            "side": self.side,
            "price": self.price,
            "volume": self.volume,
            "venue_us": self.time_us,
        }


@dataclass(frozen=True, slots=True)
class Ticker:
    """The summary of a market; what a venue does not send it sets to None before it goes to the ledger.

    `open`, `high`, `low` and `turnover` (amount in the currency) of the day are there for venues that want them; the
    ledger does not have them.
    """

    last: str | None
    bid: str | None
    ask: str | None
    volume: str | None
    time_us: int | None
    bid_volume: str = "0"
    ask_volume: str = "0"
    last_volume: str = "0"
    open: str = "0"
    high: str = "0"
    low: str = "0"
    turnover: str = "0"

    def meaning(self) -> dict[str, Any]:
        """Spell it for the ledger."""
        told = {"last": self.last, "bid": self.bid, "ask": self.ask, "volume": self.volume}
        return {**told, "venue_us": self.time_us}


@dataclass(frozen=True, slots=True)
class Candle:
    """The candle of a minute as it stands; `turnover` is its amount in the currency, `trades` their number."""

    open_us: int
    open: str
    high: str
    low: str
    close: str
    volume: str = "0"
    turnover: str = "0"
    trades: int = 0
    closed: bool = False
    time_us: int | None = None
    interval_s: int = 60

    def meaning(self) -> dict[str, Any]:
        """Spell it for the ledger."""
        prices = {"open": self.open, "high": self.high, "low": self.low, "close": self.close}
        when = {"interval_s": self.interval_s, "open_us": self.open_us}
        return {**when, **prices, "volume": self.volume, "closed": self.closed, "venue_us": self.time_us}


Row = Trade | Ticker | Candle


@dataclass(frozen=True, slots=True)
class News:
    """What a step of a market means for other channels than the book; candles in order, closed ones first."""

    trades: tuple[Trade, ...] = ()
    ticker: Ticker | None = None
    candles: tuple[Candle, ...] = ()


_NOTHING = News()


def times(price: str, volume: str) -> int:
    """Multiply two plain decimals: the amount, counted in 1e-16."""
    return units(price) * units(volume)


def amount(value: int) -> str:
    """Spell an amount counted in 1e-16 as a plain decimal."""
    whole, fraction = divmod(value, UNIT * UNIT)
    return f"{whole}.{fraction:016d}".rstrip("0") if fraction else str(whole)


class Tape:
    """The trades of one market, and what is made of them."""

    def __init__(self, market: Market) -> None:
        self.trades: deque[Trade] = deque(maxlen=KEPT)
        self.closed: deque[Candle] = deque(maxlen=KEPT)  # candles, oldest first
        self._n = market.dice.randrange(10**6, 10**8)
        self._volume = self._turnover = self._minute_turnover = 0
        started_us = now_us()
        self.candle = self._flat(market.book.bids[0][0], (started_us - BEHIND * BEHIND_APART_US) // MINUTE_US)
        self._open = self._high = self._low = market.book.bids[0][0]
        for left in range(BEHIND, 0, -1):
            eaten, (price, volume) = (
                ("bid", market.book.bids[0]) if market.dice.random() < 0.5 else ("ask", market.book.asks[0])
            )
            part = plain(max(units(volume) // market.dice.randint(2, 9) // market.grain, 1) * market.grain)
            at_us = started_us - left * BEHIND_APART_US
            self._roll(at_us)
            self._take(eaten, price, part, at_us)
        self._roll(started_us)
        self.ticker = self._ticker(Step(market.book, ()))
        self._touch = market.book.bids[0], market.book.asks[0]

    def hear(self, step: Step) -> News:
        """Take note of a step and tell what it means."""
        at_us = step.book.time_us
        gone = self._roll(at_us)
        trades = tuple(self._take(side, price, volume, at_us) for side, price, volume in step.eaten)
        touch = step.book.bids[0], step.book.asks[0]
        moved = bool(trades) or touch != self._touch
        if moved:
            self.ticker, self._touch = self._ticker(step), touch
        if not (moved or gone):
            return _NOTHING
        forming = (self.candle,) if gone or trades else ()
        return News(trades, self.ticker if moved else None, (*gone, *forming))

    def candles(self, most: int) -> Sequence[Candle]:
        """Return the newest candles, oldest first, the last of them still open."""
        return [*self.closed, self.candle][-most:]

    def _take(self, eaten: str, price: str, volume: str, at_us: int) -> Trade:
        self._n += 1
        trade = Trade(self._n, "buy" if eaten == "ask" else "sell", price, volume, at_us)
        self.trades.append(trade)
        self._volume += units(volume)
        self._turnover += times(price, volume)
        self._minute_turnover += times(price, volume)
        self._high, self._low = max(self._high, price, key=units), min(self._low, price, key=units)
        candle = self.candle
        first = candle.trades == 0
        self.candle = replace(
            candle,
            open=price if first else candle.open,
            high=price if first else max(candle.high, price, key=units),
            low=price if first else min(candle.low, price, key=units),
            close=price,
            volume=plain(units(candle.volume) + units(volume)),
            turnover=amount(self._minute_turnover),
            trades=candle.trades + 1,
            time_us=at_us,
        )
        return trade

    def _roll(self, at_us: int) -> tuple[Candle, ...]:
        """Close the candles whose minute is over."""
        gone: list[Candle] = []
        while (minute := self.candle.open_us // MINUTE_US + 1) * MINUTE_US <= at_us:
            gone.append(replace(self.candle, closed=True, time_us=at_us))
            self.candle = self._flat(self.candle.close, minute)
        self.closed += gone
        return tuple(gone)

    def _flat(self, price: str, minute: int) -> Candle:
        """Begin the candle of a minute without trades: it stands at the last price."""
        self._minute_turnover = 0
        return Candle(minute * MINUTE_US, price, price, price, price, time_us=minute * MINUTE_US)

    def _ticker(self, step: Step) -> Ticker:
        (bid, bid_volume), (ask, ask_volume) = step.book.bids[0], step.book.asks[0]
        last = self.trades[-1]
        return Ticker(
            last.price, bid, ask, plain(self._volume), step.book.time_us, bid_volume, ask_volume, last.volume,
            self._open, self._high, self._low, amount(self._turnover),
        )  # fmt: skip
