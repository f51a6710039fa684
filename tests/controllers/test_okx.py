import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.clock import Clock
from collector.errors import BadFrame, SourceError, UnknownFrame, VenueRefused
from collector.records import (
    CANDLES,
    CHANNELS,
    ORDERBOOK,
    TICKER,
    TRADES,
    Book,
    BookChange,
    Candle,
    CandleRow,
    EpochOpened,
    Leaving,
    StreamRow,
    Ticker,
    TickerRow,
    Trade,
    TradeRow,
)
from controllers.okx import Okx, OkxBusiness, crc, house_form, native
from tests.conftest import wait_until
from tests.controllers.live import Live
from tests.controllers.venue import (
    Case,
    cases,
    check_book,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    told,
)
from tests.fakes import FakeClock, HeardLog, Stored, make_setup, numbers

PUBLIC = (ORDERBOOK, TRADES, TICKER)
NAMES = [
    ("BTC-USDT", "BTC-USDT"),
    ("BTC-USD", "BTC-USD"),
    ("BTC-USDT-SWAP", "BTC-USDT:USDT"),
    ("BTC-USDC-SWAP", "BTC-USDC:USDC"),
    ("BTC-USD-SWAP", "BTC-USD:BTC"),
    ("BTC-USD-260626", "BTC-USD:BTC-260626"),
    ("BTC-USDT-260626", "BTC-USDT:USDT-260626"),
    ("BTC-USD-260626-100000-C", "BTC-USD:BTC-260626-100000-C"),
    ("XRP-USD-260626-0.55-P", "XRP-USD:XRP-260626-0.55-P"),
]


@pytest.mark.parametrize("case", cases("okx"), ids=str)
def test_every_kind_of_message_is_read(case: Case) -> None:
    case.check(make(Okx))


@pytest.mark.parametrize("case", cases("okx", "candles"), ids=str)
def test_every_kind_of_message_about_candles_is_read(case: Case) -> None:
    case.check(make(OkxBusiness))


def test_a_notice_says_that_the_exchange_leaves() -> None:
    message = "The connection will soon be closed for a service upgrade. Please reconnect."
    notice = {"event": "notice", "code": "64008", "msg": message, "connId": "a4d3ae55"}
    for cls in (Okx, OkxBusiness):
        assert list(make(cls).parse(json.dumps(notice).encode(), 0)) == [Leaving(message)]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("instrument", "market"), NAMES)
def test_an_instrument_and_its_market_are_named_by_rule(instrument: str, market: str) -> None:
    assert (house_form(instrument), native(market)) == (market, instrument)
    assert all(Okx.carries(market, channel) for channel in PUBLIC)
    assert OkxBusiness.carries(market, CANDLES)


@pytest.mark.parametrize(
    "instrument", ["", "BTC", "btc-usdt", "BTC-USDT-", "BTC-USD_UM-SWAP", "BTC-USD-26-1-C", "A-B-C-D"]
)
def test_what_is_no_instrument_is_refused(instrument: str) -> None:
    with pytest.raises(BadFrame):
        house_form(instrument)


def test_a_class_carries_its_own_channels_and_what_is_settled_as_it_would_be() -> None:
    assert not Okx.carries("BTC-USDT", CANDLES)
    assert not OkxBusiness.carries("BTC-USDT", ORDERBOOK)
    assert not Okx.carries("BTC-USDT:BTC", ORDERBOOK)
    assert not Okx.carries("BTC-USD:USD", ORDERBOOK)


# --- requests ---------------------------------------------------------------------------------------------------------


def asking(cls: type[Okx | OkxBusiness], *markets: str) -> Okx | OkxBusiness:
    return make(cls, *markets, setup=replace(make_setup(), channels=CHANNELS))


def asked(text: str) -> list[tuple[str, str]]:
    request = json.loads(text)
    assert request.keys() == {"op", "args"} and request["op"] == "subscribe"
    return [(each["channel"], each["instId"]) for each in request["args"]]


def test_one_request_asks_for_every_channel_of_every_market() -> None:
    markets = ("BTC-USDT", "BTC-USD:BTC")
    (text,) = asking(Okx, *markets).subscribe_messages(markets)
    codes = ("BTC-USDT", "BTC-USD-SWAP")
    assert asked(text) == [(channel, code) for code in codes for channel in ("books", "trades", "tickers")]
    (text,) = asking(OkxBusiness, *markets).subscribe_messages(markets)
    assert asked(text) == [("candle1m", code) for code in codes]


