"""The account of every frame and the ledger of every feed, without a network: the clock is set by hand."""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest

from collector.errors import BadFrame, SourceError, StaleConnection, UnknownFrame, VenueRefused
from collector.records import (
    CHECKSUM_MISMATCH,
    CROSSED,
    KEYFRAME,
    SAMPLED,
    Book,
    BookChange,
    Feed,
    Message,
    Refused,
    Reply,
)
from controllers.base import Controller
from tests.controllers.venue import check_sums
from tests.fakes import NOON_US, Epoch, FakeClock, HeardLog, Stored, counted, frame_counts, make_setup, numbers

DAY_S = 86_400
Levels = dict[Any, Any]


class Script(Controller):
    """An exchange whose frames mean what the test says they mean."""

    exchange = "venue"
    transport = "websocket"
    depth = 30

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.meaning: dict[bytes, list[Message] | Exception] = {}

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        meaning = self.meaning[frame]
        if isinstance(meaning, Exception):
            raise meaning
        return meaning


class Changing(Script):
    """As GOPAX: one complete book, then changes."""

    changes_only = True


class Rising(Script):
    """As Coinone: a book whose number is not above the last one is a repeat."""

    rising_sequence = True


class Texts(Script):
    """As Korbit: numbers are text."""

    text_numbers = True


class Polled(Script):
    """As Bithumb over REST."""

    transport = "rest"
    sampled = True


class Stage:
    """A controller on a clock that stands still, and what it hands over."""

    def __init__(self, cls: type[Script] = Script, *markets: str, **options: Any) -> None:
        self.clock = FakeClock()
        self.log = HeardLog()
        self.setup = make_setup(clock=self.clock, log=self.log, **options)
        self.controller = cls(markets or ("BTC-KRW",), self.setup)
        self.controller.anchor()
        self.stored = Stored(self.setup.intake)
        self.sent = 0

    def hear(self, *messages: Message, after: float = 0.1, fails: Exception | None = None) -> list[Message]:
        """Let time pass, then a frame arrive; what it makes is handed over."""
        self.sent += 1
        frame = f"frame {self.sent}".encode()
        self.controller.meaning[frame] = fails or list(messages)
        at_us = self.clock.advance(after)
        try:
            return self.controller.handle(frame, at_us)
        finally:
            self.controller.flush()
            self.stored.take()

    def tick(self, after: float = 1.0) -> None:
        """Let time pass in which nothing arrives."""
        self.clock.advance(after)
        self.controller.tick()
        self.stored.take()

    def end(self, reason: str = "stop") -> None:
        self.controller.end_epochs(reason)
        self.stored.take()

    @property
    def counts(self) -> dict[str, int]:
        return check_sums(self.setup, self.stored, "venue", self.sent)


def book(bids: Levels | None = None, asks: Levels | None = None, market: str = "BTC-KRW", **more: Any) -> Book:
    return Book(market, {10: 1} if bids is None else bids, {11: 1} if asks is None else asks, **more)


def change(bids: Levels | None = None, asks: Levels | None = None, market: str = "BTC-KRW", **more: Any) -> BookChange:
    return BookChange(market, bids or {}, asks or {}, **more)


def sides(epoch: Epoch) -> tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]]:
    bids, asks = epoch.book
    return numbers(bids), numbers(asks)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_first_book_opens_an_epoch_with_all_of_it() -> None:
    stage = Stage()
    stage.hear(book({10: 1, 9: 2}, {11: 1}, venue_us=NOON_US, sequence=7), after=2.5)
    epoch = stage.stored.only
    assert epoch.opened.exchange == "VENUE"
    assert (epoch.opened.market, epoch.opened.channel, epoch.opened.transport) == ("BTC-KRW", "orderbook", "websocket")
    assert (epoch.opened.opened_us, epoch.opened.depth) == (NOON_US + 2_500_000, 30)
    (row,) = epoch.rows
    assert (row.n, row.at_us, row.lag_us, row.sequence, row.flags) == (1, 0, 2_500_000, 7, KEYFRAME)
    assert (row.bids, row.asks) == ('[["10","1"],["9","2"]]', '[["11","1"]]')


def test_a_row_holds_what_changed_and_when() -> None:
    stage = Stage()
    stage.hear(book({10: 1, 9: 2}, {11: 1}))
    stage.hear(book({10: 1, 9: 3}, {11: 1}, venue_us=NOON_US), after=0.5)
    stage.hear(book({9: 3}, {11: "1.5"}), after=0.25)
    _, second, third = stage.stored.only.rows
    assert (second.n, second.at_us, second.lag_us, second.flags) == (2, 500_000, 600_000, 0)
    assert (second.bids, second.asks) == ('[["9","3"]]', None)
    assert (third.n, third.at_us, third.lag_us, third.sequence) == (3, 750_000, None, None)
    assert (third.bids, third.asks) == ('[["10","0"]]', '[["11","1.5"]]')


