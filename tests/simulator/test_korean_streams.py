"""Trades, tickers and candles of the five Korean exchanges: spelled as recorded ones are, and in their own habits."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import Timing
from simulator.markets import now_us
from tests.simulator.conftest import Client, Stage, decoded, shape

Start = Callable[..., Stage]
KOREA = timedelta(hours=9)
NAMES = {
    "upbit": {"trades": "trade", "ticker": "ticker", "candles": "candle.1m"},
    "bithumb": {"trades": "trade", "ticker": "ticker"},
    "coinone": {"trades": "TRADE", "ticker": "TICKER"},
    "korbit": {"trades": "trade", "ticker": "ticker"},
    "gopax": {"trades": "PublicTradeEvent", "ticker": "TickerEvent"},
}
TOLD = {
    "trades": ("id", "price", "volume"),
    "ticker": ("last", "bid", "ask", "volume"),
    "candles": ("open", "high", "low", "close", "volume"),
}
FEEDS = [(exchange, channel) for exchange, names in NAMES.items() for channel in names]
RECORDED = {
    ("upbit", "trades"): ("samples_ws_documentation.ndjson", 4),
    ("upbit", "ticker"): ("samples_ws_verbatim.ndjson", 3),
    ("upbit", "candles"): ("samples_ws_documentation.ndjson", 6),
    ("bithumb", "trades"): ("samples_ws_ccxt_comments.ndjson", 3),
    ("bithumb", "ticker"): ("samples_ws_ccxt_comments.ndjson", 1),
    ("coinone", "trades"): ("samples_ws_complete_20260923.ndjson", 10),
    ("coinone", "ticker"): ("samples_ws_complete_20260923.ndjson", 9),
    ("korbit", "trades"): ("samples_ws_complete.ndjson", 5),
    ("korbit", "ticker"): ("samples_ws_complete.ndjson", 4),
    ("gopax", "trades"): ("samples_ws_documentation.ndjson", 5),
    ("gopax", "ticker"): ("samples_ws_complete_20260923.ndjson", 9),
}


def line(wire: Path, exchange: str, file: str, number: int) -> Any:
    """Return a recorded frame; ccxt shows the long integers of Bithumb as text."""
    data = json.loads((wire / exchange / file).read_text().splitlines()[number - 1])["data"]
    return decoded(re.sub(r'"(timestamp|sequential_id)":"(\d+)"', r'"\1":\2', data))


def subscription(exchange: str, channel: str, **more: Any) -> Any:
    """Return the request for one channel of BTC-KRW."""
    name = NAMES[exchange][channel]
    match exchange:
        case "upbit" | "bithumb":
            return [{"ticket": "t"}, {"type": name, "codes": ["KRW-BTC"], **more}]
        case "coinone":
            topic = {"quote_currency": "KRW", "target_currency": "BTC"}
            return {"request_type": "SUBSCRIBE", "channel": name, "topic": topic, **more}
        case "korbit":
            return [{"requestId": 7, "method": "subscribe", "type": name, "symbols": ["btc_krw"], **more}]
        case _:
            if channel == "ticker":
                return {"i": "tickers", "n": "SubscribeToTickers", "o": {}}
            return {"i": "BTC-KRW", "n": "SubscribeToTradingPair", "o": {"tradingPairName": "BTC-KRW"}}


def is_of(exchange: str, channel: str, frame: Any) -> bool:
    """Tell whether a frame is data of a channel."""
    if not isinstance(frame, dict):
        return False
    name = NAMES[exchange][channel]
    if exchange == "coinone":
        return bool(frame["response_type"] == "DATA" and frame["channel"] == name)
    return bool(frame.get("n" if exchange == "gopax" else "type") == name)


def leaves(value: Any) -> Iterator[Decimal]:
    """Yield every number of a frame, also those that are text."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif not isinstance(value, bool):
        with suppress(ArithmeticError, TypeError):
            yield Decimal(value)


