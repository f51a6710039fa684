"""Spoils messages: now as something that knows JSON and order books would, now byte by byte.

Everything is drawn from one `random.Random`, so a seed makes the same messages again. A fault is a list of edits of the
text; faults that would meet in one place are not made twice there.
"""

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from tests.fuzz.json_text import Layout, Piece, Span, layout

BYTES_MAX = 1 << 20  # nothing larger is made
DEPTHS = (2, 5, 30, 200, 1_200, 20_000)
COPIES = (1, 1, 2, 3, 30, 300)

_Thing = TypeVar("_Thing")
_Edit = tuple[int, int, bytes]  # put these bytes in place of those from one position to another

ODD_VALUES = [
    text.encode()
    for text in (
        "null", "true", "false", "0", "-0", "1", "-1", "0.0", "0e0", "1e0", "1E+2", "1e-2", "1e999999999",
        "1e-999999999", "1e9999999999999999999", "-1e400",
        "1e400", "1e40", "1e41", "1e-40", "1e-41", "9" * 400, "9" * 5000, "-" + "9" * 40,
        "0." + "0" * 50 + "1", "0." + "9" * 80, "1" + "0" * 30, "9223372036854775808", "18446744073709551616",
        "4611686018427387904", "999999999999999999", "1790000000000000", "NaN", "Infinity", "-Infinity", "nan", ".5",
        "5.", "01", "+1", "1_000", "0x10", "1,5", "--1", "1e", '""', '" "', '"0"', '"-0"', '"0.0"', '"0e5"', '"-1"',
        '"1"', '"NaN"', '"sNaN123"', '"inf"', '"-Infinity"', '"1e999999999"', '"1E-999999999"', '"1E5"', '"1e-5"',
        '"1_000"', '" 1"', '"1 "', '"1\\n"', '"+1"', '".5"', '"5."', '"00.10"', '"٠"', '"１２"', '"1e٣"',
        '"' + "9" * 400 + '"', '"0.' + "3" * 70 + '"', '"x"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"',
        '"\\u0031"', '"null"', '"\u202e1"', '"\U0001f600"', "[]", "{}", "[[]]", "[null]", "[0,0]", '{"a":1}',
        '{"price":"1","size":"1"}', "[{}]", '""x', '"orderbook"', '"KRW-BTC"', '"BTC-KRW"', '"btc_krw"', '"DATA"',
        '"ERROR"', '"error"', '"fail"', '"success"', '"UP"', '"primus::ping::1"', '"SubscribeToOrderBook"',
    )
]  # fmt: skip
ODD_TEXT = [
    text.encode()
    for text in (
        "", " ", "\\u0000", "\\n", "\\ud83d", "\\ud83d\\ude00", "\\/", "\\x41", "\u2028", "\u202e", "\ufeff",
        "\U0001f600", "\u0130", "\u00df", "\u212a", "\\u0042TC", "'", "%s", "{}", "../", "\\\\", '\\"', "-", "_",
        "A" * 3000,
    )
] + [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00", b"\x1b[2J"]  # fmt: skip
NAMES = [
    b"BTC",
    b"ETH",
    b"KRW",
    b"USDT",
    b"DOGE",
    b"XRP",
    b"btc",
    b"krw",
    b"",
    b"BTC-KRW",
    b"KRW-BTC",
    "ＫＲＷ".encode(),
]
TAILS = [
    b"e5",
    b"E-3",
    b"e400",
    b"e-400",
    b"e" + b"9" * 20,
    b"0",
    b"00",
    b".0",
    b".",
    b"e",
    b"9" * 20,
    b"0" * 60,
    b"-",
    b" ",
    b"\\u0030",
]
HEADS = [b"-", b"-", b"0", b"00", b"+", b" ", b"1", b"9" * 20, b"0.", b".", b"\\u0031", "１".encode()]
BLANKS = [b" ", b"\n", b"\t", b"\r\n", b" " * 500, b"\xc2\xa0", b"\x0c", b"//x\n"]


class Material:
    """A message, and where things stand in it (None: it is no JSON), looked for when that is first asked."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame

    @cached_property
    def layout(self) -> Layout | None:
        """Where things stand."""
        return layout(self.frame)


def sewn(frame: bytes, edits: list[_Edit]) -> bytes:
    """Make the edits that do not overlap an earlier one."""
    parts: list[bytes] = []
    at = 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        if start >= at:
            parts += (frame[at:start], new)
            at = end
    parts.append(frame[at:])
    return b"".join(parts)[:BYTES_MAX]


class Mutator:
    """Makes spoiled messages out of good ones."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_.random

    def spoil(self, good: Material, others: Sequence[Material]) -> bytes:
        """Return the message with a fault in it, or several; parts of the others may stand in it."""
        if good.layout is None or not good.layout.pieces or self._random() < 0.12:
            frame = good.frame
            for _ in range(self._few()):
                frame = self._pick(_BYTE_FAULTS)(self, frame, others)
            return frame[:BYTES_MAX]
        edits: list[_Edit] = []
        for _ in range(self._few()):
            edits += self._pick(_FAULTS)(self, good.frame, good.layout, others)
        return sewn(good.frame, edits)

    # --- drawing

    def _few(self) -> int:
        count = 1
        while count < 6 and self._random() < 0.3:
            count += 1
        return count

    def _below(self, n: int) -> int:
        return int(self._random() * n)

    def _pick(self, things: Sequence[_Thing]) -> _Thing:
        return things[int(self._random() * len(things))]

    def _noise(self, length: int) -> bytes:
        return bytes(self._below(256) for _ in range(length))

    def _foreign_value(self, others: Sequence[Material]) -> bytes:
        other = self._pick(others)
        if other.layout is None:
            return other.frame
        start, end = self._pick(other.layout.values)
        return other.frame[start:end]

    # --- faults of values

    def odd_value(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Put something else in place of a value; in a list of levels now and then everywhere."""
        start, end = self._pick(parts.values)
        return [(start, end, self._pick(ODD_VALUES))]

    def number(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Write a number otherwise, or write another."""
        if not parts.numbers:
            return []
        start, end = self._pick(parts.numbers)
        token = frame[start:end]
        match self._below(7):
            case 0:
                return [(start, start, self._pick(HEADS))]
            case 1:
                return [(end, end, self._pick(TAILS))]
            case 2:  # the same number in quotes, or out of them
                if frame[start - 1 : start] == b'"':
                    return [(start - 1, end + 1, token)]
                return [(start, end, b'"' + token + b'"')]
            case 3:
                at = start + self._below(end - start)
                return [(at, at + 1, str(self._below(10)).encode())]
            case 4:  # the same value, in another spelling
                return [(end, end, b"e0" if b"e" in token.lower() or b"." in token else b".000")]
            case 5:
                return [(start, end, b"0")]
            case _:  # the number of another place: a level at the price of its neighbour
                other = self._pick(parts.numbers)
                return [(start, end, frame[other[0] : other[1]])]

    def text(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Put something into a text that does not belong there, or escape a letter of it."""
        if not parts.strings:
            return []
        start, end = self._pick(parts.strings)
        at = start + self._below(end - start + 1)
        if at < end and frame[at] < 0x80 and self._random() < 0.3:
            return [(at, at + 1, b"\\u%04x" % frame[at])]
        return [(at, at + (self._random() < 0.5 and at < end), self._pick(ODD_TEXT))]

    def market(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Write another symbol or currency, in one place or wherever it stands."""
        name = self._pick([name for name in NAMES if name and name in frame] or [b"-"])
        new = self._pick(NAMES)
        found: list[_Edit] = []
        at = frame.find(name)
        while at >= 0 and len(found) < 4:
            found.append((at, at + len(name), new))
            at = frame.find(name, at + len(name))
        return found if self._random() < 0.7 else found[:1]

    def nest(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Wrap a value up, once or far too often."""
        start, end = self._pick(parts.values)
        depth = 1 if self._random() < 0.7 else self._pick(DEPTHS)
        if self._random() < 0.5:
            return [(start, start, b"[" * depth), (end, end, b"]" * depth)]
        return [(start, start, b'{"price":' * depth), (end, end, b"}" * depth)]

    def splice(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Put a value of another message in place of one of this."""
        start, end = self._pick(parts.values)
        return [(start, end, self._foreign_value(others))]

    def swap(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Exchange two values."""
        one, two = self._pick(parts.pieces).value, self._pick(parts.pieces).value
        if one[0] < two[1] and two[0] < one[1]:
            return []
        return [(*one, frame[two[0] : two[1]]), (*two, frame[one[0] : one[1]])]

    # --- faults of members and entries

    def delete(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Leave out a member or an entry."""
        piece = self._pick(parts.pieces)
        return [(piece.cut, piece.cut_end, b"")]

    def double(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Write a member or an entry again, once or many times."""
        piece = self._pick(parts.pieces)
        return [(piece.at, piece.at, (frame[piece.at : piece.end] + b",") * self._pick(COPIES))]

    def contradict(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Write a member again with another value: before it, or after it, where it counts."""
        piece = self._pick(parts.pieces)
        value = self._foreign_value(others) if self._random() < 0.5 else self._pick(ODD_VALUES)
        again = _with(frame, piece, value)
        return [(piece.at, piece.at, again + b",") if self._random() < 0.5 else (piece.end, piece.end, b"," + again)]

    def key(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Rename a member, as another one or as none."""
        if not parts.keys:
            return []
        start, end = self._pick(parts.keys)
        if self._random() < 0.5:
            other = self._pick(parts.keys)
            return [(start, end, frame[other[0] : other[1]])]
        return [(start, end, self._pick((b'""', b'"x"', b'"__class__"', b'"\\u0070rice"', b"null", b"1", b"")))]

    def levels(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Reorder, empty, cut or multiply a whole list."""
        if not parts.lists:
            return []
        entries = self._pick(parts.lists)
        whole = (entries[0].at, entries[-1].end)
        texts = [frame[piece.at : piece.end] for piece in entries]
        match self._below(5):
            case 0:
                texts.reverse()
            case 1:
                texts = []
            case 2:
                texts = texts[: self._below(len(texts) + 1)]
            case 3:
                texts *= self._pick((2, 3, 20))
            case _:  # many levels that are not alike
                texts = [_renumbered(text, i) for i in range(self._pick((2, 20, 60))) for text in texts]
        return [(*whole, b",".join(texts))]

    def blank(self, frame: bytes, parts: Layout, others: Sequence[Material]) -> list[_Edit]:
        """Put blanks, or what looks like some, between two parts."""
        start, end = self._pick(parts.values)
        at = start if self._random() < 0.5 else end
        return [(at, at, self._pick(BLANKS))]

    # --- faults of bytes

    def flip(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Turn one bit round."""
        if not frame:
            return b"\x00"
        at = self._below(len(frame))
        return frame[:at] + bytes((frame[at] ^ (1 << self._below(8)),)) + frame[at + 1 :]

    def cut(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Leave out the end, the beginning or something between."""
        start, end = self._span(frame)
        return self._pick((frame[:start], frame[end:], frame[:start] + frame[end:]))

    def insert(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Put some bytes in."""
        at = self._below(len(frame) + 1)
        return frame[:at] + self._noise(1 + self._below(6)) + frame[at:]

    def repeat(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Say a part again and again."""
        start, end = self._span(frame)
        copies = self._pick(COPIES)
        return frame[:start] + frame[start:end] * copies + frame[start:]

    def join(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Make one message of two."""
        other = self._pick(others).frame
        match self._below(4):
            case 0:
                return frame + other
            case 1:
                return frame[: self._below(len(frame) + 1)] + other[self._below(len(other) + 1) :]
            case 2:
                return b"[" + frame + b"," + other + b"]"
            case _:
                at = self._below(len(frame) + 1)
                return frame[:at] + other + frame[at:]

    def other_bytes(self, frame: bytes, others: Sequence[Material]) -> bytes:
        """Send something else altogether, or the same in another coat."""
        match self._below(6):
            case 0:
                return b""
            case 1:
                return self._noise(self._below(60))
            case 2:
                return b"\xef\xbb\xbf" + frame
            case 3:
                return frame.decode("utf-8", "replace").encode("utf-16")
            case 4:
                return b'"' + frame.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
            case _:
                return self._pick(ODD_VALUES)

    def _span(self, frame: bytes) -> Span:
        start = self._below(len(frame) + 1)
        return start, min(len(frame), start + 1 + self._below(40))


def _with(frame: bytes, piece: Piece, value: bytes) -> bytes:
    return frame[piece.at : piece.value[0]] + value


def _renumbered(text: bytes, i: int) -> bytes:
    # The first digit that follows a colon or comma gets others before it: a price, or an id, that nobody else has.
    for at in range(1, len(text)):
        if text[at : at + 1].isdigit() and text[at - 1 : at] in (b":", b",", b'"', b"["):
            return text[:at] + b"%d" % (i + 1) + text[at:]
    return text


_Fault = Callable[[Mutator, bytes, Layout, Sequence[Material]], list[_Edit]]
_ByteFault = Callable[[Mutator, bytes, Sequence[Material]], bytes]

# As often as they stand here.
_FAULTS: tuple[_Fault, ...] = (
    Mutator.odd_value, Mutator.odd_value, Mutator.number, Mutator.number, Mutator.number, Mutator.text, Mutator.market,
    Mutator.nest, Mutator.splice, Mutator.swap, Mutator.swap, Mutator.delete, Mutator.double, Mutator.contradict,
    Mutator.key, Mutator.levels, Mutator.blank,
)  # fmt: skip
_BYTE_FAULTS: tuple[_ByteFault, ...] = (
    Mutator.flip, Mutator.flip, Mutator.cut, Mutator.insert, Mutator.repeat, Mutator.join, Mutator.other_bytes,
)  # fmt: skip
