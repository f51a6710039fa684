"""What the tests of faults share: the small libraries that are preloaded into processes."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.child import Daemon

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build a library out of the C file of that name; tests skip where there is no compiler."""
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler; apt install gcc libc6-dev")
        if name not in built:
            built[name] = tmp_path_factory.mktemp("preload") / f"{name}.so"
            command = [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(built[name]), str(HERE / f"{name}.c")]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return built[name]

    return build


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Daemons that are ended whatever becomes of the test."""
    started: list[Daemon] = []
    yield started
    for daemon in started:
        daemon.close()
