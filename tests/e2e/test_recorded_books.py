"""Recorded books, from a real socket through the daemon, the store and the reader, and out again as JSON."""

import json
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from simulator import Simulator
from storage.reader import Reader
from tests.conftest import wait_until
from tests.e2e.daemon import ROOT, Child

Book = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]


def recorded_books(recording: Path) -> dict[str, list[Book]]:
    """Read the books of each market with nothing of ours: bids and asks as numbers."""
    books: dict[str, list[Book]] = {}
    for line in recording.read_text("utf-8").splitlines():
        row = json.loads(line)
        frame = json.loads(row["data"], parse_float=Decimal, parse_int=Decimal)
        if row["dir"] == "in" and frame["ty"] == "orderbook":
            quote, _, base = frame["cd"].partition("-")
            sides = tuple({unit[f"{side}p"]: unit[f"{side}s"] for unit in frame["obu"]} for side in ("b", "a"))
            books.setdefault(f"{base}-{quote}", []).append((sides[0], sides[1]))
    return books


def levels(rows: Any) -> dict[Decimal, Decimal]:
    return {Decimal(price): Decimal(size) for price, size in rows}


def test_the_145_books_of_upbit_come_back_equal(wire: Path, tmp_path: Path) -> None:
    recording = wire / "upbit" / "cryptofeed_ws_simple_20210417.ndjson"
    if not recording.is_file():
        pytest.skip(f"no recording at {recording}")
    books = recorded_books(recording)
    assert sum(map(len, books.values())) == 145
    with Simulator(["upbit"], tuple(books), recording=recording, speed=None) as simulator:
        child = Child(tmp_path, {"upbit": {"endpoint": simulator.endpoints["upbit"], "markets": list(books)}})
        child.start()
        wait_until(lambda: child.frames() == 145, 30, "145 frames accounted for")
        child.send(signal.SIGTERM)
        assert child.wait() == 0

    with Reader(child.database) as reader:
        for market, expected in books.items():
            found = [(levels(book.bids), levels(book.asks)) for book in reader.books("UPBIT", market)]
            assert found == expected, market
        assert all(epoch.verdict == "checksummed" for market in books for epoch in reader.epochs("UPBIT", market))

    command = [
        sys.executable,
        str(ROOT / "run_controller.py"),
        "export",
        "UPBIT",
        "out.json",
        "--db",
        str(child.database),
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    exported: dict[str, list[Book]] = {}
    for book in json.loads((tmp_path / "out.json").read_text("utf-8")):
        exported.setdefault(f"{book['symbol']}-{book['currency']}", []).append(
            (levels(book["bids"]), levels(book["asks"]))
        )
    assert exported == books
