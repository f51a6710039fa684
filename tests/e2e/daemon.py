"""Running the real daemon as a child process beside a simulator, for tests that kill it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A daemon in a process of its own; `program` may name another script than run_controller.py."""

    def __init__(
        self, folder: Path, exchanges: Mapping[str, object], *, program: Path = ROOT / "run_controller.py"
    ) -> None:
        self.folder = folder
        self.database = folder / "collector.sqlite"
        self.config = folder / "collector.yaml"
        settings = {
            "language": "en",
            "exchanges": exchanges,
            "storage": {"path": str(self.database), "batch_ms": 50},
            "log": {"path": str(folder / "logs"), "stderr": False},
            "metrics": {"enabled": False},
        }
        self.config.write_text(json.dumps(settings))  # JSON is YAML
        self._program = program
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str] = (), **environment: str) -> None:
        """Start the program."""
        command = [sys.executable, str(self._program), "--config", str(self.config), *arguments]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stderr=subprocess.PIPE
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        """Return its exit status."""
        assert self.process is not None
        _, stderr = self.process.communicate(timeout=seconds)
        sys.stderr.write(stderr.decode("utf-8", "replace"))
        return self.process.returncode

    def epochs_with_data(self) -> int:
        """Count the epochs whose coverage holds more than a few frames."""
        return self._ask("SELECT count(*) FROM coverage WHERE frames > 2")

    def frames(self) -> int:
        """Count the data frames that are accounted for."""
        return self._ask("SELECT coalesce(sum(frames), 0) FROM coverage")

    def _ask(self, sql: str) -> int:
        if not self.database.exists():
            return 0
        try:
            db = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        except sqlite3.Error:
            return 0
        try:
            return int(db.execute(sql).fetchone()[0])
        except sqlite3.Error:
            return 0  # not migrated yet
        finally:
            db.close()
