"""A database of either kind, for tests of what both keep to."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from storage.postgres import PostgresStore
from storage.reader import Reader
from storage.sqlite import SQLiteStore


class Place:
    """A database of one kind, for the stores that open it and for questions to it."""

    def __init__(self, database: Path | str) -> None:
        self.database = database
        self._open: list[PostgresStore | SQLiteStore] = []

    def store(self) -> PostgresStore | SQLiteStore:
        store = PostgresStore(self.database) if isinstance(self.database, str) else SQLiteStore(self.database)
        store.open()
        self._open.append(store)
        return store

    def close(self) -> None:
        while self._open:
            self._open.pop().release()

    def ask(self, sql: str) -> list[Any]:
        if isinstance(self.database, str):
            with psycopg.connect(self.database) as db:
                return db.execute(sql).fetchall()
        with closing(sqlite3.connect(self.database)) as lite:
            return lite.execute(sql).fetchall()

    def rows(self) -> list[tuple[int, int]]:
        """Epoch (as the database has it) and number of every row."""
        if isinstance(self.database, str):
            return self.ask("SELECT epoch, n FROM book ORDER BY epoch, n")
        return self.ask("SELECT id >> 24, id & 16777215 FROM book ORDER BY id")

    def ledger(self) -> list[Any]:
        return self.ask(
            "SELECT from_us, heard_until_us, confirmed_until_us, frames, c.reason, e.ended_us, e.reason, e.verdict "
            "FROM coverage AS c JOIN epoch AS e ON e.id = c.epoch ORDER BY e.id"
        )


def alike(places: list[Place], question: Callable[[Reader], Any]) -> Any:
    """Ask each of the two databases; return the answer they agree on."""
    answers = []
    for place in places:
        with Reader(place.database) as reader:
            answers.append(question(reader))
    assert answers[0] == answers[1]
    return answers[0]
