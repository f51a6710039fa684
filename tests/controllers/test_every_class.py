"""What holds for every class of an exchange, whichever market it carries and whatever comes to it."""

import pytest

from controllers.base import Controller
from controllers.binance import Binance, UsdmBooks, UsdmMarket
from controllers.bybit import Bybit, BybitInverse, BybitLinear
from controllers.coinbase import Coinbase
from controllers.kraken import Kraken
from controllers.kucoin import KuCoin
from controllers.okx import Okx, OkxBusiness
from tests.controllers.streams import hold_to_any_streams

USDT = ("BTC-USDT", "ETH-USDT")
USDM = ("BTC-USDT:USDT", "ETH-USDT:USDT-261225")


@pytest.mark.parametrize(
    ("cls", "markets", "file"),
    [
        (Binance, USDT, "frames"),
        (UsdmBooks, USDM, "usdm"),
        (UsdmMarket, USDM, "usdm_market"),
        (Bybit, USDT, "frames"),
        (BybitLinear, USDM, "frames"),
        (BybitInverse, ("BTC-USD:BTC", "ETH-USD:ETH-261225"), "frames"),
        (Coinbase, ("BTC-USD", "ETH-USDC"), "frames"),
        (Kraken, ("BTC-USD", "ETH-USD"), "frames"),
        (KuCoin, USDT, "frames"),
        (Okx, ("BTC-USDT", "BTC-USD:BTC-261225-100000-C"), "frames"),
        (OkxBusiness, ("BTC-USDT", "BTC-USDT:USDT"), "candles"),
    ],
)
def test_any_frame_on_any_channel_ends_in_one_outcome(
    cls: type[Controller], markets: tuple[str, ...], file: str
) -> None:
    assert all(cls.carries(market, channel) for market in markets for channel in cls.offers)
    hold_to_any_streams(cls, cls.exchange, *markets, file=file, examples=30)