def test_requests_stay_below_64_kb_and_leave_nothing_out() -> None:
    markets = tuple(f"BTC-USD:BTC-260626-{strike}-C" for strike in range(100_000, 101_500))
    texts = list(asking(Okx, *markets).subscribe_messages(markets))
    assert 2 < len(texts) < 12
    assert all(len(text) < 64 * 1024 for text in texts)
    found = [one for text in texts for one in asked(text)]
    assert found == [(name, native(market)) for market in markets for name in ("books", "trades", "tickers")]


def test_a_resync_touches_the_book_of_one_market() -> None:
    argument = {"channel": "books", "instId": "BTC-USD-SWAP"}
    assert [json.loads(text) for text in make(Okx).resync_messages("BTC-USD:BTC")] == [
        {"op": "unsubscribe", "args": [argument]},
        {"op": "subscribe", "args": [argument]},
    ]


# --- links and checksums, by hand -------------------------------------------------------------------------------------


def change(previous: int | None, sequence: int | None, checksum: int | None = None) -> BookChange:
    return BookChange("BTC-USDT", {}, {}, None, sequence, None, previous, checksum)


def test_only_the_number_before_tells_whether_a_change_follows() -> None:
    okx = make(Okx)
    assert okx.follows(change(7, 8), 7, joining=False)
    assert okx.follows(change(7, 3), 7, joining=False)  # after maintenance
    assert okx.follows(change(7, 7), 7, joining=False)  # it stands still
    assert not okx.follows(change(6, 8), 7, joining=False)
    assert not okx.follows(change(8, 9), 7, joining=False)
    assert not okx.follows(change(-1, 9), 7, joining=False)
    assert not any(okx.is_old(change(6, number), 7) for number in (1, 7, 8))


def test_a_checksum_of_nought_is_none() -> None:
    snapshot, updated = (list(make(Okx).parse(frame_of("okx", name), 0)) for name in ("the complete book", "a change"))
    assert isinstance(snapshot[0], Book) and isinstance(updated[0], BookChange)
    assert (snapshot[0].checksum, updated[0].checksum, updated[0].previous) == (None, None, 79706756139)
    (old,) = make(Okx).parse(frame_of("okx", "a change of 2022"), 0)
    assert isinstance(old, BookChange)
    assert (old.checksum, old.sequence, old.previous) == (-914047754, None, None)


def test_a_checksum_takes_bids_and_asks_by_turns_as_a_signed_number() -> None:
    # crc32 of "3366.1:7:3366.8:9:3366:6:3368:8" and of "3366.1:7:3366.8:9:3368:8:3372:8", by gzip
    assert crc([("3366.1", "7"), ("3366", "6")], [("3366.8", "9"), ("3368", "8")]) == -1881014294
    assert crc([("3366.1", "7")], [("3366.8", "9"), ("3368", "8"), ("3372", "8")]) == 831078360
    assert crc([], []) == 0
    many = [(str(price), "1") for price in range(1000, 900, -1)]
    assert crc(many, []) == crc(many[:25], []) != crc(many[:24], [])


# --- REST -------------------------------------------------------------------------------------------------------------


def listing(*rows: dict[str, str]) -> bytes:
    return json.dumps({"code": "0", "msg": "", "data": rows}).encode()


ROW = {
    "instId": "BTC-USDT-SWAP",
    "state": "live",
    "settleCcy": "USDT",
    "ctVal": "0.01",
    "ctMult": "1",
    "ctValCcy": "BTC",
}


