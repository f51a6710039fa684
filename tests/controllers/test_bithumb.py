import json
import re
from pathlib import Path

import pytest

from collector.errors import SourceError
from collector.records import SAMPLED, Book
from controllers import controller_class
from controllers.bithumb import BithumbREST, BithumbWebSocket
from tests.controllers.venue import (
    Case,
    Recorded,
    cases,
    check_book,
    exactly,
    frame_of,
    hold_to_any_answers,
    hold_to_any_frames,
    make,
    recorded,
    side,
)
from tests.fakes import Stored, frame_counts

BOOK = frame_of("bithumb", "a book in DEFAULT, which is asked for")
ANSWER = frame_of("bithumb", "an answer of one book", "polls")
LONG = {
    "ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size", "ty": "type", "cd": "code",
    "tms": "timestamp", "obu": "orderbook_units",
}  # fmt: skip


def units(*rows: tuple[object, object, object, object]) -> list[dict[str, object]]:
    return [dict(zip(("ask_price", "ask_size", "bid_price", "bid_size"), row, strict=True)) for row in rows]


def socket_book(*rows: tuple[object, object, object, object]) -> Book:
    frame = json.dumps({"type": "orderbook", "code": "KRW-BTC", "orderbook_units": units(*rows)}).encode()
    (book,) = make(BithumbWebSocket).parse(frame, 0)
    assert isinstance(book, Book)
    return book


@pytest.mark.parametrize("case", cases("bithumb"), ids=str)
def test_every_kind_of_message_of_the_socket_is_read(case: Case) -> None:
    case.check(make(BithumbWebSocket))


@pytest.mark.parametrize("case", cases("bithumb", "polls"), ids=str)
def test_every_kind_of_answer_to_a_poll_is_read(case: Case) -> None:
    case.check(make(BithumbREST))


def test_it_is_polled_unless_the_socket_is_asked_for() -> None:
    assert controller_class("bithumb") is BithumbREST
    assert controller_class("bithumb", "rest") is BithumbREST
    assert controller_class("bithumb", "websocket") is BithumbWebSocket
    assert make(BithumbREST).name != make(BithumbWebSocket).name


def test_one_frame_subscribes_to_every_market() -> None:
    bithumb = make(BithumbWebSocket, "BTC-KRW", "ETH-BTC")
    (text,) = bithumb.subscribe_messages(bithumb.markets)
    ticket, orders, form = json.loads(text)
    assert len(ticket["ticket"]) == 36
    assert orders == {"type": "orderbook", "codes": ["KRW-BTC", "BTC-ETH"]}
    assert form == {"format": "DEFAULT"}


def test_a_poll_asks_for_one_market_since_only_then_it_has_30_levels() -> None:
    assert make(BithumbREST).request_path("BTC-KRW") == "/v1/orderbook?markets=KRW-BTC"
    assert (BithumbREST.depth, BithumbWebSocket.depth) == (30, 15)


@pytest.mark.parametrize("written", ["1790134742106123", "1790134742106"])
def test_a_time_is_microseconds_or_milliseconds_told_by_its_magnitude(written: str) -> None:
    (book,) = make(BithumbWebSocket).parse(BOOK.replace(b"1790134742106123", written.encode()), 0)
    assert isinstance(book, Book)
    assert book.venue_us == int(written.ljust(16, "0"))


def test_size_nought_at_a_live_price_is_left_out_even_as_the_best_level() -> None:
    bithumb = make(BithumbWebSocket)
    kept = bithumb.books["BTC-KRW"].book
    kept.replace(socket_book((11, "0.0", 10, 0), (12, 1, 9, 2), (13, 0.5, 8, 3)))
    assert [text for text, _ in kept.asks.as_text(highest_first=False)] == ["12", "13"]
    assert [text for text, _ in kept.bids.as_text(highest_first=True)] == ["9", "8"]
    assert not kept.crossed


def test_a_level_that_falls_to_nought_is_removed_and_may_come_back() -> None:
    kept = make(BithumbWebSocket).books["BTC-KRW"].book
    kept.replace(socket_book((11, 1, 10, 1)))
    assert kept.replace(socket_book((11, 0, 10, 1))) == ([], [("11", "0")])
    assert kept.replace(socket_book((11, 0, 10, 1))) == ([], [])
    assert kept.replace(socket_book((11, 2, 10, 1))) == ([], [("11", "2")])


def test_a_thin_side_is_filled_up_with_price_nought() -> None:
    book = socket_book((120000000, 15.721, 113000000, 5.5544), (0, 0, 112000000, 1), (0, 0, 111000000, 1))
    assert book.asks == {120000000: "15.721"}
    assert len(book.bids) == 3


def test_totals_are_no_checksum_here_since_sizes_are_rounded() -> None:
    (book,) = make(BithumbWebSocket).parse(BOOK, 0)
    assert isinstance(book, Book)
    assert book.totals is None


def test_an_error_with_http_200_is_told_as_the_exchange_words_it() -> None:
    with pytest.raises(SourceError, match="404: Code not found"):
        make(BithumbREST).parse(frame_of("bithumb", "an error with HTTP 200", "polls"), 0)


