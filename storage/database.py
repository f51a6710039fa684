"""Which database a name means: `postgresql://...` a server, anything else an SQLite file.

What PostgreSQL needs is loaded only where it is used: a collector on SQLite does not pay its memory.
"""

from pathlib import Path
from typing import Any, Protocol

from collector.clock import Clock
from collector.log import Log
from storage.maintenance import Housekeeping
from storage.sqlite import SQLiteStore
from storage.store import Store

SCHEMES = ("postgresql://", "postgres://")


class Keeper(Protocol):
    """Keeps house a small step at a time; see `storage.maintenance.Housekeeping`."""

    def step(self, log: Log) -> bool:
        """Do one small transaction, if it is time; return whether more is waiting to be done."""


def is_url(database: str | Path) -> bool:
    """Tell whether a database is a PostgreSQL server's."""
    return isinstance(database, str) and database.startswith(SCHEMES)


def shown(database: str | Path) -> str:
    """Return what messages may call a database: never with its password."""
    if not is_url(database):
        return str(database)
    from storage.postgres_database import Address

    return Address(str(database)).shown


def make_store(database: str | Path, clock: Clock, **limits: Any) -> tuple[Store, Keeper]:
    """Return the store of a database, not opened yet, and what keeps house in it.

    `limits` are those of `Housekeeping`. Raises `ConfigError` for an address that can't be read.
    """
    if not is_url(database):
        file = SQLiteStore(Path(database))
        return file, Housekeeping(file, clock, **limits)
    from storage.postgres import PostgresStore
    from storage.postgres_maintenance import PostgresHousekeeping

    server = PostgresStore(str(database))
    return server, PostgresHousekeeping(server, clock, **limits)
