import struct
from collections.abc import Iterable

import pytest

from collector.errors import ConnectionLost
from controllers.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, FrameReader, close_reason

pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
from hypothesis import given
from hypothesis import strategies as st

Messages = list[tuple[int, bytes]]


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, bits: int = 0, form: int | None = None) -> bytes:
    """Build a frame as a server sends it; `form` forces a way of writing the length (7, 16 or 64 bits)."""
    form = form or (7 if len(payload) < 126 else 16 if len(payload) < 65536 else 64)
    length = {
        7: lambda: bytes([len(payload)]),
        16: lambda: b"\x7e" + struct.pack("!H", len(payload)),
        64: lambda: b"\x7f" + struct.pack("!Q", len(payload)),
    }[form]()
    return bytes([(0x80 if final else 0) | bits | opcode]) + length + payload


def read(pieces: Iterable[bytes], **options: int) -> Messages:
    reader = FrameReader(**options)
    return [message for piece in pieces for message in reader.feed(piece)]


MIXED = b"".join(
    [
        frame(TEXT, b'{"status":"UP"}'),
        frame(BINARY, b"x" * 200),
        frame(PING, b"ping"),
        frame(TEXT, b"\xea\xb0", final=False),
        frame(PONG),
        frame(CONTINUATION, b"", final=False),
        frame(PING, b"between"),
        frame(CONTINUATION, b"\x80"),
        frame(TEXT),
        frame(BINARY, b"", final=False),
        frame(CONTINUATION, b"after nothing"),
        frame(TEXT, b"short", form=16),
        frame(TEXT, b"short", form=64),
        frame(BINARY, b"y" * 65536),
        frame(CLOSE, struct.pack("!H", 1000) + b"bye"),
    ]
)
EXPECTED: Messages = [
    (TEXT, b'{"status":"UP"}'),
    (BINARY, b"x" * 200),
    (PING, b"ping"),
    (PONG, b""),
    (PING, b"between"),
    (TEXT, b"\xea\xb0\x80"),
    (TEXT, b""),
    (BINARY, b"after nothing"),
    (TEXT, b"short"),
    (TEXT, b"short"),
    (BINARY, b"y" * 65536),
    (CLOSE, b"\x03\xe8bye"),
]


def test_a_stream_of_mixed_frames_is_read_whole() -> None:
    assert read([MIXED]) == EXPECTED


def test_no_place_where_the_stream_is_cut_makes_a_difference() -> None:
    small = MIXED.replace(frame(BINARY, b"y" * 65536), frame(BINARY, b"y" * 300))
    expected = [(op, b"y" * 300 if len(payload) == 65536 else payload) for op, payload in EXPECTED]
    for at in range(len(small) + 1):
        assert read([small[:at], small[at:]]) == expected, at
    assert read(small[at : at + 1] for at in range(len(small))) == expected
    assert read([MIXED[: -65536 - 7], MIXED[-65536 - 7 :]]) == EXPECTED


def test_a_message_is_handed_on_when_its_last_byte_is_there_and_not_before() -> None:
    whole = frame(TEXT, b"x" * 200)
    reader = FrameReader()
    assert reader.feed(whole[:-1]) == []
    assert reader.feed(whole[-1:] + whole[:1]) == [(TEXT, b"x" * 200)]
    assert reader.feed(b"") == []


@given(st.data())
def test_any_frames_cut_anywhere_come_out_as_they_went_in(data: st.DataObject) -> None:
    stream, expected = b"", []
    for _ in range(data.draw(st.integers(1, 5))):
        opcode = data.draw(st.sampled_from([TEXT, BINARY]))
        parts = data.draw(st.lists(st.binary(max_size=140), min_size=1, max_size=4))
        for i, part in enumerate(parts):
            stream += frame(opcode if i == 0 else CONTINUATION, part, final=i == len(parts) - 1)
            if data.draw(st.booleans()) and i < len(parts) - 1:
                stream += frame(PING, part[:125])
                expected.append((PING, part[:125]))
        expected.append((opcode, b"".join(parts)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == expected


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"\x81\x80", "masked"),
        (b"\x81\xfe\x00\x80", "masked"),
        (frame(TEXT, b"{}", bits=0x40), "0xc1"),
        (frame(TEXT, b"{}", bits=0x20), "0xa1"),
        (frame(BINARY, b"{}", bits=0x10), "0x92"),
        (frame(PING, bits=0x40), "0xc9"),
        (frame(0x3, b"{}"), "0x83"),
        (frame(0xB), "0x8b"),
        (frame(0xF), "0x8f"),
        (frame(PING, final=False), "control frame"),
        (frame(CLOSE, b"x" * 126), "control frame"),
        (frame(CONTINUATION, b"{}"), "out of order"),
        (frame(CONTINUATION, b"{}", final=False), "out of order"),
        (frame(TEXT, b"{", final=False) + frame(TEXT, b"}"), "out of order"),
        (frame(TEXT, b"", final=False) + frame(BINARY, b"}", final=False), "out of order"),
        (b"\x81\x7e\x04\x01", "1025 bytes is larger than 1024"),
        (b"\x81\x7f" + b"\xff" * 8, "is larger than 1024"),
        (frame(TEXT, b"x" * 800, final=False) + frame(CONTINUATION, b"x" * 300), "larger than 1024 bytes"),
    ],
)
def test_what_a_server_may_not_send_ends_the_connection(stream: bytes, says: str) -> None:
    with pytest.raises(ConnectionLost, match=says):
        read([stream], message_bytes_max=1024)


def test_fragments_that_end_do_not_count_against_the_next_message() -> None:
    message = frame(TEXT, b"x" * 800, final=False) + frame(CONTINUATION, b"x" * 224)
    assert read([message, message], message_bytes_max=1024) == [(TEXT, b"x" * 1024)] * 2


def test_no_message_is_limited_below_what_exchanges_send() -> None:
    snapshot = frame(TEXT, b"x" * (4 << 20))
    assert read([snapshot[:70_000], snapshot[70_000:]]) == [(TEXT, b"x" * (4 << 20))]
    with pytest.raises(ConnectionLost, match="larger"):
        read([b"\x81\x7f" + struct.pack("!Q", (16 << 20) + 1)])


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_give_messages_or_a_lost_connection(pieces: list[bytes]) -> None:
    try:
        messages = read(pieces, message_bytes_max=1000)
    except ConnectionLost:
        return
    for opcode, payload in messages:
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        assert len(payload) <= 1000
    assert sum(len(payload) for _, payload in messages) <= sum(map(len, pieces))


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "no code"),
        (b"\x03", "no code"),
        (b"\x03\xe8", "code 1000"),
        (b"\x03\xe8no pong", "code 1000 no pong"),
        (b"\x10\xc2 \xea\xb0\x80 ", "code 4290 가"),
        (b"\x03\xf3\xff\xfe", "code 1011 \ufffd\ufffd"),
    ],
)
def test_a_close_frame_is_told_in_words(payload: bytes, told: str) -> None:
    assert close_reason(payload) == told
