"""Whatever happens to the files of the spool: what comes out of it was put in, and what is missing is told."""

import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import spool_format
from storage.spool_reader import SpoolReader
from tests.fuzz.breach import Violation
from tests.fuzz.guard import Guard
from tests.fuzz.spool import fuzz

MUTATIONS = 150
PATIENT = 20.0


def test_what_comes_out_of_a_spoiled_spool_was_put_in_and_what_is_missing_is_told(tmp_path: Path) -> None:
    """Fails when `_frame` compares no `body_sum`."""
    counts = fuzz(MUTATIONS, tmp_path, seed=1, guard=Guard(PATIENT))
    assert counts["frames"] == MUTATIONS
    assert counts["stored"] > 10 * MUTATIONS
    assert counts["holes"] > MUTATIONS


def test_a_spool_that_believes_whatever_stands_there_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    believing = types.SimpleNamespace(**vars(zlib) | {"crc32": lambda data, start=0: 0})
    monkeypatch.setattr(spool_format, "zlib", believing)
    with pytest.raises(Violation):
        fuzz(MUTATIONS, tmp_path, seed=1, guard=Guard(PATIENT))


def test_a_hole_that_nothing_tells_of_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hole: Callable[..., None] = SpoolReader._hole

    def untold(reader: SpoolReader, *args: Any) -> None:
        hole(reader, *args)
        reader._ready.pop()

    monkeypatch.setattr(SpoolReader, "_hole", untold)
    with pytest.raises(Violation, match=r"nothing tells what is missing|waited"):
        fuzz(MUTATIONS, tmp_path, seed=1, guard=Guard(PATIENT))
