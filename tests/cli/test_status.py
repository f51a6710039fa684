"""What `status` says of prices across exchanges: from the rows of all feeds, or of one market from the live view."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console, RenderableType

from collector.aggregate import Prices, Rate
from collector.records import Feed
from commands.prices import MARKETS_MAX, comparisons, prices_json, prices_tables
from commands.status import live_view
from tests.cli.conftest import Type
from tests.collector.test_aggregate import Venues

RATE = Rate("USDT", "KRW", Decimal(1400), "set by hand")
Answer = Callable[[dict[str, list[str]]], object]


def row(exchange: str, market: str = "BTC-KRW", **given: Any) -> dict[str, Any]:
    """Return a feed as `/status.json` has it."""
    plain = {
        "exchange": exchange, "market": market, "channel": "orderbook", "transport": "websocket", "state": "live",
        "detail": "", "frames": 7, "frames_per_s": 1.0, "gaps": 0, "age_s": 0.5, "lag_s": 0.01,
        "bid": None, "ask": None, "generation": 1,
    }  # fmt: skip
    return {**plain, **given}


def state_of(*rows: dict[str, Any], **live: Any) -> dict[str, Any]:
    """Return what `/status.json` says, as far as the tables need it."""
    return {
        "feeds": list(rows),
        "intake": {"records": 0},
        "store": {"database_bytes": 0, "wal_bytes": 0},
        "spool": {"batches": 0, "bytes": 0},
        "live": live,
    }


def shown(what: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_markets_of_several_exchanges_are_compared_under_the_feeds() -> None:
    text = shown(
        live_view(
            state_of(
                row("upbit", bid="100", ask="102.50"),
                row("upbit", channel="ticker", last="101", bid="1", ask="999"),
                row("bithumb", bid="101", ask="103"),
                row("gopax", state="down", detail="disconnect", bid="500", ask="1"),
                row("korbit", age_s=61.4, bid="500", ask="1"),
                row("upbit", "ETH-KRW", bid="7", ask="8"),
                row("binance", "BTC-USDT", bid="1", ask="2"),
            )
        )
    )
    prices = text.split("\n\n", 1)[1]
    assert prices.startswith("BTC-KRW")
    assert re.search(r"^bithumb +- +101 +103 +2 +0\.5 s ago *$", prices, re.MULTILINE)
    assert re.search(r"^upbit +101 +100 +102\.50 +2\.50 +0\.5 s ago *$", prices, re.MULTILINE)
    assert "best bid at bithumb, best ask at upbit, spread 1.50" in prices
    assert "without gopax BTC-KRW: orderbook: disconnect" in prices
    assert "without korbit BTC-KRW: orderbook: stale, heard 61 s ago" in prices
    assert "ETH-KRW" not in prices
    assert "binance" not in prices


def test_one_exchange_alone_is_compared_with_nobody() -> None:
    text = shown(live_view(state_of(row("upbit", bid="1", ask="2"))))
    assert "best" not in text
    assert text.count("market") == 1


def test_the_channel_stands_in_the_table_where_there_is_more_than_books() -> None:
    books = shown(live_view(state_of(row("upbit"))))
    both = shown(live_view(state_of(row("upbit"), row("upbit", channel="trades"))))
    assert re.search(r"^upbit +BTC-KRW +socket +live ", books, re.MULTILINE)
    assert re.search(r"^upbit +BTC-KRW +orderbook +socket +live ", both, re.MULTILINE)
    assert re.search(r"^upbit +BTC-KRW +trades +socket +live ", both, re.MULTILINE)


def test_rates_and_the_age_that_is_too_old_are_the_daemons() -> None:
    rows = row("upbit", bid="1399", ask="1401"), row("binance", "BTC-USDT", bid="1", ask="2", age_s=20)
    rate = {"base": "USDT", "quote": "KRW", "rate": "1400", "source": "set by hand"}
    (found,) = comparisons(state_of(*rows, rates=[rate]))
    assert (found["market"], found["best_bid"], found["best_ask"]) == (
        "BTC-KRW",
        ["binance", "BTC-USDT"],
        ["upbit", "BTC-KRW"],
    )
    text = shown(prices_tables([found]))
    assert re.search(r"^binance BTC-USDT +- +1400 +2800 ", text, re.MULTILINE)
    assert "best bid at binance BTC-USDT, best ask at upbit, spread 1" in text
    assert "at 1 USDT = 1400 KRW (set by hand)" in text
    (found,) = comparisons(state_of(*rows, rates=[rate], stale_s=10))
    assert [one["exchange"] for one in found["left_out"]] == ["binance"]
    assert comparisons(state_of(*rows)) == []


def test_of_two_connections_of_a_feed_the_one_that_is_heard_counts() -> None:
    old, new = row("upbit", bid="1", ask="2"), row("upbit", bid=None, state="waiting", detail="disconnect")
    other = row("korbit", bid="3", ask="4")
    for rows in ((old, new), (new, old)):
        (found,) = comparisons(state_of(*rows, other))
        assert found["left_out"] == []
        assert [one["bid"] for one in found["venues"]] == ["3", "1"]


def test_many_markets_are_not_all_shown() -> None:
    rows = [row(name, f"A{n}-KRW", bid="1", ask="2") for name in ("upbit", "korbit") for n in range(MARKETS_MAX + 3)]
    text = shown(prices_tables(comparisons(state_of(*rows))))
    assert f"A{MARKETS_MAX - 1}-KRW" in text
    assert f"A{MARKETS_MAX}-KRW" not in text
    assert "and 3 more markets; `status --market MARKET` shows one" in text


# --- one market ------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[[Answer], Path]]:
    """Answer `/prices.json` from a function; return the configuration of whoever asks."""
    servers = []

    def start(answer: Answer) -> Path:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert urlsplit(self.path).path == "/prices.json"
                body = json.dumps(answer(parse_qs(urlsplit(self.path).query))).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        file = folder / "asked.yaml"
        file.write_text(f"metrics:\n  port: {server.server_port}\n")
        return file

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_one_market_with_its_merged_book(serve: Callable[[Answer], Path], type_: Type) -> None:
    venues = Venues()
    venues.books(upbit=({"140000": "1.5", "139000": "1"}, {"141000": "1"}))
    venues.books("BTC-USDT", binance=({"100": "2"}, {"100.5": "3"}))
    venues.view.expect(Feed("korbit", "BTC-KRW"))
    prices = Prices(venues.view, rates=[RATE])
    config = serve(lambda asked: prices_json(prices, asked["market"][0], int(asked["depth"][0])))

    told = type_("--config", config, "status", "--market", "BTC-KRW", "--depth", "1")
    assert told.status == 0, told.err
    assert re.search(r"^binance BTC-USDT +- +140000 +140700\.0 +700\.0 +12:00:00\.000$", told.out, re.MULTILINE)
    assert "BTC-KRW, 2 books as one, sizes in BTC" in told.out
    assert re.search(r"^ask +140700\.0 +3 +binance", told.out, re.MULTILINE)
    assert re.search(r"^bid +140000 +3\.5 +binance upbit", told.out, re.MULTILINE)
    assert "139000" not in told.out
    assert told.out.count("at 1 USDT = 1400 KRW (set by hand)") == 2
    assert told.out.count("without korbit BTC-KRW: never heard") == 2

    answer = json.loads(type_("--config", config, "status", "--market", "BTC-KRW", "--json").out)
    assert answer["book"]["bids"] == [["140000", "3.5", ["binance", "upbit"]], ["139000", "1", ["upbit"]]]
    assert answer["venues"][1]["bid_size"] == "1.5"


def test_a_market_that_nobody_records_is_an_error(serve: Callable[[Answer], Path], type_: Type) -> None:
    prices = Prices(Venues().view)
    config = serve(lambda asked: prices_json(prices, asked["market"][0]))
    told = type_("--config", config, "status", "--market", "NONE-KRW")
    assert told.status == 1
    assert "no exchange is recorded with NONE-KRW" in told.err
