"""A PostgreSQL database: its address, a session in it, what its errors mean, and its schema.

A session notices a server that is silent: whatever is asked is answered, refused or given up within `PATIENCE_S`. No
text that leaves this module holds a password.
"""

import logging
import re
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from collector.errors import ConfigError, NotOurs, StorageBusy, StorageCorrupt, StorageError, StorageFull
from storage.database import is_url
from storage.store import numbered_sql

MIGRATIONS = Path(__file__).parent / "migrations" / "postgres"

PATIENCE_S: Final = 10.0
_STATEMENT_MS = 8_000  # the server gives up first, and says why
_LOCK_MS = 4_000
_MIGRATION_S = 600.0

# First half of the advisory locks that collectors of one database share; the second half is the schema's name.
LOCK_SCHEMA = 0x434F4C4C  # "COLL"
LOCK_PARTITIONS = LOCK_SCHEMA + 1

# What the address does not say itself.
_DEFAULTS: dict[str, Any] = {
    "application_name": "collector",
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}
# The library tells of lost connections by itself; whoever called is told anyway.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

_SECRETS = ("password", "sslpassword", "oauth_client_secret")
_FOREIGN = """
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND NOT EXISTS (SELECT FROM pg_depend AS d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
LIMIT 1
"""
_HAS_MARK = """
SELECT EXISTS (SELECT FROM pg_class
               WHERE relname = 'collector_schema' AND relnamespace = current_schema()::regnamespace)
"""


def migrations() -> list[tuple[int, str]]:
    """Return the numbered schema steps as (number, SQL), in order."""
    return numbered_sql(MIGRATIONS)


SCHEMA_VERSION = migrations()[-1][0]


