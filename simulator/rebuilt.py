"""Books rebuilt from the simulator's ledger and laid beside the rows of an epoch, for the judge.

A stream is what was sent on one subscription; of a polled market it is all answers, whichever connection they came on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from simulator.sent import Levels, Sent, SentLedger, Subscription
from simulator.stored import Epoch, Row

FALLING = frozenset(("OKX",))  # exchanges whose numbers link messages and may fall

Side = dict[Decimal, Decimal]
Book = tuple[Side, Side]


class Misfit(StrEnum):
    """Why an epoch is not a stretch of a stream, where that is worth telling apart."""

    NEVER_SENT = "begins with a book that was never sent"
    UNREADABLE = "holds a row that can't be read"


class NoFit(Exception):
    """An epoch and a stretch of messages are not the same; the text says where."""


@dataclass
class Track:
    """The stretch of a stream that an epoch holds."""

    first: int  # -1 where the epoch goes on with the book that the one before it left
    held: dict[int, bool]  # messages that coverage accounts for; true: it changed nothing
    after: "Walk"
    ahead_us: list[int] = field(default_factory=list)  # of each message with a row: how much later it says it came


@dataclass
class Walk:
    """The book of a stream as its messages make it, up to before the message at `index`."""

    index: int = 0
    book: Book = field(default_factory=lambda: ({}, {}))
    known: bool = False
    sequence: int | None = None
    early: list[int] = field(default_factory=list)  # changes that came before the book they belong to
    rising: bool = True  # a message whose number is not above the last one is a repeat
    begins: bool = False  # a complete book begins anew, whatever its number
    # Of a feed of tickers or candles, what was told last, by key: a ticker has none.
    said: dict[tuple[int, ...], tuple[object, ...]] = field(default_factory=dict)

    def copy(self) -> "Walk":
        """Return one that can be tried out."""
        book = dict(self.book[0]), dict(self.book[1])
        early, said = list(self.early), dict(self.said)
        return Walk(self.index, book, self.known, self.sequence, early, self.rising, self.begins, said)


class Stream:
    """The messages of one subscription, in order."""

    def __init__(self, name: str, transport: str, messages: list[Sent], parts: list[Subscription]) -> None:
        self.name, self.transport, self.messages = name, transport, messages
        self.polled = transport == "rest"
        self.from_us = parts[0].time_us
        self._closed_us = None if self.polled else parts[0].closed_us
        self.changes = any(message.what == "change" for message in messages)
        # The last answer on a connection may have been lost on its way, and the next poll was answered on another.
        lasts = {part.messages[-1].at for part in parts if part.messages} if self.polled else set()
        self.doubtful = {index for index, message in enumerate(messages) if message.at in lasts}
        self._part_of = {message.at: number for number, part in enumerate(parts) for message in part.messages}
        self.held: dict[int, bool] = {}
        self.walk = Walk(rising=parts[0].exchange not in FALLING, begins=self.changes)

    def stands(self, time_us: int) -> bool:
        """Tell whether the client was subscribed at that time."""
        return self.from_us <= time_us and (self._closed_us is None or time_us <= self._closed_us)

    def newest_held(self) -> dict[int, int]:
        """Return the newest message of each connection that an epoch holds."""
        newest: dict[int, int] = {}
        for index in self.held:
            part = self.connection(index)
            newest[part] = max(index, newest.get(part, index))
        return newest

    def connection(self, index: int) -> int:
        """Return which of the connections a message came on."""
        return self._part_of[self.messages[index].at]

    def goes_on(self, track: Track) -> None:
        """Take a stretch as that of an epoch; the next epoch begins after it."""
        self.held |= track.held
        self.walk = track.after


def streams(subscriptions: list[Subscription]) -> Iterator[Stream]:
    """Yield the streams of one feed, in the order in which they began."""
    polled = [one for one in subscriptions if one.transport == "rest"]
    if polled:
        answers = sorted((message for one in polled for message in one.messages), key=lambda message: message.at)
        yield Stream(f"polls from {polled[0].id}", "rest", answers, polled)
    for one in subscriptions:
        if one.transport != "rest":
            yield Stream(one.id, one.transport, one.messages, [one])


def rebuild(stream: Stream, epoch: Epoch, ledger: SentLedger, answers: Sequence[Sent] = ()) -> Track | str:
    """Find the stretch of a stream that an epoch holds; return what is wrong where there is none.

    `answers` are complete books that were sent over REST: an epoch may begin with one that the stream continues.
    """
    if not epoch.rows:
        return "holds no rows"
    if not epoch.rows[0].keyframe:
        return "does not begin with a complete book"
    try:
        first = _Rows(epoch.rows).book
    except _Unreadable as error:
        return f"{Misfit.UNREADABLE}: {error}"
    problem: str = Misfit.NEVER_SENT
    for answer in answers if stream.changes else ():
        joined = _joined(stream, answer, epoch, first, ledger)
        # Messages that the book holds already may have come after it: they are accounted for, and make no rows.
        while joined is not None and joined.index >= stream.walk.index:
            try:
                return _Attempt(stream, epoch, ledger).go_on(joined.copy())
            except _Unreadable as error:
                return f"{Misfit.UNREADABLE}: {error}"
            except NoFit as error:
                problem = str(error)
                joined.index -= 1
    walk = stream.walk.copy()
    may_go_on = epoch.rows[0].venue_us is None  # what no message brought has no time of the exchange
    while True:
        try:
            if may_go_on and walk.known and walk.book == first:
                try:
                    return _Attempt(stream, epoch, ledger).go_on(walk.copy())
                except NoFit as error:
                    problem = str(error)
            if walk.index == len(stream.messages):
                return problem
            message = stream.messages[walk.index]
            if _may_open(walk, message, epoch.rows[0]) and _opens(walk, message, first, ledger):
                try:
                    return _Attempt(stream, epoch, ledger).begin(walk.copy())
                except NoFit as error:
                    problem = str(error)
        except _Unreadable as error:
            return f"{Misfit.UNREADABLE}: {error}"
        _take(walk, stream, ledger, follow=stream.changes or may_go_on)


def _joined(stream: Stream, answer: Sent, epoch: Epoch, first: Book, ledger: SentLedger) -> Walk | None:
    """Return the stream from where it continues a book that was sent over REST and opens an epoch, if it does."""
    if answer.withheld or answer.what != "book" or answer.sequence is None:
        return None
    if answer.sequence != epoch.rows[0].sequence:
        return None
    bids, asks = ledger.levels(answer)
    if (dict(bids), dict(asks)) != first:
        return None
    walk = stream.walk.copy()
    walk.book, walk.known, walk.sequence = (dict(bids), dict(asks)), True, answer.sequence
    walk.early.clear()
    while walk.index < len(stream.messages) and (stream.messages[walk.index].sequence or 0) <= answer.sequence:
        walk.index += 1
    return walk


def _may_open(walk: Walk, message: Sent, row: Row) -> bool:
    if message.withheld:
        return False
    if message.what == "book":
        if message.sequence is not None and message.sequence != row.sequence:
            return False
        return message.venue_us is None or row.venue_us is None or message.venue_us == row.venue_us
    if message.what != "change" or not walk.known:
        return False
    if row.sequence is None or message.sequence is None:
        return True
    return (walk.sequence or 0) < row.sequence <= message.sequence


def _opens(walk: Walk, message: Sent, first: Book, ledger: SentLedger) -> bool:
    bids, asks = ledger.levels(message)
    if message.what == "book":
        return (dict(bids), dict(asks)) == first
    return len(walk.book[0]) - len(first[0]) in range(-len(bids), len(bids) + 1)  # near enough to be tried


def _take(walk: Walk, stream: Stream, ledger: SentLedger, *, follow: bool) -> None:
    """Go past the next message; `follow`: and take what it says into the book."""
    message = stream.messages[walk.index]
    walk.index += 1
    if message.withheld or message.what not in ("book", "change") or not follow:
        return  # a book that comes complete depends on nothing before it
    if message.what == "change" and not walk.known:
        walk.early.append(walk.index - 1)
        return
    if _is_repeat(walk, message):
        return
    _apply(walk, message, ledger)
    if message.what == "book":
        for early in walk.early:
            if not _is_repeat(walk, stream.messages[early]):
                _apply(walk, stream.messages[early], ledger)
        walk.early.clear()


def _is_repeat(walk: Walk, message: Sent) -> bool:
    # What does not rise where the exchange counts was there already.
    if message.sequence is None or walk.sequence is None or (walk.begins and message.what == "book"):
        return False
    return message.sequence <= walk.sequence if walk.rising else message.sequence == walk.sequence


def _apply(walk: Walk, message: Sent, ledger: SentLedger) -> None:
    levels = ledger.levels(message)
    if message.what == "book":
        walk.book = dict(levels[0]), dict(levels[1])
    else:
        for side, changed in zip(walk.book, levels, strict=True):
            _change(side, changed)
    walk.known, walk.sequence = True, message.sequence


def _change(side: Side, levels: Levels) -> None:
    for price, size in levels:
        if size:
            side[price] = size
        else:
            side.pop(price, None)


class _Unreadable(Exception):
    """A row that holds no levels."""


class _Rows:
    """The rows of an epoch, one after the other, and the complete book after each."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows, self._at = rows, -1
        self.book: Book = ({}, {})
        self.next()

    @property
    def done(self) -> bool:
        """Whether every row has been gone past."""
        return self._at >= len(self._rows)

    @property
    def left(self) -> int:
        """How many rows are left, the present one included."""
        return len(self._rows) - self._at

    @property
    def number(self) -> int:
        """The place of the present row, from 1."""
        return self._at + 1

    @property
    def tells_of_totals(self) -> bool:
        """Whether the present row is there because the exchange's totals did not match, whatever its levels."""
        return not self.done and self._rows[self._at].mismatch

    @property
    def last_received_us(self) -> int:
        """When the row that was gone past last was received."""
        return self._rows[self._at - 1].received_us

    def next(self) -> None:
        """Go past the present row."""
        self._at += 1
        if self.done:
            return
        row = self._rows[self._at]
        if row.keyframe:
            self.book = ({}, {})
        for side, text in zip(self.book, (row.bids, row.asks), strict=True):
            _change(side, _levels(row, text))


