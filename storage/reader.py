"""The reading side: what was recorded, rebuilt exactly, or a gap that says why there is nothing.

A reader never writes and never makes the file. It reads in pages, each a read transaction of its own that lasts some
milliseconds, so that hours of reading keep no writer's log from being emptied. Never is a book built across a row that
is missing, nor from rows of two epochs: where epochs of one feed overlap (two transports, a planned reconnect), the one
that opened first is served until it ends, then the next from its own complete book.
"""

import difflib
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, overload

import msgspec

from collector.errors import NotOurs, StorageBusy, StorageCorrupt, StorageError
from collector.records import CHECKSUM_MISMATCH, CROSSED, KEYFRAME, ORDERBOOK, ROWS_MAX, SAMPLED
from collector.times import show_time
from storage.rebuild import Levels, Side
from storage.sqlite import APPLICATION_ID, SCHEMA_VERSION

PAGE_ROWS = 5_000
PAGE_BYTES = 4 << 20
TIMES = 20_000
N_MAX = ROWS_MAX

FLAGS = {CROSSED: "crossed", CHECKSUM_MISMATCH: "checksum_mismatch", SAMPLED: "sampled"}
# What ended for one of these was trusted only up to the last data that agreed.
DOUBTFUL = frozenset(("stale", "probe", "checksum", "rejected"))

_EPOCHS = """
SELECT e.id, x.name, m.symbol, m.currency, r.collector_id, e.transport, e.depth, e.verdict, e.opened_us,
       coalesce(c.from_us, e.opened_us), coalesce(c.heard_until_us, e.opened_us),
       coalesce(c.confirmed_until_us, e.opened_us), coalesce(c.frames, 0), e.ended_us, coalesce(e.reason, c.reason),
       r.closed_us IS NOT NULL OR r.id < (SELECT max(id) FROM run)
FROM epoch AS e
JOIN run AS r ON r.id = e.run
JOIN feed AS f ON f.id = e.feed
JOIN exchange AS x ON x.id = f.exchange
JOIN market AS m ON m.id = f.market
LEFT JOIN coverage AS c ON c.epoch = e.id
WHERE f.id = ?
"""
_FEEDS = """
SELECT f.id, x.name, m.symbol, m.currency, f.channel
FROM feed AS f JOIN exchange AS x ON x.id = f.exchange JOIN market AS m ON m.id = f.market
ORDER BY x.name, m.symbol, m.currency, f.channel
"""
_ROWS = "SELECT id, at_us, lag_us, sequence, flags, bids, asks FROM book WHERE id BETWEEN ? AND ? ORDER BY id"
_TIMES = "SELECT id, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
_KEYFRAME_BEFORE = "SELECT max(id) FROM book WHERE flags & 1 AND id BETWEEN ? AND ?"
_KEYFRAME_AFTER = "SELECT id, at_us FROM book WHERE flags & 1 AND id BETWEEN ? AND ? ORDER BY id LIMIT 1"
_FIRST = "SELECT id, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1"
_LAST = "SELECT id, at_us FROM book WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"

_Row = tuple[int, int, int | None, int | None, int, str | None, str | None]


class UnknownFeed(StorageError):
    """The database holds nothing of the exchange or market that was asked for."""


class StoredFeed(NamedTuple):
    """A feed of which something is stored; `exchange` in upper case, as in the tables."""

    id: int
    exchange: str
    symbol: str
    currency: str
    channel: str

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return f"{self.symbol}-{self.currency}"


class Epoch(msgspec.Struct, frozen=True):
    """One subscription and what the ledger says of it.

    `until_us` is where its coverage ends, both ends included: the last sign of life, or the last data that agreed where
    it ended in doubt and where nothing in the data would show a loss (`compared`). Between it and `heard_until_us` the
    connection lived and nothing is claimed. An epoch that accounts for nothing ends just before it begins. `reason` is
    None while it is open, `crash` where the run is over and nobody wrote why.
    """

    id: int
    exchange: str
    symbol: str
    currency: str
    collector_id: str
    transport: str
    depth: int | None
    verdict: str
    opened_us: int
    from_us: int
    until_us: int
    heard_until_us: int
    confirmed_until_us: int
    frames: int
    reason: str | None

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return f"{self.symbol}-{self.currency}"

    @property
    def trimmed(self) -> bool:
        """Whether retention deleted its beginning."""
        return self.from_us > self.opened_us

    @property
    def ids(self) -> tuple[int, int]:
        """The first and last key its rows in `book` can have."""
        return self.id << 24, self.id << 24 | N_MAX


