"""Books that are proved message by message: linked, joined with a REST book, summed; one market is begun anew alone."""

import itertools
import json
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from collector.errors import BadFrame, ConnectionLost, FramesLost
from collector.records import Book, BookChange, Leaving, Message, Numbered
from controllers.book import OrderBook
from tests.controllers.test_doubts import Played, Stage, Steps
from tests.controllers.venue import check_sums
from tests.fakes import counted, numbers

BTC, ETH = "BTC-KRW", "ETH-KRW"


class Linked(Played):
    """As Bybit: a complete book comes in the stream, each change has the number after the one before."""

    changes_only = True
    verdict = "linked"

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        found: list[Message] = []
        for body in json.loads(frame):
            if "number" in body:
                found.append(Numbered(body["number"]))
            elif "leaving" in body:
                found.append(Leaving(body["leaving"]))
            elif "bad" in body:
                raise BadFrame("bad")
            else:
                market, bids, asks = body.get("market", BTC), body.get("bids", {}), body.get("asks", {})
                if body.get("all"):
                    found.append(Book(market, bids, asks, None, body["u"], checksum=body.get("sum")))
                else:
                    first, checksum = body.get("U"), body.get("sum")
                    found.append(BookChange(market, bids, asks, None, body["u"], first, checksum=checksum))
        return found

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        return change.sequence == sequence + 1

    def resync_messages(self, market: str) -> Iterable[str]:
        return [f"unsubscribe {market}", f"subscribe {market}"]

    def probe_path(self, market: str) -> str | None:
        return None


class Joined(Linked):
    """As Binance: the complete book is asked for over REST."""

    def follows(self, change: BookChange, sequence: int, *, joining: bool) -> bool:
        assert change.first is not None
        return change.first <= sequence + 1 if joining else change.first == sequence + 1

    def snapshot_path(self, market: str) -> str | None:
        return f"/depth/{market}"

    def parse_snapshot(self, market: str, body: bytes) -> Book:
        book = json.loads(body)
        return Book(market, book["bids"], book["asks"], None, book["u"])


class Summed(Linked):
    """As Kraken: no numbers, a sum over a book that is cut to its depth."""

    verdict = "checksummed"
    depth = 2
    cut_to_depth = True

    def checksum(self, book: OrderBook) -> int:
        return total(book.as_numbers())


def total(book: Any) -> int:
    """The sum of the tests: over prices and sizes, best first."""
    bids, asks = ({str(price): str(size) for price, size in side.items()} for side in book)
    return zlib.crc32(json.dumps([sorted(bids.items()), sorted(asks.items())]).encode())


def says(scene: Stage, *bodies: dict[str, Any], after: float = 0.1) -> list[tuple[int, bytes]]:
    scene.clock.advance(after)
    return [(1, json.dumps(list(bodies)).encode())]


def whole(u: int, bids: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return {"all": True, "u": u, "bids": bids or {"10": "1"}, "asks": {"11": "1"}, **more}


def change(u: int, bids: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"u": u, "bids": bids, **more}


Build = Callable[..., Stage]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(cls: type[Played] = Linked, *markets: str, **options: Any) -> Stage:
        return Stage(monkeypatch, cls, *markets, **options)

    return build


def sums(scene: Stage, sent: int) -> dict[str, int]:
    return check_sums(scene.setup, scene.stored, "venue", sent)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_linked_book_counts_up_to_its_last_change(stage: Build) -> None:
    """The mutation that must make this fail: `return self.changes_only` in `FeedFacts.unproven`."""
    scene = stage()

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, change(6, {"9": "1"}))
        yield says(scene, change(7, {"9": "2"}), after=3)

    scene.play(steps())
    epoch = scene.stored.only
    assert epoch.opened.verdict == "linked"
    assert [row.sequence for row in epoch.rows] == [5, 6, 7]
    assert epoch.mark is not None and epoch.mark.frames == 3
    assert epoch.mark.confirmed_until_us - epoch.opened.opened_us == 3_100_000


