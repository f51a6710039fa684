"""A probe: one complete book asked for over REST, to lay beside ours."""

import queue
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal

from collector.budget import Budget
from collector.clock import Clock
from collector.errors import RateLimited, SourceError
from collector.records import Book
from controllers.book import OrderBook
from controllers.book_feed import HeardBook
from controllers.connection import BANNED, retry_after, wants_pause
from controllers.fetch import fetch, open_session

GRACE_US = 3_000_000  # a REST book may be ahead of the socket by as much
BOOKS_MAX = 256
SLOT_S = 30.0  # a probe that would have to wait longer for its turn is left out

Numbers = tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]  # bids and asks, price to size


class Probe:
    """One request, made by a thread of its own so that receiving never waits for it.

    `get` fetches and reads the book; it may raise anything. Our book may be ahead of the answer or behind it: every
    state it went through since the request counts, and for a grace after the answer those that follow. Of each side the
    best `depth` levels are compared, all where it is None.
    """

    def __init__(
        self, feed: HeardBook, get: Callable[[], Book | None], clock: Clock, name: str, depth: int | None = None
    ) -> None:
        self.feed = feed
        self.epoch, self.frames = feed.epoch, feed.frames
        self.asked_at_us = clock.monotonic_us()
        self.error = ""
        self._get = get
        self._depth = depth
        self._seen = [feed.book.as_numbers(depth)]
        self._answers: queue.SimpleQueue[Numbers | str | None] = queue.SimpleQueue()
        self._answer: Numbers | None = None
        self._answered_at_us = 0
        threading.Thread(target=self._ask, name=f"{name}/probe", daemon=True).start()

    def note(self) -> None:
        """Remember the book as it is now."""
        self._seen.append(self.feed.book.as_numbers(self._depth))
        del self._seen[:-BOOKS_MAX]

    @property
    def answered(self) -> bool:
        """Whether an answer came that `outcome` has not seen."""
        return not self._answers.empty()

    def outcome(self, now_us: int) -> str | None:
        """Return `agreed`, `differed`, `failed`, `skipped` (no turn was free), or None while it is open.

        Of a feed that had no book when it was asked: `trades` where REST has levels, `empty` where it has none.
        """
        if self.feed.epoch != self.epoch:
            self.error = "the subscription ended meanwhile"
            return "failed"
        if self._answer is None:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return None
            if answer is None:
                return "skipped"
            if isinstance(answer, str):
                self.error = answer
                return "failed"
            self._answer = answer
            self._answered_at_us = now_us
        if not self.epoch:
            return "trades" if any(self._answer) else "empty"
        if self._answer in self._seen:
            return "agreed"
        return "differed" if now_us - self._answered_at_us > GRACE_US else None

    def _ask(self) -> None:
        answer: Numbers | str | None = "the thread that asked died"  # without an answer no other probe is ever made
        try:
            book = self._get()
            answer = None if book is None else as_numbers(book, self._depth)
        except SourceError as error:
            answer = str(error)
        except Exception as error:  # our bug
            answer = repr(error)
        finally:
            self._answers.put(answer)


def ask(
    url: str,
    read: Callable[[bytes], Book],
    budget: Budget,
    stopping: threading.Event,
    clock: Clock,
    dated: Callable[[Mapping[str, str]], None],
    rate_limited: Callable[[RateLimited], None],
) -> Book | None:
    """Return the book at `url`, None where no turn was free or the exchange asked for a pause; raises `SourceError`."""
    if not budget.wait(stopping, within_s=SLOT_S):
        return None
    with open_session() as session:
        status, headers, body = fetch(session, url, clock)
    dated(headers)
    if wants_pause(status, headers):
        rate_limited(RateLimited(f"HTTP {status}", retry_after(headers), banned=status == BANNED))
        return None
    if status != 200:
        raise SourceError(f"HTTP {status}")
    try:
        return read(body)
    except RateLimited as error:  # in an answer that is well otherwise
        rate_limited(error)
        return None


def as_numbers(book: Book, depth: int | None = None) -> Numbers:
    """Return a complete book as numbers, the best `depth` levels of each side; raises `BadFrame` where it is none."""
    other = OrderBook(trim=False)
    other.replace(book)
    return other.as_numbers(depth)
