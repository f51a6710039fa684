"""What takes too long is ended, what does not is left alone."""

import threading

from collector.deadlines import Deadlines


def test_what_is_over_in_time_hears_nothing() -> None:
    late = threading.Event()
    deadlines = Deadlines()
    with deadlines.within(60, late.set):
        pass
    other = threading.Event()
    with deadlines.within(0, other.set):  # comes after whatever else was due
        assert other.wait(10)
    assert not late.is_set()


def test_the_nearest_comes_first_whoever_came_first() -> None:
    called: list[str] = []
    both = threading.Event()

    def later() -> None:
        called.append("later")
        both.set()

    deadlines = Deadlines()
    with deadlines.within(0.1, later), deadlines.within(0.02, lambda: called.append("sooner")):
        assert both.wait(10)
    assert called == ["sooner", "later"]


def test_all_share_one_thread() -> None:
    before = threading.active_count()
    deadlines = Deadlines()
    with deadlines.within(60, bool), deadlines.within(60, bool), deadlines.within(60, bool):
        assert threading.active_count() == before + 1
