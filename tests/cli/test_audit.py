"""`audit sides`: what it prints of trades and the books they met."""

import json
from pathlib import Path

import pytest

from collector.records import KEYFRAME, BookRow, CoverageMark, Delivery, EpochOpened, Record, TradeRow
from tests.cli.conftest import Type
from tests.storage.build import T0, OneRun

BIDS, ASKS = '[["99.5","1"],["99","2"]]', '[["1.005E2","1"],["101","2"]]'


def trades(epoch: int, *sides_and_prices: tuple[str, str]) -> list[Record]:
    return [
        TradeRow(epoch, str(number), side, price, "1", T0 + 20 + number, T0 + 10 + number)
        for number, (side, price) in enumerate(sides_and_prices)
    ]


@pytest.fixture
def audited(folder: Path) -> Path:
    """Three feeds of trades: one that agrees but once, one the wrong way round, one without books."""
    store = OneRun(folder / "some.sqlite")
    store.open()
    records: list[Record] = []
    feeds = {
        ("UPBIT", "BTC-KRW"): [("buy", "100.5"), ("sell", "99.50"), ("buy", "100"), ("buy", "99")],
        ("BITHUMB", "BTC-KRW"): [("sell", "100.5"), ("buy", "99.5")],
        ("KORBIT", "ETH-KRW"): [("buy", "100.5")],
    }
    epochs = iter(range(1, 10))
    for (exchange, market), told in feeds.items():
        if exchange != "KORBIT":
            epoch = next(epochs)
            records.append(EpochOpened(epoch, exchange, market, "orderbook", "websocket", T0))
            records.append(BookRow(epoch, 1, 0, -5, None, KEYFRAME, BIDS, ASKS))
            records.append(CoverageMark(epoch, T0 + 100, T0 + 100, 1))
        epoch = next(epochs)
        records.append(EpochOpened(epoch, exchange, market, "trades", "websocket", T0))
        records += trades(epoch, *told)
        records.append(CoverageMark(epoch, T0 + 100, T0 + 100, len(told)))
    store.put([Delivery("upbit", 1, tuple(records), 100)], T0)
    store.release()
    return folder / "some.sqlite"


def test_every_market_has_a_row_of_its_counts(type_: Type, audited: Path) -> None:
    ended = type_("audit", "sides", "--db", audited)
    assert (ended.status, ended.err) == (0, "")
    head, *rows = [line.split() for line in ended.out.splitlines()]
    assert head == ["exchange", "market", "trades", "judged", "agreeing", "contradicting", "undecided", "percent"]
    assert rows == [
        ["BITHUMB", "BTC-KRW", "2", "0", "2", "0", "0.0", "%"],
        ["KORBIT", "ETH-KRW", "0", "0", "0", "1"],
        ["UPBIT", "BTC-KRW", "3", "2", "1", "1", "66.7", "%"],
    ]


def test_one_market_and_a_time_can_be_asked_for_and_told_as_json(type_: Type, audited: Path) -> None:
    (told,) = json.loads(type_("audit", "sides", "--db", audited, "--json", "-e", "upbit", "-m", "BTC-KRW").out)
    assert told == {
        "exchange": "UPBIT", "market": "BTC-KRW", "judged": 3, "agreeing": 2, "contradicting": 1, "undecided": 1,
        "percent": "66.7",
    }  # fmt: skip
    later = type_("audit", "sides", "--db", audited, "--json", "-e", "upbit", "--from", "2026-01-01")
    assert [row["judged"] for row in json.loads(later.out)] == [0]


def test_what_is_not_there_is_said(type_: Type, audited: Path, recorded: Path) -> None:
    nothing = type_("audit", "sides", "--db", recorded)
    assert (nothing.status, nothing.out) == (2, "")
    assert "holds no trades" in nothing.err
    unknown = type_("audit", "sides", "--db", audited, "-e", "nope")
    assert (unknown.status, unknown.out) == (2, "")
