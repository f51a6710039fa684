"""The commands that try the collector itself: `selftest chaos`."""

import shlex
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from collector.errors import ConfigError
from commands.screen import err, out

if TYPE_CHECKING:
    from commands.chaos.run import Outcome
    from commands.chaos.stores import Subject

app = typer.Typer(help="Try the collector on this machine, with nothing but itself.", no_args_is_help=True)

COLUMNS = ("sent", "stored", "duplicate", "outside", "missing", "wrong", "corrupt")
NOTES_MAX = 20


@app.callback()
def selftest() -> None:
    """Let `chaos` be a word of its own while there is no other test."""


@app.command()
def chaos(
    seed: Annotated[int, typer.Option(help="What goes wrong, and when, follows from it.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long things go wrong.")] = 60,
    kills: Annotated[
        int | None, typer.Option(min=0, max=100_000, help="How often the daemon is killed; default: every 6 seconds.")
    ] = None,
    store: Annotated[
        str, typer.Option(help="sqlite, postgres (a server of its own), or postgresql://USER:PASSWORD@HOST/DATABASE.")
    ] = "sqlite",
    only: Annotated[
        list[str] | None, typer.Option(help="Let nothing but this go wrong; repeatable. --list names them.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep everything in this new folder; default: only what failed is kept.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the whole schedule first.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print what can go wrong, and end.")] = False,
) -> None:
    """Run the daemon beside simulated exchanges while everything goes wrong, and account for every message.

    Exit status 0: nothing is missing, wrong or corrupt.
    """
    from commands.chaos.schedule import KINDS
    from commands.chaos.stores import subject

    if list_:
        for name, (_, _, meaning) in KINDS.items():
            out.print(f"{name:14} {meaning}", highlight=False, markup=False, soft_wrap=True)
        return
    chosen = _chosen(only, list(KINDS))
    if kills is None:
        kills = round(seconds / 6) if not only or "kill" in only else 0
    folder = _folder(keep)
    try:
        database = subject(store, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    kept = True
    try:
        outcome = _run(folder, database, seed, seconds, kills, chosen, verbose)
        kept = keep is not None or not outcome.good
    except KeyboardInterrupt:
        kept = keep is not None
        raise
    except Exception:
        err.print(f"The run itself failed; what there is of it is in {folder}.", markup=False)
        raise
    finally:
        database.close(keep=kept)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    _show(outcome)
    if kept:
        err.print(f"Configuration, logs, ledger and database are in {folder} ({database.shown}).", markup=False)
    if not outcome.good:
        err.print(f"The same again:  {_again(seed, seconds, kills, store, only)}", markup=False)
        raise typer.Exit(1)


def _run(
    folder: Path, database: "Subject", seed: int, seconds: float, kills: int, kinds: Sequence[str], verbose: bool
) -> "Outcome":
    from commands.chaos.run import Chaos

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends everything that was begun, as Ctrl-C does
    with _progress() as progress:
        task = progress.add_task("chaos", total=seconds)
        with Chaos(
            folder, database, seed=seed, seconds=seconds, kills=kills, kinds=kinds,
            say=lambda text: progress.console.print(text, highlight=False, markup=False),
            progress=lambda done: progress.update(task, completed=done),
        ) as run:  # fmt: skip
            for act in run.acts if verbose else ():
                out.print(str(act), highlight=False, markup=False, soft_wrap=True)
            return run.run()


def _chosen(only: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for name in only or ():
        if name not in known:
            raise ConfigError(f"--only: {name!r} can't go wrong here; allowed: {', '.join(known)}")
    return tuple(only or known)


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="collector-chaos-"))
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--keep: {keep} can't be made ({error.strerror}); name a folder that is not there") from None
    return keep.resolve()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


def _show(outcome: "Outcome") -> None:
    verdict = outcome.verdict
    table = Table(title="What became of every message")
    table.add_column("exchange")
    for name in COLUMNS:
        table.add_column("outside coverage" if name == "outside" else name, justify="right")
    for exchange, tally in sorted(verdict.exchanges.items()):
        table.add_row(exchange, *(str(getattr(tally, name)) for name in COLUMNS))
    table.add_row("all", *(str(getattr(verdict, name)) for name in COLUMNS), style="bold")
    out.print(table)
    faults = ", ".join(f"{kind} {times}" for kind, times in sorted(outcome.done.items()))
    out.print(f"{outcome.starts} starts of the daemon; {faults or 'no faults'}", highlight=False, soft_wrap=True)
    if outcome.skipped:
        skipped = ", ".join(f"{kind} {times}" for kind, times in sorted(outcome.skipped.items()))
        out.print(f"not possible when their time came: {skipped}", highlight=False, soft_wrap=True)
    out.print(str(verdict), highlight=False, markup=False, soft_wrap=True)
    for note in (outcome.problems + verdict.notes)[:NOTES_MAX]:
        out.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)
    left = len(outcome.problems) + len(verdict.notes) - NOTES_MAX
    if left > 0:
        out.print(f"- and {left} more", highlight=False)


def _again(seed: int, seconds: float, kills: int, store: str, only: Sequence[str] | None) -> str:
    name = "postgresql://..." if "://" in store else store
    words = ["python", "run_controller.py", "selftest", "chaos", "--seed", str(seed), "--seconds", f"{seconds:g}"]
    words += ["--kills", str(kills), "--store", name]
    for kind in only or ():
        words += ["--only", kind]
    return shlex.join(words)
