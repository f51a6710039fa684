"""docs/postgresql.md: what differs from SQLite is named and nothing else, and what it shows runs."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from collector.records import KEYFRAME, BookRow, CoverageMark, EpochOpened
from storage.postgres import PostgresStore
from storage.sqlite import SQLiteStore
from storage.store import Run
from tests.storage.story import batch

TEXT = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text("utf-8")
T0 = 1_795_219_200_000_000  # 2026-11-21
COLUMNS = """
SELECT c.relname || '.' || a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0 AND NOT c.relispartition
"""


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    store = PostgresStore(postgres_url)
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0, 15)
    book = BookRow(1, 1, 0, None, None, KEYFRAME, '[["1","2"]]', '[["3","4"]]')
    store.write(batch(Run("run", "seoul", "1", T0), 1, opened, book, CoverageMark(1, T0 + 9, T0 + 9, 1)), T0)
    yield postgres_url
    store.release()


def columns_of_sqlite(path: Path) -> set[str]:
    store = SQLiteStore(path)
    store.open()
    store.release()
    with closing(sqlite3.connect(path)) as db:
        tables = db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')").fetchall()
        return {
            f"{table}.{column[1]}"
            for (table,) in tables
            if not table.startswith("sqlite_")
            for column in db.execute(f"PRAGMA table_info({table})")
        }


def ask(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


def test_every_difference_is_named_and_no_other(url: str, tmp_path: Path) -> None:
    here = {name for (name,) in ask(url, COLUMNS)}
    there = columns_of_sqlite(tmp_path / "c.sqlite")
    (table,) = re.findall(r"\| here \| there \|.*?\n\n", TEXT, re.DOTALL)
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", table))
    assert named == here ^ there


def test_every_query_runs_and_finds_something(url: str) -> None:
    queries = [sql for sql in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) if sql.startswith("--")]
    assert len(queries) == 4
    for query in queries:
        assert ask(url, query), query


def test_the_roles_and_grants_are_enough(postgres_address: str, tmp_path: Path) -> None:
    """The set-up as it is written, but for the names: a collector that owns its database, and one who only looks."""
    setup, grants = (sql for sql in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) if not sql.startswith("--"))
    names = {"collector": "test_collector", "market": "test_market", "analyst": "test_analyst"}

    def renamed(text: str) -> str:
        return re.sub(r"\b(collector|market|analyst)\b", lambda found: names[found[0]], text)

    parts = urlsplit(postgres_address)

    def url(role: str, password: str) -> str:
        return parts._replace(netloc=f"{role}:{password}@{parts.hostname}:{parts.port}", path="/test_market").geturl()

    for statement in renamed(setup).strip().split("\n"):
        ask(postgres_address, statement)
    try:
        store = PostgresStore(url("test_collector", "choose-one"))
        store.check()
        ask(parts._replace(path="/test_market").geturl(), renamed(grants))
        opened = EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", T0, 15)
        book = BookRow(1, 1, 0, None, None, KEYFRAME, '[["1","2"]]', '[["3","4"]]')
        store.write(batch(Run("run", "seoul", "1", T0), 1, opened, book, CoverageMark(1, T0 + 9, T0 + 9, 1)), T0)
        store.release()
        (example,) = re.findall(r"```python\n(from storage import .*?)```", TEXT, re.DOTALL)
        example = example.replace('"books.json"', repr(str(tmp_path / "books.json")))
        found: dict[str, Any] = {}
        exec(re.sub(r'"postgresql://analyst.*?"', repr(url("test_analyst", "another")), example), found)
        assert found["book"].bids == (("1", "2"),)
    finally:
        ask(postgres_address, "DROP DATABASE IF EXISTS test_market WITH (FORCE)")
        for role in ("test_collector", "test_analyst"):
            ask(postgres_address, f"DROP ROLE IF EXISTS {role}")


def test_the_example_of_a_copy_names_what_there_is() -> None:
    (example,) = re.findall(r"```python\n(from storage.migrate.*?)```", TEXT, re.DOTALL)
    compile(example, "docs/postgresql.md", "exec")
    assert "receipt.summary()" in example
