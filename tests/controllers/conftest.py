"""The stage of tests that run controllers against the simulator."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.controllers.live import Live


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start simulators; they and all controllers on them are stopped at the end."""
    running: list[Live] = []

    def start(*exchanges: str, **options: Any) -> Live:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Live(folder, *exchanges, **options))
        return running[-1]

    yield start
    for each in running:
        each.close()
