"""Storage down is not collection down: what the store does not take waits on disk and comes to it in order, once.

Real controllers, spool, SQLite and reader; what is read back is compared with what was sent, book by book.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.errors import StorageBusy
from collector.records import CoverageMark, Delivery, EpochEnded, EpochOpened, Event, TradeRow
from storage.reader import Reader
from storage.store import Batch
from storage.writer import DRAIN_AT_STOP_US
from tests.storage.house import MARKETS, House, Killed, ask

MARKET = MARKETS[0]
Build = Callable[..., House]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Make a house; what is still open is closed with the test."""
    houses: list[House] = []

    def make(**options: Any) -> House:
        houses.append(House(tmp_path, **options))
        return houses[-1]

    yield make
    for house in houses:
        house.crash()


def segments(house: House) -> list[Path]:
    return sorted(house.spool.path.glob("*.spool"))


def spoil(file: Path, at: float = 0.5) -> None:
    """Turn over some bytes in a file; what was read ahead of it is not hit any more."""
    content = bytearray(file.read_bytes())
    middle = int(len(content) * at)
    content[middle : middle + 20] = bytes(255 - byte for byte in content[middle : middle + 20])
    file.write_bytes(content)


def reasons(house: House) -> list[str | None]:
    """Why each epoch of a market ended, in order."""
    with Reader(house.database) as reader:
        return [epoch.reason for epoch in reader.epochs("upbit", MARKET)]


# --- the store is away ------------------------------------------------------------------------------------------------


def test_down_at_the_start_loses_nothing(build: Build) -> None:
    """Mutation: let `Writer._put_away` write past a spool that is not empty (leave out `if self.backlog.empty`)."""
    house = build()
    house.goes_away()
    house.live(20)
    assert not house.database.exists() or ask(house.database, "SELECT count(*) FROM run") == [(0,)]
    assert house.frames()["spool"] == 400 and house.intake.empty
    assert house.writer.failing == "nobody answers"

    house.comes_back()
    house.live(5)

    assert house.writer.failing == ""
    assert house.spool.empty and segments(house) == []
    assert house.frames()["stored"] == 500
    assert house.stop()
    house.everything_is_there()
    assert reasons(house) == ["stop"]
    assert [key for key, _ in house.log.events if key.startswith("spool")] == ["spool_started", "spool_drained"]


def test_down_in_the_middle_loses_nothing_and_ends_no_epoch(build: Build) -> None:
    """Three times; in between batches go straight to the store again."""
    house = build()
    for _ in range(3):
        house.live(3)
        assert house.frames()["spool"] == 0
        house.goes_away(StorageBusy("locked"))
        house.live(7)
        assert house.frames()["spool"] == 140
        house.comes_back()
    house.live(3)
    commits = house.store.commits
    house.live(1)
    assert house.store.commits == commits + 4
    assert house.stop()
    house.everything_is_there()
    assert reasons(house) == ["stop"]
    assert house.frames()["dropped"] == 0


def test_marks_of_the_ledger_wait_and_come_in_order_too(build: Build) -> None:
    """What was heard during the outage is covered after it, data or not.

    Mutation: leave the marks out of what is kept.
    """
    house = build()
    house.live(1)
    house.goes_away()
    house.live(2)
    for _ in range(30):
        heard_us = house.beat()
        house.cycles()
    house.comes_back()
    house.cycles(2)
    assert house.spool.empty
    ((until_us,),) = ask(
        house.database,
        "SELECT max(heard_until_us) FROM coverage c JOIN epoch e ON e.id = c.epoch WHERE e.feed = 1",
    )
    assert until_us == heard_us
    house.live(1)
    assert house.stop()
    house.everything_is_there()


def test_batches_are_brought_together_once_the_store_is_sure_to_have_none_of_them(build: Build) -> None:
    """Mutation: leave `_new` False in `Backlog.drain`, and each is a commit of its own."""
    house = build()
    house.live(1)
    house.goes_away()
    house.live(30)
    waiting, commits = house.spool.frames, house.store.commits
    assert waiting == 120

    house.comes_back()
    house.cycles()

    assert house.spool.empty
    assert house.store.commits - commits <= 5  # of up to 64 batches and 1,000 records
    assert house.stop()
    house.everything_is_there()


