"""Times as people write them, to and from microseconds, without a float in between."""

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?", re.ASCII)


def parse_time(text: str) -> int:
    """Return a written time in microseconds since 1970 UTC.

    Read are `2026-11-21T03:04:05.678Z`, `2026-11-21 12:04+09:00`, `2026-11-21` and Unix seconds. A time without an
    offset is UTC. Raises `ValueError` that says what is allowed.
    """
    unix = _UNIX.fullmatch(text.strip())
    if unix and len(unix[1]) > 8:
        return int(unix[1]) * 1_000_000 + int((unix[2] or "").ljust(6, "0"))
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time; allowed: 2026-11-21T03:04:05.678Z, 2026-11-21T12:04:05+09:00, 2026-11-21 (UTC), "
            "or Unix seconds"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def show_time(time_us: int) -> str:
    """Return a time as `2026-11-21T03:04:05.678000Z`."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def show_duration(seconds: float) -> str:
    """Return a length of time for people: `3.2 s`, `5 min 10 s`, `2 h 3 min`, `4 d 5 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {smaller_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"
