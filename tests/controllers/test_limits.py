"""What an exchange bears: one allowance for all its controllers, and a refusal that all of them heed."""

import dataclasses
from collections.abc import Callable, Iterable

import pytest

from collector.budget import BAN_S, Budget
from collector.clock import Clock
from collector.config import Exchange
from collector.errors import ConnectionLost, RateLimited, VenueRefused
from collector.records import Book, Message
from controllers import controller_class, known
from controllers.base import Controller
from controllers.bithumb import BithumbREST
from controllers.coinone import Coinone
from controllers.frames import TEXT
from controllers.upbit import Upbit
from simulator.venue import Timing
from tests.conftest import wait_until
from tests.controllers.live import Live
from tests.controllers.test_doubts import BOOK, Changing, Played, Stage, Steps, flowing
from tests.controllers.test_rest import Polled, Waits
from tests.controllers.venue import make
from tests.fakes import FakeClock, FakeRest, HeardLog, counted, frame_counts, make_setup

Start = Callable[..., Live]


class Exchanged:
    """Several controllers of one exchange on one clock and one allowance; connecting ends as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.log = HeardLog()
        self.setup = make_setup(clock=self.clock, log=self.log)
        requests, connects = Played.budgets(self.setup.options, self.clock)
        self.setup = dataclasses.replace(self.setup, budget=requests, connects=connects)
        self.rest = FakeRest(monkeypatch, self.clock)
        self.refusals: list[Exception] = []
        self.tried_at: list[float] = []
        monkeypatch.setattr("controllers.websocket.Connection", self._connect)

    def _connect(self, url: str) -> None:
        self.tried_at.append(round(self.clock.monotonic_us() / 1e6 - 5, 3))
        raise self.refusals.pop(0) if self.refusals else ConnectionLost("nobody there")

    def controller(self, cls: type[Controller] = Played) -> Controller:
        made = cls(("BTC-KRW",), self.setup)
        made.stopping = Waits(self.clock)
        return made

    def connects(self, controller: Controller) -> float:
        """Let a controller try to connect; return when it did."""
        with pytest.raises(ConnectionLost):
            controller.run_once()
        return self.tried_at[-1]


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> Exchanged:
    return Exchanged(monkeypatch)


def spacing(budget: Budget, clock: FakeClock) -> float:
    """Return how far apart the slots of a budget are."""
    clock.advance(60)
    budget.wait(Waits(clock))
    began_us = clock.monotonic_us()
    budget.wait(Waits(clock))
    return (clock.monotonic_us() - began_us) / 1e6


# --- one allowance ----------------------------------------------------------------------------------------------------


def test_every_exchange_has_its_documented_limits() -> None:
    limits = {name: (cls.budget_per_s, cls.connects_per_s) for name in known() for cls in [controller_class(name)]}
    assert limits == {
        "binance": (1.5, 0.9),
        "bithumb": (150, 10),
        "bybit": (50, 1.5),
        "coinbase": (5, 4),
        "coinone": (20, 5),
        "gopax": (0.9, 5),
        "korbit": (50, 5),
        "kraken": (1, 0.25),
        "kucoin": (20, 1),
        "okx": (10, 3),
        "upbit": (10, 5),
    }


def test_the_configuration_may_set_others() -> None:
    clock = FakeClock()
    slow = Exchange(rate={"requests_per_s": 2, "connects_per_s": 0.5})  # type: ignore[arg-type]
    requests, connects = Upbit.budgets(slow, clock)
    assert [spacing(requests, clock), spacing(connects, clock)] == [0.5, 2]
    Upbit.set_rates(Exchange(), requests, connects)
    assert [spacing(requests, clock), spacing(connects, clock)] == [0.1, 0.2]


def test_controllers_that_start_together_connect_one_after_the_other(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: connect without `connects.wait`."""
    times = [exchanged.connects(exchanged.controller()) for _ in range(10)]
    assert times == pytest.approx([number / 5 for number in range(10)])


