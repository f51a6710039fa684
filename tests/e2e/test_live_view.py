"""The live view of a whole daemon: what a program hears is what the database holds, over reconnects too."""

import threading
from pathlib import Path

import requests

from collector.latest import Gone, LiveBook, Update
from collector.records import ORDERBOOK
from storage.reader import BookAt, Reader
from tests.conftest import wait_until
from tests.faults.house import House

BTC = "BTC-KRW"
EXCHANGES = ("coinone", "korbit", "upbit")
Levels = list[tuple[str, str]]


def test_a_program_hears_what_is_recorded(tmp_path: Path) -> None:
    heard: list[Update] = []
    with House(tmp_path, *EXCHANGES) as house:
        house.start(
            metrics={"port": 0},
            live={"rates": {"USDT-KRW": {"rate": "1400", "source": "set by hand"}}},
        )
        view = house.daemon.live
        view.subscribe("*", ORDERBOOK, BTC, heard.append, waiting_max=1_000_000)
        stuck = threading.Event()
        hung = view.subscribe("*", ORDERBOOK, "*", lambda update: stuck.wait(60), waiting_max=5)
        house.goes_on()

        # 1. All exchanges are compared, in the process and over HTTP.
        house.until(lambda: len(house.daemon.prices.compare(BTC).venues) == len(EXCHANGES))
        port = house.daemon.web.port
        asked = f"http://127.0.0.1:{port}/prices.json"
        told = requests.get(asked, params={"market": BTC, "depth": "3"}, timeout=5).json()
        assert [venue["exchange"] for venue in told["venues"]] == list(EXCHANGES)
        assert len(told["book"]["bids"]) == 3
        assert requests.get(asked, params={"market": BTC, "depth": "x"}, timeout=5).status_code == 400
        state = house.daemon.status()["live"]
        assert state["rates"] == [{"base": "USDT", "quote": "KRW", "rate": "1400", "source": "set by hand"}]
        assert state["callbacks"] == 2

        # 2. A connection that is lost is told, and heard again.
        house.simulator.fault("disconnect", "korbit")
        wait_until(lambda: any(isinstance(update, Gone) for update in heard.copy()), 30, "the loss")
        house.goes_on()
        house.until(lambda: hung.dropped > 0, what="updates that the other callback was too slow for")
        stuck.set()
        verdict = house.stop()
        assert verdict.good, verdict
        assert view.failures == 0
        assert {book.gone for name in EXCHANGES if (book := view.book(name, BTC)) is not None} == {"stop"}

    # 3. Whatever was heard is in the database, level by level.
    books = [update for update in heard if isinstance(update, LiveBook)]
    gone = {(update.feed.exchange, update.reason) for update in heard if isinstance(update, Gone)}
    assert ("korbit", "disconnect") in gone
    assert {(name, "stop") for name in EXCHANGES} <= gone
    with Reader(tmp_path / "db") as reader:
        for exchange in EXCHANGES:
            stored = {
                (item.received_us, item.n): (list(item.bids), list(item.asks))
                for item in reader.books(exchange, BTC, gaps=True)
                if isinstance(item, BookAt)
            }
            mine = [book for book in books if book.feed.exchange == exchange]
            assert len(mine) > 10
            for book in mine:
                assert stored[book.received_us, book.n] == (_text(book.bids), _text(book.asks))


def _text(levels: tuple[tuple[object, object], ...]) -> Levels:
    return [(str(price), str(size)) for price, size in levels]
