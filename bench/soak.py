"""`python -m bench.soak`: a collector under steady load for a long time; does it grow?

The daemon runs as a child process and records Upbit's 30-level books that a sender plays to it. Every ten seconds its
resident memory, threads and open files are read; the table at the end compares the last minutes with the fifth.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import typer
from rich.console import Console
from rich.table import Table

from bench.sender import sender

PROGRAM = Path(__file__).resolve().parents[1] / "run_controller.py"
EVERY_S = 10.0
WARM_S = 300.0


class Sample(NamedTuple):
    """What the daemon's process holds at a moment, seconds since its start."""

    at_s: float
    resident: int
    threads: int
    files: int
    cpu_s: float


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 60.0,
    feeds: Annotated[int, typer.Option(help="Connections, one market each.")] = 50,
    rate: Annotated[float, typer.Option(help="Messages a second in all.")] = 2000.0,
    url: Annotated[str | None, typer.Option(help="A PostgreSQL database instead of an SQLite file.")] = None,
) -> None:
    """Run and print; exit status 1 where the daemon did not stay up and end in order."""
    out = Console()
    markets = [f"M{number}-KRW" for number in range(feeds)]
    with (
        tempfile.TemporaryDirectory(prefix="collector-soak-") as folder,
        sender(markets, per_second=rate / feeds) as at,
    ):
        daemon = start(Path(folder), at, markets, url)
        samples = watch(daemon, minutes * 60.0)
        daemon.send_signal(signal.SIGTERM)
        status = daemon.wait(60)
        size = sum(file.stat().st_size for file in Path(folder).glob("collector.sqlite*"))
    out.print(report(samples))
    out.print(f"{len(samples)} samples, database {size / 1e6:.0f} MB, exit status {status}")
    raise typer.Exit(int(status != 0))


def start(folder: Path, address: str, markets: list[str], url: str | None = None) -> "subprocess.Popen[bytes]":
    """Start a daemon in a folder that records the markets from an address."""
    storage = {"path": str(folder / "collector.sqlite"), "spool": {"path": str(folder / "spool")}}
    environment = {**os.environ, "DATABASE_URL": url or ""}
    config = folder / "collector.yaml"
    config.write_text(
        json.dumps(  # JSON is YAML
            {
                "language": "en",
                "exchanges": {"upbit": {"markets": markets, "endpoint": {"websocket": address}}},
                "storage": storage,
                "log": {"path": str(folder / "logs"), "stderr": False},
                "metrics": {"enabled": False},
            }
        )
    )
    return subprocess.Popen([sys.executable, str(PROGRAM), "--config", str(config)], cwd=folder, env=environment)


def watch(daemon: "subprocess.Popen[bytes]", seconds: float) -> list[Sample]:
    """Sample a process until the time is over or the process is."""
    process = psutil.Process(daemon.pid)
    began_s = time.monotonic()
    never = threading.Event()
    samples: list[Sample] = []
    while (at_s := time.monotonic() - began_s) < seconds and daemon.poll() is None:
        with process.oneshot():
            cpu = process.cpu_times()
            samples.append(
                Sample(at_s, process.memory_info().rss, process.num_threads(), process.num_fds(), cpu.user + cpu.system)
            )
        never.wait(EVERY_S)
    return samples


def report(samples: list[Sample]) -> Table:
    """Return the first minute after warming up beside the last minute."""
    table = Table("", "minute 5", "last minute", "most", box=None, pad_edge=False)
    end_s = samples[-1].at_s
    warm = [one for one in samples if WARM_S <= one.at_s < WARM_S + 60] or samples
    last = [one for one in samples if one.at_s > end_s - 60]
    for name, unit, part in (("resident", 1e6, "resident"), ("threads", 1, "threads"), ("files", 1, "files")):
        early, late = (statistics.median(getattr(one, part) for one in some) / unit for some in (warm, last))
        table.add_row(name, f"{early:.1f}", f"{late:.1f}", f"{max(getattr(one, part) for one in samples) / unit:.1f}")
    busy = (samples[-1].cpu_s - samples[0].cpu_s) / max(end_s - samples[0].at_s, 1e-9)
    table.add_row("cores busy", "", f"{busy:.2f}", "")
    return table


if __name__ == "__main__":
    typer.run(main)
