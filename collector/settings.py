"""The settings: what can be set, its type, unit, range, default and meaning.

Validation, `docs/configuration.md`, the editor schema and `check` follow from the models here; `collector.config` reads
them from a file. Secrets come from the environment or `.env` only. They are kept apart from the settings, so that
nothing that prints settings can print them.
"""

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    Strict,
    WithJsonSchema,
    model_validator,
)

DEFAULT_EXCHANGES = ("bithumb", "coinone", "gopax", "korbit", "upbit")

# Names in the environment and `.env`, as the owner wrote them.
CONFIG_VARIABLE = "COLLECTOR_CONFIG"
PATH_VARIABLES = {"DB_PATH": "storage.path", "LOG_PATH": "log.path"}
KEY_VARIABLES = {"gopax": ("GOPAX_API_KEY", "GOPAX_SECRET_KEY")}
DATABASE_VARIABLE = "DATABASE_URL"  # above `storage.url`, since it may hold a password
SECRET_VARIABLES = (DATABASE_VARIABLE, *(name for names in KEY_VARIABLES.values() for name in names))

Transport = Literal["rest", "websocket"]
Channel = Literal["orderbook", "trades", "ticker", "candles"]  # `collector.records.CHANNELS`

MARKET_PATTERN = r"^[A-Z0-9]{1,24}-[A-Z0-9]{2,12}(:[A-Z0-9]{2,24}(-[0-9]{6}(-[0-9.]{1,16}-[CP])?)?)?$"

ALL = "all"
_STARRED = r"[A-Z0-9]*\*[A-Z0-9*]*"
# What `markets` takes: `all`, or a market of which any part may hold stars.
MARKETS_PATTERN = (
    rf"^({ALL}|[A-Z0-9*]{{1,24}}-([A-Z0-9]{{2,12}}|{_STARRED})"
    rf"(:([A-Z0-9]{{2,24}}|{_STARRED})(-([0-9]{{6}}|[0-9]*\*[0-9*]*)(-[0-9.*]{{1,16}}-[CP*])?)?)?)$"
)
_MARKET = "SYMBOL-CURRENCY in upper case, of contracts SYMBOL-CURRENCY:SETTLE"
_MARKETS = {"what": "a market", "allowed": f"{_MARKET}, * for any letters, or {ALL}"}
Market = Annotated[str, Field(pattern=MARKET_PATTERN, json_schema_extra={"what": "a market", "allowed": _MARKET})]
Markets = Annotated[str, Field(pattern=MARKETS_PATTERN, json_schema_extra={**_MARKETS})]


def is_pattern(entry: str) -> bool:
    """Tell whether an entry of `markets` names none by itself: `all`, `*-KRW`."""
    return entry == ALL or "*" in entry


def matches(entry: str, market: str) -> bool:
    """Tell whether a market is one that an entry of `markets` means.

    A star stands for any letters and digits, not for what divides them: `*-USDT` means no contract.
    """
    if entry == ALL:
        return True
    first, *rest = (re.escape(part) for part in re.split(r"\*+", entry))
    # Each part is looked for once: with many stars, trying every way to divide a market among them would not end.
    inner = "".join(f"(?>[A-Z0-9.]*?{part})" for part in rest[:-1])
    return re.fullmatch(first + inner + "".join(f"[A-Z0-9.]*{part}" for part in rest[-1:]), market) is not None


class Way(Protocol):
    """One way an exchange can be recorded; the classes of `controllers` are such."""

    @property
    def transport(self) -> str:
        """`websocket` or `rest`."""

    @property
    def offers(self) -> tuple[str, ...]:
        """The channels it has."""

    def carries(self, market: str, channel: str) -> bool:
        """Tell whether it has a channel of a market."""


Known = Mapping[str, Mapping[str, Sequence[Way]]]
"""Every exchange the program has, and by transport the ways each can be recorded."""


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


def _without_password(url: str) -> str:
    if "passw" in url.casefold():
        raise ValueError(
            "the address holds a password; allowed: an address without one, and the password in DATABASE_URL in the "
            "environment or .env, PGPASSWORD, or ~/.pgpass"
        )
    return url


