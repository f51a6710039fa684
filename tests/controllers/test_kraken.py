import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collector.errors import BadFrame, RateLimited, SourceError, VenueRefused
from collector.records import CHANNELS, Book, BookChange, Candle, Subscribed, Ticker, Trade
from controllers.book import OrderBook
from controllers.kraken import Kraken
from tests.controllers.live import Live
from tests.controllers.proved import Judged, check_streams, ended, frames_of, hear, judged, wait_for_rejected
from tests.controllers.reference import Reference, repeated, skipped, swapped
from tests.controllers.venue import (
    Case,
    cases,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    told,
)
from tests.fakes import make_setup

BTC = "kraken/v2_book10_btcusd_20260816.ndjson"
MINA = "kraken/v2_book25_minagbp_resync_20260818.ndjson"
REST_BOOK = '{"error":[],"result":{"XXBTZUSD":{"asks":[["3.0","4.0",1]],"bids":[["2.0","1.0",1],["1.0","5.0",1]]}}}'


class Deeper(Kraken):
    """The same at the depth of one of the recordings."""

    depth = 25


RECORDED = {BTC: (Kraken, "BTC-USD"), MINA: (Deeper, "MINA-GBP")}


@pytest.mark.parametrize("case", cases("kraken"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Kraken))


def test_any_bytes_give_records_or_a_source_error() -> None:
    hold_to_any_frames(Kraken, "kraken")


# --- subscribing ------------------------------------------------------------------------------------------------------


def test_a_channel_is_asked_for_once_with_all_its_markets() -> None:
    kraken = make(Kraken, "BTC-USD", "MINA-GBP", setup=replace(make_setup(), channels=CHANNELS))
    symbols = ["BTC/USD", "MINA/GBP"]
    asked = [json.loads(text) for text in kraken.subscribe_messages(kraken.markets)]
    assert [each["method"] for each in asked] == ["subscribe"] * 4
    assert [each["params"] for each in asked] == [
        {"channel": "book", "depth": 10, "snapshot": True, "symbol": symbols},
        {"channel": "trade", "snapshot": True, "symbol": symbols},
        {"channel": "ticker", "event_trigger": "bbo", "snapshot": True, "symbol": symbols},
        {"channel": "ohlc", "interval": 1, "snapshot": True, "symbol": symbols},
    ]


def test_a_book_is_brought_anew_as_it_was_when_that_was_recorded(wire: Path) -> None:
    lines = [json.loads(line) for line in (wire / MINA).read_text("utf-8").splitlines()]
    sent = [json.loads(line["data"]) for line in lines if line["dir"] == "out"]
    ours = [json.loads(text) for text in make(Kraken, "MINA-GBP").resync_messages("MINA-GBP")]
    for request in sent:
        request["params"]["depth"] = 10
    assert ours == sent[1:]


def test_a_depth_is_chosen_that_the_checksum_covers_and_the_exchange_offers() -> None:
    assert Kraken.depth == 10
    assert Kraken.cut_to_depth and Kraken.verdict == "checksummed"


def test_an_acknowledgement_opens_a_stream_and_a_refusal_names_its_market() -> None:
    ack = b'{"method":"subscribe","result":{"channel":"%s","snapshot":true,"symbol":"BTC/USD"},"success":true}'
    found = [list(make(Kraken).parse(ack % name, 0)) for name in (b"book", b"trade", b"ticker", b"ohlc")]
    assert found == [[], *([Subscribed(channel, "BTC-USD")] for channel in ("trades", "ticker", "candles"))]


# --- checksums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECORDED)
def test_every_recorded_book_is_proved_and_equals_a_plain_rebuild(wire: Path, file: str) -> None:
    cls, market = RECORDED[file]
    frames = [frame for frame in frames_of(wire, file) if '"checksum"' in frame]
    found = list(judged(cls, market, frames))
    told = [each.verdict for each in found]
    assert (len(told), told.count("row"), told.count("nothing")) == {BTC: (54, 54, 0), MINA: (19, 18, 1)}[file]
    reference = Reference()
    for frame, each in zip(frames, found, strict=True):
        message = exactly(frame)
        (row,) = message["data"]
        bids, asks = ([(level["price"], level["qty"]) for level in row[side]] for side in ("bids", "asks"))
        take = reference.replace if message["type"] == "snapshot" else reference.change
        take(bids, asks)
        reference.replace(*(side.items() for side in reference.best(cls.depth or 0)))
        assert each.numbers() == reference.both()


