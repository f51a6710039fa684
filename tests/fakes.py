"""Stand-ins that tests hand to the collector: a clock set by hand, a log that is listened to, a ledger read naively."""

import io
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
import requests
import urllib3
from prometheus_client import CollectorRegistry
from requests.adapters import HTTPAdapter

from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange
from collector.intake import Intake
from collector.log import Log
from collector.metrics import OUTCOMES, Metrics
from collector.records import (
    CANDLES,
    KEYFRAME,
    ORDERBOOK,
    TICKER,
    TRADES,
    BookRow,
    CandleRow,
    CoverageMark,
    Delivery,
    EpochEnded,
    EpochOpened,
    EpochVerdict,
    Event,
    Record,
    Rejected,
    StreamRow,
    TickerRow,
    TradeRow,
)
from controllers.base import Setup

CHANNEL_OF = {TradeRow: TRADES, TickerRow: TICKER, CandleRow: CANDLES}
NOON_US = 1_790_000_000_000_000 // 86_400_000_000 * 86_400_000_000 + 43_200_000_000  # noon of a day in 2026

Sides = tuple[dict[str, str], dict[str, str]]
"""Bids and asks of a rebuilt book, both as the text they are stored in."""


class FakeClock(Clock):
    """Both clocks stand still until a test moves them, together by `advance` or apart by `step_wall`."""

    def __init__(self, wall_us: int = NOON_US, monotonic_us: int = 5_000_000) -> None:
        self._wall_us, self._monotonic_us = wall_us, monotonic_us

    def wall_us(self) -> int:
        return self._wall_us

    def monotonic_us(self) -> int:
        return self._monotonic_us

    def advance(self, seconds: float) -> int:
        """Let time pass; return the new monotonic time."""
        self._monotonic_us += round(seconds * 1e6)
        self._wall_us += round(seconds * 1e6)
        return self._monotonic_us

    def step_wall(self, seconds: float) -> None:
        """Set the clock of the machine forward or back."""
        self._wall_us += round(seconds * 1e6)


class HeardLog(Log):
    """Keeps every event instead of writing it."""

    def __init__(self, tag: str = "TEST") -> None:
        super().__init__(tag)
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        self.events.append((key, details))

    def of(self, key: str) -> list[dict[str, Any]]:
        """Return the details of every event of this kind."""
        return [details for heard, details in self.events.copy() if heard == key]

    def keys(self) -> list[str]:
        """Return the kinds of all events, in order."""
        return [key for key, _ in self.events.copy()]


@dataclass
class Epoch:
    """An epoch as whoever reads the records finds it."""

    opened: EpochOpened
    verdict: str
    rows: list[BookRow] = field(default_factory=list)
    books: list[Sides] = field(default_factory=list)
    stream: list[StreamRow] = field(default_factory=list)  # trades, tickers or candles
    mark: CoverageMark | None = None
    ended: EpochEnded | None = None

    @property
    def reason(self) -> str | None:
        """Why it ended, None while it is open."""
        return self.ended.reason if self.ended else None

    @property
    def book(self) -> Sides:
        """The newest book."""
        return self.books[-1]

    @property
    def keyframes(self) -> list[int]:
        """The numbers of the rows that hold a complete book."""
        return [row.n for row in self.rows if row.flags & KEYFRAME]

    @property
    def frames(self) -> int:
        """How many data frames the ledger accounts for."""
        return self.mark.frames if self.mark else 0


