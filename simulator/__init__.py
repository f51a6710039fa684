"""A local exchange: generated markets or recordings in every venue's own protocol, faults on demand, and a ledger."""

from simulator.front import venues
from simulator.server import Simulator, run
from simulator.venue import Timing

__all__ = ["Simulator", "Timing", "run", "venues"]
