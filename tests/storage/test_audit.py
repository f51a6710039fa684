import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.numbers import plain, to_decimal
from collector.records import Book, Trade
from controllers.upbit import Upbit
from storage.audit import SideAudit, audit_sides, side_told
from storage.reader import BookAt, Gap
from tests.controllers.venue import make

OTHER = {"buy": "sell", "sell": "buy"}


@dataclass(frozen=True)
class Traded:
    """A trade as a reader gives it."""

    side: str
    price: str
    received_us: int
    venue_us: int


EPOCH: Any = None  # an audit looks at the books alone


def book(at_us: int, bid: str | None, ask: str | None, *, venue_us: int | None = None) -> BookAt:
    bids = () if bid is None else ((bid, "1"), ("1", "1"))
    asks = () if ask is None else ((ask, "1"), ("1000", "1"))
    return BookAt(EPOCH, 1, at_us, venue_us, None, 0, bids, asks)


def judged(trades: Iterable[Traded], books: Iterable[BookAt | Gap]) -> tuple[int, int, int]:
    audit = audit_sides("UPBIT", "BTC-KRW", trades, books)
    return audit.agreeing, audit.contradicting, audit.undecided


@pytest.mark.parametrize(
    ("price", "bid", "ask", "told"),
    [
        ("11", "10", "11", "buy"),
        ("11.5", "10", "11", "buy"),
        ("10", "10", "11", "sell"),
        ("9.99", "10", "11", "sell"),
        ("10.5", "10", "11", None),
        ("11", "12", "11", None),  # crossed
        ("11", None, "11", "buy"),
        ("10", None, "11", None),
        ("10", "10", None, "sell"),
        ("10", None, None, None),
        ("110.0", "1.095E2", "1.1E2", "buy"),
    ],
)
def test_best_bid_and_best_ask_tell_who_took(price: str, bid: str | None, ask: str | None, told: str | None) -> None:
    prices = (None if text is None else Decimal(text) for text in (bid, ask))
    assert side_told(Decimal(price), *prices) == told


def test_the_last_book_before_a_trade_judges_it_and_no_later_one() -> None:
    books = [book(10, "10", "11"), book(20, "20", "21"), book(30, "30", "31")]
    assert judged([Traded("buy", "11", 15, 15)], books) == (1, 0, 0)
    assert judged([Traded("buy", "11", 20, 20)], books) == (1, 0, 0), "a book of the same moment may hold it already"
    assert judged([Traded("buy", "11", 21, 21)], books) == (0, 1, 0), "it sold to the bids of the second book"
    assert judged([Traded("sell", "20", 25, 25), Traded("sell", "31", 35, 35)], books) == (1, 1, 0)
    assert judged([Traded("sell", "10", 5, 5)], books) == (0, 0, 1)


def test_the_clock_of_the_exchange_counts_where_its_books_have_times() -> None:
    late = [book(10, "10", "11", venue_us=1), book(30, "20", "21", venue_us=20)]
    assert judged([Traded("buy", "21", 29, 25)], late) == (1, 0, 0), "the book was there, it came later than the trade"
    untimed = [book(10, "10", "11"), book(30, "20", "21")]
    assert judged([Traded("buy", "21", 29, 25)], untimed) == (1, 0, 0)
    assert judged([Traded("sell", "20", 29, 25)], untimed) == (0, 1, 0), "only the first book had come"


def test_a_trade_that_is_dated_by_the_second_goes_by_when_it_was_received() -> None:
    books = [book(1_000_010, "10", "11", venue_us=1_000_005), book(1_900_000, "20", "21", venue_us=1_800_000)]
    assert judged([Traded("buy", "21", 1_950_000, 1_000_000)], books) == (1, 0, 0)
    assert judged([Traded("buy", "21", 1_950_000, 1_000_001)], books) == (0, 0, 1), "made before both"


def test_in_a_gap_there_is_no_book() -> None:
    items: list[BookAt | Gap] = [
        Gap("never", None, 10),
        book(10, "10", "11"),
        Gap("stale", 20, 40),
        book(40, "10", "11"),
    ]
    trades = [Traded("buy", "11", at_us, at_us) for at_us in (5, 15, 25, 45)]
    assert judged(trades, items) == (2, 0, 2)


def test_sides_that_are_the_wrong_way_round_show() -> None:
    trades = [Traded("buy", "11", 15, 15), Traded("sell", "10", 16, 16), Traded("sell", "10.5", 17, 17)]
    audit = audit_sides("X", "A-B", (Traded(OTHER[t.side], t.price, 15, 15) for t in trades), [book(10, "10", "11")])
    assert audit == SideAudit("X", "A-B", agreeing=0, contradicting=2, undecided=1)
    assert audit.as_dict() == {
        "exchange": "X", "market": "A-B", "judged": 2, "agreeing": 0, "contradicting": 2, "undecided": 1,
        "percent": "0.0",
    }  # fmt: skip


def test_the_share_is_of_what_could_be_judged() -> None:
    assert SideAudit("X", "A-B", 2, 1, 97).percent == Decimal("66.7")
    assert SideAudit("X", "A-B", 0, 0, 5).percent is None


def test_the_recorded_trades_of_upbit_agree_with_its_recorded_books(wire: Path) -> None:
    """304 trades of 30 seconds: all that the books tell anything of."""
    upbit = make(Upbit)
    books: dict[str, list[BookAt | Gap]] = {}
    trades: dict[str, list[Traded]] = {}
    with (wire / "upbit" / "cryptofeed_ws_simple_20210417.ndjson").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["dir"] != "in":
            continue
        at_us = int(row["t"] * 1e6)
        (message,) = upbit.parse(row["data"].encode(), 0)
        if isinstance(message, Trade):  # its time had whole seconds then
            traded = Traded(message.side, plain(message.price), at_us, message.venue_us)
            trades.setdefault(message.market, []).append(traded)
        elif isinstance(message, Book):
            bids, asks = (
                sorted(((plain(p), plain(s)) for p, s in side.items()), key=lambda level: to_decimal(level[0]))
                for side in (message.bids, message.asks)
            )
            stood = BookAt(EPOCH, 1, at_us, None, None, 0, tuple(reversed(bids)), tuple(asks))
            books.setdefault(message.market, []).append(stood)
    audits = [audit_sides("UPBIT", market, each, books.get(market, ())) for market, each in trades.items()]
    assert sum(audit.agreeing for audit in audits) == 303
    assert sum(audit.contradicting for audit in audits) == 0
    assert sum(audit.undecided for audit in audits) == 1
