"""What a new configuration changes: nothing that could stay, and nothing that shares a connection is forgotten."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

import controllers
from collector.config import Settings, load
from commands.plan import Connection, Step, feeds, grouped, planned, steps

Groups = list[tuple[str, ...]]


def settings(folder: Path, exchanges: Mapping[str, object], dotenv: str = "", **sections: object) -> Settings:
    (folder / "c.yaml").write_text(json.dumps({"exchanges": exchanges, **sections}))
    (folder / ".env").write_text(dotenv)
    return load(folder / "c.yaml", env={}, dotenv=folder / ".env", flags={}, known=controllers.known())


def shown(found: list[Step]) -> list[tuple[list[str], list[str]]]:
    """Return steps as the names of their connections."""

    def names(connections: tuple[Connection, ...]) -> list[str]:
        return [f"{one.exchange} {'+'.join(one.markets)} {one.cls.transport}" for one in connections]

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
