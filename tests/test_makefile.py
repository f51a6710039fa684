"""The commands of the Makefile, as far as they can be tried without the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Not with the flags and variables of the make that may have started this test.
    return subprocess.run(
        ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "-u", "PYTHON", "make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder as after a clone: no virtual environment yet."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_help_is_what_make_says_by_itself_and_names_every_target() -> None:
    targets = re.findall(r"^([.a-z]+):(?! *=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = make().stdout

    for target in set(targets) - {".PHONY"}:
        assert f"  make {target} " in shown


def test_without_a_python_that_fits_it_says_what_to_do(fresh: Path) -> None:
    result = make("test", "PYTHON=/no/such/python", folder=fresh)

    assert result.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert "make test PYTHON=" in result.stderr
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize("version", ["3.10.9", "3.14.0", "2.7.18"])
def test_another_version_of_python_does_not_fit(fresh: Path, version: str) -> None:
    numbers = ", ".join(version.split("."))
    python = fresh / "python"
    # An interpreter whose version_info is another one.
    python.write_text(
        f"""#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = ({numbers}); $1"\n""",
        encoding="utf-8",
    )
    python.chmod(0o755)

    result = make(".venv", f"PYTHON={python}", folder=fresh)

    assert result.returncode != 0
    assert str(python) in result.stderr


def test_a_virtual_environment_that_fits_is_left_alone(fresh: Path) -> None:
    bin_ = fresh / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (bin_ / "python").chmod(0o755)
    (bin_ / "pip").write_text(f"#!{bin_}/python\n", encoding="utf-8")
    pins = subprocess.run(
        "cat requirements.txt requirements-dev.txt | cksum", shell=True, cwd=fresh, capture_output=True, text=True
    ).stdout.strip()
    (fresh / ".venv" / ".built").write_text(f"{fresh} {pins}\n", encoding="utf-8")

    result = make(".venv", folder=fresh)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_virtual_environment_of_another_folder_is_not_kept(fresh: Path) -> None:
    bin_ = fresh / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to(sys.executable)
    (bin_ / "pip").write_text("#!/somewhere/else/.venv/bin/python\n", encoding="utf-8")

    result = make(".venv", "PYTHON=/no/such/python", folder=fresh)

    assert "needs Python" in result.stderr  # it went looking for one to build anew
