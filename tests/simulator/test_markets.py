from decimal import Decimal
from itertools import pairwise

import pytest

from simulator.markets import Book, Change, Character, Market, plain, tidy, total, units

NAMES = ["BTC-KRW", "ETH-KRW", "XRP-KRW", "NEW-KRW", "ETH-BTC", "XRP-USDT"]


def crossed(book: Book) -> bool:
    return Decimal(book.bids[0][0]) >= Decimal(book.asks[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_books_keep_order_and_stay_uncrossed(name: str) -> None:
    market = Market("upbit", name, 1, Character(depth=30))
    for _ in range(1500):
        book = market.step().book
        bids, asks = [Decimal(p) for p, _ in book.bids], [Decimal(p) for p, _ in book.asks]
        assert all(a > b for a, b in pairwise(bids))
        assert all(a < b for a, b in pairwise(asks))
        assert bids[0] < asks[0]
        assert bids[-1] > 0
        assert all(Decimal(v) > 0 for _, v in book.bids + book.asks)


@pytest.mark.parametrize("name", NAMES)
def test_changes_lead_from_one_book_to_the_next_and_never_through_a_crossed_one(name: str) -> None:
    market = Market("gopax", name, 7, Character(depth=40))
    book = market.book
    for _ in range(800):
        step = market.step()
        for change in step.changes:
            level = ((change.price, change.volume),)
            book = book.changed(level, ()) if change.side == "bid" else book.changed((), level)
            assert not crossed(book)
        assert (book.bids, book.asks) == (step.book.bids, step.book.asks)


def test_the_same_seed_gives_the_same_books_and_another_gives_others() -> None:
    def run(seed: int) -> list[object]:
        market = Market("upbit", "BTC-KRW", seed, Character())
        return [(step.book.bids, step.book.asks, step.changes) for step in (market.step() for _ in range(50))]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_prices_stand_on_the_venue_s_ticks() -> None:
    for name, coarse, tick in (("BTC-KRW", 1, 1000), ("BTC-KRW", 10, 10_000), ("XRP-KRW", 1, 1)):
        market = Market("upbit", name, 1, Character(coarse=coarse))
        for _ in range(200):
            book = market.step().book
            assert all(Decimal(p) % tick == 0 for p, _ in book.bids + book.asks)


def test_a_crossed_book_lasts_for_one_step() -> None:
    market = Market("upbit", "BTC-KRW", 1, Character())
    market.cross()
    step = market.step()
    assert crossed(step.book)
    assert len(step.changes) == 1
    assert not crossed(market.step().book)


def test_sides_run_thin_and_grow_back() -> None:
    market = Market("upbit", "BTC-KRW", 1, Character(depth=32))
    lengths = [min(len(step.book.bids), len(step.book.asks)) for step in (market.step() for _ in range(3000))]
    assert min(lengths) < 30
    assert lengths.count(30) + sum(n > 30 for n in lengths) > len(lengths) // 2
    assert max(lengths) <= 38


def test_some_steps_repeat_the_book_where_a_venue_does_so() -> None:
    market = Market("bithumb", "BTC-KRW", 1, Character(repeats=0.4, volume_places=4))
    steps = [market.step() for _ in range(500)]
    assert 120 < sum(not step.changes for step in steps) < 320
    assert all(-Decimal(v).as_tuple().exponent <= 4 for _, v in steps[-1].book.bids)  # type: ignore[operator]


def test_numbers_are_spelled_plainly_and_added_exactly() -> None:
    assert [plain(n) for n in (0, 1, 150_000_000, 116_000_000 * 10**8)] == ["0", "0.00000001", "1.5", "116000000"]
    assert units("0.00079276") == 79_276
    assert units("116539000") == 116_539_000 * 10**8
    assert total([("1", "0.1"), ("2", "0.2"), ("3", "0.00000001")]) == "0.30000001"
    assert tidy([("1.16539E8", "7.9276E-4"), ("127.0", "0.50")]) == (("116539000", "0.00079276"), ("127", "0.5"))


def test_a_change_is_applied_by_the_number_not_by_the_spelling() -> None:
    book = Book(0, (("127", "1"),), (("128", "1"),), 0)
    assert book.changed([("127.0", "0")], [("128", "2")]) == Book(0, (), (("128", "2"),), 0)
    assert Change("bid", "1", "0").volume == "0"