class Stored:
    """Takes what controllers hand over and reads it back as naively as can be, complaining about every hole.

    An epoch opens once and opens with a keyframe; rows are numbered without a hole and never follow its end; a removed
    level was there, and a level that is told did change.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.deliveries: list[Delivery] = []
        self.epochs: dict[int, Epoch] = {}
        self.rejected: list[Rejected] = []
        self.events: list[Event] = []

    def take(self) -> "Stored":
        """Read everything that waits in the intake."""
        while taken := self._intake.take(10_000):
            for delivery in taken:
                self.deliveries.append(delivery)
                for record in delivery.records:
                    self._take(record)
            self._intake.done(taken)
        return self

    def of(self, market: str) -> list[Epoch]:
        """Return the epochs of a market, in order."""
        return [epoch for epoch in self.epochs.values() if epoch.opened.market == market]

    @property
    def only(self) -> Epoch:
        """The one epoch there is."""
        (epoch,) = self.epochs.values()
        return epoch

    @property
    def last(self) -> Epoch:
        """The epoch that was opened last."""
        return list(self.epochs.values())[-1]

    @property
    def reasons(self) -> list[str | None]:
        """Why each epoch ended, in the order they were opened."""
        return [epoch.reason for epoch in self.epochs.values()]

    @property
    def frames(self) -> tuple[int, int]:
        """Frames that became stored, and that became rejected."""
        return sum(d.frames for d in self.deliveries), sum(d.rejected for d in self.deliveries)

    def _take(self, record: Record) -> None:
        match record:
            case EpochOpened():
                assert record.epoch not in self.epochs, f"epoch {record.epoch} opened twice"
                self.epochs[record.epoch] = Epoch(record, record.verdict)
            case BookRow():
                self._row(self._open(record.epoch), record)
            case TradeRow() | TickerRow() | CandleRow():
                epoch = self._open(record.epoch)
                assert epoch.opened.channel == CHANNEL_OF[type(record)]
                assert record.received_us >= epoch.opened.opened_us
                epoch.stream.append(record)
            case CoverageMark():
                epoch = self._open(record.epoch)
                assert epoch.rows or epoch.opened.channel != ORDERBOOK, "coverage without a book"
                assert record.confirmed_until_us <= record.heard_until_us
                carried = any(one.reason in ("clock", "no_space") for one in self.of(epoch.opened.market))
                joined = epoch.verdict in ("compared", "linked") or epoch.opened.channel != ORDERBOOK
                assert record.frames >= 1 or joined or carried
                epoch.mark = record
            case EpochEnded():
                self._open(record.epoch).ended = record
            case EpochVerdict():
                self._open(record.epoch).verdict = record.verdict
            case Rejected():
                self.rejected.append(record)
            case Event():
                self.events.append(record)

    def _open(self, number: int) -> Epoch:
        assert number in self.epochs, f"epoch {number} was never opened"
        assert self.epochs[number].ended is None, f"epoch {number} is over"
        return self.epochs[number]

    def _row(self, epoch: Epoch, row: BookRow) -> None:
        assert row.n == len(epoch.rows) + 1, f"row {row.n} follows {len(epoch.rows)}"
        assert epoch.rows or row.flags & KEYFRAME, "an epoch opens with a complete book"
        if row.flags & KEYFRAME:
            assert row.bids is not None and row.asks is not None
            book: Sides = dict(_pairs(row.bids)), dict(_pairs(row.asks))
            if epoch.rows:
                self._same_spelling(epoch.book, book)
        else:
            bids, asks = epoch.book
            book = dict(bids), dict(asks)
            for side, text in zip(book, (row.bids, row.asks), strict=True):
                for price, size in _pairs(text):
                    if size == "0":
                        assert price in side, f"{price} is removed but was not there"
                        del side[price]
                    else:
                        assert side.get(price) != size, f"{price} did not change"
                        side[price] = size
        for side in book:
            assert len({Decimal(price) for price in side}) == len(side), "one price in two spellings"
            assert all(Decimal(size) > 0 and Decimal(price) > 0 for price, size in side.items())
        epoch.rows.append(row)
        epoch.books.append(book)

    @staticmethod
    def _same_spelling(before: Sides, after: Sides) -> None:
        for old, new in zip(before, after, strict=True):
            spelt = {Decimal(price): price for price in old}
            for price in new:
                assert spelt.get(Decimal(price), price) == price, f"{price} changed its spelling"


def _pairs(text: str | None) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = [(price, size) for price, size in json.loads(text or "[]")]
    assert all(isinstance(token, str) for pair in pairs for token in pair)
    return pairs


def numbers(side: Mapping[Any, Any] | Iterable[Sequence[Any]]) -> dict[Decimal, Decimal]:
    """Return one side of a book as numbers."""
    rows = side.items() if isinstance(side, Mapping) else side
    return {Decimal(str(price)): Decimal(str(size)) for price, size in rows}


def make_setup(
    *,
    clock: Clock | None = None,
    log: Log | None = None,
    limit_bytes: int = 1 << 30,
    full_books: bool = False,
    keys: tuple[str, str] | None = None,
    **options: Any,
) -> Setup:
    """Return what a controller is handed; `options` are settings of the exchange."""
    clock = clock or FakeClock()
    return Setup(
        clock=clock,
        intake=Intake(limit_bytes),
        metrics=Metrics(CollectorRegistry(), version="test", started_s=0),
        log=log or HeardLog(),
        options=Exchange(**options),
        budget=Budget(1000, clock),
        full_books=full_books,
        keys=keys,
    )


def counted(setup: Setup, name: str, **labels: str) -> float:
    """Return what a metric stands at, nought where nothing was counted."""
    return setup.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0


def frame_counts(setup: Setup, exchange: str) -> dict[str, int]:
    """Return frames by outcome as the controllers count them; the writer counts `stored` and `rejected`."""
    return {o: int(counted(setup, "frames_total", exchange=exchange, outcome=o)) for o in OUTCOMES}


class FakeRest:
    """Stands where requests leave this machine: answers each from a queue, without a socket.

    An answer is a status, bytes, an exception to raise, (status, headers, body), or anything else, which is sent as
    JSON. `asked` holds each URL and when it was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
        self.answers: deque[Any] = deque()
        self.asked: list[tuple[str, int]] = []
        self.gate: threading.Event | None = None  # answers wait for it
        self.took_s: Callable[[], object] = lambda: None  # lets time pass while an answer is awaited
        self._clock = clock
        monkeypatch.setattr(HTTPAdapter, "send", lambda adapter, request, **options: self._send(adapter, request))

    def _send(self, adapter: HTTPAdapter, request: requests.PreparedRequest) -> requests.Response:
        assert self.gate is None or self.gate.wait(10)
        self.asked.append((str(request.url), self._clock.monotonic_us()))
        self.took_s()
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        if isinstance(body, int):
            status, body = body, b""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Length": str(len(body)), **headers}
        raw = urllib3.HTTPResponse(io.BytesIO(body), headers, status, preload_content=False)
        return adapter.build_response(request, raw)
