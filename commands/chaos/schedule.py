"""What goes wrong when: a list that follows from a seed and nothing else."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.faults import GARBAGE

KOREAN = ("upbit", "bithumb", "coinone", "korbit", "gopax")
NUMBERED = ("binance", "bybit", "coinbase", "kraken", "kucoin", "okx")  # or summed: a lost change shows at once
EXCHANGES = (*KOREAN, *NUMBERED)
POLLED = "BTC-KRW"  # bithumb's first market is polled, its second heard over a socket
DEATHS_A_MINUTE = 3  # a worker that dies more often is left alone for a while
FAULTS_PER_S = 1.0  # besides the kills
SILENT_S = (6.0, 8.0)  # longer than a silence may last unnoticed with the settings of the run
STEPS_S = (-86_400, -3600, -61, -2, 2, 61, 3600, 86_400)


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that goes wrong; `seconds` says how long, None for what happens at once."""

    at_s: float
    kind: str
    target: str = ""  # an exchange, a thread, a way of stopping the database
    seconds: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + (self.seconds or 0.0)

    def __str__(self) -> str:
        words = [f"{self.at_s:6.1f} s  {self.kind}", self.target, f"for {self.seconds:.1f} s" if self.seconds else ""]
        words += [f"{name}={value}" for name, value in self.parameters.items()]
        return " ".join(word for word in words if word)


Dice = random.Random
_Made = tuple[str, float | None, dict[str, Any]]  # target, seconds, parameters


def _disconnect(dice: Dice) -> _Made:
    code = dice.choice((None, None, 1001, 1012))
    return dice.choice(EXCHANGES), None, {} if code is None else {"code": code}


def _silence(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), dice.uniform(*SILENT_S), {}


def _at_once(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), None, {}


def _few(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), None, {"times": dice.randint(1, 4)}


def _reorder(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), None, {}


def _garbage(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), None, {"what": dice.choice(GARBAGE)}


def _swallow(dice: Dice) -> _Made:
    # Where a lost message can be found out: a change that is numbered is missed by the next one, books kept from others
    # are compared, a lost answer to a poll is noticed.
    exchange = dice.choice(("gopax", "bithumb", *NUMBERED))
    return exchange, None, {} if exchange in NUMBERED else {"market": POLLED}


def _total(dice: Dice) -> _Made:
    return dice.choice(("upbit", "bithumb")), None, {"times": dice.randint(1, 3)}


def _refused(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), None, {"code": 429, "retry_after": 1, "times": dice.randint(1, 3)}


def _away(dice: Dice) -> _Made:
    return dice.choice(EXCHANGES), dice.uniform(0.5, 3.0), {}


def _disk(dice: Dice) -> _Made:
    return dice.choice(("database", "everything")), dice.uniform(1.0, 5.0), {}


def _clock(dice: Dice) -> _Made:
    return "", None, {"step_s": dice.choice(STEPS_S)}


def _thread(dice: Dice) -> _Made:
    return dice.choice((*EXCHANGES, "writer")), None, {"nth": dice.randint(0, 3)}


def _nothing(dice: Dice) -> _Made:
    return "", None, {}


# Every kind: how it is made up, how often it comes compared with the others, what a user reads about it.
KINDS: dict[str, tuple[Callable[[Dice], _Made], int, str]] = {
    "disconnect": (_disconnect, 3, "connections are cut, or closed with a code"),
    "half_open": (_at_once, 2, "open connections fall silent for good, without a word of goodbye"),
    "freeze": (_silence, 1, "an exchange stands still, heartbeats and pongs included"),
    "stall": (_silence, 1, "an exchange holds its data back and goes on with its heartbeats"),
    "forget": (_at_once, 1, "an exchange forgets a subscription"),
    "quiet": (_away, 1, "a market does not move"),
    "swallow": (_swallow, 2, "one message, or one answer to a poll, is lost"),
    "garbage": (_garbage, 4, "a spoiled message"),
    "duplicate": (_few, 2, "messages come twice"),
    "reorder": (_reorder, 2, "a message comes after the one that follows it, a change before its book"),
    "crossed": (_at_once, 1, "a bid above the best ask"),
    "corrupt_total": (_total, 1, "totals that do not match their levels"),
    "rate_limit": (_refused, 2, "429 with Retry-After"),
    "refuse": (_away, 1, "503"),
    "slow": (_away, 1, "answers and handshakes take a second"),
    "database": (_nothing, 3, "the database is stopped, killed, frozen, locked, or ends the session"),
    "disk_full": (_disk, 2, "files may not grow: those of the database, or all"),
    "clock": (_clock, 1, "the wall clock steps by seconds to a day, either way"),
    "thread": (_thread, 2, "a thread of the daemon dies"),
    "term": (_nothing, 1, "SIGTERM, and a fresh start"),
    "kill": (_nothing, 0, "SIGKILL, and a fresh start"),
}


def schedule(
    seed: int, seconds: float, kills: int, *, kinds: Collection[str] = tuple(KINDS), outages: Sequence[str] = ("lock",)
) -> list[Act]:
    """Return what goes wrong within `seconds`, in order; the same arguments give the same list.

    `kills` SIGKILLs come on top of the other `kinds`. `outages` are the ways in which the database can be stopped.
    """
    dice = random.Random(f"chaos/{seed}")
    acts = [Act(dice.uniform(0.2, seconds), "kill") for _ in range(kills)]
    deck: list[str] = []
    mix = [kind for kind in KINDS if kind in kinds for _ in range(KINDS[kind][1])]
    busy_until_s = dict.fromkeys(KINDS, 0.0)
    at_s = dice.uniform(0.5, 1.5)
    while mix and at_s < seconds:
        if not deck:
            deck = dice.sample(mix, len(mix))
        kind = deck.pop()
        target, lasts_s, parameters = KINDS[kind][0](dice)
        if kind == "database":
            target, lasts_s = dice.choice(list(outages)), dice.uniform(1.0, 6.0)
        act = Act(at_s, kind, target, lasts_s, parameters)
        often = [one for one in acts if (one.kind, one.target) == ("thread", target) and at_s - one.at_s < 60]
        if busy_until_s[kind] <= at_s and act.end_s <= seconds and len(often) < DEATHS_A_MINUTE:
            busy_until_s[kind] = act.end_s
            acts.append(act)
        at_s += dice.expovariate(FAULTS_PER_S)
    return sorted(acts, key=lambda act: act.at_s)
