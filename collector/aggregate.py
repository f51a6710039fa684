"""Prices of one thing at many exchanges: compared, the best of them, and all books as one.

What is joined has one quote currency. A market priced in another one takes part only with a conversion rate that was
configured, and the answer shows the rate and where it is from. A rate is only ever multiplied with, so every figure is
exact. Contracts are joined with the same contract elsewhere, never with spot.

A feed that is not heard any more, or was not confirmed for too long, takes no part, and neither does anything else that
can't be joined: each is named, with the reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, Inexact
from typing import NamedTuple

from collector.latest import Level, LiveBook, LiveTicker, LiveTrade
from collector.live import LiveView
from collector.numbers import DIGITS_MAX
from collector.records import ORDERBOOK, TICKER, TRADES

STALE_S = 60.0
DEPTH = 20
NEVER = "never heard"

# Wide enough for the product of two tokens of an exchange, and for the sum of as many as there are exchanges.
_EXACT = Context(prec=6 * DIGITS_MAX, traps=[Inexact])
_NO_LEVEL: tuple[None, None] = (None, None)


class Rate(NamedTuple):
    """One *base* costs `rate` of *quote*: `Rate("USDT", "KRW", Decimal("1400"), "the bank's")`."""

    base: str
    quote: str
    rate: Decimal
    source: str

    def __str__(self) -> str:
        return f"1 {self.base} = {self.rate:f} {self.quote} ({self.source})"


class LeftOut(NamedTuple):
    """What takes no part, and why."""

    exchange: str
    market: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The latest of one channel of one market, as far as it says anything of prices.

    `age_s` is how long ago it was received or confirmed; `gone` why its feed is not heard, empty while it is.
    """

    last: Decimal | None = None
    bid: Decimal | None = None
    ask: Decimal | None = None
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None
    received_us: int | None = None
    venue_us: int | None = None
    age_s: float | None = None
    gone: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """What one exchange asks, bids and last paid for one market, in that market's currency; None where nobody knows.

    `received_us` and `venue_us` are the times of bid and ask (of `last` where there is neither), `age_s` how long ago
    they were received or confirmed. `unfit` is why none of it may be used, empty where it may; `missing` says which of
    its channels were left out, and why.
    """

    exchange: str
    market: str
    last: Decimal | None = None
    bid: Decimal | None = None
    ask: Decimal | None = None
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None
    received_us: int | None = None
    venue_us: int | None = None
    age_s: float | None = None
    unfit: str = ""
    missing: tuple[str, ...] = ()
    rate: Rate | None = None  # what the prices were converted with

    @property
    def spread(self) -> Decimal | None:
        """Ask minus bid; below nought where the book is crossed."""
        return None if self.bid is None or self.ask is None else _EXACT.subtract(self.ask, self.bid)

    def converted(self, rate: Rate) -> "Quote":
        """Return the same in the currency of a rate."""
        last, bid, ask = (
            None if price is None else _EXACT.multiply(price, rate.rate) for price in (self.last, self.bid, self.ask)
        )
        return replace(self, last=last, bid=bid, ask=ask, rate=rate)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One market at many exchanges, all prices in its currency; `venues` in the order of their names."""

    market: str
    venues: tuple[Quote, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def best_bid(self) -> Quote | None:
        """Who bids most; None where nobody bids."""
        return max((one for one in self.venues if one.bid is not None), key=lambda one: one.bid or 0, default=None)

    @property
    def best_ask(self) -> Quote | None:
        """Who asks least; None where nobody asks."""
        return min((one for one in self.venues if one.ask is not None), key=lambda one: one.ask or 0, default=None)

    @property
    def spread(self) -> Decimal | None:
        """Best ask minus best bid of all; below nought where one exchange bids more than another one asks."""
        bid, ask = self.best_bid, self.best_ask
        if bid is None or ask is None or bid.bid is None or ask.ask is None:
            return None
        return _EXACT.subtract(ask.ask, bid.bid)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The rates that were used, each once."""
        return tuple(dict.fromkeys(one.rate for one in self.venues if one.rate is not None))


class Part(NamedTuple):
    """What one exchange has of a level: its own price, before any conversion, and its size."""

    exchange: str
    market: str
    price: Decimal
    size: Decimal


