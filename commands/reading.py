"""The commands that get the recorded data out of the database: `export`, `book`, `coverage`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from collector.errors import CollectorError, ConfigError
from collector.records import ORDERBOOK
from collector.times import show_duration, show_time
from commands.options import DbOption, FromOption, ToOption, database_of, moment_us, spool_of, time_range
from commands.screen import err, out
from storage import DataConverter
from storage.coverage import STATES, FeedCoverage
from storage.coverage import coverage as coverage_of
from storage.pending import pending
from storage.reader import NAMES, Gap, Reader

Format = Literal["json", "ndjson", "csv"]
Channel = Literal["orderbook", "trades", "ticker", "candles"]


def export(
    context: typer.Context,
    exchange: Annotated[str, typer.Argument(help="An exchange, such as UPBIT.")],
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output, .gz compresses.")],
    market: Annotated[
        str | None, typer.Option("--market", "-m", help="One market; default: all of the exchange.")
    ] = None,
    channel: Annotated[Channel, typer.Option("--channel", "-c", help="What to write.")] = "orderbook",
    start: FromOption = None,
    end: ToOption = None,
    format: Annotated[Format | None, typer.Option("--format", "-f", help="Default: by the file's name.")] = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Prices and volumes as numbers instead of text.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    db: DbOption = None,
) -> None:
    """Write what was recorded of an exchange as JSON, one complete book for every update, with a receipt beside it.

    Or its trades, its tickers, or its candles of one minute: --channel.
    """
    path = database_of(context, db)
    start_us, end_us = time_range(start, end)
    if format is None:
        format = _format_of(file)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]} {task.fields[what]}"),
        TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        what = "books" if channel == "orderbook" else NAMES[channel]
        task = progress.add_task(f"{exchange.upper()} {market or 'all markets'}", total=1.0, done=0, what=what)
        receipt = DataConverter(path).export(
            exchange,
            file,
            channel=channel,
            format=format,
            market=market,
            start=start_us,
            end=end_us,
            numbers=numbers,
            overwrite=overwrite,
            progress=lambda done, fraction: progress.update(task, completed=fraction, done=done),
        )
    err.print(receipt.summary(), markup=False)


def _format_of(file: Path) -> Format:
    suffix = Path(file.name.removesuffix(".gz")).suffix
    known: dict[str, Format] = {".json": "json", ".ndjson": "ndjson", ".csv": "csv", "": "json"}
    if suffix not in known:
        raise ConfigError(f"{file}: what {suffix} means is not known; name it .json, .ndjson or .csv, or use --format")
    return known[suffix]


def book(
    context: typer.Context,
    exchange: Annotated[str, typer.Argument(help="An exchange, such as UPBIT.")],
    market: Annotated[str, typer.Option("--market", "-m", help="The market.")] = "BTC-KRW",
    at: Annotated[str | None, typer.Option("--at", help="The moment; default: the newest book.")] = None,
    depth: Annotated[int, typer.Option(min=0, help="Levels a side; 0 for all.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    db: DbOption = None,
) -> None:
    """Show the exact book at a moment, or say that nobody was listening then."""
    with Reader(database_of(context, db)) as reader:
        moment = moment_us(at)
        found = reader.book_at(exchange, market, moment) if moment is not None else reader.newest(exchange, market)
    if isinstance(found, Gap):
        raise CollectorError(f"no book of {exchange.upper()} {market} then: {found}")
    if json:
        sys.stdout.buffer.write(orjson.dumps(_book_json(found, depth), option=orjson.OPT_APPEND_NEWLINE))
        return
    table = Table("volume", "bid", "ask", "volume", box=None, pad_edge=False)
    levels = max(len(found.bids), len(found.asks))
    for at_level in range(min(depth or levels, levels)):
        bid = found.bids[at_level] if at_level < len(found.bids) else ("", "")
        ask = found.asks[at_level] if at_level < len(found.asks) else ("", "")
        table.add_row(bid[1], bid[0], ask[0], ask[1])
    out.print(table, highlight=False)
    flags = "".join(f", {flag}" for flag in found.flag_names)
    unit = f", sizes in units of {found.unit}" if found.unit else ""
    out.print(
        f"{found.exchange} {found.market} received {show_time(found.received_us)}, {len(found.bids)} bids, "
        f"{len(found.asks)} asks, {found.transport}, {found.verdict}{unit}{flags}, epoch {found.epoch} row {found.n}",
        highlight=False,
        soft_wrap=True,
    )


def _book_json(found: Any, depth: int) -> dict[str, Any]:
    return {
        "exchange": found.exchange,
        "market": found.market,
        "received": show_time(found.received_us),
        "received_us": found.received_us,
        "venue_us": found.venue_us,
        "epoch": found.epoch,
        "n": found.n,
        "transport": found.transport,
        "verdict": found.verdict,
        "unit": found.unit,
        "flags": found.flag_names,
        "asks": found.asks[: depth or None],
        "bids": found.bids[: depth or None],
    }


def coverage(
    context: typer.Context,
    start: FromOption = None,
    end: ToOption = None,
    exchange: Annotated[str | None, typer.Option("--exchange", "-e", help="One exchange.")] = None,
    market: Annotated[str | None, typer.Option("--market", "-m", help="One market.")] = None,
    channel: Annotated[Channel | None, typer.Option("--channel", "-c", help="One channel.")] = None,
    format: Annotated[Literal["table", "json"], typer.Option("--format", "-f", help="How to print it.")] = "table",
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    db: DbOption = None,
) -> None:
    """Show for every feed when it was heard and when not, and why; the shares add up to 100 %."""
    with Reader(database_of(context, db)) as reader:
        start_us, end_us = time_range(start, end)
        spool = spool_of(context, db)
        waiting = pending(spool, reader) if spool is not None else {}
        feeds = coverage_of(
            reader, start_us, end_us, exchange=exchange, market=market, channel=channel, pending=waiting
        )
    if json or format == "json":
        sys.stdout.buffer.write(orjson.dumps([feed.as_dict() for feed in feeds], option=orjson.OPT_APPEND_NEWLINE))
    else:
        print_coverage(feeds)


def print_coverage(feeds: Sequence[FeedCoverage]) -> None:
    """Print a row for every feed; where all are of order books nobody needs to be told."""
    named = any(feed.channel != ORDERBOOK for feed in feeds)
    table = Table(box=None, pad_edge=False)
    for name in ("exchange", "market", *(["channel"] if named else [])):
        table.add_column(name, no_wrap=True)  # a feed that nobody can tell apart is worse than a line more
    usual = ("DATA", "QUIET", "GAP")
    states = [state for state in STATES if state in usual or any(feed.us(state) for feed in feeds)]
    for name in (*(state.lower() for state in states), "gaps", "longest gap"):
        table.add_column(name, justify="right")
    shared = any(len(feed.collectors) > 1 for feed in feeds)
    if shared:
        table.add_column("collectors")
    for feed in feeds:
        longest = max(feed.gaps, key=lambda gap: gap.until_us - gap.from_us, default=None)
        told = f"{show_duration(feed.longest_gap_us / 1e6)} {longest.reason}" if longest else ""
        shares = [f"{feed.percent[state]} %" for state in states]
        heard_by = [", ".join(feed.collectors)] if shared else []
        where = [feed.exchange, feed.market, *([feed.channel] if named else [])]
        table.add_row(*where, *shares, str(len(feed.gaps)), told, *heard_by)
    out.print(table, highlight=False)
