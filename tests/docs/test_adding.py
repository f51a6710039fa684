"""The module that docs/adding-an-exchange.md shows is a whole exchange: a test takes it and reads messages with it."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import controllers
from collector.config import load
from collector.errors import BadFrame, SourceError, UnknownFrame, VenueRefused
from collector.records import Refused
from controllers.websocket import WSController
from tests.conftest import ROOT
from tests.fakes import Stored, frame_counts, make_setup, numbers

PAGE = ROOT / "docs" / "adding-an-exchange.md"


@pytest.fixture
def bitstamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[WSController]]:
    """The module of the page, dropped into a folder where exchanges are found."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "bitstamp.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(controllers, "__path__", [*controllers.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    found = controllers.controller_class("bitstamp")
    assert issubclass(found, WSController)
    yield found
    sys.modules.pop("controllers.bitstamp")
    vars(controllers).pop("bitstamp", None)


def book(bids: list[list[str]], asks: list[list[str]], channel: str = "order_book_btcusd") -> bytes:
    data = {"microtimestamp": "1790000000123456", "bids": bids, "asks": asks}
    return json.dumps({"event": "data", "channel": channel, "data": data}).encode()


def test_it_is_found_by_its_name_and_can_be_configured(bitstamp: type[WSController], tmp_path: Path) -> None:
    assert "bitstamp" in controllers.venues()
    assert controllers.known()["bitstamp"] == {"websocket": (bitstamp,)}
    file = tmp_path / "c.yaml"
    file.write_text("markets: [BTC-USD]\nexchanges:\n  bitstamp:\n")
    settings = load(file, env={}, dotenv=None, known=controllers.known())
    assert [choice.market for choice in settings.choices("bitstamp")] == ["BTC-USD"]


def test_its_messages_become_rows_and_every_frame_is_accounted_for(bitstamp: type[WSController]) -> None:
    setup = make_setup()
    controller = bitstamp(("BTC-USD",), setup)
    controller.anchor()
    at_us = setup.clock.monotonic_us()
    assert [json.loads(text) for text in controller.subscribe_messages(("BTC-USD",))] == [
        {"event": "bts:subscribe", "data": {"channel": "order_book_btcusd"}}
    ]
    frames = [
        b'{"event":"bts:subscription_succeeded","channel":"order_book_btcusd","data":{}}',
        book([["100.10", "1.50000000"], ["100.00", "2"]], [["100.20", "0.1"]]),
        book([["100.10", "1.50000000"], ["100.00", "2"]], [["100.20", "0.1"]]),
        book([["100.10", "1.2"]], [["100.20", "0.1"]]),
        b'{"event":"bts:heartbeat","data":null}',
        b'{"event":"news"}',
        b"\xff",
    ]
    for number, frame in enumerate(frames):
        controller.handle(frame, at_us + number)
    controller.flush()

    stored = Stored(setup.intake).take()
    bids, asks = stored.of("BTC-USD")[0].book
    assert (bids, asks) == ({"100.10": "1.2"}, {"100.20": "0.1"})
    assert stored.frames == (2, 2)  # stored, rejected
    counts = frame_counts(setup, "bitstamp")
    assert (counts["received"], counts["duplicate"], counts["ignored"]) == (7, 1, 2)


def test_errors_are_told_as_the_page_says(bitstamp: type[WSController]) -> None:
    controller = bitstamp(("BTC-USD",), make_setup())
    assert list(controller.parse(b'{"event":"bts:error","data":{"message":"Bad subscription"}}', 0)) == [
        Refused("Bad subscription")
    ]
    with pytest.raises(VenueRefused):  # goes through `handle` and ends the connection
        controller.handle(b'{"event":"bts:request_reconnect","data":{}}', 0)
    with pytest.raises(UnknownFrame):
        controller.parse(b'{"event":"trade"}', 0)
    for spoiled in (b"", b"{}", b"[]", b'{"event":"data","data":{}}', book([["1", "1"], ["1", "2"]], [])):
        with pytest.raises(BadFrame):
            controller.parse(spoiled, 0)


def test_rest_answers_are_read(bitstamp: type[WSController]) -> None:
    controller = bitstamp(("BTC-USD",), make_setup())
    assert bitstamp.parse_listing(b'[{"pair":"BTC/USD"},{"pair":"ETH/EUR"}]') == ["BTC-USD", "ETH-EUR"]
    probe = controller.parse_probe("BTC-USD", b'{"bids":[["1.0","2"]],"asks":[["3","4"]]}')
    assert (numbers(probe.bids), numbers(probe.asks)) == (numbers([("1", "2")]), numbers([("3", "4")]))
    with pytest.raises(SourceError):
        bitstamp.parse_listing(b'{"error":"x"}')
