"""Trades, tickers and candles read back from either database: in order, to the digit, with the gaps between them."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from collector.errors import ConfigError
from collector.records import (
    CandleRow,
    CoverageMark,
    EpochEnded,
    EpochOpened,
    Record,
    RecordsLost,
    TickerRow,
    TradeRow,
)
from storage import postgres_source, sqlite_source, streams
from storage.convert import DataConverter
from storage.coverage import coverage
from storage.reader import Gap, Reader, UnknownFeed
from storage.store import Run
from tests.storage.places import Place, alike
from tests.storage.story import MIDNIGHT, S, batch, write_all

T0 = MIDNIGHT
MINUTE = 60 * S
HERE, THERE = Run("run 1", "here", "1", T0), Run("run 2", "there", "1", T0)
CHANNELS = ("trades", "ticker", "candles")


def opened(epoch: int, channel: str, opened_us: int = T0, market: str = "BTC-KRW") -> EpochOpened:
    return EpochOpened(epoch, "UPBIT", market, channel, "websocket", opened_us)


def trade(epoch: int, trade_id: str, venue_us: int, price: str = "1.50") -> TradeRow:
    return TradeRow(epoch, trade_id, "sell", price, "2E-8", venue_us + 5, venue_us)


def ticker(epoch: int, received_us: int, last: str) -> TickerRow:
    return TickerRow(epoch, received_us, received_us - 5, last, "1.0", None, "77.70")


def candle(epoch: int, open_us: int, received_us: int, *, closed: bool) -> CandleRow:
    return CandleRow(epoch, 60, open_us, "1", "2.0", "0.50", "1.5", "0", closed, received_us)


def heard(epoch: int, until_us: int, frames: int) -> CoverageMark:
    return CoverageMark(epoch, until_us, until_us, frames)


def life() -> list[Record]:
    """Three channels heard for ten seconds, not for ten, and for ten again; the last epochs are open."""
    records: list[Record] = [opened(number, channel) for number, channel in enumerate(CHANNELS, start=1)]
    records += [opened(number, channel, T0 + 20 * S) for number, channel in enumerate(CHANNELS, start=4)]
    for epoch, at_us in ((1, T0), (4, T0 + 20 * S)):
        records += [trade(epoch, str(n), at_us + n // 2 * S) for n in (11, 2, 9, 10)]
        records += [ticker(epoch + 1, at_us + n * S, f"{n}.10") for n in range(1, 10)]
    records += [candle(3, T0, T0 + 9 * S, closed=False), candle(6, T0, T0 + 25 * S, closed=True)]
    records.append(candle(6, T0 + MINUTE, T0 + 29 * S, closed=False))
    for epoch in (1, 2, 3):
        records += [heard(epoch, T0 + 10 * S, 9), EpochEnded(epoch, T0 + 10 * S, "disconnect")]
    return [*records, *(heard(epoch, T0 + 30 * S, 9) for epoch in (4, 5, 6))]


@pytest.fixture
def lived(place: Place) -> Place:
    place.store().write(batch(HERE, 1, *life()), T0)
    return place


def items(place: Place, channel: str, start_us: int | None = None, end_us: int | None = None) -> list[Any]:
    with Reader(place.database) as reader:
        (feed,) = reader.feeds("upbit", "btc-krw", channel)
        return list(reader.items(feed, reader.timeline(feed), start_us, end_us))


def test_trades_stand_in_the_order_of_their_time_and_number_with_the_gaps_between(lived: Place) -> None:
    """Mutation: order by `trade_id` alone, or let gaps come behind the trades of their time."""
    told = [item.reason if isinstance(item, Gap) else item.id for item in items(lived, "trades")]
    assert told == ["never", "2", "9", "10", "11", "disconnect", "2", "9", "10", "11", "open"]
    first = items(lived, "trades")[1]
    assert (first.exchange, first.market, first.side, first.price, first.volume) == (
        *("UPBIT", "BTC-KRW"), *("sell", "1.50", "2E-8"),
    )  # fmt: skip
    assert (first.venue_us, first.received_us, first.time_us) == (T0 + S, T0 + S + 5, T0 + S)
    assert (first.source.reason, first.unit) == ("disconnect", None)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_join_without_seam(lived: Place, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = {channel: items(lived, channel) for channel in CHANNELS}
    assert [len(found) for found in whole.values()] == [11, 21, 5]
    for source in (sqlite_source, postgres_source):
        monkeypatch.setattr(source, "PAGE_ROWS", size)
        monkeypatch.setattr(source, "TIMES", size)
    assert {channel: items(lived, channel) for channel in CHANNELS} == whole


def test_a_range_holds_its_start_and_not_its_end(lived: Place) -> None:
    with Reader(lived.database) as reader:
        assert [item.id for item in reader.trades("upbit", None, T0 + 4 * S, T0 + 5 * S)] == ["9"]
        assert [item.last for item in reader.tickers("upbit", None, T0 + 4 * S, T0 + 6 * S)] == ["4.10", "5.10"]
        assert [item.open_us for item in reader.candles("upbit", None, T0 + 1, T0 + MINUTE + 1)] == [T0 + MINUTE]
    gap, *_ = items(lived, "ticker", T0 + 12 * S)
    assert gap == Gap("disconnect", T0 + 12 * S, T0 + 20 * S)


def test_a_candle_is_told_once_as_it_was_told_last(lived: Place) -> None:
    with Reader(lived.database) as reader:
        one, two = reader.candles("upbit")
        assert (one.closed, one.received_us, two.closed) == (True, T0 + 25 * S, False)
        assert (one.open, one.high, one.low, one.close, one.volume) == ("1", "2.0", "0.50", "1.5", "0")
        assert list(reader.candles("upbit", interval_s=300)) == []


def test_tickers_beyond_coverage_are_not_told_and_trades_are(place: Place) -> None:
    late: list[Record] = [trade(1, "7", T0 + 9 * S), ticker(2, T0 + 9 * S, "9"), ticker(2, T0 + 5 * S, "5")]
    ends: list[Record] = [
        record for n in (1, 2) for record in (heard(n, T0 + 9 * S, 9), EpochEnded(n, T0 + 6 * S, "probe"))
    ]
    place.store().write(batch(HERE, 1, opened(1, "trades"), opened(2, "ticker"), *late, *ends), T0)
    with Reader(place.database) as reader:
        assert [item.id for item in reader.trades("upbit")] == ["7"]
        assert [item.last for item in reader.tickers("upbit")] == ["5"]


def test_two_collectors_are_one_for_trades_and_take_turns_for_tickers(place: Place) -> None:
    """Two that overlap: what one missed the other has, and nothing is told twice."""
    for run, seconds in ((HERE, range(1, 7)), (THERE, range(4, 10))):
        base_us = T0 + seconds[0] * S
        rows: list[Record] = [trade(1, str(n), T0 + n * S) for n in seconds]
        rows += [ticker(2, T0 + n * S, str(n)) for n in seconds]
        marks = [heard(epoch, T0 + seconds[-1] * S, 6) for epoch in (1, 2)]
        store = place.store()
        store.write(batch(run, 1, opened(1, "trades", base_us), opened(2, "ticker", base_us), *rows, *marks), T0)
        place.close()
    with Reader(place.database) as reader:
        assert [item.id for item in reader.trades("upbit")] == [str(n) for n in range(1, 10)]
        assert [item.last for item in reader.tickers("upbit")] == [str(n) for n in range(1, 10)]
        assert {feed.channel: feed.collectors for feed in coverage(reader)} == {
            "trades": ("here", "there"), "ticker": ("here", "there")
        }  # fmt: skip
        assert all(feed.us("GAP") == 0 for feed in coverage(reader))


def test_coverage_names_the_channel_and_adds_up(lived: Place) -> None:
    with Reader(lived.database) as reader:
        found = {feed.channel: feed for feed in coverage(reader)}
        assert [feed.channel for feed in coverage(reader, channel="ticker")] == ["ticker"]
    assert list(found) == ["candles", "ticker", "trades"]
    assert all(feed.us("GAP") == 10 * S and feed.as_dict()["channel"] == name for name, feed in found.items())
    # Tickers come every second up to the ninth, candles count as data for two minutes; trades pause for more.
    assert found["ticker"].us("QUIET") == 0 < found["trades"].us("QUIET")
    assert found["candles"].us("DATA") == 20 * S
    assert found["ticker"].us("DATA") == 20 * S


def test_what_is_not_there_is_told(lived: Place) -> None:
    with Reader(lived.database) as reader, pytest.raises(UnknownFeed, match="holds no order books of UPBIT BTC-KRW"):
        reader.book_at("upbit", "BTC-KRW", T0)
    with pytest.raises(ConfigError, match="channel 'books' is none; allowed: orderbook, trades, ticker, candles"):
        DataConverter(lived.database).to_list("upbit", channel="books")


def test_both_databases_tell_the_same(both: list[Place], tmp_path: Path) -> None:
    again = opened(7, "trades", T0 + 40 * S)
    rest = trade(7, "2", T0 + S), trade(7, "3", T0 + 41 * S), heard(7, T0 + 50 * S, 2)
    for place in both:
        store = place.store()
        write_all(store, [batch(HERE, 1, *life()), batch(HERE, 2, RecordsLost("no_space"), again)])
        assert store.write(batch(HERE, 3, *rest), T0) == 1
    for channel in CHANNELS:
        for start_us, end_us in ((None, None), (T0 + 3 * S, T0 + 22 * S)):
            alike(
                both,
                lambda reader: [
                    list(reader.items(feed, reader.timeline(feed), start_us, end_us))  # noqa: B023
                    for feed in reader.feeds(None, None, channel)  # noqa: B023
                ],
            )
    alike(both, coverage)
    for channel in CHANNELS:
        for name in ("json", "ndjson", "csv"):
            written = []
            for place in both:
                out = tmp_path / f"{channel}-{type(place.database).__name__}.{name}"
                receipt = DataConverter(place.database).export("upbit", out, channel=channel, format=name)
                written.append((out.read_bytes(), receipt.gaps, receipt.rows, receipt.covered_seconds, receipt.feeds))
            assert written[0] == written[1]


# --- exports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_format_tells_the_same_to_the_digit(lived: Place, tmp_path: Path, channel: str) -> None:
    converter = DataConverter(lived.database)
    receipt = converter.export("upbit", tmp_path / "a.json", channel=channel)
    converter.export("upbit", tmp_path / "a.ndjson", channel=channel, format="ndjson")
    converter.export("upbit", tmp_path / "a.csv", channel=channel, format="csv")
    converter.export("upbit", tmp_path / "n.json", channel=channel, numbers=True)
    rows = json.loads((tmp_path / "a.json").read_text(), parse_float=Decimal)
    assert rows == converter.to_list("upbit", channel=channel)
    assert [json.loads(line, parse_float=Decimal) for line in (tmp_path / "a.ndjson").read_text().splitlines()] == rows
    lines = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    spelt = {None: "", True: "true", False: "false"}
    kept = (bool, type(None))
    assert lines == [{key: spelt[v] if isinstance(v, kept) else str(v) for key, v in row.items()} for row in rows]
    bare = json.loads((tmp_path / "n.json").read_text(), parse_float=str, parse_int=str)
    assert bare == [{key: v if isinstance(v, kept) else str(v) for key, v in row.items()} for row in rows]
    assert (receipt.channel, receipt.rows, receipt.books) == (channel, len(rows), 0)
    assert [(feed.channel, feed.rows, feed.books) for feed in receipt.feeds] == [(channel, len(rows), 0)]
    assert [gap.reason for gap in receipt.gaps] == ["disconnect"]
    assert f": {len(rows)} {'tickers' if channel == 'ticker' else channel}, " in receipt.summary()


def test_a_trade_is_written_with_all_that_is_known(lived: Place) -> None:
    assert DataConverter(lived.database).to_list("upbit", channel="trades")[0] == {
        "exchange": "UPBIT",
        "symbol": "BTC",
        "currency": "KRW",
        "timestamp": Decimal(T0 + S) / S,
        "received_us": T0 + S + 5,
        "venue_us": T0 + S,
        "epoch": 1,
        "id": "2",
        "side": "sell",
        "price": "1.50",
        "volume": "2E-8",
    }


def test_odd_texts_and_times_are_written_so_that_they_can_be_read(place: Place, tmp_path: Path) -> None:
    odd = TradeRow(1, 'a,"b"\n', "buy", "1", "1", T0, -1_500_000)
    place.store().write(batch(HERE, 1, opened(1, "trades"), odd), T0)
    DataConverter(place.database).export("upbit", tmp_path / "a.csv", channel="trades", format="csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["timestamp"]) == ('a,"b"\n', "-1.500000")


def test_times_of_rows_never_fall(lived: Place) -> None:
    with Reader(lived.database) as reader:
        for channel in CHANNELS:
            for epoch in reader.epochs("upbit", "btc-krw", channel=channel):
                times = list(reader.row_times(epoch, T0, T0 + 30 * S))
                assert times == sorted(times)
    assert streams.INTERVAL_S == 60
