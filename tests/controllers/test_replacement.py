"""What the supervisor asks before one generation of a controller takes over from another."""

from collections.abc import Callable
from typing import Any

import pytest

from controllers.bithumb import BithumbREST
from controllers.gopax import Gopax
from controllers.upbit import Upbit
from tests.controllers.test_doubts import BOOK, Changing, Played, Stage, Steps, flowing
from tests.controllers.venue import make
from tests.fakes import make_setup

Build = Callable[..., Stage]


class Aging(Played):
    """An exchange that closes every connection after a day."""

    connection_age_s = 86_400.0


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(cls: type[Played] = Played, *markets: str, **options: Any) -> Stage:
        return Stage(monkeypatch, cls, *markets, **options)

    return build


def due_after_s(scene: Stage) -> float:
    """Return how old the connection is when the controller asks to be replaced."""
    ages: list[float] = []

    def steps() -> Steps:
        began_us = scene.clock.monotonic_us()
        assert not scene.controller.due_for_replacement()
        for _ in range(200):
            scene.clock.advance(500)
            yield scene.frame(BOOK)
            if scene.controller.due_for_replacement():
                ages.append((scene.clock.monotonic_us() - began_us) / 1e6)
                return

    scene.play(steps())
    assert not scene.controller.due_for_replacement(), "what is not connected has no age"
    return ages[0]


def test_a_connection_is_replaced_before_the_exchange_closes_it(stage: Build) -> None:
    """The mutation that must make this fail: compare with the age itself, not with a share of it."""
    assert 0.9 * 86_400 <= due_after_s(stage(Aging)) < 86_400


def test_connections_made_together_are_not_replaced_together(stage: Build) -> None:
    """The mutation that must make this fail: the same share for every connection."""
    shares = {stage(Aging).controller._replace_us for _ in range(20)}
    assert len(shares) > 10


def test_the_configuration_may_say_another_age(stage: Build) -> None:
    assert 36_000 <= due_after_s(stage(Aging, connection_age_s=40_000)) < 40_000
    assert 36_000 <= due_after_s(stage(Played, connection_age_s=40_000)) < 40_000


def test_an_exchange_that_names_no_age_is_never_left_on_purpose(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        scene.clock.advance(10 * 86_400)
        yield scene.frame(BOOK)
        assert not scene.controller.due_for_replacement()

    scene.play(steps())
    assert Gopax.connection_age_s == 86_400
    assert Upbit.connection_age_s is None
    assert not make(BithumbREST).due_for_replacement()


def test_a_connection_is_settled_when_every_feed_has_its_book_or_was_refused(stage: Build) -> None:
    """The mutation that must make this fail: `any` in place of `all` in `settled`."""
    scene = stage(Played, "BTC-KRW", "ETH-KRW", "NOPE-KRW")
    seen = [scene.controller.settled]

    def steps() -> Steps:
        for body in (BOOK, {"refused": "no", "market": "NOPE-KRW"}, {**BOOK, "market": "ETH-KRW"}):
            yield scene.frame(body)
            seen.append(scene.controller.settled)
        yield []

    scene.play(steps())
    assert [*seen, scene.controller.settled] == [False, False, False, True, False]


def test_a_book_kept_from_changes_is_settled_when_the_one_it_replaces_was_compared_since(stage: Build) -> None:
    """The mutation that must make this fail: call it settled with its first book, as complete ones are."""
    scene = stage(Changing, probe_interval_s=20)
    settled_at: list[int] = []

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for second, arrived in enumerate(flowing(scene, 60)):
            if scene.controller.settled:
                settled_at.append(second)
            yield arrived

    scene.play(steps())
    assert 20 < settled_at[0] <= 30


def test_a_poller_is_settled_with_its_first_answer() -> None:
    setup = make_setup()
    poller = make(BithumbREST, setup=setup)
    poller.anchor()
    seen = [poller.settled]
    unit = b'{"ask_price":2,"bid_price":1,"ask_size":1,"bid_size":1}'
    poller.handle(b'[{"market":"KRW-BTC","timestamp":1,"orderbook_units":[%s]}]' % unit, setup.clock.monotonic_us())
    assert [*seen, poller.settled] == [False, True]


def test_what_another_takes_over_ends_with_that_reason(stage: Build) -> None:
    """The mutation that must make this fail: end the epochs with `stop` whatever `stop_reason` says."""
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK)
        scene.controller.stop_reason = "superseded"

    scene.play(steps())
    assert scene.stored.reasons == ["superseded"]