class BookAt(msgspec.Struct, frozen=True, gc=False):
    """A complete book as it stood from `received_us` on; levels are (price, volume) in the text stored, best first.

    As long as a side does not change, the books of one iteration share the same tuple.
    """

    source: Epoch
    n: int
    received_us: int
    venue_us: int | None
    sequence: int | None
    flags: int
    bids: Levels
    asks: Levels

    @property
    def exchange(self) -> str:
        """The exchange in upper case."""
        return self.source.exchange

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return self.source.market

    @property
    def epoch(self) -> int:
        """The epoch's key."""
        return self.source.id

    @property
    def transport(self) -> str:
        """How it came: `websocket` or `rest`."""
        return self.source.transport

    @property
    def verdict(self) -> str:
        """What is known of the truth of the epoch's books."""
        return self.source.verdict

    @property
    def flag_names(self) -> list[str]:
        """The flags in words; whether the row was a keyframe says nothing about the book and is left out."""
        return [name for bit, name in FLAGS.items() if self.flags & bit]


class Gap(msgspec.Struct, frozen=True):
    """Nothing is known between `from_us` and `until_us`; None means without end.

    `reason` is that of the epoch before (`disconnect`, `stale`, `crash`...), or `never` before the first, `open` after
    the last sign of life of an epoch that goes on, `unconfirmed` where an epoch was heard and no comparison with another
    source has confirmed it, `deleted` by retention, `missing` where rows of a covered time are not there.
    """

    reason: str
    from_us: int | None
    until_us: int | None

    def __str__(self) -> str:
        since = "" if self.from_us is None else f" from {show_time(self.from_us)}"
        until = "" if self.until_us is None else f" until {show_time(self.until_us)}"
        return f"{self.reason}{since}{until}"


class Segment(NamedTuple):
    """A stretch of a feed's time and the epoch that speaks for it, from after `after_us` to `epoch.until_us`."""

    epoch: Epoch
    after_us: int
    takes_over: bool  # from an epoch that was still covered when this one opened


def timeline(epochs: Iterable[Epoch]) -> list[Segment | Gap]:
    """Return who speaks for a feed when, in order of time, with the gaps before, between and after."""
    found: list[Segment | Gap] = []
    last: Epoch | None = None
    for epoch in sorted(epochs, key=lambda epoch: (epoch.from_us, epoch.id)):
        if last is None:
            found.append(Gap("deleted" if epoch.trimmed else "never", None, epoch.from_us))
        elif epoch.until_us <= last.until_us:
            continue
        elif epoch.from_us > last.until_us:
            found += _gaps(last, epoch)
        else:
            found.append(Segment(epoch, last.until_us, takes_over=True))
            last = epoch
            continue
        found.append(Segment(epoch, epoch.from_us - 1, takes_over=False))
        last = epoch
    return found + (_gaps(last, None) if last else [Gap("never", None, None)])


def _gaps(last: Epoch, following: Epoch | None) -> list[Gap]:
    # What lies between the coverage of one epoch and the next.
    reason = "deleted" if following is not None and following.trimmed else last.reason or "open"
    from_us, until_us = last.until_us, following.from_us if following is not None else None
    heard_us = last.heard_until_us if until_us is None else min(last.heard_until_us, until_us)
    if heard_us <= from_us:
        return [Gap(reason, from_us, until_us)]
    unconfirmed = Gap("unconfirmed", from_us, heard_us)
    return [unconfirmed] if heard_us == until_us else [unconfirmed, Gap(reason, heard_us, until_us)]


