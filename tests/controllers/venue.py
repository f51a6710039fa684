"""What the tests of all exchanges share: hand-made and recorded frames, an independent reading, mutations."""

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import pytest

from collector.errors import SourceError
from collector.records import Book, BookChange, Candle, Message, Refused, Reply, Subscribed, Ticker, Trade
from controllers.base import Controller, Setup
from controllers.websocket import WSController
from tests.fakes import FakeClock, Stored, frame_counts, make_setup

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

DATA = Path(__file__).resolve().parent.parent / "data"

Side = dict[Decimal, Decimal]
Class = TypeVar("Class", bound=Controller)


def make(cls: type[Class], *markets: str, setup: Setup | None = None, **options: Any) -> Class:
    """Return a controller of `markets` (BTC-KRW) that is not started."""
    return cls(markets or ("BTC-KRW",), setup or make_setup(**options))


# --- hand-made frames -------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A hand-made frame and what it means."""

    name: str
    frame: bytes
    gives: Any

    def __str__(self) -> str:
        return self.name.replace(" ", "_").replace(",", "")

    def check(self, controller: Controller) -> None:
        """Read the frame and compare."""
        if isinstance(self.gives, list):
            assert told(controller.parse(self.frame, 0)) == self.gives
            return
        kind, _, text = self.gives.partition(": ")
        with pytest.raises(SourceError) as error:
            list(controller.parse(self.frame, 0))
        assert type(error.value).__name__ == kind
        assert str(error.value).startswith(text)


def cases(exchange: str, file: str = "frames") -> list[Case]:
    """Return the hand-made frames of an exchange."""
    lines = (DATA / exchange / f"{file}.ndjson").read_text("utf-8").splitlines()
    return [Case(row["case"], row["frame"].encode(), row["gives"]) for row in map(json.loads, lines)]


def frame_of(exchange: str, name: str, file: str = "frames") -> bytes:
    """Return one hand-made frame by its name."""
    return next(case.frame for case in cases(exchange, file) if case.name == name)


