"""The commands of whoever looks after a collector: `check`, `markets`, `backup`, `migrate`."""

import threading
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import controllers
from collector.clock import Clock
from collector.config import Exchange, describe
from collector.errors import ConfigError, SourceError, StorageError
from commands.budgets import Budgets
from commands.options import DbOption, database_of
from commands.plan import feeds, left_out, open_ended, planned
from commands.screen import err, out, show_bytes
from controllers.listing import fetch_listing, rest_base
from storage import spool_inspect
from storage.database import is_url
from storage.maintenance import backup as backup_database


def check(context: typer.Context) -> None:
    """Check the configuration and show every setting with where it comes from; starts nothing."""
    settings = context.obj()
    rows = [("setting", "value", "from"), *describe(settings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:  # whole, whatever the width of the terminal: what is cut off helps nobody
        out.print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}", markup=False, highlight=False, soft_wrap=True)
    for exchange, what in left_out(settings):
        out.print(f"{exchange} does not offer {what}: left out", markup=False, highlight=False)
    plan = planned(settings)
    text = f"\nok: {len(list(feeds(plan)))} feeds on {len(plan)} connections"
    for exchange, patterns in open_ended(settings).items():
        text += f", and what {exchange} lists of {', '.join(patterns)}"
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def markets(
    context: typer.Context, exchange: Annotated[str, typer.Argument(help="An exchange, such as upbit.")]
) -> None:
    """List the markets an exchange trades now, as the configuration names them."""
    exchange = exchange.lower()
    controllers.controller_class(exchange)
    options = context.obj().exchanges.get(exchange) or Exchange()
    clock = Clock()
    found: set[str] = set()
    asked: set[tuple[str, ...]] = set()
    for cls in controllers.classes(exchange):
        source = (rest_base(cls, options.endpoint), *cls.listing_paths())
        if source in asked:
            continue
        asked.add(source)
        try:
            budget = Budgets(clock).requests(cls, options)
            found |= fetch_listing(cls, options.endpoint, clock, budget, threading.Event())
        except SourceError as error:
            raise SourceError(f"{exchange}: the list of markets can't be had: {error}") from None
    for market in sorted(found):
        out.print(market, highlight=False, markup=False)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    db: DbOption = None,
) -> None:
    """Copy the database while the collector runs, and verify the copy."""
    path = database_of(context, db)
    if is_url(path):
        raise ConfigError("backup copies an SQLite file; for PostgreSQL use its own pg_dump or pg_basebackup")
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True,
                  disable=not err.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("backup", total=1.0)
        backup_database(Path(path), file, progress=lambda fraction: progress.update(task, completed=fraction))
    err.print(f"{file}: {show_bytes(file.stat().st_size)}, verified", markup=False)


def migrate(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Option("--from", help="The SQLite file; default: storage.path (DB_PATH).")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", help="postgresql://...; default: DATABASE_URL or storage.url.")
    ] = None,
) -> None:
    """Copy an SQLite database into PostgreSQL and prove it equal; may be repeated. The collector must be stopped."""
    if source is None:
        source = context.obj().storage.path
    if target is None:
        found = context.obj().database
        if not is_url(found):
            raise ConfigError("where to? Name the PostgreSQL database with --to, DATABASE_URL or storage.url")
        target = str(found)
    waiting = spool_inspect.status(source.with_name(f"{source.name}.spool")).batches
    if waiting:
        raise StorageError(
            f"{waiting} batches still wait in the spool of {source}; run the collector on that file until it has "
            "stored them"
        )
    from storage.migrate import migrate as copy_database  # only here: it takes memory that SQLite does without

    receipt_file = source.with_name(f"{source.name}.migrated.json")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True,
        disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("copy", total=1.0)
        receipt = copy_database(source, target, lambda fraction: progress.update(task, completed=fraction))
    receipt_file.write_bytes(msgspec.json.format(msgspec.json.encode(receipt)) + b"\n")
    err.print(f"{receipt.summary()}\nThe receipt is in {receipt_file}.", markup=False, highlight=False, soft_wrap=True)
