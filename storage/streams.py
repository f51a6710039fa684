"""Trades, tickers and candles, read page by page: what was stored, each with the epoch it came in.

A trade and a candle are facts with a time of their own, told once whoever heard them: all that is stored is served, in
the order of that time, and the gaps say where there may be more. A ticker is what somebody saw at a moment: as with
books one epoch speaks at a time, and what no coverage accounts for is left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from collector.records import CANDLES, TICKER, TRADES
from storage.source import Source
from storage.timeline import Epoch, Gap, Segment, StoredFeed, bounds, clip

INTERVAL_S = 60
_EVER = 1 << 62
# A row may be filed under a time that is not the one of its receipt: trades by the exchange's clock, candles by when
# they begin. So far around a stretch are rows looked for that were received in it.
_AROUND_US = {TRADES: 3_600_000_000, TICKER: 1_000_000, CANDLES: 7_200_000_000}


class StreamItem(msgspec.Struct, frozen=True, gc=False):
    """What trades, tickers and candles have in common; `source` is None where retention deleted the epoch."""

    exchange: str
    symbol: str
    currency: str
    epoch: int
    source: Epoch | None
    received_us: int

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return f"{self.symbol}-{self.currency}"

    @property
    def unit(self) -> str | None:
        """What its sizes count where that is a contract: `0.01 BTC`."""
        return None if self.source is None else self.source.unit

    @property
    def time_us(self) -> int:
        """The time it stands at: of a trade the exchange's, of a ticker that of receipt, of a candle its beginning."""
        return self.received_us


class TradeAt(StreamItem, frozen=True, gc=False):
    """One trade; `side` is what the taker did, `price` and `volume` the text stored."""

    venue_us: int
    id: str
    side: str
    price: str
    volume: str

    @property
    def time_us(self) -> int:
        """The exchange's own time."""
        return self.venue_us


class TickerAt(StreamItem, frozen=True, gc=False):
    """One ticker, in the text stored; None for what the exchange does not send."""

    venue_us: int | None
    last: str | None
    bid: str | None
    ask: str | None
    volume: str | None


class CandleAt(StreamItem, frozen=True, gc=False):
    """One candle as it was told last, in the text stored; one that is not `closed` was still forming then."""

    interval_s: int
    open_us: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    closed: bool

    @property
    def time_us(self) -> int:
        """When it begins."""
        return self.open_us


Item = TradeAt | TickerAt | CandleAt


def items(
    source: Source,
    feed: StoredFeed,
    epochs: Sequence[Epoch],
    parts: Iterable[Segment | Gap],
    start_us: int | None = None,
    end_us: int | None = None,
    *,
    interval_s: int = INTERVAL_S,
) -> Iterator[Item | Gap]:
    """Yield what a feed of trades, tickers or candles holds of a range, and the gaps where they begin.

    `epochs` are all of the feed, `parts` its timeline; `interval_s` is the length of candles.
    """
    if feed.channel == TICKER:
        yield from _tickers(source, feed, parts, start_us, end_us)
        return
    from_us = -_EVER if start_us is None else start_us
    until_us = _EVER if end_us is None else end_us - 1
    known = {epoch.id: epoch for epoch in epochs}
    found: Iterator[Item]
    if feed.channel == TRADES:
        found = _trades(source, feed, known, from_us, until_us)
    else:
        found = _candles(source, feed, known, interval_s, from_us, until_us)
    gaps = [gap for part in parts if isinstance(part, Gap) and (gap := clip(part, start_us, end_us)) is not None]
    yield from _among(found, gaps)


def _among(found: Iterator[Item], gaps: list[Gap]) -> Iterator[Item | Gap]:
    gaps.reverse()
    for item in found:
        while gaps and (gaps[-1].from_us is None or gaps[-1].from_us <= item.time_us):
            yield gaps.pop()
        yield item
    yield from reversed(gaps)


def _trades(
    source: Source, feed: StoredFeed, known: Mapping[int, Epoch], from_us: int, until_us: int
) -> Iterator[TradeAt]:
    names = feed.exchange, feed.symbol, feed.currency
    after: tuple[int, str] | None = None
    while page := source.trades(feed.id, from_us, until_us, after):
        for venue_us, trade_id, received_us, epoch, side, price, volume in page:
            yield TradeAt(*names, epoch, known.get(epoch), received_us, venue_us, trade_id, side, price, volume)
        after = page[-1][:2]


def _candles(
    source: Source, feed: StoredFeed, known: Mapping[int, Epoch], interval_s: int, from_us: int, until_us: int
) -> Iterator[CandleAt]:
    names = feed.exchange, feed.symbol, feed.currency
    while page := source.candles(feed.id, interval_s, from_us, until_us):
        for open_us, open_, high, low, close, volume, closed, received_us, epoch in page:
            was = known.get(epoch)
            prices = open_, high, low, close
            yield CandleAt(*names, epoch, was, received_us, interval_s, open_us, *prices, volume, bool(closed))
        from_us = page[-1][0] + 1


def _tickers(
    source: Source, feed: StoredFeed, parts: Iterable[Segment | Gap], start_us: int | None, end_us: int | None
) -> Iterator[TickerAt | Gap]:
    names = feed.exchange, feed.symbol, feed.currency
    for part in parts:
        if isinstance(part, Gap):
            gap = clip(part, start_us, end_us)
            if gap is not None:
                yield gap
            continue
        lower_us, upper_us = bounds(part, start_us, end_us)
        while lower_us <= upper_us and (page := source.tickers(part.epoch, lower_us, upper_us)):
            for received_us, venue_us, last, bid, ask, volume in page:
                yield TickerAt(*names, part.epoch.id, part.epoch, received_us, venue_us, last, bid, ask, volume)
            lower_us = page[-1][0] + 1


def row_times(source: Source, epoch: Epoch, start_us: int, end_us: int) -> Iterator[int]:
    """Yield when rows of an epoch's feed were received, about from `start_us` to `end_us`; the times never fall.

    Trades and candles are in the database once, whichever epoch brought them: those of other epochs are told as well.
    """
    around_us = _AROUND_US[epoch.channel]
    from_us, until_us = max(start_us, epoch.from_us) - around_us, min(end_us, epoch.heard_until_us) + around_us
    newest_us = -_EVER
    while page := source.stream_times(epoch, from_us, until_us):
        for _, received_us in page:
            newest_us = max(newest_us, received_us)
            yield newest_us
        from_us = page[-1][0] + 1
