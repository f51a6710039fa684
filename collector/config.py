"""Reading the settings: the command line, else the environment, else `.env`, else the YAML file, else the default.

A value that is empty counts as not written. `load` finds every mistake in one run and says where each was written;
`describe` says of every setting where its value is from.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError

from collector import yaml_lines
from collector.config_mistakes import cross_checks, explain
from collector.errors import ConfigError
from collector.settings import (
    CONFIG_VARIABLE,
    DEFAULT_EXCHANGES,
    PATH_VARIABLES,
    SECRET_VARIABLES,
    Endpoint,
    Exchange,
    Known,
    MarketChoice,
    Section,
    Settings,
)
from collector.yaml_lines import Mistake, Place, Written, dotted

__all__ = [
    "DEFAULT_FILE",
    "SCHEMA_FILE",
    "Endpoint",
    "Exchange",
    "MarketChoice",
    "Row",
    "Settings",
    "describe",
    "json_schema",
    "load",
]

DEFAULT_FILE = Path("config/collector.yaml")
SCHEMA_FILE = Path("config/collector.schema.json")


def load(
    path: Path | None = None,
    *,
    env: Mapping[str, str] = os.environ,
    dotenv: Path | None = Path(".env"),
    flags: Mapping[str, object] = MappingProxyType({}),
    known: Known,
) -> Settings:
    """Read, merge and validate all settings.

    *path* is the YAML file; without it `COLLECTOR_CONFIG`, else `config/collector.yaml`. *flags* are values from the
    command line by dotted path (`{"storage.path": "x.sqlite"}`); None and "" count as not given. A flag for `markets`
    stands above the markets of single exchanges too. *known* is every exchange the program has, and how each can be
    recorded.

    Raises `ConfigError` that names all mistakes, one a line; it never holds a secret.
    """
    mistakes: list[Mistake] = []
    variables = _variables(env, dotenv, mistakes)
    file = path or (Path(variables[CONFIG_VARIABLE][0]) if CONFIG_VARIABLE in variables else DEFAULT_FILE)
    document = yaml_lines.read(file)
    mistakes += document.mistakes
    raw = Written(document.data, {place: f"{file}:{line}" for place, line in document.lines.items()})
    if raw.tree.get("exchanges") in (None, ""):
        raw.tree["exchanges"] = {name: {} for name in DEFAULT_EXCHANGES if name in known}
    for name, target in PATH_VARIABLES.items():
        if name in variables:
            raw.put(target, *variables[name])
    for target, value in flags.items():
        if value not in (None, ""):
            raw.put(target, value, "flag")
    secrets = {
        name: (SecretStr(variables[name][0]), variables[name][1]) for name in SECRET_VARIABLES if name in variables
    }

    settings = None
    try:
        settings = Settings.model_validate(raw.tree)
    except ValidationError as error:
        told = {mistake.place for mistake in mistakes if mistake.place}
        found = [explain(raw, detail) for detail in error.errors(include_url=False, include_input=False)]
        mistakes += [mistake for mistake in found if mistake.place not in told]
    mistakes += list(cross_checks(raw, {mistake.place for mistake in mistakes}, known, secrets))
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
    for name in SECRET_VARIABLES:
        yield Row(name, *(("set", settings.secrets[name][1]) if name in settings.secrets else ("not set", "default")))


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


def _variables(env: Mapping[str, str], dotenv: Path | None, mistakes: list[Mistake]) -> dict[str, tuple[str, str]]:
    """Return the variables that are set and where: the environment stands above `.env`. No message shows a value."""
    names = [CONFIG_VARIABLE, *PATH_VARIABLES, *SECRET_VARIABLES]
    found: dict[str, tuple[str, str]] = {}
    for name, value in _dotenv(dotenv, mistakes):
        if name in names and value:
            found[name] = (value, f"{dotenv} {name}")
    found |= {name: (env[name], f"environment {name}") for name in names if env.get(name)}
    for value, source in found.values():
        if yaml_lines.UNSEEN.search(value):
            mistakes.append(Mistake(source, (), "the value holds a character that can't be seen"))
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


def _order(mistake: Mistake) -> tuple[str, int]:
    file, _, line = mistake.source.rpartition(":")
    return (file, int(line)) if line.isdigit() else (mistake.source, 0)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(SCHEMA_FILE)