def test_the_recorded_resync_showed_the_book_that_was_kept(wire: Path) -> None:
    frames = [frame for frame in frames_of(wire, MINA) if '"checksum"' in frame]
    found = list(judged(Deeper, "MINA-GBP", frames))
    again = next(i for i, frame in enumerate(frames) if i and '"type":"snapshot"' in frame)
    assert found[again] == Judged("nothing", found[again - 1].book)


def test_without_the_cut_the_recorded_checksums_do_not_hold(wire: Path) -> None:
    class Uncut(Kraken):
        cut_to_depth = False

    found = list(judged(Uncut, "BTC-USD", [frame for frame in frames_of(wire, BTC) if '"checksum"' in frame]))
    assert found[-1].verdict == "checksum"


def plainly(frames: list[str], depth: int) -> Iterator[tuple[bool, Any]]:
    """Yield of each frame whether its checksum holds, and the book: by the recipe, with nothing of the collector."""
    sides: dict[str, dict[Decimal, tuple[str, str]]] = {}
    for frame in frames:
        message = json.loads(frame, parse_float=str, parse_int=str)
        if message.get("channel") != "book":
            continue
        (row,) = message["data"]
        if message["type"] == "snapshot":
            sides = {"asks": {}, "bids": {}}
        for name, levels in sides.items():
            for level in row[name]:
                levels[Decimal(level["price"])] = (level["price"], level["qty"])
            kept = sorted((item for item in levels.items() if Decimal(item[1][1])), reverse=name == "bids")
            sides[name] = dict(kept[:depth])
        best = [token for name in ("asks", "bids") for pair in list(sides[name].values())[:10] for token in pair]
        text = "".join(token.replace(".", "").lstrip("0") for token in best)
        numbers = {name: {p: Decimal(q) for p, (_, q) in levels.items()} for name, levels in sides.items()}
        yield zlib.crc32(text.encode()) == int(row["checksum"]), numbers


@pytest.mark.parametrize("how", [skipped, swapped])
@pytest.mark.parametrize("file", RECORDED)
def test_a_difference_that_is_skipped_or_swapped_is_caught_where_the_checksum_breaks(
    wire: Path, file: str, how: Any
) -> None:
    cls, market = RECORDED[file]
    frames = [frame for frame in frames_of(wire, file) if '"checksum"' in frame]
    good = list(judged(cls, market, frames))
    updates = ['"update"' in frame for frame in frames]
    unseen = []
    for at in (n for n, both in enumerate(pairwise(updates)) if all(both)):
        played = how(frames, at)
        truth = list(plainly(played, cls.depth or 0))
        holds = [each for each, _ in truth]
        first_wrong = holds.index(False) if False in holds else None
        found = list(judged(cls, market, played))
        assert len(found) == (len(holds) if first_wrong is None else first_wrong + 1)
        assert (found[-1].verdict == "checksum") == (first_wrong is not None)
        for each, (_, book) in zip(found[:first_wrong], truth, strict=False):
            assert each.numbers() == (book["bids"], book["asks"])
        if first_wrong != at:
            unseen.append(found[at].book == good[at + 1].book)  # whether the next one made good what was lost
    assert unseen == [True]  # of one, the level was replaced by the very next message: the book is right after it


@pytest.mark.parametrize("file", RECORDED)
def test_a_difference_that_is_repeated_changes_nothing(wire: Path, file: str) -> None:
    cls, market = RECORDED[file]
    frames = [frame for frame in frames_of(wire, file) if '"checksum"' in frame]
    good = list(judged(cls, market, frames))
    for at in range(1, len(frames), 4):
        found = list(judged(cls, market, repeated(frames, at)))
        assert [each.book for each in found] == [each.book for each in (*good[: at + 1], *good[at:])]


def test_a_repeat_that_comes_late_is_caught(wire: Path) -> None:
    frames = [frame for frame in frames_of(wire, BTC) if '"checksum"' in frame]
    found = list(judged(Kraken, "BTC-USD", [*frames[:8], frames[1], *frames[8:]]))
    assert [each.verdict for each in found] == ["row"] * 8 + ["checksum"]


def levels(*tokens: Any) -> dict[Any, Any]:
    return dict(zip(tokens[::2], tokens[1::2], strict=True))


@pytest.mark.parametrize(
    ("bids", "asks", "text"),
    [
        (levels("62802.5", "0.02987767"), levels("62802.6", "1.09074394"), "6280261090743946280252987767"),
        (levels("0.0010", "0.00000051"), {}, "1051"),
        (levels(5, 1), levels("6", "2.00000000"), "620000000051"),  # integers stand as they are
        (levels("0.5", "1e-08"), {}, "51"),  # of an exponent, the digits it stands for
        ({}, {}, ""),
    ],
)
def test_a_checksum_is_made_of_literal_digits(bids: Any, asks: Any, text: str) -> None:
    kraken = make(Kraken)
    book = OrderBook(trim=not kraken.text_numbers)
    book.replace(Book("BTC-USD", bids, asks))
    assert kraken.checksum(book) == zlib.crc32(text.encode())