@pytest.mark.parametrize(("numbers_sent", "good"), [((6, 8, 9), 2), ((7, 6, 8), 1)], ids=["skipped", "swapped"])
def test_a_change_that_does_not_follow_ends_the_epoch_there_and_begins_that_market_anew(
    stage: Build, numbers_sent: tuple[int, ...], good: int
) -> None:
    """The mutation that must make this fail: leave `follows` out of `HeardBook._take_change`."""
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        yield says(scene, whole(5), whole(1, market=ETH))
        for u in numbers_sent:
            yield says(scene, change(u, {"9": str(u)}))
        yield says(scene, change(2, {"9": "1"}, market=ETH))
        yield says(scene, whole(20, {"10": "7"}))
        yield says(scene, change(21, {"10": "8"}))

    connection = scene.play(steps())
    first, second = scene.stored.of(BTC)
    assert (first.reason, first.frames) == ("sequence", good)
    assert [row.sequence for row in first.rows] == [5, 6][:good]
    assert (second.frames, numbers(second.book[0])) == (2, numbers({"10": "8"}))
    assert connection.sent == [f"subscribe {BTC}", f"subscribe {ETH}", f"unsubscribe {BTC}", f"subscribe {BTC}"]
    assert [epoch.reason for epoch in scene.stored.of(ETH)] == ["stop"]
    assert counted(scene.setup, "books_broken_total", exchange="venue", reason="sequence") == 1
    # What cannot be applied to any book is dropped, and said to be.
    assert sums(scene, 7)["dropped"] == 3 - good + 1


def test_a_change_that_is_repeated_changes_nothing(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield says(scene, whole(5))
        for u in (6, 6, 7):
            yield says(scene, change(u, {"9": str(u)}))

    scene.play(steps())
    assert [row.sequence for row in scene.stored.only.rows] == [5, 6, 7]
    assert sums(scene, 4)["duplicate"] == 1


def test_a_complete_book_that_the_changes_did_not_lead_to_breaks_the_link(stage: Build) -> None:
    """The mutation that must make this fail: go on in the same epoch in `HeardBook._take_book`."""
    scene = stage()

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, whole(5))
        yield says(scene, whole(1, {"10": "2"}))
        yield says(scene, change(2, {"10": "3"}))

    scene.play(steps())
    assert scene.stored.reasons == ["sequence", "stop"]
    assert [epoch.frames for epoch in scene.stored.epochs.values()] == [2, 2]


def test_the_rows_of_two_epochs_in_one_frame_are_all_counted(stage: Build) -> None:
    """The mutation that must make this fail: count rows by the feed's epoch in `Controller._account`."""
    scene = stage()

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, change(6, {"9": "1"}), whole(1, {"10": "2"}))

    scene.play(steps())
    assert [len(epoch.rows) for epoch in scene.stored.epochs.values()] == [2, 1]
    of = {"exchange": "venue", "market": BTC, "channel": "orderbook"}
    told = [counted(scene.setup, "records_total", **of, outcome=outcome) for outcome in ("received", "duplicate")]
    assert told == [3, 0]


def test_a_frame_that_breaks_in_its_middle_counts_as_a_whole(stage: Build) -> None:
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, change(6, {"9": "1"}), change(8, {"9": "2"}), whole(1, market=ETH))
        yield says(scene, whole(9), change(11, {"9": "2"}))

    scene.play(steps())
    (first,) = scene.stored.of(BTC)
    assert (first.reason, len(first.rows), first.frames) == ("sequence", 1, 1)
    assert [epoch.reason for epoch in scene.stored.of(ETH)] == ["stop"]
    assert sums(scene, 3)["dropped"] == 1


def test_a_connection_that_fails_while_a_book_is_asked_for_leaves_no_frame_unaccounted_for(stage: Build) -> None:
    """The mutation that must make this fail: call `resync` in `Controller._broken`, before the account of the frame."""
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        assert scene.connection is not None
        yield says(scene, whole(5), whole(1, market=ETH))
        scene.connection.send_text = lost  # type: ignore[method-assign]
        yield says(scene, change(2, {"9": "1"}, market=ETH), change(7, {"9": "1"}))

    def lost(text: str) -> None:
        raise ConnectionLost("it is gone")

    with pytest.raises(ConnectionLost, match="it is gone"):
        scene.play(steps())
    (btc,), (eth,) = scene.stored.of(BTC), scene.stored.of(ETH)
    assert (btc.reason, btc.frames) == ("sequence", 1)
    assert (eth.reason, eth.frames, len(eth.rows)) == ("disconnect", 2, 2)
    assert sums(scene, 2)["stored"] == 2


def test_a_change_that_breaks_a_book_is_one_dropped_record(stage: Build) -> None:
    """The mutation that must make this fail: hold the change back in `Controller._broken` whatever the exchange."""
    scene = stage()

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, change(7, {"9": "1"}))

    scene.play(steps())
    labels = {"exchange": "venue", "market": BTC, "channel": "orderbook"}
    assert counted(scene.setup, "records_total", outcome="dropped", **labels) == 1
    assert counted(scene.setup, "records_total", outcome="received", **labels) == 2


