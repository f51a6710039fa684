import json
from collections.abc import Mapping
from decimal import Decimal

import pytest

from collector.errors import BadFrame
from collector.numbers import Number
from collector.records import Book, BookChange
from controllers.book import OrderBook, Side, levels_json
from tests.fakes import numbers

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import given
from hypothesis import strategies as st

Reference = dict[Decimal, Decimal]


def spellings(value: Decimal) -> list[Number]:
    """Return ways in which an exchange may write a number that is not negative."""
    text = format(value, "f")
    ways: list[Number] = [text, f"{text}.0" if "." not in text else f"{text}0", format(value, "E"), f"{value:e}"]
    if value == value.to_integral_value():
        ways.append(int(value))
    return ways


def spelt(value: str) -> st.SearchStrategy[Number]:
    return st.sampled_from(spellings(Decimal(value)))


prices = st.sampled_from(["0.0014", "3", "127", "127.5", "116539000", "116540000"])
sizes = st.sampled_from(["0", "0.00079276", "1", "25.5", "280460.37885666"])


@st.composite
def sides(draw: st.DrawFn) -> dict[Number, Number]:
    """Draw a side of a book in which no price stands twice; sizes may be nought."""
    chosen = draw(st.lists(prices, unique=True))
    return {draw(spelt(price)): draw(sizes.flatmap(spelt)) for price in chosen}


steps = st.lists(st.tuples(st.booleans(), sides()), max_size=12)


def standing(side: Mapping[Number, Number]) -> Reference:
    return {price: size for price, size in numbers(side).items() if size}


def take_in(reference: Reference, complete: bool, side: Mapping[Number, Number]) -> Reference:
    """Do naively what a side does."""
    if complete:
        return standing(side)
    after = {**reference, **numbers(side)}
    return {price: size for price, size in after.items() if size}


@given(steps, st.booleans())
def test_a_side_is_what_a_naive_table_of_numbers_is(steps: list[tuple[bool, dict[Number, Number]]], trim: bool) -> None:
    side = Side(trim=trim)
    reference: Reference = {}
    told: dict[str, str] = {}  # what somebody holds who only ever hears the changes
    spelling: dict[Decimal, str] = {}
    for complete, levels in steps:
        before = dict(reference)
        reference = take_in(reference, complete, levels)
        changes = side.replace(levels) if complete else side.apply(levels)

        assert len(dict(changes)) == len(changes), "a price is told once"
        for price, size in changes:
            assert "E" not in (price + size).upper()
            if Decimal(size):
                told[price] = size
            else:
                assert size == "0"
                del told[price]
        assert numbers(told) == reference
        assert {Decimal(price) for price, _ in changes} == {
            price for price in before.keys() | reference.keys() if before.get(price) != reference.get(price)
        }, "what did not change is not told"

        assert side.as_numbers() == reference
        assert side.total == sum(reference.values(), Decimal(0))
        assert side.best(highest=True) == max(reference, default=None)
        assert side.best(highest=False) == min(reference, default=None)
        for highest_first in (True, False):
            whole = side.as_text(highest_first=highest_first)
            assert [Decimal(price) for price, _ in whole] == sorted(reference, reverse=highest_first)
            assert numbers(whole) == reference
            assert {price for price, _ in whole} == set(told), "a price is spelt the same in changes and whole books"
        now = {Decimal(price): price for price in told}
        assert all(spelling.get(price, text) == text for price, text in now.items() if price in before)
        spelling = now


@given(sides())
def test_the_same_side_again_changes_nothing_however_it_is_spelt(levels: dict[Number, Number]) -> None:
    side = Side(trim=False)
    side.replace(levels)
    for which in range(4):
        again = {
            spellings(Decimal(str(price)))[which]: spellings(Decimal(str(size)))[which]
            for price, size in levels.items()
        }
        assert side.replace(again) == []
        assert side.apply(again) == []


def test_an_exponent_is_the_same_price_and_keeps_its_first_spelling() -> None:
    side = Side(trim=False)
    assert side.replace({"1.16539E8": "0.02054761"}) == [("116539000", "0.02054761")]
    assert side.replace({116539000: "0.02054761"}) == []
    assert side.replace({"116539000.0": "0.5"}) == [("116539000", "0.5")]
    assert side.apply({"1.16539e8": 0}) == [("116539000", "0")]
    assert side.as_text(highest_first=True) == []


def test_a_price_that_left_and_comes_back_may_be_spelt_anew() -> None:
    side = Side(trim=False)
    side.replace({"127.0": "1"})
    side.replace({"126": "1"})
    assert side.replace({"127": "1", "126": "1"}) == [("127", "1")]


def test_json_numbers_are_given_out_by_value_and_text_with_its_digits() -> None:
    trimmed, kept = Side(trim=True), Side(trim=False)
    levels: dict[Number, Number] = {"127.0": "0.00077720", "1.50E1": "10.0", 1000: 100, "0.10": "2E2"}
    assert trimmed.replace(levels) == [("127", "0.0007772"), ("15", "10"), ("1000", "100"), ("0.1", "200")]
    assert kept.replace(levels) == [("127.0", "0.00077720"), ("15.0", "10.0"), ("1000", "100"), ("0.10", "200")]


def test_sizes_that_differ_only_in_their_digits_are_one_size() -> None:
    side = Side(trim=False)
    side.replace({"1": "0.10"})
    assert side.apply({"1": "0.1"}) == []
    assert side.replace({"1": "0.100"}) == []
    assert side.total == Decimal("0.1")


