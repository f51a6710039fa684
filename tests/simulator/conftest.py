"""An independent client of the simulator, and what the tests of the venues share."""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import websocket
from websocket import ABNF

from simulator import Simulator
from tests.conftest import wait_until

SECONDS = 10


def decoded(data: str | bytes) -> Any:
    """Decode a frame with its numbers exact."""
    return json.loads(data, parse_float=Decimal)


class Client:
    """A plain WebSocket client that shows opcodes and closes."""

    def __init__(self, url: str) -> None:
        self.socket = websocket.create_connection(url, timeout=SECONDS)
        self.pings: list[bytes] = []

    def send(self, request: Any) -> None:
        self.socket.send(request if isinstance(request, str) else json.dumps(request))

    def raw(self) -> tuple[int, bytes]:
        """Wait for the next data frame; answer protocol pings on the way."""
        while True:
            opcode, frame = self.socket.recv_data_frame(control_frame=True)
            if opcode == ABNF.OPCODE_PING:
                self.pings.append(frame.data)
            elif opcode != ABNF.OPCODE_PONG:
                return opcode, frame.data

    def frame(self) -> Any:
        """Wait for the next data frame and decode it."""
        return decoded(self.raw()[1])

    def frames(self, count: int) -> list[Any]:
        return [self.frame() for _ in range(count)]

    def until(self, condition: Callable[[Any], object], most: int = 400) -> Any:
        """Read on to the first frame that meets a condition."""
        for _ in range(most):
            frame = self.frame()
            if condition(frame):
                return frame
        pytest.fail(f"none of {most} frames was it")

    def closed(self) -> int:
        """Read on until the server ends the connection; return the close code, 1006 without one."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                opcode, data = self.raw()
            except (websocket.WebSocketConnectionClosedException, ConnectionError):
                return 1006
            if opcode == ABNF.OPCODE_CLOSE:
                return int(struct.unpack("!H", data[:2])[0])
        pytest.fail("the connection was not closed")

    def silent(self, seconds: float = 0.3) -> bool:
        """Tell whether no data frame comes for a while."""
        self.socket.settimeout(seconds)
        try:
            self.raw()
        except websocket.WebSocketTimeoutException:
            return True
        finally:
            self.socket.settimeout(SECONDS)
        return False


class Stage:
    """A running simulator, its ledger and the clients a test connects to it."""

    def __init__(self, simulator: Simulator, path: Path) -> None:
        self.simulator, self.path = simulator, path
        self._clients: list[Client] = []

    def dial(self, exchange: str, query: str = "", product: str = "") -> Client:
        endpoint: Any = self.simulator.endpoints[exchange]
        client = Client((endpoint["products"][product] if product else endpoint)["websocket"] + query)
        self._clients.append(client)
        return client

    def rest(self, exchange: str, path: str) -> str:
        return str(self.simulator.endpoints[exchange]["rest"]) + path

    def ledger(self, **wanted: Any) -> list[dict[str, Any]]:
        """Read the ledger's lines that have these values; one that is just being written is left out."""
        whole = self.path.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if all(line.get(k) == v for k, v in wanted.items())]

    def ends(self, count: int = 1) -> list[str]:
        """Wait until so many connections have ended, and tell why they did."""
        wait_until(lambda: len(self.ledger(kind="close")) >= count, what="closes in the ledger")
        return [line["why"] for line in self.ledger(kind="close")]

    def close(self) -> None:
        for client in self._clients:
            client.socket.close(timeout=1)
            client.socket.shutdown()  # a socket that was cut is not closed by the line before


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Start simulators; everything is closed at the end."""
    running: list[tuple[Simulator, Stage]] = []

    def start(*exchanges: str, **options: Any) -> Stage:
        path = tmp_path / f"ledger{len(running)}.jsonl"
        simulator = Simulator(exchanges, **{"ledger": path, **options})
        simulator.start()
        running.append((simulator, Stage(simulator, path)))
        return running[-1][1]

    yield start
    for simulator, stage in running:
        stage.close()
        simulator.stop()
    assert not [t for t in threading.enumerate() if t.name == "simulator"]


SUBSCRIBE = {
    "upbit": '[{"ticket":"t"},{"type":"orderbook","codes":["KRW-BTC"]}]',
    "bithumb": '[{"ticket":"t"},{"type":"orderbook","codes":["KRW-BTC"]}]',
    "coinone": '{"request_type":"SUBSCRIBE","channel":"ORDERBOOK",'
    '"topic":{"quote_currency":"KRW","target_currency":"BTC"}}',
    "korbit": '[{"method":"subscribe","type":"orderbook","symbols":["btc_krw"]}]',
    "gopax": '{"i":"BTC-KRW","n":"SubscribeToOrderBook","o":{"tradingPairName":"BTC-KRW"}}',
}
BOOK_PATHS = {
    "upbit": "/v1/orderbook?markets=KRW-BTC",
    "bithumb": "/v1/orderbook?markets=KRW-BTC",
    "coinone": "/public/v2/orderbook/KRW/BTC?size=16",
    "korbit": "/v2/orderbook?symbol=btc_krw",
    "gopax": "/trading-pairs/BTC-KRW/book",
}
Levels = list[tuple[Decimal, Decimal]]


def understood(exchange: str, frame: Any) -> tuple[str, Levels, Levels] | None:
    """Read a data frame by the protocol notes: what it is, bids and asks best first; None for control frames."""

    def rows(entries: list[dict[str, Any]], price: str, volume: str) -> Levels:
        return [(Decimal(e[price]), Decimal(e[volume])) for e in entries]

    match exchange:
        case "upbit" | "bithumb":
            if "orderbook_units" not in frame:
                return None
            units = frame["orderbook_units"]
            bids, asks = rows(units, "bid_price", "bid_size"), rows(units, "ask_price", "ask_size")
            return "book", [level for level in bids if all(level)], [level for level in asks if all(level)]
        case "coinone":
            if frame["response_type"] != "DATA":
                return None
            return (
                "book",
                rows(frame["data"]["bids"], "price", "qty"),
                rows(frame["data"]["asks"], "price", "qty")[::-1],
            )
        case "korbit":
            if "data" not in frame:
                return None
            return "book", rows(frame["data"]["bids"], "price", "qty"), rows(frame["data"]["asks"], "price", "qty")
        case _:
            if not isinstance(frame, dict) or "ask" not in frame["o"]:
                return None
            kind = "change" if frame["n"] == "OrderBookEvent" else "book"
            return kind, rows(frame["o"]["bid"], "price", "volume"), rows(frame["o"]["ask"], "price", "volume")


def noted(line: dict[str, Any]) -> tuple[str, Levels, Levels]:
    """Read a ledger line the same way."""
    sides = [[(Decimal(price), Decimal(volume)) for price, volume in line[side]] for side in ("bids", "asks")]
    return line["what"], sides[0], sides[1]


def shape(value: Any) -> Any:
    """Reduce a frame to its keys and types; of a list to those of its first element."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | Decimal) and not isinstance(value, bool) else type(value).__name__
