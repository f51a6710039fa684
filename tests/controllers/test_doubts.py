"""What a WebSocket controller does by the clock, on a connection that is played: keepalives, silence, doubts, probes.

The script of a connection is a generator: what it yields is received, and between two yields time passes as it says.
"""

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import requests

from collector.budget import Budget
from collector.errors import BadFrame, BookDiffers, ConnectionLost, StaleConnection, VenueRefused
from collector.records import Book, BookChange, Message, Refused, Reply
from controllers.frames import CLOSE, PING, PONG, TEXT
from controllers.silence import KnownSilences
from controllers.websocket import WSController
from tests.controllers.venue import check_sums
from tests.fakes import FakeClock, FakeRest, HeardLog, Stored, counted, make_setup

Arrived = list[tuple[int, bytes]]
Steps = Iterator[Arrived]


class Played(WSController):
    """An exchange whose frames are books as JSON, complete or changes."""

    exchange = "venue"
    url = "ws://venue.test/socket"
    rest_url = "http://venue.test"

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        return [f"subscribe {market}" for market in markets]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        try:
            body = json.loads(frame)
        except ValueError:
            raise BadFrame("no JSON") from None
        if "reply" in body:
            return [Reply(body["reply"])]
        if "refused" in body:
            return [Refused(body["refused"], body.get("market"))]
        if "bids" not in body:
            return ()
        kind = BookChange if body.get("change") else Book
        return [kind(body.get("market", "BTC-KRW"), body["bids"], body["asks"], None, body.get("sequence"))]

    def probe_path(self, market: str) -> str | None:
        return f"/book/{market}"

    def parse_probe(self, market: str, body: bytes) -> Book:
        try:
            book = json.loads(body)
        except ValueError:
            raise BadFrame("no JSON") from None
        return Book(market, book["bids"], book["asks"])


class Changing(Played):
    """As GOPAX."""

    changes_only = True


class Blind(Played):
    """An exchange without a REST book."""

    def probe_path(self, market: str) -> str | None:
        return None


class Kept(Played):
    """An exchange that wants to be told that somebody is there."""

    keepalive_text = "PING"
    keepalive_s = 20.0
    ping_s = 5.0


class Connection:
    """A connection whose script is run; the controller is stopped when it is over."""

    def __init__(self, steps: Steps, stop: Callable[[], None]) -> None:
        self._steps, self._stop = steps, stop
        self.sent: list[str] = []
        self.pongs: list[bytes] = []
        self.pings = 0
        self.closed = False

    def receive(self) -> Arrived:
        try:
            return next(self._steps)
        except StopIteration:
            self._stop()
            return []

    def send_text(self, text: str) -> None:
        self.sent.append(text)

    def send_ping(self) -> None:
        self.pings += 1

    def send_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


