"""Rows on their way into PostgreSQL: by binary COPY, and never one that the server would refuse."""

from collections.abc import Sequence
from typing import LiteralString, overload

from storage.postgres_database import Session

STAGE_BOOK = """
CREATE TEMPORARY TABLE stage_book (
    epoch integer, n integer, received_us bigint, venue_us bigint, sequence bigint, flags smallint, bids text, asks text
) ON COMMIT DELETE ROWS
"""
COPY_BOOK = "COPY stage_book FROM STDIN (FORMAT BINARY)"
BOOK_TYPES = ("int4", "int4", "int8", "int8", "int8", "int2", "text", "text")
INSERT_BOOK = """
INSERT INTO book (epoch, n, received_us, venue_us, sequence, flags, bids, asks)
SELECT epoch, n, received_us, venue_us, sequence, flags, bids, asks FROM stage_book ON CONFLICT DO NOTHING
"""

COPY_REJECTED = "COPY rejected (run, exchange, market, received_us, reason, frame) FROM STDIN (FORMAT BINARY)"
REJECTED_TYPES = ("int4", "text", "text", "int8", "text", "bytea")
COPY_EVENT = "COPY event (run, time_us, level, tag, text) FROM STDIN (FORMAT BINARY)"
EVENT_TYPES = ("int4", "int8", "text", "text", "text")

_INT8 = 1 << 63


def copy_rows(db: Session, sql: LiteralString, types: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
    """Bring rows into a table by binary COPY; `types` are those of its columns."""
    if not rows:
        return
    with db.cursor().copy(sql) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


@overload
def storable(text: str) -> str: ...


@overload
def storable(text: str | None) -> str | None: ...


def storable(text: str | None) -> str | None:
    """Return a text as it can be stored: there NUL and halves of surrogate pairs are no letters, and are spelt out."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def storable_int(number: int | None) -> int | None:
    """Return a number as it can be stored: what no 64 bits hold is nothing an exchange can mean, and left out."""
    return number if number is None or -_INT8 <= number < _INT8 else None
