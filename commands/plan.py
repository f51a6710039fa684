"""The plan: which connections record what, and what a new configuration changes of it.

A connection is left alone wherever it can be. One whose settings, keys or set of markets changed is replaced by another
that takes over what both have, so that a feed which merely shares a connection with a new one is heard without a gap.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import SecretStr

import controllers
from collector.config import Exchange, Settings
from controllers import Controller

# Settings of an exchange that no single connection has: they say which connections there are, or belong to all.
_OF_THE_EXCHANGE = {"enabled", "markets", "transport", "markets_per_connection", "rate"}


@dataclass(frozen=True)
class Connection:
    """What one controller records, and how; two are equal where one can be as good as the other."""

    cls: type[Controller]
    markets: tuple[str, ...]
    keys: tuple[SecretStr, SecretStr] | None
    full_books: bool
    options: Exchange = field(compare=False)
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


def planned(settings: Settings, running: Sequence[Connection] = ()) -> list[Connection]:
    """Return the connections that settings ask for, in the order of the configuration.

    With those that are `running`, markets stay with the connection that has them, as far as the settings allow.
    """
    plan: list[Connection] = []
    for exchange, options in settings.exchanges.items():
        markets: dict[type[Controller], list[str]] = {}
        for choice in settings.choices(exchange):
            markets.setdefault(controllers.controller_class(exchange, choice.transport), []).append(choice.market)
        for cls, wanted in markets.items():
            groups = [one.markets for one in running if one.cls is cls and _same_size(one, options)]
            plan += [
                Connection(
                    cls=cls,
                    markets=group,
                    keys=settings.keys(exchange) if options.auth else None,
                    full_books=settings.storage.mode == "full",
                    options=options,
                )
                for group in grouped(wanted, groups, options.markets_per_connection)
            ]
    return plan


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

    Connections that have a market in common belong to one step, whatever they hear it over.
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


def feeds(plan: Iterable[Connection]) -> Iterator[tuple[str, str]]:
    """Yield exchange and market of all that is recorded."""
    for connection in plan:
        for market in connection.markets:
            yield connection.exchange, market


def _same_size(connection: Connection, options: Exchange) -> bool:
    return connection.options.markets_per_connection == options.markets_per_connection


def _share(one: Connection, other: Connection) -> bool:
    return one.exchange == other.exchange and bool(set(one.markets) & set(other.markets))
