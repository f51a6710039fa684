"""Stalls: what a feed has taught of itself, markets that never spoke, comparisons that can't be had, fresh books."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.errors import StaleConnection, VenueRefused
from collector.records import Feed
from controllers.bithumb import BithumbWebSocket
from controllers.frames import TEXT
from controllers.gopax import Gopax
from controllers.silence import KnownSilences
from controllers.upbit import Upbit
from tests.controllers.test_doubts import BOOK, OTHER, Blind, Changing, Played, Stage, Steps
from tests.fakes import HeardLog, counted

Build = Callable[..., Stage]


class Renewing(Blind):
    """As Bithumb's socket: no REST book equals ours, and subscribing again brings a fresh one."""

    sends_books_again = True


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(cls: type[Played] = Played, *markets: str, **options: Any) -> Stage:
        return Stage(monkeypatch, cls, *markets, **options)

    return build


def outcomes(scene: Stage) -> dict[str, int]:
    """Return every outcome of a comparison, and how often it came."""
    names = ("agreed", "differed", "failed", "skipped", "trades", "empty")
    found = {name: int(counted(scene.setup, "probes_total", exchange="venue", outcome=name)) for name in names}
    return {name: count for name, count in found.items() if count}


def speaking(scene: Stage, *silences_s: float, market: str = "BTC-KRW") -> Steps:
    """A different book after each of these silences, heartbeats in between."""
    for number, silence_s in enumerate(silences_s):
        for _ in range(int(silence_s)):
            scene.clock.advance(1)
            yield [(TEXT, b"{}")]
            scene.probed()
        book = {**BOOK, "bids": {"10": number % 2 + 1}, "market": market}
        scene.rest.answers.clear()
        scene.rest.answers.extend([book] * 9)
        yield scene.frame(book, after=0)


# --- learned thresholds -----------------------------------------------------------------------------------------------


def test_a_feed_is_doubted_after_the_silences_it_is_known_for(stage: Build) -> None:
    """The mutation that must make this fail: `floor_us` in place of what was learned."""
    scene = stage()

    def steps() -> Steps:
        yield from speaking(scene, 0, *[40] * 20)
        asked = len(scene.rest.asked)
        yield from scene.chatter(38)
        assert len(scene.rest.asked) == asked, "forty seconds are nothing unusual"
        yield from scene.chatter(15)
        assert len(scene.rest.asked) == asked + 1

    scene.play(steps())


def test_a_busy_feed_is_doubted_at_the_floor(stage: Build) -> None:
    """The mutation that must make this fail: `ceiling_us` in place of what was learned."""
    scene = stage()

    def steps() -> Steps:
        yield from speaking(scene, *[1] * 300)
        yield from scene.chatter(12)
        assert len(scene.rest.asked) == 1

    scene.play(steps())


@pytest.mark.parametrize(("floor_s", "ceiling_s", "asked_at_s"), [(20, 60, 21), (3, 5, 4), (100, None, 101)])
def test_floor_and_ceiling_are_settings(
    stage: Build, floor_s: float, ceiling_s: float | None, asked_at_s: float
) -> None:
    scene = stage(Played, stall={"floor_s": floor_s, "ceiling_s": ceiling_s})

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([BOOK] * 200)
        yield from scene.chatter(1000)

    scene.play(steps())
    waits = [b - a for a, b in zip([0, *scene.seconds], scene.seconds, strict=False)]
    assert waits[0] == asked_at_s
    assert max(waits) <= max(ceiling_s or 300, floor_s) + 2


def test_what_was_learned_counts_from_the_first_silence_after_a_restart(stage: Build, tmp_path: Path) -> None:
    """The mutation that must make this fail: a histogram of its own for every controller."""
    path = tmp_path / "silences.json"
    before = KnownSilences(path)
    for _ in range(50):
        before.of(Feed("venue", "BTC-KRW"), "websocket").add(100_000_000)
    before.save()
    after = KnownSilences(path)
    after.load(HeardLog())
    scene = stage(Played, silences=after)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(99)
        assert not scene.rest.asked
        scene.rest.answers.extend([BOOK])
        yield from scene.chatter(40)

    scene.play(steps())
    assert len(scene.rest.asked) == 1


def test_a_silence_that_ended_with_the_connection_teaches_nothing(stage: Build) -> None:
    """The mutation that must make this fail: `HeardFeed.connected` that does not begin anew."""
    everyone = KnownSilences()
    scene = stage(Played, silences=everyone, stall={"floor_s": 300})

    def steps() -> Steps:
        yield from speaking(scene, 0, 1, 1)
        yield from scene.chatter(60)

    for _ in range(3):
        scene.play(steps())
        scene.clock.advance(100)
    assert everyone.of(Feed("venue", "BTC-KRW"), "websocket").usual_us() < 2_000_000


