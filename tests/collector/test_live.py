"""The live view shows what goes to the store, as it goes there, and whoever listens to it is in nobody's way."""

import json
import random
import threading
from collections.abc import Iterator, Mapping
from decimal import Decimal

import pytest

from collector.latest import Gone, Level, LiveBook, LiveTrade, Update
from collector.listening import COMPLAIN_EVERY_US
from collector.live import LiveView
from collector.records import (
    CANDLES,
    CROSSED,
    KEYFRAME,
    ORDERBOOK,
    TICKER,
    TRADES,
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Feed,
    Record,
    TickerRow,
    TradeRow,
)
from tests.conftest import WaitUntil
from tests.fakes import NOON_US, FakeClock, HeardLog

MARKET = "BTC-KRW"
BOOK = Feed("upbit", MARKET)
SECONDS = 20


class Fed:
    """A live view, and what a controller would hand over."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.log = HeardLog()
        self.view = LiveView(self.clock, self.log)
        self._n: dict[int, int] = {}

    def give(self, *records: Record, exchange: str = "upbit") -> None:
        self.view.take(Delivery(exchange, 1, records, 1))

    def open(self, epoch: int = 1, market: str = MARKET, channel: str = ORDERBOOK, unit: str | None = None) -> None:
        opened_us = self.clock.wall_us()
        self.give(EpochOpened(epoch, "UPBIT", market, channel, "websocket", opened_us, unit=unit))

    def book(self, epoch: int, bids: Mapping[str, str], asks: Mapping[str, str], *, flags: int = KEYFRAME) -> None:
        self._n[epoch] = self._n.get(epoch, 0) + 1
        sides = [json.dumps(list(side.items())) if side else None for side in (bids, asks)]
        at_us = self.clock.wall_us() - NOON_US
        self.give(BookRow(epoch, self._n[epoch], at_us, 5000, 70 + self._n[epoch], flags, sides[0], sides[1]))

    def change(self, epoch: int, bids: Mapping[str, str], asks: Mapping[str, str]) -> None:
        self.book(epoch, bids, asks, flags=0)

    def trade(self, epoch: int, id_: str, price: str = "100", venue_us: int = NOON_US) -> None:
        self.give(TradeRow(epoch, id_, "buy", price, "0.5", self.clock.wall_us(), venue_us))

    def end(self, epoch: int, reason: str = "disconnect") -> None:
        self.give(EpochEnded(epoch, self.clock.wall_us(), reason))

    def latest(self) -> LiveBook:
        book = self.view.book(*BOOK[:2])
        assert book is not None
        return book


class Listener:
    """A callback that keeps what it hears and, where asked to, waits or raises before it returns."""

    def __init__(self) -> None:
        self.heard: list[Update] = []
        self.gate = threading.Event()
        self.gate.set()
        self.raises: BaseException | None = None

    def __call__(self, update: Update) -> None:
        self.heard.append(update)
        assert self.gate.wait(SECONDS)
        if self.raises is not None:
            raise self.raises

    def ids(self) -> list[str]:
        return [update.id for update in self.heard.copy() if isinstance(update, LiveTrade)]


@pytest.fixture
def fed() -> Iterator[Fed]:
    fed = Fed()
    yield fed
    fed.view.close()
    assert fed.view.failures == 0, fed.log.events


# --- books -----------------------------------------------------------------------------------------------------------


def test_a_book_is_the_last_complete_one_and_the_changes_since(fed: Fed) -> None:
    assert fed.view.book("upbit", MARKET) is None
    fed.open()
    assert fed.view.book("upbit", MARKET) is None
    fed.book(1, {"100": "1", "99.5": "2.50"}, {"101": "3"})
    first = fed.latest()
    fed.change(1, {"100": "0", "100.5": "0.10"}, {})
    second = fed.latest()
    fed.change(1, {}, {"101": "7", "102": "1"})
    third = fed.latest()

    assert (second.bids, second.asks) == (
        (Level(Decimal("100.5"), Decimal("0.10")), Level(Decimal("99.5"), Decimal("2.50"))),
        (Level(Decimal(101), Decimal(3)),),
    )
    assert str(second.bids[0].size) == "0.10"  # the digits are kept
    assert third.asks == ((Decimal(101), Decimal(7)), (Decimal(102), Decimal(1)))
    assert (third.bid, third.ask) == (third.bids[0], third.asks[0])
    assert (first.bid, first.ask, len(first.bids)) == ((Decimal(100), Decimal(1)), (Decimal(101), Decimal(3)), 2)
    assert (third.feed, third.epoch, third.n, third.sequence) == (BOOK, 1, 3, 73)
    assert third.received_us == NOON_US
    assert third.venue_us == NOON_US - 5000


def test_a_book_that_was_handed_out_never_changes(fed: Fed) -> None:
    # Whenever each is looked at: at once, or when hundreds of others and complete ones came after it.
    dice = random.Random(7)
    fed.open()
    fed.book(1, {"100": "1"}, {"200": "1"})
    bids, asks = {"100": "1"}, {"200": "1"}
    expected = []
    for _ in range(400):
        changed: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for side, known, low in ((changed[0], bids, 50), (changed[1], asks, 150)):
            for _ in range(dice.randrange(4)):
                price = str(low + dice.randrange(40))
                side[price] = str(dice.randrange(3))
                if side[price] == "0":
                    known.pop(price, None)
                else:
                    known[price] = side[price]
        if dice.random() < 0.05:
            fed.book(1, bids, asks)
        else:
            fed.change(1, *changed)
        book = fed.latest()
        if dice.random() < 0.3:
            assert book.bid == max(_levels(bids), default=None)
        expected.append((book, sorted(_levels(bids), reverse=True), sorted(_levels(asks))))
    dice.shuffle(expected)
    for book, sorted_bids, sorted_asks in expected:
        assert list(book.bids) == sorted_bids
        assert list(book.asks) == sorted_asks


def _levels(side: Mapping[str, str]) -> list[Level]:
    return [Level(Decimal(price), Decimal(size)) for price, size in side.items()]


def test_an_empty_side_has_no_best_price(fed: Fed) -> None:
    fed.open()
    fed.book(1, {}, {"101": "1"})
    assert fed.latest().bid is None
    assert fed.latest().bids == ()


def test_a_crossed_book_and_the_verdict_and_the_unit_are_told(fed: Fed) -> None:
    fed.open(unit="0.01 BTC")
    fed.book(1, {"101": "1"}, {"100": "1"}, flags=KEYFRAME | CROSSED)
    fed.give(EpochVerdict(1, "linked"))
    book = fed.latest()
    assert (book.crossed, book.verdict, book.unit) == (True, "linked", "0.01 BTC")


def test_a_feed_that_is_gone_says_so_and_keeps_its_last_book(fed: Fed) -> None:
    fed.open()
    fed.book(1, {"100": "1"}, {})
    before = fed.latest()
    fed.end(1, "sequence")
    assert (before.gone, fed.latest().gone) == ("", "sequence")
    assert fed.latest().bids == before.bids

    fed.open(2)
    assert fed.latest().gone == "sequence"  # nothing is known of the new epoch yet
    fed.book(2, {"90": "1"}, {})
    assert (fed.latest().gone, fed.latest().epoch, fed.latest().bid) == ("", 2, (Decimal(90), Decimal(1)))


def test_age_counts_from_the_last_message_or_confirmation(fed: Fed) -> None:
    fed.open()
    fed.book(1, {"100": "1"}, {})
    mark = CoverageMark(1, fed.clock.wall_us(), fed.clock.wall_us(), 1)
    fed.give(mark)
    fed.clock.advance(30)
    assert fed.latest().age_s == 30
    fed.give(mark)  # nothing new is confirmed
    assert fed.latest().age_s == 30
    fed.give(CoverageMark(1, fed.clock.wall_us(), fed.clock.wall_us() - 1_000_000, 1))
    assert fed.latest().age_s == 0
    fed.clock.advance(2)
    fed.clock.step_wall(-3600)
    assert fed.latest().age_s == 2


def test_two_connections_of_one_feed_follow_each_other(fed: Fed) -> None:
    fed.open(1)
    fed.book(1, {"100": "1"}, {})
    fed.open(2)
    fed.book(2, {"200": "1"}, {})
    fed.change(1, {"100": "5"}, {})  # the older one goes on, and counts no more
    assert fed.latest().epoch == 2
    fed.end(2)
    assert (fed.latest().epoch, fed.latest().gone) == (1, "")
    assert fed.latest().bid == (Decimal(100), Decimal(5))
    fed.end(1, "stop")
    assert fed.latest().gone == "stop"


def test_the_younger_connection_counts_though_the_older_speaks_later(fed: Fed) -> None:
    fed.open(1)
    fed.open(2)
    fed.book(2, {"200": "1"}, {})
    fed.book(1, {"100": "1"}, {})
    assert fed.latest().epoch == 2


def test_what_is_open_before_the_view_is_passed_over(fed: Fed) -> None:
    fed.book(9, {"100": "1"}, {})
    fed.trade(9, "a")
    fed.end(9)
    assert fed.view.feeds() == []


def test_a_feed_is_known_while_it_is_expected_or_heard(fed: Fed) -> None:
    fed.view.expect(BOOK)
    assert fed.view.feeds() == [BOOK]
    fed.open()
    fed.view.forget(BOOK)
    assert fed.view.feeds() == [BOOK]
    fed.end(1)
    fed.view.forget(BOOK)
    fed.view.forget(BOOK)
    assert fed.view.feeds() == []


# --- trades, tickers, candles ----------------------------------------------------------------------------------------


def test_the_latest_trade_ticker_and_candle(fed: Fed) -> None:
    fed.open(1, channel=TRADES)
    fed.open(2, channel=TICKER)
    fed.open(3, channel=CANDLES)
    assert fed.view.trade("upbit", MARKET) is None
    fed.trade(1, "a")
    fed.trade(1, "b", "101.50")
    fed.give(TickerRow(2, NOON_US, None, "1.50", None, "1.60", "7"))
    fed.give(CandleRow(3, 60, 120_000_000, "1", "2", "1", "2", "9", False, NOON_US))
    fed.give(CandleRow(3, 60, 60_000_000, "1", "1", "1", "1", "8", True, NOON_US))  # the one before, closed late

    trade = fed.view.trade("upbit", MARKET)
    assert trade is not None
    assert (trade.id, trade.side, str(trade.price), trade.size) == ("b", "buy", "101.50", Decimal("0.5"))
    assert (trade.received_us, trade.venue_us, trade.gone) == (NOON_US, NOON_US, "")
    ticker = fed.view.ticker("upbit", MARKET)
    assert ticker is not None
    assert (str(ticker.last), ticker.bid, ticker.ask, ticker.volume) == ("1.50", None, Decimal("1.6"), Decimal(7))
    candle = fed.view.candle("upbit", MARKET)
    assert candle is not None
    assert candle.row.open_us == 120_000_000
    fed.end(1)
    gone = fed.view.trade("upbit", MARKET)
    assert gone is not None
    assert gone.gone == "disconnect"


# --- listening -------------------------------------------------------------------------------------------------------


def test_a_callback_hears_everything_in_order_and_survives_a_reconnect(fed: Fed, wait_until: WaitUntil) -> None:
    listener = Listener()
    fed.open(1)
    fed.book(1, {"100": "1"}, {})
    subscription = fed.view.subscribe("upbit", ORDERBOOK, MARKET, listener)
    fed.change(1, {"100": "2"}, {})
    fed.end(1)
    fed.open(2)
    fed.book(2, {"90": "1"}, {})
    wait_until(lambda: len(listener.heard) == 3)

    first, gone, again = listener.heard
    assert isinstance(first, LiveBook)
    assert first.bid == (Decimal(100), Decimal(2))
    assert gone == Gone(BOOK, 1, "disconnect")
    assert isinstance(again, LiveBook)
    assert (again.epoch, again.bid) == (2, (Decimal(90), Decimal(1)))
    assert (subscription.told, subscription.dropped, subscription.errors) == (3, 0, 0)

    assert subscription.close()
    assert subscription.close()
    fed.change(2, {"90": "2"}, {})
    assert fed.view.subscriptions == ()
    assert len(listener.heard) == 3


def test_a_handover_is_no_loss_and_tells_nothing_twice(fed: Fed, wait_until: WaitUntil) -> None:
    listener, books = Listener(), Listener()
    fed.view.subscribe("upbit", TRADES, MARKET, listener)
    fed.view.subscribe("upbit", ORDERBOOK, MARKET, books)
    fed.open(1, channel=TRADES)
    fed.trade(1, "a")
    fed.open(2, channel=TRADES)
    fed.trade(2, "b")
    fed.trade(1, "b")
    fed.trade(1, "c")  # before the younger connection had subscribed, but it came late
    fed.trade(2, "d")
    fed.end(1, "superseded")
    fed.open(3)
    fed.book(3, {"1": "1"}, {})
    fed.open(4)
    fed.book(4, {"2": "1"}, {})
    fed.change(3, {"1": "2"}, {})
    fed.end(3, "superseded")
    wait_until(lambda: len(listener.heard) == 4 and len(books.heard) == 2)
    assert listener.ids() == ["a", "b", "c", "d"]
    assert [update.epoch for update in books.heard] == [3, 4]


def test_patterns_hear_feeds_that_come_later_too(fed: Fed, wait_until: WaitUntil) -> None:
    listener = Listener()
    fed.view.subscribe("*", TRADES, "*-KRW", listener)
    for epoch, market in enumerate(("BTC-KRW", "ETH-USDT", "ETH-KRW"), 1):
        fed.open(epoch, market, TRADES)
        fed.trade(epoch, market)
    fed.open(4, "XRP-KRW", TICKER)
    fed.give(TickerRow(4, NOON_US, None, "1", None, None, None))
    fed.trade(3, "last")
    wait_until(lambda: "last" in listener.ids())
    assert listener.ids() == ["BTC-KRW", "ETH-KRW", "last"]


def test_of_a_slow_callback_the_oldest_updates_are_dropped_and_counted(fed: Fed, wait_until: WaitUntil) -> None:
    slow, quick = Listener(), Listener()
    slow.gate.clear()
    subscription = fed.view.subscribe("upbit", TRADES, MARKET, slow, waiting_max=3)
    fed.view.subscribe("upbit", TRADES, MARKET, quick)
    fed.open(1, channel=TRADES)
    fed.trade(1, "0")
    wait_until(lambda: slow.ids() == ["0"], what="the callback being busy")
    for number in range(1, 11):
        fed.trade(1, str(number))  # none of these waits for it
    wait_until(lambda: len(quick.ids()) == 11, what="the other one, which has a thread of its own")
    assert (subscription.dropped, fed.view.dropped) == (7, 7)
    slow.gate.set()
    wait_until(lambda: slow.ids() == ["0", "8", "9", "10"])
    subscription.close()
    assert fed.view.dropped == 7


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)], ids=repr)
def test_a_callback_that_raises_is_called_again(fed: Fed, wait_until: WaitUntil, error: BaseException) -> None:
    listener = Listener()
    listener.raises = error
    subscription = fed.view.subscribe("upbit", TRADES, MARKET, listener)
    fed.open(1, channel=TRADES)
    for number in range(5):
        fed.trade(1, str(number))
    wait_until(lambda: subscription.errors == 5)
    (told,) = fed.log.of("live_callback")
    assert (told["error"], told["errors"]) == (repr(error), 1)
    fed.clock.advance(COMPLAIN_EVERY_US / 1e6)
    fed.trade(1, "5")
    wait_until(lambda: len(fed.log.of("live_callback")) == 2)
    assert fed.view.errors == 6


def test_a_callback_may_close_itself_and_one_that_hangs_is_left_behind(fed: Fed, wait_until: WaitUntil) -> None:
    stuck = Listener()
    stuck.gate.clear()
    hanging = fed.view.subscribe("upbit", TRADES, MARKET, stuck)
    closed: list[bool] = []
    once = fed.view.subscribe("upbit", TRADES, MARKET, lambda update: closed.append(once.close()))
    fed.open(1, channel=TRADES)
    fed.trade(1, "a")
    wait_until(lambda: closed and stuck.ids())
    fed.trade(1, "b")
    assert not hanging.close(timeout_s=0)
    stuck.gate.set()
    assert hanging.close()
    assert closed == [True]
    assert stuck.ids() == ["a"]


def test_what_can_not_be_subscribed_to_is_refused(fed: Fed) -> None:
    with pytest.raises(ValueError, match="a channel must be one of orderbook, trades, ticker, candles, was 'books'"):
        fed.view.subscribe("upbit", "books", MARKET, print)
    with pytest.raises(ValueError, match="at least 1, was 0"):
        fed.view.subscribe("upbit", ORDERBOOK, MARKET, print, waiting_max=0)


def test_an_error_of_the_view_is_kept_from_whoever_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    fed = Fed()
    monkeypatch.setattr(fed.view, "_note", fail)
    fed.open()
    fed.book(1, {"1": "1"}, {})
    assert fed.view.failures == 1
    assert fed.log.of("live_failed")[0]["error"] == "RuntimeError('a mistake')"


def test_readers_and_writers_at_once(fed: Fed) -> None:
    # Every row sets one price on both sides: a book put together from two moments would show two.
    fed.open()
    fed.book(1, {"1": "1"}, {"1": "1"})
    done = threading.Event()
    odd: list[LiveBook] = []
    looked = [0, 0]

    def read(at: int) -> None:
        while not done.is_set():
            book = fed.latest()
            looked[at] += 1
            if book.bids != book.asks or len(book.bids) != 1 or book.bids[0].price != book.n:
                odd.append(book)
                return

    readers = [threading.Thread(target=read, args=(at,)) for at in range(2)]
    for reader in readers:
        reader.start()
    number = 1
    while number < 3000 or min(looked) < 50:
        number += 1
        change = {str(number - 1): "0", str(number): "1"}
        if number % 97:
            fed.change(1, change, change)
        else:
            fed.book(1, {str(number): "1"}, {str(number): "1"})
        if odd:
            break
    done.set()
    for reader in readers:
        reader.join()
    assert odd == []
