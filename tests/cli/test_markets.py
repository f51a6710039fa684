"""Patterns and channels in a whole daemon: what is listed is recorded, and nobody hears of what comes and goes."""

import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import controllers
import simulator
from collector.config import Endpoint
from collector.errors import ConnectionLost
from commands import listings
from controllers import Controller
from tests.cli.running import Running

BTC, ETH, XRP = "BTC-KRW", "ETH-KRW", "XRP-KRW"

Start = Callable[..., Running]


class Lists:
    """What exchanges list, as a test says: markets by name, or an error."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | Exception] = {}

    def fetch(self, cls: type[Controller], endpoint: Endpoint, *rest: Any) -> frozenset[str]:
        answer = self.answers[cls.exchange]
        if isinstance(answer, Exception):
            raise answer
        return frozenset(answer)


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Lists:
    """Stand where lists are asked for; they are asked for at every look."""
    made = Lists()
    monkeypatch.setattr(listings, "fetch_listing", made.fetch)
    for name in ("DAILY_S", "AGAIN_S", "RETRY_S", "LOOK_S"):
        monkeypatch.setattr(listings, name, 0.05)
    return made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Make a simulator of these exchanges; a test starts the daemon."""
    made: list[Running] = []

    def build(*exchanges: str, **options: Any) -> Running:
        made.append(Running(tmp_path, *exchanges, **options))
        return made[-1]

    yield build
    for running in made:
        running.__exit__(None, None, None)


def recorded(running: Running) -> list[str]:
    return sorted(f"{row['exchange']} {row['market']}" for row in running.feeds())


def events(running: Running) -> list[str]:
    with sqlite3.connect(running.database) as database:
        return [text for (text,) in database.execute("SELECT text FROM event ORDER BY time_us")]


def test_all_of_an_exchange_is_recorded_on_few_connections(start: Start) -> None:
    running = start("upbit", "korbit")
    running.settings["markets"] = ["*-KRW"]
    for name in ("upbit", "korbit"):
        running.exchange(name)
    running.begin()
    running.until(lambda: len(running.feeds()) >= 6, what="every market the exchanges list")
    running.until(running.live, what="every feed live")
    assert {f"{name} {market}" for name in ("upbit", "korbit") for market in (BTC, ETH, XRP)} <= set(recorded(running))
    controlled = [name for name in running.generations() if name != "listings"]
    assert len(controlled) == 2
    running.goes_on()
    running.finish()
    for name in ("upbit", "korbit"):
        for market in (BTC, ETH, XRP):
            running.heard_without_a_gap(name, market, epochs=1)
    assert sum(text.startswith("the exchange has told its markets") for text in events(running)) == 2


def test_markets_come_and_go_with_the_list_and_nobody_else_hears_of_it(start: Start, lists: Lists) -> None:
    """The mutation that must make this fail: leave `changed` out of `Listings._take`."""
    running = start("upbit", "korbit")
    running.exchange("upbit", markets=["*-KRW"], markets_per_connection=1)
    running.exchange("korbit", markets=[BTC])
    lists.answers["upbit"] = [BTC, ETH, "BTC-USDT"]
    running.begin()
    running.until(lambda: recorded(running) == ["korbit BTC-KRW", "upbit BTC-KRW", "upbit ETH-KRW"])
    running.goes_on()

    lists.answers["upbit"] = [BTC, XRP, "BTC-USDT"]
    running.until(lambda: recorded(running) == ["korbit BTC-KRW", "upbit BTC-KRW", "upbit XRP-KRW"])
    running.until(running.live, what="every feed live")
    running.goes_on()
    assert running.generations() == {"korbit/BTC-KRW": 1, "listings": 1, "upbit/BTC-KRW": 1, "upbit/XRP-KRW": 1}

    running.finish()
    for name, market in (("upbit", BTC), ("korbit", BTC), ("upbit", XRP), ("upbit", ETH)):
        running.heard_without_a_gap(name, market, epochs=1)
    assert running.epochs("upbit", ETH) == ["stop"]
    told = events(running)
    assert "newly listed market: XRP-KRW" in told
    assert "market is not listed any more: ETH-KRW" in told


def test_one_that_joins_a_connection_takes_over_without_a_gap(start: Start, lists: Lists) -> None:
    running = start("upbit")
    running.exchange("upbit", markets="all")
    lists.answers["upbit"] = [BTC, ETH]
    running.begin()
    running.until(lambda: len(running.feeds()) == 2)
    running.goes_on()
    lists.answers["upbit"] = [BTC, ETH, XRP]
    running.until(lambda: len(running.feeds()) == 3)
    running.taken_over()
    running.goes_on()
    running.finish()
    for market in (BTC, ETH):
        running.heard_without_a_gap("upbit", market, epochs=2)
    running.heard_without_a_gap("upbit", XRP, epochs=1)


