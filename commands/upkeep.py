"""The commands of whoever looks after a collector: `check`, `markets`, `backup`."""

from pathlib import Path
from typing import Annotated

import requests
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import controllers
from collector.config import describe
from collector.errors import SourceError
from commands.daemon import planned
from commands.options import DbOption, database_of
from commands.screen import err, out, show_bytes
from storage.maintenance import backup as backup_database


def check(context: typer.Context) -> None:
    """Check the configuration and show every setting with where it comes from; starts nothing."""
    settings = context.obj()
    rows = [("setting", "value", "from"), *describe(settings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:  # whole, whatever the width of the terminal: what is cut off helps nobody
        out.print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}", markup=False, highlight=False, soft_wrap=True)
    feeds = sum(len(markets) for _, markets, _ in planned(settings))
    out.print(f"\nok: {feeds} feeds on {len(list(planned(settings)))} connections", highlight=False)


def markets(
    context: typer.Context, exchange: Annotated[str, typer.Argument(help="An exchange, such as upbit.")]
) -> None:
    """List the markets an exchange trades now, as the configuration names them."""
    cls = controllers.controller_class(exchange.lower())
    options = context.obj().exchanges.get(exchange.lower())
    base = (options.endpoint.rest if options else None) or cls.rest_url
    try:
        response = requests.get(base + cls.listing_path, timeout=10)
        response.raise_for_status()
    except requests.RequestException as error:
        raise SourceError(f"{exchange}: the list of markets can't be had: {error}") from None
    for market in sorted(cls.parse_listing(response.content)):
        out.print(market, highlight=False, markup=False)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    db: DbOption = None,
) -> None:
    """Copy the database while the collector runs, and verify the copy."""
    path = database_of(context, db)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True,
                  disable=not err.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("backup", total=1.0)
        backup_database(path, file, progress=lambda fraction: progress.update(task, completed=fraction))
    err.print(f"{file}: {show_bytes(file.stat().st_size)}, verified", markup=False)
