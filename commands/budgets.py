"""What each exchange bears, shared by everybody in this process who asks it for something.

Some count kinds of calls apart (GOPAX has one a second for books and twenty for all else): classes of an exchange that
name other rates have budgets of their own, which pause together.
"""

import threading

from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange
from controllers import Controller


class Budgets:
    """The budgets of all exchanges, made when they are first asked for; any thread may ask."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._first: dict[str, Budget] = {}
        self._requests: dict[tuple[str, float], Budget] = {}
        self._connects: dict[tuple[str, float], Budget] = {}

    def requests(self, cls: type[Controller], options: Exchange) -> Budget:
        """Return the budget of a class's requests."""
        return self._budgets(cls, options)[0]

    def connects(self, cls: type[Controller], options: Exchange) -> Budget:
        """Return the budget of new connections of a class."""
        return self._budgets(cls, options)[1]

    def set_rates(self, cls: type[Controller], options: Exchange) -> None:
        """Let other settings count from now on."""
        cls.set_rates(options, *self._budgets(cls, options))

    def _budgets(self, cls: type[Controller], options: Exchange) -> tuple[Budget, Budget]:
        calls, dials = (cls.exchange, cls.budget_per_s), (cls.exchange, cls.connects_per_s)
        with self._lock:
            if calls not in self._requests or dials not in self._connects:
                requests, connects = cls.budgets(options, self._clock)
                first = self._first.setdefault(cls.exchange, requests)
                if first is not requests:
                    requests = first.beside(options.rate.requests_per_s or cls.budget_per_s)
                    connects = first.beside(options.rate.connects_per_s or cls.connects_per_s)
                self._requests.setdefault(calls, requests)
                self._connects.setdefault(dials, connects)
            return self._requests[calls], self._connects[dials]
