"""Which markets an exchange trades now, as it lists them itself."""

import threading
from collections.abc import Callable

from collector.budget import Budget
from collector.clock import Clock
from collector.config import Endpoint
from collector.errors import BadFrame, ConnectionLost, RateLimited, SourceError
from controllers.base import Controller
from controllers.connection import BANNED, retry_after, wants_pause
from controllers.fetch import fetch, open_session


def rest_base(cls: type[Controller], endpoint: Endpoint) -> str:
    """Return where a class asks: its exchange's own address, or what the configuration puts in its place."""
    if cls.product:
        endpoint = endpoint.products.get(cls.product, Endpoint())
    return endpoint.rest or cls.rest_url


def fetch_listing(
    cls: type[Controller],
    endpoint: Endpoint,
    clock: Clock,
    budget: Budget,
    stopping: threading.Event,
    meanwhile: Callable[[], object] = lambda: None,
) -> frozenset[str]:
    """Return the markets that a class's exchange lists, in house form.

    Raises `SourceError` where they can't be had; an exchange that lists nothing has a bad day, and is not believed.
    `meanwhile` is called now and then while a turn is waited for.
    """
    found: set[str] = set()
    try:
        with open_session() as session:
            for path in cls.listing_paths():
                if not budget.wait(stopping, meanwhile=meanwhile):
                    raise ConnectionLost("stopped")
                meanwhile()
                status, headers, body = fetch(session, rest_base(cls, endpoint) + path, clock)
                if wants_pause(status, headers):
                    raise RateLimited(f"HTTP {status}", retry_after(headers), banned=status == BANNED)
                if status != 200:
                    raise SourceError(f"HTTP {status}")
                found.update(cls.parse_listing(body))
    except RateLimited as error:
        budget.pause(error.retry_after_s, banned=error.banned)
        raise
    if not found:
        raise BadFrame("the list is empty")
    return frozenset(found)