def test_a_contract_is_worth_its_value_times_its_multiplier() -> None:
    okx = make(Okx)
    paths = {
        "BTC-USDT": None,
        "BTC-USDT:USDT": "SWAP&instId=BTC-USDT-SWAP",
        "BTC-USD:BTC-260626": "FUTURES&instId=BTC-USD-260626",
        "BTC-USD:BTC-260626-100000-C": "OPTION&instFamily=BTC-USD&instId=BTC-USD-260626-100000-C",
    }
    for market, tail in paths.items():
        assert okx.unit_path(market) == (tail and f"/api/v5/public/instruments?instType={tail}")
    assert okx.parse_unit("BTC-USDT:USDT", listing(ROW)) == "0.01 BTC"
    inverse = {**ROW, "instId": "BTC-USD-SWAP", "ctVal": "100", "ctValCcy": "USD"}
    assert okx.parse_unit("BTC-USD:BTC", listing(ROW, inverse)) == "100 USD"
    option = {**ROW, "instId": "BTC-USD-260626-100000-C", "ctVal": "1", "ctMult": "0.10"}
    assert okx.parse_unit("BTC-USD:BTC-260626-100000-C", listing(option)) == "0.1 BTC"


@pytest.mark.parametrize(
    "row", [{**ROW, "instId": "ETH-USDT-SWAP"}, {**ROW, "ctVal": ""}, {**ROW, "ctVal": "0"}, {**ROW, "ctValCcy": ""}]
)
def test_a_contract_whose_worth_is_not_told_is_refused(row: dict[str, str]) -> None:
    with pytest.raises(BadFrame):
        make(Okx).parse_unit("BTC-USDT:USDT", listing(row))


def test_a_refused_call_is_told() -> None:
    body = b'{"code":"51001","data":[],"msg":"Instrument ID doesn\'t exist."}'
    for read in (lambda: make(Okx).parse_unit("BTC-USDT:USDT", body), lambda: Okx.parse_listing(body)):
        with pytest.raises(VenueRefused, match="51001: Instrument"):
            read()


def test_the_listing_holds_what_trades_now_under_a_name_that_can_be_asked_for() -> None:
    rows = [
        ROW,
        {**ROW, "instId": "ETH-USDT-SWAP", "state": "suspend"},
        {**ROW, "instId": "BTC-USD_UM-SWAP", "settleCcy": "USDC"},
        {**ROW, "instId": "SOL-USD-SWAP", "settleCcy": "USDC"},
        {**ROW, "instId": "BTC-USDT", "settleCcy": ""},
    ]
    assert Okx.parse_listing(listing(*rows)) == ["BTC-USDT:USDT", "BTC-USDT"]


def test_a_book_over_rest_has_the_depth_of_the_socket() -> None:
    okx = make(Okx)
    assert okx.probe_path("BTC-USD:BTC") == "/api/v5/market/books?instId=BTC-USD-SWAP&sz=400"
    body = {"asks": [["41006.8", "0.6", "0", "1"]], "bids": [["41006.3", "0.3", "0", "2"]], "ts": "1629966436396"}
    answer = json.dumps({"code": "0", "msg": "", "data": [{**body, "seqId": 3235851742}]}).encode()
    assert told([okx.parse_probe("BTC-USD:BTC", answer)]) == [
        {
            "book": "BTC-USD:BTC",
            "bids": [["41006.3", "0.3"]],
            "asks": [["41006.8", "0.6"]],
            "venue_us": 1629966436396000,
            "sequence": 3235851742,
            "totals": None,
        }
    ]


def test_any_answer_is_read_or_refused() -> None:
    book = {"asks": [["1", "2", "0", "1"]], "bids": [], "ts": "1629966436396", "seqId": 5}
    hold_to_any_answers(Okx, [listing(ROW).decode(), json.dumps({"code": "0", "msg": "", "data": [book]})])


# --- recorded ---------------------------------------------------------------------------------------------------------

Frame = dict[str, Any]
Level = tuple[str, str]


class Reference:
    """A book kept by another hand, from the text of the frames, in the exchange's own digits."""

    def __init__(self) -> None:
        self.sides: dict[str, dict[Decimal, Level]] = {"bids": {}, "asks": {}}

    def take(self, frame: Frame) -> None:
        (row,) = frame["data"]
        for name, side in self.sides.items():
            if frame["action"] == "snapshot":
                side.clear()
            for price, size, *_ in row[name]:
                side.pop(Decimal(price), None)
                if Decimal(size):
                    side[Decimal(price)] = price, size

    def numbers(self) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
        bids, asks = ({price: Decimal(level[1]) for price, level in side.items()} for side in self.sides.values())
        return bids, asks

    def sum(self) -> int:
        bids = [level for _, level in sorted(self.sides["bids"].items(), reverse=True)]
        asks = [level for _, level in sorted(self.sides["asks"].items())]
        told: list[str] = []
        for place in range(25):
            for side in (bids, asks):
                told += side[place] if place < len(side) else ()
        return int.from_bytes(zlib.crc32(":".join(told).encode()).to_bytes(4, "big"), "big", signed=True)