# --- comparisons that can't be had ------------------------------------------------------------------------------------


def test_where_no_turn_is_free_patience_stretches_up_to_the_ceiling(stage: Build) -> None:
    """The mutation that must make this fail: doubt a feed as soon as a comparison is left out."""
    for silent_s, epochs in ((50, 1), (80, 2)):
        scene = stage(Played, stall={"ceiling_s": 60})
        scene.setup.budget.pause(3600)

        def steps(scene: Stage = scene, silent_s: int = silent_s) -> Steps:
            yield scene.frame(BOOK, after=0)
            yield from scene.chatter(silent_s)
            yield scene.frame(OTHER)

        monkey_connect(scene)
        scene.play(steps())
        assert len(scene.stored.epochs) == epochs
        assert outcomes(scene).keys() == {"skipped"}
        assert not scene.rest.asked


def monkey_connect(scene: Stage) -> None:
    """Let the controller connect in spite of a pause."""
    object.__setattr__(scene.controller.setup, "connects", type(scene.setup.budget)(1000, scene.clock))


def test_data_after_a_book_that_differed_begins_an_epoch_of_its_own(stage: Build) -> None:
    """The mutation that must make this fail: leave out `feed.doubted = True` in `_differed`."""
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([OTHER])
        while not scene.log.of("probe_differs"):
            yield from scene.chatter(1)
        yield scene.frame({**BOOK, "bids": {"10": 7}})
        yield from speaking(scene, *[1] * 20)

    scene.play(steps())
    assert scene.stored.reasons == ["stale", "stop"]
    first = scene.stored.epochs[1]
    assert first.ended is not None
    assert first.ended.ended_us == first.opened.opened_us
    assert len(scene.rest.asked) == 1, "a complete book is beyond the doubt about the one before"


# --- before the first message -----------------------------------------------------------------------------------------


def with_a_second_market(scene: Stage, seconds: int, answers: Any) -> Steps:
    """BTC-KRW speaks every second; what REST says of the other one stays the same."""
    for number in range(seconds):
        scene.rest.answers.clear()
        scene.rest.answers.extend([answers])
        yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)
        scene.probed()


def test_a_market_that_has_a_rest_book_and_sends_none_is_subscribed_to_anew(stage: Build) -> None:
    """The mutation that must make this fail: doubt only what was heard before."""
    scene = stage(Played, "BTC-KRW", "DEAD-KRW")
    lasted: list[float] = []
    for _ in range(6):
        began_us = scene.clock.monotonic_us()
        with pytest.raises(StaleConnection, match="DEAD-KRW has a REST book and none came"):
            scene.play(with_a_second_market(scene, 400, BOOK))
        lasted.append((scene.clock.monotonic_us() - began_us) / 1e6)
    assert lasted == pytest.approx([12, 22, 42, 82, 162, 302], abs=1), (
        "longer each time: the others share the connection"
    )
    assert outcomes(scene) == {"trades": 6}


@pytest.mark.parametrize(("answer", "outcome"), [(404, "failed"), ({"bids": {}, "asks": {}}, "empty")])
def test_a_market_without_a_rest_book_leaves_the_others_in_peace(stage: Build, answer: Any, outcome: str) -> None:
    """The mutation that must make this fail: subscribe anew whatever REST answers."""
    scene = stage(Played, "BTC-KRW", "NONE-KRW")
    scene.play(with_a_second_market(scene, 700, answer))
    waits = [later - before for before, later in zip(scene.seconds, scene.seconds[1:], strict=False)]
    assert waits == pytest.approx([21, 41, 81, 161, 301], abs=1), "asked for again, later each time"
    assert outcomes(scene) == {outcome: 6}
    assert scene.stored.reasons == ["stop"]
    assert scene.controller.status()[1]["state"] == "down"


def test_a_market_that_speaks_at_last_is_not_asked_about_any_more(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "LATE-KRW")

    def steps() -> Steps:
        yield from with_a_second_market(scene, 15, 404)
        yield scene.frame({**BOOK, "market": "LATE-KRW"})
        asked = len(scene.rest.asked)
        for number in range(9):
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)
        assert len(scene.rest.asked) == asked

    scene.play(steps())
    assert len(scene.stored.of("LATE-KRW")) == 1