def test_zeros_at_the_end_count_and_only_ten_levels_do() -> None:
    kraken = make(Kraken)
    sums = []
    for size, last in (("0.10", "1"), ("0.1", "1"), ("0.10", "2")):
        book = OrderBook(trim=not kraken.text_numbers)
        book.replace(Book("BTC-USD", {**{str(100 - n): size for n in range(10)}, "1": last}, {}))
        sums.append(kraken.checksum(book))
    assert sums[0] == sums[2] != sums[1]


def test_the_digits_that_were_proved_are_the_digits_that_are_stored() -> None:
    kraken = make(Kraken)
    book = OrderBook(trim=not kraken.text_numbers)
    (message,) = kraken.parse(frame_of("kraken", "the complete book"), 0)
    assert isinstance(message, Book)
    book.replace(message)
    assert json.loads(book.as_json()[0]) == [["62802.5", "0.02987767"], ["62800.70", "0.00005100"]]


def test_the_first_version_has_the_same_recipe_and_nothing_of_it_is_taken_for_data(wire: Path) -> None:
    # Its frames are lists and its numbers text, so that `parse` refuses them; prices, sizes and sums are the same.
    kraken = make(Kraken, "ADA-BTC")
    books: dict[str, OrderBook] = {}
    sums = 0
    for frame in frames_of(wire, "kraken/cryptofeed_v1_book1000_20210417.ndjson")[:400]:
        with pytest.raises(SourceError):
            kraken.parse(frame.encode(), 0)
        row = json.loads(frame)
        if not isinstance(row, list):
            continue
        name = row[-1]
        book = books.setdefault(name, OrderBook(trim=False))
        for part in row[1:-2]:
            sides = [{level[0]: level[1] for level in part.get(key, ())} for key in ("bs", "as", "b", "a")]
            if "as" in part:
                book.replace(Book(name, sides[0], sides[1]))
            book.apply(BookChange(name, sides[2], sides[3]))
        for side, highest in ((book.bids, True), (book.asks, False)):
            side.apply({price: "0" for price, _ in side.as_text(highest_first=highest)[1000:]})
        for part in row[1:-2]:
            if "c" in part:
                assert kraken.checksum(book) == int(part["c"])
                sums += 1
    assert sums > 200


# --- other channels ---------------------------------------------------------------------------------------------------


def test_documented_frames_are_read(wire: Path) -> None:
    kraken = make(Kraken, "BTC-USD")
    found = {}
    for line in recorded(wire, "kraken"):
        if line.where.startswith("doc_examples"):
            found[line.where.partition(":")[2]] = list(kraken.parse(line.data.encode(), 0))
    assert found["1"] == [
        Trade("BTC-USD", "10218208", "buy", "105944.20", "0.00027625", 1696613755440295),
        Trade("BTC-USD", "10218209", "sell", "105910.50", "0.00012460", 1696613756123456),
    ]
    assert found["2"] == [Ticker("BTC-USD", "105899.40", "105944.20", "105944.30", "163.28908096", 1671960659123456)]
    assert found["3"] == [
        Candle("BTC-USD", 60, 1696436700000000, "106038.2", "106044.3", "106038.1", "106040.1", "30927.68066226")
    ]
    assert found["4"] == [Subscribed("ticker", "BTC-USD")]
    assert found["5"] == []
    assert [type(message) for number in "67" for message in found[number]] == [Book, BookChange]


TRADE = '{"symbol":"BTC/USD","side":"%s","price":5,"qty":0.10,"trade_id":%d,"timestamp":"2023-10-06T17:35:55.440295Z"}'


def test_trades_stand_in_the_order_of_their_ids() -> None:
    rows = ",".join(TRADE % (side, number) for side, number in (("sell", 12), ("buy", 10), ("sell", 11)))
    frame = f'{{"channel":"trade","type":"snapshot","data":[{rows}]}}'.encode()
    found = [message for message in make(Kraken).parse(frame, 0) if isinstance(message, Trade)]
    assert [(trade.id, trade.side) for trade in found] == [("10", "buy"), ("11", "sell"), ("12", "sell")]
    assert (found[0].price, found[0].size) == (5, "0.10")
    with pytest.raises(BadFrame):
        list(make(Kraken).parse(frame.replace(b'"side":"buy"', b'"side":"both"'), 0))


