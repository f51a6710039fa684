"""Fifty threads that log while files are closed by size and at midnight: every line is there, once and whole."""

import re
import threading
from pathlib import Path

from collector import log
from tests.fakes import FakeClock
from tests.faults.dose import dose

THREADS = 50
LINES = dose(300, 20_000)  # of each thread
DAY_S = 86_400
LINE = re.compile(r"\[[-0-9]{10} [:0-9]{8}\] \[INFO\] \[GOPAX-BTC\] WebSocket 연결 who=(\d+)-(\d+) text=가{20}")


def test_no_line_is_torn_or_lost(tmp_path: Path) -> None:
    """Mutation: let `LogFile._rotate` forget to open the next file before the line that did not fit is written."""
    clock = FakeClock()
    system = log.setup(
        tmp_path,
        level="INFO",
        language="ko",
        file_bytes=dose(1 << 16, 1 << 20),
        files=10_000,
        stderr=False,
        feeds=[("gopax", "BTC-KRW")],
        clock=clock,
    )

    def talk(thread: int) -> None:
        for number in range(LINES):
            log.get("GOPAX-BTC").info("connect", who=f"{thread}-{number}", text="가" * 20)
            if number % 50 == 49:
                system.flush()  # or more would wait than the queue holds, which costs lines and is told
                if thread == 0 and number % (LINES // 3) < 50:
                    clock.step_wall(DAY_S)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    system.stop()

    assert system.dropped == 0
    wanted = {(str(thread), str(number)) for thread in range(THREADS) for number in range(LINES)}
    for name in ("collector", "GOPAX-BTC"):
        files = sorted(tmp_path.glob(f"{name}.*log"))
        assert len({path.name.removeprefix(f"{name}.")[:10] for path in files if path.stem != name}) >= 3, "days"
        assert len(files) > 6
        lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
        matches = [LINE.fullmatch(line) for line in lines]
        assert [line for line, match in zip(lines, matches, strict=True) if match is None] == [], "torn"
        found = {(match[1], match[2]) for match in matches if match}
        assert found == wanted and len(lines) == len(wanted)