def test_text_keeps_its_digits_and_numbers_their_value() -> None:
    for cls, told in ((Texts, '[["10.0","0.10"]]'), (Script, '[["10","0.1"]]')):
        stage = Stage(cls)
        stage.hear(book({"10.0": "0.10"}))
        assert stage.stored.only.rows[0].bids == told


def test_a_book_that_changed_nothing_is_a_duplicate_and_still_confirms_the_feed() -> None:
    stage = Stage()
    stage.hear(book())
    stage.hear(book(venue_us=NOON_US), after=5)
    stage.tick()
    epoch = stage.stored.only
    assert len(epoch.rows) == 1
    assert epoch.frames == 2
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us == epoch.opened.opened_us + 5_000_000
    assert stage.counts["duplicate"] == 1


def test_a_frame_without_data_is_ignored_and_asks_are_handed_on() -> None:
    stage = Stage()
    assert stage.hear() == []
    assert stage.hear(Reply("pong"), Refused("no such market")) == [Reply("pong"), Refused("no such market")]
    assert not stage.stored.epochs
    assert stage.counts["ignored"] == 2


def test_several_changes_of_one_frame_are_rows_of_their_own_and_one_frame() -> None:
    stage = Stage(Changing)
    stage.hear(book(sequence=1))
    stage.hear(change({9: 1}, sequence=2), change({9: 2}, sequence=3), change({}, {11: 0}, sequence=4))
    epoch = stage.stored.only
    assert [row.sequence for row in epoch.rows] == [1, 2, 3, 4]
    (feed,) = stage.controller.feeds.values()
    assert feed.frames == 2
    assert stage.counts["stored"] == 2


# --- the sums ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_frame_ends_in_one_bucket() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    stage.hear(book())
    stage.hear(book())
    stage.hear(book({10: 2}))
    stage.hear()
    stage.hear(Reply("pong"))
    stage.hear(fails=BadFrame("what is this"))
    stage.hear(fails=UnknownFrame("news"))
    stage.hear(book(market="DOGE-KRW"))
    stage.hear(book({10: -1}))
    with pytest.raises(VenueRefused):
        stage.hear(fails=VenueRefused("no"))
    stage.hear(book({10: 3}))
    stage.setup.intake.limit_bytes = 0
    stage.hear(book({10: 4}))
    assert stage.counts == {"received": 12, "stored": 3, "duplicate": 1, "ignored": 3, "rejected": 4, "dropped": 1}


def test_the_sums_close_over_several_frames_of_one_hand_over_too() -> None:
    stage = Stage()
    for size in (1, 2, 2, 3):
        frame = f"{size} {stage.sent}".encode()
        stage.controller.meaning[frame] = [book({10: size})]
        stage.controller.handle(frame, stage.clock.advance(0.01))
        stage.sent += 1
    stage.controller.flush()
    assert stage.counts == {"received": 4, "stored": 3, "duplicate": 1, "ignored": 0, "rejected": 0, "dropped": 0}
    (delivery,) = stage.stored.deliveries
    assert delivery.frames == 3
    assert delivery.received_us == stage.clock.wall_us()
    assert stage.stored.only.frames == 4


def test_a_mark_that_no_frame_came_with_has_waited_for_nothing() -> None:
    """Else what is measured from receipt to commit grows with the silence of a market."""
    stage = Stage()
    stage.hear(book({10: 1}))
    stage.hear(book({10: 1}))  # a repeat: only the ledger moves, later
    stage.tick(after=2)
    first, mark = stage.stored.deliveries
    assert (first.frames, mark.frames) == (1, 0)
    assert first.received_us > 0
    assert mark.received_us == 0


def test_the_size_of_a_delivery_grows_with_what_is_in_it() -> None:
    stage = Stage()
    stage.hear(book(dict.fromkeys(range(1, 10), 1)))
    stage.hear(book(dict.fromkeys(range(1, 1000), 1)))
    small, large = (delivery.size for delivery in stage.stored.deliveries)
    assert large > small + 5_000
    stage.hear(fails=BadFrame("x"))
    assert stage.stored.deliveries[-1].size > 0


# --- complete books in between ----------------------------------------------------------------------------------------


def test_nothing_is_stored_again_while_nothing_changes() -> None:
    stage = Stage()
    stage.hear(book())
    for _ in range(20):
        stage.hear(book(), after=60)
        stage.tick()
    assert len(stage.stored.only.rows) == 1


def test_a_complete_book_opens_each_day_utc() -> None:
    stage = Stage()
    stage.hear(book({10: 1}), after=DAY_S / 2 - 0.2)  # 0.2 s before midnight
    stage.hear(book({10: 2}), after=0.1)
    stage.hear(book({10: 3}), after=0.1)
    stage.hear(book({10: 4}), after=0.1)
    stage.hear(book({10: 5}), after=DAY_S)
    assert stage.stored.only.keyframes == [1, 3, 5]


