"""The command line: what `python run_controller.py` understands, and what its exit status says.

A command is a function in a module of this room, named as it is typed; it becomes one by its line in `COMMANDS`.
Exit status: 0 all is well, 1 something failed while it ran, 2 something is wrong that a person must mend before it can
start.
"""

import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import controllers
from collector.config import Settings, load
from collector.errors import CollectorError, ConfigError, StorageError
from collector.supervisor import Signals, catch_signals, ignore_signals
from commands.audit import app as audit
from commands.daemon import Daemon
from commands.demo import demo
from commands.options import DbOption, LanguageOption, MarketOption
from commands.reading import book, coverage, export
from commands.screen import err
from commands.selftest import app as selftest
from commands.simulate import simulate
from commands.spool import app as spool
from commands.status import status
from commands.upkeep import backup, check, markets, migrate
from storage.database import is_url

COMMANDS = (demo, check, markets, status, export, book, coverage, backup, migrate, simulate)  # as --help lists them

app = typer.Typer(
    help="Records what crypto exchanges say, exactly, with every gap accounted for.\n\n"
    "Without a command: records what config/collector.yaml names, until SIGTERM or Ctrl-C.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(spool, name="spool")
app.add_typer(audit, name="audit")
app.add_typer(selftest, name="selftest")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The YAML file; default config/collector.yaml, or COLLECTOR_CONFIG."),
]
LogPathOption = Annotated[
    Path | None, typer.Option("--log-path", help="The directory of the logs instead of log.path.")
]
LevelOption = Annotated[
    str | None, typer.Option("--log-level", help="The least that is logged: DEBUG, INFO, WARNING, ERROR.")
]


@app.callback()
def run(
    context: typer.Context,
    config: ConfigOption = None,
    market: MarketOption = None,
    db: DbOption = None,
    log_path: LogPathOption = None,
    language: LanguageOption = None,
    log_level: LevelOption = None,
) -> None:
    """Record until told to stop."""
    context.obj = lambda: _load(config, market, db, log_path, language, log_level)
    if context.invoked_subcommand is None:
        signals: Signals = queue.SimpleQueue()
        catch_signals(signals)  # also what comes while it starts is obeyed in order
        daemon = Daemon(context.obj(), read=context.obj, signals=signals)
        try:
            status = daemon.run()
        finally:
            ignore_signals()
        raise typer.Exit(status)


def _load(
    config: Path | None = None,
    market: Sequence[str] | None = None,
    db: str | None = None,
    log_path: Path | None = None,
    language: str | None = None,
    log_level: str | None = None,
) -> Settings:
    flags = {
        "markets": list(market) if market else None,
        "storage.url" if db and is_url(db) else "storage.path": db,
        "log.path": str(log_path) if log_path else None,
        "language": language,
        "log.level": log_level,
    }
    return load(config, flags=flags, known=controllers.known())


def main() -> None:
    """Run the command line and turn what a person must mend into one line and exit status 2."""
    try:
        app(prog_name="run_controller.py")
    except (ConfigError, StorageError) as error:
        err.print(str(error), markup=False)
        sys.exit(2)
    except CollectorError as error:
        err.print(str(error), markup=False)
        sys.exit(1)
