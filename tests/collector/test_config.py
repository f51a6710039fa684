"""Settings: what is read from where, every mistake told in one run, and no secret ever shown."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml

from collector.config import Settings, describe, json_schema, load
from collector.errors import ConfigError
from collector.records import CHANNELS
from collector.settings import (
    PATH_VARIABLES,
    SECRET_VARIABLES,
    Channel,
    Known,
    MarketChoice,
    is_pattern,
    matches,
    resolved,
)
from tests.conftest import ROOT


class Spot(NamedTuple):
    """A way to record an exchange that has no contracts."""

    transport: str = "websocket"
    offers: tuple[str, ...] = ("orderbook", "trades", "ticker")

    def carries(self, market: str, channel: str) -> bool:
        return channel in self.offers and ":" not in market


class Contracts(Spot):
    """A way to record another that has nothing else."""

    def carries(self, market: str, channel: str) -> bool:
        return channel in self.offers and ":" in market


CANDLES = Spot("rest", ("candles",))
KNOWN: Known = {
    "bithumb": {"rest": [Spot("rest", CHANNELS)], "websocket": [Spot()]},
    "coinone": {"websocket": [Spot()], "rest": [CANDLES]},
    "gopax": {"websocket": [Spot()]},
    "korbit": {"websocket": [Spot()]},
    "upbit": {"websocket": [Spot("websocket", CHANNELS)]},
}
BAD = Path(__file__).parent / "bad_config"
SHIPPED = ROOT / "config" / "collector.yaml"
CANARY = "canary-9f3b1c"


def read(
    text: str,
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    dotenv: str | None = None,
    flags: Mapping[str, object] | None = None,
    known: Known = KNOWN,
) -> Settings:
    file = folder / "c.yaml"
    file.write_text(text, encoding="utf-8")
    if dotenv is not None:
        (folder / ".env").write_text(dotenv, encoding="utf-8")
    return load(file, env=env or {}, dotenv=folder / ".env", flags=flags or {}, known=known)


def refusal(*args: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        read(*args, **more)
    return str(refused.value)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(BAD.glob("*.yaml")), ids=lambda file: file.stem)
def test_what_a_person_is_told(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(file, env={}, dotenv=None, known=KNOWN)
    told = str(refused.value).replace(f"{BAD}/", "")
    assert told == file.with_suffix(".txt").read_text(encoding="utf-8").rstrip("\n")


def test_the_table_of_bad_files_is_whole() -> None:
    assert len(list(BAD.glob("*.yaml"))) >= 25
    assert {file.stem for file in BAD.glob("*.yaml")} == {file.stem for file in BAD.glob("*.txt")}


def test_the_example_of_the_style_guide() -> None:
    told = (BAD / "market_with_slash.txt").read_text(encoding="utf-8")
    assert told == (
        "market_with_slash.yaml:3: exchanges.bithumb.markets[1]: 'BTC/KRW' is not a market; "
        "allowed: SYMBOL-CURRENCY in upper case (did you mean 'BTC-KRW'?)\n"
    )


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.yaml", "there is no such file"), (tmp_path, "this is a directory")):
        with pytest.raises(ConfigError) as refused:
            load(path, env={}, dotenv=None, known=KNOWN)
        assert str(refused.value).startswith(f"{path}: {reason}")
        assert "\n" not in str(refused.value)


def test_deep_nesting_is_a_mistake_and_no_crash(tmp_path: Path) -> None:
    assert "nested too deeply" in refusal("markets: " + "[" * 5000, tmp_path)


def test_mistakes_of_all_places_come_in_one_run(tmp_path: Path) -> None:
    told = refusal(
        "langage: ko\n", tmp_path, dotenv="no assignment\n", flags={"metrics.port": 99_999, "storage.pth": "x"}
    )
    assert len(told.splitlines()) == 4
    assert "flag: metrics.port: 99999 is too large" in told
    assert "flag: storage.pth: 'pth' is not a setting" in told


def test_a_flag_beneath_a_value_leaves_the_mistake_to_the_file(tmp_path: Path) -> None:
    told = refusal("storage: here\n", tmp_path, flags={"storage.path": "x.sqlite"})
    assert told.startswith(f"{tmp_path}/c.yaml:1: storage: 'here' is not a group of settings")


# --- where values come from -------------------------------------------------------------------------------------------


def test_order_of_the_sources(tmp_path: Path) -> None:
    text, dotenv, env, flags = "storage:\n  path: yaml\n", "DB_PATH=dotenv\n", {"DB_PATH": "env"}, {"storage.path": "f"}
    file = tmp_path / "c.yaml"
    steps: list[tuple[dict[str, Any], str, str]] = [
        ({"dotenv": dotenv, "env": env, "flags": flags}, "f", "flag"),
        ({"dotenv": dotenv, "env": env}, "env", "environment DB_PATH"),
        ({"dotenv": dotenv, "env": {"DB_PATH": ""}}, "dotenv", f"{tmp_path}/.env DB_PATH"),
        ({"dotenv": "DB_PATH=\n"}, "yaml", f"{file}:2"),
    ]
    for given, value, source in steps:
        settings = read(text, tmp_path, **given)
        assert settings.storage.path == Path(value)
        assert settings.sources["storage.path"] == (Path(value), source)
    settings = read("language: en\nstorage:\n  path:\n", tmp_path)
    assert settings.sources["storage.path"] == (Path("data/collector.sqlite"), "default")
    assert settings.sources["language"] == ("en", f"{file}:1")


def test_the_file_itself_is_found_by_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yaml").write_text("language: en\n")
    monkeypatch.chdir(tmp_path)
    settings = load(env={"COLLECTOR_CONFIG": "other.yaml"}, known=KNOWN)
    assert settings.sources["language"] == ("en", "other.yaml:1")
    (tmp_path / ".env").write_text("COLLECTOR_CONFIG=other.yaml\nLOG_PATH='my logs'\n")
    settings = load(env={}, known=KNOWN)
    assert settings.language == "en"
    assert settings.sources["log.path"] == (Path("my logs"), ".env LOG_PATH")
    with pytest.raises(ConfigError, match=r"^config/collector\.yaml: there is no such file"):
        load(env={}, dotenv=None, known=KNOWN)


def test_a_flag_for_markets_stands_above_those_of_an_exchange(tmp_path: Path) -> None:
    text = "exchanges:\n  upbit: {markets: [XRP-KRW]}\n  gopax:\n"
    settings = read(text, tmp_path, flags={"markets": ["ETH-KRW"]})
    assert settings.choices("upbit") == settings.choices("gopax") == (MarketChoice("ETH-KRW", None),)
    assert settings.sources["markets"] == (["ETH-KRW"], "flag")
    assert settings.sources["exchanges.upbit.markets"] == (None, "default")


def test_a_flag_for_one_endpoint_leaves_all_exchanges_on(tmp_path: Path) -> None:
    flags = {"exchanges.upbit.endpoint": {"websocket": "ws://127.0.0.1:9001/a?b=c", "rest": "http://127.0.0.1:9001/u/"}}
    settings = read("language: en\n", tmp_path, flags=flags)
    assert list(settings.exchanges) == sorted(KNOWN)
    assert settings.exchanges["upbit"].endpoint.websocket == "ws://127.0.0.1:9001/a?b=c"
    assert settings.exchanges["upbit"].endpoint.rest == "http://127.0.0.1:9001/u"
    assert settings.sources["exchanges.upbit.endpoint.rest"][1] == "flag"


def test_default_exchanges_are_those_the_program_has(tmp_path: Path) -> None:
    assert list(read("exchanges:\n", tmp_path, known={"upbit": KNOWN["upbit"], "kraken": {}}).exchanges) == ["upbit"]


def test_markets_of_an_exchange(tmp_path: Path) -> None:
    settings = read(
        """
