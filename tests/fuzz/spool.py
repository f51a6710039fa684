"""Spoils the files of the spool, and looks at what comes out of it.

Whatever happened to the files: no error, no batch that was never put in, none twice, none out of its place, and a hole
wherever one is missing between two that are there. What was said to wait when it was opened is what came out or was
told as lost. (What is missing before the first batch may have been drained, what is missing behind the last may never
have been written: of that nothing on the disk tells.)
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from collector.records import BookRow, CoverageMark, Delivery, EpochEnded, EpochOpened, Event, Record, Rejected
from storage import spool_format
from storage.spool import Hole, Spool, Spooled
from storage.spool_format import MARKER, Tally, plus
from storage.store import Batch, Run
from tests.fakes import FakeClock
from tests.fuzz.breach import Stuck, Violation, require, surely
from tests.fuzz.guard import Guard, ended

CPU_S_MAX = 2.0
BATCHES = 18
LIMIT_BYTES = 1 << 20
SEGMENT_BYTES = 3000
RUN = Run("run", "one", "test", 1)

Files = dict[str, bytes]


def fuzz(
    mutations: int,
    folder: Path,
    seed: int = 0,
    *,
    guard: Guard | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Counter[str]:
    """Read spoiled spools, number i drawn from `seed + i`; count what came out. Raises `Violation`."""
    guard = guard or Guard(CPU_S_MAX)
    written = {dropped: _written(folder / f"written-{dropped}", dropped=dropped) for dropped in (0, 2)}
    counts: Counter[str] = Counter(dict.fromkeys(("frames", "stored", "holes"), 0))
    with ended():
        for number in range(mutations):
            counts["frames"] += 1
            counts.update(surely(partial(_looked_at, seed + number, written, folder / "spoiled", guard)))
            if number % 500 == 499:
                progress(counts["frames"])
    return counts


def _looked_at(seed: int, written: dict[int, Files], folder: Path, guard: Guard) -> Counter[str]:
    draw = random.Random(f"{seed}/spool")
    files = dict(written[draw.choice((0, 0, 0, 2))])
    faults = [_spoil(files, draw) for _ in range(draw.choice((1, 1, 1, 2, 3, 6)))]
    try:
        with guard.watch():
            for data in files.values():
                spool_format.fuzz(data)
            return _read(folder, files, appending=draw.random() < 0.3)
    except (Exception, Stuck) as problem:
        raise Violation("spool", seed, 1, "; ".join(faults).encode(), problem) from problem


# --- what is put in ---------------------------------------------------------------------------------------------------


def batch(number: int) -> Batch:
    """Return a batch as a busy collector makes them, with bytes in it that look like the spool's own."""
    rows: list[Record] = [BookRow(1, n, n, None, None, 0, '[["1.5","2"]]' * n, None) for n in range(1, number % 7 + 2)]
    raw = MARKER * 3 + bytes(range(256)) + MARKER
    records: tuple[Record, ...] = (
        EpochOpened(number, "UPBIT", "BTC-KRW", "orderbook", "websocket", number),
        *rows,
        CoverageMark(number, number, number, 1),
        Rejected("upbit", None, number, "no JSON", raw),
        EpochEnded(number, number, "stop"),
        Event(number, "INFO", "UPBIT-BTC", "값"),
    )
    return Batch(RUN, number, (Delivery("upbit", number, records, 1000, 1, number), Delivery("gopax", 2, (), 0)))


def _counts(one: Batch) -> Tally:
    head, _ = spool_format.encode(one, 1, 0)
    return head.counts


def _spool(path: Path) -> Spool:
    return Spool(path, limit_bytes=LIMIT_BYTES, segment_bytes=SEGMENT_BYTES, fsync="never", clock=FakeClock())


def _written(path: Path, *, dropped: int) -> Files:
    spool = _spool(path)
    spool.open()
    for number in range(1, BATCHES + 1):
        spool.append(batch(number))
        if number == BATCHES // 2:
            for _ in range(dropped):
                assert spool.drop_oldest() is not None
    spool.close()
    return {file.name: file.read_bytes() for file in path.iterdir() if file.stat().st_size}


