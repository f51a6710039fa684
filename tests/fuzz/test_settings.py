"""Whatever stands in the configuration file and in `.env`: settings, or lines that say where to look."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import controllers
from collector import yaml_lines
from collector.config import load
from collector.errors import ConfigError
from tests.fuzz import settings
from tests.fuzz.breach import Breach, Violation
from tests.fuzz.guard import Guard, ended
from tests.fuzz.settings import CANARY, KEYS, VALUES, Spoiled, fuzz

MUTATIONS = 2000
PATIENT = 10.0


def told(folder: Path, text: str | bytes, dotenv: str = "") -> str:
    """Return what is said of a file that can't be used."""
    file = folder / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / ".env").write_text(dotenv, "utf-8", newline="")
    with pytest.raises(ConfigError) as refused:
        load(file, env={}, dotenv=folder / ".env", known=controllers.known())
    return str(refused.value).replace(f"{folder}/", "")


def test_spoiled_settings_are_read_or_refused_with_a_place(tmp_path: Path) -> None:
    """Fails when `_UNREADABLE` is `(yaml.YAMLError, ValueError)`, and when `_masked` returns what it is given."""
    counts = fuzz(MUTATIONS, tmp_path, seed=1, guard=Guard(PATIENT))
    assert counts["settings"] + counts["refused"] == MUTATIONS
    assert counts["settings"] > MUTATIONS // 50
    assert counts["refused"] > MUTATIONS // 2


def test_a_seed_makes_the_same_settings_again() -> None:
    def made(seed: int) -> tuple[Any, ...]:
        spoiled = Spoiled(seed)
        return spoiled.config, spoiled.dotenv, spoiled.env, spoiled.flags

    assert made(1) == made(1) != made(2)


# --- anything at all --------------------------------------------------------------------------------------------------


