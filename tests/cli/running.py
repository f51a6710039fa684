"""A daemon in this process whose configuration a test rewrites, and what the real reader says of its feeds after it."""

import json
import signal
import sys
import threading
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import controllers
from collector.config import Settings, load
from collector.worker import Worker
from commands.daemon import Daemon
from simulator import Simulator
from simulator.venue import Timing
from storage.reader import BookAt, Reader
from storage.timeline import Gap, Segment
from tests.faults.house import House

MARKETS = ("BTC-KRW", "ETH-KRW", "XRP-KRW")
KEY, SECRET = "key-canary-7d1f", "c2VjcmV0LWNhbmFyeS03ZDFm"
PATIENT = Timing(rest_limits=False, connects_per_s=100_000, connections_max=1000, status_s=1.0)

Book = tuple[frozenset[tuple[Decimal, Decimal]], frozenset[tuple[Decimal, Decimal]]]


class Running(House):
    """Simulator and daemon; `write` and `hang_up` are what an operator does."""

    def __init__(self, folder: Path, *exchanges: str, rate_hz: int = 20) -> None:
        # What the base would set up, with more markets and with keys.
        self.folder, self.database, self.ledger = folder, folder / "db", folder / "ledger"
        self.status: int | None = None
        self._thread: threading.Thread | None = None
        self._switch_s = sys.getswitchinterval()
        self.simulator = Simulator(
            exchanges, MARKETS, rate_hz=rate_hz, ledger=self.ledger, timing=PATIENT, keys={"gopax": (KEY, SECRET)}
        )
        self.simulator.start()
        self.endpoints = self.simulator.endpoints
        self.file = folder / "collector.yaml"
        self.dotenv = folder / ".env"
        self.settings: dict[str, Any] = {
            "language": "en",
            "exchanges": {},
            "storage": {"path": str(self.database), "batch_ms": 50},
            "log": {"path": str(folder / "logs"), "stderr": False},
            "metrics": {"enabled": False},
        }

    def exchange(self, name: str, **options: object) -> None:
        """Set the options of an exchange, for the next `write`."""
        backoff = {"base_s": 0.01, "cap_s": 0.02}
        self.settings["exchanges"][name] = {"endpoint": self.endpoints[name], "backoff": backoff, **options}

    def write(self, text: str | None = None) -> None:
        """Write the configuration, or something else in its place."""
        self.file.write_text(json.dumps(self.settings, indent=1) if text is None else text)

    def read(self) -> Settings:
        """Read the configuration as the daemon does."""
        return load(self.file, env={}, dotenv=self.dotenv, flags={}, known=controllers.known())

    def begin(self, *, settle_s: float = 60.0) -> None:
        """Start the daemon and wait until all is live."""
        self.write()
        self.daemon = Daemon(self.read(), read=self.read)
        self.daemon.supervisor._settle_s = settle_s
        self._thread = threading.Thread(target=self._run, name="daemon", daemon=True)
        self._thread.start()
        self.until(self.live, what="every feed live")

    def hang_up(self) -> bool:
        """Have the configuration read again as it was written; tell whether it was accepted."""
        reloader = self.daemon.reloader
        assert reloader is not None
        before = sum(reloader.counts.values())
        self.daemon.supervisor._signals.put(signal.SIGHUP)
        self.until(lambda: sum(reloader.counts.values()) > before, what="a reload")
        assert reloader.last is not None
        return reloader.last.ok

    def goes_on(self, *exchanges: str, frames: int = 10, seconds: float = 30) -> None:
        """Return when all feeds are live and each exchange that is recorded has sent so many frames more."""
        super().goes_on(
            *(exchanges or dict.fromkeys(str(row["exchange"]) for row in self.feeds())), frames=frames, seconds=seconds
        )

    def taken_over(self) -> None:
        """Wait until nothing is being replaced any more."""
        self.until(lambda: not self.daemon.supervisor.takeovers, what="every takeover done")
        self.until(self.live, what="every feed live")

    def generations(self) -> dict[str, int]:
        """Return the generation of every worker."""
        return {worker.name: worker.generation for worker in self.daemon.supervisor.workers}

    def only(self, name: str) -> Worker:
        """Return the one worker of a name."""
        (found,) = [worker for worker in self.daemon.supervisor.workers if worker.name == name]
        return found

    def value(self, name: str, **labels: str) -> float:
        """Return what a metric stands at."""
        return self.daemon.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0

    # --- afterwards

    def finish(self) -> None:
        """Stop everything in order; every message must be accounted for."""
        verdict = self.stop()
        assert verdict.good, "\n".join([str(verdict), *verdict.notes, self.logged()])

    def logged(self) -> str:
        """Return the log of a daemon that has stopped."""
        return (self.folder / "logs" / "collector.log").read_text("utf-8")

    def epochs(self, exchange: str, market: str = "BTC-KRW") -> list[str | None]:
        """Return why each epoch of a feed ended, in the order they were opened."""
        with Reader(self.database) as reader:
            (feed,) = reader.book_feeds(exchange, market)
            epochs = [part.epoch for part in reader.timeline(feed) if isinstance(part, Segment)]
            return [epoch.reason for epoch in sorted(epochs, key=lambda epoch: epoch.id)]

    def heard_without_a_gap(
        self, exchange: str, market: str = "BTC-KRW", *, epochs: int, or_more: bool = False
    ) -> None:
        """Check that so many epochs follow each other without a gap, and that every book is served, as it was sent.

        The last is not asked of polls, which leave books out, nor of changes: the ledger does not say what a book was
        in the middle of a frame.
        """
        with Reader(self.database) as reader:
            (feed,) = reader.book_feeds(exchange, market)
            parts = reader.timeline(feed)
            heard = [part for part in parts if isinstance(part, Segment)]
            assert len(heard) == epochs or (or_more and len(heard) > epochs), parts
            heard = heard[:epochs]
            inner = parts[parts.index(heard[0]) : parts.index(heard[-1])]
            assert [part for part in inner if isinstance(part, Gap)] == [], parts
            assert all(part.takes_over for part in heard[1:])
            end_us = heard[-1].epoch.until_us
            served = list(reader.books(exchange, market, None, end_us, gaps=True))
        books = [item for item in served if isinstance(item, BookAt)]
        assert all(isinstance(item, BookAt) for item in served[served.index(books[0]) : served.index(books[-1])])
        if any(part.epoch.verdict == "compared" or part.epoch.transport == "rest" for part in heard):
            return
        sent = self._sent(exchange, market)
        assert {_book(book.bids, book.asks) for book in books} <= set(sent), "a book that was never sent"
        first, last = sent.index(_book(books[0].bids, books[0].asks)), sent.index(_book(books[-1].bids, books[-1].asks))
        left_out = set(sent[first : last + 1]) - {_book(book.bids, book.asks) for book in books}
        assert not left_out, f"{len(left_out)} of {last - first} books are missing"

    def _sent(self, exchange: str, market: str) -> list[Book]:
        # The books of a market that any of its subscriptions was sent, in the order of time.
        mine: set[str] = set()
        books: dict[Book, None] = {}
        for line in self.ledger.read_text().splitlines():
            entry = json.loads(line)
            if entry["kind"] == "subscribe" and (entry["exchange"], entry["market"]) == (exchange, market):
                mine.add(entry["subscription"])
            elif entry["kind"] == "message" and entry["subscription"] in mine and entry["what"] == "book":
                books[_book(entry["bids"], entry["asks"])] = None
        return list(books)


def _book(bids: Iterable[Iterable[str]], asks: Iterable[Iterable[str]]) -> Book:
    sides = [frozenset((Decimal(price), Decimal(size)) for price, size in side) for side in (bids, asks)]
    return sides[0], sides[1]
