"""The daemon as systemd runs it: a process of its own, signals, the notify socket, the port, the log, the secrets."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import Simulator
from tests.cli.conftest import SECONDS, Type
from tests.conftest import ROOT, wait_until
from tests.e2e.daemon import Child

EXCHANGES = ("bithumb", "coinone", "gopax", "korbit", "upbit")
KEY, SECRET = "key-canary-7d1f", "c2VjcmV0LWNhbmFyeS03ZDFm"
LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[(INFO|WARNING|ERROR)\] \[[A-Z0-9]+(-[A-Z0-9]+){0,2}\] \S.*")


class Daemon(Child):
    """The child of the end-to-end tests, with its port open, on a simulator of five exchanges."""

    def __init__(self, folder: Path, simulator: Simulator, **settings: Any) -> None:
        exchanges = {name: {"endpoint": endpoint} for name, endpoint in simulator.endpoints.items()}
        for name, more in settings.pop("exchanges", {}).items():
            exchanges[name] |= more
        super().__init__(folder, exchanges)
        written = json.loads(self.config.read_text())
        for name, value in {"metrics": {"port": 0}, **settings}.items():
            written[name] = {**written.get(name, {}), **value} if isinstance(value, dict) else value
        del written["metrics"]["enabled"]
        self.config.write_text(json.dumps(written))

    @property
    def log(self) -> str:
        """Everything logged so far."""
        file = self.folder / "logs" / "collector.log"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @property
    def url(self) -> str:
        """Where its port is."""
        wait_until(lambda: "port=" in self.log, SECONDS, "the metrics port open")
        found = re.search(r" port=(\d+)", self.log)
        assert found is not None
        return f"http://127.0.0.1:{found[1]}"

    def live(self) -> bool:
        """Tell whether all feeds are heard."""
        return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """Five exchanges."""
    with Simulator(EXCHANGES, ("BTC-KRW",), rate_hz=20, keys={"gopax": (KEY, SECRET)}) as running:
        yield running


@pytest.fixture
def started() -> Iterator[list[Daemon]]:
    """Daemons that are ended whatever the test does."""
    daemons: list[Daemon] = []
    yield daemons
    for daemon in daemons:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.wait()


def test_systemd_hears_of_start_and_stop_and_the_log_has_the_owner_s_form(
    simulator: Simulator, started: list[Daemon], tmp_path: Path
) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(SECONDS)
    heard: list[str] = []

    def hear(word: str) -> None:
        while not any(word in text for text in heard):
            heard.append(listening.recv(4096).decode())

    daemon = Daemon(tmp_path, simulator, language="ko")
    started.append(daemon)
    with listening:
        daemon.start(NOTIFY_SOCKET=str(tmp_path / "notify"))
        hear("READY=1")
        hear("WATCHDOG=1")
        hear("STATUS=5/5 feeds live")
        # 1. A hang-up is a reload, told with its time before and its end after.
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        daemon.send(signal.SIGHUP)
        hear("RELOADING=1")
        (at,) = re.findall(r"^MONOTONIC_USEC=(\d+)$", heard[-1], re.MULTILINE)
        assert before_us < int(at) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        heard.clear()
        hear("READY=1")
        assert daemon.live()
        # 2. The first request to stop drains and ends with 0.
        daemon.send(signal.SIGTERM)
        hear("STOPPING=1")
        assert daemon.wait() == 0

    lines = daemon.log.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    for exchange in EXCHANGES:
        tag = f"{exchange.upper()}-BTC"
        assert any(re.fullmatch(rf"\[.{{19}}\] \[INFO\] \[{tag}\] 데이터 수집 시작", line) for line in lines), tag
        own = (tmp_path / "logs" / f"{tag}.log").read_text(encoding="utf-8").splitlines()
        assert own == [line for line in lines if f"[{tag}]" in line]
    assert [line for line in lines if "설정 다시 읽음" in line and "changed=nothing" in line]
    assert "[COLLECTOR] 수집기 종료 status=0" in lines[-1]


def test_the_port_tells_the_truth_and_the_sums_close(
    simulator: Simulator, started: list[Daemon], tmp_path: Path, type_: Type
) -> None:
    daemon = Daemon(tmp_path, simulator)
    started.append(daemon)
    daemon.start()
    wait_until(daemon.live, SECONDS, "all feeds live")
    assert requests.get(f"{daemon.url}/healthz", timeout=5).json() == {"ok": True, "reason": "ok"}
    assert requests.get(f"{daemon.url}/nothing", timeout=5).status_code == 404

    # 1. At rest every frame has become exactly one of five things.
    simulator.fault("quiet")
    outcomes = ("stored", "duplicate", "ignored", "rejected", "dropped")

    def closed() -> bool:
        text = requests.get(f"{daemon.url}/metrics", timeout=5).text
        frames = {
            (exchange, outcome): float(value)
            for exchange, outcome, value in re.findall(
                r'^collector_frames_total\{exchange="(\w+)",outcome="(\w+)"\} (\S+)', text, re.MULTILINE
            )
        }
        return all(
            frames[exchange, "received"] == sum(frames[exchange, outcome] for outcome in outcomes)
            and frames[exchange, "stored"] > 0
            for exchange in EXCHANGES
        )

    wait_until(closed, SECONDS, "received = stored + duplicate + ignored + rejected + dropped")

    # 2. The state is what `status` prints.
    state = requests.get(f"{daemon.url}/status.json", timeout=5).json()
    assert {feed["exchange"] for feed in state["feeds"]} == set(EXCHANGES)
    assert state["store"]["path"] == str(daemon.database)
    asked = tmp_path / "asked.yaml"
    asked.write_text(f"metrics:\n  port: {daemon.url.rpartition(':')[2]}\n")
    shown = type_("--config", asked, "status")
    assert shown.status == 0
    for exchange in EXCHANGES:
        assert re.search(rf"^{exchange} +BTC-KRW +\w+ +live ", shown.out, re.MULTILINE)
    assert json.loads(type_("--config", asked, "status", "--json").out)["pid"] == state["pid"]

    # 3. A second daemon on the same database leaves again and changes nothing.
    second = type_("--config", daemon.config)
    assert (second.status, second.out) == (2, "")
    assert "collector.sqlite is in use by another collector" in second.err
    assert len(second.err.splitlines()) == 1
    assert daemon.live()
    daemon.send(signal.SIGINT)
    assert daemon.wait() == 0


def test_a_second_request_to_stop_does_not_wait(simulator: Simulator, started: list[Daemon], tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, simulator, limits={"stop_timeout_s": 600})
    started.append(daemon)
    daemon.start()
    wait_until(daemon.live, SECONDS, "all feeds live")
    simulator.fault("stall", "bithumb", seconds=300)  # a poll is under way and gets no answer

    def held_up() -> bool:
        feeds = requests.get(f"{daemon.url}/status.json", timeout=5).json()["feeds"]
        return any(feed["exchange"] == "bithumb" and feed["age_s"] > 0.5 for feed in feeds)

    wait_until(held_up, SECONDS, "a poll that waits for its answer")
    daemon.send(signal.SIGTERM)
    wait_until(lambda: "asked to stop signal=SIGTERM" in daemon.log, SECONDS, "the first request")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() in (0, 1)
    assert "asked to stop a second time, leaving at once" in daemon.log


def test_a_taken_port_is_a_warning(simulator: Simulator, started: list[Daemon], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon = Daemon(tmp_path, simulator, metrics={"port": taken.getsockname()[1]})
        started.append(daemon)
        daemon.start()
        wait_until(lambda: daemon.epochs_with_data() >= 5, SECONDS, "five feeds recorded")
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
    (line,) = [line for line in daemon.log.splitlines() if "[WARNING]" in line]
    assert "the metrics port can't be opened, collecting goes on without it" in line


def test_after_a_kill_it_starts_again_and_the_gap_is_told(
    simulator: Simulator, started: list[Daemon], tmp_path: Path, type_: Type
) -> None:
    daemon = Daemon(tmp_path, simulator)
    started.append(daemon)
    daemon.start()
    wait_until(lambda: daemon.epochs_with_data() >= 5, SECONDS, "recording")
    daemon.send(signal.SIGKILL)
    assert daemon.wait() == -signal.SIGKILL
    daemon.start()
    wait_until(lambda: daemon.epochs_with_data() >= 10, SECONDS, "recording again")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0

    for feed in json.loads(type_("coverage", "--json", "--db", daemon.database).out):
        assert [gap["reason"] for gap in feed["gaps"]] == ["crash"]


@pytest.mark.parametrize("secret", [SECRET, "d3JvbmctY2FuYXJ5LTdkMWY="], ids=["accepted", "refused"])
def test_no_secret_is_in_any_file_the_daemon_wrote(
    simulator: Simulator, started: list[Daemon], tmp_path: Path, secret: str
) -> None:
    (tmp_path / ".env").write_text(f"GOPAX_API_KEY={KEY}\nGOPAX_SECRET_KEY={secret}\n")
    daemon = Daemon(tmp_path, simulator, log={"level": "DEBUG"}, exchanges={"gopax": {"auth": True}})
    started.append(daemon)
    daemon.start()
    wait_until(lambda: daemon.epochs_with_data() >= 5, SECONDS, "five feeds recorded")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0

    assert ("refused the API key" in daemon.log) == (secret != SECRET)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.name != ".env":
            for canary in (KEY, secret, secret.rstrip("=")):
                assert canary.encode() not in file.read_bytes(), file


def test_simulate_prints_what_a_configuration_needs(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_controller.py"), "simulate", "-e", "upbit", "-e", "gopax"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(10)]
        (tmp_path / "c.yaml").write_text("".join(printed) + "language: en\n")
        checked = subprocess.run(
            [sys.executable, str(ROOT / "run_controller.py"), "--config", "c.yaml", "markets", "upbit"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert checked.stdout.split() == ["BTC-KRW", "ETH-KRW"], checked.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert process.stdout is not None
        process.stdout.close()
