"""Connections that are cut at every byte, and slowed down, sliced, swallowed and reset in every other way.

A real daemon hears a real simulator through a proxy. Whatever happens to a connection, the next one is made, no worker
is stuck, and the judge finds every message accounted for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import controllers.websocket
from collector.budget import Budget
from controllers.connection import Connection
from tests.faults.dose import dose
from tests.faults.house import House
from tests.faults.proxy import HARMLESS, Ending, Proxy, Toxic, Toxics

HOUR = 3600
ENDINGS: tuple[Ending, ...] = ("close", "reset")


@contextmanager
def through_a_proxy(folder: Path, exchange: str) -> Iterator[tuple[House, Proxy]]:
    """Give a daemon whose only exchange is reached through a proxy; it has not started yet."""
    with House(folder, exchange) as house, Proxy(house.simulator.url) as proxy:
        house.endpoints[exchange] = proxy.endpoint(house.endpoints[exchange])
        yield house, proxy


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the budgets away: no exchange is asked so often."""
    monkeypatch.setattr(Budget, "wait", lambda budget, stopping, **within: not stopping.is_set())


def cut_one_after_the_other(proxy: Proxy, toxics: Sequence[Toxics]) -> None:
    """Do one of these to each of the next connections, and nothing to those that follow."""
    done = proxy.accepted
    proxy.toxics = lambda number: toxics[number - done - 1] if number - done <= len(toxics) else HARMLESS
    proxy.cut()


def ends_well(house: House, *, expected: Sequence[str] = ()) -> None:
    """Stop everything; nothing is missing, and no error was a surprise."""
    log = house.log
    verdict = house.stop()
    assert verdict.good, "\n".join([str(verdict), *verdict.notes])
    assert "unexpected exception" not in log and "worker died" not in log, log[-5000:]
    assert all(text in log for text in expected)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("exchange", dose(["upbit"], ["upbit", "bithumb", "coinone", "korbit", "gopax"]))
def test_a_connection_cut_at_every_byte_of_its_beginning(way: str, exchange: str, tmp_path: Path) -> None:
    """Mutation: let `Connection` catch nothing but `WebSocketException`, or take an end for silence in `receive`."""
    options = {exchange: {"transport": "websocket"}} if exchange == "bithumb" else {}
    with through_a_proxy(tmp_path, exchange) as (house, proxy):
        house.start(options=options)
        house.goes_on()
        handshake = proxy.head.index(b"\r\n\r\n") + 4 if way == "down" else proxy.passed["up"]
        frames = range(handshake + 1, handshake + 4096, dose(41, 1)) if way == "down" else ()
        toxics = []
        for number, offset in enumerate([*range(handshake + 1), *frames]):
            toxic = Toxic(bytes_max=offset, ending=ENDINGS[number % 2])
            toxics.append(Toxics(**{way: toxic}))

        before = proxy.accepted
        cut_one_after_the_other(proxy, toxics)

        house.until(lambda: proxy.accepted > before + len(toxics), dose(60, HOUR), "a connection that is left alone")
        house.goes_on()
        assert house.simulator.connections(exchange, "websocket") == 1
        ends_well(house)


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_connection_that_falls_silent_in_the_middle_of_its_beginning(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: take the time-out out of `Connection`, or `stale_s` out of `WSController._watch`."""
    monkeypatch.setattr(controllers.websocket, "Connection", partial(Connection, timeout_s=0.2))
    with through_a_proxy(tmp_path, "upbit") as (house, proxy):
        house.start(options={"upbit": {"stale_s": 0.5}})
        house.goes_on()
        handshake = proxy.head.index(b"\r\n\r\n") + 4
        offsets = dose([0, handshake], [*range(0, handshake, 7), handshake, handshake + 500])
        if way == "up":
            offsets = [offset for offset in offsets if offset < proxy.passed["up"] - 20]
        toxics = [Toxics(**{way: Toxic(bytes_max=offset, ending="silence")}) for offset in offsets]

        before = proxy.accepted
        cut_one_after_the_other(proxy, toxics)

        house.until(lambda: proxy.accepted > before + len(toxics), dose(60, HOUR), "a connection that is left alone")
        house.goes_on()
        ends_well(house)


@pytest.mark.parametrize(
    "toxics",
    [
        Toxics(down=Toxic(latency_s=0.2)),
        Toxics(up=Toxic(latency_s=0.2), down=Toxic(slice_bytes=100, latency_s=0.001)),
        Toxics(up=Toxic(slice_bytes=1), down=Toxic(slice_bytes=1)),
        Toxics(down=Toxic(bytes_per_s=200_000, slice_bytes=1000)),
        Toxics(down=Toxic(bytes_max=15_000, ending="slow close")),
        Toxics(down=Toxic(bytes_max=15_000, ending="reset"), up=Toxic(latency_s=0.05)),
    ],
    ids=["latency", "sliced", "byte by byte", "narrow", "slow close", "reset"],
)
def test_a_bad_line(toxics: Toxics, tmp_path: Path) -> None:
    """Mutation: let `FrameReader.feed` forget the beginning of a frame that has not arrived whole."""
    with through_a_proxy(tmp_path, "upbit") as (house, proxy):
        proxy.toxics = lambda _: toxics
        house.start()
        house.goes_on(frames=dose(20, 2000), seconds=dose(30, 600))
        ends_well(house)


def test_an_answer_cut_at_every_byte(tmp_path: Path) -> None:
    """What is cut off is no answer: it is neither data nor a message that nobody can read.

    Mutation: read the body in `controllers/fetch.py` without looking at its length.
    """
    with through_a_proxy(tmp_path, "bithumb") as (house, proxy):
        house.start(options={"bithumb": {"poll_interval_s": 0.05}})
        house.goes_on()
        # One answer to each connection, so that the byte it ends at is known.
        head = proxy.head.index(b"\r\n\r\n") + 4
        offsets = [*range(0, head, dose(17, 1)), *range(head, head + 2000, dose(211, 5))]
        toxics = [Toxics(down=Toxic(bytes_max=at, ending=ENDINGS[n % 2])) for n, at in enumerate(offsets)]

        before = proxy.accepted
        cut_one_after_the_other(proxy, toxics)

        house.until(lambda: proxy.accepted > before + len(toxics), dose(60, HOUR), "a connection that is left alone")
        house.goes_on()
        assert "message not understood" not in house.log
        ends_well(house)