def told(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Write messages as the files of hand-made frames do."""
    return [_told(message) for message in messages]


def _told(message: Message) -> dict[str, Any]:
    match message:
        case Book():
            totals = None if message.totals is None else list(message.totals)
            return {"book": message.market, **_sides(message), "totals": totals}
        case BookChange():
            return {"change": message.market, **_sides(message)}
        case Reply():
            return {"reply": message.text}
        case Refused():
            return {"refused": message.detail, "market": message.market}
        case Subscribed():
            return {"subscribed": message.channel, "market": message.market}
        case Trade():
            return {"trade": message.market, **_fields(message, "id", "side", "price", "size", "venue_us")}
        case Ticker():
            return {"ticker": message.market, **_fields(message, "last", "bid", "ask", "volume", "venue_us")}
        case Candle():
            prices = [message.open, message.high, message.low, message.close]
            told = _fields(message, "interval_s", "open_us", "volume", "closed", "venue_us")
            return {"candle": message.market, "prices": prices, **told}
        case _:
            return {type(message).__name__.lower(): msgspec.to_builtins(message)}


def _fields(message: Message, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}


def _sides(message: Book | BookChange) -> dict[str, Any]:
    return {
        "bids": [list(level) for level in message.bids.items()],
        "asks": [list(level) for level in message.asks.items()],
        "venue_us": message.venue_us,
        "sequence": message.sequence,
    }


# --- recorded frames --------------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A line of recorded traffic."""

    where: str
    kind: str
    direction: str
    url: str
    data: str


def recorded(wire: Path, exchange: str, kind: str = "ws", direction: str = "in") -> Iterator[Recorded]:
    """Yield the recorded messages of an exchange, all files."""
    for file in sorted((wire / exchange).glob("*.ndjson")):
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if (row["kind"], row["dir"]) == (kind, direction):
                    yield Recorded(f"{file.name}:{number}", kind, direction, row["url"], row["data"])


def exactly(text: str | bytes) -> Any:
    """Decode JSON without the decoder under test, numbers exact."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def side(rows: Iterable[Mapping[str, Any]], price: str, size: str) -> Side:
    """Return the levels of a decoded frame that are orders: neither padding nor empty."""
    levels = [(Decimal(row[price]), Decimal(row[size])) for row in rows]
    kept = [(p, s) for p, s in levels if p and s]
    assert len(dict(kept)) == len(kept)
    return dict(kept)


def check_book(controller: Controller, frame: str, market: str, bids: Side, asks: Side) -> Book:
    """Read a frame, take it into a book, and compare every level with an independent reading."""
    (message,) = controller.parse(frame.encode(), 0)
    assert isinstance(message, Book)
    assert message.market == market
    fresh = make(type(controller), market)
    kept = fresh.books[market].book
    kept.replace(message)
    assert kept.as_numbers() == (bids, asks)
    out = [json.loads(text) for text in kept.as_json()]
    assert [(Decimal(p), Decimal(s)) for p, s in out[0]] == sorted(bids.items(), reverse=True)
    assert [(Decimal(p), Decimal(s)) for p, s in out[1]] == sorted(asks.items())
    if controller.text_numbers:  # text comes out digit for digit
        raw = {tuple(map(str, level)) for side in (message.bids, message.asks) for level in side.items()}
        assert {(p, s) for side in out for p, s in side} == {(p, s) for p, s in raw if Decimal(s)}
    return message


# --- anything that may come -------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**20, 10**400, -(10**30), 0.5, 1e300, "", "NaN", "-1", "1E999999999", "9" * 400, "0",
    "x", "\u0660", "\ud800", [], {}, [[]], [None], {"a": 1}, "BTC-KRW", "KRW-BTC", "krw", "orderbook",
)  # fmt: skip


def hold_to_any_frames(cls: type[Controller], exchange: str, file: str = "frames") -> None:
    """Check the property: any bytes give messages or a `SourceError`, and nothing stored is ever wrong by it."""
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given
    from hypothesis import strategies as st

    @given(st.lists(anything([case.frame for case in cases(exchange, file)]), max_size=6))
    def check(frames: list[bytes]) -> None:
        check_anything(cls, frames)

    check()


def hold_to_any_answers(cls: type[Controller], bodies: Iterable[str]) -> None:
    """Check the property for REST: any answer is read or gives a `SourceError`, also where its book is compared."""
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given

    controller = make(cls)

    @given(anything([body.encode() for body in bodies]))
    def check(body: bytes) -> None:
        with contextlib.suppress(SourceError):
            assert isinstance(cls.parse_listing(body), list)
        if isinstance(controller, WSController) and controller.probe_path("BTC-KRW"):
            with contextlib.suppress(SourceError):
                assert isinstance(controller.parse_probe("BTC-KRW", body), Book)

    check()


def anything(frames: list[bytes]) -> "SearchStrategy[bytes]":
    """Return a strategy of bytes: noise, and real frames with bytes or values spoiled."""
    from hypothesis import strategies as st

    trees = []
    for frame in frames:
        try:
            trees.append(json.loads(frame))
        except ValueError:
            continue

    @st.composite
    def spoiled_bytes(draw: st.DrawFn) -> bytes:
        frame = draw(st.sampled_from(frames))
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(frame)))
            end = draw(st.integers(start, min(len(frame), start + 8)))
            frame = frame[:start] + draw(st.binary(max_size=6)) + frame[end:]
        return frame

    @st.composite
    def spoiled_values(draw: st.DrawFn) -> bytes:
        tree = copy.deepcopy(draw(st.sampled_from(trees)))
        for _ in range(draw(st.integers(1, 3))):
            places = list(_places(tree))
            if not places:
                break
            holder, key = draw(st.sampled_from(places))
            if isinstance(holder, dict) and draw(st.booleans()):
                del holder[key]
            else:
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))  # the next round may spoil it too
        return json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")

    return st.one_of(st.binary(max_size=60), spoiled_bytes(), spoiled_values(), st.sampled_from(frames))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


def check_anything(cls: type[Controller], frames: list[bytes]) -> None:
    """Any bytes give messages or a `SourceError`; every frame is accounted for and every book can be rebuilt."""
    clock = FakeClock()
    setup = make_setup(clock=clock)
    controller = make(cls, "BTC-KRW", "ETH-KRW", setup=setup)
    stored = Stored(setup.intake)
    controller.anchor()
    for frame in frames:
        try:
            messages = list(controller.parse(frame, 0))
        except SourceError:
            messages = []
        assert all(isinstance(message, Message) for message in messages)
        try:
            controller.handle(frame, clock.advance(0.1))
        except SourceError:
            controller.end_epochs("disconnect")
        controller.flush()
        stored.take()
        for market, state in controller.books.items():
            if state.epoch:
                kept = stored.epochs[state.epoch]
                assert kept.opened.market == market
                bids, asks = state.book.as_numbers()
                assert {Decimal(p): Decimal(s) for p, s in kept.book[0].items()} == bids
                assert {Decimal(p): Decimal(s) for p, s in kept.book[1].items()} == asks
    check_sums(setup, stored, cls.exchange, len(frames))


def check_sums(setup: Setup, stored: Stored, exchange: str, sent: int) -> dict[str, int]:
    """Every frame ended in one bucket: return the counts."""
    counts = frame_counts(setup, exchange)
    counts["stored"], counts["rejected"] = stored.take().frames
    assert counts["received"] == sent
    assert counts["received"] == sum(count for outcome, count in counts.items() if outcome != "received"), counts
    return counts
