"""`make fuzz`: what it prints, and that it fails when something is found."""

from collections import Counter
from typing import Any

import pytest
import typer

from tests.fuzz import __main__ as program
from tests.fuzz import venues
from tests.fuzz.breach import Breach, Violation
from tests.fuzz.venues import OUTCOMES, targets


def run(capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, str]:
    """Run it with these options; return the exit status and what it printed."""
    with pytest.raises(typer.Exit) as left:
        program.main(**{"venue": None, "frames": 10, "mutations": 5, "spools": 3, "seed": 1, **options})
    return left.value.exit_code, capsys.readouterr().out


def test_every_target_has_its_row_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(capsys)
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[3:]}
    assert set(rows) == {*targets(), "settings", "spool"}
    for name, figures in rows.items():
        if name == "spool":
            assert int(figures[0]) == 3
            continue
        spoiled, *ended = (int(figure) for figure in figures[: 3 if name == "settings" else 1 + len(OUTCOMES)])
        assert spoiled == sum(ended) == (5 if name == "settings" else 10)


def test_one_exchange_alone_with_all_its_transports(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = run(capsys, venue=["bithumb"])
    assert [line.split()[0] for line in printed.splitlines()[3:]] == ["bithumb/rest", "bithumb/websocket"]


def test_one_class_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = run(capsys, venue=["bithumb/rest", "binance/websocket/usdm"])
    assert [line.split()[0] for line in printed.splitlines()[3:]] == ["binance/websocket/usdm", "bithumb/rest"]


def test_without_a_seed_another_one_is_drawn_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (run(capsys, venue=["settings"], seed=None)[1].split(",")[0] for _ in range(2))
    assert first != second
    assert first.startswith("seed ")


def test_an_exchange_that_is_not_there_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="nowhere: allowed are binance/websocket, "):
        program.main(venue=["nowhere"], frames=1, mutations=1, spools=1, seed=1)


def test_what_is_found_is_told_with_the_way_to_see_it_again_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuzz(cls: Any, *rest: object, **more: object) -> Counter[str]:
        if (cls.exchange, cls.transport) == ("gopax", "websocket"):
            raise Violation("gopax/websocket", 7, 12, b"<frame>", Breach("it is so"))
        return Counter(frames=3)

    monkeypatch.setattr(venues, "fuzz", fuzz)
    status, printed = run(capsys)
    assert status == 1
    assert "gopax/websocket, seed 7, number 12: it is so\nb'<frame>'\n" in printed
    assert "again: make fuzz ARGS='--venue gopax/websocket --seed 7 --frames 500'" in printed
    assert "upbit/websocket  " in printed
