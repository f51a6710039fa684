"""Feeds spoiled messages to a venue's controller, the way that they would really go, and looks at what becomes of each.

A session is a fresh controller that hears its markets move and, between good messages, spoiled ones. It depends on its
seed alone, so what one finds, it finds again. Held to, for every frame:

- `parse` gives messages or a `SourceError`, the same each time, and so does what reads answers to REST calls;
- the frame ends in exactly one outcome, the one that `parse` foretells; a rejected one is kept raw and ends coverage;
- what is handed over is what a store may hold (see `audit`), in the frame's own numbers and under its own market;
- it takes neither time nor memory out of all proportion;
- a good message after all that gives the book that was sent.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from collector.budget import Budget
from collector.config import Exchange
from collector.errors import BadFrame, ConnectionLost, SourceError, VenueRefused
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.records import KEYFRAME, Book, BookChange, Feed, Message, Refused, Reply
from controllers import known
from controllers.base import Controller, Setup
from controllers.book import OrderBook
from controllers.websocket import WSController
from tests.fakes import NOON_US, FakeClock
from tests.fuzz.audit import Audit, Taken
from tests.fuzz.breach import Breach, Stuck, Violation, require, surely
from tests.fuzz.guard import MEMORY_KIB_MAX, Guard, ended, resident_kib
from tests.fuzz.mutate import Material, Mutator
from tests.fuzz.supply import MARKETS, Good, Supply, supply

SESSION = 500  # spoiled frames
SETTLED = 200  # sessions after which memory grows no more
OUTCOMES = ("stored", "duplicate", "ignored", "rejected")
BEFORE_MIDNIGHT_US = NOON_US + 12 * 3_600_000_000 - 20_000_000
PAUSES_S = (0.0, 0.001, 0.01, 0.05, 0.1, 0.1, 0.5)


class Counting(Metrics):
    """Counts in the hand instead of in series, which would cost more than the work that is counted."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry(), version="fuzz", started_s=0)
        self.frames_counted: Counter[str] = Counter()
        self.records_counted: dict[str, Counter[str]] = {}

    def count_frames(self, exchange: str, **outcomes: int) -> None:
        self.frames_counted.update(outcomes)

    def count_records(self, feed: Feed, **outcomes: int) -> None:
        self.records_counted.setdefault(feed.market, Counter()).update(outcomes)


class Unfailing(Log):
    """Lets nothing pass that speaks of a mistake of ours."""

    def __init__(self) -> None:
        super().__init__("FUZZ")

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        if key in ("parse_failed", "no_space"):
            raise Breach(f"{key}: {details.get('error')}\n{details.get('stack', '')}")
        str(details)


def targets() -> list[tuple[str, str]]:
    """Return every exchange with every transport, found by name."""
    return [(exchange, transport) for exchange, ways in sorted(known().items()) for transport in sorted(ways)]


_supplies: dict[tuple[str, str, Path | None], Supply] = {}


def supplied(cls: type[Controller], wire: Path | None = None) -> Supply:
    """Return the good messages of a controller's exchange, gathered once."""
    key = cls.exchange, cls.transport, wire
    if key not in _supplies:
        _supplies[key] = supply(cls, wire)
    return _supplies[key]


