"""What a new configuration changes: nothing that could stay, and nothing that shares a connection is forgotten."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

import controllers
from collector.config import Settings, load
from collector.records import Feed
from commands.plan import Connection, Listed, Step, feeds, grouped, left_out, open_ended, planned, steps

Groups = list[tuple[str, ...]]


def settings(folder: Path, exchanges: Mapping[str, object], dotenv: str = "", **sections: object) -> Settings:
    (folder / "c.yaml").write_text(json.dumps({"exchanges": exchanges, **sections}))
    (folder / ".env").write_text(dotenv)
    return load(folder / "c.yaml", env={}, dotenv=folder / ".env", flags={}, known=controllers.known())


def named(one: Connection) -> str:
    channels = "" if one.channels == ("orderbook",) else f" {'+'.join(one.channels)}"
    return f"{one.exchange} {'+'.join(one.markets)} {one.cls.transport}{channels}"


def shown(found: list[Step]) -> list[tuple[list[str], list[str]]]:
    """Return steps as the names of their connections."""

    def names(connections: tuple[Connection, ...]) -> list[str]:
        return [named(one) for one in connections]

    return [(names(step.old), names(step.new)) for step in found]


BTC, ETH, XRP, SOL = "BTC-KRW", "ETH-KRW", "XRP-KRW", "SOL-KRW"


@pytest.mark.parametrize(
    ("wanted", "groups", "size", "expected"),
    [
        ("ABC", [], 2, ["AB", "C"]),
        ("ABC", ["AB", "C"], 2, ["AB", "C"]),
        ("ABCD", ["AB", "C"], 2, ["AB", "CD"]),  # where there is room
        ("XABC", ["AB", "C"], 2, ["AB", "CX"]),  # wherever it is written
        ("BC", ["AB", "C"], 2, ["B", "C"]),  # nobody moves for one that left
        ("BCX", ["AB", "C"], 2, ["BX", "C"]),  # a connection that changes anyway takes it
        ("C", ["AB", "C"], 2, ["C"]),
        ("CD", ["AB"], 2, ["CD"]),
        ("ABCDE", ["A", "B"], 1, ["A", "B", "C", "D", "E"]),
        ("", ["A"], 1, []),
    ],
)
def test_markets_stay_where_they_are(wanted: str, groups: list[str], size: int, expected: list[str]) -> None:
    assert ["".join(group) for group in grouped(wanted, [tuple(group) for group in groups], size)] == expected


def test_every_market_is_in_one_group_and_no_group_that_fits_is_torn() -> None:
    """The mutation that must make this fail: `grouped(wanted, (), size)`, which deals them out anew."""
    dice = random.Random(7)
    for _ in range(500):
        size = dice.randint(1, 4)
        old = grouped(dice.sample("ABCDEFGHIJ", dice.randint(0, 10)), [], size)
        wanted = dice.sample("ABCDEFGHIJ", dice.randint(0, 10))
        new = grouped(wanted, old, size)
        assert sorted(market for group in new for market in group) == sorted(wanted)
        assert all(0 < len(group) <= size for group in new)
        for group in old:
            assert sum(bool(set(group) & set(other)) for other in new) <= 1
        assert grouped(wanted, new, size) == new


def test_nothing_is_done_where_nothing_changed(tmp_path: Path) -> None:
    exchanges = {"upbit": {"markets": [BTC, ETH], "markets_per_connection": 2}, "gopax": {"auth": True}, "korbit": {}}
    keys = "GOPAX_API_KEY=a\nGOPAX_SECRET_KEY=Yg=="
    running = planned(settings(tmp_path, exchanges, keys))
    again = settings(tmp_path, exchanges, keys, language="en", log={"level": "DEBUG"}, metrics={"port": 1})
    assert steps(running, planned(again, running)) == []
    assert [feed[:2] for feed in feeds(running)] == [("upbit", BTC), ("upbit", ETH), ("gopax", BTC), ("korbit", BTC)]


def change(folder: Path, before: Mapping[str, object], after: Mapping[str, object], *, keys: str = "k") -> list[Step]:
    running = planned(settings(folder, before, "GOPAX_API_KEY=k\nGOPAX_SECRET_KEY=Yg=="))
    return steps(running, planned(settings(folder, after, f"GOPAX_API_KEY={keys}\nGOPAX_SECRET_KEY=Yg=="), running))


def test_exchanges_and_markets_come_and_go_by_themselves(tmp_path: Path) -> None:
    found = change(
        tmp_path, {"upbit": {"markets": [BTC, ETH]}, "korbit": {}}, {"upbit": {"markets": [BTC, XRP]}, "coinone": {}}
    )
    assert shown(found) == [
        (["upbit ETH-KRW websocket"], []),
        (["korbit BTC-KRW websocket"], []),
        ([], ["upbit XRP-KRW websocket"]),
        ([], ["coinone BTC-KRW websocket"]),
    ]


def test_a_new_market_on_a_shared_connection_replaces_only_that_connection(tmp_path: Path) -> None:
    """The mutation that must make this fail: leave `running` out of `planned`."""
    before = {"upbit": {"markets": [BTC, ETH, XRP], "markets_per_connection": 2}}
    after = {"upbit": {"markets": [SOL, BTC, ETH, XRP], "markets_per_connection": 2}}
    assert shown(change(tmp_path, before, after)) == [
        (["upbit XRP-KRW websocket"], ["upbit XRP-KRW+SOL-KRW websocket"])
    ]


def test_connections_that_are_dealt_out_anew_belong_to_one_step(tmp_path: Path) -> None:
    """The mutation that must make this fail: match old and new one by one instead of by what they share."""
    one = {"upbit": {"markets": [BTC, ETH, XRP], "markets_per_connection": 1}}
    three = {"upbit": {"markets": [BTC, ETH, XRP], "markets_per_connection": 3}}
    single = [f"upbit {market} websocket" for market in (BTC, ETH, XRP)]
    together = ["upbit BTC-KRW+ETH-KRW+XRP-KRW websocket"]
    assert shown(change(tmp_path, one, three)) == [(single, together)]
    assert shown(change(tmp_path, three, one)) == [(together, single)]


def test_another_transport_takes_over_from_the_first(tmp_path: Path) -> None:
    found = change(tmp_path, {"bithumb": {"transport": "rest"}}, {"bithumb": {"transport": "websocket"}})
    assert shown(found) == [(["bithumb BTC-KRW rest"], ["bithumb BTC-KRW websocket"])]


@pytest.mark.parametrize(
    "option",
    [
        {"endpoint": {"websocket": "ws://127.0.0.1:1/"}},
        {"stale_s": 7},
        {"backoff": {"base_s": 2}},
        {"stall": {"floor_s": 11}},
        {"connection_age_s": 1000},
    ],
)
def test_what_a_connection_is_made_with_replaces_it(tmp_path: Path, option: dict[str, object]) -> None:
    """The mutation that must make this fail: leave `facts` out of the comparison."""
    found = change(tmp_path, {"upbit": {}, "korbit": {}}, {"upbit": option, "korbit": {}})
    assert shown(found) == [(["upbit BTC-KRW websocket"], ["upbit BTC-KRW websocket"])]


@pytest.mark.parametrize("option", [{"rate": {"connects_per_s": 2}}, {"markets_per_connection": 2}, {"markets": [BTC]}])
def test_what_belongs_to_the_exchange_replaces_no_connection(tmp_path: Path, option: dict[str, object]) -> None:
    assert change(tmp_path, {"upbit": {}}, {"upbit": option}) == []


def test_new_keys_replace_the_connections_that_sign_with_them(tmp_path: Path) -> None:
    """The mutation that must make this fail: `compare=False` for the keys of a `Connection`."""
    signed = {"gopax": {"auth": True}, "upbit": {}}
    assert shown(change(tmp_path, signed, signed, keys="new")) == [
        (["gopax BTC-KRW websocket"], ["gopax BTC-KRW websocket"])
    ]
    assert change(tmp_path, {"gopax": {}}, {"gopax": {}}, keys="new") == []
    assert "Yg==" not in repr(change(tmp_path, signed, signed, keys="new"))


# --- channels ---------------------------------------------------------------------------------------------------------

ALL_CHANNELS = ["orderbook", "trades", "ticker", "candles"]


def test_the_channels_of_one_market_may_fall_to_several_classes(tmp_path: Path) -> None:
    exchanges = {
        "upbit": {},
        "korbit": {"transport": "websocket"},
        "bithumb": {"transport": "websocket"},
        "binance": {"markets": ["BTC-USDT", "BTC-USDT:USDT"]},
        "okx": {"markets": ["BTC-USDT"], "channels": ["candles", "orderbook"]},
    }
    plan = planned(settings(tmp_path, exchanges, channels=ALL_CHANNELS))
    assert [f"{one.cls.__name__}: {named(one)}" for one in plan] == [
        "Upbit: upbit BTC-KRW websocket orderbook+trades+ticker+candles",
        "Korbit: korbit BTC-KRW websocket orderbook+trades+ticker",
        "KorbitCandles: korbit BTC-KRW rest candles",
        "BithumbWebSocket: bithumb BTC-KRW websocket orderbook+trades+ticker",
        "BithumbREST: bithumb BTC-KRW rest candles",
        "Binance: binance BTC-USDT websocket orderbook+trades+ticker+candles",
        "UsdmBooks: binance BTC-USDT:USDT websocket",
        "UsdmMarket: binance BTC-USDT:USDT websocket trades+ticker+candles",
        "OkxBusiness: okx BTC-USDT websocket candles",
        "Okx: okx BTC-USDT websocket",
    ]
    assert Feed("okx", "BTC-USDT", "candles") in list(feeds(plan))
    assert len(list(feeds(plan))) == len(set(feeds(plan))) == 5 * 4 + 2


def test_a_market_over_both_transports_has_its_candles_once(tmp_path: Path) -> None:
    both = [{BTC: {"transport": "rest"}}, {BTC: {"transport": "websocket"}}]
    plan = planned(settings(tmp_path, {"bithumb": {"markets": both}}, channels=["orderbook", "candles"]))
    assert list(map(named, plan)) == ["bithumb BTC-KRW rest orderbook+candles", "bithumb BTC-KRW websocket"]


def test_connections_share_something_only_where_exchange_market_and_channel_are_the_same(tmp_path: Path) -> None:
    """The mutation that must make this fail: leave the channels out of `_share`."""
    books = planned(settings(tmp_path, {"korbit": {}}))
    both = planned(settings(tmp_path, {"korbit": {}}, channels=["orderbook", "candles"]), books)
    assert shown(steps(books, both)) == [([], ["korbit BTC-KRW rest candles"])]
    assert shown(steps(both, books)) == [(["korbit BTC-KRW rest candles"], [])]
    candles = planned(settings(tmp_path, {"korbit": {}}, channels=["candles"]), books)
    assert shown(steps(books, candles)) == [(["korbit BTC-KRW websocket"], []), ([], ["korbit BTC-KRW rest candles"])]
    more = planned(settings(tmp_path, {"korbit": {}}, channels=["orderbook", "trades"]), books)
    assert shown(steps(books, more)) == [(["korbit BTC-KRW websocket"], ["korbit BTC-KRW websocket orderbook+trades"])]


def test_markets_stay_together_when_their_channels_change(tmp_path: Path) -> None:
    shared = {"upbit": {"markets": [BTC, ETH, XRP, SOL], "markets_per_connection": 2}}
    running = planned(settings(tmp_path, shared))
    turned = {"upbit": {"markets": [SOL, ETH, XRP, BTC], "markets_per_connection": 2, "channels": ["trades"]}}
    assert list(map(named, planned(settings(tmp_path, turned), running))) == [
        "upbit BTC-KRW+ETH-KRW websocket trades",
        "upbit XRP-KRW+SOL-KRW websocket trades",
    ]


def test_what_an_exchange_does_not_offer_is_left_out_and_told(tmp_path: Path) -> None:
    read = settings(
        tmp_path, {"upbit": {}, "kraken": {"enabled": False}}, markets=[BTC, "BTC-USDT:USDT"], channels=["ticker"]
    )
    assert list(left_out(read)) == [("upbit", "BTC-USDT:USDT")]
    assert list(map(named, planned(read))) == ["upbit BTC-KRW websocket ticker"]


# --- patterns ---------------------------------------------------------------------------------------------------------


def listed(*markets: str, whole: bool = True) -> dict[str, Listed]:
    return {"upbit": Listed(frozenset(markets), whole)}


def test_a_pattern_is_what_is_listed_of_it_beside_what_is_named(tmp_path: Path) -> None:
    read = settings(tmp_path, {"upbit": {"markets": ["*-KRW", "OLD-KRW"], "markets_per_connection": 1}})
    assert open_ended(read) == {"upbit": ("*-KRW",)}
    assert list(map(named, planned(read))) == ["upbit OLD-KRW websocket"]
    assert list(map(named, planned(read, (), listed(ETH, BTC, "BTC-USDT")))) == [
        f"upbit {market} websocket" for market in ("OLD-KRW", BTC, ETH)
    ]


def test_patterns_fill_connections_as_far_as_the_class_bears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers.controller_class("upbit"), "markets_per_connection", 3)
    markets = [f"C{number:02}-KRW" for number in range(7)]
    running = planned(settings(tmp_path, {"upbit": {}}, markets="all"), (), listed(*markets))
    assert [len(one.markets) for one in running] == [3, 3, 1]
    # One that is listed goes where there is room, one that is gone leaves its neighbours where they are.
    later = listed(*markets[1:], "NEW-KRW")
    again = planned(settings(tmp_path, {"upbit": {}}, markets="all"), running, later)
    assert [one.markets for one in again] == [(*markets[1:3], "NEW-KRW"), tuple(markets[3:6]), tuple(markets[6:])]
    assert len(steps(running, again)) == 1
    named_only = planned(settings(tmp_path, {"upbit": {}}, markets=markets), (), listed(*markets))
    assert [len(one.markets) for one in named_only] == [1] * 7


def test_while_a_list_is_not_known_what_runs_goes_on(tmp_path: Path) -> None:
    """The mutation that must make this fail: leave the running markets out where a list is not whole."""
    running = planned(settings(tmp_path, {"upbit": {"markets": [BTC, ETH], "markets_per_connection": 2}}))
    open_ = settings(tmp_path, {"upbit": {"markets": ["*-KRW"], "markets_per_connection": 2}})
    assert steps(running, planned(open_, running)) == []
    assert steps(running, planned(open_, running, listed(BTC, whole=False))) == []
    assert shown(steps(running, planned(open_, running, listed(BTC)))) == [
        (["upbit BTC-KRW+ETH-KRW websocket"], ["upbit BTC-KRW websocket"])
    ]
    assert planned(settings(tmp_path, {"upbit": {"markets": ["*-USDT"]}}), running) == []


def test_a_thousand_markets_are_a_few_dozen_connections(tmp_path: Path) -> None:
    read = settings(
        tmp_path, {name: {"transport": "websocket"} for name in ("upbit", "bithumb", "coinone", "korbit", "gopax")},
        markets=["*-KRW"], channels=["orderbook", "trades"],
    )  # fmt: skip
    sizes = {"upbit": 240, "bithumb": 450, "coinone": 360, "korbit": 200, "gopax": 122}
    known = {name: Listed(frozenset(f"C{n}-KRW" for n in range(size)), True) for name, size in sizes.items()}
    plan = planned(read, (), known)
    assert sum(len(one.markets) for one in plan) == sum(sizes.values())
    assert len(plan) == 29
    assert all(len(one.markets) <= 50 for one in plan if one.exchange == "gopax")  # the 51st book is refused
    assert sum(one.exchange == "coinone" for one in plan) <= 20
