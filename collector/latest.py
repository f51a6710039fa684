"""What the live view hands out: books, trades, tickers and candles that never change any more.

A book is handed out as the rows it is made of, and put together only when somebody looks at it, in that thread: from
the last complete book and the changes since.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import msgspec
import orjson

from collector.records import CROSSED, BookRow, CandleRow, EpochOpened, Feed, StreamRow, TickerRow, TradeRow


class Level(NamedTuple):
    """One price level, exact."""

    price: Decimal
    size: Decimal


class _Sides:
    """Bids and asks as one moment had them, price to size, as text; sorted once somebody asks."""

    __slots__ = ("asks", "bids", "sorted_asks", "sorted_bids")

    def __init__(self, bids: dict[str, str], asks: dict[str, str]) -> None:
        self.bids, self.asks = bids, asks
        self.sorted_bids: tuple[Level, ...] | None = None
        self.sorted_asks: tuple[Level, ...] | None = None


class Stream:
    """One epoch of one feed; only the controller's thread that hears it writes here.

    `rows` of a book begins with a complete one and is only ever added to; the next complete one begins another list.
    """

    def __init__(self, feed: Feed, opened: EpochOpened) -> None:
        self.feed = feed
        self.epoch = opened.epoch
        self.opened_us = opened.opened_us
        self.verdict = opened.verdict
        self.unit = opened.unit
        self.rows: list[BookRow] = []
        self.row: StreamRow | None = None
        self.has_data = False
        self.heard_at_us = 0  # monotonic: the last data, or the last time that a silence was confirmed
        self.confirmed_us = 0
        self.ended = ""
        self._folded: tuple[list[BookRow], int, _Sides] | None = None

    def take(self, row: StreamRow) -> None:
        """Note the newest row; a candle before the one that stands here is another's business."""
        before = self.row
        if not (isinstance(row, CandleRow) and isinstance(before, CandleRow) and row.open_us < before.open_us):
            self.row = row

    def sides(self, rows: list[BookRow], count: int) -> _Sides:
        """Return the book after the first *count* of *rows*; any thread may ask.

        What was put together last is kept and continued, so that who reads often pays for the changes only.
        """
        known = self._folded
        if known is not None and known[0] is rows and known[1] <= count:
            done, sides = known[1:]
            if done == count:
                return sides
            bids, asks = sides.bids.copy(), sides.asks.copy()
        else:
            done, bids, asks = 0, {}, {}
        for row in rows[done:count]:
            _change(bids, row.bids)
            _change(asks, row.asks)
        sides = _Sides(bids, asks)
        if rows is self.rows:
            self._folded = (rows, count, sides)
        return sides


def _change(side: dict[str, str], changes: str | None) -> None:
    for price, size in orjson.loads(changes) if changes else ():
        if size == "0":
            side.pop(price, None)
        else:
            side[price] = size


@dataclass(frozen=True, slots=True, eq=False)
class LiveBook:
    """A book as it was after row `n` of an epoch; it never changes, whatever the feed does.

    `gone` is the reason why its feed is no longer heard, empty while it is; `age_s` is how long ago it was received or
    confirmed. Both are as of the moment it was handed out. `unit` is what sizes count where that is a contract.
    """

    feed: Feed
    epoch: int
    n: int
    received_us: int
    venue_us: int | None
    sequence: int | None
    crossed: bool
    verdict: str
    unit: str | None
    gone: str
    age_s: float
    _stream: Stream = field(repr=False)
    _rows: list[BookRow] = field(repr=False)
    _count: int = field(repr=False)
    _kept: _Sides | None = field(default=None, repr=False)

    @property
    def bids(self) -> tuple[Level, ...]:
        """All bids, the highest price first."""
        sides = self._sides()
        if sides.sorted_bids is None:
            sides.sorted_bids = tuple(sorted(_levels(sides.bids), reverse=True))
        return sides.sorted_bids

    @property
    def asks(self) -> tuple[Level, ...]:
        """All asks, the lowest price first."""
        sides = self._sides()
        if sides.sorted_asks is None:
            sides.sorted_asks = tuple(sorted(_levels(sides.asks)))
        return sides.sorted_asks

    @property
    def bid(self) -> Level | None:
        """The best bid."""
        sides = self._sides()
        return sides.sorted_bids[0] if sides.sorted_bids else max(_levels(sides.bids), default=None)

    @property
    def ask(self) -> Level | None:
        """The best ask."""
        sides = self._sides()
        return sides.sorted_asks[0] if sides.sorted_asks else min(_levels(sides.asks), default=None)

    def _sides(self) -> _Sides:
        if self._kept is None:
            object.__setattr__(self, "_kept", self._stream.sides(self._rows, self._count))
        assert self._kept is not None
        return self._kept


