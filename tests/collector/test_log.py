"""The log: the form of a line, files and their rotation, repeats, secrets, and that it never gets in the way."""

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from collector import log
from collector.clock import Clock
from collector.errors import ConfigError
from collector.logfile import LogFile
from collector.records import REASONS, Event
from collector.texts import TEXTS, fields, template
from tests.conftest import ROOT

FEEDS = [("gopax", "BTC-KRW"), ("upbit", "BTC-KRW"), ("upbit", "BTC-USDT"), ("upbit", "ETH-KRW")]
CANARY = 'canary"9f3b/1c+x'


class HandClock(Clock):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.wall = int(datetime(2024, 4, 14, 20, 32, 1).timestamp()) * 1_000_000
        self.monotonic = 0

    def wall_us(self) -> int:
        return self.wall

    def monotonic_us(self) -> int:
        return self.monotonic

    def move(self, seconds: float) -> None:
        self.wall += int(seconds * 1e6)
        self.monotonic += int(seconds * 1e6)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_secrets_pattern", None)


Start = Callable[..., log.LogSystem]


@pytest.fixture
def start(tmp_path: Path, clock: HandClock) -> Iterator[Start]:
    systems: list[log.LogSystem] = []

    def begin(**more: Any) -> log.LogSystem:
        given: dict[str, Any] = {
            "level": "INFO",
            "language": "ko",
            "file_bytes": 1 << 20,
            "files": 3,
            "stderr": False,
            "feeds": FEEDS,
            "clock": clock,
        }
        systems.append(log.setup(tmp_path / "logs", **{**given, **more}))
        return systems[-1]

    yield begin
    for system in systems:
        system.stop()


def lines(folder: Path, name: str = "collector") -> list[str]:
    return (folder / "logs" / f"{name}.log").read_text(encoding="utf-8").splitlines()


# --- the form of a line -----------------------------------------------------------------------------------------------


def test_the_lines_of_the_owner(start: Start, tmp_path: Path, clock: HandClock) -> None:
    system = start()
    gopax = system.connection("gopax", ["BTC-KRW"])
    gopax.info("collect_start")
    clock.move(131)
    gopax.error("ws_error", error="Connection reset by peer")
    system.stop()
    expected = [
        "[2024-04-14 20:32:01] [INFO] [GOPAX-BTC] 데이터 수집 시작",
        "[2024-04-14 20:34:12] [ERROR] [GOPAX-BTC] WebSocket 에러: Connection reset by peer",
    ]
    assert lines(tmp_path) == lines(tmp_path, "GOPAX-BTC") == expected


def test_english(start: Start, tmp_path: Path) -> None:
    start(language="en")
    log.get("GOPAX-BTC").info("collect_start", attempt=3, after_s=12.4, none=None)
    log.get("GOPAX-BTC").info("no such text")
    log.get("GOPAX-BTC").event("ERROR", "ws_error")
    start().stop()
    assert [line.partition("] [GOPAX-BTC] ")[2] for line in lines(tmp_path)] == [
        "collecting started attempt=3 after_s=12.4",
        "no such text",
        "WebSocket error: ?",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b\\c', r'"a\"b\\c"'),
        ("a=b", '"a=b"'),
        ("a\nb\r\x1b[31m", r'"a\nb\r\x1b[31m"'),
        ("\u2028\u202e\ud800", r'"\u2028\u202e\ud800"'),
        ("한글", "한글"),
        (12.0, "12"),
        (True, "True"),
        (b"\xff", r'''"b'\\xff'"'''),
        ("x" * 2000, "x" * 1000 + "…(2000)"),
    ],
)
def test_details_never_break_a_line(start: Start, tmp_path: Path, value: object, shown: str) -> None:
    start()
    log.get("COLLECTOR").info("daemon_start", value=value)
    log.get("COLLECTOR").info("ws_error", error=value)
    start().stop()
    first, second = lines(tmp_path)
    assert first.endswith(f" value={shown}")
    assert second.startswith("[2024-04-14 20:32:01] [INFO] [COLLECTOR] WebSocket 에러: ")