def books(wire: Path) -> dict[str, list[Frame]]:
    """Return the recorded book messages of 2022 by instrument."""
    found: dict[str, list[Frame]] = {}
    for line in recorded(wire, "okx"):
        if "cryptofeed" in line.where:
            frame = json.loads(line.data)
            if frame["arg"]["channel"] == "books" and "data" in frame:
                found.setdefault(frame["arg"]["instId"], []).append(frame)
    return found


def numbered(frames: list[Frame]) -> list[Frame]:
    """Return recorded messages in the dialect of today: linked by numbers that fall now and then, checksum 0."""
    number, found = 79_706_756_139, []
    for at, frame in enumerate(frames):
        before, number = (number if at else -1), number + (17 if at % 10 else -1_000_003)
        row = {**frame["data"][0], "checksum": 0, "seqId": number, "prevSeqId": before}
        found.append({**frame, "data": [row]})
    return found


class Of2022(Okx):
    """The dialect of 2022: no numbers, so that the sum over a book is all that proves it."""

    verdict = "checksummed"


class Played:
    """Frames as a controller takes them in: what became of each, and the book after it."""

    def __init__(self, cls: type[Okx], frames: list[Frame]) -> None:
        market = house_form(frames[0]["arg"]["instId"])
        clock = FakeClock()
        log = HeardLog()
        setup = make_setup(clock=clock, log=log)
        self.stored = Stored(setup.intake)
        self.controller = make(cls, market, setup=setup)
        self.controller.anchor()
        self.verdicts: list[str] = []
        self.books: list[Any] = []
        for frame in frames:
            before = len(log.of("book_broken"))
            self.controller.handle(json.dumps(frame).encode(), clock.advance(0.1))
            self.controller.flush()
            self.stored.take()
            heard = self.controller.books[market]
            broken = [str(each["reason"]) for each in log.of("book_broken")[before:]]
            self.verdicts.append(broken[0] if broken else "good" if heard.epoch else "waiting")
            self.books.append(heard.book.as_numbers())


def rebuilt(frames: list[Frame]) -> Iterator[Reference]:
    """Keep the book by another hand and yield it after each frame."""
    reference = Reference()
    for frame in frames:
        reference.take(frame)
        yield reference


@pytest.mark.parametrize("cls", [Okx, Of2022])
def test_every_recorded_message_is_proved_and_every_book_equals_a_rebuild(wire: Path, cls: type[Okx]) -> None:
    streams = books(wire)
    assert {name: len(frames) for name, frames in streams.items()} == {
        "BTC-USD-220527": 45,
        "BTC-USDT": 45,
        "UNI-USD-SWAP": 42,
    }
    for frames in streams.values():
        played = Played(cls, numbered(frames) if cls is Okx else frames)
        assert played.verdicts == ["good"] * len(frames)
        for book, reference in zip(played.books, rebuilt(frames), strict=True):
            assert book == reference.numbers()
        epoch = played.stored.only
        assert (epoch.verdict, epoch.reason, epoch.frames) == (cls.verdict, None, len(frames))
        assert [numbers(side) for side in epoch.books[-1]] == list(played.books[-1])
        sides = played.controller.books[epoch.opened.market].book
        for side, levels in ((sides.bids, reference.sides["bids"]), (sides.asks, reference.sides["asks"])):
            assert dict(side.as_text(highest_first=True)) == dict(levels.values())  # in the exchange's own digits
            assert len(levels) <= 400


def test_recorded_sums_are_compared_where_today_s_numbers_stand_beside_them(wire: Path) -> None:
    for frames in books(wire).values():
        linked = numbered(frames)
        for new, old in zip(linked, frames, strict=True):
            new["data"][0]["checksum"] = old["data"][0]["checksum"]
        linked[9]["data"][0]["checksum"] += 1
        assert Played(Okx, linked[:12]).verdicts == ["good"] * 9 + ["checksum"] + ["waiting"] * 2


