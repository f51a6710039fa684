"""Promise 3 for each feed: records received are stored, duplicate, rejected, dropped, or still in the intake."""

from collections.abc import Iterable

import pytest
import requests

from collector.errors import BadFrame
from collector.records import KEYFRAME, ROWS_MAX, Book, BookChange, BookRow, Delivery, EpochEnded, Message, Rejected
from controllers.base import Controller
from controllers.bithumb import BithumbREST
from tests.fakes import frame_counts, make_setup


class Fed(Controller):
    """An exchange whose next frame means what the test says."""

    exchange = "venue"
    transport = "websocket"
    next: Iterable[Message] = ()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        return self.next


def book(market: str, price: int, size: object = "1") -> Book:
    return Book(market, {price: size}, {price + 1: "1"})  # type: ignore[dict-item]


def outcomes(fed: Fed, market: str) -> dict[str, int]:
    registry, found = fed.setup.metrics.registry, {}
    for outcome in ("received", "duplicate", "rejected", "dropped"):
        labels = {"exchange": "venue", "market": market, "channel": "orderbook", "outcome": outcome}
        found[outcome] = int(registry.get_sample_value("collector_records_total", labels) or 0)
    return found


def feed(fed: Fed, *messages: Message) -> None:
    fed.next = messages
    fed.handle(b"frame", fed.clock.monotonic_us())
    fed.flush()


def rows(deliveries: list[Delivery]) -> int:
    return sum(isinstance(record, BookRow) for delivery in deliveries for record in delivery.records)


def test_the_sums_of_each_feed_close() -> None:
    fed = Fed(("BTC-KRW", "ETH-KRW"), make_setup())
    feed(fed, book("BTC-KRW", 10), book("ETH-KRW", 20))
    feed(fed, book("BTC-KRW", 10))  # a repeat
    feed(fed, book("BTC-KRW", 11), book("ETH-KRW", 20))  # one changes, one does not
    feed(fed, book("BTC-KRW", 12, "NaN"))  # absurd
    feed(fed, book("BTC-KRW", 12))

    assert outcomes(fed, "BTC-KRW") == {"received": 5, "duplicate": 1, "rejected": 1, "dropped": 0}
    assert outcomes(fed, "ETH-KRW") == {"received": 2, "duplicate": 1, "rejected": 0, "dropped": 0}
    assert rows(fed.setup.intake.take(100)) == 3 + 1


def test_what_a_full_intake_refuses_is_dropped() -> None:
    fed = Fed(("BTC-KRW",), make_setup(limit_bytes=1))
    feed(fed, book("BTC-KRW", 10))
    feed(fed, book("BTC-KRW", 11))
    fed.flush()

    assert outcomes(fed, "BTC-KRW") == {"received": 2, "duplicate": 0, "rejected": 0, "dropped": 2}
    assert rows(fed.setup.intake.take(100)) == 0


def test_a_change_held_back_until_its_book_comes_is_counted_with_its_row() -> None:
    fed = Fed(("BTC-KRW",), make_setup())
    fed.next = [BookChange("BTC-KRW", {10: "2"}, {}, sequence=2)]
    feed(fed, *fed.next)
    feed(fed, Book("BTC-KRW", {10: "1"}, {}, sequence=1))

    counted = outcomes(fed, "BTC-KRW")
    assert counted["received"] == counted["duplicate"] + rows(fed.setup.intake.take(100))


def test_a_frame_that_is_no_json_belongs_to_every_feed_of_its_connection() -> None:
    class Broken(Fed):
        def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
            raise BadFrame("not JSON")

    fed = Broken(("BTC-KRW",), make_setup())
    feed(fed)
    assert outcomes(fed, "BTC-KRW") == {"received": 1, "duplicate": 0, "rejected": 1, "dropped": 0}


def test_an_epoch_that_can_number_no_more_rows_is_followed_by_another() -> None:
    fed = Fed(("BTC-KRW",), make_setup())
    feed(fed, book("BTC-KRW", 10))
    fed.books["BTC-KRW"].n = ROWS_MAX
    feed(fed, book("BTC-KRW", 11))

    records = [record for delivery in fed.setup.intake.take(100) for record in delivery.records]
    (ended,) = [record for record in records if isinstance(record, EpochEnded)]
    assert (ended.epoch, ended.reason) == (1, "superseded")
    last = [record for record in records if isinstance(record, BookRow)][-1]
    assert (last.epoch, last.n, last.flags & KEYFRAME) == (2, 1, KEYFRAME)


def test_an_answer_nobody_can_read_is_kept_once_however_often_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    bithumb = BithumbREST(("BTC-KRW",), make_setup())
    monkeypatch.setattr("controllers.rest.fetch", lambda session, url, clock: (200, {}, b"<html>maintenance</html>"))
    for _ in range(5):
        bithumb._poll(requests.Session(), bithumb.books["BTC-KRW"])
    bithumb.flush()

    records = [record for delivery in bithumb.setup.intake.take(100) for record in delivery.records]
    assert [type(record) for record in records] == [Rejected]
    assert frame_counts(bithumb.setup, "bithumb") | {"received": 5, "duplicate": 4} == frame_counts(
        bithumb.setup, "bithumb"
    )