def test_a_market_that_has_not_begun_to_trade_has_no_price() -> None:
    row = '{"symbol":"ANETX/USD","bid":0,"ask":0.00,"last":0.0,"volume":0.0,"timestamp":"1970-01-01T00:00:00.000000Z"}'
    frame = f'{{"channel":"ticker","type":"snapshot","data":[{row}]}}'.encode()
    assert list(make(Kraken).parse(frame, 0)) == [Ticker("ANETX-USD", None, None, None, "0.0", 0)]


def test_candles_stand_in_their_order_with_the_time_of_their_message() -> None:
    row = '{"symbol":"BTC/USD","open":1,"high":3.50,"low":0.5,"close":2,"volume":7.0,"interval_begin":"2023-10-04T16:%s:00.000000000Z","interval":1,"timestamp":"2023-10-04T16:30:00Z"}'  # noqa: E501
    rows = ",".join(row % minute for minute in ("26", "25"))
    frame = f'{{"channel":"ohlc","type":"snapshot","timestamp":"2023-10-04T16:26:30.524394914Z","data":[{rows}]}}'
    found = [message for message in make(Kraken).parse(frame.encode(), 0) if isinstance(message, Candle)]
    assert [candle.open_us for candle in found] == [1696436700000000, 1696436760000000]
    assert found[0] == Candle("BTC-USD", 60, 1696436700000000, 1, "3.50", "0.5", 2, "7.0", venue_us=1696436790524394)
    with pytest.raises(SourceError):
        list(make(Kraken).parse(frame.replace('"interval":1', '"interval":5').encode(), 0))


# --- REST -------------------------------------------------------------------------------------------------------------


def test_rest_knows_the_old_codes_and_its_book_is_cut_as_ours() -> None:
    kraken = make(Kraken, "BTC-USD")
    assert kraken.probe_path("BTC-USD") == "/0/public/Depth?pair=XBTUSD&count=10"
    assert kraken.probe_path("DOGE-BTC") == "/0/public/Depth?pair=XDGXBT&count=10"
    (book,) = told([kraken.parse_probe("BTC-USD", REST_BOOK.encode())])
    assert (book["bids"], book["asks"]) == ([["2.0", "1.0"], ["1.0", "5.0"]], [["3.0", "4.0"]])


def test_the_recorded_list_is_turned_into_the_codes_of_the_socket(wire: Path) -> None:
    (line,) = [line for line in recorded(wire, "kraken", "rest") if "AssetPairs" in line.url]
    found = Kraken.parse_listing(line.data.encode())
    rows = [row for row in json.loads(line.data)["result"].values() if "wsname" in row]
    assert len(found) == len(set(found)) == len(rows) == 293
    assert {"BTC-USD", "DOGE-BTC", "ETH-EUR"} <= set(found)
    assert not [market for market in found if "XBT" in market or "XDG" in market]
    altnames = {f"/0/public/Depth?pair={row['altname']}&count=10" for row in rows}
    assert {make(Kraken).probe_path(market) for market in found} == altnames


def test_what_does_not_trade_or_has_no_name_here_is_not_listed() -> None:
    rows = {
        "A": {"wsname": "XBT/USD", "status": "online"},
        "B": {"wsname": "ETH/USD", "status": "cancel_only"},
        "C": {"wsname": "AAPLx/USD", "status": "online"},
        "D": {"altname": "XBTUSD.d"},
    }
    assert Kraken.parse_listing(json.dumps({"error": [], "result": rows}).encode()) == ["BTC-USD"]


def test_errors_with_status_200_are_told_apart() -> None:
    with pytest.raises(VenueRefused, match="EQuery:Unknown asset pair"):
        make(Kraken).parse_probe("BTC-USD", b'{"error":["EQuery:Unknown asset pair"]}')
    with pytest.raises(RateLimited):
        Kraken.parse_listing(b'{"error":["EAPI:Rate limit exceeded"]}')


def test_any_answer_over_rest_is_read_or_a_source_error() -> None:
    listing = '{"error":[],"result":{"XXBTZUSD":{"altname":"XBTUSD","wsname":"XBT/USD","status":"online"}}}'
    hold_to_any_answers(Kraken, [REST_BOOK, listing, '{"error":["EService:Busy"]}'])


# --- against the simulator --------------------------------------------------------------------------------------------

LIVE = "BTC-USD", "DOGE-USD"
Stages = Callable[..., Live]


