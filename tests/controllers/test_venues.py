"""Exchanges are found by name: nothing lists them."""

import inspect
from pathlib import Path

import pytest

import controllers
from collector.errors import ConfigError
from controllers import Controller, classes, controller_class, known, venues
from controllers.gopax import Gopax
from tests.controllers.venue import DATA
from tests.fakes import make_setup

NAMES = ["binance", "bithumb", "bybit", "coinbase", "coinone", "gopax", "korbit", "kraken", "kucoin", "okx", "upbit"]
BOTH = {"bithumb", "coinbase", "coinone", "gopax", "korbit"}  # of all but Bithumb only candles are polled


def test_every_module_that_is_no_machinery_is_an_exchange() -> None:
    assert venues() == NAMES
    machinery = {path.stem for path in Path(controllers.__file__).parent.glob("*.py")} - set(NAMES) - {"__init__"}
    for name in machinery:
        assert name not in venues()
        with pytest.raises(ConfigError):
            controller_class(name)


def test_every_exchange_has_one_usual_transport() -> None:
    assert {name: set(ways) for name, ways in known().items()} == {
        name: {"rest", "websocket"} if name in BOTH else {"websocket"} for name in NAMES
    }
    for name in NAMES:
        usual = controller_class(name)
        assert usual.exchange == name
        assert usual.default
        assert controller_class(name, usual.transport) is usual


def test_what_there_is_none_of_is_told_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no controller for nope; there are binance, bithumb"):
        controller_class("nope")
    with pytest.raises(ConfigError, match="no controller for upbit over rest"):
        controller_class("upbit", "rest")
    assert controller_class("gopax", "websocket") is Gopax


@pytest.mark.parametrize("name", NAMES)
def test_an_exchange_says_where_it_is_documented_and_has_hand_made_frames(name: str) -> None:
    cls = controller_class(name)
    module = inspect.getmodule(cls)
    assert module is not None
    assert "Docs: https://" in (module.__doc__ or "")
    assert (DATA / name / "frames.ndjson").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_an_exchange_says_all_that_its_base_needs(name: str) -> None:
    for transport in known()[name]:
        cls = controller_class(name, transport)
        assert cls.rest_url.startswith("https://")
        assert cls.listing_path.startswith("/")
        assert cls.transport == transport
        assert cls.parse is not Controller.parse or "parse_poll" in vars(cls)
        assert cls.parse_listing.__func__ is not Controller.parse_listing.__func__  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_an_exchange_has_the_rules_that_its_facts_speak_of(name: str) -> None:
    """What is left out of a venue's module is noticed here, not by the first change that comes."""

    def has(cls: type[Controller], hook: str) -> bool:
        return getattr(cls, hook) is not getattr(Controller, hook)

    for cls in classes(name):
        controller = cls(("BTC-USDT",), make_setup())
        if "orderbook" in cls.offers:
            assert has(cls, "follows") or cls.verdict != "linked", cls
            assert has(cls, "checksum") or cls.verdict != "checksummed", cls
            assert has(cls, "parse_snapshot") == (controller.snapshot_path("BTC-USDT") is not None), cls
        assert has(cls, "parse_unit") == has(cls, "unit_path"), cls
