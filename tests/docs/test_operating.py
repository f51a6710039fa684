"""docs/operating.md: every event the program logs and every reason of a gap has its advice, every command works."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from collector.records import REASONS
from collector.texts import TEXTS
from tests.conftest import ROOT
from tests.storage.build import Builder

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
LOGGED = re.compile(r"log\.(?:debug|info|warning|error|exception)\(\s*\"([a-z_]+)\"|key = \"(\w+)\".*else \"(\w+)\"")


def table(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_event_that_is_logged_has_its_advice() -> None:
    files = [f for room in ("collector", "controllers", "storage", "commands") for f in (ROOT / room).glob("*.py")]
    logged = {
        key for file in files for found in LOGGED.findall(file.read_text(encoding="utf-8")) for key in found if key
    }
    told = set(re.findall(r"`([a-z_]+)`", table("What the log says")))
    assert len(logged) > 25
    assert logged <= TEXTS.keys()
    assert logged - told == set()


def test_every_reason_of_a_gap_is_explained() -> None:
    told = set(re.findall(r"`([a-z_]+)`", table("Gaps and their reasons")))
    assert {*REASONS, "never", "open", "deleted", "missing"} <= told


COMMANDS = re.findall(r"^python run_controller\.py (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if line != "status"]
)  # asks a collector: see the README's test
def test_every_command_works(line: str, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(ROOT / "config" / "collector.yaml", tmp_path / "config")
    shutil.copy(ROOT / "config" / "collector.yaml", tmp_path / "other.yaml")
    (tmp_path / "data").mkdir()
    for name in ("data/collector.sqlite", "copy.sqlite"):
        if not (name == "copy.sqlite" and line.startswith("backup")):
            Builder(tmp_path / name).close()
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_controller.py"), *shlex.split(line)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
