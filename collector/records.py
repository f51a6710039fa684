"""What a controller's `parse` yields, and what flows from controllers to the writer.

All of it is immutable. Prices and sizes are the exchange's own tokens (`collector.numbers.Number`) in what `parse`
yields, and JSON text of `["price","volume"]` strings in what goes to the store.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import msgspec

from collector.numbers import Number

ORDERBOOK, TRADES, TICKER, CANDLES = "orderbook", "trades", "ticker", "candles"
CHANNELS = (ORDERBOOK, TRADES, TICKER, CANDLES)

# Rows that an epoch can number; the next one opens another epoch. Epoch and number share one integer in the store.
ROWS_MAX = (1 << 24) - 1

# Why an epoch ended. `crash` is never written: the reader derives it from a run that is over and was not closed.
REASONS = (
    "disconnect",
    "stale",
    "sequence",
    "checksum",
    "rejected",
    "probe",
    "stop",
    "crash",
    "clock",
    "no_space",
    "damaged",
    "superseded",
)

KEYFRAME = 1  # the complete book stands in the row, not what changed
CROSSED = 2  # best bid at or above best ask
CHECKSUM_MISMATCH = 4  # the exchange's own totals do not match its levels
SAMPLED = 8  # a polled book: what changed between two polls is not known


class Feed(NamedTuple):
    """One stream of data: an exchange, a market in house form (`BTC-KRW`), one of `CHANNELS`."""

    exchange: str
    market: str
    channel: str = ORDERBOOK


# --- what `parse` yields ---------------------------------------------------------------------------------------------


class Book(msgspec.Struct, frozen=True, gc=False):
    """A complete order book: price token to size token for each side, in any order.

    `totals` are the exchange's own sums (asks, bids) where it sends them as a check, `checksum` its own sum over the
    book that holds after this message.
    """

    channel: ClassVar[str] = ORDERBOOK
    market: str
    bids: Mapping[Number, Number]
    asks: Mapping[Number, Number]
    venue_us: int | None = None
    sequence: int | None = None
    totals: tuple[Number, Number] | None = None
    checksum: int | None = None


class BookChange(msgspec.Struct, frozen=True, gc=False):
    """Levels that changed since the last message of this market; size nought removes a level.

    `sequence` is the number of its last change, which becomes the book's. What it must follow is said by `first`, the
    number of its own first change, or by `previous`, the number of the message before it, whichever the exchange sends;
    `Controller.follows` has its rule.
    """

    channel: ClassVar[str] = ORDERBOOK
    market: str
    bids: Mapping[Number, Number]
    asks: Mapping[Number, Number]
    venue_us: int | None = None
    sequence: int | None = None
    first: int | None = None
    previous: int | None = None
    checksum: int | None = None


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One trade. `side` is what the taker did; `id` is the exchange's own, None where it has none.

    Trades of one message stand in the order in which they happened.
    """

    channel: ClassVar[str] = TRADES
    market: str
    id: str | None
    side: Literal["buy", "sell"]
    price: Number
    size: Number
    venue_us: int


class Ticker(msgspec.Struct, frozen=True, gc=False):
    """The exchange's own summary of a market: last price, best bid and ask, traded amount of the last 24 hours.

    What the exchange does not send is None; `volume` counts in the symbol, not in the currency.
    """

    channel: ClassVar[str] = TICKER
    market: str
    last: Number | None
    bid: Number | None = None
    ask: Number | None = None
    volume: Number | None = None
    venue_us: int | None = None


class Candle(msgspec.Struct, frozen=True, gc=False):
    """One candle as it stands now. `open_us` is the UTC time of its beginning; `closed`: it will not change any more.

    `volume` counts in the symbol. Exchanges that never say that a candle is closed send the next one: the keeper closes
    the one before it.
    """

    channel: ClassVar[str] = CANDLES
    market: str
    interval_s: int
    open_us: int
    open: Number
    high: Number
    low: Number
    close: Number
    volume: Number
    closed: bool = False
    venue_us: int | None = None


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A heartbeat that wants this text sent back at once."""

    text: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The exchange refused a subscription; `market` is None where it does not say which."""

    detail: str
    market: str | None = None


class Subscribed(msgspec.Struct, frozen=True, gc=False):
    """The exchange took a subscription: what follows on that channel is all there is.

    Only where it would refuse a market it does not know; an acknowledgement that proves nothing is no message at all.
    """

    channel: str
    market: str


