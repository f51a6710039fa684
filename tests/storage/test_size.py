"""What an update costs on the disk: Upbit's recording, again and again, through the code that runs in production.

The figure is exact for one timing and moves with it: where pages split depends on which rows share a commit. Pauses of
other lengths between the rounds gave 106 to 111 bytes, a page of the file being 1.4 bytes an update.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.records import Delivery
from controllers.upbit import Upbit
from storage.sqlite import SQLiteStore
from tests.fakes import FakeClock, counted, make_setup

RECORDING = "cryptofeed_ws_simple_20210417.ndjson"
UPDATES = 3000
BYTES_PER_UPDATE_MAX = 110
BATCH_US = 250_000
SECOND_US = 1_000_000


class Frame(NamedTuple):
    received_us: int
    market: str
    data: bytes

    def shifted(self, by_ms: int) -> "Frame":
        data = re.sub(rb'(?<="tms":)\d+', lambda found: b"%d" % (int(found[0]) + by_ms), self.data)
        return Frame(self.received_us + 1000 * by_ms, self.market, data)


def recorded(path: Path) -> tuple[list[Frame], int]:
    """Return the recorded books in order, and how many milliseconds the whole recording lasts, trades included."""
    frames = []
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["dir"] == "in" and '"ty":"orderbook"' in row["data"]:
            quote, _, base = json.loads(row["data"])["cd"].partition("-")
            frames.append(Frame(round(row["t"] * 1e6), f"{base}-{quote}", row["data"].encode()))
    return frames, round((rows[-1]["t"] - rows[0]["t"]) * 1000)


def looped(frames: list[Frame], length_ms: int, count: int) -> Iterator[Frame]:
    """Yield `count` frames, round after round, the times of receipt and the exchange's own shifted alike."""
    for number in range(count):
        rounds, index = divmod(number, len(frames))
        yield frames[index].shifted(rounds * length_ms)


def where_the_bytes_are(path: Path) -> str:
    """Return the bytes of each table and index, where this SQLite can tell."""
    db = sqlite3.connect(path)
    try:
        rows = db.execute("SELECT name, sum(pgsize), sum(unused) FROM dbstat GROUP BY name ORDER BY 2 DESC").fetchall()
    except sqlite3.OperationalError:
        return ""
    finally:
        db.close()
    return ", ".join(f"{name} {size} ({unused} unused)" for name, size, unused in rows if size > 8192)


def file_bytes(store: SQLiteStore) -> int:
    """Return the size of the file once the log is emptied into it."""
    assert store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    database, wal = store.sizes()
    assert wal == 0
    return database


class Virtual:
    """The controllers and the store of a daemon, driven by the recording's own time."""

    def __init__(self, path: Path, markets: list[str], started_us: int) -> None:
        self.clock = FakeClock(started_us)
        self.setup = make_setup(clock=self.clock)
        self.store = SQLiteStore(path, collector_id="here", version="test", run_uid="1", started_us=started_us)
        self.store.open()
        self.controllers = {market: Upbit((market,), self.setup) for market in markets}
        for controller in self.controllers.values():
            controller.anchor()
        self.batch_at_us = self.tick_at_us = self.clock.monotonic_us()
        self.largest_batch = 0

    def hear(self, frame: Frame) -> None:
        """Let time pass up to a frame, then receive it."""
        self.pass_time((frame.received_us - self.clock.wall_us()) / 1e6)
        controller = self.controllers[frame.market]
        controller.handle(frame.data, self.clock.monotonic_us())
        controller.flush()

    def pass_time(self, seconds: float) -> None:
        """Let the writer commit every 250 ms and the controllers move the ledger every second."""
        until_us = self.clock.monotonic_us() + round(seconds * 1e6)
        while (next_us := min(self.batch_at_us, self.tick_at_us)) <= until_us:
            self.clock.advance((next_us - self.clock.monotonic_us()) / 1e6)
            if next_us == self.tick_at_us:
                self.tick_at_us += SECOND_US
                for controller in self.controllers.values():
                    controller.tick()
            if next_us == self.batch_at_us:
                self.batch_at_us += BATCH_US
                self.commit()
        self.clock.advance((until_us - self.clock.monotonic_us()) / 1e6)

    def commit(self) -> None:
        batch: list[Delivery] = self.setup.intake.take(1000)
        if batch:
            self.store.write(batch, self.clock.wall_us())
            self.setup.intake.done(batch)
            self.largest_batch = max(self.largest_batch, len(batch))


def test_an_update_of_upbit_costs_at_most_110_bytes(wire: Path, tmp_path: Path) -> None:
    recording = wire / "upbit" / RECORDING
    if not recording.is_file():
        pytest.skip(f"no recording at {recording}")
    frames, length_ms = recorded(recording)
    assert len(frames) == 145
    markets = list(dict.fromkeys(frame.market for frame in frames))
    virtual = Virtual(tmp_path / "size.sqlite", markets, frames[0].received_us - SECOND_US)
    before = file_bytes(virtual.store)

    for frame in looped(frames, length_ms, UPDATES):
        virtual.hear(frame)
    virtual.pass_time(1.5)

    after = file_bytes(virtual.store)
    rows, keyframes = virtual.store.connection.execute("SELECT count(*), sum(flags & 1) FROM book").fetchone()
    ledger = virtual.store.connection.execute("SELECT sum(frames), count(*) FROM coverage").fetchone()
    where = where_the_bytes_are(virtual.store.path)
    virtual.store.release()
    report = (
        f"{(after - before) / UPDATES:.1f} bytes an update: the file grew from {before} to {after} with {UPDATES} "
        f"updates of {len(markets)} markets, {rows} rows, {keyframes} keyframes among them; {where}"
    )
    print(report)
    assert ledger == (UPDATES, len(markets))  # every update is accounted for, in one epoch a market
    assert counted(virtual.setup, "frames_total", exchange="upbit", outcome="duplicate") == UPDATES - rows
    assert rows > 0.9 * UPDATES, report
    assert len(markets) <= keyframes < 0.1 * rows, report
    assert (after - before) / UPDATES <= BYTES_PER_UPDATE_MAX, report