def clip(gap: Gap, start_us: int | None, end_us: int | None) -> Gap | None:
    """Return the part of a gap that lies between two moments, None where there is none."""
    from_us, until_us = gap.from_us, gap.until_us
    if start_us is not None and (from_us is None or from_us < start_us):
        from_us = start_us
    if end_us is not None and (until_us is None or until_us > end_us):
        until_us = end_us
    if from_us is not None and until_us is not None and from_us >= until_us:
        return None
    return Gap(gap.reason, from_us, until_us)


class Reader:
    """A database of the collector, opened for reading, also while it is being written; for one thread at a time.

    Raises `StorageError` where the file is missing or can't be opened, `NotOurs` where it is no database, not one of
    this program, or from a newer version. Times are integer microseconds UTC; a range holds its start and not its end,
    None means without limit. Exchanges and markets are found in any case. Every method raises `UnknownFeed` for one the
    database knows nothing of, `StorageBusy` where it may be tried again, `StorageCorrupt` where rows can't have been
    written so.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        _check_file(self.path)
        try:
            uri = self.path.resolve().as_uri() + "?mode=ro"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
        except sqlite3.Error as error:
            raise StorageError(f"{self.path} can't be opened: {error}") from None
        try:
            self._check_ours()
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file; iterators that are under way end with an error."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what is there ----------------------------------------------------------------------------------------------

    def feeds(self, exchange: str | None = None, market: str | None = None) -> list[StoredFeed]:
        """Return the feeds in the database, in order of exchange and market."""
        feeds = [StoredFeed(*row) for row in self._all(_FEEDS)]
        if exchange is not None:
            feeds = _only(feeds, "exchange", exchange, self.path)
        return feeds if market is None else _only(feeds, "market", market, self.path)

    def book_feeds(self, exchange: str | None = None, market: str | None = None) -> list[StoredFeed]:
        """Return the order-book feeds, as `feeds` does."""
        return [feed for feed in self.feeds(exchange, market) if feed.channel == ORDERBOOK]

    def epochs(self, exchange: str, market: str, start_us: int | None = None, end_us: int | None = None) -> list[Epoch]:
        """Return the order-book epochs that are covered at some moment of the range, in order of time."""
        epochs = self._epochs(self._book_feed(exchange, market))
        return [
            epoch
            for epoch in epochs
            if (start_us is None or epoch.until_us >= start_us) and (end_us is None or epoch.from_us < end_us)
        ]

    def row_times(self, epoch: Epoch, start_us: int, end_us: int) -> Iterator[int]:
        """Yield when the rows of an epoch were received, without reading what is in them.

        The first is the last one at or before `start_us`, if any; the last is the first one after `end_us`.
        """
        first_id, last_id = epoch.ids
        first_id = self._last_row(epoch, start_us) or first_id
        last_at = end_us - epoch.opened_us
        while True:
            page = self._all(_TIMES, first_id, last_id, TIMES)
            for _, at_us in page:
                yield epoch.opened_us + at_us
                if at_us > last_at:
                    return
            if len(page) < TIMES:
                return
            first_id = page[-1][0] + 1

    def newest(self, exchange: str, market: str) -> BookAt | Gap:
        """Return the newest book that was recorded, or the gap where none ever was."""
        segments = [part for part in self.timeline(self._book_feed(exchange, market)) if isinstance(part, Segment)]
        return self._book_at(segments[-1].epoch, segments[-1].epoch.until_us) if segments else Gap("never", None, None)

    def timeline(self, feed: StoredFeed) -> list[Segment | Gap]:
        """Return who speaks for a feed when, as the ledger has it at this moment."""
        return timeline(self._epochs(feed))

    def rows_about(self, parts: Iterable[Segment | Gap], start_us: int | None = None, end_us: int | None = None) -> int:
        """Return about how many updates a timeline holds, from the numbers at the ends; for progress bars."""
        total = 0
        for part in parts:
            lower_us, upper_us = _bounds(part, start_us, end_us) if isinstance(part, Segment) else (1, 0)
            if isinstance(part, Gap) or lower_us > upper_us:
                continue
            last = self._last_row(part.epoch, upper_us)
            if last is not None:
                first = self._last_row(part.epoch, lower_us - 1)
                total += last - (part.epoch.ids[0] if first is None else first)
        return total

    # --- books ------------------------------------------------------------------------------------------------------

    def book_at(self, exchange: str, market: str, time_us: int) -> BookAt | Gap:
        """Return the exact book of a moment, or the gap the moment lies in."""
        for part in self.timeline(self._book_feed(exchange, market)):
            if isinstance(part, Segment):
                if part.after_us < time_us <= part.epoch.until_us:
                    return self._book_at(part.epoch, time_us)
            elif (part.from_us is None or part.from_us < time_us) and (
                part.until_us is None or time_us < part.until_us
            ):
                return part
        raise AssertionError("a timeline has no holes")

    @overload
    def books(
        self,
        exchange: str,
        market: str | None = ...,
        start_us: int | None = ...,
        end_us: int | None = ...,
        *,
        gaps: Literal[False] = ...,
    ) -> Iterator[BookAt]: ...

    @overload
    def books(
        self,
        exchange: str,
        market: str | None = ...,
        start_us: int | None = ...,
        end_us: int | None = ...,
        *,
        gaps: Literal[True],
    ) -> Iterator[BookAt | Gap]: ...

    def books(
        self,
        exchange: str,
        market: str | None = None,
        start_us: int | None = None,
        end_us: int | None = None,
        *,
        gaps: bool = False,
    ) -> Iterator[BookAt | Gap]:
        """Return the complete book at every update of a range: market by market, epoch by epoch, in the order written.

        With `gaps`, the gaps of the range stand between the books they interrupt. Where an epoch takes over from one it
        overlapped, its book of that moment is given first (under its own, earlier time) if it differs from the last
        one.
        """
        feeds = self.book_feeds(exchange, market)  # here and not in the generator: a wrong name fails at once
        items = (item for feed in feeds for item in self.replay(self.timeline(feed), start_us, end_us))
        return items if gaps else (item for item in items if not isinstance(item, Gap))

    def replay(
        self, parts: Iterable[Segment | Gap], start_us: int | None = None, end_us: int | None = None
    ) -> Iterator[BookAt | Gap]:
        """Yield the books and gaps of one feed's timeline: what `books` does, for a timeline that is known already."""
        last: BookAt | None = None
        for part in parts:
            if isinstance(part, Gap):
                gap = clip(part, start_us, end_us)
                if gap is not None:
                    yield gap
                continue
            lower_us, upper_us = _bounds(part, start_us, end_us)
            if lower_us > upper_us:
                continue
            taking_over = part.takes_over and last is not None
            for item in self._replay(part.epoch, lower_us, upper_us, in_force=taking_over):
                if isinstance(item, Gap):
                    gap = clip(item, lower_us, upper_us)
                    if gap is not None:
                        yield gap
                    continue
                if taking_over:
                    taking_over = False
                    if item.received_us < lower_us and last is not None and _same_book(item, last):
                        continue
                last = item
                yield item

    def _book_at(self, epoch: Epoch, time_us: int) -> BookAt | Gap:
        *_, answer = self._replay(epoch, time_us, time_us, in_force=True)  # the last word counts
        return answer

    def _replay(self, epoch: Epoch, lower_us: int, upper_us: int, *, in_force: bool) -> Iterator[BookAt | Gap]:
        # The books of one epoch received from lower to upper, both included; with `in_force` the one that stood at
        # lower first. A hole in the numbers is a gap from the last book before it to the next keyframe.
        opened_us = epoch.opened_us
        lower, upper = lower_us - opened_us, upper_us - opened_us
        first_id, last_id = epoch.ids
        newest = self._last_row(epoch, lower_us - 1)
        if newest is not None:
            (keyframe,) = self._one(_KEYFRAME_BEFORE, first_id, newest)
            first_id = keyframe or first_id
        bids, asks = Side(highest_first=True), Side(highest_first=False)
        whole = False  # whether every row since a keyframe has been there
        expected = 0
        known_until_us = epoch.from_us
        waiting: BookAt | None = None
        for row_id, at_us, lag_us, sequence, flags, bids_text, asks_text in self._rows(first_id, last_id):
            if at_us > upper:
                if row_id != expected and known_until_us < upper_us:
                    whole, waiting = False, None
                break
            if row_id != expected:
                whole, waiting = False, None
            received_us = opened_us + at_us
            try:
                if flags & KEYFRAME:
                    bids.replace(bids_text)
                    asks.replace(asks_text)
                    if not whole and received_us > known_until_us:
                        yield Gap("missing", known_until_us, received_us)
                    whole = True
                elif whole:
                    bids.apply(bids_text)
                    asks.apply(asks_text)
                else:
                    continue
            except StorageCorrupt as error:
                raise StorageCorrupt(f"{self.path}: book {epoch.id}/{row_id & N_MAX}: {error}") from None
            expected = row_id + 1
            known_until_us = received_us
            if at_us < lower and not in_force:
                continue
            book = BookAt(
                epoch,
                row_id & N_MAX,
                received_us,
                None if lag_us is None else received_us - lag_us,
                sequence,
                flags,
                bids.levels(),
                asks.levels(),
            )
            if at_us < lower:
                waiting = book
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            yield book
        if waiting is not None:
            yield waiting
        if not whole:
            yield Gap("missing", known_until_us, self._next_keyframe_us(epoch, upper_us))

    # --- rows -------------------------------------------------------------------------------------------------------

    def _rows(self, first_id: int, last_id: int) -> Iterator[_Row]:
        while first_id <= last_id:
            page: list[_Row] = []
            held_bytes = 0
            try:
                cursor = self.connection.execute(_ROWS, (first_id, last_id))
                while len(page) < PAGE_ROWS and held_bytes < PAGE_BYTES:
                    some = cursor.fetchmany(250)
                    if not some:
                        last_id = 0
                        break
                    page += some
                    held_bytes += sum(len(row[5] or "") + len(row[6] or "") for row in some)
                cursor.close()  # ends the read transaction
            except sqlite3.Error as error:
                raise translate(error, self.path) from None
            yield from page
            if page:
                first_id = page[-1][0] + 1

    def _last_row(self, epoch: Epoch, time_us: int) -> int | None:
        try:
            return last_key(self.connection, epoch.id, time_us - epoch.opened_us)
        except sqlite3.Error as error:
            raise translate(error, self.path) from None

    def _next_keyframe_us(self, epoch: Epoch, time_us: int) -> int:
        newest = self._last_row(epoch, time_us)
        row = self._one_or_none(_KEYFRAME_AFTER, epoch.ids[0] if newest is None else newest + 1, epoch.ids[1])
        return epoch.until_us if row is None else min(epoch.opened_us + row[1], epoch.until_us)

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _epochs(self, feed: StoredFeed) -> list[Epoch]:
        epochs = []
        for row in self._all(_EPOCHS, feed.id):
            *told, opened_us, from_us, heard_us, confirmed_us, frames, ended_us, reason, run_is_over = row
            if ended_us is None:
                reason = "crash" if run_is_over else None
            else:
                reason = reason or "unknown"
                heard_us = min(heard_us, ended_us, confirmed_us if reason in DOUBTFUL else heard_us)
            heard_us = max(heard_us, from_us)
            confirmed_us = min(confirmed_us, heard_us)
            until_us = heard_us
            if told[-1] == "compared":
                until_us = max(confirmed_us, from_us) if frames else from_us - 1
            epochs.append(Epoch(*told, opened_us, from_us, until_us, heard_us, confirmed_us, frames, reason))
        return sorted(epochs, key=lambda epoch: (epoch.from_us, epoch.id))

    def _book_feed(self, exchange: str, market: str) -> StoredFeed:
        feeds = self.book_feeds(exchange, market)
        if not feeds:
            raise UnknownFeed(f"{self.path} holds no order books of {exchange.upper()} {market.upper()}")
        return feeds[0]

    def _all(self, sql: str, *values: object) -> list[Any]:
        try:
            return self.connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise translate(error, self.path) from None

    def _one(self, sql: str, *values: object) -> Any:
        return self._all(sql, *values)[0]

    def _one_or_none(self, sql: str, *values: object) -> Any:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def _check_ours(self) -> None:
        try:
            (application,) = self.connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise _no_database(self.path) from None
            raise translate(error, self.path) from None
        if application != APPLICATION_ID:
            raise NotOurs(f"{self.path} is a database of another program; name one the collector wrote")
        (version,) = self._one("PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise NotOurs(
                f"{self.path} is from a newer collector (schema {version}, this one knows {SCHEMA_VERSION}); "
                "read it with that version"
            )
        if not version:
            raise NotOurs(f"{self.path} holds no tables yet; the collector that made it has not finished starting")