def listening(s: Stage, exchange: str, channel: str) -> Client:
    client = s.dial(exchange)
    client.send(subscription(exchange, channel))
    return client


def plain(frame: Any) -> str:
    """Write keys in order and types, but for the pair that is a key of a GOPAX ticker and the mark of a first frame."""
    frame = {key: value for key, value in frame.items() if key != "snapshot"}
    if frame.get("n") == "TickerEvent":
        frame["o"] = next(iter(frame["o"].values()))
    return json.dumps(shape(frame)).replace('"NoneType"', '"str"')


@pytest.mark.parametrize(("exchange", "channel"), FEEDS)
def test_a_frame_has_the_keys_order_and_types_of_recorded_ones(
    stage: Start, wire: Path, exchange: str, channel: str
) -> None:
    client = listening(stage(exchange, rate_hz=100), exchange, channel)
    frame = client.until(lambda one: is_of(exchange, channel, one))
    assert plain(frame) == plain(line(wire, exchange, *RECORDED[exchange, channel]))


@pytest.mark.parametrize(("exchange", "channel"), FEEDS)
def test_every_frame_is_in_the_ledger_in_order(stage: Start, exchange: str, channel: str) -> None:
    s = stage(exchange, rate_hz=100)
    client = listening(s, exchange, channel)
    heard: list[set[Decimal]] = []
    while len(heard) < 6:
        frame = client.frame()
        if is_of(exchange, channel, frame) and ("o" not in frame or "BTC-KRW" in json.dumps(frame["o"], default=str)):
            heard.append(set(leaves(frame)))
    (made,) = s.ledger(kind="subscribe", market="BTC-KRW", channel=channel)
    lines = s.ledger(kind="message", subscription=made["subscription"])
    lines = lines[1:] if (exchange, channel) == ("gopax", "ticker") else lines  # the first one stands in the reply
    for said, noted in zip(heard, lines, strict=False):
        assert noted["what"] == {"trades": "trade", "ticker": "ticker", "candles": "candle"}[channel]
        for row in noted["rows"]:
            exact = {Decimal(row[name]) for name in TOLD[channel] if row[name] is not None}
            assert exact <= said
            assert {Decimal(row["venue_us"]) / scale for scale in (1, 1000, 1_000_000)} & said


@pytest.mark.parametrize("exchange", ["upbit", "korbit"])
def test_the_latest_trade_comes_first_again(stage: Start, exchange: str) -> None:
    s = stage(exchange, rate_hz=100)
    first, second = (listening(s, exchange, "trades") for _ in range(2))
    for client in (first, second):
        frame = client.until(lambda one: is_of(exchange, "trades", one))
        assert frame.get("stream_type", "SNAPSHOT") == "SNAPSHOT"
        assert frame.get("snapshot", True) is True
        later = client.until(lambda one: is_of(exchange, "trades", one))
        assert later.get("stream_type", "REALTIME") == "REALTIME"
        assert "snapshot" not in later
    s.simulator.fault("quiet")
    again = listening(s, exchange, "trades")
    frame = again.until(lambda one: is_of(exchange, "trades", one))
    told = frame["data"][0]["tradeId"] if exchange == "korbit" else frame["sequential_id"]
    heard = [row["id"] for noted in s.ledger(kind="message", what="trade") for row in noted["rows"]]
    assert heard.count(str(told)) >= 2


def test_numbers_of_trades_are_beyond_a_float_and_upbit_s_step_back(stage: Start) -> None:
    numbers: dict[str, list[int]] = {}
    for exchange in ("upbit", "bithumb"):
        client = listening(stage(exchange, speed=None), exchange, "trades")
        numbers[exchange] = [client.frame()["sequential_id"] for _ in range(300)]
        assert min(numbers[exchange]) > 2**53
        assert len(set(numbers[exchange])) >= 299, "the first may come twice"
    assert sorted(numbers["upbit"]) != numbers["upbit"]


