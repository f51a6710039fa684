"""The settings: what can be set, its type, unit, default and meaning, all in the one place the models below are.

Validation, `docs/configuration.md`, the editor schema and `check` follow from the models. `load` finds every mistake in
one run and says where each was written. A value is taken from the command line, else the environment, else `.env`, else
the YAML file, else the default; one that is empty counts as not written.

Secrets come from the environment or `.env` only. They are kept apart from the settings, so that nothing that prints
settings can print them.
"""

import difflib
import io
import json
import os
import re
import socket
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    Strict,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from collector import yaml_lines
from collector.errors import ConfigError
from collector.yaml_lines import Mistake, Place, dotted

DEFAULT_FILE = Path("config/collector.yaml")
# What is recorded when the file has no `exchanges` at all.
DEFAULT_EXCHANGES = ("bithumb", "coinone", "gopax", "korbit", "upbit")

# Names in the environment and `.env`, as the owner wrote them.
CONFIG_VARIABLE = "COLLECTOR_CONFIG"
PATH_VARIABLES = {"DB_PATH": "storage.path", "LOG_PATH": "log.path"}
KEY_VARIABLES = {"gopax": ("GOPAX_API_KEY", "GOPAX_SECRET_KEY")}

Transport = Literal["rest", "websocket"]

_MARKET = r"^[A-Z0-9]{1,24}-[A-Z0-9]{2,12}$"
Market = Annotated[
    str,
    Field(pattern=_MARKET, json_schema_extra={"what": "a market", "allowed": "SYMBOL-CURRENCY in upper case"}),
]


def _url(*schemes: str) -> Any:
    allowed = f"a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes)}, without user and password"
    return Field(
        pattern=rf"^({'|'.join(schemes)})://[^\s/?#@]+(/[^\s@]*)?$",
        json_schema_extra={"what": "such a URL", "allowed": allowed},
    )


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("the home directory of this user is not known") from None


FilePath = Annotated[Path, Strict(False), AfterValidator(_expanded), WithJsonSchema({"type": "string"})]


class Section(BaseModel):
    """A group of settings: unknown names are mistakes, and a name without a value means the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in cls.model_fields or value not in (None, "")}


class Endpoint(Section):
    """Where to connect instead of the exchange's own address: a proxy, a test server, the simulator."""

    websocket: Annotated[str, _url("ws", "wss")] | None = Field(None, description="The whole WebSocket URL.")
    rest: Annotated[str, _url("http", "https"), AfterValidator(lambda url: url.rstrip("/"))] | None = Field(
        None, description="The base URL of REST requests; the exchange's own path is appended."
    )


class Backoff(Section):
    """How long a worker waits before it tries again: a random time below a limit that doubles with every failure."""

    base_s: float = Field(1, ge=0.01, le=60, description="The first limit, in seconds.")
    cap_s: float = Field(30, ge=0.01, le=3600, description="The limit never grows above this, in seconds.")
    healthy_s: float = Field(
        60, ge=0, le=3600, description="After so many seconds without a failure the limit starts again from `base_s`."
    )

    @model_validator(mode="after")
    def _cap_is_not_below_base(self) -> Self:
        if self.cap_s < self.base_s:
            raise ValueError(f"cap_s {self.cap_s:g} is below base_s {self.base_s:g}; allowed: cap_s of at least base_s")
        return self


class MarketOptions(Section):
    """What can be said of one market of one exchange."""

    transport: Transport | None = Field(None, description="As `transport` of the exchange, for this market alone.")


class MarketChoice(NamedTuple):
    """A market to record; `transport` is None where the exchange's own usual one is meant."""

    market: str
    transport: Transport | None


def _one_market(entry: Any) -> Any:
    return {entry: {}} if isinstance(entry, str) else _with_options(entry) if isinstance(entry, dict) else entry


def _with_options(entry: dict[str, Any]) -> dict[str, Any]:
    return {market: {} if options in (None, "") else options for market, options in entry.items()}


