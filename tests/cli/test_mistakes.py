"""What a person must mend: one clear line, exit status 2, nothing changed on disk."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from storage.sqlite import APPLICATION_ID, SCHEMA_VERSION
from tests.cli.conftest import SECONDS, Type, tree
from tests.conftest import ROOT


def _text(folder: Path) -> None:
    (folder / "x.sqlite").write_text("this is no database, but it is long enough for the head of one: " + "." * 100)


def _other_program(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "x.sqlite")) as db:
        db.execute("CREATE TABLE customers (name)")
        db.commit()


def _newer(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "x.sqlite")) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("CREATE TABLE book (id)")
        db.commit()


def _folder(folder: Path) -> None:
    (folder / "x.sqlite").mkdir()


def _in_a_file(folder: Path) -> None:
    (folder / "blocked").write_text("a file where a folder is needed")


def _nothing(folder: Path) -> None:
    pass


DATABASES: list[tuple[Callable[[Path], None], str]] = [
    (_text, "x.sqlite is not an SQLite database"),
    (_other_program, "x.sqlite is a database of another program"),
    (_newer, "x.sqlite "),
    (_folder, "x.sqlite is a directory"),
]


@pytest.mark.parametrize(("prepare", "told"), DATABASES)
def test_a_database_that_is_not_ours(type_: Type, folder: Path, prepare: Callable[[Path], None], told: str) -> None:
    prepare(folder)
    before = tree(folder)

    ended = type_("--db", "x.sqlite", "--log-path", "logs")

    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert told in ended.err
    assert "newer" in ended.err or "storage.path (DB_PATH)" in ended.err
    assert tree(folder) == before


@pytest.mark.parametrize(("prepare", "told"), [*DATABASES, (_nothing, "there is no database at x.sqlite")])
@pytest.mark.parametrize("command", [("coverage",), ("book", "UPBIT"), ("export", "UPBIT", "b.json"), ("backup", "b")])
def test_reading_a_database_that_is_not_ours(
    type_: Type, folder: Path, command: tuple[str, ...], prepare: Callable[[Path], None], told: str
) -> None:
    prepare(folder)
    before = tree(folder)

    ended = type_(*command, "--db", "x.sqlite")

    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert "x.sqlite" in ended.err
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--db", "/proc/none/x.sqlite"), "/proc/none/x.sqlite can't be written"),
        (("--db", "blocked/x.sqlite"), "blocked/x.sqlite can't be written"),
        (("--db", "x.sqlite", "--log-path", "/proc/none"), "/proc/none: no log can be written there"),
        (("--db", "x.sqlite", "--log-path", "blocked"), "blocked: no log can be written there"),
        (("--db", "x.sqlite", "--log-path", "blocked/deep/er"), "blocked/deep/er: no log can be written there"),
        (("--config", "none.yaml"), "none.yaml: there is no such file"),
        (("--market", "btc"), "'btc' is not a market"),
        (("--language", "fr"), "'fr' is not known; allowed: ko, en"),
        (("--log-level", "LOUD"), "'LOUD' is not known; allowed: DEBUG, INFO, WARNING, ERROR"),
        (("demo", "--market", "btc"), "'btc' is not a market"),
        (("demo", "--seconds", "1", "--db", "/proc/none/x.sqlite"), "/proc/none/x.sqlite can't be written"),
        (("markets", "upbitt"), "there is no controller for upbitt"),
        (("simulate", "-e", "upbitt"), "no simulated exchange 'upbitt'"),
        (("simulate", "-e", "upbit", "-m", "btc"), "'btc' is not a market"),
        (("simulate", "-e", "upbit", "--speed", "fast"), "'fast' is neither max nor a number"),
        (("simulate", "-e", "upbit", "--recording", "none"), "'none'"),
        (("simulate", "-e", "upbit", "--ledger", "/proc/none/x"), "/proc/none/x"),
    ],
)
def test_a_path_or_a_word_that_can_t_be_used(type_: Type, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    _in_a_file(folder)
    before = tree(folder)

    ended = type_(*arguments)

    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert told in ended.err
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("export", "UPBITT", "b.json"), "did you mean 'UPBIT'?"),
        (("export", "UPBIT", "b.json", "-m", "BTC-USD"), "holds nothing of market 'BTC-USD'"),
        (("export", "UPBIT", "b.json", "--from", "yesterday"), "'yesterday' is not a time; allowed: 2026-"),
        (("export", "UPBIT", "b.json", "--from", "2026-11-22", "--to", "2026-11-21"), "is not before"),
        (("export", "UPBIT", "none/b.json"), "can't be written"),
        (("export", "UPBIT", "config"), "config is a directory"),
        (("coverage", "-e", "UPBITT"), "did you mean 'UPBIT'?"),
        (("coverage", "--from", "2026-11-22", "--to", "2026-11-21"), "is not before"),
        (("book", "UPBIT", "-m", "BTC-USD"), "BTC-USD"),
        (("book", "UPBIT", "--at", "now"), "'now' is not a time"),
        (("backup", "none/copy.sqlite"), "can't be written"),
        (("backup", "demo.sqlite"), "demo.sqlite"),
    ],
)
def test_a_question_the_database_can_t_answer(
    type_: Type, recorded: Path, folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    before = tree(folder)

    ended = type_(*arguments, "--db", recorded)

    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert told in ended.err
    left = {name: data for name, data in tree(folder).items() if not name.endswith(("-wal", "-shm"))}
    assert left == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("export",), "Missing argument"),
        (("export", "UPBIT"), "Missing argument"),
        (("export", "UPBIT", "b.json", "--frob"), "No such option: --frob"),
        (("export", "UPBIT", "b.json", "--format", "xml"), "xml"),
        (("book", "UPBIT", "--depth", "-1"), "--depth"),
        (("simulate",), "Missing option"),
        (("demo", "--seconds", "soon"), "--seconds"),
    ],
)
def test_arguments_that_do_not_fit_a_command(type_: Type, arguments: tuple[str, ...], told: str) -> None:
    ended = type_(*arguments)
    assert ended.status == 2
    assert told in ended.err
    assert "Traceback" not in ended.err


def test_every_mistake_of_the_configuration_in_one_run_each_with_its_line(type_: Type, folder: Path) -> None:
    (folder / "bad.yaml").write_text(
        "exchanges:\n"
        "  upbitt:\n"
        "  upbit:\n"
        "    markets: [BTC/USD]\n"
        "    poll_intervall_s: 0.1\n"
        "log:\n"
        "  level: LOUD\n"
        "metrics:\n"
        "  port: 99999\n"
    )
    before = tree(folder)
    for arguments in (("--config", "bad.yaml"), ("--config", "bad.yaml", "check")):
        ended = type_(*arguments)
        assert (ended.status, ended.out) == (2, "")
        lines = ended.err.splitlines()
        assert [re.match(r"bad\.yaml:(\d+): ", line)[1] for line in lines] == list("24579")  # type: ignore[index]
        for line, hint in zip(lines, ("'upbit'", "'BTC-USD'", "'poll_interval_s'", "INFO", "65535"), strict=True):
            assert "; allowed: " in line
            assert hint in line
    assert tree(folder) == before


def test_without_a_collector_status_says_where_it_looked(type_: Type, folder: Path) -> None:
    (folder / "c.yaml").write_text("metrics:\n  port: 1\n")
    ended = type_("--config", "c.yaml", "status")
    assert (ended.status, ended.out) == (1, "")
    assert "no collector answers at http://127.0.0.1:1/status.json" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_an_exchange_that_can_t_be_reached_is_one_line(type_: Type, folder: Path) -> None:
    (folder / "c.yaml").write_text("exchanges:\n  upbit:\n    endpoint:\n      rest: http://127.0.0.1:1\n")
    ended = type_("--config", "c.yaml", "markets", "upbit")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("upbit: the list of markets can't be had: ")
    assert len(ended.err.splitlines()) == 1


def test_without_what_requirements_txt_brings_it_says_so() -> None:
    """Fails when `run_controller.py` imports `commands.app` before it has looked for typer."""
    ended = subprocess.run(
        [sys.executable, "-E", "-S", str(ROOT / "run_controller.py"), "check"],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("typer is not installed; ") and "pip install -r requirements.txt" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(type_: Type, folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    for arguments in (("--db", "locked/x.sqlite"), ("--db", "x.sqlite", "--log-path", "locked/logs")):
        ended = type_(*arguments)
        assert ended.status == 2
        assert len(ended.err.splitlines()) == 1
    assert list(locked.iterdir()) == []
    assert not (folder / "x.sqlite").exists()
