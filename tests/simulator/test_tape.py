from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from simulator.markets import Character, Market
from simulator.tape import MINUTE_US, Candle, News, Tape, Trade


def told(steps: int, seed: int = 1, name: str = "BTC-USDT", moves: int = 3) -> tuple[Market, Tape, list[Any]]:
    """Run a market; return what each step was and what it meant."""
    market = Market("okx", name, seed, Character(changes_max=moves))
    tape = Tape(market)
    found = []
    for _ in range(steps):
        before = market.book
        step = market.step()
        found.append((before, step, tape.hear(step)))
    return market, tape, found


def trades_of(found: list[Any]) -> list[Trade]:
    return [trade for _, _, news in found for trade in news.trades]


def test_trades_are_what_takers_took_from_the_book_before() -> None:
    _, _, found = told(2000, moves=1)
    partly = wholly = 0
    for before, step, news in found:
        for number, trade in enumerate(news.trades):
            sides = (before.asks, step.book.asks) if trade.side == "buy" else (before.bids, step.book.bids)
            stood, stands = (Decimal(dict(side).get(trade.price, "0")) for side in sides)
            assert sides[0][number][0] == trade.price  # best first
            assert 0 < Decimal(trade.volume) == stood - stands
            assert trade.time_us == step.book.time_us
            wholly, partly = wholly + (not stands), partly + bool(stands)
    assert wholly > 40 and partly > 20
    taken = [trade.side for trade in trades_of(found)]
    assert {"buy", "sell"} == set(taken)


def test_ids_rise_and_the_same_seed_gives_the_same_trades() -> None:
    def run(seed: int) -> list[tuple[Any, ...]]:
        _, _, found = told(300, seed)
        return [(trade.id, trade.side, trade.price, trade.volume) for trade in trades_of(found)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert all(b[0] == a[0] + 1 for a, b in pairwise(run(3)))


def test_hearing_trades_changes_no_book() -> None:
    _, _, found = told(200)
    alone = Market("okx", "BTC-USDT", 1, Character())
    for _, step, _ in found:
        book = alone.step().book
        assert (book.bids, book.asks) == (step.book.bids, step.book.asks)


def test_the_ticker_follows_from_book_and_trades() -> None:
    _, tape, found = told(300)
    start = sum((Decimal(trade.volume) for trade in told(0)[1].trades), Decimal(0))
    amount, last = start, None
    for _, step, news in found:
        for trade in news.trades:
            amount, last = amount + Decimal(trade.volume), trade.price
        if news.ticker is not None:
            assert (news.ticker.bid, news.ticker.ask) == (step.book.bids[0][0], step.book.asks[0][0])
            assert Decimal(str(news.ticker.volume)) == amount
            assert last is None or news.ticker.last == last
    assert tape.ticker.last == last


def test_candles_are_made_of_the_trades_of_their_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_790_000_000_000_000]

    def tick() -> int:
        now[0] += 700_000
        return now[0]

    monkeypatch.setattr("simulator.markets.now_us", tick)
    monkeypatch.setattr("simulator.tape.now_us", tick)
    _, tape, found = told(600)
    closed: list[Candle] = [candle for _, _, news in found for candle in news.candles if candle.closed]
    assert len(closed) >= 6
    assert [candle.open_us for candle in closed] == [closed[0].open_us + i * MINUTE_US for i in range(len(closed))]
    trades = trades_of(found)
    for candle in closed[1:]:
        mine = [trade for trade in trades if candle.open_us <= trade.time_us < candle.open_us + MINUTE_US]
        assert candle.trades == len(mine)
        assert Decimal(candle.volume) == sum(Decimal(trade.volume) for trade in mine)
        assert Decimal(candle.turnover) == sum(Decimal(trade.volume) * Decimal(trade.price) for trade in mine)
        if mine:
            prices = [Decimal(trade.price) for trade in mine]
            assert (candle.open, candle.close) == (mine[0].price, mine[-1].price)
            assert (Decimal(candle.high), Decimal(candle.low)) == (max(prices), min(prices))
        else:
            assert candle.open == candle.high == candle.low == candle.close
    assert list(tape.closed)[-len(closed) :] == closed
    assert tape.candles(3)[-1] == tape.candle


def test_a_step_without_trades_within_a_minute_says_nothing_of_candles(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("simulator.markets.now_us", "simulator.tape.now_us"):
        monkeypatch.setattr(path, lambda: 1_790_000_000_000_000)
    _, _, found = told(300)
    silent: list[News] = [news for _, _, news in found if not news.trades]
    assert silent and not any(news.candles for news in silent)
    assert all(news.candles for _, _, news in found if news.trades)


def test_contracts_have_markets_too() -> None:
    market, _, found = told(100, name="BTC-USDT:USDT-261225")
    assert (market.symbol, market.currency) == ("BTC", "USDT")
    assert trades_of(found)
