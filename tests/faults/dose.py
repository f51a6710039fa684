"""How much of each fault: a little in every test run, a lot in `make faults`."""

import os
from typing import TypeVar

_T = TypeVar("_T")

NIGHTLY = os.environ.get("COLLECTOR_FAULTS") == "nightly"


def dose(always: _T, nightly: _T) -> _T:
    """Return the first in every test run, the second in the long one."""
    return nightly if NIGHTLY else always
