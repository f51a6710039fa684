"""The reading side: what was recorded, rebuilt exactly, or a gap that says why there is nothing.

A reader never writes and never makes a database. It reads in pages, each a read of its own that lasts some
milliseconds. Never is a book built across a row that is missing, nor from rows of two epochs: where epochs of one feed
overlap, `storage.timeline` says which of them speaks, each from its own complete book.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, overload

import msgspec

from collector.errors import StorageCorrupt, StorageError
from collector.records import CANDLES, CHECKSUM_MISMATCH, CROSSED, KEYFRAME, ORDERBOOK, SAMPLED, TICKER, TRADES
from storage import streams
from storage.database import is_url
from storage.rebuild import Levels, Side
from storage.source import Row, Source
from storage.sqlite_source import SQLiteSource
from storage.streams import INTERVAL_S, CandleAt, Item, TickerAt, TradeAt
from storage.timeline import Epoch, Gap, Segment, StoredFeed, bounds, clip, timeline

__all__ = [
    "BookAt",
    "CandleAt",
    "Epoch",
    "Gap",
    "Reader",
    "Segment",
    "StoredFeed",
    "TickerAt",
    "TradeAt",
    "UnknownFeed",
    "clip",
    "open_source",
    "timeline",
]

NAMES = {ORDERBOOK: "order books", TRADES: "trades", TICKER: "tickers", CANDLES: "candles"}
FLAGS = {CROSSED: "crossed", CHECKSUM_MISMATCH: "checksum_mismatch", SAMPLED: "sampled"}


class UnknownFeed(StorageError):
    """The database holds nothing of the exchange or market that was asked for."""


class BookAt(msgspec.Struct, frozen=True, gc=False):
    """A complete book as it stood from `received_us` on; levels are (price, volume) in the text stored, best first.

    As long as a side does not change, the books of one iteration share the same tuple.
    """

    source: Epoch
    n: int
    received_us: int
    venue_us: int | None
    sequence: int | None
    flags: int
    bids: Levels
    asks: Levels

    @property
    def time_us(self) -> int:
        """The time it stands at: that of receipt."""
        return self.received_us

    @property
    def exchange(self) -> str:
        """The exchange in upper case."""
        return self.source.exchange

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return self.source.market

    @property
    def epoch(self) -> int:
        """The epoch's key."""
        return self.source.id

    @property
    def transport(self) -> str:
        """How it came: `websocket` or `rest`."""
        return self.source.transport

    @property
    def verdict(self) -> str:
        """What is known of the truth of the epoch's books."""
        return self.source.verdict

    @property
    def unit(self) -> str | None:
        """What its sizes count where that is a contract: `0.01 BTC`."""
        return self.source.unit

    @property
    def flag_names(self) -> list[str]:
        """The flags in words; whether the row was a keyframe says nothing about the book and is left out."""
        return [name for bit, name in FLAGS.items() if self.flags & bit]


