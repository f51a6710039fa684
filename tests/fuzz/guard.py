"""Limits on what one piece of work may take; processor time and memory, so that a busy machine changes nothing."""

import gc
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tests.fuzz.breach import Breach, Stuck, TooSlow, require

CPU_S_MAX = 0.1  # for one frame, everything that is done with it
CPU_S_HANGING = 20.0
MEMORY_KIB_MAX = 64 << 10


@contextmanager
def ended() -> Iterator[None]:
    """End work that takes far too long by raising `Stuck` in it; on the main thread only."""

    def stuck(_: int, __: FrameType | None) -> None:
        raise Stuck(f"no end after {CPU_S_HANGING:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stuck)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def forget_peak() -> None:
    """Let the highest use of memory count from here on, where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def resident_kib() -> int:
    """Return the memory that this process holds now; nought where the system does not tell (Linux does)."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize() >> 10


class Guard:
    """Measures pieces of work; `slowest_s` is the longest so far."""

    def __init__(self, cpu_s_max: float = CPU_S_MAX) -> None:
        self.slowest_s = 0.0
        self._cpu_s_max = cpu_s_max
        forget_peak()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raise `Breach` when what is done inside took too much, or did not end."""
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_HANGING)
        gc.disable()  # what it clears away is not this frame's
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began_s = time.thread_time()
        try:
            yield
        except Stuck as stuck:
            raise Breach(str(stuck)) from None
        finally:
            took_s = time.thread_time() - began_s
            gc.enable()
        if took_s > self._cpu_s_max:
            raise TooSlow(f"it took {took_s:.2f} s of processor time")
        self.slowest_s = max(self.slowest_s, took_s)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        require(grown <= MEMORY_KIB_MAX, f"memory grew by {grown >> 10} MiB")
