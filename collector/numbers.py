"""Exact numbers as exchanges write them.

A `Number` is the token of a message, untouched: JSON text and JSON numbers with a fraction or an exponent arrive as
`str`, JSON integers as `int`. Nothing here ever goes through a float.
"""

import re
from collections.abc import Callable
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import msgspec

from collector.errors import BadFrame

Number = str | int

# Wide enough for every sum of a book: no addition or subtraction of prices and sizes is ever rounded.
EXACT = Context(prec=120)
# More digits than any market has; larger exponents would make a short token a text of gigabytes.
DIGITS_MAX = 40

_is_plain = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII).fullmatch
_is_number = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII).fullmatch


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """Return a JSON decoder for *kind* that keeps numbers with a fraction as text (fields of type `Any`).

    The returned function raises `BadFrame` for bytes that are not JSON of that shape.
    """
    decode = msgspec.json.Decoder(kind, float_hook=str).decode

    def decode_frame(frame: bytes) -> Any:
        try:
            if not frame.isascii():
                frame.decode()  # msgspec passes over the text of fields that nobody asked for, UTF-8 or not
            return decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            # It quotes what it does not know: a reason goes to the store, where text holds no NUL.
            raise BadFrame(str(error).replace("\0", "\\0")) from None

    return decode_frame


def to_decimal(token: object) -> Decimal:
    """Return the value of a price or size token, exactly.

    Raises `BadFrame` for anything that is not a finite decimal number of at most `DIGITS_MAX` digits either side of the
    point (`"NaN"`, `None`, `true`, `"1_000"`, `1E999999999`).
    """
    if type(token) is str and len(token) <= DIGITS_MAX and _is_plain(token):
        return Decimal(token)  # nearly all of them; too short to be out of range
    if type(token) is int or (type(token) is str and len(token) <= 2 * DIGITS_MAX and _is_number(token)):
        try:
            number = Decimal(token)
        except InvalidOperation:  # an exponent of twenty digits
            raise BadFrame(f"{_short(token)} is out of range") from None
    else:
        raise BadFrame(f"{_short(token)} is not a number")
    exponent = number.as_tuple().exponent
    if number.adjusted() > DIGITS_MAX or (isinstance(exponent, int) and exponent < -DIGITS_MAX):
        raise BadFrame(f"{_short(token)} is out of range")
    return number


def plain(token: Number) -> str:
    """Return the token as text without exponent; text that has none keeps its digits (`"0.10"` stays `"0.10"`)."""
    text = str(token)
    return format(Decimal(text), "f") if "e" in text or "E" in text else text


def is_zero(token: object) -> bool:
    """Tell whether a token means nought, however it is written; raises `BadFrame` when it is no number."""
    return not to_decimal(token)


def _short(token: object) -> str:
    text = repr(token)
    return text if len(text) <= 60 else text[:57] + "..."
