"""Spoils the configuration file and `.env`, and looks at what a person would be told.

Whatever stands in them: either there are settings, or a `ConfigError` each of whose lines says where to look and which
setting it is about (where a line of the file is about one at all), in letters that can be seen, without a secret.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import controllers
from collector.config import Settings, describe, load
from collector.errors import ConfigError
from collector.yaml_lines import UNSEEN
from tests.conftest import ROOT
from tests.fuzz.breach import Breach, Stuck, Violation, require, surely
from tests.fuzz.guard import Guard, ended

CANARY = "canary-9f3b1c"
CPU_S_MAX = 2.0
LINE_MAX = 1000
BYTES_MAX = 32 << 10
BAD = ROOT / "tests" / "collector" / "bad_config"

# What is wrong with the file itself, not with one setting.
_ABOUT_THE_FILE = (
    "not YAML: ", "a tab where ", "the file ", "the character ", "the settings are nested ", "this line is not ",
    "the value holds ",
    "there is no such file", "this is a directory",
)  # fmt: skip

VALUES = [
    "", "~", "null", "true", "no", "0", "-1", "1", "0.1", "1e400", "-1e400", ".nan", ".inf", "-.inf", "1_000", "0x1F",
    "0x" + "F" * 5000, "0o17", "010", "0b1", "1:60:60", "9" * 400, "9" * 5000, "1" + ":59" * 300, "5.0", "1e3",
    "2020-02-30", "2020-01-01", "2020-01-01 25:00:00", "2020-01-01t00:00:00+99:99", "'", '"', "''", "' '", "x",
    "BTC-KRW", "[BTC-KRW]", "[KRW-BTC]", "all", "['*-KRW', BTC-KRW]", "['*']", "[trades, orderbook]",
    "[BTC-USDT:USDT]", "[btc/krw, BTC-KRW]", "{BTC-KRW: {transport: rest}}",
    "[{BTC-KRW: {transport: rest}}]", "[{BTC-KRW: }, ETH-KRW]", "[[[[]]]]", "[" * 50 + "]" * 50, "[" * 300, "{" * 300,
    "{}", "[]", "{a: b}", "[a, a]", "[, ]", "{1: 2}", "{? [a] : b}", "{null: 1}", "{true: 1}", "websocket", "rest",
    "full",
    "&a [*a]", "&a {x: *a}", "*nobody", "&x 1", "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!x y",
    "!!binary aGk=", "!!int x", "!!int ''", "!!float x", "!!float ''", "!!bool maybe", "!!null x", "!!timestamp x",
    "!!set {a}", "!!omap [a: 1]", "!!str 5", "!!map []", "!!seq {}", "!!int 0b", "!!int 0x", "!!int 1:", "<<",
    "{<<: {a: 1}}",
    "|", ">-", "|\n    text\n    more", "? x", "- x", "- - - x", "---", "...", "%YAML 9.9", "%TAG ! tag:x,2000:", "@x",
    "`x", "\t", "a\tb", "a: b: c", "# x", "x # y", "\\", '"\\x00"', '"\\ud800"', '"\\ud800\\udc00"', '"\\n\\e[2J"',
    '"\\U0001F600"', '"\\uFFFE"', '"\\L\\P\\N"', "값", "\u202e", "\ufeff", "\x07", "\x85", "A" * 5000, "A-" * 20,
    f"ws://user:{CANARY}@host/x", f"wss:/user:{CANARY}@host", f"http://u:{CANARY} @host", f"[ws://u:{CANARY}@host]",
    f"postgresql://u:{CANARY}@h/d", f"postgresql://h/d?user=u&password={CANARY}", f"host=h password={CANARY} user=u",
    f"postgresql://h/d?PASSWORD={CANARY}", f"postgresql://u@h/d/:{CANARY}@x", "postgresql://u@h:5432/d?sslmode=require",
    f"user:{CANARY}@host", f"ws://us er:{CANARY}@host", f"ws://a@b:{CANARY}@host", f"{{x: 'http://u:{CANARY}@h'}}",
    "ws://127.0.0.1:9001/x", "http://127.0.0.1/", "https://[::1]:5/", "~/data", "~nobody-here/x", "/dev/null", "\\0",
    "..",
]  # fmt: skip
KEYS = [
    "exchanges", "markets", "channels", "storage", "path", "log", "level", "upbit", "Upbit", "upbitt", "exchange",
    "transport",
    "endpoint", "websocket", "backoff", "base_s", "cap_s", "port", "1", "1.5", "null", "true", "~", "2020-01-01",
    "''", "'a b'", "''''", "'a:b'", "'a.b'", "'[0]'", '"a\\nb"', '"\\e[2J"', '"\\u202e"', "값", "? a", "? [a, b]", "<<",
    "&k key",
    "*k", "!!binary aGk=", "A" * 3000, "__class__", "model_config", "model_fields", "_sources", "__init__", "-",
    "collector_id",
]  # fmt: skip
LINES = [
    "bomb: [&a [x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e], "
    "&g [*f,*f,*f,*f,*f,*f,*f,*f], &h [*g,*g,*g,*g,*g,*g,*g,*g], &i [*h,*h,*h,*h,*h,*h,*h,*h]]",
    "bomb: {a: &a {x: 1, y: 2}, b: &b {x: *a, y: *a}, c: &c {x: *b, y: *b}, d: {x: *c, y: *c}}",
    "---", "...", "- x", "x", "? x", ": x", "<<: *a", "<<: {a: 1}", "%YAML 1.1", "\tx: 1", "'", '"', "|", "# note", "{",
    "]",
    "key", "key:value", "'key': 'value", "a: &a 1", "b: *a", "  ", "\x00", "\x1b", "language: en", "markets: [ETH-KRW]",
]  # fmt: skip
VARIABLES = [
    "DB_PATH=", "DB_PATH=x.sqlite", "LOG_PATH='", 'LOG_PATH="', "LOG_PATH=~nobody-here", "export DB_PATH=x", "DB_PATH",
    "=x", "DB_PATH=${DB_PATH}", "DB_PATH=${", "GOPAX_API_KEY", f"GOPAX_SECRET_KEY='{CANARY}", f"{CANARY}",
    f"GOPAX_API_KEY={CANARY} # x", f"DATABASE_URL=postgres://u:{CANARY}@h", f"DATABASE_URL='{CANARY}\x1b'",
    f"GOPAX_API_KEY : {CANARY}", f"{CANARY}={CANARY}", "\x00", "\ufeff", "# x",
    "'a b'=1",
    "DB_PATH=\\", 'DB_PATH="\\u0041\\x"', "DB_PATH='\\''", 'DB_PATH="\n', "A=" + "B" * 5000, "값=값", "DB_PATH=\x1b[2J",
]  # fmt: skip


def fuzz(
    mutations: int,
    folder: Path,
    seed: int = 0,
    *,
    guard: Guard | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Counter[str]:
    """Load spoiled settings, number i drawn from `seed + i`, and count what was said; raises `Violation`."""
    guard = guard or Guard(CPU_S_MAX)
    counts: Counter[str] = Counter({"frames": 0, "settings": 0, "refused": 0})
    with ended():
        for number in range(mutations):
            counts["frames"] += 1
            counts[surely(partial(_loaded, seed + number, folder, guard))] += 1
            if number % 500 == 499:
                progress(counts["frames"])
    return counts


def _loaded(seed: int, folder: Path, guard: Guard) -> str:
    spoiled = Spoiled(seed)
    try:
        return spoiled.load(folder, guard)
    except (Exception, Stuck) as problem:
        both = spoiled.config + b"\n=== .env\n" + spoiled.dotenv
        raise Violation("settings", seed, 1, both, problem) from problem


class Spoiled:
    """One configuration with mistakes in it: bytes of the YAML file and of `.env`, all drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"{seed}/settings")
        draw = self._random.random()
        which = self._random.choice(_documents())
        config, dotenv = self._fewer(which), _dotenv()
        for _ in range(self._few()) if draw < 0.85 else ():
            config = self._line_fault(config)
        for _ in range(self._few()) if draw > 0.7 else ():
            dotenv = self._variable_fault(dotenv)
        self.dotenv = self._bytes(dotenv)
        self.config = self._bytes(config)
        # Where bytes are missing or others, what was a password looks like nothing in particular.
        self.tells = self.config == config.encode("utf-8", "replace")
        both = {"GOPAX_API_KEY": CANARY, "GOPAX_SECRET_KEY": CANARY, "DATABASE_URL": f"postgresql://u:{CANARY}@h/d"}
        self.env = self._random.choice(({}, {}, both, {"GOPAX_API_KEY": CANARY}, {"DB_PATH": "~nobody-here/x"}))
        self.flags = self._random.choice(
            ({}, {}, {}, {"markets": ["ETH-KRW"]}, {"storage.path": "x"}, {"metrics.port": "x\ny"}, {"log.level": 5})
        )

    def load(self, folder: Path, guard: Guard) -> str:
        """Read it as the program does; say what came of it. Raises `Breach`."""
        file, dotenv = folder / "collector.yaml", folder / ".env"
        file.write_bytes(self.config)
        dotenv.write_bytes(self.dotenv)
        with guard.watch():
            try:
                settings = load(file, env=self.env, dotenv=dotenv, flags=self.flags, known=controllers.known())
            except ConfigError as error:
                told = str(error)
            except Exception as error:
                raise Breach(f"only ConfigError may leave load, this was {error!r}") from error
            else:
                self._check_settings(settings)
                return "settings"
        self._check_told(told, str(file), str(dotenv))
        return "refused"

    # --- what is held to

    def _check_settings(self, settings: Settings) -> None:
        for exchange in settings.exchanges:
            for choice in settings.choices(exchange):
                require("-" in choice.market or choice.market == "all", f"market {choice.market!r}")
        for row in describe(settings):
            require(CANARY not in row.value or row.name.endswith(".path"), f"a secret is shown: {row}")
            require(not UNSEEN.search(f"{row.name}{row.value}{row.source}"), f"letters that can't be seen: {row}")
        require(all(exchange.poll_interval_s >= 0.05 for exchange in settings.exchanges.values()), "past a limit")

    def _check_told(self, told: str, file: str, dotenv: str) -> None:
        require("canary" not in told.lower() or not self.tells, f"a secret is shown: {told}")
        told.encode()
        files = f"{re.escape(file)}|{re.escape(dotenv)}"
        sources = re.compile(rf"{re.escape(dotenv)} [A-Z_]+|(?:{files})(?::[0-9]+)?|environment [A-Z_]+|flag")
        for line in told.split("\n"):
            require(line.isprintable(), f"letters that can't be seen: {line!r}")
            require(len(line) <= LINE_MAX, f"a line of {len(line)} letters: {line!r}")
            source = sources.match(line)
            require(source is not None and line[source.end() :].startswith(": "), f"no place in {line!r}")
            assert source is not None
            text = line[source.end() + 2 :]
            if text.startswith(_ABOUT_THE_FILE):
                continue
            require(re.match(r"[^ ].*?: .", text), f"no setting in {line!r}")
            if source[0] == file:
                raise Breach(f"no line in {line!r}")

    # --- faults

    def _few(self) -> int:
        return self._random.choice((1, 1, 1, 2, 2, 3, 5))

    def _fewer(self, document: str) -> str:
        """Leave some sections out: what is read is short, and mistakes stand for themselves."""
        sections = re.split(r"(?m)^(?=[A-Za-z#])", document)
        if len(document) < 800 or self._random.random() < 0.05:
            return document
        return "".join(section for section in sections if self._random.random() < 0.3)

    def _line_fault(self, text: str) -> str:
        lines = text.split("\n")
        at = self._random.randrange(len(lines))
        line = lines[at]
        draw = self._random
        match draw.randrange(13):
            case 0 | 1 | 2:  # another value
                lines[at] = re.sub(r":( .*)?$", lambda _: ": " + draw.choice(VALUES), line, count=1)
            case 3:  # another key
                lines[at] = re.sub(r"^( *(?:- )?)[^\s:]*", lambda m: m[1] + draw.choice(KEYS), line, count=1)
            case 4:
                del lines[at]
            case 5:
                lines.insert(draw.randrange(len(lines) + 1), line)
            case 6:
                other = draw.randrange(len(lines))
                lines[at], lines[other] = lines[other], line
            case 7:  # another depth
                lines[at] = draw.choice((" " + line, "  " + line, line[1:], line.lstrip(), "\t" + line, "- " + line))
            case 8:
                lines.insert(at, draw.choice(LINES))
            case 9:  # part of another document
                others = draw.choice(_documents()).split("\n")
                start = draw.randrange(len(others))
                lines[at:at] = others[start : start + draw.randrange(1, 6)]
            case 10:
                indent = re.match(" *", line)
                space = indent[0] if indent else ""
                lines.insert(at, f"{space}{draw.choice(KEYS)}: {draw.choice(VALUES)}")
            case 11:
                depth = draw.randrange(1, 600) if draw.random() < 0.03 else draw.randrange(1, 60)
                lines[at] = re.sub(r":( .*)?$", lambda _: ": " + "[" * depth + "]" * depth, line, count=1)
            case _:
                position = draw.randrange(len(line) + 1)
                lines[at] = line[:position] + draw.choice(VALUES) + line[position + draw.randrange(3) :]
        return "\n".join(lines)

    def _variable_fault(self, text: str) -> str:
        lines = text.split("\n")
        at = self._random.randrange(len(lines))
        match self._random.randrange(6):
            case 0:
                lines[at] += self._random.choice(VALUES)
            case 1:
                lines.insert(at, self._random.choice(VARIABLES))
            case 2:
                del lines[at]
            case 3:
                lines.insert(at, lines[self._random.randrange(len(lines))])
            case 4:
                position = self._random.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:position] + self._random.choice("='\"#\\ \t\r\x00:$") + lines[at][position:]
            case _:
                lines[at] = self._random.choice(VARIABLES)
        return "\n".join(lines)

    def _bytes(self, text: str) -> bytes:
        raw = text.encode("utf-8", "replace")[:BYTES_MAX]
        if self._random.random() < 0.9 or not raw:
            return raw
        at = self._random.randrange(len(raw))
        match self._random.randrange(6):
            case 0:
                return raw[:at] + bytes((raw[at] ^ (1 << self._random.randrange(8)),)) + raw[at + 1 :]
            case 1:
                return raw[:at]
            case 2:
                return raw[:at] + self._random.randbytes(self._random.randrange(1, 6)) + raw[at:]
            case 3:
                return raw.replace(b"\n", self._random.choice((b"\r\n", b"\r", b"\n\n", b"\xc2\x85", b"\xe2\x80\xa8")))
            case 4:
                return text.encode("utf-16", "replace")[:BYTES_MAX]
            case _:
                return b"\xef\xbb\xbf" + raw


