"""Pieces that venue modules share to read messages: sides made of tokens, times told by magnitude, ids of trades."""

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, Literal, TypeVar

import msgspec

from collector.errors import BadFrame
from collector.numbers import Number, decoder, is_zero
from collector.records import Candle

Levels = dict[Number, Number]

_Read = TypeVar("_Read", bound=Callable[..., Any])

decode_any = decoder(Any)

_bid_price, _ask_price = attrgetter("bid_price"), attrgetter("ask_price")
_ZEROS = frozenset((0, "0", "0.0"))
_1970 = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE_US = 60_000_000


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


def stated_us(value: object) -> int:
    """Return a time as `venue_us` does, where a message must have one."""
    time_us = venue_us(value)
    if time_us is None:
        raise BadFrame("a message without its time")
    return time_us


def utc_us(text: object) -> int:
    """Return the microseconds of a written UTC time without offset, `2026-09-24T18:26:00`; raises `BadFrame`."""
    try:
        moment = datetime.fromisoformat(text)  # type: ignore[arg-type]
        if moment.tzinfo is None:
            return (moment.replace(tzinfo=UTC) - _1970) // timedelta(microseconds=1)
    except (TypeError, ValueError):
        pass
    raise BadFrame(f"{text!r} is no UTC time")


def minute_us(open_us: int) -> int:
    """Return the beginning of a candle of one minute; raises `BadFrame` where no minute begins."""
    if open_us % MINUTE_US:
        raise BadFrame(f"a candle of one minute can't begin at {open_us}")
    return open_us


def in_order(candles: Iterable[Candle]) -> list[Candle]:
    """Return the candles of one answer oldest first, closed wherever a later one stands there."""
    ordered = sorted(candles, key=lambda candle: candle.open_us)
    return [*(msgspec.structs.replace(candle, closed=True) for candle in ordered[:-1]), *ordered[-1:]]


def trade_id(value: object) -> str:
    """Return an exchange's number of a trade as text, exactly: many are beyond what a float holds.

    Raises `BadFrame` for what is neither a whole number nor its digits.
    """
    if type(value) is int and 0 <= value < 10**30:
        return str(value)
    if type(value) is str and len(value) <= 30 and value.isascii() and value.isdigit():
        return value
    raise BadFrame(f"trade id was {value!r}")


def taker(word: object) -> Literal["buy", "sell"]:
    """Return the side of a taker whose own order is called `BID` (it buys) or `ASK` (it sells)."""
    if word == "BID":
        return "buy"
    if word == "ASK":
        return "sell"
    raise BadFrame(f"ask_bid was {word!r}")


def quoted(price: Any) -> Number | None:
    """Return a price of a ticker; nought stands for none, and so does None."""
    return None if price is None or is_zero(price) else price


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
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise BadFrame(f"the answer has another shape than is known: {error!r}") from None

    return checked  # type: ignore[return-value]