markets: [BTC-KRW, XRP-KRW]
exchanges:
  upbit:
  gopax: {enabled: false}
  bithumb:
    transport: rest
    markets:
      - BTC-KRW
      - BTC-KRW: {transport: websocket}
      - ETH-KRW:
""",
        tmp_path,
    )
    assert settings.choices("upbit") == (MarketChoice("BTC-KRW", None), MarketChoice("XRP-KRW", None))
    assert settings.choices("gopax") == settings.choices("korbit") == ()
    assert settings.choices("bithumb") == (
        MarketChoice("BTC-KRW", "rest"),
        MarketChoice("BTC-KRW", "websocket"),
        MarketChoice("ETH-KRW", "rest"),
    )
    rows = {row.name: row.value for row in describe(settings)}
    assert rows["exchanges.bithumb.markets"] == "[BTC-KRW, BTC-KRW (websocket), ETH-KRW]"


def test_a_market_given_to_one_transport_twice(tmp_path: Path) -> None:
    text = "exchanges:\n  bithumb:\n    markets: [{BTC-KRW: {transport: rest}}, {BTC-KRW: {transport: rest}}]\n"
    assert "markets[1]: 'BTC-KRW' is listed twice" in refusal(text, tmp_path)


def test_a_transport_of_one_market_the_exchange_does_not_have(tmp_path: Path) -> None:
    told = refusal("exchanges:\n  upbit:\n    markets:\n      - BTC-KRW: {transport: rest}\n", tmp_path)
    assert told.endswith(
        "c.yaml:4: exchanges.upbit.markets[0].BTC-KRW.transport: upbit has no 'rest'; allowed: websocket"
    )


def test_home_directories_are_found(tmp_path: Path) -> None:
    assert read("log: {path: ~/logs}\n", tmp_path).log.path == Path.home() / "logs"
    assert "home directory" in refusal("log: {path: ~nobody-of-this-name/logs}\n", tmp_path)


# --- channels, and markets by pattern ---------------------------------------------------------------------------------


def test_channels_are_common_or_an_exchange_s_own(tmp_path: Path) -> None:
    assert get_args(Channel) == CHANNELS
    assert read("language: ko\n", tmp_path).channels_of("upbit") == ("orderbook",)
    text = "channels: [orderbook, candles]\nexchanges:\n  upbit: {channels: [ticker]}\n  gopax:\n"
    settings = read(text, tmp_path)
    assert settings.channels_of("upbit") == ("ticker",)
    assert settings.channels_of("gopax") == ("orderbook", "candles")  # what it does not offer is left out by the plan
    rows = {row.name: row.value for row in describe(settings)}
    assert rows["channels"] == "[orderbook, candles]"
    assert rows["exchanges.gopax.channels"] == "-"


def test_a_transport_is_chosen_for_the_books_or_else_for_what_there_is(tmp_path: Path) -> None:
    text = "exchanges:\n  coinone: {transport: rest, channels: [candles]}\n"
    assert read(text, tmp_path).exchanges["coinone"].transport == "rest"
    told = refusal("exchanges:\n  coinone: {transport: rest, channels: [candles, orderbook]}\n", tmp_path)
    assert told.endswith("exchanges.coinone.transport: coinone has no 'rest' for orderbook; allowed: websocket")


def test_a_contract_is_for_those_who_have_contracts(tmp_path: Path) -> None:
    text = "exchanges:\n  both:\n    markets: [BTC-USDT, 'BTC-USDT:USDT', 'BTC-USD:BTC-261225-100000-C']\n"
    both: Known = {"both": {"websocket": [Spot(), Contracts()]}}
    assert len(read(text, tmp_path, known=both).choices("both")) == 3
    told = refusal(text, tmp_path, known={"both": {"websocket": [Contracts()]}})
    assert told.endswith("markets[0]: both has no market of the kind of 'BTC-USDT'; allowed: what `markets both` lists")


@pytest.mark.parametrize(
    ("entry", "meant", "not_meant"),
    [
        ("BTC-KRW", "BTC-KRW", "ABTC-KRW BTC-KRWX BTC-KRW:KRW"),
        ("*-KRW", "BTC-KRW 1INCH-KRW", "BTC-KRWX BTC-USDT KRW-BTC BTC-KRW:KRW"),
        ("BTC-*", "BTC-KRW BTC-USDT", "WBTC-KRW BTC-USDT:USDT"),
        ("*-*", "BTC-KRW", "BTC-USDT:USDT"),
        ("*-USD*", "BTC-USD BTC-USDT BTC-USDC", "BTC-KRW BTC-USDT:USDT"),
        ("B*C-K*W", "BTC-KRW BC-KW", "BTC-KR"),
        ("**-KRW", "BTC-KRW", "BTC-USD"),
        ("*-USDT:USDT", "BTC-USDT:USDT", "BTC-USDT BTC-USDT:USDT-261225"),
        ("BTC-USD:BTC-*-*-C", "BTC-USD:BTC-261225-100.5-C", "BTC-USD:BTC-261225-100-P BTC-USD:BTC-261225"),
        ("all", "BTC-KRW BTC-USDT:USDT", ""),
    ],
)
def test_what_an_entry_of_markets_means(entry: str, meant: str, not_meant: str, tmp_path: Path) -> None:
    assert read(f"markets: ['{entry}']\n", tmp_path).markets == [entry]
    assert is_pattern(entry) == (entry != "BTC-KRW")
    assert [market for market in f"{meant} {not_meant}".split() if matches(entry, market)] == meant.split()


def test_a_pattern_of_many_stars_is_over_soon() -> None:
    """The mutation that must make this hang: leave out the atomic groups of `matches`."""
    stars = "*A" * 12 + "-" + "*A" * 6
    assert not matches(stars, "A" * 24 + "-" + "A" * 11 + "B")
    assert matches(stars, "A" * 24 + "-" + "A" * 12)


def test_all_is_a_word_or_an_entry(tmp_path: Path) -> None:
    for text in ("markets: all\n", "markets: [all]\n"):
        assert read(text, tmp_path).choices("upbit") == (MarketChoice("all", None),)
    settings = read(
        "exchanges:\n  bithumb: {markets: all}\n  upbit: {markets: [all: {transport: websocket}]}\n", tmp_path
    )
    assert settings.choices("bithumb") == (MarketChoice("all", None),)
    assert settings.choices("upbit") == (MarketChoice("all", "websocket"),)


def test_what_is_named_stands_above_patterns_and_the_first_pattern_above_the_next() -> None:
    choices = [
        MarketChoice("X*-KRW", "rest"),
        MarketChoice("ETH-KRW", "rest"),
        MarketChoice("*-KRW", "websocket"),
        MarketChoice("OLD-KRW", None),
    ]
    assert resolved(choices, ["XRP-KRW", "BTC-USDT", "ETH-KRW", "BTC-KRW"]) == (
        MarketChoice("ETH-KRW", "rest"),
        MarketChoice("OLD-KRW", None),
        MarketChoice("BTC-KRW", "websocket"),
        MarketChoice("XRP-KRW", "rest"),
    )
    assert resolved(choices, []) == (MarketChoice("ETH-KRW", "rest"), MarketChoice("OLD-KRW", None))
    assert resolved([MarketChoice("ETH-KRW", None)], ["BTC-KRW"]) == (MarketChoice("ETH-KRW", None),)


# --- secrets ----------------------------------------------------------------------------------------------------------

AUTH = "exchanges:\n  gopax:\n    auth: true\n"


def test_secrets_are_set_and_never_shown(tmp_path: Path) -> None:
    env = {"GOPAX_API_KEY": f"{CANARY}-key"}
    settings = read(AUTH, tmp_path, env=env, dotenv=f"GOPAX_SECRET_KEY={CANARY}-$HOME\n")
    keys = settings.keys("gopax")
    assert keys is not None
    assert [key.get_secret_value() for key in keys] == [f"{CANARY}-key", f"{CANARY}-$HOME"]
    assert settings.keys("upbit") is None
    rows = {row.name: (row.value, row.source) for row in describe(settings)}
    assert rows["GOPAX_API_KEY"] == ("set", "environment GOPAX_API_KEY")
    assert rows["GOPAX_SECRET_KEY"] == ("set", f"{tmp_path}/.env GOPAX_SECRET_KEY")
    shown = [
        settings,
        settings.secrets,
        settings.sources,
        rows,
        keys,
        settings.model_dump(),
        settings.model_dump_json(),
    ]
    assert CANARY not in "".join(f"{thing!r} {thing}" for thing in shown)


def test_empty_secrets_are_not_set(tmp_path: Path) -> None:
    settings = read("language: ko\n", tmp_path, env={"GOPAX_API_KEY": ""}, dotenv="GOPAX_SECRET_KEY=\n")
    assert not settings.secrets
    assert ("GOPAX_API_KEY", "not set", "default") in list(describe(settings))


def test_one_key_is_not_enough(tmp_path: Path) -> None:
    told = refusal(AUTH, tmp_path, env={"GOPAX_API_KEY": CANARY})
    assert "GOPAX_API_KEY and GOPAX_SECRET_KEY" in told
    assert told.endswith("not set: GOPAX_SECRET_KEY")
    assert CANARY not in told


@pytest.mark.parametrize(
    "line",
    [
        CANARY,
        f"{CANARY} = x = y z",
        f"GOPAX_API_KEY '{CANARY}'",
        f"GOPAX_API_KEY='{CANARY}",
        f"'{CANARY}",
        f"={CANARY}",
    ],
)
def test_a_line_of_env_that_is_none_is_told_by_its_number(line: str, tmp_path: Path) -> None:
    told = refusal("langage: ko\n", tmp_path, dotenv=f"DB_PATH=x\n{line}\n")
    assert CANARY not in told
    if "= x" not in line:
        assert f"{tmp_path}/.env:2: this line is not NAME=VALUE" in told


def test_an_env_file_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"GOPAX_API_KEY=\xff\xfe" + CANARY.encode())
    told = refusal("language: ko\n", tmp_path)
    assert told == f"{tmp_path}/.env: the file is not UTF-8 text; save it as UTF-8"
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert refusal("language: ko\n", tmp_path).startswith(f"{tmp_path}/.env: the file can't be read")


# --- what is shipped --------------------------------------------------------------------------------------------------


def leaves(schema: dict[str, Any], section: dict[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of the schema by its dotted name, `NAME` for an exchange."""
    for name, setting in section["properties"].items():
        below = next((option for option in setting["anyOf"] if "$ref" in option), None)
        if name == "exchanges":
            exchange = schema["$defs"]["Exchange"]
            yield from leaves(schema, exchange, "exchanges.NAME.")
        elif name == "products":  # holds what holds it
            yield place + name, setting
        elif below:
            yield from leaves(schema, schema["$defs"][below["$ref"].rpartition("/")[2]], f"{place}{name}.")
        else:
            yield place + name, setting


