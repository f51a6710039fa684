"""The disk under the running daemon is full, read-only or broken for a while, and then it is well again.

The daemon neither ends nor spoils a file, goes on within ten seconds, and every message is accounted for. A disk that
the log can't be written to never stops data.
"""

import contextlib
import errno
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import wait_until
from tests.faults.child import Daemon, options
from tests.faults.disk import Orders
from tests.faults.dose import dose

OUTAGE_S = dose(0.5, 40)
CYCLES = dose(1, 5)
RESUMES_S = 12  # ten are promised; the rest is for the commit and for this machine


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Two exchanges, with a ledger."""
    with Simulator(["upbit", "coinone"], ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger") as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of eight megabytes."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave not one byte free; return the file to delete."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


@contextlib.contextmanager
def outage(daemon: Daemon) -> Iterator[None]:
    """Wait after the body until the daemon has noticed, and some time more: nothing is to happen that could be seen."""
    noticed = daemon.log.count("writing failed")
    yield
    wait_until(lambda: daemon.logged("writing failed", noticed + 1), 90, "a word of it")  # repeated once a minute
    threading.Event().wait(OUTAGE_S)


def ends_well(daemon: Daemon, simulator: Simulator, ledger: Path) -> None:
    """Stop everything and let the judge see."""
    assert daemon.stop() == 0
    simulator.stop()
    verdict = judge(ledger, daemon.database)
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert verdict.stored > 10


@pytest.mark.parametrize("spool", ["beside it", "elsewhere"])
def test_a_full_disk_under_the_database(
    spool: str, simulator: Simulator, small_disk: Path, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Mutation: let the writer forget its batch when a write fails (`self._batch = None` before it is kept)."""
    storage: dict[str, object] = {"path": str(small_disk / "db")}
    if spool == "elsewhere":
        storage["spool"] = {"path": str(tmp_path / "spool")}
    daemon = Daemon(tmp_path, options(simulator), storage=storage)
    daemons.append(daemon)
    daemon.start()
    daemon.goes_on()
    for _ in range(CYCLES):
        with outage(daemon):
            ballast = fill(small_disk)
        ballast.unlink()

        daemon.goes_on(seconds=RESUMES_S)
    wait_until(lambda: daemon.logged("writing works again", CYCLES), 10, "a word of every end")
    assert daemon.reasons() == [], "what memory or the spool held is no gap"
    ends_well(daemon, simulator, tmp_path / "ledger")


def test_a_full_disk_under_the_spool(
    simulator: Simulator, small_disk: Path, preload: Callable[[str], Path], tmp_path: Path, daemons: list[Daemon]
) -> None:
    """The database is away and the spool has no room: it waits in memory, and then in one of the two.

    Mutation: let `Backlog.keep` count a batch that `Spool.append` refused.
    """
    disk = tmp_path / "other"
    disk.mkdir()
    storage = {"path": str(disk / "db"), "spool": {"path": str(small_disk / "spool")}}
    daemon = Daemon(tmp_path, options(simulator), storage=storage)
    daemons.append(daemon)
    with Orders(tmp_path / "orders") as orders:
        daemon.start(**orders.environment(preload("disk"), disk))
        daemon.goes_on()
        for first in dose(["spool"], ["spool", "database"] * CYCLES):
            with outage(daemon):
                ballast = fill(small_disk)
                orders.fail(errno.EIO)
            if first == "spool":
                ballast.unlink()
                wait_until(lambda: any((small_disk / "spool").glob("*.spool*")), RESUMES_S, "the spool takes it")
                orders.heal()
            else:
                orders.heal()
                ballast.unlink()

            daemon.goes_on(seconds=RESUMES_S)
        assert daemon.reasons() == [], "what memory or the spool held is no gap"
        ends_well(daemon, simulator, tmp_path / "ledger")


def test_a_full_disk_under_the_log_never_stops_data(
    simulator: Simulator, small_disk: Path, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Mutation: let `_Writer._write` of `collector/log.py` raise what it catches, or write from the caller's thread."""
    daemon = Daemon(tmp_path, options(simulator), log={"path": str(small_disk / "logs"), "level": "INFO"})
    daemons.append(daemon)
    daemon.start()
    daemon.goes_on()
    ballast = fill(small_disk)
    full = ""
    while daemon.log != full:  # the last page it has may take a few lines more
        full = daemon.log
        for _ in range(dose(2, 100)):  # something to say
            simulator.fault("disconnect", "upbit")
            daemon.goes_on(frames=5, exchange="upbit")
    daemon.goes_on()

    ballast.unlink()

    simulator.fault("disconnect", "upbit")
    wait_until(lambda: daemon.logged("lines lost while the log could not be written"), RESUMES_S, "the log goes on")
    assert daemon.log.startswith(full) and full.endswith("\n"), "no line is there in part"
    ends_well(daemon, simulator, tmp_path / "ledger")


def test_files_that_may_not_grow(simulator: Simulator, tmp_path: Path, daemons: list[Daemon]) -> None:
    """What can be had without root: a limit on the size of files, which fails a write with EFBIG."""
    daemon = Daemon(tmp_path, options(simulator))
    daemons.append(daemon)
    daemon.start()
    daemon.goes_on()
    for _ in range(CYCLES):
        size = daemon.database.with_name(daemon.database.name + "-wal").stat().st_size
        unlimited = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        with outage(daemon):
            resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))

        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, unlimited)

        daemon.goes_on(seconds=RESUMES_S)
    ends_well(daemon, simulator, tmp_path / "ledger")


@pytest.mark.parametrize("error", dose([errno.EROFS], [errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT]))
def test_a_disk_that_turns_read_only(
    error: int, simulator: Simulator, preload: Callable[[str], Path], tmp_path: Path, daemons: list[Daemon]
) -> None:
    """As the kernel turns a file system it has lost its trust in; nobody else can while files are open in it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    daemon = Daemon(tmp_path, options(simulator), storage={"path": str(disk / "db")})
    daemons.append(daemon)
    with Orders(tmp_path / "orders") as orders:
        daemon.start(**orders.environment(preload("disk"), disk))
        daemon.goes_on()
        for _ in range(CYCLES):
            with outage(daemon):
                orders.fail(error)

            orders.heal()

            daemon.goes_on(seconds=RESUMES_S)
        ends_well(daemon, simulator, tmp_path / "ledger")