class Session(psycopg.Connection[TupleRow]):
    """A connection that does not wait for ever; `patience_s` is what one statement may take."""

    patience_s: float = PATIENCE_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait for the server; where it is silent for too long the connection is of no use any more."""
        patience_s = self.patience_s if timeout is None else timeout
        try:
            return super().wait(gen, interval, patience_s)
        except errors._WaitTimeout:
            self.close()
            raise psycopg.OperationalError(f"the server was silent for {patience_s:g} s") from None


class Address:
    """Where a database is. Raises `ConfigError` for text that is no address; what it was is not repeated there.

    `advice` ends the message of what passes by itself.
    """

    def __init__(self, url: str, *, advice: str = "try again") -> None:
        self._advice = advice
        given = _parse(url)
        if given is None:
            raise ConfigError(
                "the address of the database can't be read; allowed: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
                "with special characters of the password as %XX"
            )
        self._given = given
        host = str(given.get("host") or given.get("hostaddr") or "")
        port = f":{given['port']}" if given.get("port") else ""
        self.database = str(given.get("dbname") or given.get("user") or "")
        self.shown = f"postgresql://{host}{port}/{self.database}"

    def __repr__(self) -> str:
        return f"Address({self.shown})"

    def connect(self, *, writes: bool) -> Session:
        """Open a session: one for transactions on a server that takes writes, or one of single statements that read."""
        own = {"target_session_attrs": "read-write"} if writes else {}
        try:
            db = Session.connect(**(_DEFAULTS | own | self._given))
        except psycopg.Error as error:
            raise self.translate(error) from None
        try:
            db.autocommit = True
            db.execute(
                "SET synchronous_commit = on; SET client_min_messages = warning; SET TimeZone = 'UTC'; "
                f"SET statement_timeout = {_STATEMENT_MS}; SET lock_timeout = {_LOCK_MS}; "
                "SET idle_in_transaction_session_timeout = '60s'; "
                f"SET default_transaction_read_only = {'off' if writes else 'on'}; "
                "SET default_transaction_isolation = 'read committed'"
            )
            db.autocommit = not writes
        except psycopg.Error as error:
            db.close()
            raise self.translate(error) from None
        return db

    def translate(self, error: psycopg.Error) -> StorageError:
        """Return what an error of the server, or on the way to it, means to the caller."""
        text = f"{self.shown}: {self._without_secrets(' '.join(str(error).split()))}"
        state = error.sqlstate or ""
        if state == "53100":
            return StorageFull(f"{text}; free some space on the server, {self._advice}")
        if state in ("XX001", "XX002"):
            return StorageCorrupt(f"{text}; restore a backup")
        if state == "42501":
            return StorageError(
                f"{text}; make the collector's role the owner of its database, or grant what is missing"
            )
        lost = not state and isinstance(error, psycopg.OperationalError)
        if lost or state[:2] in ("08", "25", "28", "3D", "40", "53", "55", "57", "58"):
            return StorageBusy(f"{text}; {self._advice}")
        return StorageError(text)

    def _without_secrets(self, text: str) -> str:
        for name in _SECRETS:
            secret = self._given.get(name)
            if secret:
                text = text.replace(str(secret), "***")
        return text


def _parse(url: str) -> dict[str, Any] | None:
    # None for what can't be read. Why is not told: that may quote a piece of the password, and so may whatever comes of
    # an address whose password was not spelt as it must be, which libpq reads as other parts.
    if not is_url(url):
        return None
    authority = re.split("[/?]", url.partition("://")[2], maxsplit=1)
    if "@" in "".join(authority[1:]) or authority[0].count("@") > 1:
        return None
    try:
        given: dict[str, Any] = dict(conninfo_to_dict(url))
    except psycopg.Error:
        return None
    return given if re.fullmatch(r"[0-9,]*", str(given.get("port", "")), re.ASCII) else None


# --- schema ----------------------------------------------------------------------------------------------------------


def check_schema(db: Session, address: Address) -> int:
    """Return the version of the schema, 0 where there is none yet.

    Raises `NotOurs` where the database can't be used: it holds another program's tables, is from a newer collector, or
    is not in UTF-8.
    """
    schema, encoding = _one(db, "SELECT current_schema(), current_setting('server_encoding')")
    if encoding != "UTF8":
        raise NotOurs(f"{address.shown} is encoded in {encoding}; make a database with ENCODING 'UTF8'")
    if schema is None:
        raise NotOurs(f"{address.shown} has no schema this role may use; grant it USAGE and CREATE on one")
    (marked,) = _one(db, _HAS_MARK)
    if not marked:
        foreign = db.execute(_FOREIGN).fetchone()
        if foreign is not None:
            raise NotOurs(
                f"{address.shown} holds tables of another program ({foreign[0]} in schema {schema}); name an empty "
                "database, or an empty schema with ?options=-csearch_path%3DNAME"
            )
        return 0
    (version,) = _one(db, "SELECT coalesce(max(version), 0) FROM collector_schema")
    check_version(int(version), address)
    return int(version)


def check_version(version: int, address: Address) -> None:
    """Raise `NotOurs` for the schema of a newer collector."""
    if version > SCHEMA_VERSION:
        raise NotOurs(
            f"{address.shown} is from a newer collector (schema {version}, this one knows {SCHEMA_VERSION}); install "
            "that version, or name another database"
        )


def migrate_schema(db: Session, address: Address) -> None:
    """Bring the schema up to date, in one transaction; of several collectors that start at once one does it."""
    if check_schema(db, address) == SCHEMA_VERSION:
        db.rollback()
        return
    lock(db, LOCK_SCHEMA)
    version = check_schema(db, address)
    db.execute(
        "CREATE TABLE IF NOT EXISTS collector_schema "
        "(version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    patience_s, db.patience_s = db.patience_s, _MIGRATION_S
    db.execute(f"SET LOCAL statement_timeout = '{_MIGRATION_S:g}s'")
    for number, sql in migrations():
        if number > version:
            db.execute(sql, prepare=False)
            db.execute("INSERT INTO collector_schema (version) VALUES (%s)", (number,))
    db.commit()
    db.patience_s = patience_s


def lock(db: Session, which: int) -> None:
    """Keep other collectors of this schema from doing the same until the transaction ends."""
    db.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (which,))


def _one(db: Session, sql: str, values: tuple[object, ...] = ()) -> Any:
    return db.execute(sql, values).fetchone()