def last_key(db: sqlite3.Connection, epoch: int, at_us: int) -> int | None:
    """Return the key of the newest row of an epoch received `at_us` or less after it opened, None where there is none.

    Times rise with the keys, so that it is found by halving, without an index on times.
    """
    low, high = epoch << 24, epoch << 24 | N_MAX
    first = db.execute(_FIRST, (low, high)).fetchone()
    last = db.execute(_LAST, (low, high)).fetchone()
    if first is None or first[1] > at_us:
        return None
    if last[1] <= at_us:
        return int(last[0])
    found, beyond = int(first[0]), int(last[0])
    while beyond - found > 1:
        middle = (found + beyond) // 2
        row_id, row_at_us = db.execute(_FIRST, (middle, last[0])).fetchone()
        if row_at_us <= at_us:
            found = row_id
        else:
            beyond = middle
    return found


def translate(error: sqlite3.Error, path: Path) -> StorageError:
    """Return what an error of SQLite while reading means to the caller."""
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StorageCorrupt(f"{path}: {error}; restore a backup")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StorageBusy(f"{path}: {error}; try again")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return StorageError(f"{path}: {error}; a reader needs to write beside the file: run it as the collector's user")
    return StorageError(f"{path}: {error}")


def _check_file(path: Path) -> None:
    # Only looked at, never opened: closing a file gives up the locks that SQLite may hold on it elsewhere in this
    # process.
    try:
        state = path.stat()
    except FileNotFoundError:
        raise StorageError(f"there is no database at {path}; name the one the collector writes (DB_PATH)") from None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror or error}") from None
    if not stat.S_ISREG(state.st_mode):
        raise StorageError(f"{path} can't be read: it is no file")
    if not state.st_size:
        raise _no_database(path)


def _no_database(path: Path) -> NotOurs:
    return NotOurs(f"{path} is not an SQLite database; name the one the collector writes (DB_PATH)")


def _only(feeds: list[StoredFeed], what: str, name: str, path: Path) -> list[StoredFeed]:
    wanted = name.upper()
    found = [feed for feed in feeds if getattr(feed, what) == wanted]
    if found:
        return found
    there = sorted({str(getattr(feed, what)) for feed in feeds})
    text = f"{path} holds nothing of {what} {name!r}; it has {', '.join(there) or 'no data yet'}"
    near = difflib.get_close_matches(wanted, there, n=1)
    raise UnknownFeed(f"{text} (did you mean {near[0]!r}?)" if near else text)


def _bounds(part: Segment, start_us: int | None, end_us: int | None) -> tuple[int, int]:
    # First and last moment of a segment that lie in a range; the last is before the first where none does.
    lower_us = part.after_us + 1 if start_us is None else max(part.after_us + 1, start_us)
    upper_us = part.epoch.until_us if end_us is None else min(part.epoch.until_us, end_us - 1)
    return lower_us, upper_us


def _same_book(one: BookAt, other: BookAt) -> bool:
    return one.bids == other.bids and one.asks == other.asks
