"""What the judge finds of trades, tickers and candles: a tale that is well, and one thing at a time that is not."""

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from collector.records import (
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    Record,
    Rejected,
    StreamRow,
    TickerRow,
    TradeRow,
)
from simulator.judge import Verdict, judge
from tests.storage.build import OneRun

T = 1_795_219_200_000_000
S = 1_000_000
LAG = 2_000
CHANNELS = ("trades", "ticker", "candles")
WHAT = {"trades": "trade", "ticker": "ticker", "candles": "candle"}


class Tale:
    """A ledger of one simulator and what one collector made of it; every message comes `LAG` later."""

    def __init__(self, folder: Path, channel: str, clock_us: int = 0) -> None:
        self.folder, self.channel, self.clock_us = folder, channel, clock_us
        self.lines: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.changes: list[str] = []  # of the store, when all is written
        self._sent: dict[str, int] = {}
        self._epochs = 0
        self.transport = ""

    def connect(self, at: float = 0, transport: str = "websocket") -> str:
        name = str(len(self._sent) + 1)
        self._sent[name] = 0
        names = {"connection": name, "exchange": "upbit", "time_us": us(at)}
        self.transport = transport
        self.lines.append({"kind": "open", "transport": transport, **names})
        more = {"subscription": name, "market": "BTC-KRW", "channel": self.channel}
        self.lines.append({"kind": "subscribe", **names, **more})
        return name

    def send(self, name: str, at: float, *rows: dict[str, Any], fate: str = "sent", **more: Any) -> None:
        self._sent[name] += 1
        line = {
            "kind": "message",
            "subscription": name,
            "i": self._sent[name],
            "what": WHAT[self.channel],
            "fate": fate,
        }
        self.lines.append({**line, "rows": rows, "time_us": us(at), **more})

    def close(self, name: str, at: float) -> None:
        self.lines.append({"kind": "close", "connection": name, "why": "gone", "time_us": us(at)})

    def epoch(self, at: float, until: float, frames: int, *rows: dict[str, Any], reason: str = "stop") -> int:
        """Keep rows that came at their `at`; the epoch accounts for so many messages."""
        self._epochs += 1
        number = self._epochs
        self.records.append(EpochOpened(number, "UPBIT", "BTC-KRW", self.channel, self.transport, self.here(at)))
        self.records += [self.row(number, row) for row in rows]
        self.records.append(CoverageMark(number, self.here(until), self.here(until), frames))
        self.records.append(EpochEnded(number, self.here(until), reason))
        return number

    def here(self, at: float) -> int:
        return us(at) + LAG + self.clock_us

    def row(self, epoch: int, row: dict[str, Any]) -> StreamRow:
        received_us = self.here((row["venue_us"] - T) / S)
        if self.channel == "trades":
            return TradeRow(epoch, row["id"], row["side"], row["price"], row["volume"], received_us, row["venue_us"])
        if self.channel == "ticker":
            prices = row["last"], row["bid"], row["ask"], row["volume"]
            return TickerRow(epoch, received_us, row["venue_us"], *prices)
        candle = {name: row[name] for name in ("open_us", "open", "high", "low", "close", "volume", "closed")}
        return CandleRow(epoch=epoch, interval_s=60, received_us=received_us, **candle)

    def judged(self) -> Verdict:
        ledger, path = self.folder / "ledger.jsonl", self.folder / "db.sqlite"
        lines = sorted(self.lines, key=lambda line: line["time_us"])
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        store = OneRun(path)
        store.open()
        store.put([Delivery("upbit", 1, tuple(self.records), 100)], T)
        store.end_run(T)
        store.release()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for sql in self.changes:
                assert db.execute(sql).rowcount, sql
        return judge(ledger, path)


def us(at: float) -> int:
    return T + round(at * S)


