"""The life of every exchange's own controller against the simulator, over real sockets."""

import base64
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.records import CHECKSUM_MISMATCH, CROSSED
from controllers.base import Controller
from controllers.bithumb import BithumbWebSocket
from controllers.coinone import Coinone
from controllers.gopax import Gopax
from controllers.korbit import Korbit
from controllers.silence import Patience, Silences
from controllers.upbit import Upbit
from controllers.websocket import WSController
from simulator.faults import GARBAGE
from simulator.venue import Timing
from tests.controllers.live import Live
from tests.controllers.venue import exactly, recorded, side
from tests.fakes import counted, numbers

Start = Callable[..., Live]
ALL: list[type[WSController]] = [Upbit, BithumbWebSocket, Coinone, Korbit, Gopax]
every = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def single(cls: type[Controller]) -> bool:
    """Whether a frame makes one row at the most."""
    return cls is not Gopax


# --- heard ------------------------------------------------------------------------------------------------------------


@every
def test_it_connects_subscribes_and_records_what_was_sent(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    controller = stage.start(cls, "BTC-KRW", "ETH-KRW")
    stage.heard(15)
    stage.heard(15, "ETH-KRW")
    assert stage.simulator.connections(cls.exchange) == 1, "several markets share one connection"
    assert [row["state"] for row in controller.status()] == ["live", "live"]
    stage.stop()
    for market in ("BTC-KRW", "ETH-KRW"):
        stage.check(market, single_frames=single(cls))
        (epoch,) = stage.stored.of(market)
        assert epoch.reason == "stop"
        assert epoch.opened.exchange == cls.exchange.upper()
    counts = stage.counts()
    assert counts["rejected"] == counts["dropped"] == 0
    assert stage.log.keys() == ["connect", "subscribe", "collect_start", "collect_start", "close"]


@every
def test_a_lost_connection_is_made_again_and_opens_an_epoch_of_its_own(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    stage.start(cls)
    stage.heard(5)
    stage.simulator.fault("disconnect", cls.exchange)
    stage.until(lambda: stage.stored.reasons[:1] == ["disconnect"])
    stage.heard(5)
    stage.stop()
    assert stage.stored.reasons == ["disconnect", "stop"]
    for number in (0, 1):
        stage.check(subscription=number, epoch=number, single_frames=single(cls))
    (lost,) = stage.log.of("ws_error")
    assert lost["after_s"] <= 0.1
    assert stage.log.of("collect_start")[1]["reason"] == "disconnect"
    stage.counts()


def test_why_the_server_closed_is_told(live: Start) -> None:
    stage = live("upbit")
    stage.start(Upbit)
    stage.heard(1)
    stage.simulator.fault("disconnect", "upbit", code=1001, reason="work on the server")
    stage.until(lambda: stage.log.of("ws_error"))
    assert "code 1001 work on the server" in str(stage.log.of("ws_error")[0]["error"])
    stage.heard(1)


def test_a_market_that_does_not_move_costs_one_row(live: Start) -> None:
    stage = live("coinone", rate_hz=200)
    stage.start(Coinone)
    stage.heard(1)
    stage.simulator.fault("duplicate", "coinone", times=20)
    stage.until(lambda: stage.so_far("duplicate") >= 20)
    stage.stop()
    stage.check()


# --- bad frames -------------------------------------------------------------------------------------------------------


@every
def test_garbage_of_every_kind_is_kept_raw_and_a_fresh_book_follows(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    stage.start(cls)
    for number, what in enumerate(GARBAGE, 1):
        stage.heard(2)
        stage.simulator.fault("garbage", cls.exchange, what=what)
        stage.until(lambda number=number: len(stage.stored.rejected) >= number, what=what)  # type: ignore[misc]
    stage.heard(2)
    stage.stop()
    assert len(stage.stored.rejected) == len(GARBAGE)
    assert stage.stored.reasons == ["rejected"] * len(GARBAGE) + ["stop"]
    assert stage.counts()["rejected"] == len(GARBAGE)
    sent = [line for line in stage.lines(kind="message") if line["what"] == "garbage"]
    assert len(sent) == len(GARBAGE)
    assert all(rejected.reason and rejected.frame for rejected in stage.stored.rejected)


def test_garbage_of_one_market_leaves_the_other_alone(live: Start) -> None:
    stage = live("korbit")
    stage.start(Korbit, "BTC-KRW", "ETH-KRW")
    stage.heard(2)
    stage.heard(2, "ETH-KRW")
    stage.simulator.fault("garbage", "korbit", "ETH-KRW", what="negative_volume")
    stage.until(lambda: len(stage.stored.of("ETH-KRW")) == 2)
    stage.stop()
    assert [epoch.reason for epoch in stage.stored.of("BTC-KRW")] == ["stop"]
    assert [epoch.reason for epoch in stage.stored.of("ETH-KRW")] == ["rejected", "stop"]
    stage.check("BTC-KRW")


def test_a_crossed_book_is_stored_with_its_flag(live: Start) -> None:
    stage = live("upbit")
    stage.start(Upbit)
    stage.heard(2)
    stage.simulator.fault("crossed", "upbit")
    stage.until(lambda: any(row.flags & CROSSED for row in stage.stored.only.rows))
    stage.until(lambda: not stage.stored.only.rows[-1].flags & CROSSED)
    stage.stop()
    stage.check()


def test_wrong_totals_are_flagged_and_the_book_is_kept(live: Start) -> None:
    stage = live("upbit")
    stage.start(Upbit)
    stage.heard(2)
    stage.simulator.fault("corrupt_total", "upbit")
    stage.until(lambda: any(row.flags & CHECKSUM_MISMATCH for row in stage.stored.only.rows))
    stage.stop()
    assert stage.stored.only.verdict == "unverified"
    assert stage.stored.only.reason == "stop"
    assert counted(stage.setup, "books_flagged_total", exchange="upbit", flag="checksum_mismatch") == 1


def test_gopax_holds_changes_back_that_come_before_their_book(live: Start) -> None:
    stage = live("gopax")
    stage.simulator.fault("early_change", "gopax")
    stage.start(Gopax)
    stage.heard(3)
    stage.stop()
    early, book, *later = stage.sent("BTC-KRW", 0)
    assert (early["what"], book["what"]) == ("change", "book")
    sides = [numbers(book["bids"]), numbers(book["asks"])]
    heard = stage.controllers[0].books["BTC-KRW"].frames
    for line in (early, *later[: heard - 1]):
        sides = [{**sides[0], **numbers(line["bids"])}, {**sides[1], **numbers(line["asks"])}]
    expected = [{price: size for price, size in levels.items() if size} for levels in sides]
    assert [numbers(levels) for levels in stage.stored.only.book] == expected


# --- silence ----------------------------------------------------------------------------------------------------------


def impatient(controller: Controller, seconds: float = 0.5) -> None:
    """Doubt silent feeds soon."""
    for feed in controller.feeds.values():
        feed.patience = Patience(Silences(), int(seconds * 1e6), 300_000_000)


def test_quiet_markets_are_confirmed_over_rest_and_stay_covered(live: Start) -> None:
    classes = [Upbit, Coinone, Korbit, Gopax]
    stages = [live(cls.exchange) for cls in classes]
    for cls, stage in zip(classes, stages, strict=True):
        controller = stage.start(cls)
        stage.heard(3)
        stage.simulator.fault("quiet")
        impatient(controller)
    for cls, stage in zip(classes, stages, strict=True):
        stage.until(lambda stage=stage: stage.log.of("probe_agreed"))  # type: ignore[misc]
        epoch = stage.stored.only
        last_us = epoch.opened.opened_us + epoch.rows[-1].at_us
        stage.until(lambda epoch=epoch, last_us=last_us: epoch.mark.confirmed_until_us > last_us + 500_000)  # type: ignore[misc]
        stage.stop()
        assert epoch.reason == "stop"
        stage.check(single_frames=single(cls))


def test_a_quiet_market_of_bithumb_is_asked_for_its_book_on_the_same_connection(live: Start) -> None:
    """The mutation that must make this fail: `sends_books_again = False`."""
    stage = live("bithumb")
    controller = stage.start(BithumbWebSocket, "BTC-KRW", "ETH-KRW")
    stage.heard(3)
    stage.heard(3, "ETH-KRW")
    stage.simulator.fault("quiet", "bithumb")
    impatient(controller)
    for market in ("BTC-KRW", "ETH-KRW"):
        (epoch,) = stage.stored.of(market)
        last_us = epoch.opened.opened_us + epoch.rows[-1].at_us
        stage.until(lambda epoch=epoch, last_us=last_us: epoch.mark.confirmed_until_us > last_us + 1_500_000)  # type: ignore[misc]
    stage.stop()
    assert stage.stored.reasons == ["stop", "stop"]
    assert counted(stage.setup, "probes_total", exchange="bithumb", outcome="agreed") >= 2
    stage.check("BTC-KRW")
    stage.check("ETH-KRW")


def test_a_market_of_bithumb_that_was_forgotten_is_heard_again_on_the_same_connection(live: Start) -> None:
    stage = live("bithumb")
    controller = stage.start(BithumbWebSocket, "BTC-KRW", "ETH-KRW")
    stage.heard(3)
    stage.heard(3, "ETH-KRW")
    impatient(controller)
    stage.simulator.fault("forget", "bithumb", "ETH-KRW")
    stage.until(lambda: len(stage.stored.of("ETH-KRW")) == 2, what="another epoch")
    stage.heard(3, "ETH-KRW")
    stage.stop()
    assert [epoch.reason for epoch in stage.stored.of("BTC-KRW")] == ["stop"]


def test_withheld_messages_lie_outside_coverage(live: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controllers.fetch.TIMEOUT_S", 0.2)  # the simulator withholds the book over REST as well
    classes = [Upbit, Gopax]
    stages = [live(cls.exchange) for cls in classes]
    for cls, stage in zip(classes, stages, strict=True):
        controller = stage.start(cls)
        stage.heard(3)
        impatient(controller)
        stage.simulator.fault("stall", seconds=4)
    for cls, stage in zip(classes, stages, strict=True):
        stage.until(lambda stage=stage: stage.stored.reasons[:1] == ["stale"])  # type: ignore[misc]
        stage.heard(3)
        stage.stop()
        first = stage.stored.of("BTC-KRW")[0]
        withheld = [line for line in stage.lines(kind="message", fate="withheld") if line["what"] in ("book", "change")]
        assert withheld
        assert first.ended is not None
        assert first.ended.ended_us <= min(line["time_us"] for line in withheld)
        stage.check(single_frames=single(cls))


def test_a_swallowed_change_is_found_by_comparing_and_the_book_started_afresh(
    live: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controllers.probe.GRACE_US", 100_000)
    stage = live("gopax", rate_hz=5)
    stage.start(Gopax, probe_interval_s=1)
    stage.heard(2)
    stage.simulator.fault("swallow", "gopax", times=3)
    stage.until(lambda: stage.stored.reasons[:1] == ["probe"])
    stage.heard(2)
    stage.stop()
    assert stage.log.of("probe_differs")
    stage.check(subscription=1, epoch=1, single_frames=False)


def test_frozen_connections_are_given_up_and_made_again(live: Start) -> None:
    stages = [live(cls.exchange) for cls in ALL]
    for cls, stage in zip(ALL, stages, strict=True):
        stage.start(cls, stale_s=0.5, stall={"floor_s": 3})  # a book may be lost to the frost for ever
        stage.heard(2)
        stage.simulator.fault("freeze")
    for stage in stages:
        stage.until(lambda stage=stage: stage.stored.reasons[:1] == ["stale"])  # type: ignore[misc]
        stage.until(lambda stage=stage: stage.log.of("ws_error"))  # type: ignore[misc]
        assert "not one frame" in str(stage.log.of("ws_error")[0]["error"])
        stage.simulator.fault("clear")
        stage.heard(2)


def test_silent_sockets_are_kept_open_by_what_the_client_says(live: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [Upbit, BithumbWebSocket, Coinone]
    timing = Timing(idle_s=0.8, idle_client_only=True, status_s=0.1)
    stages = [live(cls.exchange, timing=timing) for cls in classes]
    for cls, stage in zip(classes, stages, strict=True):
        monkeypatch.setattr(cls, "keepalive_s", 0.1)
        stage.start(cls)
        stage.heard(1)
        stage.simulator.fault("quiet")
    for stage in stages:
        stage.until(lambda stage=stage: stage.so_far("ignored") >= 3, what="answers to PING")  # type: ignore[misc]
        until_us = stage.stored.only.opened.opened_us + 1_600_000
        stage.until(lambda stage=stage, until_us=until_us: stage.setup.clock.wall_us() > until_us)  # type: ignore[misc]
        assert not stage.log.of("ws_error")


def test_gopax_answers_text_pings_or_it_would_be_cut(live: Start) -> None:
    stage = live("gopax", timing=Timing(ping_s=0.1, pong_s=0.3, rest_limits=False))
    stage.start(Gopax)
    stage.heard(1)
    stage.until(lambda: stage.so_far("ignored") >= 12, what="pings")
    assert not stage.log.of("ws_error")
    assert stage.simulator.connections("gopax", "websocket") == 1


def test_korbit_answers_protocol_pings(live: Start) -> None:
    stage = live("korbit", timing=Timing(ping_s=0.1, rest_limits=False))
    stage.start(Korbit, stale_s=0.5)
    stage.heard(1)
    stage.simulator.fault("quiet", "korbit")
    opened_us = stage.stored.only.opened.opened_us
    stage.until(lambda: stage.stored.only.mark and stage.stored.only.mark.heard_until_us > opened_us + 1_000_000)
    assert not stage.log.of("ws_error")


# --- keys -------------------------------------------------------------------------------------------------------------

KEY, SECRET = "k" * 64, base64.b64encode(b"a secret of the test").decode()


def with_keys(stage: Live, key: str, secret: str) -> Controller:
    controller = stage.start(Gopax, start=False)
    controller.keys = (key, secret)
    controller.start()
    return controller


def test_gopax_signs_with_a_key(live: Start) -> None:
    stage = live("gopax", keys={"gopax": (KEY, SECRET)})
    controller = with_keys(stage, KEY, SECRET)
    stage.heard(1)
    assert controller.keys == (KEY, SECRET)
    assert not stage.log.of("key_refused")
    assert counted(stage.setup, "connects_total", exchange="gopax", outcome="refused") == 0
    (told,) = stage.log.of("connect")
    assert "?" not in str(told["url"]), "no signature in the log"


@pytest.mark.parametrize(
    ("key", "secret"), [("other" * 12, SECRET), (KEY, base64.b64encode(b"another").decode()), (KEY, "no base64!")]
)
def test_gopax_goes_on_without_a_key_that_is_refused(live: Start, key: str, secret: str) -> None:
    stage = live("gopax", keys={"gopax": (KEY, SECRET)})
    controller = with_keys(stage, key, secret)
    stage.heard(1)
    assert controller.keys is None
    assert len(stage.log.of("key_refused")) == 1
    stage.simulator.fault("disconnect", "gopax")
    stage.until(lambda: stage.stored.reasons[:1] == ["disconnect"])
    stage.heard(1)
    assert len(stage.log.of("key_refused")) == 1


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_429_at_the_handshake_is_obeyed(live: Start) -> None:
    stage = live("upbit")
    stage.simulator.fault("status", "upbit", code=429, retry_after=1, times=1)
    controller = stage.start(Upbit)
    stage.until(lambda: stage.log.of("ws_error"))
    (told,) = stage.log.of("ws_error")
    assert told["after_s"] >= 1
    assert "429" in str(told["error"])
    assert controller.state == "waiting"
    stage.heard(1)
    assert counted(stage.setup, "connects_total", exchange="upbit", outcome="failed") == 1
    assert counted(stage.setup, "connects_total", exchange="upbit", outcome="ok") == 1


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_refused_handshake_is_tried_again(live: Start, status: int) -> None:
    stage = live("coinone")
    stage.simulator.fault("status", "coinone", code=status, times=2)
    stage.start(Coinone)
    stage.heard(1)
    errors = stage.log.of("ws_error") + stage.log.of("api_error")
    assert len(errors) == 2
    assert all(f"HTTP {status}" in str(told["error"]) for told in errors)


@pytest.mark.parametrize("cls", [Coinone, Korbit, Gopax], ids=lambda cls: cls.__name__)
def test_a_market_that_does_not_exist_is_refused(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    stage.start(cls, "NOPE-KRW")
    stage.until(lambda: len(stage.log.of("api_error")) >= 2, what="a refusal")
    assert all(str(told["error"]) for told in stage.log.of("api_error"))
    assert not stage.stored.epochs
    stage.stop()
    assert stage.counts()["rejected"] == 0


@pytest.mark.parametrize("cls", [Upbit, BithumbWebSocket], ids=lambda cls: cls.__name__)
def test_a_market_that_is_ignored_in_silence_is_told(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    controller = stage.start(cls, "NOPE-KRW", "BTC-KRW", stall={"floor_s": 0.3})
    stage.until(lambda: "NOPE-KRW" in [told["market"] for told in stage.log.of("silent")])
    stage.heard(1)
    assert [row["state"] for row in controller.status()] == ["waiting", "live"]


@every
def test_a_market_that_does_not_exist_leaves_the_others_alone(live: Start, cls: type[WSController]) -> None:
    stage = live(cls.exchange)
    controller = stage.start(cls, "BTC-KRW", "NOPE-KRW", "ETH-KRW")
    stage.heard(5)
    stage.heard(5, "ETH-KRW")
    if cls in (Korbit, Gopax):  # those say which
        stage.until(lambda: controller.status()[1]["state"] == "refused")
    stage.stop()
    stage.check("BTC-KRW", single_frames=single(cls))
    stage.check("ETH-KRW", single_frames=single(cls))


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_wakes_who_waits_for_a_frame(live: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = live("upbit")
    controller = stage.start(Upbit)
    stage.heard(1)
    connection = controller._connection  # type: ignore[attr-defined]
    connection._socket.sock.settimeout(3600)  # nothing but the stop ends the wait
    stage.simulator.fault("freeze", "upbit")
    stage.stop()
    assert controller.state == "stopped"
    assert stage.stored.only.reason == "stop"


def test_a_stop_wakes_who_waits_for_the_next_attempt(live: Start) -> None:
    stage = live("upbit")
    stage.simulator.fault("status", "upbit", code=429, retry_after=3600)
    controller = stage.start(Upbit)
    stage.until(lambda: controller.state == "waiting")
    stage.stop()
    assert controller.state == "stopped"


def test_a_server_that_is_not_there_is_tried_until_it_is(live: Start) -> None:
    stage = live("upbit")
    controller = stage.start(Upbit, endpoint={"websocket": "ws://127.0.0.1:1/nobody"})
    stage.until(lambda: len(stage.log.of("ws_error")) >= 3)
    assert "could not connect" in str(stage.log.of("ws_error")[0]["error"])
    assert controller.status()[0]["state"] == "down"


# --- recorded ---------------------------------------------------------------------------------------------------------


def test_the_145_recorded_books_come_out_of_a_real_socket_level_for_level(live: Start, wire: Path) -> None:
    name = "cryptofeed_ws_simple_20210417.ndjson"
    books: dict[str, list[Any]] = {}
    for line in recorded(wire, "upbit"):
        if line.where.startswith(name) and '"orderbook"' in line.data:
            frame = exactly(line.data)
            quote, base = frame["cd"].split("-")
            books.setdefault(f"{base}-{quote}", []).append(
                (side(frame["obu"], "bp", "bs"), side(frame["obu"], "ap", "as"))
            )
    assert sum(map(len, books.values())) == 145
    stage = live("upbit", recording=wire / "upbit" / name, speed=None)
    stage.start(Upbit, *books)
    stage.until(lambda: sum(epoch.frames for epoch in stage.stored.epochs.values()) == 145)
    stage.stop()
    for market, expected in books.items():
        (epoch,) = stage.stored.of(market)
        found = [(numbers(bids), numbers(asks)) for bids, asks in epoch.books]
        assert found == expected, "no two consecutive books of a pair are equal in this recording"
        assert epoch.verdict == "checksummed"
        assert not any(row.flags & CHECKSUM_MISMATCH for row in epoch.rows)
        assert isinstance(next(iter(found[0][0])), Decimal)
    counts = stage.counts()
    assert (counts["stored"], counts["rejected"]) == (145, 0)
