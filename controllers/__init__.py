"""Exchanges, one module each, found by name: nothing here lists them.

A module `controllers/<exchange>.py` holds one `Controller` class for each transport the exchange is recorded over.
"""

import importlib
import pkgutil
from collections.abc import Iterator

from collector.errors import ConfigError
from controllers.base import Controller

__all__ = ["Controller", "controller_class", "known", "venues"]

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


def known() -> dict[str, set[str]]:
    """Return every exchange with the transports it can be recorded over."""
    return {name: {cls.transport for cls in _classes(name)} for name in venues()}


def controller_class(exchange: str, transport: str | None = None) -> type[Controller]:
    """Return the class that records `exchange` over `transport`, or over its default one.

    Raises `ConfigError` when there is none.
    """
    for cls in _classes(exchange) if exchange in venues() else ():
        if cls.default if transport is None else cls.transport == transport:
            return cls
    wanted = exchange if transport is None else f"{exchange} over {transport}"
    raise ConfigError(f"there is no controller for {wanted}; there are {', '.join(venues())}")


def _classes(exchange: str) -> Iterator[type[Controller]]:
    module = importlib.import_module(f"{__name__}.{exchange}")
    for thing in vars(module).values():
        if isinstance(thing, type) and issubclass(thing, Controller) and vars(thing).get("exchange") == exchange:
            yield thing