def test_books_are_proved_and_those_that_were_sent(live: Stages) -> None:
    stage = live("kraken", markets=LIVE, rate_hz=200)
    hear(stage, Kraken, *LIVE)
    for market in LIVE:
        stage.heard(40, market)
    stage.stop()
    for market in LIVE:
        (epoch,) = stage.stored.of(market)
        assert (epoch.verdict, epoch.reason, epoch.opened.depth) == ("checksummed", "stop", 10)
        assert {len(side) for book in epoch.books for side in book} == {10}
        stage.check(market)
    counts = stage.counts()
    assert counts["rejected"] == counts["dropped"] == 0


@pytest.mark.parametrize("kind", ["swallow", "swap", "corrupt_total"])
def test_a_book_that_breaks_costs_one_market_one_snapshot(live: Stages, kind: str) -> None:
    stage = live("kraken", markets=LIVE, rate_hz=150)
    hit, spared = LIVE
    hear(stage, Kraken, hit, spared)
    stage.heard(10, hit)
    stage.simulator.fault(kind, "kraken", hit)
    ended(stage, hit, 1)
    stage.stop()
    first, second = stage.stored.of(hit)
    (other,) = stage.stored.of(spared)
    assert (first.reason, second.reason, other.reason) == ("checksum", "stop", "stop")
    assert first.ended is not None and first.mark is not None
    assert first.ended.ended_us == first.mark.confirmed_until_us < second.opened.opened_us
    stage.check(hit, 0, 0)
    stage.check(hit, 1, 1)
    stage.check(spared)
    assert len(stage.lines(kind="message", what="book")) == 3
    assert len(stage.lines(kind="open", transport="websocket")) == 1
    stage.counts()


def test_a_difference_that_comes_twice_changes_nothing(live: Stages) -> None:
    stage = live("kraken", markets=LIVE, rate_hz=150)
    hear(stage, Kraken, "BTC-USD")
    stage.heard(10, "BTC-USD")
    stage.simulator.fault("duplicate", "kraken", "BTC-USD", times=3)
    stage.heard(30, "BTC-USD")
    stage.stop()
    (epoch,) = stage.stored.of("BTC-USD")
    assert epoch.verdict == "checksummed"
    stage.counts()


def test_trades_tickers_and_candles_are_those_that_were_sent(live: Stages) -> None:
    stage = live("kraken", markets=LIVE, rate_hz=200)
    hear(stage, Kraken, "BTC-USD", channels=CHANNELS)
    stage.until(
        lambda: sum(len(epoch.stream) >= 10 for epoch in stage.stored.of("BTC-USD")) == 3, what="rows of all channels"
    )
    stage.stop()
    check_streams(stage, "BTC-USD", sent_as={"trades": "trade", "ticker": "ticker", "candles": "candle"})
    assert stage.counts()["rejected"] == 0


def test_a_market_that_is_not_traded_is_refused_and_the_others_go_on(live: Stages) -> None:
    stage = live("kraken", markets=LIVE)
    controller = hear(stage, Kraken, "NOPE-USD", "BTC-USD")
    stage.heard(10, "BTC-USD")
    states = {row["market"]: row["state"] for row in controller.status()}
    stage.stop()
    assert states == {"NOPE-USD": "refused", "BTC-USD": "live"}
    assert stage.log.of("api_error")[0]["error"] == "Currency pair not supported NOPE/USD"
    stage.check("BTC-USD")


def test_a_recording_is_recorded_as_it_was_sent(live: Stages, wire: Path) -> None:
    stage = live("kraken", recording=wire / BTC, speed=None)
    hear(stage, Kraken, "BTC-USD")
    stage.heard(54, "BTC-USD")
    stage.stop()
    (epoch,) = stage.stored.of("BTC-USD")
    assert (epoch.verdict, epoch.reason, epoch.frames) == ("checksummed", "stop", 54)
    stage.check("BTC-USD")


def test_no_garbage_is_ever_recorded_and_the_book_comes_back(live: Stages) -> None:
    stage = live("kraken", markets=LIVE, rate_hz=150)
    hear(stage, Kraken, "BTC-USD")
    garbage = ("not_json", "foreign_market", "negative_volume", "unknown_type", "not_utf8")
    for number, what in enumerate(garbage, 1):
        stage.heard(3, "BTC-USD")
        stage.simulator.fault("garbage", "kraken", "BTC-USD", what=what)
        wait_for_rejected(stage, number)
    stage.heard(3, "BTC-USD")
    stage.stop()
    assert set(stage.stored.reasons[:-1]) == {"rejected"}
    assert stage.counts()["rejected"] == len(garbage)