MarketEntry = Annotated[
    dict[Market, MarketOptions],
    Field(min_length=1, max_length=1),
    BeforeValidator(_one_market),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _MARKET},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "patternProperties": {
                        _MARKET: {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"transport": {"enum": list(get_args(Transport))}},
                        }
                    },
                },
            ],
            "what": "a market",
            "allowed": "SYMBOL-CURRENCY in upper case, or one such name with its options",
        }
    ),
]


class Exchange(Section):
    """One exchange; a name without any setting means all defaults."""

    enabled: bool = Field(True, description="Whether this exchange is recorded.")
    markets: list[MarketEntry] | None = Field(
        None,
        min_length=1,
        description="Markets of this exchange, instead of the common `markets`. "
        "An entry is `BTC-KRW`, or `{BTC-KRW: {transport: websocket}}` to give one market its own transport.",
    )
    transport: Transport | None = Field(
        None, description="`websocket` listens, `rest` polls. Without it the exchange's usual way is taken."
    )
    poll_interval_s: float = Field(0.1, ge=0.05, le=60, description="Seconds from one poll to the next, over `rest`.")
    auth: bool = Field(
        False, description="Sign the connection with the keys in the environment or `.env` (GOPAX takes keys)."
    )
    markets_per_connection: int = Field(
        1, ge=1, le=1000, description="How many markets share one connection, and so one thread."
    )
    endpoint: Endpoint = Field(default_factory=Endpoint, description="Other addresses than the exchange's own.")
    probe_interval_s: float = Field(
        60,
        ge=0,
        le=86_400,
        description="Seconds between two comparisons of a book kept from changes with a complete one over REST; 0 means never.",
    )
    stale_s: float | None = Field(
        None,
        ge=0.1,
        le=3600,
        description="Reconnect when not even a heartbeat arrived for so many seconds. "
        "Without it the exchange's own usual time is taken.",
    )
    backoff: Backoff = Field(default_factory=Backoff, description="Waits between two attempts.")


class Storage(Section):
    """Where the data goes."""

    path: FilePath = Field(Path("data/collector.sqlite"), description="The SQLite database file.")
    mode: Literal["changes", "full"] = Field(
        "changes",
        description="`changes` stores the price levels that changed, with complete books in between; "
        "`full` stores a complete book at every update, at about fifteen times the size.",
    )
    retention_days: int = Field(
        0, ge=0, le=36_500, description="Whole days that are kept; older ones are deleted. 0 keeps everything."
    )
    batch_ms: int = Field(250, ge=1, le=60_000, description="Commit after so many milliseconds at the latest.")
    batch_records: int = Field(1000, ge=1, le=100_000, description="Commit after so many records at the latest.")


class Intake(Section):
    """What waits in memory between the exchanges and the database."""

    memory_mib: int = Field(64, ge=1, le=65_536, description="How much may wait, in MiB; above it data is dropped.")


class Log(Section):
    """The log files."""

    path: FilePath = Field(Path("logs"), description="The directory of the log files.")
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least that is written.")
    file_mib: int = Field(20, ge=1, le=4096, description="A file is closed at this size, in MiB, and at midnight.")
    files: int = Field(14, ge=1, le=10_000, description="How many closed files of each log are kept.")
    stderr: bool = Field(True, description="Write everything to standard error too, for the systemd journal.")


class Metrics(Section):
    """The port with `/metrics`, `/healthz`, `/readyz` and `/status.json`."""

    enabled: bool = Field(True, description="Whether the port is opened.")
    host: str = Field("127.0.0.1", pattern=r"^\S+$", description="The address it listens on; there is no password.")
    port: int = Field(9464, ge=0, le=65_535, description="The port; 0 takes any free one.")