def told(channel: str, at: float, n: int, **more: Any) -> dict[str, Any]:
    """The n-th trade, ticker or candle of a market; candles change their minute every fourth."""
    if channel == "trades":
        return {"id": str(n), "side": "buy", "price": f"{n}.50", "volume": "2", "venue_us": us(at), **more}
    if channel == "ticker":
        return {"last": f"{n}.5", "bid": "1", "ask": None, "volume": "7.0", "venue_us": us(at), **more}
    when = {"interval_s": 60, "open_us": T + n // 4 * 60 * S, "venue_us": us(at)}
    prices = {"open": "1", "high": "9", "low": "0.5", "close": f"{n}.5", "volume": str(n)}
    return {**when, **prices, "closed": n % 4 == 3, **more}


def plain(folder: Path, channel: str, clock_us: int = 0) -> Tale:
    """Ten messages, heard; three that nobody heard; four, heard by a second epoch on another connection."""
    tale = Tale(folder, channel, clock_us)
    rows = [told(channel, 1 + n, n) for n in range(17)]
    first = tale.connect()
    for n in range(13):
        tale.send(first, 1 + n, rows[n])
    tale.close(first, 13.5)
    tale.epoch(0.5, 10, 10, *rows[:10], reason="disconnect")
    second = tale.connect(13.8)
    for n in range(13, 17):
        tale.send(second, 1 + n, rows[n])
    tale.epoch(13.9, 17, 4, *rows[13:])
    return tale


@pytest.fixture(params=CHANNELS)
def tale(request: pytest.FixtureRequest, tmp_path: Path) -> Tale:
    return plain(tmp_path, request.param)


def test_what_is_well_is_found_so(tale: Tale) -> None:
    verdict = tale.judged()
    assert verdict.notes == []
    assert (verdict.sent, verdict.stored, verdict.duplicate, verdict.outside) == (17, 14, 0, 3)
    assert (verdict.missing, verdict.wrong, verdict.corrupt, verdict.epochs) == (0, 0, 0, 2)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_collectors_clock_may_be_wrong(tmp_path: Path, channel: str) -> None:
    assert plain(tmp_path, channel, clock_us=-7200 * S).judged().good


SPOILT = {
    "a row less": "DELETE FROM {table} WHERE received_us = {fourth}",
    "another price": "UPDATE {table} SET volume = '66' WHERE received_us = {fourth}",
    "a row too many": "INSERT INTO {table} SELECT {columns} FROM {table} WHERE received_us = {fourth}",
    "more than was sent": "UPDATE coverage SET frames = 40 WHERE epoch = 1",
    "less than there is": "UPDATE coverage SET frames = 8 WHERE epoch = 1",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_row_that_is_not_what_was_sent_is_wrong(tale: Tale, how: str) -> None:
    """Mutation: leave out any of the conditions of `_Attempt`."""
    if (tale.channel, how) == ("candles", "less than there is"):
        return  # a candle is there only as it was told last: what is left proves fewer messages as well
    table = WHAT[tale.channel]
    columns = {
        "trades": "feed, venue_us, 'x' || trade_id, received_us, epoch, side, price, volume",
        "ticker": "feed, received_us + 1, venue_us, epoch, '66', bid, ask, volume",
        "candles": "feed, interval_s, open_us + 7, open, high, low, close, volume, closed, received_us, epoch",
    }[tale.channel]
    fourth = tale.here(4)  # that is the end of the first candle
    tale.changes.append(SPOILT[how].format(table=table, columns=columns, fourth=fourth))
    verdict = tale.judged()
    assert not verdict.good and verdict.wrong, verdict.notes


def test_a_row_without_an_epoch_is_corrupt(tale: Tale) -> None:
    tale.changes.append(f"UPDATE {WHAT[tale.channel]} SET epoch = 77 WHERE received_us = {tale.here(4)}")
    assert tale.judged().corrupt


def test_what_was_sent_and_is_not_held_must_lie_outside_coverage(tale: Tale) -> None:
    until_us = tale.here(13.4)
    tale.changes.append(f"UPDATE coverage SET heard_until_us = {until_us}, confirmed_until_us = {until_us}")
    assert tale.judged().missing == 1  # the other two are too near to the end


def test_a_repeat_is_a_duplicate(tale: Tale) -> None:
    """A message that says the same again counts and makes no row."""
    repeat = told(tale.channel, 1 + 13, 13)
    tale.lines = [line for line in tale.lines if line["kind"] != "message" or line["time_us"] != us(14)]
    again = tale.lines[-1]["subscription"]
    tale._sent[again] = 0
    tale.send(again, 14, repeat)
    tale.send(again, 14.5, repeat)
    tale.changes.append("UPDATE coverage SET frames = 5 WHERE epoch = 2")
    verdict = tale.judged()
    assert (verdict.notes, verdict.stored, verdict.duplicate) == ([], 14, 1)


def test_one_that_is_withheld_among_others_shows_nowhere(tmp_path: Path) -> None:
    tale = Tale(tmp_path, "trades")
    name = tale.connect()
    for n in range(8):
        tale.send(name, 1 + n, told("trades", 1 + n, n), fate="withheld" if n == 4 else "sent")
    tale.epoch(0.5, 8, 7, *(told("trades", 1 + n, n) for n in range(8) if n != 4))
    verdict = tale.judged()
    assert (verdict.notes, verdict.withheld, verdict.stored) == ([], 1, 7)


def test_a_silence_of_withheld_ones_must_not_be_claimed(tmp_path: Path) -> None:
    """Mutation: `_nobody_could_know` without the newest one held."""
    tale = Tale(tmp_path, "trades")
    name = tale.connect()
    for n in range(12):
        tale.send(name, 1 + n, told("trades", 1 + n, n), fate="withheld" if n > 3 else "sent")
    tale.epoch(0.5, 12, 4, *(told("trades", 1 + n, n) for n in range(4)))
    assert tale.judged().missing


def test_an_epoch_may_begin_in_the_middle_and_garbage_belongs_to_none(tmp_path: Path) -> None:
    tale = Tale(tmp_path, "trades")
    name = tale.connect()
    for n in range(8):
        if n == 4:
            frame = base64.b64encode(b"{").decode()
            tale.send(name, 1 + n, what="garbage", frame=frame)
        else:
            tale.send(name, 1 + n, told("trades", 1 + n, n))
    rows = [told("trades", 1 + n, n) for n in range(8)]
    tale.epoch(0.5, 4, 4, *rows[:4], reason="rejected")
    tale.records.append(Rejected("upbit", "BTC-KRW", tale.here(5), "no JSON", b"{"))
    tale.epoch(6, 8, 3, *rows[5:])
    verdict = tale.judged()
    assert (verdict.notes, verdict.stored, verdict.rejected) == ([], 7, 1)


def test_what_two_connections_brought_is_there_once(tmp_path: Path) -> None:
    """A planned reconnect: each trade is in the store under the epoch that was faster."""
    tale = Tale(tmp_path, "trades")
    old, new = tale.connect(), tale.connect(3.5)
    rows = [told("trades", 1 + n, n) for n in range(10)]
    for n, row in enumerate(rows):
        if n < 7:
            tale.send(old, 1 + n, row)
        if n > 2:
            tale.send(new, 1 + n, row)
    tale.close(old, 7.5)
    tale.epoch(0.5, 6, 6, *rows[:6], reason="superseded")
    tale.epoch(3.6, 10, 7, *rows[6:])
    verdict = tale.judged()
    assert (verdict.notes, verdict.sent, verdict.stored, verdict.duplicate) == ([], 14, 10, 3)
    assert verdict.outside == 1


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("lost", [False, True])
def test_the_last_answer_to_a_poll_may_have_been_lost(tmp_path: Path, channel: str, lost: bool) -> None:
    """Whether it says something new or not."""
    for new in (False, True):
        folder = tmp_path / str(new)
        folder.mkdir()
        tale = Tale(folder, channel)
        name = tale.connect(transport="rest")
        rows = [told(channel, 1 + n, n) for n in range(5)]
        for n, row in enumerate(rows):
            tale.send(name, 1 + n, row)
        tale.send(name, 6, told(channel, 6, 6) if new else rows[4])
        heard = [*rows, told(channel, 6, 6)] if new and not lost else rows
        tale.epoch(0.9, 5 if lost else 6, 5 if lost else 6, *heard)
        assert tale.judged().notes == []


def test_a_candle_that_only_the_next_one_closes(tmp_path: Path) -> None:
    tale = Tale(tmp_path, "candles")
    name = tale.connect()
    sent = [told("candles", 1 + n, n, closed=False) for n in range(6)]
    for n, row in enumerate(sent):
        tale.send(name, 1 + n, row)
    tale.epoch(0.5, 6, 6, *sent[:3], {**sent[3], "closed": True}, *sent[4:])
    assert tale.judged().notes == []


def test_changes_of_a_ticker_stand_with_what_was_known(tmp_path: Path) -> None:
    tale = Tale(tmp_path, "ticker")
    name = tale.connect()
    tale.send(name, 1, told("ticker", 1, 1))
    tale.send(name, 2, told("ticker", 2, 2, bid=None, volume=None))
    tale.epoch(0.5, 2, 2, told("ticker", 1, 1), told("ticker", 2, 2))
    assert tale.judged().notes == []


def test_trades_without_ids_are_known_by_what_they_say(tmp_path: Path) -> None:
    tale = Tale(tmp_path, "trades")
    name = tale.connect()
    for n in range(3):
        tale.send(name, 1 + n, told("trades", 1 + n, n, id="None"))
    tale.epoch(0.5, 3, 3, *(told("trades", 1 + n, n, id=f"hash{n}") for n in range(3)))
    verdict = tale.judged()
    assert (verdict.notes, verdict.stored) == ([], 3)
