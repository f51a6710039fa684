"""Books whose beginning is cut at so many levels: what is known, what is asked for, what breaks them."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import requests

from collector.errors import SourceError
from collector.records import Book
from controllers.binance import Binance
from controllers.book import OrderBook
from controllers.window import Window
from tests.conftest import wait_until
from tests.controllers.live import Live
from tests.controllers.reference import Both, Reference
from tests.fakes import FakeClock, HeardLog, Stored, make_setup

MARKET = "BTC-USDT"


def prices(*levels: int) -> dict[Any, Any]:
    return {str(price): "1" for price in levels}


def book_of(bids: tuple[int, ...], asks: tuple[int, ...]) -> OrderBook:
    book = OrderBook(trim=False)
    book.replace(Book(MARKET, prices(*bids), prices(*asks)))
    return book


def test_a_side_that_is_not_cut_has_no_edge() -> None:
    window = Window.of(book_of((100, 99, 98), (101, 102)), 3)
    assert window == Window(Decimal(98), None)
    assert window.holds(book_of((100, 99, 98), ()), 3)
    assert not window.holds(book_of((100, 99, 98), ()), 4)  # there may be more below
    assert not window.holds(book_of((100, 99, 97), (101,)), 3)
    assert window.holds(book_of((100, 99, 97), (101,)), 2)
    assert Window.of(book_of((), ()), 3).holds(book_of((), ()), 9)


def test_a_side_is_known_up_to_its_edge() -> None:
    window = Window(None, Decimal(104))
    assert window.holds(book_of((), (102, 103, 104, 108)), 3)
    assert not window.holds(book_of((), (102, 103, 104, 108)), 4)
    assert not window.holds(book_of((), (108,)), 1)
    assert not window.holds(book_of((100,), ()), 1)


def test_two_windows_that_overlap_are_one() -> None:
    older, newer = Window(Decimal(90), Decimal(110)), Window(Decimal(95), Decimal(120))
    assert older.joined(newer) == Window(Decimal(90), Decimal(120))
    assert older.joined(Window(None, Decimal(105))) == Window(None, Decimal(110))


class Narrow(Binance):
    """Binance's spot with REST books of four levels a side, which the test answers."""

    depth, renewed_below, snapshot_levels = 1, 3, 4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answers: list[Book | None] = []

    def _fetch_snapshot(self, market: str) -> Book | None:
        if not self.answers:
            raise SourceError("HTTP 503")
        return self.answers.pop(0)