def test_polled_rows_say_that_they_are_samples_and_a_repeat_is_a_duplicate() -> None:
    bithumb = make(BithumbREST)
    bithumb.handle(ANSWER, 1)
    bithumb.handle(ANSWER, 2)
    bithumb.handle(ANSWER.replace(b"7.1015", b"7"), 3)
    bithumb.flush()
    rows = Stored(bithumb.setup.intake).take().only.rows
    assert len(rows) == 2
    assert all(row.flags & SAMPLED for row in rows)
    assert frame_counts(bithumb.setup, "bithumb")["duplicate"] == 1


def test_an_idle_socket_is_kept_by_the_text_ping() -> None:
    assert BithumbWebSocket.keepalive_text == "PING"
    assert BithumbWebSocket.keepalive_s < 60
    assert BithumbWebSocket.stale_s < 60


def test_the_listing_is_given_in_house_form_whatever_the_transport() -> None:
    body = b'[{"market":"KRW-BTC","market_warning":"NONE"},{"market":"BTC-ETH"}]'
    assert BithumbREST.parse_listing(body) == BithumbWebSocket.parse_listing(body) == ["BTC-KRW", "ETH-BTC"]
    with pytest.raises(SourceError):
        BithumbREST.parse_listing(b'{"error":{"name":404,"message":"Code not found"}}')


def test_any_bytes_of_the_socket_give_records_or_a_source_error() -> None:
    hold_to_any_frames(BithumbWebSocket, "bithumb")


def test_any_answer_to_a_poll_gives_records_or_a_source_error() -> None:
    hold_to_any_frames(BithumbREST, "bithumb", "polls")


def test_any_listing_is_read_or_a_source_error() -> None:
    hold_to_any_answers(BithumbREST, ['[{"market":"KRW-BTC"},{"market":"BTC-ETH"}]', '{"error":{"name":404}}'])


# --- recorded ---------------------------------------------------------------------------------------------------------


def as_sent(line: Recorded) -> str:
    """Undo what publishers did to frames: ccxt shows long integers as text, one frame lost its first two fields."""
    if line.where.startswith("samples_ws_ccxt_comments"):
        return re.sub(r'"timestamp":"(\d+)"', r'"timestamp":\1', line.data)
    if line.data.startswith('{"orderbook_units"'):
        return '{"type":"orderbook","code":"KRW-EGG",' + line.data[1:]
    return line.data


def test_every_recorded_book_of_the_official_socket_comes_out_level_for_level(wire: Path) -> None:
    bithumb = make(BithumbWebSocket)
    books = []
    for line in recorded(wire, "bithumb"):
        text = as_sent(line)
        frame = exactly(text)
        if "ws-api.bithumb.com" not in line.url or "orderbook" not in (frame.get("type"), frame.get("ty")):
            continue
        frame = {LONG.get(key, key): value for key, value in frame.items()}
        rows = [{LONG.get(key, key): value for key, value in unit.items()} for unit in frame["orderbook_units"]]
        quote, base = frame["code"].split("-")
        bids, asks = side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size")
        message = check_book(bithumb, text, f"{base}-{quote}", bids, asks)
        if "timestamp" in frame:
            assert message.venue_us in (frame["timestamp"], frame["timestamp"] * 1000), line.where
            assert (message.venue_us or 0) > 10**15, line.where
        books.append(line.where)
    assert len(books) == 3 + 1 + 6


def test_every_recorded_poll_comes_out_level_for_level(wire: Path) -> None:
    bithumb = make(BithumbREST)
    books = errors = 0
    for line in recorded(wire, "bithumb", "rest"):
        if "/v1/orderbook?" in line.url and line.data.startswith("["):
            (book,) = exactly(line.data)
            quote, base = book["market"].split("-")
            rows = book["orderbook_units"]
            bids, asks = side(rows, "bid_price", "bid_size"), side(rows, "ask_price", "ask_size")
            message = check_book(bithumb, line.data, f"{base}-{quote}", bids, asks)
            assert message.venue_us == book["timestamp"] * 1000
            books += 1
        elif line.where.startswith("samples_rest_errors"):
            with pytest.raises(SourceError):
                bithumb.parse(line.data.encode(), 0)
            errors += 1
    assert (books, errors) == (2, 5)


def test_what_is_recorded_beside_books_is_known_or_refused(wire: Path) -> None:
    bithumb = make(BithumbWebSocket)
    kinds: set[str] = set()
    for line in recorded(wire, "bithumb"):
        if "ws-api.bithumb.com" not in line.url or '"orderbook"' in as_sent(line):
            continue
        try:
            assert list(bithumb.parse(line.data.encode(), 0)) == []
            kinds.add("nothing")
        except SourceError as error:
            kinds.add(str(error).split(":")[0])
    assert kinds == {
        "nothing", "type was 'trade'", "type was 'ticker'", "NO_TICKET", "WRONG_FORMAT", "INVALID_PARAM",
    }  # fmt: skip
