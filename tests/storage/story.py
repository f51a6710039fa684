"""Batches that two stores are given alike: some days of several feeds, with everything that happens to an epoch."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from collector.records import (
    CROSSED,
    KEYFRAME,
    BookRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    RecordsLost,
    Rejected,
)
from storage.store import Batch, Run, Store

DAY_US = 86_400_000_000
S = 1_000_000
DAY = 20_000  # a day in 2024
MIDNIGHT = DAY * DAY_US

FEEDS = (("UPBIT", "BTC-KRW"), ("UPBIT", "ETH-KRW"), ("GOPAX", "BTC-KRW"))
REASONS = ("disconnect", "stale", "sequence", "checksum", "rejected", "probe", "stop", "superseded")


def batch(run: Run, number: int, *records: Record) -> Batch:
    return Batch(run, number, (Delivery("upbit", len(records), records, 100),))


def write_all(store: Store, batches: Iterable[Batch]) -> None:
    """Write batches as a collector does, each run closed where the story says so (by a batch without records)."""
    for item in batches:
        if item.deliveries:
            assert store.write(item, item.run.started_us + item.number) == 0
        else:
            store.close_run(item.run, item.run.started_us + item.number)


def story(seed: int, *, runs: int = 3, epochs: int = 4, rows: int = 30, days: int = 3) -> Iterator[Batch]:
    """Yield the batches of some runs one after another; in each, every feed has some epochs, one at a time.

    An epoch has rows up to hours apart, some of them complete books, a hole now and then, and ends for any reason or
    not at all. A batch without records stands for the orderly end of a run.
    """
    dice = random.Random(seed)
    length_us = days * DAY_US // runs
    for index in range(runs):
        started_us = MIDNIGHT + index * length_us
        run = Run(f"run {index}", "here", "1.2.3", started_us)
        lines = [
            list(_feed(dice, feed, number, started_us, length_us, epochs, rows)) for number, feed in enumerate(FEEDS)
        ]
        number = 0
        numbers: dict[int, int] = {}
        while any(lines):
            number += 1
            records: list[Record] = []
            for line in dice.sample(lines, len(lines)):
                count = dice.randrange(12)
                records += [_numbered(record, numbers) for record in line[:count]]
                del line[:count]
            if dice.random() < 0.3:
                records.append(Event(started_us + number, "INFO", "TAG", f"batch {number}"))
            if dice.random() < 0.2:
                records.append(Rejected("upbit", "BTC-KRW", started_us + number, "no JSON", b"\x00\xff{"))
            if records:
                yield batch(run, number, *records)
        if dice.random() < 0.3:
            number += 1
            yield batch(run, number, RecordsLost("no_space"))
        elif dice.random() < 0.7:
            yield Batch(run, number + 1, ())


def _numbered(record: Record, numbers: dict[int, int]) -> Record:
    # Epochs count in the order they open, so that ids are alike wherever a database gives them out in this order.
    if isinstance(record, EpochOpened):
        numbers[record.epoch] = len(numbers) + 1
    return msgspec.structs.replace(record, epoch=numbers[record.epoch])  # type: ignore[union-attr]


def _feed(
    dice: random.Random, feed: tuple[str, str], place: int, started_us: int, length_us: int, epochs: int, rows: int
) -> Iterator[Record]:
    moment_us = started_us + dice.randrange(S)
    for index in range(epochs):
        epoch = 1 + place + index * len(FEEDS)
        opened_us = moment_us
        verdict = dice.choice(("unverified", "linked", "checksummed", "compared"))
        yield EpochOpened(epoch, *feed, "orderbook", dice.choice(("websocket", "rest")), opened_us, 15, verdict)
        book: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}
        n = 0
        for count in range(dice.randrange(1, rows)):
            n += 1 + (dice.random() < 0.03)  # now and then one is missing
            row = _row(dice, book, epoch, n, moment_us - opened_us, complete=count == 0 or dice.random() < 0.15)
            yield row
            if dice.random() < 0.5:
                confirmed_us = opened_us + (moment_us - opened_us) * dice.choice((8, 10)) // 10
                yield CoverageMark(epoch, moment_us, confirmed_us, count + 1)
            moment_us += _pause_us(dice, length_us // epochs // rows)
        yield CoverageMark(epoch, moment_us, moment_us - dice.randrange(S), n)
        if dice.random() < 0.2:
            yield EpochVerdict(epoch, "unverified")
        if index < epochs - 1 or dice.random() < 0.5:
            ended_us = moment_us - dice.choice((0, 0, 5 * S))
            yield EpochEnded(epoch, max(ended_us, opened_us), dice.choice(REASONS))
        moment_us += _pause_us(dice, length_us // epochs // 4)


def _pause_us(dice: random.Random, most_us: int) -> int:
    return dice.choice((1, 1000, dice.randrange(S), dice.randrange(3 * S), dice.randrange(most_us)))


def _row(
    dice: random.Random, book: dict[str, dict[str, str]], epoch: int, n: int, at_us: int, *, complete: bool
) -> BookRow:
    sides: dict[str, str | None] = {}
    for name, side in book.items():
        changes: dict[str, str] = {}
        for _ in range(dice.randrange(1, 4) if complete else dice.randrange(3)):
            price = f"{dice.randrange(90, 110)}.{dice.randrange(10)}"
            if price in side and dice.random() < 0.4 and price not in changes:
                del side[price]
                changes[price] = "0"
            elif changes.get(price) != "0":
                side[price] = changes[price] = f"{dice.randrange(1, 10**12)}.{dice.randrange(10**8):08d}"
        sides[name] = _text(side.items() if complete else changes.items()) if complete or changes else None
    flags = KEYFRAME * complete | CROSSED * (dice.random() < 0.1)
    lag_us = dice.choice((None, 38_000, -5))
    return BookRow(epoch, n, at_us, lag_us, dice.choice((None, n * 7)), flags, sides["bids"], sides["asks"])


def _text(levels: Iterable[Sequence[str]]) -> str:
    return json.dumps([list(level) for level in levels], separators=(",", ":"))
