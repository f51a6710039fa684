"""The exchange's clock and our own: what is learned of the one, and steps of the other that disturb nothing."""

from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from collector.clock import OFFSET_SAMPLES_MIN
from controllers.fetch import date_us
from controllers.frames import PONG
from tests.controllers.test_base import Stage, book
from tests.controllers.test_doubts import BOOK, Changing, Played, Steps, flowing
from tests.controllers.test_doubts import Stage as Connected
from tests.controllers.test_rest import Stage as Polling
from tests.fakes import NOON_US, counted

Connect = Callable[..., Connected]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def build(cls: type[Played] = Played, *markets: str, **options: Any) -> Connected:
        return Connected(monkeypatch, cls, *markets, **options)

    return build


def offset(scene: Any, source: str = "data") -> float | None:
    labels = {"exchange": "venue", "source": source}
    value: float | None = scene.setup.metrics.registry.get_sample_value("collector_clock_offset_seconds", labels)
    return value


# --- the exchange's clock ---------------------------------------------------------------------------------------------


def test_the_times_of_books_tell_how_far_the_clocks_are_apart() -> None:
    """The mutation that must make this fail: leave `venue_time` out of `flush`."""
    stage = Stage()
    for number in range(OFFSET_SAMPLES_MIN + 5):
        stage.hear(book({10: number + 1}, venue_us=stage.clock.wall_us() + 100_000 - 250_000))
    assert offset(stage) == 0.25
    assert counted(stage.setup, "venue_time_ahead_total", exchange="venue") == 0


def test_a_first_book_that_stood_for_hours_tells_nothing() -> None:
    """The mutation that must make this fail: take the first row of an epoch as well."""
    stage = Stage()
    for _ in range(2 * OFFSET_SAMPLES_MIN):
        stage.hear(book(venue_us=NOON_US - 3600 * 10**6))
        stage.end()
    assert offset(stage) is None


@pytest.mark.parametrize(("ahead_s", "counts"), [(0.9, 0), (1.1, 1), (86_400, 1)])
def test_a_time_from_the_future_is_counted_and_stored_as_sent(ahead_s: float, counts: int) -> None:
    """The mutation that must make this fail: a bound of nought, or none."""
    stage = Stage()
    venue_us = stage.clock.wall_us() + 100_000 + round(ahead_s * 1e6)
    stage.hear(book(venue_us=venue_us))
    assert counted(stage.setup, "venue_time_ahead_total", exchange="venue") == counts
    epoch = stage.stored.only
    assert epoch.rows[0].lag_us is not None
    assert epoch.opened.opened_us + epoch.rows[0].at_us - epoch.rows[0].lag_us == venue_us


def test_a_step_of_our_own_clock_begins_the_estimate_anew() -> None:
    """The mutation that must make this fail: leave `clock_was_set` out of `tick`."""
    stage = Stage()
    for number in range(100):
        stage.hear(book({10: number + 1}, venue_us=stage.clock.wall_us() + 100_000))
    assert offset(stage) == 0
    stage.clock.step_wall(3600)
    stage.tick()
    for number in range(OFFSET_SAMPLES_MIN):
        stage.hear(book({10: number + 1}, venue_us=stage.clock.wall_us() + 100_000 - 3_600_000_000))
    assert offset(stage) == 3600


def test_the_dates_of_answers_tell_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: `dated` that looks at no header."""
    scene = Polling(monkeypatch)
    answers = []
    for number in range(200):
        second = (NOON_US + 10_000 + number * 100_000) // 1_000_000 - 5
        body = b'{"bids":{"10":%d},"asks":{}}' % (number + 1)
        answers.append((200, {"Date": formatdate(second, usegmt=True)}, body))
    scene.play(*answers)
    found = offset(scene, "http")
    assert found is not None
    assert 5 <= found <= 5.1, "the first answer of each second"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Sat, 21 Nov 2026 07:00:00 GMT", 1_795_244_400),
        ("Sat, 21 Nov 2026 16:00:00 +0900", 1_795_244_400),
        ("yesterday", None),
        ("", None),
        ("Sat, 99 Nov 2026 07:00:00 GMT", None),
        ("Sat, 21 Nov 99999 07:00:00 GMT", None),
    ],
)
def test_a_date_is_read_or_is_none(header: str, seconds: int | None) -> None:
    assert date_us(header) == (None if seconds is None else seconds * 1_000_000)


# --- our own clock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_neither_stalls_nor_fires_anything_on_a_busy_connection(connect: Connect, step_s: int) -> None:
    """The mutation that must make this fail: the wall clock in place of the monotonic one in `_listen`."""
    scene = connect(Played, stale_s=15)

    def steps() -> Steps:
        for number in range(120):
            if number % 20 == 10:
                scene.clock.step_wall(step_s)
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)

    scene.play(steps())
    assert not scene.rest.asked
    assert scene.stored.reasons == ["clock"] * 6 + ["stop"]
    assert sum(epoch.frames for epoch in scene.stored.epochs.values()) == 120, "every message is accounted for, once"
    assert not scene.log.of("ws_error")


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_quiet_feed_is_doubted_when_it_would_have_been(connect: Connect, step_s: int) -> None:
    """The mutation that must make this fail: count silence from the epoch that a step began."""
    scene = connect()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([BOOK] * 50)
        for _ in range(20):
            yield from scene.chatter(3)
            scene.clock.step_wall(step_s)
        yield from scene.chatter(3)

    scene.play(steps())
    assert scene.seconds[0] == 11
    assert all(34 <= second <= 40 for second in scene.seconds[1:]), "an answer that a step has overtaken is asked again"
    assert scene.stored.reasons == ["clock"] * 20 + ["stop"]


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_book_kept_from_changes_goes_on_and_is_compared_again_soon(connect: Connect, step_s: int) -> None:
    scene = connect(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for number, arrived in enumerate(flowing(scene, 60)):
            if number == 30:
                scene.clock.step_wall(step_s)
            yield arrived

    scene.play(steps())
    assert scene.stored.reasons == ["clock", "stop"]
    first, second = scene.stored.epochs.values()
    assert second.mark is not None
    assert second.mark.frames > 15, "compared soon after"
    assert scene.probes().keys() == {"agreed"}
    assert first.frames + second.frames < 60


@pytest.mark.parametrize("step_s", [-3600, 3600])
def test_a_step_while_a_connection_waits_for_its_turn_is_no_step_of_its_epochs(connect: Connect, step_s: int) -> None:
    """The mutation that must make this fail: `anchor` before the connection is made."""
    scene = connect()
    take = scene.setup.budget.wait

    def waits(*arguments: Any, **options: Any) -> bool:
        scene.clock.step_wall(step_s)
        return take(*arguments, **options)

    scene.setup.budget.wait = waits  # type: ignore[method-assign]

    def steps() -> Steps:
        yield scene.frame(BOOK)
        for _ in range(5):
            scene.clock.advance(1)
            yield [(PONG, b"")]

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]
    assert scene.stored.only.opened.opened_us == NOON_US + step_s * 10**6 + 100_000
