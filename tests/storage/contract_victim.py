"""A collector that writes batches until it is killed, for tests of what a kill leaves behind.

`python -m tests.storage.contract_victim DATABASE FIRST`: writes batch FIRST and all after it, each of three rows, the
mark that accounts for them and an event, and prints the number of each as soon as the store has taken it.
"""

import sys
from pathlib import Path

from collector.records import KEYFRAME, BookRow, CoverageMark, EpochOpened, Event, Record
from storage.database import is_url
from storage.postgres import PostgresStore
from storage.sqlite import SQLiteStore
from storage.store import Run, Store
from tests.storage.story import MIDNIGHT, batch

RUN = Run("run 1", "here", "1.2.3", MIDNIGHT)


def main(database: str, first: int) -> None:
    store: Store = PostgresStore(database) if is_url(database) else SQLiteStore(Path(database))
    store.open()
    number = first
    while True:
        rows = range(3 * number - 2, 3 * number + 1)
        records: list[Record] = [BookRow(1, n, n, None, None, KEYFRAME, "[]", "[]") for n in rows]
        if number == 1:
            records.insert(0, EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", MIDNIGHT))
        until_us = MIDNIGHT + 3 * number
        records += [CoverageMark(1, until_us, until_us, 3 * number), Event(until_us, "INFO", "TAG", str(number))]
        store.write(batch(RUN, number, *records), until_us)
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
