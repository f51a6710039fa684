"""Korbit, since 2026 Digital X (Korea), spot.  Docs: https://docs.digitalx.miraeasset.com (read 2026-11-21)

Every frame is the whole book, up to 30 levels a side; numbers are text. Quirks:
- the exchange moved to new hosts and may leave the old ones (`wss://ws-api.korbit.co.kr/v2/public`) any day:
  `endpoint:`;
- requests are always an array, and success is told only when `requestId` is given;
- `snapshot` is true in the first frame and missing in the others;
- a halted market sends one book with empty sides and nothing more;
- the server sends a protocol ping every 30 s.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from collector.errors import BadFrame, UnknownFrame
from collector.numbers import decoder
from collector.records import Book, Message, Refused
from controllers.levels import decode_any, house_form, listed, shaped, side, venue_us
from controllers.websocket import WSController


class _Level(msgspec.Struct, gc=False):
    price: Any
    size: Any = msgspec.field(name="qty")


class _Data(msgspec.Struct, gc=False):
    timestamp: Any = None
    asks: list[_Level] | None = None
    bids: list[_Level] | None = None


class _Frame(msgspec.Struct, gc=False):
    type: str | None = None
    symbol: str | None = None
    data: Any = None
    status: str | None = None
    code: Any = None
    message: Any = None


class _BookFrame(msgspec.Struct, gc=False):
    data: _Data
    symbol: str
    type: str | None = None
    status: str | None = None


_decode = decoder(_Frame)
_decode_book = decoder(_BookFrame)


class Korbit(WSController):
    """Korbit's order books."""

    exchange = "korbit"
    url = "wss://ws-api.digitalx.miraeasset.com/v2/public"
    rest_url = "https://api.digitalx.miraeasset.com"
    listing_path = "/v2/currencyPairs"
    budget_per_s = 50.0
    depth = 30
    text_numbers = True
    stale_s = 90.0

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return one array with a request for each market, so that a refusal concerns only one."""
        requests = [
            {
                "requestId": number,
                "method": "subscribe",
                "type": "orderbook",
                "symbols": [market.lower().replace("-", "_")],
            }
            for number, market in enumerate(markets, 1)
        ]
        return [msgspec.json.encode(requests).decode()]

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        if b'"orderbook"' not in frame:
            return self._control(frame)
        message = _decode_book(frame)
        data = message.data
        symbol, underline, currency = message.symbol.upper().partition("_")
        if message.type != "orderbook" or not underline or data.asks is None or data.bids is None:
            raise BadFrame("a book without pair, asks or bids")
        return (Book(f"{symbol}-{currency}", side(data.bids), side(data.asks), venue_us(data.timestamp)),)

    def _control(self, frame: bytes) -> Iterable[Message]:
        message = _decode(frame)
        if message.status == "success":
            return ()
        if message.status in ("fail", "error"):
            market = None
            text = str(message.message)
            if "(" in text and text.endswith(")"):  # The symbol does not exist (nope_krw)
                market = text[text.rindex("(") + 1 : -1].upper().replace("_", "-")
            return (Refused(f"{message.code or message.status} {text}", market),)
        raise UnknownFrame(f"type was {message.type!r}, status {message.status!r}")

    def probe_path(self, market: str) -> str:
        """Return the path of the same book over REST."""
        return f"/v2/orderbook?symbol={market.lower().replace('-', '_')}"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read `{"success":true,"data":{...}}`."""
        data = decode_any(body)["data"]
        bids = listed((row["price"], row["qty"]) for row in data["bids"])
        asks = listed((row["price"], row["qty"]) for row in data["asks"])
        return Book(market, bids, asks)

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the launched pairs."""
        rows = decode_any(body)["data"]
        return house_form(row["symbol"].upper().replace("_", "-") for row in rows if row["status"] == "launched")
