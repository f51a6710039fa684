"""What the pages say of a reload: every setting that needs a restart is named, and no other."""

import re

from collector.config import Settings
from collector.settings import DATABASE_VARIABLE
from commands.reload import RESTART, needs_restart
from tests.conftest import ROOT


def section(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_that_needs_a_restart_is_named() -> None:
    """The mutation that must make this fail: another name in `RESTART`."""
    (row,) = [line for line in section("operating.md", "Reload").splitlines() if line.endswith("| needs a restart |")]
    assert re.findall(r"`([\w.]+)`", row) == [*RESTART, DATABASE_VARIABLE]
    (list_,) = re.findall(
        r"counts then but\n(.*?)need a\nrestart", section("configuration.md", "While the collector runs"), re.S
    )
    assert re.findall(r"`([\w.]+)`", list_) == [*RESTART, DATABASE_VARIABLE]


def test_only_settings_that_exist_need_a_restart() -> None:
    fields = set(Settings.model_fields) | {f"log.{name}" for name in type(Settings().log).model_fields}
    assert set(RESTART) <= fields
    assert not any(
        map(needs_restart, ("log.level", "language", "markets", "limits.event_days", "exchanges.upbit.markets"))
    )
