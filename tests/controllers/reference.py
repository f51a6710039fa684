"""A second opinion on books that are kept from changes: a rebuild of plain dicts, and a player for what was recorded.

The rebuild shares nothing with the book keeper: it sets and deletes levels in dicts of `Decimal`. The player hands
messages, one after the other, to a controller's own rules (`is_old`, `follows`) and says what they make of each; a test
lays that beside the verdicts it worked out itself, from the raw text. Both serve any venue, whether a complete book
comes in the stream or is asked for over REST: a recorded answer is taken where it came in.

    player = Player(controller)
    for frame in frames:
        for message in controller.parse(frame, 0):
            player.take(message)
    assert player.verdicts["BTC-USDT"] == ["old", "book", "joined", "linked", ...]
"""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from collector.records import Book, BookChange, Message
from controllers.base import Controller
from controllers.book import OrderBook

Side = dict[Decimal, Decimal]
Both = tuple[Side, Side]  # bids, asks


class Reference:
    """One book as price to size, changed level by level; `rows` are (price, size) pairs of text."""

    def __init__(self) -> None:
        self.bids: Side = {}
        self.asks: Side = {}

    def replace(self, bids: Iterable[Any], asks: Iterable[Any]) -> None:
        """Begin with a complete book."""
        self.bids.clear()
        self.asks.clear()
        self.change(bids, asks)

    def change(self, bids: Iterable[Any], asks: Iterable[Any]) -> None:
        """Set levels; size nought deletes one, whether it is there or not."""
        for side, rows in ((self.bids, bids), (self.asks, asks)):
            for price, size, *_ in rows:
                if Decimal(size) == 0:
                    side.pop(Decimal(price), None)
                else:
                    side[Decimal(price)] = Decimal(size)

    def both(self) -> Both:
        """Return copies of both sides."""
        return dict(self.bids), dict(self.asks)

    def best(self, levels: int) -> Both:
        """Return both sides cut to their best levels."""
        return (
            {price: self.bids[price] for price in sorted(self.bids, reverse=True)[:levels]},
            {price: self.asks[price] for price in sorted(self.asks)[:levels]},
        )


class Player:
    """Hands messages to a controller's rules, keeps the books they make, and notes a verdict for each message.

    `verdicts` has, market by market and in the order of messages: `book` (a complete one), `early` (a change before any
    book; what became of it stands in its place when the book is there), `old`, `joined` (the first change applied to a
    book that was taken from elsewhere), `linked`, `broken` (it does not follow: the book is forgotten).
    """

    def __init__(self, controller: Controller) -> None:
        self.verdicts: dict[str, list[str]] = {}
        self.books: dict[str, OrderBook] = {}
        self._controller = controller
        self._sequences: dict[str, int] = {}
        self._joining: set[str] = set()
        self._early: dict[str, list[tuple[int, BookChange]]] = {}

    def take(self, message: Message) -> str | None:
        """Judge one message and return its verdict; None for one that belongs to no book."""
        if not isinstance(message, Book | BookChange):
            return None
        market = message.market
        verdicts = self.verdicts.setdefault(market, [])
        verdicts.append("early")
        if isinstance(message, Book):
            verdicts[-1] = "book"
            self._begin(message)
        else:
            self._early.setdefault(market, []).append((len(verdicts) - 1, message))
        while market in self.books and self._early.get(market):
            at, change = self._early[market].pop(0)
            verdicts[at] = self._judge(change)
        return verdicts[-1]

    def _begin(self, book: Book) -> None:
        assert book.sequence is not None
        self._sequences[book.market] = book.sequence
        if self._controller.snapshot_path(book.market) is not None:
            self._joining.add(book.market)
        self.books[book.market] = OrderBook(trim=not self._controller.text_numbers)
        self.books[book.market].replace(book)

    def _judge(self, change: BookChange) -> str:
        market = change.market
        sequence, joining = self._sequences[market], market in self._joining
        if self._controller.is_old(change, sequence):
            return "old"
        if not self._controller.follows(change, sequence, joining=joining):
            del self.books[market]
            return "broken"
        assert change.sequence is not None
        self.books[market].apply(change)
        self._sequences[market] = change.sequence
        self._joining.discard(market)
        return "joined" if joining else "linked"


def skipped(messages: list[Any], at: int) -> list[Any]:
    """Return messages without one."""
    return [*messages[:at], *messages[at + 1 :]]


def repeated(messages: list[Any], at: int) -> list[Any]:
    """Return messages with one twice."""
    return [*messages[: at + 1], *messages[at:]]


def swapped(messages: list[Any], at: int) -> list[Any]:
    """Return messages with one after the one that follows it."""
    return [*messages[:at], messages[at + 1], messages[at], *messages[at + 2 :]]


def each(count: int, most: int) -> Iterator[int]:
    """Yield places among `count`, all of them or `most` of them, evenly apart."""
    yield from range(0, count, max(1, count // most))
