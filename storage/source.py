"""What a reader needs of a database, whichever it is: plain questions, each a read of its own that lasts milliseconds.

So hours of reading neither keep SQLite's write-ahead log from being emptied nor PostgreSQL's dead rows from being
cleared away. Rows of books are named by their number in an epoch, and their times counted from `Epoch.opened_us`; in an
epoch times rise with the numbers.
"""

from typing import Protocol

from storage.timeline import Epoch, StoredFeed

PAGE_ROWS = 5_000
PAGE_BYTES = 4 << 20
TIMES = 20_000

# n, at_us, lag_us (None where the exchange sends no time), sequence, flags, bids, asks
Row = tuple[int, int, int | None, int | None, int, str | None, str | None]
# venue_us, trade_id, received_us, epoch, side, price, volume
TradeTuple = tuple[int, str, int, int, str, str, str]
# received_us, venue_us, last, bid, ask, volume
TickerTuple = tuple[int, int | None, str | None, str | None, str | None, str | None]
# open_us, open, high, low, close, volume, closed, received_us, epoch
CandleTuple = tuple[int, str, str, str, str, str, int, int, int]


class Source(Protocol):
    """A database that is open for reading, for one thread at a time. Every method raises `StorageError`."""

    shown: str  # what messages call it
    name: str  # what a receipt calls it, which does not say where it is

    def feeds(self) -> list[StoredFeed]:
        """Return every feed, in order of exchange, market and channel."""

    def epochs(self, feed: int) -> list[Epoch]:
        """Return what the ledger says of a feed, in any order."""

    def epoch_of(self, run_uid: str, number: int) -> Epoch | None:
        """Return the epoch that a run counts as its `number`; None where it is not there."""

    def rows(self, epoch: Epoch, first: int) -> list[Row]:
        """Return a page of rows in order, from number `first` on; empty only where none is left."""

    def times(self, epoch: Epoch, first: int) -> list[tuple[int, int]]:
        """Return number and time of up to `TIMES` rows in order, from number `first` on."""

    def last(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest row received at `at_us` or before."""

    def keyframe(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the number of the newest keyframe received at `at_us` or before."""

    def keyframe_after(self, epoch: Epoch, at_us: int) -> int | None:
        """Return the time of the first keyframe received after `at_us`."""

    # --- streams, whose times are absolute; every page holds up to `PAGE_ROWS` ----------------------------------------

    def trades(self, feed: int, from_us: int, until_us: int, after: tuple[int, str] | None) -> list[TradeTuple]:
        """Return a page of the trades of a time (of the exchange's), both ends included; behind the one at `after`.

        That is its time and id. Those of one time stand in the order of their ids: shorter ones first.
        """

    def tickers(self, epoch: Epoch, from_us: int, until_us: int) -> list[TickerTuple]:
        """Return a page of the tickers of an epoch received then, both ends included, in order."""

    def candles(self, feed: int, interval_s: int, from_us: int, until_us: int) -> list[CandleTuple]:
        """Return a page of the candles of one length that begin then, both ends included, in order."""

    def stream_times(self, epoch: Epoch, from_us: int, until_us: int) -> list[tuple[int, int]]:
        """Return a page of rows of an epoch's feed as (time, received), in the order of the times that rows go by.

        These are the exchange's for trades, those of receipt for tickers, the beginnings for candles (of one minute);
        from `from_us` to `until_us`, both included. Up to `TIMES`; of rows of one time at the end of a page some may be
        left out.
        """

    def close(self) -> None:
        """Close it."""