class Limits(Section):
    """What keeps side tables and waits from growing."""

    rejected_days: int = Field(30, ge=1, le=36_500, description="Days that messages nobody could read are kept.")
    rejected_mib: int = Field(1024, ge=1, le=1_048_576, description="MiB of such messages, the oldest go first.")
    event_days: int = Field(30, ge=1, le=36_500, description="Days that the log in the database is kept.")
    event_mib: int = Field(1024, ge=1, le=1_048_576, description="MiB of the log in the database, the oldest go first.")
    stop_timeout_s: float = Field(
        10, ge=0.1, le=600, description="Seconds a worker gets to stop before it is named in the log and left behind."
    )


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "collector"


def _default_exchanges() -> dict[str, Exchange]:
    return {name: Exchange() for name in DEFAULT_EXCHANGES}


def _named_exchanges(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: {} if exchange in (None, "") else exchange for name, exchange in value.items()}


class Settings(Section):
    """Everything that can be set; `load` is how to get one, `Settings()` is all defaults."""

    collector_id: str = Field(
        default_factory=_host_name,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="The name of this collector in the database. The default is the host name.",
        json_schema_extra={"what": "such a name", "allowed": "1 to 64 letters, digits, dots, dashes, underscores"},
    )
    language: Literal["ko", "en"] = Field("ko", description="The language of the log.")
    markets: list[Market] = Field(
        ["BTC-KRW"], min_length=1, description="Markets recorded at every exchange that does not name its own."
    )
    exchanges: Annotated[dict[str, Exchange], BeforeValidator(_named_exchanges)] = Field(
        default_factory=_default_exchanges,
        description="The exchanges to record, by name. Without this key: " + ", ".join(DEFAULT_EXCHANGES) + ".",
    )
    storage: Storage = Field(default_factory=Storage, description="Where the data goes.")
    intake: Intake = Field(default_factory=Intake, description="What waits in memory for the database.")
    log: Log = Field(default_factory=Log, description="The log files.")
    metrics: Metrics = Field(default_factory=Metrics, description="Metrics and health over HTTP.")
    limits: Limits = Field(default_factory=Limits, description="What keeps side tables and waits from growing.")

    _sources: dict[str, tuple[object, str]] = PrivateAttr(default_factory=dict)
    _secrets: dict[str, tuple[SecretStr, str]] = PrivateAttr(default_factory=dict)

    @property
    def sources(self) -> Mapping[str, tuple[object, str]]:
        """Every setting by its dotted path: the value in force, and where it was written."""
        return self._sources

    @property
    def secrets(self) -> Mapping[str, tuple[SecretStr, str]]:
        """The secrets that are set, by the name of their variable, and where each was written."""
        return self._secrets

    def keys(self, exchange: str) -> tuple[SecretStr, SecretStr] | None:
        """Return key and secret of an exchange, or None where they are not both set."""
        found = [self._secrets[name][0] for name in KEY_VARIABLES.get(exchange, ()) if name in self._secrets]
        return (found[0], found[1]) if len(found) == 2 else None

    def choices(self, exchange: str) -> tuple[MarketChoice, ...]:
        """Return the markets to record at an exchange, in the order they are written; none where it is disabled."""
        chosen = self.exchanges.get(exchange)
        if chosen is None or not chosen.enabled:
            return ()
        return _choices(chosen, self.markets)


def _choices(exchange: Exchange, markets: list[str]) -> tuple[MarketChoice, ...]:
    if exchange.markets is None:
        return tuple(MarketChoice(market, exchange.transport) for market in markets)
    return tuple(
        MarketChoice(market, options.transport or exchange.transport)
        for entry in exchange.markets
        for market, options in entry.items()
    )