class Reader:
    """A database of the collector, opened for reading, also while it is being written; for one thread at a time.

    `database` is a file of SQLite or an address of PostgreSQL (`postgresql://...`); `name` is what a receipt calls it.
    Raises `StorageError` where it is missing or can't be opened, `NotOurs` where it is no database, not one of this
    program, or from a newer version. Times are integer microseconds UTC; a range holds its start and not its end,
    None means without limit. Exchanges and markets are found in any case. Every method raises `UnknownFeed` for one the
    database knows nothing of, `StorageBusy` where it may be tried again, `StorageCorrupt` where rows can't have been
    written so.
    """

    def __init__(self, database: Path | str) -> None:
        self._source = open_source(database)
        self.name = self._source.name

    def close(self) -> None:
        """Close the database; iterators that are under way end with an error."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what is there ----------------------------------------------------------------------------------------------

    def feeds(
        self, exchange: str | None = None, market: str | None = None, channel: str | None = None
    ) -> list[StoredFeed]:
        """Return the feeds in the database, in order of exchange, market and channel."""
        feeds = self._source.feeds()
        if exchange is not None:
            feeds = _only(feeds, "exchange", exchange, self._source)
        if market is not None:
            feeds = _only(feeds, "market", market, self._source)
        return [feed for feed in feeds if channel is None or feed.channel == channel]

    def feeds_of(self, exchange: str, market: str | None, channel: str) -> list[StoredFeed]:
        """Return the feeds of one channel, as `feeds` does, but never none."""
        found = self.feeds(exchange, market, channel)
        if not found:
            where = f"{exchange.upper()} {market.upper()}" if market else exchange.upper()
            raise UnknownFeed(f"{self._source.shown} holds no {NAMES[channel]} of {where}")
        return found

    def book_feeds(self, exchange: str | None = None, market: str | None = None) -> list[StoredFeed]:
        """Return the order-book feeds, as `feeds` does."""
        return self.feeds(exchange, market, ORDERBOOK)

    def epochs(
        self,
        exchange: str,
        market: str,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        channel: str = ORDERBOOK,
    ) -> list[Epoch]:
        """Return the epochs of a feed that are covered at some moment of the range, in order of time."""
        epochs = self._epochs(self._feed(exchange, market, channel))
        return [
            epoch
            for epoch in epochs
            if (start_us is None or epoch.until_us >= start_us) and (end_us is None or epoch.from_us < end_us)
        ]

    def epoch_of(self, run_uid: str, number: int) -> Epoch | None:
        """Return the epoch that a run counts as its `number`; None where it is not in the database."""
        return self._source.epoch_of(run_uid, number)

    def row_times(self, epoch: Epoch, start_us: int, end_us: int) -> Iterator[int]:
        """Yield when the rows of an epoch were received, without reading what is in them.

        The first is the last one at or before `start_us`, if any; the last is the first one after `end_us`. Of trades,
        tickers and candles it is about so; see `storage.streams.row_times`.
        """
        if epoch.channel != ORDERBOOK:
            yield from streams.row_times(self._source, epoch, start_us, end_us)
            return
        first = self._source.last(epoch, start_us - epoch.opened_us) or 0
        last_at = end_us - epoch.opened_us
        while page := self._source.times(epoch, first):
            for _, at_us in page:
                yield epoch.opened_us + at_us
                if at_us > last_at:
                    return
            first = page[-1][0] + 1

    def newest(self, exchange: str, market: str) -> BookAt | Gap:
        """Return the newest book that was recorded, or the gap where none ever was."""
        segments = [part for part in self.timeline(self._feed(exchange, market)) if isinstance(part, Segment)]
        return self._book_at(segments[-1].epoch, segments[-1].epoch.until_us) if segments else Gap("never", None, None)

    def timeline(self, feed: StoredFeed) -> list[Segment | Gap]:
        """Return who speaks for a feed when, as the ledger has it at this moment."""
        return timeline(self._epochs(feed))

    def rows_about(self, parts: Iterable[Segment | Gap], start_us: int | None = None, end_us: int | None = None) -> int:
        """Return about how many rows a timeline holds, from the numbers at the ends; for progress bars.

        Of trades, tickers and candles that is how many messages brought them, whatever the range.
        """
        total = 0
        for part in parts:
            lower_us, upper_us = bounds(part, start_us, end_us) if isinstance(part, Segment) else (1, 0)
            if isinstance(part, Gap) or lower_us > upper_us:
                continue
            opened_us = part.epoch.opened_us
            if part.epoch.channel != ORDERBOOK:
                total += part.epoch.frames
                continue
            last = self._source.last(part.epoch, upper_us - opened_us)
            if last is not None:
                total += last - (self._source.last(part.epoch, lower_us - 1 - opened_us) or 0)
        return total

    # --- books ------------------------------------------------------------------------------------------------------

    def book_at(self, exchange: str, market: str, time_us: int) -> BookAt | Gap:
        """Return the exact book of a moment, or the gap the moment lies in."""
        for part in self.timeline(self._feed(exchange, market)):
            if isinstance(part, Segment):
                if part.after_us < time_us <= part.epoch.until_us:
                    return self._book_at(part.epoch, time_us)
            elif (part.from_us is None or part.from_us < time_us) and (
                part.until_us is None or time_us < part.until_us
            ):
                return part
        raise AssertionError("a timeline has no holes")

    @overload
    def books(
        self,
        exchange: str,
        market: str | None = ...,
        start_us: int | None = ...,
        end_us: int | None = ...,
        *,
        gaps: Literal[False] = ...,
    ) -> Iterator[BookAt]: ...

    @overload
    def books(
        self,
        exchange: str,
        market: str | None = ...,
        start_us: int | None = ...,
        end_us: int | None = ...,
        *,
        gaps: Literal[True],
    ) -> Iterator[BookAt | Gap]: ...

    def books(
        self,
        exchange: str,
        market: str | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        gaps: bool = False,
    ) -> Iterator[BookAt | Gap]:
        """Return the complete book at every update of a range: market by market, epoch by epoch, in the order written.

        With `gaps`, the gaps of the range stand between the books they interrupt. Where an epoch takes over from one it
        overlapped, its book of that moment is given first (under its own, earlier time) if it differs from the last
        one.
        """
        feeds = self.feeds_of(exchange, market, ORDERBOOK)  # here and not in the generator: a wrong name fails at once
        items = (item for feed in feeds for item in self.replay(self.timeline(feed), start_us, end_us))
        return items if gaps else (item for item in items if not isinstance(item, Gap))

    def replay(
        self, parts: Iterable[Segment | Gap], start_us: int | None = None, end_us: int | None = None
    ) -> Iterator[BookAt | Gap]:
        """Yield the books and gaps of one feed's timeline: what `books` does, for a timeline that is known already."""
        last: BookAt | None = None
        for part in parts:
            if isinstance(part, Gap):
                gap = clip(part, start_us, end_us)
                if gap is not None:
                    yield gap
                continue
            lower_us, upper_us = bounds(part, start_us, end_us)
            if lower_us > upper_us:
                continue
            taking_over = part.takes_over and last is not None
            for item in self._replay(part.epoch, lower_us, upper_us, in_force=taking_over):
                if isinstance(item, Gap):
                    gap = clip(item, lower_us, upper_us)
                    if gap is not None:
                        yield gap
                    continue
                if taking_over:
                    taking_over = False
                    if item.received_us < lower_us and last is not None and _same_book(item, last):
                        continue
                last = item
                yield item

    def _book_at(self, epoch: Epoch, time_us: int) -> BookAt | Gap:
        *_, answer = self._replay(epoch, time_us, time_us, in_force=True)  # the last word counts
        return answer

    def _replay(self, epoch: Epoch, lower_us: int, upper_us: int, *, in_force: bool) -> Iterator[BookAt | Gap]:
        # The books of one epoch received from lower to upper, both included; with `in_force` the one that stood at
        # lower first. A hole in the numbers is a gap from the last book before it to the next keyframe.
        opened_us = epoch.opened_us
        lower, upper = lower_us - opened_us, upper_us - opened_us
        first = self._source.keyframe(epoch, lower - 1) or 0
        bids, asks = Side(highest_first=True), Side(highest_first=False)
        whole = False  # whether every row since a keyframe has been there
        expected = 0
        known_until_us = epoch.from_us
        waiting: BookAt | None = None
        for n, at_us, lag_us, sequence, flags, bids_text, asks_text in self._rows(epoch, first):
            if at_us > upper:
                if n != expected and known_until_us < upper_us:
                    whole, waiting = False, None
                break
            if n != expected:
                whole, waiting = False, None
            received_us = opened_us + at_us
            try:
                if flags & KEYFRAME:
                    bids.replace(bids_text)
                    asks.replace(asks_text)
                    if not whole and received_us > known_until_us:
                        yield Gap("missing", known_until_us, received_us)
                    whole = True
                elif whole:
                    bids.apply(bids_text)
                    asks.apply(asks_text)
                else:
                    continue
            except StorageCorrupt as error:
                raise StorageCorrupt(f"{self._source.shown}: book {epoch.id}/{n}: {error}") from None
            expected = n + 1
            known_until_us = received_us
            if at_us < lower and not in_force:
                continue
            book = BookAt(
                epoch,
                n,
                received_us,
                None if lag_us is None else received_us - lag_us,
                sequence,
                flags,
                bids.levels(),
                asks.levels(),
            )
            if at_us < lower:
                waiting = book
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            yield book
        if waiting is not None:
            yield waiting
        if not whole:
            known_at = self._source.keyframe_after(epoch, upper)
            until_us = epoch.until_us if known_at is None else min(opened_us + known_at, epoch.until_us)
            yield Gap("missing", known_until_us, until_us)

    # --- trades, tickers, candles -----------------------------------------------------------------------------------

    def trades(
        self, exchange: str, market: str | None = None, start_us: int | None = None, end_us: int | None = None
    ) -> Iterator[TradeAt]:
        """Return the trades of a time (the exchange's), market by market, in its order; each once, whoever heard it.

        Those of one time stand in the order of their ids, so that numbers count up. For the gaps among them: `items`.
        """
        found = self._streams(exchange, market, TRADES, start_us, end_us)
        return (item for item in found if isinstance(item, TradeAt))

    def tickers(
        self, exchange: str, market: str | None = None, start_us: int | None = None, end_us: int | None = None
    ) -> Iterator[TickerAt]:
        """Return the tickers received in a time, market by market, epoch by epoch, as `books` does."""
        found = self._streams(exchange, market, TICKER, start_us, end_us)
        return (item for item in found if isinstance(item, TickerAt))

    def candles(
        self,
        exchange: str,
        market: str | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        interval_s: int = INTERVAL_S,
    ) -> Iterator[CandleAt]:
        """Return the candles of one length that begin in a time, market by market, as they were told last."""
        found = self._streams(exchange, market, CANDLES, start_us, end_us, interval_s)
        return (item for item in found if isinstance(item, CandleAt))

    def items(
        self,
        feed: StoredFeed,
        parts: Sequence[Segment | Gap],
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        interval_s: int = INTERVAL_S,
    ) -> Iterator[BookAt | Item | Gap]:
        """Yield what a feed of any channel holds of a range, with the gaps; `parts` is its `timeline`."""
        if feed.channel == ORDERBOOK:
            return self.replay(parts, start_us, end_us)
        epochs = self._epochs(feed)  # more than those that speak: each trade names the one it came in
        return streams.items(self._source, feed, epochs, parts, start_us, end_us, interval_s=interval_s)

    def _streams(
        self,
        exchange: str,
        market: str | None,
        channel: str,
        start_us: int | None,
        end_us: int | None,
        interval_s: int = INTERVAL_S,
    ) -> Iterator[BookAt | Item | Gap]:
        feeds = self.feeds_of(exchange, market, channel)  # here and not in the generator: a wrong name fails at once
        return (
            item
            for feed in feeds
            for item in self.items(feed, self.timeline(feed), start_us, end_us, interval_s=interval_s)
        )

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _rows(self, epoch: Epoch, first: int) -> Iterator[Row]:
        while page := self._source.rows(epoch, first):
            yield from page
            first = page[-1][0] + 1

    def _epochs(self, feed: StoredFeed) -> list[Epoch]:
        return sorted(self._source.epochs(feed.id), key=lambda epoch: (epoch.from_us, epoch.id))

    def _feed(self, exchange: str, market: str, channel: str = ORDERBOOK) -> StoredFeed:
        return self.feeds_of(exchange, market, channel)[0]


def open_source(database: Path | str) -> Source:
    """Open a database for reading: an address of PostgreSQL, or a file of SQLite."""
    if not is_url(database):
        return SQLiteSource(Path(database))
    from storage.postgres_source import PostgresSource  # only here: it takes memory that SQLite does without

    return PostgresSource(str(database))


def _only(feeds: list[StoredFeed], what: str, name: str, source: Source) -> list[StoredFeed]:
    wanted = name.upper()
    found = [feed for feed in feeds if getattr(feed, what) == wanted]
    if found:
        return found
    there = sorted({str(getattr(feed, what)) for feed in feeds})
    text = f"{source.shown} holds nothing of {what} {name!r}; it has {', '.join(there) or 'no data yet'}"
    near = difflib.get_close_matches(wanted, there, n=1)
    raise UnknownFeed(f"{text} (did you mean {near[0]!r}?)" if near else text)


def _same_book(one: BookAt, other: BookAt) -> bool:
    return one.bids == other.bids and one.asks == other.asks