def fuzz(
    cls: type[Controller],
    frames: int,
    seed: int = 0,
    *,
    wire: Path | None = None,
    guard: Guard | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Counter[str]:
    """Feed spoiled frames to sessions of a controller class and return how many ended how; raises `Violation`.

    Session i has the seed `seed + i` and `SESSION` frames, so that a violation names the one that shows it again.
    """
    guard = guard or Guard()
    counts: Counter[str] = Counter()
    settled_kib = 0
    with ended():
        for number in range(-(-frames // SESSION)):
            if number == SETTLED:
                settled_kib = resident_kib()
            again = partial(_session, cls, seed + number, min(SESSION, frames - number * SESSION), wire, guard)
            counts.update(surely(again))
            progress(counts["frames"])
    grown_kib = resident_kib() - settled_kib if settled_kib else 0
    require(grown_kib <= MEMORY_KIB_MAX, f"memory grew by {grown_kib >> 10} MiB in {frames} frames")
    return counts


def _session(cls: type[Controller], seed: int, frames: int, wire: Path | None, guard: Guard) -> Counter[str]:
    return Session(cls, seed, supplied(cls, wire), guard).run(frames)


class Session:
    """A controller, what it hears, and what it makes of it."""

    def __init__(self, cls: type[Controller], seed: int, goods: Supply, guard: Guard) -> None:
        self.name = f"{cls.exchange}/{cls.transport}"
        self.seed = seed
        self._random = random.Random(f"{seed}/{self.name}")
        self._mutator = Mutator(self._random)
        self._goods = goods
        self._play = goods.plays[0 if self._random.random() < 0.1 else 1]
        self._step = self._random.randrange(len(self._play.updates) // 2)
        self._guard = guard
        wall_us = BEFORE_MIDNIGHT_US if self._random.random() < 0.3 else NOON_US
        self._clock = FakeClock(wall_us)
        self._metrics = Counting()
        self._setup = Setup(
            clock=self._clock,
            intake=Intake(1 << 40),
            metrics=self._metrics,
            log=Unfailing(),
            options=Exchange(),
            budget=Budget(1000, self._clock),
            full_books=self._random.random() < 0.1,
        )
        self.controller = cls(MARKETS, self._setup)
        self.controller.anchor()
        self.audit = Audit(self._setup.intake, MARKETS)
        self._opened = False
        self._held_back = False  # spoiled changes may wait for the book
        self._frame = b""
        self._number = 0

    def run(self, frames: int) -> Counter[str]:
        """Feed so many spoiled frames, and the good ones between; return how many ended how."""
        counts: Counter[str] = Counter(dict.fromkeys(("frames", *OUTCOMES, "answers"), 0))
        draw = self._random.random
        try:
            for self._number in range(1, frames + 1):
                if not self._opened:
                    if draw() < 0.9:
                        self._open()
                    else:
                        self._held_back = True
                elif draw() < 0.125:
                    self._move()
                self._frame = self._mutator.spoil(self._base(), self._others())
                counts["frames"] += 1
                counts[self._feed(self._frame)] += 1
                if draw() < 0.2:
                    counts["answers"] += 1
                    self._answer()
                if draw() < 0.05:
                    self.controller.tick()
                    self._settle(self.audit.take(), None)
            self._finish()
        except (Exception, Stuck) as problem:
            raise Violation(self.name, self.seed, self._number, self._frame, problem) from problem
        return counts

    # --- what is heard

    def _base(self) -> Material:
        draw = self._random.random()
        if draw < 0.25:
            return self._random.choice(self._others())
        play = self._play.openings if draw < 0.35 else self._play.updates
        heard = play[self._step % len(play)] or play[0]
        return self._random.choice(heard).material

    def _others(self) -> list[Material]:
        return self._random.choice(self._goods.others or [self._goods.answers])

    def _open(self) -> None:
        self._opened = True
        for good in self._play.openings[self._step % len(self._play.openings)]:
            self._good(good)
            if not self._opened:
                return
        self._held_back = False

    def _move(self) -> None:
        for good in self._play.updates[self._step % len(self._play.updates)]:
            self._good(good)
        self._step += 1

    def _good(self, good: Good) -> None:
        self._frame = good.frame
        outcome = self._feed(good.frame)
        require(outcome != "rejected" or self._held_back, "a good message is rejected")
        if outcome == "rejected" or good.book is None or good.market is None:
            return
        feed = self.controller.books[good.market]
        if outcome == "duplicate" and self.controller.rising_sequence:
            return  # one that was spoiled had a larger number
        if self.controller.changes_only and self._held_back:
            return
        require(feed.epoch, "a good book opens no epoch")
        require(feed.book.as_numbers() == good.book, "the book is not the one that was sent")
        self._rebuilt(good.market)

    def _rebuilt(self, market: str) -> None:
        feed = self.controller.books[market]
        require(self.audit.epochs[feed.epoch].market == market, "the epoch is of another market")
        kept = [[(price, Decimal(size)) for price, size in json.loads(side)] for side in feed.book.as_json()]
        require(kept == self.audit.book(feed.epoch), "the rebuilt book is another one")

    # --- what becomes of it

    def _feed(self, frame: bytes) -> str:
        at_us = self._clock.advance(self._random.choice(PAUSES_S))
        with self._guard.watch():
            told = self._read(frame)
            asks, broken = self._handle(frame, at_us)
        self.controller.flush()
        taken = self.audit.take()
        outcome = self._settle(taken, frame)
        self._compare(frame, told, asks, outcome, taken)
        if broken:
            self._opened = False
            self.controller.end_epochs("disconnect")
            self._settle(self.audit.take(), None)
            self.controller.anchor()
        return outcome

    def _read(self, frame: bytes) -> tuple[Message, ...] | SourceError:
        try:
            messages = tuple(self.controller.parse(frame, self._clock.wall_us()))
        except SourceError as error:
            return error
        except Exception as error:
            raise Breach(f"only SourceError may leave parse, this was {error!r}") from error
        for message in messages:
            require(isinstance(message, Book | BookChange | Reply | Refused), f"{type(message).__name__} from parse")
            if isinstance(message, Reply):
                message.text.encode()
        return messages

    def _handle(self, frame: bytes, at_us: int) -> tuple[list[Message] | SourceError, bool]:
        try:
            return self.controller.handle(frame, at_us), False
        except (VenueRefused, ConnectionLost) as error:
            return error, True

    def _settle(self, taken: Taken, frame: bytes | None) -> str:
        """Check that one frame (None: none) ended in one outcome; return it."""
        counted, self._metrics.frames_counted = self._metrics.frames_counted, Counter()
        counted.update(stored=taken.stored, rejected=taken.rejected)
        received = counted.pop("received", 0)
        require(received == (frame is not None), f"{received} frames received")
        found = +counted
        require(found.total() == received, f"outcomes {dict(found)}")
        require(len(taken.kept_raw) == taken.rejected, "rejected and not kept")
        if not received:
            return ""
        (outcome,) = found
        require(outcome in OUTCOMES, f"outcome {outcome}")
        require(bool(taken.rows) == (outcome == "stored"), "stored without a row, or a row of something else")
        return outcome

    def _compare(
        self,
        frame: bytes,
        told: Sequence[Message] | SourceError,
        asks: Sequence[Message] | SourceError,
        outcome: str,
        taken: Taken,
    ) -> None:
        if isinstance(told, VenueRefused):
            require(outcome == "ignored" and isinstance(asks, VenueRefused), f"an error of the venue is {outcome}")
            return
        if outcome == "rejected":
            (kept,) = taken.kept_raw
            require(kept.frame == frame, "what is kept is not what came")
            if isinstance(told, SourceError):
                require(kept.reason == str(told), "parse is not the same each time")
                require(not any(feed.epoch for feed in self.controller.feeds.values()), "coverage goes on")
            if kept.market is not None:
                require(not self.controller.books[kept.market].epoch, "coverage goes on")
                require(not self.controller.books[kept.market].book.known, "the book of a rejected message stays")
            require(isinstance(asks, ConnectionLost) == self.controller.changes_only, "a connection that should end")
            return
        require(not isinstance(told, SourceError), f"parse refuses it, yet it is {outcome}")
        assert not isinstance(told, SourceError)
        data = [message for message in told if isinstance(message, Book | BookChange)]
        require(asks == [message for message in told if not isinstance(message, Book | BookChange)], "not what it asks")
        require((outcome == "ignored") == (not data), f"{len(data)} messages of data are {outcome}")
        if data and self._random.random() < 0.2:
            self._in_its_own_words(frame, data, taken)

    def _in_its_own_words(self, frame: bytes, data: list[Book | BookChange], taken: Taken) -> None:
        """Check that stored prices, sizes and markets stand in the frame, by another reader of JSON."""
        try:
            said = list(_leaves(json.loads(frame, parse_float=str, parse_int=str)))
        except (ValueError, RecursionError) as error:
            raise Breach(f"taken for data, and no JSON: {error}") from error
        numbers = {number for leaf in said if (number := _number(leaf)) is not None}
        names = " ".join(leaf for leaf in said if isinstance(leaf, str)).upper()
        for message in data:
            for part in message.market.split("-"):
                require(part in names, f"taken for data of {message.market}, which the frame does not name")
            for token in () if self._held_back else (*message.bids.values(), *message.asks.values()):
                size_said = _number(str(token)) if type(token) in (str, int) else None
                require(size_said is not None and size_said >= 0, f"size {token!r} taken for data")
        if len(taken.rows) > len(data):
            return  # changes that had been held back
        for row in taken.rows:
            if row.flags & KEYFRAME and self.controller.changes_only and row.n > 1:
                continue  # the whole book, most of it from other frames
            for price, size in json.loads(row.bids or "[]") + json.loads(row.asks or "[]"):
                require(size == "0" or Decimal(size) in numbers, f"size {size} is not in the frame")
                require(size == "0" or Decimal(price) in numbers, f"price {price} is not in the frame")

    # --- answers to REST calls

    def _answer(self) -> None:
        body = self._frame = self._mutator.spoil(self._random.choice(self._goods.answers), self._goods.answers)
        with self._guard.watch():
            try:
                markets = type(self.controller).parse_listing(body)
                for market in markets:
                    require(isinstance(market, str) and 0 < market.find("-") < len(market) - 1, f"market {market!r}")
            except SourceError as error:
                str(error).encode()
            if isinstance(self.controller, WSController) and self.controller.probe_path("BTC-KRW"):
                with suppress(SourceError):
                    self._probed(self.controller.parse_probe("BTC-KRW", body))

    def _probed(self, book: Book) -> None:
        kept = OrderBook(trim=False)
        with suppress(BadFrame):
            kept.replace(book)
            for side in kept.as_numbers():
                require(all(price > 0 and size > 0 for price, size in side.items()), "a price or size not above nought")

    # --- the end

    def _finish(self) -> None:
        self._frame = b""
        self.controller.end_epochs("stop")
        self._settle(self.audit.take(), None)
        require(all(epoch.ended for epoch in self.audit.epochs.values()), "an epoch that never ends")
        for market, counted in self._metrics.records_counted.items():
            counted["stored"] = self.audit.rows[market]
            received = counted.pop("received")
            require(counted.total() == received, f"records of {market}: {received} received, {dict(counted)}")


def _leaves(tree: Any) -> Iterator[Any]:
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        else:
            yield value


def _number(leaf: Any) -> Decimal | None:
    if isinstance(leaf, str) and leaf[:1] in "-0123456789":
        with suppress(ArithmeticError, ValueError):
            return Decimal(leaf)
    return None
