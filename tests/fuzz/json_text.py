"""Where the values of a JSON text stand, so that it can be cut and sewn without being read and spelt anew.

Reading and spelling anew would lose what matters: `1.0` and `1E0`, keys that stand there twice, the order of things.
"""

import json
import re
from dataclasses import dataclass, field

import msgspec

Span = tuple[int, int]

_blank = re.compile(rb"[ \t\n\r]*")
_scalar = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+')


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A value with what surrounds it: `[at, end)` holds its key too, `[cut, cut_end)` one comma as well."""

    at: int
    end: int
    cut: int
    cut_end: int
    key: Span | None
    value: Span


@dataclass(slots=True)
class Layout:
    """The parts of one JSON text; every list is in the order of the text (a container stands after what it holds)."""

    values: list[Span] = field(default_factory=list)
    numbers: list[Span] = field(default_factory=list)  # also those in quotes, without the quotes
    strings: list[Span] = field(default_factory=list)  # without the quotes
    keys: list[Span] = field(default_factory=list)  # with the quotes
    pieces: list[Piece] = field(default_factory=list)  # members of objects and entries of lists
    lists: list[list[Piece]] = field(default_factory=list)  # the entries of each list that has any


_number = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def layout(text: bytes) -> Layout | None:
    """Return where things stand in a JSON text; None where it is no JSON, or nested too deeply to be looked at."""
    found = Layout()
    try:
        json.loads(text)
        _value(text, _skip(text, 0), found)
    except (ValueError, RecursionError):
        return None
    return found


def _skip(text: bytes, at: int) -> int:
    match = _blank.match(text, at)
    return match.end() if match else at


def _value(text: bytes, at: int, found: Layout) -> int:
    if text[at : at + 1] in (b"{", b"["):
        end = _container(text, at, found)
    else:
        match = _scalar.match(text, at)
        assert match is not None
        end = match.end()
        inner = (at + 1, end - 1) if text[at : at + 1] == b'"' else (at, end)
        if _number.fullmatch(text, *inner):
            found.numbers.append(inner)
        elif inner[0] > at:
            found.strings.append(inner)
    found.values.append((at, end))
    return end


def _container(text: bytes, at: int, found: Layout) -> int:
    is_object = text[at : at + 1] == b"{"
    parts: list[tuple[int, int, Span | None, Span]] = []
    at = _skip(text, at + 1)
    while text[at : at + 1] not in (b"}", b"]"):
        start, key = at, None
        if is_object:
            match = _scalar.match(text, at)
            assert match is not None
            key = match.span()
            found.keys.append(key)
            at = _skip(text, _skip(text, key[1]) + 1)
        value_at = at
        at = _value(text, at, found)
        parts.append((start, at, key, (value_at, at)))
        at = _skip(text, at)
        if text[at : at + 1] == b",":
            at = _skip(text, at + 1)
    pieces = [_piece(parts, i) for i in range(len(parts))]
    found.pieces += pieces
    if pieces and not is_object:
        found.lists.append(pieces)
    return at + 1


def _piece(parts: list[tuple[int, int, Span | None, Span]], i: int) -> Piece:
    at, end, key, value = parts[i]
    if i + 1 < len(parts):
        return Piece(at, end, at, parts[i + 1][0], key, value)
    return Piece(at, end, parts[i - 1][1] if i else at, end, key, value)
