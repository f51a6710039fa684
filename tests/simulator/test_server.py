"""The server as a whole: faults, control, connections, the life of the thread."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket

import simulator
from simulator import Simulator, Timing, run, venues
from tests.conftest import ROOT, WaitUntil
from tests.simulator.conftest import BOOK_PATHS, SUBSCRIBE, Client, Stage, noted, understood

Start = Callable[..., Stage]


def served(s: Stage, exchange: str = "upbit") -> Client:
    """Connect and read the first book."""
    client = s.dial(exchange)
    client.send(SUBSCRIBE[exchange])
    client.until(lambda frame: understood(exchange, frame))
    return client


# -- faults on sockets


def test_disconnect_cuts_or_closes(stage: Start) -> None:
    s = stage("upbit", "korbit")
    cut, closed, other = served(s), served(s), served(s, "korbit")
    s.simulator.fault("disconnect", "upbit", "ETH-KRW")  # nobody listens to that market
    s.simulator.fault("disconnect", "upbit", transport="rest")
    cut.frame()
    s.simulator.fault("disconnect", "upbit", code=1012, reason="restart")
    assert {cut.closed(), closed.closed()} == {1012}
    s.simulator.fault("disconnect", "upbit")
    assert other.frame()["type"] == "orderbook"
    third = served(s)
    s.simulator.fault("disconnect", "upbit")
    assert third.closed() == 1006
    assert s.ends(3) == ["restart", "restart", "asked for by a test"]


def test_a_stall_withholds_data_keeps_heartbeats_and_writes_down_what_was_withheld(stage: Start) -> None:
    s = stage("upbit", rate_hz=50, timing=Timing(status_s=0.05))
    client = served(s)
    client.send("PING")
    s.simulator.fault("stall", "upbit")
    client.until(lambda f: f == {"status": "UP"})
    assert all(frame == {"status": "UP"} for frame in client.frames(6))
    s.simulator.fault("clear", what="stall")
    client.until(lambda f: "orderbook_units" in f)
    lines = s.ledger(kind="message")
    fates = [line["fate"] for line in lines]
    assert fates.index("withheld") < len(fates) - 1 - fates[::-1].index("sent")
    assert [line["i"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(noted(next(line for line in lines if line["fate"] == "withheld"))[1]) >= 20


def test_a_stall_of_one_market_leaves_the_others_alone(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client = s.dial("upbit")
    client.send('[{"ticket":"t"},{"type":"orderbook","codes":["KRW-BTC","KRW-ETH"]}]')
    client.frames(4)
    s.simulator.fault("stall", "upbit", "BTC-KRW")
    client.until(lambda f: f["code"] == "KRW-ETH")
    client.frame()  # one that was on its way
    assert {frame["code"] for frame in client.frames(10)} == {"KRW-ETH"}


def test_a_freeze_silences_everything(stage: Start) -> None:
    s = stage("upbit", rate_hz=50, timing=Timing(status_s=0.05))
    client = served(s)
    client.send("PING")
    client.until(lambda f: f == {"status": "UP"})
    s.simulator.fault("freeze", "upbit")
    while not client.silent(0.2):
        continue
    client.socket.ping(b"x")
    assert client.silent(0.2)
    s.simulator.fault("clear", "upbit")
    assert client.until(lambda f: "orderbook_units" in f)
    assert s.ledger(kind="message", fate="withheld")


def test_drop_pong_leaves_the_data_alone(stage: Start) -> None:
    s = stage("coinone", rate_hz=50)
    client = served(s, "coinone")
    s.simulator.fault("drop_pong", "coinone")
    client.send({"request_type": "PING"})
    assert all(frame["response_type"] == "DATA" for frame in client.frames(15))


def test_quiet_is_a_market_that_does_not_move(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client = served(s)
    s.simulator.fault("quiet", "upbit", "BTC-KRW")
    while not client.silent(0.2):
        continue
    assert not s.ledger(kind="message", fate="withheld")


def test_duplicate_sends_a_frame_twice_under_two_numbers(stage: Start) -> None:
    s = stage("upbit", rate_hz=20)
    client = served(s)
    s.simulator.fault("duplicate", "upbit")
    before = client.raw()
    for _ in range(40):
        after = client.raw()
        if after == before:
            break
        before = after
    assert after == before
    lines = s.ledger(kind="message")
    assert any((noted(a), a["venue_us"]) == (noted(b), b["venue_us"]) for a, b in pairwise(lines))
    assert [line["i"] for line in lines] == list(range(1, len(lines) + 1))


def test_late_sends_a_book_after_the_one_that_follows_it(stage: Start) -> None:
    s = stage("coinone", rate_hz=30)
    client = served(s, "coinone")
    s.simulator.fault("late", "coinone", "BTC-KRW")
    ids = [int(client.until(lambda f: f["response_type"] == "DATA")["data"]["id"]) for _ in range(12)]
    (fallen,) = [later for earlier, later in pairwise(ids) if later < earlier]
    lines = s.ledger(kind="message", what="book")
    assert [line["i"] for line in lines] == list(range(1, len(lines) + 1))
    told = [line["sequence"] for line in lines]
    assert told[told.index(ids[0]) :][: len(ids)] == ids, "the ledger has the order in which they were sent"
    assert fallen in told


def test_a_half_open_connection_is_silent_both_ways_and_never_ends_by_itself(
    stage: Start, wait_until: WaitUntil
) -> None:
    s = stage("upbit", rate_hz=50, timing=Timing(status_s=0.05, idle_s=0.4))
    client = served(s)
    client.send("PING")
    client.until(lambda f: f == {"status": "UP"})
    s.simulator.fault("half_open", "upbit")
    while not client.silent(0.2):
        continue
    client.socket.ping(b"x")
    client.send(SUBSCRIBE["upbit"])
    s.simulator.fault("disconnect", "upbit")
    assert client.silent(0.6), "nobody answers, nobody cuts it"
    other = served(s)
    assert other.frame(), "another connection works"
    assert s.simulator.connections("upbit") == 2
    withheld = s.ledger(kind="message", fate="withheld", subscription="s1")
    assert withheld and not s.ledger(kind="close")

    client.socket.send_close()
    assert client.silent(0.3), "not even a goodbye is answered"
    client.socket.shutdown()
    wait_until(lambda: s.simulator.connections("upbit") == 1)
    assert s.ends() == ["the client gave up a half-open connection"]


def test_a_poll_on_a_half_open_connection_is_never_answered(stage: Start, wait_until: WaitUntil) -> None:
    s = stage("bithumb")
    url = s.rest("bithumb", BOOK_PATHS["bithumb"])
    with requests.Session() as session:
        assert session.get(url, timeout=5).status_code == 200
        s.simulator.fault("half_open", "bithumb", transport="rest")
        with pytest.raises(requests.ReadTimeout):
            session.get(url, timeout=0.4)
        assert session.get(url, timeout=5).status_code == 200, "a new connection is answered"
        wait_until(lambda: s.simulator.connections("bithumb") == 1)
    assert s.ledger(kind="close")[0]["connection"] == "c1"


def test_a_simulator_stops_in_spite_of_half_open_connections(stage: Start) -> None:
    s = stage("upbit")
    client = served(s)
    s.simulator.fault("half_open", "upbit")
    s.simulator.stop()
    assert client.closed() == 1006


def test_the_ledger_has_the_very_bytes_of_garbage(stage: Start) -> None:
    s = stage("upbit", "bithumb", rate_hz=20)
    client = served(s)
    s.simulator.fault("garbage", "upbit", what="not_utf8")
    frame = client.raw()[1]
    while frame.isascii():
        frame = client.raw()[1]
    s.simulator.fault("garbage", "bithumb", what="truncated")
    answer = requests.get(s.rest("bithumb", BOOK_PATHS["bithumb"]), timeout=5).content
    lines = s.ledger(kind="message", what="garbage")
    assert [base64.b64decode(line["frame"]) for line in lines] == [frame, answer]


def test_swallow_drops_one_message_and_writes_it_down(stage: Start) -> None:
    s = stage("gopax", rate_hz=30)
    client = served(s, "gopax")
    s.simulator.fault("swallow", "gopax", "BTC-KRW")
    client.frames(10)
    (line,) = s.ledger(kind="message", fate="withheld")
    assert line["what"] == "change"


def test_crossed_books(stage: Start) -> None:
    s = stage("upbit", rate_hz=30)
    client = served(s)
    s.simulator.fault("crossed", "upbit", "BTC-KRW")

    def crossed(frame: Any) -> bool:
        best = frame["orderbook_units"][0]
        return bool(best["bid_price"] >= best["ask_price"])

    assert crossed(client.until(crossed))
    assert not crossed(client.frame())
    assert any(Decimal(line["bids"][0][0]) >= Decimal(line["asks"][0][0]) for line in s.ledger(kind="message"))


def test_a_subscription_during_a_stall_gets_its_acknowledgement_and_no_book(stage: Start) -> None:
    s = stage("coinone", rate_hz=50)
    s.simulator.fault("stall", "coinone")
    client = s.dial("coinone")
    client.send(SUBSCRIBE["coinone"])
    assert [frame["response_type"] for frame in client.frames(2)] == ["CONNECTED", "SUBSCRIBED"]
    assert client.silent()
    assert {line["fate"] for line in s.ledger(kind="message")} == {"withheld"}


# -- faults on REST and on connecting


def test_status_answers_and_refuses_upgrades(stage: Start) -> None:
    s = stage("bithumb")
    s.simulator.fault("status", "bithumb", code=429, retry_after=7, times=2)
    url = s.rest("bithumb", BOOK_PATHS["bithumb"])
    answer = requests.get(url, timeout=5)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
        s.dial("bithumb")
    assert requests.get(url, timeout=5).status_code == 200
    errors = s.ledger(kind="message", what="error")
    assert [(line["status"], line["i"]) for line in errors] == [(429, 1)]


def test_refuse_answers_503_until_cleared(stage: Start) -> None:
    s = stage("upbit", "korbit")
    kept = served(s)
    s.simulator.fault("refuse", "upbit")
    with pytest.raises(websocket.WebSocketBadStatusException, match="503"):
        s.dial("upbit")
    assert requests.get(s.rest("upbit", "/v1/market/all"), timeout=5).status_code == 503
    assert kept.frame() and served(s, "korbit").frame()
    s.simulator.fault("clear", "upbit")
    assert served(s).frame()


def test_slow_delays_the_answer(stage: Start) -> None:
    s = stage("upbit")
    s.simulator.fault("slow", "upbit", delay_s=0.4)
    with pytest.raises(requests.ReadTimeout):
        requests.get(s.rest("upbit", "/v1/market/all"), timeout=0.1)


def test_a_stalled_poll_stays_unanswered_and_is_written_down(stage: Start, wait_until: WaitUntil) -> None:
    s = stage("bithumb")
    s.simulator.fault("stall", "bithumb", "BTC-KRW")
    with pytest.raises(requests.ReadTimeout):
        requests.get(s.rest("bithumb", BOOK_PATHS["bithumb"]), timeout=0.2)
    (line,) = s.ledger(kind="message")
    assert (line["what"], line["fate"]) == ("book", "withheld")
    wait_until(lambda: s.simulator.connections("bithumb") == 0)


def test_a_swallowed_poll_loses_its_connection(stage: Start) -> None:
    s = stage("bithumb")
    s.simulator.fault("swallow", "bithumb")
    with pytest.raises(requests.ConnectionError):
        requests.get(s.rest("bithumb", BOOK_PATHS["bithumb"]), timeout=5)
    assert [line["fate"] for line in s.ledger(kind="message")] == ["withheld"]


def test_a_corrupt_total_in_a_poll(stage: Start) -> None:
    s = stage("bithumb")
    s.simulator.fault("corrupt_total", "bithumb")
    wrong, right = (
        json.loads(requests.get(s.rest("bithumb", BOOK_PATHS["bithumb"]), timeout=5).content, parse_float=Decimal)[0]
        for _ in range(2)
    )
    assert wrong["total_ask_size"] - 1 == sum(unit["ask_size"] for unit in wrong["orderbook_units"])
    assert right["total_ask_size"] == sum(unit["ask_size"] for unit in right["orderbook_units"])


# -- asking for faults


@pytest.mark.parametrize(
    "wrong",
    [("nope", None, None), ("stall", "binance", None), ("stall", "upbit", "NOPE-KRW")],
)
def test_faults_that_make_no_sense_are_refused(stage: Start, wrong: tuple[str, str | None, str | None]) -> None:
    s = stage("upbit")
    with pytest.raises(ValueError, match=r"unknown fault|not simulated here"):
        s.simulator.fault(*wrong)


def test_faults_can_be_asked_for_over_http(stage: Start) -> None:
    s = stage("upbit", rate_hz=50)
    client = served(s)
    url = f"{s.simulator.url}/control"
    assert requests.post(f"{url}/fault", json={"kind": "nope"}, timeout=5).status_code == 400
    assert requests.post(f"{url}/fault", json={}, timeout=5).text == "a fault needs its kind\n"
    assert requests.post(f"{url}/fault", data="[]", timeout=5).status_code == 400
    assert requests.get(f"{url}/fault", timeout=5).status_code == 404
    answer = requests.post(f"{url}/fault", json={"kind": "stall", "exchange": "upbit"}, timeout=5)
    assert answer.json() == {"ok": True}
    state = requests.get(url, timeout=5).json()
    assert state["connections"] == {"upbit": 1}
    assert state["faults"] == [{"kind": "stall", "exchange": "upbit", "market": None, "times": None}]
    assert state["endpoints"] == s.simulator.endpoints
    while not client.silent(0.2):
        continue


# -- connections and addresses


def test_endpoints_lead_to_the_venues_own_paths(stage: Start) -> None:
    s = stage("upbit", "bithumb", "coinone", "korbit", "gopax", "binance")
    port = s.simulator.url.rpartition(":")[2]
    paths = {
        "upbit": "/upbit/websocket/v1",
        "bithumb": "/bithumb/websocket/v1",
        "coinone": "/coinone",
        "korbit": "/korbit/v2/public",
        "gopax": "/gopax",
        "binance": "/binance/stream",
    }
    found: dict[str, Any] = s.simulator.endpoints
    products = found["binance"].pop("products")
    assert found == {
        name: {"websocket": f"ws://127.0.0.1:{port}{path}", "rest": f"http://127.0.0.1:{port}/{name}"}
        for name, path in paths.items()
    }
    assert products["usdm"] == {
        "websocket": f"ws://127.0.0.1:{port}/binance/usdm/public/stream",
        "rest": f"http://127.0.0.1:{port}/binance/usdm",
    }
    assert requests.get(f"{s.simulator.url}/bitstamp/x", timeout=5).status_code == 404


def test_connections_are_counted_by_kind(stage: Start, wait_until: WaitUntil) -> None:
    s = stage("upbit")
    client = served(s)
    with requests.Session() as session:
        session.get(s.rest("upbit", "/v1/market/all"), timeout=5)
        counts = [s.simulator.connections("upbit", kind) for kind in (None, "websocket", "rest")]
        assert counts == [2, 1, 1]
    client.socket.close()
    wait_until(lambda: s.simulator.connections("upbit") == 0)
    assert len(s.ends(2)) == 2
    assert {line["connection"] for line in s.ledger(kind="close")} == {"c1", "c2"}


def test_a_client_that_reads_too_slowly_is_cut(stage: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.connection.OUTBOX_MAX", 5)
    s = stage("gopax", markets=[f"M{i}-KRW" for i in range(40)], rate_hz=0.01)
    client = s.dial("gopax")
    with contextlib.suppress(ConnectionError):
        for i in range(40):  # 40 snapshots of 70 KB that nobody reads
            client.send({"i": i, "n": "SubscribeToOrderBook", "o": {"tradingPairName": f"M{i}-KRW"}})
    assert s.ends() == ["the client reads too slowly"]


def test_as_fast_as_it_goes(stage: Start) -> None:
    s = stage("upbit", speed=None)
    client = served(s)
    client.frames(1000)
    lines = s.ledger(kind="message")
    assert [line["i"] for line in lines] == list(range(1, len(lines) + 1))


# -- life


def test_it_starts_again_on_the_same_port_with_the_same_ledger(tmp_path: Path) -> None:
    s = Simulator(["upbit"], ledger=tmp_path / "l.jsonl")
    urls = []
    for _ in range(2):
        with s:
            urls.append(s.url)
            client = Client(s.endpoints["upbit"]["websocket"])
            client.send(SUBSCRIBE["upbit"])
            client.frame()
            client.socket.close()
    assert urls[0] == urls[1]
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["connection"] for line in lines if line["kind"] == "open"] == ["c1", "c2"]
    assert [line["connection"] for line in lines if line["kind"] == "close"] == ["c1", "c2"]


def test_wrong_arguments_are_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no simulated exchange 'bitstamp': one of binance, bithumb"):
        Simulator(["bitstamp"]).start()
    with pytest.raises(ValueError, match="no simulated exchange 'server'"):
        Simulator(["server"]).start()
    with Simulator(["upbit"]) as first, pytest.raises(OSError, match="address already in use"):
        Simulator(["upbit"], port=int(first.url.rpartition(":")[2])).start()
    with pytest.raises(RuntimeError, match="not running"):
        Simulator(["upbit"]).fault("stall")


def test_an_error_of_its_own_ends_it_and_is_raised(monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil) -> None:
    s = Simulator(["upbit"], rate_hz=50)
    s.start()
    monkeypatch.setattr("simulator.markets.Market.step", lambda self: 1 / 0)
    wait_until(s.failed)
    with pytest.raises(ZeroDivisionError):
        s.stop()


def test_run_goes_on_until_the_event(wait_until: WaitUntil) -> None:
    s, event = Simulator(["upbit"]), threading.Event()
    thread = threading.Thread(target=run, args=(s, event))
    thread.start()
    wait_until(lambda: s.url.rpartition(":")[2] != "0")
    wait_until(lambda: requests.get(f"{s.url}/control", timeout=5).status_code == 200)
    event.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_venue_is_one_file_found_by_name(stage: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toybox.py").write_text(
        "from simulator.connection import Message\n"
        "from simulator.venue import Reply, Venue\n"
        "class Toybox(Venue):\n"
        "    name = 'toybox'\n"
        "    socket_path = 'toys'\n"
        "    async def received(self, c, text):\n"
        "        c.say(text)\n"
        "    def book_frame(self, s, book, first):\n"
        "        return Message('book')\n"
        "    def rest(self, request, path):\n"
        "        return Reply('toys')\n"
    )
    monkeypatch.setattr(simulator, "__path__", [*simulator.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "simulator.toybox", raising=False)
    assert "toybox" in venues()
    s = stage("toybox")
    assert requests.get(s.rest("toybox", "/any"), timeout=5).text == "toys"
    assert s.simulator.endpoints["toybox"]["websocket"].endswith("/toybox/toys")
    client = s.dial("toybox")
    client.send('"hello"')
    assert client.frame() == "hello"


def test_the_ledger_of_a_killed_simulator_holds_all_that_a_client_received(tmp_path: Path) -> None:
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from simulator import Simulator, run\n"
        "s = Simulator(['upbit'], ledger=Path(sys.argv[1]), rate_hz=200)\n"
        "s.start(); print(s.endpoints['upbit']['websocket'], flush=True)\n"
        "threading.Event().wait()\n"
    )
    path = tmp_path / "l.jsonl"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    client = Client(process.stdout.readline().strip())
    client.send(SUBSCRIBE["upbit"])
    received = [understood("upbit", frame) for frame in client.frames(60)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    while client.closed() != 1006:
        continue
    client.socket.shutdown()
    lines = [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]
    messages = [noted(line) for line in lines if line["kind"] == "message"]
    assert messages[:60] == received
