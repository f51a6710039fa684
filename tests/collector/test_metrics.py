import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from collector.metrics import Metrics
from collector.records import Feed

BTC = Feed("upbit", "BTC-KRW")
DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), version="1.2.3", started_s=1_700_000_000.5)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"collector_{name}", labels)


def described(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to type and labels of every metric the object holds."""
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            suffix = "_total" if family.type == "counter" else ""
            found[family.name + suffix] = (family.type, tuple(metric._labelnames))
    return found


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = re.findall(r"^\| `(collector_\w+)` \| (\w+) \| ([\w, ]*)\| \S", DOCUMENT, re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_and_every_documented_metric_exists(metrics: Metrics) -> None:
    assert documented() == described(metrics)


def test_every_registered_metric_is_an_attribute(metrics: Metrics) -> None:
    registered = {family.name for family in metrics.registry.collect() if family.name.startswith("collector_")}

    assert registered == {name.removesuffix("_total") for name in described(metrics)}


def test_alert_rules_ask_for_metrics_and_labels_that_exist(metrics: Metrics) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    rules = yaml.safe_load(text)["groups"][0]["rules"]
    known = described(metrics)

    for rule in rules:
        named = re.findall(r"collector_\w+", rule["expr"])
        assert named, rule
        for name in named:
            name = re.sub(r"_(bucket|count|sum)$", "", name)
            assert name in known, rule
            for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
                assert label in known[name][1], rule


def test_histograms_are_never_per_market(metrics: Metrics) -> None:
    for name, (kind, labels) in described(metrics).items():
        assert kind != "histogram" or "market" not in labels, name


def test_names_and_units() -> None:
    for name, (kind, _) in documented().items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert "milli" not in name
        assert "_ms" not in name


def test_two_collectors_in_one_process_share_nothing(metrics: Metrics) -> None:
    other = Metrics(CollectorRegistry(), version="1", started_s=0)

    metrics.count_frames("upbit", received=3)

    assert value(metrics, "frames_total", exchange="upbit", outcome="received") == 3
    assert value(other, "frames_total", exchange="upbit", outcome="received") is None


def test_constants(metrics: Metrics) -> None:
    assert value(metrics, "build_info", version="1.2.3") == 1
    assert value(metrics, "start_time_seconds") == 1_700_000_000.5


def test_expected_feeds_stand_at_nought_and_keep_what_they_have(metrics: Metrics) -> None:
    metrics.expect(BTC)
    metrics.count_frames("upbit", received=2)
    metrics.count_records(BTC, stored=5, duplicate=0)
    metrics.expect(BTC)

    assert value(metrics, "frames_total", exchange="upbit", outcome="received") == 2
    assert value(metrics, "frames_total", exchange="upbit", outcome="dropped") == 0
    assert value(metrics, "records_total", **BTC._asdict(), outcome="stored") == 5
    assert value(metrics, "records_total", **BTC._asdict(), outcome="dropped") == 0
    assert value(metrics, "connected", exchange="upbit") == 0
    assert value(metrics, "epochs_total", exchange="upbit", reason="stale") == 0


def test_unknown_outcomes_are_refused_before_anything_is_counted(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match=r"one of received, stored, .*, was lost"):
        metrics.count_frames("upbit", received=1, lost=1)
    with pytest.raises(ValueError, match=r"one of received, stored, .*, was lost"):
        metrics.count_records(BTC, received=1, lost=1)

    assert b"upbit" not in generate_latest(metrics.registry)


def test_last_data_of_a_feed_can_be_forgotten(metrics: Metrics) -> None:
    metrics.heard(BTC, 1_700_000_000_250_000)
    assert value(metrics, "last_data_timestamp_seconds", **BTC._asdict()) == 1_700_000_000.25

    metrics.forget(BTC)
    metrics.forget(BTC)

    assert value(metrics, "last_data_timestamp_seconds", **BTC._asdict()) is None


def test_uncovered_time_never_goes_back(metrics: Metrics) -> None:
    metrics.uncovered(BTC, "stale", 1.5)
    metrics.uncovered(BTC, "stale", -3.0)

    assert value(metrics, "uncovered_seconds_total", **BTC._asdict(), reason="stale") == 1.5


def test_a_commit_is_seen_in_three_histograms(metrics: Metrics) -> None:
    metrics.committed(records=40, duration_s=0.02, waited_s={"upbit": 0.2, "gopax": 61.0})

    assert value(metrics, "commit_records_sum") == 40
    assert value(metrics, "commit_duration_seconds_bucket", le="0.025") == 1
    assert value(metrics, "commit_duration_seconds_bucket", le="0.01") == 0
    assert value(metrics, "receive_to_commit_seconds_bucket", exchange="upbit", le="0.25") == 1
    assert value(metrics, "receive_to_commit_seconds_bucket", exchange="gopax", le="60.0") == 0


def test_polls(metrics: Metrics) -> None:
    metrics.polled("bithumb", duration_s=0.03)
    assert value(metrics, "poll_missed_total", exchange="bithumb") is None

    metrics.polled("bithumb", duration_s=0.35, missed=3)

    assert value(metrics, "poll_missed_total", exchange="bithumb") == 3
    assert value(metrics, "poll_duration_seconds_count", exchange="bithumb") == 2


def test_the_intake_is_read_at_each_look(metrics: Metrics) -> None:
    waiting: list[bytes] = []
    metrics.watch_intake(records=lambda: len(waiting), size=lambda: sum(map(len, waiting)), limit=64)
    assert value(metrics, "intake_records") == 0

    waiting.append(b"12345")

    assert value(metrics, "intake_records") == 1
    assert value(metrics, "intake_bytes") == 5
    assert value(metrics, "intake_bytes_limit") == 64


def test_states_without_workers_stand_at_nought(metrics: Metrics) -> None:
    metrics.show_workers({"starting": 5})
    metrics.show_workers({"live": 4, "waiting": 1})

    assert value(metrics, "workers", state="starting") == 0
    assert value(metrics, "workers", state="live") == 4


def test_a_lag_below_nought_shows_in_the_first_bucket(metrics: Metrics) -> None:
    metrics.venue_lag.labels("coinone").observe(-0.2)
    metrics.venue_lag.labels("coinone").observe(0.2)

    assert value(metrics, "venue_lag_seconds_bucket", exchange="coinone", le="0.0") == 1


def test_there_are_no_created_series(metrics: Metrics) -> None:
    metrics.expect(BTC)

    assert b"_created" not in generate_latest(metrics.registry)