def load(
    path: Path | None = None,
    *,
    env: Mapping[str, str] = os.environ,
    dotenv: Path | None = Path(".env"),
    flags: Mapping[str, object] = MappingProxyType({}),
    known: Mapping[str, set[str]],
) -> Settings:
    """Read, merge and validate all settings.

    *path* is the YAML file; without it `COLLECTOR_CONFIG`, else `config/collector.yaml`. *flags* are values from the
    command line by dotted path (`{"storage.path": "x.sqlite"}`); None and "" count as not given. A flag for `markets`
    stands above the markets of single exchanges too. *known* is every exchange the program has, with its transports.

    Raises `ConfigError` that names all mistakes, one a line; it never holds a secret.
    """
    mistakes: list[Mistake] = []
    variables = _variables(env, dotenv, mistakes)
    file = path or (Path(variables[CONFIG_VARIABLE][0]) if CONFIG_VARIABLE in variables else DEFAULT_FILE)
    document = yaml_lines.read(file)
    mistakes += document.mistakes
    raw = _Raw(document.data, {place: f"{file}:{line}" for place, line in document.lines.items()})
    if raw.tree.get("exchanges") in (None, ""):
        raw.tree["exchanges"] = {name: {} for name in DEFAULT_EXCHANGES if name in known}
    for name, target in PATH_VARIABLES.items():
        if name in variables:
            raw.put(target, *variables[name])
    for target, value in flags.items():
        if value not in (None, ""):
            raw.put(target, value, "flag")
    secrets = {
        name: (SecretStr(variables[name][0]), variables[name][1])
        for names in KEY_VARIABLES.values()
        for name in names
        if name in variables
    }

    settings = None
    try:
        settings = Settings.model_validate(raw.tree)
    except ValidationError as error:
        mistakes += [_explain(raw, detail) for detail in error.errors(include_url=False)]
    mistakes += list(_cross_checks(raw, {mistake.place for mistake in mistakes}, known, secrets))
    if mistakes or settings is None:
        mistakes.sort(key=_order)
        raise ConfigError("\n".join(dict.fromkeys(str(mistake) for mistake in mistakes)))
    settings._sources = {dotted(place): (value, raw.source(place)) for place, value in _leaves(settings, ())}
    settings._secrets = secrets
    return settings


class Row(NamedTuple):
    """A setting as `check` prints it."""

    name: str
    value: str
    source: str


