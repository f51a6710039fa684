"""The databases a chaos run writes to, and the ways in which each can be taken away for a while."""

import contextlib
import secrets
import sqlite3
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from collector.errors import ConfigError
from collector.settings import DATABASE_VARIABLE
from commands.chaos.server import LocalServer

PATIENCE_S = 2  # to get a lock that is to keep the daemon waiting


class Subject(Protocol):
    """One database."""

    outages: tuple[str, ...]
    settings: dict[str, Any]  # what `storage` says of it
    environment: dict[str, str]
    judged: Path | str  # as the judge takes it
    shown: str

    def begin(self, outage: str) -> bool:
        """Take the database away; False where that is not possible now."""

    def end(self) -> None:
        """Give it back; may be called when it was not away."""

    def close(self, *, keep: bool) -> None:
        """End whatever was begun for the run; its tables stay where they are to be kept."""


class SqliteSubject:
    """A file. It can only be locked, by somebody else who writes to it."""

    outages: tuple[str, ...] = ("lock",)

    def __init__(self, folder: Path) -> None:
        self._path = folder / "collector.sqlite"
        self.judged: Path | str = self._path
        self.settings: dict[str, Any] = {"path": str(self._path)}
        self.environment: dict[str, str] = {}
        self.shown = str(self._path)
        self._lock: sqlite3.Connection | None = None

    def begin(self, outage: str) -> bool:
        """Begin a transaction that lets no other writer in."""
        if not self._path.exists():
            return False
        lock = sqlite3.connect(self._path, isolation_level=None, timeout=PATIENCE_S)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            lock.close()
            return False
        self._lock = lock
        return True

    def end(self) -> None:
        """Roll it back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def close(self, *, keep: bool) -> None:
        """Leave the file to whoever deletes the folder."""
        self.end()


class PostgresSubject:
    """A schema of its own on a server: on one that is begun for the run, or on the user's, which is left running."""

    def __init__(self, url: str | None) -> None:
        import psycopg

        self._server = LocalServer() if url is None else None
        self._address = self._server.url if self._server is not None else str(url)
        self.outages: tuple[str, ...] = ("lock", "terminate")
        if self._server is not None:
            self.outages += ("stop", "kill", "freeze")
        self._schema = f"collector_chaos_{secrets.token_hex(4)}"
        try:
            with psycopg.connect(self._address, autocommit=True, connect_timeout=10) as db:
                db.execute(f"CREATE SCHEMA {self._schema}".encode())
        except psycopg.Error as error:
            self.close(keep=False)
            text = " ".join(str(error).split())
            raise ConfigError(f"--store: no schema can be made in that database: {text}") from None
        self._url = self._own_address()
        self.judged: Path | str = self._url
        self.settings: dict[str, Any] = {}
        self.environment = {DATABASE_VARIABLE: self._url}
        where = urlsplit(self._address).hostname if self._server is None else f"the server in {self._server.folder}"
        self.shown = f"schema {self._schema} of {where}"
        self._away = ""
        self._lock: psycopg.Connection | None = None

    def _own_address(self) -> str:
        parts = urlsplit(self._address)
        query = dict(parse_qsl(parts.query))
        query["options"] = f"{query.get('options', '')} -csearch_path={self._schema}".strip()
        query["application_name"] = self._schema
        return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))

    def begin(self, outage: str) -> bool:
        """Stop, kill or freeze the server, lock the collector out, or end its sessions."""
        match outage:
            case "lock":
                return self._lock_out()
            case "terminate":
                return self._terminate()
            case "stop" if self._server is not None:
                self._server.stop()
            case "kill" if self._server is not None:
                self._server.kill()
            case "freeze" if self._server is not None:
                self._server.freeze()
        self._away = outage
        return True

    def _lock_out(self) -> bool:
        import psycopg

        lock = psycopg.connect(self._url, connect_timeout=10)
        try:
            lock.execute(f"SET lock_timeout = '{PATIENCE_S}s'".encode())
            lock.execute("LOCK TABLE run IN ACCESS EXCLUSIVE MODE")
        except psycopg.Error:  # there is no such table yet, or somebody holds it
            lock.close()
            return False
        self._lock = lock
        return True

    def _terminate(self) -> bool:
        import psycopg

        with psycopg.connect(self._address, autocommit=True, connect_timeout=10) as db:
            ended = db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (self._schema,)
            ).fetchall()
        return bool(ended)

    def end(self) -> None:
        """Start it again, let it go on, let the collector in."""
        away, self._away = self._away, ""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._server is not None:
            if away == "freeze":
                self._server.thaw()
            elif away:
                self._server.start()

    def close(self, *, keep: bool) -> None:
        """Drop the schema of the user's database; end a server of our own."""
        import psycopg

        if self._server is not None and keep:
            self._server.stop()
        elif self._server is not None:
            self._server.remove()
        elif not keep:
            with (
                contextlib.suppress(psycopg.Error),
                psycopg.connect(self._address, autocommit=True, connect_timeout=10) as db,
            ):
                db.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE".encode())


def subject(store: str, folder: Path) -> Subject:
    """Return what `--store` means; raises `ConfigError`."""
    if store == "sqlite":
        return SqliteSubject(folder)
    if store == "postgres":
        return PostgresSubject(None)
    if store.startswith(("postgresql://", "postgres://")):
        return PostgresSubject(store)
    raise ConfigError(f"--store: {store!r} is no store; allowed: sqlite, postgres, postgresql://...")