def _levels(row: Row, text: str | None) -> Levels:
    if text is None:
        return []
    try:
        levels = [(Decimal(price), Decimal(size)) for price, size in json.loads(text)]
    except (ValueError, TypeError, InvalidOperation):
        raise _Unreadable(f"row {row.n}: {text[:60]!r}") from None
    if not all(price.is_finite() and size.is_finite() for price, size in levels):
        raise _Unreadable(f"row {row.n}: {text[:60]!r}")
    return levels


class _Attempt:
    """An epoch laid beside the messages from one of them on; `NoFit` where they are not the same."""

    def __init__(self, stream: Stream, epoch: Epoch, ledger: SentLedger) -> None:
        self._stream, self._epoch, self._ledger = stream, epoch, ledger

    def begin(self, walk: Walk) -> Track:
        """Try it from the message that is next."""
        first = walk.index
        if self._stream.messages[first].what == "book":
            walk.book, walk.sequence = ({}, {}), None  # whatever came before
        return self._go_on(walk, _Rows(self._epoch.rows), Track(first, {}, walk))

    def go_on(self, walk: Walk) -> Track:
        """Try it with the book as it is; nothing was sent that would have begun it."""
        rows = _Rows(self._epoch.rows)
        rows.next()
        return self._go_on(walk, rows, Track(-1, {}, walk))

    def _go_on(self, walk: Walk, rows: _Rows, track: Track) -> Track:
        stream, frames, held = self._stream, self._epoch.frames, track.held
        certain = doubtful = 0
        while walk.index == track.first or certain + doubtful < frames or (certain < frames and not rows.done):
            if walk.index == len(stream.messages):
                raise NoFit(f"accounts for {frames} messages, {certain + doubtful} were sent")
            message = stream.messages[walk.index]
            if message.withheld or message.what == "error":
                walk.index += 1
            elif walk.index not in stream.doubtful:
                self._message(walk, rows, held if frames else {}, track)
                certain += 1
            elif message.what == "book" and self._was_received(walk, message, rows):
                self._message(walk, rows, held, track)
                doubtful += 1
            else:
                walk.index += 1
        if not rows.done:
            if not stream.changes:
                raise NoFit(f"has {rows.left} rows that its coverage does not account for")
            self._unclaimed(walk, rows, track)
        return track

    def _was_received(self, walk: Walk, message: Sent, rows: _Rows) -> bool:
        bids, asks = self._ledger.levels(message)
        book = dict(bids), dict(asks)
        return book == walk.book or (not rows.done and book == rows.book)

    def _unclaimed(self, walk: Walk, rows: _Rows, track: Track) -> None:
        # A book kept from changes is claimed only up to where another source agreed with it. The rows after that are
        # claimed by nobody, but they are what was sent all the same.
        while not rows.done:
            if walk.index == len(self._stream.messages):
                raise NoFit(f"has {rows.left} rows that were never sent")
            message = self._stream.messages[walk.index]
            if message.withheld or message.what == "error":
                walk.index += 1
                continue
            try:
                self._message(walk, rows, {}, track)
            except NoFit:
                if not rows.done:
                    raise

    def _message(self, walk: Walk, rows: _Rows, held: dict[int, bool], track: Track) -> None:
        """Go past a message that was received, and past the rows it made."""
        index = walk.index
        message = self._stream.messages[index]
        if message.what == "garbage":
            raise NoFit(f"holds garbage (message {message.i}) inside its coverage")
        walk.index += 1
        beginning = index == track.first
        before = rows.left
        if beginning or not _is_repeat(walk, message):
            if message.what == "book":
                self._whole_book(walk, message, rows, beginning)
            else:
                self._changes(walk, message, rows, beginning)
        held[index] = rows.left == before
        if rows.left != before:
            track.ahead_us.append(rows.last_received_us - message.time_us)
        if beginning and message.what == "book":
            for early in walk.early:
                if not _is_repeat(walk, self._stream.messages[early]):
                    self._changes(walk, self._stream.messages[early], rows, False)
                    held[early] = False
            walk.early.clear()

    def _whole_book(self, walk: Walk, message: Sent, rows: _Rows, beginning: bool) -> None:
        bids, asks = self._ledger.levels(message)
        book = dict(bids), dict(asks)
        same = book == walk.book and not beginning
        walk.book, walk.known, walk.sequence = book, True, message.sequence
        if same and not (rows.tells_of_totals and rows.book == book):
            return
        if rows.done:
            raise NoFit(f"accounts for message {message.i} and has no row of it")
        if rows.book != book:
            raise NoFit(f"has a row {rows.number} that is not the book of message {message.i}")
        rows.next()

    def _changes(self, walk: Walk, message: Sent, rows: _Rows, beginning: bool) -> None:
        # A change is a row, or each side of it is one, or each of its entries. The ledger does not say in which order
        # the venue wants them applied, so each row must be the book after one of those parts that are left.
        levels = self._ledger.levels(message)
        entries = [(side, price, size) for side, part in zip(walk.book, levels, strict=True) for price, size in part]
        walk.sequence = message.sequence
        left = [(side, price, size) for side, price, size in entries if side.get(price, Decimal(0)) != size]
        if beginning and len(left) < len(entries) and rows.book == walk.book:
            rows.next()  # an entry that changes nothing came first, and an epoch begins with a complete book
        while left:
            if rows.done:
                raise NoFit(f"accounts for message {message.i} and has no row of it")
            sides = [[entry for entry in left if entry[0] is side] for side in walk.book]
            parts = [left, *sides, *([entry] for entry in left)]
            if not any(self._is_next(walk.book, part, rows) for part in parts if part):
                raise NoFit(f"has a row {rows.number} that is not the book of message {message.i}")
            rows.next()
            left = [(side, price, size) for side, price, size in left if side.get(price, Decimal(0)) != size]
        if rows.number == 1:
            raise NoFit(Misfit.NEVER_SENT)

    @staticmethod
    def _is_next(book: Book, entries: list[tuple[Side, Decimal, Decimal]], rows: _Rows) -> bool:
        """Apply entries if the book after them is the present row."""
        before = [(side, price, side.get(price)) for side, price, _ in entries]
        for side, price, size in entries:
            _change(side, [(price, size)])
        if rows.book == book:
            return True
        for side, price, was in before:
            _change(side, [(price, was or Decimal(0))])
        return False
