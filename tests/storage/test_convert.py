"""Exports: equal to the books, digit for digit; whole or not there; with a receipt that adds up."""

import csv
import fcntl
import gzip
import hashlib
import io
import json
import re
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collector.errors import ConfigError, StorageError
from storage.convert import DataConverter, moment_us
from storage.reader import Reader, UnknownFeed
from tests.storage.build import T0, Builder

BIDS = [("100.50", "1.0"), ("100", "2")]
ASKS = [("101", "0.00000001"), ("102", "3")]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Builder]:
    builder = Builder(tmp_path / "books.sqlite")
    yield builder
    builder.close()


@pytest.fixture
def filled(db: Builder) -> Builder:
    """Two epochs of one market with a gap between, one of another market, one of another exchange."""
    epoch = db.epoch(opened_us=T0 + 123_456, heard_us=T0 + 2_000_000, reason="disconnect")
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True, lag_us=456)
    db.row(epoch, 2, 1_000_000, bids=[("100", "0")], flags=2)
    epoch = db.epoch(opened_us=T0 + 5_000_000, heard_us=T0 + 6_000_000, reason="stop")
    db.row(epoch, 1, 0, bids=BIDS, asks=[], keyframe=True)
    epoch = db.epoch(market="ETH-KRW", opened_us=T0, heard_us=T0 + 10, reason="stop")
    db.row(epoch, 1, 0, bids=[], asks=ASKS, keyframe=True)
    epoch = db.epoch(exchange="GOPAX", opened_us=T0, heard_us=T0 + 10, reason="stop")
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    return db


def test_json_is_an_array_of_complete_books(filled: Builder, tmp_path: Path) -> None:
    out = tmp_path / "upbit.json"
    DataConverter(filled.path).export("upbit", out, market="BTC-KRW")
    books = json.loads(out.read_text(), parse_float=Decimal)
    assert len(books) == 3
    assert books[1] == {
        "exchange": "UPBIT",
        "symbol": "BTC",
        "currency": "KRW",
        "timestamp": Decimal("1700000001.123456"),
        "received_us": T0 + 1_123_456,
        "venue_us": None,
        "epoch": 1,
        "n": 2,
        "flags": ["crossed"],
        "asks": [["101", "0.00000001"], ["102", "3"]],
        "bids": [["100.50", "1.0"]],
    }
    assert '"timestamp":1700000005.000000,' in out.read_text()
    assert books[0]["venue_us"] == T0 + 123_000


@pytest.mark.parametrize("mode", ["books", "levels"])
@pytest.mark.parametrize("numbers", [False, True])
def test_ndjson_holds_what_json_holds(filled: Builder, tmp_path: Path, mode: Any, numbers: bool) -> None:
    converter = DataConverter(filled.path)
    options: Any = {"mode": mode, "numbers": numbers}
    converter.export("upbit", tmp_path / "a.json", format="json", **options)
    converter.export("upbit", tmp_path / "a.ndjson", format="ndjson", **options)
    lines = [json.loads(line, parse_float=str) for line in (tmp_path / "a.ndjson").read_text().splitlines()]
    assert lines == json.loads((tmp_path / "a.json").read_text(), parse_float=str)
    assert len(lines) == (4 if mode == "books" else 4 + 3 + 2 + 2)


def test_all_markets_of_an_exchange_and_of_no_other(filled: Builder, tmp_path: Path) -> None:
    receipt = DataConverter(filled.path).export("UPBIT", tmp_path / "a.json")
    books = json.loads((tmp_path / "a.json").read_text())
    assert [(book["exchange"], book["symbol"]) for book in books] == [("UPBIT", "BTC")] * 3 + [("UPBIT", "ETH")]
    assert [(feed.market, feed.books) for feed in receipt.feeds] == [("BTC-KRW", 3), ("ETH-KRW", 1)]


def test_csv_has_the_seven_columns_a_line_a_level(filled: Builder, tmp_path: Path) -> None:
    out = tmp_path / "upbit.csv"
    receipt = DataConverter(filled.path).export("upbit", out, format="csv", market="btc-krw")
    rows = list(csv.reader(io.StringIO(out.read_text())))
    assert rows[0] == ["exchange", "symbol", "currency", "timestamp", "side", "price", "volume"]
    assert rows[1:5] == [
        ["UPBIT", "BTC", "KRW", "1700000000.123456", "ask", "101", "0.00000001"],
        ["UPBIT", "BTC", "KRW", "1700000000.123456", "ask", "102", "3"],
        ["UPBIT", "BTC", "KRW", "1700000000.123456", "bid", "100.50", "1.0"],
        ["UPBIT", "BTC", "KRW", "1700000000.123456", "bid", "100", "2"],
    ]
    assert (len(rows) - 1, receipt.rows, receipt.books) == (9, 9, 3)


