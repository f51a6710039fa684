"""Lists of markets over time: asked for again, believed when they are sure, and never a reason to stop."""

import json
import logging
import threading
from pathlib import Path

import pytest

import controllers
from collector.config import Settings, load
from collector.errors import ConnectionLost, RateLimited
from commands import listings
from commands.budgets import Budgets
from commands.listings import AGAIN_S, DAILY_S, RETRY_S_MAX, Listings, ListingWorker
from commands.plan import Listed
from controllers import Controller
from tests.conftest import wait_until
from tests.fakes import FakeClock, HeardLog

BTC, ETH, XRP = "BTC-KRW", "ETH-KRW", "XRP-KRW"


def settings(folder: Path, exchanges: dict[str, object]) -> Settings:
    (folder / "c.yaml").write_text(json.dumps({"exchanges": exchanges}))
    return load(folder / "c.yaml", env={}, dotenv=None, known=controllers.known())


class LevelLog(HeardLog):
    """Keeps levels as well."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[tuple[str, str]] = []

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        super().event(level, key, **details)
        self.levels.append((key, level if isinstance(level, str) else logging.getLevelName(level)))


class Followed:
    """Listings whose exchanges answer what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **exchanges: object) -> None:
        self.clock, self.log = FakeClock(), LevelLog()
        self.answers: dict[str, object] = {}  # by the address asked
        self.asked: list[str] = []
        self.changes = 0
        self.listings = Listings(
            self.clock, log=lambda exchange: self.log, budget=Budgets(self.clock).requests, changed=self.changed
        )
        self.folder = folder
        monkeypatch.setattr(listings, "fetch_listing", self.fetch)
        self.follow(**exchanges)

    def follow(self, **exchanges: object) -> bool:
        return self.listings.follow(settings(self.folder, exchanges))

    def changed(self) -> None:
        self.changes += 1

    def fetch(self, cls: type[Controller], *_: object) -> frozenset[str]:
        self.asked.append(cls.rest_url)
        answer = self.answers[cls.rest_url]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, str)
        return frozenset(answer.split())

    def look(self, *answers: object, after_s: float = 0) -> int:
        """Let time pass, and look; return how many lists were asked for."""
        self.clock.advance(after_s)
        asked = len(self.asked)
        for exchange, answer in zip(("upbit", "korbit"), answers, strict=False):
            self.answers[controllers.controller_class(exchange).rest_url] = answer
        self.listings.look(threading.Event(), lambda: None)
        return len(self.asked) - asked

    def said(self, key: str) -> list[object]:
        return [details.get("market", details.get("markets")) for details in self.log.of(key)]


@pytest.fixture
def upbit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Followed:
    return Followed(tmp_path, monkeypatch, upbit={"markets": ["*-KRW"]})


def test_a_list_is_asked_for_at_once_and_then_daily(upbit: Followed) -> None:
    assert upbit.listings.listed == {"upbit": Listed(frozenset(), whole=False)}
    assert upbit.listings.unknown == ["upbit"]
    assert upbit.look(f"{BTC} BTC-USDT") == 1
    assert upbit.listings.listed == {"upbit": Listed(frozenset({BTC, "BTC-USDT"}), whole=True)}
    assert (upbit.listings.unknown, upbit.changes, upbit.said("markets_listed")) == ([], 1, [1])
    assert upbit.look(after_s=DAILY_S - 1) == 0
    assert upbit.look(after_s=1) == 1
    assert upbit.changes == 1


def test_a_new_market_is_taken_at_once_and_told(upbit: Followed) -> None:
    upbit.look(BTC)
    upbit.look(f"{BTC} {ETH} ETH-USDT", after_s=DAILY_S)
    assert upbit.listings.listed["upbit"].markets == {BTC, ETH, "ETH-USDT"}
    assert upbit.said("market_listed") == [ETH]  # of the pattern; the other is nobody's business
    assert upbit.changes == 2


def test_a_market_is_gone_when_two_lists_an_hour_apart_do_not_have_it(upbit: Followed) -> None:
    """The mutation that must make this fail: drop what the first list does not have."""
    upbit.look(f"{BTC} {ETH}")
    upbit.look(BTC, after_s=DAILY_S)
    assert ETH in upbit.listings.listed["upbit"].markets
    assert (upbit.said("market_missing"), upbit.said("market_delisted")) == ([ETH], [])
    assert upbit.look(after_s=AGAIN_S - 1) == 0
    assert upbit.look(after_s=1) == 1
    assert upbit.listings.listed["upbit"].markets == {BTC}
    assert (upbit.said("market_missing"), upbit.said("market_delisted")) == ([ETH], [ETH])
    assert upbit.look(after_s=AGAIN_S) == 0  # daily again


