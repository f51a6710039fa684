"""What every test may use: the folder of recorded traffic, waiting on conditions, a clean environment."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.postgres import postgres_address as postgres_address  # fixtures: a PostgreSQL server and databases on it
from tests.postgres import postgres_door as postgres_door
from tests.postgres import postgres_server as postgres_server
from tests.postgres import postgres_url as postgres_url

try:
    import hypothesis
except ImportError:  # the suite also runs from requirements.txt alone; property tests then skip themselves
    hypothesis = None  # type: ignore[assignment]
else:
    hypothesis.settings.register_profile("collector", deadline=None)  # a slow machine is not a wrong program
    hypothesis.settings.load_profile("collector")

ROOT = Path(__file__).resolve().parent.parent

# Settings of whoever runs the tests must not reach what is tested.
FOREIGN_VARIABLES = (
    "COLLECTOR_CONFIG",
    "DB_PATH",
    "GOPAX_API_KEY",
    "GOPAX_SECRET_KEY",
    "LOG_PATH",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)


class WaitUntil(Protocol):
    """The type of `wait_until`, for tests that take it as a fixture."""

    def __call__(self, condition: Callable[[], object], seconds: float = 10.0, what: str = "") -> None: ...


def wait_until(condition: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """Return as soon as `condition()` is true; fail the test when it is not within `seconds`.

    Use it as the fixture `wait_until` or import it: `from tests.conftest import wait_until`.
    `what` says in the failure what was waited for.
    """
    never = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what or getattr(condition, '__name__', condition)}")
        never.wait(0.01)


@pytest.fixture(name="wait_until")
def _wait_until() -> WaitUntil:
    return wait_until


@pytest.fixture(scope="session")
def wire() -> Path:
    """The folder of recorded traffic, one folder an exchange; tests skip where it is missing."""
    folder = Path(os.environ.get("COLLECTOR_WIRE") or ROOT.parent / "shared" / "wire")
    if not folder.is_dir():
        pytest.skip(f"no recorded traffic at {folder}; COLLECTOR_WIRE names another folder")
    return folder


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOREIGN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