_texts: list[str] = []


def _documents() -> list[str]:
    """Return documents to spoil: the one that is shipped, one with every key, and the mistakes people make."""
    if not _texts:
        shipped = (ROOT / "config" / "collector.yaml").read_text("utf-8")
        everything: dict[str, Any] = Settings(collector_id="one").model_dump(mode="json", exclude_none=True)
        upbit = everything["exchanges"]["upbit"]
        upbit["endpoint"] = {"websocket": "ws://127.0.0.1:9001/upbit", "rest": "http://127.0.0.1:9001/upbit"}
        upbit["markets"] = ["BTC-KRW", {"ETH-KRW": {"transport": "websocket"}}]
        whole = yaml.safe_dump(everything, sort_keys=False)
        uncommented = re.sub(r"(?m)^( *)# (?=[a-z_]+: )", r"\1", shipped)
        bad = [file.read_text("utf-8", "replace") for file in sorted(BAD.glob("*.yaml"))]
        _texts.extend([shipped, whole, uncommented] * 8 + bad)
    return _texts


def _dotenv() -> str:
    text = (ROOT / ".env.example").read_text("utf-8")
    return re.sub(r"(?m)^(GOPAX_[A-Z_]+|DATABASE_URL)=$", rf"\1={CANARY}", text)
