"""Books, trades, tickers and candles out of the database: as a stream into a file, or as objects for programmers.

    from storage import DataConverter
    DataConverter("data/collector.sqlite").export("upbit", "upbit.json", market="BTC-KRW")

Whatever the size, only a page of rows and one book are in memory. A file appears under its name only when it is whole
and on the disk; beside it stands a receipt (`<file>.manifest.json`) that says what it holds, which gaps it has, and its
sha256. Prices and volumes are the digits that were stored and never pass through a float.
"""

import fcntl
import hashlib
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import msgspec
import orjson

import collector
from collector.errors import ConfigError, StorageCorrupt, StorageError
from collector.records import CANDLES, CHANNELS, ORDERBOOK, TICKER, TRADES
from collector.times import parse_time, show_duration
from storage.reader import NAMES, BookAt, CandleAt, Reader, TickerAt, TradeAt
from storage.rebuild import Level, Levels
from storage.streams import Item
from storage.timeline import Epoch, Gap, Segment

Format = Literal["json", "ndjson", "csv"]
Mode = Literal["books", "levels"]
Moment = int | datetime | str
Progress = Callable[[int, float], None]

CHUNK_BYTES = 1 << 18
CSV_HEADER = "exchange,symbol,currency,timestamp,side,price,volume"
_NAMES = ("exchange", "symbol", "currency")
_OPEN_TO_CLOSE = ("open", "high", "low", "close", "volume")
# What a row of another channel holds behind its names and its time, in this order.
FIELDS = {
    TRADES: ("received_us", "venue_us", "epoch", "id", "side", "price", "volume"),
    TICKER: ("received_us", "venue_us", "epoch", "last", "bid", "ask", "volume"),
    CANDLES: ("received_us", "epoch", "interval_s", "open_us", *_OPEN_TO_CLOSE, "closed"),
}
_PRICES = frozenset(("price", "last", "bid", "ask", *_OPEN_TO_CLOSE))
_CSV_SPECIAL = re.compile('[,"\r\n]')
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


class GapTold(msgspec.Struct, frozen=True):
    """A gap of one market, as the receipt tells it."""

    market: str
    reason: str
    from_us: int
    until_us: int


class FeedTold(msgspec.Struct, frozen=True):
    """What an export holds of one market; `books` only where it is one of order books."""

    exchange: str
    market: str
    channel: str
    books: int
    rows: int
    covered_us: int


class EpochTold(msgspec.Struct, frozen=True):
    """An epoch an export draws on."""

    epoch: int
    market: str
    collector_id: str
    transport: str
    verdict: str
    unit: str | None
    from_us: int
    until_us: int
    reason: str | None


class Receipt(msgspec.Struct, frozen=True):
    """What an export holds: `rows` objects or lines, and the gaps among them.

    They are of `books` complete books where it is an export of order books, else `books` is nought. `covered_seconds`
    is the time in which the markets were being heard, added up; `sha256` and `bytes` are those of the file.
    """

    file: str
    bytes: int
    sha256: str
    channel: str
    rows: int
    books: int
    first_us: int | None
    last_us: int | None
    covered_seconds: str
    gaps: list[GapTold]
    feeds: list[FeedTold]
    epochs: list[EpochTold]
    query: dict[str, str | int | bool | None]
    database: str
    program: str

    def summary(self) -> str:
        """Return what a person wants to know, in one line."""
        covered = show_duration(sum(feed.covered_us for feed in self.feeds) / 1e6)
        gaps = f"{len(self.gaps)} gap{'' if len(self.gaps) == 1 else 's'}"
        name = "standard output" if self.file == "-" else self.file
        what = f"{self.rows} {NAMES[self.channel]}"
        if self.channel == ORDERBOOK:
            what = f"{self.books} books in {self.rows} rows"
        return f"{name}: {what}, {self.bytes} bytes, {covered} covered, {gaps}, sha256 {self.sha256}"


