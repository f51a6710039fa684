"""Polling: the schedule on a clock that is set by hand, and the real controller against the simulator."""

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import requests

from collector.errors import BadFrame, VenueRefused
from collector.records import SAMPLED, Book, Message
from controllers.bithumb import BithumbREST
from controllers.rest import RESTController
from simulator.faults import GARBAGE
from tests.controllers.live import Live
from tests.controllers.venue import check_sums
from tests.fakes import FakeClock, FakeRest, HeardLog, Stored, counted, frame_counts, make_setup

Start = Callable[..., Live]


class Polled(RESTController):
    """An exchange whose answers are books as JSON."""

    exchange = "venue"
    rest_url = "http://venue.test"

    def request_path(self, market: str) -> str:
        return f"/book?market={market}"

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        try:
            body = json.loads(frame)
        except ValueError:
            raise BadFrame("no JSON") from None
        if "error" in body:
            raise VenueRefused(body["error"])
        if "bids" not in body:
            return ()
        return [Book(body.get("market", "BTC-KRW"), body["bids"], body["asks"])]


class Waits(threading.Event):
    """Whoever waits lets the time pass on a clock that is set by hand."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            assert timeout is not None
            assert 0 <= timeout <= 1, "whoever waits shows a sign of life once a second"
            self._clock.advance(timeout)
        return self.is_set()


class Stage:
    """A polling controller, its clock, and what REST answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *markets: str, **options: Any) -> None:
        self.clock = FakeClock()
        self.log = HeardLog()
        self.setup = make_setup(clock=self.clock, log=self.log, **{"poll_interval_s": 0.1, **options})
        self.controller = Polled(markets or ("BTC-KRW",), self.setup)
        self.controller.stopping = Waits(self.clock)
        self.stored = Stored(self.setup.intake)
        self.rest = FakeRest(monkeypatch, self.clock)

    def play(self, *answers: Any, took_s: Iterable[float] = ()) -> None:
        """Poll until the last answer is given."""
        took = iter(took_s)

        def passes() -> None:
            self.clock.advance(next(took, 0.01))
            if len(self.rest.answers) == 1:
                self.controller.stop()

        self.rest.took_s = passes
        self.rest.answers.extend(answers)
        self.controller.run_once()
        self.stored.take()

    @property
    def times(self) -> list[float]:
        """When was asked, in seconds since the start."""
        return [round(at_us / 1e6 - 5, 3) for _, at_us in self.rest.asked]


def book(size: int) -> dict[str, Any]:
    return {"bids": {"10": size}, "asks": {"11": 1}}


Build = Callable[..., Stage]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(*markets: str, **options: Any) -> Stage:
        return Stage(monkeypatch, *markets, **options)

    return build


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_the_schedule_does_not_drift(stage: Build) -> None:
    scene = stage()
    scene.play(*(book(number) for number in range(1, 1001)), took_s=[0.013, 0.07, 0.0001] * 400)
    assert scene.times == [round(number / 10, 3) for number in range(1000)]
    assert counted(scene.setup, "poll_missed_total", exchange="venue") == 0
    assert len(scene.stored.only.rows) == 1000
    assert counted(scene.setup, "poll_duration_seconds_count", exchange="venue") == 1000


def test_a_slow_answer_leaves_slots_out_and_the_rest_stays_where_it_was(stage: Build) -> None:
    scene = stage()
    scene.play(*(book(number) for number in range(1, 7)), took_s=[0.01, 0.25, 0.01, 0.19, 0.09, 0.01])
    assert scene.times == [0, 0.1, 0.4, 0.5, 0.7, 0.8]
    assert counted(scene.setup, "poll_missed_total", exchange="venue") == 2 + 1


