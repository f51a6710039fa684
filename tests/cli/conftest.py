"""The command line as a user types it: in this process where it ends by itself, as a process where it is killed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from commands.app import main
from tests.conftest import FOREIGN_VARIABLES, ROOT

SECONDS = 30


class Ended(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Type = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the user is in, with the configuration that is shipped."""
    work = tmp_path / "work"
    (work / "config").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "collector.yaml", work / "config")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def type_(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Type `python run_controller.py ...` in the folder."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["run_controller.py", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Ended(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Run the demo of the README once, for a few seconds; its database is `demo.args[-1]`."""
    database = tmp_path_factory.mktemp("demo") / "demo.sqlite"
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    return subprocess.run(
        [sys.executable, str(ROOT / "run_controller.py"), "demo", "--seconds", "3", "--db", str(database)],
        cwd=database.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def recorded(demo: subprocess.CompletedProcess[str], folder: Path) -> Path:
    """A database that the demo recorded, a copy for this test."""
    copy = folder / "demo.sqlite"
    shutil.copy(Path(demo.args[-1]), copy)
    return copy


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
