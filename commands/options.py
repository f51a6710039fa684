"""Options that several commands take, and what their text means; a text that means nothing is a `ConfigError`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from collector.errors import ConfigError
from collector.settings import MARKET_PATTERN, Settings
from collector.times import parse_time
from storage.database import is_url

MarketOption = Annotated[
    list[str] | None,
    typer.Option("--market", "-m", help="A market such as ETH-KRW instead of those of the file; repeatable."),
]
DbOption = Annotated[
    str | None, typer.Option("--db", help="The database instead of storage.path: a file, or postgresql://...")
]
LanguageOption = Annotated[str | None, typer.Option("--language", help="Language of the log: ko or en.")]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Start: 2026-11-21T03:04:05.678Z, 2026-11-21 (UTC), Unix seconds.")
]
ToOption = Annotated[str | None, typer.Option("--to", help="End, not included; the same forms.")]


def database_of(context: typer.Context, db: str | None) -> str | Path:
    """Return the database a command reads: `--db`, or the one of the settings."""
    if db is None:
        settings: Settings = context.obj()
        return settings.database
    return db if is_url(db) else Path(db)


def spool_of(context: typer.Context, db: str | None) -> Path | None:
    """Return the spool of the database a command reads; None for a server's that no settings name."""
    if db is None:
        settings: Settings = context.obj()
        return settings.spool_path
    return None if is_url(db) else Path(f"{db}.spool")


def market_names(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the markets as they were typed, if all of them can be one."""
    for name in names or ():
        if not re.fullmatch(MARKET_PATTERN, name):
            raise ConfigError(f"--market: {name!r} is not a market; allowed: SYMBOL-CURRENCY in upper case")
    return tuple(names or ())


def time_range(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """Return `--from` and `--to` in microseconds; None where there is no bound."""
    start_us, end_us = moment_us(start), moment_us(end)
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise ConfigError(f"--from {start} is not before --to {end}: nothing lies between them")
    return start_us, end_us


def moment_us(text: str | None) -> int | None:
    """Return a moment in microseconds; None if none was typed."""
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None
