"""Upbit frames to measure with: 30 levels a side of which one to three change from frame to frame, totals exact."""

import random
from collections.abc import Iterator
from decimal import Decimal

TICK = 1000


def upbit_frames(count: int, *, market: str = "KRW-BTC", seed: int = 1) -> Iterator[bytes]:
    """Yield `count` frames as the exchange writes them in its short format, about 2 kB each."""
    choose = random.Random(seed)
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
