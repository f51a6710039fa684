"""What is found, and how to find it again."""

from collections.abc import Callable
from typing import TypeVar

SHOWN_BYTES = 3000
TRIES = 3

_Result = TypeVar("_Result")


class Breach(AssertionError):
    """Something was handed over, or done, that must not be."""


class TooSlow(Breach):
    """A piece of work took longer than it may."""


class Stuck(BaseException):
    """Work that does not end; no `except Exception` on the way holds it."""


def require(condition: object, text: str) -> None:
    """Raise `Breach` unless the condition holds."""
    if not condition:
        raise Breach(text)


class Violation(Exception):
    """A breach, with the seed and what was spoiled."""

    def __init__(self, target: str, seed: int, number: int, spoiled: bytes, problem: BaseException) -> None:
        self.target, self.seed, self.number, self.spoiled, self.problem = target, seed, number, spoiled, problem
        text = str(problem) if isinstance(problem, Breach) else repr(problem)
        super().__init__(f"{target}, seed {seed}, number {number}: {text}\n{shown(spoiled)}")


def shown(spoiled: bytes) -> str:
    """Write bytes as Python does, shortened where they are very long."""
    if len(spoiled) <= SHOWN_BYTES:
        return repr(spoiled)
    half = SHOWN_BYTES // 2
    return f"{spoiled[:half]!r} + ... + {spoiled[-half:]!r}  # {len(spoiled)} bytes"


def surely(work: Callable[[], _Result]) -> _Result:
    """Do the work, and again where it was only too slow: a busy machine counts time that was another's."""
    for _ in range(TRIES - 1):
        try:
            return work()
        except Violation as violation:
            if not isinstance(violation.problem, TooSlow):
                raise
    return work()
