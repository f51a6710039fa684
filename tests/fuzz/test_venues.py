"""Every exchange holds out against messages that are spoiled, and what watches over that notices when one does not."""

import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

import controllers
from collector.errors import BadFrame, VenueRefused
from collector.numbers import to_decimal
from collector.records import ORDERBOOK, Book, BookChange, Candle, Message, Ticker, Trade
from controllers import book
from controllers.base import Controller, Reader
from controllers.binance import Binance
from controllers.book import Side
from controllers.book_feed import HeardBook
from controllers.bybit import Bybit
from controllers.feed import HeardFeed
from controllers.gopax import Gopax
from controllers.kraken import Kraken
from controllers.okx import Okx
from controllers.upbit import Upbit
from tests.conftest import ROOT
from tests.fuzz import guard, venues
from tests.fuzz.breach import TRIES, TooSlow, Violation, surely
from tests.fuzz.guard import Guard
from tests.fuzz.supply import classes, markets_of
from tests.fuzz.venues import SESSION, Session, fuzz, targets

FRAMES = 750
PATIENT = 10.0  # seconds of processor time for a frame: this machine may be slow, and what hangs takes for ever


def recorded_traffic() -> Path | None:
    """Return the folder of recorded traffic; there is enough to spoil without it."""
    folder = Path(os.environ.get("COLLECTOR_WIRE") or ROOT.parent / "shared" / "wire")
    return folder if folder.is_dir() else None


@pytest.mark.parametrize("target", targets())
def test_every_spoiled_frame_ends_in_one_outcome(target: str) -> None:
    """Fails when `decoder` lets `RecursionError` pass, when `plain` returns its text, when `_ABSENT` is None, ..."""
    cls = classes()[target]
    counts = fuzz(cls, FRAMES, seed=1, wire=recorded_traffic(), guard=Guard(PATIENT))
    assert counts["frames"] == FRAMES
    assert sum(counts[outcome] for outcome in venues.OUTCOMES) == FRAMES
    expected = venues.OUTCOMES if cls.verdict else venues.OUTCOMES[:-1]  # only what is proved drops what is not
    assert all(counts[outcome] for outcome in expected), "else something is not tried"


def test_every_exchange_is_there() -> None:
    assert {name.partition("/")[0] for name in targets()} == set(controllers.venues())
    assert {"bithumb/rest", "bithumb/websocket", "binance/websocket/usdm", "okx/websocket/business"} <= set(targets())


@pytest.mark.parametrize("target", targets())
def test_every_class_hears_good_messages_of_all_that_it_offers(target: str) -> None:
    cls = classes()[target]
    assert all(cls.carries(market, channel) for market in markets_of(cls) for channel in cls.offers)
    play = venues.supplied(cls, recorded_traffic()).shallow
    heard = [good for step in play.updates for good in step if good.market]
    assert {(good.market, good.channel) for good in heard} == {(m, c) for m in markets_of(cls) for c in cls.offers}
    assert {good.channel for good in heard if good.rows} == set(cls.offers) - {ORDERBOOK}
    assert all(good.book for good in heard if good.complete)
    if ORDERBOOK in cls.offers:
        assert {good.market for good in heard if good.book} == set(markets_of(cls))


def test_a_session_depends_on_its_seed_alone() -> None:
    def heard(seed: int) -> list[bytes]:
        session = Session(Upbit, seed, venues.supplied(Upbit), Guard(PATIENT))
        frames: list[bytes] = []
        handle = session.controller.handle

        def handled(frame: bytes, *rest: Any) -> Any:
            frames.append(frame)
            return handle(frame, *rest)

        session.controller.handle = handled
        session.run(100)
        return frames

    assert heard(3) == heard(3) != heard(4)


# --- it notices -------------------------------------------------------------------------------------------------------


def found(cls: type[Controller], frames: int = 4 * SESSION) -> Violation:
    with pytest.raises(Violation) as violation:
        fuzz(cls, frames, seed=1, guard=Guard(PATIENT))
    return violation.value


class Escaping(Upbit):
    """Lets another error than `SourceError` pass."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        try:
            return super().parse(frame, received_us)
        except BadFrame as error:
            raise ValueError(str(error)) from error


class Guessing(Upbit):
    """Takes a book that it can't read for the last one that it could."""

    last: tuple[Message, ...] = ()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        try:
            type(self).last = tuple(super().parse(frame, received_us)) or self.last
        except VenueRefused:
            raise
        except BadFrame:
            return self.last
        return self.last


class Wandering(Upbit):
    """Takes every book for one of the same market."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            yield msgspec.structs.replace(message, market="BTC-KRW") if isinstance(message, Book) else message


class Rounding(Upbit):
    """Reads prices through floats."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            if isinstance(message, Book):
                sizes = {p: str(float(s) * 1.1) if type(s) is str else s for p, s in message.bids.items()}
                message = msgspec.structs.replace(message, bids=sizes)
            yield message


class Inverting(Upbit):
    """Takes the maker's side for the taker's."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            if isinstance(message, Trade):
                message = msgspec.structs.replace(message, side="sell" if message.side == "buy" else "buy")
            yield message


class Local(Upbit):
    """Takes the time in Korea for UTC."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            if isinstance(message, Candle):
                message = msgspec.structs.replace(message, open_us=message.open_us + 9 * 3_600_000_000)
            yield message


