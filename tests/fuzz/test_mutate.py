"""The mutator: it finds its way in JSON, makes what it says, and the same again from the same seed."""

import json
import random

import pytest

from tests.fuzz.json_text import layout
from tests.fuzz.mutate import BYTES_MAX, Material, Mutator, sewn

TEXT = b'{ "code":"KRW-BTC", "n":-1.50E+3,"list":[ {"price":"0.10","size":1}, [] ,null,"a\\"b"],"x":{}}'
OTHER = b'{"price":2,"list":[[1,2],[3,4]]}'


def parts(spans: list[tuple[int, int]]) -> list[bytes]:
    return [TEXT[start:end] for start, end in spans]


def test_every_part_is_found_where_it_stands() -> None:
    found = layout(TEXT)
    assert found is not None
    assert parts(found.numbers) == [b"-1.50E+3", b"0.10", b"1"]
    assert parts(found.strings) == [b"KRW-BTC", b'a\\"b']
    assert parts(found.keys) == [b'"code"', b'"n"', b'"list"', b'"price"', b'"size"', b'"x"']
    assert parts([piece.value for piece in found.lists[0]]) == [
        b'{"price":"0.10","size":1}',
        b"[]",
        b"null",
        b'"a\\"b"',
    ]
    assert parts(found.values)[-1] == TEXT
    assert json.loads(parts(found.values)[-1]) == json.loads(TEXT)


def test_what_is_cut_out_takes_one_comma_with_it() -> None:
    found = layout(TEXT)
    assert found is not None
    for piece in found.pieces:
        json.loads(TEXT[: piece.cut] + TEXT[piece.cut_end :])


@pytest.mark.parametrize("text", [b"", b"x", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_has_no_layout(text: bytes) -> None:
    assert layout(text) is None


def test_edits_that_meet_are_not_made_twice() -> None:
    assert sewn(b"abcdef", [(4, 5, b"X"), (0, 2, b"-"), (1, 3, b"never"), (2, 2, b"+")]) == b"-+cdXf"


def test_a_seed_makes_the_same_messages_again() -> None:
    def made(seed: int) -> list[bytes]:
        mutator = Mutator(random.Random(seed))
        return [mutator.spoil(Material(TEXT), [Material(OTHER)]) for _ in range(200)]

    assert made(1) == made(1) != made(2)


def test_most_of_what_is_made_is_json_and_all_of_it_is_short_enough() -> None:
    mutator = Mutator(random.Random(1))
    made = [mutator.spoil(Material(TEXT), [Material(OTHER), Material(b"no json")]) for _ in range(2000)]
    assert max(map(len, made)) <= BYTES_MAX
    assert len(set(made)) > 1000
    assert sum(layout(frame) is not None for frame in made) > 1000, "else only the decoder is tried"
    assert sum(frame == TEXT for frame in made) < 200
