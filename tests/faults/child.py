"""The daemon as a child process that can be given a bad disk, a bad clock, or a bad network."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator import Simulator
from tests.conftest import ROOT, wait_until
from tests.e2e.daemon import Child

START_S = 30


class Daemon(Child):
    """A daemon whose settings may be added to section by section; `before` is what its command follows."""

    def __init__(self, folder: Path, exchanges: Mapping[str, object], **sections: Mapping[str, object]) -> None:
        super().__init__(folder, exchanges)
        settings: dict[str, Any] = json.loads(self.config.read_text())
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}
        self.config.write_text(json.dumps(settings))
        self.database = Path(settings["storage"]["path"])
        self.log_file = Path(settings["log"]["path"]) / "collector.log"
        self.before: Sequence[str] = ()

    def start(self, arguments: Sequence[str] = (), **environment: str) -> None:
        """Start the program."""
        program = [sys.executable, str(ROOT / "run_controller.py"), "--config", str(self.config), *arguments]
        self.process = subprocess.Popen(
            [*self.before, *program],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stderr=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it is still there."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        """The log so far."""
        return self.log_file.read_text("utf-8") if self.log_file.exists() else ""

    def must_run(self) -> None:
        """Fail, with what it said last, where it is gone."""
        if not self.runs:
            assert self.process is not None and self.process.stderr is not None
            said = "" if self.process.stderr.closed else self.process.stderr.read().decode("utf-8", "replace")
            raise AssertionError(f"the daemon ended with {self.process.returncode}\n{self.log[-3000:]}{said}")

    def logged(self, text: str, times: int = 1) -> bool:
        """Whether the log has a text so often; fails where the daemon is gone."""
        self.must_run()
        return self.log.count(text) >= times

    def rows(self, sql: str) -> list[Any]:
        """Return what the database says, nothing while it can't be asked."""
        import sqlite3

        try:
            db = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        except sqlite3.Error:
            return []
        try:
            return db.execute(sql).fetchall()
        except sqlite3.Error:
            return []
        finally:
            db.close()

    def heard(self, exchange: str) -> int:
        """Count the data frames of an exchange that are accounted for."""
        sql = (
            "SELECT coalesce(sum(c.frames), 0) FROM coverage c JOIN epoch e ON e.id = c.epoch "
            f"JOIN feed f ON f.id = e.feed JOIN exchange x ON x.id = f.exchange WHERE x.name = '{exchange.upper()}'"
        )
        return sum(row[0] for row in self.rows(sql))

    def goes_on(self, frames: int = 20, seconds: float = START_S, exchange: str | None = None) -> None:
        """Return when so many more frames are stored than now."""
        count = self.frames if exchange is None else lambda: self.heard(exchange)
        before = count()

        def more() -> bool:
            self.must_run()
            return count() >= before + frames

        wait_until(more, seconds, f"{frames} more frames{f' of {exchange}' if exchange else ''}")

    def reasons(self) -> list[str]:
        """Return why epochs ended so far, in their order."""
        return [row[0] for row in self.rows("SELECT reason FROM epoch WHERE reason IS NOT NULL ORDER BY ended_us")]

    def stop(self) -> int:
        """Ask it to end and return its exit status."""
        self.send(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End it whatever it does."""
        if self.runs:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
        if self.process is not None and self.process.stderr is not None and not self.process.stderr.closed:
            self.wait()


def options(simulator: Simulator, **more: object) -> dict[str, object]:
    """Return the settings of a simulator's exchanges; delays are short."""
    backoff = {"base_s": 0.05, "cap_s": 0.2}
    return {name: {"endpoint": endpoint, "backoff": backoff, **more} for name, endpoint in simulator.endpoints.items()}