def test_levels_as_objects_have_the_seven_names(filled: Builder, tmp_path: Path) -> None:
    DataConverter(filled.path).export("gopax", tmp_path / "a.json", mode="levels")
    rows = json.loads((tmp_path / "a.json").read_text(), parse_float=str)
    assert rows[0] == {
        "exchange": "GOPAX",
        "symbol": "BTC",
        "currency": "KRW",
        "timestamp": "1700000000.000000",
        "side": "ask",
        "price": "101",
        "volume": "0.00000001",
    }
    assert [row["side"] for row in rows] == ["ask", "ask", "bid", "bid"]


@pytest.mark.parametrize("mode", ["books", "levels"])
def test_bare_numbers_keep_their_digits(db: Builder, tmp_path: Path, mode: Any) -> None:
    digits = "123456789012345678901234567890.000000000000000000010"
    epoch = db.epoch()
    db.row(epoch, 1, 0, bids=[(digits, "007.50"), ("0.10", "00")], asks=[], keyframe=True)
    out = tmp_path / "a.json"
    DataConverter(db.path).export("upbit", out, numbers=True, mode=mode)
    (text,) = [out.read_text().replace('"price":', "[").replace('"volume":', "").replace("}", "]")]
    assert f"[{digits},7.50]" in text
    assert "[0.10,0]" in text
    json.loads(out.read_text())


@pytest.mark.parametrize(("format", "text"), [("json", "[\n]\n"), ("ndjson", ""), ("csv", None)])
def test_range_without_books_gives_a_whole_and_empty_file(
    filled: Builder, tmp_path: Path, format: Any, text: str | None
) -> None:
    out = tmp_path / "a"
    receipt = DataConverter(filled.path).export("upbit", out, format=format, start=T0 + 3_000_000, end=T0 + 4_000_000)
    assert out.read_text() == (text if text is not None else "exchange,symbol,currency,timestamp,side,price,volume\n")
    assert (receipt.rows, receipt.covered_seconds, receipt.first_us) == (0, "0.000000", None)
    assert [(gap.reason, gap.until_us - gap.from_us) for gap in receipt.gaps if gap.market == "BTC-KRW"] == [
        ("disconnect", 1_000_000)
    ]


