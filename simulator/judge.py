"""The judge: compares what a store holds with what the simulator says it sent, message by message.

It counts by position, not by time: what an epoch accounts for is exactly the `frames` messages that the simulator sent
on that subscription from the epoch's first book on. The judge rebuilds those books from the simulator's ledger with
code of its own and wants each stored row to be the next different one. Everything it did not find accounted for must
lie outside coverage.

It reads the SQLite tables directly and shares nothing with the reader, so that one fault can't hide the other.
"""

import json
import sqlite3
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

# A message may have been on its way when the connection ended: sent, by its ledger time, just before the last one was
# heard.
GRACE_US = 1_500_000

Side = dict[Decimal, Decimal]
Book = tuple[Side, Side]
Row = tuple[bool, Side, Side, int | None, int | None]


@dataclass
class Verdict:
    """What became of every message; `good` unless something is missing or wrong."""

    sent: int = 0
    stored: int = 0
    duplicate: int = 0
    outside: int = 0  # outside coverage: the ledger says that nobody was listening
    withheld: int = 0
    rejected: int = 0  # garbage, which no coverage may hold
    missing: int = 0
    wrong: int = 0
    epochs: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether everything is accounted for."""
        return not (self.missing or self.wrong)

    def __str__(self) -> str:
        return (
            f"sent {self.sent} / stored {self.stored} / duplicate {self.duplicate} / outside coverage {self.outside} / "
            f"missing {self.missing} / wrong {self.wrong} (epochs {self.epochs}, garbage {self.rejected}, "
            f"withheld {self.withheld})"
        )


@dataclass
class _Subscription:
    id: str
    transport: str
    time_us: int
    messages: list[dict[str, Any]] = field(default_factory=list)
    accounted: int = 0  # messages up to here belong to an epoch already


@dataclass
class _Epoch:
    rows: list[Row]  # keyframe, bids, asks, venue_us, sequence
    id: int
    transport: str
    opened_us: int
    heard_until_us: int
    confirmed_until_us: int
    frames: int
    reason: str | None


def judge(ledger: Path, database: Path) -> Verdict:
    """Return the verdict over one ledger and one store; the collector must not be running."""
    verdict = Verdict()
    subscriptions = _read_ledger(ledger)
    epochs = _read_store(database, verdict)
    for feed in sorted(subscriptions.keys() | epochs.keys()):
        _judge_feed(feed, subscriptions.get(feed, []), epochs.get(feed, []), verdict)
    return verdict


def _judge_feed(
    feed: tuple[str, str], subscriptions: list[_Subscription], epochs: list[_Epoch], verdict: Verdict
) -> None:
    held: set[tuple[str, int]] = set()
    for epoch in epochs:
        verdict.epochs += 1
        mine = [
            subscription
            for subscription in subscriptions
            if subscription.transport == epoch.transport and subscription.time_us <= epoch.opened_us
        ]
        if not mine:
            verdict.wrong += 1
            verdict.notes.append(f"{feed}: epoch {epoch.id} has no subscription")
            continue
        subscription = max(mine, key=lambda one: one.time_us)
        problem = _account(subscription, epoch, held, verdict)
        if problem:
            verdict.wrong += 1
            verdict.notes.append(f"{feed}: epoch {epoch.id} ({epoch.reason}): {problem}")
    for subscription in subscriptions:
        for index, message in enumerate(subscription.messages):
            if message["fate"] == "withheld":
                verdict.withheld += 1
                _outside(feed, message["time_us"], epochs, subscription, verdict, held=False)
                continue
            if message["what"] == "error":
                continue
            verdict.sent += 1
            if message["what"] == "garbage":
                verdict.rejected += 1
            elif (subscription.id, index) not in held:
                verdict.outside += 1
                _outside(feed, message["time_us"], epochs, subscription, verdict, held=True)


def _outside(
    feed: tuple[str, str],
    time_us: int,
    epochs: list[_Epoch],
    subscription: _Subscription,
    verdict: Verdict,
    *,
    held: bool,
) -> None:
    # The ledger must not claim a time in which something was sent that it does not account for.
    for epoch in epochs:
        if epoch.transport == subscription.transport and (
            epoch.opened_us + GRACE_US < time_us < epoch.confirmed_until_us - GRACE_US
        ):
            verdict.missing += 1
            what = "sent" if held else "withheld"
            verdict.notes.append(
                f"{feed}: a message {what} at {time_us} lies inside epoch {epoch.id} and is not stored"
            )
            if held:
                verdict.outside -= 1
            return


def _account(subscription: _Subscription, epoch: _Epoch, held: set[tuple[str, int]], verdict: Verdict) -> str:
    """Find the stretch of messages that the epoch says it holds; return what is wrong, or nothing."""
    if not epoch.rows:
        return "it holds no rows"
    if not epoch.rows[0][0]:
        return "its first row is not a complete book"
    stored = _states(epoch.rows)
    problem = "its first book was never sent"
    for start in range(subscription.accounted, len(subscription.messages)):
        message = subscription.messages[start]
        if message["what"] != "book" or message["fate"] != "sent" or not _same_stamp(message, epoch.rows[0]):
            continue
        if _message_book(message) != stored[0]:
            continue
        found, problem = _replay(subscription, start, epoch, stored)
        if not problem:
            for index, duplicate in found:
                held.add((subscription.id, index))
                if duplicate:
                    verdict.duplicate += 1
                else:
                    verdict.stored += 1
            subscription.accounted = found[-1][0] + 1 if found else start
            return ""
    return problem


def _replay(
    subscription: _Subscription, start: int, epoch: _Epoch, stored: list[Book]
) -> tuple[list[tuple[int, bool]], str]:
    book: Book = ({}, {})
    rows = 0
    found: list[tuple[int, bool]] = []
    for index in range(start, len(subscription.messages)):
        if len(found) == epoch.frames:
            break
        message = subscription.messages[index]
        if message["fate"] == "withheld" or message["what"] == "error":
            continue
        if message["what"] == "garbage":
            return found, f"garbage (message {message['i']}) lies inside its coverage"
        steps, problem = _follow(book, message, stored, rows, first=index == start)
        if problem:
            return found, problem
        rows += steps
        found.append((index, not steps))
    if len(found) < epoch.frames:
        return found, f"it accounts for {epoch.frames} messages, {len(found)} were sent"
    if rows < len(stored) and not _from_changes(subscription):
        return found, f"{len(stored) - rows} rows stand in the store that its coverage does not account for"
    return found, ""


def _from_changes(subscription: _Subscription) -> bool:
    # Such a book is claimed only up to where another source agreed with it; the rows after that are claimed by nobody.
    return any(message["what"] == "change" for message in subscription.messages)


def _follow(book: Book, message: dict[str, Any], stored: list[Book], rows: int, *, first: bool) -> tuple[int, str]:
    """Apply a message to the book; return how many of the stored states from `rows` on are its, or what is wrong."""
    if message["what"] == "book":
        new = _message_book(message)
        same = new == book and not first
        for side, other in zip(book, new, strict=True):
            side.clear()
            side.update(other)
        if same:
            return 0, ""
        if rows == len(stored):
            return 0, f"message {message['i']} is covered and has no row"
        return (1, "") if stored[rows] == new else (0, f"row {rows + 1} is not the book of message {message['i']}")
    # Each entry of a change may be a row of its own. The ledger does not say in which order of the two sides the venue
    # wants them applied, so each row must be the book after one of those that are left.
    left = [(side, Decimal(price), Decimal(size)) for side in (0, 1) for price, size in message[("bids", "asks")[side]]]
    steps = 0
    while left := [entry for entry in left if _changes(book, *entry)]:
        if rows + steps == len(stored):
            return steps, f"message {message['i']} is covered and has no row"
        for entry in left:
            after = (dict(book[0]), dict(book[1]))
            _change(after, *entry)
            if stored[rows + steps] == after:
                break
        else:
            return steps, f"row {rows + steps + 1} is not the book of message {message['i']}"
        _change(book, *entry)
        steps += 1
    return steps, ""


def _changes(book: Book, side: int, price: Decimal, size: Decimal) -> bool:
    return book[side].get(price, Decimal(0)) != size


def _change(book: Book, side: int, price: Decimal, size: Decimal) -> None:
    if size:
        book[side][price] = size
    else:
        book[side].pop(price, None)


def _same_stamp(message: dict[str, Any], row: Row) -> bool:
    sequence, venue_us = message.get("sequence"), message.get("venue_us")
    return (sequence is None or sequence == row[4]) and (venue_us is None or row[3] is None or venue_us == row[3])


def _message_book(message: dict[str, Any]) -> Book:
    return _side(message["bids"]), _side(message["asks"])


def _side(levels: list[list[str]]) -> Side:
    return {Decimal(price): Decimal(size) for price, size in levels}


def _states(rows: list[Row]) -> list[Book]:
    """Return the complete book after each row."""
    states: list[Book] = []
    bids: Side = {}
    asks: Side = {}
    for keyframe, new_bids, new_asks, _, _ in rows:
        if keyframe:
            bids, asks = {}, {}
        for side, new in ((bids, new_bids), (asks, new_asks)):
            for price, size in new.items():
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)
        states.append((dict(bids), dict(asks)))
    return states


def _read_ledger(path: Path) -> dict[tuple[str, str], list[_Subscription]]:
    feeds: dict[tuple[str, str], list[_Subscription]] = {}
    transports: dict[str, str] = {}
    known: dict[str, _Subscription] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # the simulator was killed in the middle of it
            entry = json.loads(line)
            kind = entry["kind"]
            if kind == "open":
                transports[entry["connection"]] = entry["transport"]
            elif kind == "subscribe":
                subscription = _Subscription(entry["subscription"], transports[entry["connection"]], entry["time_us"])
                known[subscription.id] = subscription
                feeds.setdefault((entry["exchange"].upper(), entry["market"]), []).append(subscription)
            elif kind == "message":
                known[entry["subscription"]].messages.append(entry)
    return feeds


def _read_store(path: Path, verdict: Verdict) -> dict[tuple[str, str], list[_Epoch]]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        (check,) = db.execute("PRAGMA integrity_check").fetchone()
        if check != "ok":
            verdict.wrong += 1
            verdict.notes.append(f"the database is corrupt: {check}")
        feeds: dict[tuple[str, str], list[_Epoch]] = {}
        for row in db.execute(
            "SELECT e.id, e.transport, e.opened_us, c.heard_until_us, c.confirmed_until_us, c.frames, e.reason, "
            "x.name, m.symbol || '-' || m.currency "
            "FROM epoch e JOIN coverage c ON c.epoch = e.id JOIN feed f ON f.id = e.feed "
            "JOIN exchange x ON x.id = f.exchange JOIN market m ON m.id = f.market ORDER BY e.id"
        ):
            *facts, exchange, market = row
            epoch = _Epoch(_rows(db, row[0], row[2], verdict), *facts)
            feeds.setdefault((exchange, market), []).append(epoch)
        return feeds
    finally:
        db.close()


def _rows(db: sqlite3.Connection, epoch: int, opened_us: int, verdict: Verdict) -> list[Row]:
    rows = []
    expected = 1
    for id_, at_us, lag_us, sequence, flags, bids, asks in db.execute(
        "SELECT id, at_us, lag_us, sequence, flags, bids, asks FROM book "
        "WHERE id BETWEEN ? << 24 AND (? << 24) + 16777215 ORDER BY id",
        (epoch, epoch),
    ):
        if id_ & 0xFFFFFF != expected:
            verdict.wrong += 1
            verdict.notes.append(f"epoch {epoch}: row {expected} is missing")
        expected = (id_ & 0xFFFFFF) + 1
        venue_us = None if lag_us is None else opened_us + at_us - lag_us
        rows.append(
            (bool(flags & 1), _side(json.loads(bids or "[]")), _side(json.loads(asks or "[]")), venue_us, sequence)
        )
    return rows