def test_bithumb_dates_in_korea_and_upbit_in_utc(stage: Start) -> None:
    for exchange, ahead in (("upbit", timedelta()), ("bithumb", KOREA)):
        s = stage(exchange, rate_hz=100)
        trade = listening(s, exchange, "trades").frame()
        at = datetime.fromtimestamp(int(trade["trade_timestamp"]) // 1000, UTC) + ahead
        assert (trade["trade_date"], trade["trade_time"]) == (f"{at:%Y-%m-%d}", f"{at:%H:%M:%S}")
        ticker = listening(s, exchange, "ticker").frame()
        at = datetime.fromtimestamp(int(ticker["trade_timestamp"]) // 1000, UTC) + ahead
        assert (ticker["trade_date"], ticker["trade_time"]) == (f"{at:%Y%m%d}", f"{at:%H%M%S}")


def test_upbit_tells_short_keys_of_every_channel(stage: Start) -> None:
    client = stage("upbit", rate_hz=100).dial("upbit")
    kinds = [{"type": name, "codes": ["KRW-BTC"]} for name in NAMES["upbit"].values()]
    client.send([{"ticket": "t"}, *kinds, {"format": "SIMPLE"}])
    frames = {frame["ty"]: frame for frame in client.frames(12)}
    assert {"td", "ttm", "ttms", "tp", "tv", "ab", "sid", "bap", "bbp", "st"} < frames["trade"].keys()
    assert {"tdt", "ttm", "tp", "atv24h", "atp24h", "h52wp", "st"} < frames["ticker"].keys()
    assert {"cdttmu", "cdttmk", "op", "hp", "lp", "tp", "catv", "catp", "st"} < frames["candle.1m"].keys()
    assert all(len(key) <= 6 for frame in frames.values() for key in frame)


def test_upbit_s_candles_are_never_said_to_be_closed_and_only_snapshots_can_be_had(stage: Start) -> None:
    s = stage("upbit", rate_hz=100)
    client, once = listening(s, "upbit", "candles"), s.dial("upbit")
    once.send(subscription("upbit", "candles", is_only_snapshot=True))
    candles = client.frames(5)
    assert [candle["stream_type"] for candle in candles] == ["SNAPSHOT", *["REALTIME"] * 4]
    assert all(candle["candle_date_time_utc"].endswith(":00") for candle in candles)
    assert all(not row["closed"] for noted in s.ledger(what="candle") for row in noted["rows"])
    assert once.frame()["stream_type"] == "SNAPSHOT"
    assert once.silent()


def test_bithumb_has_no_candles_on_its_socket(stage: Start) -> None:
    client = stage("bithumb").dial("bithumb")
    client.send([{"ticket": "t"}, {"type": "candle.1m", "codes": ["KRW-BTC"]}])
    assert client.frame()["error"]["name"] == "INVALID_PARAM"
    assert client.closed() == 1000


def test_coinone_s_charts_are_acknowledged_and_silent_and_its_tickers_move_with_trades(stage: Start) -> None:
    s = stage("coinone", rate_hz=100)
    chart, ticker = s.dial("coinone"), s.dial("coinone")
    chart.send({**subscription("coinone", "trades"), "channel": "CHART"})
    assert [frame["response_type"] for frame in chart.frames(2)] == ["CONNECTED", "SUBSCRIBED"]
    assert chart.silent()
    ticker.send(subscription("coinone", "trades"))
    ticker.send(subscription("coinone", "ticker"))
    frames = [frame for frame in ticker.frames(40) if frame["response_type"] == "DATA"]
    told = [frame["data"]["last"] for frame in frames if frame["channel"] == "TICKER"]
    traded = [frame["data"]["price"] for frame in frames if frame["channel"] == "TRADE"]
    assert len(told) <= len(traded) + 1


def test_korbit_puts_the_trades_of_a_moment_into_one_frame_with_rising_numbers(stage: Start) -> None:
    client = listening(stage("korbit", speed=None), "korbit", "trades")
    frames = [frame["data"] for frame in client.frames(200) if "data" in frame]
    assert any(len(data) > 1 for data in frames)
    numbers = [row["tradeId"] for data in frames[1:] for row in data]
    assert numbers == sorted(set(numbers))
    assert any(later > earlier + 1 for earlier, later in pairwise(numbers))


def test_korbit_s_halted_pair_has_no_trades_and_no_ticker(stage: Start) -> None:
    client = stage("korbit", rate_hz=100).dial("korbit")
    for name in ("trade", "ticker"):
        client.send([{"requestId": 1, "method": "subscribe", "type": name, "symbols": ["klay_krw"]}])
        assert client.frame() == {"status": "success", "requestId": 1}
    assert client.silent()


def test_gopax_s_tickers_come_all_at_once_then_each_with_its_trades(stage: Start, wire: Path) -> None:
    s = stage("gopax", rate_hz=100)
    client = listening(s, "gopax", "ticker")
    reply = client.frame()
    (sample, *_) = line(wire, "gopax", "samples_ws_documentation.ndjson", 7)["o"]["data"]
    assert [row["tradingPairName"] for row in reply["o"]["data"]] == ["BTC-KRW", "ETH-KRW"]
    assert all(shape(row) == shape(sample) for row in reply["o"]["data"])
    for market in ("BTC-KRW", "ETH-KRW"):
        (made,) = s.ledger(kind="subscribe", market=market, channel="ticker")
        assert s.ledger(kind="message", subscription=made["subscription"])[0]["what"] == "ticker"
    client.send(subscription("gopax", "ticker"))
    again = client.until(lambda frame: isinstance(frame, dict) and frame["n"] == "SubscribeToTickers")
    assert again["o"] == {"result": False, "errCode": 10325, "errData": "Already subscribed"}


def test_gopax_s_trades_come_with_the_book_alone_and_count_no_book(stage: Start) -> None:
    s = stage("gopax", rate_hz=100, timing=Timing(books_max=2))
    book, pair = s.dial("gopax"), s.dial("gopax")
    book.send({"i": 1, "n": "SubscribeToOrderBook", "o": {"tradingPairName": "BTC-KRW"}})
    for market in ("BTC-KRW", "ETH-KRW"):
        pair.send({"i": market, "n": "SubscribeToTradingPair", "o": {"tradingPairName": market}})
    assert pair.until(lambda frame: is_of("gopax", "trades", frame))["o"]["occurredAt"] % 1 == 0
    replies = {line["market"] for line in s.ledger(kind="subscribe", channel="trades")}
    assert replies == {"BTC-KRW", "ETH-KRW"}
    assert not any(is_of("gopax", "trades", frame) for frame in book.frames(100))


# --- REST -------------------------------------------------------------------------------------------------------------


def ask(s: Stage, exchange: str, path: str) -> Any:
    return decoded(requests.get(s.rest(exchange, path), timeout=5).content)


def test_bithumb_s_answers_have_the_keys_order_and_types_of_recorded_ones(stage: Start, wire: Path) -> None:
    s = stage("bithumb", rate_hz=100)
    paths = ("/v1/candles/minutes/1?market=KRW-BTC", "/v1/trades/ticks?market=KRW-BTC", "/v1/ticker?markets=KRW-BTC")
    for number, path in enumerate(paths, 3):
        sample = line(wire, "bithumb", "samples_rest_ccxt_comments.ndjson", number)
        sample = json.dumps(shape(sample))
        if "/trades/" in path:  # ccxt shows its numbers as text
            sample = re.sub(
                r'("(?:trade_price|trade_volume|prev_closing_price|change_price)": )"str"', r'\1"number"', sample
            )
        assert json.dumps(shape(ask(s, "bithumb", path))) == sample


def test_bithumb_s_ticker_is_nine_hours_ahead_and_its_trades_have_other_numbers_than_on_the_socket(
    stage: Start,
) -> None:
    s = stage("bithumb", rate_hz=0.01)
    (ticker,) = ask(s, "bithumb", "/v1/ticker?markets=KRW-BTC")
    at = datetime.strptime(f"{ticker['trade_date']}{ticker['trade_time']}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    assert int(ticker["timestamp"]) // 1000 == int((at + KOREA).timestamp())
    (noted,) = s.ledger(kind="message", what="ticker")
    assert noted["rows"][0]["venue_us"] // 1_000_000 == int(at.timestamp())
    (trade,) = ask(s, "bithumb", "/v1/trades/ticks?market=KRW-BTC")
    heard = listening(s, "bithumb", "trades").frame()
    assert (trade["timestamp"], trade["trade_price"]) == (heard["trade_timestamp"], heard["trade_price"])
    assert len(str(trade["sequential_id"])) == 17 < len(str(heard["sequential_id"]))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/trades/ticks?market=KRW-BTC&count=9", "sequential_id"),
        ("/v1/candles/minutes/1?market=KRW-BTC&count=9", "x"),
    ],
)
def test_bithumb_answers_newest_first_and_refuses_with_status_200(stage: Start, path: str, key: str) -> None:
    s = stage("bithumb", rate_hz=100)
    rows = ask(s, "bithumb", path)
    times = [row["timestamp"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert 1 < len(rows) <= 9
    for wrong in (path.replace("KRW-BTC", "KRW-NOPE"), path.replace("=9", "=9999")):
        answer = requests.get(s.rest("bithumb", wrong), timeout=5)
        assert (answer.status_code, list(answer.json())) == (200, ["error"])


def test_candles_over_rest_are_in_the_order_of_their_exchange(stage: Start) -> None:
    now_ms = now_us() // 1000
    paths = {
        "coinone": "/public/v2/chart/KRW/BTC?interval=1m&size=5",
        "korbit": "/v2/candles?symbol=btc_krw&interval=1&limit=5",
        "gopax": f"/trading-pairs/BTC-KRW/candles?start={now_ms - 300_000}&end={now_ms + 60_000}&interval=1",
    }
    s = stage(*paths, rate_hz=100)
    found = {exchange: ask(s, exchange, path) for exchange, path in paths.items()}
    times = {
        "coinone": [row["timestamp"] for row in found["coinone"]["chart"]][::-1],
        "korbit": [row["timestamp"] for row in found["korbit"]["data"]],
        "gopax": [row[0] for row in found["gopax"]],
    }
    for exchange, opened in times.items():
        assert opened == sorted(opened), exchange
        assert 1 < len(opened) <= 7
        assert all(ms % 60_000 == 0 for ms in opened)
    assert all(low <= min(first, last) <= max(first, last) <= high for _, low, high, first, last, _ in found["gopax"])
    lines = s.ledger(kind="message", what="candle")
    assert [[row["closed"] for row in noted["rows"]].count(False) for noted in lines] == [1, 1, 1]


def test_wrong_questions_for_candles_are_refused_in_each_one_s_way(stage: Start) -> None:
    s = stage("coinone", "korbit", "gopax")
    assert ask(s, "coinone", "/public/v2/chart/KRW/NOPE?interval=1m")["error_code"] == "108"
    assert ask(s, "coinone", "/public/v2/chart/KRW/BTC?interval=2m")["error_code"] == "107"
    for path in ("/v2/candles?symbol=nope_krw&interval=1", "/v2/candles?symbol=btc_krw&interval=7"):
        answer = requests.get(s.rest("korbit", path), timeout=5)
        assert (answer.status_code, answer.json()["success"]) == (400, False)
    for path in ("NOPE-KRW/candles?start=1&end=2&interval=1", "BTC-KRW/candles?interval=1"):
        assert requests.get(s.rest("gopax", f"/trading-pairs/{path}"), timeout=5).status_code in (400, 404)
