"""How long feeds are used to be silent, and so when a silence is a reason to doubt one.

A busy feed that says nothing for ten seconds is worth a look, a quiet one is not for hours: each is judged by its own
past. What is kept of it is a histogram whose steps grow with the length, so that it takes little memory, and in which
old silences count less and less. It outlives a restart in a small file beside the database. That file is a convenience:
without it the feeds are learned anew.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from collector.clock import Clock
from collector.log import Log
from collector.records import Feed
from collector.worker import Worker

SHORT_BITS = 17
SHORT_US = 1 << SHORT_BITS  # an eighth of a second: what is shorter is all the same
LONGEST_BITS = 38  # three days: what is longer is all the same
STEPS = 4 * (LONGEST_BITS - SHORT_BITS)  # four to a doubling
WINDOW = 4096  # the weight of the past is halved when it exceeds so many silences
USUAL = 0.99  # of the silences, those that are not longer than what a feed is known for
SAVE_EVERY_S = 180.0
FILE_BYTES_MAX = 16 << 20
VERSION = 1


class Silences:
    """The lengths of one feed's silences between two messages; one thread adds, any may read."""

    def __init__(self) -> None:
        self.short = 0  # silences below `SHORT_US`; counted by whoever hears the feed
        self._steps = [0] * STEPS

    def add(self, silence_us: int) -> None:
        """Add a silence that is not short."""
        self._steps[_step(silence_us)] += 1
        self.age()

    def age(self) -> None:
        """Let what is long ago count less, where there is enough."""
        while self.short + sum(self._steps) > WINDOW:
            self.short //= 2
            self._steps = [count // 2 for count in self._steps]

    def usual_us(self) -> int:
        """Return what nearly all silences do not exceed, rounded up by a quarter at most; nought if none is known."""
        steps = self._steps
        left = self.short + sum(steps)
        allowed = int(left * (1 - USUAL))
        for step in range(STEPS - 1, -1, -1):
            if steps[step]:
                allowed -= steps[step]
                if allowed < 0:
                    return _end_us(step)
        return SHORT_US if left else 0

    def told(self) -> dict[str, Any]:
        """Return the histogram as it stands in the file."""
        steps = self._steps
        return {"short": self.short, "steps": {str(step): count for step, count in enumerate(steps) if count}}

    @classmethod
    def read(cls, told: Any) -> "Silences":
        """Return the histogram of `told`; raises `ValueError`, `TypeError` or `LookupError` where it is none."""
        read = cls()
        read.short = _count(told["short"])
        for step, count in told["steps"].items():
            if not 0 <= int(step) < STEPS:
                raise ValueError(f"there is no step {step}")
            read._steps[int(step)] = _count(count)
        return read


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 10**12:
        raise ValueError(f"{value!r} is no count")
    return value


def _step(silence_us: int) -> int:
    bits = min(max(silence_us, SHORT_US), (1 << LONGEST_BITS) - 1)
    octave = bits.bit_length() - 1
    return 4 * (octave - SHORT_BITS) + ((bits >> (octave - 2)) & 3)


def _end_us(step: int) -> int:
    octave, quarter = divmod(step, 4)
    return (5 + quarter) << (octave + SHORT_BITS - 2)


class Patience:
    """How long one feed may be silent on the present connection before it is doubted; used by its controller's thread.

    `us` is what its past silences say, between `floor_us` and `ceiling_us`; in a silence that was found to be real it
    grows, so that a feed which says nothing for days is not asked about every few seconds. `first_us` is how long its
    first message is waited for.
    """

    def __init__(self, silences: Silences, floor_us: int, ceiling_us: int) -> None:
        self._silences = silences
        self._floor_us, self.ceiling_us = floor_us, max(floor_us, ceiling_us)
        self.first_us = floor_us
        self._heard_at_us: int | None = None
        self._asked = False
        self._learn()
        self.us = self._usual_us

    def begin(self) -> None:
        """Take the time of the last message for unknown: there was none on this connection, or it was not the last."""
        self._heard_at_us = None
        self._asked = False

    def heard(self, at_us: int) -> None:
        """Learn from a message."""
        if self._asked:
            self._asked = False
            return
        before_us, self._heard_at_us = self._heard_at_us, at_us
        if before_us is None:
            return
        silence_us = at_us - before_us
        if silence_us >= SHORT_US:
            self._silences.add(silence_us)
            if silence_us > 1_000_000 or self._usual_us > self._floor_us:
                self._learn()
        else:
            self._silences.short += 1
            if self._silences.short > WINDOW:
                self._silences.age()
                self._learn()
        self.us, self.first_us = self._usual_us, self._floor_us

    def proved(self, silent_us: int) -> None:
        """Be more patient for the rest of a silence of which so much was found to be real."""
        self.us = min(self.ceiling_us, max(self.us, 2 * silent_us))

    def asked(self) -> None:
        """Leave the next message out of what is learned: it comes only because it was asked for."""
        self._asked = True

    def in_vain(self) -> None:
        """Wait twice as long for the first message of the next connection."""
        self.first_us = min(self.ceiling_us, 2 * self.first_us)

    def _learn(self) -> None:
        self._usual_us = min(max(self._silences.usual_us(), self._floor_us), self.ceiling_us)


class KnownSilences:
    """The silences of all feeds, and the file that keeps them; without a path they last as long as this object."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._feeds: dict[str, Silences] = {}
        self._saved = ""

    def of(self, feed: Feed, transport: str) -> Silences:
        """Return those of one feed, which every controller that hears it adds to."""
        return self._feeds.setdefault(f"{feed.exchange} {feed.market} {feed.channel} {transport}", Silences())

    def load(self, log: Log) -> None:
        """Read the file; what is missing or damaged is told and learned anew."""
        if self.path is None:
            return
        try:
            with self.path.open("rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
            if len(text) > FILE_BYTES_MAX:
                raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
            told = json.loads(text)
            if told["version"] != VERSION:
                raise ValueError(f"its version is {told['version']!r}")
            self._feeds = {str(name): Silences.read(one) for name, one in told["feeds"].items()}
        except FileNotFoundError:
            log.info("silences_new", path=self.path)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            log.warning("silences_lost", path=self.path, error=_reason(error))

    def save(self) -> bool:
        """Write the file if anything changed; True if it did. Raises `OSError`, which leaves the old file as it was."""
        told = json.dumps({"version": VERSION, "feeds": {name: one.told() for name, one in self._feeds.copy().items()}})
        if self.path is None or told == self._saved:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f"{self.path.name}.new")
        try:
            with draft.open("w", encoding="ascii") as file:
                file.write(told)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):  # the disk that took no file may not let one go either
                draft.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._saved = told
        return True


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


class SilenceKeeper(Worker):
    """Writes what was learned every few minutes and at the end, in a thread that nobody waits for."""

    kind = "keeper"

    def __init__(self, known: KnownSilences, log: Log, clock: Clock, *, generation: int = 1) -> None:
        super().__init__("silences", log, clock, generation=generation)
        self._known = known

    def run_once(self) -> None:
        """Save until `stop` is called, and once more then."""
        while not self.stopping.is_set():
            due_us = self.clock.monotonic_us() + int(SAVE_EVERY_S * 1e6)
            while self.clock.monotonic_us() < due_us and not self.stopping.wait(1.0):
                self.beat()
            try:
                self._known.save()
            except OSError as error:  # a full disk is the writer's concern; this is tried again
                self.log.warning("silences_unsaved", path=self._known.path, error=_reason(error))