def test_a_complete_book_is_stored_when_changes_exceed_four_times_its_size() -> None:
    stage = Stage()
    levels = dict.fromkeys(range(100, 110), 1)
    stage.hear(book(levels))
    for turn in range(200):
        levels[100] = turn + 2
        stage.hear(book(levels), after=0.001)
    rows = stage.stored.only.rows
    since = size = 0
    for row in rows:
        length = len(row.bids or "") + len(row.asks or "")
        if row.flags & KEYFRAME:
            assert since > 4 * size or row.n == 1
            since, size = 0, length
        else:
            assert since <= 4 * size
            since += length
    assert len(stage.stored.only.keyframes) > 2


def test_after_a_minute_half_its_size_is_enough_but_not_less() -> None:
    stage = Stage()
    levels = dict.fromkeys(range(100, 110), 1)
    stage.hear(book(levels))
    size = len(stage.stored.only.rows[0].bids or "") + len(stage.stored.only.rows[0].asks or "")
    changed = 0
    while changed <= size // 2:
        levels[100] += 1
        stage.hear(book(levels), after=0.001)
        changed += len(stage.stored.only.rows[-1].bids or "")
    assert stage.stored.only.keyframes == [1]
    levels[100] += 1
    stage.hear(book(levels), after=58)
    assert stage.stored.only.keyframes == [1]
    levels[100] += 1
    stage.hear(book(levels), after=3)
    assert stage.stored.only.keyframes == [1, stage.stored.only.rows[-1].n]
    for _ in range(3):  # little changed since: no complete book however late
        levels[100] += 1
        stage.hear(book(levels), after=3600)
    assert len(stage.stored.only.keyframes) == 2


def test_in_mode_full_every_update_is_a_complete_book_and_a_repeat_is_still_none() -> None:
    stage = Stage(full_books=True)
    for size in (1, 2, 2, 3):
        stage.hear(book({10: size, 9: 1}))
    epoch = stage.stored.only
    assert epoch.keyframes == [1, 2, 3]
    assert [json.loads(row.bids or "") for row in epoch.rows] == [[["10", str(s)], ["9", "1"]] for s in (1, 2, 3)]


def test_polled_rows_say_that_they_are_samples() -> None:
    stage = Stage(Polled)
    stage.hear(book())
    stage.hear(book({10: 2}))
    assert [row.flags for row in stage.stored.only.rows] == [KEYFRAME | SAMPLED, SAMPLED]
    assert stage.stored.only.opened.transport == "rest"


# --- flags ------------------------------------------------------------------------------------------------------------


def test_a_crossed_book_is_stored_with_its_flag() -> None:
    stage = Stage()
    stage.hear(book({10: 1}, {11: 1}))
    stage.hear(book({12: 1}, {11: 1}))
    stage.hear(book({10: 1}, {11: 1}))
    assert [row.flags & CROSSED for row in stage.stored.only.rows] == [0, CROSSED, 0]
    assert stage.log.of("crossed") == [{"market": "BTC-KRW"}]
    assert counted(stage.setup, "books_flagged_total", exchange="venue", flag="crossed") == 1
    assert stage.stored.reasons == [None]


def test_totals_that_add_up_make_an_epoch_checksummed() -> None:
    stage = Stage()
    stage.hear(book({10: 1, 9: "0.5"}, {11: 2}, totals=("2.0", "1.5")))
    assert stage.stored.only.verdict == "checksummed"
    stage.end()
    stage.hear(book())
    assert stage.stored.last.verdict == "unverified"


def test_totals_that_do_not_flag_the_book_take_the_verdict_back_and_are_told() -> None:
    stage = Stage()
    stage.hear(book(totals=(1, 1)))
    stage.hear(book({10: 2}, totals=(1, 1)))
    epoch = stage.stored.only
    assert [row.flags & CHECKSUM_MISMATCH for row in epoch.rows] == [0, CHECKSUM_MISMATCH]
    assert epoch.verdict == "unverified"
    assert sides(epoch) == ({Decimal(10): Decimal(2)}, {Decimal(11): Decimal(1)})
    assert stage.log.of("checksum_mismatch") == [{"market": "BTC-KRW"}]
    assert counted(stage.setup, "books_flagged_total", exchange="venue", flag="checksum_mismatch") == 1
    stage.hear(book({10: 3}, totals=(1, 3)))
    assert [row.flags & CHECKSUM_MISMATCH for row in epoch.rows][2:] == [0]
    assert stage.stored.reasons == [None], "the book is kept and the feed stays covered"


def test_wrong_totals_of_an_unchanged_book_are_a_row_once() -> None:
    stage = Stage()
    stage.hear(book(totals=(1, 1)))
    for _ in range(3):
        stage.hear(book(totals=(1, 5)))
    epoch = stage.stored.only
    assert [row.flags & CHECKSUM_MISMATCH for row in epoch.rows] == [0, CHECKSUM_MISMATCH]
    assert epoch.rows[1].bids is epoch.rows[1].asks is None


def test_an_epoch_that_opens_with_wrong_totals_is_unverified() -> None:
    stage = Stage()
    stage.hear(book(totals=(1, 5)))
    assert stage.stored.only.verdict == "unverified"
    assert stage.stored.only.rows[0].flags == KEYFRAME | CHECKSUM_MISMATCH