class Heard:
    """A narrow book at 10: bids 100 to 97, asks 101 to 104."""

    def __init__(self) -> None:
        self.clock, self.log = FakeClock(), HeardLog()
        setup = make_setup(clock=self.clock, log=self.log)
        self.controller = Narrow((MARKET,), setup)
        self.feed = self.controller.books[MARKET]
        self.stored = Stored(setup.intake)
        self.controller.anchor()
        self.begin(10, (100, 99, 98, 97), (101, 102, 103, 104))

    def begin(self, sequence: int, bids: tuple[int, ...], asks: tuple[int, ...]) -> None:
        self.controller._join(self.feed, self.rest(sequence, bids, asks), self.clock.advance(0.1))

    def rest(self, sequence: int, bids: tuple[int, ...], asks: tuple[int, ...]) -> Book:
        return Book(MARKET, prices(*bids), prices(*asks), None, sequence)

    def change(self, number: int, bids: dict[int, str] | None = None, asks: dict[int, str] | None = None) -> None:
        sides = [[[str(price), size] for price, size in (side or {}).items()] for side in (bids, asks)]
        data = {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": number, "u": number, "b": sides[0], "a": sides[1]}
        frame = json.dumps({"stream": "btcusdt@depth@100ms", "data": data})
        self.controller.handle(frame.encode(), self.clock.advance(0.1))
        self.controller.flush()

    def until(self, condition: Callable[[], object]) -> None:
        def done() -> object:
            self.controller.tick()
            self.stored.take()
            return condition()

        wait_until(done)

    def renewing(self) -> bool:
        return self.controller._renewal is not None

    @property
    def asks(self) -> list[int]:
        return sorted(int(price) for price in self.feed.book.asks.as_numbers())


def test_a_price_on_its_way_out_gets_the_levels_beyond_without_a_gap() -> None:
    heard = Heard()
    heard.change(11, asks={101: "0"})
    heard.controller.tick()
    assert not heard.renewing()  # three are left
    heard.controller.answers = [heard.rest(12, (100, 99, 98, 97), (103, 104, 105, 106))]
    heard.change(12, asks={102: "0"})
    heard.until(lambda: len(heard.stored.only.rows) == 4)
    assert heard.asks == [103, 104, 105, 106]
    row = heard.stored.only.rows[-1]
    assert (row.sequence, row.lag_us, row.bids) == (12, None, None)
    assert heard.stored.only.book == (prices(100, 99, 98, 97), prices(103, 104, 105, 106))
    heard.change(13, asks={103: "0", 104: "0", 105: "0"})
    assert heard.stored.take().only.reason is None
    assert heard.asks == [106]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_rest_book_is_brought_to_our_number_or_waited_for(ahead: bool) -> None:
    heard = Heard()
    heard.change(11, asks={101: "0", 102: "0"})
    number = 13 if ahead else 11
    asks = (103, 104, 106, 107) if ahead else (103, 104, 105, 106)
    heard.controller.answers = [heard.rest(number, (100, 99, 98, 97), asks)]
    heard.controller.tick()
    assert heard.renewing()
    wait_until(lambda: not heard.controller.answers)
    heard.change(12, asks={105: "0"})  # a level that we did not know of
    if ahead:
        for _ in range(3):
            heard.controller.tick()
        assert heard.asks == [103, 104]
    heard.change(13, bids={96: "2"})
    heard.until(lambda: not heard.renewing())
    assert heard.stored.only.reason is None
    assert heard.asks == ([103, 104, 106, 107] if ahead else [103, 104, 106])
    assert min(heard.feed.book.bids.as_numbers()) == 96


@pytest.mark.parametrize(
    ("bids", "asks"),
    [
        ((100, 99, 98, 97), (102, 103, 104, 105)),  # a level that should have gone
        ((100, 99, 98, 97), (104, 105, 106, 107)),  # one that went
        ((100, 99, 98, 96), (103, 104, 105, 106)),
    ],
)
def test_a_rest_book_that_contradicts_ours_ends_the_epoch_and_begins_that_market_anew(
    bids: tuple[int, ...], asks: tuple[int, ...]
) -> None:
    heard = Heard()
    heard.controller.answers = [heard.rest(11, bids, asks)]
    heard.change(11, asks={101: "0", 102: "0"})
    heard.until(lambda: heard.stored.only.reason)
    assert heard.stored.only.reason == "probe"
    assert not heard.feed.book.known
    assert heard.log.of("book_broken")
    heard.begin(11, (100, 99, 98, 97), (103, 104, 105, 106))
    heard.change(12, asks={103: "0"})
    assert len(heard.stored.take().epochs) == 2


def test_a_price_that_leaves_what_is_known_breaks_the_book_at_that_change() -> None:
    heard = Heard()
    heard.change(11, asks={101: "0", 102: "0", 103: "0"})  # 104 is left, and known
    heard.change(12, asks={104: "0", 108: "1"})  # what stands between 104 and 108 nobody told us
    epoch = heard.stored.take().only
    assert (epoch.reason, epoch.rows[-1].sequence) == ("probe", 11)
    assert not heard.feed.book.known
    heard.begin(12, (100, 99, 98, 97), (105, 106, 107, 108))
    heard.change(13, bids={100: "2"})
    assert heard.asks == [105, 106, 107, 108]


def test_a_rest_book_that_can_t_be_had_is_asked_for_again_later() -> None:
    heard = Heard()
    heard.change(11, asks={101: "0", 102: "0"})
    heard.controller.tick()
    assert heard.renewing()
    heard.until(lambda: not heard.renewing())
    heard.controller.answers = [None, heard.rest(11, (100, 99, 98, 97), (103, 104, 105, 106))]
    heard.controller.tick()
    assert not heard.renewing()  # not at once
    for _ in range(2):
        heard.clock.advance(11)
        heard.until(lambda: not heard.renewing())
    heard.clock.advance(11)
    heard.until(lambda: len(heard.asks) == 4)
    assert heard.stored.only.reason is None


class Shallow(Binance):
    """Binance's spot as if REST books had no more than 40 levels."""

    depth, renewed_below, snapshot_levels = 10, 36, 40


def test_the_best_levels_are_the_exchange_s_however_far_the_price_goes(live: Callable[..., Live]) -> None:
    stage = live("binance", markets=[MARKET], rate_hz=0.01, seed=3)
    controller = stage.start(Shallow, MARKET, rate={"requests_per_s": 1000, "connects_per_s": 1000})
    assert isinstance(controller, Shallow)
    wait_until(lambda: controller.connected)
    depth = stage.simulator.endpoints["binance"]["rest"] + "/api/v3/depth?symbol=BTCUSDT&limit="
    with requests.Session() as session:
        session.get(depth + "1000", timeout=5)
        stage.heard(1, MARKET)
        heard = controller.books[MARKET]

        first = controller._windows[heard]

        def move() -> None:
            for _ in range(4):
                session.get(depth + "1", timeout=5)  # every other question moves the market

        def near_an_edge() -> bool:
            if not first.holds(heard.book, controller.renewed_below):
                return True
            move()
            return False

        wait_until(near_an_edge, 30)
        wait_until(lambda: controller._windows[heard] is not first, what="another REST book")
        for _ in range(5):
            move()
        last = stage.lines(kind="message", what="change")[-1]["sequence"]
        stage.until(lambda: heard.sequence == last, what="all that was sent")
    stage.stop()
    changes = stage.lines(kind="message", what="change")
    deep = max(stage.lines(kind="message", what="book"), key=lambda line: len(line["bids"]))
    truth, states = Reference(), dict[int, Both]()
    truth.replace(deep["bids"], deep["asks"])
    for line in changes:
        if line["sequence"] > deep["sequence"]:
            truth.change(line["bids"], line["asks"])
            states[line["sequence"]] = truth.best(10)
    compared = 0
    for epoch in stage.stored.of(MARKET):
        for row, (bids, asks) in zip(epoch.rows, epoch.books, strict=True):
            if row.sequence in states:
                ours = Reference()
                ours.replace(bids.items(), asks.items())
                assert ours.best(10) == states[row.sequence]
                compared += 1
    assert compared > 15
    (epoch,) = stage.stored.of(MARKET)
    assert any(row.lag_us is None for row in epoch.rows[1:])  # levels that no change told