def test_what_no_numbers_link_is_not_taken_for_linked(wire: Path) -> None:
    for frames in books(wire).values():
        played = Played(Okx, frames[:5])
        assert played.verdicts == ["good", "sequence", "waiting", "waiting", "waiting"]
        assert len(played.stored.only.rows) == 1


Fault = Callable[[list[Frame], int], list[Frame]]


def skip(frames: list[Frame], at: int) -> list[Frame]:
    return frames[:at] + frames[at + 1 :]


def repeat(frames: list[Frame], at: int) -> list[Frame]:
    return frames[: at + 1] + frames[at:]


def swap(frames: list[Frame], at: int) -> list[Frame]:
    return [*frames[:at], frames[at + 1], frames[at], *frames[at + 2 :]]


@pytest.mark.parametrize(("fault", "later"), [(skip, 0), (repeat, 1), (swap, 0)])
def test_a_fault_at_any_change_shows_at_that_change(wire: Path, fault: Fault, later: int) -> None:
    for frames in books(wire).values():
        whole = numbered(frames)
        for at in range(1, len(whole) - 1):  # a book that stands just before the fault is as good as the first
            begun = {**whole[0], "data": [{**whole[0]["data"][0], "seqId": whole[at - 1]["data"][0]["seqId"]}]}
            begun["data"][0]["bids"] = begun["data"][0]["bids"][:9]
            begun["data"][0]["asks"] = begun["data"][0]["asks"][:9]
            played = Played(Okx, fault([begun, *whole[at : at + 3]], 1))
            assert played.verdicts[: 2 + later] == ["good"] * (1 + later) + ["sequence"], at
            assert set(played.verdicts[2 + later :]) <= {"waiting"}
            assert played.stored.only.reason == "sequence"


@pytest.mark.parametrize("fault", [skip, repeat, swap])
def test_the_old_sum_shows_a_fault_where_another_reading_of_it_does(wire: Path, fault: Fault) -> None:
    caught = 0
    for frames in books(wire).values():
        for at in range(2, 12, 3):
            broken = fault(frames, at)[: at + 4]
            wrong = [
                one.sum() != frame["data"][0]["checksum"] for one, frame in zip(rebuilt(broken), broken, strict=True)
            ]
            verdicts = Played(Of2022, broken).verdicts
            first = wrong.index(True) if True in wrong else len(wrong)
            assert verdicts[: first + 1] == (["good"] * first + ["checksum"])[: len(verdicts)]
            caught += True in wrong
    assert caught > 6 if fault is not repeat else caught == 0  # what is set twice is set


def test_a_book_that_stands_still_stays_covered_and_a_falling_number_breaks_nothing() -> None:
    names = ("the complete book", "a change", "a change whose number is lower than the one before it")
    frames = [frame_of("okx", name) for name in (*names, "a book that stands still")]
    played = Played(Okx, [json.loads(frame) for frame in frames])
    assert played.verdicts == ["good"] * 4
    epoch = played.stored.only
    assert (played.controller.books["BTC-USDT"].frames, len(epoch.rows)) == (4, 3)
    assert [row.sequence for row in epoch.rows] == [79706756139, 79706756227, 5]


def test_recorded_trades_tickers_and_candles_say_what_the_text_says(wire: Path) -> None:
    okx, business = make(Okx), make(OkxBusiness)
    counts = dict.fromkeys(("trades", "tickers", "candle1m"), 0)
    for line in recorded(wire, "okx"):
        frame = exactly(line.data)
        channel = frame.get("arg", {}).get("channel")
        if "data" not in frame or channel not in counts:
            continue
        counts[channel] += 1
        controller = business if channel == "candle1m" else okx
        (row,) = frame["data"]
        (message,) = controller.parse(line.data.encode(), 0)
        market = house_form(frame["arg"]["instId"])
        if isinstance(message, Trade):
            told_at = int(row["ts"]) * 1000
            assert message == Trade(market, row["tradeId"], row["side"], row["px"], row["sz"], told_at)
        elif isinstance(message, Ticker):
            volume = row["volCcy24h"] if ":" in market else row["vol24h"]
            told_at = int(row["ts"]) * 1000
            assert message == Ticker(
                market, row["last"] or None, row["bidPx"] or None, row["askPx"] or None, volume, told_at
            )
        else:
            first, high, low, last = row[1:5]
            volume = row[6 if ":" in market else 5]
            assert message == Candle(market, 60, int(row[0]) * 1000, first, high, low, last, volume)
    assert counts == {"trades": 44, "tickers": 25, "candle1m": 6}


