"""The benchmarks run, in a small dose, and count right; their figures are nobody's promise."""

import json

import orjson
import pytest

from bench import flood, parse, writer
from bench.__main__ import main
from bench.frames import upbit_frames
from collector.numbers import to_decimal


def test_the_frames_are_upbit_s_and_add_up() -> None:
    frames = list(upbit_frames(50))
    assert len(set(frames)) == 50
    for frame in frames:
        read = json.loads(frame, parse_float=str)
        assert len(read["obu"]) == 30
        assert to_decimal(read["tas"]) == sum(to_decimal(unit["as"]) for unit in read["obu"])
        assert to_decimal(read["tbs"]) == sum(to_decimal(unit["bs"]) for unit in read["obu"])


def test_parsing_is_compared_with_plain_decoding() -> None:
    rows = list(parse.run(frames=20, rounds=2))
    assert rows[0].ratio == 1
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)


def test_the_writer_is_compared_with_itself_idle() -> None:
    rows = list(writer.run(seconds=0.05))
    assert [row.ratio for row in rows if row.name.endswith(" 0 busy")] == [1, 1, 1]
    assert all(row.value > 0 for row in rows)


def test_every_message_of_the_flood_is_committed() -> None:
    rows = {row.name: row for row in flood.run(seconds=1.0)}  # raises where the sums do not close
    assert rows["collector, messages accounted for"].value > 0
    assert len(rows) == 5


def test_json_is_printed_when_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(parse.run(frames=5, rounds=1))
    monkeypatch.setattr("bench.parse.run", lambda: few)
    main(["parse"], json=True)
    assert [row["name"] for row in orjson.loads(capsys.readouterr().out)["parse"]] == [row.name for row in few]
