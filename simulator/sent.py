"""The simulator's ledger read back: what was sent on each subscription, in order, for whoever judges a store by it.

Levels stay in the file until they are asked for, so that a ledger of an hour takes little memory.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import orjson

Levels = list[tuple[Decimal, Decimal]]


@dataclass(slots=True)
class Sent:
    """One data message of a subscription; `withheld` ones were not sent.

    `what` is `book`, `change`, `trade`, `ticker`, `candle`, `garbage` or `error`.
    """

    i: int
    what: str
    withheld: bool
    time_us: int
    venue_us: int | None = None
    sequence: int | None = None
    at: int = 0  # where its line begins in the ledger


@dataclass(slots=True)
class Subscription:
    """One market's channel on one connection, and everything that was meant for it."""

    id: str
    exchange: str
    market: str
    transport: str
    channel: str = ""
    time_us: int = 0
    messages: list[Sent] = field(default_factory=list)
    closed_us: int | None = None  # when its connection ended


class SentLedger:
    """A ledger whose simulator has stopped, or was killed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.subscriptions: list[Subscription] = []
        self._read()

    def levels(self, message: Sent) -> tuple[Levels, Levels]:
        """Return the bids and asks of a message."""
        entry = self._entry(message)
        bids, asks = ([(Decimal(price), Decimal(size)) for price, size in entry[side]] for side in ("bids", "asks"))
        return bids, asks

    def rows(self, message: Sent) -> list[dict[str, Any]]:
        """Return the trades, tickers or candles of a message; none for an answer that held none."""
        found: list[dict[str, Any]] = self._entry(message).get("rows", [])
        return found

    def frame(self, message: Sent) -> bytes:
        """Return the very bytes of a garbage message."""
        return base64.b64decode(self._entry(message)["frame"])

    def _entry(self, message: Sent) -> dict[str, Any]:
        self._file.seek(message.at)
        found: dict[str, Any] = orjson.loads(self._file.readline())
        return found

    def _read(self) -> None:
        transports: dict[str, str] = {}
        known: dict[str, Subscription] = {}
        of_connection: dict[str, list[Subscription]] = {}
        at = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # the simulator was killed in the middle of it
            entry = orjson.loads(line)
            match entry["kind"]:
                case "open":
                    transports[entry["connection"]] = entry["transport"]
                case "subscribe":
                    transport = transports[entry["connection"]]
                    found = Subscription(entry["subscription"], entry["exchange"].upper(), entry["market"], transport)
                    found.channel, found.time_us = entry["channel"], entry["time_us"]
                    known[found.id] = found
                    of_connection.setdefault(entry["connection"], []).append(found)
                    self.subscriptions.append(found)
                case "message":
                    message = Sent(entry["i"], entry["what"], entry["fate"] == "withheld", entry["time_us"], at=at)
                    message.venue_us, message.sequence = entry.get("venue_us"), entry.get("sequence")
                    known[entry["subscription"]].messages.append(message)
                case "close":
                    for subscription in of_connection.get(entry["connection"], ()):
                        subscription.closed_us = entry["time_us"]
            at += len(line)


@contextmanager
def open_ledger(path: Path) -> Iterator[SentLedger]:
    """Open a ledger for reading."""
    with path.open("rb") as file:
        yield SentLedger(file)
