"""The daemon with promise 1 taken away: coverage is committed before its data, and a kill comes in between.

`SPLIT_KILL_AFTER` says after how many commits it kills itself there; 0: never.
"""

import os
import signal
from collections.abc import Sequence

import commands.daemon
from collector.records import BookRow, Delivery
from commands.app import main
from storage.sqlite import SQLiteStore


class SplitStore(SQLiteStore):
    """Two transactions where there must be one."""

    commits = 0

    def write(self, deliveries: Sequence[Delivery], now_us: int) -> None:
        """Commit everything but the rows, then the rows."""
        records = [record for delivery in deliveries for record in delivery.records]
        rows = [record for record in records if isinstance(record, BookRow)]
        self._transaction(lambda: self._write([record for record in records if record not in rows], now_us))
        self.commits += bool(rows)
        if rows and self.commits == int(os.environ["SPLIT_KILL_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
        self._transaction(lambda: self._write(rows, now_us))


vars(commands.daemon)["SQLiteStore"] = SplitStore

if __name__ == "__main__":
    main()