def test_a_contract_s_recorded_volume_in_the_symbol_is_about_its_contracts(wire: Path) -> None:
    """Prove which field counts the symbol: contracts times what one is worth, at about the last price."""
    worth = {"BTC-USD-220527": 100, "UNI-USD-SWAP": 10}
    seen = set()
    for line in recorded(wire, "okx"):
        frame = exactly(line.data)
        code = frame.get("arg", {}).get("instId")
        if "cryptofeed" in line.where and "data" in frame and frame["arg"]["channel"] == "tickers" and code in worth:
            (message,) = make(Okx).parse(line.data.encode(), 0)
            assert isinstance(message, Ticker) and message.volume and message.last
            contracts = Decimal(frame["data"][0]["vol24h"])
            share = Decimal(message.volume) * Decimal(message.last) / (contracts * worth[code])
            assert Decimal("0.9") < share < Decimal("1.1")
            seen.add(code)
    assert seen == worth.keys()


def test_every_other_recorded_message_is_known_or_told_to_be_unknown(wire: Path) -> None:
    unknown = acknowledged = 0
    for line in recorded(wire, "okx"):
        frame = json.loads(line.data)
        channel = frame.get("arg", {}).get("channel")
        if "event" in frame:
            messages = list(make(Okx).parse(line.data.encode(), 0))
            assert len(messages) == (channel != "books")
            acknowledged += 1
        elif channel not in ("books", "trades", "tickers"):  # candles, private ones, and the tables of v3
            with pytest.raises(BadFrame if "candle" in str(channel) else UnknownFrame):
                list(make(Okx).parse(line.data.encode(), 0))
            unknown += 1
    assert (acknowledged, unknown) == (20, 44)


def test_the_documented_book_is_read_as_it_stands(wire: Path) -> None:
    lines = [line.data for line in recorded(wire, "okx") if "doc_examples" in line.where]
    frame = json.loads(lines[0])
    (row,) = frame["data"]
    bids, asks = ({Decimal(level[0]): Decimal(level[1]) for level in row[side]} for side in ("bids", "asks"))
    book = check_book(make(Okx), lines[0], "BTC-USDT", bids, asks)
    assert (book.sequence, book.checksum) == (row["seqId"], row["checksum"])


def test_recorded_instruments_are_listed_and_named_both_ways(wire: Path) -> None:
    found: dict[str, int] = {}
    for line in recorded(wire, "okx", "rest"):
        if "instruments" not in line.url:
            continue
        rows = {row["instId"]: row for row in json.loads(line.data)["data"]}
        markets = Okx.parse_listing(line.data.encode())
        assert [native(market) for market in markets] == list(rows)
        for market in markets[:3]:
            row = rows[native(market)]
            if row["instType"] != "SPOT":
                unit = make(Okx).parse_unit(market, line.data.encode())
                size, currency = unit.split(" ")
                assert (Decimal(size), currency) == (Decimal(row["ctVal"]) * Decimal(row["ctMult"]), row["ctValCcy"])
        found[line.url.partition("instType=")[2]] = len(markets)
    assert found == {"SPOT": 513, "SWAP": 166, "FUTURES": 104, "OPTION&uly=BTC-USD": 346, "OPTION&uly=ETH-USD": 350}


def test_frames_that_are_cut_off_or_no_text_are_refused_without_another_error() -> None:
    okx, business = make(Okx), make(OkxBusiness)
    for controller, file in ((okx, "frames"), (business, "candles")):
        for case in cases("okx", file):
            for cut in range(0, len(case.frame), 29):
                for text in (case.frame[:cut], case.frame[:cut] + b"\xff" + case.frame[cut:]):
                    with suppress(SourceError):
                        list(controller.parse(text, 0))


def test_any_frames_leave_nothing_wrong_behind() -> None:
    hold_to_any_frames(Okx, "okx")


# --- live -------------------------------------------------------------------------------------------------------------

LIVE = ["BTC-USDT", "ETH-USDT", "BTC-USDT:USDT"]