# --- what breaks an epoch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"fails": BadFrame("not read")},
        {"fails": KeyError("our own mistake")},
        {"messages": [book({10: -1})]},
        {"messages": [book({"NaN": 1})]},
        {"messages": [book({10: 2, "10.0": 3})]},
        {"messages": [book({10: 2}, sequence=1 << 62)]},
        {"messages": [book({10: 2}, sequence=-1)]},
        {"messages": [book({10: 2}, totals=("x", 1))]},
        {"messages": [book(market="ETH-KRW")]},
        {"messages": [book({10: 2}), book(market="ETH-KRW")]},
        {"messages": [book({10: 2}), book({10: -2})]},
    ],
)
def test_a_rejected_frame_is_kept_raw_and_ends_coverage_at_the_last_good_one(bad: dict[str, Any]) -> None:
    stage = Stage()
    stage.hear(book({10: 1}))
    stage.hear(book({10: 2, 9: 1}))
    stage.hear(*bad.get("messages", ()), fails=bad.get("fails"), after=3)
    first = stage.stored.only
    assert first.reason == "rejected"
    assert first.mark is not None
    assert first.ended is not None
    assert first.mark.heard_until_us == first.mark.confirmed_until_us == first.opened.opened_us + 100_000
    assert first.ended.ended_us == first.mark.heard_until_us
    assert first.frames == 2
    (rejected,) = stage.stored.rejected
    assert (rejected.exchange, rejected.market, rejected.frame) == ("venue", "BTC-KRW", b"frame 3")
    assert rejected.received_us == stage.clock.wall_us()
    assert rejected.reason
    assert len(stage.log.of("rejected")) == 1

    stage.hear(book({10: 2, 9: 1}))
    second = stage.stored.last
    assert second is not first
    assert second.keyframes == [1]
    assert sides(second) == ({Decimal(10): Decimal(2), Decimal(9): Decimal(1)}, {Decimal(11): Decimal(1)})
    assert stage.counts["rejected"] == 1


def test_our_own_mistake_is_logged_with_its_traceback() -> None:
    stage = Stage()
    stage.hear(fails=KeyError("x"))
    assert "KeyError" in stage.log.of("parse_failed")[0]["stack"]


def test_a_frame_nobody_can_place_ends_the_coverage_of_the_whole_connection() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    stage.hear(book())
    stage.hear(book(market="ETH-KRW"))
    stage.hear(fails=BadFrame("whose?"))
    assert stage.stored.reasons == ["rejected", "rejected"]
    assert stage.stored.rejected[0].market is None


def test_a_frame_whose_market_is_known_ends_the_coverage_of_that_feed_only() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    stage.hear(book())
    stage.hear(book(market="ETH-KRW"))
    stage.hear(book({10: -1}, market="ETH-KRW"))
    assert [epoch.reason for epoch in stage.stored.of("BTC-KRW")] == [None]
    assert [epoch.reason for epoch in stage.stored.of("ETH-KRW")] == ["rejected"]
    assert stage.stored.rejected[0].market == "ETH-KRW"
    stage.hear(book({10: 2}))
    assert len(stage.stored.of("BTC-KRW")[0].rows) == 2


def test_a_frame_is_rejected_as_a_whole_and_opens_no_epoch_with_its_good_half() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    stage.hear(book(), book({10: -1}, market="ETH-KRW"))
    assert not stage.stored.epochs
    stage.hear(book({10: 2}), book(market="ETH-KRW"))
    assert sides(stage.stored.of("BTC-KRW")[0])[0] == {Decimal(10): Decimal(2)}
    assert stage.counts["rejected"] == 1


def test_the_good_half_of_a_rejected_frame_is_in_no_book() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    stage.hear(book(), book(market="ETH-KRW"))
    stage.hear(book({10: 2}), book({10: -1}, market="ETH-KRW"))
    stage.hear(book({10: 3}), book({10: 3}, market="ETH-KRW"))
    for market in ("BTC-KRW", "ETH-KRW"):
        first, second = stage.stored.of(market)
        assert sides(first)[0] == {Decimal(10): Decimal(1)}
        assert sides(second)[0] == {Decimal(10): Decimal(3)}


@pytest.mark.parametrize("step_s", [-3600, 3600, -2, 86_400])
def test_a_stepped_clock_begins_every_epoch_anew_with_all_of_the_book(step_s: int) -> None:
    """The mutation that must make this fail: look at no clock in `tick`."""
    stage = Stage(Changing, "BTC-KRW", "ETH-KRW")
    stage.hear(book({10: 1, 9: 1}, sequence=1))
    stage.clock.step_wall(step_s)
    stage.tick()
    assert stage.log.of("clock_step") == [{"seconds": float(step_s)}]
    first, second = stage.stored.of("BTC-KRW")
    assert first.reason == "clock"
    assert first.ended is not None
    assert first.ended.ended_us == NOON_US + 100_000, "when it was last heard, by the clock as it was"
    assert second.opened.opened_us == stage.clock.wall_us()
    assert (second.rows[0].at_us, second.rows[0].lag_us, second.rows[0].sequence) == (0, None, 1)
    assert sides(second)[0] == {Decimal(10): Decimal(1), Decimal(9): Decimal(1)}
    stage.hear(change({10: 3}, sequence=3), after=7)
    assert second.rows[1].at_us == 7_000_000
    assert sides(second)[0] == {Decimal(10): Decimal(3), Decimal(9): Decimal(1)}
    assert not stage.stored.of("ETH-KRW"), "what had no book gets none by it"
    assert stage.counts["stored"] == 2


