"""The daemon with promise 1 taken away: coverage is committed before its data, and a kill comes in between.

`SPLIT_KILL_AFTER` says after how many commits it kills itself there; 0: never.
"""

import os
import signal

import storage.database
from commands.app import main
from storage.sqlite import SQLiteStore
from storage.store import Batch
from tests.storage.victim import apart


class SplitStore(SQLiteStore):
    """Two transactions where there must be one."""

    commits = 0

    def write(self, batch: Batch, now_us: int) -> int:
        """Commit everything but the rows, then the rows."""
        rest, rows = apart(batch)
        there = super().write(rest, now_us)
        found = any(delivery.records for delivery in rows.deliveries)
        self.commits += found
        if found and self.commits == int(os.environ["SPLIT_KILL_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return there + super().write(rows, now_us)


vars(storage.database)["SQLiteStore"] = SplitStore

if __name__ == "__main__":
    main()
