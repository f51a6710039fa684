"""The daemon with a store that is busy, or hangs, while there is a file of that name in its current folder."""

import threading
from pathlib import Path

import storage.database
from collector.errors import StorageBusy
from commands.app import main
from storage.sqlite import SQLiteStore
from storage.store import Batch


class HinderedStore(SQLiteStore):
    """Does what a test asks of it before it writes."""

    def write(self, batch: Batch, now_us: int) -> int:
        """Write, unless it is told not to."""
        if Path("hang").exists():
            hang_for_ever()
        if Path("busy").exists():
            raise StorageBusy("a file told it to be busy")
        return super().write(batch, now_us)


def hang_for_ever() -> None:
    """Wait for what never comes."""
    threading.Event().wait()


vars(storage.database)["SQLiteStore"] = HinderedStore

if __name__ == "__main__":
    main()
