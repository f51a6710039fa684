import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from collector.errors import BadFrame, VenueRefused
from controllers.levels import decode_any, listed, pairs, shaped, side, swapped, venue_us


def entry(price: object, size: object) -> SimpleNamespace:
    return SimpleNamespace(price=price, size=size)


def unit(bid_price: object, bid_size: object, ask_price: object, ask_size: object) -> SimpleNamespace:
    return SimpleNamespace(bid_price=bid_price, bid_size=bid_size, ask_price=ask_price, ask_size=ask_size)


def test_a_side_is_price_to_size_in_untouched_tokens() -> None:
    assert side([entry("695.5", "5000"), entry("1.1E2", 7)]) == {"695.5": "5000", "1.1E2": 7}
    assert side([]) == {}


def test_a_price_that_stands_twice_on_a_side_is_refused() -> None:
    with pytest.raises(BadFrame, match="twice"):
        side([entry("1", "2"), entry("1", "3")])
    with pytest.raises(BadFrame, match="twice"):
        listed([("1", "2"), ("1", "3")])


@pytest.mark.parametrize("price", [[1], {"a": 1}])
def test_a_price_that_can_not_be_a_key_is_refused(price: object) -> None:
    with pytest.raises(BadFrame, match="not a number"):
        side([entry(price, "1")])
    with pytest.raises(BadFrame, match="not a number"):
        pairs([unit(price, 1, 2, 1)])
    with pytest.raises(BadFrame, match="not a number"):
        pairs([unit(1, 1, price, 1)])


def test_pairs_are_split_into_bids_and_asks() -> None:
    assert pairs([unit(10, "0.5", "11.0", 7), unit(9, 1, 12, 2)]) == ({10: "0.5", 9: 1}, {"11.0": 7, 12: 2})
    assert pairs([]) == ({}, {})


@pytest.mark.parametrize("zero", [0, "0", "0.0", "0E-8", "0.00000000"])
def test_a_thin_side_is_filled_up_with_price_nought_which_is_left_out(zero: object) -> None:
    units = [unit(10, 1, 11, 1), unit(9, 1, zero, zero), unit(8, 1, zero, zero)]
    assert pairs(units) == ({10: 1, 9: 1, 8: 1}, {11: 1})


def test_a_single_padded_level_is_left_out_too_whatever_size_it_shows() -> None:
    assert pairs([unit(10, 1, 11, 1), unit(9, 1, 0, "3.5")]) == ({10: 1, 9: 1}, {11: 1})


def test_both_sides_may_be_all_padding() -> None:
    assert pairs([unit(0, 0, 0, 0)] * 15) == ({}, {})


@pytest.mark.parametrize(
    "units",
    [
        [unit(10, 1, 11, 1), unit(10, 2, 12, 1)],
        [unit(10, 1, 11, 1), unit(9, 1, 11, 5)],
        [unit(10, 1, 11, 1), unit(9, 1, 11, 5), unit(8, 1, 0, 0)],
        [unit(10, 1, 11, 1), unit(9, 1, 11, 5), unit(8, 1, 0, 0), unit(7, 1, 0, 0)],
        [unit(10, 1, 11, 1), unit(9, 1, 11, 5), unit(8, 1, "0.0", 0), unit(7, 1, 0, 0)],
    ],
)
def test_a_price_that_stands_twice_in_pairs_is_refused_beside_padding_too(units: list[Any]) -> None:
    with pytest.raises(BadFrame, match="twice"):
        pairs(units)


@pytest.mark.parametrize(
    ("value", "microseconds"),
    [
        (None, None),
        (0, 0),
        (1_790_134_742, 1_790_134_742_000_000),  # seconds
        (1_790_134_742_106, 1_790_134_742_106_000),  # milliseconds
        (1_691_530_805_062_000, 1_691_530_805_062_000),  # microseconds, as Upbit sent in 2023
        (99_999_999_999, 99_999_999_999_000_000),
        (100_000_000_000, 100_000_000_000_000),
        (99_999_999_999_999, 99_999_999_999_999_000),
        (100_000_000_000_000, 100_000_000_000_000),
        (10**18 - 1, 10**18 - 1),
    ],
)
def test_the_unit_of_a_time_is_told_by_its_magnitude(value: object, microseconds: int | None) -> None:
    assert venue_us(value) == microseconds


@pytest.mark.parametrize("value", [-1, 10**18, 10**30, "1790134742106", "1.790134742106E12", True, [], {}])
def test_a_time_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(BadFrame, match="time"):
        venue_us(value)


def test_a_market_is_swapped_both_ways() -> None:
    assert swapped("BTC-KRW") == "KRW-BTC"
    assert swapped(swapped("BTC-KRW")) == "BTC-KRW"


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b"{}", lambda answer: answer["data"]),
        (b"[]", lambda answer: answer[0]),
        (b"null", lambda answer: answer["data"]),
        (b"[1,2]", lambda answer: len(*answer)),
        (b"[[1,2,3]]", dict),
        (b"5", lambda answer: answer.upper()),
        (b"1" + b"0" * 30, lambda answer: time.gmtime(int(answer))),
    ],
)
def test_an_answer_of_another_shape_is_a_bad_frame(body: bytes, read: Callable[[Any], object]) -> None:
    with pytest.raises(BadFrame, match="another shape"):
        shaped(lambda body: read(decode_any(body)))(body)


def test_an_answer_that_has_its_shape_is_handed_on_and_a_refusal_stays_one() -> None:
    def refuses(body: bytes) -> object:
        raise VenueRefused(body.decode())

    assert shaped(decode_any)(b'[1,"2",3.0]') == [1, "2", "3.0"]
    with pytest.raises(VenueRefused, match="108"):
        shaped(refuses)(b"108")
