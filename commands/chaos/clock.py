"""A wall clock for the daemon that can be set while it runs: a small library that is preloaded into its process."""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_AHEAD = struct.Struct("=q")


class NoCompiler(Exception):
    """The library can't be built here; the text says why."""


class SteppedClock:
    """The wall clock of one child process. Raises `NoCompiler` where it can't be made."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise NoCompiler("there is no C compiler (apt install gcc libc6-dev)")
        self._library = folder / "clock.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE)]
        built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if built.returncode:
            raise NoCompiler(f"the compiler failed: {(built.stderr.strip().splitlines() or ['?'])[-1]}")
        self._file = folder / "clock"
        self._file.write_bytes(bytes(_AHEAD.size))
        with self._file.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _AHEAD.size)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the process whose clock this is."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file)}

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back."""
        (ahead_us,) = _AHEAD.unpack_from(self._shared)
        _AHEAD.pack_into(self._shared, 0, ahead_us + int(seconds * 1e6))

    def close(self) -> None:
        """Let the file go."""
        self._shared.close()