def _levels(side: dict[str, str]) -> Iterable[Level]:
    return (Level(Decimal(price), Decimal(size)) for price, size in side.items())


class _Live(msgspec.Struct, frozen=True):
    """What every other channel's latest has in common; `gone` and `age_s` as in `LiveBook`."""

    feed: Feed
    epoch: int
    gone: str
    age_s: float


class LiveTrade(_Live, frozen=True):
    """One trade; `side` is what the taker did."""

    row: TradeRow

    @property
    def id(self) -> str:
        """The exchange's id, or a hash of the trade where it has none."""
        return self.row.trade_id

    @property
    def side(self) -> str:
        """`buy` or `sell`."""
        return self.row.side

    @property
    def price(self) -> Decimal:
        """The price, exact."""
        return Decimal(self.row.price)

    @property
    def size(self) -> Decimal:
        """The amount, exact."""
        return Decimal(self.row.volume)

    @property
    def received_us(self) -> int:
        """When it was received."""
        return self.row.received_us

    @property
    def venue_us(self) -> int:
        """When it happened, as the exchange says."""
        return self.row.venue_us


class LiveTicker(_Live, frozen=True):
    """One ticker; what the exchange does not send is None."""

    row: TickerRow

    @property
    def last(self) -> Decimal | None:
        """The last price."""
        return _number(self.row.last)

    @property
    def bid(self) -> Decimal | None:
        """The best bid, as the ticker says."""
        return _number(self.row.bid)

    @property
    def ask(self) -> Decimal | None:
        """The best ask, as the ticker says."""
        return _number(self.row.ask)

    @property
    def volume(self) -> Decimal | None:
        """The amount traded in 24 hours, in the symbol."""
        return _number(self.row.volume)

    @property
    def received_us(self) -> int:
        """When it was received."""
        return self.row.received_us

    @property
    def venue_us(self) -> int | None:
        """Its own time, None where the exchange sends none."""
        return self.row.venue_us


class LiveCandle(_Live, frozen=True):
    """One candle as it stands now, or closed; the row's figures are exact text."""

    row: CandleRow


class Gone(NamedTuple):
    """A feed is no longer heard, and why; what comes after it belongs to another epoch."""

    feed: Feed
    epoch: int
    reason: str


Update = LiveBook | LiveTrade | LiveTicker | LiveCandle | Gone
Callback = Callable[[Update], object]


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def latest_book(stream: Stream, age_s: float) -> LiveBook:
    """Return the book of a stream that has data, as it is now; any thread may ask."""
    rows = stream.rows  # one look: it may be another list by the next line
    count = len(rows)
    row = rows[count - 1]
    received_us = stream.opened_us + row.at_us
    return LiveBook(
        feed=stream.feed,
        epoch=stream.epoch,
        n=row.n,
        received_us=received_us,
        venue_us=None if row.lag_us is None else received_us - row.lag_us,
        sequence=row.sequence,
        crossed=bool(row.flags & CROSSED),
        verdict=stream.verdict,
        unit=stream.unit,
        gone=stream.ended,
        age_s=age_s,
        _stream=stream,
        _rows=rows,
        _count=count,
    )


def latest_row(stream: Stream, row: StreamRow, age_s: float) -> LiveTrade | LiveTicker | LiveCandle:
    """Return a row of a stream in the form it is handed out in."""
    feed, epoch, gone = stream.feed, stream.epoch, stream.ended
    if isinstance(row, TradeRow):
        return LiveTrade(feed, epoch, gone, age_s, row)
    if isinstance(row, TickerRow):
        return LiveTicker(feed, epoch, gone, age_s, row)
    return LiveCandle(feed, epoch, gone, age_s, row)
