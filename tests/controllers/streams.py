"""What tests of trades, tickers and candles share: who hears them, clocks in Korea, answers that may be spoiled."""

import dataclasses
import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from collector.errors import SourceError
from collector.records import CHANNELS, CandleRow, Message, StreamRow, TradeRow
from controllers.base import Controller
from tests.controllers.venue import anything, cases, check_sums, told
from tests.fakes import FakeClock, HeardLog, Stored, make_setup

KOREA = timezone(timedelta(hours=9))
Class = TypeVar("Class", bound=Controller)


def hearing(cls: type[Class], *markets: str, channels: tuple[str, ...] = CHANNELS) -> Class:
    """Return a controller that is to hear these channels as far as it offers them, not started."""
    return cls(markets or ("BTC-KRW",), dataclasses.replace(make_setup(), channels=channels))


def korean_us(written: str) -> int:
    """Return the microseconds since 1970 UTC of a moment that a clock in Korea shows: `2026-09-25T03:26:00`."""
    moment = datetime.fromisoformat(written).replace(tzinfo=KOREA)
    return int(moment.timestamp()) * 1_000_000


def polled(controller: Any, channel: str, answer: Any, market: str = "BTC-KRW") -> list[dict[str, Any]]:
    """Read the answer to a poll, JSON or what is to be written as JSON, and tell it."""
    body = answer if isinstance(answer, str) else json.dumps(answer)
    return told(controller.parse_poll(channel, market, body.encode(), 0))


def hold_to_any_streams(
    cls: type[Controller], exchange: str, *markets: str, file: str = "frames", examples: int = 100
) -> None:
    """Check the property: whatever comes on any channel, every frame ends in one outcome and finds no bug of ours."""
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=examples)
    @given(st.lists(anything([case.frame for case in cases(exchange, file)]), max_size=6))
    def check(frames: list[bytes]) -> None:
        clock, log = FakeClock(), HeardLog()
        setup = dataclasses.replace(make_setup(clock=clock, log=log), channels=CHANNELS)
        controller = cls(markets or ("BTC-KRW", "ETH-KRW"), setup)
        stored = Stored(setup.intake)
        controller.anchor()
        for frame in frames:
            try:
                controller.handle(frame, clock.advance(0.1))
            except SourceError:
                controller.end_epochs("disconnect")
            controller.flush()
            stored.take()
        assert not log.of("parse_failed"), log.events
        check_sums(setup, stored, exchange, len(frames))
        for epoch in stored.epochs.values():
            for row in epoch.stream:
                check_row(row)

    check()


def check_row(row: StreamRow) -> None:
    """Numbers of a row are plain exact text, of a trade and a candle above nought."""
    if isinstance(row, TradeRow):
        assert row.side in ("buy", "sell")
        assert row.trade_id
        assert Decimal(row.price) > 0 < Decimal(row.volume)
    elif isinstance(row, CandleRow):
        assert row.open_us % 60_000_000 == 0
        assert min(map(Decimal, (row.open, row.high, row.low, row.close))) > 0 <= Decimal(row.volume)
    else:
        texts = [text for text in (row.last, row.bid, row.ask, row.volume) if text is not None]
        assert all("E" not in text.upper() and Decimal(text) >= 0 for text in texts)


def hold_to_any_polls(cls: type[Controller], channel: str, bodies: Iterable[str]) -> None:
    """Check the property: any answer to a poll gives messages of that channel or a `SourceError`."""
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given

    controller: Any = hearing(cls)

    @given(anything([body.encode() for body in bodies]))
    def check(body: bytes) -> None:
        try:
            messages: list[Message] = list(controller.parse_poll(channel, "BTC-KRW", body, 0))
        except SourceError as error:
            str(error).encode("utf-8", "backslashreplace")
            return
        assert all(getattr(message, "channel", None) == channel for message in messages)

    check()
