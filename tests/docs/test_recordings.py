"""docs/recordings.md names every recorded file of every exchange, and only tests that read recordings."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXCHANGES = {
    "upbit": "Upbit",
    "bithumb": "Bithumb",
    "coinone": "Coinone",
    "korbit": "Korbit (Digital X)",
    "gopax": "GOPAX",
    "binance": "Binance",
    "bybit": "Bybit",
    "okx": "OKX",
    "kraken": "Kraken",
    "kucoin": "KuCoin",
    "coinbase": "Coinbase",
}
PAGE = (ROOT / "docs" / "recordings.md").read_text(encoding="utf-8")


def rows(exchange: str) -> dict[str, list[str]]:
    """Return file to (class, read by, proves) of an exchange's table."""
    section = PAGE.split(f"\n## {EXCHANGES[exchange]}\n")[1].split("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "ndjson" in line]
    return {cells[0].strip("`"): cells[1:] for cells in found if cells[0].endswith(".ndjson`")}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_recorded_file_is_named(wire: Path, exchange: str) -> None:
    assert rows(exchange).keys() == {file.name for file in (wire / exchange).glob("*.ndjson")}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_every_test_that_is_named_reads_recordings_of_that_exchange(exchange: str) -> None:
    for file, (kind, readers, proves) in rows(exchange).items():
        assert kind.split(",")[0] in {"verbatim", "respelled", "cut", "re-serialised", "documentation"}, file
        assert proves, file
        for name in re.findall(r"`([^`]+)`", readers):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert "wire" in text, f"{file}: {name}"
            whole = f'recorded(wire, "{exchange}"' in text  # reads every file of the folder
            assert whole or file in text, f"{file}: {name} does not read it"


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_test_that_names_a_file_is_named_beside_it(exchange: str) -> None:
    for test in sorted((ROOT / "tests").glob("*/test_*.py")):
        if test.parent.name == "docs":
            continue
        text = test.read_text(encoding="utf-8")
        for file, (_, readers, _) in rows(exchange).items():
            if f'"{file}"' in text and exchange in text.lower():
                name = test.relative_to(ROOT).as_posix()
                others = [other for other in EXCHANGES if other != exchange and file in rows(other)]
                assert name in readers or any(name in rows(other)[file][1] for other in others), f"{file}: {name}"