class Computing(Upbit):
    """Computes what a ticker says."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            if isinstance(message, Ticker) and message.volume is not None:
                message = msgspec.structs.replace(message, volume=f"{to_decimal(message.volume) / 3:.8f}")
            yield message


class Unlinked(Bybit):
    """Takes any change for the next one."""

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        return True


class Joining(Binance):
    """Joins a book over REST with whatever comes."""

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        return joining or super().follows(change, sequence, joining=joining)


class Unsummed(Kraken):
    """Compares no sums."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        for message in super().parse(frame, received_us):
            yield msgspec.structs.replace(message, checksum=None) if hasattr(message, "checksum") else message


class Uncut(Unsummed):
    """Keeps what falls out of the depth as well."""

    cut_to_depth = False


class Resigned(Okx):
    """Does not ask for a book that broke."""

    def resync(self, feed: HeardFeed, at_us: int) -> None:
        return


class Losing(Upbit):
    """Loses a frame when it is rejected."""

    def handle(self, frame: bytes, at_us: int, read: Reader | None = None) -> list[Message]:
        rejected = self._rejected
        asks = super().handle(frame, at_us, read)
        if self._rejected > rejected:
            self._records.pop()
        return asks


class Overlooking(Gopax):
    """Goes on after a rejected change as if nothing had been."""

    def after_rejection(self, books: Sequence[HeardBook], at_us: int, *, known: bool) -> None:
        return


class Endless(Upbit):
    """Does not end for some frames."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        while b"\\u" in frame:
            pass
        return super().parse(frame, received_us)


class Hoarding(Upbit):
    """Takes a hundred megabytes for a bracket."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        if b"[[" in frame:
            bytearray(b"x") * (200 << 20)
        return super().parse(frame, received_us)


class Confusing(Gopax):
    """Lists whatever stands in the place of a name."""

    @classmethod
    def parse_listing(cls, body: bytes) -> list[str]:
        return [*super().parse_listing(body), 5]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Escaping, "only SourceError may leave parse"),
        (Guessing, "no JSON|which the frame does not name|is not in the frame"),
        (Wandering, "of BTC-KRW, which the frame does not name|not the one that was sent"),
        (Rounding, "is not in the frame|not the one that was sent"),
        (Inverting, "a trade is not the one that was sent"),
        (Local, "candles of other minutes"),
        (Computing, "is not in the frame|a ticker is not the one that was sent"),
        (Unlinked, "a change that does not follow .* is stored|after one that is missing is stored"),
        (Joining, "the book is not the one that was sent|does not follow|after one that is missing"),
        (Unsummed, "passes for the one that was sent|not the one that was sent"),
        (Uncut, "not the one that was sent"),
        (Resigned, "nobody asks for the book of"),
        (Losing, "rejected and not kept"),
        (Overlooking, "a connection that should end"),
        (Hoarding, "memory grew by"),
        (Confusing, "market 5"),
    ],
)
def test_a_controller_that_does_wrong_is_found(cls: type[Controller], text: str) -> None:
    violation = found(cls)
    assert re.search(text, str(violation)), str(violation)[:500]


def test_work_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CPU_S_HANGING", 0.2)
    violation = found(Endless)
    assert b"\\u" in violation.spoiled
    assert "no end after" in str(violation)


def test_work_that_is_too_slow_each_time_is_found() -> None:
    with pytest.raises(Violation, match=r"it took .* s of processor time"):
        fuzz(Upbit, 1, seed=1, guard=Guard(0.0))


def test_work_that_was_slow_once_is_done_again() -> None:
    def work() -> str:
        if next(tries) < TRIES - 1:
            raise Violation("x", 1, 1, b"", TooSlow("it took long"))
        return "done"

    tries = count()
    assert surely(work) == "done"


def test_numbers_below_nought_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "_ZERO", Decimal("-Infinity"))
    assert re.search(r"(price|size) '-", str(found(Upbit, 12 * SESSION)))


def test_a_book_that_is_not_sorted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    as_text = Side.as_text
    monkeypatch.setattr(Side, "as_text", lambda side, highest_first: as_text(side, highest_first=not highest_first))
    assert "best first" in str(found(Upbit))


def test_a_row_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm(feed: HeardFeed, at_us: int) -> None:
        confirmed(feed, at_us)
        if isinstance(feed, HeardBook):
            feed.n += feed.n == 3

    confirmed = HeardFeed.confirm
    monkeypatch.setattr(HeardFeed, "confirm", confirm)
    assert "row 5 where 4 comes next" in str(found(Upbit))


def test_a_violation_shows_the_frame_and_the_seed_that_makes_it_again() -> None:
    first = found(Confusing)
    again = fuzz_once(Confusing, first.seed)
    assert (again.seed, again.number, again.spoiled) == (first.seed, first.number, first.spoiled)
    assert f"seed {first.seed}," in str(first)
    assert repr(first.spoiled)[:100] in str(first)


def fuzz_once(cls: type[Controller], seed: int) -> Violation:
    with pytest.raises(Violation) as violation:
        fuzz(cls, SESSION, seed, guard=Guard(PATIENT))
    return violation.value
