"""The daemon of a chaos run: a child process that is started again whenever it ends, and everything done to it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from collector.settings import CONFIG_VARIABLE, PATH_VARIABLES, SECRET_VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ("-m", "commands.chaos.child")
SETTINGS = "collector.yaml"
# Variables that would tell the daemon something else than the run does.
FOREIGN = (CONFIG_VARIABLE, *PATH_VARIABLES, *SECRET_VARIABLES, "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
END_S = 30.0
SMALL_BYTES = 4096  # what every file may have while the disk is full under the database alone


class ChildDaemon:
    """The daemon in a folder that holds its settings.

    `program` is what Python is given to run it; another one than ours has to take its orders as well. `problems` says
    what it did that nobody asked for.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], program: Sequence[str] = ()) -> None:
        self.problems: list[str] = []
        self.starts = 0
        self._folder, self._program = folder, program or PROGRAM
        self._environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        self._environment |= {"PYTHONPATH": str(ROOT), **environment}
        self._errors = (folder / "daemon.err").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self._may_end_with: set[int] = set()
        self._asked: list[str] = []
        self._limit: tuple[int, int] | None = None

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, *self._program, "--config", SETTINGS],
            cwd=self._folder, env=self._environment, stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors,
        )  # fmt: skip
        self.starts += 1
        self._may_end_with, self._asked = set(), []
        if self._limit is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, self._limit)

    def look_after(self) -> subprocess.Popen[bytes]:
        """Start it again where it has ended, and note an end that nobody asked for; return its process."""
        process = self._process
        if process is None or process.poll() is not None:
            if process is not None:
                self._ended(process)
            self.start()
        assert self._process is not None
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode not in self._may_end_with:
            asked = ", ".join(self._asked) or "nothing"
            self.problems.append(f"the daemon ended with status {process.returncode}, asked to: {asked}")

    def end(self) -> None:
        """Let it end in order, for good."""
        process = self.look_after()
        process.terminate()
        try:
            status = process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.problems.append(f"the daemon did not end within {END_S:g} s of SIGTERM")
            process.kill()
            status = process.wait()
        if status:
            self.problems.append(f"the daemon's last exit status was {status}")

    def close(self) -> None:
        """Leave no process behind."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._errors.close()

    # --- what is done to it -------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Send it SIGKILL."""
        process = self.look_after()
        self._ask("kill", -signal.SIGKILL, 0)
        process.kill()
        process.wait()

    def terminate(self) -> None:
        """Send it SIGTERM, and do not wait."""
        process = self.look_after()
        self._ask("term", 0)
        if not _catches(process.pid, signal.SIGTERM):
            self._ask("term before it listens", -signal.SIGTERM)  # it ends by the signal itself: nothing has begun
        process.terminate()

    def end_thread(self, name: str, nth: int) -> bool:
        """Let one of its threads die; False where it takes no orders now."""
        process = self.look_after()
        if name == "writer":
            self._ask("writer", 1)  # the process ends for a fresh start
        try:
            assert process.stdin is not None
            process.stdin.write(f"{name} {nth}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def fill_disk(self, what: str) -> None:
        """Forbid its files to grow: all of them ("everything"), or those that are as large as the database."""
        process = self.look_after()
        sizes = [file.stat().st_size for file in self._folder.glob("collector.sqlite*")]
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        self._limit = max([SMALL_BYTES, *sizes]) if what == "database" else 1, hard
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, self._limit)

    def heal_disk(self) -> None:
        """Let them grow again."""
        limit, self._limit = self._limit, None
        if limit is not None and self._process is not None and self._process.poll() is None:
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (limit[1], limit[1]))

    def _ask(self, what: str, *statuses: int) -> None:
        self._asked.append(what)
        self._may_end_with |= set(statuses)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
