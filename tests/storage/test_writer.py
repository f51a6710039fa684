"""The writer commits in batches, keeps what the store does not take, says so, and frees nothing before it is stored."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from collector.clock import Clock
from collector.errors import StorageBusy, StorageCorrupt, StorageError, StorageFull
from collector.intake import Intake
from collector.metrics import OUTCOMES, Metrics
from collector.records import BookRow, CoverageMark, Delivery, EpochEnded, EpochOpened, Event, Record
from collector.worker import Backoff
from controllers.upbit import Upbit
from storage.spool import Spool
from storage.sqlite import SQLiteStore
from storage.store import Run
from storage.writer import Writer
from tests.conftest import WaitUntil
from tests.fakes import FakeClock, HeardLog, make_setup
from tests.storage.memory import MemoryStore

SIZE = 100
RUN = Run("run 1", "here", "1.2.3", 0)


def delivery(
    text: str = "",
    *more: Record,
    exchange: str = "upbit",
    frames: int = 1,
    rejected: int = 0,
    records: int = 1,
    received_us: int = 0,
) -> Delivery:
    events = (Event(0, "INFO", "TEST", text),) * records
    return Delivery(exchange, frames, events + more, SIZE, rejected, received_us)


class NoWait(threading.Event):
    """Notes how long the writer would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


class Desk:
    """A writer and everything around it."""

    def __init__(
        self,
        store: MemoryStore | SQLiteStore,
        *,
        clock: Clock | None = None,
        intake: Intake | None = None,
        metrics: Metrics | None = None,
        batch_ms: int = 5,
        batch_records: int = 1000,
        spool: Spool | None = None,
        drop_oldest: bool = False,
        housekeeping: Callable[[], bool] | None = None,
    ) -> None:
        self.log = HeardLog()
        self.intake = intake or Intake(1 << 20, wake_records=batch_records)
        self.metrics = metrics or Metrics(CollectorRegistry(), version="test", started_s=0)
        self.writer = Writer(
            store,
            self.intake,
            RUN,
            clock=clock or FakeClock(),
            log=self.log,
            metrics=self.metrics,
            batch_ms=batch_ms,
            batch_records=batch_records,
            spool=spool,
            drop_oldest=drop_oldest,
            housekeeping=housekeeping,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"collector_{name}", labels) or 0

    def drain(self) -> None:
        """Write everything that waits, in this thread."""
        self.writer.stop()
        self.writer.run_once()


@pytest.fixture
def start() -> Iterator[Callable[[Desk], None]]:
    """Start a writer's thread; it is ended with the test."""
    started: list[Writer] = []

    def begin(desk: Desk) -> None:
        desk.writer.backoff = Backoff(desk.writer.clock, base_s=0.001, cap_s=0.005, healthy_s=60)
        started.append(desk.writer)
        desk.writer.start()

    yield begin
    for writer in started:
        writer.stop()
        assert writer.join(10)


