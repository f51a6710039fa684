import json
from pathlib import Path

import pytest

from simulator.ledger import Ledger


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    c = ledger.open("upbit", "websocket")
    s = ledger.subscribe(c, "upbit", "BTC-KRW", "orderbook")
    ledger.message(s, 1, "book", "sent", bids=(("1", "2"),), asks=(), venue_us=5, sequence=None)
    ledger.close(c, "why")
    written = lines(tmp_path / "l.jsonl")  # nothing was flushed or closed
    assert [line["kind"] for line in written] == ["open", "subscribe", "message", "close"]
    assert (c, s) == ("c1", "s1")
    assert written[2]["bids"] == [["1", "2"]]
    assert written[2]["subscription"] == "s1" and written[2]["i"] == 1
    assert all(isinstance(line["time_us"], int) and line["time_us"] > 10**15 for line in written)
    ledger.flush()


def test_numbering_goes_on_after_a_restart_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    first = Ledger(path)
    first.subscribe(first.open("upbit", "rest"), "upbit", "BTC-KRW", "orderbook")
    first.flush()
    with path.open("ab") as file:
        file.write(b'{"kind":"open","connec')
    second = Ledger(path)
    assert second.open("upbit", "rest") == "c2"
    assert second.subscribe("c2", "upbit", "BTC-KRW", "orderbook") == "s2"
    assert [line["kind"] for line in lines(path)] == ["open", "subscribe", "open", "subscribe"]
    second.flush()


def test_without_a_path_names_are_given_all_the_same() -> None:
    ledger = Ledger()
    assert [ledger.open("upbit", "rest") for _ in range(2)] == ["c1", "c2"]


def test_after_the_end_nothing_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.flush()
    ledger.flush()
    ledger.close("c1", "late")
    assert lines(tmp_path / "l.jsonl") == []


def test_a_path_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Ledger(tmp_path / "missing" / "l.jsonl")