FilePath = Annotated[
    Path, Strict(False), AfterValidator(_expanded), WithJsonSchema({"type": "string", "allowed": "a path"})
]


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
    products: dict[str, "Endpoint"] = Field(
        default_factory=dict,
        description="The same for products that have addresses of their own, by name: `usdm` at Binance, for one.",
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


class Stall(Section):
    """When a feed that says nothing is doubted: after the silences it is known for, within these bounds."""

    floor_s: float = Field(
        10, ge=0.1, le=3600, description="No feed is doubted before it was silent for so many seconds."
    )
    ceiling_s: float | None = Field(
        None,
        ge=0.1,
        le=86_400,
        description="Every feed is doubted after so many seconds, however quiet it is known to be. "
        "Without it the exchange's own value is taken, usually 300.",
    )

    @model_validator(mode="after")
    def _ceiling_is_not_below_floor(self) -> Self:
        if self.ceiling_s is not None and self.ceiling_s < self.floor_s:
            raise ValueError(
                f"ceiling_s {self.ceiling_s:g} is below floor_s {self.floor_s:g}; "
                "allowed: ceiling_s of at least floor_s"
            )
        return self


class Rate(Section):
    """How fast all connections to the exchange together may ask it for something."""

    requests_per_s: float | None = Field(
        None,
        ge=0.01,
        le=10_000,
        description="REST requests a second, polls included. Without it the limit the exchange documents is taken.",
    )
    connects_per_s: float | None = Field(
        None,
        ge=0.01,
        le=1000,
        description="New connections a second. Without it the limit the exchange documents is taken.",
    )


class MarketOptions(Section):
    """What can be said of one market of one exchange."""

    transport: Transport | None = Field(None, description="As `transport` of the exchange, for this market alone.")


class MarketChoice(NamedTuple):
    """A market to record, or a pattern of them; `transport` is None where the exchange's own usual one is meant."""

    market: str
    transport: Transport | None


def _all_markets(markets: Any) -> Any:
    return [ALL] if markets == ALL else markets


def _or_all(schema: dict[str, Any]) -> None:
    # Beside a list, the one word; nothing else of the schema changes.
    kept: dict[str, Any] = {name: schema.pop(name) for name in ("default", "description", "title") if name in schema}
    options = schema.pop("anyOf", None) or [{**schema}]
    schema.clear()
    schema |= {**kept, "anyOf": [{"const": ALL}, *options]}


def _one_market(entry: Any) -> Any:
    return {entry: {}} if isinstance(entry, str) else _with_options(entry) if isinstance(entry, dict) else entry


def _with_options(entry: dict[str, Any]) -> dict[str, Any]:
    return {market: {} if options in (None, "") else options for market, options in entry.items()}


MarketEntry = Annotated[
    dict[Markets, MarketOptions],
    Field(min_length=1, max_length=1),
    BeforeValidator(_one_market),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": MARKETS_PATTERN},
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "patternProperties": {
                        MARKETS_PATTERN: {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"transport": {"enum": list(get_args(Transport))}},
                        }
                    },
                },
            ],
            **_MARKETS,
        }
    ),
]


class Exchange(Section):
    """One exchange; a name without any setting means all defaults."""

    enabled: bool = Field(True, description="Whether this exchange is recorded.")
    markets: Annotated[list[MarketEntry] | None, BeforeValidator(_all_markets)] = Field(
        None,
        min_length=1,
        description="Markets of this exchange, instead of the common `markets`. An entry is as there, "
        "or `{BTC-KRW: {transport: websocket}}` to give one market, or all of a pattern, its own transport.",
        json_schema_extra=_or_all,
    )
    channels: list[Channel] | None = Field(
        None, min_length=1, description="What is recorded of this exchange's markets, instead of the common `channels`."
    )
    transport: Transport | None = Field(
        None,
        description="`websocket` listens, `rest` polls. Without it the exchange's usual way is taken, "
        "as for a channel that can be had in one way only.",
    )
    poll_interval_s: float = Field(0.1, ge=0.05, le=60, description="Seconds from one poll to the next, over `rest`.")
    auth: bool = Field(
        False, description="Sign the connection with the keys in the environment or `.env` (GOPAX takes keys)."
    )
    markets_per_connection: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="How many markets share one connection, and so one thread. Without it 1 where all are named, "
        "and with `all` or a pattern what the exchange bears well, usually 50.",
    )
    endpoint: Endpoint = Field(default_factory=Endpoint, description="Other addresses than the exchange's own.")
    probe_interval_s: float = Field(
        30,
        ge=0,
        le=86_400,
        description="Seconds between comparisons of a book kept from changes with a complete one over REST. "
        "Such a book counts as recorded up to the last one that agreed; 0: only its first message does.",
    )
    stale_s: float | None = Field(
        None,
        ge=0.1,
        le=3600,
        description="Reconnect when not even a heartbeat arrived for so many seconds. "
        "Without it the exchange's own usual time is taken.",
    )
    stall: Stall = Field(default_factory=Stall, description="When a feed that says nothing is doubted.")
    connection_age_s: float | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="The age at which the exchange closes a connection, in seconds: shortly before, another one takes "
        "over. Without it the exchange's own limit is taken, where one is known.",
    )
    backoff: Backoff = Field(default_factory=Backoff, description="Waits between two attempts.")
    rate: Rate = Field(default_factory=Rate, description="How fast the exchange may be asked.")


