"""Order-book keeping: what changed between one message and the next.

A book that comes complete again and again is compared token by token: a level whose tokens did not change costs one
dictionary look-up, and no number is made of it. Tokens that differ are compared as numbers, so `1.16539E8` and
`116539000` are one price and `0.10` and `0.1` one size. Within its life in a book a price is always given out in the
same spelling.
"""

from bisect import bisect_left
from collections.abc import Mapping
from decimal import Decimal

import orjson

from collector.errors import BadFrame
from collector.numbers import EXACT, Number, plain, to_decimal
from collector.records import Book, BookChange

Changes = list[tuple[str, str]]

_ZERO = Decimal(0)
_ABSENT = object()  # what no size equals: a size of null must not pass for that of a level that is not there


class Side:
    """The bids or the asks of one market.

    `trim` says that sizes and prices are JSON numbers, of which the value counts and not the digits: `127.0` is given
    out as `127`. Text keeps its digits. After a `BadFrame` the side is in no defined state: `clear` it.
    """

    __slots__ = ("_numbers", "_order", "_sizes", "_spelling", "_trim", "levels", "total")

    def __init__(self, *, trim: bool) -> None:
        self._trim = trim
        self.clear()

    def clear(self) -> None:
        """Forget every level."""
        self.levels: dict[Number, Number] = {}  # as the exchange spelt them last
        self.total = _ZERO  # exact sum of all sizes
        self._numbers: dict[Number, Decimal] = {}  # of prices
        self._sizes: dict[Number, Decimal] = {}
        self._spelling: dict[Number, str] = {}
        self._order: list[Decimal] = []  # ascending

    def replace(self, new: Mapping[Number, Number]) -> Changes:
        """Take a complete side and return what differs from the last one, size `"0"` for a level that is gone."""
        levels = self.levels
        if new == levels:
            return []
        changed = [(price, size) for price, size in new.items() if levels.get(price, _ABSENT) != size]
        added = sum(price not in levels for price, _ in changed)
        gone = [price for price in levels if price not in new] if added or len(new) != len(levels) else []
        changes: Changes = []
        if gone and added:
            changed = self._respell(gone, changed, changes)
        for price in gone:
            changes.append((self._remove(price), "0"))
        for price, size in changed:
            self._put(price, size, changes)
        return changes

    def apply(self, entries: Mapping[Number, Number], *, keep: int | None = None, highest: bool = False) -> Changes:
        """Take single levels, size nought removing one, and return those that changed anything.

        `keep`: afterwards only the best so many levels stay, the `highest` prices or the lowest.
        """
        before = set(self._spelling.values()) if keep is not None else set()
        changes: Changes = []
        for price, size in entries.items():
            if price not in self.levels:
                known = self._same_price(to_decimal(price))
                if known is not None:
                    self._put(known, size, changes)
                    continue
            self._put(price, size, changes)
        if keep is None or len(self._order) <= keep:
            return changes
        gone = self._cut(keep, highest=highest)
        return [level for level in changes if level[0] not in gone] + [(p, "0") for p in gone if p in before]

    def _cut(self, keep: int, *, highest: bool) -> set[str]:
        beyond = len(self._order) - keep
        far = set(self._order[:beyond] if highest else self._order[-beyond:])
        return {self._remove(price) for price in [p for p, number in self._numbers.items() if number in far]}

    def nearest(self, depth: int, *, highest: bool) -> dict[Decimal, Decimal]:
        """Return price to size of the best `depth` levels, the `highest` prices or the lowest."""
        kept = set(self._order[-depth:] if highest else self._order[:depth])
        return {number: self._sizes[price] for price, number in self._numbers.items() if number in kept}

    def best(self, *, highest: bool) -> Decimal | None:
        """Return the highest or lowest price, None for an empty side."""
        found = self._order[-1:] if highest else self._order[:1]  # in one step: other threads ask while it changes
        return found[0] if found else None

    def nth(self, place: int, *, highest: bool) -> Decimal | None:
        """Return the price of the level at a place, 1 being the best; None where there are fewer."""
        if place > len(self._order):
            return None
        return self._order[-place] if highest else self._order[place - 1]

    def as_text(self, *, highest_first: bool) -> Changes:
        """Return the whole side, best price first, as it is given out."""
        prices = sorted(self.levels, key=self._numbers.__getitem__, reverse=highest_first)
        return [(self._spelling[price], self._text(self.levels[price])) for price in prices]

    def as_numbers(self) -> dict[Decimal, Decimal]:
        """Return price to size, for comparing with a book from elsewhere."""
        return {self._numbers[price]: size for price, size in self._sizes.items()}

    def _text(self, token: Number) -> str:
        text = plain(token)
        return text.rstrip("0").rstrip(".") if self._trim and "." in text else text

    def _same_price(self, number: Decimal) -> Number | None:
        # Another spelling of a price that is in the book; rare, so a search is cheaper than one more table to keep.
        at = bisect_left(self._order, number)
        if at == len(self._order) or self._order[at] != number:
            return None
        return next(price for price, known in self._numbers.items() if known == number)

    def _respell(
        self, gone: list[Number], changed: list[tuple[Number, Number]], changes: Changes
    ) -> list[tuple[Number, Number]]:
        # A price that left in one spelling and came in another did not leave.
        was = {self._numbers[price]: price for price in gone}
        rest = []
        for price, size in changed:
            before = None if price in self.levels else was.pop(to_decimal(price), None)
            if before is None:
                rest.append((price, size))
                continue
            gone.remove(before)
            self._numbers[price] = self._numbers.pop(before)
            self._spelling[price] = self._spelling.pop(before)
            self._sizes[price] = self._sizes.pop(before)
            self.levels[price] = self.levels.pop(before)
            self._put(price, size, changes)
        return rest

    def _put(self, price: Number, size: Number, changes: Changes) -> None:
        value = to_decimal(size)
        before = self.levels.get(price)
        if before is None:
            if not value:
                to_decimal(price)
                return  # the exchange pads, or removes what was never there
            if value < _ZERO:
                raise BadFrame(f"size {size!r} at price {price!r} is negative")
            number = to_decimal(price)
            if number <= _ZERO:
                raise BadFrame(f"price {price!r} is not above zero")
            at = bisect_left(self._order, number)
            if at < len(self._order) and self._order[at] == number:
                raise BadFrame(f"price {price!r} stands in the book twice")
            self._order.insert(at, number)
            self._numbers[price] = number
            self._spelling[price] = self._text(price)
            self.total = EXACT.add(self.total, value)
        elif not value:
            changes.append((self._remove(price), "0"))
            return
        else:
            if value < _ZERO:
                raise BadFrame(f"size {size!r} at price {price!r} is negative")
            old = self._sizes[price]
            if old == value:
                self.levels[price] = size
                return
            self.total = EXACT.add(self.total, EXACT.subtract(value, old))
        self.levels[price] = size
        self._sizes[price] = value
        changes.append((self._spelling[price], self._text(size)))

    def _remove(self, price: Number) -> str:
        number = self._numbers.pop(price)
        del self._order[bisect_left(self._order, number)]
        self.total = EXACT.subtract(self.total, self._sizes.pop(price))
        del self.levels[price]
        return self._spelling.pop(price)


