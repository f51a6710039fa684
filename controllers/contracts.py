"""Markets of contracts in house form, which keeps them apart from the spot market of the same pair.

| what | house form |
|---|---|
| spot | `BTC-USDT` |
| perpetual, settled in USDT | `BTC-USDT:USDT` |
| perpetual, settled in the symbol (inverse) | `BTC-USD:BTC` |
| future that expires on 2026-12-25 | `BTC-USDT:USDT-261225` |
| option, strike 100000, call or put | `BTC-USD:BTC-261225-100000-C` |

The spelling is that of ccxt, with the house's dash in place of its slash.
"""

from typing import NamedTuple


class Contract(NamedTuple):
    """A market in house form, taken apart; what a spot market does not have is None. `expiry` is `YYMMDD`."""

    symbol: str
    currency: str
    settle: str | None = None
    expiry: str | None = None
    strike: str | None = None
    right: str | None = None  # C, a call, or P, a put

    @property
    def perpetual(self) -> bool:
        """Whether it is a contract without an end."""
        return self.settle is not None and self.expiry is None

    @property
    def inverse(self) -> bool:
        """Whether it is settled in the symbol itself."""
        return self.settle is not None and self.settle == self.symbol

    def __str__(self) -> str:
        tail = "-".join(part for part in self[2:] if part is not None)
        return f"{self.symbol}-{self.currency}" + (f":{tail}" if tail else "")


def contract(market: str) -> Contract:
    """Return a market in house form, taken apart; the form has been checked where the market came in."""
    pair, _, rest = market.partition(":")
    symbol, _, currency = pair.partition("-")
    return Contract(symbol, currency, *(rest.split("-") if rest else ()))
