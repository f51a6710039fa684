"""Exchanges, one module each, found by name: nothing here lists them.

A module `controllers/<exchange>.py` holds a `Controller` class for each way the exchange is recorded: a transport, and
where channels or kinds of markets have addresses of their own, one for each of these.
"""

import importlib
import pkgutil
from collections.abc import Iterable

from collector.errors import ConfigError
from controllers.base import Controller

__all__ = ["Controller", "carrier", "classes", "controller_class", "known", "venues"]

# The room's own machinery; every other module is an exchange.
_SHARED = frozenset(
    {
        "base",
        "book",
        "book_feed",
        "connection",
        "contracts",
        "doubt",
        "feed",
        "fetch",
        "frames",
        "levels",
        "listing",
        "probe",
        "rest",
        "silence",
        "snapshots",
        "stream_feed",
        "tcp",
        "websocket",
        "window",
    }
)


def venues() -> list[str]:
    """Return the names of all exchanges, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def known() -> dict[str, dict[str, tuple[type[Controller], ...]]]:
    """Return every exchange with the transports it can be recorded over, and the classes that do."""
    found: dict[str, dict[str, tuple[type[Controller], ...]]] = {}
    for name in venues():
        ways = found[name] = {}
        for cls in classes(name):
            ways[cls.transport] = (*ways.get(cls.transport, ()), cls)
    return found


def controller_class(
    exchange: str, transport: str | None = None, market: str | None = None, channel: str | None = None
) -> type[Controller]:
    """Return the class that records `exchange` over `transport`, or over its default one.

    With a market and a channel it is the class that carries them: over that transport if it can be, else in the usual
    way, else in the only way there is. Raises `ConfigError` when there is none.
    """
    found = classes(exchange) if exchange in venues() else ()
    if market is not None and channel is not None:
        chosen = carrier(found, transport, market, channel)
    else:
        usual = [cls for cls in found if (cls.default if transport is None else cls.transport == transport)]
        chosen = usual[0] if usual else None
    if chosen is not None:
        return chosen
    wanted = exchange if transport is None else f"{exchange} over {transport}"
    if found and market is not None and channel is not None:
        raise ConfigError(f"there is no controller for {channel} of {market} at {exchange}")
    raise ConfigError(f"there is no controller for {wanted}; there are {', '.join(venues())}")


def carrier(
    of: Iterable[type[Controller]], transport: str | None, market: str, channel: str
) -> type[Controller] | None:
    """Return which of the classes of an exchange is to record a channel of a market; None if none can."""
    able = [cls for cls in of if cls.carries(market, channel)]
    return min(able, key=lambda cls: (cls.transport != transport, not cls.default), default=None)


def classes(exchange: str) -> tuple[type[Controller], ...]:
    """Return the classes of an exchange, in the order its module has them."""
    module = importlib.import_module(f"{__name__}.{exchange}")
    return tuple(
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Controller) and vars(thing).get("exchange") == exchange
    )
