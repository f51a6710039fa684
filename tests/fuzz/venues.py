"""Feeds spoiled messages to a venue's controller, the way that they would really go, and looks at what becomes of each.

A session is a fresh controller that hears every channel of its markets and, between good messages, spoiled ones. It
depends on its seed alone, so what one finds, it finds again. Held to, for every frame:

- `parse` gives messages or a `SourceError`, the same each time, and so does what reads answers to REST calls;
- the frame ends in exactly one outcome, the one that `parse` foretells; a rejected one is kept raw and ends coverage;
- what is handed over is what a store may hold (see `audit`), in the frame's own numbers and under its own market;
- a change that does not follow, or leaves another sum than the exchange's, is never stored;
- it takes neither time nor memory out of all proportion;
- good messages after all that give the book that was sent, after a resync as well as on a new connection.
"""

import json
import random
import re
import sys
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
from collector.errors import BadFrame, ConnectionLost, FramesLost, RateLimited, SourceError, VenueRefused
from collector.intake import Intake
from collector.log import Log
from collector.metrics import Metrics
from collector.numbers import Number, plain
from collector.records import (
    CHANNELS,
    KEYFRAME,
    ORDERBOOK,
    Book,
    BookChange,
    Candle,
    CandleRow,
    Datum,
    Feed,
    Message,
    Numbered,
    Reply,
    Ticker,
    TickerRow,
    Trade,
    TradeRow,
)
from controllers.base import Controller, Setup
from controllers.book import OrderBook
from controllers.book_feed import HeardBook
from controllers.rest import RESTController
from controllers.websocket import WSController
from simulator import tape
from tests.fakes import NOON_US, FakeClock
from tests.fuzz.audit import Audit, Taken
from tests.fuzz.breach import Breach, Stuck, Violation, require, surely
from tests.fuzz.guard import MEMORY_KIB_MAX, Guard, ended, resident_kib
from tests.fuzz.mutate import Material, Mutator
from tests.fuzz.supply import Good, Supply, classes, markets_of, name_of

SESSION = 500  # spoiled frames
SETTLED = 200  # sessions after which memory grows no more
OUTCOMES = ("stored", "duplicate", "ignored", "rejected", "dropped")
BEFORE_MIDNIGHT_US = NOON_US + 12 * 3_600_000_000 - 20_000_000
PAUSES_S = (0.0, 0.001, 0.01, 0.05, 0.1, 0.1, 0.5)
EARLY_S = 0.001  # no two answers to polls come at one time
# Where the exchange numbers the frames of a connection: a spoiled one that has the right number gets further.
FRAME_NUMBER = re.compile(rb'("sequence_num":)[0-9]+')

_contract = re.compile(r"[-:]").split


class Counting(Metrics):
    """Counts in the hand instead of in series, which would cost more than the work that is counted."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry(), version="fuzz", started_s=0)
        self.frames_counted: Counter[str] = Counter()
        self.records_counted: dict[tuple[str, str], Counter[str]] = {}

    def count_frames(self, exchange: str, **outcomes: int) -> None:
        self.frames_counted.update(outcomes)

    def count_records(self, feed: Feed, **outcomes: int) -> None:
        self.records_counted.setdefault((feed.market, feed.channel), Counter()).update(outcomes)


class Unfailing(Log):
    """Lets nothing pass that speaks of a mistake of ours."""

    def __init__(self) -> None:
        super().__init__("FUZZ")

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        if key in ("parse_failed", "no_space"):
            raise Breach(f"{key}: {details.get('error')}\n{details.get('stack', '')}")
        str(details)


class Wire:
    """Stands where a controller's connection is: keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send_text(self, text: str) -> None:
        """Keep a text frame."""
        text.encode()
        self.sent.append(text)


class Wanted:
    """Stands where books are asked for over REST (`Snapshots`): keeps which; the session answers when it likes."""

    def __init__(self) -> None:
        self.feeds: dict[HeardBook, None] = {}

    def want(self, feed: HeardBook) -> None:
        """Ask for the book of a market."""
        self.feeds[feed] = None

    def look(self, now_us: int) -> None:
        """Return nothing: the session hands answers over itself."""

    def again(self, feed: HeardBook, now_us: int) -> None:
        """Ask once more."""
        self.feeds[feed] = None

    def joined(self, feed: HeardBook) -> None:
        """Take note that the book is there."""


