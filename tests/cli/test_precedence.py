"""Flag over environment over `.env` over YAML over default, and `check` says which it was."""

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Type


def source(type_: Type, setting: str, *flags: str) -> list[str]:
    """Return value and source of a setting as `check` prints them."""
    ended = type_(*flags, "check")
    assert ended.status == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.split()[:1] == [setting]]
    return line.split(maxsplit=2)[1:]


@pytest.mark.parametrize(
    ("setting", "variable", "flag", "key"),
    [("storage.path", "DB_PATH", "--db", "storage"), ("log.path", "LOG_PATH", "--log-path", "log")],
)
def test_each_level_covers_the_one_below(
    type_: Type, folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str, variable: str, flag: str, key: str
) -> None:
    yaml = folder / "config" / "collector.yaml"
    yaml.write_text("language: en\n")
    assert source(type_, setting)[1].strip() == "default"

    yaml.write_text(f"{key}:\n  path: from-yaml\n")
    assert source(type_, setting) == ["from-yaml", "config/collector.yaml:2"]

    (folder / ".env").write_text(f"{variable}=from-dotenv\n")
    assert source(type_, setting) == ["from-dotenv", f".env {variable}"]

    monkeypatch.setenv(variable, "from-environment")
    assert source(type_, setting) == ["from-environment", f"environment {variable}"]

    assert source(type_, setting, flag, "from-flag") == ["from-flag", "flag"]


def test_an_empty_value_is_no_value(type_: Type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("DB_PATH=\nLOG_PATH=\nGOPAX_API_KEY=\nGOPAX_SECRET_KEY=\n")
    monkeypatch.setenv("LOG_PATH", "")
    assert source(type_, "storage.path") == ["data/collector.sqlite", "default"]
    assert source(type_, "log.path") == ["logs", "default"]


def test_flags_for_language_level_and_markets(type_: Type, folder: Path) -> None:
    assert source(type_, "language", "--language", "en") == ["en", "flag"]
    assert source(type_, "log.level", "--log-level", "DEBUG") == ["DEBUG", "flag"]
    ended = type_("--market", "ETH-KRW", "--market", "XRP-KRW", "check")
    assert "[ETH-KRW, XRP-KRW]" in ended.out
    assert ended.out.splitlines()[-1] == "ok: 10 feeds on 10 connections"


def test_the_configuration_file_can_be_named_by_flag_or_environment(
    type_: Type, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.yaml").write_text("language: en\n")
    (folder / "b.yaml").write_text("language: en\nmarkets: [ETH-KRW]\n")
    monkeypatch.setenv("COLLECTOR_CONFIG", "a.yaml")
    assert source(type_, "language") == ["en", "a.yaml:1"]
    assert source(type_, "language", "--config", "b.yaml") == ["en", "b.yaml:1"]


def test_check_never_shows_a_secret(type_: Type, folder: Path) -> None:
    (folder / ".env").write_text("GOPAX_API_KEY=key-5a1e\nGOPAX_SECRET_KEY=c2VjcmV0LTVhMWU=\n")
    ended = type_("check")
    assert "5a1e" not in ended.out + ended.err
    assert "c2VjcmV0" not in ended.out + ended.err
    assert len(re.findall(r"GOPAX_\w+ +set ", ended.out)) == 2
