"""Every figure on `/metrics`, in one place.

The registry is handed in, so two collectors in one process (as in tests) never share a figure. Whoever does the work
counts once a batch, not once a record; labels are bounded sets and never hold an id, a URL or the text of an error.
Histograms are per exchange: one per market would be a hundred series each.

The surprise: `*_created` series are switched off for the whole process, the library knows no narrower switch.
"""

import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from collector.clock import ClockOffset
from collector.records import REASONS, Feed

# Whatever is received ends in exactly one of the others, or is still in the intake or in the spool.
OUTCOMES = ("received", "stored", "duplicate", "ignored", "rejected", "dropped")

_COMMIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COMMIT_RECORDS = (1, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)
_TO_COMMIT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# The first bucket holds what a clock of ours or theirs that is wrong makes arrive before it was sent.
_VENUE_LAG_S = (0.0, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_POLL_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_FEED = ("exchange", "market", "channel")


class Metrics:
    """The collector's metrics, registered with *registry* when made; each attribute is one metric.

    `version` is the program's, `started_s` its start as Unix time. docs/metrics.md says what each metric means.
    All methods may be called from any thread.
    """

    def __init__(self, registry: CollectorRegistry, *, version: str, started_s: float) -> None:
        disable_created_metrics()
        ProcessCollector(registry=registry)
        self.registry = registry

        def counter(name: str, meaning: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"collector_{name}", meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"collector_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
            return Histogram(f"collector_{name}", meaning, labels, registry=registry, buckets=buckets)

        exchange = ("exchange",)
        self.frames = counter("frames_total", "Frames, by what became of them", ("exchange", "outcome"))
        self.records = counter("records_total", "Records, by what became of them", (*_FEED, "outcome"))
        self.uncovered_seconds = counter(
            "uncovered_seconds_total", "Time in which a feed was not heard, by reason", (*_FEED, "reason")
        )
        self.last_data_timestamp = gauge(
            "last_data_timestamp_seconds", "Unix time of the newest data frame of a feed", _FEED
        )
        self.connected = gauge("connected", "Open connections", exchange)
        self.connects = counter("connects_total", "Attempts to connect, by how they ended", ("exchange", "outcome"))
        self.rate_limited = counter(
            "rate_limited_total", "Answers of an exchange that asked for fewer requests", exchange
        )
        self.rate_pause = gauge("rate_pause_seconds", "Time for which an exchange is asked for nothing", exchange)
        self.polls_missed = counter("poll_missed_total", "Polls left out because the last one took too long", exchange)
        self.poll_duration = histogram("poll_duration_seconds", "Time from request to answer", _POLL_S, exchange)
        self.venue_lag = histogram(
            "venue_lag_seconds", "Time of receipt minus the exchange's own time", _VENUE_LAG_S, exchange
        )
        self.clock_offset = gauge(
            "clock_offset_seconds",
            "Our clock minus the exchange's, and the shortest way of a message, by where its time was from",
            ("exchange", "source"),
        )
        self._offsets: dict[tuple[str, str], ClockOffset] = {}
        self._offsets_lock = threading.Lock()
        self.venue_time_ahead = counter(
            "venue_time_ahead_total", "Books whose own time lies more than a second after their receipt", exchange
        )
        self.books_flagged = counter("books_flagged_total", "Books stored with a flag", ("exchange", "flag"))
        self.books_broken = counter(
            "books_broken_total", "Books kept from changes that broke and were begun anew", ("exchange", "reason")
        )
        self.epochs = counter("epochs_total", "Epochs that ended, by reason", ("exchange", "reason"))
        self.probes = counter("probes_total", "Comparisons with a fresh book, by outcome", ("exchange", "outcome"))

        self.intake_records = gauge("intake_records", "Records that wait for the writer")
        self.intake_bytes = gauge("intake_bytes", "Memory that those records hold")
        self.intake_bytes_limit = gauge("intake_bytes_limit", "Memory that they may hold")
        self.commit_duration = histogram("commit_duration_seconds", "Time a commit took", _COMMIT_S)
        self.commit_records = histogram("commit_records", "Records in one commit", _COMMIT_RECORDS)
        self.commit_failures = counter("commit_failures_total", "Commits that failed, by reason", ("reason",))
        self.receive_to_commit = histogram(
            "receive_to_commit_seconds", "Longest wait from receipt to commit in one batch", _TO_COMMIT_S, exchange
        )
        self.records_known = counter("records_known_total", "Records written again that the store had already")
        self.spool_batches = gauge("spool_batches", "Batches on disk that wait for the store")
        self.spool_bytes = gauge("spool_bytes", "Disk space that they take")
        self.spool_bytes_limit = gauge("spool_bytes_limit", "Disk space that they may take")
        self.spool_age = gauge("spool_age_seconds", "How long the oldest of them has been waiting")
        self.spool_frames = gauge("spool_frames", "Frames received by this run that wait in the spool", exchange)
        self.spool_recovered = counter(
            "spool_recovered_frames_total", "Frames stored out of the spool that an earlier run had received", exchange
        )
        self.database_bytes = gauge("database_bytes", "Size of the database file")
        self.wal_bytes = gauge("wal_bytes", "Size of the write-ahead log beside it")

        self.live_dropped = counter("live_dropped_total", "Updates that callbacks of the live view were too slow for")
        self.live_errors = counter("live_errors_total", "Times that callbacks of the live view raised")
        self._live_told = (0, 0)

        self.workers = gauge("workers", "Workers, by state", ("state",))
        self._states: frozenset[str] = frozenset()
        self._lines_dropped = 0
        self.restarts = counter("restarts_total", "Workers started again, by reason", ("worker", "reason"))
        self.takeovers = counter(
            "takeovers_total", "Second generations that took over, or failed to", ("exchange", "outcome")
        )
        self.reloads = counter("reloads_total", "Times the configuration was read again, by outcome", ("outcome",))
        for outcome in ("ok", "failed"):
            self.reloads.labels(outcome)
        self.supervisor_failures = counter("supervisor_failures_total", "Unexpected errors of the supervisor itself")
        self.log_lines_dropped = counter("log_lines_dropped_total", "Log lines that could not be written")
        self.build_info = gauge("build_info", "Always 1; the version is in its label", ("version",))
        self.build_info.labels(version).set(1)
        self.start_time = gauge("start_time_seconds", "Unix time at which the collector started")
        self.start_time.set(started_s)

    def expect(self, feed: Feed) -> None:
        """Show *feed* and its exchange with noughts, so that rates and alerts see its first count as well.

        Calling it again changes nothing.
        """
        exchange = feed.exchange
        self.connected.labels(exchange)
        self.rate_limited.labels(exchange)
        self.venue_time_ahead.labels(exchange)
        self.spool_frames.labels(exchange)
        self.spool_recovered.labels(exchange)
        for outcome in OUTCOMES:
            self.frames.labels(exchange, outcome)
            self.records.labels(*feed, outcome)
        for reason in REASONS:
            self.epochs.labels(exchange, reason)

    def forget(self, feed: Feed) -> None:
        """Take back the time of the last data of a *feed* that is no longer configured: its age would only alarm.

        Its counters stay, the sums must close.
        """
        self.last_data_timestamp.remove(*feed)

    def count_frames(self, exchange: str, **outcomes: int) -> None:
        """Add frames by outcome: `count_frames("upbit", received=12, stored=11, duplicate=1)`.

        Raises `ValueError` for an outcome that is not one of `OUTCOMES`.
        """
        _add(self.frames, (exchange,), outcomes)

    def count_records(self, feed: Feed, **outcomes: int) -> None:
        """Add records of *feed* by outcome: `count_records(feed, stored=40)`.

        Raises `ValueError` for an outcome that is not one of `OUTCOMES`.
        """
        _add(self.records, feed, outcomes)

    def heard(self, feed: Feed, received_us: int) -> None:
        """Note when the newest data frame of *feed* was received, in microseconds since 1970 UTC."""
        self.last_data_timestamp.labels(*feed).set(received_us / 1_000_000)

    def venue_time(self, exchange: str, source: str, lag_us: int) -> None:
        """Note a time of receipt minus the exchange's own; *source* is `data` or `http` (the header `Date`)."""
        offset = self._offsets.get((exchange, source))
        if offset is None:
            with self._offsets_lock:
                offset = self._offsets.setdefault((exchange, source), ClockOffset())
            self.clock_offset.labels(exchange, source).set_function(offset.seconds)
        offset.add(lag_us)

    def clock_was_set(self, exchange: str) -> None:
        """Forget what is known of the exchange's clock: it was measured with another one."""
        for (name, _), offset in self._offsets.copy().items():
            if name == exchange:
                offset.clear()

    def uncovered(self, feed: Feed, reason: str, seconds: float) -> None:
        """Add time in which *feed* was not heard; *reason* is why its last epoch ended."""
        self.uncovered_seconds.labels(*feed, reason).inc(max(seconds, 0.0))

    def committed(self, *, records: int, duration_s: float, waited_s: Mapping[str, float]) -> None:
        """Note one commit; *waited_s* holds for each exchange in it the longest wait since a frame was received."""
        self.commit_records.observe(records)
        self.commit_duration.observe(duration_s)
        for exchange, seconds in waited_s.items():
            self.receive_to_commit.labels(exchange).observe(seconds)

    def polled(self, exchange: str, *, duration_s: float, missed: int = 0) -> None:
        """Note one poll and how many were left out before it."""
        self.poll_duration.labels(exchange).observe(duration_s)
        if missed:
            self.polls_missed.labels(exchange).inc(missed)

    def watch_intake(self, *, records: Callable[[], int], size: Callable[[], int], limit: int) -> None:
        """Read the intake's fill whenever `/metrics` is read; *size* and *limit* are in bytes."""
        self.intake_records.set_function(records)
        self.intake_bytes.set_function(size)
        self.intake_bytes_limit.set(limit)

    def watch_spool(
        self, *, batches: Callable[[], int], size: Callable[[], int], age_s: Callable[[], float], limit: int
    ) -> None:
        """Read the spool's fill whenever `/metrics` is read; *size* and *limit* are in bytes."""
        self.spool_batches.set_function(batches)
        self.spool_bytes.set_function(size)
        self.spool_age.set_function(age_s)
        self.spool_bytes_limit.set(limit)

    def show_log_lines_dropped(self, total: int) -> None:
        """Show how many log lines could not be written since the start."""
        self.log_lines_dropped.inc(total - self._lines_dropped)
        self._lines_dropped = total

    def show_live(self, *, dropped: int, errors: int) -> None:
        """Show how many updates callbacks were too slow for since the start, and how often they raised."""
        told, self._live_told = self._live_told, (dropped, errors)
        self.live_dropped.inc(dropped - told[0])
        self.live_errors.inc(errors - told[1])

    def show_workers(self, states: Mapping[str, int]) -> None:
        """Show how many workers are in each state; states that are not named stand at nought."""
        for state in self._states.union(states):
            self.workers.labels(state).set(states.get(state, 0))
        self._states = self._states.union(states)


def _add(counter: Counter, labels: tuple[str, ...], outcomes: Mapping[str, int]) -> None:
    if unknown := outcomes.keys() - set(OUTCOMES):
        raise ValueError(f"an outcome must be one of {', '.join(OUTCOMES)}, was {', '.join(sorted(unknown))}")
    for outcome, count in outcomes.items():
        if count:
            counter.labels(*labels, outcome).inc(count)