def test_a_connection_on_which_nothing_comes_is_made_anew_without_asking_later_each_time(stage: Build) -> None:
    """The mutation that must make this fail: wait for a first message for as long as heartbeats come."""
    scene = stage()
    lasted: list[float] = []
    for _ in range(7):
        began_us = scene.clock.monotonic_us()
        with pytest.raises(StaleConnection, match="no complete book of BTC-KRW came"):
            scene.play(scene.chatter(400))
        lasted.append((scene.clock.monotonic_us() - began_us) / 1e6)
    assert lasted == [11, 21, 41, 81, 161, 301, 301]
    assert not scene.rest.asked

    def heard() -> Steps:
        yield from speaking(scene, 0, 1)

    scene.play(heard())
    began_us = scene.clock.monotonic_us()
    with pytest.raises(StaleConnection):
        scene.play(scene.chatter(400))
    assert scene.clock.monotonic_us() - began_us == 11_000_000, "once it was heard it is waited for as at first"


def test_a_comparison_of_what_was_never_heard_is_void_when_its_book_comes_meanwhile(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "LATE-KRW")
    gate = scene.rest.gate = threading.Event()

    def steps() -> Steps:
        for number in range(12):
            scene.rest.answers.clear()
            scene.rest.answers.extend([BOOK])
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=0.99 if number == 11 else 1)
        assert any(thread.name.endswith("/probe") for thread in threading.enumerate()), "it is asked about"
        yield scene.frame({**BOOK, "market": "LATE-KRW"}, after=0)
        gate.set()
        scene.probed()
        yield scene.frame({**BOOK, "bids": {"10": 99}}, after=1)

    scene.play(steps())
    assert scene.stored.of("LATE-KRW")[0].reason == "stop"


# --- fresh books on the same connection -------------------------------------------------------------------------------


def renewed(scene: Stage) -> int:
    """Return how often the subscription was sent again."""
    assert scene.connection is not None
    return len(scene.connection.sent) // len(scene.controller.markets) - 1


def test_a_fresh_book_that_equals_ours_confirms_the_silence(stage: Build) -> None:
    """The mutation that must make this fail: end the connection where there is no REST book."""
    scene = stage(Renewing)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        seen = 0
        for _ in range(400):
            yield from scene.chatter(1)
            if renewed(scene) > seen:
                seen = renewed(scene)
                yield scene.frame(BOOK, after=0)

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]
    assert 4 <= renewed(scene) <= 6, "twice as long each time"
    assert outcomes(scene) == {"agreed": renewed(scene)}
    epoch = scene.stored.only
    assert len(epoch.rows) == 1
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us > epoch.opened.opened_us + 100_000_000


def test_a_fresh_book_that_differs_begins_an_epoch_of_its_own(stage: Build) -> None:
    """The mutation that must make this fail: take it for an ordinary message."""
    scene = stage(Renewing)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(11)
        assert renewed(scene) == 1
        yield scene.frame(OTHER)
        yield scene.frame({**OTHER, "bids": {"10": 5}}, after=1)

    scene.play(steps())
    assert scene.stored.reasons == ["stale", "stop"]
    assert outcomes(scene) == {"differed": 1}
    first, second = scene.stored.epochs.values()
    assert first.ended is not None
    assert first.ended.ended_us == first.opened.opened_us
    assert len(second.rows) == 2


def test_a_fresh_book_that_does_not_come_ends_the_connection(stage: Build) -> None:
    """The mutation that must make this fail: forget that a fresh book is awaited."""
    scene = stage(Renewing)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(60)

    with pytest.raises(StaleConnection, match="a fresh book did not come"):
        scene.play(steps())
    assert scene.clock.monotonic_us() == 5_000_000 + 22_000_000
    assert scene.stored.reasons == ["stale"]


def test_a_fresh_book_that_can_not_be_understood_is_rejected(stage: Build) -> None:
    scene = stage(Renewing)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(11)
        yield scene.frame({"bids": {"10": "x"}, "asks": {}})
        yield scene.frame(BOOK)

    scene.play(steps())
    assert scene.stored.reasons == ["rejected", "stop"]


def test_a_market_that_does_not_exist_is_asked_for_again_with_the_others_in_peace(stage: Build) -> None:
    scene = stage(Renewing, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        for number in range(400):
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)

    scene.play(steps())
    assert 4 <= renewed(scene) <= 6
    assert scene.stored.reasons == ["stop"]
    assert [row["market"] for row in scene.log.of("silent")] == ["NOPE-KRW"]


def test_which_exchanges_are_asked_in_which_way() -> None:
    assert BithumbWebSocket.sends_books_again
    assert not Upbit.sends_books_again
    assert Upbit.ping_s is not None and BithumbWebSocket.ping_s is not None
    assert Gopax.ping_s is None, "its heartbeats are text"


def test_a_refused_subscription_is_no_stall(stage: Build) -> None:
    scene = stage(Changing)

    def steps() -> Steps:
        yield [(TEXT, json.dumps({"refused": "no", "market": "BTC-KRW"}).encode())]
        yield from scene.chatter(30)

    with pytest.raises(VenueRefused):
        scene.play(steps())
    assert not scene.rest.asked