class OrderBook:
    """One market's book."""

    def __init__(self, *, trim: bool) -> None:
        self.bids = Side(trim=trim)
        self.asks = Side(trim=trim)
        self.known = False  # whether a complete book has been taken

    def clear(self) -> None:
        """Forget the book: the next one must be complete."""
        self.bids.clear()
        self.asks.clear()
        self.known = False

    def replace(self, book: Book) -> tuple[Changes, Changes]:
        """Take a complete book; return the changed bids and asks. Raises `BadFrame`."""
        bids, asks = self.bids.replace(book.bids), self.asks.replace(book.asks)
        self.known = True
        return bids, asks

    def apply(self, change: BookChange) -> tuple[Changes, Changes]:
        """Take changed levels; return those bids and asks that really changed. Raises `BadFrame`."""
        return self.bids.apply(change.bids), self.asks.apply(change.asks)

    @property
    def crossed(self) -> bool:
        """Whether the best bid is at or above the best ask."""
        bid, ask = self.bids.best(highest=True), self.asks.best(highest=False)
        return bid is not None and ask is not None and bid >= ask

    def adds_up_to(self, totals: tuple[Number, Number]) -> bool:
        """Tell whether the sizes of asks and bids add up, exactly, to what the exchange says they do."""
        asks, bids = totals
        return self.asks.total == to_decimal(asks) and self.bids.total == to_decimal(bids)

    def as_json(self) -> tuple[str, str]:
        """Return the complete book as JSON text: bids and asks, each best price first."""
        return levels_json(self.bids.as_text(highest_first=True)), levels_json(self.asks.as_text(highest_first=False))

    def as_numbers(self, depth: int | None = None) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
        """Return bids and asks as price to size, all of them or the best `depth` of each."""
        if depth is None:
            return self.bids.as_numbers(), self.asks.as_numbers()
        return self.bids.nearest(depth, highest=True), self.asks.nearest(depth, highest=False)


def check_levels(message: Book | BookChange) -> None:
    """Raise `BadFrame` for prices and sizes that no book can hold, in a message that is not taken into one."""
    for token in (token for side in (message.bids, message.asks) for level in side.items() for token in level):
        if to_decimal(token) < _ZERO:
            raise BadFrame(f"{token!r} is negative")


def levels_json(levels: Changes) -> str:
    """Return levels as JSON text: `[["price","size"],...]`."""
    return orjson.dumps(levels).decode()
