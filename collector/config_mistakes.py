"""What a person is told about a mistake in the settings: what was found, what is allowed, what was probably meant."""

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic_core import ErrorDetails

from collector.records import ORDERBOOK
from collector.settings import (
    ALL,
    KEY_VARIABLES,
    MARKETS_PATTERN,
    Channel,
    Exchange,
    Known,
    MarketChoice,
    Settings,
    Way,
    is_pattern,
    market_choices,
)
from collector.yaml_lines import ENDLESS, MASK, Mistake, Place, Written, shown

SCHEMA = Settings.model_json_schema()

_COMPLAINTS = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a number",
    "bool_type": "is not true or false",
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


def explain(raw: Written, error: ErrorDetails) -> Mistake:
    """Say in the house's words what pydantic found."""
    place: Place = ()
    for step in error["loc"]:  # the end of it may be pydantic's own ("[key]"): keep what was written
        if not _written(raw, place, step):
            break
        place = (*place, step)
    value = raw.value(place)
    schema = _schema_at(place)
    kind = error["type"]
    if kind == "extra_forbidden":
        return _mistake(raw, place, _unknown(str(place[-1]), "a setting", _schema_at(place[:-1]).get("properties", {})))
    if kind == "value_error":
        return _mistake(raw, place, str(error["ctx"]["error"]))
    if error["loc"][-1] == "[key]" and isinstance(value, dict):  # the name itself is the mistake
        value, schema = place[-1], _schema_at(place[:-1])
    complaint = _COMPLAINTS.get(kind) or f"is not {schema.get('what', 'known')}"
    hint = _hint(value, schema)
    allowed = _allowed(schema)
    if hint and schema.get("what") == "a market" and not re.search("[:*]|'all'", hint):
        allowed = "SYMBOL-CURRENCY in upper case"  # what was meant is plain, and so is what is told
    return _mistake(raw, place, f"{shown(value)} {complaint}; allowed: {allowed}{hint}")


def _written(raw: Written, place: Place, step: str | int) -> bool:
    parent = raw.value(place)
    return step in parent if isinstance(parent, dict) else isinstance(step, int) and isinstance(parent, list)


def _mistake(raw: Written, place: Place, text: str) -> Mistake:
    return Mistake(raw.nearest(place), place, text)


def _unknown(name: str, what: str, allowed: Iterable[str]) -> str:
    return f"{shown(name)} is not {what}; allowed: {', '.join(allowed)}{_did_you_mean(name, allowed)}"


def _schema_at(place: Place) -> dict[str, Any]:
    """Return the schema of a setting, resolved; an empty one for a place that can't exist."""
    definitions = SCHEMA["$defs"]
    schema = SCHEMA
    for step in place:
        schema = schema.get("items", {}) if isinstance(step, int) else _below(schema, step)
        options = [
            option for option in schema.get("anyOf", []) if option.get("type") != "null" and "const" not in option
        ]
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
    text = shown(value)
    if MASK in text or "\\" in text or len(text) > 60 or text == ENDLESS:  # a password, or nothing a slip explains
        return ""
    if schema.get("what") == "a market" and isinstance(value, str):
        market = _market_meant(value)
        return f" (did you mean {market!r}?)" if market else ""
    if schema.get("type") == "array" and isinstance(value, str):
        return f" (did you mean {ALL if _market_meant(value) == ALL else f'[{value}]'}?)"
    if schema.get("type") in ("integer", "number") and isinstance(value, str) and re.fullmatch(r"-?[0-9.]+", value):
        return f" (did you mean {value}, without quotes?)"
    if schema.get("type") == "boolean" and isinstance(value, str):
        return _did_you_mean(value, ("true", "false"))
    if (
        schema.get("type") == "string"
        and isinstance(value, int | float)
        and re.search(schema.get("pattern", ""), f"{value}")
    ):
        return f" (did you mean '{value}'?)"
    return _did_you_mean(str(value), schema.get("enum", ()))


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    folded = {other.casefold(): other for other in allowed}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def _market_meant(text: str) -> str | None:
    """Guess the market from how other programs write it: `btc/krw`, `BTC_KRW`, `BTCKRW`, `KRW-BTC`, `btc/usdt:usdt`."""
    if text.strip().casefold() in ("*", ALL):
        return ALL
    pair, colon, contract = (re.sub(r"[^A-Z0-9.*]+", "-", part) for part in text.strip().upper().partition(":"))
    if joined := re.fullmatch(r"([A-Z0-9*]+?)(KRW|USDT|USDC|USD|EUR)", pair):
        pair = "-".join(joined.groups())
    if turned := re.fullmatch(r"KRW-([A-Z0-9*]+)", pair):
        pair = f"{turned[1]}-KRW"
    meant = f"{pair}:{contract}" if colon else pair
    return meant if re.search(MARKETS_PATTERN, meant) else None


# --- what one setting alone does not show -----------------------------------------------------------------------------


