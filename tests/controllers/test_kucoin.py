import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collector.errors import SourceError, UnknownFrame
from collector.records import CANDLES, CHANNELS, ORDERBOOK, TICKER, TRADES, Book, BookChange, Subscribed, Trade
from controllers.kucoin import KuCoin
from tests.controllers.linked import check_books, check_stream, epochs_of, subscriptions_of
from tests.controllers.live import Live
from tests.controllers.reference import Player, Reference, each, repeated, skipped, swapped
from tests.controllers.venue import (
    Case,
    cases,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    told,
)
from tests.fakes import FakeClock, Stored, make_setup, numbers

CLASSIC = "cryptofeed_spot_20210425.ndjson"
REST_BOOK = '{"code":"200000","data":{"time":1,"sequence":"7","bids":[["1.0","2"]],"asks":[["3","4"],["5","6"]]}}'
SYMBOLS = (
    '{"code":"200000","data":[{"symbol":"BTC-USDT","enableTrading":true},{"symbol":"X-BTC","enableTrading":false}]}'
)


@pytest.mark.parametrize("case", cases("kucoin"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(KuCoin))


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(KuCoin, "kucoin")


# --- subscribing ------------------------------------------------------------------------------------------------------


def all_channels(*markets: str) -> KuCoin:
    return make(KuCoin, *markets, setup=replace(make_setup(), channels=CHANNELS))


def test_each_channel_of_each_market_is_asked_for_as_the_documentation_does(wire: Path) -> None:
    kucoin = all_channels("BTC-USDT", "ETH-BTC")
    asked = [json.loads(text) for text in kucoin.subscribe_messages(kucoin.markets)]
    assert [(row["symbol"], row["channel"]) for row in asked] == [
        (market, channel) for market in ("BTC-USDT", "ETH-BTC") for channel in ("obu", "trade", "ticker", "kline")
    ]
    assert len({row["id"] for row in asked}) == 8
    (documented,) = (
        json.loads(line.data) for line in recorded(wire, "kucoin", direction="out") if '"obu"' in line.data
    )
    assert documented.pop("rpiFilter") == 0  # which is what holds without it
    assert asked[0] == documented
    assert [row["interval"] for row in asked if row["channel"] == "kline"] == ["1min", "1min"]


def test_an_answer_tells_by_its_number_what_it_is_about() -> None:
    kucoin = all_channels("BTC-USDT", "ETH-BTC")
    for text in kucoin.subscribe_messages(kucoin.markets):
        request = json.loads(text)
        channel = {"obu": ORDERBOOK, "trade": TRADES, "ticker": TICKER, "kline": CANDLES}[request["channel"]]
        good = list(kucoin.parse(json.dumps({"id": request["id"], "result": True}).encode(), 0))
        assert good == ([] if channel == ORDERBOOK else [Subscribed(channel, request["symbol"])])
        (bad,) = told(kucoin.parse(json.dumps({"id": request["id"], "result": False, "message": "no"}).encode(), 0))
        assert bad == {"refused": "no", "market": request["symbol"]}


def test_one_book_is_brought_anew_by_leaving_and_asking_again() -> None:
    kucoin = all_channels("BTC-USDT", "ETH-BTC")
    leave, again = (json.loads(text) for text in kucoin.resync_messages("ETH-BTC"))
    assert (leave["action"], again["action"]) == ("UNSUBSCRIBE", "SUBSCRIBE")
    assert {(row["symbol"], row["channel"], row["depth"]) for row in (leave, again)} == {
        ("ETH-BTC", "obu", "increment@10ms")
    }
    assert list(kucoin.parse(json.dumps({"id": leave["id"], "result": True}).encode(), 0)) == []
    assert leave["id"] != again["id"]


def test_it_pings_more_often_than_the_welcome_wants() -> None:
    assert json.loads(KuCoin.keepalive_text or "")["type"] == "ping"
    assert KuCoin.keepalive_s < 30


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "old", "follows"),
    [
        (99, 100, True, None),
        (100, 102, False, True),  # begins within the book
        (101, 101, False, True),
        (101, 150, False, True),
        (102, 102, False, False),
        (110, 120, False, False),
    ],
)
def test_a_change_may_begin_before_the_next_number_but_not_after_it(
    first: int, last: int, old: bool, follows: bool | None
) -> None:
    kucoin, change = make(KuCoin), BookChange("BTC-USDT", {}, {}, None, last, first)
    assert kucoin.is_old(change, 100) is old
    if follows is not None:
        assert kucoin.follows(change, 100, joining=False) is follows


