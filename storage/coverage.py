"""When a feed was heard and when it was not: the ledger, told in five states that fill a range exactly.

DATA: confirmed time in which rows follow one another within a second, candles within two minutes. QUIET: confirmed time
without a row for longer. PENDING: recorded, and waiting in the spool for the database. UNCONFIRMED: the connection
lived, but nothing proved that data would have come. GAP: not heard, with the reason. Where epochs overlap the best
state counts. One pass over the times of rows; no book is loaded.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from collector.records import CANDLES
from storage.pending import Spans
from storage.reader import Reader, UnknownFeed
from storage.timeline import Epoch, Gap, clip, timeline

State = Literal["DATA", "QUIET", "PENDING", "UNCONFIRMED", "GAP"]
STATES: tuple[State, ...] = get_args(State)
QUIET_AFTER_US = 1_000_000
QUIET_AFTER_CANDLES_US = 120_000_000  # two of them: a minute without a trade has none
SHARES = 100_000  # percentages are told in thousandths

_Span = tuple[int, int]
NOTHING: Spans = {}


class Interval(NamedTuple):
    """A stretch of time in one state; `reason` only in a gap."""

    state: State
    from_us: int
    until_us: int
    reason: str | None = None


class FeedCoverage(msgspec.Struct, frozen=True):
    """What the ledger says of one feed from `start_us` to `end_us`; the intervals join without a hole.

    `collectors` are those that heard it then: what follows is what they heard together.
    """

    exchange: str
    market: str
    channel: str
    start_us: int
    end_us: int
    intervals: tuple[Interval, ...]
    collectors: tuple[str, ...] = ()

    def us(self, state: State) -> int:
        """Return the microseconds spent in a state; all of them add up to the range."""
        return sum(item.until_us - item.from_us for item in self.intervals if item.state == state)

    @property
    def gaps(self) -> tuple[Interval, ...]:
        """The gaps, in order of time."""
        return tuple(item for item in self.intervals if item.state == "GAP")

    @property
    def longest_gap_us(self) -> int:
        """The length of the longest gap, 0 without one."""
        return max((gap.until_us - gap.from_us for gap in self.gaps), default=0)

    @property
    def percent(self) -> dict[State, str]:
        """The share of each state, as text with three decimals; they add up to exactly 100."""
        total = self.end_us - self.start_us
        if total <= 0:
            return {state: "100.000" if state == "GAP" else "0.000" for state in STATES}
        # Rounded down, and what that leaves over goes to those that lost most by it.
        parts = {state: divmod(self.us(state) * SHARES, total) for state in STATES}
        left = SHARES - sum(whole for whole, _ in parts.values())
        lucky = sorted(STATES, key=lambda state: -parts[state][1])[:left]
        shares = {state: parts[state][0] + (state in lucky) for state in STATES}
        return {state: f"{share // 1000}.{share % 1000:03d}" for state, share in shares.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the intervals that are not gaps, ready for JSON."""
        return {
            "exchange": self.exchange,
            "market": self.market,
            "channel": self.channel,
            "collectors": list(self.collectors),
            "start_us": self.start_us,
            "end_us": self.end_us,
            "data_us": self.us("DATA"),
            "quiet_us": self.us("QUIET"),
            "pending_us": self.us("PENDING"),
            "unconfirmed_us": self.us("UNCONFIRMED"),
            "gap_us": self.us("GAP"),
            "percent": {state.lower(): share for state, share in self.percent.items()},
            "longest_gap_us": self.longest_gap_us,
            "gaps": [{"reason": gap.reason, "from_us": gap.from_us, "until_us": gap.until_us} for gap in self.gaps],
        }


def coverage(
    reader: Reader,
    start_us: int | None = None,
    end_us: int | None = None,
    exchange: str | None = None,
    market: str | None = None,
    *,
    channel: str | None = None,
    pending: Spans = NOTHING,
) -> list[FeedCoverage]:
    """Return the coverage of every feed, or of those of an exchange, market or channel, in order of their names.

    Without `start_us` a feed's account begins with its first epoch, without `end_us` it ends where it was last heard.
    `pending` is what waits elsewhere, as `storage.pending` tells it. Raises `UnknownFeed` for an exchange or market
    that is neither in the database nor there.
    """
    waiting = {
        key
        for key in pending
        if (exchange is None or key[0] == exchange.upper())
        and (market is None or key[1] == market.upper())
        and (channel is None or key[2] == channel)
    }
    try:
        stored = {(feed.exchange, feed.market, feed.channel) for feed in reader.feeds(exchange, market, channel)}
    except UnknownFeed:
        if not waiting:
            raise
        stored = set()
    found = []
    for key in sorted(stored | waiting):
        epochs = reader.epochs(*key[:2], channel=key[2]) if key in stored else []
        found.append(_feed_coverage(*key, epochs, reader, start_us, end_us, pending.get(key, ())))
    return found