def cross_checks(raw: Written, mistaken: set[Place], known: Known, variables: Container[str]) -> Iterator[Mistake]:
    """Find the mistakes between settings, in those parts that have none of their own."""

    def sound(place: Place) -> bool:
        return not any(other[: len(place)] == place for other in mistaken)

    common, channels = ["BTC-KRW"], [ORDERBOOK]
    if sound(("markets",)):
        common = _list_of(raw.tree.get("markets")) or common
        yield from _listed_twice(raw, ("markets",), [MarketChoice(market, None) for market in common])
        yield from _turned_round(raw, ("markets",), common)
    if sound(("channels",)):
        channels = _list_of(raw.tree.get("channels")) or channels
        yield from _channel_twice(raw, ("channels",), channels)
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
            yield from _exchange_checks(raw, name, exchange, variables)
            yield from _checks_of_what_is_offered(raw, name, exchange, known[name], exchange.channels or channels)
            if exchange.markets is not None:
                choices = market_choices(exchange, [])
                yield from _listed_twice(raw, (*place, "markets"), choices)
                yield from _turned_round(raw, (*place, "markets"), [choice.market for choice in choices])
        else:
            enabled = True
    if not enabled and all(name in known for name in exchanges):
        yield _mistake(
            raw, ("exchanges",), "no exchange is enabled; allowed: at least one, of " + ", ".join(sorted(known))
        )


def _list_of(written: Any) -> list[str]:
    return [ALL] if written == ALL else written or []


def _exchange_checks(raw: Written, name: str, exchange: Exchange, variables: Container[str]) -> Iterator[Mistake]:
    place: Place = ("exchanges", name)
    if exchange.auth and name not in KEY_VARIABLES:
        yield _mistake(raw, (*place, "auth"), f"{name} takes no keys; allowed: false")
    missing = [variable for variable in KEY_VARIABLES.get(name, ()) if variable not in variables]
    if exchange.auth and missing:
        wanted_names = " and ".join(KEY_VARIABLES[name])
        text = f"true needs {wanted_names} in the environment or .env; not set: {', '.join(missing)}"
        yield _mistake(raw, (*place, "auth"), text)


def _checks_of_what_is_offered(
    raw: Written, name: str, exchange: Exchange, ways: Mapping[str, Sequence[Way]], channels: Sequence[str]
) -> Iterator[Mistake]:
    place: Place = ("exchanges", name)
    every = [way for of_transport in ways.values() for way in of_transport]
    offered = [channel for channel in get_args(Channel) if any(channel in way.offers for way in every)]
    if exchange.channels is not None:
        yield from _channel_twice(raw, (*place, "channels"), exchange.channels)
        for at, channel in enumerate(exchange.channels):
            if channel not in offered:
                text = f"{name} has no {channel!r}; allowed: {', '.join(offered)}"
                yield _mistake(raw, (*place, "channels", at), text)
    # A transport is chosen for the books; what can be had in one way only is had in that way.
    chosen = [ORDERBOOK] if ORDERBOOK in channels else channels
    transports = [
        transport
        for transport in sorted(ways)
        if any(channel in way.offers for way in ways[transport] for channel in chosen)
    ]
    wanted: list[tuple[Place, str | None]] = [((*place, "transport"), exchange.transport)]
    for at, entry in enumerate(exchange.markets or []):
        wanted += [((*place, "markets", at, market, "transport"), entry[market].transport) for market in entry]
        for market in entry:
            if not is_pattern(market) and not any(way.carries(market, c) for way in every for c in way.offers):
                text = f"{name} has no market of the kind of {market!r}; allowed: what `markets {name}` lists"
                yield _mistake(raw, (*place, "markets", at), text)
    for where, transport in wanted:
        if transport is not None and transport not in transports:
            of = f" for {', '.join(chosen)}" if transport in ways else ""
            yield _mistake(raw, where, f"{name} has no {transport!r}{of}; allowed: {', '.join(transports)}")


def _channel_twice(raw: Written, place: Place, channels: Sequence[str]) -> Iterator[Mistake]:
    for at, channel in enumerate(channels):
        if channel in channels[:at]:
            yield _mistake(raw, (*place, at), f"{channel!r} is listed twice; allowed: once")


def _listed_twice(raw: Written, place: Place, choices: Iterable[MarketChoice]) -> Iterator[Mistake]:
    seen: dict[str, set[str | None]] = {}
    for at, (market, transport) in enumerate(choices):
        others = seen.setdefault(market, set())
        if others and (transport in others or None in (transport, *others)):
            text = f"{market!r} is listed twice; allowed: once, or once for each transport, named"
            yield _mistake(raw, (*place, at), text)
        others.add(transport)


def _turned_round(raw: Written, place: Place, markets: Iterable[str]) -> Iterator[Mistake]:
    """`KRW-BTC` is how some exchanges write it; taken as it stands it would record nothing."""
    for at, market in enumerate(markets):
        if market.startswith("KRW-"):
            text = f"{market!r} is not a market; allowed: SYMBOL-CURRENCY in upper case"
            yield _mistake(raw, (*place, at), f"{text} (did you mean {_market_meant(market)!r}?)")
