"""What is learned of silences: a histogram of bounded size, the patience that follows, the file that keeps it."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.clock import Clock
from collector.records import Feed
from controllers import silence
from controllers.silence import (
    LONGEST_BITS,
    SHORT_US,
    STEPS,
    USUAL,
    WINDOW,
    KnownSilences,
    Patience,
    SilenceKeeper,
    Silences,
)
from tests.conftest import wait_until
from tests.fakes import HeardLog

FLOOR_US, CEILING_US = 10_000_000, 300_000_000
FEED = Feed("upbit", "BTC-KRW")
S = 1_000_000


def known(*silences_s: float, short: int = 0) -> Silences:
    """Return what is known after these silences."""
    made = Silences()
    made.short = short
    for silence_s in silences_s:
        made.add(int(silence_s * S))
    return made


def patience(silences: Silences | None = None) -> Patience:
    return Patience(silences or Silences(), FLOOR_US, CEILING_US)


def hear(one: Patience, *silences_s: float, at_s: float = 1000) -> float:
    """Let messages come with these silences before them; return when the last one came."""
    one.heard(int(at_s * S))
    for silence_s in silences_s:
        at_s += silence_s
        one.heard(int(at_s * S))
    return at_s


# --- the histogram ----------------------------------------------------------------------------------------------------


def test_a_feed_of_which_nothing_is_known_has_no_usual_silence() -> None:
    assert Silences().usual_us() == 0
    assert known(short=10).usual_us() == SHORT_US


def test_the_usual_silence_is_exceeded_by_one_in_a_hundred() -> None:
    """The mutation that must make this fail: `USUAL = 0.5`."""
    feed = known(*[1.0] * 990, *[60.0] * 10)
    assert 1 * S <= feed.usual_us() <= 1.25 * S
    feed = known(*[1.0] * 980, *[60.0] * 20)
    assert 60 * S <= feed.usual_us() <= 75 * S


def test_short_silences_count_though_they_are_in_no_step() -> None:
    assert known(*[60.0] * 10, short=990).usual_us() == SHORT_US
    assert known(*[60.0] * 11, short=980).usual_us() >= 60 * S


def test_old_silences_are_forgotten_when_the_feed_has_changed() -> None:
    """The mutation that must make this fail: never halve."""
    feed = known(*[200.0] * 1000)
    for _ in range(20_000):
        feed.add(1 * S)
    assert feed.usual_us() <= 1.25 * S


def test_what_is_kept_is_bounded() -> None:
    feed = Silences()
    for number in range(3 * WINDOW):
        feed.add(SHORT_US + number * 7_654_321)
    told = feed.told()
    assert len(told["steps"]) <= STEPS
    assert told["short"] + sum(told["steps"].values()) <= WINDOW


@pytest.mark.parametrize("silence_us", [0, 1, SHORT_US - 1, SHORT_US, 1 << LONGEST_BITS, 1 << 62])
def test_any_length_has_a_step(silence_us: int) -> None:
    feed = Silences()
    feed.add(silence_us)
    assert SHORT_US < feed.usual_us() <= 1 << LONGEST_BITS


def test_whatever_is_added_the_usual_silence_is_a_quantile_rounded_up_by_a_quarter_at_most() -> None:
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given
    from hypothesis import strategies as st

    @given(st.lists(st.integers(SHORT_US, (1 << LONGEST_BITS) - 1), min_size=1, max_size=300))
    def check(silences: list[int]) -> None:
        feed = Silences()
        for silence_us in silences:
            feed.add(silence_us)
        exact = sorted(silences)[len(silences) - 1 - int(len(silences) * (1 - USUAL))]
        assert exact < feed.usual_us() <= exact * 1.25 + 1
        again = Silences.read(json.loads(json.dumps(feed.told())))
        assert again.usual_us() == feed.usual_us()
        assert again.told() == feed.told()

    check()


def test_any_json_is_read_or_refused() -> None:
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import given
    from hypothesis import strategies as st

    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4))
    trees = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["short", "steps", "0", "83", "84", "-1", "x"]), inner, max_size=4),
        ),
        max_leaves=12,
    )

    @given(trees)
    def check(told: Any) -> None:
        try:
            read = Silences.read(told)
        except (ValueError, TypeError, LookupError, AttributeError):
            return
        assert 0 <= read.usual_us() <= 1 << LONGEST_BITS

    check()


# --- patience ---------------------------------------------------------------------------------------------------------


def test_an_unknown_feed_gets_the_floor_and_a_busy_one_too() -> None:
    one = patience()
    assert one.us == one.first_us == FLOOR_US
    hear(one, *[0.1] * 100, *[2.0] * 100)
    assert one.us == FLOOR_US


def test_a_quiet_feed_gets_what_it_is_known_for_and_never_more_than_the_ceiling() -> None:
    """The mutation that must make this fail: `Patience.heard` that learns nothing."""
    one = patience()
    hear(one, *[40.0] * 20)
    assert 40 * S <= one.us <= 50 * S
    assert patience(known(*[40.0] * 20)).us == one.us, "what is known counts from the start"
    hear(one, *[5000.0] * 20)
    assert one.us == CEILING_US


def test_a_silence_that_is_real_is_borne_twice_as_long_until_data_comes() -> None:
    """The mutation that must make this fail: leave `self.us` as it is when a message comes."""
    one = patience()
    at_s = hear(one, *[1.0] * 200)
    one.proved(11 * S)
    assert one.us == 22 * S
    one.proved(22 * S)
    one.proved(15 * S)
    assert one.us == 44 * S
    one.proved(200 * S)
    assert one.us == CEILING_US
    hear(one, 1.0, at_s=at_s + 0.05)
    assert one.us == FLOOR_US


def test_the_first_message_of_a_connection_ends_no_silence() -> None:
    """The mutation that must make this fail: `begin` that forgets nothing."""
    silences = Silences()
    one = patience(silences)
    hear(one, at_s=0)
    one.begin()
    hear(one, at_s=250)
    assert silences.told() == {"short": 0, "steps": {}}


def test_a_message_that_was_asked_for_ends_no_silence() -> None:
    """The mutation that must make this fail: learn from what was asked for."""
    silences = Silences()
    one = patience(silences)
    hear(one, at_s=0)
    one.asked()
    one.heard(20 * S)
    one.heard(60 * S)
    assert silences.usual_us() >= 60 * S


def test_a_first_message_is_waited_for_longer_each_time_until_it_comes() -> None:
    one = patience()
    waits = []
    for _ in range(7):
        one.in_vain()
        waits.append(one.first_us // S)
    assert waits == [20, 40, 80, 160, 300, 300, 300]
    hear(one, 0.1)
    assert one.first_us == FLOOR_US


def test_a_feed_that_became_busy_is_soon_doubted_sooner() -> None:
    """The mutation that must make this fail: leave out the branch that ages short silences."""
    one = patience(known(*[200.0] * 1000))
    assert one.us > 200 * S
    hear(one, *[0.01] * 60_000)
    assert one.us == FLOOR_US


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    """The mutation that must make this fail: `load` that returns at once."""
    path = tmp_path / "data" / "c.sqlite.silences.json"
    first = KnownSilences(path)
    hear(patience(first.of(FEED, "websocket")), *[40.0] * 20)
    assert first.save()
    assert not first.save(), "nothing changed"

    log, second = HeardLog(), KnownSilences(path)
    second.load(log)
    assert log.keys() == []
    assert patience(second.of(FEED, "websocket")).us >= 40 * S
    assert patience(second.of(FEED, "rest")).us == FLOOR_US
    assert patience(second.of(Feed("upbit", "ETH-KRW"), "websocket")).us == FLOOR_US


def test_all_who_hear_a_feed_teach_the_same() -> None:
    everyone = KnownSilences()
    assert everyone.of(FEED, "websocket") is everyone.of(Feed("upbit", "BTC-KRW"), "websocket")
    assert not everyone.save()


def test_no_file_yet_is_told_and_no_harm(tmp_path: Path) -> None:
    log = HeardLog()
    KnownSilences(tmp_path / "none.json").load(log)
    assert log.keys() == ["silences_new"]
    KnownSilences().load(log)
    assert log.keys() == ["silences_new"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"7",
        b'{"version":2,"feeds":{}}',
        b'{"version":1}',
        b'{"version":1,"feeds":[1]}',
        b'{"version":1,"feeds":{"x":{"short":-1,"steps":{}}}}',
        b'{"version":1,"feeds":{"x":{"short":0,"steps":{"999":1}}}}',
        b'{"version":1,"feeds":{"x":{"short":0,"steps":{"1":1.5}}}}',
        b'{"version":1,"feeds":{"x":{"short":true,"steps":{}}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_told_and_everything_learned_anew(tmp_path: Path, text: bytes) -> None:
    path, log = tmp_path / "s.json", HeardLog()
    path.write_bytes(text)
    everyone = KnownSilences(path)
    everyone.load(log)
    assert log.keys() == ["silences_lost"]
    assert log.of("silences_lost")[0]["error"]
    everyone.of(FEED, "websocket").add(S)
    assert everyone.save()
    again = KnownSilences(path)
    again.load(log)
    assert log.keys() == ["silences_lost"]


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "FILE_BYTES_MAX", 1000)
    path, log = tmp_path / "s.json", HeardLog()
    path.write_text('{"version":1,"feeds":{}}' + " " * 1000)
    KnownSilences(path).load(log)
    assert log.keys() == ["silences_lost"]


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    log = HeardLog()
    (tmp_path / "folder.json").mkdir()
    KnownSilences(tmp_path / "folder.json").load(log)
    assert log.keys() == ["silences_lost"]


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: write into the file itself."""
    path = tmp_path / "s.json"
    everyone = KnownSilences(path)
    everyone.of(FEED, "websocket").add(S)
    everyone.save()
    before = path.read_bytes()
    everyone.of(FEED, "websocket").add(99 * S)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            everyone.save()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s.json"]
    assert everyone.save()


