"""Other settings for a collector that runs: what did not change is not touched, what moves is not missed."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from collector import slot
from collector.errors import ConfigError
from collector.worker import Backoff
from commands.status import _print_status
from controllers import Controller
from controllers.gopax import Gopax
from controllers.upbit import Upbit
from controllers.websocket import WSController
from tests.cli.running import KEY, SECRET, Running

BTC, ETH, XRP = "BTC-KRW", "ETH-KRW", "XRP-KRW"
NOWHERE = {"websocket": "ws://127.0.0.1:9/"}

Start = Callable[..., Running]


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


# --- markets and exchanges --------------------------------------------------------------------------------------------


def test_a_market_that_joins_a_connection_costs_its_neighbour_nothing(start: Start) -> None:
    """The mutation that must make this fail: `return "done"` whatever `Takeover.look` finds."""
    running = start("upbit", "korbit")
    running.exchange("upbit", markets=[BTC], markets_per_connection=2)
    running.exchange("korbit")
    running.begin()
    running.goes_on()

    running.exchange("upbit", markets=[BTC, ETH], markets_per_connection=2)
    running.write()
    assert running.hang_up()
    running.taken_over()

    assert running.generations() == {"upbit/BTC-KRW+1": 2, "korbit/BTC-KRW": 1}
    running.goes_on()
    running.finish()
    running.heard_without_a_gap("upbit", BTC, epochs=2)
    running.heard_without_a_gap("upbit", ETH, epochs=1)
    running.heard_without_a_gap("korbit", BTC, epochs=1)
    assert running.epochs("upbit") == ["superseded", "stop"]


def test_a_market_that_leaves_a_connection_costs_its_neighbours_nothing(start: Start) -> None:
    running = start("upbit")
    running.exchange("upbit", markets=[BTC, ETH, XRP], markets_per_connection=3)
    running.begin()
    running.goes_on()
    assert running.value("last_data_timestamp_seconds", exchange="upbit", market=ETH, channel="orderbook")

    running.exchange("upbit", markets=[XRP, BTC], markets_per_connection=3)
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.goes_on()

    def forgotten() -> bool:
        return not running.value("last_data_timestamp_seconds", exchange="upbit", market=ETH, channel="orderbook")

    running.until(forgotten, what="no figure of a market that is not recorded any more")
    assert running.value("last_data_timestamp_seconds", exchange="upbit", market=BTC, channel="orderbook")
    running.finish()
    for market in (BTC, XRP):
        running.heard_without_a_gap("upbit", market, epochs=2)
    assert running.epochs("upbit", ETH) == ["superseded"]


def test_exchanges_come_and_go_and_nobody_else_hears_of_it(start: Start) -> None:
    running = start("upbit", "korbit", "bithumb", "coinone")
    for name in ("upbit", "korbit", "bithumb"):
        running.exchange(name)
    running.begin()
    running.goes_on()

    del running.settings["exchanges"]["upbit"]
    running.exchange("bithumb", enabled=False)
    running.exchange("coinone")
    running.write()
    assert running.hang_up()
    running.until(lambda: len(running.feeds()) == 2)
    running.goes_on("korbit", "coinone")

    assert running.generations() == {"korbit/BTC-KRW": 1, "coinone/BTC-KRW": 1}
    running.finish()
    assert running.epochs("upbit") == ["stop"]
    assert running.epochs("bithumb") == ["stop"]
    assert running.epochs("korbit") == ["stop"]
    assert running.logged().count("configuration reloaded") == 1
    assert " begun=1 ended=2 replaced=0" in running.logged()


def test_connections_that_are_dealt_out_anew_miss_nothing(start: Start) -> None:
    running = start("coinone")
    running.exchange("coinone", markets=[BTC, ETH, XRP])
    running.begin()
    running.goes_on()

    for size, connections in ((3, 1), (1, 3)):
        running.exchange("coinone", markets=[BTC, ETH, XRP], markets_per_connection=size)
        running.write()
        assert running.hang_up()
        running.taken_over()
        assert len(running.generations()) == connections
        running.goes_on()

    running.finish()
    for market in (BTC, ETH, XRP):
        running.heard_without_a_gap("coinone", market, epochs=3)


def test_another_transport_takes_over_without_a_gap(start: Start) -> None:
    running = start("bithumb")
    running.exchange("bithumb", transport="rest")
    running.begin()
    running.goes_on()

    running.exchange("bithumb", transport="websocket")
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.goes_on()

    assert [row["transport"] for row in running.feeds()] == ["websocket"]
    running.finish()
    running.heard_without_a_gap("bithumb", epochs=2)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_new_keys_are_used_by_a_connection_that_takes_over(start: Start) -> None:
    """The mutation that must make this fail: `compare=False` for the keys of a `Connection`."""
    running = start("gopax", "upbit")
    running.exchange("gopax", auth=True, probe_interval_s=1)
    running.exchange("upbit")
    running.dotenv.write_text(f"GOPAX_API_KEY={KEY}\nGOPAX_SECRET_KEY=d3Jvbmc=\n")
    running.begin()
    assert "refused the API key" in running.log
    assert cast(Gopax, running.only("gopax/BTC-KRW")).keys is None  # it went on without

    running.dotenv.write_text(f"GOPAX_API_KEY={KEY}\nGOPAX_SECRET_KEY={SECRET}\n")
    assert running.hang_up()
    running.taken_over()

    assert cast(Gopax, running.only("gopax/BTC-KRW")).keys == (KEY, SECRET)
    assert running.generations() == {"gopax/BTC-KRW": 2, "upbit/BTC-KRW": 1}
    running.goes_on()
    running.finish()
    running.heard_without_a_gap("gopax", epochs=2)
    log = running.logged()
    assert "changed=GOPAX_SECRET_KEY" in log
    assert log.count("refused the API key") == 1
    assert SECRET not in log and KEY not in log


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "exchanges:\n  upbit:\n    markets: [BTC/KRW]\n  korbit: {}\nmetrics:\n  port: 70000\n",
        "exchanges: [upbit\n",
        "",
        None,
    ],
    ids=["mistakes", "broken", "empty", "gone"],
)
def test_a_broken_file_changes_nothing_and_says_why(start: Start, text: str | None) -> None:
    """The mutation that must make this fail: leave `except ConfigError` out of `Reloader.reload`."""
    running = start("upbit", "korbit")
    running.exchange("upbit")
    running.begin()
    running.dotenv.write_text("no setting\n")  # so that even an empty file has its mistake
    if text is None:
        running.file.unlink()
    else:
        running.write(text)

    with pytest.raises(ConfigError) as error:
        running.read()
    assert not running.hang_up()
    assert not running.hang_up()

    log = running.log
    assert log.count("the configuration can't be applied, nothing was changed") == 2
    for line in str(error.value).splitlines():
        assert log.count(f"    {line}\n") == 2
    assert running.generations() == {"upbit/BTC-KRW": 1}
    assert running.value("reloads_total", outcome="failed") == 2
    state = running.daemon.status()["reloads"]
    assert state["failed"] == 2 and state["last"]["text"] == str(error.value) and not state["last"]["ok"]
    assert "the last reload was refused" in running.daemon.describe()

    # Mended, it counts again.
    running.dotenv.unlink()
    running.write()
    assert running.hang_up()
    assert running.value("reloads_total", outcome="ok") == 1
    assert running.daemon.status()["reloads"]["last"]["ok"]
    assert "refused" not in running.daemon.describe()
    running.goes_on()
    running.finish()
    running.heard_without_a_gap("upbit", epochs=1)


def test_what_needs_a_restart_is_named_and_the_rest_is_applied(start: Start, tmp_path: Path) -> None:
    """The mutation that must make this fail: take `storage` out of `RESTART`."""
    running = start("upbit")
    running.exchange("upbit")
    running.settings["storage"]["mode"] = "changes"
    running.begin()
    before = running.daemon.settings

    running.settings |= {"collector_id": "other", "language": "ko", "intake": {"memory_mib": 7}}
    running.settings["storage"] = {"path": str(tmp_path / "other"), "batch_ms": 50, "mode": "full", "retention_days": 3}
    running.settings["log"] |= {"level": "DEBUG", "files": 3}
    running.settings["metrics"] = {"enabled": False, "port": 0}
    running.settings["limits"] = {"stop_timeout_s": 3.5, "event_days": 2}
    running.write()
    assert running.hang_up()

    refused = [
        "collector_id", "storage.path", "storage.mode", "storage.retention_days", "intake.memory_mib", "log.files",
        "metrics.port",
    ]  # fmt: skip
    named = [line for line in running.log.splitlines() if "이전 값을 유지" in line]
    assert [line.rpartition(" ")[2] for line in named] == refused
    (line,) = [line for line in running.log.splitlines() if "설정 다시 읽음" in line]
    assert f"restart_needed={','.join(refused)}" in line
    assert "changed=language,log.level,limits.event_days,limits.stop_timeout_s" in line
    now = running.daemon.settings
    assert (now.storage, now.intake, now.metrics, now.collector_id) == (
        before.storage, before.intake, before.metrics, before.collector_id,
    )  # fmt: skip
    assert running.daemon.supervisor.stop_timeout_s == 3.5
    assert running.daemon._keeper._event[0] == 2  # type: ignore[attr-defined]
    running.daemon.log.debug("retention")
    assert "[DEBUG]" in running.log
    assert running.generations() == {"upbit/BTC-KRW": 1}
    assert not (tmp_path / "other").exists()

    # Asked again it says so again, as long as the file and the collector differ.
    assert running.hang_up()
    assert "restart_needed=" in running.log.splitlines()[-1]
    running.goes_on()
    running.finish()


# --- a second generation that does not get there ----------------------------------------------------------------------


def test_a_new_address_where_nobody_answers_leaves_the_old_connection_alone(start: Start) -> None:
    """The mutation that must make this fail: `return "done"` where `Takeover.look` says `late`."""
    running = start("upbit")
    running.exchange("upbit")
    running.begin(settle_s=0.5)

    running.exchange("upbit", endpoint=NOWHERE)
    running.write()
    assert running.hang_up()
    running.until(lambda: running.value("takeovers_total", exchange="upbit", outcome="failed") == 1)
    running.until(lambda: "the old one goes on" in running.log)
    running.until(lambda: not any(takeover.workers for takeover in running.daemon.supervisor.takeovers))
    assert running.generations() == {"upbit/BTC-KRW": 1}
    (waiting,) = running.daemon.status()["takeovers"]
    assert (waiting["replaced"], waiting["attempts"], waiting["why"]) == (["upbit/BTC-KRW"], 1, "reload")
    running.goes_on()

    # 1. The same once more does not begin it anew.
    assert running.hang_up()
    assert running.daemon.status()["takeovers"] == [waiting]

    # 2. Taken back, nothing is left to be done.
    running.exchange("upbit")
    running.write()
    assert running.hang_up()
    assert running.daemon.status()["takeovers"] == []
    running.finish()
    running.heard_without_a_gap("upbit", epochs=1)


def test_a_market_the_exchange_does_not_have_keeps_nobody_waiting_for_ever(start: Start) -> None:
    running = start("upbit")
    running.exchange("upbit", markets=[BTC], markets_per_connection=2)
    running.begin(settle_s=1)

    running.exchange("upbit", markets=[BTC, "NOPE-KRW"], markets_per_connection=2)
    running.write()
    assert running.hang_up()
    running.until(lambda: running.generations() == {"upbit/BTC-KRW+1": 2}, what="the second generation")
    before = running.frames("upbit")
    running.until(lambda: running.frames("upbit") > before + 5)
    running.finish()
    running.heard_without_a_gap("upbit", BTC, epochs=2)


# --- an old connection that does not stop -----------------------------------------------------------------------------


def test_an_old_connection_that_does_not_stop_is_named_and_what_it_still_says_is_refused(start: Start) -> None:
    """The mutation that must make this fail: leave `if self.state == "abandoned"` out of `Controller.flush`."""
    running = start("upbit")
    running.settings["limits"] = {"stop_timeout_s": 0.3}
    running.exchange("upbit")
    running.begin()
    running.goes_on()
    old = cast(WSController, running.only("upbit/BTC-KRW"))
    hung, free = threading.Event(), threading.Event()
    stop, handle = old.stop, old.handle
    asked = threading.Event()

    def hang(frame: bytes, at_us: int) -> Any:
        asks = handle(frame, at_us)
        if asked.is_set() and old._records and not hung.is_set():  # a book that is not handed over yet, no heartbeat
            hung.set()
            free.wait(30)
        return asks

    def never_stop() -> None:
        asked.set()
        assert hung.wait(10)
        stop()

    old.handle, old.stop = hang, never_stop  # type: ignore[method-assign, assignment]
    running.exchange("upbit", stale_s=50)
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.until(lambda: "worker does not stop and is abandoned: upbit/BTC-KRW" in running.log)
    assert "free.wait(30)" in running.log
    running.until(lambda: running.value("workers", state="abandoned") == 1)
    running.goes_on()

    free.set()
    running.until(lambda: running.value("frames_total", exchange="upbit", outcome="dropped") > 0, what="late records")
    running.until(lambda: running.value("workers", state="abandoned") == 0)
    running.goes_on()
    running.finish()
    running.heard_without_a_gap("upbit", epochs=2)
    assert running.epochs("upbit") == ["superseded", "stop"]


# --- before an exchange closes its connections ------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["upbit", "gopax"])
def test_a_connection_is_replaced_before_its_age_without_a_gap(start: Start, exchange: str) -> None:
    """The mutation that must make this fail: `return "done"` whatever `Takeover.look` finds."""
    running = start(exchange, "korbit")
    running.exchange(exchange, connection_age_s=3, probe_interval_s=1)
    running.exchange("korbit")
    running.begin()

    name = f"{exchange}/BTC-KRW"
    running.until(lambda: running.generations()[name] >= (3 if exchange == "upbit" else 2), what="a replacement")
    generation = running.generations()[name]
    running.goes_on(frames=5)
    running.until(lambda: not any(takeover.workers for takeover in running.daemon.supervisor.takeovers))
    if exchange == "gopax":  # what was heard counts up to the next comparison
        agreed_at_us = cast(WSController, running.only(name)).books["BTC-KRW"].agreed_at_us
        running.until(lambda: cast(WSController, running.only(name)).books["BTC-KRW"].agreed_at_us > agreed_at_us)
    assert running.generations()["korbit/BTC-KRW"] == 1
    running.finish()

    running.heard_without_a_gap(exchange, epochs=generation, or_more=True)
    assert set(running.epochs(exchange)) == {"superseded", "stop"}
    assert f"has taken over: {name} generation=2 why=planned" in running.logged()


def test_a_market_that_says_nothing_is_left_only_after_a_sign_of_life(start: Start) -> None:
    """The mutation that must make this fail: `seamlessly and False` in `Controller.covered_by`."""
    running = start("upbit")
    running.exchange("upbit")
    running.begin()
    running.simulator.fault("quiet")
    running.until(lambda: float(running.feeds()[0]["age_s"]) > 0.3, what="silence")

    running.exchange("upbit", stale_s=50)
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.simulator.fault("clear")
    running.goes_on(frames=3)
    running.finish()
    running.heard_without_a_gap("upbit", epochs=2)


def test_connections_of_one_exchange_are_replaced_one_after_the_other(start: Start) -> None:
    """The mutation that must make this fail: leave `_busy_groups` out of `_look_after_takeovers`."""
    running = start("upbit")
    running.exchange("upbit", markets=[BTC, ETH, XRP])
    running.begin()
    most = 0

    def all_replaced() -> bool:
        nonlocal most
        most = max(most, running.simulator.connections("upbit", "websocket"))
        under_way = [takeover for takeover in running.daemon.supervisor.takeovers if takeover.workers]
        assert len(under_way) <= 1
        return set(running.generations().values()) == {2}

    running.exchange("upbit", markets=[BTC, ETH, XRP], stale_s=50)
    running.write()
    assert running.hang_up()
    running.until(all_replaced)
    assert most <= 4 + 1  # the one that just left may still be saying goodbye
    running.goes_on()
    running.finish()
    for market in (BTC, ETH, XRP):
        running.heard_without_a_gap("upbit", market, epochs=2)


def test_every_exchange_replaces_its_connections_without_a_gap(start: Start) -> None:
    shared: dict[str, Any] = {"markets": [BTC, ETH], "markets_per_connection": 2}
    options: dict[str, dict[str, Any]] = dict.fromkeys(("upbit", "bithumb", "coinone", "korbit"), shared)
    options["bithumb"] = {**shared, "transport": "websocket"}
    options["gopax"] = {"markets": [BTC], "probe_interval_s": 1}
    running = start(*options)
    for name, plan in options.items():
        running.exchange(name, **plan)
    running.begin()
    running.goes_on()
    for name, plan in options.items():
        running.exchange(name, **plan, stale_s=50)
    running.write()
    assert running.hang_up()
    running.taken_over()
    assert set(running.generations().values()) == {2}
    running.goes_on()
    running.finish()
    for name, plan in options.items():
        for market in plan["markets"]:
            running.heard_without_a_gap(name, market, epochs=2)


def test_a_poller_takes_over_from_another_without_a_gap(start: Start) -> None:
    running = start("bithumb")
    running.exchange("bithumb")
    running.begin()
    running.goes_on()
    running.exchange("bithumb", poll_interval_s=0.2)
    running.write()
    assert running.hang_up()
    running.taken_over()
    running.goes_on()
    running.stop()  # the simulator's ledger does not tell the answers to two pollers apart: no verdict
    running.heard_without_a_gap("bithumb", epochs=2)


def test_a_thread_that_keeps_dying_is_seen_by_everybody_and_comes_back(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mutation that must make this fail: leave `worker.state = "parked"` out of `_restart_later`."""
    monkeypatch.setattr(slot, "PARK_S", 1.0)
    running = start("upbit", "korbit")
    for name in ("upbit", "korbit"):
        running.exchange(name)
    running.begin()
    supervisor = running.daemon.supervisor
    supervisor._slots["upbit/BTC-KRW"].backoff = Backoff(running.daemon.clock, base_s=0.01, cap_s=0.02)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    parse = Upbit.parse

    def die(controller: Upbit, frame: bytes, received_us: int) -> Any:
        raise SystemExit

    monkeypatch.setattr(Upbit, "parse", die)
    running.until(lambda: running.value("workers", state="parked") == 1, what="a parked worker")
    assert running.value("restarts_total", worker="upbit/BTC-KRW", reason="died") == 5
    assert "worker keeps dying and is left alone: upbit/BTC-KRW after_s=1" in running.log
    assert "parked after crashes: upbit/BTC-KRW" in running.daemon.describe()
    assert not running.daemon.ready()[0]
    assert running.daemon.supervisor.healthy()[0]
    _print_status(running.daemon.status())
    assert "died again and again" in capsys.readouterr().out
    assert running.generations()["korbit/BTC-KRW"] == 1

    monkeypatch.setattr(Upbit, "parse", parse)
    running.taken_over()
    assert "parked" not in running.daemon.describe()
    running.goes_on()
    assert running.hang_up()
    _print_status(running.daemon.status())
    assert re.search(r"^reloaded +\S+ changed nothing", capsys.readouterr().out, re.MULTILINE)
    running.finish()


def test_a_controller_is_told_apart_by_what_it_hears(start: Start) -> None:
    running = start("upbit", "korbit")
    running.exchange("upbit", markets=[BTC, ETH], markets_per_connection=2)
    running.exchange("korbit")
    running.begin()
    upbit, korbit = (cast(Controller, worker) for worker in running.daemon.supervisor.workers)
    assert upbit.covered_by([], seamlessly=True), "nobody wants its feeds any more"
    assert upbit.covered_by([korbit], seamlessly=True)
    assert upbit.covered_by([upbit], seamlessly=True)
    fresh = type(korbit)(korbit.markets, korbit.setup)
    assert not korbit.covered_by([fresh], seamlessly=False)
    running.finish()
    assert upbit.covered_by([fresh], seamlessly=True), "what has ended covers nothing"