def test_several_markets_are_asked_for_one_after_the_other(stage: Build) -> None:
    scene = stage("BTC-KRW", "ETH-KRW", endpoint={"rest": "http://proxy.test/x"})
    scene.play(book(1), {**book(1), "market": "ETH-KRW"}, book(2), {**book(2), "market": "ETH-KRW"})
    paths = [url.removeprefix("http://proxy.test/x/book?market=") for url, _ in scene.rest.asked]
    assert paths == ["BTC-KRW", "ETH-KRW", "BTC-KRW", "ETH-KRW"]
    assert scene.times == [0, 0.01, 0.1, 0.11]
    assert [len(scene.stored.of(market)[0].rows) for market in ("BTC-KRW", "ETH-KRW")] == [2, 2]


def test_a_stop_between_two_markets_asks_for_no_more(stage: Build) -> None:
    scene = stage("BTC-KRW", "ETH-KRW")
    scene.play(book(1))
    assert len(scene.rest.asked) == 1


def test_the_start_and_the_end_are_told(stage: Build) -> None:
    scene = stage(poll_interval_s=0.5)
    scene.play(book(1), book(2))
    assert scene.log.keys() == ["poll_start", "collect_start", "poll_stop"]
    assert scene.log.of("poll_start") == [{"interval_s": 0.5}]
    assert scene.stored.reasons == ["stop"]
    assert not scene.controller.connected
    assert counted(scene.setup, "connected", exchange="venue") == 0


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_equal_to_the_last_one_is_a_duplicate_and_confirms_the_feed(stage: Build) -> None:
    scene = stage()
    scene.play(*[book(1)] * 30, book(2), *[book(2)] * 10)
    epoch = scene.stored.only
    assert len(epoch.rows) == 2
    assert all(row.flags & SAMPLED for row in epoch.rows)
    assert epoch.frames == 41
    counts = check_sums(scene.setup, scene.stored, "venue", 41)
    assert (counts["stored"], counts["duplicate"]) == (2, 39)


@pytest.mark.parametrize(
    "error",
    [requests.ConnectionError("no route"), requests.Timeout("late"), 500, 404, (503, {}, b"<html>"), {"error": "no"}],
)
def test_an_error_is_logged_and_the_next_poll_goes_on(stage: Build, error: object) -> None:
    scene = stage()
    scene.play(book(1), error, error, book(2))
    assert scene.times == [0, 0.1, 0.2, 0.3]
    told = scene.log.of("poll_error")
    assert [details["market"] for details in told] == ["BTC-KRW"] * 2
    assert all(str(details["error"]) for details in told)
    assert scene.stored.reasons == ["stop"], "a second without an answer is not a gap"
    assert len(scene.stored.only.rows) == 2
    check_sums(scene.setup, scene.stored, "venue", 2 if isinstance(error, Exception) else 4)