def test_a_book_that_keeps_breaking_is_asked_for_later_every_time(stage: Build) -> None:
    """The mutation that must make this fail: `feed.breaks = 1` in `WSController.resync`."""
    scene = stage()
    asked: list[float] = []

    def steps() -> Steps:
        yield says(scene, whole(5))
        for _ in range(200):
            assert scene.connection is not None
            before = len(scene.connection.sent)
            yield says(scene, change(9, {"9": "1"}))
            if len(scene.connection.sent) > before:
                asked.append(scene.clock.monotonic_us() / 1e6)
                yield says(scene, whole(5))

    scene.play(steps())
    waits = [round(later - sooner) for sooner, later in itertools.pairwise(asked)]
    assert waits[:4] == [1, 2, 4, 8], waits


def test_a_lost_frame_of_a_numbered_connection_ends_all_of_it(stage: Build) -> None:
    """The mutation that must make this fail: leave the comparison out of `Controller._count`."""
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        yield says(scene, {"number": 0}, whole(5))
        yield says(scene, {"number": 1}, whole(1, market=ETH))
        yield says(scene, {"number": 3}, change(6, {"9": "1"}))

    with pytest.raises(FramesLost, match="frame 3 came after 1"):
        scene.play(steps())
    assert scene.stored.reasons == ["sequence", "sequence"]
    assert sums(scene, 3) == {"received": 3, "stored": 2, "dropped": 1, "duplicate": 0, "ignored": 0, "rejected": 0}


def test_a_rejected_message_of_one_market_begins_that_one_anew(stage: Build) -> None:
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        yield says(scene, whole(5), whole(1, market=ETH))
        yield says(scene, change(6, {"9": "-1"}))
        yield says(scene, whole(9))

    connection = scene.play(steps())
    assert [epoch.reason for epoch in scene.stored.of(BTC)] == ["rejected", "stop"]
    assert [epoch.reason for epoch in scene.stored.of(ETH)] == ["stop"]
    assert connection.sent[2:] == [f"unsubscribe {BTC}", f"subscribe {BTC}"]


def test_a_rejected_message_of_nobody_knows_whom_ends_the_connection(stage: Build) -> None:
    scene = stage(Linked, BTC, ETH)

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield says(scene, {"bad": True})

    with pytest.raises(ConnectionLost, match="only with a new subscription"):
        scene.play(steps())


def test_an_announced_end_asks_for_a_replacement(stage: Build) -> None:
    scene = stage()
    due: list[bool] = []

    def steps() -> Steps:
        yield says(scene, whole(5))
        due.append(scene.controller.due_for_replacement())
        yield says(scene, {"leaving": "maintenance"})
        due.append(scene.controller.due_for_replacement())
        yield []

    scene.play(steps())
    assert due == [False, True] or due == [False]
    assert scene.log.of("leaving") == [{"detail": "maintenance"}]


# --- a REST book that the stream continues ----------------------------------------------------------------------------


