"""Who speaks for a feed when: the ledger's epochs laid side by side, and the gaps before, between and after them.

Where epochs of one feed overlap (two transports, a planned reconnect, two collectors), the one that opened first speaks
until it ends, then the next.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from collector.times import show_time

# What ended for one of these was trusted only up to the last data that agreed.
DOUBTFUL = frozenset(("stale", "probe", "checksum", "rejected"))


class StoredFeed(NamedTuple):
    """A feed of which something is stored; `exchange` in upper case, as in the tables."""

    id: int
    exchange: str
    symbol: str
    currency: str
    channel: str

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return f"{self.symbol}-{self.currency}"


class Epoch(msgspec.Struct, frozen=True):
    """One subscription and what the ledger says of it.

    `until_us` is where its coverage ends, both ends included: the last sign of life, or the last data that agreed where
    it ended in doubt and where nothing in the data would show a loss (`compared`). Between it and `heard_until_us` the
    connection lived and nothing is claimed. An epoch that accounts for nothing ends just before it begins. `reason` is
    None while it is open, `crash` where the run is over and nobody wrote why. `unit` is what sizes count where that is
    a contract: `0.01 BTC`.
    """

    id: int
    exchange: str
    symbol: str
    currency: str
    channel: str
    collector_id: str
    transport: str
    depth: int | None
    unit: str | None
    verdict: str
    opened_us: int
    from_us: int
    until_us: int
    heard_until_us: int
    confirmed_until_us: int
    frames: int
    reason: str | None

    @property
    def market(self) -> str:
        """The market in house form: `BTC-KRW`."""
        return f"{self.symbol}-{self.currency}"

    @property
    def trimmed(self) -> bool:
        """Whether retention deleted its beginning."""
        return self.from_us > self.opened_us


def told(row: Sequence[Any]) -> Epoch:
    """Return what the ledger says of an epoch.

    A row has the fields of `Epoch` up to `opened_us`, then `from_us`, `heard_until_us` and `confirmed_until_us` as they
    are in the ledger, `frames`, `ended_us` and `reason` (None while it is open), and whether its run is over.
    """
    *facts, opened_us, from_us, heard_us, confirmed_us, frames, ended_us, reason, run_is_over = row
    if ended_us is None:
        reason = "crash" if run_is_over else None
    else:
        reason = reason or "unknown"
        heard_us = min(heard_us, ended_us, confirmed_us if reason in DOUBTFUL else heard_us)
    heard_us = max(heard_us, from_us)
    confirmed_us = min(confirmed_us, heard_us)
    until_us = heard_us
    if facts[-1] == "compared":
        until_us = max(confirmed_us, from_us) if frames else from_us - 1
    return Epoch(*[*facts, opened_us, from_us, until_us, heard_us, confirmed_us, frames, reason])


class Gap(msgspec.Struct, frozen=True):
    """Nothing is known between `from_us` and `until_us`; None means without end.

    `reason` is that of the epoch before (`disconnect`, `stale`, `crash`...), or `never` before the first, `open` after
    the last sign of life of an epoch that goes on, `unconfirmed` where an epoch was heard and no comparison with
    another source has confirmed it, `deleted` by retention, `missing` where rows of a covered time are not there.
    """

    reason: str
    from_us: int | None
    until_us: int | None

    def __str__(self) -> str:
        since = "" if self.from_us is None else f" from {show_time(self.from_us)}"
        until = "" if self.until_us is None else f" until {show_time(self.until_us)}"
        return f"{self.reason}{since}{until}"


class Segment(NamedTuple):
    """A stretch of a feed's time and the epoch that speaks for it, from after `after_us` to `epoch.until_us`."""

    epoch: Epoch
    after_us: int
    takes_over: bool  # from an epoch that was still covered when this one opened


def timeline(epochs: Iterable[Epoch]) -> list[Segment | Gap]:
    """Return who speaks for a feed when, in order of time, with the gaps before, between and after."""
    found: list[Segment | Gap] = []
    last: Epoch | None = None
    for epoch in sorted(epochs, key=lambda epoch: (epoch.from_us, epoch.id)):
        if last is None:
            found.append(Gap("deleted" if epoch.trimmed else "never", None, epoch.from_us))
        elif epoch.until_us <= last.until_us:
            continue
        elif epoch.from_us > last.until_us:
            found += _gaps(last, epoch)
        else:
            found.append(Segment(epoch, last.until_us, takes_over=True))
            last = epoch
            continue
        found.append(Segment(epoch, epoch.from_us - 1, takes_over=False))
        last = epoch
    return found + (_gaps(last, None) if last else [Gap("never", None, None)])


def _gaps(last: Epoch, following: Epoch | None) -> list[Gap]:
    # What lies between the coverage of one epoch and the next.
    reason = "deleted" if following is not None and following.trimmed else last.reason or "open"
    from_us, until_us = last.until_us, following.from_us if following is not None else None
    heard_us = last.heard_until_us if until_us is None else min(last.heard_until_us, until_us)
    if heard_us <= from_us:
        return [Gap(reason, from_us, until_us)]
    unconfirmed = Gap("unconfirmed", from_us, heard_us)
    return [unconfirmed] if heard_us == until_us else [unconfirmed, Gap(reason, heard_us, until_us)]


def clip(gap: Gap, start_us: int | None, end_us: int | None) -> Gap | None:
    """Return the part of a gap that lies between two moments, None where there is none."""
    from_us, until_us = gap.from_us, gap.until_us
    if start_us is not None and (from_us is None or from_us < start_us):
        from_us = start_us
    if end_us is not None and (until_us is None or until_us > end_us):
        until_us = end_us
    if from_us is not None and until_us is not None and from_us >= until_us:
        return None
    return Gap(gap.reason, from_us, until_us)


def bounds(part: Segment, start_us: int | None, end_us: int | None) -> tuple[int, int]:
    """Return the first and last moment of a segment that lie in a range; the last is before the first if none does."""
    lower_us = part.after_us + 1 if start_us is None else max(part.after_us + 1, start_us)
    upper_us = part.epoch.until_us if end_us is None else min(part.epoch.until_us, end_us - 1)
    return lower_us, upper_us
