"""GOPAX (Korea), spot.  Docs: https://gopax.github.io/wsapi and https://gopax.github.io/API (read 2026-11-21)

One complete book after subscribing, then only what changes. Quirks:
- no key is needed for books; with one, the address is signed and good for 5 s;
- the server sends the text `"primus::ping::<n>"` every 30 s and closes 30 s later unless `pong` comes back;
- `entryId` counts over the whole exchange, so a lost change can't be seen: the book is compared with the REST book;
- changes up to the `maxEntryId` of the complete book are in it already, and such a change did come after it;
- a level is replaced by an entry at its price, volume 0 deletes; deleting what is not there is harmless;
- times are seconds with a fraction.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

import msgspec

from collector.errors import UnknownFrame, VenueRefused
from collector.numbers import decoder, to_decimal
from collector.records import Book, BookChange, Message, Refused, Reply
from controllers.levels import decode_any, house_form, listed, shaped, side, venue_us
from controllers.websocket import WSController


class _Entry(msgspec.Struct, gc=False):
    price: Any
    size: Any = msgspec.field(name="volume")
    entry_id: int = msgspec.field(name="entryId")
    updated_at: Any = msgspec.field(name="updatedAt", default=None)

    @property
    def venue_us(self) -> int | None:
        """The time of the change in microseconds."""
        if self.updated_at is None:
            return None
        return venue_us(int(to_decimal(self.updated_at).scaleb(6).to_integral_value()))


class _Body(msgspec.Struct, gc=False):
    ask: list[_Entry] | None = None
    bid: list[_Entry] | None = None
    market: str | None = msgspec.field(name="tradingPairName", default=None)
    max_entry_id: int | None = msgspec.field(name="maxEntryId", default=None)
    result: bool = True
    code: int | None = msgspec.field(name="errCode", default=None)
    data: Any = msgspec.field(name="errData", default=None)


class _Frame(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="n")
    body: _Body = msgspec.field(name="o")
    request: Any = msgspec.field(name="i", default=None)


_decode = decoder(_Frame)


class Gopax(WSController):
    """GOPAX's order books."""

    exchange = "gopax"
    url = "wss://wsapi.gopax.co.kr"
    rest_url = "https://api.gopax.co.kr"
    listing_path = "/trading-pairs"
    changes_only = True
    stale_s = 65.0
    connection_age_s = 86_400.0
    budget_per_s = 1.0  # the book call, for the whole address

    def address(self) -> str:
        """Return the address, signed when the configuration asks for it."""
        url = super().address()
        if self.keys is None:
            return url
        try:
            return f"{url}?{urlencode(signature(*self.keys, self.clock.wall_us() // 1000))}"
        except ValueError:
            self.refused(VenueRefused("GOPAX_SECRET_KEY is not base64; copy it again from the exchange"))
            return url

    def refused(self, error: VenueRefused) -> None:
        """Go on without the key: books need none."""
        if self.keys is None:
            raise error
        self.log.warning("key_refused", error=error)
        self.keys = None

    def subscribe_messages(self, markets: Iterable[str]) -> Iterable[str]:
        """Return a frame for each market; a refusal names the request `i`."""
        for market in markets:
            request = {"i": market, "n": "SubscribeToOrderBook", "o": {"tradingPairName": market}}
            yield msgspec.json.encode(request).decode()

    def parse(self, frame: bytes, received_us: int) -> Iterable[Message]:
        """Read one frame."""
        ping = frame.strip(b'"')
        if ping.startswith(b"primus::ping::") and len(ping) < 64:
            return (Reply(frame.replace(b"ping", b"pong", 1).decode("ascii", "replace")),)
        message = _decode(frame)
        body = message.body
        if message.name == "SubscribeToOrderBook" and not body.result:
            market = message.request if isinstance(message.request, str) else None
            return (Refused(f"{body.code} {body.data}", market),)
        if body.market is None or body.ask is None or body.bid is None:
            raise UnknownFrame(f"n was {message.name!r}")
        newest = max((entry.venue_us or 0 for entry in body.ask + body.bid), default=0) or None
        if message.name == "SubscribeToOrderBook" and body.max_entry_id is not None:
            return (Book(body.market, side(body.bid), side(body.ask), newest, body.max_entry_id),)
        if message.name != "OrderBookEvent":
            raise UnknownFrame(f"n was {message.name!r}")
        changes = [BookChange(body.market, {}, side([entry]), entry.venue_us, entry.entry_id) for entry in body.ask]
        changes += [BookChange(body.market, side([entry]), {}, entry.venue_us, entry.entry_id) for entry in body.bid]
        return sorted(changes, key=lambda change: (change.venue_us or 0, change.sequence or 0))

    def probe_path(self, market: str) -> str:
        """Return the path of the complete REST book."""
        return f"/trading-pairs/{market}/book?level=3"

    @shaped
    def parse_probe(self, market: str, body: bytes) -> Book:
        """Read a REST book, whose entries are `[id, price, volume, time]`."""
        book = decode_any(body)
        bids = listed((row[1], row[2]) for row in book["bid"])
        asks = listed((row[1], row[2]) for row in book["ask"])
        return Book(market, bids, asks)

    @classmethod
    @shaped
    def parse_listing(cls, body: bytes) -> list[str]:
        """Read the live pairs; their names are in house form already."""
        return house_form(row["name"] for row in decode_any(body))


def signature(key: str, secret: str, now_ms: int) -> dict[str, str]:
    """Return the query parameters that sign a socket's address.

    HMAC-SHA512 over `t<timestamp>` with the base64-decoded secret, base64-encoded (gopax.github.io/wsapi).
    """
    mac = hmac.new(base64.b64decode(secret), f"t{now_ms}".encode(), hashlib.sha512)
    return {"apiKey": key, "timestamp": str(now_ms), "signature": base64.b64encode(mac.digest()).decode()}
