"""docs/live.md: its example runs as it stands there."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from collector.aggregate import Prices
from collector.live import LiveView
from tests.collector.test_aggregate import Venues
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    show: Callable[[LiveView, Prices], None] = names["show"]
    venues = Venues()
    venues.books(upbit=({"100": "1"}, {"102": "1"}), korbit=({"100": "2"}, {"103": "1"}))
    show(venues.view, venues.prices())
    told = capsys.readouterr().out
    assert "korbit upbit 2\n" in told
    assert "100 3 ['korbit', 'upbit']" in told
    assert venues.view.subscriptions == ()
