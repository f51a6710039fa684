"""Whether the sides of trades agree with the books they met.

A taker who buys takes what is offered: the trade stands at the best ask there was before it, or above. One who sells
takes a bid. So the book before a trade tells its side, whatever the exchange calls it; a price between the two (the
book had moved on, and nobody sent it) tells nothing. Exchanges word sides differently, and what is widely known of some
of them is wrong: this is how a reading of theirs is proved.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from storage.reader import BookAt, Gap

Side = Literal["buy", "sell"]


class SidedTrade(Protocol):
    """What an audit needs of a trade."""

    @property
    def side(self) -> str:
        """What the taker did, as the exchange was understood: `buy` or `sell`."""

    @property
    def price(self) -> str:
        """The price as exact text."""

    @property
    def received_us(self) -> int:
        """When it was received."""

    @property
    def venue_us(self) -> int:
        """When it was made, by the exchange's own clock."""


@dataclass
class SideAudit:
    """How many trades of a market agree with the book before them; `undecided` are those it says nothing of."""

    exchange: str
    market: str
    agreeing: int = 0
    contradicting: int = 0
    undecided: int = 0

    @property
    def judged(self) -> int:
        """Trades whose side the book tells."""
        return self.agreeing + self.contradicting

    @property
    def percent(self) -> Decimal | None:
        """Share of the judged trades that agree, to a tenth; None where none is judged."""
        return (Decimal(100 * self.agreeing) / self.judged).quantize(Decimal("0.1")) if self.judged else None

    def as_dict(self) -> dict[str, object]:
        """Return the figures for JSON; the percent as exact text."""
        return {
            "exchange": self.exchange,
            "market": self.market,
            "judged": self.judged,
            "agreeing": self.agreeing,
            "contradicting": self.contradicting,
            "undecided": self.undecided,
            "percent": None if self.percent is None else str(self.percent),
        }


def audit_sides(exchange: str, market: str, trades: Iterable[SidedTrade], books: Iterable[BookAt | Gap]) -> SideAudit:
    """Count how the trades of one market, in order of time, agree with its books, in the order written.

    A trade is compared with the last book that is earlier by the exchange's own clock, or by ours where the exchange
    gives books no time, or the trade only whole seconds. In a gap there is no book. Both are read once; only one book
    is kept.
    """
    counts = SideAudit(exchange, market)
    waiting = iter(books)
    book: BookAt | None = None
    ahead = next(waiting, None)
    for trade in trades:
        while ahead is not None and _is_before(ahead, trade):
            book = None if isinstance(ahead, Gap) else ahead
            ahead = next(waiting, None)
        told = None if book is None else side_told(Decimal(trade.price), *touch(book))
        if told is None:
            counts.undecided += 1
        elif told == trade.side:
            counts.agreeing += 1
        else:
            counts.contradicting += 1
    return counts


def side_told(price: Decimal, bid: Decimal | None, ask: Decimal | None) -> Side | None:
    """Return the side of the taker of a trade at this price, as best bid and best ask before it tell; None: they don't.

    None as well where both do: the book was crossed.
    """
    bought, sold = ask is not None and price >= ask, bid is not None and price <= bid
    if bought == sold:
        return None
    return "buy" if bought else "sell"


def touch(book: BookAt) -> tuple[Decimal | None, Decimal | None]:
    """Return best bid and best ask; None where a side is empty."""
    return _best(book.bids), _best(book.asks)


def _best(levels: Iterable[tuple[str, str]]) -> Decimal | None:
    first: Iterator[tuple[str, str]] = iter(levels)
    best = next(first, None)
    return None if best is None else Decimal(best[0])


def _is_before(item: BookAt | Gap, trade: SidedTrade) -> bool:
    if isinstance(item, Gap):
        return item.from_us is None or item.from_us < trade.received_us
    if item.venue_us is None or trade.venue_us % 1_000_000 == 0:
        return item.received_us < trade.received_us
    return item.venue_us < trade.venue_us
