"""How prices across exchanges are told: as JSON by the daemon, as tables by `status`."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from collector.aggregate import (
    DEPTH,
    STALE_S,
    Comparison,
    MergedBook,
    Prices,
    Quote,
    Rate,
    Seen,
    compare,
    quote,
    rate_between,
    thing,
)
from collector.records import ORDERBOOK, TICKER, TRADES
from collector.times import show_duration, show_time

MARKETS_MAX = 5  # that are compared under the table of feeds
DEPTH_MAX = 1000


# --- as JSON ---------------------------------------------------------------------------------------------------------


def prices_json(prices: Prices, market: str, depth: int = DEPTH) -> dict[str, Any]:
    """Return the comparison of a market and its merged book, as `/prices.json` shows them.

    Prices and sizes are text, times microseconds since 1970 UTC. A level is its price, its size, and who has it.
    """
    book = prices.merged(market, depth=max(1, min(depth, DEPTH_MAX)))
    return {**_comparison_json(prices.compare(market)), "book": _book_json(book)}


def _comparison_json(found: Comparison) -> dict[str, Any]:
    return {
        "market": found.market,
        "best_bid": _who(found.best_bid),
        "best_ask": _who(found.best_ask),
        "spread": _text(found.spread),
        "venues": [
            {
                "exchange": one.exchange,
                "market": one.market,
                "last": _text(one.last),
                "bid": _text(one.bid),
                "bid_size": _text(one.bid_size),
                "ask": _text(one.ask),
                "ask_size": _text(one.ask_size),
                "spread": _text(one.spread),
                "received_us": one.received_us,
                "venue_us": one.venue_us,
                "age_s": one.age_s,
            }
            for one in found.venues
        ],
        "rates": [str(rate) for rate in found.rates],
        "left_out": [one._asdict() for one in found.left_out],
    }


def _book_json(found: MergedBook) -> dict[str, Any]:
    bids, asks = (
        [[f"{price:f}", f"{size:f}", [part.exchange for part in parts]] for price, size, parts in side]
        for side in (found.bids, found.asks)
    )
    return {
        "counts_in": found.counts_in,
        "bids": bids,
        "asks": asks,
        "venues": list(found.venues),
        "rates": [str(rate) for rate in found.rates],
        "left_out": [one._asdict() for one in found.left_out],
    }


def _who(best: Quote | None) -> list[str] | None:
    return None if best is None else [best.exchange, best.market]


def _text(number: Decimal | None) -> str | None:
    return None if number is None else f"{number:f}"


# --- from `/status.json` ---------------------------------------------------------------------------------------------


def comparisons(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparison of every market that two exchanges have at least, from what `/status.json` says."""
    live = state.get("live", {})
    rates = [Rate(one["base"], one["quote"], Decimal(one["rate"]), one["source"]) for one in live.get("rates", ())]
    things: dict[str, list[Quote]] = {}
    for one in _quotes(state["feeds"], live.get("stale_s", STALE_S)):
        things.setdefault(thing(one.market), []).append(one)
    found = []
    for quotes in things.values():
        for market in dict.fromkeys(one.market for one in quotes):
            joined = [one for one in quotes if not rate_between(one.market, market, rates)[1]]
            if len(joined) > 1:
                found.append(_comparison_json(compare(market, joined, rates)))
    return found


def _quotes(rows: Iterable[Mapping[str, Any]], stale_s: float) -> Iterable[Quote]:
    feeds: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        channels = feeds.setdefault((row["exchange"], row["market"]), {})
        before = channels.get(row["channel"])
        if before is None or (before["state"] != "live" or row["state"] == "live"):  # two, while one takes over
            channels[row["channel"]] = row
    for (exchange, market), channels in feeds.items():
        seen = {
            channel: _seen(row)
            for channel, row in channels.items()
            if channel in (ORDERBOOK, TICKER) or row.get("last") is not None
        }
        book, ticker, trade = (seen.get(channel) for channel in (ORDERBOOK, TICKER, TRADES))
        if book or ticker or trade:
            yield quote(exchange, market, book=book, ticker=ticker, trade=trade, stale_s=stale_s)


def _seen(row: Mapping[str, Any]) -> Seen:
    last, bid, ask = (None if row.get(name) is None else Decimal(row[name]) for name in ("last", "bid", "ask"))
    gone = "" if row["state"] == "live" else row["detail"] or row["state"]
    return Seen(last=last, bid=bid, ask=ask, age_s=row["age_s"], gone=gone)


# --- as tables -------------------------------------------------------------------------------------------------------


def prices_tables(found: list[dict[str, Any]], markets_max: int = MARKETS_MAX) -> RenderableType:
    """Return a table for each comparison: a line an exchange, the best prices marked, and below it who has them."""
    shown: list[RenderableType] = []
    for one in found[:markets_max]:
        table = _table(one["market"], right=("last", "bid", "ask", "spread", "heard"))
        for venue in one["venues"]:
            who = [venue["exchange"], venue["market"]]
            table.add_row(
                _name(who, one["market"]),
                venue["last"] or "-",
                Text(venue["bid"] or "-", "bold green" if who == one["best_bid"] else ""),
                Text(venue["ask"] or "-", "bold green" if who == one["best_ask"] else ""),
                venue["spread"] or "-",
                _heard(venue),
            )
        shown.append(table)
        if one["spread"] is not None:
            bid, ask = (_name(one[side], one["market"]) for side in ("best_bid", "best_ask"))
            shown.append(Text(f"best bid at {bid}, best ask at {ask}, spread {one['spread']}"))
        shown += [*_notes(one), Text()]
    if len(found) > markets_max:
        shown.append(Text(f"and {len(found) - markets_max} more markets; `status --market MARKET` shows one"))
    return Group(*shown)


def book_table(one: Mapping[str, Any]) -> RenderableType:
    """Return a merged book as a table, asks above bids, the best prices in the middle."""
    book = one["book"]
    table = _table("", right=("price", "size"))
    table.add_column("at")
    for side, colour, levels in (("ask", "red", reversed(book["asks"])), ("bid", "green", book["bids"])):
        for price, size, who in levels:
            table.add_row(Text(side, colour), price, size, " ".join(dict.fromkeys(who)))
    title = f"{one['market']}, {len(book['venues'])} books as one, sizes in {book['counts_in']}"
    return Group(Text(title), table, *_notes(book))


def _table(name: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column(name, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _notes(one: Mapping[str, Any]) -> list[Text]:
    notes = [f"at {rate}" for rate in one["rates"]]
    notes += [f"without {each['exchange']} {each['market']}: {each['why']}" for each in one["left_out"]]
    return [Text(note, "dim") for note in notes]


def _name(who: list[str], market: str) -> str:
    return who[0] if who[1] == market else " ".join(who)


def _heard(venue: Mapping[str, Any]) -> str:
    if venue["received_us"] is not None:
        return show_time(venue["received_us"])[11:23]
    return "-" if venue["age_s"] is None else f"{show_duration(venue['age_s'])} ago"
