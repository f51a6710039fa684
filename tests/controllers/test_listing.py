"""Lists of markets: whole or not at all, at the rate the exchange bears."""

import threading

import pytest

from collector.config import Endpoint
from collector.errors import BadFrame, ConnectionLost, RateLimited, SourceError
from controllers import controller_class
from controllers.listing import fetch_listing, rest_base
from controllers.okx import Okx
from controllers.upbit import Upbit
from tests.fakes import FakeClock, FakeRest, make_setup


class Several(Upbit):
    """An exchange that answers a list for each kind of market."""

    @classmethod
    def listing_paths(cls) -> tuple[str, ...]:
        return ("/one", "/two")


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> FakeRest:
    return FakeRest(monkeypatch, FakeClock())


def ask(cls: type[Upbit], *, stopping: bool = False) -> frozenset[str]:
    setup, stop = make_setup(), threading.Event()
    if stopping:
        stop.set()
    return fetch_listing(cls, Endpoint(rest="http://127.0.0.1:1/x"), setup.clock, setup.budget, stop)


def test_several_lists_are_one(rest: FakeRest) -> None:
    rest.answers.extend([[{"market": "KRW-BTC"}], [{"market": "KRW-ETH"}, {"market": "KRW-BTC"}]])
    assert ask(Several) == {"BTC-KRW", "ETH-KRW"}
    assert [url for url, _ in rest.asked] == ["http://127.0.0.1:1/x/one", "http://127.0.0.1:1/x/two"]


def test_one_that_can_t_be_had_spoils_all(rest: FakeRest) -> None:
    rest.answers.extend([[{"market": "KRW-BTC"}], 500])
    with pytest.raises(SourceError, match="HTTP 500"):
        ask(Several)


@pytest.mark.parametrize(
    ("answer", "error"), [([], BadFrame), (b"<html>", SourceError), ({"error": {"name": "x"}}, SourceError)]
)
def test_what_lists_nothing_is_not_believed(rest: FakeRest, answer: object, error: type[SourceError]) -> None:
    rest.answers.append(answer)
    with pytest.raises(error):
        ask(Upbit)


def test_a_refusal_holds_for_everybody_who_asks_that_exchange(rest: FakeRest) -> None:
    """The mutation that must make this fail: leave `budget.pause` out."""
    setup = make_setup()
    rest.answers.append((429, {"Retry-After": "7"}, b""))
    with pytest.raises(RateLimited):
        fetch_listing(Upbit, Endpoint(), setup.clock, setup.budget, threading.Event())
    assert setup.budget.paused_s >= 6


def test_whoever_is_stopping_asks_nothing(rest: FakeRest) -> None:
    with pytest.raises(ConnectionLost):
        ask(Upbit, stopping=True)
    assert not rest.asked


def test_a_product_is_listed_at_its_own_address() -> None:
    usdm = controller_class("binance", None, "BTC-USDT:USDT", "orderbook")
    there = Endpoint(rest="http://127.0.0.1:1/a", products={"usdm": Endpoint(rest="http://127.0.0.1:1/b")})
    assert rest_base(usdm, there) == "http://127.0.0.1:1/b"
    assert rest_base(usdm, Endpoint(rest="http://127.0.0.1:1/a")) == "https://fapi.binance.com"
    assert rest_base(Upbit, there) == "http://127.0.0.1:1/a"


def test_okx_is_asked_for_each_kind_of_instrument() -> None:
    assert [path.rpartition("=")[2] for path in Okx.listing_paths()] == ["SPOT", "SWAP", "FUTURES"]
