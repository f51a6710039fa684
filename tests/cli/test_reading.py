"""The commands that read a database: what they print, what they write, how they end."""

import csv
import gzip
import hashlib
import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from collector.records import CandleRow, CoverageMark, Delivery, EpochOpened, Record, TickerRow, TradeRow
from tests.cli.conftest import Type
from tests.storage.build import T0, OneRun


def levels(entries: list[list[str]]) -> list[tuple[Decimal, Decimal]]:
    return [(Decimal(price), Decimal(volume)) for price, volume in entries]


def test_export_json_is_an_array_of_complete_books_with_a_receipt(type_: Type, recorded: Path, folder: Path) -> None:
    ended = type_("export", "UPBIT", "books.json", "--db", recorded)

    books = json.loads((folder / "books.json").read_bytes())
    receipt = json.loads((folder / "books.json.manifest.json").read_bytes())
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.startswith(f"books.json: {len(books)} books in {len(books)} rows, ")
    assert len(ended.err.splitlines()) == 1
    assert receipt["sha256"] == hashlib.sha256((folder / "books.json").read_bytes()).hexdigest()
    assert receipt["books"] == len(books) > 5
    for book in books:
        assert (book["exchange"], book["symbol"], book["currency"]) == ("UPBIT", "BTC", "KRW")
        asks, bids = levels(book["asks"]), levels(book["bids"])
        assert asks == sorted(asks) and bids == sorted(bids, reverse=True)
        assert bids[0][0] < asks[0][0]


def test_every_format_tells_the_same_books(type_: Type, recorded: Path, folder: Path) -> None:
    for name in ("books.json", "books.ndjson", "books.csv", "books.json.gz", "books.ndjson.gz"):
        assert type_("export", "korbit", name, "--db", recorded).status == 0

    books = json.loads((folder / "books.json").read_bytes())
    lines = [json.loads(line) for line in (folder / "books.ndjson").read_text().splitlines()]
    rows = list(csv.DictReader((folder / "books.csv").read_text().splitlines()))
    assert lines == books
    assert gzip.decompress((folder / "books.json.gz").read_bytes()) == (folder / "books.json").read_bytes()
    assert gzip.decompress((folder / "books.ndjson.gz").read_bytes()) == (folder / "books.ndjson").read_bytes()
    assert [(row["side"], row["price"], row["volume"]) for row in rows] == [
        (side, *level) for book in books for side in ("ask", "bid") for level in book[f"{side}s"]
    ]


@pytest.mark.parametrize("channel", ["trades", "ticker", "candles"])
def test_other_channels_are_exported_by_name(type_: Type, folder: Path, channel: str) -> None:
    rows: dict[str, Record] = {
        "trades": TradeRow(1, "7", "buy", "1.50", "2E-8", T0 + 9, T0 + 5),
        "ticker": TickerRow(1, T0 + 9, T0 + 5, "1.50", "1", None, "3"),
        "candles": CandleRow(1, 60, T0, "1", "2", "0.5", "1.50", "3", True, T0 + 9),
    }
    store = OneRun(folder / "some.sqlite")
    store.open()
    opened = EpochOpened(1, "UPBIT", "BTC-KRW", channel, "websocket", T0)
    store.put([Delivery("upbit", 1, (opened, rows[channel], CoverageMark(1, T0 + 9, T0 + 9, 1)), 100)], T0)
    store.release()

    ended = type_("export", "upbit", "some.ndjson", "--channel", channel, "--db", "some.sqlite")
    assert ended.status == 0, ended.err
    (told,) = (json.loads(line) for line in (folder / "some.ndjson").read_text().splitlines())
    assert told["exchange"] == "UPBIT" and "1.50" in told.values()
    assert ended.err.startswith(f"some.ndjson: 1 {'tickers' if channel == 'ticker' else channel}, ")
    assert json.loads((folder / "some.ndjson.manifest.json").read_bytes())["query"]["channel"] == channel

    refused = type_("export", "upbit", "books.json", "--db", "some.sqlite")
    assert (refused.status, refused.out) == (2, "")
    assert "holds no order books of UPBIT" in refused.err
    shown = type_("coverage", "--db", "some.sqlite", "--channel", channel)
    assert "channel" in shown.out and channel in shown.out
    (feed,) = json.loads(type_("coverage", "--db", "some.sqlite", "--json").out)
    assert (feed["exchange"], feed["market"], feed["channel"]) == ("UPBIT", "BTC-KRW", channel)


def test_a_dash_writes_to_standard_output_and_the_receipt_stays_apart(
    type_: Type, recorded: Path, folder: Path
) -> None:
    before = set(folder.iterdir())
    ended = type_("export", "GOPAX", "-", "--format", "ndjson", "--db", recorded)

    books = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.status == 0
    assert {book["exchange"] for book in books} == {"GOPAX"}
    assert ended.err.startswith("standard output: ")
    assert {path.name for path in set(folder.iterdir()) - before} <= {"demo.sqlite-wal", "demo.sqlite-shm"}


