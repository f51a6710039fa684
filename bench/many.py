"""Every KRW market of the five Korean exchanges in one collector: nothing dropped, and committed within a second?

The daemon runs as a child process, with a configuration like anybody's and some dozens of connections; the exchanges
are a process of their own (`bench.exchanges`). Messages come at the rates the exchanges were seen to have, and for ten
seconds about twice as fast. Afterwards every message that was sent must be in the ledger of the store, market by
market, or the benchmark fails. `python -m bench.many --seconds 60` measures for longer than `python -m bench` does.
"""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from bench.exchanges import Exchanges, exchanges, rates
from bench.measure import Row

PROGRAM = Path(__file__).resolve().parents[1] / "run_controller.py"
START_S, STOP_S = 60.0, 60.0
SETTLE_S = 5.0
BURST_S = 10.0
BURST = 2.05  # 4,500 a second and more: quiet markets take a while to notice
PREFIX = "collector_"
COMPARED = ("gopax",)


class Part(NamedTuple):
    """One exchange: its share of the markets and of the messages a second, and how many share a connection."""

    markets: int
    per_second: float
    per_connection: int


# Markets in proportion to those listed in KRW on 2026-09-23 (289, 480, 363, 193, 111), 1,150 in all. Messages in
# proportion to what was heard of whole exchanges on that day (medians 790, 950, 210 and 150 a second; of GOPAX less
# than one), 2,310 in all. GOPAX allows 50 books a connection, Coinone 20 connections.
PARTS = {
    "upbit": Part(231, 862, 50),
    "bithumb": Part(384, 1036, 50),
    "coinone": Part(291, 229, 50),
    "korbit": Part(155, 163, 50),
    "gopax": Part(89, 20, 45),
}

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Moment(NamedTuple):
    """What both processes had done by a moment."""

    at_s: float
    daemon_cpu_s: float
    exchanges_cpu_s: float
    sent: int
    database_bytes: int
    figures: Figures


def scaled(share: float) -> dict[str, Part]:
    """Return every exchange with a share of its markets and messages."""
    return {name: Part(max(1, round(m * share)), hz * share, size) for name, (m, hz, size) in PARTS.items()}


def run(
    *,
    seconds: float = 15.0,
    burst_s: float = BURST_S,
    settle_s: float = SETTLE_S,
    parts: Mapping[str, Part] | None = None,
) -> Iterator[Row]:
    """Measure and yield the report; raises `RuntimeError` where a message that was sent is not accounted for."""
    parts = parts or PARTS
    wanted = {name: rates(part.markets, part.per_second) for name, part in parts.items()}
    with tempfile.TemporaryDirectory(prefix="collector-many-") as folder, exchanges(wanted) as sending:
        with Daemon(Path(folder), parts, sending) as daemon:
            daemon.wait_until_live()
            daemon.pause(settle_s)
            moments = [daemon.moment()]
            daemon.pause(seconds)
            moments.append(daemon.moment())
            if burst_s:
                sending.speed(BURST)
                daemon.pause(burst_s)
                moments.append(daemon.moment())
                sending.speed(1.0)
            process = daemon.process
            held = process.memory_info().rss, process.num_threads()
            sending.hush()
            sent = sending.sent_last()
            last = daemon.last()
        check(sent, last, stored(daemon.database))
    yield Row("markets", sum(part.markets for part in parts.values()), "")
    yield Row("connections", _sum(last, "connects_total"), "")
    for name, before, after in zip(("usual", "burst"), moments, moments[1:], strict=False):
        yield from _phase(name, before, after)
    yield Row("resident memory of the daemon", held[0] / 1e6, "MB")
    yield Row("threads of the daemon", held[1], "")
    yield Row("messages sent", sum(sum(each.values()) for each in sent.values()), "")
    yield Row("of them kept", sum(_sum(last, "frames_total", outcome=each) for each in ("stored", "duplicate")), "")
    for outcome in ("dropped", "rejected"):
        yield Row(outcome, _sum(last, "frames_total", outcome=outcome), "", aim="0")
    # A quiet market whose turn to be compared with REST had not come when it spoke again: it goes on in a new epoch.
    yield Row("epochs that ended before the stop", _sum(last, "epochs_total"), "")


