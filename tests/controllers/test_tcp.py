"""Every socket to an exchange is asked to notice that the other side has vanished."""

import socket
from collections.abc import Callable, Iterator

import pytest

from controllers import controller_class, known
from controllers.connection import Connection
from controllers.fetch import open_session
from controllers.tcp import KEEPALIVE_S, UNANSWERED_S
from controllers.websocket import WSController
from simulator import Simulator

WANTED = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): KEEPALIVE_S,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): UNANSWERED_S * 1000,
}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(("upbit",), ("BTC-KRW",), rate_hz=1) as running:
        yield running


def options_of(sock: socket.socket) -> dict[tuple[int, int], int]:
    return {name: sock.getsockopt(*name) for name in WANTED}


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_a_websocket_notices_that_the_other_side_has_vanished(simulator: Simulator) -> None:
    """The mutation that must make this fail: `sockopt=[]` in `Connection`."""
    connection = Connection(simulator.endpoints["upbit"]["websocket"])
    sock = connection._socket.sock
    assert sock is not None
    assert options_of(sock) == WANTED
    connection.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_a_rest_connection_does_so_too(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that must make this fail: a plain `requests.Session` in `open_session`."""
    made: list[socket.socket] = []
    create: Callable[..., socket.socket] = socket.socket.connect  # type: ignore[assignment]

    def connect(sock: socket.socket, address: object) -> None:
        create(sock, address)
        made.append(sock)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with open_session() as session:
        answer = session.get(f"{simulator.endpoints['upbit']['rest']}/v1/market/all", timeout=5)
        assert answer.status_code == 200
        (sock,) = made
        assert options_of(sock) == WANTED
        assert session.get_adapter("https://x").poolmanager.connection_pool_kw["socket_options"]  # type: ignore[attr-defined]


def test_the_kernel_gives_up_before_any_exchange_is_called_dead() -> None:
    for name in known():
        for transport in known()[name]:
            cls = controller_class(name, transport)
            if issubclass(cls, WSController):
                assert cls.stale_s > UNANSWERED_S
