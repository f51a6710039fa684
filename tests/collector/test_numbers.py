from decimal import Decimal

import msgspec
import pytest

from collector.errors import BadFrame
from collector.numbers import DIGITS_MAX, EXACT, decoder, is_zero, plain, to_decimal


class Level(msgspec.Struct):
    price: object
    size: object


decode = decoder(Level)


def token(text: str) -> object:
    level = decode(b'{"price":%s,"size":1}' % text.encode())
    assert isinstance(level, Level)
    return level.price


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("116539000", 116539000),
        ("1.16539E8", "1.16539E8"),
        ("7.9276E-4", "7.9276E-4"),
        ("0.00077720", "0.00077720"),
        ("127.0", "127.0"),
        ('"0.10"', "0.10"),
        ("9007199254740993", 9007199254740993),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    ],
)
def test_a_number_is_decoded_without_a_digit_lost(text: str, kept: object) -> None:
    found = token(text)
    assert found == kept
    assert type(found) is type(kept)
    assert to_decimal(found) == Decimal(text.strip('"'))


@pytest.mark.parametrize(
    "frame",
    [b"", b"{", b'{"price":1}', b"[]", b'{"price":NaN,"size":1}', b'{"price":1,"size":1}x',
     b'{"price":"\xff","size":1}', b"[" * 100_000,
     b'{"price":' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_json_of_that_shape_is_a_bad_frame(frame: bytes) -> None:
    with pytest.raises(BadFrame):
        decode(frame)


def test_what_is_refused_is_named_in_text_that_every_store_takes() -> None:
    class Tagged(msgspec.Struct, tag_field="e", tag="trade"):
        pass

    with pytest.raises(BadFrame) as refused:
        decoder(Tagged)(b'{"e":"tr\\u0000ade"}')
    assert "tr\\0ade" in str(refused.value)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_absurd_length_is_a_bad_frame_one_way_or_the_other(digits: int) -> None:
    with pytest.raises(BadFrame):
        to_decimal(token("9" * digits))


@pytest.mark.parametrize(
    "wrong",
    ["", "NaN", "Infinity", "-Infinity", "sNaN", "1_000", " 1", "1 ", "+1", ".5", "5.", "0x10", "1e", "1E+", "٣", "१",
     "1\n", "abc", None, True, False, 1.5, [1], {}, b"1", Decimal(1)],
)  # fmt: skip
def test_what_is_no_number_token_is_refused(wrong: object) -> None:
    with pytest.raises(BadFrame, match="is not a number"):
        to_decimal(wrong)


@pytest.mark.parametrize(
    "wrong", ["1E999999999", "1E-999999999", "1E41", "1E-41", "0E-41", 10 ** (DIGITS_MAX + 1), "0." + "0" * 40 + "1"]
)
def test_what_has_more_digits_than_any_market_is_refused(wrong: object) -> None:
    with pytest.raises(BadFrame):
        to_decimal(wrong)


def test_a_refusal_shows_what_was_found_but_not_at_any_length() -> None:
    with pytest.raises(BadFrame) as refused:
        to_decimal("x" * 10_000)
    assert len(str(refused.value)) < 100
    assert "'xxx" in str(refused.value)


@pytest.mark.parametrize(
    ("written", "told"),
    [("1.16539E8", "116539000"), ("7.9276E-4", "0.00079276"), ("5.0E-4", "0.00050"), ("1e3", "1000"), ("0.10", "0.10"),
     (127, "127"), ("127.0", "127.0"), ("-1.5E0", "-1.5")],
)  # fmt: skip
def test_plain_takes_the_exponent_out_and_leaves_the_rest(written: str | int, told: str) -> None:
    assert plain(written) == told
    assert Decimal(plain(written)) == to_decimal(written)


def test_nought_is_nought_however_it_is_written() -> None:
    assert all(is_zero(zero) for zero in (0, "0", "0.0", "0E-8", "-0", "0.00000000", "-0.0"))
    assert not any(is_zero(other) for other in (1, "0.1", "1E-40", "-0.00000001"))
    with pytest.raises(BadFrame):
        is_zero("null")


def test_sums_of_a_book_are_never_rounded() -> None:
    large, small = to_decimal("9" * 40), to_decimal("0." + "0" * 39 + "1")
    total = EXACT.add(large, small)
    assert EXACT.subtract(total, large) == small
    assert EXACT.subtract(total, small) == large