def targets() -> list[str]:
    """Return the names of all classes of all exchanges, found by name."""
    return sorted(classes())


_supplies: dict[tuple[str, Path | None], Supply] = {}


def supplied(cls: type[Controller], wire: Path | None = None) -> Supply:
    """Return the good messages of a controller's class, gathered once."""
    key = name_of(cls), wire
    if key not in _supplies:
        _supplies[key] = Supply(cls, wire)
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
        self.name = name_of(cls)
        self.seed = seed
        self._cls = cls
        self._random = random.Random(f"{seed}/{self.name}")
        self._mutator = Mutator(self._random)
        self._goods = goods
        self._play = goods.deep if self._random.random() < 0.1 else goods.shallow
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
            channels=CHANNELS,
        )
        self._markets = markets_of(cls)
        self.controller: Any = cls(self._markets, self._setup)
        self.audit = Audit(self._setup.intake, self._markets)
        self._wire, self._wanted = Wire(), Wanted()
        if isinstance(self.controller, WSController):
            self.controller._connection = self._wire  # type: ignore[assignment]
            self.controller._snapshots = self._wanted  # type: ignore[assignment]
        self._polled = isinstance(self.controller, RESTController)
        self._opened = False
        self._held_back: set[str] = set()  # markets of which spoiled changes may wait for the book
        self._spoiled: set[str] = set()  # markets whose books hold what was never sent, as far as one can tell
        self._lost: set[str] = set()  # markets of which a change was left out
        self._resynced: set[str] = set()  # markets whose books were asked for anew over the socket
        self._numbered = False
        self._frame = b""
        self._number = 0
        self._connected()

    def run(self, frames: int) -> Counter[str]:
        """Feed so many spoiled frames, and the good ones between; return how many ended how."""
        counts: Counter[str] = Counter(dict.fromkeys(("frames", *OUTCOMES, "answers"), 0))
        draw = self._random.random
        try:
            for self._number in range(1, frames + 1):
                if not self._opened:
                    if draw() < 0.9:
                        self._open()
                elif draw() < 0.125:
                    self._move()
                elif draw() < 0.02:
                    self._close()
                elif draw() < 0.02:
                    self._lose()
                counts[self._spoil()] += 1
                counts["frames"] += 1
                self._answer_what_is_asked()
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

    def _spoil(self) -> str:
        base = self._base()
        frame = self._mutator.spoil(base.material, self._others())
        if self._numbered and self._random.random() < 0.9:
            frame = self._renumbered(frame)
        self._frame = frame
        if self._polled and self._random.random() < 0.05:  # the answer to another question
            base = Good(base.material, *self._random.choice(list(self.controller.feeds)))
        return self._feed(frame, base, spoiled=True)[0]

    def _base(self) -> Good:
        draw = self._random.random()
        play = self._play.openings if draw < 0.35 else self._play.updates
        heard = play[self._step] or play[0] or self._play.openings[0]
        good = self._random.choice(heard)
        if draw < 0.25:  # something else; of a poll, as the answer to this question
            return Good(self._random.choice(self._others()), good.market, good.channel)
        return good

    def _others(self) -> list[Material]:
        return self._random.choice(self._goods.others or [self._goods.answers])

    def _open(self) -> None:
        """Connect: hear what comes first, and some of what follows."""
        self._opened = True
        for good in self._play.openings[self._step]:
            if good.complete or self._random.random() < 0.2:  # most of the time would go into what matters little
                self._good(good)
            if not self._opened:
                return
        while self._opened and self._random.random() < 0.5:
            self._answer_what_is_asked(surely=True)
            self._move()

    def _move(self) -> None:
        for good in self._play.updates[self._step]:
            self._good(good)
            if not self._opened:
                break
        self._step += 1
        if self._step == len(self._play.updates):
            self._step = 0
            self._close()

    def _lose(self) -> None:
        """Leave out what follows one step, where the next change of each book shows it."""
        if self.controller.verdict and not self._numbered and self._step + 1 < len(self._play.updates):
            lost = self._play.updates[self._step]
            self._lost |= {good.market for good in lost if good.market and good.channel == ORDERBOOK}
            self._step += 1
            if self._random.random() < 0.7:
                self._move()  # else what is spoiled comes between

    def _close(self) -> None:
        """Let the connection end."""
        if not self._polled:
            self._opened = False
            self.controller.end_epochs("disconnect")
            self._settle(self.audit.take(), None)
            self._connected()

    def _connected(self) -> None:
        # What `WSController` does before it listens.
        self.controller.anchor()
        self._held_back.clear()
        self._spoiled.clear()
        self._lost.clear()
        self._resynced.clear()
        self._wire.sent.clear()
        self._wanted.feeds.clear()
        if isinstance(self.controller, WSController):
            self.controller._number, self.controller._leaving = None, False
            self.controller._resync_us.clear()
            for feed in self.controller.feeds.values():
                feed.connected(self._clock.monotonic_us())
            for book in self.controller.books.values():
                if self.controller.snapshot_path(book.market) is not None:
                    self._wanted.want(book)

    def _renumbered(self, frame: bytes) -> bytes:
        last = self.controller._number
        number = b"%d" % (0 if last is None else last + 1)
        return FRAME_NUMBER.sub(lambda found: found[1] + number, frame, count=1)

    def _good(self, good: Good) -> None:
        frame = self._frame = self._renumbered(good.frame) if FRAME_NUMBER.search(good.frame) else good.frame
        market = good.market
        is_book = market is not None and good.channel == ORDERBOOK
        feed = self.controller.books.get(market) if is_book else None
        held_back, known = market in self._held_back, feed is not None and feed.book.known
        outcome, taken = self._feed(frame, good)
        if feed is None or market is None:
            require(outcome not in ("rejected", "dropped"), f"a good message is {outcome}")
            self._told_rightly(good, taken)
            return
        well = not held_back and (good.complete or known) and market not in self._spoiled
        if good.complete or not known:
            self._lost.discard(market)
        if market in self._lost:
            self._lost.discard(market)
            if well:
                self._found_missing(good, feed, outcome)
            return
        if good.complete:
            self._held_back.discard(market)
            self._spoiled.discard(market)
            self._resynced.discard(market)
        if held_back or not (well or good.complete):
            if good.complete and outcome not in ("rejected", "dropped"):
                self._spoiled.add(market)  # what was held back came after it
            return
        require(outcome not in ("rejected", "dropped"), f"a good message is {outcome}")
        if outcome == "duplicate" and self.controller.rising_sequence:
            return  # one that was spoiled had a larger number
        require(feed.epoch, "a good book opens no epoch")
        if good.book is not None:
            require(feed.book.as_numbers() == good.book, "the book is not the one that was sent")
            self._rebuilt(market)

    def _found_missing(self, good: Good, feed: HeardBook, outcome: str) -> None:
        # A checksum may hold again: where the change that is missing is made good by this one.
        if self.controller.verdict == "linked" or outcome == "dropped":
            require(outcome == "dropped", f"a change after one that is missing is {outcome}")
            require(not feed.epoch and not feed.book.known, "a broken book stays")
        elif good.book is not None:
            require(feed.book.as_numbers() == good.book, "a book without a change passes for the one that was sent")
        else:
            self._spoiled.add(feed.market)

    def _told_rightly(self, good: Good, taken: Taken) -> None:
        """Check that the rows that a good message made are what the exchange means by it."""
        told_of = {row.open_us for row in taken.stream if isinstance(row, CandleRow)}
        begun = {one.open_us for one in good.rows if isinstance(one, tape.Candle)}
        require(not told_of or told_of & begun, "candles of other minutes than those that were sent")
        for row in taken.stream:
            if self.audit.epochs[row.epoch].market != good.market:
                continue  # of a frame that tells of several, only what belongs to one subscription is known
            match row:
                case TradeRow():
                    told = row.trade_id, row.side, Decimal(row.price), Decimal(row.volume), row.venue_us
                    truth = [
                        (str(one.id), one.side, Decimal(one.price), Decimal(one.volume), one.time_us)
                        for one in good.rows
                        if isinstance(one, tape.Trade)
                    ]
                    require(told in truth, "a trade is not the one that was sent")
                case CandleRow():
                    prices = [Decimal(text) for text in (row.open, row.high, row.low, row.close, row.volume)]
                    sent = [one for one in good.rows if isinstance(one, tape.Candle) and one.open_us == row.open_us]
                    meant = [[*map(Decimal, (c.open, c.high, c.low, c.close, c.volume))] for c in sent]
                    require(not meant or prices in meant, "a candle is not the one that was sent")
                case TickerRow() if not self.controller.ticker_changes:
                    texts = row.last, row.bid, row.ask, row.volume
                    tickers = [one for one in good.rows if isinstance(one, tape.Ticker)]
                    truth_of = [(one.last, one.bid, one.ask, one.volume) for one in tickers]
                    numbers = [[None if text is None else Decimal(text) for text in one] for one in (texts, *truth_of)]
                    require(numbers[0] in numbers[1:], "a ticker is not the one that was sent")

    def _rebuilt(self, market: str) -> None:
        feed = self.controller.books[market]
        require(self.audit.epochs[feed.epoch].market == market, "the epoch is of another market")
        kept = [[(price, Decimal(size)) for price, size in json.loads(side)] for side in feed.book.as_json()]
        require(kept == self.audit.book(feed.epoch), "the rebuilt book is another one")

    # --- books that are asked for anew

    def _answer_what_is_asked(self, *, surely: bool = False) -> None:
        if self._polled or not self._opened:
            return
        due = list(self.controller._resync_us.values())
        if due and (surely or self._random.random() < 0.3):
            self._clock.advance(max(0, min(due) - self._clock.monotonic_us()) / 1e6)
        self.controller._look_for_books(self._clock.monotonic_us())
        for market in self._markets:
            requests = list(self.controller.resync_messages(market)) if self.controller.books else []
            if requests and requests[-1] in self._wire.sent:
                self._resynced.add(market)
        self._wire.sent.clear()
        if self.controller.verdict:
            coming = {feed.market for feed in (*self._wanted.feeds, *self.controller._resync_us)} | self._resynced
            for market, feed in self.controller.books.items():
                require(feed.book.known or market in coming, f"nobody asks for the book of {market} anew")
        for market in sorted(self._resynced):
            if surely or self._random.random() < 0.5:
                self._resynced.discard(market)
                for good in self._play.openings[self._step]:
                    if good.market == market and good.complete and self._opened:
                        self._good(good)
        for feed in list(self._wanted.feeds):
            if surely or self._random.random() < 0.5:
                self._join(feed, spoiled=not surely and self._random.random() < 0.3)

    def _join(self, feed: HeardBook, *, spoiled: bool) -> None:
        market = feed.market
        good = self._play.snapshots[self._step][market]
        del self._wanted.feeds[feed]
        body = self._mutator.spoil(good.material, self._goods.answers) if spoiled else good.frame
        self._frame = body
        with self._guard.watch():
            try:
                book = self.controller.parse_snapshot(market, body)
            except SourceError:
                require(spoiled, "a good book over REST is refused")
                self._wanted.want(feed)
                return
            if not feed.epoch:
                self.controller._join(feed, book, self._clock.monotonic_us())
        self.controller.flush()
        self._settle(self.audit.take(), None)
        if not feed.epoch:
            require(spoiled or market in self._held_back or feed in self._wanted.feeds, "a good book joins nothing")
        elif spoiled or market in self._held_back:
            self._spoiled.add(market)
        else:
            self._spoiled.discard(market)
            self._rebuilt(market)
        if not feed.waits_for_a_book:
            self._held_back.discard(market)

    # --- what becomes of it

    def _feed(self, frame: bytes, good: Good, *, spoiled: bool = False) -> tuple[str, Taken]:
        at_us = self._clock.advance(self._random.choice(PAUSES_S) or (EARLY_S if self._polled else 0.0))
        before = {market: (feed.epoch, feed.sequence) for market, feed in self.controller.books.items()}
        epochs = {key: feed.epoch for key, feed in self.controller.feeds.items()}
        repeated = self._is_repeated(frame, good)
        with self._guard.watch():
            told = self._read(frame, good)
            asks, broken = self._handle(frame, good, at_us)
        self.controller.flush()
        taken = self.audit.take()
        outcome = self._settle(taken, frame)
        if repeated:
            require(outcome == "duplicate", f"an answer that came before is {outcome}")
            return outcome, taken
        self._compare(frame, told, asks, outcome, taken)
        if spoiled and not isinstance(told, SourceError):
            for message in told:
                if isinstance(message, Book | BookChange) and message.market in before:
                    feed = self.controller.books[message.market]
                    if feed.book.known:
                        self._spoiled.add(message.market)
                    elif feed.waits_for_a_book:
                        self._held_back.add(message.market)
        if not isinstance(told, SourceError):
            self._numbered = self._numbered or any(isinstance(message, Numbered) for message in told)
            self._follows([message for message in told if isinstance(message, Book | BookChange)], before)
            if not (broken or taken.kept_raw):
                self._touches({message.market for message in told if isinstance(message, Datum)}, epochs)
        if broken:
            self._close()
        return outcome, taken

    def _is_repeated(self, frame: bytes, good: Good) -> bool:
        if not self._polled:
            return False
        feed = self.controller.feeds[good.market, good.channel]
        return bool(frame == (self.controller._last if feed.epoch else self.controller._unread).get(feed))

    def _read(self, frame: bytes, good: Good) -> tuple[Message, ...] | SourceError:
        now_us = self._clock.wall_us()
        try:
            if self._polled:
                messages = tuple(self.controller.parse_poll(good.channel, good.market, frame, now_us))
            else:
                messages = tuple(self.controller.parse(frame, now_us))
        except SourceError as error:
            return error
        except Exception as error:
            raise Breach(f"only SourceError may leave parse, this was {error!r}") from error
        for message in messages:
            require(isinstance(message, Message), f"{type(message).__name__} from parse")
            if isinstance(message, Reply):
                message.text.encode()
        return messages

    def _handle(self, frame: bytes, good: Good, at_us: int) -> tuple[list[Message] | SourceError, bool]:
        asks: list[Message] = []
        try:
            if self._polled:
                self.controller._answered(self.controller.feeds[good.market, good.channel], frame, at_us)
            else:
                asks = self.controller.handle(frame, at_us)
        except (VenueRefused, RateLimited, ConnectionLost) as error:
            return error, True
        try:
            for ask in asks:
                self.controller._obey(ask, self._wire)
        except VenueRefused:
            return asks, True
        return asks, False

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
        rows = bool(taken.rows or taken.stream)
        require(not rows or outcome == "stored", f"{outcome}, and yet there is a row")
        require(rows or taken.opened or outcome != "stored", "stored without a row")
        return outcome

    def _compare(
        self,
        frame: bytes,
        told: Sequence[Message] | SourceError,
        asks: Sequence[Message] | SourceError,
        outcome: str,
        taken: Taken,
    ) -> None:
        if isinstance(told, VenueRefused | RateLimited):
            require(outcome == "ignored" and isinstance(asks, type(told)), f"an error of the venue is {outcome}")
            return
        if outcome == "rejected":
            self._rejected(frame, told, asks, taken)
            return
        require(not isinstance(told, SourceError), f"parse refuses it, yet it is {outcome}")
        assert not isinstance(told, SourceError)
        if isinstance(asks, FramesLost):
            require(outcome == "dropped", f"a frame after one that is missing is {outcome}")
            return
        data = [message for message in told if isinstance(message, Datum)]
        if not self._polled:
            wants = [message for message in told if not isinstance(message, Datum | Numbered)]
            require(asks == wants, "not what it asks")
        require((outcome == "ignored") == (not data), f"{len(data)} messages of data are {outcome}")
        if outcome == "stored" and self._random.random() < 0.25:
            self._in_its_own_words(frame, data, taken)

    def _rejected(
        self,
        frame: bytes,
        told: Sequence[Message] | SourceError,
        asks: Sequence[Message] | SourceError,
        taken: Taken,
    ) -> None:
        (kept,) = taken.kept_raw
        require(kept.frame == frame, "what is kept is not what came")
        feeds = self.controller.feeds
        changes_only = self.controller.changes_only and bool(self.controller.books)
        if isinstance(told, SourceError):
            require(kept.reason == _storable(told), "parse is not the same each time")
            require(not any(feed.epoch for feed in feeds.values()), "coverage goes on")
            require(isinstance(asks, ConnectionLost) == changes_only, "a connection that should end")
            return
        require(changes_only or not isinstance(asks, ConnectionLost), "a connection that should not end")
        if kept.market is None:
            return
        hit = {channel for market, channel in feeds if market == kept.market and not feeds[market, channel].epoch}
        require(hit, "coverage goes on")
        named = {(message.market, message.channel) for message in told if isinstance(message, Datum)}
        if len(named) == 1:
            ((market, channel),) = named
            require(kept.market == market and channel in hit, "coverage goes on")
            if channel == ORDERBOOK:
                require(not self.controller.books[market].book.known, "the book of a rejected message stays")

    def _touches(self, markets: set[str], epochs: dict[tuple[str, str], int]) -> None:
        """Check that a message ends no epoch of a market that it is not about."""
        for (market, channel), epoch in epochs.items():
            feed = self.controller.feeds[market, channel]
            require(not epoch or market in markets or feed.epoch == epoch, f"{channel} of {market} ended beside it")

    def _follows(self, books: list[Book | BookChange], before: dict[str, tuple[int, int | None]]) -> None:
        """Check by rules of our own that a change which was taken into a book continues it."""
        for market, (epoch, last) in before.items():
            feed = self.controller.books[market]
            told = [message for message in books if message.market == market]
            if not epoch or feed.epoch != epoch or not told:
                continue
            if told[-1].checksum is not None:
                require(self._cls.checksum(self.controller, feed.book) == told[-1].checksum, "another sum is stored")
            (change,) = told if len(told) == 1 else (None,)
            if not isinstance(change, BookChange) or self.controller.verdict != "linked" or self._numbered:
                continue
            if feed.sequence == last or last is None or change.sequence is None:
                continue  # it was old, or repeats the number of the one before
            if change.previous is not None:  # the first one after a book over REST may hold its number instead
                follows = change.previous == last or (change.first is not None and change.first <= last)
            else:
                follows = (last + 1 if change.first is None else change.sequence) >= change.sequence > last
                follows = follows and (change.first is None or change.first <= last + 1)
            require(follows, f"a change that does not follow {last} is stored")

    def _in_its_own_words(self, frame: bytes, data: list[Datum], taken: Taken) -> None:
        """Check that stored prices, sizes and markets stand in the frame, by another reader of JSON."""
        try:
            said = list(_leaves(json.loads(frame, parse_float=str, parse_int=str)))
        except (ValueError, RecursionError) as error:
            raise Breach(f"taken for data, and no JSON: {error}") from error
        numbers = {number for leaf in said if (number := _number(leaf)) is not None}
        names = " ".join(leaf for leaf in said if isinstance(leaf, str)).upper()
        for market in {message.market for message in data} if not self._polled or _names_markets(data) else ():
            for part in self._spelt(market):
                require(part in names or market in names, f"taken for data of {market}, which the frame does not name")
        self._levels_in(numbers, [message for message in data if isinstance(message, Book | BookChange)], taken)
        tokens = [token for message in data for token in _tokens(message)]
        for token in tokens:
            if _number(str(token)) is None:
                continue  # of what repeats a trade, which is not looked at any more; else there is no such row
            require(
                token in said if type(token) is str else Decimal(token) in numbers, f"{token!r} is not in the frame"
            )
        self._rows_of(tokens, data, taken)

    def _levels_in(self, numbers: set[Decimal], books: Sequence[Book | BookChange], taken: Taken) -> None:
        for message in books:
            if message.market in self._held_back:
                continue
            for token in (*message.bids.values(), *message.asks.values()):
                size_said = _number(str(token)) if type(token) in (str, int) else None
                require(size_said is not None and size_said >= 0, f"size {token!r} taken for data")
        if len(taken.rows) > len(books):
            return  # changes that had been held back
        for row in taken.rows:
            if row.flags & KEYFRAME and self.controller.changes_only and not any(isinstance(b, Book) for b in books):
                continue  # the whole book, most of it from other frames
            for price, size in json.loads(row.bids or "[]") + json.loads(row.asks or "[]"):
                require(size == "0" or Decimal(size) in numbers, f"size {size} is not in the frame")
                require(size == "0" or Decimal(price) in numbers, f"price {price} is not in the frame")

    def _rows_of(self, tokens: Sequence[Number], data: Sequence[Datum], taken: Taken) -> None:
        # In the exchange's own digits, where those count; else as the value without noughts at its end.
        digits = {plain(token) for token in tokens if _number(str(token)) is not None}
        if not self.controller.text_numbers:
            digits |= {text.rstrip("0").rstrip(".") for text in digits if "." in text}
        begun = {message.open_us for message in data if isinstance(message, Candle)}
        for row in taken.stream:
            match row:
                case TradeRow():
                    texts = [row.price, row.volume]
                case CandleRow():  # or one that was heard before, and is over
                    texts = [row.open, row.high, row.low, row.close, row.volume] if row.open_us in begun else []
                case _:  # or what a ticker that tells changes told before
                    told = (row.last, row.bid, row.ask, row.volume)
                    texts = [] if self.controller.ticker_changes else [text for text in told if text is not None]
            for text in texts:
                require(text in digits, f"{text} is not in the frame")

    def _spelt(self, market: str) -> list[str]:
        native = getattr(self._cls, "native", None) or getattr(sys.modules[self._cls.__module__], "native", None)
        # `-USDC` is Coinbase's `-USD` by another name.
        return [native(market)] if native else _contract(market.replace("-USDC", "-USD"))

    # --- answers to REST calls

    def _answer(self) -> None:
        body = self._frame = self._mutator.spoil(self._random.choice(self._goods.answers), self._goods.answers)
        market = self._random.choice(self._markets)
        with self._guard.watch():
            try:
                markets = self._cls.parse_listing(body)
                for listed in markets:
                    require(isinstance(listed, str) and 0 < listed.find("-") < len(listed) - 1, f"market {listed!r}")
            except SourceError as error:
                str(error).encode("utf-8", "backslashreplace")
            if self.controller.unit_path(market) is not None:
                with suppress(SourceError):
                    number, _, _ = self.controller.parse_unit(market, body).partition(" ")
                    require(Decimal(number) > 0, f"a contract is worth {number}")
            if isinstance(self.controller, WSController):
                if self.controller.probe_path(market) is not None:
                    with suppress(SourceError):
                        self._probed(self.controller.parse_probe(market, body))
                if self.controller.snapshot_path(market) is not None:
                    with suppress(SourceError):
                        self._probed(self.controller.parse_snapshot(market, body))

    def _probed(self, book: Book) -> None:
        kept = OrderBook(trim=False)
        with suppress(BadFrame):
            kept.replace(book)
            for side in kept.as_numbers():
                require(all(price > 0 and size > 0 for price, size in side.items()), "a price or size not above nought")

    # --- the end

    def _finish(self) -> None:
        self._frame = b""
        self._close()
        self._open()
        self._answer_what_is_asked(surely=True)
        if self._opened:
            self._move()
        self._frame = b""
        self.controller.end_epochs("stop")
        self._settle(self.audit.take(), None)
        require(all(epoch.ended for epoch in self.audit.epochs.values()), "an epoch that never ends")
        for feed, counted in self._metrics.records_counted.items():
            counted["stored"] = self.audit.rows[feed]
            received = counted.pop("received")
            require(counted.total() == received, f"records of {feed}: {received} received, {dict(counted)}")


def _tokens(message: Datum) -> list[Number]:
    """Return the numbers of a message that are no levels of a book."""
    match message:
        case Trade():
            told: tuple[Number | None, ...] = (message.price, message.size)
        case Ticker():
            told = (message.last, message.bid, message.ask, message.volume)
        case Candle():
            told = (message.open, message.high, message.low, message.close, message.volume)
        case _:
            told = ()
    return [token for token in told if token is not None]


def _names_markets(data: Sequence[Datum]) -> bool:
    # Answers with candles are about the market that was asked for, and most of them do not name it.
    return not any(isinstance(message, Candle) for message in data)


def _storable(error: SourceError) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()


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
