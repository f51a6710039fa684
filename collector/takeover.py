"""Taking over: workers that begin to do what others do, and those others, which go on until nothing would be missed.

A second generation starts beside the first. When it has settled, and has what the first one covers since before that
one's own account ends, the first may stop: the union of both has no gap. If it does not get there in time it is given
up, the first goes on as if nothing had happened, and it is tried again later.
"""

from collections.abc import Sequence
from typing import Literal

from collector.clock import Clock
from collector.slot import Part, Slot
from collector.worker import Worker

SETTLE_S = 60.0
RETRY_S, RETRY_S_MAX = 30.0, 600.0

Verdict = Literal["", "done", "late", "died"]


class Takeover:
    """What `old` slots hold passes to workers of `new` parts; without `old` these are just begun.

    `why` is `planned` where a worker asked to be replaced, `reload` where the configuration did. For the supervisor's
    thread; `workers` may be read by others.
    """

    def __init__(
        self, old: Sequence[Slot], new: Sequence[Part], *, why: str, clock: Clock, settle_s: float = SETTLE_S
    ) -> None:
        self.old, self.new, self.why = tuple(old), tuple(new), why
        self.group = self.new[0].group
        self.workers: tuple[Worker, ...] = ()  # those that are to take over, while they try
        self.attempts = 0
        self.not_before_us = 0
        self._clock = clock
        self._settle_us = int(settle_s * 1e6)
        self._began_us = 0

    def replaces(self, slot: Slot) -> bool:
        """Tell whether a slot is one of those that are to end."""
        return any(slot is one for one in self.old)

    def begin(self) -> None:
        """Make and start the second generation; where one can't be, none runs and the error is raised."""
        self.attempts += 1
        self._began_us = self._clock.monotonic_us()
        generation = max((slot.worker.generation for slot in self.old), default=0) + 1
        workers = tuple(part.make(generation) for part in self.new)
        try:
            for worker in workers:
                worker.start()
        except BaseException:
            for worker in workers:
                worker.stop()
            raise
        self.workers = workers

    def look(self) -> Verdict:
        """Tell how it goes: not decided yet, done, too late, or with a worker that died."""
        if not self.old:
            return "done"
        if not all(worker.alive for worker in self.workers):
            return "died"
        age_us = self._clock.monotonic_us() - self._began_us
        late = age_us >= self._settle_us
        # What has not settled by then may never do so, such as a market the exchange does not have: what counts is that
        # nothing is lost that was there before.
        if self._covered(seamlessly=True) and (late or all(worker.settled for worker in self.workers)):
            return "done"
        if late and not self._covered(seamlessly=False):
            return "late"
        # Everything is heard by both, but the first can't prove it any more: a longer wait makes the gap only longer.
        return "done" if age_us >= 2 * self._settle_us else ""

    def give_up(self) -> tuple[Worker, ...]:
        """Let the second generation go and return it; the next attempt waits, longer every time."""
        workers, self.workers = self.workers, ()
        delay_s = min(RETRY_S_MAX, RETRY_S * 2.0 ** min(self.attempts - 1, 30))
        self.not_before_us = self._clock.monotonic_us() + int(delay_s * 1e6)
        return workers

    @property
    def wanted(self) -> bool:
        """Whether there is still a reason for it."""
        return self.why != "planned" or any(slot.worker.due_for_replacement() for slot in self.old)

    def _covered(self, *, seamlessly: bool) -> bool:
        return all(slot.worker.covered_by(self.workers, seamlessly=seamlessly) for slot in self.old)