class SpoolOptions(Section):
    """The queue on disk that records go through while the database is away."""

    path: FilePath | None = Field(
        None,
        description="Its directory, for one collector alone. Without it: the database file's name with `.spool` "
        "beside it, or `data/COLLECTOR_ID.spool` for PostgreSQL.",
    )
    limit_mib: int = Field(
        8192, ge=0, le=16_777_216, description="How much may wait there, in MiB; 0: nothing, it waits in memory only."
    )
    fsync: Literal["batch", "interval", "never"] = Field(
        "batch",
        description="When what was written is brought to the disk: with every `batch`, once a second (`interval`), or "
        "when the operating system likes (`never`); what is not there is lost in a power cut, and the ledger says so.",
    )
    when_full: Literal["drop_newest", "drop_oldest"] = Field(
        "drop_newest",
        description="`drop_newest` refuses what comes in, `drop_oldest` gives up what waits longest, up to the next "
        "complete book of each feed. Both are counted and in the ledger.",
    )


class Storage(Section):
    """Where the data goes."""

    path: FilePath = Field(Path("data/collector.sqlite"), description="The SQLite database file.")
    url: (
        Annotated[
            str,
            Field(
                pattern=r"^postgres(ql)?://([^\s:@/]*@)?[^\s@/]*(/\S*)?$",
                json_schema_extra={
                    "what": "such an address",
                    "allowed": "postgresql://USER@HOST:PORT/DATABASE without a password: that belongs into "
                    "DATABASE_URL in the environment or .env, PGPASSWORD, or ~/.pgpass",
                },
            ),
            AfterValidator(_without_password),
        ]
        | None
    ) = Field(
        None, description="A PostgreSQL database instead of `path`; DATABASE_URL in the environment stands above it."
    )
    spool: SpoolOptions = Field(default_factory=SpoolOptions, description="What waits while the database is away.")
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


def _above_zero(text: str) -> str:
    if not Decimal(text):
        raise ValueError("a rate of 0; allowed: a decimal number above 0")
    return text


class ConversionRate(Section):
    """What one of a currency costs in another."""

    rate: Annotated[
        str,
        Field(
            pattern=r"^[0-9]{1,20}(\.[0-9]{1,20})?$",
            json_schema_extra={"what": "a rate", "allowed": "a decimal number above 0, in quotes, so that it is exact"},
        ),
        AfterValidator(_above_zero),
    ] = Field(description="The price, in quotes, so that it is exact.")
    source: str = Field(min_length=1, max_length=200, description="Where it is from; shown wherever it is used.")


