"""docs/data.md names every column there is and no other, and its queries run."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.records import REASONS
from storage.convert import DataConverter, Receipt
from tests.storage.build import T0, Builder

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "books.sqlite")
    epoch = builder.epoch(heard_us=T0 + 10)
    builder.row(epoch, 1, 0, bids=[("100", "1")], asks=[("101", "2")], keyframe=True)
    builder.db.execute("INSERT INTO rejected VALUES (1, 1, 'UPBIT', NULL, ?, 'why', ?)", (T0, b"{"))
    trades = builder.feed(channel="trades")
    builder.db.execute("INSERT INTO trade VALUES (?, ?, '7', ?, 1, 'buy', '100.50', '2')", (trades, T0, T0 + 5))
    yield builder
    builder.close()


def test_every_column_is_named_and_no_other(db: Builder) -> None:
    schema = {
        f"{table}.{column[1]}"
        for (table,) in db.db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')").fetchall()
        if not table.startswith("sqlite_")
        for column in db.db.execute(f"PRAGMA table_info({table})")
    }
    named = {name for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", TEXT) if not name.startswith("storage.")}
    assert named == schema


def test_every_query_runs_and_finds_something(db: Builder) -> None:
    queries = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    assert len(queries) >= 4
    for query in queries:
        assert db.db.execute(query).fetchall(), query


def test_the_python_examples_run(
    db: Builder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for channel in ("ticker", "candles"):
        db.feed(channel=channel)
    printed = []
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(example.replace("data/collector.sqlite", str(db.path)), {})
        printed.append(capsys.readouterr().out)
    books, streams = printed
    assert "nobody was listening: open from" in books
    assert f"{T0} buy 100.50 2 7" in streams


def test_examples_have_the_keys_of_an_export(db: Builder, tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    receipt = DataConverter(db.path).export("upbit", tmp_path / "a.ndjson", format="ndjson")
    assert list(json.loads(example)) == list(json.loads((tmp_path / "a.ndjson").read_text()))
    for name in Receipt.__struct_fields__:
        assert f"`{name}`" in TEXT
    assert receipt.books == 1


@pytest.mark.parametrize("reason", [*REASONS, "never", "open", "deleted", "missing"])
def test_every_reason_of_a_gap_is_told(reason: str) -> None:
    assert f"`{reason}`" in TEXT
