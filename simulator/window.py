"""What changes in the best levels of a book, for venues that show no more than those."""

from collections.abc import Sequence
from typing import NamedTuple

from simulator.markets import Book, Level


class Difference(NamedTuple):
    """What leads from one list of levels to another: new and changed levels, and the prices that are gone from it."""

    put: tuple[Level, ...]
    gone: tuple[str, ...]

    def levels(self) -> tuple[Level, ...]:
        """Write it as a venue does: volume 0 removes a level; what goes away is told first."""
        return (*((price, "0") for price in self.gone), *self.put)


def difference(before: Sequence[Level], after: Sequence[Level]) -> Difference:
    """Tell what leads from one side of a book to another; prices and volumes are compared as they are spelled."""
    if before == after:
        return Difference((), ())
    old, new = dict(before), dict(after)
    return Difference(
        tuple(level for level in after if old.get(level[0]) != level[1]),
        tuple(price for price in old if price not in new),
    )


def differences(before: Book, after: Book) -> tuple[Difference, Difference]:
    """Tell what leads from one book to another: bids and asks."""
    return difference(before.bids, after.bids), difference(before.asks, after.asks)
