"""The first thing a newcomer types."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

EXCHANGES = {"BITHUMB", "COINONE", "GOPAX", "KORBIT", "UPBIT"}


def test_it_ends_well_and_says_what_it_did_and_how_to_go_on(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stderr
    assert demo.stderr == ""
    for exchange in EXCHANGES:
        assert exchange in demo.stdout
        assert f"{exchange.lower()} " in demo.stdout
    assert f"python run_controller.py export UPBIT upbit.json --db {demo.args[-1]}\n" in demo.stdout


def test_the_file_holds_books_of_five_exchanges_as_the_owner_s_table_has_them(
    demo: subprocess.CompletedProcess[str],
) -> None:
    with closing(sqlite3.connect(demo.args[-1])) as db:
        found = set(db.execute("SELECT DISTINCT exchange, symbol, currency, side FROM orderbook"))
        columns = [column[0] for column in db.execute("SELECT * FROM orderbook LIMIT 1").description]
        (bare,) = db.execute("SELECT count(*) FROM orderbook WHERE price <= 0 OR volume <= 0").fetchone()

    expected = {(exchange, "BTC", "KRW", side) for exchange in EXCHANGES for side in ("ask", "bid")}
    # Bithumb's second market is heard over its socket, so that both of its transports are seen.
    assert found == expected | {("BITHUMB", "ETH", "KRW", "ask"), ("BITHUMB", "ETH", "KRW", "bid")}
    assert columns == ["exchange", "symbol", "currency", "timestamp", "side", "price", "volume"]
    assert bare == 0


def test_bithumb_is_recorded_over_both_of_its_transports(demo: subprocess.CompletedProcess[str]) -> None:
    with closing(sqlite3.connect(demo.args[-1])) as db:
        found = set(
            db.execute(
                "SELECT m.symbol, e.transport FROM epoch e JOIN feed f ON f.id = e.feed "
                "JOIN exchange x ON x.id = f.exchange JOIN market m ON m.id = f.market WHERE x.name = 'BITHUMB'"
            )
        )
    assert found == {("BTC", "rest"), ("ETH", "websocket")}


def test_nothing_but_the_database_and_the_log_is_left(demo: subprocess.CompletedProcess[str]) -> None:
    database = Path(demo.args[-1])
    assert {path.name for path in database.parent.iterdir()} <= {
        *(database.name + suffix for suffix in ("", "-wal", "-shm", ".lock", ".silences.json")),
        "logs",
    }
    log = database.parent / "logs" / database.stem / "collector.log"
    assert "데이터 수집 시작" in log.read_text("utf-8")