def test_what_a_stepped_clock_began_anew_is_confirmed_by_nothing_but_data() -> None:
    """The mutation that must make this fail: count the frames of the epoch before."""
    stage = Stage()
    stage.hear(book())
    stage.clock.step_wall(3600)
    stage.tick()
    opened_us = stage.stored.last.opened.opened_us
    stage.controller._heard_at_us = stage.clock.advance(5)
    stage.tick()
    mark = stage.stored.last.mark
    assert mark is not None
    assert (mark.confirmed_until_us, mark.frames) == (opened_us, 0)
    assert mark.heard_until_us == opened_us + 5_000_000
    stage.hear(book({10: 2}))
    assert stage.stored.last.frames == 1
    assert len(stage.stored.last.rows) == 2


def test_what_was_in_doubt_when_the_clock_was_set_waits_for_data() -> None:
    """The mutation that must make this fail: carry over what is doubted, too."""
    stage = Stage()
    stage.hear(book())
    stage.controller.books["BTC-KRW"].doubted = True
    stage.clock.step_wall(3600)
    stage.tick()
    assert stage.stored.reasons == ["clock"]
    stage.hear(book({10: 2}))
    assert stage.stored.reasons == ["clock", None]


def test_a_polled_book_begins_anew_with_its_next_answer() -> None:
    stage = Stage(Polled)
    stage.hear(book())
    stage.clock.step_wall(3600)
    stage.tick()
    assert stage.stored.reasons == ["clock"]


def test_a_clock_that_is_adjusted_by_less_than_a_second_breaks_nothing() -> None:
    stage = Stage()
    stage.hear(book())
    stage.clock.step_wall(0.9)
    stage.tick()
    stage.hear(book({10: 2}))
    assert len(stage.stored.only.rows) == 2
    assert stage.stored.only.rows[1].at_us == 1_100_000


def test_a_lost_connection_forgets_the_book() -> None:
    stage = Stage()
    stage.hear(book())
    stage.end("disconnect")
    assert stage.stored.reasons == ["disconnect"]
    stage.hear(book())
    assert stage.stored.last.keyframes == [1]
    assert len(stage.stored.epochs) == 2
    stage.end()
    stage.end()
    assert stage.stored.reasons == ["disconnect", "stop"]


def test_a_gap_is_told_with_its_reason_and_its_length() -> None:
    stage = Stage()
    stage.hear(book())
    stage.tick()
    stage.end("disconnect")
    stage.hear(book(), after=7.5)
    assert stage.log.of("collect_start") == [
        {"market": "BTC-KRW"},
        {"market": "BTC-KRW", "after_s": pytest.approx(8.5), "reason": "disconnect"},
    ]
    labels = {"exchange": "venue", "market": "BTC-KRW", "channel": "orderbook", "reason": "disconnect"}
    assert counted(stage.setup, "uncovered_seconds_total", **labels) == pytest.approx(8.5)
    assert counted(stage.setup, "epochs_total", exchange="venue", reason="disconnect") == 1


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_marks_move_with_the_data_and_count_every_data_frame() -> None:
    stage = Stage()
    stage.hear(book())
    stage.hear(book({10: 2}))
    stage.hear(book({10: 2}))
    epoch = stage.stored.only
    assert epoch.mark is not None
    assert (epoch.mark.frames, epoch.mark.confirmed_until_us) == (2, epoch.opened.opened_us + 100_000)
    stage.hear(book({10: 3}))
    assert (epoch.mark.frames, epoch.mark.confirmed_until_us) == (4, epoch.opened.opened_us + 300_000)


def test_a_heartbeat_proves_the_connection_but_confirms_no_data() -> None:
    stage = Stage()
    stage.hear(book())
    stage.hear(after=5)
    stage.tick()
    mark = stage.stored.only.mark
    assert mark is not None
    opened_us = stage.stored.only.opened.opened_us
    assert (mark.heard_until_us, mark.confirmed_until_us, mark.frames) == (opened_us + 5_000_000, opened_us, 1)


def test_marks_are_written_once_a_second_at_the_most_and_not_without_news() -> None:
    stage = Stage()
    stage.hear(book())
    for _ in range(12):
        stage.hear(after=0.05)
        stage.tick(after=0.05)
    before = len(stage.stored.deliveries)
    assert before == 2
    for _ in range(10):
        stage.tick()
    assert len(stage.stored.deliveries) == before + 1, "the last frame is told once, silence is not told"