class MergedLevel(NamedTuple):
    """A price of all exchanges together, and what each of them has there."""

    price: Decimal
    size: Decimal
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class MergedBook:
    """The books of many exchanges as one, best price first; it may be crossed, since nobody trades it as one.

    `counts_in` is what sizes count: the symbol, or the currency where all are contracts of so much of it.
    """

    market: str
    counts_in: str
    bids: tuple[MergedLevel, ...]
    asks: tuple[MergedLevel, ...]
    venues: tuple[str, ...]
    rates: tuple[Rate, ...]
    left_out: tuple[LeftOut, ...]


class Prices:
    """The answers, from a live view; any thread may ask.

    `rates` are those that are configured; what was neither received nor confirmed for `stale_s` seconds takes no part.
    """

    def __init__(self, view: LiveView, *, rates: Iterable[Rate] = (), stale_s: float = STALE_S) -> None:
        self.rates = tuple(rates)
        self.stale_s = stale_s
        self._view = view

    def markets(self) -> list[str]:
        """Return the markets that anything is known of, in order."""
        return sorted({feed.market for feed in self._view.feeds()})

    def compare(self, market: str) -> Comparison:
        """Return what every exchange asks, bids and last paid for the market, and so who has the best price.

        Bid and ask are the book's, or the ticker's where no book can be used; the last price is that of the newest
        trade or ticker.
        """
        quotes = [
            quote(
                *venue,
                book=_seen(self._view.book(*venue)),
                ticker=_seen(self._view.ticker(*venue)),
                trade=_seen(self._view.trade(*venue)),
                stale_s=self.stale_s,
            )
            for venue in self._venues(market, ORDERBOOK, TICKER, TRADES)
        ]
        return compare(market, quotes, self.rates)

    def merged(self, market: str, *, depth: int = DEPTH) -> MergedBook:
        """Return the books of all exchanges as one, *depth* levels a side."""
        books = {venue: self._view.book(*venue) for venue in self._venues(market, ORDERBOOK)}
        found = merge(
            market,
            [book for book in books.values() if book is not None],
            self.rates,
            stale_s=self.stale_s,
            depth=depth,
        )
        unheard = tuple(LeftOut(*venue, NEVER) for venue, book in books.items() if book is None)
        return replace(found, left_out=found.left_out + unheard)

    def _venues(self, market: str, *channels: str) -> list[tuple[str, str]]:
        wanted = thing(market)
        return sorted(
            {
                (feed.exchange, feed.market)
                for feed in self._view.feeds()
                if feed.channel in channels and thing(feed.market) == wanted
            }
        )


def thing(market: str) -> str:
    """Return what a market trades: the symbol, in whatever currency, or that very contract."""
    return market if ":" in market else market.partition("-")[0]


def stale(age_s: float | None, stale_s: float) -> str:
    """Return why something of this age may not be used, nothing where it may."""
    return "" if age_s is None or age_s <= stale_s else f"stale, heard {age_s:.0f} s ago"


def quote(
    exchange: str,
    market: str,
    *,
    book: Seen | None = None,
    ticker: Seen | None = None,
    trade: Seen | None = None,
    stale_s: float = STALE_S,
) -> Quote:
    """Return what may be used of the latest of one market. A trade is never stale while its feed is heard."""
    missing = {}
    for channel, seen, limit_s in ((ORDERBOOK, book, stale_s), (TICKER, ticker, stale_s), (TRADES, trade, None)):
        if seen is not None and (why := seen.gone or ("" if limit_s is None else stale(seen.age_s, limit_s))):
            missing[channel] = why
    book = None if ORDERBOOK in missing else book
    ticker = None if TICKER in missing else ticker
    trade = None if TRADES in missing else trade
    paid = [one for one in (trade, ticker) if one is not None and one.last is not None]
    newest = max(paid, key=lambda one: one.received_us or 0, default=None)
    top = book or ticker or trade
    named = tuple(f"{channel}: {why}" for channel, why in missing.items())
    if top is None:
        return Quote(exchange, market, unfit="; ".join(named) or NEVER)
    return Quote(
        exchange,
        market,
        last=None if newest is None else newest.last,
        bid=top.bid,
        ask=top.ask,
        bid_size=top.bid_size,
        ask_size=top.ask_size,
        received_us=top.received_us,
        venue_us=top.venue_us,
        age_s=top.age_s,
        missing=named,
    )


def _seen(found: LiveBook | LiveTicker | LiveTrade | None) -> Seen | None:
    if found is None:
        return None
    seen = Seen(received_us=found.received_us, venue_us=found.venue_us, age_s=found.age_s, gone=found.gone)
    if isinstance(found, LiveTrade):
        return replace(seen, last=found.price)
    if isinstance(found, LiveTicker):
        return replace(seen, last=found.last, bid=found.bid, ask=found.ask)
    (bid, bid_size), (ask, ask_size) = found.bid or _NO_LEVEL, found.ask or _NO_LEVEL
    return replace(seen, bid=bid, ask=ask, bid_size=bid_size, ask_size=ask_size)


