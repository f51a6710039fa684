"""One log file that is closed at a size and at local midnight.

The file being written is `NAME.log`; closed ones are `NAME.2024-04-14-001.log`, numbered within their day, and the
newest `kept` of them stay. A line is in the file whole or not at all: one that the disk took only in part is cut off
again. Used by one thread at a time.
"""

import os
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class LogFile:
    """A file of at most about `file_bytes`, with `kept` closed ones beside it.

    `complain` is told in one line what went wrong without costing a line of the log.
    """

    def __init__(self, folder: Path, name: str, file_bytes: int, kept: int, complain: Callable[[str], None]) -> None:
        self.path = folder / f"{name}.log"
        self._closed_name = re.compile(re.escape(name) + r"\.(\d{4}-\d\d-\d\d)-(\d{3,})\.log")
        self._name = name
        self._file_bytes = file_bytes
        self._kept = kept
        self._complain = complain
        self._fd = -1
        self._size = 0
        self._size_max = file_bytes
        self._day = date.min

    def open(self, today: date) -> None:
        """Open the file, going on where the last run left off; raises `OSError`."""
        self._fd = os.open(self.path, _FLAGS, 0o640)
        found = os.fstat(self._fd)
        self._size, self._size_max = found.st_size, self._file_bytes
        self._day = date.fromtimestamp(found.st_mtime) if found.st_size else today
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":  # the last run ended within a line
            self._size += os.write(self._fd, b"\n")

    def write(self, line: bytes, today: date) -> None:
        """Append one line, in a new file where the old one is full or of another day.

        Raises `OSError`, and then nothing of the line is in the file.
        """
        if self._fd < 0:
            self.open(today)
        if self._size and (self._size + len(line) > self._size_max or self._is_over(today)):
            self._rotate(today)
        elif not self._size:
            self._day = today
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            self._cut()
            raise
        self._size += len(line)

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_over(self, today: date) -> bool:
        # A day back is no new day: lines of two threads may pass each other at midnight.
        return today > self._day or today < self._day - timedelta(days=1)

    def _rotate(self, today: date) -> None:
        try:
            number = 1 + max((number for day, number, _ in self._closed() if day == str(self._day)), default=0)
            self.path.rename(self.path.with_name(f"{self._name}.{self._day}-{number:03d}.log"))
            self.close()
            for _, _, path in self._closed()[: -self._kept]:
                path.unlink(missing_ok=True)
        except OSError as error:  # better a file that is too long than lost lines; tried again when as much is added
            self._complain(f"log: {self.path} can't be closed and goes on: {error.strerror}\n")
            self._size_max, self._day = self._size + self._file_bytes, today
        if self._fd < 0:
            self.open(today)

    def _closed(self) -> list[tuple[str, int, Path]]:
        """Return the closed files, oldest first."""
        found = []
        for path in self.path.parent.iterdir():
            if match := self._closed_name.fullmatch(path.name):
                found.append((match[1], int(match[2]), path))
        return sorted(found)

    def _cut(self) -> None:
        """Take back what was written of a line that did not fit."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:  # the disk takes nothing at all now: start again with whatever the file then holds
            self.close()
