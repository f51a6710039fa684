"""Reads what a controller hands over as a store would, and complains about everything that no store may hold.

Rows of books build on one another; trades, tickers and candles stand alone, in epochs of their own.

`tests.fakes.Stored` does the same for single tests and keeps every book; this one looks at a million rows, so it keeps
one book a feed and reads no number twice.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from collector.intake import Intake
from collector.numbers import DIGITS_MAX
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    KEYFRAME,
    ORDERBOOK,
    SAMPLED,
    BookRow,
    CandleRow,
    CoverageMark,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Record,
    Rejected,
    StreamRow,
    TickerRow,
    TradeRow,
)
from tests.fakes import CHANNEL_OF
from tests.fuzz.breach import Breach, require

INTEGERS = range(-(1 << 63), 1 << 63)
FLAGS = KEYFRAME | CROSSED | CHECKSUM_MISMATCH | SAMPLED
REASON_MAX = 500
ID_MAX = 100  # characters of a trade's id
TIMES = range(1 << 62)
MINUTE_US = 60_000_000
VERDICTS = ("unverified", "compared", "checksummed", "linked")

Side = dict[str, str]

_is_plain = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII).fullmatch
_is_positive = re.compile(r"(?=[0-9.]*[1-9])[0-9]+(?:\.[0-9]+)?", re.ASCII).fullmatch


def is_text(text: str) -> bool:
    """Tell whether every database takes it: PostgreSQL holds no NUL, nobody holds half a character."""
    return "\0" not in text and text.encode("utf-8", "replace").decode() == text


@dataclass(slots=True)
class Epoch:
    """An epoch as far as its records tell."""

    market: str
    channel: str
    opened_us: int
    n: int = 0
    at_us: int = 0  # of the last row
    frames: int = 0
    ended: bool = False
    ids: set[str] = field(default_factory=set)  # of trades
    bids: Side = field(default_factory=dict)
    asks: Side = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """What one frame made."""

    stored: int = 0
    rejected: int = 0
    opened: int = 0
    rows: list[BookRow] = field(default_factory=list)
    stream: list[StreamRow] = field(default_factory=list)
    kept_raw: list[Rejected] = field(default_factory=list)


class Audit:
    """Everything one controller handed over."""

    def __init__(self, intake: Intake, markets: tuple[str, ...]) -> None:
        self._intake = intake
        self._markets = markets
        self.epochs: dict[int, Epoch] = {}
        self.rows: Counter[tuple[str, str]] = Counter()  # by market and channel

    def take(self) -> Taken:
        """Read what waits in the intake; raises `Breach`."""
        taken = Taken()
        deliveries = self._intake.take(1 << 30)
        for delivery in deliveries:
            taken.stored += delivery.frames
            taken.rejected += delivery.rejected
            for record in delivery.records:
                self._record(record, taken)
        self._intake.done(deliveries)
        require(self._intake.empty, "the intake holds what nobody can take")
        return taken

    def book(self, epoch: int) -> list[list[tuple[str, Decimal]]]:
        """Return bids and asks of an epoch as they are rebuilt from its rows, best first."""
        kept = self.epochs[epoch]
        return [
            sorted(((price, Decimal(size)) for price, size in side.items()), key=_price, reverse=side is kept.bids)
            for side in (kept.bids, kept.asks)
        ]

    def _record(self, record: Record, taken: Taken) -> None:
        match record:
            case BookRow():
                self._row(self._open(record.epoch), record)
                taken.rows.append(record)
            case TradeRow() | TickerRow() | CandleRow():
                self._stream(self._open(record.epoch), record)
                taken.stream.append(record)
            case EpochOpened():
                require(record.epoch not in self.epochs, f"epoch {record.epoch} is opened twice")
                require(record.market in self._markets, f"an epoch of {record.market!r}, which nobody asked for")
                require(record.verdict in VERDICTS, f"verdict {record.verdict!r}")
                self.epochs[record.epoch] = Epoch(record.market, record.channel, record.opened_us)
                taken.opened += 1
            case CoverageMark():
                epoch = self._open(record.epoch)
                require(epoch.n or epoch.channel != ORDERBOOK, "coverage without a book")
                require(
                    record.confirmed_until_us <= record.heard_until_us, "data confirmed after the last sign of life"
                )
                require(record.frames >= epoch.frames, "coverage that counts backwards")
                epoch.frames = record.frames
            case EpochEnded():
                self._open(record.epoch).ended = True
            case EpochVerdict():
                self._open(record.epoch)
                require(record.verdict in VERDICTS, f"verdict {record.verdict!r}")
            case Rejected():
                require(is_text(record.reason), "a reason that no database takes")
                require(len(record.reason) <= 6 * len(record.frame) + REASON_MAX, "a reason longer than what it is of")
                taken.kept_raw.append(record)
            case _:
                raise Breach(f"{type(record).__name__} from a controller")

    def _open(self, number: int) -> Epoch:
        require(number in self.epochs, f"epoch {number} was never opened")
        require(not self.epochs[number].ended, f"epoch {number} is over")
        return self.epochs[number]

    def _row(self, epoch: Epoch, row: BookRow) -> None:
        require(epoch.channel == ORDERBOOK, f"a book among {epoch.channel}")
        epoch.n += 1
        self.rows[epoch.market, epoch.channel] += 1
        require(row.n == epoch.n, f"row {row.n} where {epoch.n} comes next")
        require(row.at_us >= epoch.at_us, "a row before the one before it")
        epoch.at_us = row.at_us
        require(not row.flags & ~FLAGS, f"flags {row.flags}")
        require(all(number in INTEGERS for number in (row.at_us, row.lag_us or 0, row.sequence or 0)), "past 64 bits")
        if row.flags & KEYFRAME:
            require(row.bids is not None and row.asks is not None, "a keyframe without a side")
            bids, asks = self._pairs(row.bids), self._pairs(row.asks)
            epoch.bids, epoch.asks = dict(bids), dict(asks)
            for prices in ([Decimal(price) for price, _ in reversed(bids)], [Decimal(price) for price, _ in asks]):
                require(all(low < high for low, high in pairwise(prices)), "a complete book that is not best first")
            self._crossed(epoch, row)
            return
        require(epoch.n > 1, "an epoch that does not open with a complete book")
        for side, text in ((epoch.bids, row.bids), (epoch.asks, row.asks)):
            for price, size in self._pairs(text, changes=True):
                if size == "0":
                    require(side.pop(price, None), f"{price} is removed and was not there")
                else:
                    require(side.get(price) != size, f"{price} is told and did not change")
                    side[price] = size
        if row.n % 4 == 0:
            self._crossed(epoch, row)

    def _stream(self, epoch: Epoch, row: StreamRow) -> None:
        channel = CHANNEL_OF[type(row)]
        require(epoch.channel == channel, f"{channel} among {epoch.channel}")
        self.rows[epoch.market, channel] += 1
        require(row.received_us in TIMES and row.received_us >= epoch.opened_us, "received before the epoch opened")
        match row:
            case TradeRow():
                require(row.trade_id and len(row.trade_id) <= ID_MAX and is_text(row.trade_id), f"id {row.trade_id!r}")
                require(row.trade_id not in epoch.ids, f"trade {row.trade_id!r} is stored twice")
                epoch.ids.add(row.trade_id)
                require(row.side in ("buy", "sell"), f"side {row.side!r}")
                require(row.venue_us in TIMES, f"time {row.venue_us}")
                self._numbers(price=row.price, volume=row.volume)
            case TickerRow():
                require(row.received_us > epoch.at_us, "two tickers of one time")
                epoch.at_us = row.received_us
                require(row.venue_us is None or row.venue_us in TIMES, f"time {row.venue_us}")
                for name in ("last", "bid", "ask", "volume"):
                    if (text := getattr(row, name)) is not None:
                        self._numbers(zero=True, **{name: text})
            case CandleRow():
                require(row.interval_s == 60, f"interval {row.interval_s}")
                require(row.open_us in TIMES and row.open_us % MINUTE_US == 0, f"a minute that begins at {row.open_us}")
                self._numbers(open=row.open, high=row.high, low=row.low, close=row.close)
                self._numbers(zero=True, volume=row.volume)

    @staticmethod
    def _numbers(*, zero: bool = False, **texts: str) -> None:
        for name, text in texts.items():
            require(_is_positive(text) or (zero and _is_plain(text)), f"{name} {text!r}")
            require(len(text) <= 2 * DIGITS_MAX + 2, "a number longer than any market has")

    @staticmethod
    def _crossed(epoch: Epoch, row: BookRow) -> None:
        bid, ask = max(map(Decimal, epoch.bids), default=None), min(map(Decimal, epoch.asks), default=None)
        crossed = bid is not None and ask is not None and bid >= ask
        require(crossed == bool(row.flags & CROSSED), "a flag that does not say what the book is")

    @staticmethod
    def _pairs(text: str | None, *, changes: bool = False) -> list[list[str]]:
        pairs: list[list[str]] = json.loads(text or "[]")
        for price, size in pairs:
            require(_is_positive(price), f"price {price!r}")
            require(_is_positive(size) or (changes and size == "0"), f"size {size!r}")
            require(max(len(price), len(size)) <= 2 * DIGITS_MAX + 2, "a number longer than any market has")
        return pairs


def _price(level: tuple[str, Decimal]) -> Decimal:
    return Decimal(level[0])
