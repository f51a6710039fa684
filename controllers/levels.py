"""Pieces that venue modules share to read books: sides made of tokens, times told by magnitude."""

import functools
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from collector.errors import BadFrame
from collector.numbers import Number, decoder, is_zero

Levels = dict[Number, Number]

_Read = TypeVar("_Read", bound=Callable[..., Any])

decode_any = decoder(Any)

_bid_price, _ask_price = attrgetter("bid_price"), attrgetter("ask_price")
_ZEROS = frozenset((0, "0", "0.0"))


def side(entries: Sequence[Any]) -> Levels:
    """Return entries that have a `price` and a `size` as one side of a book, price to size.

    Raises `BadFrame` where a price stands there twice or is no number.
    """
    try:
        levels = {entry.price: entry.size for entry in entries}
    except TypeError:
        raise BadFrame("a price is not a number") from None
    if len(levels) != len(entries):
        raise BadFrame("a price stands in the book twice")
    return levels


def pairs(units: Sequence[Any]) -> tuple[Levels, Levels]:
    """Return units that hold the i-th best bid beside the i-th best ask as (bids, asks).

    A thin side is filled up with price nought: such levels are left out. Raises `BadFrame` as `side` does.
    """
    try:
        bids = {unit.bid_price: unit.bid_size for unit in units}
        asks = {unit.ask_price: unit.ask_size for unit in units}
    except TypeError:
        raise BadFrame("a price is not a number") from None
    return _unpadded(bids, units, _bid_price), _unpadded(asks, units, _ask_price)


def _unpadded(levels: Levels, units: Sequence[Any], price_of: Callable[[Any], Number]) -> Levels:
    if len(levels) == len(units) and levels.keys().isdisjoint(_ZEROS):
        return levels
    kept = {price: size for price, size in levels.items() if not is_zero(price)}
    if len(kept) + sum(is_zero(price_of(unit)) for unit in units) != len(units):
        raise BadFrame("a price stands in the book twice")
    return kept


def venue_us(value: object) -> int | None:
    """Return an exchange's time in microseconds: seconds, milliseconds or microseconds, told apart by magnitude.

    Exchanges have sent the wrong unit before. None stays None; raises `BadFrame` for what is no whole number.
    """
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 10**18:
        raise BadFrame(f"time {value!r} is not a whole number of seconds, milliseconds or microseconds")
    if value < 10**11:
        return value * 1_000_000
    return value * 1000 if value < 10**14 else value


def swapped(market: str) -> str:
    """Return `KRW-BTC` for `BTC-KRW` and the other way round."""
    symbol, _, currency = market.partition("-")
    return f"{currency}-{symbol}"


def house_form(markets: Iterable[str]) -> list[str]:
    """Return the names of a market list; raises `BadFrame` where one is not `SYMBOL-CURRENCY`.

    For use in a `shaped` reader: what is no text raises what every text would not.
    """
    names = list(markets)
    for name in names:
        symbol, _, currency = name.partition("-")
        if not symbol or not currency:
            raise BadFrame(f"{name!r} is no market")
    return names


def listed(rows: Iterable[tuple[Any, Any]]) -> Levels:
    """Return (price, size) rows of a REST answer as one side of a book; raises `BadFrame` as `side` does."""
    rows = list(rows)
    levels: Levels = dict(rows)
    if len(levels) != len(rows):
        raise BadFrame("a price stands in the book twice")
    return levels


def shaped(read: _Read) -> _Read:
    """Decorate a reader of REST answers (calls that are rare): another shape than it expects is a `BadFrame`."""

    @functools.wraps(read)
    def checked(*args: Any) -> Any:
        try:
            return read(*args)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadFrame(f"the answer has another shape than is known: {error!r}") from None

    return checked  # type: ignore[return-value]