def test_market_range_and_numbers(type_: Type, recorded: Path, folder: Path) -> None:
    assert type_("export", "BITHUMB", "all.json", "--db", recorded).status == 0
    books = json.loads((folder / "all.json").read_bytes())
    assert {book["symbol"] for book in books} == {"BTC", "ETH"}
    middle = books[len(books) // 2]["received_us"]
    seconds = f"{middle // 1_000_000}.{middle % 1_000_000:06d}"

    assert type_("export", "BITHUMB", "eth.json", "-m", "ETH-KRW", "--from", seconds, "--numbers", "--db", recorded)
    some = json.loads((folder / "eth.json").read_bytes(), parse_float=Decimal, parse_int=Decimal)
    expected = [book for book in books if book["symbol"] == "ETH" and book["received_us"] >= middle]
    assert [book["received_us"] for book in some] == [book["received_us"] for book in expected]
    assert [book["asks"] for book in some] == [[list(level) for level in levels(book["asks"])] for book in expected]


def test_a_file_that_exists_is_replaced_only_on_demand(type_: Type, recorded: Path, folder: Path) -> None:
    (folder / "books.json").write_text("mine")
    refused = type_("export", "UPBIT", "books.json", "--db", recorded)
    assert refused.status == 2
    assert "books.json is there already" in refused.err
    assert (folder / "books.json").read_text() == "mine"

    assert type_("export", "UPBIT", "books.json", "--db", recorded, "--overwrite").status == 0
    assert json.loads((folder / "books.json").read_bytes())


def test_book_is_the_exported_book_of_that_moment(type_: Type, recorded: Path, folder: Path) -> None:
    type_("export", "UPBIT", "books.json", "--db", recorded)
    book = json.loads((folder / "books.json").read_bytes())[2]
    us = book["received_us"]

    shown = type_("book", "upbit", "--at", f"{us // 1_000_000}.{us % 1_000_000:06d}", "--depth", "0", "--json",
                  "--db", recorded)  # fmt: skip
    found = json.loads(shown.out)
    assert shown.status == 0
    assert (found["received_us"], found["n"]) == (us, book["n"])
    assert (found["asks"], found["bids"]) == (book["asks"], book["bids"])


def test_book_shows_the_newest_one_as_a_table(type_: Type, recorded: Path) -> None:
    shown = type_("book", "UPBIT", "--depth", "3", "--db", recorded)
    lines = shown.out.splitlines()
    assert shown.status == 0
    assert lines[0].split() == ["volume", "bid", "ask", "volume"]
    assert len(lines) == 5
    assert lines[-1].startswith("UPBIT BTC-KRW received 20")
    assert "30 bids, 30 asks, websocket, checksummed" in lines[-1]


def test_book_says_that_nobody_listened_then(type_: Type, recorded: Path) -> None:
    ended = type_("book", "UPBIT", "--at", "2020-01-01", "--db", recorded)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("no book of UPBIT BTC-KRW then: ")


def test_coverage_adds_up_to_a_hundred(type_: Type, recorded: Path) -> None:
    shown = type_("coverage", "--db", recorded)
    assert shown.status == 0
    assert len(shown.out.splitlines()) == 7

    feeds = json.loads(type_("coverage", "--json", "--db", recorded).out)
    assert {feed["exchange"] for feed in feeds} == {"BITHUMB", "COINONE", "GOPAX", "KORBIT", "UPBIT"}
    for feed in feeds:
        assert sum(Decimal(share) for share in feed["percent"].values()) == 100
        assert feed["gap_us"] == 0

    one = json.loads(type_("coverage", "-e", "bithumb", "-m", "ETH-KRW", "--json", "--db", recorded).out)
    assert [(feed["exchange"], feed["market"]) for feed in one] == [("BITHUMB", "ETH-KRW")]


def test_backup_is_a_whole_database(type_: Type, recorded: Path, folder: Path) -> None:
    ended = type_("backup", "copy.sqlite", "--db", recorded)
    assert ended.status == 0, ended.err
    assert ended.err.startswith("copy.sqlite: ")
    assert ended.err.rstrip().endswith("verified")
    with closing(sqlite3.connect(recorded)) as one, closing(sqlite3.connect(folder / "copy.sqlite")) as other:
        for table in ("book", "epoch", "coverage", "event"):
            query = f"SELECT * FROM {table} ORDER BY 1"
            assert one.execute(query).fetchall() == other.execute(query).fetchall()

    assert type_("backup", "copy.sqlite", "--db", recorded).status == 2


def test_check_shows_every_setting_whole_and_with_its_source(type_: Type) -> None:
    shown = type_("check")
    assert (shown.status, shown.err) == (0, "")
    assert "exchanges.bithumb.markets_per_connection" in shown.out
    assert "exchanges.bithumb.transport " in shown.out
    assert "config/collector.yaml:" in shown.out
    assert shown.out.splitlines()[-1] == "ok: 5 feeds on 5 connections"


@pytest.mark.parametrize("command", ["", "demo", "check", "markets", "status", "export", "book", "coverage", "backup",
                                     "simulate"])  # fmt: skip
def test_help_of_every_command(type_: Type, command: str) -> None:
    shown = type_(*filter(None, [command]), "--help")
    assert shown.status == 0
    assert f"Usage: run_controller.py{' ' * bool(command)}{command} " in shown.out
    assert "Traceback" not in shown.out + shown.err
