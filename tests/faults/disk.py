"""A disk that fails, hangs, or loses what was not synced, under a process that knows nothing of it.

`disk.c` is preloaded into the process. `Orders` tells it which calls on the files of one folder fail; `read_trace`
gives back what the process did to these files, in order; `PowerCuts` makes out of that what a disk may hold when the
power goes at some moment of it.
"""

import errno
import mmap
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

KINDS = {"open": 1, "read": 2, "write": 4, "sync": 8, "truncate": 16, "unlink": 32, "rename": 64, "map": 128}
CHANGES = tuple(name for name in KINDS if name != "read")
FOR_GOOD = (1 << 63) - 1
_CONTROL = struct.Struct("=qqqiiii")
_HEAD = struct.Struct("=c7xQQII")


class Orders:
    """What the disk under a process does; may be changed while it runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.exists():
            file.write_bytes(bytes(_CONTROL.size))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), _CONTROL.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.hold(False)
        self._shared.close()

    def environment(self, library: Path, folder: Path, trace: Path | None = None) -> dict[str, str]:
        """Return the variables of a process whose files in `folder` are on this disk."""
        found = {
            "LD_PRELOAD": str(library),
            "COLLECTOR_FAULTS_FOLDER": str(folder),
            "COLLECTOR_FAULTS_CONTROL": str(self.file),
        }
        return found | ({"COLLECTOR_FAULTS_TRACE": str(trace)} if trace else {})

    def fail(self, error: int, *, first: int = 1, last: int = FOR_GOOD, kinds: tuple[str, ...] = CHANGES) -> None:
        """Let the calls number `first` to `last`, counted from now, fail with an errno."""
        self._shared[:] = _CONTROL.pack(0, first, last, error, sum(KINDS[kind] for kind in kinds), 0, 0)

    def heal(self) -> None:
        """Let everything succeed again."""
        _CONTROL.pack_into(self._shared, 0, self.calls, 0, 0, 0, 0, 0, 0)

    def hold(self, on: bool) -> None:
        """Let writes and syncs hang, or let them go on."""
        struct.pack_into("=i", self._shared, 32, on)

    @property
    def calls(self) -> int:
        """How many calls of the wanted kinds there were since `fail`."""
        return int(_CONTROL.unpack_from(self._shared)[0])

    @property
    def held(self) -> int:
        """How many calls hang."""
        return int(_CONTROL.unpack_from(self._shared)[6])


def name_of(error: int) -> str:
    """Return `EIO` for 5."""
    return errno.errorcode[error]


# --- what was done to the disk ----------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One call that changed a file: `C`reate, `W`rite, `T`runcate to `offset`, `S`ync, `U`nlink, `R`ename."""

    kind: str
    inode: int
    offset: int
    path: str
    data: bytes


def read_trace(path: Path) -> list[Change]:
    """Return what a process did to the files of its folder, in order."""
    content = path.read_bytes()
    changes, at = [], 0
    while at < len(content):
        kind, inode, offset, name, size = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        changes.append(
            Change(
                kind.decode(), inode, offset, content[at : at + name].decode(), content[at + name : at + name + size]
            )
        )
        at += name + size
    return changes


@dataclass
class _File:
    """`pending` is what no sync has made sure of yet."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.content, change)
        self.pending.clear()


def _apply(content: bytearray, change: Change, length: int | None = None) -> None:
    if change.kind == "T":
        if len(content) > change.offset:
            del content[change.offset :]
        else:
            content.extend(bytes(change.offset - len(content)))
        return
    data = change.data[:length]
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(data)] = data


class PowerCuts:
    """Walks through a trace and tells what a disk may hold when the power goes.

    What was synced is there. Of what was not, each write may be there, be missing, or be there in part, whatever
    became of those before it; names of files come and go in the order in which they were made, up to some point.
    """

    def __init__(self, changes: list[Change], *, seed: int) -> None:
        self._changes = changes
        self._random = random.Random(seed)
        self._files: dict[int, _File] = {}  # by number
        self._numbers: dict[int, int] = {}  # by inode, which a file inherits from one that is gone
        self._sure: dict[str, int] = {}  # what every path leads to after a cut, at least
        self._renamed: list[Change] = []  # changes of names that no sync has made sure of

    def __iter__(self) -> Iterator[Change]:
        """Do one change after another; between two of them the power may be `cut`."""
        for change in self._changes:
            self._do(change)
            yield change

    def _do(self, change: Change) -> None:
        number = self._numbers.get(change.inode, 0)
        match change.kind:
            case "C":
                number = self._numbers[change.inode] = len(self._files) + 1
                self._files[number] = _File()
                self._renamed.append(change._replace(inode=number))
            case "U" | "R":
                self._renamed.append(change)
            case "S":
                if number:
                    self._files[number].sync()
                # A file that is synced has a name, as on every journalling file system.
                if not number or any(entry.inode == number for entry in self._renamed):
                    for entry in self._renamed:
                        _rename(self._sure, entry)
                    self._renamed.clear()
            case _:
                self._files[number].pending.append(change)

    def cut(self, root: Path, folder: Path) -> None:
        """Write into an empty folder what the disk may hold, below `root`, if the power goes now."""
        names = dict(self._sure)
        for entry in self._renamed[: self._random.randint(0, len(self._renamed))]:
            _rename(names, entry)
        for path, number in names.items():
            file = self._files[number]
            content = bytearray(file.content)
            fate = self._random.choice(("lost", "kept", "first ones", "any"))
            there = self._random.randint(0, len(file.pending)) if fate == "first ones" else len(file.pending)
            for at, change in enumerate(file.pending):
                if fate == "lost" or at > there or (fate == "any" and self._random.random() < 0.5):
                    continue
                torn = at == there or (fate == "any" and self._random.random() < 0.2)
                _apply(content, change, self._random.randint(0, len(change.data)) if torn else None)
            copy = folder / Path(path).relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)


def _rename(names: dict[str, int], change: Change) -> None:
    if change.kind == "C":
        names[change.path] = change.inode
    elif change.kind == "U":
        names.pop(change.path, None)
    elif change.path in names:
        names[change.data.decode()] = names.pop(change.path)