def test_a_change_without_its_first_number_never_follows() -> None:
    assert not make(KuCoin).follows(BookChange("BTC-USDT", {}, {}, None, 101), 100, joining=False)


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_what_is_documented_of_this_socket_is_read(wire: Path) -> None:
    kucoin, found = make(KuCoin, "ETH-USDT"), []
    for line in recorded(wire, "kucoin"):
        if "x-push" in line.url:
            try:
                found += told(kucoin.parse(line.data.encode(), 0))
            except UnknownFrame as error:
                found.append({"error": str(error)})
    assert found == [
        {
            "book": "ETH-USDT", "bids": [["90701.1", "0.13918404"]], "asks": [["90701.2", "0.5771583"]],
            "venue_us": 1768217874986000, "sequence": 25984468414, "totals": None,
        },
        {"error": "T was 'obu.FUTURES'"},
    ]  # fmt: skip


# No stream of this socket was recorded. One of the older interface was, with numbers of the same kind, and its REST
# books: played here as this socket would have sent them.


class Recording:
    """The recording of 2021, as frames of today's socket, beside what it says itself."""

    def __init__(self, wire: Path) -> None:
        self.books: list[tuple[str, str, Any]] = []  # market, frame, the recorded content
        self.trades: list[tuple[int, str]] = []  # how many books came before it
        with (wire / "kucoin" / CLASSIC).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["dir"] == "in":
                    self._take(row["url"], json.loads(row["data"]))

    def _take(self, url: str, message: Any) -> None:
        if "orderbook" in url:
            market, number = url.partition("symbol=")[2], int(message["data"]["sequence"])
            content = {"bids": message["data"]["bids"], "asks": message["data"]["asks"], "first": number}
            self._book("snapshot", market, {**content, "last": number})
        elif message.get("subject") == "trade.l2update":
            data = message["data"]
            rows = {side: [row[:2] for row in data["changes"][side] if row[0] != "0"] for side in ("bids", "asks")}
            numbers = {"first": data["sequenceStart"], "last": data["sequenceEnd"]}
            self._book("delta", data["symbol"], {**rows, **numbers})
        elif message.get("subject") == "trade.l3match":
            data = message["data"]
            told = {
                "M": int(data["time"]), "S": data["side"], "p": data["price"], "q": data["size"], "s": data["symbol"],
                "ti": data["sequence"],
            }  # fmt: skip
            self.trades.append((len(self.books), json.dumps({"T": "trade.SPOT", "P": 1, "d": told})))

    def _book(self, kind: str, market: str, content: dict[str, Any]) -> None:
        data = {
            "C": content["last"], "O": content["first"], "M": 1619378326628000000, "a": content["asks"],
            "b": content["bids"], "s": market,
        }  # fmt: skip
        frame = {"T": "obu.SPOT", "dp": "increment@10ms", "t": kind, "P": 1619378326628000000, "d": data}
        self.books.append((market, json.dumps(frame), {**content, "kind": kind}))

    def market(self, market: str) -> list[str]:
        return [frame for name, frame, _ in self.books if name == market]


@pytest.fixture(scope="module")
def recording(wire: Path) -> Recording:
    return Recording(wire)


def reference(books: list[Any]) -> Iterator[tuple[str, Reference | None]]:
    """Say of each message of one market what it is, and the book as it is then: by the numbers, with plain dicts."""
    book, last, early = Reference(), -1, 0
    known = False
    for content in books:
        if content["kind"] == "snapshot":
            book.replace(content["bids"], content["asks"])
            last, known = content["last"], True
            yield "book", book
        elif not known:
            early += 1
            yield "early", None
        elif content["last"] <= last:
            yield "old", book
        else:
            assert content["first"] == last + 1
            book.change(content["bids"], content["asks"])
            last = content["last"]
            yield "linked", book


def test_every_recorded_change_has_its_verdict_and_every_book_equals_a_plain_rebuild(recording: Recording) -> None:
    markets = sorted({market for market, _, _ in recording.books})
    assert len(markets) == 9
    counts = dict.fromkeys(("book", "early", "old", "linked"), 0)
    for market in markets:
        kucoin, contents = make(KuCoin, market), [content for name, _, content in recording.books if name == market]
        start = next(i for i, content in enumerate(contents) if content["kind"] == "snapshot")
        # On this socket nothing comes before the book: what did is what the book holds, or continues it.
        order = [contents[start], *contents[:start], *contents[start + 1 :]]
        frames = recording.market(market)
        player = Player(kucoin)
        for frame, (verdict, book) in zip(
            [frames[start], *frames[:start], *frames[start + 1 :]], reference(order), strict=True
        ):
            (message,) = kucoin.parse(frame.encode(), 0)
            assert player.take(message) == verdict
            assert book is not None
            assert player.books[market].as_numbers() == book.both()
            assert not player.books[market].crossed
            counts[verdict] += 1
    assert counts["book"] == 9 and counts["old"] > 0 and counts["linked"] > 1500
    assert sum(counts.values()) == 2078 + 9


