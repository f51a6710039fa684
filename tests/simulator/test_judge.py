"""What the judge finds: a ledger and a store made by hand that agree, and one thing at a time that does not."""

import base64
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from simulator.judge import Verdict, judge
from tests.conftest import ROOT

T = 1_795_000_000_000_000  # when it all begins
S = 1_000_000
LAG = 2_000  # from sent to received
KEYFRAME, MISMATCH = 1, 4
MIGRATIONS = ROOT / "storage" / "migrations"
Levels = list[tuple[str, str]]


class Tale:
    """Lines of a ledger and rows of tables, which a test spoils before it has them judged."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder, self.url = folder, url
        self.lines: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = [{"id": 1, "closed_us": T + 100 * S}]
        self.epochs: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.rejected: list[dict[str, Any]] = []
        self.spool: Path | None = None
        self._sent: dict[str, int] = {}

    # --- the ledger

    def connect(
        self, exchange: str = "upbit", transport: str = "websocket", at: float = 0.0, market: str = "BTC-KRW"
    ) -> str:
        """Open a connection with one subscription; return the name of both."""
        name = str(len(self._sent) + 1)
        self._sent[name] = 0
        self.lines.append(
            {"kind": "open", "connection": name, "exchange": exchange, "transport": transport, "time_us": us(at)}
        )
        self.lines.append(
            {"kind": "subscribe", "subscription": name, "connection": name, "exchange": exchange, "market": market,
             "channel": "orderbook", "time_us": us(at)}
        )  # fmt: skip
        return name

    def send(self, name: str, at: float, bids: Levels, asks: Levels, **more: Any) -> dict[str, Any]:
        """Send a whole book, unless it is said to be something else."""
        self._sent[name] += 1
        line = {
            "kind": "message", "subscription": name, "i": self._sent[name], "what": "book", "fate": "sent",
            "bids": bids, "asks": asks, "venue_us": us(at) - 500, "sequence": None, "time_us": us(at), **more,
        }  # fmt: skip
        self.lines.append(line)
        return line

    def garbage(self, name: str, at: float, frame: bytes) -> None:
        line = self.send(name, at, [], [], what="garbage", frame=base64.b64encode(frame).decode())
        del line["bids"], line["asks"]

    def close(self, name: str, at: float) -> None:
        self.lines.append({"kind": "close", "connection": name, "why": "gone", "time_us": us(at)})

    # --- the store

    def epoch(self, exchange: str = "UPBIT", transport: str = "websocket", at: float = 1.0, **more: Any) -> int:
        """Open an epoch, ended by SIGTERM at the end of its rows unless something else is said."""
        opened_us = us(at) + LAG + more.pop("clock_us", 0)
        number = len(self.epochs) + 1
        self.epochs.append(
            {"id": number, "run": 1, "exchange": exchange, "transport": transport, "opened_us": opened_us,
             "at": at, "reason": "stop", "ended_us": opened_us, "heard_until_us": opened_us,
             "confirmed_until_us": opened_us, "frames": 0, **more}
        )  # fmt: skip
        return number

    def hear(self, epoch: int, at: float, bids: Levels | None, asks: Levels | None, **more: Any) -> None:
        """Take a message that makes a row."""
        self.confirm(epoch, at)
        facts = self.epochs[epoch - 1]
        n = sum(row["epoch"] == epoch for row in self.rows) + 1
        self.rows.append(
            {"epoch": epoch, "n": n, "received_us": facts["confirmed_until_us"], "venue_us": us(at) - 500,
             "sequence": None, "flags": KEYFRAME if n == 1 else 0,
             "bids": None if bids is None else json.dumps(bids), "asks": None if asks is None else json.dumps(asks),
             **more}
        )  # fmt: skip

    def confirm(self, epoch: int, at: float) -> None:
        """Take a message that changes nothing."""
        facts = self.epochs[epoch - 1]
        until_us = facts["opened_us"] + us(at) - us(facts["at"])
        facts["frames"] += 1
        facts["ended_us"] = facts["heard_until_us"] = facts["confirmed_until_us"] = until_us

    # --- the verdict

    def judged(self) -> Verdict:
        """Write all of it down and have it judged."""
        ledger = self.folder / "ledger.jsonl"
        lines = sorted(self.lines, key=lambda line: line["time_us"])
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if self.url is not None:
            self._fill_postgres()
            return judge(ledger, self.url, spool=self.spool)
        return judge(ledger, self.fill_sqlite(), spool=self.spool)

    def fill_sqlite(self) -> Path:
        path = self.folder / "db.sqlite"
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA synchronous = OFF")
            for file in sorted(MIGRATIONS.glob("*.sql")):
                db.executescript(file.read_text())
            self._fill(lambda sql, values: db.execute(sql, values), "?")
            opened = {epoch["id"]: epoch["opened_us"] for epoch in self.epochs}
            for row in self.rows:
                at_us = row["received_us"] - opened.get(row["epoch"], 0)
                lag_us = None if row["venue_us"] is None else row["received_us"] - row["venue_us"]
                db.execute(
                    "INSERT INTO book (id, at_us, lag_us, sequence, flags, bids, asks) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (row["epoch"] << 24 | row["n"], at_us, lag_us, *(row[name] for name in ("sequence", "flags")),
                     row["bids"], row["asks"]),
                )  # fmt: skip
            db.commit()
        return path

    def _fill_postgres(self) -> None:
        import psycopg

        with psycopg.connect(str(self.url)) as db:
            for file in sorted((MIGRATIONS / "postgres").glob("*.sql")):
                db.execute(file.read_bytes())
            self._fill(lambda sql, values: db.execute(sql.encode(), values), "%s")
            names = ("epoch", "n", "received_us", "venue_us", "sequence", "flags", "bids", "asks")
            for row in self.rows:
                db.execute(
                    f"INSERT INTO book ({', '.join(names)}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)".encode(),
                    [row[name] for name in names],
                )

    def _fill(self, execute: Callable[[str, Any], Any], mark: str) -> None:
        given = "OVERRIDING SYSTEM VALUE " if mark == "%s" else ""

        def insert(table: str, **values: Any) -> None:
            marks = ", ".join([mark] * len(values))
            execute(f"INSERT INTO {table} ({', '.join(values)}) {given}VALUES ({marks})", list(values.values()))

        exchanges = sorted({epoch["exchange"] for epoch in self.epochs})
        insert("market", id=1, symbol="BTC", currency="KRW")
        for number, exchange in enumerate(exchanges, 1):
            insert("exchange", id=number, name=exchange)
            insert("feed", id=number, exchange=number, market=1, channel="orderbook")
        for run in self.runs:
            insert(
                "run", id=run["id"], uid=f"u{run['id']}", collector_id="c", version="1", started_us=T, alive_us=T,
                closed_us=run["closed_us"], **({"epoch_base": 0} if mark == "?" else {}),
            )  # fmt: skip
        for epoch in self.epochs:
            more = {} if mark == "?" else {"number": epoch["id"]}
            insert(
                "epoch", id=epoch["id"], run=epoch["run"], feed=exchanges.index(epoch["exchange"]) + 1,
                transport=epoch["transport"], verdict="unverified", opened_us=epoch["opened_us"],
                ended_us=epoch["ended_us"], reason=epoch["reason"], **more,
            )  # fmt: skip
            if epoch.get("covered", True):
                insert(
                    "coverage", epoch=epoch["id"], from_us=epoch["opened_us"], heard_until_us=epoch["heard_until_us"],
                    confirmed_until_us=epoch["confirmed_until_us"], frames=epoch["frames"], reason=epoch["reason"],
                )  # fmt: skip
        for rejected in self.rejected:
            insert("rejected", received_us=T, reason="test", **{"run": 1, "market": "BTC-KRW", **rejected})


def us(at: float) -> int:
    return T + round(at * S)


def bids(number: int) -> Levels:
    return [("100", str(number)), ("99", "5")]


ASKS: Levels = [("101", "1"), ("102", "2.50")]


def plain(tale: Tale) -> Tale:
    """Nine books a second apart and one repeat of the fifth, all of them stored."""
    name = tale.connect()
    epoch = tale.epoch()
    for number in range(1, 11):
        book = min(number, 5) if number < 7 else number
        tale.send(name, number, bids(book), ASKS)
        if number == 1:
            tale.hear(epoch, number, bids(book), ASKS)
        elif number == 6:
            tale.confirm(epoch, number)
        else:
            tale.hear(epoch, number, [("100", str(book))], None)
    return tale


@pytest.fixture(params=["sqlite", "postgres"])
def tale(request: pytest.FixtureRequest, tmp_path: Path) -> Tale:
    return Tale(tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres_url"))


@pytest.fixture
def file(tmp_path: Path) -> Tale:
    """On SQLite alone: what is judged is the same, wherever it was read."""
    return Tale(tmp_path)


def counts(verdict: Verdict) -> tuple[int, int, int]:
    return verdict.missing, verdict.wrong, verdict.corrupt


def test_what_agrees_is_good(tale: Tale) -> None:
    verdict = plain(tale).judged()

    assert verdict.notes == []
    assert (verdict.sent, verdict.stored, verdict.duplicate, verdict.outside) == (10, 9, 1, 0)
    assert verdict.good and verdict.exchanges["UPBIT"].stored == 9
    assert str(verdict).startswith("sent 10 / stored 9 / duplicate 1 / outside coverage 0 / missing 0 / wrong 0")


def _last_row_gone(tale: Tale) -> None:
    tale.rows.pop()


def _row_gone(tale: Tale) -> None:
    del tale.rows[4]


def _row_too_many(tale: Tale) -> None:
    tale.rows.append({**tale.rows[-1], "n": 10, "bids": '[["100","77"]]'})


def _row_twice(tale: Tale) -> None:
    for row in tale.rows[4:]:
        row["n"] += 1
    tale.rows.insert(4, {**tale.rows[3], "n": 5})


def _wrong_size(tale: Tale) -> None:
    tale.rows[4]["bids"] = '[["100","7"]]'


def _level_gone(tale: Tale) -> None:
    tale.rows[0]["asks"] = '[["101","1"]]'


def _wrong_from_the_first(tale: Tale) -> None:
    tale.rows[0]["bids"] = '[["100","1"],["99","6"]]'


def _no_keyframe(tale: Tale) -> None:
    tale.rows[0]["flags"] = 0


def _no_rows(tale: Tale) -> None:
    tale.rows.clear()


def _beyond_the_tables(tale: Tale) -> None:
    tale.epochs[0]["frames"] = 12


def _less_than_the_tables(tale: Tale) -> None:
    tale.epochs[0]["frames"] = 8


def _left_open(tale: Tale) -> None:
    tale.epochs[0] |= {"ended_us": None, "reason": None}


def _time_falls(tale: Tale) -> None:
    tale.rows[5]["received_us"] -= 3 * S


def _nobody_subscribed(tale: Tale) -> None:
    tale.epochs[0]["transport"] = "rest"


def _another_exchange(tale: Tale) -> None:
    tale.epochs[0]["exchange"] = "KORBIT"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_last_row_gone, "accounts for message 10 and has no row of it"),
        (_row_gone, "row 5 is missing"),
        (_row_too_many, "has 1 rows that its coverage does not account for"),
        (_row_twice, "has a row 5 that is not the book of message 5"),
        (_wrong_size, "has a row 5 that is not the book of message 5"),
        (_level_gone, "begins with a book that was never sent"),
        (_wrong_from_the_first, "begins with a book that was never sent"),
        (_no_keyframe, "does not begin with a complete book"),
        (_no_rows, "holds no rows"),
        (_beyond_the_tables, "accounts for 12 messages, 10 were sent"),
        (_less_than_the_tables, "has 2 rows that its coverage does not account for"),
        (_left_open, "is open, but its run was closed"),
        (_time_falls, "its times of receipt fall"),
        (_nobody_subscribed, "has no subscription"),
        (_another_exchange, "has no subscription"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[1:],
)
def test_one_thing_wrong_is_found(file: Tale, spoil: Callable[[Tale], None], says: str) -> None:
    spoil(plain(file))

    verdict = file.judged()

    assert not verdict.good
    assert any(says in note for note in verdict.notes), verdict.notes


@pytest.mark.parametrize(
    ("levels", "is_read"),
    [('[["100","1"', False), ('[["100","NaN"]]', False), ('[["100"]]', False), ("5", False), ('[["100","2"]]', True)],
)
def test_a_row_that_holds_no_levels_is_corrupt(file: Tale, levels: str, is_read: bool) -> None:
    plain(file).rows[1]["bids"] = levels
    verdict = file.judged()
    assert (verdict.wrong, verdict.corrupt) == (0, int(not is_read)), verdict.notes
    assert verdict.good is is_read


def test_a_hole_is_corrupt_and_so_is_a_number_that_is_there_twice(tale: Tale) -> None:
    _row_gone(plain(tale))
    if tale.url is not None:  # the key of an SQLite row is its number
        tale.rows.append({**tale.rows[-1], "received_us": tale.rows[-1]["received_us"] + 1})

    verdict = tale.judged()

    assert verdict.corrupt == (1 if tale.url is None else 2)
    assert tale.url is None or any("row 9 is there 2 times" in note for note in verdict.notes)


def test_an_epoch_without_coverage_and_rows_without_an_epoch_are_corrupt(tale: Tale) -> None:
    plain(tale).epochs[0]["covered"] = False
    verdict = tale.judged()
    assert verdict.corrupt == 1 + 9
    assert verdict.notes[:2] == ["epoch 1 has no coverage", "row 1 belongs to epoch 1, which is not there"]


def test_a_file_that_is_damaged_is_corrupt(file: Tale) -> None:
    plain(file).judged()
    path = file.folder / "db.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    verdict = judge(file.folder / "ledger.jsonl", path)
    assert verdict.corrupt


def test_a_file_that_can_be_read_may_be_corrupt_all_the_same(file: Tale) -> None:
    plain(file).judged()
    path = file.folder / "db.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "PRAGMA writable_schema = ON;"
            "UPDATE sqlite_schema SET sql = replace(sql, 'flags & 1', 'flags & 2') WHERE name = 'book_keyframe'"
        )
    verdict = judge(file.folder / "ledger.jsonl", path)
    assert verdict.corrupt and not verdict.wrong
    assert "the database is corrupt" in verdict.notes[0]


def test_what_was_withheld_must_lie_outside_coverage(tale: Tale) -> None:
    line = next(line for line in plain(tale).lines if line.get("i") == 6)
    line["fate"] = "withheld"
    tale.epochs[0]["frames"] = 9  # the repeat never came
    verdict = tale.judged()
    assert counts(verdict) == (1, 0, 0)
    assert "message 6 withheld" in verdict.notes[0]


def test_what_was_sent_and_is_not_held_must_lie_outside_coverage(file: Tale) -> None:
    """The ledger claims a time whose messages the tables do not hold."""
    del plain(file).rows[4:]
    file.epochs[0]["frames"] = 4
    verdict = file.judged()
    assert counts(verdict) == (4, 0, 0)  # the last one and a half seconds may have been on their way

    file.epochs[0]["confirmed_until_us"] = us(4) + LAG
    assert _again(file).outside == 6


def _again(tale: Tale) -> Verdict:
    """Judge a tale once more, in a store of its own."""
    folder = tale.folder / "again"
    folder.mkdir()
    other = Tale(folder)
    for name in ("lines", "runs", "epochs", "rows", "rejected", "spool"):
        setattr(other, name, getattr(tale, name))
    return other.judged()


def test_a_killed_run_may_leave_its_epoch_open(file: Tale) -> None:
    _left_open(plain(file))
    file.runs[0]["closed_us"] = None
    assert file.judged().good


def test_a_store_that_was_never_made_holds_nothing(file: Tale) -> None:
    plain(file)
    file.epochs.clear()
    file.rows.clear()
    verdict = file.judged()
    assert verdict.good and verdict.outside == verdict.sent == 10


# --- clocks and subscriptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock_s", [-86_400, -3600, -2, 2, 3600])
def test_a_clock_that_is_wrong_changes_nothing(file: Tale, clock_s: int) -> None:
    plain(file)
    for epoch in file.epochs:
        for name in ("opened_us", "ended_us", "heard_until_us", "confirmed_until_us"):
            epoch[name] += clock_s * S
    for row in file.rows:
        row["received_us"] += clock_s * S
    assert file.judged().good

    file.epochs[0]["frames"] = 4
    del file.rows[4:]
    assert _again(file).missing == 4  # and hides nothing


def test_markets_that_stand_still_begin_alike_on_every_subscription(file: Tale) -> None:
    """The second run was killed at once, and its clock was two seconds ahead: its time would name the third one.

    Mutation: try the newest subscription first.
    """
    for run, (at, books) in enumerate(((1, (1, 1, 1)), (10, (1,)), (11.5, (1, 2, 3)))):
        name = file.connect(at=at - 0.1)
        epoch = file.epoch(at=at, clock_us=0 if run == 0 else 2 * S, reason="disconnect")
        for number, book in enumerate(books):
            later = at + 0.3 * number
            file.send(name, later, bids(book), ASKS, venue_us=us(book))
            if number and book == 1:
                file.confirm(epoch, later)
            else:
                file.hear(epoch, later, bids(book), ASKS, venue_us=us(book))
        file.close(name, at + 0.9)
    verdict = file.judged()
    assert verdict.good, verdict.notes
    assert (verdict.stored, verdict.duplicate, verdict.outside) == (5, 2, 0)


def test_another_subscription_of_the_same_market_answers_for_the_time(file: Tale) -> None:
    """A half-open connection goes on beside the one that took its place."""
    silent = file.connect(at=0.5)
    plain(file)
    for number in range(1, 11):
        file.send(silent, number + 0.5, bids(number), ASKS, fate="withheld")
    assert file.judged().good

    # On the subscription that was heard it would have been seen.
    file.send("2", 5.5, bids(44), ASKS, fate="withheld")
    assert _again(file).missing == 1


def test_two_epochs_share_a_subscription_in_order(file: Tale) -> None:
    name = file.connect()
    for epoch in (file.epoch(at=1, reason="clock"), file.epoch(at=5)):
        for number in range(4):
            at = 1 + 4 * (epoch - 1) + number
            file.send(name, at, bids(at), ASKS)
            file.hear(epoch, at, bids(at) if number == 0 else [("100", str(at))], ASKS if number == 0 else None)
    assert file.judged().stored == 8

    file.epochs[1]["frames"] = 5
    assert not _again(file).good


def _carried(tale: Tale, clock_s: int) -> None:
    """An epoch that a stepped clock ended, and one that goes on with its book before anything else is sent."""
    name = tale.connect()
    first = tale.epoch(reason="clock")
    for number in range(1, 4):
        tale.send(name, number, bids(number), ASKS)
        tale.hear(first, number, bids(number) if number == 1 else [("100", str(number))], ASKS if number == 1 else None)
    second = tale.epoch(at=5, clock_us=clock_s * S)
    tale.hear(second, 5, bids(3), ASKS, venue_us=None)
    tale.epochs[1]["frames"] = 0
    for number in range(6, 9):
        tale.send(name, number, bids(number), ASKS)
        tale.hear(second, number, [("100", str(number))], None)


@pytest.mark.parametrize("clock_s", [-3600, 0, 3600])
def test_an_epoch_may_go_on_with_the_book_of_the_one_before(file: Tale, clock_s: int) -> None:
    _carried(file, clock_s)
    verdict = file.judged()
    assert verdict.good and verdict.stored == 6, verdict.notes


def test_what_goes_on_must_be_the_book_as_it_was_and_account_for_what_it_holds(file: Tale) -> None:
    _carried(file, 3600)
    file.rows[3]["bids"] = json.dumps(bids(2))
    assert file.judged().wrong == 1
    file.rows[3]["bids"] = json.dumps(bids(3))
    file.epochs[1]["frames"] = 2
    assert _again(file).wrong == 1


def test_a_message_between_two_that_are_held_is_missed_where_an_epoch_goes_on(file: Tale) -> None:
    _carried(file, 3600)
    file.send("1", 7.5, bids(70), ASKS)
    assert not file.judged().good


def test_an_epoch_that_goes_on_and_hears_nothing_more_claims_nothing(file: Tale) -> None:
    _carried(file, 3600)
    del file.rows[4:], file.lines[-3:]
    file.epochs[1]["frames"] = 0
    verdict = file.judged()
    assert verdict.good and verdict.stored == 3, verdict.notes


# --- sequences --------------------------------------------------------------------------------------------------------


def _late(tale: Tale, *, stored: bool) -> None:
    name = tale.connect("coinone")
    epoch = tale.epoch("COINONE")
    for place, number in enumerate((1, 2, 4, 3, 5), 1):  # the third comes after the fourth
        tale.send(name, place, bids(number), ASKS, sequence=number)
        if place == 1:
            tale.hear(epoch, place, bids(number), ASKS, sequence=number)
        elif number == 3 and not stored:
            tale.confirm(epoch, place)
        else:
            tale.hear(epoch, place, [("100", str(number))], None, sequence=number)


def test_an_older_book_that_comes_late_is_a_repeat(tale: Tale) -> None:
    _late(tale, stored=False)
    verdict = tale.judged()
    assert verdict.good and verdict.duplicate == 1 and verdict.stored == 4


def test_an_older_book_that_was_stored_is_wrong(file: Tale) -> None:
    _late(file, stored=True)
    assert file.judged().wrong == 1


def test_totals_that_do_not_match_may_have_a_row_without_any_change(file: Tale) -> None:
    plain(file)
    for row in file.rows[5:]:
        row["n"] += 1
    file.rows.insert(5, {**file.rows[4], "n": 6, "bids": None, "flags": MISMATCH})
    file.rows[5]["received_us"] += S
    assert file.judged().good
    file.rows[5]["flags"] = 0
    assert not _again(file).good


# --- books kept from changes ------------------------------------------------------------------------------------------


def _gopax(tale: Tale, frames: int) -> tuple[str, int]:
    """A complete book and three changes, all with rows; `frames` of them were compared."""
    name = tale.connect("gopax")
    tale.send(name, 1, bids(1), ASKS, sequence=10)
    tale.send(name, 2, [], [("101", "0")], what="change", sequence=11)
    tale.send(name, 3, [("100", "0")], [("103", "3")], what="change", sequence=14)
    tale.send(name, 4, [("99", "9")], [], what="change", sequence=20)
    epoch = tale.epoch("GOPAX")
    tale.hear(epoch, 1, bids(1), ASKS, sequence=10)
    tale.hear(epoch, 2, None, [("101", "0")], sequence=11)
    tale.hear(epoch, 3, [("100", "0")], None, sequence=13)
    tale.hear(epoch, 3, None, [("103", "3")], sequence=14)
    tale.hear(epoch, 4, [("99", "9")], None, sequence=20)
    tale.epochs[0]["frames"] = frames
    tale.epochs[0]["confirmed_until_us"] = us(frames) + LAG
    return name, epoch


@pytest.mark.parametrize("frames", [4, 3, 1])
def test_changes_are_followed_and_what_nobody_compared_is_claimed_by_nobody(file: Tale, frames: int) -> None:
    _gopax(file, frames)
    verdict = file.judged()
    assert verdict.good, verdict.notes
    assert (verdict.stored, verdict.outside) == (frames, 4 - frames)


def test_the_sides_of_a_change_may_come_in_either_order(file: Tale) -> None:
    _gopax(file, 4)
    two, three = file.rows[2], file.rows[3]
    two["bids"], two["asks"], three["bids"], three["asks"] = None, three["asks"], two["bids"], None
    assert file.judged().good


@pytest.mark.parametrize("frames", [4, 1])
def test_a_row_that_no_change_made_is_wrong_whoever_claims_it(file: Tale, frames: int) -> None:
    _gopax(file, frames)
    file.rows[3]["asks"] = '[["103","4"]]'
    assert file.judged().wrong == 1


def test_half_a_change_is_not_a_change(file: Tale) -> None:
    _gopax(file, 3)
    del file.rows[3:]
    verdict = file.judged()
    assert "accounts for message 3 and has no row of it" in verdict.notes[0]


def test_an_epoch_may_begin_in_the_middle_of_a_subscription(file: Tale) -> None:
    """After a clock that was set the book stays known; nothing is compared yet."""
    name, _ = _gopax(file, 4)
    file.epochs[0]["reason"] = "clock"
    file.send(name, 5, [("98", "1")], [], what="change", sequence=21)
    file.send(name, 6, [], [("103", "1")], what="change", sequence=22)
    epoch = file.epoch("GOPAX", at=5)
    book = [("99", "9"), ("98", "1")], [("102", "2.5"), ("103", "3")]
    file.hear(epoch, 5, *book, sequence=21)
    file.hear(epoch, 6, None, [("103", "1")], sequence=22)
    file.epochs[1] |= {"frames": 0, "confirmed_until_us": us(5) + LAG}
    verdict = file.judged()
    assert verdict.good and verdict.outside == 2, verdict.notes

    file.rows[-2]["bids"] = '[["99","9"]]'
    assert _again(file).wrong == 1


def test_a_change_may_come_before_its_book(file: Tale) -> None:
    name = file.connect("gopax")
    file.send(name, 1, [], [("101", "7")], what="change", sequence=10)
    file.send(name, 1.5, [("98", "7")], [], what="change", sequence=13)
    file.send(name, 2, bids(1), ASKS, sequence=12)
    epoch = file.epoch("GOPAX", at=2)
    file.hear(epoch, 2, bids(1), ASKS, sequence=12)
    file.hear(epoch, 2, [("98", "7")], None, sequence=13)
    file.epochs[0]["frames"] = 1
    verdict = file.judged()
    assert verdict.good and verdict.stored == 2, verdict.notes


@pytest.mark.parametrize(
    ("mended_at", "compared_at", "missing"), [(None, 5.5, 1), (None, None, 1), (7.0, 6.0, 1), (7.0, 8.0, 0)]
)
def test_a_lost_change_counts_where_it_could_have_been_seen(
    file: Tale, mended_at: float | None, compared_at: float | None, missing: int
) -> None:
    """It shows in a comparison, until another change has replaced what it touched."""
    name = file.connect("gopax")
    polls = file.connect("gopax", "rest")
    epoch = file.epoch("GOPAX")
    for number in range(1, 11):
        at = float(number)
        if number == 1:
            file.send(name, at, bids(1), ASKS, sequence=number)
            file.hear(epoch, at, bids(1), ASKS, sequence=number)
        elif number == 5:
            file.send(name, at, [("50", "1")], [], what="change", sequence=number, fate="withheld")
        else:
            level = [("50" if at == mended_at else "100", str(number))]
            file.send(name, at, level, [], what="change", sequence=number)
            file.hear(epoch, at, level, None, sequence=number)
        if compared_at is not None and number == int(compared_at):
            file.send(polls, compared_at + 0.2, bids(number), ASKS)
    verdict = file.judged()
    assert counts(verdict) == (missing, 0, 0), verdict.notes
    assert verdict.sent == 9  # what the book was compared with is no message of the market


# --- polls ------------------------------------------------------------------------------------------------------------


def _polls(tale: Tale, times: list[float], *, lost: float | None = None) -> None:
    """Answers on two connections, the second from three seconds on; all but `lost` are stored."""
    names = tale.connect("bithumb", "rest"), tale.connect("bithumb", "rest", at=2.9)
    epoch = tale.epoch("BITHUMB", "rest", at=times[0])
    for number, at in enumerate(times, 1):
        tale.send(names[at >= 3], at, bids(number), ASKS)
        if number == 1:
            tale.hear(epoch, at, bids(number), ASKS)
        elif at != lost:
            tale.hear(epoch, at, [("100", str(number))], None)


def test_an_epoch_of_polls_goes_on_over_connections(file: Tale) -> None:
    _polls(file, [1.0, 1.9, 2.8, 3.7, 4.6, 5.5])
    assert file.judged().stored == 6


def test_the_last_answer_on_a_connection_may_be_lost(file: Tale) -> None:
    _polls(file, [1.0, 1.9, 2.5, 2.8, 3.7, 4.6, 5.5], lost=2.8)
    verdict = file.judged()
    assert verdict.good and (verdict.stored, verdict.outside) == (6, 1), verdict.notes


def test_any_other_answer_may_not(file: Tale) -> None:
    _polls(file, [1.0, 1.9, 2.5, 2.8, 3.7, 4.6, 5.5], lost=2.5)
    assert file.judged().wrong == 1


@pytest.mark.parametrize(("apart_s", "missing"), [(0.5, 0), (4.0, 1)])
def test_a_poll_that_was_not_answered_leaves_a_gap_only_between_answers_far_apart(
    file: Tale, apart_s: float, missing: int
) -> None:
    first = [3.0, 3.5, 4.0, 4.5, 5.0]
    _polls(file, first + [5.0 + apart_s + 0.5 * number for number in range(1, 8)])
    file.send("2", 5.0 + apart_s / 2, bids(1), ASKS, fate="withheld")
    assert counts(file.judged()) == (missing, 0, 0)


# --- garbage ----------------------------------------------------------------------------------------------------------


def _garbage(tale: Tale) -> Tale:
    """Two epochs with a spoiled message between them."""
    name = tale.connect()
    for epoch in (tale.epoch(at=1, reason="rejected"), tale.epoch(at=5)):
        for number in range(3):
            at = 1 + 4 * (epoch - 1) + number
            tale.send(name, at, bids(at), ASKS)
            tale.hear(epoch, at, bids(at) if number == 0 else [("100", str(at))], ASKS if number == 0 else None)
    tale.garbage(name, 4, b"{\xff")
    tale.lines.sort(key=lambda line: line["time_us"])
    tale.rejected.append({"exchange": "UPBIT", "frame": b"{\xff"})
    return tale


def test_garbage_that_is_kept_is_good(tale: Tale) -> None:
    verdict = _garbage(tale).judged()
    assert verdict.good, verdict.notes
    assert (verdict.sent, verdict.stored, verdict.rejected) == (7, 6, 1)


def test_garbage_that_was_heard_must_be_kept(file: Tale) -> None:
    _garbage(file).rejected.clear()
    verdict = file.judged()
    assert verdict.wrong == 2
    assert "garbage b'{\\xff' was heard and is not kept" in verdict.notes[0]
    assert "ended for a rejected frame; none is kept" in verdict.notes[1]


def test_garbage_that_nothing_followed_need_not_be(file: Tale) -> None:
    """The collector was killed before it could commit it, for all that is known."""
    name = plain(file).connect(at=20)
    file.garbage(name, 21, b"?")
    assert file.judged().good


@pytest.mark.parametrize(("followed", "wrong"), [(True, 1), (False, 0)])
def test_garbage_among_polls_must_be_kept_where_its_connection_went_on(file: Tale, followed: bool, wrong: int) -> None:
    """The next connection may be that of another run: the one before was killed."""
    before, after = file.connect("bithumb", "rest"), file.connect("bithumb", "rest", at=2.9)
    first = file.epoch("BITHUMB", "rest", at=1.0, reason="disconnect")
    for number, at in enumerate((1.0, 1.5, 2.0), 1):
        file.send(before, at, bids(number), ASKS)
        file.hear(first, at, bids(number), ASKS)
    file.garbage(before, 2.2, b"?")
    for name, at in ((before, 2.5), (after, 3.5)):
        if name == after or followed:
            epoch = file.epoch("BITHUMB", "rest", at=at)
            file.send(name, at, bids(9), ASKS)
            file.hear(epoch, at, bids(9), ASKS)
    verdict = file.judged()
    assert counts(verdict) == (0, wrong, 0), verdict.notes


@pytest.mark.parametrize("frame", [b'{"good":1}', b"{\xff"])
def test_nothing_else_may_be_rejected_and_nothing_twice(file: Tale, frame: bytes) -> None:
    _garbage(file).rejected.append({"exchange": "UPBIT", "frame": frame})
    verdict = file.judged()
    assert verdict.wrong == 1
    assert "was rejected 1 times more than it was sent" in verdict.notes[0]


def test_garbage_inside_coverage_is_wrong(file: Tale) -> None:
    plain(file).garbage("1", 4.5, b"?")
    file.lines.sort(key=lambda line: line["time_us"])
    verdict = file.judged()
    assert any("holds garbage (message 11) inside its coverage" in note for note in verdict.notes)


# --- the spool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wrong"), [("0000000001.spool", 1), ("0000000001.dropped", 1), ("lock", 0)])
def test_a_spool_must_be_empty_at_the_end(file: Tale, name: str, wrong: int) -> None:
    file.spool = file.folder / "spool"
    assert plain(file).judged().good
    file.spool.mkdir()
    (file.spool / name).write_bytes(b"something")
    assert _again(file).wrong == wrong