def _phase(name: str, before: Moment, after: Moment) -> Iterator[Row]:
    wall_s = after.at_s - before.at_s
    waits = quantiles(before.figures, after.figures, "receive_to_commit_seconds", (0.5, 0.99))
    yield Row(f"{name}: sent", (after.sent - before.sent) / wall_s, "msg/s")
    yield Row(f"{name}: receipt to commit, median", 1000 * waits[0], "ms")
    yield Row(f"{name}: receipt to commit, 99 of 100", 1000 * waits[1], "ms", aim="1000")
    lags = quantiles(before.figures, after.figures, "venue_lag_seconds", (0.99,))
    yield Row(f"{name}: sent to received, 99 of 100", 1000 * lags[0], "ms")
    yield Row(f"{name}: daemon", (after.daemon_cpu_s - before.daemon_cpu_s) / wall_s, "cores")
    yield Row(f"{name}: exchanges", (after.exchanges_cpu_s - before.exchanges_cpu_s) / wall_s, "cores")
    yield Row(f"{name}: database", (after.database_bytes - before.database_bytes) / wall_s / 1e3, "kB/s")


def quantiles(before: Figures, after: Figures, name: str, wanted: tuple[float, ...]) -> list[float]:
    """Return quantiles of what a histogram took in between two readings, of all exchanges together.

    Within a bucket they are interpolated, as Prometheus does. What is beyond the last bound counts as that.
    """
    buckets: Counter[float] = Counter()
    for (metric, labels), value in after.items():
        if metric == f"{PREFIX}{name}_bucket":
            buckets[float(dict(labels)["le"])] += round(value - before.get((metric, labels), 0))
    bounds = sorted(buckets)
    found = []
    for quantile in wanted:
        rank = quantile * buckets[bounds[-1]]
        at = next(i for i, bound in enumerate(bounds) if buckets[bound] >= rank)
        if bounds[at] == float("inf"):
            found.append(bounds[at - 1])
            continue
        low, under = (bounds[at - 1], buckets[bounds[at - 1]]) if at else (0.0, 0)
        share = (rank - under) / max(1, buckets[bounds[at]] - under)
        found.append(low + (bounds[at] - low) * share)
    return found


def stored(database: Path) -> dict[str, dict[str, int]]:
    """Count the messages that the store's ledger accounts for, by exchange and market."""
    found: dict[str, dict[str, int]] = {}
    store = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        rows = store.execute(
            "SELECT lower(x.name), m.symbol || '-' || m.currency, sum(c.frames) FROM coverage c"
            " JOIN epoch e ON e.id = c.epoch JOIN feed f ON f.id = e.feed"
            " JOIN exchange x ON x.id = f.exchange JOIN market m ON m.id = f.market GROUP BY 1, 2"
        )
        for exchange, market, frames in rows:
            found.setdefault(exchange, {})[market] = frames
    finally:
        store.close()
    return found


def check(sent: Mapping[str, Mapping[str, int]], last: Figures, found: Mapping[str, Mapping[str, int]]) -> None:
    """Raise `RuntimeError` where messages that were sent are not accounted for, or more than were sent.

    Of every exchange by the daemon's own figures; of every market by the ledger of the store. GOPAX's books are kept
    from changes and in the ledger only up to their last comparison, so of them it may have fewer.
    """
    for exchange, markets in sent.items():
        kept = sum(_sum(last, "frames_total", exchange=exchange, outcome=each) for each in ("stored", "duplicate"))
        if kept != sum(markets.values()):
            raise RuntimeError(f"{exchange}: {sum(markets.values())} messages were sent, {kept:.0f} were kept")
        there = {market: found.get(exchange, {}).get(market, 0) for market in markets}
        off = [
            f"{market} {there[market]} of {count}"
            for market, count in markets.items()
            if there[market] > count or (there[market] < count and exchange not in COMPARED)
        ]
        if off:
            raise RuntimeError(f"{exchange}: {len(off)} markets are not accounted for: {', '.join(off[:5])}")


