"""Order books that move like those of Korean exchanges, exact to the last digit.

A `Market` is stepped by one clock, whoever listens. Prices and volumes are integers of 1e-8 inside and plain decimal
text outside, so no float can come between the truth and the ledger. The same seed gives the same books.
"""

import bisect
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache

UNIT = 10**8  # prices and volumes are counted in 1e-8

Level = tuple[str, str]
"""Price and volume as plain decimal text."""

_KRW_PRICES = {"BTC": 116_000_000, "ETH": 4_000_000, "SOL": 210_000, "XRP": 3_000, "USDT": 1_400, "DOGE": 250}
_KRW_PER_UNIT = {"KRW": 1, "USDT": 1_400, "USDC": 1_400, "USD": 1_400, "EUR": 1_600, "BTC": 116_000_000}
# lower bound of the price in KRW, and the tick from there on in hundred millionths
_KRW_TICKS = (
    (1_000_000, 1_000 * UNIT),
    (500_000, 500 * UNIT),
    (100_000, 100 * UNIT),
    (10_000, 10 * UNIT),
    (1_000, UNIT),
    (100, UNIT // 10),
    (10, UNIT // 100),
    (1, UNIT // 1_000),
    (0, UNIT // 10_000),
)


@lru_cache(maxsize=65536)
def plain(value: int) -> str:
    """Spell hundred millionths as a decimal without exponent and trailing zeros: 150000000 -> "1.5"."""
    whole, fraction = divmod(value, UNIT)
    return f"{whole}.{fraction:08d}".rstrip("0") if fraction else str(whole)


def units(text: str) -> int:
    """Read a plain decimal of at most eight places back: "1.5" -> 150000000."""
    whole, _, fraction = text.partition(".")
    return int(whole) * UNIT + int(fraction.ljust(8, "0") or 0)


def tidy(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Respell a venue's own digits (1.16539E8, 0.50) as plain decimals without trailing zeros."""
    return tuple((_tidy(price), _tidy(volume)) for price, volume in levels)


def _tidy(token: str) -> str:
    text = f"{Decimal(token):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def now_us() -> int:
    """Tell the wall clock in microseconds, as an exchange stamps its messages."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Book:
    """A complete order book: levels best first, the number of the step that made it, and when that was."""

    n: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    time_us: int
    sequence: int | None = None

    def top(self, depth: int) -> "Book":
        """Cut to the best levels of each side."""
        return replace(self, bids=self.bids[:depth], asks=self.asks[:depth])

    def changed(self, bids: Iterable[Level], asks: Iterable[Level]) -> "Book":
        """Apply changed levels; volume 0 removes one."""

        def merged(old: Sequence[Level], new: Iterable[Level]) -> list[Level]:
            levels = {Decimal(price): (price, volume) for price, volume in (*old, *new)}
            return [level for _, level in sorted(levels.items()) if Decimal(level[1])]

        return replace(self, bids=tuple(reversed(merged(self.bids, bids))), asks=tuple(merged(self.asks, asks)))


@dataclass(frozen=True, slots=True)
class Change:
    """One level that a step touched: `volume` "0" means the level is gone."""

    side: str
    price: str
    volume: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a market did: the book after it and the levels it touched (none for a repeated book).

    `eaten` is what takers took in it, in order: side, price and volume of what stood in the book.
    """

    book: Book
    changes: tuple[Change, ...]
    eaten: tuple[tuple[str, str, str], ...] = ()


@dataclass(slots=True)
class Character:
    """How a venue's books look and move."""

    depth: int = 30
    spread_ticks: int = 3
    gap_ticks: int = 3
    coarse: int = 1  # multiplies the tick of prices from 100 million up
    volume_places: int = 8
    lot: int = UNIT  # what a volume of 1 is worth in the symbol, counted in 1e-8: less than one where contracts count
    repeats: float = 0.0  # share of steps that change nothing
    changes_max: int = 3


@dataclass(slots=True)
class _Side:
    """One side: prices in rising order, and what stands at each."""

    name: str
    prices: list[int] = field(default_factory=list)
    volumes: dict[int, int] = field(default_factory=dict)

    def put(self, price: int, volume: int) -> None:
        if price not in self.volumes:
            bisect.insort(self.prices, price)
        self.volumes[price] = volume

    def drop(self, price: int) -> None:
        del self.volumes[price]
        self.prices.remove(price)

    def nth(self, i: int) -> int:
        """Price of the i-th best level."""
        return self.prices[i] if self.name == "ask" else self.prices[-1 - i]


class Market:
    """One exchange's order book of one market, moved one step at a time by `step`."""

    def __init__(self, exchange: str, name: str, seed: int, character: Character) -> None:
        self.name = name
        self.character = character
        self.random = random.Random(f"{seed}/{exchange}/{name}")
        self.dice = random.Random(f"{seed}/{exchange}/{name}/trades")  # of its own, so that books stay what they are
        self.symbol, self.currency = name.partition(":")[0].split("-", 1)
        self._n = 0
        self._bids, self._asks = _Side("bid"), _Side("ask")
        self._cross_next = False
        self._crossing: int | None = None
        self._touched: dict[tuple[str, int], int] = {}
        self._eaten: list[tuple[str, int, int]] = []
        self._fill()
        self._touched.clear()
        self.book = self._snapshot()

    def cross(self) -> None:
        """Make the next book a crossed one: a bid stands above the best ask. The step after it mends it."""
        self._cross_next = True

    def step(self) -> Step:
        """Move the market once, most often by one to three levels."""
        self._touched, self._eaten = {}, []
        if self._crossing is not None:
            self._remove(self._bids, self._crossing)
            self._crossing = None
        if self._cross_next:
            self._cross_next = False
            price = self._asks.nth(0)
            self._crossing = price + self.tick(price)
            self._set(self._bids, self._crossing, self._volume(price))
        elif self.random.random() >= self.character.repeats:
            for _ in range(self.random.randint(1, self.character.changes_max)):
                self._move()
        self._n += 1
        self.book = self._snapshot()
        # what went away is told first: a reader who applies one entry after the other sees no crossed book on the way
        order = sorted(self._touched.items(), key=lambda item: item[1] > 0)
        changes = tuple(Change(side, plain(price), plain(volume)) for (side, price), volume in order)
        return Step(
            self.book, changes, tuple((side, plain(price), plain(volume)) for side, price, volume in self._eaten)
        )

    @property
    def grain(self) -> int:
        """Smallest volume."""
        return int(10 ** (8 - self.character.volume_places))

    def tick(self, price: int) -> int:
        """Smallest difference of two prices near `price`."""
        if self.currency != "KRW":
            return max(price // 10**4, 1)
        tick = next(tick for bound, tick in _KRW_TICKS if price >= bound * UNIT)
        return tick * (self.character.coarse if price >= 10**8 * UNIT else 1)

    def _snapshot(self) -> Book:
        bids = tuple((plain(p), plain(self._bids.volumes[p])) for p in reversed(self._bids.prices))
        asks = tuple((plain(p), plain(self._asks.volumes[p])) for p in self._asks.prices)
        return Book(self._n, bids, asks, now_us())

    def _start_price(self) -> int:
        krw = _KRW_PRICES.get(self.symbol) or round(10 ** self.random.uniform(1, 4))
        price = krw * UNIT // _KRW_PER_UNIT.get(self.currency, 1)
        return max(price - price % self.tick(price), 1000 * self.tick(price))

    def _fill(self) -> None:
        middle = self._start_price()
        tick = self.tick(middle)
        self._set(self._bids, middle, self._volume(middle))
        ask = middle + self.random.randint(1, self.character.spread_ticks) * tick
        self._set(self._asks, ask, self._volume(ask))
        self._refill()

    def _refill(self) -> None:
        for side in (self._bids, self._asks):
            while len(side.prices) < self.character.depth:
                self._extend(side)

    def _extend(self, side: _Side) -> bool:
        """Add a level behind the last one of a side; say no where there is no room above zero."""
        last = side.nth(len(side.prices) - 1)
        gap = self.random.randint(1, self.character.gap_ticks) * self.tick(last)
        price = last + gap if side.name == "ask" else last - gap
        if price <= 0:
            return False
        self._set(side, price, self._volume(price))
        return True

    def _volume(self, price: int) -> int:
        worth = round(10 ** self.random.uniform(4, 7.7)) * UNIT // _KRW_PER_UNIT.get(self.currency, 1)
        places = min(self.character.volume_places, self.random.choice((8, 8, 8, 4, 3)))
        grain = int(10 ** (8 - places))
        return max(worth * UNIT // price * UNIT // self.character.lot // grain, 1) * grain

    def _set(self, side: _Side, price: int, volume: int) -> None:
        side.put(price, volume)
        self._touched[side.name, price] = volume

    def _remove(self, side: _Side, price: int) -> None:
        if price in side.volumes and len(side.prices) > 2:
            side.drop(price)
            self._touched[side.name, price] = 0

    def _move(self) -> None:
        side, other = (self._bids, self._asks) if self.random.random() < 0.5 else (self._asks, self._bids)
        what = self.random.random()
        near = min(int(self.random.expovariate(0.25)), len(side.prices) - 1)
        price = side.nth(near)
        if what < 0.55:
            volume = self._volume(price)
            if near == 0:
                self._perhaps_eaten(side, price, volume)
            self._set(side, price, volume)
        elif what < 0.72:
            self._insert_behind(side, price)
        elif what < 0.86:
            if near == 0 and len(side.prices) > 2:
                self._perhaps_eaten(side, price, 0)
            self._remove(side, price)
        elif what < 0.955:
            self._improve(side, other)
        elif what < 0.995:
            self._trade_through(other, side, self.random.randint(1, 4))
        else:
            self._thin_out(side)
        self._trim(side)
        self._trim(other)

    def _perhaps_eaten(self, side: _Side, price: int, left: int) -> None:
        """What the touch is about to lose was taken, half of the time; else it was taken back."""
        if left < side.volumes[price] and self.dice.random() < 0.5:
            self._eaten.append((side.name, price, side.volumes[price] - left))

    def _insert_behind(self, side: _Side, price: int) -> None:
        tick = self.tick(price)
        price += tick if side.name == "ask" else -tick
        if price > 0 and price not in side.volumes:
            self._set(side, price, self._volume(price))

    def _improve(self, side: _Side, other: _Side) -> None:
        """A better price appears inside the spread; in a spread of one tick the touch moves instead."""
        best, facing = side.nth(0), other.nth(0)
        tick = self.tick(best)
        price = best - tick if side.name == "ask" else best + tick
        if price <= facing if side.name == "ask" else price >= facing:
            self._trade_through(other, side, 1)
        else:
            self._set(side, price, self._volume(price))

    def _trade_through(self, eaten: _Side, taker: _Side, levels: int) -> None:
        """An order takes some levels of one side; its rest may stay on the other at the last price taken."""
        price = 0
        for _ in range(min(levels, len(eaten.prices) - 2)):
            price = eaten.nth(0)
            self._eaten.append((eaten.name, price, eaten.volumes[price]))
            self._remove(eaten, price)
        if price and self.random.random() < 0.7:
            self._set(taker, price, self._volume(price))

    def _thin_out(self, side: _Side) -> None:
        """The far end of a side goes away for a while, as on quiet markets."""
        for _ in range(min(self.random.randint(3, 9), len(side.prices) // 4)):
            self._remove(side, side.nth(len(side.prices) - 1))

    def _trim(self, side: _Side) -> None:
        """Keep a side near its depth: it grows back by a level a step and never grows far beyond."""
        if len(side.prices) < self.character.depth and self.random.random() < 0.5:
            self._extend(side)
        while len(side.prices) > self.character.depth + 6:
            self._remove(side, side.nth(len(side.prices) - 1))


def total(levels: Sequence[Level]) -> str:
    """Add the volumes of some levels exactly."""
    return plain(sum(units(volume) for _, volume in levels))
