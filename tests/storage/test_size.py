"""What an update costs on the disk: Upbit's recording, again and again, through the code that runs in production.

The figure is exact for one timing and moves with it: where pages split depends on which rows share a commit. Pauses of
other lengths between the rounds give 104 to 108 bytes, a page of the file being 1.4 bytes an update.
"""

from pathlib import Path

import pytest

from bench.frames import recorded_frames
from bench.size import bytes_per_update, looped

RECORDING = "upbit/cryptofeed_ws_simple_20210417.ndjson"
UPDATES = 3000
BYTES_PER_UPDATE_MAX = 110


def test_an_update_of_upbit_costs_at_most_110_bytes(wire: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLECTOR_WIRE", str(wire))
    if not recorded_frames():
        pytest.skip(f"no {RECORDING} in {wire}")
    assert len(recorded_frames()) == 145

    found = bytes_per_update(looped(UPDATES))  # raises unless the ledger accounts for every update

    print(f"{found:.1f} bytes an update")
    assert found <= BYTES_PER_UPDATE_MAX


def test_books_stored_whole_cost_far_more(wire: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure bites: with `mode: full` the same updates are an order of magnitude larger."""
    monkeypatch.setenv("COLLECTOR_WIRE", str(wire))
    if not recorded_frames():
        pytest.skip(f"no {RECORDING} in {wire}")
    assert bytes_per_update(looped(300), full_books=True) > 5 * BYTES_PER_UPDATE_MAX