class Live(Section):
    """The latest of every feed, and the comparison of prices across exchanges."""

    stale_s: float = Field(
        60, ge=1, le=86_400, description="What was neither received nor confirmed for so many seconds is not compared."
    )
    rates: dict[Market, ConversionRate] = Field(
        default_factory=dict,
        description="Rates at which prices in another currency are compared: "
        '`{USDT-KRW: {rate: "1400", source: set by hand}}` brings prices in USDT into KRW.',
    )


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
    markets: Annotated[list[Markets], BeforeValidator(_all_markets)] = Field(
        ["BTC-KRW"],
        min_length=1,
        description="Markets recorded at every exchange that does not name its own: names, patterns such as `*-KRW`, "
        "or `all` that an exchange lists.",
        json_schema_extra=_or_all,
    )
    channels: list[Channel] = Field(
        ["orderbook"],
        min_length=1,
        description="What is recorded of each market, where the exchange offers it and does not say otherwise.",
    )
    exchanges: Annotated[dict[str, Exchange], BeforeValidator(_named_exchanges)] = Field(
        default_factory=_default_exchanges,
        description="The exchanges to record, by name. Without this key: " + ", ".join(DEFAULT_EXCHANGES) + ".",
        json_schema_extra={"allowed": "names of exchanges, one a line, each with a colon"},
    )
    storage: Storage = Field(default_factory=Storage, description="Where the data goes.")
    intake: Intake = Field(default_factory=Intake, description="What waits in memory for the database.")
    log: Log = Field(default_factory=Log, description="The log files.")
    metrics: Metrics = Field(default_factory=Metrics, description="Metrics and health over HTTP.")
    live: Live = Field(default_factory=Live, description="Prices across exchanges.")
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

    @property
    def database(self) -> str | Path:
        """The address of the PostgreSQL database, which may hold a password, or else the SQLite file."""
        if self._sources.get("storage.path", (None, ""))[1] == "flag":
            return self.storage.path
        if self.storage.url is not None and self._sources.get("storage.url", (None, ""))[1] == "flag":
            return self.storage.url
        if DATABASE_VARIABLE in self._secrets:
            return self._secrets[DATABASE_VARIABLE][0].get_secret_value()
        return self.storage.url or self.storage.path

    @property
    def spool_path(self) -> Path:
        """The directory of the spool."""
        if self.storage.spool.path is not None:
            return self.storage.spool.path
        database = self.database
        if isinstance(database, str):
            return Path("data") / f"{self.collector_id}.spool"
        return database.with_name(f"{database.name}.spool")

    @property
    def silences_path(self) -> Path:
        """The file that keeps over restarts how long each feed is used to be silent."""
        database = self.database
        if isinstance(database, str):
            return Path("data") / f"{self.collector_id}.silences.json"
        return database.with_name(f"{database.name}.silences.json")

    def keys(self, exchange: str) -> tuple[SecretStr, SecretStr] | None:
        """Return key and secret of an exchange, or None where they are not both set."""
        found = [self._secrets[name][0] for name in KEY_VARIABLES.get(exchange, ()) if name in self._secrets]
        return (found[0], found[1]) if len(found) == 2 else None

    def choices(self, exchange: str) -> tuple[MarketChoice, ...]:
        """Return the markets, or patterns, to record at an exchange as they are written; none where it is disabled."""
        chosen = self.exchanges.get(exchange)
        if chosen is None or not chosen.enabled:
            return ()
        return market_choices(chosen, self.markets)

    def channels_of(self, exchange: str) -> tuple[str, ...]:
        """Return the channels that are wanted of an exchange's markets, as they are written."""
        chosen = self.exchanges.get(exchange)
        return tuple(chosen.channels if chosen is not None and chosen.channels is not None else self.channels)


def market_choices(exchange: Exchange, markets: list[str]) -> tuple[MarketChoice, ...]:
    """Return the markets of an exchange, the common *markets* where it has none of its own."""
    if exchange.markets is None:
        return tuple(MarketChoice(market, exchange.transport) for market in markets)
    return tuple(
        MarketChoice(market, options.transport or exchange.transport)
        for entry in exchange.markets
        for market, options in entry.items()
    )


def resolved(choices: Iterable[MarketChoice], listed: Iterable[str]) -> tuple[MarketChoice, ...]:
    """Return the markets that choices mean at an exchange that lists these.

    What is named stands above patterns, and of these the first that means a market.
    """
    choices = tuple(choices)
    found = [choice for choice in choices if not is_pattern(choice.market)]
    patterns = [choice for choice in choices if is_pattern(choice.market)]
    named = {choice.market for choice in found}
    for market in sorted(set(listed) - named) if patterns else ():
        choice = next((choice for choice in patterns if matches(choice.market, market)), None)
        if choice is not None:
            found.append(choice._replace(market=market))
    return tuple(found)