def test_a_stop_ends_coverage_where_the_connection_was_last_heard() -> None:
    stage = Stage()
    stage.hear(book())
    stage.hear(after=5)
    stage.end("stop")
    epoch = stage.stored.only
    assert epoch.ended is not None
    assert epoch.ended.ended_us == epoch.opened.opened_us + 5_000_000


@pytest.mark.parametrize("reason", ["stale", "probe", "checksum", "rejected"])
def test_doubt_ends_coverage_where_data_was_last_confirmed(reason: str) -> None:
    stage = Stage()
    stage.hear(book())
    stage.hear(after=5)
    stage.tick()
    stage.end(reason)
    epoch = stage.stored.only
    assert epoch.ended is not None
    assert epoch.mark is not None
    assert epoch.ended.ended_us == epoch.mark.heard_until_us == epoch.opened.opened_us


# --- numbers of books -------------------------------------------------------------------------------------------------


def test_a_book_whose_number_does_not_rise_is_a_repeat_even_if_it_differs() -> None:
    stage = Stage(Rising)
    stage.hear(book({10: 1}, sequence=5))
    stage.hear(book({10: 2}, sequence=5))
    stage.hear(book({10: 3}, sequence=4))
    stage.hear(book({10: 4}, sequence=6))
    assert [row.sequence for row in stage.stored.only.rows] == [5, 6]
    assert stage.stored.only.frames == 4
    stage.end("disconnect")
    stage.hear(book({10: 4}, sequence=6))
    assert stage.stored.last.rows[0].sequence == 6, "a new connection may repeat the book"


def test_where_numbers_need_not_rise_the_newest_book_counts() -> None:
    stage = Stage()
    stage.hear(book({10: 1}, sequence=5))
    stage.hear(book({10: 2}, sequence=3))
    assert sides(stage.stored.only)[0] == {Decimal(10): Decimal(2)}


# --- books that come as changes ---------------------------------------------------------------------------------------


def test_changes_before_the_complete_book_are_held_back_and_those_in_it_are_skipped() -> None:
    stage = Stage(Changing)
    stage.hear(change({9: 5}, sequence=3))
    stage.hear(change({8: 5}, sequence=5))
    stage.hear(change({7: 5}, sequence=6))
    assert not stage.stored.epochs
    stage.hear(book({10: 1}, sequence=5))
    epoch = stage.stored.only
    assert [row.sequence for row in epoch.rows] == [5, 6]
    assert sides(epoch)[0] == {Decimal(10): Decimal(1), Decimal(7): Decimal(5)}
    assert stage.counts["received"] == 4


def test_a_change_with_the_number_of_the_complete_book_is_in_it_already() -> None:
    stage = Stage(Changing)
    stage.hear(book({10: 1, 9: 1}, sequence=5))
    stage.hear(change({9: 0}, sequence=5))
    stage.hear(change({10: 0}, sequence=4))
    assert len(stage.stored.only.rows) == 1
    assert stage.counts["duplicate"] == 2
    stage.hear(change({9: 0}, sequence=6))
    assert sides(stage.stored.only)[0] == {Decimal(10): Decimal(1)}


def test_deleting_what_is_not_there_changes_nothing() -> None:
    stage = Stage(Changing)
    stage.hear(book(sequence=5))
    stage.hear(change({3: 0}, sequence=6))
    assert len(stage.stored.only.rows) == 1
    assert stage.counts["duplicate"] == 1


def test_a_bad_change_that_was_held_back_opens_no_epoch() -> None:
    stage = Stage(Changing)
    stage.hear(change({9: -1}, sequence=6))
    stage.hear(book(sequence=5))
    assert not stage.stored.epochs
    assert len(stage.stored.rejected) == 1
    stage.hear(book(sequence=7))
    assert stage.stored.only.rows[0].sequence == 7


def test_changes_are_not_held_back_for_ever() -> None:
    stage = Stage(Changing)
    many = [change({9: number}, sequence=number) for number in range(1, 10_001)]
    stage.hear(*many)
    assert not stage.stored.rejected
    stage.hear(change({9: 1}, sequence=10_001))
    assert "came before a complete book" in stage.stored.rejected[0].reason
    stage.hear(book(sequence=10_002))
    assert len(stage.stored.only.rows) == 1


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Script, Changing])
def test_a_full_intake_ends_coverage_and_the_next_epoch_opens_with_the_book_as_it_is(cls: type[Script]) -> None:
    stage = Stage(cls)
    limit = stage.setup.intake.limit_bytes
    stage.hear(book({10: 1, 9: 1}, sequence=1))
    stage.hear(change({10: 2}, sequence=2))
    stage.setup.intake.limit_bytes = 0
    stage.hear(change({10: 3}, sequence=3))
    stage.hear(change({8: 3}, sequence=4))
    first = stage.stored.only
    assert (first.reason, first.frames) == ("no_space", 1 if cls.changes_only else 2)
    assert first.ended is not None
    assert first.mark is not None
    assert first.ended.ended_us >= first.mark.confirmed_until_us
    stage.setup.intake.limit_bytes = limit
    stage.hear(change({9: 0}, sequence=5))
    second = stage.stored.last
    assert second is not first
    assert second.keyframes == [1]
    assert sides(second)[0] == {Decimal(10): Decimal(3), Decimal(8): Decimal(3)}
    assert stage.counts["dropped"] == 2
    assert counted(stage.setup, "epochs_total", exchange="venue", reason="no_space") == 1
    assert stage.log.of("no_space")


