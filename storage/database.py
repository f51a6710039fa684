"""Which database a name means: `postgresql://...` a server, anything else an SQLite file.

What PostgreSQL needs is loaded only where it is used: a collector on SQLite does not pay its memory.
"""

from pathlib import Path
from typing import Protocol

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


def make_store(database: str | Path) -> Store:
    """Return the store of a database, not opened yet; raises `ConfigError` for an address that can't be read."""
    if not is_url(database):
        return SQLiteStore(Path(database))
    from storage.postgres import PostgresStore

    return PostgresStore(str(database))


def make_keeper(store: Store, clock: Clock, **limits: int) -> Keeper:
    """Return what keeps house in a store; `limits` are those of `Housekeeping`."""
    if isinstance(store, SQLiteStore):
        return Housekeeping(store, clock, **limits)
    from storage.postgres import PostgresStore
    from storage.postgres_maintenance import PostgresHousekeeping

    if not isinstance(store, PostgresStore):
        raise TypeError(f"nobody keeps house in {store!r}")
    return PostgresHousekeeping(store, clock, **limits)
