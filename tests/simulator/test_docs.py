from inspect import signature

from simulator import Simulator, venues
from simulator.faults import GARBAGE, KINDS
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "simulator.md").read_text()


def test_every_fault_argument_and_venue_is_explained() -> None:
    for name in (*KINDS, *GARBAGE, *signature(Simulator).parameters):
        assert f"`{name}`" in TEXT, name
    for exchange in venues():
        assert f"| {exchange.upper()} |".lower() in TEXT.lower(), exchange


def test_every_line_of_the_ledger_s_example_has_the_keys_of_a_written_one() -> None:
    for kind in ("open", "subscribe", "message", "close"):
        assert f'{{"kind":"{kind}"' in TEXT