def test_any_tree_and_any_text_is_read_or_refused_with_a_place(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis", reason="property tests need requirements-dev.txt")
    from hypothesis import HealthCheck, given
    from hypothesis import settings as how
    from hypothesis import strategies as st

    names = st.sampled_from([key for key in KEYS if key.isidentifier()])
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
    trees = st.recursive(scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(names | st.text(), t, max_size=3))
    documents = st.dictionaries(names, trees, max_size=3).map(lambda t: yaml.safe_dump(t, allow_unicode=True).encode())
    lines = st.lists(st.sampled_from(VALUES) | st.text(), max_size=4).map(
        lambda t: "\n".join(t).encode("utf-8", "replace")
    )

    @how(max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(documents | lines | st.binary(), lines | st.binary())
    def check(document: bytes, dotenv: bytes) -> None:
        spoiled = Given("")
        spoiled.config, spoiled.dotenv = document, dotenv
        spoiled.load(tmp_path, Guard(PATIENT))

    check()


# --- it notices -------------------------------------------------------------------------------------------------------


class Given(Spoiled):
    """What a test has in mind, instead of something drawn."""

    def __init__(self, config: str, dotenv: str = "") -> None:
        self.config, self.dotenv, self.env, self.flags = config.encode(), dotenv.encode(), {}, {}
        self.tells = True


@pytest.mark.parametrize(
    ("module", "name", "broken", "config", "text"),
    [
        (yaml_lines, "_UNREADABLE", (ValueError,), "language: !!bool maybe", "only ConfigError may leave load"),
        (yaml_lines, "_masked", lambda value, depth: value, f"markets: u:{CANARY}@host", "a secret is shown"),
        (yaml_lines, "SHOWN_MAX", 10**6, "markets: " + "A" * 5000, "a line of"),
        (yaml_lines, "dotted", lambda place: str(place[-1]), "'a\u202e': 1", "letters that can't be seen"),
        (yaml_lines, "UNSEEN", re.compile("^$"), 'log: {path: "\\e[2J"}', "letters that can't be seen"),
        (yaml_lines.Mistake, "__str__", lambda mistake: mistake.text, "langage: ko", "no place in"),
        (yaml_lines.Mistake, "__str__", lambda mistake: f"{mistake.source}: x", "langage: ko", "no setting in"),
        (yaml_lines.Written, "nearest", lambda raw, place: "c.yaml", "langage: ko", "no place in"),
        (yaml_lines, "VALUES_MAX", 10**9, settings.LINES[0], "no end after"),
    ],
)
def test_a_reader_that_does_wrong_is_found(
    module: Any, name: str, broken: Any, config: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr("tests.fuzz.guard.CPU_S_HANGING", 1.0)
    with ended(), pytest.raises(Breach, match=text):
        Given(config).load(tmp_path, Guard(PATIENT))


def test_a_violation_shows_the_settings_and_the_seed_that_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_lines.Mistake, "__str__", lambda mistake: mistake.text)
    with pytest.raises(Violation, match="no place in") as found:
        fuzz(MUTATIONS, tmp_path, guard=Guard(PATIENT))
    assert f"seed {found.value.seed}," in str(found.value)
    assert found.value.spoiled.startswith(Spoiled(found.value.seed).config)


# --- found by it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["!!bool maybe", "!!int ''", "!!timestamp x", "!!int 0x", "!!float ''"])
def test_a_tag_that_does_not_fit_is_a_mistake_like_others(value: str, tmp_path: Path) -> None:
    assert told(tmp_path, f"storage:\n  batch_ms: {value}\n").startswith("c.yaml:2: storage.batch_ms: ")


def test_a_short_file_that_goes_on_for_ever_is_refused(tmp_path: Path) -> None:
    assert told(tmp_path, settings.LINES[0]) == "c.yaml: the file holds more than 20000 values; write aliases out"


def test_a_number_that_can_not_be_written_down_is_named(tmp_path: Path) -> None:
    line = "c.yaml:1: collector_id: a number of thousands of digits is not text; allowed: "
    assert told(tmp_path, "collector_id: 0x" + "F" * 5000).startswith(line)


@pytest.mark.parametrize(
    "value",
    [
        f"ws://user:{CANARY}@host/x", f"wss:/user:{CANARY}@host", f"'http://user:{CANARY} @host'", f"[ws://u:{CANARY}@host]",
        f"ws://a@b:{CANARY}@host", f"{CANARY}@krw", f"postgresql://h/d?password={CANARY}", f"host=h password={CANARY}",
        "x" * 100 + f":{CANARY}" + "y" * 100 + "@host",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["exchanges", "markets", "language", "metrics"])
def test_what_may_be_a_password_is_not_shown_wherever_it_got_to(key: str, value: str, tmp_path: Path) -> None:
    assert CANARY not in told(tmp_path, f"{key}: {value}\n").lower()
    assert CANARY not in told(tmp_path, f"{key}:\n  {value}: x\n").lower()


@pytest.mark.parametrize("name", [r'"a\nb"', r'"\e[2J"', r'"\u202e"', "A" * 900, "a.b", "'[0]'"])
def test_a_strange_name_stays_in_its_line_and_can_be_seen(name: str, tmp_path: Path) -> None:
    line = told(tmp_path, f"log:\n  {name}: 1\n")
    assert line.startswith("c.yaml:2: log.'")
    assert line.isprintable()
    assert len(line) < 500


def test_characters_that_no_path_may_hold_are_refused(tmp_path: Path) -> None:
    seen = "holds a character that can't be seen"
    assert told(tmp_path, 'storage:\n  path: "a\\0b"\n') == rf"c.yaml:2: storage.path: 'a\x00b' {seen}"
    assert told(tmp_path, 'log:\n  path: "\\ud800"\n') == rf"c.yaml:2: log.path: '\ud800' {seen}"
    assert told(tmp_path, "language: en\n", dotenv="DB_PATH=a\0b\n") == f".env DB_PATH: the value {seen}"
    assert told(tmp_path, "language: en\n", dotenv=f"GOPAX_API_KEY='{CANARY}\n'\nOTHER='a\n'\n") == (
        f".env GOPAX_API_KEY: the value {seen}"
    )
