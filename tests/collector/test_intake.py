"""The intake is bounded, gives out in order what was put in, and knows what it holds until it is told otherwise."""

import threading

from collector.intake import Intake
from collector.records import Delivery, Event
from tests.conftest import WaitUntil

SIZE = 100


def delivery(
    text: str = "", *, records: int = 1, exchange: str = "upbit", frames: int = 1, rejected: int = 0
) -> Delivery:
    return Delivery(exchange, frames, (Event(0, "INFO", exchange, text),) * records, SIZE, rejected)


def texts(taken: list[Delivery]) -> list[str]:
    return [record.text for one in taken for record in one.records if isinstance(record, Event)]


def test_a_full_intake_refuses_and_keeps_nothing_of_what_it_refused() -> None:
    intake = Intake(2 * SIZE)

    assert intake.put(delivery("a"))
    assert intake.put(delivery("b"))  # exactly at the bound
    assert not intake.put(delivery("c", frames=7))

    assert intake.held == (2, 2 * SIZE)
    assert intake.held_frames() == {"upbit": 2}
    assert texts(intake.take(10)) == ["a", "b"]


def test_whoever_listens_hears_what_was_taken_and_nothing_else() -> None:
    intake = Intake(SIZE)
    heard: list[Delivery] = []
    intake.tap = heard.append

    intake.put(delivery("a"))
    intake.put(delivery("refused"))
    intake.put(delivery("end"), force=True)

    assert texts(heard) == ["a", "end"]


def test_what_ends_an_epoch_is_taken_even_when_full() -> None:
    intake = Intake(SIZE)
    intake.put(delivery("data"))

    assert intake.put(delivery("end"), force=True)

    assert intake.held == (2, 2 * SIZE)
    assert texts(intake.take(10)) == ["data", "end"]


def test_a_delivery_above_the_bound_is_refused_by_an_empty_intake() -> None:
    assert not Intake(SIZE - 1).put(delivery())


def test_what_was_taken_counts_as_held_until_it_is_done() -> None:
    intake = Intake(2 * SIZE)
    intake.put(delivery("a", frames=3, rejected=1))
    intake.put(delivery("b", exchange="gopax", frames=5))

    taken = intake.take(10)

    assert intake.take(10) == []
    assert intake.held == (2, 2 * SIZE)
    assert intake.held_frames() == {"upbit": 4, "gopax": 5}
    assert not intake.empty
    assert not intake.put(delivery("c"))

    intake.done(taken[:1])
    assert intake.held == (1, SIZE)
    assert intake.held_frames() == {"upbit": 0, "gopax": 5}
    assert intake.put(delivery("c"))

    intake.done(taken[1:] + intake.take(10))
    assert intake.held == (0, 0)
    assert intake.held_frames() == {"upbit": 0, "gopax": 0}
    assert intake.empty


def test_take_returns_at_least_one_delivery_and_no_more_records_than_asked() -> None:
    intake = Intake(1000)
    for text, records in (("a", 5), ("b", 2), ("c", 1), ("d", 1)):
        intake.put(delivery(text, records=records))

    assert texts(intake.take(3)) == ["a"] * 5
    assert texts(intake.take(3)) == ["b", "b", "c"]
    assert texts(intake.take(3)) == ["d"]
    assert intake.take(3) == []


def test_epochs_are_numbered_from_one() -> None:
    intake = Intake(1)
    assert [next(intake.epochs) for _ in range(3)] == [1, 2, 3]


class Waiting:
    """A thread that waits at an intake far longer than any test."""

    def __init__(self, intake: Intake) -> None:
        self._thread = threading.Thread(target=intake.wait, args=(60,))
        self._thread.start()

    def returned(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()


def test_wait_ends_when_a_whole_batch_waits_and_not_before() -> None:
    intake = Intake(1 << 20, wake_records=3)
    waiting = Waiting(intake)

    intake.put(delivery("a"))
    intake.put(delivery("b"))
    assert not waiting.returned(0.05)

    intake.put(delivery("c"))
    assert waiting.returned(10)


def test_wait_ends_when_woken_and_does_not_remember_it() -> None:
    intake = Intake(1 << 20)
    first = Waiting(intake)
    intake.wake()
    assert first.returned(10)

    second = Waiting(intake)
    assert not second.returned(0.05)
    intake.wake()
    assert second.returned(10)


def test_wait_ends_after_its_time_without_data() -> None:
    Intake(1).wait(0.001)


def test_a_second_batch_that_waits_already_is_not_waited_for() -> None:
    intake = Intake(1 << 20, wake_records=2)
    for text in "abcd":
        intake.put(delivery(text))
    Waiting(intake).returned(10)

    assert texts(intake.take(2)) == ["a", "b"]

    assert Waiting(intake).returned(10)


def test_many_producers_and_one_consumer_lose_nothing_and_keep_each_producers_order(wait_until: WaitUntil) -> None:
    producers, each = 16, 300
    intake = Intake(20 * SIZE, wake_records=5)  # so small that it is full most of the time
    refused = [0] * producers
    over = threading.Event()
    got: dict[str, list[int]] = {str(number): [] for number in range(producers)}

    def produce(number: int) -> None:
        for i in range(each):
            while not intake.put(delivery(f"{number} {i}", exchange=str(number))):
                refused[number] += 1
                over.wait(0.001)

    def consume() -> None:
        while not (over.is_set() and intake.empty):
            intake.wait(0.01)
            taken = intake.take(7)
            for text in texts(taken):
                number, i = text.split()
                got[number].append(int(i))
            assert intake.held[1] <= intake.limit_bytes
            intake.done(taken)

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(producers)]
    consumer = threading.Thread(target=consume)
    for thread in (*threads, consumer):
        thread.start()
    for thread in threads:
        thread.join(30)
    over.set()
    consumer.join(30)

    assert not consumer.is_alive()
    assert got == {str(number): list(range(each)) for number in range(producers)}
    assert sum(refused) > 0
    assert intake.held == (0, 0)
    assert set(intake.held_frames().values()) == {0}
