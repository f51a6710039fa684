"""Complete books over REST that the changes of a stream continue: one request at a time, for whoever waits for one.

A stream that is numbered is joined with a book that has a number of its own: changes are held back until the book is
there, and the exchange's rule (`Controller.follows`) says whether they continue it. A book that is older than what was
held back is asked for again.
"""

import queue
import threading
from collections.abc import Callable

from collector.clock import Clock
from collector.errors import SourceError
from collector.records import Book
from controllers.book_feed import HeardBook

QUIET_US = 2_000_000  # a market that says nothing for so long is asked for without waiting for its first change
RETRY_US, RETRY_US_MAX = 1_000_000, 30_000_000

Get = Callable[[str], Book | None]
"""Fetches and reads the book of a market; None where no turn was free. May raise anything."""


class Snapshots:
    """What is waited for on one connection; used by the controller's thread, which never waits for an answer."""

    def __init__(self, get: Get, clock: Clock, name: str) -> None:
        self._get, self._clock, self._name = get, clock, name
        self._wanted: dict[HeardBook, int] = {}  # since when, or from when on
        self._pause_us: dict[HeardBook, int] = {}
        self._asked: HeardBook | None = None
        self._answers: queue.SimpleQueue[Book | str | None] = queue.SimpleQueue()

    def want(self, feed: HeardBook) -> None:
        """Ask for the book of a market; a second time changes nothing."""
        self._wanted.setdefault(feed, self._clock.monotonic_us())

    def look(self, now_us: int) -> tuple[HeardBook, Book | str] | None:
        """Return an answer that came, a book or what went wrong, and ask for the next one."""
        answer = self._answer(now_us)
        if self._asked is None:
            for feed, since_us in self._wanted.items():
                if (feed.waits_for_a_book and now_us >= since_us) or now_us - since_us > QUIET_US:
                    self._asked = feed
                    threading.Thread(
                        target=self._ask, args=(feed.market,), name=f"{self._name}/snapshot", daemon=True
                    ).start()
                    break
        return answer

    def again(self, feed: HeardBook, now_us: int) -> None:
        """Ask once more, later every time."""
        pause_us = min(RETRY_US_MAX, 2 * self._pause_us.get(feed, RETRY_US // 2))
        self._pause_us[feed] = pause_us
        self._wanted.pop(feed, None)  # behind the others that wait
        self._wanted[feed] = now_us + pause_us

    def _answer(self, now_us: int) -> tuple[HeardBook, Book | str] | None:
        if self._asked is None:
            return None
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return None
        feed, self._asked = self._asked, None
        if answer is None:
            self.again(feed, now_us)
            return None
        if isinstance(answer, str):
            self.again(feed, now_us)
            return feed, answer
        self._wanted.pop(feed, None)
        return feed, answer

    def joined(self, feed: HeardBook) -> None:
        """Forget how often it was asked for in vain."""
        self._pause_us.pop(feed, None)

    def _ask(self, market: str) -> None:
        answer: Book | str | None = "the thread that asked died"  # without an answer no other book is ever asked for
        try:
            answer = self._get(market)
        except SourceError as error:
            answer = str(error)
        except Exception as error:  # our bug
            answer = repr(error)
        finally:
            self._answers.put(answer)