class DataConverter:
    """Takes what was recorded of one exchange out of a database; each call opens it anew.

    It may be in use meanwhile. `database` is a file of SQLite or an address of PostgreSQL (`postgresql://...`).
    Times are integer microseconds UTC, `datetime`, or text (`collector.times.parse_time`); a range holds its start
    and not its end. Raises what `Reader` raises, and `ConfigError` for a time or format that is none.
    """

    def __init__(self, database: Path | str) -> None:
        self.database = database

    def books(
        self, exchange: str, market: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> Iterator[BookAt]:
        """Yield the complete book at every update."""
        with Reader(self.database) as reader:
            yield from reader.books(exchange, market, moment_us(start), moment_us(end))

    def trades(
        self, exchange: str, market: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> Iterator[TradeAt]:
        """Yield the trades of a time, which is the exchange's own."""
        with Reader(self.database) as reader:
            yield from reader.trades(exchange, market, moment_us(start), moment_us(end))

    def tickers(
        self, exchange: str, market: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> Iterator[TickerAt]:
        """Yield the tickers received in a time."""
        with Reader(self.database) as reader:
            yield from reader.tickers(exchange, market, moment_us(start), moment_us(end))

    def candles(
        self, exchange: str, market: str | None = None, start: Moment | None = None, end: Moment | None = None
    ) -> Iterator[CandleAt]:
        """Yield the candles of one minute that begin in a time."""
        with Reader(self.database) as reader:
            yield from reader.candles(exchange, market, moment_us(start), moment_us(end))

    def to_list(
        self,
        exchange: str,
        market: str | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        channel: str = ORDERBOOK,
    ) -> list[dict[str, Any]]:
        """Return what the `json` export holds, as Python objects, for ranges that fit in memory."""
        _check_channel(channel)
        ways: dict[str, Callable[..., Iterator[BookAt | Item]]] = {
            ORDERBOOK: self.books,
            TRADES: self.trades,
            TICKER: self.tickers,
            CANDLES: self.candles,
        }
        return [as_dict(item) for item in ways[channel](exchange, market, start, end)]

    def export(
        self,
        exchange: str,
        out: Path | str,
        *,
        channel: str = ORDERBOOK,
        format: Format = "json",
        market: str | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        mode: Mode = "books",
        numbers: bool = False,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Receipt:
        """Write the complete book at every update to a file and return the receipt, which is written beside it.

        Another `channel` gives its trades, tickers or candles instead, an object or a line each. A range is one of
        receipt; of trades one of the exchange's time, of candles one of their beginnings.

        `format` is an array (`json`), a line an object (`ndjson`), or a line a level (`csv`). `mode="levels"` gives
        an object a level of a book, with the seven names of the view `orderbook`. `numbers` writes prices and volumes
        as bare JSON numbers of the same digits. A name that ends in `.gz` is compressed; `-` is standard output, which
        gets no receipt file. `progress` is called with the books or rows done and the fraction of the work.
        """
        start_us, end_us = moment_us(start), moment_us(end)
        form = _form(channel, format, mode, numbers)
        with ExitStack() as stack:
            reader = stack.enter_context(Reader(self.database))
            feeds = [(feed, reader.timeline(feed)) for feed in reader.feeds_of(exchange, market, channel)]
            output = stack.enter_context(_Output(str(out), overwrite=overwrite))
            total = sum(reader.rows_about(parts, start_us, end_us) for _, parts in feeds) if progress else 0
            tally = _Tally(progress, total)
            told: list[FeedTold] = []
            gaps: list[GapTold] = []
            epochs: list[EpochTold] = []
            output.write(form.opening)
            for feed, parts in feeds:
                before = tally.items, tally.rows
                found = _write_items(reader.items(feed, parts, start_us, end_us), form, output, tally)
                segments = [part for part in parts if isinstance(part, Segment) and _touches(part, start_us, end_us)]
                covered_us = _covered_us(segments, start_us, end_us)
                covered_us -= sum(gap.until_us - gap.from_us for gap in found if gap.reason == "missing")
                books, rows = tally.items - before[0] if channel == ORDERBOOK else 0, tally.rows - before[1]
                told.append(FeedTold(feed.exchange, feed.market, channel, books, rows, covered_us))
                gaps += [GapTold(feed.market, *gap) for gap in found]
                epochs += [_told(segment.epoch) for segment in segments]
            output.write(form.closing if tally.rows else form.closing_empty)
            size, sha256 = output.finish()
            tally.done()
            receipt = Receipt(
                output.name,
                size,
                sha256,
                channel,
                tally.rows,
                tally.items if channel == ORDERBOOK else 0,
                tally.first_us,
                tally.last_us,
                _seconds(sum(feed.covered_us for feed in told)),
                gaps,
                told,
                epochs,
                {
                    "exchange": exchange.upper(),
                    "market": market and market.upper(),
                    "channel": channel,
                    "start_us": start_us,
                    "end_us": end_us,
                    "format": format,
                    "mode": form.mode,
                    "numbers": numbers,
                },
                reader.name,
                f"exchange-collector {collector.__version__}",
            )
            output.publish(receipt)
        return receipt


def moment_us(moment: Moment | None) -> int | None:
    """Return a moment as integer microseconds UTC; None stays None. Raises `ConfigError` for text that is no time."""
    if moment is None or isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            return parse_time(moment)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def as_dict(item: BookAt | Item) -> dict[str, Any]:
    """Return a book, trade, ticker or candle as the `json` export has it; `timestamp` is an exact Decimal."""
    if isinstance(item, BookAt):
        return _book_dict(item)
    names = {name: getattr(item, name) for name in _NAMES}
    fields = {name: getattr(item, name) for name in FIELDS[_channel_of(item)]}
    return {**names, "timestamp": Decimal(_seconds(item.time_us)), **fields}


def _channel_of(item: Item) -> str:
    return TRADES if isinstance(item, TradeAt) else TICKER if isinstance(item, TickerAt) else CANDLES


def _book_dict(book: BookAt) -> dict[str, Any]:
    return {
        "exchange": book.exchange,
        "symbol": book.source.symbol,
        "currency": book.source.currency,
        "timestamp": Decimal(_seconds(book.received_us)),
        "received_us": book.received_us,
        "venue_us": book.venue_us,
        "epoch": book.epoch,
        "n": book.n,
        "flags": book.flag_names,
        "asks": [list(level) for level in book.asks],
        "bids": [list(level) for level in book.bids],
    }


# --- forms -----------------------------------------------------------------------------------------------------------


class _Form:
    # How what the reader gives becomes text.

    mode: Mode | Literal["rows"] = "rows"

    def __init__(self, opening: str, joint: str, closing: str, closing_empty: str) -> None:
        self.opening, self.joint, self.closing, self.closing_empty = opening, joint, closing, closing_empty

    def text(self, item: BookAt | Item) -> tuple[str, int]:
        """Return an item as rows with joints between, and how many they are."""
        raise NotImplementedError


class _Rows(_Form):
    # A row an item; `row` makes it of the values.

    def __init__(
        self,
        opening: str,
        joint: str,
        closing: str,
        closing_empty: str,
        *,
        channel: str,
        row: Callable[[list[tuple[str, Any]]], str],
    ) -> None:
        super().__init__(opening, joint, closing, closing_empty)
        self._fields, self._row = FIELDS[channel], row

    def text(self, item: BookAt | Item) -> tuple[str, int]:
        assert not isinstance(item, BookAt)
        values: list[tuple[str, Any]] = [(name, getattr(item, name)) for name in _NAMES]
        values.append(("timestamp", item.time_us))
        values += [(name, getattr(item, name)) for name in self._fields]
        return self._row(values), 1


def _json_row(values: list[tuple[str, Any]], *, numbers: bool) -> str:
    return "{" + ",".join(f'"{name}":{_json_value(name, value, numbers=numbers)}' for name, value in values) + "}"


def _json_value(name: str, value: Any, *, numbers: bool) -> str:
    if name == "timestamp":
        return _seconds(value)
    if isinstance(value, str):
        return _bare(value) if numbers and name in _PRICES else _quoted(value)
    return orjson.dumps(value).decode()


def _csv_row(values: list[tuple[str, Any]]) -> str:
    return ",".join(_seconds(value) if name == "timestamp" else _csv_value(value) for name, value in values)


def _csv_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if _CSV_SPECIAL.search(text) else text


class _BookForm(_Form):
    # How books become text. What is costly, the levels, is made anew only when the reader gives another tuple.

    mode: Mode = "books"

    def __init__(self, opening: str, joint: str, closing: str, closing_empty: str) -> None:
        super().__init__(opening, joint, closing, closing_empty)
        self._source: Epoch | None = None
        self._head = ""
        self._asks: Levels | None = None
        self._bids: Levels | None = None

    def text(self, item: BookAt | Item) -> tuple[str, int]:
        assert isinstance(item, BookAt)
        return self.book(item)

    def book(self, book: BookAt) -> tuple[str, int]:
        """Return the book as rows with joints between, and how many they are."""
        raise NotImplementedError


class _JSONBooks(_BookForm):
    def __init__(self, opening: str, joint: str, closing: str, closing_empty: str, *, numbers: bool) -> None:
        super().__init__(opening, joint, closing, closing_empty)
        self._levels = _bare_levels if numbers else _quoted_levels
        self._asks_text = self._bids_text = ""

    def book(self, book: BookAt) -> tuple[str, int]:
        if book.source is not self._source:
            self._source = book.source
            self._head = _json_head(book.source)
        if book.asks is not self._asks:
            self._asks = book.asks
            self._asks_text = self._levels(book.asks)
        if book.bids is not self._bids:
            self._bids = book.bids
            self._bids_text = self._levels(book.bids)
        venue = "null" if book.venue_us is None else book.venue_us
        flags = orjson.dumps(book.flag_names).decode() if book.flags > 1 else "[]"
        return (
            f'{self._head}{_seconds(book.received_us)},"received_us":{book.received_us},"venue_us":{venue},'
            f'"epoch":{book.source.id},"n":{book.n},"flags":{flags},"asks":{self._asks_text},"bids":{self._bids_text}}}'
        ), 1


class _Levels(_BookForm):
    # A row a level: the beginning, with the time, is joined with endings that are kept as long as a side stands.

    mode = "levels"

    def __init__(
        self,
        opening: str,
        joint: str,
        closing: str,
        closing_empty: str,
        *,
        head: Callable[[Epoch], str],
        tail: Callable[[str, Level], str],
    ) -> None:
        super().__init__(opening, joint, closing, closing_empty)
        self._make_head, self._tail = head, tail
        self._ask_tails: list[str] = []
        self._bid_tails: list[str] = []

    def book(self, book: BookAt) -> tuple[str, int]:
        if book.source is not self._source:
            self._source = book.source
            self._head = self._make_head(book.source)
        if book.asks is not self._asks:
            self._asks = book.asks
            self._ask_tails = [self._tail("ask", level) for level in book.asks]
        if book.bids is not self._bids:
            self._bids = book.bids
            self._bid_tails = [self._tail("bid", level) for level in book.bids]
        tails = self._ask_tails + self._bid_tails
        if not tails:
            return "", 0
        head = f"{self._head}{_seconds(book.received_us)}"
        return head + (self.joint + head).join(tails), len(tails)


def _check_channel(channel: str) -> None:
    if channel not in CHANNELS:
        raise ConfigError(f"channel {channel!r} is none; allowed: {', '.join(CHANNELS)}")


def _form(channel: str, format: str, mode: str, numbers: bool) -> _Form:
    _check_channel(channel)
    header = CSV_HEADER if channel == ORDERBOOK else ",".join((*_NAMES, "timestamp", *FIELDS[channel]))
    # Opening, joint, closing, closing when there was no row.
    frames = {
        "json": ("[\n", ",\n", "\n]\n", "]\n"),
        "ndjson": ("", "\n", "\n", ""),
        "csv": (header + "\n", "\n", "\n", ""),
    }
    if format not in frames:
        raise ConfigError(f"format {format!r} is none; allowed: json, ndjson, csv")
    if mode not in ("books", "levels"):
        raise ConfigError(f"mode {mode!r} is none; allowed: books, levels")
    frame = frames[format]
    if channel != ORDERBOOK:
        row = _csv_row if format == "csv" else partial(_json_row, numbers=numbers)
        return _Rows(*frame, channel=channel, row=row)
    if format == "csv":
        return _Levels(
            *frame,
            head=lambda epoch: f"{epoch.exchange},{epoch.symbol},{epoch.currency},",
            tail=lambda side, level: f",{side},{level[0]},{level[1]}",
        )
    if mode == "books":
        return _JSONBooks(*frame, numbers=numbers)
    value = _bare if numbers else _quoted
    return _Levels(
        *frame,
        head=_json_head,
        tail=lambda side, level: f',"side":"{side}","price":{value(level[0])},"volume":{value(level[1])}}}',
    )


def _json_head(epoch: Epoch) -> str:
    names = {"exchange": epoch.exchange, "symbol": epoch.symbol, "currency": epoch.currency}
    return orjson.dumps(names).decode()[:-1] + ',"timestamp":'


def _quoted_levels(levels: Levels) -> str:
    return orjson.dumps(levels).decode()


def _bare_levels(levels: Levels) -> str:
    return "[" + ",".join(f"[{_bare(price)},{_bare(volume)}]" for price, volume in levels) + "]"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


@lru_cache(maxsize=1 << 14)
def _bare(text: str) -> str:
    if _JSON_NUMBER.fullmatch(text):
        return text
    number = re.sub(r"^(-?)0+(?=[0-9])", r"\1", text)  # JSON forbids zeros in front
    if not _JSON_NUMBER.fullmatch(number):
        raise StorageCorrupt(f"{text!r} is stored as a price or volume and is no number")
    return number


def _seconds(us: int) -> str:
    if us < 0:
        return f"-{_seconds(-us)}"
    return f"{us // 1_000_000}.{us % 1_000_000:06d}"


# --- counting --------------------------------------------------------------------------------------------------------


class _Bounded(NamedTuple):
    reason: str
    from_us: int
    until_us: int


class _Tally:
    # What went out so far.

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total = progress, total
        self.rows = self.items = 0
        self.first_us: int | None = None
        self.last_us: int | None = None

    def report(self) -> None:
        if self._progress is not None:
            self._progress(self.items, min(self.items / self._total, 1.0) if self._total else 0.0)

    def done(self) -> None:
        if self._progress is not None:
            self._progress(self.items, 1.0)


def _write_items(items: Iterable[BookAt | Item | Gap], form: _Form, output: "_Output", tally: _Tally) -> list[_Bounded]:
    # Returns the gaps met, but for the endless ones before the first and after the last epoch.
    gaps = []
    chunk: list[str] = []
    held = 0
    for item in items:
        if isinstance(item, Gap):
            if item.from_us is not None and item.until_us is not None:
                gaps.append(_Bounded(item.reason, item.from_us, item.until_us))
            continue
        text, rows = form.text(item)
        tally.items += 1
        time_us = item.time_us
        if tally.first_us is None or tally.last_us is None:
            tally.first_us = tally.last_us = time_us
        elif time_us > tally.last_us:
            tally.last_us = time_us
        elif time_us < tally.first_us:
            tally.first_us = time_us
        if not rows:
            continue
        if tally.rows:
            chunk.append(form.joint)
        chunk.append(text)
        tally.rows += rows
        held += len(text)
        if held > CHUNK_BYTES:
            output.write("".join(chunk))
            chunk.clear()
            held = 0
            tally.report()
    output.write("".join(chunk))
    tally.report()
    return gaps


def _covered_us(segments: Iterable[Segment], start_us: int | None, end_us: int | None) -> int:
    covered = 0
    for epoch, after_us, _ in segments:
        lower_us, upper_us = max(epoch.from_us, after_us), epoch.until_us
        lower_us = lower_us if start_us is None else max(lower_us, start_us)
        upper_us = upper_us if end_us is None else min(upper_us, end_us)
        covered += max(0, upper_us - lower_us)
    return covered


def _touches(part: Segment, start_us: int | None, end_us: int | None) -> bool:
    if part.epoch.until_us <= part.after_us:
        return False  # it accounts for nothing
    return (start_us is None or part.epoch.until_us >= start_us) and (end_us is None or part.after_us + 1 < end_us)


def _told(epoch: Epoch) -> EpochTold:
    return EpochTold(
        epoch.id,
        epoch.market,
        epoch.collector_id,
        epoch.transport,
        epoch.verdict,
        epoch.unit,
        epoch.from_us,
        epoch.until_us,
        epoch.reason,
    )


# --- the file --------------------------------------------------------------------------------------------------------


class _Output:
    # A file that is there whole or not at all: written as `<name>.part`, renamed when everything is on the disk.

    def __init__(self, name: str, *, overwrite: bool) -> None:
        self.name = name
        self._overwrite = overwrite
        self._path = None if name == "-" else Path(name)
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._gzip = zlib.compressobj(4, zlib.DEFLATED, 31) if name.endswith(".gz") else None  # 31: a gzip header

    def __enter__(self) -> Self:
        if self._path is None:
            self._file = sys.stdout.buffer
            return self
        self.name = self._path.name
        self._refuse_existing()
        try:
            # Opened without truncating, so that an export which is under way to the same name is not hurt.
            self._file = self._part.open("ab")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
        except BlockingIOError:
            assert self._file is not None
            self._file.close()
            self._file = None
            raise StorageError(f"another export to {self._path} is under way") from None
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None and self._file is not None:
            self._part.unlink(missing_ok=True)  # whatever is left of it was not wanted
            self._file.close()
            self._file = None

    @property
    def _part(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".part")

    def write(self, text: str) -> None:
        data = text.encode()
        self._write(data if self._gzip is None else self._gzip.compress(data))

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from None
        self._sha256.update(data)
        self._bytes += len(data)

    def finish(self) -> tuple[int, str]:
        """See to it that everything is on the disk; return the size and sha256."""
        assert self._file is not None
        if self._gzip is not None:
            self._write(self._gzip.flush())
        try:
            self._file.flush()
            if self._path is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None
        return self._bytes, self._sha256.hexdigest()

    def publish(self, receipt: Receipt) -> None:
        """Give the file its name and put the receipt beside it."""
        if self._path is None or self._file is None:
            return
        self._refuse_existing()
        manifest = self._path.with_name(self._path.name + ".manifest.json")
        manifest_part = manifest.with_name(manifest.name + ".part")
        try:
            with manifest_part.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(receipt), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            manifest.unlink(missing_ok=True)  # an old receipt never stands beside a new file
            os.replace(self._part, self._path)
            os.replace(manifest_part, manifest)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            manifest_part.unlink(missing_ok=True)
            raise self._failed(error) from None
        self._file.close()
        self._file = None

    def _refuse_existing(self) -> None:
        if self._path is None:
            return
        if self._path.is_dir():
            raise StorageError(f"{self._path} is a directory; name a file in it")
        if self._path.exists() and not self._overwrite:
            raise StorageError(f"{self._path} is there already; name another file or allow overwriting it")

    def _failed(self, error: OSError) -> StorageError | OSError:
        if isinstance(error, BrokenPipeError):
            return error  # whoever read the output has gone: the caller's affair
        return StorageError(f"{self.name} can't be written: {error.strerror or error}")
