"""The markets that exchanges list: asked for at the start and daily, for whoever records `all` of them or a pattern.

A list that can't be had is asked for again, sooner at first. A market that is new begins at once; one that is gone is
believed to be so when a second list, an hour later, does not have it either: a venue's hiccup must not end a recording.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import controllers
from collector.budget import Budget
from collector.clock import Clock
from collector.config import Exchange, Settings
from collector.errors import RateLimited, SourceError
from collector.log import Log
from collector.settings import matches
from collector.worker import Backoff, Worker
from commands.plan import Listed, open_ended
from controllers import Controller
from controllers.listing import fetch_listing

DAILY_S = 86_400.0
AGAIN_S = 3600.0  # where a market is missing
RETRY_S, RETRY_S_MAX = 5.0, 600.0
LOOK_S = 0.5


@dataclass(eq=False)
class Source:
    """One list of an exchange, which may have another for each kind of market."""

    cls: type[Controller]
    options: Exchange
    patterns: tuple[str, ...]
    backoff: Backoff
    due_us: int
    markets: frozenset[str] | None = None  # None: no list was had yet
    missing: dict[str, int] = field(default_factory=dict)  # since when

    def wanted(self, market: str) -> bool:
        """Tell whether a market is one that is recorded because it is listed."""
        return any(matches(pattern, market) for pattern in self.patterns)


class Listings:
    """What is known of every exchange that is followed; the thread of a `ListingWorker` keeps it up to date.

    `changed` is called in that thread when other markets are listed than before.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        log: Callable[[str], Log],
        budget: Callable[[type[Controller], Exchange], Budget],
        changed: Callable[[], object],
    ) -> None:
        self._clock, self._log, self._budget, self._changed = clock, log, budget, changed
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, ...], Source] = {}

    def follow(self, settings: Settings) -> bool:
        """Follow the exchanges of which these settings want `all` or a pattern; tell whether there are any."""
        now_us = self._clock.monotonic_us()
        sources: dict[tuple[str, ...], Source] = {}
        with self._lock:
            for exchange, patterns in open_ended(settings).items():
                options = settings.exchanges[exchange]
                for cls in controllers.classes(exchange):
                    key = (exchange, cls.rest_url, *cls.listing_paths())
                    if key in sources:
                        continue
                    backoff = Backoff(self._clock, base_s=RETRY_S, cap_s=RETRY_S_MAX)
                    source = self._sources.get(key) or Source(cls, options, patterns, backoff, now_us)
                    if source.options.endpoint != options.endpoint:
                        source.due_us = now_us
                    source.options, source.patterns = options, patterns
                    sources[key] = source
            self._sources = sources
        return bool(sources)

    @property
    def listed(self) -> dict[str, Listed]:
        """What is known, by exchange."""
        found: dict[str, Listed] = {}
        for source in self._present():
            markets, whole = found.get(source.cls.exchange, Listed(frozenset(), whole=True))
            known = source.markets
            found[source.cls.exchange] = Listed(markets | (known or frozenset()), whole and known is not None)
        return found

    @property
    def unknown(self) -> list[str]:
        """The exchanges of which a list could not be had yet."""
        return [exchange for exchange, listed in self.listed.items() if not listed.whole]

    def look(self, stopping: threading.Event, beat: Callable[[], object]) -> None:
        """Ask for every list that is due."""
        for source in self._present():
            if self._clock.monotonic_us() >= source.due_us and not stopping.is_set():
                self._ask(source, stopping, beat)

    def _present(self) -> list[Source]:
        with self._lock:
            return list(self._sources.values())

    def _ask(self, source: Source, stopping: threading.Event, beat: Callable[[], object]) -> None:
        cls, options = source.cls, source.options
        log = self._log(cls.exchange)
        source.backoff.began()
        try:
            budget = self._budget(cls, options)
            listed = fetch_listing(cls, options.endpoint, self._clock, budget, stopping, beat)
        except SourceError as error:
            if stopping.is_set():
                return
            after_s = self._again(source, error.retry_after_s if isinstance(error, RateLimited) else None)
            # Without a list nothing of a pattern is recorded; with an older one all goes on.
            tell = log.error if source.markets is None else log.warning
            tell("listing_failed", error=error, kind=cls.product or None, after_s=round(after_s, 1))
        except Exception as error:  # our bug: the other lists must not wait for it
            after_s = self._again(source, None)
            log.exception("listing_failed", error=repr(error), kind=cls.product or None, after_s=round(after_s, 1))
        else:
            self._take(source, listed)

    def _again(self, source: Source, at_least_s: float | None) -> float:
        # When to ask once more. At least a little later, whatever the dice say: a budget is shared with what records.
        delay_s = max(RETRY_S, source.backoff.next_s(at_least_s))
        source.due_us = self._clock.monotonic_us() + int(delay_s * 1e6)
        return delay_s

    def _take(self, source: Source, listed: frozenset[str]) -> None:
        now_us = self._clock.monotonic_us()
        log, before = self._log(source.cls.exchange), source.markets
        source.backoff.attempt = 0
        gone = (before or frozenset()) - listed
        missing = {market: source.missing.get(market, now_us) for market in gone}
        dropped = frozenset(m for m, since_us in missing.items() if now_us - since_us >= int(AGAIN_S * 1e6))
        first_missed = [market for market in sorted(missing) if market not in source.missing and source.wanted(market)]
        source.missing = {market: since_us for market, since_us in missing.items() if market not in dropped}
        source.markets = listed | source.missing.keys()
        again_us = [since_us + int(AGAIN_S * 1e6) for since_us in source.missing.values()]
        source.due_us = min([now_us + int(DAILY_S * 1e6), *again_us])
        if before is None:
            log.info("markets_listed", markets=sum(map(source.wanted, listed)), of=source.cls.product or None)
        else:
            for market in sorted(filter(source.wanted, listed - before)):
                log.info("market_listed", market=market)
            for market in sorted(filter(source.wanted, dropped)):
                log.info("market_delisted", market=market)
            for market in first_missed:
                log.info("market_missing", market=market)
        if source.markets != before:
            self._changed()


class ListingWorker(Worker):
    """The thread that asks for lists."""

    kind = "listings"

    def __init__(self, listings: Listings, log: Log, clock: Clock, *, generation: int = 1) -> None:
        super().__init__("listings", log, clock, generation=generation)
        self._listings = listings

    def run_once(self) -> None:
        """Ask for whatever is due, until stopped."""
        while not self.stopping.is_set():
            self.beat()
            self._listings.look(self.stopping, self.beat)
            self.stopping.wait(LOOK_S)
