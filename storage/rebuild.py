"""A book rebuilt row by row, as fast as Python allows: what did not change is neither copied nor compared.

Levels stay the text that was stored. A price becomes a `Decimal` once, when it enters the book, to find its place
there.
"""

from bisect import bisect_left
from decimal import Decimal

import msgspec

from collector.errors import StorageCorrupt

Level = tuple[str, str]
Levels = tuple[Level, ...]

_decode = msgspec.json.Decoder(list[Level]).decode


class Side:
    """The bids (`highest_first`) or the asks of one market, best price first."""

    __slots__ = ("_given", "_highest_first", "_keys", "_levels", "_order")

    def __init__(self, *, highest_first: bool) -> None:
        self._highest_first = highest_first
        self._keys: dict[str, Decimal] = {}
        self._order: list[Decimal] = []  # rises, best price first: bids are kept negated
        self._levels: list[Level] = []
        self._given: Levels | None = ()

    def replace(self, text: str | None) -> None:
        """Take a complete side, in any order. Raises `StorageCorrupt`, as does `apply`, for what no writer wrote."""
        levels = _read(text)
        self._keys = {price: self._key(price) for price, _ in levels}
        self._order = [self._keys[price] for price, _ in levels]
        if any(worse <= better for better, worse in zip(self._order, self._order[1:], strict=False)):
            levels.sort(key=lambda level: self._keys[level[0]])
            self._order = [self._keys[price] for price, _ in levels]
            if len(set(self._order)) < len(levels):
                raise StorageCorrupt("a price stands in a complete book twice")
        self._levels = levels
        self._given = None

    def apply(self, text: str | None) -> None:
        """Take the levels that changed; volume `"0"` removes one."""
        if text is None:
            return
        self._given = None
        keys, order, levels = self._keys, self._order, self._levels
        for level in _read(text):
            price, volume = level
            key = keys.get(price)
            if volume == "0":
                if key is None:
                    raise StorageCorrupt(f"price {price} leaves a book it is not in")
                at = bisect_left(order, key)
                del keys[price], order[at], levels[at]
            elif key is not None:
                levels[bisect_left(order, key)] = level
            else:
                key = self._key(price)
                at = bisect_left(order, key)
                if at < len(order) and order[at] == key:
                    raise StorageCorrupt(f"price {price} enters a book it is in")
                keys[price] = key
                order.insert(at, key)
                levels.insert(at, level)

    def levels(self) -> Levels:
        """Return the side; the very same object as long as nothing changed."""
        if self._given is None:
            self._given = tuple(self._levels)
        return self._given

    def _key(self, price: str) -> Decimal:
        try:
            number = Decimal(price)
        except ArithmeticError:
            raise StorageCorrupt(f"price {price!r} is not a number") from None
        # `-number` would round to the digits of the context.
        return number.copy_negate() if self._highest_first else number


def _read(text: str | None) -> list[Level]:
    if text is None:
        return []
    try:
        return _decode(text)
    except msgspec.MsgspecError as error:
        raise StorageCorrupt(f"levels can't be read: {error}") from None
