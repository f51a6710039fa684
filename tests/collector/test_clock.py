"""An exchange's clock, estimated; and what a step of our own leaves alone."""

import math
from datetime import date
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from collector.clock import OFFSET_SAMPLES, OFFSET_SAMPLES_MIN, ClockOffset
from collector.logfile import LogFile
from collector.metrics import Metrics
from collector.worker import Backoff
from tests.fakes import FakeClock


def measured(*lags_s: float) -> ClockOffset:
    offset = ClockOffset()
    for lag_s in lags_s:
        offset.add(round(lag_s * 1e6))
    return offset


def test_too_little_is_no_estimate() -> None:
    assert math.isnan(ClockOffset().seconds())
    assert math.isnan(measured(*[0.1] * (OFFSET_SAMPLES_MIN - 1)).seconds())
    assert measured(*[0.1] * OFFSET_SAMPLES_MIN).seconds() == 0.1


def test_slow_messages_do_not_count_and_neither_do_a_few_that_are_wrong() -> None:
    """The mutation that must make this fail: the mean, or the least, in place of the quantile."""
    delays = [0.05 + number / 1000 for number in range(100)] * 2
    odd = [-3600.0] * 4 + [86_400.0] * 40
    assert 0.05 <= measured(*delays, *odd).seconds() <= 0.07


def test_it_follows_a_clock_that_drifts() -> None:
    """The mutation that must make this fail: keep every sample."""
    offset = measured(*[0.05] * 10_000)
    for _ in range(OFFSET_SAMPLES):
        offset.add(2_050_000)
    assert offset.seconds() == 2.05


def test_nothing_is_left_after_the_clock_was_set() -> None:
    offset = measured(*[0.05] * 100)
    offset.clear()
    assert math.isnan(offset.seconds())


def test_whatever_is_added_the_estimate_is_one_of_the_samples() -> None:
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given
    from hypothesis import strategies as st

    @given(st.lists(st.integers(-(10**15), 10**15), min_size=OFFSET_SAMPLES_MIN, max_size=700))
    def check(lags_us: list[int]) -> None:
        offset = ClockOffset()
        for lag_us in lags_us:
            offset.add(lag_us)
        newest = sorted(lags_us[-OFFSET_SAMPLES:])
        assert min(newest) <= round(offset.seconds() * 1e6) <= newest[len(newest) // 10]

    check()


# --- as a metric ------------------------------------------------------------------------------------------------------


def shown(metrics: Metrics, exchange: str, source: str = "data") -> float | None:
    labels = {"exchange": exchange, "source": source}
    return metrics.registry.get_sample_value("collector_clock_offset_seconds", labels)


def test_each_exchange_and_each_source_has_its_own() -> None:
    metrics = Metrics(CollectorRegistry(), version="1", started_s=0)
    assert shown(metrics, "upbit") is None, "no series before anything is known"
    for _ in range(OFFSET_SAMPLES_MIN):
        metrics.venue_time("upbit", "data", 100_000)
        metrics.venue_time("upbit", "http", 600_000)
        metrics.venue_time("korbit", "data", -2_000_000)
    assert (shown(metrics, "upbit"), shown(metrics, "upbit", "http"), shown(metrics, "korbit")) == (0.1, 0.6, -2)

    metrics.clock_was_set("upbit")
    assert math.isnan(shown(metrics, "upbit") or 0)
    assert math.isnan(shown(metrics, "upbit", "http") or 0)
    assert shown(metrics, "korbit") == -2
    assert b'clock_offset_seconds{exchange="upbit",source="data"} NaN' in generate_latest(metrics.registry)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_makes_no_delay_shorter_or_longer(step_s: int) -> None:
    """The mutation that must make this fail: the wall clock in `Backoff`."""
    clock = FakeClock()
    backoff = Backoff(clock, random_=lambda: 1.0)
    delays = []
    for _ in range(4):
        backoff.began()
        clock.step_wall(step_s)
        clock.advance(5)
        delays.append(backoff.next_s())
    assert delays == [1, 2, 4, 8]


def test_an_hour_forward_and_back_at_midnight_closes_one_log_file(tmp_path: Path) -> None:
    """The mutation that must make this fail: a new file for every day that differs from the last one."""
    file = LogFile(tmp_path, "collector", 1 << 20, 5, lambda line: pytest.fail(line))
    for number in range(20):
        file.write(b"%d\n" % number, date(2026, 11, 21) if number % 2 else date(2026, 11, 22))
    file.close()
    assert len(list(tmp_path.iterdir())) <= 2
    assert sum(len(path.read_bytes().splitlines()) for path in tmp_path.iterdir()) == 20