def test_the_shipped_file_runs_as_it_is() -> None:
    settings = load(SHIPPED, env={}, dotenv=None, known=KNOWN)
    assert list(settings.exchanges) == sorted(KNOWN)
    assert settings.choices("bithumb") == (MarketChoice("BTC-KRW", "rest"),)
    assert settings.storage == Settings().storage and settings.log == Settings().log


def test_every_default_that_is_commented_out_is_the_default() -> None:
    """Taking the `# ` from every setting changes nothing but the two that are examples."""
    text = SHIPPED.read_text(encoding="utf-8")
    opened = re.sub(r"(?m)^( *)# ([a-z_]+: \S.*)$", r"\1\2", text)
    assert opened != text
    data, default = yaml.safe_load(opened), Settings().model_dump(mode="json")
    examples = {"collector_id": data.pop("collector_id"), "markets": data["exchanges"]["upbit"].pop("markets")}
    assert all(examples.values())
    assert data["exchanges"]["bithumb"].pop("transport") == "rest"
    for name, value in data.items():
        if name == "exchanges":
            for exchange, written in value.items():
                assert (written or {}).items() <= default["exchanges"][exchange].items()
        elif isinstance(value, dict):
            assert value.items() <= default[name].items()
        else:
            assert value == default[name]


def test_the_editor_schema_is_up_to_date_and_accepts_what_is_shipped() -> None:
    stored = json.loads((ROOT / "config" / "collector.schema.json").read_text(encoding="utf-8"))
    assert stored == json_schema(), "run `make schema`"
    assert SHIPPED.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=collector.schema.json\n")
    jsonschema = pytest.importorskip("jsonschema", reason="only among the development requirements")
    jsonschema.Draft202012Validator.check_schema(stored)
    validator = jsonschema.Draft202012Validator(stored)
    validator.validate(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")))
    validator.validate({"exchanges": {"bithumb": {"markets": ["BTC-KRW", {"ETH-KRW": {"transport": "websocket"}}]}}})
    validator.validate({"markets": "all", "channels": ["trades"], "exchanges": {"upbit": {"markets": ["*-KRW"]}}})
    bad: list[dict[str, Any]] = [
        {"lanugage": "ko"},
        {"markets": ["BTC/KRW"]},
        {"markets": "ALL"},
        {"channels": ["x"]},
        {"exchanges": {"upbit": {"x": 1}}},
    ]
    for wrong in bad:
        assert not validator.is_valid(wrong), wrong


def test_every_setting_is_in_the_document() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    schema = json_schema()
    rows = {row[1]: row[0] for row in re.finditer(r"(?m)^\| `([^`]+)` \|.*$", text)}
    wanted = dict(leaves(schema, schema, ""))
    assert set(rows) == set(wanted) | {*PATH_VARIABLES, *SECRET_VARIABLES} | {"COLLECTOR_CONFIG"}
    for name, setting in wanted.items():
        assert setting["description"] in rows[name], name
        if setting.get("default") is not None:
            assert f"`{json.dumps(setting['default']).strip(chr(34))}`" in rows[name], name


def test_the_env_example_names_every_variable_and_sets_none(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = re.findall(r"(?m)^([A-Z_]+)=$", text)
    assert names == [*PATH_VARIABLES, *SECRET_VARIABLES]
    assert read("language: ko\n", tmp_path, dotenv=text).storage == Settings().storage