def describe(settings: Settings) -> Iterator[Row]:
    """Yield every setting with its value and where it was written; of a secret only whether it is set."""
    for name, (value, source) in settings.sources.items():
        yield Row(name, _plain(value), source)
    for names in KEY_VARIABLES.values():
        for name in names:
            yield Row(
                name, *(("set", settings.secrets[name][1]) if name in settings.secrets else ("not set", "default"))
            )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the YAML file, for editors; a key without a value is allowed everywhere."""
    schema = Settings.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for name, setting in section.get("properties", {}).items():
            section["properties"][name] = _or_empty(setting)
    exchanges = schema["properties"]["exchanges"]["anyOf"][0]
    exchanges["additionalProperties"] = _or_empty(exchanges["additionalProperties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_empty(setting: dict[str, Any]) -> dict[str, Any]:
    setting.pop("title", None)  # the key again, in capitals
    outside: dict[str, Any] = {name: setting.pop(name) for name in ("default", "description") if name in setting}
    options = setting.pop("anyOf", None) or [setting]
    return {**outside, "anyOf": [*(option for option in options if option != {"type": "null"}), {"type": "null"}]}


# --- where values come from -------------------------------------------------------------------------------------------


class _Raw:
    """The settings before they are checked, and where each was written."""

    def __init__(self, tree: dict[str, Any], sources: dict[Place, str]) -> None:
        self.tree = tree
        self.sources = sources

    def put(self, target: str, value: object, source: str) -> None:
        """Set a value from outside the file, which then counts for everything beneath it."""
        place: Place = tuple(target.split("."))
        self._drop(place)
        if place == ("markets",) and isinstance(exchanges := self.tree.get("exchanges"), dict):
            for name, exchange in exchanges.items():
                if isinstance(exchange, dict):
                    exchange.pop("markets", None)
                    self._drop(("exchanges", name, "markets"))
        branch: Any = self.tree
        for step in place[:-1]:
            if branch.get(step) in (None, ""):
                branch[step] = {}
            branch = branch[step]
            if not isinstance(branch, dict):
                return  # a mistake in the file, told as such
        branch[place[-1]] = value
        self.sources[place] = source

    def _drop(self, place: Place) -> None:
        for below in [other for other in self.sources if other[: len(place)] == place]:
            del self.sources[below]

    def source(self, place: Place) -> str:
        """Tell where the value at *place* was written; one without a place of its own came with what is above it."""
        while place and place not in self.sources:
            if self.value(place, absent=True) is None:
                return "default"
            place = place[:-1]
        return self.sources.get(place, "default")

    def nearest(self, place: Place) -> str:
        """Tell where a person has to look for *place*, which may not be written at all."""
        while place and place not in self.sources:
            place = place[:-1]
        return self.sources.get(place, "default")

    def value(self, place: Place, *, absent: bool = False) -> Any:
        """Return what was written at *place*; None where nothing was."""
        branch: Any = self.tree
        for step in place:
            try:
                branch = branch[step]
            except (KeyError, IndexError, TypeError):
                return None
        return None if absent and branch == "" else branch


def _variables(env: Mapping[str, str], dotenv: Path | None, mistakes: list[Mistake]) -> dict[str, tuple[str, str]]:
    """Return the variables that are set and where: the environment stands above `.env`. No message shows a value."""
    names = [CONFIG_VARIABLE, *PATH_VARIABLES, *(name for pair in KEY_VARIABLES.values() for name in pair)]
    found: dict[str, tuple[str, str]] = {}
    for name, value in _dotenv(dotenv, mistakes):
        if name in names and value:
            found[name] = (value, f"{dotenv} {name}")
    found |= {name: (env[name], f"environment {name}") for name in names if env.get(name)}
    return found


def _dotenv(file: Path | None, mistakes: list[Mistake]) -> Iterator[tuple[str, str | None]]:
    if file is None:
        return
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return
    except OSError as error:
        mistakes.append(Mistake(str(file), (), f"the file can't be read: {error.strerror}"))
        return
    except UnicodeDecodeError:
        mistakes.append(Mistake(str(file), (), "the file is not UTF-8 text; save it as UTF-8"))
        return
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            line = binding.original.line
            mistakes.append(
                Mistake(f"{file}:{line}", (), "this line is not NAME=VALUE (it is not shown: it may be secret)")
            )
        elif binding.key is not None:
            yield binding.key, binding.value


def _leaves(section: Section, place: Place) -> Iterator[tuple[Place, object]]:
    """Yield every single setting; a list is one."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, (*place, name))
        elif isinstance(value, dict):
            for key, below in value.items():
                yield from _leaves(below, (*place, name, key))
        else:
            yield (*place, name), value


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_plain(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{k} ({v.transport})" if v.transport else k for k, v in value.items())
    return str(value)


# --- what a person is told --------------------------------------------------------------------------------------------

_COMPLAINTS = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a number",
    "bool_type": "is not a yes or no",
    "string_type": "is not text",
    "path_type": "is not a path",
    "list_type": "is not a list",
    "dict_type": "is not a group of settings",
    "model_type": "is not a group of settings",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "too_long": "is more than one market",
    "too_short": "is empty",
}


def _explain(raw: _Raw, error: ErrorDetails) -> Mistake:
    """Say in the house's words what pydantic found."""
    place: Place = ()
    for step in error["loc"]:  # the end of it may be pydantic's own ("[key]"): keep what was written
        if raw.value((*place, step)) is None and raw.value(place) is not None and not _written(raw, place, step):
            break
        place = (*place, step)
    value = raw.value(place)
    schema = _schema_at(place)
    kind = error["type"]
    if kind == "extra_forbidden":
        return _mistake(raw, place, _unknown(str(place[-1]), "a setting", _schema_at(place[:-1]).get("properties", {})))
    if kind == "value_error":
        return _mistake(raw, place, str(error["ctx"]["error"]))
    if kind == "string_pattern_mismatch" and isinstance(value, dict) and value:
        value = next(iter(value))
    complaint = _COMPLAINTS.get(kind) or f"is not {schema.get('what', 'known')}"
    return _mistake(raw, place, f"{_shown(value)} {complaint}; allowed: {_allowed(schema)}{_hint(value, schema)}")