def test_books_of_spot_and_contracts_are_what_the_exchange_sent(live: Callable[..., Live]) -> None:
    s = live("okx", markets=LIVE)
    controller = s.start(Okx, *LIVE)
    for market in LIVE:
        s.heard(15, market)
    s.stop()
    for market in LIVE:
        s.check(market)
        epoch = s.stored.of(market)[0]
        assert (epoch.verdict, epoch.opened.depth) == ("linked", 400)
        assert epoch.opened.unit == ("0.001 BTC" if ":" in market else None)
    assert s.counts()["dropped"] == 0
    assert controller.name == "okx/BTC-USDT+2"


@pytest.mark.parametrize("kind", ["swallow", "duplicate", "swap"])
def test_a_break_begins_one_market_anew_on_the_same_connection(live: Callable[..., Live], kind: str) -> None:
    s = live("okx", markets=LIVE)
    s.start(Okx, *LIVE)
    for market in LIVE:
        s.heard(5, market)
    s.simulator.fault(kind, "okx", "BTC-USDT")
    s.until(lambda: len(s.stored.of("BTC-USDT")) == 2, what="another epoch")
    s.heard(5, "BTC-USDT")
    s.heard(15, "ETH-USDT")
    s.stop()
    first, second = s.stored.of("BTC-USDT")
    assert (first.reason, second.reason) == ("sequence", "stop")
    for number in (0, 1):
        s.check("BTC-USDT", number, number)
    for market in LIVE[1:]:
        s.check(market)
        assert len(s.stored.of(market)) == 1
    assert len(s.lines(kind="open", transport="websocket")) == 1
    books = [line["subscription"] for line in s.lines(kind="message", what="book", fate="sent")]
    assert len(books) == len(LIVE) + 1
    assert first.ended is not None and first.ended.ended_us < second.opened.opened_us
    if kind == "swallow":
        (lost,) = s.lines(kind="message", fate="withheld")
        assert first.mark is not None
        assert first.mark.confirmed_until_us < lost["time_us"] < second.opened.opened_us


def test_a_market_that_is_not_there_is_refused_and_the_others_are_heard(live: Callable[..., Live]) -> None:
    s = live("okx", markets=LIVE)
    s.start(Okx, "BTC-USDT", "NOPE-USDT")
    s.heard(3, "BTC-USDT")
    s.until(lambda: s.log.of("api_error"), what="the refusal")
    assert s.log.of("api_error")[0]["market"] == "NOPE-USDT"
    s.heard(8, "BTC-USDT")
    s.stop()
    s.check("BTC-USDT")
    assert not s.stored.of("NOPE-USDT")


def test_a_notice_makes_the_connection_due_for_another(live: Callable[..., Live]) -> None:
    s = live("okx", markets=LIVE)
    controller = s.start(Okx, "BTC-USDT")
    assert isinstance(controller, Okx)
    s.heard(2, "BTC-USDT")
    assert not controller.due_for_replacement()
    s.simulator.fault("leave", "okx")
    s.until(controller.due_for_replacement, what="the notice")
    s.stop()
    s.check("BTC-USDT")