def test_one_that_comes_back_was_never_gone(upbit: Followed) -> None:
    upbit.look(f"{BTC} {ETH}")
    upbit.look(BTC, after_s=DAILY_S)
    upbit.look(f"{BTC} {ETH}", after_s=AGAIN_S)
    upbit.look(BTC, after_s=DAILY_S)  # missing for the first time once more
    assert upbit.listings.listed["upbit"].markets == {BTC, ETH}
    assert (upbit.changes, upbit.said("market_delisted"), upbit.said("market_listed")) == (1, [], [])


def test_a_second_list_that_can_t_be_had_says_nothing_of_who_is_gone(upbit: Followed) -> None:
    upbit.look(f"{BTC} {ETH}")
    upbit.look(BTC, after_s=DAILY_S)
    upbit.look(ConnectionLost("down"), after_s=AGAIN_S)
    assert upbit.listings.listed["upbit"].markets == {BTC, ETH}
    upbit.look(BTC, after_s=RETRY_S_MAX)
    assert upbit.listings.listed["upbit"].markets == {BTC}


def test_a_list_that_can_t_be_had_is_asked_for_again_and_loudly(upbit: Followed) -> None:
    assert upbit.look(ConnectionLost("down")) == 1
    assert upbit.log.levels == [("listing_failed", "ERROR")]
    for _ in range(20):
        assert upbit.look() == 0  # not at once
        assert upbit.look(after_s=RETRY_S_MAX) == 1
    assert (upbit.listings.unknown, upbit.changes) == (["upbit"], 0)
    upbit.look(BTC, after_s=RETRY_S_MAX)
    assert (upbit.listings.unknown, upbit.changes) == ([], 1)
    upbit.look(ConnectionLost("down"), after_s=DAILY_S)
    assert upbit.log.levels[-1] == ("listing_failed", "WARNING")  # an older list is good enough
    assert upbit.listings.listed["upbit"] == Listed(frozenset({BTC}), whole=True)


def test_a_refusal_is_waited_out(upbit: Followed) -> None:
    upbit.look(RateLimited("HTTP 429", 5000.0))
    assert upbit.look(after_s=4999) == 0
    assert upbit.look(BTC, after_s=1) == 1


def test_a_bug_of_ours_holds_up_no_other_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Followed(tmp_path, monkeypatch, upbit={"markets": "all"}, korbit={"markets": ["B*-KRW"]})
    assert both.look(ZeroDivisionError("ours"), BTC) == 2
    assert both.listings.unknown == ["upbit"]
    assert both.listings.listed["korbit"] == Listed(frozenset({BTC}), whole=True)


def test_each_list_of_an_exchange_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spot and contracts are listed apart; two classes of contracts, or of transports, share a list."""
    followed = Followed(tmp_path, monkeypatch, binance={"markets": "all"}, bithumb={"markets": "all"})
    urls = {cls.rest_url for name in ("binance", "bithumb") for cls in controllers.classes(name)}
    followed.answers = {url: ConnectionLost("down") if "fapi" in url else BTC for url in urls}
    followed.look()
    assert len(followed.asked) == len(set(followed.asked)) == 3
    assert followed.listings.unknown == ["binance"]
    assert followed.listings.listed["binance"].whole is False


def test_other_settings_keep_what_is_known(upbit: Followed) -> None:
    upbit.look(BTC)
    assert upbit.follow(upbit={"markets": ["X*-KRW"]}, korbit={"markets": "all"})
    assert upbit.look(BTC, BTC) == 1  # only the new one
    upbit.look(f"{BTC} {ETH} {XRP}", BTC, after_s=DAILY_S)
    assert upbit.said("market_listed") == [XRP]
    assert not upbit.follow(upbit={}, korbit={})
    assert upbit.listings.listed == {}


def test_another_address_is_asked_at_once(upbit: Followed) -> None:
    upbit.look(BTC)
    upbit.follow(upbit={"markets": ["*-KRW"], "endpoint": {"rest": "http://127.0.0.1:1"}})
    assert upbit.look() == 1


def test_the_worker_looks_beats_and_stops(upbit: Followed) -> None:
    upbit.answers[controllers.controller_class("upbit").rest_url] = BTC
    worker = ListingWorker(upbit.listings, upbit.log, upbit.clock)
    worker.start()
    wait_until(lambda: not upbit.listings.unknown)
    worker.stop()
    assert worker.join(10)
    assert worker.state == "stopped"


def test_kinds_of_calls_have_budgets_of_their_own_that_pause_together(tmp_path: Path) -> None:
    clock = FakeClock()
    budgets = Budgets(clock)
    options = settings(tmp_path, {"gopax": {}}).exchanges["gopax"]
    books, candles = controllers.classes("gopax")
    assert books.budget_per_s != candles.budget_per_s
    assert budgets.requests(books, options) is budgets.requests(books, options)
    assert budgets.requests(books, options) is not budgets.requests(candles, options)
    assert budgets.connects(books, options) is budgets.connects(candles, options)
    budgets.requests(candles, options).pause(30)
    for budget in (budgets.requests(books, options), budgets.connects(books, options)):
        assert budget.paused_s == pytest.approx(30)