def _written(raw: _Raw, place: Place, step: str | int) -> bool:
    parent = raw.value(place)
    return step in parent if isinstance(parent, dict) else isinstance(step, int) and isinstance(parent, list)


def _mistake(raw: _Raw, place: Place, text: str) -> Mistake:
    return Mistake(raw.nearest(place), place, text)


def _unknown(name: str, what: str, allowed: Iterable[str]) -> str:
    return f"{name!r} is not {what}; allowed: {', '.join(allowed)}{_did_you_mean(name, allowed)}"


def _shown(value: object) -> str:
    """Write what was found, without the password of a URL and not by the page."""
    text = re.sub(r"//[^/\s]*@", "//***@", repr(value))
    return text if len(text) <= 120 else text[:117] + "..."


def _schema_at(place: Place) -> dict[str, Any]:
    """Return the schema of a setting, resolved; an empty one for a place that can't exist."""
    definitions = SCHEMA["$defs"]
    schema = SCHEMA
    for step in place:
        schema = schema.get("items", {}) if isinstance(step, int) else _below(schema, step)
        options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
        if len(options) == 1:
            schema = {**schema, **options[0]}
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def _below(schema: dict[str, Any], step: str) -> dict[str, Any]:
    for option in [schema, *schema.get("anyOf", [])]:
        for pattern, below in option.get("patternProperties", {}).items():
            if re.search(pattern, step):
                return dict(below)
    if step in schema.get("properties", {}):
        return dict(schema["properties"][step])
    below = schema.get("additionalProperties", {})
    return dict(below) if isinstance(below, dict) else {}


def _allowed(schema: dict[str, Any]) -> str:
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    low, high = schema.get("minimum"), schema.get("maximum")
    limits = f" from {low} to {high}" if high is not None else ""
    match schema.get("type"):
        case "integer":
            return f"a whole number{limits}"
        case "number":
            return f"a number{limits}"
        case "boolean":
            return "true, false"
        case "array":
            return f"a list, each entry {_allowed(schema['items'])}"
        case "object":
            return (
                f"settings, one a line: {', '.join(schema['properties'])}"
                if "properties" in schema
                else "settings by name"
            )
    return "text"


def _hint(value: object, schema: dict[str, Any]) -> str:
    if schema.get("what") == "a market" and isinstance(value, str):
        market = _market_meant(value)
        return f" (did you mean {market!r}?)" if market else ""
    if schema.get("type") == "array" and isinstance(value, str):
        return f" (did you mean [{value}]?)"
    if schema.get("type") in ("integer", "number") and isinstance(value, str) and re.fullmatch(r"-?[0-9.]+", value):
        return f" (did you mean {value}, without quotes?)"
    if schema.get("type") == "boolean" and isinstance(value, str):
        return _did_you_mean(value, ("true", "false"))
    if schema.get("type") == "string" and isinstance(value, int | float) and "enum" not in schema:
        return f" (did you mean '{value}'?)"
    return _did_you_mean(str(value), schema.get("enum", ()))


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    folded = {other.casefold(): other for other in allowed}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def _market_meant(text: str) -> str | None:
    """Guess the market from how other programs write it: `btc/krw`, `BTC_KRW`, `BTCKRW`, `KRW-BTC`."""
    meant = re.sub(r"[^A-Z0-9]+", "-", text.strip().upper())
    if joined := re.fullmatch(r"([A-Z0-9]+?)(KRW|USDT|USDC|USD|EUR)", meant):
        meant = "-".join(joined.groups())
    if turned := re.fullmatch(r"KRW-([A-Z0-9]+)", meant):
        meant = f"{turned[1]}-KRW"
    return meant if re.search(_MARKET, meant) else None