def test_a_level_of_size_nought_is_not_there() -> None:
    side = Side(trim=True)
    assert side.replace({"1": "1", "2": "0.0", "3": 0}) == [("1", "1")]
    assert side.replace({"1": "0E-8", "2": "0.0"}) == [("1", "0")]
    assert side.apply({"9": "0"}) == []
    assert side.best(highest=True) is None


def test_a_sum_is_exact_where_floats_are_not() -> None:
    side = Side(trim=True)
    side.replace({str(price): "0.1" for price in range(1, 11)})
    assert side.total == 1
    side.apply({"20": "1" + "0" * 30})
    side.apply({"21": "0." + "0" * 29 + "1"})
    assert side.total == Decimal("1" + "0" * 29 + "1." + "0" * 29 + "1")
    side.apply({"20": 0, "21": 0})
    assert side.total == 1
    side.apply({"1": "1" + "0" * 30})
    side.apply({"1": "0." + "0" * 29 + "1"})
    assert side.total == Decimal("0.900000000000000000000000000001")


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ({"1": "-1"}, "negative"),
        ({"1": "-0.00000001"}, "negative"),
        ({"-1": "1"}, "not above zero"),
        ({"0": "1"}, "not above zero"),
        ({"0.00": "1"}, "not above zero"),
        ({"1": "NaN"}, "is not a number"),
        ({"NaN": "1"}, "is not a number"),
        ({"NaN": "0"}, "is not a number"),
        ({"1": None}, "is not a number"),
        ({"1": "1E999999999"}, "out of range"),
        ({"1E999999999": "1"}, "out of range"),
        ({"1": "Infinity"}, "is not a number"),
        ({"1": "9" * 400}, "is not a number"),
        ({"1": 10**400}, "out of range"),
    ],
)
@pytest.mark.parametrize("known", [{}, {"1": "5"}, {"7": "5"}], ids=["empty", "known", "other"])
def test_what_can_not_be_a_level_is_refused(
    known: dict[Number, Number], levels: dict[Number, Number], says: str
) -> None:
    replaced, applied = Side(trim=True), Side(trim=True)
    for side in (replaced, applied):
        side.replace(known)
    with pytest.raises(BadFrame, match=says):
        replaced.replace(levels)
    with pytest.raises(BadFrame, match=says):
        applied.apply(levels)


@pytest.mark.parametrize(
    "twice",
    [{"127.0": "1", 127: "1"}, {"1.27E2": "1", "127": "2"}, {127: "1", "127.00": "1", "1": "1"}],
)
@pytest.mark.parametrize("known", [{}, {"127.0": "1"}, {"127.000": "3"}], ids=["empty", "there", "otherwise"])
def test_one_price_in_two_spellings_is_refused_in_a_complete_book(
    known: dict[Number, Number], twice: dict[Number, Number]
) -> None:
    side = Side(trim=True)
    side.replace(known)
    with pytest.raises(BadFrame, match="twice"):
        side.replace(twice)


def test_a_side_that_was_cleared_knows_nothing() -> None:
    side = Side(trim=True)
    side.replace({"127": "1"})
    side.clear()
    assert (side.as_numbers(), side.total) == ({}, Decimal(0))
    assert side.best(highest=True) is None
    assert side.replace({"127.0": "1"}) == [("127", "1")]


def book(bids: dict[Number, Number], asks: dict[Number, Number]) -> OrderBook:
    kept = OrderBook(trim=True)
    kept.replace(Book("BTC-KRW", bids, asks))
    return kept


def test_a_book_takes_both_sides_and_gives_them_out_best_first() -> None:
    kept = OrderBook(trim=True)
    known = [kept.known]
    assert kept.replace(Book("BTC-KRW", {1: 5, 3: 6}, {9: 1, "7.0": 2})) == (
        [("1", "5"), ("3", "6")],
        [("9", "1"), ("7", "2")],
    )
    known.append(kept.known)
    assert [json.loads(text) for text in kept.as_json()] == [[["3", "6"], ["1", "5"]], [["7", "2"], ["9", "1"]]]
    assert kept.apply(BookChange("BTC-KRW", {3: 0}, {7: 2})) == ([("3", "0")], [])
    kept.clear()
    known.append(kept.known)
    assert kept.as_numbers() == ({}, {})
    assert known == [False, True, False]


@pytest.mark.parametrize(
    ("bids", "asks", "crossed"),
    [({2: 1}, {3: 1}, False), ({3: 1}, {"3.0": 1}, True), ({4: 1, 1: 1}, {3: 1, 9: 1}, True), ({}, {3: 1}, False),
     ({3: 1}, {}, False), ({}, {}, False), ({"9.9": 1}, {"10": 1}, False)],
)  # fmt: skip
def test_a_book_is_crossed_where_the_best_bid_is_not_below_the_best_ask(
    bids: dict[Number, Number], asks: dict[Number, Number], crossed: bool
) -> None:
    assert book(bids, asks).crossed is crossed


def test_totals_are_compared_digit_for_digit_asks_first() -> None:
    kept = book({1: "0.1", 2: "0.2"}, {3: "25752275.55420627"})
    assert kept.adds_up_to(("25752275.55420627", "0.3"))
    assert kept.adds_up_to(("2.575227555420627E7", "0.30"))
    assert not kept.adds_up_to(("25752275.55420628", "0.3"))
    assert not kept.adds_up_to(("0.3", "25752275.55420627"))
    with pytest.raises(BadFrame):
        kept.adds_up_to(("NaN", "0.3"))


def test_levels_are_written_as_json_without_spaces() -> None:
    assert levels_json([("1", "0.10"), ("2", "0")]) == '[["1","0.10"],["2","0"]]'
