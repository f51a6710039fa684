"""Rows on their way into PostgreSQL: by binary COPY, and never one that the server would refuse."""

from collections.abc import Sequence
from typing import Final, LiteralString, NamedTuple, overload

from storage.postgres_database import Session
from storage.store import REPLACE_CANDLE

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


class Table(NamedTuple):
    """A table of rows without numbers: its key, its columns with their types, what becomes of a row that is there."""

    name: LiteralString
    key: tuple[str, ...]
    columns: dict[str, str]
    conflict: str

    @property
    def stage(self) -> str:
        """The statement that makes the table which rows go through."""
        columns = ", ".join(f"{name} {type_}" for name, type_ in self.columns.items())
        return f"CREATE TEMPORARY TABLE stage_{self.name} ({columns}) ON COMMIT DELETE ROWS"

    @property
    def copy(self) -> str:
        """The statement that takes rows in there."""
        return f"COPY stage_{self.name} FROM STDIN (FORMAT BINARY)"

    @property
    def merge(self) -> str:
        """The statement that brings them to where they belong.

        In the order of their key: of two collectors that bring the same rows neither waits for the other crosswise.
        """
        columns = ", ".join(self.columns)
        return (
            f"WITH staged AS (DELETE FROM stage_{self.name} RETURNING *) "
            f"INSERT INTO {self.name} ({columns}) SELECT {columns} FROM staged "
            f"ORDER BY {', '.join(self.key)} {self.conflict}"
        )


def read_columns(text: str) -> dict[str, str]:
    """Read `name:type name:type`."""
    return dict(item.split(":") for item in text.split())


TRADE: Final = Table(
    "trade",
    ("feed", "venue_us", "trade_id"),
    read_columns("feed:int4 venue_us:int8 trade_id:text received_us:int8 epoch:int4 side:text price:text volume:text"),
    "ON CONFLICT DO NOTHING",
)
TICKER: Final = Table(
    "ticker",
    ("feed", "received_us", "epoch"),
    read_columns("feed:int4 received_us:int8 venue_us:int8 epoch:int4 last:text bid:text ask:text volume:text"),
    "ON CONFLICT DO NOTHING",
)
CANDLE: Final = Table(
    "candle",
    ("feed", "interval_s", "open_us"),
    read_columns(
        "feed:int4 interval_s:int4 open_us:int8 open:text high:text low:text close:text volume:text closed:int2 "
        "received_us:int8 epoch:int4"
    ),
    REPLACE_CANDLE,
)

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