Start = Callable[[Desk], None]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_committed_when_enough_records_wait(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore()
    desk = Desk(store, batch_ms=60_000, batch_records=3)
    start(desk)

    desk.intake.put(delivery("a"))
    desk.intake.put(delivery("b"))
    assert store.committed == []
    desk.intake.put(delivery("c"))

    wait_until(lambda: store.committed)
    assert store.texts == [["a", "b", "c"]]


def test_a_batch_is_committed_when_its_time_is_over(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore()
    desk = Desk(store, batch_ms=5, batch_records=1000)
    start(desk)
    desk.intake.put(delivery("alone"))
    wait_until(lambda: store.texts == [["alone"]])


def test_a_backlog_goes_in_batches_of_the_size_that_is_set() -> None:
    store = MemoryStore()
    desk = Desk(store, batch_records=4)
    for number in range(10):
        desk.intake.put(delivery(str(number)))

    desk.drain()

    assert [len(batch) for batch in store.texts] == [4, 4, 2]
    assert store.flat == [str(number) for number in range(10)]


def test_a_delivery_is_never_torn() -> None:
    store = MemoryStore()
    desk = Desk(store, batch_records=4)
    desk.intake.put(delivery("a", records=3))
    desk.intake.put(delivery("b", records=3))
    desk.intake.put(delivery("c", records=9))
    desk.drain()
    assert store.texts == [["a"] * 3, ["b"] * 3, ["c"] * 9]


def test_stop_ends_a_long_wait_and_drains(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore()
    desk = Desk(store, batch_ms=60_000, batch_records=5)
    start(desk)
    wait_until(lambda: desk.writer.state == "running")
    for number in range(12):
        desk.intake.put(delivery(str(number)))

    desk.writer.stop()

    assert desk.writer.join(10)
    assert desk.writer.state == "stopped"
    assert store.flat == [str(number) for number in range(12)]
    assert desk.intake.empty


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_kept_across_failures_and_committed_once(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore(StorageBusy("locked"), StorageFull("no space"), StorageError("odd"), StorageBusy("locked"))
    desk = Desk(store, batch_records=2)
    for text in "abcde":
        desk.intake.put(delivery(text))
    start(desk)

    wait_until(lambda: len(store.flat) == 5)

    assert store.tries[:5] == [["a", "b"]] * 5
    assert store.texts == [["a", "b"], ["c", "d"], ["e"]]
    assert {r: desk.value("commit_failures_total", reason=r) for r in ("busy", "full", "error")} == {
        "busy": 2,
        "full": 1,
        "error": 1,
    }
    wait_until(lambda: desk.intake.empty)


def test_what_arrives_while_the_store_fails_waits_behind(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore(StorageBusy("locked"))
    store.hangs = threading.Event()
    desk = Desk(store)
    desk.intake.put(delivery("first"))
    start(desk)
    assert store.entered.wait(10)
    desk.intake.put(delivery("second"))
    store.hangs.set()
    wait_until(lambda: len(store.flat) == 2)
    assert store.flat == ["first", "second"]


def test_frames_and_bytes_are_held_until_the_commit() -> None:
    store = MemoryStore(StorageFull("no space"))
    desk = Desk(store)
    desk.writer.backoff = Backoff(desk.writer.clock, base_s=0.001, cap_s=0.001)
    held: list[tuple[tuple[int, int], dict[str, int]]] = []
    store.during = lambda: held.append((desk.intake.held, desk.intake.held_frames()))
    desk.intake.put(delivery("a", frames=3, rejected=1))

    desk.drain()

    assert held == [((1, SIZE), {"upbit": 4})] * 2
    assert desk.intake.held == (0, 0)
    assert desk.intake.held_frames() == {"upbit": 0}


def test_why_commits_fail_can_be_read_until_one_succeeds() -> None:
    store = MemoryStore(StorageFull("no space left"), StorageBusy("locked"))
    desk = Desk(store)
    seen: list[str] = []
    store.during = lambda: seen.append(desk.writer.failing)
    desk.intake.put(delivery("a", records=2))

    desk.drain()

    assert seen == ["", "no space left", "locked"]
    assert desk.writer.failing == ""
    assert [str(told["error"]) for told in desk.log.of("writer_failed")] == ["no space left", "locked"]
    assert desk.log.of("writer_failed")[0]["held_records"] == 2
    assert desk.log.of("writer_failed")[0]["held_bytes"] == SIZE
    assert desk.log.of("writer_recovered") == [{"error": "locked"}]


def test_a_healthy_commit_tells_of_no_recovery() -> None:
    desk = Desk(MemoryStore())
    desk.intake.put(delivery("a"))
    desk.drain()
    assert desk.log.keys() == []


def failing_writer(errors: int, monkeypatch: pytest.MonkeyPatch, took_s: float = 0.0) -> tuple[Desk, NoWait]:
    clock = FakeClock()
    store = MemoryStore(*[StorageFull("no space")] * errors)
    store.during = lambda: clock.advance(took_s)
    desk = Desk(store, clock=clock)
    monkeypatch.setattr(desk.writer.backoff, "_random", lambda: 1.0)
    waits = NoWait()
    desk.writer.stopping = waits
    return desk, waits


@pytest.mark.parametrize("took_s", [0, 5, 600])
def test_attempts_grow_rarer_up_to_five_seconds_however_long_each_takes(
    monkeypatch: pytest.MonkeyPatch, took_s: float
) -> None:
    desk, waits = failing_writer(8, monkeypatch, took_s)
    desk.intake.put(delivery("a"))
    desk.writer._take()

    while desk.writer._batch:
        desk.writer._put_away(desk.writer._batch)

    assert waits.waits == [0.25, 0.5, 1, 2, 4, 5, 5, 5]
    assert desk.intake.empty


def test_a_commit_makes_the_next_delay_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, waits = failing_writer(3, monkeypatch)
    for text, error in (("a", 0), ("b", 1)):
        desk.intake.put(delivery(text))
        desk.writer._take()
        if error:
            desk.writer.store.errors = [StorageBusy("locked")]  # type: ignore[attr-defined]
        while desk.writer._batch:
            desk.writer._put_away(desk.writer._batch)
    assert waits.waits == [0.25, 0.5, 1, 0.25]


def test_a_writer_that_is_stopping_tries_often_until_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(*[StorageBusy("locked")] * 5)
    desk = Desk(store)
    desk.writer.backoff = Backoff(desk.writer.clock, base_s=3600, cap_s=3600, healthy_s=60, random_=lambda: 1.0)
    waits: list[float] = []
    monkeypatch.setattr(desk.intake, "wait", waits.append)
    desk.intake.put(delivery("a"))

    desk.drain()

    assert store.texts == [["a"]]
    assert waits == [0.2] * 5


def test_stop_cuts_the_pause_after_a_failure(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore(StorageBusy("locked"))
    desk = Desk(store)
    start(desk)
    desk.writer.backoff = Backoff(desk.writer.clock, base_s=3600, cap_s=3600, healthy_s=60, random_=lambda: 1.0)
    desk.intake.put(delivery("a"))
    wait_until(lambda: desk.log.of("writer_failed"))

    desk.writer.stop()

    assert desk.writer.join(10)
    assert store.texts == [["a"]]


def test_an_error_nobody_expects_keeps_the_batch_too(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore(ZeroDivisionError(), ValueError("our bug"))
    store.hangs = threading.Event()
    desk = Desk(store)
    desk.intake.put(delivery("a"))
    start(desk)
    assert store.entered.wait(10)
    desk.intake.put(delivery("b"))
    store.hangs.set()

    wait_until(lambda: len(store.flat) == 2)

    assert store.flat == ["a", "b"]
    assert store.tries[:2] == [["a"]] * 2
    assert [told["error"] for told in desk.log.of("worker_failed")] == ["ZeroDivisionError()", "ValueError('our bug')"]
    assert "our bug" in desk.log.of("worker_failed")[1]["stack"]
    assert desk.value("commit_failures_total", reason="error") == 2


def test_an_error_without_a_text_is_still_a_failure() -> None:
    desk = Desk(MemoryStore(ZeroDivisionError()))
    desk.writer.backoff = Backoff(desk.writer.clock, base_s=0.001, cap_s=0.001)
    desk.intake.put(delivery("a"))
    desk.drain()
    assert desk.log.of("writer_recovered") == [{"error": "ZeroDivisionError()"}]


def test_a_full_intake_refuses_while_the_store_fails_and_takes_again_afterwards(
    start: Start, wait_until: WaitUntil
) -> None:
    store = MemoryStore()
    store.hangs = threading.Event()
    desk = Desk(store, intake=Intake(2 * SIZE))
    start(desk)
    assert desk.intake.put(delivery("a"))
    assert store.entered.wait(10)
    assert desk.intake.put(delivery("b"))
    assert not desk.intake.put(delivery("c"))

    store.hangs.set()

    wait_until(lambda: desk.intake.empty)
    assert desk.intake.put(delivery("d"))
    wait_until(lambda: store.flat == ["a", "b", "d"])


# --- signs of life ----------------------------------------------------------------------------------------------------


def test_a_cycle_is_finished_by_a_commit_an_error_or_an_empty_intake_and_not_by_a_store_that_hangs(
    start: Start, wait_until: WaitUntil
) -> None:
    clock = FakeClock()
    store = MemoryStore()
    desk = Desk(store, clock=clock)
    start(desk)

    def beats() -> None:
        now_us = clock.advance(1)
        wait_until(lambda: desk.writer.beat_us == now_us)

    beats()  # seen empty
    store.errors = [StorageCorrupt("damaged")] * 1000
    desk.intake.put(delivery("a"))
    wait_until(lambda: desk.writer.failing)
    beats()  # an attempt that came back with an error
    store.hangs = threading.Event()
    store.entered.clear()
    assert store.entered.wait(10)
    before_us = desk.writer.beat_us
    clock.advance(100)
    assert not store.hangs.wait(0.05)
    assert desk.writer.beat_us == before_us

    store.errors.clear()
    store.hangs.set()
    wait_until(lambda: desk.writer.beat_us > before_us)


# --- housekeeping -----------------------------------------------------------------------------------------------------


def noting(ran: list[int]) -> Callable[[], bool]:
    def nothing_left() -> bool:
        ran.append(1)
        return False

    return nothing_left


def test_housekeeping_runs_when_nothing_waits(start: Start, wait_until: WaitUntil) -> None:
    ran: list[int] = []
    desk = Desk(MemoryStore(), housekeeping=noting(ran))
    start(desk)
    wait_until(lambda: len(ran) >= 2)


def test_housekeeping_that_has_more_to_do_is_not_kept_waiting(start: Start, wait_until: WaitUntil) -> None:
    ran: list[int] = []

    def more() -> bool:
        ran.append(1)
        return len(ran) < 5

    desk = Desk(MemoryStore(), batch_ms=60_000, housekeeping=more)
    start(desk)
    desk.intake.wake()  # the first wait is a whole one
    wait_until(lambda: len(ran) == 5)


def test_housekeeping_stands_back_while_data_waits_or_commits_fail(start: Start, wait_until: WaitUntil) -> None:
    store = MemoryStore(*[StorageBusy("locked")] * 3)
    ran: list[tuple[int, int]] = []

    def note() -> bool:
        ran.append((len(store.tries), desk.intake.held[0]))
        return False

    desk = Desk(store, batch_records=2, housekeeping=note)
    for number in range(7):
        desk.intake.put(delivery(str(number)))
    start(desk)

    wait_until(lambda: desk.intake.empty and ran)

    # Three failures, then batches of two; only when fewer than a batch are left does it run.
    assert ran[0] == (6, 1)


def test_no_housekeeping_while_stopping() -> None:
    ran: list[int] = []
    desk = Desk(MemoryStore(), housekeeping=noting(ran))
    desk.intake.put(delivery("a"))
    desk.drain()
    assert ran == []


# --- figures ----------------------------------------------------------------------------------------------------------


def test_commits_are_measured() -> None:
    clock = FakeClock()
    store = MemoryStore()
    store.during = lambda: clock.advance(0.3)
    desk = Desk(store, clock=clock)
    now_us = clock.wall_us()
    desk.intake.put(delivery("a", records=2, received_us=now_us - 2_000_000))
    desk.intake.put(delivery("b", received_us=now_us - 1_000_000))
    desk.intake.put(delivery("c", exchange="gopax", received_us=now_us - 700_000))
    desk.intake.put(delivery("d", exchange="", frames=0))

    desk.drain()

    assert desk.value("commit_duration_seconds_sum") == pytest.approx(0.3)
    assert desk.value("commit_duration_seconds_count") == 1
    assert desk.value("commit_records_sum") == 5
    # The longest wait of each exchange, up to the end of the commit.
    assert desk.value("receive_to_commit_seconds_sum", exchange="upbit") == pytest.approx(2.3)
    assert desk.value("receive_to_commit_seconds_count", exchange="upbit") == 1
    assert desk.value("receive_to_commit_seconds_sum", exchange="gopax") == pytest.approx(1.0)
    assert desk.writer.committed_us == now_us + 300_000
    assert store.times == [now_us]


def test_a_clock_that_was_set_back_gives_no_negative_wait() -> None:
    clock = FakeClock()
    desk = Desk(MemoryStore(), clock=clock)
    desk.intake.put(delivery("a", received_us=clock.wall_us()))
    clock.step_wall(-100)
    desk.drain()
    assert desk.value("receive_to_commit_seconds_sum", exchange="upbit") == 0


def test_rows_are_counted_for_the_feed_of_their_epoch_until_it_ends() -> None:
    def row(epoch: int, n: int) -> BookRow:
        return BookRow(epoch, n, 0, None, None, 0, None, None)

    def stored(market: str) -> float:
        return desk.value("records_total", exchange="upbit", market=market, channel="orderbook", outcome="stored")

    desk = Desk(MemoryStore())
    opened = [EpochOpened(e, "UPBIT", m, "orderbook", "websocket", 0) for e, m in ((1, "BTC-KRW"), (2, "ETH-KRW"))]
    desk.intake.put(delivery("", opened[0], row(1, 1), row(1, 2), CoverageMark(1, 0, 0, 2)))
    desk.intake.put(delivery("", opened[1], row(2, 1), EpochEnded(1, 0, "stop")))
    desk.drain()
    assert (stored("BTC-KRW"), stored("ETH-KRW")) == (2, 1)

    desk.writer.stopping.clear()
    desk.intake.put(delivery("", row(1, 3), row(2, 2)))
    desk.drain()
    assert (stored("BTC-KRW"), stored("ETH-KRW")) == (2, 2)


def test_events_of_no_exchange_are_not_counted_as_frames() -> None:
    desk = Desk(MemoryStore())
    desk.intake.put(delivery("a", exchange="", frames=0))
    desk.drain()
    assert desk.value("frames_total", exchange="", outcome="stored") == 0


BOOK = b'{"ty":"orderbook","cd":"KRW-BTC","tms":1,"obu":[{"ap":%d,"bp":1,"as":1,"bs":1}]}'


def test_every_frame_is_in_exactly_one_place_all_the_time() -> None:
    """Received = stored + duplicate + ignored + rejected + dropped + held, before, during and after an outage."""
    clock = FakeClock()
    setup = make_setup(clock=clock, limit_bytes=4000)
    controller = Upbit(("BTC-KRW",), setup)
    controller.anchor()
    store = MemoryStore()
    desk = Desk(store, clock=clock, intake=setup.intake, metrics=setup.metrics)
    desk.writer.backoff = Backoff(clock, base_s=0.001, cap_s=0.001)
    frames = 0

    def check() -> dict[str, float]:
        counts = {o: desk.value("frames_total", exchange="upbit", outcome=o) for o in OUTCOMES}
        held = sum(setup.intake.held_frames().values())
        assert counts.pop("received") == frames == sum(counts.values()) + held
        return counts

    store.during = check
    for price in range(5, 60):
        for frame in (BOOK % price, BOOK % price, b'{"status":"UP"}', b"garbage" if price % 5 == 0 else BOOK % price):
            controller.handle(frame, clock.advance(0.01))
            frames += 1
        controller.flush()
        check()
        if price == 20:
            store.errors = [StorageFull("no space")] * 3
        if price < 20 or price > 40:
            desk.drain()
            desk.writer.stopping.clear()
            check()
    controller.end_epochs("stop")
    desk.drain()

    assert setup.intake.empty
    assert all(check().values()), "each outcome came about"


# --- with the real store ----------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "w.sqlite")
    store.open()
    yield store
    store.release()


def rows(first: int, last: int) -> Delivery:
    text = "x" * 500
    return Delivery(
        "upbit",
        last - first + 1,
        (
            *(BookRow(1, n, n, None, None, int(n == 1), text, None) for n in range(first, last + 1)),
            CoverageMark(1, last, last, last),
        ),
        SIZE,
    )


def test_the_writer_gets_over_a_full_disk_by_itself(sqlite: SQLiteStore, start: Start, wait_until: WaitUntil) -> None:
    (pages,) = sqlite.connection.execute("PRAGMA page_count").fetchone()
    sqlite.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    desk = Desk(sqlite, clock=Clock())
    desk.intake.put(delivery("", EpochOpened(1, "UPBIT", "BTC-KRW", "orderbook", "websocket", 0)))
    desk.intake.put(rows(1, 50))
    start(desk)
    wait_until(lambda: desk.value("commit_failures_total", reason="full") >= 2)
    desk.intake.put(rows(51, 60))
    assert "free some space" in desk.writer.failing

    sqlite.connection.execute("PRAGMA max_page_count = 1000000")

    wait_until(lambda: desk.intake.empty)
    desk.writer.stop()
    assert desk.writer.join(10)
    found = sqlite.connection.execute("SELECT count(*), max(frames) FROM book, coverage").fetchone()
    assert found == (60, 60)
    assert desk.value("frames_total", exchange="upbit", outcome="stored") == 61


def test_many_controllers_and_one_writer_store_everything_once(sqlite: SQLiteStore, start: Start) -> None:
    threads, each = 6, 40
    desk = Desk(sqlite, clock=Clock(), batch_records=50)
    start(desk)

    def produce(number: int) -> None:
        epoch = number + 1
        opened = EpochOpened(epoch, "UPBIT", f"C{number}-KRW", "orderbook", "websocket", 0)
        desk.intake.put(Delivery("upbit", 0, (opened,), SIZE))
        for n in range(1, each + 1):
            row = BookRow(epoch, n, n, None, None, int(n == 1), f'[["{number}","{n}"]]', None)
            desk.intake.put(Delivery("upbit", 1, (row, CoverageMark(epoch, n, n, n)), SIZE))

    producers = [threading.Thread(target=produce, args=(number,)) for number in range(threads)]
    for thread in producers:
        thread.start()
    for thread in producers:
        thread.join(10)
    desk.writer.stop()
    assert desk.writer.join(10)

    found = sqlite.connection.execute("SELECT symbol, n, bids FROM book_update ORDER BY symbol, n").fetchall()
    assert found == [
        (f"C{number}", n, f'[["{number}","{n}"]]') for number in range(threads) for n in range(1, each + 1)
    ]
    assert desk.value("frames_total", exchange="upbit", outcome="stored") == threads * each
    assert sqlite.connection.execute("SELECT DISTINCT frames FROM coverage").fetchall() == [(each,)]