def test_pings_are_plain_text_and_come_before_a_silent_connection_is_cut(
    live: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (Okx, OkxBusiness):
        assert cls.keepalive_s < 30 < cls.stale_s
    monkeypatch.setattr(Okx, "keepalive_s", 0.05)
    s = live("okx", markets=LIVE)
    s.simulator.fault("quiet")
    s.start(Okx, "BTC-USDT")
    s.heard(1, "BTC-USDT")
    s.until(lambda: s.so_far("ignored") >= 3, what="an acknowledgement and two pongs")
    s.stop()
    assert s.counts()["rejected"] == 0


class Told:
    """What a controller of streams hands over, row by row."""

    def __init__(self, s: Live, cls: type[Okx | OkxBusiness], *channels: str) -> None:
        endpoint = s.simulator.endpoints["okx"]
        backoff = {"base_s": 0.01, "cap_s": 0.02, "healthy_s": 60}
        self.setup = replace(
            make_setup(clock=Clock(), log=s.log, endpoint=endpoint, backoff=backoff), channels=channels
        )
        self.controller = cls(("BTC-USDT", "BTC-USD:BTC"), self.setup)
        s.controllers.append(self.controller)
        self.epochs: dict[int, EpochOpened] = {}
        self.rows: dict[tuple[str, str], list[StreamRow]] = {}
        self.controller.start()

    def look(self) -> dict[tuple[str, str], list[StreamRow]]:
        while taken := self.setup.intake.take(10_000):
            for record in (record for delivery in taken for record in delivery.records):
                if isinstance(record, EpochOpened):
                    self.epochs[record.epoch] = record
                elif isinstance(record, StreamRow):
                    opened = self.epochs[record.epoch]
                    self.rows.setdefault((opened.market, opened.channel), []).append(record)
            self.setup.intake.done(taken)
        return self.rows

    def until(self, count: int, *channels: str) -> None:
        keys = [(market, channel) for market in self.controller.markets for channel in channels]
        wait_until(lambda: all(len(self.look().get(key, ())) >= count for key in keys), 20, f"{count} rows")


def sent_rows(s: Live, market: str, channel: str) -> list[dict[str, Any]]:
    (subscription,) = s.lines(kind="subscribe", market=market, channel=channel)
    lines = s.lines(kind="message", subscription=subscription["subscription"], fate="sent")
    return [row for line in lines for row in line["rows"]]


def test_trades_and_tickers_are_what_the_exchange_sent(live: Callable[..., Live]) -> None:
    s = live("okx", markets=["BTC-USDT", "BTC-USD:BTC"], rate_hz=200)
    told_of = Told(s, Okx, TRADES, TICKER)
    told_of.until(8, TRADES, TICKER)
    told_of.controller.stop()
    assert told_of.controller.join(10)
    for market in told_of.controller.markets:
        trades = [row for row in told_of.look()[market, TRADES] if isinstance(row, TradeRow)]
        wanted = [
            (row["id"], row["side"], row["price"], row["volume"], row["venue_us"])
            for row in sent_rows(s, market, TRADES)
        ]
        assert [(t.trade_id, t.side, t.price, t.volume, t.venue_us) for t in trades] == wanted[: len(trades)]
        tickers = [row for row in told_of.look()[market, TICKER] if isinstance(row, TickerRow)]
        wanted = [
            (row["last"], row["bid"], row["ask"], row["volume"], row["venue_us"])
            for row in sent_rows(s, market, TICKER)
        ]
        found = [(t.last, t.bid, t.ask, t.volume, t.venue_us) for t in tickers]
        rest = iter(wanted)
        assert all(one in rest for one in found)  # one that says nothing new makes no row


def test_candles_are_heard_at_their_own_address(live: Callable[..., Live]) -> None:
    s = live("okx", markets=["BTC-USDT", "BTC-USD:BTC"], rate_hz=200)
    told_of = Told(s, OkxBusiness, CANDLES)
    told_of.until(4, CANDLES)
    told_of.controller.stop()
    assert told_of.controller.join(10)
    for market in told_of.controller.markets:
        candles = [row for row in told_of.look()[market, CANDLES] if isinstance(row, CandleRow)]
        wanted = [
            (row["open_us"], row["open"], row["high"], row["low"], row["close"], row["volume"], row["closed"])
            for row in sent_rows(s, market, CANDLES)
        ]
        found = [(c.open_us, c.open, c.high, c.low, c.close, c.volume, c.closed) for c in candles]
        rest = iter(wanted)
        assert all(one in rest for one in found)


def test_a_recording_played_over_a_socket_gives_the_books_of_a_rebuild(live: Callable[..., Live], wire: Path) -> None:
    streams = {house_form(name): frames for name, frames in books(wire).items()}
    s = live("okx", recording=wire / "okx" / "cryptofeed_public_20220513.ndjson", speed=None)
    s.start(Of2022, *streams)
    control = len(streams) + 1  # acknowledgements, and the answer to the first ping
    s.until(lambda: s.so_far("received") >= sum(map(len, streams.values())) + control, what="all frames")
    s.stop()
    for market, frames in streams.items():
        (epoch,) = s.stored.of(market)
        assert (epoch.verdict, epoch.reason, epoch.frames) == ("checksummed", "stop", len(frames))
        *_, reference = rebuilt(frames)
        assert tuple(numbers(side) for side in epoch.books[-1]) == reference.numbers()
        s.check(market)