# --- who saves --------------------------------------------------------------------------------------------------------


@pytest.fixture
def keeper(tmp_path: Path) -> Callable[..., tuple[SilenceKeeper, HeardLog, KnownSilences]]:
    def make(path: Path | None = None) -> tuple[SilenceKeeper, HeardLog, KnownSilences]:
        log, everyone = HeardLog(), KnownSilences(path or tmp_path / "s.json")
        everyone.of(FEED, "websocket").add(S)
        return SilenceKeeper(everyone, log, Clock()), log, everyone

    return make


Keeper = Callable[..., tuple[SilenceKeeper, HeardLog, KnownSilences]]


def test_it_is_saved_every_few_minutes_and_at_the_end(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation that must make this fail: return from `run_once` when it is asked to stop, without a last save."""
    monkeypatch.setattr(silence, "SAVE_EVERY_S", 0.01)
    worker, log, _ = keeper()
    worker.start()
    wait_until((tmp_path / "s.json").exists)
    worker.stop()
    assert worker.join(10)
    assert worker.state == "stopped"
    assert not log.events

    monkeypatch.setattr(silence, "SAVE_EVERY_S", 3600.0)
    last, _, everyone = keeper(tmp_path / "other.json")
    last.start()
    everyone.of(FEED, "websocket").add(77 * S)
    last.stop()
    assert last.join(10)
    again = KnownSilences(tmp_path / "other.json")
    again.load(HeardLog())
    assert again.of(FEED, "websocket").usual_us() > 77 * S


def test_a_disk_that_takes_nothing_is_told_and_ends_nothing(keeper: Keeper, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    worker, log, _ = keeper(tmp_path / "file" / "s.json")
    worker.start()
    worker.stop()
    assert worker.join(10)
    assert worker.state == "stopped"
    assert log.keys() == ["silences_unsaved"]


def test_saving_beside_those_who_learn_is_no_trouble(tmp_path: Path) -> None:
    everyone = KnownSilences(tmp_path / "s.json")
    done = threading.Event()
    errors: list[Exception] = []

    def learn() -> None:
        number = 0
        while not done.is_set():
            number += 1
            everyone.of(Feed("upbit", f"A{number % 500}-KRW"), "websocket").add(number * 100_000)

    threads = [threading.Thread(target=learn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            everyone.save()
    except Exception as error:
        errors.append(error)
    done.set()
    for thread in threads:
        thread.join(10)
    assert not errors
    log = HeardLog()
    KnownSilences(tmp_path / "s.json").load(log)
    assert not log.events