def test_who_waits_long_for_its_turn_is_not_taken_for_stuck(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: no `meanwhile` where a connection waits for its turn."""
    exchanged.setup.budget.pause(600)
    controller = exchanged.controller()
    ages: list[int] = []
    beat = controller.beat

    def noted() -> None:
        ages.append(exchanged.clock.monotonic_us() - controller.beat_us)
        beat()

    controller.beat = noted  # type: ignore[method-assign]
    assert exchanged.connects(controller) == 600
    assert max(ages) <= 1_000_000
    assert len(ages) > 500


def test_the_wait_for_a_turn_is_no_healthy_time(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: leave `backoff.began` out of `_connect`."""
    controller = exchanged.controller()
    controller.backoff.attempt = 7
    controller.backoff.began()
    exchanged.setup.budget.pause(600)
    exchanged.connects(controller)
    controller.backoff.next_s()
    assert controller.backoff.attempt == 8


def test_a_hundred_controllers_that_start_at_once_are_never_too_fast(live: Start) -> None:
    """The mutation that must make this fail: a budget of its own for every controller."""
    stage = live("upbit", rate_hz=1, timing=Timing(connects_per_s=50))
    clock, log = Clock(), HeardLog()
    first = make_setup(clock=clock, log=log, endpoint=stage.simulator.endpoints["upbit"], rate={"connects_per_s": 50})
    requests, connects = Upbit.budgets(first.options, clock)
    setup = dataclasses.replace(first, budget=requests, connects=connects)
    controllers = [Upbit(("BTC-KRW",), setup) for _ in range(100)]
    stage.controllers += controllers
    for controller in controllers:
        controller.start()
    wait_until(lambda: all(row["state"] == "live" for one in controllers for row in one.status()), 30, "all live")
    assert not log.of("ws_error")
    assert counted(setup, "connects_total", exchange="upbit", outcome="ok") == 100
    opened = [line["time_us"] for line in stage.lines(kind="open", transport="websocket")]
    assert opened[-1] - opened[0] > 1_500_000, "a hundred at fifty a second"


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_of_one_connection_holds_back_all_others(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: leave `rate_limited` out of `_connect`."""
    exchanged.refusals.append(RateLimited("HTTP 429", 20))
    one, other = exchanged.controller(), exchanged.controller()
    with pytest.raises(RateLimited):
        one.run_once()
    assert counted(exchanged.setup, "rate_pause_seconds", exchange="venue") == 20
    assert exchanged.connects(other) == 20
    assert exchanged.log.of("rate_limited")[0]["seconds"] == 20
    assert counted(exchanged.setup, "rate_limited_total", exchange="venue") == 1
    assert counted(exchanged.setup, "rate_pause_seconds", exchange="venue") == 0


def test_a_ban_holds_them_back_for_longer(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: `_refusal` without `banned`."""
    exchanged.refusals.append(RateLimited("HTTP 418", banned=True))
    with pytest.raises(RateLimited):
        exchanged.controller().run_once()
    assert exchanged.connects(exchanged.controller()) == BAN_S


@pytest.mark.parametrize(("status", "seconds"), [(429, 1), (418, 60)])
def test_a_refused_poll_holds_back_connections_and_the_other_way_round(
    exchanged: Exchanged, status: int, seconds: float
) -> None:
    """The mutation that must make this fail: leave `rate_limited` out of `_poll_safely`."""
    poller = exchanged.controller(Polled)

    def stops() -> None:
        poller.stop()

    exchanged.rest.took_s = stops
    exchanged.rest.answers.append(status)
    poller.run_once()
    assert exchanged.connects(exchanged.controller()) == seconds

    exchanged.refusals.append(RateLimited("HTTP 429", 40))
    with pytest.raises(RateLimited):
        exchanged.controller().run_once()
    again = exchanged.controller(Polled)
    exchanged.rest.took_s = again.stop
    exchanged.rest.answers.append({"bids": {"1": 1}, "asks": {}})
    began_us = exchanged.clock.monotonic_us()
    again.run_once()
    assert exchanged.rest.asked[-1][1] - began_us == 40_000_000


def test_polls_of_several_controllers_come_from_one_allowance(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: poll without `budget.wait`."""
    for _ in range(5):
        poller = exchanged.controller(Polled)
        exchanged.rest.took_s = poller.stop
        exchanged.rest.answers.append({"bids": {"1": 1}, "asks": {}})
        poller.run_once()
    times = [at_us / 1e6 - 5 for _, at_us in exchanged.rest.asked]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_polled_book_is_not_covered_in_a_pause(exchanged: Exchanged) -> None:
    """The mutation that must make this fail: wait for a poll's turn without looking at what is too old."""
    poller = exchanged.controller(Polled)
    seen: list[bool] = []

    def paused() -> None:
        if len(exchanged.rest.asked) == 1:
            exchanged.setup.budget.pause(30)
        else:
            seen.append(bool(poller.books["BTC-KRW"].epoch))
            poller.stop()

    exchanged.rest.took_s = paused
    exchanged.rest.answers.extend([{"bids": {"1": 1}, "asks": {}}] * 2)
    poller.run_once()
    assert seen == [False]


def test_a_refused_comparison_is_left_out_and_holds_back_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: take a 429 for a book that can't be had."""
    scene = Stage(monkeypatch, Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for arrived in flowing(scene, 60):
            scene.rest.answers.clear()
            scene.rest.answers.extend([(429, {"Retry-After": "600"}, b"")])
            yield arrived

    scene.play(steps())
    assert scene.seconds == [5]
    assert scene.probes() == {}
    assert counted(scene.setup, "probes_total", exchange="venue", outcome="skipped") > 3
    assert not scene.log.of("probe_failed")
    assert scene.stored.reasons == ["stop"]


def test_a_418_at_the_handshake_is_a_ban(live: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.budget.BAN_S", 1.5)
    stage = live("coinone")
    stage.simulator.fault("status", "coinone", code=418, times=1)
    stage.start(controller_class("coinone"))
    stage.until(lambda: stage.log.of("rate_limited"))
    began_us = stage.setup.clock.wall_us()
    stage.heard(1)
    assert stage.log.of("rate_limited")[0]["seconds"] == 1.5
    assert stage.stored.only.opened.opened_us - began_us > 1_000_000


def test_where_connections_have_no_allowance_of_their_own_they_share_that_of_requests(exchanged: Exchanged) -> None:
    exchanged.setup = dataclasses.replace(exchanged.setup, connects=None)
    exchanged.setup.budget.pause(5)
    assert exchanged.connects(exchanged.controller()) == 5


# --- refusals in answers that are well otherwise ----------------------------------------------------------------------


def test_an_exchange_may_say_it_with_status_200() -> None:
    """The mutation that must make this fail: `VenueRefused` for every error of these two."""
    blocked = b'{"result":"error","error_code":"4","error_msg":"Blocked user access"}'
    with pytest.raises(RateLimited) as refused:
        make(Coinone).parse_probe("BTC-KRW", blocked)
    assert refused.value.banned
    with pytest.raises(VenueRefused):
        make(Coinone).parse_probe("BTC-KRW", blocked.replace(b'"4"', b'"108"'))
    poller = make(BithumbREST)
    for name, error in ((b"429", RateLimited), (b"404", VenueRefused)):
        with pytest.raises(error):
            poller.handle(b'{"error":{"name":%s,"message":"no"}}' % name, 6_000_000)
    poller.flush()
    assert frame_counts(poller.setup, "bithumb")["ignored"] == 2


class Talking(Played):
    """An exchange that says it in a message."""

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        if frame == b"slowly!":
            raise RateLimited("slowly!", 25)
        return super().parse(frame, received_us)

    def parse_probe(self, market: str, body: bytes) -> Book:
        if body == b"slowly!":
            raise RateLimited("slowly!", 45)
        return super().parse_probe(market, body)


def test_it_may_say_so_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: leave `rate_limited` out of `run_once`."""
    scene = Stage(monkeypatch, Talking)

    def steps() -> Steps:
        yield scene.frame(BOOK)
        yield [(TEXT, b"slowly!")]

    with pytest.raises(RateLimited):
        scene.play(steps())
    assert scene.setup.budget.paused_s == 25
    assert scene.stored.reasons == ["disconnect"]


def test_it_may_say_so_in_the_answer_to_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: let `read` raise out of `ask`."""
    scene = Stage(monkeypatch, Talking)

    def steps() -> Steps:
        yield scene.frame(BOOK)
        scene.rest.answers.extend([b"slowly!"])
        yield from scene.chatter(13)

    scene.play(steps())
    assert scene.setup.budget.paused_s > 40
    assert counted(scene.setup, "probes_total", exchange="venue", outcome="skipped") == 1
    assert not scene.probes()