def test_receipt_tells_what_the_file_holds(filled: Builder, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    receipt = DataConverter(filled.path).export("upbit", out, market="BTC-KRW", start=T0, end=T0 + 10_000_000)
    manifest = json.loads((tmp_path / "a.json.manifest.json").read_text())
    content = out.read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest() == receipt.sha256
    assert manifest["bytes"] == len(content)
    assert (manifest["first_us"], manifest["last_us"]) == (T0 + 123_456, T0 + 5_000_000)
    assert manifest["gaps"] == [
        {"market": "BTC-KRW", "reason": "never", "from_us": T0, "until_us": T0 + 123_456},
        {"market": "BTC-KRW", "reason": "disconnect", "from_us": T0 + 2_000_000, "until_us": T0 + 5_000_000},
        {"market": "BTC-KRW", "reason": "stop", "from_us": T0 + 6_000_000, "until_us": T0 + 10_000_000},
    ]
    uncovered = sum(gap["until_us"] - gap["from_us"] for gap in manifest["gaps"])
    assert Decimal(manifest["covered_seconds"]) * 1_000_000 + uncovered == 10_000_000
    assert [(epoch["epoch"], epoch["verdict"]) for epoch in manifest["epochs"]] == [
        (1, "unverified"),
        (2, "unverified"),
    ]
    assert manifest["database"] == "books.sqlite"
    assert manifest["query"]["market"] == "BTC-KRW"
    assert str(tmp_path) not in json.dumps(manifest)


def test_receipt_sums_up_in_a_line(filled: Builder, tmp_path: Path) -> None:
    receipt = DataConverter(filled.path).export("upbit", tmp_path / "a.csv", format="csv", market="BTC-KRW")
    assert receipt.summary().startswith(
        f"a.csv: 3 books in 9 rows, {receipt.bytes} bytes, 2.9 s covered, 1 gap, sha256 "
    )


def test_missing_rows_are_no_covered_time(db: Builder, tmp_path: Path) -> None:
    epoch = db.epoch(heard_us=T0 + 1_000_000)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    db.row(epoch, 3, 250_000, bids=BIDS, asks=ASKS, keyframe=True)
    receipt = DataConverter(db.path).export("upbit", tmp_path / "a.json")
    assert [(gap.reason, gap.from_us, gap.until_us) for gap in receipt.gaps] == [("missing", T0, T0 + 250_000)]
    assert receipt.covered_seconds == "0.750000"


def test_gz_compresses_and_the_receipt_is_of_the_file(filled: Builder, tmp_path: Path) -> None:
    converter = DataConverter(filled.path)
    converter.export("upbit", tmp_path / "plain.json")
    receipt = converter.export("upbit", tmp_path / "packed.json.gz")
    packed = (tmp_path / "packed.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain.json").read_bytes()
    assert receipt.sha256 == hashlib.sha256(packed).hexdigest()


def test_dash_is_standard_output(filled: Builder, tmp_path: Path, capfdbinary: Any) -> None:
    receipt = DataConverter(filled.path).export("gopax", "-", format="ndjson")
    sys.stdout.flush()
    out = capfdbinary.readouterr().out
    assert json.loads(out)["exchange"] == "GOPAX"
    assert receipt.sha256 == hashlib.sha256(out).hexdigest()
    assert not list(tmp_path.glob("*.manifest.json"))


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_existing_file_stays_unless_overwriting_is_allowed(filled: Builder, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    out.write_text("mine")
    with pytest.raises(StorageError, match="is there already"):
        DataConverter(filled.path).export("upbit", out)
    assert out.read_text() == "mine"
    DataConverter(filled.path).export("upbit", out, overwrite=True)
    assert json.loads(out.read_text())


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_export_that_fails_leaves_nothing(filled: Builder, tmp_path: Path, ending: str) -> None:
    filled.rows([(3 << 24 | 2, 1, None, None, 0, "{", None)])
    with pytest.raises(StorageError):
        DataConverter(filled.path).export("upbit", tmp_path / f"a.json{ending}")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a.")] == []


def test_interrupted_export_leaves_nothing(filled: Builder, tmp_path: Path) -> None:
    def interrupt(books: int, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DataConverter(filled.path).export("upbit", tmp_path / "a.json", progress=interrupt)
    assert list(tmp_path.glob("a.*")) == []


def test_second_export_to_one_name_is_refused(filled: Builder, tmp_path: Path) -> None:
    with (tmp_path / "a.json.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half of it")
        other.flush()
        with pytest.raises(StorageError, match="another export"):
            DataConverter(filled.path).export("upbit", tmp_path / "a.json")
        assert (tmp_path / "a.json.part").read_bytes() == b"half of it"
    DataConverter(filled.path).export("upbit", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())


def test_full_disk_is_an_error_of_one_line(filled: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=full))
        with pytest.raises(StorageError, match="- can't be written: No space left"):
            DataConverter(filled.path).export("upbit", "-")


@pytest.mark.parametrize("name", ["", "missing/a.json"])
def test_places_that_can_not_be_written(filled: Builder, tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match=r"is a directory|can't be written"):
        DataConverter(filled.path).export("upbit", tmp_path / name)


def test_unknown_names_make_no_file(filled: Builder, tmp_path: Path) -> None:
    with pytest.raises(UnknownFeed, match="mean 'GOPAX'"):
        DataConverter(filled.path).export("gopaxx", tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("options", [{"format": "xml"}, {"mode": "rows"}, {"start": "yesterday"}])
def test_wrong_options_say_what_is_allowed(filled: Builder, tmp_path: Path, options: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: "):
        DataConverter(filled.path).export("upbit", tmp_path / "a.json", **options)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_progress_rises_to_one(db: Builder, tmp_path: Path) -> None:
    epoch = db.epoch(heard_us=T0 + 10_000)
    db.row(epoch, 1, 0, bids=BIDS, asks=ASKS, keyframe=True)
    for n in range(2, 4_000):
        db.row(epoch, n, n, bids=[("100", str(n))])
    seen: list[tuple[int, float]] = []
    DataConverter(db.path).export("upbit", tmp_path / "a.json", progress=lambda *done: seen.append(done))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (3_999, 1.0)
    assert all(abs(fraction - books / 3_999) < 0.01 for books, fraction in seen)


def test_export_holds_little_in_memory(db: Builder, tmp_path: Path) -> None:
    side = [(str(price), "1.23456789") for price in range(1, 101)]
    epoch = db.epoch(heard_us=T0 + 10_000)
    db.row(epoch, 1, 0, bids=side, asks=side, keyframe=True)
    db.rows((epoch << 24 | n, n, None, None, 0, f'[["1","{n}"]]', None) for n in range(2, 8_001))
    tracemalloc.start()
    try:
        receipt = DataConverter(db.path).export("upbit", tmp_path / "a.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert receipt.bytes > 30_000_000
    assert peak < 10_000_000


def test_objects_equal_the_export(filled: Builder, tmp_path: Path) -> None:
    converter = DataConverter(filled.path)
    converter.export("upbit", tmp_path / "a.json")
    assert converter.to_list("upbit") == json.loads((tmp_path / "a.json").read_text(), parse_float=Decimal)
    with Reader(filled.path) as reader:
        assert list(converter.books("upbit")) == list(reader.books("upbit"))


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (None, None),
        (17, 17),
        ("2023-11-14T22:13:20", T0),
        ("2023-11-15T07:13:20.000001+09:00", T0 + 1),
        ("2023-11-14", T0 - (22 * 3600 + 13 * 60 + 20) * 1_000_000),
        (datetime(2023, 11, 14, 22, 13, 20, 999_999, tzinfo=UTC), T0 + 999_999),
    ],
)
def test_moments(moment: Any, expected: int | None) -> None:
    assert moment_us(moment) == expected


def test_no_float_is_made_of_prices() -> None:
    for name in ("reader", "rebuild", "convert"):
        source = (Path(__file__).parents[2] / "storage" / f"{name}.py").read_text()
        assert not re.search(r"\bfloat\(", source), name
