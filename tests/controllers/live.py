"""Controllers that run against the simulator over real sockets, and what is asked of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from collector.clock import Clock
from collector.records import ORDERBOOK
from controllers.base import Controller, Setup
from simulator import Simulator
from simulator.venue import Timing
from tests.conftest import wait_until
from tests.fakes import HeardLog, Stored, frame_counts, make_setup, numbers

Levels = dict[Decimal, Decimal]
# No limits in the way, and pings soon.
SOON = Timing(rest_limits=False, connects_per_s=10_000)


class Live:
    """A running simulator and controllers on it; `close` stops everything."""

    def __init__(self, folder: Path, *exchanges: str, **options: Any) -> None:
        self.ledger = folder / "ledger.jsonl"
        plan = {"ledger": self.ledger, "rate_hz": 40, "timing": SOON, **options}
        self.simulator = Simulator(exchanges, **plan)
        self.simulator.start()
        self.controllers: list[Controller] = []
        self.log = HeardLog()
        self.setup: Setup
        self.stored: Stored

    def start(
        self,
        cls: type[Controller],
        *markets: str,
        start: bool = True,
        channels: Sequence[str] = (ORDERBOOK,),
        **options: Any,
    ) -> Controller:
        """Start a controller that waits next to nothing before it tries again."""
        options.setdefault("backoff", {"base_s": 0.01, "cap_s": 0.02, "healthy_s": 60})
        options.setdefault("endpoint", self.simulator.endpoints[cls.exchange])
        self.setup = replace(make_setup(clock=Clock(), log=self.log, **options), channels=tuple(channels))
        self.stored = Stored(self.setup.intake)
        controller = cls(markets or ("BTC-KRW",), self.setup)
        self.controllers.append(controller)
        if start:
            controller.start()
        return controller

    def until(self, condition: Callable[[], object], seconds: float = 20, what: str = "") -> None:
        """Wait for a condition of what is stored."""

        def looked_at() -> object:
            self.stored.take()
            return condition()

        wait_until(looked_at, seconds, what)

    def heard(self, count: int, market: str = "BTC-KRW") -> None:
        """Wait until the newest epoch of a market is open and has so many rows."""

        def enough() -> bool:
            epochs = self.stored.of(market)
            return bool(epochs) and epochs[-1].reason is None and len(epochs[-1].rows) >= count

        self.until(enough, what=f"{count} rows of {market}")

    def stop(self) -> None:
        """Stop the controllers and read what they still handed over."""
        for controller in self.controllers:
            controller.stop()
        for controller in self.controllers:
            assert controller.join(10), controller.name
        if self.controllers:
            self.stored.take()

    def close(self) -> None:
        for controller in self.controllers:
            controller.stop()
        for controller in self.controllers:
            controller.join(10)
        self.simulator.stop()

    # --- the truth

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the lines of the simulator's ledger that have these values."""
        written = self.ledger.read_text()  # the simulator may be in the middle of a line
        lines = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]

    def sent(self, market: str, subscription: int) -> list[dict[str, Any]]:
        """Return the messages that were sent on one of the WebSocket subscriptions of a market."""
        sockets = {line["connection"] for line in self.lines(kind="open", transport="websocket")}
        made = [line for line in self.lines(kind="subscribe", market=market) if line["connection"] in sockets]
        return self.lines(kind="message", subscription=made[subscription]["subscription"], fate="sent")

    def check(
        self, market: str = "BTC-KRW", subscription: int = 0, epoch: int = 0, *, single_frames: bool = True
    ) -> None:
        """Compare an epoch with what was sent on a subscription: the first messages, each, by position."""
        kept = self.stored.of(market)[epoch]
        messages = self.sent(market, subscription)
        states = list(_states(messages[: kept.frames]))
        assert kept.frames
        assert len(states) == kept.frames
        assert kept.mark is not None
        until_us = kept.mark.confirmed_until_us - kept.opened.opened_us  # rows after it are claimed by nobody
        claimed = [(row.at_us, book) for row, book in zip(kept.rows, kept.books, strict=True) if row.at_us <= until_us]
        found = [(numbers(bids), numbers(asks)) for _, (bids, asks) in claimed]
        while len(found) > 1 and claimed[len(found) - 1][0] == until_us and found[-1] != states[-1]:
            found.pop()  # it came in one piece with the last one that is claimed
        assert found[-1] == states[-1]
        distinct = [state for i, state in enumerate(states) if i == 0 or state != states[i - 1]]
        if single_frames:
            assert found == distinct
        else:
            rest = iter(found)
            assert all(state in rest for state in distinct), "a frame of several entries is several rows"

    def check_polled(self, market: str = "BTC-KRW") -> None:
        """Compare what polls recorded with what they were answered: the first answers, each, by position."""
        (kept,) = self.stored.of(market)
        answers = self.lines(kind="message", what="book", fate="sent")
        polled = {line["subscription"] for line in self.lines(kind="subscribe", market=market)}
        states = list(_states([line for line in answers if line["subscription"] in polled][: kept.frames]))
        distinct = [state for i, state in enumerate(states) if i == 0 or state != states[i - 1]]
        assert [(numbers(bids), numbers(asks)) for bids, asks in kept.books] == distinct

    def so_far(self, outcome: str) -> int:
        """Return how many frames ended so, while more arrive."""
        return frame_counts(self.setup, self.controllers[-1].exchange)[outcome]

    def counts(self) -> dict[str, int]:
        """Check, after the stop, that every frame ended in one bucket; return the counts."""
        counts = frame_counts(self.setup, self.controllers[-1].exchange)
        counts["stored"], counts["rejected"] = self.stored.frames
        assert counts["received"] == sum(count for outcome, count in counts.items() if outcome != "received"), counts
        return counts


def _states(messages: list[dict[str, Any]]) -> Iterator[tuple[Levels, Levels]]:
    bids: Levels = {}
    asks: Levels = {}
    for message in messages:
        assert message["what"] in ("book", "change"), message["what"]
        new_bids, new_asks = numbers(message["bids"]), numbers(message["asks"])
        if message["what"] == "book":
            bids, asks = new_bids, new_asks
        else:
            bids = {price: size for price, size in {**bids, **new_bids}.items() if size}
            asks = {price: size for price, size in {**asks, **new_asks}.items() if size}
        yield bids, asks
