"""A local exchange: generated markets or recordings in every venue's own protocol, faults on demand, and a ledger."""

from simulator.server import Simulator, run, venues
from simulator.venue import Timing

__all__ = ["Simulator", "Timing", "run", "venues"]
