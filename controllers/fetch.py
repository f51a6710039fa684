"""A REST call that ends: neither a body that drips in nor one that never stops holds a thread for ever."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter

from collector.clock import Clock
from collector.errors import ConnectionLost
from controllers.tcp import SOCKET_OPTIONS

TIMEOUT_S = 5.0  # to connect, for each wait, and for the whole body
BODY_BYTES_MAX = 16 << 20
READ_BYTES = 1 << 16


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, socket_options=SOCKET_OPTIONS)


def date_us(date: str) -> int | None:
    """Return the time of a `Date` header in microseconds, None where it is none."""
    try:
        return int(parsedate_to_datetime(date).timestamp()) * 1_000_000
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def open_session() -> requests.Session:
    """Return a session whose sockets notice that the other side has vanished."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    return session


def fetch(session: requests.Session, url: str, clock: Clock) -> Answer:
    """Get *url*. Raises `ConnectionLost` where no whole answer of a sane size comes in time.

    An answer that does not say how long it is may be one that was cut off, even among its headers.
    """
    try:
        with session.get(url, timeout=TIMEOUT_S, stream=True) as response:
            until_us = clock.monotonic_us() + int(TIMEOUT_S * 1e6)
            body = bytearray()
            while part := response.raw.read1(READ_BYTES, decode_content=True):
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise ConnectionLost(f"the answer is larger than {BODY_BYTES_MAX} bytes")
                if clock.monotonic_us() > until_us:
                    raise ConnectionLost(f"the answer was not whole after {TIMEOUT_S:g} s")
            if "content-length" not in response.headers and "transfer-encoding" not in response.headers:
                raise ConnectionLost("the answer does not say where it ends")
            return Answer(response.status_code, response.headers, bytes(body))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ConnectionLost(f"{type(error).__name__}: {error}") from None
