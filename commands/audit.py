"""The command that holds what was recorded against itself: `audit sides`."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import orjson
import typer
from rich.table import Table

from collector.records import TRADES
from commands.options import DbOption, FromOption, ToOption, database_of, time_range
from commands.screen import out
from storage.audit import SideAudit, audit_sides
from storage.reader import BookAt, Gap, Reader, UnknownFeed

app = typer.Typer(help="Hold what was recorded against itself.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Hold what was recorded against itself."""


@app.command()
def sides(
    context: typer.Context,
    start: FromOption = None,
    end: ToOption = None,
    exchange: Annotated[str | None, typer.Option("--exchange", "-e", help="One exchange.")] = None,
    market: Annotated[str | None, typer.Option("--market", "-m", help="One market.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    db: DbOption = None,
) -> None:
    """Count how many trades agree with the book before them: who buys pays the best ask, who sells takes the best bid.

    Undecided are trades between the two, and those of a time without a book.
    """
    start_us, end_us = time_range(start, end)
    with Reader(database_of(context, db)) as reader:
        feeds = reader.feeds(exchange, market, TRADES)
        if not feeds:
            raise UnknownFeed(f"{reader.name} holds no trades of what was asked for")
        with_books = {(feed.exchange, feed.market) for feed in reader.book_feeds()}
        audits = []
        for feed in feeds:
            books: Iterable[BookAt | Gap] = ()
            if (feed.exchange, feed.market) in with_books:
                books = reader.books(feed.exchange, feed.market, start_us, end_us, gaps=True)
            trades = reader.trades(feed.exchange, feed.market, start_us, end_us)
            audits.append(audit_sides(feed.exchange, feed.market, trades, books))
    if json:
        sys.stdout.buffer.write(orjson.dumps([each.as_dict() for each in audits], option=orjson.OPT_APPEND_NEWLINE))
    else:
        print_audits(audits)


def print_audits(audits: Sequence[SideAudit]) -> None:
    """Print a row for every market."""
    table = Table("exchange", "market", box=None, pad_edge=False)
    for name in ("trades judged", "agreeing", "contradicting", "undecided", "percent"):
        table.add_column(name, justify="right")
    for each in audits:
        counts = (each.judged, each.agreeing, each.contradicting, each.undecided)
        percent = "" if each.percent is None else f"{each.percent} %"
        table.add_row(each.exchange, each.market, *map(str, counts), percent)
    out.print(table, highlight=False)