def test_without_a_list_what_is_named_is_recorded_and_the_rest_comes_later(start: Start, lists: Lists) -> None:
    running = start("upbit")
    running.exchange("upbit", markets=[ETH, "*-KRW"])
    lists.answers["upbit"] = ConnectionLost("no route")
    running.begin()
    running.goes_on()
    assert recorded(running) == ["upbit ETH-KRW"]
    assert running.daemon.ready() == (False, "the markets of upbit are not known")
    assert "the markets of upbit are not known yet" in running.daemon.describe()
    lists.answers["upbit"] = [BTC, ETH]
    running.until(lambda: len(running.feeds()) == 2)
    running.until(lambda: running.daemon.ready()[0])
    running.goes_on()
    running.finish()
    assert "[ERROR] [UPBIT] the list of markets can't be had, tried again later: no route" in running.logged()


def test_a_reload_brings_patterns_and_takes_them_away(start: Start, lists: Lists) -> None:
    """What was named goes on without a gap while the list is asked for, and after."""
    running = start("upbit")
    running.exchange("upbit", markets=[BTC], markets_per_connection=5)
    lists.answers["upbit"] = [BTC, ETH]
    running.begin()
    running.goes_on()
    assert "listings" not in running.generations()

    running.exchange("upbit", markets=["*-KRW"], markets_per_connection=5)
    running.write()
    assert running.hang_up()
    running.until(lambda: len(running.feeds()) == 2)
    running.taken_over()
    running.goes_on()
    running.exchange("upbit", markets=[BTC], markets_per_connection=5)
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.goes_on()
    assert list(running.generations()) == ["upbit/BTC-KRW"]
    running.finish()
    running.heard_without_a_gap("upbit", BTC, epochs=3)
    running.heard_without_a_gap("upbit", ETH, epochs=1)


def test_channels_that_fall_to_several_classes_are_all_recorded(start: Start) -> None:
    running = start("korbit", "okx")
    running.exchange("korbit", channels=["orderbook", "candles"])
    running.exchange("okx", channels=["orderbook", "candles"])
    running.begin()
    running.until(running.live, what="every feed live")
    assert sorted(running.generations()) == [
        "korbit/BTC-KRW",
        "korbit/BTC-KRW/rest",
        "okx/BTC-KRW",
        "okx/BTC-KRW/business",
    ]
    assert sorted(f"{row['exchange']} {row['channel']}" for row in running.feeds()) == [
        "korbit candles",
        "korbit orderbook",
        "okx candles",
        "okx orderbook",
    ]
    running.exchange("korbit")
    running.write()
    assert running.hang_up()
    running.until(lambda: len(running.feeds()) == 3)
    assert running.generations()["korbit/BTC-KRW"] == 1
    running.finish()


# --- a twelfth exchange -----------------------------------------------------------------------------------------------

CONTROLLER = '''
"""Toybox.  Docs: https://toybox.test"""
import msgspec
from collector.records import Book
from controllers.levels import decode_any, listed, shaped
from controllers.websocket import WSController

class Toybox(WSController):
    exchange = "toybox"
    url = "wss://toybox.test"
    rest_url = "https://toybox.test"
    listing_path = "/markets"
    text_numbers = True

    def subscribe_messages(self, markets):
        return [msgspec.json.encode(list(markets)).decode()]

    @shaped
    def parse(self, frame, received_us):
        book = decode_any(frame)
        return (Book(book["market"], listed(book["bids"]), listed(book["asks"]), book["time"]),)

    @classmethod
    @shaped
    def parse_listing(cls, body):
        return list(decode_any(body))
'''
VENUE = """
import json
from simulator.connection import Message
from simulator.venue import Reply, Venue, compact

class Toybox(Venue):
    name = "toybox"
    socket_path = "toys"

    async def received(self, c, text):
        self.subscribed(c, [c.subscribe("orderbook", market, market) for market in json.loads(text)])

    def book_frame(self, s, book, first):
        rows = {"market": s.market, "bids": book.bids, "asks": book.asks, "time": book.time_us}
        return Message(compact(rows), "book", book.bids, book.asks, book.time_us)

    def rest(self, request, path):
        return Reply(compact(list(self.markets)))
"""


def test_a_twelfth_exchange_is_two_files_and_no_other_change(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, code in ((controllers, CONTROLLER), (simulator, VENUE)):
        folder = tmp_path / "twelfth" / room.__name__
        folder.mkdir(parents=True)
        (folder / "toybox.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{room.__name__}.toybox", raising=False)
    try:
        running = start("toybox", "upbit")
        running.exchange("toybox", markets=["*-KRW"])
        running.exchange("upbit")
        running.begin()
        running.until(lambda: len(running.feeds()) == 4)
        running.until(running.live, what="every feed live")
        running.goes_on("toybox", "upbit")
        running.finish()
        for market in (BTC, ETH, XRP):
            running.heard_without_a_gap("toybox", market, epochs=1)
    finally:
        for room in (controllers, simulator):
            sys.modules.pop(f"{room.__name__}.toybox", None)
            vars(room).pop("toybox", None)


def test_a_list_over_http_is_what_the_simulated_exchange_trades(start: Start) -> None:
    running = start("upbit")
    running.exchange("upbit", markets=["X*-KRW"])
    running.begin()
    running.until(lambda: recorded(running) == ["upbit XRP-KRW"])
    running.until(running.live, what="every feed live")
    running.goes_on()
    running.finish()
