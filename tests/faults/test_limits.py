"""The process has no more of something: descriptors, memory, threads. It says so, does what it can, and recovers."""

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator import Simulator
from simulator.judge import judge
from tests.conftest import wait_until
from tests.faults.child import START_S, Daemon, options
from tests.faults.dose import NIGHTLY, dose

TIMES = dose(1, 10)
BACK_S = 30
EXCHANGES = ("upbit", "bithumb", "coinone", "korbit", "gopax")


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Five exchanges, with a ledger."""
    with Simulator(EXCHANGES, ("BTC-KRW",), rate_hz=20, ledger=tmp_path / "ledger") as running:
        yield running


def ends_well(daemon: Daemon, simulator: Simulator, ledger: Path) -> None:
    """Stop everything and let the judge see; a frame that no memory was left to read is kept raw, if at all."""
    assert daemon.stop() == 0
    simulator.stop()
    verdict = judge(ledger, daemon.database)
    assert not verdict.missing, "\n".join([str(verdict), *verdict.notes])
    assert [note for note in verdict.notes if "was rejected" not in note] == [], str(verdict)


def test_sixty_four_descriptors_are_enough_and_none_left_is_borne(
    simulator: Simulator, tmp_path: Path, daemons: list[Daemon]
) -> None:
    """Mutation: leave `EpochEnded` out of `HeardFeed._ended`; in `make faults` also the error out of `Connection`."""
    daemon = Daemon(tmp_path, options(simulator))
    daemons.append(daemon)
    daemon.before = ["prlimit", "--nofile=64:4096"]
    daemon.start()
    daemon.goes_on(frames=50)
    wait_until(lambda: len({*daemon.rows("SELECT feed FROM epoch")}) == 5, START_S, "five exchanges")
    assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < 64
    for time in range(TIMES):
        before = daemon.heard("upbit")
        # 1. No descriptor is to be had, and one is needed.
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, 4096))
        simulator.fault("disconnect", "upbit")
        wait_until(lambda wanted=time: "disconnect" in daemon.reasons()[wanted:], START_S, "the gap is declared")  # type: ignore[misc]
        if NIGHTLY:  # once a minute, since the loss of the connection was said before it
            wait_until(lambda: daemon.logged("WebSocket error: could not connect: [Errno 24]"), 90, "and said")
        # 2. Whoever has what it needs goes on, the store as well.
        daemon.goes_on(exchange="coinone")
        assert simulator.connections("upbit") == 0
        # 3. There are some again.
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (64, 4096))
        wait_until(lambda wanted=before + 20: daemon.heard("upbit") >= wanted, BACK_S, "upbit is back")  # type: ignore[misc]
    ends_well(daemon, simulator, tmp_path / "ledger")


def test_no_more_memory(simulator: Simulator, tmp_path: Path, daemons: list[Daemon]) -> None:
    """Not a page more than it has, while every connection is lost again and again.

    Mutation: start a `threading.Timer` for each `Connection`: `start` waits for ever for a thread that died being born.
    """
    daemon = Daemon(tmp_path, options(simulator))
    daemons.append(daemon)
    daemon.start()
    daemon.goes_on(frames=50)
    unlimited = resource.prlimit(daemon.pid, resource.RLIMIT_AS)
    for _ in range(TIMES):
        heard = {exchange: daemon.heard(exchange) for exchange in EXCHANGES}
        ended = len(daemon.reasons())
        size = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (size, unlimited[1]))
        for _ in range(3):
            simulator.fault("disconnect")
            threading.Event().wait(0.3)  # how far they come is left open
        wait_until(lambda wanted=ended: len(daemon.reasons()) > wanted, START_S, "a gap is declared")  # type: ignore[misc]

        resource.prlimit(daemon.pid, resource.RLIMIT_AS, unlimited)

        for exchange in EXCHANGES:
            wait_until(
                lambda exchange=exchange, wanted=heard[exchange] + 20: daemon.heard(exchange) >= wanted,  # type: ignore[misc]
                BACK_S,
                f"{exchange} is back",
            )
    ends_well(daemon, simulator, tmp_path / "ledger")
