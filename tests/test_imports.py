"""The import rule between the rooms: it holds, and each kind of breach is found."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("collector", "controllers", "storage", "simulator", "commands")
ALLOWED = {room: ROOMS if room == "commands" else (room, "collector") for room in ROOMS}

pytest.importorskip("importlinter", reason="import-linter is not installed; it is in requirements-dev.txt")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A house with the same rooms, in which nobody breaks the rule yet."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
        (tmp_path / room / "leaf.py").write_text("")
        others = [other for other in ALLOWED[room] if other != room]
        (tmp_path / room / "part.py").write_text("".join(f"import {other}.part\n" for other in others))
    (tmp_path / "run_controller.py").write_text("import commands.part\n")
    return tmp_path


def test_the_rule_holds() -> None:
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_a_house_in_order_passes(house: Path) -> None:
    result = lint_imports(house)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [(room, other) for room in ROOMS for other in (*ROOMS, "run_controller") if other not in ALLOWED[room]]
    + [("collector", "sqlite3"), ("controllers", "sqlite3")],
)
def test_a_breach_is_found(house: Path, room: str, forbidden: str) -> None:
    """Fails for `commands` when it is taken out of `layers` in pyproject.toml."""
    module = f"{forbidden}.leaf" if forbidden in ROOMS else forbidden
    (house / room / "breach.py").write_text(f"def hidden():\n    import {module}\n")

    result = lint_imports(house)

    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{room}.breach -> {module}" in result.stdout.replace("\n", " ")