# --- what one setting alone does not show -----------------------------------------------------------------------------


def _cross_checks(
    raw: _Raw, mistaken: set[Place], known: Mapping[str, set[str]], variables: Container[str]
) -> Iterator[Mistake]:
    """Find the mistakes between settings, in those parts that have none of their own."""

    def sound(place: Place) -> bool:
        return not any(other[: len(place)] == place for other in mistaken)

    common = raw.tree.get("markets") or ["BTC-KRW"]
    common_is_sound = sound(("markets",))
    if common_is_sound:
        yield from _listed_twice(raw, ("markets",), [MarketChoice(market, None) for market in common])
        yield from _turned_round(raw, ("markets",), common)
    exchanges = raw.tree.get("exchanges")
    if not isinstance(exchanges, dict):
        return
    enabled = False
    for name, written in exchanges.items():
        place: Place = ("exchanges", name)
        if name not in known:
            yield _mistake(raw, place, _unknown(name, "an exchange", sorted(known)))
        elif sound(place):
            exchange = Exchange.model_validate(written or {})
            enabled = enabled or exchange.enabled
            yield from _exchange_checks(raw, name, exchange, known[name], variables)
            if exchange.markets is not None:
                choices = _choices(exchange, [])
                yield from _listed_twice(raw, (*place, "markets"), choices)
                yield from _turned_round(raw, (*place, "markets"), [choice.market for choice in choices])
        else:
            enabled = True
    if not enabled and all(name in known for name in exchanges):
        yield _mistake(
            raw, ("exchanges",), "no exchange is enabled; allowed: at least one, of " + ", ".join(sorted(known))
        )


def _exchange_checks(
    raw: _Raw, name: str, exchange: Exchange, transports: set[str], variables: Container[str]
) -> Iterator[Mistake]:
    place: Place = ("exchanges", name)
    wanted: list[tuple[Place, str | None]] = [((*place, "transport"), exchange.transport)]
    for at, entry in enumerate(exchange.markets or []):
        wanted += [((*place, "markets", at, market, "transport"), entry[market].transport) for market in entry]
    for where, transport in wanted:
        if transport is not None and transport not in transports:
            yield _mistake(raw, where, f"{name} has no {transport!r}; allowed: {', '.join(sorted(transports))}")
    if exchange.auth and name not in KEY_VARIABLES:
        yield _mistake(raw, (*place, "auth"), f"{name} takes no keys; allowed: false")
    missing = [variable for variable in KEY_VARIABLES.get(name, ()) if variable not in variables]
    if exchange.auth and missing:
        wanted_names = " and ".join(KEY_VARIABLES[name])
        text = f"true needs {wanted_names} in the environment or .env; not set: {', '.join(missing)}"
        yield _mistake(raw, (*place, "auth"), text)


def _listed_twice(raw: _Raw, place: Place, choices: Iterable[MarketChoice]) -> Iterator[Mistake]:
    seen: dict[str, set[str | None]] = {}
    for at, (market, transport) in enumerate(choices):
        others = seen.setdefault(market, set())
        if others and (transport in others or None in (transport, *others)):
            text = f"{market!r} is listed twice; allowed: once, or once for each transport, named"
            yield _mistake(raw, (*place, at), text)
        others.add(transport)


def _turned_round(raw: _Raw, place: Place, markets: Iterable[str]) -> Iterator[Mistake]:
    """`KRW-BTC` is how some exchanges write it; taken as it stands it would record nothing."""
    for at, market in enumerate(markets):
        if market.startswith("KRW-"):
            text = f"{market!r} is not a market; allowed: SYMBOL-CURRENCY in upper case"
            yield _mistake(raw, (*place, at), f"{text} (did you mean {_market_meant(market)!r}?)")


def _order(mistake: Mistake) -> tuple[str, int]:
    file, _, line = mistake.source.rpartition(":")
    return (file, int(line)) if line.isdigit() else (mistake.source, 0)


SCHEMA = Settings.model_json_schema()

if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
