"""Recorded traffic, read for playing it back.

One JSON object a line: `t` (receive time, Unix seconds or null), `dir` ("in" from the venue, "out" to it), `kind`
("ws" or "rest"), `url`, `data` (the message text). Only frames that came in over a WebSocket and belong to a market are
played, byte for byte, whatever key format a client asks for: a recording is what it is.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from simulator.markets import Book, Level, tidy
from simulator.tape import Row


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded data frame and what it means; prices and volumes in the venue's own digits."""

    data: str
    market: str
    channel: str = "orderbook"
    what: str = "book"
    bids: tuple[Level, ...] = ()
    asks: tuple[Level, ...] = ()
    venue_us: int | None = None
    sequence: int | None = None
    time_s: float | None = None
    rows: tuple[Row, ...] = ()  # of a frame of trades, a ticker or candles

    def book(self) -> Book:
        """Give its levels as a book, in plain decimals."""
        return Book(0, tidy(self.bids), tidy(self.asks), self.venue_us or 0, self.sequence)


@dataclass(frozen=True, slots=True)
class Recording:
    """The data frames of one venue in one recording, in order."""

    frames: tuple[Recorded, ...]

    def markets(self) -> list[str]:
        """Name the markets in it, in order of appearance."""
        return list(dict.fromkeys(f.market for f in self.frames))

    def first_book(self, market: str) -> Book | None:
        """Find the first complete book of a market."""
        for f in self.frames:
            if f.what == "book" and f.market == market:
                return f.book()
        return None


def exact(data: str) -> Any:
    """Decode JSON with every number kept as the text that stood there."""
    return json.loads(data, parse_int=str, parse_float=str)


def real(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Drop padding (price 0) and levels without volume: neither is an order."""
    return tuple((price, volume) for price, volume in levels if not (_zero(price) or _zero(volume)))


def _zero(token: str) -> bool:
    return not token.lower().partition("e")[0].strip("-0.")


def load(path: Path, hosts: tuple[str, ...], read: Callable[[str], Recorded | None]) -> Recording:
    """Read what a recording holds of one venue, known by its hosts; raise ValueError naming a line that is wrong."""
    frames: list[Recorded] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = _checked(json.loads(line))
                if entry["dir"] != "in" or entry["kind"] != "ws" or urlsplit(entry["url"]).hostname not in hosts:
                    continue
                frame = read(entry["data"])
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise ValueError(f"{path}:{number}: not a line of a recording ({e!r})") from e
            if frame is not None:
                time_s = None if entry["t"] is None else float(entry["t"])
                frames.append(replace(frame, time_s=time_s))
    return Recording(tuple(frames))


def _checked(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or entry.keys() != {"t", "dir", "kind", "url", "data"}:
        raise ValueError("keys are t, dir, kind, url, data")
    if entry["dir"] not in ("in", "out") or entry["kind"] not in ("ws", "rest"):
        raise ValueError("dir is in or out, kind is ws or rest")
    if not isinstance(entry["data"], str) or not isinstance(entry["url"], str):
        raise ValueError("url and data are text")
    if entry["t"] is not None and (isinstance(entry["t"], bool) or not isinstance(entry["t"], int | float)):
        raise ValueError("t is a number or null")
    return entry
