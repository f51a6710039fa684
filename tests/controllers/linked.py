"""What controllers stored, laid beside what the simulator sent on each subscription, number by number."""

from itertools import groupby
from typing import Any

from collector.records import CANDLES, ORDERBOOK, TICKER, TRADES, CandleRow, TickerRow, TradeRow
from tests.controllers.live import Live
from tests.controllers.reference import Both, Reference
from tests.fakes import Epoch, numbers


def epochs_of(stage: Live, market: str, channel: str = ORDERBOOK) -> list[Epoch]:
    """Return the epochs of one feed, in order."""
    return [epoch for epoch in stage.stored.of(market) if epoch.opened.channel == channel]


def subscriptions_of(stage: Live, market: str, channel: str = ORDERBOOK) -> list[str]:
    """Return what was subscribed of one feed over sockets, in order."""
    sockets = {line["connection"] for line in stage.lines(kind="open", transport="websocket")}
    made = stage.lines(kind="subscribe", market=market, channel=channel)
    return [line["subscription"] for line in made if line["connection"] in sockets]


def check_books(stage: Live, market: str) -> None:
    """Hold every row of a linked book to its subscription: a complete book and, by number, what followed it."""
    epochs, made = epochs_of(stage, market), subscriptions_of(stage, market)
    assert len(epochs) == len(made)
    for epoch, name in zip(epochs, made, strict=True):
        assert epoch.verdict == "linked"
        states = _states(stage.lines(kind="message", subscription=name, fate="sent"))
        assert epoch.rows
        for row, (bids, asks) in zip(epoch.rows, epoch.books, strict=True):
            assert row.sequence is not None
            assert (numbers(bids), numbers(asks)) == states[row.sequence]
        assert epoch.mark is not None
        assert epoch.frames >= len(epoch.rows)


def _states(messages: list[dict[str, Any]]) -> dict[int, Both]:
    truth, last = Reference(), -1
    states: dict[int, Both] = {}
    for message in messages:
        if message["what"] == "book":
            truth.replace(message["bids"], message["asks"])
        elif message["sequence"] > last:
            truth.change(message["bids"], message["asks"])
        else:
            continue  # a repeat
        last = message["sequence"]
        states[last] = truth.both()
    return states


def check_stream(stage: Live, market: str, channel: str) -> int:
    """Hold trades, tickers or candles to what was sent, in order and without a hole; return how many rows there are."""
    (epoch,) = epochs_of(stage, market, channel)
    (name,) = subscriptions_of(stage, market, channel)
    sent = [row for line in stage.lines(kind="message", subscription=name, fate="sent") for row in line["rows"]]
    told = [key for key, _ in groupby(_told(channel, row) for row in sent)]
    found = [_found(row) for row in epoch.stream if not (isinstance(row, CandleRow) and row.closed)]
    assert found == told[: len(found)]
    return len(found)


def _told(channel: str, row: dict[str, Any]) -> tuple[Any, ...]:
    names = {
        TRADES: ("id", "side", "price", "volume", "venue_us"),
        TICKER: ("last", "bid", "ask", "volume"),
        CANDLES: ("open_us", "open", "high", "low", "close", "volume"),
    }
    return tuple(row[name] for name in names[channel])


def _found(row: Any) -> tuple[Any, ...]:
    match row:
        case TradeRow():
            return row.trade_id, row.side, row.price, row.volume, row.venue_us
        case TickerRow():
            return row.last, row.bid, row.ask, row.volume
        case _:
            return row.open_us, row.open, row.high, row.low, row.close, row.volume