def test_the_backlog_shrinks_five_times_faster_than_it_grew(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes 50 ms a commit, and books that go on coming.

    Mutation: batches that are not brought together, as above.
    """
    house = build()
    house.live(1)
    house.goes_away()
    house.live(120)
    house.comes_back()
    write = house.store.write

    def slow(batch: Batch, now_us: int) -> int:
        house.clock.advance(0.05)
        return write(batch, now_us)

    monkeypatch.setattr(house.store, "write", slow)
    began_us = house.clock.monotonic_us()
    while not house.spool.empty:
        house.live(0.25)
        assert house.clock.monotonic_us() - began_us < 120_000_000 / 5
    assert house.stop()
    house.everything_is_there()


# --- neither the store nor the spool takes anything -------------------------------------------------------------------


@pytest.mark.parametrize("back", ["store", "spool"])
def test_with_both_away_memory_holds_what_it_can_and_ten_seconds_after_either_is_back_it_goes_on(
    build: Build, back: str
) -> None:
    """What memory can't hold is refused at the intake: coverage ends there, and it is counted.

    Mutation: forget the batch where the spool refuses it (`self._batch = None` in `Writer._keep`'s handler).
    """
    house = build(intake_bytes=60_000)
    house.live(2)
    house.goes_away()
    house.spool.full = True
    house.live(120)
    assert house.frames()["dropped"] > 0
    assert house.intake.held[1] < 61_000  # ends of epochs are always taken
    assert house.log.of("spool_failed") and house.log.of("no_space")
    stored, spooled = house.frames()["stored"], house.frames()["spool"]
    assert spooled == 0

    if back == "store":
        house.store.down = None
    else:
        house.spool.full = False
    waited_us = house.clock.monotonic_us()
    while (house.frames()["stored"], house.frames()["spool"]) == (stored, spooled):
        assert house.clock.monotonic_us() - waited_us < 10_000_000
        house.live(0.25)
    house.live(2)
    assert house.intake.held[0] < 100

    house.spool.full = False
    house.comes_back()
    house.live(2)
    assert house.stop()
    lost = house.frames()["dropped"]
    assert sum(len(house.sent[market]) - len(house.accounted(market)) for market in MARKETS) == lost
    assert set(reasons(house)[:-1]) == {"no_space"} and reasons(house)[-1] == "stop"


def test_a_spool_that_can_not_grow_is_emptied_all_the_same(build: Build) -> None:
    """The store is back, the spool's disk still full: what waits there goes to the store, and then so does the rest."""
    house = build()
    house.live(1)
    house.goes_away()
    house.live(10)
    house.spool.full = True
    house.live(1)
    assert house.frames()["spool"] and house.frames()["intake"]

    house.comes_back()
    house.live(6)

    assert house.spool.empty
    assert house.stop()
    house.everything_is_there()


# --- written twice ----------------------------------------------------------------------------------------------------


def note(house: House, text: str) -> None:
    house.intake.put(Delivery("", 0, (Event(1, "INFO", "TEST", text),), 10))


def events(house: House) -> list[str]:
    return [text for (text,) in ask(house.database, "SELECT text FROM event ORDER BY id")]


@pytest.mark.parametrize("spooled", [0, 1, 40])
def test_a_commit_without_an_answer_leaves_everything_once(build: Build, spooled: int) -> None:
    """Raw frames and events too, which have no keys of their own; straight to the store, or out of the spool.

    Mutation: leave `_new` as it is when the store raises (in `Backlog._bring`), or the comparison of numbers out of
    `SQLiteStore._write`.
    """
    house = build()
    house.live(1)
    wanted: list[str] = []
    for answers in range(1, 4):
        if spooled:
            house.goes_away()
        for number in range(spooled or 1):
            wanted.append(f"{answers}/{number}")
            note(house, wanted[-1])
            house.controllers[MARKET].handle(b"garbage", house.clock.monotonic_us())
            house.hear(2)
            house.cycles()
        house.comes_back()
        house.store.unanswered = answers
        house.live(30)
        assert house.store.unanswered == 0 and house.spool.empty
    assert house.stop()

    assert events(house) == wanted
    garbage = 3 * (spooled or 1)
    assert ask(house.database, "SELECT count(*) FROM rejected") == [(garbage,)]
    assert house.frames()["rejected"] == garbage and house.frames()["dropped"] == 0
    assert house.value("records_known_total") > 0
    house.accounted()
    assert house.frames()["stored"] == sum(map(len, house.sent.values()))


def test_a_crash_between_commit_and_advance_leaves_everything_once(build: Build) -> None:
    """At one commit of the drain after the other; each process begins with batches that are there.

    Mutation: leave the comparison of `batch.number` out of `SQLiteStore._write`.
    """
    house = build(segment_bytes=20_000)
    house.live(1)
    house.goes_away()
    for number in range(100):
        note(house, str(number))
        house.live(0.25)
    house.comes_back()
    for house.spool.lives in range(5):
        with pytest.raises(Killed):
            house.live(5)
        house.crash()
        house = build(before=house, segment_bytes=20_000)
        house.live(0.2)
    house.live(2)
    assert house.spool.empty
    assert house.stop()

    assert events(house) == [str(number) for number in range(100)]
    assert house.value("records_known_total") > 0
    house.everything_is_there()


# --- what an earlier run left -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [True, False], ids=["stopped", "killed"])
def test_what_an_earlier_run_left_comes_first_and_stays_its_own(build: Build, in_order: bool) -> None:
    """Two runs end with the store down; the third one finds it up after a while.

    Mutation: `if self.backlog.empty` in `Writer._put_away`; or this run's epochs go where the earlier ones' belong.
    """
    house = build()
    house.live(2)
    for _ in range(2):
        house.goes_away()
        house.live(5)
        if in_order:
            assert not house.stop()
            assert house.writer.state == "new" and house.intake.empty  # `run_once` returned by itself
        house.crash()
        waited = house.frames()["spool"]
        house = build(before=house)
        house.goes_away()
        assert house.writer.backlog is not None and house.writer.backlog.batches > 0 and waited
    house.live(3)
    assert len(house.log.of("spool_left")) == 0  # told when the writer's thread begins
    house.comes_back()
    house.live(5)

    assert house.spool.empty and house.stop()
    runs = ask(house.database, "SELECT uid, epoch_base, closed_us IS NULL FROM run ORDER BY id")
    assert runs == [("run 1", 0, 1), ("run 2", 2, 1), ("run 3", 4, 0)]
    assert ask(house.database, "SELECT run, count(*) FROM epoch GROUP BY run") == [(1, 2), (2, 2), (3, 2)]
    end = "stop" if in_order else "crash"
    assert reasons(house) == [end, end, "stop"]
    house.everything_is_there()
    frames = house.frames()
    assert frames["stored"] == frames["received"] == 160
    assert house.value("spool_recovered_frames_total", exchange="upbit") == 200


def test_an_earlier_run_that_comes_after_a_later_one_is_not_mixed_with_it(build: Build, tmp_path: Path) -> None:
    """A spool that was away for a start comes back: its epochs would take ids that are given to others by now.

    Mutation: leave `_require_own` out of `SQLiteStore._open_epoch`.
    """
    house = build()
    house.live(1)
    house.goes_away()
    house.controllers[MARKET].end_epochs("disconnect")
    house.live(3)  # opens another epoch, which only the spool knows
    house.crash()
    house.spool.path.rename(tmp_path / "elsewhere")
    house = build(before=house)
    house.live(3)
    assert house.stop()
    before = ask(house.database, "SELECT id, sequence, bids FROM book")

    house.spool.path.rename(tmp_path / "other")
    (tmp_path / "elsewhere").rename(house.spool.path)
    house = build(before=house)
    house.live(10)
    assert "move that spool's files away" in house.writer.failing
    assert not house.stop()

    assert set(before) <= set(ask(house.database, "SELECT id, sequence, bids FROM book"))
    assert ask(house.database, "SELECT count(*) FROM book") < [(len(before) + 100,)]


# --- what the spool loses ---------------------------------------------------------------------------------------------


def loses(house: House, reason: str, *, most: int) -> None:
    """Require that some was lost, declared with a reason and counted, and that nothing else is missing or wrong."""
    lost = house.frames()["dropped"]
    assert 0 < lost <= most
    house.everything_is_there(but=lost)
    assert set(reasons(house)) <= {reason, "stop", "crash"} and reason in reasons(house)


def test_a_damaged_spool_ends_coverage_where_it_got_to(build: Build) -> None:
    """Some bytes are turned over in the middle, while the store is away.

    Mutations: leave `RecordsLost` out of `Backlog._bring`; no `renew` in `Backlog._hole`.
    """
    house = build(segment_bytes=20_000)
    house.live(2)
    house.goes_away()
    house.live(60)
    spoil(segments(house)[-4])
    house.comes_back()
    house.live(10)
    assert house.spool.empty
    assert len(house.log.of("spool_damaged")) == 1
    assert house.intake.renewals == 1
    assert house.value("epochs_total", exchange="upbit", reason="damaged") == 2
    assert house.stop()
    loses(house, "damaged", most=150)
    assert reasons(house) == ["damaged", "damaged", "stop"]


def test_every_hole_ends_what_began_behind_the_one_before(build: Build) -> None:
    """Mutation: `Sieve.lose` that forgets nothing."""
    house = build(segment_bytes=20_000)
    house.live(2)
    house.goes_away()
    for _ in range(3):
        house.live(40)
        for controller in house.controllers.values():
            controller.end_epochs("disconnect")
    files = segments(house)
    for part in (0.5, 0.9):  # of which the first is before an end, the second behind it
        spoil(files[int(len(files) * part)])
    house.comes_back()
    house.live(10)
    assert len(house.log.of("spool_damaged")) == 2
    assert house.stop()
    lost = house.frames()["dropped"]
    assert 0 < lost < 300
    house.everything_is_there(but=lost)
    assert reasons(house).count("damaged") >= 2


def test_a_hole_at_the_end_is_told_with_the_next_batch_whichever_way_that_goes(build: Build) -> None:
    """The last segment is gone when the store comes back: nothing stands behind the hole that could tell of it.

    Mutations: `advance` over the hole in `Backlog._next` (a crash then forgets it); leave `_lost` out of
    `Backlog.write`.
    """
    for way in ("straight", "spool", "crash"):
        house = build(segment_bytes=20_000)
        house.live(2)
        house.goes_away()
        house.live(30)
        for file in segments(house)[-2:]:
            file.write_bytes(b"")
        house.comes_back()
        house.cycles(3)
        assert house.log.of("spool_damaged")
        dropped = house.frames()["dropped"]
        assert dropped and not house.frames()["spool"], "what is lost waits no more"
        assert house.writer.backlog is not None and house.writer.backlog.empty
        if way == "spool":
            house.goes_away()
            house.live(5)
            house.comes_back()
        elif way == "crash":
            house.goes_away()
            house.live(5)
            house.crash()
            house = build(before=house, segment_bytes=20_000)
        house.live(8)
        assert house.spool.empty and house.stop()
        house.accounted()
        assert reasons(house)[-1] == "stop"
        if way == "crash":
            assert "damaged" in reasons(house)
        else:
            loses(house, "damaged", most=dropped + 100)
        for file in (house.database, house.database.with_suffix(".sqlite.lock")):
            file.unlink()
        for market in MARKETS:
            house.sent[market].clear()


def test_the_oldest_is_dropped_where_that_is_asked_for(build: Build) -> None:
    """A full spool makes room at its old end; what is left of it is worth keeping all the same, and all is counted.

    Mutations: frames that are dropped not taken out of those that wait; `Sieve.lose` that forgets nothing.
    """
    house = build(limit_bytes=200_000, segment_bytes=20_000, drop_oldest=True)
    house.live(2)
    house.goes_away()
    house.live(120)
    assert house.spool.bytes <= 200_000
    assert house.log.of("spool_dropped") and not house.log.of("spool_failed")
    assert house.frames()["dropped"] > 0
    house.comes_back()
    house.live(10)
    assert house.spool.empty and house.stop()
    loses(house, "no_space", most=2300)


def test_a_loss_reaches_up_to_each_feeds_next_complete_book(build: Build) -> None:
    """The first segment that is dropped takes little with it of all that waits behind it, under the same epochs.

    Mutations: `return ()` at the top of `Sieve._begin_again`; no `renew` in `Backlog._make_room`.
    """
    house = build(limit_bytes=200_000, segment_bytes=20_000, drop_oldest=True)
    house.live(2)
    house.goes_away()
    while not house.log.of("spool_dropped"):
        house.live(0.25)
    gone = sum(told["frames"] for told in house.log.of("spool_dropped"))
    house.comes_back()
    house.live(5)
    assert house.stop()
    assert house.frames()["received"] > 1000
    loses(house, "no_space", most=gone + 100)
    assert reasons(house) == ["no_space", "no_space", "stop"]  # up to the hole, behind it, and after it was told


class Tape:
    """A feed of trades beside the books of a house: each trade a message, handed over with its mark."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.sent: list[int] = []  # when each was received
        self.epoch = next(house.intake.epochs)
        opened = EpochOpened(self.epoch, "UPBIT", MARKET, "trades", "websocket", house.clock.wall_us())
        house.intake.put(Delivery("upbit", 0, (opened,), 100))

    def hear(self, trades: int) -> None:
        for _ in range(trades):
            self.house.clock.advance(0.05)
            now_us = self.house.clock.wall_us()
            self.sent.append(now_us)
            trade = TradeRow(self.epoch, str(len(self.sent)), "buy", "100.50", "0.00000001", now_us, now_us - 7)
            self.house.intake.put(Delivery("upbit", 1, (trade, self.mark()), 300))
            self.house.setup.metrics.count_frames("upbit", received=1)
            self.house.cycles()

    def mark(self) -> CoverageMark:
        return CoverageMark(self.epoch, self.sent[-1], self.sent[-1], len(self.sent))

    def end(self) -> None:
        self.house.intake.put(Delivery("upbit", 0, (EpochEnded(self.epoch, self.sent[-1], "stop"),), 100))


def test_trades_go_on_behind_a_loss_at_once(build: Build) -> None:
    """Nobody tells the feed; what waits behind the hole counts all the same, in an epoch that claims just that.

    Mutations: leave `_go_on` out of the sieve; `mark.frames` left out of what it takes.
    """
    house = build(limit_bytes=100_000, segment_bytes=10_000, drop_oldest=True)
    tape = Tape(house)
    tape.hear(20)
    house.goes_away()
    while not house.log.of("spool_dropped"):
        tape.hear(10)
    tape.hear(30)
    gone = sum(told["frames"] for told in house.log.of("spool_dropped"))
    house.comes_back()
    tape.hear(30)
    tape.end()
    assert house.stop()
    with Reader(house.database) as reader:
        stored = [int(trade.id) for trade in reader.trades("upbit", MARKET)]
        lost, again = reader.epochs("upbit", MARKET, channel="trades")
    assert (lost.reason, again.reason) == ("no_space", "stop")
    assert len(tape.sent) - gone - 1 == len(stored)  # and the one that came with the first mark
    assert stored == sorted(set(stored))
    claimed = [n for n, us in enumerate(tape.sent, start=1) if us <= lost.until_us or again.from_us < us]
    assert claimed == stored
    assert lost.frames + again.frames == len(stored)
    assert house.frames()["dropped"] == gone + 1


def test_trades_wait_in_the_spool_and_come_once(build: Build) -> None:
    house = build()
    tape = Tape(house)
    tape.hear(10)
    house.goes_away()
    tape.hear(50)
    assert house.frames()["spool"] == 50
    house.store.unanswered = 1  # the first commit is there, and nobody says so
    house.comes_back()
    tape.hear(5)
    house.comes_back()
    tape.hear(5)
    tape.end()
    assert house.stop()
    with Reader(house.database) as reader:
        assert [int(trade.id) for trade in reader.trades("upbit", MARKET)] == list(range(1, 71))
        (epoch,) = reader.epochs("upbit", MARKET, channel="trades")
    assert (epoch.frames, epoch.reason, epoch.until_us) == (70, "stop", tape.sent[-1])


def test_the_newest_is_refused_where_nothing_else_is_asked_for(build: Build) -> None:
    house = build(limit_bytes=200_000, segment_bytes=20_000, intake_bytes=20_000)
    house.live(2)
    house.goes_away()
    house.live(120)
    assert house.spool.bytes <= 200_000
    assert house.log.of("spool_failed") and house.log.of("no_space")
    house.comes_back()
    house.live(10)
    assert house.spool.empty and house.stop()
    loses(house, "no_space", most=2300)


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_what_is_sifted_is_sifted_anew_when_the_store_refuses(build: Build, refusals: int) -> None:
    """Epochs end and begin in the batches behind a hole; each of them is refused some times, or its answer lost.

    Mutation: `return self` in `Sieve.after`.
    """
    house = build(segment_bytes=20_000)
    house.live(2)
    house.goes_away()
    for _ in range(20):
        house.live(2)
        for controller in house.controllers.values():
            controller.end_epochs("disconnect")
    spoil(segments(house)[-6])
    house.comes_back()
    write = house.store.write
    tries = 0

    def refuse(batch: Batch, now_us: int) -> int:
        nonlocal tries
        tries += 1
        if tries % (refusals + 1):
            raise StorageBusy("not now")
        house.store.unanswered = tries // (refusals + 1) % 2
        return write(batch, now_us)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house.store, "write", refuse)
        while not house.spool.empty:
            house.clock.advance(5)
            house.cycles()
            assert tries < 4000
    assert house.stop()
    lost = house.frames()["dropped"]
    assert 0 < lost < 400
    house.everything_is_there(but=lost)
    assert reasons(house).count("damaged") <= 1 and len(reasons(house)) >= 18


def test_a_hole_in_what_an_earlier_run_left_ends_its_epochs_only(build: Build) -> None:
    """The run that finds it loses nothing and is told to renew nothing.

    Mutation: `return True` in `Backlog._concerns_us`.
    """
    house = build(segment_bytes=20_000)
    house.live(2)
    house.goes_away()
    house.live(60)
    house.crash()
    earlier = len(house.sent[MARKET])
    spoil(segments(house)[3])
    house = build(before=house, segment_bytes=20_000)
    house.goes_away()
    house.live(10)
    house.comes_back()
    house.live(10)
    assert house.log.of("spool_damaged")
    assert house.intake.renewals == 0
    assert house.frames()["dropped"] == 0
    assert house.spool.empty and house.stop()
    assert reasons(house) == ["damaged", "stop"]
    for market in MARKETS:
        assert set(house.accounted(market)) > set(range(earlier, len(house.sent[market])))


@pytest.mark.parametrize("lives", [0, 1, 2, 5])
def test_after_a_crash_behind_a_hole_nothing_is_claimed_across_it(build: Build, lives: int) -> None:
    """The process dies after some commits behind a hole: the next one finds the hole again, or only what is behind it.

    Mutation: have `Backlog._bring` take every epoch of an earlier run for whole, instead of `open_epochs`.
    """
    house = build(segment_bytes=1000, batch_records=5)  # a batch each
    house.live(2)
    house.goes_away()
    house.live(60)
    spoil(segments(house)[80])
    house.comes_back()
    while not house.log.of("spool_damaged"):
        assert house.writer.backlog is not None
        house.writer.backlog.drain()
    house.spool.lives = lives
    with pytest.raises(Killed):
        house.live(60)
    house.crash()
    house = build(before=house, segment_bytes=1000)
    house.live(5)
    assert house.spool.empty and house.stop()
    for market in MARKETS:
        house.accounted(market)
    assert "damaged" in reasons(house)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_stop_with_the_store_down_leaves_everything_in_the_spool(build: Build) -> None:
    """Mutation: let `Writer._is_done` wait for an empty spool."""
    house = build()
    house.live(2)
    house.goes_away()
    house.live(5)
    began_us = house.clock.monotonic_us()
    assert not house.stop()
    assert house.clock.monotonic_us() - began_us < 2_000_000
    assert house.intake.empty and house.frames()["spool"] == 100

    house = build(before=house)
    house.live(1)
    assert house.stop()
    house.everything_is_there()
    assert reasons(house) == ["stop", "stop"]


def test_a_stop_ends_a_long_drain(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: leave the time out of `Writer._is_done`."""
    house = build()
    house.goes_away()
    house.live(200)
    house.comes_back()
    write = house.store.write

    def slow(batch: Batch, now_us: int) -> int:
        house.clock.advance(1)
        return write(batch, now_us)

    monkeypatch.setattr(house.store, "write", slow)
    began_us = house.clock.monotonic_us()
    assert not house.stop()
    took_us = house.clock.monotonic_us() - began_us
    assert DRAIN_AT_STOP_US <= took_us <= DRAIN_AT_STOP_US + 2_000_000

    house = build(before=house)
    house.live(5)
    assert house.stop()
    house.everything_is_there()


def test_a_spool_that_is_synced_now_and_then_is_told_so_while_something_waits(build: Build) -> None:
    """Mutation: leave `_sync` out of `Writer._drain`."""
    house = build(fsync="interval")
    house.live(2)
    assert house.spool.syncs == 0
    house.goes_away()
    house.live(5)
    assert house.spool.syncs >= 19
    house.comes_back()
    house.live(2)
    assert house.stop()
    house.everything_is_there()


def test_what_waits_can_be_seen(build: Build) -> None:
    house = build()
    house.live(2)
    assert (house.value("spool_batches"), house.value("spool_age_seconds")) == (0, 0)
    house.goes_away()
    house.live(50)
    assert house.value("spool_batches") == house.spool.frames == 200
    assert house.value("spool_bytes") == house.spool.bytes > 0
    assert house.value("spool_bytes_limit") == 64 << 20
    assert 49 <= house.value("spool_age_seconds") <= 51
    assert house.value("spool_frames", exchange="upbit") == 1000
    house.comes_back()
    house.live(2)
    assert [house.value(f"spool_{what}") for what in ("batches", "bytes", "age_seconds")] == [0, 0, 0]
    assert house.value("spool_frames", exchange="upbit") == 0
