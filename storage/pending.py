"""What waits in a spool, told as time: which stretches of which feeds will be covered once it is in the store."""

from collections.abc import Mapping
from pathlib import Path

from collector.errors import StorageError
from collector.records import CoverageMark, EpochOpened
from storage.reader import Reader
from storage.spool_reader import Hole, SpoolReader
from storage.spool_recovery import recover

Spans = dict[tuple[str, str, str], list[tuple[int, int]]]
"""Stretches of time by exchange (upper case), market (`BTC-KRW`) and channel."""
_Told = tuple[str, str, str, int]  # of an epoch: its feed, and until when it is covered already


def pending(path: Path, reader: Reader) -> Spans:
    """Return what a spool holds of feeds, from the marks in it; nothing where there is no spool.

    What a hole in the spool takes with it is left out. May be called while a collector uses the spool: what it drains
    meanwhile is in the store, and counts as that. Raises `StorageError` where it can't be read.
    """
    try:
        found = recover(path, repair=False) if path.is_dir() else None
        if found is None:
            return {}
        batches = SpoolReader(found.segments, found.oldest, found.written, 0)
        try:
            return _spans(batches, reader)
        finally:
            batches.close()
    except OSError as error:
        raise StorageError(f"the spool {path} can't be read: {error.strerror or error}") from None


def _spans(batches: SpoolReader, reader: Reader) -> Spans:
    opened: dict[tuple[str, int], _Told | None] = {}
    spans: dict[tuple[str, int], int] = {}
    broken = False
    while (read := batches.next()) is not None:
        if isinstance(read.item, Hole):
            broken = True  # what was open before it ends there
            opened = dict.fromkeys(opened)
            continue
        uid = read.item.batch.run.uid
        for delivery in read.item.batch.deliveries:
            for record in delivery.records:
                if type(record) is EpochOpened:
                    feed = record.exchange.upper(), record.market, record.channel
                    opened[uid, record.epoch] = *feed, record.opened_us
                elif type(record) is CoverageMark:
                    key = uid, record.epoch
                    if key not in opened:
                        opened[key] = None if broken else _stored(reader, *key)
                    if opened[key] is not None:
                        spans[key] = record.confirmed_until_us
    return _by_feed(opened, spans)


def _stored(reader: Reader, uid: str, number: int) -> _Told | None:
    epoch = reader.epoch_of(uid, number)
    return None if epoch is None else (epoch.exchange, epoch.market, epoch.channel, epoch.confirmed_until_us)


def _by_feed(opened: Mapping[tuple[str, int], _Told | None], spans: Mapping[tuple[str, int], int]) -> Spans:
    found: Spans = {}
    for key, until_us in spans.items():
        told = opened[key]
        if told is not None and told[3] < until_us:
            found.setdefault(told[:3], []).append((told[3], until_us))
    return found