class Stage:
    """A controller, its clock, and what REST answers."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        cls: type[Played] = Played,
        *markets: str,
        silences: KnownSilences | None = None,
        **options: Any,
    ) -> None:
        self._patch = monkeypatch
        self.clock = FakeClock()
        self.log = HeardLog()
        self.setup = dataclasses.replace(
            make_setup(clock=self.clock, log=self.log, **options), silences=silences or KnownSilences()
        )
        self.controller = cls(markets or ("BTC-KRW",), self.setup)
        self.stored = Stored(self.setup.intake)
        self.rest = FakeRest(monkeypatch, self.clock)
        self.connection: Connection | None = None

    def play(self, steps: Steps) -> Connection:
        """Run one connection to its end; what ends it is raised."""
        self.controller.stopping.clear()
        connection = self.connection = Connection(steps, self.controller.stop)
        self._patch.setattr("controllers.websocket.Connection", lambda url: connection)
        try:
            self.controller.run_once()
        finally:
            self.stored.take()
        return connection

    def silence(self, seconds: float) -> Steps:
        """Let time pass second by second; answers to probes arrive at once."""
        for _ in range(round(seconds)):
            self.clock.advance(1)
            yield []
            self.probed()

    def chatter(self, seconds: float) -> Steps:
        """Let time pass with a heartbeat every second."""
        for _ in range(round(seconds)):
            self.clock.advance(1)
            yield [(PONG, b"")]
            self.probed()

    def frame(self, body: dict[str, Any], after: float = 0.1) -> Arrived:
        self.clock.advance(after)
        return [(TEXT, json.dumps(body).encode())]

    @staticmethod
    def probed() -> None:
        """Wait until no probe is under way."""
        for thread in threading.enumerate():
            if thread.name.endswith("/probe"):
                thread.join(10)
                assert not thread.is_alive()

    @property
    def seconds(self) -> list[float]:
        """When REST was asked, in seconds since the start."""
        return [at_us / 1e6 - 5 for _, at_us in self.rest.asked]

    def probes(self) -> dict[str, int]:
        found = {o: int(counted(self.setup, "probes_total", exchange="venue", outcome=o)) for o in OUTCOMES}
        return {outcome: count for outcome, count in found.items() if count}


OUTCOMES = ("agreed", "differed", "failed")
BOOK = {"bids": {"10": 1, "9": 2}, "asks": {"11": 1}}
OTHER = {"bids": {"10": 1, "9": 3}, "asks": {"11": 1}}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def build(cls: type[Played] = Played, *markets: str, **options: Any) -> Stage:
        return Stage(monkeypatch, cls, *markets, **options)

    return build


Build = Callable[..., Stage]


# --- the connection ---------------------------------------------------------------------------------------------------


def test_a_connection_subscribes_hears_and_ends_with_a_stop(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "ETH-KRW")

    def steps() -> Steps:
        assert scene.controller.connected
        yield scene.frame(BOOK)
        yield scene.frame({**BOOK, "market": "ETH-KRW"}) + scene.frame({"nothing": 1})

    connection = scene.play(steps())
    assert connection.sent == ["subscribe BTC-KRW", "subscribe ETH-KRW"]
    assert connection.closed
    assert scene.stored.reasons == ["stop", "stop"]
    assert scene.log.keys() == ["connect", "subscribe", "collect_start", "collect_start", "close"]
    assert not scene.controller.connected
    assert counted(scene.setup, "connected", exchange="venue") == 0
    assert counted(scene.setup, "connects_total", exchange="venue", outcome="ok") == 1
    assert check_sums(scene.setup, scene.stored, "venue", 3)["stored"] == 2


def test_pings_are_answered_and_prove_the_connection(stage: Build) -> None:
    scene = stage(Played, stale_s=5)

    def steps() -> Steps:
        yield scene.frame(BOOK)
        for number in range(4):
            scene.clock.advance(4)
            yield [(PING, b"%d" % number)]

    assert scene.play(steps()).pongs == [b"0", b"1", b"2", b"3"]


def test_not_one_frame_for_too_long_is_a_dead_connection(stage: Build) -> None:
    scene = stage(Played, stale_s=5)

    def steps() -> Steps:
        yield scene.frame(BOOK)
        yield from scene.silence(5)
        yield [(PONG, b"")]
        yield from scene.silence(20)

    with pytest.raises(StaleConnection, match="not one frame for 6 s"):
        scene.play(steps())
    assert scene.stored.reasons == ["stale"]
    assert scene.connection is not None
    assert scene.connection.closed


def test_an_exchange_has_a_time_of_its_own_for_that(stage: Build) -> None:
    scene = stage(Played, stall={"floor_s": 300})

    def steps() -> Steps:
        yield scene.frame(BOOK)
        yield from scene.silence(100)

    with pytest.raises(StaleConnection, match="not one frame for 61 s"):
        scene.play(steps())


def test_keepalives_go_out_on_time_and_nothing_where_none_is_wanted(stage: Build) -> None:
    scene = stage(Kept, stall={"floor_s": 300})
    connection = scene.play(scene.chatter(60))
    assert connection.sent[1:] == ["PING"] * 3
    assert connection.pings == 12
    quiet = stage(Played, stall={"floor_s": 300})
    connection = quiet.play(quiet.chatter(60))
    assert connection.sent == ["subscribe BTC-KRW"]
    assert connection.pings == 0


def test_a_close_frame_ends_the_connection_with_its_reason(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield [*scene.frame(BOOK), (CLOSE, b"\x03\xe8no pong")]

    with pytest.raises(ConnectionLost, match="code 1000 no pong"):
        scene.play(steps())
    assert scene.stored.reasons == ["disconnect"]
    assert scene.stored.only.frames == 1


def test_a_loss_while_stopping_is_a_stop(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK)
        scene.controller.stop()
        assert scene.connection is not None
        assert scene.connection.closed, "whoever waits in the socket is woken"
        yield [(CLOSE, b"")]

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]


def test_a_stop_before_the_socket_is_open_subscribes_to_nothing(stage: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = stage()
    connection = Connection(iter(()), scene.controller.stop)

    def connects_late(url: str) -> Connection:
        scene.controller.stop()
        return connection

    monkeypatch.setattr("controllers.websocket.Connection", connects_late)
    scene.controller.run_once()
    assert (connection.sent, connection.closed) == ([], True)


def test_a_heartbeat_that_wants_an_answer_gets_it(stage: Build) -> None:
    scene = stage()
    assert scene.play(iter([scene.frame({"reply": "pong 7"})])).sent == ["subscribe BTC-KRW", "pong 7"]


def test_a_market_without_a_book_is_told_once(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        for number in range(30):
            scene.rest.answers.clear()
            scene.rest.answers.extend([404])
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)
            scene.probed()

    scene.play(steps())
    assert scene.log.of("silent") == [{"market": "NOPE-KRW", "seconds": 10}]
    assert {url for url, _ in scene.rest.asked} == {"http://venue.test/book/NOPE-KRW"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_refused_market_is_told_and_the_others_go_on(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "10058 unknown", "market": "NOPE-KRW"})
        states = {str(row["market"]): (row["state"], row["detail"]) for row in scene.controller.status()}
        assert states == {"BTC-KRW": ("waiting", ""), "NOPE-KRW": ("refused", "10058 unknown")}
        yield scene.frame(BOOK)

    scene.play(steps())
    assert scene.log.of("api_error") == [{"error": "10058 unknown", "market": "NOPE-KRW"}]
    assert scene.stored.only.opened.market == "BTC-KRW"


def test_when_every_market_is_refused_the_connection_ends(stage: Build) -> None:
    scene = stage(Played, "A-KRW", "B-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "no", "market": "A-KRW"})
        yield scene.frame({"refused": "no", "market": "B-KRW"})
        pytest.fail("it went on")

    with pytest.raises(VenueRefused):
        scene.play(steps())


def test_a_refusal_that_names_no_market_concerns_those_that_are_not_heard(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "NOPE-KRW")

    def steps() -> Steps:
        yield scene.frame(BOOK)
        yield scene.frame({"refused": "Invalid Topic"})
        assert [row["state"] for row in scene.controller.status()] == ["live", "refused"]
        yield scene.frame(OTHER)

    scene.play(steps())
    assert len(scene.stored.only.rows) == 2


def test_a_refusal_that_names_no_market_may_mean_one_whose_book_is_on_its_way(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "ETH-KRW", "NOPE-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "Invalid Topic"})
        yield scene.frame(BOOK)
        assert [row["state"] for row in scene.controller.status()] == ["live", "refused", "refused"]
        yield scene.frame({**BOOK, "market": "ETH-KRW"})
        assert [row["state"] for row in scene.controller.status()] == ["live", "live", "refused"]

    scene.play(steps())
    assert scene.stored.reasons == ["stop", "stop"]


def test_when_no_book_follows_a_refusal_all_were_meant(stage: Build) -> None:
    scene = stage(Played, "A-KRW", "B-KRW")

    def steps() -> Steps:
        yield scene.frame({"refused": "Invalid Topic"})
        yield from scene.chatter(20)
        pytest.fail("it went on")

    with pytest.raises(VenueRefused, match="Invalid Topic"):
        scene.play(steps())


def test_a_refusal_is_forgotten_with_the_connection(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "NOPE-KRW")
    scene.play(iter([scene.frame({"refused": "no", "market": "NOPE-KRW"})]))

    def steps() -> Steps:
        assert [row["state"] for row in scene.controller.status()] == ["waiting", "waiting"]
        yield scene.frame(BOOK)

    scene.play(steps())


# --- silent feeds -----------------------------------------------------------------------------------------------------


def test_a_silent_feed_is_compared_with_rest_and_its_silence_is_confirmed(stage: Build) -> None:
    scene = stage(endpoint={"rest": "http://proxy.test/venue"})

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(10)
        assert not scene.rest.asked
        scene.rest.answers.extend([BOOK])
        yield from scene.chatter(3)

    scene.play(steps())
    assert [url for url, _ in scene.rest.asked] == ["http://proxy.test/venue/book/BTC-KRW"]
    assert scene.seconds == [11]
    epoch = scene.stored.only
    assert epoch.reason == "stop"
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us == epoch.opened.opened_us + 11_000_000
    assert epoch.frames == 1
    assert scene.probes() == {"agreed": 1}


def test_patience_grows_with_every_silence_that_proved_real_and_data_does_not_shorten_it(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([BOOK] * 20)
        yield from scene.chatter(3600)

    scene.play(steps())
    waits = [b - a for a, b in zip([0, *scene.seconds], scene.seconds, strict=False)]
    assert waits == sorted(waits)
    assert waits[0] == 11
    assert waits[1] >= 20
    assert max(waits) <= 302
    assert waits[-1] >= 300, "a feed that says nothing for five minutes is doubted again"
    assert scene.stored.reasons == ["stop"]


def test_a_book_that_moves_over_rest_while_the_socket_is_silent_starts_a_new_connection(stage: Build) -> None:
    scene = stage()
    scene.rest.answers.extend([OTHER, OTHER])

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield from scene.chatter(60)

    with pytest.raises(StaleConnection, match="silent while its REST book moves"):
        scene.play(steps())
    first, second = scene.seconds
    assert first == 11
    assert second > first + 3, "a REST book may be ahead for a moment"
    epoch = scene.stored.only
    assert epoch.reason == "stale"
    assert epoch.ended is not None
    assert epoch.ended.ended_us == epoch.opened.opened_us, "nothing is covered after the last data"
    assert scene.probes() == {"differed": 2}
    assert [details["times"] for details in scene.log.of("probe_differs")] == [1, 2]


def test_data_before_the_answer_begins_an_epoch_of_its_own(stage: Build) -> None:
    # Withheld books may lie in the silence, and an answer that equals the new one would not tell.
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([OTHER])
        yield from scene.chatter(12)
        assert not scene.probes()
        yield scene.frame(OTHER, after=0.5)
        yield from scene.chatter(2)

    scene.play(steps())
    assert not scene.probes()
    assert scene.stored.reasons == ["stale", "stop"]
    assert [len(epoch.rows) for epoch in scene.stored.of("BTC-KRW")] == [1, 1]


@pytest.mark.parametrize(("answered", "reasons"), [(False, ["stop", "stale", "stop"]), (True, ["stop", "stop"])])
def test_data_before_a_market_s_turn_to_be_compared_begins_an_epoch_of_its_own(
    stage: Build, answered: bool, reasons: list[str]
) -> None:
    """Both markets of a connection stall, one is being asked about when the data comes back.

    Mutation: leave out `_doubt_who_waits`.
    """
    scene = stage(Played, "BTC-KRW", "ETH-KRW")

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield scene.frame(BOOK | {"market": "ETH-KRW"}, after=0)
        scene.rest.answers.extend([BOOK, BOOK])
        gate = scene.rest.gate = threading.Event()
        for _ in range(12):
            scene.clock.advance(1)
            yield [(PONG, b"")]
        assert not scene.probes()
        if answered:
            gate.set()
            yield from scene.chatter(6)
        yield scene.frame(OTHER | {"market": "ETH-KRW"}, after=0.5)
        gate.set()
        scene.probed()

    scene.play(steps())
    assert Counter(scene.stored.reasons) == Counter(reasons)
    assert scene.probes() == {"agreed": 2 if answered else 1}  # the answer about the first comes when it comes


def test_of_many_silent_markets_each_gets_its_turn_as_soon_as_the_one_before_is_answered(stage: Build) -> None:
    """Mutation: let `look_for_an_answer` do nothing."""
    markets = ("BTC-KRW", "ETH-KRW", "SOL-KRW", "XRP-KRW")
    scene = stage(Played, *markets)

    def steps() -> Steps:
        for market in markets:
            yield scene.frame(BOOK | {"market": market}, after=0)
        scene.rest.answers.extend([BOOK] * 4)
        yield from scene.chatter(11)
        for _ in markets:  # within a second
            scene.clock.advance(0.1)
            yield [(PONG, b"")]
            scene.probed()
        for market in markets:
            yield scene.frame(OTHER | {"market": market}, after=0)

    scene.play(steps())
    assert scene.probes() == {"agreed": 4}
    assert scene.stored.reasons == ["stop"] * 4


def test_an_answer_that_the_socket_has_overtaken_agrees_where_a_book_is_kept_from_changes(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=0)
    gate = scene.rest.gate = threading.Event()

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for _ in range(11):
            scene.clock.advance(1)
            yield [(PONG, b"")]
        scene.rest.answers.extend([{**BOOK, "bids": {**BOOK["bids"], "10": 5}}])
        for number, size in enumerate((5, 7), 2):
            yield scene.frame({"bids": {"10": size}, "asks": {}, "change": True, "sequence": number})
        gate.set()
        yield from scene.chatter(2)

    scene.play(steps())
    assert scene.probes() == {"agreed": 1}
    assert scene.stored.reasons == ["stop"]


def test_one_difference_is_forgiven_when_the_next_comparison_agrees(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([OTHER, BOOK, OTHER, BOOK])
        yield from scene.chatter(70)

    scene.play(steps())
    assert scene.probes() == {"agreed": 2, "differed": 2}
    assert scene.stored.reasons == ["stop"]


@pytest.mark.parametrize(
    "answer",
    [
        500,
        404,
        requests.ConnectionError("no route"),
        requests.Timeout("late"),
        b"<html>",
        b'{"bids":{"10":"-1"},"asks":{}}',
        b'{"bids":{"NaN":1},"asks":{}}',
        b"{}",
        ValueError("our own mistake"),
    ],
)
def test_a_feed_whose_book_can_not_be_had_is_not_given_up_while_heartbeats_come(stage: Build, answer: object) -> None:
    """The mutation that must make this fail: end the connection at the second comparison that failed."""
    scene = stage(Played, stall={"ceiling_s": 200})

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([answer] * 50)
        yield from scene.chatter(200)

    scene.play(steps())
    assert scene.probes() == {"failed": len(scene.seconds)}
    waits = [later - before for before, later in zip(scene.seconds, scene.seconds[1:], strict=False)]
    assert waits == [2, 3, 5, 9, 17, 31, 31, 31, 31], "later each time"
    assert all(details["error"] for details in scene.log.of("probe_failed"))
    (epoch,) = scene.stored.epochs.values()
    assert epoch.mark is not None
    assert epoch.mark.confirmed_until_us == epoch.opened.opened_us, "heard, and not confirmed"


def test_a_feed_whose_book_can_not_be_had_is_given_up_when_heartbeats_stop_too(stage: Build) -> None:
    """The mutation that must make this fail: wait for `stale_s` whatever REST says."""
    scene = stage(Played, stale_s=30)

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([500] * 9)
        yield from scene.silence(60)

    with pytest.raises(StaleConnection, match="so are heartbeats and REST"):
        scene.play(steps())
    assert scene.clock.monotonic_us() == 5_000_000 + 16_000_000
    assert scene.stored.reasons == ["stale"]


def test_a_feed_whose_book_can_not_be_had_for_long_is_subscribed_to_anew(stage: Build) -> None:
    """The mutation that must make this fail: never end a connection whose heartbeats come."""
    scene = stage(Played, stall={"ceiling_s": 60})

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([500] * 50)
        yield from scene.chatter(200)

    with pytest.raises(StaleConnection, match="can't be had"):
        scene.play(steps())
    assert scene.clock.monotonic_us() == 5_000_000 + 73_000_000
    assert scene.stored.reasons == ["stale"]


def test_data_after_a_failed_comparison_starts_an_epoch_of_its_own(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([500])
        yield from scene.chatter(12)
        yield scene.frame(OTHER, after=0.1)

    scene.play(steps())
    assert scene.stored.reasons == ["stale", "stop"]
    first = scene.stored.epochs[1]
    assert first.ended is not None
    assert first.ended.ended_us == first.opened.opened_us


def test_a_comparison_that_agrees_after_one_that_failed_clears_the_doubt(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([500, BOOK])
        yield from scene.chatter(15)
        yield scene.frame(OTHER, after=0.1)

    scene.play(steps())
    assert scene.probes() == {"failed": 1, "agreed": 1}
    assert scene.stored.reasons == ["stop"]
    assert len(scene.stored.only.rows) == 2


def test_a_silent_feed_without_a_rest_book_is_subscribed_to_anew_with_more_patience_each_time(stage: Build) -> None:
    scene = stage(Blind)
    lengths = []
    for _ in range(8):

        def steps() -> Steps:
            yield scene.frame(BOOK, after=0)
            yield from scene.chatter(400)

        began_us = scene.clock.monotonic_us()
        with pytest.raises(StaleConnection, match="subscribing anew"):
            scene.play(steps())
        lengths.append((scene.clock.monotonic_us() - began_us) / 1e6)
    assert lengths[:3] == [11, 23, 47]
    assert lengths[-1] <= 302
    assert set(scene.stored.reasons) == {"stale"}
    assert not scene.rest.asked


def test_a_feed_that_is_not_covered_is_not_compared(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield [(TEXT, b"what is this")]
        yield from scene.chatter(30)

    scene.play(steps())
    assert not scene.rest.asked


def test_a_market_that_falls_silent_after_a_rejected_frame_is_subscribed_to_anew(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "ETH-KRW")

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        yield scene.frame({"bids": {"10": -1}, "asks": {}})
        for number in range(1, 60):
            yield scene.frame({**BOOK, "bids": {"10": number}, "market": "ETH-KRW"}, after=1)

    with pytest.raises(StaleConnection, match="BTC-KRW is not covered and silent"):
        scene.play(steps())
    assert 30_000_000 < scene.clock.monotonic_us() - 5_000_000 < 33_000_000


def test_a_first_frame_that_was_rejected_is_not_waited_on_for_ever(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield [(TEXT, b"what is this")]
        yield from scene.chatter(60)

    with pytest.raises(StaleConnection, match="no complete book of BTC-KRW came"):
        scene.play(steps())


def test_what_can_not_be_understood_is_no_reason_to_connect_again_and_again(stage: Build) -> None:
    """The mutation that must make this fail: leave `_rejected_at_us` out of `_mind_the_unheard`."""
    scene = stage()

    def steps() -> Steps:
        for _ in range(60):
            scene.clock.advance(1)
            yield [(TEXT, b"what is this")]

    scene.play(steps())


def test_a_market_that_was_never_heard_on_a_connection_ends_none(stage: Build) -> None:
    scene = stage(Played, "BTC-KRW", "HALTED-KRW")

    def steps() -> Steps:
        for number in range(1, 120):
            yield scene.frame({**BOOK, "bids": {"10": number}}, after=1)

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]


def test_a_comparison_is_void_when_its_epoch_ended_meanwhile(stage: Build) -> None:
    scene = stage()

    def steps() -> Steps:
        yield scene.frame(BOOK, after=0)
        scene.rest.answers.extend([OTHER])
        yield from scene.chatter(11)
        yield [(TEXT, b"what is this")]
        yield from scene.chatter(5)

    scene.play(steps())
    assert scene.probes() == {"failed": 1}
    assert scene.stored.reasons == ["rejected"]


# --- books that come as changes ---------------------------------------------------------------------------------------


def flowing(scene: Stage, seconds: int) -> Steps:
    """A change every second that moves the size of one level."""
    for number in range(seconds):
        scene.rest.answers.clear()
        scene.rest.answers.extend([{**BOOK, "bids": {"10": number + 100, "9": 2}}])
        yield scene.frame({"bids": {"10": number + 100}, "asks": {}, "change": True, "sequence": number + 2}, after=1)
        scene.probed()


def test_changes_without_a_complete_book_are_not_waited_on_for_ever(stage: Build) -> None:
    scene = stage(Changing, "BTC-KRW", "ETH-KRW")

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1, "market": "ETH-KRW"}, after=0)
        for number in range(2, 60):
            yield scene.frame({"bids": {"9": number}, "asks": {}, "change": True, "sequence": number}, after=1)

    with pytest.raises(StaleConnection, match="no complete book of BTC-KRW came"):
        scene.play(steps())
    assert scene.clock.monotonic_us() <= 17_000_000
    assert not scene.stored.of("BTC-KRW")
    assert check_sums(scene.setup, scene.stored, "venue", 12)["stored"] == 1


def test_a_subscription_to_changes_that_brings_nothing_is_made_anew(stage: Build) -> None:
    scene = stage(Changing)
    with pytest.raises(StaleConnection, match="no complete book of BTC-KRW came"):
        scene.play(scene.chatter(60))
    assert scene.log.of("silent") == [{"market": "BTC-KRW", "seconds": 10}]


def test_a_refused_market_of_changes_is_not_asked_for_again_and_again(stage: Build) -> None:
    scene = stage(Changing, "BTC-KRW", "NOPE-KRW", probe_interval_s=0)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1})
        yield scene.frame({"refused": "no", "market": "NOPE-KRW"})
        scene.rest.answers.extend([BOOK] * 9)
        yield from scene.chatter(60)

    scene.play(steps())
    assert scene.stored.reasons == ["stop"]


def test_a_book_of_changes_is_compared_every_so_often_though_data_flows(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        yield from flowing(scene, 90)

    scene.play(steps())
    assert scene.seconds == [5, 25, 45, 65, 85], "soon after it opened, then every 20 s"
    assert scene.probes() == {"agreed": 5}
    assert scene.stored.only.verdict == "compared"
    assert scene.log.of("probe_agreed") == [{"market": "BTC-KRW"}]


def test_it_is_not_where_the_interval_is_nought(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=0)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        yield from flowing(scene, 300)

    scene.play(steps())
    assert not scene.rest.asked
    assert scene.stored.only.frames == 1, "nothing but its first book is beyond doubt"


def test_a_book_of_changes_that_differs_twice_is_started_afresh_and_ends_where_it_last_agreed(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for number, arrived in enumerate(flowing(scene, 90), 1):
            if number > 30:
                scene.rest.answers.clear()
                scene.rest.answers.extend([OTHER, OTHER])
            yield arrived

    with pytest.raises(BookDiffers):
        scene.play(steps())
    assert scene.stored.reasons == ["probe"]
    assert scene.probes() == {"agreed": 2, "differed": 2}
    epoch = scene.stored.only
    assert epoch.ended is not None
    assert epoch.ended.ended_us == epoch.opened.opened_us + 25_000_000, "where it last agreed"
    assert epoch.frames == 1 + 25


def test_a_kill_before_a_lost_change_is_found_leaves_nothing_claimed_that_may_be_wrong(stage: Build) -> None:
    """The mutation that must make this fail: `mark` tells the newest data of a book kept from changes."""
    scene = stage(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        yield from flowing(scene, 40)
        epoch = scene.stored.take().only
        mark = epoch.mark
        assert mark is not None and epoch.ended is None
        assert mark.confirmed_until_us == epoch.opened.opened_us + 25_000_000, "the last comparison that agreed"
        assert mark.frames == 1 + 25
        assert mark.heard_until_us > mark.confirmed_until_us + 10_000_000
        assert len(epoch.rows) > 38, "what came since is kept, and claimed by nobody"

    scene.play(steps())


def test_what_lies_before_a_comparison_that_agrees_after_one_that_differed_is_not_claimed(stage: Build) -> None:
    """The mutation that must make this fail: leave the epoch open when a comparison agrees after one differed."""
    scene = stage(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for number, arrived in enumerate(flowing(scene, 90), 1):
            if 24 <= number <= 27:
                scene.rest.answers.clear()
                scene.rest.answers.extend([OTHER])
            yield arrived

    scene.play(steps())
    assert scene.probes()["differed"] == 1
    first, second = scene.stored.epochs.values()
    assert first.ended is not None
    assert (first.reason, first.ended.ended_us) == ("probe", first.opened.opened_us + 5_000_000)
    assert second.opened.opened_us > first.opened.opened_us + 25_000_000
    assert second.mark is not None and second.mark.frames > 20


def test_a_book_of_changes_that_never_agreed_counts_for_its_beginning_alone(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=20)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        for arrived in flowing(scene, 90):
            scene.rest.answers.clear()
            scene.rest.answers.extend([OTHER, OTHER])
            yield arrived

    with pytest.raises(BookDiffers):
        scene.play(steps())
    epoch = scene.stored.only
    assert epoch.ended is not None
    assert (epoch.ended.ended_us, epoch.frames) == (epoch.opened.opened_us, 1)


def test_complete_books_are_not_compared_while_they_flow(stage: Build) -> None:
    scene = stage(Played, probe_interval_s=20)

    def steps() -> Steps:
        for number in range(100):
            yield scene.frame({**BOOK, "bids": {"10": number + 1}}, after=1)

    scene.play(steps())
    assert not scene.rest.asked


def test_changes_after_a_failed_comparison_need_a_new_connection(stage: Build) -> None:
    scene = stage(Changing, probe_interval_s=0)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1}, after=0)
        scene.rest.answers.extend([500])
        yield from scene.chatter(12)
        yield scene.frame({"bids": {"9": 0}, "asks": {}, "change": True, "sequence": 9})
        pytest.fail("it went on")

    with pytest.raises(StaleConnection, match="may have lost changes"):
        scene.play(steps())
    assert scene.stored.reasons == ["stale"]
    assert check_sums(scene.setup, scene.stored, "venue", 2)["dropped"] == 1


def test_a_rejected_change_needs_a_new_connection(stage: Build) -> None:
    scene = stage(Changing)

    def steps() -> Steps:
        yield scene.frame({**BOOK, "sequence": 1})
        yield [(TEXT, b"what is this")]
        pytest.fail("it went on")

    with pytest.raises(ConnectionLost):
        scene.play(steps())
    assert scene.stored.reasons == ["rejected"]
    assert scene.stored.rejected[0].frame == b"what is this"


def test_connections_of_one_exchange_are_opened_one_after_the_other(stage: Build) -> None:
    scene = stage()
    waits: list[bool] = []

    class Turns(Budget):
        def wait(self, stopping: threading.Event, **options: Any) -> bool:
            waits.append(stopping.is_set())
            return not stopping.is_set()

    setup = dataclasses.replace(scene.setup, connects=Turns(5, scene.clock))
    controller = Played(("BTC-KRW",), setup)
    controller.stop()
    with pytest.raises(ConnectionLost, match="turn"):
        controller.run_once()
    assert waits == [True]
    assert not scene.stored.epochs
