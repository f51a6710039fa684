"""The form of the spool on disk: segments, frames, and a batch inside one. `docs/spool.md` tells it in full.

A frame has its lengths, its head and its body under a checksum each, so that what it accounts for is known without
reading the rows. The sum over the lengths starts from a random number of the segment's own: bytes that an exchange
sent (they are kept raw in `rejected`) can't pass for a frame, which is why reading may go on at the next frame that
verifies after a damaged place. Sequence numbers then say exactly how many frames are gone.

Everything here is pure but `Scanner`, which reads through what it is handed.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from collector.errors import NotOurs
from collector.records import (
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    RecordsLost,
    Rejected,
    TickerRow,
    TradeRow,
)
from storage.store import ROWS, Batch, Run

VERSION = 1
MAGIC = b"COLSPOOL"
MARKER = b"\xc1SPF"  # 0xC1 occurs neither in UTF-8 nor as a type byte of msgpack
READ_AHEAD = 1 << 20
HEAD_BYTES_MAX = 16 << 20
BODY_BYTES_MAX = 1 << 30

_SEGMENT = struct.Struct("<8sIII")  # magic, version, length of the header, CRC-32 of all that and the header
_PREFIX = struct.Struct("<4sIIIII")  # marker, length of head, of body, CRC-32 of head, of body, of these 20 bytes
SEGMENT_PREFIX_BYTES = _SEGMENT.size
PREFIX_BYTES = _PREFIX.size
_PREFIX_SUMMED = PREFIX_BYTES - 4
_UNREADABLE = (ValueError, RecursionError)  # bad msgpack, bad UTF-8, nesting without end


class Damaged(Exception):
    """Bytes that should be part of a spool are not what was written."""


# --- what frames account for -----------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Received frames that become `stored`, frames kept raw as `rejected`, and records of any kind."""

    frames: int = 0
    rejected: int = 0
    records: int = 0


Tally = Mapping[str, Counts]  # by exchange


def plus(one: Tally, other: Tally) -> Tally:
    """Return the sum of two tallies."""
    return _combined(one, other, 1)


def minus(one: Tally, other: Tally) -> Tally:
    """Return what `one` has above `other`, never less than nothing."""
    return _combined(one, other, -1)


def _combined(one: Tally, other: Tally, sign: int) -> Tally:
    none = Counts()
    total: dict[str, Counts] = {}
    for exchange in {**one, **other}:
        pairs = zip(one.get(exchange, none), other.get(exchange, none), strict=True)
        counts = Counts(*(max(0, a + sign * b) for a, b in pairs))
        if counts != none:
            total[exchange] = counts
    return total


# --- segments --------------------------------------------------------------------------------------------------------


class Header(msgspec.Struct, frozen=True):
    """The beginning of a segment: its number, its salt, and where it stands in everything ever spooled here.

    `first` is the sequence number of its first frame, `totals` what all frames before that one accounted for. So many
    numbers before `first` as `skipped` says were left out, because nobody could tell which ones are taken.
    """

    segment: int
    salt: int
    first: int
    time_us: int
    totals: dict[str, Counts]
    skipped: int = 0


def encode_header(header: Header) -> bytes:
    """Return the bytes a segment begins with."""
    text = _encode(header)
    summed = _SEGMENT.pack(MAGIC, VERSION, len(text), 0)[:-4]
    return summed + zlib.crc32(text, zlib.crc32(summed)).to_bytes(4, "little") + text


def header_bytes(prefix: bytes) -> int | None:
    """Return how long a segment's header is, told by its first bytes; None where they are no such beginning."""
    if len(prefix) < SEGMENT_PREFIX_BYTES or not prefix.startswith(MAGIC):
        return None
    length = _SEGMENT.unpack_from(prefix)[2]
    return SEGMENT_PREFIX_BYTES + int(length) if length <= HEAD_BYTES_MAX else None


def decode_header(data: bytes) -> tuple[Header, int]:
    """Return the header that `data` begins with, and its length; raises `Damaged`, or `NotOurs` for a newer version."""
    length = header_bytes(data)
    if length is None or len(data) < length:
        raise Damaged("no header of a spool segment")
    _, version, _, checksum = _SEGMENT.unpack_from(data)
    text = data[SEGMENT_PREFIX_BYTES:length]
    if zlib.crc32(text, zlib.crc32(data[: SEGMENT_PREFIX_BYTES - 4])) != checksum:
        raise Damaged("the header's checksum does not match")
    if version != VERSION:
        raise NotOurs(f"is of version {version} of the spool, and this collector knows {VERSION}; run the newer one")
    try:
        return _decode_header(text), length
    except _UNREADABLE as error:
        raise Damaged(f"the header can't be decoded: {error}") from None


