"""What once went wrong in the store, or would have."""

import json
import sqlite3
import threading
from pathlib import Path

import pytest

import controllers
from collector.config import load
from collector.errors import StorageCorrupt
from collector.records import Delivery, Event
from commands.daemon import Daemon
from tests.conftest import WaitUntil
from tests.storage.build import OneRun


def told(text: str) -> list[Delivery]:
    return [Delivery("", 0, (Event(1, "INFO", "TEST", text),), 1)]


@pytest.fixture
def store(tmp_path: Path) -> OneRun:
    store = OneRun(tmp_path / "c.sqlite", "u", started_us=1)
    store.open()
    store.put(told("first"), 1)
    return store


def test_nothing_is_written_into_a_file_that_is_gone(store: OneRun, tmp_path: Path) -> None:
    store.path.rename(tmp_path / "aside")
    with pytest.raises(StorageCorrupt, match="removed or replaced"):
        store.put(told("lost"), 2)
    assert not store.path.exists(), "no new one comes into being, which would lack the tables"

    (tmp_path / "aside").rename(store.path)
    store.put(told("kept"), 3)
    assert [row[0] for row in store.connection.execute("SELECT text FROM event ORDER BY id")] == ["first", "kept"]
    store.release()


def test_nothing_is_written_where_another_file_took_its_place(store: OneRun) -> None:
    copy = store.path.read_bytes()
    store.path.unlink()
    store.path.write_bytes(copy)
    with pytest.raises(StorageCorrupt, match="removed or replaced"):
        store.put(told("lost"), 2)
    store.release()


def test_a_run_that_ends_in_order_is_closed_whatever_the_log_says_at_the_end(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    config = tmp_path / "c.yaml"
    nobody = {"websocket": "ws://127.0.0.1:9/", "rest": "http://127.0.0.1:9"}
    settings = {"exchanges": {"upbit": {"endpoint": nobody}}, "metrics": {"enabled": False}, "log": {"stderr": False}}
    config.write_text(json.dumps(settings))
    flags = {"storage.path": str(tmp_path / "c.sqlite"), "log.path": str(tmp_path / "logs")}
    daemon = Daemon(load(config, env={}, dotenv=None, flags=flags, known=controllers.known()))
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(daemon.run()))
    thread.start()
    wait_until(lambda: daemon.writer.committed_us)
    daemon.supervisor.stop()
    thread.join(20)

    assert status == [0]
    db = sqlite3.connect(tmp_path / "c.sqlite")
    (closed_us,) = db.execute("SELECT closed_us FROM run").fetchone()
    db.close()
    assert closed_us