def _feed_coverage(
    exchange: str,
    market: str,
    channel: str,
    epochs: Sequence[Epoch],
    reader: Reader,
    start_us: int | None,
    end_us: int | None,
    pending: Sequence[_Span],
) -> FeedCoverage:
    first_us = min([epoch.from_us for epoch in epochs] + [span[0] for span in pending], default=end_us or 0)
    last_us = max([epoch.heard_until_us for epoch in epochs] + [span[1] for span in pending], default=start_us or 0)
    start_us = first_us if start_us is None else start_us
    end_us = max(start_us, last_us if end_us is None else end_us)
    found: dict[State, list[_Span]] = {state: [] for state in STATES if state != "GAP"}
    found["PENDING"] = [
        (max(span[0], start_us), min(span[1], end_us)) for span in pending if span[0] < end_us and span[1] > start_us
    ]
    collectors: set[str] = set()
    for epoch in epochs:
        if epoch.from_us < end_us and epoch.heard_until_us > start_us:
            collectors.add(epoch.collector_id)
            for state, from_us, until_us in _states(epoch, reader.row_times(epoch, start_us, end_us)):
                from_us, until_us = max(from_us, start_us), min(until_us, end_us)
                if from_us < until_us:
                    found[state].append((from_us, until_us))
    intervals: list[Interval] = []
    taken: list[_Span] = []
    for state, spans in found.items():
        free = _minus(_union(spans), taken)
        intervals += [Interval(state, *span) for span in free]
        taken = _union(taken + free)
    for part in timeline(epochs):
        if not isinstance(part, Gap) or part.reason == "unconfirmed":  # that is a state of its own here
            continue
        gap = clip(part, start_us, end_us)
        if gap is not None and gap.from_us is not None and gap.until_us is not None:
            left = _minus([(gap.from_us, gap.until_us)], taken)
            intervals += [Interval("GAP", *span, gap.reason) for span in left]
    intervals.sort(key=lambda item: item.from_us)
    return FeedCoverage(exchange, market, channel, start_us, end_us, tuple(intervals), tuple(sorted(collectors)))


def _states(epoch: Epoch, row_times: Iterable[int]) -> Iterator[tuple[State, int, int]]:
    # Neighbours in the same state come as one.
    at_us = since_us = epoch.from_us
    quiet_after_us = QUIET_AFTER_CANDLES_US if epoch.channel == CANDLES else QUIET_AFTER_US
    state: State | None = None
    for time_us in _bounded(row_times, epoch):
        new: State = "QUIET" if time_us - at_us > quiet_after_us else "DATA"
        if new != state:
            if state is not None:
                yield state, since_us, at_us
            state, since_us = new, at_us
        at_us = time_us
    if state is not None:
        yield state, since_us, at_us
    yield "UNCONFIRMED", at_us, epoch.heard_until_us


def _bounded(row_times: Iterable[int], epoch: Epoch) -> Iterator[int]:
    # Rows outside coverage prove nothing; the last confirmation counts as much as a row.
    time_us = epoch.from_us
    for row_us in row_times:
        if epoch.from_us <= row_us <= epoch.until_us:
            time_us = row_us
            yield time_us
    yield max(time_us, epoch.confirmed_until_us)


def _union(spans: list[_Span]) -> list[_Span]:
    union: list[_Span] = []
    for from_us, until_us in sorted(spans):
        if union and from_us <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], until_us))
        else:
            union.append((from_us, until_us))
    return union


def _minus(spans: list[_Span], taken: list[_Span]) -> list[_Span]:
    # Both in order and without overlaps.
    rest: list[_Span] = []
    at = 0
    for from_us, until_us in spans:
        while at < len(taken) and taken[at][1] <= from_us:
            at += 1
        look = at
        while look < len(taken) and taken[look][0] < until_us:
            if taken[look][0] > from_us:
                rest.append((from_us, taken[look][0]))
            from_us = max(from_us, taken[look][1])
            look += 1
        if from_us < until_us:
            rest.append((from_us, until_us))
    return rest
