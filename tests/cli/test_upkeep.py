"""Looking after a collector: the spool, and the way into PostgreSQL."""

import json
from pathlib import Path

import pytest

from collector.records import CoverageMark, Delivery, EpochOpened, Event
from simulator import Simulator
from storage.spool import Spool
from storage.store import Batch, Run
from tests.cli.conftest import Type
from tests.cli.running import PATIENT

T0 = 1_790_000_000_000_000
RUN = Run("run 1", "here", "1.2.3", T0)


@pytest.fixture
def spool(folder: Path) -> Path:
    """The spool of the shipped configuration, with three batches; the numbers 3 and 4 are missing."""
    path = folder / "data" / "collector.sqlite.spool"
    waiting = Spool(path, limit_bytes=64 << 20)
    waiting.open()
    for number in (1, 2, 5):
        waiting.append(Batch(RUN, number, (Delivery("upbit", 4, (Event(T0, "INFO", "T", "x"),), 100),)))
    waiting.close()
    return path


def test_spool_status_tells_what_waits(type_: Type, spool: Path) -> None:
    shown = type_("spool", "status")
    assert shown.status == 0
    assert "3 batches, 12 frames" in shown.out
    row = shown.out.splitlines()[-1].split()
    assert row[1:] == ["here", "3", "1", "to", "5", "2"]


def test_spool_check_verifies_every_batch(type_: Type, spool: Path) -> None:
    shown = type_("spool", "check")
    assert (shown.status, "3 batches, 3 records" in shown.out) == (0, True)


def test_spool_check_ends_with_1_where_something_is_missing(type_: Type, spool: Path) -> None:
    (segment,) = spool.glob("*.spool")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    ended = type_("spool", "check")
    assert ended.status == 1
    assert "missing (damaged)" in ended.out
    assert "will be in the ledger as lost" in ended.err


def test_an_empty_spool_and_one_that_is_not_there(type_: Type, folder: Path) -> None:
    assert "nothing waits" in type_("spool", "status").out
    ended = type_("spool", "status", "--path", "nowhere")
    assert (ended.status, ended.err.strip()) == (2, "there is no spool at nowhere")


def test_coverage_tells_what_waits_in_the_spool_beside_the_database(type_: Type, recorded: Path) -> None:
    waiting = Spool(Path(f"{recorded}.spool"), limit_bytes=64 << 20)
    waiting.open()
    opened = EpochOpened(1, "KRAKEN", "BTC-USD", "orderbook", "websocket", T0)
    mark = CoverageMark(1, T0 + 9_000_000, T0 + 9_000_000, 3)
    waiting.append(Batch(RUN, 1, (Delivery("kraken", 3, (opened, mark), 100),)))
    waiting.close()
    feeds = json.loads(type_("coverage", "--format", "json", "--db", recorded).out)
    (kraken,) = [feed for feed in feeds if feed["exchange"] == "KRAKEN"]
    assert (kraken["pending_us"], kraken["percent"]["pending"]) == (9_000_000, "100.000")
    assert "pending" in type_("coverage", "--db", recorded).out


def test_migrate_copies_into_postgresql_and_every_reading_command_reads_it_there(
    type_: Type, recorded: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(type_("coverage", "--json", "--db", recorded).out)
    exported = type_("export", "UPBIT", "lite.ndjson", "--db", recorded)
    assert exported.status == 0
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    ended = type_("migrate", "--from", recorded)
    assert ended.status == 0, ended.err
    receipt = json.loads(Path(f"{recorded}.migrated.json").read_bytes())
    assert receipt["epochs"] == len(before)
    assert receipt["sha256"] in ended.err
    assert json.loads(type_("coverage", "--json").out) == before
    assert type_("export", "UPBIT", "server.ndjson").status == 0
    assert Path("lite.ndjson").read_bytes() == Path("server.ndjson").read_bytes()
    assert "UPBIT BTC-KRW received" in type_("book", "UPBIT").out
    password = postgres_url.partition("@")[0].rpartition(":")[2]
    assert password not in "".join(
        (ended.out, ended.err, type_("check").out, Path(f"{recorded}.migrated.json").read_text())
    )


def test_migrate_needs_to_know_where_to(type_: Type, recorded: Path) -> None:
    ended = type_("migrate", "--from", recorded)
    assert (ended.status, "DATABASE_URL" in ended.err) == (2, True)


def test_migrate_waits_for_the_spool_to_be_drained(type_: Type, recorded: Path, postgres_url: str) -> None:
    waiting = Spool(Path(f"{recorded}.spool"), limit_bytes=64 << 20)
    waiting.open()
    waiting.append(Batch(RUN, 1, (Delivery("upbit", 4, (Event(T0, "INFO", "T", "x"),), 100),)))
    waiting.close()
    ended = type_("migrate", "--from", recorded, "--to", postgres_url)
    assert (ended.status, "1 batches still wait" in ended.err) == (2, True)


def test_backup_is_for_files(type_: Type, folder: Path) -> None:
    ended = type_("backup", "copy", "--db", "postgresql://nobody@127.0.0.1:1/x")
    assert (ended.status, "pg_dump" in ended.err) == (2, True)


def test_check_counts_feeds_and_says_what_is_left_out_and_what_a_list_decides(type_: Type, folder: Path) -> None:
    (folder / "c.yaml").write_text(
        "markets: [BTC-KRW, 'BTC-USDT:USDT']\n"
        "channels: [orderbook, candles]\n"
        "exchanges:\n"
        "  korbit:\n"
        "  upbit:\n"
        "    markets: ['*-KRW', XRP-USDT]\n"
    )
    shown = type_("-c", "c.yaml", "check")
    assert shown.status == 0
    assert shown.out.splitlines()[-3:] == [
        "korbit does not offer BTC-USDT:USDT: left out",
        "",
        "ok: 4 feeds on 3 connections, and what upbit lists of *-KRW",
    ]


def test_markets_of_an_exchange_with_several_lists_are_all_listed(type_: Type, folder: Path) -> None:
    markets = ["ETH-USDT", "BTC-USDT", "BTC-USDT:USDT"]
    with Simulator(["binance"], markets, timing=PATIENT) as simulator:
        settings = {"exchanges": {"binance": {"endpoint": simulator.endpoints["binance"]}}}
        (folder / "c.yaml").write_text(json.dumps(settings))
        shown = type_("-c", "c.yaml", "markets", "Binance")
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.splitlines() == sorted(markets)