def answered(scene: Stage) -> None:
    """Wait until no snapshot is under way."""
    for thread in threading.enumerate():
        if thread.name.endswith("/snapshot"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_rest_book_is_joined_with_what_was_held_back(stage: Build) -> None:
    """The mutation that must make this fail: apply nothing of `early` in `HeardBook.join`."""
    scene = stage(Joined)
    scene.rest.answers += [{"u": 6, "bids": {"10": "1"}, "asks": {"11": "1"}}]

    def steps() -> Steps:
        yield says(scene, change(5, {"9": "5"}, U=4))
        yield says(scene, change(7, {"9": "7"}, U=6))
        answered(scene)
        yield says(scene, change(8, {"8": "8"}, U=8))
        yield says(scene, change(9, {"8": "9"}, U=9))

    scene.play(steps())
    epoch = scene.stored.only
    assert numbers(epoch.book[0]) == numbers({"10": "1", "9": "7", "8": "9"})
    assert [row.sequence for row in epoch.rows] == [6, 7, 8, 9]
    assert epoch.frames == 3, "the REST book is no message of the stream, what it held already neither"
    assert [url for url, _ in scene.rest.asked] == [f"http://venue.test/depth/{BTC}"]


def test_a_rest_book_older_than_the_stream_is_asked_for_again(stage: Build) -> None:
    """The mutation that must make this fail: `return True` in place of `return False` in `HeardBook.join`."""
    scene = stage(Joined)
    scene.rest.answers += [{"u": 3, "bids": {}, "asks": {}}, {"u": 9, "bids": {"10": "1"}, "asks": {}}]

    def steps() -> Steps:
        yield says(scene, change(8, {"9": "8"}, U=7))
        answered(scene)
        yield says(scene, change(9, {"9": "9"}, U=9))
        yield says(scene, change(10, {"9": "10"}, U=10), after=1)
        answered(scene)
        yield says(scene, change(11, {"9": "11"}, U=11))

    scene.play(steps())
    assert len(scene.rest.asked) == 2
    assert [row.sequence for row in scene.stored.only.rows] == [9, 10, 11]
    assert not scene.log.of("snapshot_failed")


@pytest.mark.parametrize("number", [-1, 1 << 62])
def test_a_rest_book_whose_number_no_store_holds_is_asked_for_again(stage: Build, number: int) -> None:
    """The mutation that must make this fail: leave `_check_sequence` out of `HeardBook.join`."""
    scene = stage(Joined)
    scene.rest.answers += [{"u": u, "bids": {"10": "1"}, "asks": {}} for u in (number, 3)]

    def steps() -> Steps:
        for _ in range(12):
            yield says(scene, after=1)
            answered(scene)

    scene.play(steps())
    assert [row.sequence for row in scene.stored.only.rows] == [3]
    (failed,) = scene.log.of("snapshot_failed")
    assert "out of range" in str(failed["error"])


def test_a_quiet_market_gets_its_book_without_waiting_for_a_change(stage: Build) -> None:
    scene = stage(Joined)
    scene.rest.answers += [{"u": 3, "bids": {"10": "1"}, "asks": {}}]

    def steps() -> Steps:
        for _ in range(4):
            yield says(scene, after=1)
            answered(scene)

    scene.play(steps())
    epoch = scene.stored.only
    assert (epoch.frames, len(epoch.rows)) == (0, 1)


def test_a_hole_takes_one_new_rest_book_of_that_market(stage: Build) -> None:
    """The mutation that must make this fail: leave `feed.take` out of `Controller._broken` (the first held back)."""
    scene = stage(Joined, BTC, ETH)
    book = {"bids": {"10": "1"}, "asks": {"11": "1"}}
    scene.rest.answers += [{"u": 1, **book}, {"u": 1, **book}, {"u": 4, **book}]

    def steps() -> Steps:
        yield says(scene, change(2, {"9": "1"}, U=2), change(2, {"9": "1"}, U=2, market=ETH))
        answered(scene)
        yield says(scene, change(3, {"9": "2"}, U=3))
        answered(scene)
        yield says(scene, change(3, {"9": "3"}, U=3, market=ETH))
        yield says(scene, change(5, {"9": "4"}, U=5))  # 4 never came
        answered(scene)
        yield says(scene, change(6, {"9": "5"}, U=6))
        yield says(scene, change(4, {"9": "4"}, U=4, market=ETH))

    connection = scene.play(steps())
    first, second = scene.stored.of(BTC)
    assert (first.reason, [row.sequence for row in first.rows]) == ("sequence", [1, 2, 3])
    assert [row.sequence for row in second.rows] == [4, 5, 6]
    assert [url.rpartition("/")[2] for url, _ in scene.rest.asked] == [BTC, ETH, BTC]
    assert [epoch.reason for epoch in scene.stored.of(ETH)] == ["stop"]
    assert len(connection.sent) == 2


def test_a_rest_book_that_can_not_be_had_is_asked_for_later_every_time(stage: Build) -> None:
    scene = stage(Joined)
    scene.rest.answers += [500] * 20

    def steps() -> Steps:
        for u in range(1, 20):
            yield says(scene, change(u, {"9": "1"}, U=u), after=1)
            answered(scene)

    scene.play(steps())
    asked = [at_us / 1e6 for _, at_us in scene.rest.asked]
    waits = [round(later - sooner) for sooner, later in itertools.pairwise(asked)]
    assert waits == sorted(waits) and waits[-1] >= 4 and len(asked) < 7, waits
    assert len(scene.log.of("snapshot_failed")) >= 3
    assert not scene.stored.epochs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_thread_that_asks_costs_one_try(stage: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: put the answer after the `try` in `Snapshots._ask`, not in `finally`."""
    scene = stage(Joined)
    deaths = [SystemExit(), None]

    def get(market: str) -> Book:
        if error := deaths.pop(0):
            raise error
        return Book(market, {"10": "1"}, {"11": "1"}, None, 9)

    monkeypatch.setattr(scene.controller._snapshots, "_get", get)

    def steps() -> Steps:
        for u in range(1, 12):
            yield says(scene, change(u, {"9": "1"}, U=u), after=1)
            answered(scene)

    scene.play(steps())
    assert [told["error"] for told in scene.log.of("snapshot_failed")] == ["the thread that asked died"]
    assert scene.stored.only.rows[0].sequence == 9


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_summed_book_is_cut_to_its_depth(stage: Build) -> None:
    """The mutation that must make this fail: leave `cut` out of `HeardBook._take_change`."""
    scene = stage(Summed)

    def steps() -> Steps:
        bids = {"10": "1", "9": "1"}
        yield says(scene, whole(1, bids, sum=total((bids, {"11": "1"}))))
        yield says(scene, change(2, {"10.5": "3"}, sum=total(({"10": "1", "10.5": "3"}, {"11": "1"}))))
        yield says(scene, change(3, {"8": "3"}, sum=total(({"10": "1", "10.5": "3"}, {"11": "1"}))))

    scene.play(steps())
    epoch = scene.stored.only
    assert epoch.opened.verdict == "checksummed"
    assert numbers(epoch.book[0]) == numbers({"10.5": "3", "10": "1"})
    assert epoch.frames == 3


def test_a_sum_that_is_another_ends_the_epoch_before_that_message(stage: Build) -> None:
    """The mutation that must make this fail: leave `_verify` out of `HeardBook._take_change`."""
    scene = stage(Summed)

    def steps() -> Steps:
        yield says(scene, whole(1, {"10": "1"}, sum=total(({"10": "1"}, {"11": "1"}))))
        yield says(scene, change(2, {"10": "2"}, sum=7))
        yield says(scene, whole(3, {"10": "5"}, sum=total(({"10": "5"}, {"11": "1"}))))

    connection = scene.play(steps())
    first, second = scene.stored.of(BTC)
    assert (first.reason, first.frames, len(first.rows)) == ("checksum", 1, 1)
    assert numbers(second.book[0]) == numbers({"10": "5"})
    assert connection.sent[1:] == [f"unsubscribe {BTC}", f"subscribe {BTC}"]
    assert scene.log.of("book_broken")[0]["reason"] == "checksum"


# --- silence ----------------------------------------------------------------------------------------------------------


def test_a_linked_book_that_is_silent_is_not_doubted_for_want_of_a_rest_book(stage: Build) -> None:
    """The mutation that must make this fail: leave out the choice by `self.verdict` in `DoubtingController._doubt`."""
    scene = stage(Linked, stall={"floor_s": 10, "ceiling_s": 20})

    def steps() -> Steps:
        yield says(scene, whole(5))
        yield from scene.chatter(60)
        yield says(scene, change(6, {"9": "1"}))

    scene.play(steps())
    epoch = scene.stored.only
    assert (epoch.reason, epoch.frames) == ("stop", 2), "its next message proves that none was missed"


class Compared(Linked):
    """One whose best two levels can be compared."""

    probe_depth = 2

    def probe_path(self, market: str) -> str | None:
        return f"/book/{market}"


def test_only_the_best_levels_are_compared_where_rest_has_no_more(stage: Build) -> None:
    """The mutation that must make this fail: compare all levels in `Probe`."""
    scene = stage(Compared, stall={"floor_s": 10, "ceiling_s": 20})
    scene.rest.answers += [{"bids": {"10": 1, "9": 1, "8": 1}, "asks": {"11": 1}}] * 3

    def steps() -> Steps:
        yield says(scene, whole(5, {"10": "1", "9": "1", "7": "4"}))
        yield from scene.chatter(30)

    scene.play(steps())
    assert scene.probes()["agreed"] >= 1
    epoch = scene.stored.only
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us - epoch.opened.opened_us > 9_000_000


def test_a_linked_book_that_differs_from_rest_twice_is_begun_anew_alone(stage: Build) -> None:
    scene = stage(Compared, BTC, ETH, stall={"floor_s": 10, "ceiling_s": 20})
    scene.rest.answers += [{"bids": {"10": 2}, "asks": {"11": 1}}] * 9

    def steps() -> Steps:
        yield says(scene, whole(5), whole(1, market=ETH))
        for u in range(2, 40):
            yield says(scene, change(u, {"9": str(u)}, market=ETH), after=1)
            scene.probed()
            if not scene.controller.books[BTC].epoch:
                yield says(scene, whole(5, {"10": "2"}))

    connection = scene.play(steps())
    assert [epoch.reason for epoch in scene.stored.of(BTC)] == ["probe", "stop"]
    assert [epoch.reason for epoch in scene.stored.of(ETH)] == ["stop"]
    assert f"unsubscribe {BTC}" in connection.sent
