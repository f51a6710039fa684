"""Faults that a test can ask of the simulated exchanges, and the damage some of them do to a frame."""

import re
import time
from dataclasses import dataclass, field
from typing import Any

# Every kind with the parameters it takes. `seconds`: how long it lasts; `times`: how many messages or answers it hits.
# A lasting kind with neither lasts until `clear`, a single one happens once.
LASTING: dict[str, set[str]] = {
    "stall": set(),
    "freeze": set(),
    "quiet": set(),
    "refuse": set(),
    "drop_pong": set(),
    "status": {"code", "retry_after"},
    "slow": {"delay_s"},
}
SINGLE: dict[str, set[str]] = {
    "garbage": {"what"},
    "corrupt_total": set(),
    "duplicate": {"channel"},
    "late": {"channel"},
    "swap": {"channel"},
    "swallow": {"channel"},
    "forget": {"channel"},
    "early_change": set(),
}
AT_ONCE: dict[str, set[str]] = {
    "disconnect": {"code", "reason", "transport"},
    "half_open": {"transport"},
    "leave": {"after_s"},
    "crossed": set(),
    "clear": {"what"},
}
KINDS = frozenset(LASTING) | frozenset(SINGLE) | frozenset(AT_ONCE)

GARBAGE = (
    "not_json",
    "truncated",
    "foreign_market",
    "negative_volume",
    "nan",
    "text_number",
    "unknown_type",
    "empty_object",
    "huge_number",
    "huge_exponent",
    "not_utf8",
)


@dataclass(slots=True)
class Fault:
    """One fault in force, for one exchange and market or (None) for all."""

    kind: str
    exchange: str | None = None
    market: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    until: float | None = None  # monotonic seconds
    times: int | None = None

    def hits(self, exchange: str, market: str | None, channel: str | None = None) -> bool:
        """Tell whether this fault is meant for a message of that exchange, market and channel."""
        if self.exchange not in (None, exchange) or channel not in (None, self.parameters.get("channel", "orderbook")):
            return False
        return self.market is None or market is None or self.market == market

    def over(self) -> bool:
        """Tell whether its time or its number has run out."""
        late = self.until is not None and time.monotonic() >= self.until
        return late or (self.times is not None and self.times < 1)


def check(kind: str, parameters: dict[str, Any]) -> None:
    """Raise ValueError, saying what is allowed, for a kind or a parameter that does not exist."""
    if kind not in KINDS:
        raise ValueError(f"unknown fault {kind!r}: one of {', '.join(sorted(KINDS))}")
    allowed = LASTING.get(kind, set()) | SINGLE.get(kind, set()) | AT_ONCE.get(kind, set())
    if kind not in AT_ONCE:
        allowed = allowed | {"seconds", "times"}
    if unknown := sorted(set(parameters) - allowed):
        raise ValueError(f"fault {kind!r} takes {sorted(allowed)}, not {unknown}")
    if kind == "garbage" and (what := parameters.get("what", GARBAGE[0])) not in GARBAGE:
        raise ValueError(f"unknown garbage {what!r}: one of {', '.join(GARBAGE)}")
    if kind == "clear" and (what := parameters.get("what")) is not None and what not in KINDS:
        raise ValueError(f"cannot clear unknown fault {what!r}")


class Faults:
    """Those in force. Used on the simulator's own thread only."""

    def __init__(self) -> None:
        self._active: list[Fault] = []

    def add(self, kind: str, exchange: str | None, market: str | None, parameters: dict[str, Any]) -> Fault:
        """Put a checked fault in force."""
        rest = dict(parameters)
        seconds, times = rest.pop("seconds", None), rest.pop("times", None)
        if kind in SINGLE and times is None and seconds is None:
            times = 1
        until = None if seconds is None else time.monotonic() + float(seconds)
        fault = Fault(kind, exchange, market, rest, until, None if times is None else int(times))
        self._active.append(fault)
        return fault

    def clear(self, exchange: str | None, market: str | None, what: str | None) -> None:
        """End faults: all, or those of one exchange, one market, one kind."""
        self._active = [
            f
            for f in self._active
            if not (exchange in (None, f.exchange) and market in (None, f.market) and what in (None, f.kind))
        ]

    def active(self, kind: str, exchange: str, market: str | None = None, channel: str | None = None) -> Fault | None:
        """Find a fault of that kind in force, without using it up."""
        self._active = [f for f in self._active if not f.over()]
        return next((f for f in self._active if f.kind == kind and f.hits(exchange, market, channel)), None)

    def take(self, kind: str, exchange: str, market: str | None = None, channel: str | None = None) -> Fault | None:
        """Find a fault of that kind and use it up by one where it is counted."""
        fault = self.active(kind, exchange, market, channel)
        if fault is not None and fault.times is not None:
            fault.times -= 1
        return fault

    def withholding(self, exchange: str, market: str | None) -> bool:
        """Tell whether data of a market is held back now."""
        return bool(self.active("stall", exchange, market) or self.active("freeze", exchange, market))

    def listed(self) -> list[dict[str, Any]]:
        """Describe what is in force, for the control endpoint."""
        return [
            {"kind": f.kind, "exchange": f.exchange, "market": f.market, "times": f.times, **f.parameters}
            for f in self._active
            if not f.over()
        ]


def damage(what: str, text: str, volume: re.Pattern[str], code: str, foreign: str, surprise: str) -> str | bytes:
    """Turn a good frame into garbage.

    `volume` finds the first volume: group 1 is what stands before it, group 2 the token with its quotes if the venue
    quotes numbers. `code` is the venue's spelling of the market, `foreign` that of another one, `surprise` a
    well-formed message of a kind that the venue does not have. Bytes are returned where the result is not even text. A
    frame that has nothing of that kind to spoil is cut in the middle.
    """
    spoiled = _damaged(what, text, volume, code, foreign, surprise)
    return text[: len(text) // 2] if spoiled == text else spoiled


def _damaged(what: str, text: str, volume: re.Pattern[str], code: str, foreign: str, surprise: str) -> str | bytes:
    def number(token: str) -> str:
        return volume.sub(lambda m: m[1] + (f'"{token}"' if m[2].startswith('"') else token), text, count=1)

    match what:
        case "not_json":
            return "<html><body>502 Bad Gateway</body></html>"
        case "truncated":
            return text[: len(text) // 2]
        case "foreign_market":
            return text.replace(code, foreign)
        case "negative_volume":
            return number("-1.5")
        case "nan":
            return number("NaN")
        case "text_number":
            return volume.sub(lambda m: m[1] + '"abc"', text, count=1)
        case "unknown_type":
            return surprise
        case "empty_object":
            return "{}"
        case "huge_number":
            return number("9" * 400)
        case "huge_exponent":
            return number("1E999999999")
        case _:
            return text[:20].encode() + b"\xff\xfe" + text[20:].encode()