class Numbered(msgspec.Struct, frozen=True, gc=False):
    """This frame is number `sequence` of its connection, which counts every frame: 0, 1, 2..."""

    sequence: int


class Leaving(msgspec.Struct, frozen=True, gc=False):
    """The exchange announces that it will close this connection soon; `detail` in its own words."""

    detail: str


Datum = Book | BookChange | Trade | Ticker | Candle
Message = Datum | Reply | Refused | Subscribed | Numbered | Leaving


# --- what flows to the writer ----------------------------------------------------------------------------------------


class EpochOpened(msgspec.Struct, frozen=True, gc=False):
    """A feed is being heard from here on. `epoch` counts 1, 2, 3... within one run of the collector.

    `unit` is what its sizes count where that is a contract: `0.01 BTC`, `100 USD`; None: the symbol itself.
    """

    epoch: int
    exchange: str
    market: str
    channel: str
    transport: str
    opened_us: int
    depth: int | None = None
    verdict: str = "unverified"
    unit: str | None = None


class BookRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One update of a book, as it stands in the store.

    Times are relative, since that is a third of the row: `at_us` counts from the epoch's `opened_us` to receipt,
    `lag_us` from the exchange's own time to receipt (None where it sends none). `bids` and `asks` are JSON text, None
    where a side did not change. `flags` is the sum of `KEYFRAME`, `CROSSED`, `CHECKSUM_MISMATCH`, `SAMPLED`.
    """

    epoch: int
    n: int
    at_us: int
    lag_us: int | None
    sequence: int | None
    flags: int
    bids: str | None
    asks: str | None


class TradeRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One trade, as it stands in the store; keyed by feed, `venue_us` and `trade_id`: a repeat changes nothing.

    `trade_id` is a hash of the content where the exchange has no id. Times are absolute; prices and volumes exact text.
    """

    epoch: int
    trade_id: str
    side: str
    price: str
    volume: str
    received_us: int
    venue_us: int


class TickerRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One ticker, as it stands in the store; keyed by feed, `received_us`, which rises within an epoch, and epoch."""

    epoch: int
    received_us: int
    venue_us: int | None
    last: str | None
    bid: str | None
    ask: str | None
    volume: str | None


class CandleRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One candle, as it stands in the store; keyed by feed, `interval_s` and `open_us`.

    It replaces what stands there if this is closed and that is not, or if neither is more so and that was not received
    later: in whatever order two collectors bring theirs, the same is left.
    """

    epoch: int
    interval_s: int
    open_us: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    closed: bool
    received_us: int


class CoverageMark(msgspec.Struct, frozen=True, gc=False):
    """How far an epoch is accounted for: absolute figures, so that writing a mark twice changes nothing."""

    epoch: int
    heard_until_us: int
    confirmed_until_us: int
    frames: int


class EpochEnded(msgspec.Struct, frozen=True, gc=False):
    """Nothing more will come in this epoch; it may end before the time it was heard until."""

    epoch: int
    ended_us: int
    reason: str


class EpochVerdict(msgspec.Struct, frozen=True, gc=False):
    """What is known of the truth of an epoch's books: `unverified`, `compared`, `checksummed`, `linked`."""

    epoch: int
    verdict: str


class RecordsLost(msgspec.Struct, frozen=True, gc=False):
    """Records of this run that stood between the batch before and this one are gone, and nobody knows of which epochs.

    Every epoch that is open in the store ends where its coverage got to, with this reason; the next record of a feed
    that counts is an `EpochOpened`.
    """

    reason: str


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A frame that could not be understood, raw, and why."""

    exchange: str
    market: str | None
    received_us: int
    reason: str
    frame: bytes


class Event(msgspec.Struct, frozen=True, gc=False):
    """A life event: the log in the database."""

    time_us: int
    level: str
    tag: str
    text: str


StreamRow = TradeRow | TickerRow | CandleRow
Record = EpochOpened | BookRow | StreamRow | CoverageMark | EpochEnded | EpochVerdict | RecordsLost | Rejected | Event


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """Records that go to the store together or not at all, with what they account for.

    `frames` is how many received frames of `exchange` become `stored` with this delivery, `rejected` how many are kept
    raw; `size` is about what it holds in memory, in bytes; `received_us` is the newest frame's time of receipt.
    """

    exchange: str
    frames: int
    records: tuple[Record, ...]
    size: int
    rejected: int = 0
    received_us: int = 0