def test_a_detail_that_can_not_be_printed(start: Start, tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    start()
    log.get("COLLECTOR").info("daemon_start", what=Broken())
    start().stop()
    assert lines(tmp_path)[0].endswith('what="<Broken: RuntimeError>"')


def test_a_traceback_follows_indented(start: Start, tmp_path: Path) -> None:
    start()
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        log.get("COLLECTOR").exception("worker_failed", error=repr(error), worker="writer")
    log.get("COLLECTOR").error("worker_stuck", worker="writer", stack='File "x.py"\n  line\x1b 1')
    start().stop()
    told = lines(tmp_path)
    assert told[0].endswith(r"예상하지 못한 예외: ValueError('first\nsecond') worker=writer")
    assert told[1] == "    Traceback (most recent call last):"
    assert told[-4].startswith("    second") or told[-5].startswith("    ValueError")
    assert told[-2:] == ['    File "x.py"', r"      line\x1b 1"]
    assert all(line.startswith(("[2024", "    ")) for line in told)


def test_tags_name_the_currency_only_where_a_symbol_is_shared() -> None:
    assert log.tags(FEEDS) == {
        ("gopax", "BTC-KRW"): "GOPAX-BTC",
        ("upbit", "BTC-KRW"): "UPBIT-BTC-KRW",
        ("upbit", "BTC-USDT"): "UPBIT-BTC-USDT",
        ("upbit", "ETH-KRW"): "UPBIT-ETH",
    }
    assert log.tags([("upbit", "BTC-KRW"), ("upbit", "BTC-KRW")]) == {("upbit", "BTC-KRW"): "UPBIT-BTC"}


def test_a_connection_of_several_markets_names_the_one_it_speaks_of(start: Start, tmp_path: Path) -> None:
    system = start()
    upbit = system.connection("upbit", ["BTC-KRW", "ETH-KRW"])
    upbit.info("connect")
    upbit.info("first_data", market="ETH-KRW")
    upbit.info("first_data", market="XRP-KRW")
    system.stop()
    assert [line[22:] for line in lines(tmp_path)] == [
        "[INFO] [UPBIT] WebSocket 연결",
        "[INFO] [UPBIT-ETH] 첫 데이터 수신",
        "[INFO] [UPBIT] 첫 데이터 수신 market=XRP-KRW",
    ]
    assert len(lines(tmp_path, "UPBIT-ETH")) == 1


# --- levels, libraries, before and after ------------------------------------------------------------------------------


def test_levels(start: Start, tmp_path: Path) -> None:
    system = start(level="WARNING")
    log.get("COLLECTOR").info("daemon_start")
    system.set_level("DEBUG")
    log.get("COLLECTOR").debug("daemon_stop")
    system.stop()
    assert [line[22:] for line in lines(tmp_path)] == ["[DEBUG] [COLLECTOR] 수집기 종료"]


def test_what_libraries_log_is_there_too(start: Start, tmp_path: Path) -> None:
    system = start()
    log.register_secret(CANARY)
    library = logging.getLogger("urllib3.connectionpool")
    library.warning("pool is full\n%s", CANARY)
    wrong = {"name": "urllib3", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "wrong %d", "args": ("x",)}
    system._handler.handle(logging.makeLogRecord(wrong))  # not by the logger: pytest's own handler stops at it
    library.info("not of interest")
    try:
        raise OSError(CANARY)
    except OSError:
        library.exception("failed")
    start().stop()
    told = lines(tmp_path)
    assert told[0][22:] == r"[WARNING] [URLLIB3] pool is full\n***"
    assert told[1].startswith("[") and "wrong %d" in told[1]
    assert told[2].endswith("[ERROR] [URLLIB3] failed")
    assert told[-1] == "    OSError: ***"


def test_logging_without_a_log_and_after_it(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log.get("COLLECTOR").warning("daemon_stop", status=1)
    assert caplog.messages == ["수집기 종료 status=1"]
    system = start()
    system.stop()
    system.stop()
    log.get("COLLECTOR").error("daemon_stop")
    assert lines(tmp_path) == []


def test_a_copy_on_standard_error(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(stderr=True)
    log.get("GOPAX-BTC").info("collect_start")
    start(stderr=False)
    log.get("GOPAX-BTC").info("close")
    start().stop()
    assert capsys.readouterr().err == "[2024-04-14 20:32:01] [INFO] [GOPAX-BTC] 데이터 수집 시작\n"


def test_a_closed_standard_error_costs_nothing_but_itself(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = start(stderr=True)
    monkeypatch.setattr("sys.stderr", None)
    log.get("COLLECTOR").info("daemon_start")
    system.stop()
    assert len(lines(tmp_path)) == 1 and system.dropped == 1


def test_events_for_the_database(start: Start, clock: HandClock, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []

    def take(event: Event) -> None:
        if event.tag == "WRITER":
            raise RuntimeError("no room")
        events.append(event)

    system = start(level="DEBUG", on_event=take)
    log.get("GOPAX-BTC").debug("connect")
    log.get("WRITER").info("store_opened")
    log.get("WRITER").info("store_opened")
    log.get("GOPAX-BTC").warning("close", code=1000)
    system.stop()
    assert events == [Event(clock.wall, "WARNING", "GOPAX-BTC", "WebSocket 연결 종료 code=1000")]
    assert system.dropped == 2
    assert capsys.readouterr().err == "log: the log in the database: RuntimeError('no room')\n"


# --- repeats ----------------------------------------------------------------------------------------------------------


def test_repeats_are_held_to_one_a_minute(start: Start, tmp_path: Path, clock: HandClock) -> None:
    system = start()
    gopax, upbit = log.get("GOPAX-BTC"), log.get("UPBIT-ETH")
    for number in range(5):
        gopax.error("ws_error", error=f"no {number}")
        gopax.info("connect")
        clock.move(10)
    gopax.warning("silent")
    upbit.error("ws_error", error="another tag")
    clock.move(10)  # the minute of the first is over: whatever is logged next tells what was held
    log.get("COLLECTOR").info("daemon_start")
    system.flush()
    gopax.error("ws_error", error="no 5")  # held: the line with the number was this minute's
    system.stop()
    told = [line[22:] for line in lines(tmp_path) if "연결" not in line]
    assert sorted(told) == sorted(
        [
            "[ERROR] [GOPAX-BTC] WebSocket 에러: no 0",
            "[WARNING] [GOPAX-BTC] 구독했으나 데이터 없음",
            "[ERROR] [UPBIT-ETH] WebSocket 에러: another tag",
            "[INFO] [COLLECTOR] 수집기 시작",
            "[ERROR] [GOPAX-BTC] WebSocket 에러: no 4 held=4",
            "[ERROR] [GOPAX-BTC] WebSocket 에러: no 5 held=1",
        ]
    )
    assert len([line for line in lines(tmp_path) if "연결" in line]) == 5


def test_a_kind_that_rests_for_a_minute_starts_anew(start: Start, tmp_path: Path, clock: HandClock) -> None:
    system = start()
    for _ in range(3):
        log.get("GOPAX-BTC").error("ws_error", error="again")
        clock.move(61)
    system.stop()
    assert [line[-5:] for line in lines(tmp_path)] == ["again"] * 3


def test_no_repeat_is_lost_between_threads(start: Start, tmp_path: Path, clock: HandClock) -> None:
    system = start()

    def shout() -> None:
        for _ in range(200):
            log.get("GOPAX-BTC").error("ws_error", error="x")
            clock.move(0.25)

    threads = [threading.Thread(target=shout) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    system.stop()
    told = [int(held[1]) if (held := re.search(r"held=(\d+)", line)) else 1 for line in lines(tmp_path)]
    assert sum(told) == 800
    assert len(told) < 20


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_replaced_wherever_they_turn_up(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    start(stderr=True, on_event=events.append)
    log.register_secret("")
    log.register_secret(CANARY)
    log.register_secret("short")
    url = "wss://x/?key=canary%229f3b%2F1c%2Bx&k=canary%229f3b/1c%2Bx"
    try:
        raise ConnectionError(f"refused {CANARY} at {url}")
    except ConnectionError as error:
        log.get("GOPAX-BTC").exception("ws_error", error=error, args=repr({"key": CANARY}), url=url)
    log.get("GOPAX-BTC").info("connect", json='{"k": "canary\\"9f3b/1c+x"}', long="x" * 995 + CANARY, word="shortest")
    start().stop()
    shown = "".join(path.read_text() for path in (tmp_path / "logs").iterdir()) + capsys.readouterr().err + str(events)
    assert "9f3b" not in shown and "canary" not in shown
    assert "refused *** at wss://x/?key=***&k=***" in shown
    assert "ConnectionError: refused *** at" in shown
    assert "word=***est" in shown


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_markets_and_of_exchanges_with_many(start: Start, tmp_path: Path) -> None:
    many = [("bithumb", f"S{number}-KRW") for number in range(21)]
    system = start(feeds=[*FEEDS, *many])
    system.connection("bithumb", ["S3-KRW"]).info("poll_start")
    system.connection("bithumb", [market for _, market in many]).info("connect")
    system.connection("upbit", ["ETH-KRW"]).info("connect")
    log.get("WRITER").info("store_opened")
    system.flush()
    system.set_feeds([("bithumb", "S3-KRW")])
    system.connection("bithumb", ["S3-KRW"]).info("poll_stop")
    system.stop()
    found = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "logs").iterdir()}
    assert found == {"collector.log": 5, "BITHUMB.log": 2, "UPBIT-ETH.log": 1, "BITHUMB-S3.log": 1}


def test_the_size_of_a_file_and_how_many_are_kept(start: Start, tmp_path: Path) -> None:
    system = start(file_bytes=300, files=2)
    for number in range(40):
        log.get("COLLECTOR").info("daemon_start", number=number)
    system.stop()
    paths = sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in paths[:-1]] == [f"collector.2024-04-14-{n:03d}.log" for n in numbers(paths)]
    assert len(paths) == 3
    assert all(path.stat().st_size <= 300 for path in paths)
    told = [line for path in paths for line in path.read_text().splitlines()]
    assert [int(line.rpartition("=")[2]) for line in told] == list(range(40 - len(told), 40))


def numbers(paths: list[Path]) -> list[int]:
    return [int(found[1]) for path in paths if (found := re.search(r"-(\d{3})\.log$", path.name))]


def test_a_new_file_at_local_midnight(start: Start, tmp_path: Path, clock: HandClock) -> None:
    system = start()
    clock.move(3 * 3600 + 27 * 60 + 58)
    log.get("COLLECTOR").info("daemon_start", at="23:59:59")
    system.flush()
    clock.move(1)
    log.get("COLLECTOR").info("daemon_start", at="00:00:00")
    clock.move(-1)
    log.get("COLLECTOR").info("daemon_start", at="a thread that came late")
    system.stop()
    folder = tmp_path / "logs"
    assert sorted(path.name for path in folder.iterdir()) == ["collector.2024-04-14-001.log", "collector.log"]
    assert len((folder / "collector.2024-04-14-001.log").read_text().splitlines()) == 1
    assert len(lines(tmp_path)) == 2


def test_the_next_run_goes_on_in_the_file_and_closes_one_of_yesterday(tmp_path: Path) -> None:
    complaints: list[str] = []
    path = tmp_path / "x.log"
    path.write_bytes(b"whole\ntorn")
    today = date.today()
    file = LogFile(tmp_path, "x", 1000, 5, complaints.append)
    file.write(b"next\n", today)
    file.close()
    assert path.read_bytes() == b"whole\ntorn\nnext\n"
    os.utime(path, (86_400, 86_400))
    file = LogFile(tmp_path, "x", 1000, 5, complaints.append)
    file.write(b"today\n", today)
    file.close()
    assert path.read_bytes() == b"today\n"
    assert len(list(tmp_path.glob("x.1970-01-0?-001.log"))) == 1
    assert not complaints


def test_lines_of_many_threads_are_whole_and_all_there(start: Start, tmp_path: Path) -> None:
    system = start(file_bytes=20_000, files=1000)

    def talk(thread: int) -> None:
        for number in range(300):
            log.get("GOPAX-BTC").info("connect", who=f"{thread}-{number}", text="가" * 20)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    system.stop()
    for name in ("collector", "GOPAX-BTC"):
        told = [line for path in (tmp_path / "logs").glob(f"{name}*") for line in path.read_text("utf-8").splitlines()]
        whole = [
            re.fullmatch(r"\[.{19}\] \[INFO\] \[GOPAX-BTC\] WebSocket 연결 who=(\S+) text=가{20}", line)
            for line in told
        ]
        assert {match[1] for match in whole if match} == {f"{t}-{n}" for t in range(8) for n in range(300)}
        assert len(told) == 2400
    assert system.dropped == 0


# --- a disk that fails ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_counted_told_once_and_never_felt(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    system = start(feeds=[])
    log.get("COLLECTOR").info("daemon_start", number=0)
    system.flush()
    real, full = os.write, threading.Event()

    def write(fd: int, data: bytes) -> int:
        if not full.is_set():
            return real(fd, data)
        if len(data) > 10:
            return real(fd, data[:10])  # the disk takes the beginning of a line, and then nothing
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", write)
    full.set()
    for number in range(1, 4):
        log.get("COLLECTOR").info("daemon_start", number=number)
    system.flush()
    full.clear()
    log.get("COLLECTOR").info("daemon_start", number=4)
    system.stop()
    assert [line.rpartition("] ")[2] for line in lines(tmp_path)] == [
        "수집기 시작 number=0",
        "수집기 시작 number=4",
        "로그를 기록하지 못한 동안 누락된 줄 file=collector lines=3",
    ]
    assert system.dropped == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "No space left on device" in told


def test_a_file_that_can_not_be_cut_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path, "x", 1000, 5, print)
    today = date.today()
    file.write(b"one\n", today)
    real, calls = os.write, 0

    def half(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data[:2])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("os.write", half)
        broken.setattr("os.ftruncate", refuse)
        with pytest.raises(OSError, match="Input"):
            file.write(b"two\n", today)
    file.write(b"three\n", today)
    file.close()
    assert (tmp_path / "x.log").read_bytes() == b"one\ntw\nthree\n"


def test_a_file_that_can_not_be_closed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    file = LogFile(tmp_path, "x", 20, 5, complaints.append)
    for _ in range(10):
        file.write(b"12345678\n", date.today())
    file.close()
    assert (tmp_path / "x.log").read_bytes() == b"12345678\n" * 10
    assert 1 <= len(complaints) < 8
    assert "Permission denied" in complaints[0]


def test_a_folder_that_is_none_stops_the_program_before_it_starts(start: Start, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(ConfigError, match="no log can be written there") as refused:
        start()
    assert "LOG_PATH" in str(refused.value) and "\n" not in str(refused.value)


def test_nobody_waits_for_a_log_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 5)
    hanging, released = threading.Event(), threading.Event()

    def take(event: Event) -> None:
        hanging.set()
        released.wait(30)

    system = start(on_event=take)
    log.get("COLLECTOR").info("daemon_start")
    assert hanging.wait(30)
    for _ in range(25):
        log.get("COLLECTOR").info("daemon_start")
    assert system.dropped == 20
    released.set()
    system.stop()


def test_a_mistake_of_the_log_does_not_end_it(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    system = start()
    with monkeypatch.context() as broken:
        broken.setattr(LogFile, "write", lambda *_: 1 / 0)
        log.get("COLLECTOR").info("daemon_start")
        system.flush()
    log.get("COLLECTOR").info("daemon_stop")
    system.stop()
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 1


# --- the catalogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", TEXTS)
def test_both_languages_say_it_with_the_same_fields(key: str) -> None:
    korean, english = TEXTS[key]
    assert korean.strip() and english.strip()
    assert sorted(fields(korean)) == sorted(fields(english))
    assert template(key, "ko") == korean and template(key, "en") == english
    if key != "library":
        assert re.search("[가-힣]", korean) and english.isascii()


def test_every_reason_an_epoch_ends_has_a_text() -> None:
    assert {f"epoch_{reason}" for reason in REASONS} <= set(TEXTS)


def test_every_event_of_the_program_has_a_text() -> None:
    rooms = ("collector", "controllers", "storage", "commands")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in [*files, *ROOT.glob("run_controller.py")])
    used = set(re.findall(r'log\.(?:debug|info|warning|error|exception)\(\s*"(\w+)"', source))
    assert used, "no event found: the pattern of this test is wrong"
    assert used <= set(TEXTS)


def test_every_event_is_in_the_document() -> None:
    text = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    rows = {row[1]: (row[2], row[3]) for row in re.finditer(r"(?m)^\| `(\w+)` \| (.+) \| (.+) \|$", text)}
    assert rows == {key: pair for key, pair in TEXTS.items() if key != "library"}


def test_local_time_is_what_the_lines_show(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", "Asia/Seoul")
        time.tzset()
        clock = HandClock()
        clock.wall = 1_713_095_400 * 1_000_000  # 2024-04-14 11:50:00 UTC
        start(clock=clock)
        log.get("COLLECTOR").info("daemon_start")
        start().stop()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert any(line.startswith("[2024-04-14 20:50:00] ") for line in lines(tmp_path))
