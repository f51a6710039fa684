"""Messages to measure with: Upbit's, of 30 levels a side, and those the simulator spells for every venue."""

import os
import random
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from simulator import Timing, recording
from simulator.connection import Message, Subscription
from simulator.faults import Faults
from simulator.front import venue_class
from simulator.venue import Venue

TICK = 1000
MARKET = "BTC-KRW"

# What a subscription as our controllers send it is understood as.
_SUBSCRIBED: dict[str, dict[str, Any]] = {
    "bithumb": {"format": "DEFAULT", "depth": 15, "snapshot_only": False, "realtime_only": False},
    "coinone": {"format": "DEFAULT"},
    "gopax": {"i": MARKET, "n": "SubscribeToOrderBook", "limit": None},
    "korbit": {},
    "upbit": {"format": "SIMPLE", "depth": 30, "snapshot_only": False, "realtime_only": False},
}


def upbit_frames(count: int, *, market: str = "KRW-BTC", seed: int = 1) -> Iterator[bytes]:
    """Yield `count` frames as the exchange writes them in its short format, about 2 kB each.

    One to three levels change from frame to frame, and the totals are exact.
    """
    choose = random.Random(f"{seed}/{market}")
    touch = 116_000_000
    sizes = {side: [_size(choose) for _ in range(30)] for side in ("ask", "bid")}
    time_ms = 1_790_000_000_000
    for _ in range(count):
        time_ms += 100
        for _ in range(choose.randint(1, 3)):
            sizes[choose.choice(("ask", "bid"))][int(choose.expovariate(0.3)) % 30] = _size(choose)
        if choose.random() < 0.05:  # the touch moves: one level leaves, another comes
            touch += TICK
            sizes["ask"] = [*sizes["ask"][1:], _size(choose)]
            sizes["bid"] = [_size(choose), *sizes["bid"][:-1]]
        units = ",".join(
            f'{{"ap":{touch + TICK * (i + 1)}.0,"bp":{touch - TICK * i}.0,"as":{ask},"bs":{bid}}}'
            for i, (ask, bid) in enumerate(zip(sizes["ask"], sizes["bid"], strict=True))
        )
        asks, bids = sum(sizes["ask"], Decimal(0)), sum(sizes["bid"], Decimal(0))
        yield (
            f'{{"ty":"orderbook","cd":"{market}","tms":{time_ms},"tas":{asks},"tbs":{bids},"obu":[{units}],'
            f'"st":"REALTIME","lv":0}}'
        ).encode()


def _size(choose: random.Random) -> Decimal:
    return Decimal(choose.randint(10_000, 500_000_000)).scaleb(-8)


def venue_frames(exchange: str, count: int, *, polled: bool = False) -> list[bytes]:
    """Return the first messages a subscriber (or a poller) of BTC-KRW gets from the simulated exchange."""
    return list(islice(_spelled(exchange, polled), count))


def _spelled(exchange: str, polled: bool) -> Iterator[bytes]:
    venue = _venue(exchange)
    market = venue.markets[MARKET]
    subscription = Subscription("1", MARKET, "orderbook", venue.native(MARKET), _SUBSCRIBED[exchange])
    if not polled:
        yield from map(_bytes, venue.snapshots(subscription, True))
    while True:
        step = market.step()
        venue.stepped(market, step)
        if polled:
            book: Message = venue.rest_book(MARKET, venue.depth)  # type: ignore[attr-defined]
            yield b"[" + _bytes(book) + b"]"
        else:
            yield from map(_bytes, venue.updates(subscription, step))


def _bytes(message: Message) -> bytes:
    return message.data if isinstance(message.data, bytes) else message.data.encode()


def _venue(exchange: str) -> Venue:
    found = venue_class(exchange)
    if found is None:
        raise ValueError(f"there is no simulated {exchange}")
    return found(Faults(), [MARKET], 1, Timing(), None)


def recorded_frames() -> list[recording.Recorded]:
    """Return the books of Upbit's recording in order; none where there is no recorded traffic.

    `COLLECTOR_WIRE` names its folder, else it is looked for where the tests do.
    """
    folder = Path(os.environ.get("COLLECTOR_WIRE") or Path(__file__).resolve().parents[2] / "shared" / "wire")
    file = folder / "upbit" / "cryptofeed_ws_simple_20210417.ndjson"
    if not file.is_file():
        return []
    upbit = _venue("upbit")
    read = recording.load(file, upbit.hosts, upbit.recorded)
    return [frame for frame in read.frames if frame.channel == "orderbook"]