class Daemon:
    """The collector as a process of its own, with every market of the exchanges in its configuration."""

    def __init__(self, folder: Path, parts: Mapping[str, Part], sending: Exchanges) -> None:
        self.folder, self.database = folder, folder / "collector.sqlite"
        self._parts, self._sending = parts, sending
        self._never = threading.Event()

    def __enter__(self) -> "Daemon":
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        config = self.folder / "collector.yaml"
        config.write_text(json.dumps(self._settings()))  # JSON is YAML
        command = [sys.executable, str(PROGRAM), "--config", str(config)]
        self._child = subprocess.Popen(command, cwd=self.folder)
        self.process = psutil.Process(self._child.pid)
        self._other = psutil.Process(self._sending.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()

    def _settings(self) -> dict[str, Any]:
        return {
            "language": "en",
            "exchanges": {
                name: {
                    "transport": "websocket",
                    "markets": [f"M{at}-KRW" for at in range(part.markets)],
                    "markets_per_connection": part.per_connection,
                    "endpoint": self._sending.endpoints[name],
                }
                for name, part in self._parts.items()
            },
            "storage": {"path": str(self.database)},
            "log": {"path": str(self.folder / "logs"), "stderr": False},
            "metrics": {"port": self._port},
        }

    def wait_until_live(self) -> None:
        """Return when every market has its book."""
        self._wait(lambda: Counter(feed["state"] for feed in self._status()["feeds"]).keys() == {"live"}, START_S)

    def last(self) -> Figures:
        """Wait until all that came is committed, end the daemon in order, and return its last figures."""
        self._wait(lambda: not self._status()["intake"]["records"], STOP_S)
        figures = self._figures()
        self._child.send_signal(signal.SIGTERM)
        if (status := self._child.wait(STOP_S)) != 0:
            raise RuntimeError(f"the daemon ended with {status}")
        return figures

    def moment(self) -> Moment:
        """Read what there is to read."""
        figures = self._figures()
        sent = sum(sum(each.values()) for each in self._sending.sent().values())
        size = sum(file.stat().st_size for file in self.folder.glob("collector.sqlite"))
        return Moment(time.monotonic(), _cpu_s(self.process), _cpu_s(self._other), sent, size, figures)

    def pause(self, seconds: float) -> None:
        """Wait, unless the daemon ends."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._stands()
            self._never.wait(min(left_s, 1.0))

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while True:
            self._stands()
            try:
                if done():
                    return
            except OSError:  # it does not listen yet
                if time.monotonic() > until_s:
                    raise
            if time.monotonic() > until_s:
                states = Counter((feed["exchange"], feed["state"]) for feed in self._status()["feeds"])
                raise RuntimeError(f"the daemon is not ready: {dict(states)}")
            self._never.wait(0.5)

    def _stands(self) -> None:
        if self._child.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self._child.returncode}")

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self._get("/status.json"))
        return status

    def _figures(self) -> Figures:
        families = text_string_to_metric_families(self._get("/metrics"))
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith(PREFIX)
        }

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
        return text


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _sum(figures: Figures, name: str, **labels: str) -> float:
    return sum(
        value for (metric, of), value in figures.items() if metric == PREFIX + name and set(labels.items()) <= of
    )


def main(
    seconds: Annotated[float, typer.Option(help="How long at the usual rates.")] = 60.0,
    burst: Annotated[float, typer.Option(help="How long at about twice the usual rates, after that.")] = BURST_S,
    share: Annotated[float, typer.Option(help="Of markets and messages.")] = 1.0,
) -> None:
    """Measure all KRW markets and print; docs/performance.md says what each line means."""
    out = Console(width=None if Console().is_terminal else 120)
    for row in run(seconds=seconds, burst_s=burst, parts=scaled(share)):
        out.print(f"{row.name:48}{row.value:12,.1f} {row.unit:8}{row.aim and f'aim {row.aim}'}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