def test_the_recorded_books_that_are_stored_are_the_same(recording: Recording) -> None:
    markets = tuple(sorted({market for market, _, _ in recording.books}))
    clock = FakeClock()
    setup = make_setup(clock=clock)
    kucoin = make(KuCoin, *markets, setup=setup)
    kucoin.anchor()
    truth: dict[str, Reference] = {}
    for market in markets:
        found = [(frame, content) for name, frame, content in recording.books if name == market]
        found.sort(key=lambda each: each[1]["kind"] != "snapshot")
        for (frame, _), (_, book) in zip(found, reference([content for _, content in found]), strict=True):
            kucoin.handle(frame.encode(), clock.advance(0.001))
            assert book is not None
            truth[market] = book
    kucoin.flush()
    stored = Stored(setup.intake).take()
    for market in markets:
        (epoch,) = stored.of(market)
        assert (epoch.verdict, epoch.reason, epoch.opened.depth) == ("linked", None, 500)
        assert tuple(map(numbers, epoch.book)) == truth[market].both()
        assert epoch.rows[-1].sequence is not None


@pytest.mark.parametrize("spoil", [skipped, repeated, swapped])
def test_a_change_that_is_skipped_repeated_or_swapped_is_caught_there(recording: Recording, spoil: Any) -> None:
    market = max({name for name, _, _ in recording.books}, key=lambda name: len(recording.market(name)))
    kucoin = make(KuCoin, market)
    found = [message for frame in recording.market(market) for message in kucoin.parse(frame.encode(), 0)]
    (book,) = (message for message in found if isinstance(message, Book))
    changes = [message for message in found if isinstance(message, BookChange)]
    assert book.sequence is not None
    messages = [book, *(change for change in changes if not kucoin.is_old(change, book.sequence))]
    assert len(messages) > 100
    for at in each(len(messages) - 2, 60):
        player = Player(kucoin)
        for message in spoil(messages, at + 1):
            player.take(message)
            if market not in player.books:
                break
        verdicts = player.verdicts[market]
        if spoil is repeated:
            assert verdicts == ["book", *["linked"] * (at + 1), "old", *["linked"] * (len(messages) - at - 2)]
        else:
            assert verdicts == ["book", *["linked"] * at, "broken"]


def test_the_recorded_sides_are_those_of_takers(recording: Recording) -> None:
    kucoin = make(KuCoin)
    books: dict[str, Reference] = {}
    numbered: dict[str, int] = {}
    agreed = 0
    for at, (market, _, content) in enumerate(recording.books):
        for trade in (
            trade for place, frame in recording.trades if place == at for trade in kucoin.parse(frame.encode(), 0)
        ):
            assert isinstance(trade, Trade)
            book = books.get(trade.market)
            if book is None:
                continue
            at_ask = Decimal(trade.price) >= min(book.asks)
            at_bid = Decimal(trade.price) <= max(book.bids)
            assert not (at_ask if trade.side == "sell" else at_bid)
            agreed += at_ask or at_bid
        book = books.setdefault(market, Reference()) if content["kind"] == "snapshot" else books.get(market)
        if book is not None and content["kind"] == "snapshot":
            book.replace(content["bids"], content["asks"])
            numbered[market] = content["last"]
        elif book is not None and content["last"] > numbered[market]:
            book.change(content["bids"], content["asks"])
            numbered[market] = content["last"]
    assert agreed >= 8


# --- REST -------------------------------------------------------------------------------------------------------------


def test_the_listing_has_what_can_be_traded(wire: Path) -> None:
    assert KuCoin.parse_listing(SYMBOLS.encode()) == ["BTC-USDT"]
    rows = [line.data for line in recorded(wire, "kucoin", "rest") if line.url.endswith("/api/v1/symbols")]
    listed = [row["symbol"] for row in json.loads(rows[0])["data"] if row["enableTrading"]]
    assert KuCoin.parse_listing(rows[0].encode()) == listed
    assert len(listed) > 300
    for body in (
        b"[]",
        b'{"code":"429000","msg":"too many requests"}',
        b'{"data":[{"symbol":"X","enableTrading":true}]}',
    ):
        with pytest.raises(SourceError):
            KuCoin.parse_listing(body)


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    hold_to_any_answers(KuCoin, [SYMBOLS, REST_BOOK, '{"code":"429000","msg":"too many requests"}'])


