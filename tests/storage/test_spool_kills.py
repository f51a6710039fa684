"""What a SIGKILL leaves of the spool.

As a program, `python -m tests.storage.test_spool_kills DIRECTORY TIMES SEED`: as often as told, a process appends
batches, drains some, and is killed at a random moment. A line each says what it had been told was stored and what it
had advanced over. Processes are forked, which costs no start of Python each; hence a program of its own.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from collector.records import BookRow, Delivery
from storage.spool import Fsync, Spool, Spooled
from storage.spool_inspect import check
from storage.spool_reader import Read, SpoolReader
from storage.spool_recovery import recover
from storage.store import Batch, Run
from tests.conftest import ROOT

KILLS = 20
RUN = Run("run", "here", "test", 1)


def batch(number: int) -> Batch:
    rows = tuple(BookRow(1, n, n, None, n, 0, '[["1","2"]]' * (number % 7), None) for n in range(number % 40))
    return Batch(RUN, number, (Delivery("upbit", 1, rows, 10),))


def opened(path: Path, fsync: Fsync = "never") -> Spool:
    spool = Spool(path, limit_bytes=64 << 20, segment_bytes=30_000, fsync=fsync)
    spool.open()
    return spool


def work(path: Path, first: int, seed: int, acknowledge: int) -> None:
    """Append from `first` on and drain a little, telling each number as soon as it counts."""
    random, number, taken = Random(seed), first, 0
    spool = opened(path)
    while True:
        spool.append(batch(number))
        os.write(acknowledge, f"+{number}\n".encode())
        number += 1
        if random.random() < 0.3 and (items := spool.peek(random.randrange(1, 4))):
            # The store commits before the spool is told, so this comes first.
            taken = max(item.batch.number for item in items if isinstance(item, Spooled))
            os.write(acknowledge, f"-{taken}\n".encode())
            spool.advance(items[-1].position)


def main(path: Path, times: int, seed: int) -> None:
    random = Random(seed)
    put = taken = 0
    for _ in range(times):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                work(path, put + 1, random.randrange(1 << 30), write)
            finally:
                os._exit(1)
        os.close(write)
        os.set_blocking(read, False)
        told = b""
        lines = random.randrange(1, 300)
        while told.count(b"\n") < lines:
            select.select([read], [], [], 10)
            more = os.read(read, 1 << 16)
            if not more:
                sys.exit("the process ended by itself")
            told += more
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.set_blocking(read, True)
        while more := os.read(read, 1 << 16):
            told += more
        os.close(read)
        for line in told.decode().splitlines():
            put = max(put, int(line[1:])) if line[0] == "+" else put
            taken = max(taken, int(line[1:])) if line[0] == "-" else taken
        put = verified(path, put, taken)
        print(put, taken, flush=True)


def contents(path: Path) -> Iterator[Read]:
    """Read all of a spool without taking anything out."""
    found = recover(path, repair=False)
    reader = SpoolReader(found.segments, found.oldest, found.written, 0)
    while (read := reader.next()) is not None:
        yield read
    reader.close()


def verified(path: Path, put: int, taken: int) -> int:
    """Check that everything acknowledged is there, in order and equal, but for what was taken; return the last one."""
    whole = check(path)
    spool = opened(path)
    items = [read.item for read in contents(path)]
    numbers = [item.batch.number for item in items if isinstance(item, Spooled)]
    assert len(numbers) == len(items) == spool.frames == whole.batches and whole.sound
    assert all(item.batch == batch(item.batch.number) for item in items if isinstance(item, Spooled))
    last = numbers[-1] if numbers else put
    assert numbers == list(range(last - len(numbers) + 1, last + 1))
    assert last in (put, put + 1), (last, put)  # the kill may have come between the frame and the word of it
    assert not numbers or numbers[0] <= taken + 1
    assert numbers or taken >= put
    spool.close()
    return last


def test_what_was_acknowledged_survives_kills(tmp_path: Path) -> None:
    """Fails with `_write` left out of `Tail.write`, with the torn end not cut in `spool_recovery._repair`, or with a
    segment deleted before all of it was advanced over."""
    command = [sys.executable, "-m", "tests.storage.test_spool_kills", str(tmp_path / "s"), str(KILLS), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == KILLS
    assert lines[-1][0] > KILLS * 10


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