def compare(market: str, quotes: Iterable[Quote], rates: Iterable[Rate] = ()) -> Comparison:
    """Return the quotes that can be compared with *market*, in its currency, and why the others can't."""
    known = tuple(rates)
    venues, left_out = [], []
    for one in sorted(quotes, key=lambda one: (one.exchange, one.market)):
        rate, why = rate_between(one.market, market, known)
        if why or one.unfit:
            left_out.append(LeftOut(one.exchange, one.market, one.unfit or why))
            continue
        left_out += [LeftOut(one.exchange, one.market, why) for why in one.missing]
        venues.append(one if rate is None else one.converted(rate))
    return Comparison(market, tuple(venues), tuple(left_out))


def merge(
    market: str, books: Iterable[LiveBook], rates: Iterable[Rate] = (), *, stale_s: float = STALE_S, depth: int = DEPTH
) -> MergedBook:
    """Return books as one, in the currency of *market*, *depth* levels a side, and why the others take no part.

    Sizes that count contracts of so much of the symbol are given in the symbol. Of contracts of so much currency the
    amount in the symbol depends on the price: they are joined among themselves only.
    """
    known = tuple(rates)
    fit: list[tuple[LiveBook, Rate | None, Decimal, str]] = []
    left_out = []
    for book in sorted(books, key=lambda book: book.feed):
        exchange, name, _ = book.feed
        rate, why = rate_between(name, market, known)
        why = book.gone or stale(book.age_s, stale_s) or why
        if why:
            left_out.append(LeftOut(exchange, name, why))
        else:
            fit.append((book, rate, *_counted(book)))
    symbol = market.partition("-")[0]
    counted = [what for *_, what in fit]
    counts_in = symbol if symbol in counted or not counted else counted[0]
    left_out += [
        LeftOut(book.feed.exchange, book.feed.market, f"sizes count {what}, not {counts_in}")
        for book, _, _, what in fit
        if what != counts_in
    ]
    joined = [(book, rate, amount) for book, rate, amount, what in fit if what == counts_in]
    bids = [(book, rate, amount, book.bids[:depth]) for book, rate, amount in joined]
    asks = [(book, rate, amount, book.asks[:depth]) for book, rate, amount in joined]
    return MergedBook(
        market,
        counts_in,
        _joined(bids, highest_first=True)[:depth],
        _joined(asks, highest_first=False)[:depth],
        tuple(book.feed.exchange for book, _, _ in joined),
        tuple(dict.fromkeys(rate for _, rate, _ in joined if rate is not None)),
        tuple(left_out),
    )


def _joined(
    sides: Iterable[tuple[LiveBook, Rate | None, Decimal, Sequence[Level]]], *, highest_first: bool
) -> tuple[MergedLevel, ...]:
    parts: dict[Decimal, list[Part]] = {}
    for book, rate, amount, levels in sides:
        for price, size in levels:
            joint = price if rate is None else _EXACT.multiply(price, rate.rate)
            part = Part(book.feed.exchange, book.feed.market, price, _EXACT.multiply(size, amount))
            parts.setdefault(joint, []).append(part)
    merged = []
    for price in sorted(parts, reverse=highest_first):
        size = Decimal(0)
        for part in parts[price]:
            size = _EXACT.add(size, part.size)
        merged.append(MergedLevel(price, size, tuple(parts[price])))
    return tuple(merged)


def rate_between(market: str, wanted: str, rates: Iterable[Rate]) -> tuple[Rate | None, str]:
    """Return what brings prices of a market into the currency of another, or why they can't be compared.

    Both are None and empty where the currencies are the same.
    """
    if thing(market) != thing(wanted):
        return None, f"not the same thing as {wanted}"
    base, currency = (one.partition(":")[0].partition("-")[2] for one in (market, wanted))
    if base == currency:
        return None, ""
    for rate in rates:
        if (rate.base, rate.quote) == (base, currency):
            return rate, ""
    return None, f"priced in {base}, and no rate to {currency} is configured"


def _counted(book: LiveBook) -> tuple[Decimal, str]:
    # How much of what one of its sizes is: `0.01 BTC`.
    if book.unit is None:
        return Decimal(1), book.feed.market.partition("-")[0]
    amount, _, what = book.unit.partition(" ")
    return Decimal(amount), what