def test_the_best_levels_are_compared_with_those_that_are_given_without_a_key(wire: Path) -> None:
    kucoin = make(KuCoin, "BTC-USDT")
    assert kucoin.probe_path("BTC-USDT") == "/api/v1/market/orderbook/level2_100?symbol=BTC-USDT"
    assert KuCoin.probe_depth == 100
    (book,) = told([kucoin.parse_probe("BTC-USDT", REST_BOOK.encode())])
    assert (book["bids"], book["asks"]) == ([["1.0", "2"]], [["3", "4"], ["5", "6"]])
    for body in (b'{"code":"900001","msg":"symbol not exists"}', b'{"code":"200000","data":null}', b"[]"):
        with pytest.raises(SourceError):
            kucoin.parse_probe("BTC-USDT", body)


# --- against the simulator --------------------------------------------------------------------------------------------

MARKETS = "BTC-USDT", "ETH-USDT"


def start(live: Callable[..., Live], **options: Any) -> Live:
    stage = live("kucoin", markets=MARKETS, rate_hz=100)
    stage.start(KuCoin, *MARKETS, rate={"requests_per_s": 1000, "connects_per_s": 1000}, **options)
    return stage


def heard(stage: Live, count: int, market: str) -> None:
    """Wait until the newest book of a market is covered and has so many rows."""

    def enough() -> bool:
        epochs = epochs_of(stage, market)
        return bool(epochs) and epochs[-1].reason is None and len(epochs[-1].rows) >= count

    stage.until(enough, what=f"{count} rows of {market}")


def test_books_trades_tickers_and_candles_are_stored_as_they_were_sent(live: Callable[..., Live]) -> None:
    stage = start(live, channels=CHANNELS)
    streams = [(market, channel) for market in MARKETS for channel in (TRADES, TICKER, CANDLES)]
    stage.until(
        lambda: all((each := epochs_of(stage, *feed)) and len(each[0].stream) >= 4 for feed in streams), what="rows"
    )
    for market in MARKETS:
        heard(stage, 20, market)
    stage.stop()
    for market in MARKETS:
        (book,) = epochs_of(stage, market)
        assert (book.opened.depth, book.reason) == (500, "stop")
        check_books(stage, market)
    assert all(check_stream(stage, *feed) >= 3 for feed in streams)
    counts = stage.counts()
    assert (counts["rejected"], counts["dropped"]) == (0, 0)
    assert len(stage.lines(kind="open", transport="websocket")) == 1


@pytest.mark.parametrize("fault", ["swallow", "swap"])
def test_a_change_that_does_not_follow_costs_one_market_one_snapshot(live: Callable[..., Live], fault: str) -> None:
    stage, (hit, spared) = start(live), MARKETS
    for market in MARKETS:
        heard(stage, 10, market)
    stage.simulator.fault(fault, "kucoin", hit)
    stage.until(lambda: len(epochs_of(stage, hit)) == 2, what="a second epoch")
    heard(stage, 10, hit)
    stage.stop()
    first, second = epochs_of(stage, hit)
    (other,) = epochs_of(stage, spared)
    assert (first.reason, second.reason, other.reason) == ("sequence", "stop", "stop")
    assert (len(subscriptions_of(stage, hit)), len(subscriptions_of(stage, spared))) == (2, 1)
    assert len(stage.lines(kind="open", transport="websocket")) == 1
    for market in MARKETS:
        check_books(stage, market)
    # It was noticed at the very next change: the last row is that before the one that was lost or came too late.
    sent = stage.lines(kind="message", subscription=subscriptions_of(stage, hit)[0])
    hole = next(
        i for i, (a, b) in enumerate(pairwise(sent)) if b["fate"] == "withheld" or b["sequence"] < a["sequence"]
    )
    last = sent[hole] if fault == "swallow" else sent[hole - 1]
    assert first.rows[-1].sequence == last["sequence"]
    assert first.ended is not None and first.mark is not None
    assert first.ended.ended_us == first.mark.confirmed_until_us < second.opened.opened_us


def test_a_change_that_comes_twice_changes_nothing(live: Callable[..., Live]) -> None:
    stage, (hit, _) = start(live), MARKETS
    heard(stage, 5, hit)
    stage.simulator.fault("duplicate", "kucoin", hit, times=3)
    heard(stage, 30, hit)
    stage.stop()
    assert len(epochs_of(stage, hit)) == 1
    check_books(stage, hit)
    assert stage.counts()["duplicate"] >= 3