def test_an_epoch_that_was_opened_without_room_is_never_spoken_of() -> None:
    stage = Stage()
    limit, stage.setup.intake.limit_bytes = stage.setup.intake.limit_bytes, 0
    stage.hear(book({10: 1}))
    stage.hear(book({10: 2}))
    stage.tick()
    stage.end("disconnect")
    assert not stage.stored.epochs
    stage.setup.intake.limit_bytes = limit
    stage.hear(book({10: 3}))
    assert stage.stored.only.reason is None
    assert stage.counts["dropped"] == 2


def test_an_end_that_finds_no_room_is_told_all_the_same() -> None:
    stage = Stage()
    stage.hear(book())
    stage.setup.intake.limit_bytes = 0
    stage.end("disconnect")
    assert stage.stored.reasons == ["no_space"]


def test_a_feed_that_dropped_nothing_stays_covered() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW")
    limit = stage.setup.intake.limit_bytes
    stage.hear(book())
    stage.hear(book(market="ETH-KRW"))
    stage.setup.intake.limit_bytes = 0
    stage.hear(book({10: 2}))
    stage.setup.intake.limit_bytes = limit
    stage.hear(book({10: 2}, market="ETH-KRW"))
    assert [epoch.reason for epoch in stage.stored.of("BTC-KRW")] == ["no_space"]
    assert [epoch.reason for epoch in stage.stored.of("ETH-KRW")] == [None]
    assert len(stage.stored.of("ETH-KRW")[0].rows) == 2


def test_an_abandoned_controller_hands_nothing_over_any_more() -> None:
    stage = Stage()
    stage.hear(book())
    stage.controller.abandon()
    stage.hear(book({10: 2}))
    stage.hear(book({10: 3}))
    assert stage.stored.reasons == ["superseded"]
    assert len(stage.stored.only.rows) == 1
    assert stage.counts["dropped"] == 2


# --- doubt ------------------------------------------------------------------------------------------------------------


def test_complete_books_after_a_doubtful_silence_start_a_new_epoch() -> None:
    stage = Stage()
    stage.hear(book())
    stage.controller.books["BTC-KRW"].doubted = True
    stage.hear(book(), after=20)
    first, second = stage.stored.epochs.values()
    assert first.reason == "stale"
    assert first.ended is not None
    assert first.ended.ended_us == first.opened.opened_us
    assert second.keyframes == [1]
    stage.hear(book({10: 2}))
    assert len(second.rows) == 2
    assert stage.counts["stored"] == 3


def test_changes_after_a_doubtful_silence_need_a_new_connection() -> None:
    stage = Stage(Changing)
    stage.hear(book(sequence=1))
    stage.controller.books["BTC-KRW"].doubted = True
    with pytest.raises(StaleConnection):
        stage.hear(change({9: 1}, sequence=2), after=20)
    assert stage.stored.reasons == ["stale"]
    assert stage.counts["dropped"] == 1


# --- for others -------------------------------------------------------------------------------------------------------


def test_the_state_of_each_feed_can_be_read() -> None:
    stage = Stage(Script, "BTC-KRW", "ETH-KRW", "XRP-KRW")
    stage.hear(book({"1.5E1": 1}, {16: 1}, venue_us=stage.clock.wall_us()))
    stage.controller.books["ETH-KRW"].refused = "no such market"
    stage.clock.advance(2)
    first, second, third = stage.controller.status()
    assert first == {
        "exchange": "venue", "market": "BTC-KRW", "channel": "orderbook", "transport": "websocket", "state": "live",
        "detail": "", "frames": 1, "gaps": 0, "age_s": 2.0, "lag_s": 0.1, "bid": "15", "ask": "16", "generation": 1,
        "last": None,
    }  # fmt: skip
    assert (second["state"], second["detail"], second["age_s"], second["bid"]) == (
        "refused", "no such market", None, None,
    )  # fmt: skip
    assert third["state"] == "down"
    stage.controller.connected = True
    assert stage.controller.status()[2]["state"] == "waiting"
    stage.end("disconnect")
    assert (stage.controller.status()[0]["detail"], stage.controller.status()[0]["gaps"]) == ("disconnect", 1)


def test_a_controller_is_named_after_what_it_carries() -> None:
    assert Stage().controller.name == "venue/BTC-KRW"
    assert Stage(Script, "BTC-KRW", "ETH-KRW", "XRP-KRW").controller.name == "venue/BTC-KRW+2"


