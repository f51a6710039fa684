"""The benchmarks run, in a small dose, and count right; their figures are nobody's promise."""

import json
import operator
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import typer

from bench import flood, parse, size, writer
from bench.__main__ import ALL, main
from bench.frames import upbit_frames, venue_frames
from bench.measure import in_turns, row
from bench.sender import sender
from collector.numbers import to_decimal
from collector.records import BookRow
from controllers import controller_class
from controllers.upbit import Upbit
from storage.sqlite import SQLiteStore
from storage.store import Batch

PERFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def test_the_frames_are_upbit_s_and_add_up() -> None:
    frames = list(upbit_frames(50))
    assert len(set(frames)) == 50
    for frame in frames:
        read = json.loads(frame, parse_float=str)
        assert len(read["obu"]) == 30
        assert to_decimal(read["tas"]) == sum(to_decimal(unit["as"]) for unit in read["obu"])
        assert to_decimal(read["tbs"]) == sum(to_decimal(unit["bs"]) for unit in read["obu"])


def test_a_frame_differs_from_the_next_by_a_few_levels_and_markets_differ() -> None:
    frames = [json.loads(frame)["obu"] for frame in upbit_frames(100)]
    sizes = [[unit[key] for unit in frame for key in ("as", "bs")] for frame in frames]
    changed = sorted(sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(sizes))
    assert 1 <= changed[50] <= 4
    assert next(upbit_frames(1, market="KRW-A"))[40:] != next(upbit_frames(1, market="KRW-B"))[40:]


def test_rounds_are_taken_in_turn_and_a_ratio_is_one_of_a_round() -> None:
    order: list[str] = []
    values = iter((1.0, 2.0, 10.0, 30.0, 2.0, 8.0))

    def candidate(name: str) -> float:
        order.append(name)
        return next(values)

    found = in_turns({"a": lambda: candidate("a"), "b": lambda: candidate("b")}, 3)
    assert order == ["a", "b"] * 3
    assert row("b", found["b"], "µs", found["a"], "5").ratio == 3.0  # of 2, 3 and 4; of the medians it would be 4
    assert row("b", found["b"], "µs", found["a"]).spread == 2.0
    assert row("a", found["a"], "µs", found["a"]).ratio == 1.0
    assert row("a", found["a"], "µs", found["a"]).spread == 10.0


def test_parsing_is_compared_with_plain_decoding_for_every_venue() -> None:
    rows = list(parse.run(frames=20, rounds=2, other_rounds=2))
    assert all(each.ratio is not None and each.ratio > 0 for each in rows)
    assert {each.name.split(":")[0].split()[0] for each in rows} >= {"Upbit", "bithumb", "coinone", "gopax", "korbit"}
    assert [each.ratio for each in rows if "orjson" in each.name] == [1.0] * (len(rows) // 3)


@pytest.mark.parametrize(("exchange", "transport"), parse.OTHERS)
def test_what_a_venue_sends_makes_rows(exchange: str, transport: str) -> None:
    frames = venue_frames(exchange, 30, polled=transport == "rest")
    assert len(frames) == 30
    controller = controller_class(exchange, transport)(("BTC-KRW",), parse.setup())
    controller.anchor()
    for frame in frames:
        controller.handle(frame, controller.clock.monotonic_us())
    controller.flush()
    made = [record for delivery in controller.setup.intake.take(1000) for record in delivery.records]
    rows = sum(isinstance(record, BookRow) for record in made)
    assert rows >= (10 if exchange == "bithumb" else 20)  # which repeats many of its books


def test_a_message_that_is_rejected_is_not_measured() -> None:
    controller = Upbit(("BTC-KRW",), parse.setup())
    controller.anchor()
    with pytest.raises(RuntimeError, match="rejected a message"):
        parse._handler(controller, [b"{"])()


def test_the_writer_is_compared_with_itself_idle() -> None:
    rows = list(writer.run(seconds=0.03, rounds=1))
    assert [each.ratio for each in rows if each.name.endswith(" 0 busy")] == [1, 1, 1]
    assert len(rows) == 9
    assert all(each.value > 0 for each in rows)


def test_every_message_of_the_flood_is_committed() -> None:
    rows = {each.name: each for each in flood.run(seconds=0.3, rounds=1)}  # raises where the sums do not close
    assert rows["collector, messages committed"].value > 0
    assert rows["collector, rows for each message"].value > 0.9  # each message differs from the one before
    assert len(rows) == (7 if flood.PINS else 4)


def test_a_message_that_is_not_in_the_store_ends_the_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    write = SQLiteStore.write

    def forget(store: SQLiteStore, batch: Batch, now_us: int) -> int:
        return write(store, Batch(batch.run, batch.number, batch.deliveries[:1]), now_us)

    monkeypatch.setattr(SQLiteStore, "write", forget)
    with sender(flood.MARKETS) as url, pytest.raises(RuntimeError, match="accounted for in the store"):
        flood._collect(url, 0.3)


def test_a_receiver_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="a receiver failed"):
        flood._measure(cast(Any, operator.truediv), "", 0.05, False)


def test_a_row_of_the_book_is_what_size_measures() -> None:
    rows = list(size.run(updates=300))
    assert rows[-1].name.startswith("generated")
    assert all(50 < each.value < 1000 for each in rows)


def test_json_is_printed_when_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(parse.run(frames=5, rounds=1, other_rounds=1))
    monkeypatch.setattr("bench.parse.run", lambda: few)
    main(["parse"], json=True)
    assert [each["name"] for each in orjson.loads(capsys.readouterr().out)["parse"]] == [each.name for each in few]


def test_all_is_all_and_another_name_is_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALL:
        monkeypatch.setattr(f"bench.{name}.run", list)
    main(["all"], json=True)
    assert list(orjson.loads(capsys.readouterr().out)) == list(ALL)
    with pytest.raises(typer.BadParameter, match="speed"):
        main(["speed"])


def test_every_benchmark_is_in_the_docs() -> None:
    text = PERFORMANCE.read_text("utf-8")
    assert [name for name in ALL if not re.search(rf"`{name}`", text)] == []