def test_a_mistake_of_ours_is_told_with_its_traceback_and_the_next_poll_goes_on(
    stage: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = stage()
    divisors = iter([1, 0, 1])

    def path(market: str) -> str:
        return f"/{1 // next(divisors)}"

    monkeypatch.setattr(scene.controller, "request_path", path)
    scene.play(book(1), book(2))
    (told,) = scene.log.of("poll_unexpected")
    assert "ZeroDivisionError" in told["stack"]
    assert len(scene.stored.only.rows) == 2


def test_a_bad_answer_is_kept_raw_once_while_it_repeats(stage: Build) -> None:
    scene = stage()
    bad = b'{"bids":{"10":-1},"asks":{}}'
    scene.play(book(1), bad, bad, b"<html>", book(1))
    assert [rejected.frame for rejected in scene.stored.rejected] == [bad, b"<html>"]
    assert scene.stored.reasons == ["rejected", "stop"]
    assert check_sums(scene.setup, scene.stored, "venue", 5)["rejected"] == 2


def test_an_answer_without_a_book_covers_nothing(stage: Build) -> None:
    scene = stage()
    scene.play(book(1), *[{"nothing": 1}] * 30)
    epoch = scene.stored.only
    assert epoch.reason == "stale"
    assert epoch.frames == 1
    assert check_sums(scene.setup, scene.stored, "venue", 31)["ignored"] == 30


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_answers_more_than_a_second_apart_are_not_one_interval(stage: Build) -> None:
    scene = stage()
    scene.play(book(1), book(2), *[500] * 12, book(2), book(3))
    first, second = scene.stored.epochs.values()
    assert (first.reason, second.reason) == ("stale", "stop")
    assert first.ended is not None
    assert first.ended.ended_us == first.opened.opened_us + 100_000
    assert second.keyframes == [1], "the same bytes as before the gap are a book again"
    assert [row.n for row in second.rows] == [1, 2]


def test_an_answer_that_took_too_long_bridges_nothing(stage: Build) -> None:
    scene = stage()
    scene.play(book(1), book(1), book(2), took_s=[0.01, 1.5, 0.01])
    assert scene.stored.reasons == ["stale", "stop"]


def test_a_slow_rhythm_is_covered_up_to_three_of_its_intervals(stage: Build) -> None:
    scene = stage(poll_interval_s=2)
    scene.play(book(1), 500, 500, book(2))
    assert scene.stored.reasons == ["stop"]
    scene = stage(poll_interval_s=2)
    scene.play(book(1), 500, 500, 500, book(2))
    assert scene.stored.reasons == ["stale", "stop"]


def test_the_connection_is_shown_as_it_is(stage: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = stage()
    seen: list[bool] = []
    answers = [book(1), book(2), requests.ConnectionError("no"), requests.ConnectionError("no"), book(3), book(4)]
    scene.rest.took_s = lambda: seen.append(scene.controller.connected)
    scene.rest.answers.extend(answers)
    passes = scene.rest.took_s

    def stop_at_last() -> None:
        passes()
        scene.clock.advance(0.01)
        if len(scene.rest.answers) == 1:
            scene.controller.stop()

    scene.rest.took_s = stop_at_last
    scene.controller.run_once()
    assert seen == [False, True, True, False, False, True]


# --- too many requests ------------------------------------------------------------------------------------------------


def test_the_exchange_is_left_alone_for_as_long_as_it_asks(stage: Build) -> None:
    scene = stage(backoff={"base_s": 0.01, "cap_s": 0.01, "healthy_s": 60})
    scene.play(book(1), (429, {"Retry-After": "3"}, b""), book(2), book(3))
    assert scene.times[:2] == [0, 0.1]
    assert scene.times[2] >= 3.1
    assert scene.times[3] == pytest.approx(scene.times[2] + 0.1)
    assert scene.stored.reasons == ["stale", "stop"]
    assert "429" in str(scene.log.of("poll_error")[0]["error"])
    assert check_sums(scene.setup, scene.stored, "venue", 4)["ignored"] == 1


@pytest.mark.parametrize("status", [429, 418])
def test_without_a_word_it_is_left_alone_for_a_second_and_longer_each_time(stage: Build, status: int) -> None:
    scene = stage(backoff={"base_s": 1, "cap_s": 3600, "healthy_s": 60})
    scene.controller.backoff._random = lambda: 1.0
    scene.play(book(1), *[status] * 6, book(2))
    waits = [round(b - a, 1) for a, b in zip(scene.times[1:], scene.times[2:], strict=False)]
    assert all(wait >= 1 for wait in waits)
    assert waits == sorted(waits)
    assert waits[-1] > 10 * waits[0]


def test_pauses_grow_after_a_healthy_minute_too(stage: Build) -> None:
    scene = stage(backoff={"base_s": 1, "cap_s": 3600, "healthy_s": 5})
    scene.controller.backoff._random = lambda: 1.0
    scene.play(*(book(number) for number in range(1, 100)), *[429] * 4, book(2))
    waits = [round(b - a, 1) for a, b in zip(scene.times[99:], scene.times[100:], strict=False)]
    assert waits[0] < waits[1] < waits[2]


# --- the real controller ----------------------------------------------------------------------------------------------


def test_it_polls_and_records_what_was_sent(live: Start) -> None:
    stage = live("bithumb")
    controller = stage.start(BithumbREST, "BTC-KRW", "ETH-KRW", poll_interval_s=0.05)
    stage.heard(10)
    stage.heard(10, "ETH-KRW")
    assert controller.state == "running"
    assert stage.simulator.connections("bithumb") == 1, "one connection is kept alive"
    stage.stop()
    for market in ("BTC-KRW", "ETH-KRW"):
        stage.check_polled(market)
    counts = stage.counts()
    assert counts["rejected"] == counts["ignored"] == 0
    assert stage.log.keys()[0] == "poll_start"
    assert stage.log.keys()[-1] == "poll_stop"


def test_garbage_of_every_kind_is_kept_raw_and_polling_goes_on(live: Start) -> None:
    stage = live("bithumb")
    stage.start(BithumbREST, poll_interval_s=0.05)
    for number, what in enumerate(GARBAGE, 1):
        stage.heard(2)
        stage.simulator.fault("garbage", "bithumb", what=what)
        stage.until(lambda number=number: len(stage.stored.rejected) >= number, what=what)  # type: ignore[misc]
    stage.heard(2)
    stage.stop()
    assert len(stage.stored.rejected) == len(GARBAGE)
    assert stage.counts()["rejected"] == len(GARBAGE)
    assert stage.stored.reasons == ["rejected"] * len(GARBAGE) + ["stop"]


def test_a_poll_that_loses_its_connection_is_made_again(live: Start) -> None:
    stage = live("bithumb")
    stage.start(BithumbREST, poll_interval_s=0.05)
    stage.heard(2)
    stage.simulator.fault("swallow", "bithumb", times=2)
    stage.until(lambda: stage.log.of("poll_error"))
    stage.heard(5)
    stage.stop()
    stage.counts()


@pytest.mark.parametrize("fault", [{"kind": "refuse"}, {"kind": "status", "code": 500}])
def test_a_server_in_trouble_is_asked_again_and_the_gap_is_told(live: Start, fault: dict[str, Any]) -> None:
    stage = live("bithumb")
    stage.start(BithumbREST, poll_interval_s=0.05)
    stage.heard(2)
    stage.simulator.fault(exchange="bithumb", seconds=1.5, **fault)
    stage.until(lambda: stage.stored.reasons[:1] == ["stale"])
    stage.heard(2)
    assert stage.log.of("poll_error")
    stage.stop()
    stage.counts()


def test_a_429_is_obeyed(live: Start) -> None:
    stage = live("bithumb")
    stage.start(BithumbREST, poll_interval_s=0.05)
    stage.heard(2)
    stage.simulator.fault("status", "bithumb", code=429, retry_after=1, times=1)
    stage.until(lambda: stage.stored.reasons == ["stale", None])
    first, second = stage.stored.of("BTC-KRW")
    assert first.ended is not None
    assert second.opened.opened_us >= first.ended.ended_us + 1_000_000


def test_a_market_that_does_not_exist_is_an_error_at_every_poll(live: Start) -> None:
    stage = live("bithumb")
    stage.start(BithumbREST, "NOPE-KRW", poll_interval_s=0.05)
    stage.until(lambda: len(stage.log.of("poll_error")) >= 3)
    assert "404" in str(stage.log.of("poll_error")[0]["error"])
    stage.stop()
    assert not stage.stored.epochs
    assert not stage.stored.rejected


def test_a_stop_wakes_a_poller_that_waits(live: Start) -> None:
    stage = live("bithumb")
    controller = stage.start(BithumbREST, poll_interval_s=60)
    stage.heard(1)
    stage.stop()
    assert controller.state == "stopped"
    assert stage.stored.only.reason == "stop"
    assert frame_counts(stage.setup, "bithumb")["received"] == 1