# --- frames ----------------------------------------------------------------------------------------------------------


class Head(msgspec.Struct, frozen=True):
    """What a frame tells about its batch: all that is asked for without its records.

    `sequence` counts every frame of a spool, `counts` is what the batch accounts for by exchange, `rows` the number of
    rows of market data by epoch.
    """

    sequence: int
    time_us: int
    run: Run
    number: int
    counts: dict[str, Counts]
    rows: dict[int, int]


class _Delivery(msgspec.Struct, array_like=True, gc=False):
    exchange: str
    frames: int
    records: int
    size: int
    rejected: int
    received_us: int


class _Body(msgspec.Struct, omit_defaults=True):
    """A batch in columns: records have no tags, so each kind stands in a list of its own.

    `order` has a byte a record, which is its place in `COLUMNS`; `deliveries` says how many records each takes.
    """

    deliveries: list[_Delivery]
    order: bytes
    opened: list[EpochOpened] = []
    rows: list[BookRow] = []
    marks: list[CoverageMark] = []
    ended: list[EpochEnded] = []
    verdicts: list[EpochVerdict] = []
    lost: list[RecordsLost] = []
    rejected: list[Rejected] = []
    events: list[Event] = []
    trades: list[TradeRow] = []
    tickers: list[TickerRow] = []
    candles: list[CandleRow] = []


# What stands on disk in a column, by the byte in `order`: new kinds are added at the end.
COLUMNS: dict[str, type[Any]] = {
    "opened": EpochOpened,
    "rows": BookRow,
    "marks": CoverageMark,
    "ended": EpochEnded,
    "verdicts": EpochVerdict,
    "lost": RecordsLost,
    "rejected": Rejected,
    "events": Event,
    "trades": TradeRow,
    "tickers": TickerRow,
    "candles": CandleRow,
}
_COLUMN_OF = {kind: column for column, kind in enumerate(COLUMNS.values())}
_ROWS = tuple(_COLUMN_OF[kind] for kind in COLUMNS.values() if kind in ROWS)

_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_body = msgspec.msgpack.Decoder(_Body).decode
_columns_of = attrgetter(*COLUMNS)
_epoch_of = attrgetter("epoch")


def encode(batch: Batch, sequence: int, time_us: int) -> tuple[Head, bytes]:
    """Return the head and the body of a batch's frame.

    Raises `ValueError` or `OverflowError` for what has no place in msgpack: text that is no Unicode, integers beyond
    64 bits.
    """
    columns: list[list[Record]] = [[] for _ in COLUMNS]
    order = bytearray()
    deliveries: list[_Delivery] = []
    counts: dict[str, Counts] = {}
    for delivery in batch.deliveries:
        for record in delivery.records:
            column = _COLUMN_OF[type(record)]
            order.append(column)
            columns[column].append(record)
        taken = len(delivery.records)
        deliveries.append(
            _Delivery(delivery.exchange, delivery.frames, taken, delivery.size, delivery.rejected, delivery.received_us)
        )
        frames, rejected, records = counts.get(delivery.exchange, (0, 0, 0))
        counts[delivery.exchange] = Counts(frames + delivery.frames, rejected + delivery.rejected, records + taken)
    rows = dict(Counter(_epoch_of(row) for column in _ROWS for row in columns[column]))
    body: bytes = _encode(_Body(deliveries, bytes(order), *columns))  # type: ignore[arg-type]
    return Head(sequence, time_us, batch.run, batch.number, counts, rows), body


def decode(head: Head, body: bytes) -> Batch:
    """Return the batch of a frame; raises `Damaged`."""
    try:
        columns = _decode_body(body)
    except _UNREADABLE as error:
        raise Damaged(f"the records can't be decoded: {error}") from None
    return Batch(head.run, head.number, tuple(_deliveries(columns)))


def _deliveries(body: _Body) -> Iterator[Delivery]:
    columns: tuple[list[Any], ...] = _columns_of(body)
    order = body.order
    told = [order.count(column) for column in range(len(columns))]
    counts = [delivery.records for delivery in body.deliveries]
    if told != [len(column) for column in columns] or sum(told) != len(order) or sum(counts) != len(order):
        raise Damaged("the records are not as many as the frame says")
    if counts and min(counts) < 0:
        raise Damaged("a delivery has less than no records")
    waiting = [iter(column) for column in columns]
    start = 0
    for exchange, frames, count, size, rejected, received_us in map(_fields, body.deliveries):
        records = tuple([next(waiting[column]) for column in order[start : start + count]])
        start += count
        yield Delivery(exchange, frames, records, size, rejected, received_us)


