"""What the READMEs tell a reader to type works, in their order; what they name exists; both languages say the same."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import requests
import typer.main
import yaml

from collector.config import Settings
from collector.settings import PATH_VARIABLES, SECRET_VARIABLES
from commands.app import app
from simulator import Simulator
from tests.conftest import FOREIGN_VARIABLES, ROOT, wait_until

READMES = ("README.md", "README.ko.md")
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SECONDS = 60

# Lines that no test runs, and why.
NOT_RUN = {
    "git clone": "needs a server",
    "python -m venv": "the environment that runs this test is such a one",
    "source .venv/bin/activate": "changes the reader's shell, not ours",
    "pip install": "needs the package index; `make test` has done it",
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(readme: str) -> list[tuple[str, str]]:
    """Return (language, text) of every fenced block."""
    return FENCE.findall((ROOT / readme).read_text(encoding="utf-8"))


def commands(readme: str) -> list[str]:
    return [line for language, text in blocks(readme) if language == "sh" for line in text.splitlines()]


def prose(readme: str) -> str:
    return FENCE.sub("", (ROOT / readme).read_text(encoding="utf-8"))


# --- what is typed ----------------------------------------------------------------------------------------------------


class Reader:
    """Someone who follows the README: a folder like the project's, exchanges that are simulated, one free port."""

    def __init__(self, folder: Path, simulator: Simulator) -> None:
        self.folder = folder
        for name in (
            "collector",
            "controllers",
            "storage",
            "simulator",
            "commands",
            "run_controller.py",
            "Makefile",
            ".env.example",
        ):
            (folder / name).symlink_to(ROOT / name)
        (folder / "config").mkdir()
        settings = yaml.safe_load((ROOT / "config" / "collector.yaml").read_text())
        settings["exchanges"] = {
            name: {**(settings["exchanges"][name] or {}), "endpoint": endpoint}
            for name, endpoint in simulator.endpoints.items()
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings["metrics"] = {"port": self.port}
        (folder / "config" / "collector.yaml").write_text(yaml.safe_dump(settings))
        (folder / ".venv" / "bin").mkdir(parents=True)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        self.environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        self.environment["PATH"] = f"{python.parent}:{self.environment['PATH']}"
        for name in ("MAKEFLAGS", "MAKELEVEL", "PYTHON"):
            self.environment.pop(name, None)
        self.running: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> None:
        """Run one line as it stands; what runs until it is stopped is left running."""
        line = line.replace("127.0.0.1:9464", f"127.0.0.1:{self.port}")
        if line.startswith("make demo"):
            line = line.replace("make demo", "make -o .venv demo DEMO_SECONDS=3")
        if line == "python run_controller.py" or " simulate " in line:
            self._start(line)
            return
        if line.startswith("curl ") and shutil.which("curl") is None:
            assert requests.get(line.split()[-1], timeout=10).status_code == 200
            return
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.environment, capture_output=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout.decode()[-2000:]}\n{done.stderr.decode()[-2000:]}"
        assert done.stdout or done.stderr or line.startswith("cp ")

    def _start(self, line: str) -> None:
        words = [sys.executable, *shlex.split(line)[1:]]
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.running.append(process)
        if " simulate " in line:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"#")
        else:
            wait_until(self._ready, SECONDS, "the daemon ready")

    def _ready(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def stop(self) -> None:
        """Press Ctrl-C everywhere; everything must end well."""
        for process in self.running:
            process.send_signal(signal.SIGINT)
        for process in self.running:
            _, stderr = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, stderr.decode()[-2000:]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A newcomer in a folder of their own."""
    with Simulator(("bithumb", "coinone", "gopax", "korbit", "upbit"), ("BTC-KRW", "ETH-KRW")) as simulator:
        reader = Reader(tmp_path, simulator)
        try:
            yield reader
        finally:
            for process in reader.running:
                if process.poll() is None:
                    process.kill()
                    process.communicate()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_command_works_in_the_order_of_the_text(reader: Reader) -> None:
    """The Korean README has the same commands (a test below), so once is enough."""
    ran = 0
    for language, text in blocks("README.md"):
        if language == "sh":
            for line in text.splitlines():
                if not line.startswith(tuple(NOT_RUN)):
                    at = re.search(r"--at \S+", line)
                    if at:  # the moment in the text is past; the newest minute of this run stands for it
                        line = line.replace(at[0], f"--at {_newest(reader.folder)}")
                    reader.type(line)
                    ran += 1
        elif language == "sql":
            with closing(sqlite3.connect(reader.folder / "data" / "collector.sqlite")) as db:
                assert db.execute(text).fetchall()
        elif language == "python":
            done = subprocess.run(
                [sys.executable, "-"], input=text, cwd=reader.folder, env=reader.environment, capture_output=True,
                text=True, timeout=SECONDS, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("('")
        elif language == "yaml":
            Settings.model_validate(yaml.safe_load(text))
    reader.stop()
    assert ran >= 12
    books = json.loads((reader.folder / "books.json").read_bytes())
    assert {book["exchange"] for book in books} == {"UPBIT"}


def _newest(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "data" / "collector.sqlite")) as db:
        (us,) = db.execute("SELECT max(received_us) FROM book_update WHERE exchange = 'UPBIT'").fetchone()
    return f"{us // 1_000_000}.{us % 1_000_000:06d}"


def test_every_line_that_is_not_run_is_still_in_the_text() -> None:
    lines = commands("README.md")
    for start in NOT_RUN.keys() - {"git clone"}:
        assert any(line.startswith(start) for line in lines), start


def test_both_languages_have_the_same_blocks_and_tables() -> None:
    english, korean = READMES
    assert commands(english) == commands(korean)
    assert [language for language, _ in blocks(english)] == [language for language, _ in blocks(korean)]
    for one, other in zip(blocks(english), blocks(korean), strict=True):
        strip = re.compile(r"\s*#.*")
        assert strip.sub("", one[1]) == strip.sub("", other[1])

    def rows(readme: str) -> list[int]:
        return [line.count("|") for line in prose(readme).splitlines() if line.startswith("|")]

    assert rows(english) == rows(korean)
    assert len(re.findall(r"^#+ ", prose(english), re.MULTILINE)) == len(
        re.findall(r"^#+ ", prose(korean), re.MULTILINE)
    )


def test_the_korean_one_is_korean() -> None:
    text = prose("README.ko.md")
    assert len(re.findall(r"[가-힣]", text)) > 2500


# --- what is named ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCS)
def test_every_relative_link_leads_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)#\s]+)", FENCE.sub("", text)):
        assert (ROOT / file).parent.joinpath(target).exists(), f"{file}: {target}"


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words it is typed with, those of groups included."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, (*path, name))


def _options() -> set[str]:
    found = {
        option
        for _, command in _commands(typer.main.get_command(app))
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return found | {"--help", "-h"}


@pytest.mark.parametrize("file", [*READMES, "docs/operating.md", "docs/adding-an-exchange.md", "docs/selftest.md"])
def test_every_setting_flag_command_variable_and_endpoint_that_is_named_exists(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    known = dict(_commands(typer.main.get_command(app)))
    options = _options()
    for line in re.findall(r"run_controller\.py([^\n`]*)", text):
        words = line.split("#")[0].split()
        for word in words:
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                assert word in options, f"{file}: {word}"
        typed = tuple(takewhile(lambda word: word.isalpha() and word.islower(), words))
        if typed:
            assert typed[:1] in known, f"{file}: {typed[0]}"
            assert not hasattr(known[typed[:1]], "commands") or typed[:2] in known, f"{file}: {' '.join(typed)}"
    for option in re.findall(r"`(--[a-z-]+)", text):
        assert option in options, f"{file}: {option}"
    schema = Settings.model_json_schema()
    for dotted in re.findall(r"`((?:storage|log|metrics|limits|intake|exchanges)\.[a-z_.]+)", text):
        section: Any = schema
        for name in dotted.replace("exchanges.NAME", "exchanges.upbit").split("."):
            section = schema["$defs"].get(section["$ref"].rpartition("/")[2], section) if "$ref" in section else section
            if "properties" in section:
                assert name in section["properties"], f"{file}: {dotted}"
                section = section["properties"][name]
            else:
                section = section["additionalProperties"]
    variables = {
        *PATH_VARIABLES,
        "COLLECTOR_CONFIG",
        "COLLECTOR_WIRE",
        *SECRET_VARIABLES,
    }
    for name in re.findall(r"`([A-Z]+_[A-Z_]+)`", text):
        assert name in variables, f"{file}: {name}"
    for path in re.findall(r"`(/[a-z.]+)`", text):
        assert path in {"/metrics", "/healthz", "/readyz", "/status.json"}, f"{file}: {path}"


def test_every_command_and_every_exchange_is_told() -> None:
    known = dict(_commands(typer.main.get_command(app)))
    for file in READMES:
        text = (ROOT / file).read_text(encoding="utf-8")
        for words, command in known.items():
            typed = " ".join(words)
            if not hasattr(command, "commands"):
                assert f"{typed} " in text or f"{typed}\n" in text or f"`{typed}`" in text, f"{file}: {typed}"
        for exchange in ("Upbit", "Bithumb", "Coinone", "Korbit", "GOPAX"):
            assert exchange in text
