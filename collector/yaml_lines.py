"""A YAML file as plain data, with the line of every key, and every reading mistake told in one line.

Only what settings need: mappings with text keys, lists, scalars. A key that is written twice, which YAML readers
usually let pass, is a mistake here, because the first value would be lost in silence.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Where a value stands: keys and list positions from the top, `("exchanges", "upbit", "markets", 0)`.
Place = tuple[str | int, ...]

_MAP = "tag:yaml.org,2002:map"
_SEQ = "tag:yaml.org,2002:seq"
# Aliases of aliases make a short file endless; no settings are as long as this.
VALUES_MAX = 20_000
SHOWN_MAX = 120
SHOWN_DEPTH_MAX = 20
MASK = "***"
ENDLESS = "a number of thousands of digits"
# No setting holds one, and neither a path nor a terminal takes them all: control characters, halves of characters.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Where passwords stand: `scheme://user:password@host`, also without its end, and `password=...` among parameters.
_USER = re.compile(r"^([a-z]{2,10}://)?.*@", re.DOTALL)
_PASSWORD = re.compile(r"(passw|://[^/:]*:(?![0-9]{1,5}(?:/|$))).*", re.DOTALL | re.IGNORECASE)
# What the reader's own converters raise for text that is not what its tag says.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


class Mistake(NamedTuple):
    """One thing a person has to mend: where it was written, which setting it is about, and what is wrong with it."""

    source: str
    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {dotted(self.place)}: {self.text}" if self.place else f"{self.source}: {self.text}"


class Document(NamedTuple):
    """What a file holds; `data` is empty when it could not be read, and then `mistakes` is not."""

    data: dict[str, Any]
    lines: dict[Place, int]
    mistakes: list[Mistake]


class Written:
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
        """Tell where the value in force at *place* was written; one that is empty is not in force."""
        return "default" if self.value(place) in (None, "") else self.nearest(place)

    def nearest(self, place: Place) -> str:
        """Tell where a person has to look for *place*, which may not be written at all."""
        while place and place not in self.sources:
            place = place[:-1]
        return self.sources.get(place, "default")

    def value(self, place: Place) -> Any:
        """Return what was written at *place*; None where nothing was."""
        branch: Any = self.tree
        for step in place:
            try:
                branch = branch[step]
            except (KeyError, IndexError, TypeError):
                return None
        return branch


def dotted(place: Place) -> str:
    """Write a place as people do: `exchanges.upbit.markets[1]`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if re.fullmatch(r"[\w-]{1,64}", step) else shown(step)
            text += f".{name}" if text else name
    return text


def shown(value: object) -> str:
    """Write what was found: in one line, not by the page, and nothing of what may be a password."""
    try:
        text = repr(_masked(value, 0))
    except ValueError:  # Python does not write it
        return ENDLESS
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


def _masked(value: object, depth: int) -> object:
    if isinstance(value, str):
        return _PASSWORD.sub(rf"\1{MASK}", _USER.sub(rf"\1{MASK}@", value))
    if isinstance(value, list | dict) and depth > SHOWN_DEPTH_MAX:
        return ...
    if isinstance(value, list):
        return [_masked(entry, depth + 1) for entry in value]
    if isinstance(value, dict):
        return {_masked(name, 0): _masked(entry, depth + 1) for name, entry in value.items()}
    return value


def read(file: Path) -> Document:
    """Read a YAML file; never raises: what can't be read is among the mistakes, with its line where there is one."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        return _unreadable(file, 0, _reason(file, error))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _unreadable(file, raw.count(b"\n", 0, error.start) + 1, "the file is not UTF-8 text; save it as UTF-8")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _unreadable(file, mark.line + 1 if mark else 0, _syntax(error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _unreadable(file, line, f"the character {_character(error)!r} is not allowed in YAML")
    except RecursionError:
        return _unreadable(file, 0, "the settings are nested too deeply")
    if node is None:
        return _unreadable(file, 0, "the file holds no settings; copy the shipped config/collector.yaml")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        return _unreadable(file, node.start_mark.line + 1, f"the file holds {kind}; allowed: settings, `name: value`")
    walk = _Walk(file, loader)
    try:
        return Document(walk.mapping(node, ()), walk.lines, walk.mistakes)
    except _TooMany:
        return _unreadable(file, 0, f"the file holds more than {VALUES_MAX} values; write aliases out")


class _TooMany(Exception):
    """The file goes on and on."""


class _Walk:
    """Turns nodes into data, keeping their lines."""

    def __init__(self, file: Path, loader: yaml.SafeLoader) -> None:
        self.file = file
        self.loader = loader
        self.lines: dict[Place, int] = {}
        self.mistakes: list[Mistake] = []
        self.open: set[int] = set()  # nodes being walked: an alias to one of them would never end
        self.values = 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        self.values += 1
        if self.values > VALUES_MAX:
            raise _TooMany
        if id(node) in self.open:
            return self.mistake(node, place, "an alias that contains itself is not allowed")
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            self.open.add(id(node))
            items = []
            for at, item in enumerate(node.value):
                self.lines[*place, at] = item.start_mark.line + 1
                items.append(self.value(item, (*place, at)))
            self.open.discard(id(node))
            return items
        if isinstance(node, yaml.ScalarNode):
            try:
                found = self.loader.construct_object(node)
            except _UNREADABLE:  # an unknown tag, a date that does not exist
                return self.mistake(node, place, f"{shown(node.value)} can't be read; put text in quotes")
            if isinstance(found, str) and UNSEEN.search(found):
                return self.mistake(node, place, f"{shown(found)} holds a character that can't be seen")
            return found
        return self.mistake(node, place, f"the tag {shown(node.tag)} is not allowed; allowed: plain YAML without tags")

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self.open.add(id(node))
        found: dict[str, Any] = {}
        for place_of, key_node, value_node in self.keys(node, place):
            line = key_node.start_mark.line + 1
            name = key_node.value
            if name in found:
                text = f"{shown(name)} is written twice; first in line {self.lines[place_of]}"
                self.mistake(key_node, place_of, text)
                continue
            self.lines[place_of] = line
            found[name] = self.value(value_node, place_of)
        self.open.discard(id(node))
        return found

    def keys(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[Place, yaml.ScalarNode, yaml.Node]]:
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag == "tag:yaml.org,2002:str":
                yield (*place, key_node.value), key_node, value_node
            else:
                name = shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self.mistake(key_node, place, f"{name} can't be the name of a setting; allowed: text")

    def mistake(self, node: yaml.Node, place: Place, text: str) -> None:
        line = node.start_mark.line + 1
        self.mistakes.append(Mistake(f"{self.file}:{line}", place, text))


def _unreadable(file: Path, line: int, text: str) -> Document:
    return Document({}, {}, [Mistake(f"{file}:{line}" if line else str(file), (), text)])


def _character(error: yaml.reader.ReaderError) -> str:
    return chr(error.character) if isinstance(error.character, int) else str(error.character)


def _reason(file: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file; start in the folder that has it, or name another with --config"
        case IsADirectoryError():
            return "this is a directory; allowed: a YAML file"
        case PermissionError():
            return "the file may not be read by this user"
    return f"the file can't be read: {error.strerror}"


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if r"'\t'" in problem:
        return "a tab where YAML wants spaces; indent with spaces"
    hint = "; what begins with * needs quotes: '*-KRW'" if "alias" in problem else ""
    return "not YAML: " + " ".join(problem.split()) + hint
