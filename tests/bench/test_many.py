"""Many markets in a small dose: every message is accounted for. How fast that was is nobody's promise here."""

import pytest

from bench import many
from bench.exchanges import rates
from bench.many import Figures, check, quantiles


def test_every_message_of_two_hundred_markets_is_accounted_for() -> None:
    rows = {row.name: row.value for row in many.run(seconds=1, burst_s=1, settle_s=0.5, parts=many.scaled(0.175))}
    assert rows["markets"] >= 200
    assert rows["messages sent"] > 400
    assert rows["of them kept"] == rows["messages sent"]  # and of every market, or it raises
    assert rows["dropped"] == rows["rejected"] == 0
    assert {"usual: receipt to commit, 99 of 100", "burst: receipt to commit, 99 of 100"} <= rows.keys()


def test_all_korean_markets_are_meant() -> None:
    assert sum(part.markets for part in many.PARTS.values()) == 1150
    assert sum(part.per_second for part in many.PARTS.values()) >= 2300
    assert sum(-(-part.markets // part.per_connection) for part in many.PARTS.values()) == 25
    assert many.PARTS["coinone"].markets / many.PARTS["coinone"].per_connection <= 20
    assert many.PARTS["gopax"].per_connection <= 50


@pytest.mark.parametrize(("markets", "per_second"), [(384, 1036.0), (291, 229.0), (10, 300.0), (1, 0.5)])
def test_rates_add_up_and_fall(markets: int, per_second: float) -> None:
    found = list(rates(markets, per_second).values())
    assert len(found) == markets
    assert sum(found) == pytest.approx(per_second)
    assert found == sorted(found, reverse=True)
    mean = per_second / markets
    assert found[0] <= max(10.5, mean * 1.01)
    assert found[-1] < mean or markets == 1 or mean > 10


def figures(stored: int, duplicate: int) -> Figures:
    kept = {"stored": stored, "duplicate": duplicate}
    name = "collector_frames_total"
    return {(name, frozenset({("exchange", "upbit"), ("outcome", outcome)})): n for outcome, n in kept.items()}


def test_what_was_kept_and_is_in_the_ledger_is_accounted_for() -> None:
    check({"upbit": {"A-KRW": 3, "B-KRW": 2}}, figures(4, 1), {"upbit": {"A-KRW": 3, "B-KRW": 2}})


@pytest.mark.parametrize(
    ("kept", "found", "problem"),
    [
        (figures(3, 1), {"A-KRW": 3, "B-KRW": 2}, "5 messages were sent, 4 were kept"),
        (figures(4, 1), {"A-KRW": 3, "B-KRW": 1}, "B-KRW 1 of 2"),
        (figures(4, 1), {"A-KRW": 4, "B-KRW": 1}, "A-KRW 4 of 3"),
        (figures(4, 1), {"A-KRW": 3}, "B-KRW 0 of 2"),
    ],
)
def test_one_message_too_few_or_too_many_ends_the_benchmark(kept: Figures, found: dict[str, int], problem: str) -> None:
    with pytest.raises(RuntimeError, match=problem):
        check({"upbit": {"A-KRW": 3, "B-KRW": 2}}, kept, {"upbit": found})


def test_a_quantile_is_of_what_came_in_between_of_all_exchanges() -> None:
    def read(*counts: tuple[str, str, float]) -> Figures:
        return {
            ("collector_waits_bucket", frozenset({("exchange", exchange), ("le", le)})): count
            for exchange, le, count in counts
        }

    before = read(("upbit", "0.5", 100), ("upbit", "1.0", 100), ("upbit", "+Inf", 100))
    after = read(
        ("upbit", "0.5", 150), ("upbit", "1.0", 198), ("upbit", "+Inf", 200),
        ("gopax", "0.5", 0), ("gopax", "1.0", 0), ("gopax", "+Inf", 0),
    )  # fmt: skip
    assert quantiles(before, after, "waits", (0.25, 0.5, 0.99)) == [0.25, 0.5, 1.0]
