"""The plan: which connections record what, and what a new configuration changes of it.

A connection is left alone wherever it can be. One whose settings, keys or set of markets changed is replaced by another
that takes over what both have, so that a feed which merely shares a connection with a new one is heard without a gap.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from pydantic import SecretStr

import controllers
from collector.config import Exchange, Settings
from collector.records import CHANNELS, Feed
from collector.settings import MarketChoice, is_pattern, resolved
from controllers import Controller

# Settings of an exchange that no single connection has: they say which connections there are, or belong to all.
_OF_THE_EXCHANGE = {"enabled", "markets", "channels", "transport", "markets_per_connection", "rate"}


class Listed(NamedTuple):
    """What an exchange is known to trade; not `whole` while a list of it could not be had."""

    markets: frozenset[str]
    whole: bool


NOTHING: Mapping[str, Listed] = MappingProxyType({})


@dataclass(frozen=True)
class Connection:
    """What one controller records, and how; two are equal where one can be as good as the other."""

    cls: type[Controller]
    markets: tuple[str, ...]
    channels: tuple[str, ...]  # of every one of these markets
    keys: tuple[SecretStr, SecretStr] | None
    full_books: bool
    options: Exchange = field(compare=False)
    size: int = field(compare=False)  # how many markets it might carry
    facts: str = field(init=False, repr=False)  # the settings that make one connection differ from another

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", self.options.model_dump_json(exclude=_OF_THE_EXCHANGE))

    @property
    def exchange(self) -> str:
        """The name of its exchange."""
        return self.cls.exchange


class Step(NamedTuple):
    """Connections that go, and those that come in their place."""

    old: tuple[Connection, ...]
    new: tuple[Connection, ...]


def planned(
    settings: Settings, running: Sequence[Connection] = (), listed: Mapping[str, Listed] = NOTHING
) -> list[Connection]:
    """Return the connections that settings ask for, in the order of the configuration.

    `listed` is what each exchange is known to trade, for patterns; while not all of that is known, those markets stay
    that are `running`. Markets stay with the running connection that has them, as far as the settings allow.
    """
    plan: list[Connection] = []
    for exchange, options in settings.exchanges.items():
        choices = settings.choices(exchange)
        mine = [one for one in running if one.exchange == exchange]
        there, whole = listed.get(exchange, Listed(frozenset(), whole=False))
        if not whole:
            there = there.union(*(one.markets for one in mine))
        wanted = _by_class(exchange, settings.channels_of(exchange), resolved(choices, there))
        with_patterns = any(is_pattern(choice.market) for choice in choices)
        for (cls, channels), markets in wanted.items():
            size = options.markets_per_connection or (cls.markets_per_connection if with_patterns else 1)
            groups = [one.markets for one in mine if one.cls is cls and one.size == size]
            plan += [
                Connection(
                    cls=cls,
                    markets=group,
                    channels=channels,
                    keys=settings.keys(exchange) if options.auth else None,
                    full_books=settings.storage.mode == "full",
                    options=options,
                    size=size,
                )
                for group in grouped(markets, groups, size)
            ]
    return plan


def _by_class(
    exchange: str, channels: Iterable[str], choices: Iterable[MarketChoice]
) -> dict[tuple[type[Controller], tuple[str, ...]], list[str]]:
    # The channels of one market may fall to several classes, and a class may have fewer of one market than of another.
    classes = controllers.classes(exchange)
    found: dict[type[Controller], dict[str, set[str]]] = {}
    for market, transport in choices:
        for channel in channels:
            cls = controllers.carrier(classes, transport, market, channel)
            if cls is not None:
                found.setdefault(cls, {}).setdefault(market, set()).add(channel)
    wanted: dict[tuple[type[Controller], tuple[str, ...]], list[str]] = {}
    for cls, markets in found.items():
        for market, carried in markets.items():
            key = cls, tuple(channel for channel in CHANNELS if channel in carried)
            wanted.setdefault(key, []).append(market)
    return wanted


def left_out(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield exchange and what is wanted of all exchanges but not offered by this one: a channel, or a named market."""
    for exchange in settings.exchanges:
        choices = settings.choices(exchange)
        classes = controllers.classes(exchange) if choices else ()
        channels = settings.channels_of(exchange)
        for channel in channels if choices else ():
            if not any(channel in cls.offers for cls in classes):
                yield exchange, channel
        for choice in choices:
            if not is_pattern(choice.market) and not any(
                cls.carries(choice.market, channel) for cls in classes for channel in cls.offers
            ):
                yield exchange, choice.market


def open_ended(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the exchanges whose lists of markets must be known, and the patterns these are for."""
    found = {
        exchange: tuple(choice.market for choice in settings.choices(exchange) if is_pattern(choice.market))
        for exchange in settings.exchanges
    }
    return {exchange: patterns for exchange, patterns in found.items() if patterns}


def grouped(wanted: Sequence[str], groups: Iterable[tuple[str, ...]], size: int) -> list[tuple[str, ...]]:
    """Spread markets over connections of at most `size`; what is in a group stays there.

    New ones go where one left, then where there is room, then into groups of their own.
    """
    before = [group for group in groups if set(group) & set(wanted)]
    kept = [[market for market in group if market in wanted][:size] for group in before]
    placed = {market for group in kept for market in group}
    new = [market for market in wanted if market not in placed]
    changed = [group for group, old in zip(kept, before, strict=True) if len(group) < len(old)]
    for group in [*changed, *(group for group in kept if not any(group is one for one in changed))]:
        room = max(0, size - len(group))
        group += new[:room]
        del new[:room]
    return [*map(tuple, kept), *(tuple(new[at : at + size]) for at in range(0, len(new), size))]


def steps(running: Sequence[Connection], wanted: Sequence[Connection]) -> list[Step]:
    """Return what must be done so that the running connections become those that are wanted.

    Connections that have a channel of a market in common belong to one step, whatever they hear it over.
    """
    old = [one for one in running if one not in wanted]
    new = [one for one in wanted if one not in running]
    found: list[tuple[list[Connection], list[Connection]]] = []
    for one in old:
        found.append(([one], []))
    for one in new:
        touched = [step for step in found if any(_share(one, other) for other in (*step[0], *step[1]))]
        found = [step for step in found if step not in touched]
        found.append(([each for step in touched for each in step[0]], [each for step in touched for each in step[1]]))
        found[-1][1].append(one)
    return [Step(tuple(gone), tuple(come)) for gone, come in found]


def feeds(plan: Iterable[Connection]) -> Iterator[Feed]:
    """Yield all that is recorded."""
    for connection in plan:
        for market in connection.markets:
            for channel in connection.channels:
                yield Feed(connection.exchange, market, channel)


def _share(one: Connection, other: Connection) -> bool:
    return (
        one.exchange == other.exchange
        and bool(set(one.channels) & set(other.channels))
        and bool(set(one.markets) & set(other.markets))
    )
