"""Frames a second and bytes a day, from samples at times set by hand."""

import pytest

from collector.rates import Growth, Rates
from tests.fakes import FakeClock

MINUTE_S, DAY_S = 60, 86_400


def row(frames: int, market: str = "BTC-KRW") -> dict[str, object]:
    return {"exchange": "upbit", "market": market, "channel": "orderbook", "transport": "websocket", "frames": frames}


def test_frames_a_second_over_the_last_seconds() -> None:
    clock = FakeClock()
    rates = Rates(clock)
    assert rates.of([row(7)]) == [0.0]  # nothing is known yet
    rates.sample([row(100)])
    clock.advance(5)
    assert rates.of([row(150)]) == [10.0]
    rates.sample([row(150)])
    clock.advance(8)
    rates.sample([row(150)])  # the first sample is too old now
    assert rates.of([row(150)]) == [0.0]


def test_a_feed_that_started_anew_has_no_negative_rate() -> None:
    clock = FakeClock()
    rates = Rates(clock)
    rates.sample([row(100)])
    clock.advance(1)
    assert rates.of([row(3), row(4, "ETH-KRW")]) == [0.0, 4.0]


def test_growth_is_told_once_a_minute_is_known() -> None:
    clock = FakeClock()
    growth = Growth(clock)
    assert growth.due()
    assert growth.per_day() is None
    growth.sample(1_000)
    assert not growth.due()
    clock.advance(MINUTE_S - 1)
    growth.sample(2_000)
    assert growth.per_day() is None
    clock.advance(1)
    growth.sample(1_000 + MINUTE_S * 10)
    assert growth.per_day() == pytest.approx(10 * DAY_S)


def test_growth_forgets_what_is_older_than_six_hours_and_is_never_negative() -> None:
    clock = FakeClock()
    growth = Growth(clock)
    growth.sample(0)
    clock.advance(5 * 3600)
    growth.sample(1_000_000)
    clock.advance(2 * 3600)
    growth.sample(1_000_000)
    assert growth.per_day() == 0  # the rise is forgotten
    clock.advance(60)
    growth.sample(10)  # retention gave space back
    assert growth.per_day() == 0