_fields = attrgetter(*_Delivery.__struct_fields__)


def encode_frame(head: Head, body: bytes, salt: int) -> bytes:
    """Return the bytes of a frame as they stand in the segment with this salt."""
    text = _encode(head)
    prefix = _PREFIX.pack(MARKER, len(text), len(body), zlib.crc32(text), zlib.crc32(body), 0)[:_PREFIX_SUMMED]
    return b"".join((prefix, zlib.crc32(prefix, salt).to_bytes(4, "little"), text, body))


# --- reading ---------------------------------------------------------------------------------------------------------


class Framed(NamedTuple):
    """A frame that verifies; `body` is empty where only heads are read."""

    offset: int
    size: int
    head: Head
    body: bytes


class Garbage(NamedTuple):
    """Bytes between two frames, or after the last one, that are none."""

    offset: int
    size: int


class Scanner:
    """Finds the frames of one segment, from `offset` on, whatever stands there.

    `read(offset, size)` returns that many bytes of the segment, fewer at its end. With `bodies=False` records are
    neither read nor verified.
    """

    def __init__(self, read: Callable[[int, int], bytes], salt: int, offset: int, *, bodies: bool = True) -> None:
        self.offset = offset
        self._read, self._salt, self._bodies = read, salt, bodies

    def next(self, end: int) -> Framed | Garbage | None:
        """Return what comes next before `end`, None when nothing does; what `read` raises goes through."""
        start = self.offset
        if start >= end:
            return None
        found = self._frame(start, end)
        if found is None:
            self.offset = self._resynchronise(start + 1, end)
            return Garbage(start, self.offset - start)
        self.offset = start + found.size
        return found

    def _frame(self, offset: int, end: int) -> Framed | None:
        room = end - offset - PREFIX_BYTES
        prefix = self._read(offset, PREFIX_BYTES) if room >= 0 else b""
        if len(prefix) < PREFIX_BYTES:
            return None
        marker, head_bytes, body_bytes, head_sum, body_sum, checksum = _PREFIX.unpack(prefix)
        if marker != MARKER or zlib.crc32(prefix[:_PREFIX_SUMMED], self._salt) != checksum:
            return None
        size = head_bytes + body_bytes
        if size > room:
            return None
        wanted = size if self._bodies else head_bytes
        data = self._read(offset + PREFIX_BYTES, wanted)
        head_text, body = data[:head_bytes], data[head_bytes:]
        if len(data) < wanted or zlib.crc32(head_text) != head_sum:
            return None
        if self._bodies and zlib.crc32(body) != body_sum:
            return None
        try:
            head = _decode_head(head_text)
        except _UNREADABLE:
            return None
        return Framed(offset, PREFIX_BYTES + size, head, body)

    def _resynchronise(self, start: int, end: int) -> int:
        # Only what verifies as a frame counts, so a marker among the bytes of a book costs a look and no more.
        at = start
        while at < end:
            chunk = self._read(at, min(READ_AHEAD, end - at))
            found = chunk.find(MARKER)
            while found >= 0:
                if self._frame(at + found, end) is not None:
                    return at + found
                found = chunk.find(MARKER, found + 1)
            if len(chunk) < READ_AHEAD:
                break
            at += len(chunk) - len(MARKER) + 1
        return end


def parse(data: bytes) -> list[Batch | Garbage]:
    """Return what a segment of these bytes holds; garbage from the first byte where it has no header. Never raises."""
    try:
        header, start = decode_header(data)
    except (Damaged, NotOurs):
        return [Garbage(0, len(data))]
    scanner = Scanner(lambda offset, size: data[offset : offset + size], header.salt, start)
    items: list[Batch | Garbage] = []
    while (found := scanner.next(len(data))) is not None:
        if isinstance(found, Garbage):
            items.append(found)
            continue
        try:
            items.append(decode(found.head, found.body))
        except Damaged:
            items.append(Garbage(found.offset, found.size))
    return items


def fuzz(data: bytes) -> None:
    """Read arbitrary bytes as everything a spool may hold: whatever this raises is a mistake in this module."""
    parse(data)
    for salted in (0, zlib.crc32(data)):
        scanner = Scanner(lambda offset, size: data[offset : offset + size], salted, 0)
        while scanner.next(len(data)) is not None:
            pass
    run = Run("", "", "", 0)
    try:
        decode(Head(0, 0, run, 0, {}, {}), data)
    except Damaged:
        return
