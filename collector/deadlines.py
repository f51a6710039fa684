"""Ends what takes too long: one thread for everybody who makes connections.

A thread for each would be simpler, but where memory runs out, starting one may wait for ever for a thread that never
came to life, and so would whoever wanted to be safe from waiting for ever.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Deadlines:
    """Calls back, in a thread of its own, what was not over in time. The callbacks are short and raise nothing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def within(self, seconds: float, late: Callable[[], object]) -> Iterator[None]:
        """Call `late` if the body takes longer; safe to use from every thread."""
        key = object()
        with self._changed:
            self._due[key] = time.monotonic() + seconds, late
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(key, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [(key, call) for key, (due, call) in self._due.items() if due <= now]
                for key, _ in late:
                    del self._due[key]
                if not late:
                    nearest = min((due for due, _ in self._due.values()), default=None)
                    self._changed.wait(None if nearest is None else nearest - now)
            for _, call in late:
                call()


deadlines = Deadlines()