# --- faults -----------------------------------------------------------------------------------------------------------


def _spoil(files: Files, draw: random.Random) -> str:
    """Do one thing to one of the files; say what."""
    name, other = draw.choice(sorted(files)), draw.choice(sorted(files))
    data = files[name]
    at = draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 4, 20, 512, 4096)))
    fault = draw.choice(tuple(_FAULTS))
    if fault in ("delete", "rename") and len(files) < 2:
        fault = "flip"
    match fault:
        case "flip":
            at = min(at, len(data) - 1)
            files[name] = (
                data[: max(at, 0)]
                + bytes(byte ^ (1 << draw.randrange(8)) for byte in data[at : at + 1])
                + data[at + 1 :]
            )
        case "zeroes":
            files[name] = data[:at] + bytes(end - at) + data[end:]
        case "noise":
            files[name] = data[:at] + draw.randbytes(end - at) + data[end:]
        case "insert":
            files[name] = data[:at] + draw.choice((MARKER, draw.randbytes(9), data[at:end])) + data[at:]
        case "remove":
            files[name] = data[:at] + data[end:]
        case "shorten":
            files[name] = data[:at]
        case "append":
            files[name] = data + draw.choice((MARKER, bytes(4096), files[other]))
        case "delete":
            del files[name]
        case "rename":
            files[
                f"{draw.choice((0, 1, 3, 50, 9_999_999_999)):010d}.{draw.choice(('spool', 'dropped', 'damaged'))}"
            ] = files.pop(name)
        case "exchange":
            files[name], files[other] = files[other], data
        case "copy":
            files[other] = data
        case "cross":
            files[name] = data[:at] + files[other][at:]
    return f"{fault} {name} {at}..{end} {other}"


_FAULTS = (
    "flip", "flip", "flip", "zeroes", "zeroes", "noise", "insert", "remove", "shorten", "append", "delete", "rename",
    "exchange", "copy", "cross",
)  # fmt: skip


# --- what comes out ---------------------------------------------------------------------------------------------------


def _read(path: Path, files: Files, *, appending: bool) -> Counter[str]:
    path.mkdir(exist_ok=True)
    for file in path.iterdir():
        file.unlink()
    for name, data in files.items():
        (path / name).write_bytes(data)
    spool = _spool(path)
    spool.open()
    more = [batch(number) for number in range(BATCHES + 1, BATCHES + 4)] if appending else []
    for one in more:
        spool.append(one)
    waiting = spool.waiting
    items: list[Spooled | Hole] = []
    while found := spool.peek(3):
        items += found
        spool.advance(found[-1].position)
        require(len(items) <= 4 * BATCHES, "it does not end")
    require(spool.empty and not spool.frames and not spool.waiting, "something waits that does not come")
    spool.close()
    _check(items, waiting, more)
    holes = sum(isinstance(item, Hole) for item in items)
    return Counter(stored=len(items) - holes, holes=holes)


def _check(items: list[Spooled | Hole], waiting: Tally, more: list[Batch]) -> None:
    told: Tally = {}
    last, missing, hole = 0, 0, True
    for item in items:
        if isinstance(item, Hole):
            missing += item.batches
            require(item.before is None or item.before.number == last, "a hole that is somewhere else")
            told, hole = plus(told, item.lost), True
            continue
        number = item.batch.number
        require(item.batch == batch(number), f"batch {number} is not what was put in")
        require(number > last, f"batch {number} after {last}")
        require(not last or missing < number - last, f"{missing} told as missing between {last} and {number}")
        told_of = hole or number == last + 1 or last <= BATCHES < number  # between them stood the end
        require(told_of, f"nothing tells what is missing between {last} and {number}")
        told, last, missing, hole = plus(told, _counts(item.batch)), number, 0, False
    require(told == waiting, f"{waiting} waited, {told} was told")
    require(not more or last == more[-1].number, "what was put in afterwards does not come")