def test_every_feed_shows_noughts_before_it_is_heard() -> None:
    stage = Stage()
    sample = stage.setup.metrics.registry.get_sample_value
    assert sample("collector_frames_total", {"exchange": "venue", "outcome": "stored"}) == 0
    assert Feed("venue", "BTC-KRW") == stage.controller.books["BTC-KRW"].key
    assert frame_counts(stage.setup, "venue")["received"] == 0


def test_the_time_of_the_newest_data_is_shown() -> None:
    stage = Stage()
    stage.hear(book())
    labels = {"exchange": "venue", "market": "BTC-KRW", "channel": "orderbook"}
    assert counted(stage.setup, "last_data_timestamp_seconds", **labels) == stage.clock.wall_us() / 1e6


def test_a_base_that_is_no_exchange_says_what_it_lacks() -> None:
    class Bare(Controller):
        exchange = "bare"
        transport = "none"

    with pytest.raises(NotImplementedError, match="Bare can't read"):
        Bare(["BTC-KRW"], make_setup()).parse(b"", 0)
    with pytest.raises(NotImplementedError, match="Bare can't list"):
        Bare.parse_listing(b"")


# --- anything ---------------------------------------------------------------------------------------------------------


def test_whatever_happens_the_sums_close_and_every_book_can_be_rebuilt() -> None:
    """Play random days: every epoch must account for exactly the data frames heard while it was open."""
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    levels = st.dictionaries(st.integers(7, 14), st.integers(0, 3), max_size=5)
    acts = st.one_of(
        st.tuples(st.just("book"), levels, levels, st.sampled_from(["BTC-KRW", "ETH-KRW"])),
        st.tuples(st.just("change"), levels, levels, st.sampled_from(["BTC-KRW", "ETH-KRW"])),
        st.sampled_from(
            [("both",), ("bad",), ("worse",), ("nothing",), ("tick",), ("clock",), ("full",), ("room",), ("lost",),
             ("midnight",)]
        ),
    )  # fmt: skip

    @settings(max_examples=150)
    @given(st.sampled_from([Script, Changing, Rising, Polled]), st.lists(acts, max_size=25), st.booleans())
    def check(cls: type[Script], day: list[Any], full_books: bool) -> None:
        stage = Stage(cls, "BTC-KRW", "ETH-KRW", full_books=full_books)
        limit = stage.setup.intake.limit_bytes
        truth: dict[str, dict[str, dict[int, int]] | None] = {"BTC-KRW": None, "ETH-KRW": None}
        for number, act in enumerate(day):
            match act:
                case ("book", bids, asks, market):
                    stage.hear(book(bids, asks, market, sequence=number))
                    truth[market] = {"bids": dict(bids), "asks": dict(asks)}
                case ("change", bids, asks, market):
                    stage.hear(change(bids, asks, market, sequence=number))
                    known = truth[market]
                    if known is not None:
                        known["bids"] |= bids
                        known["asks"] |= asks
                case ("both",):
                    stage.hear(*(book({10: number + 1}, {12: 1}, market, sequence=number) for market in truth))
                    truth = {market: {"bids": {10: number + 1}, "asks": {12: 1}} for market in truth}
                case ("bad",):
                    stage.hear(fails=BadFrame("?"))
                    truth = dict.fromkeys(truth)
                case ("worse",):
                    stage.hear(book({9: 1}, sequence=number), book({9: -1}, market="ETH-KRW", sequence=number))
                    truth = dict.fromkeys(truth)
                case ("nothing",):
                    stage.hear()
                case ("tick",):
                    stage.tick()
                case ("clock",):
                    stage.clock.step_wall(-5)
                    stage.tick()
                case ("full",):
                    stage.setup.intake.limit_bytes = 0
                case ("room",):
                    stage.setup.intake.limit_bytes = limit
                case ("lost",):
                    stage.end("disconnect")
                    truth = dict.fromkeys(truth)
                case ("midnight",):
                    stage.clock.advance(DAY_S)
            for market, feed in stage.controller.books.items():
                if feed.epoch:
                    known = truth[market]
                    assert known is not None
                    standing = tuple(
                        {Decimal(price): Decimal(size) for price, size in known[side].items() if size}
                        for side in ("bids", "asks")
                    )
                    assert sides(stage.stored.epochs[feed.epoch]) == standing
        stage.setup.intake.limit_bytes = limit
        stage.end()
        assert all(epoch.reason for epoch in stage.stored.epochs.values())
        stepped = ("clock",) in day
        assert all(epoch.frames >= 1 or cls.changes_only or stepped for epoch in stage.stored.epochs.values())
        stage.counts  # noqa: B018  (it compares the sums)

    check()


def test_a_source_error_of_any_kind_is_kept_raw() -> None:
    stage = Stage()
    stage.hear(fails=SourceError("odd"))
    assert stage.stored.rejected[0].reason == "odd"


def test_a_reason_that_is_no_text_does_not_make_a_batch_that_nothing_can_store() -> None:
    stage = Stage()
    stage.hear(fails=SourceError("half of \ud83d"))
    assert stage.stored.rejected[0].reason == "half of \\ud83d"
