"""A local server that speaks the protocols of the exchanges, each under /<exchange>, all on one port.

`Simulator` runs in a thread of its own (`start`, `stop`, or as a context manager) or alone in a process (`run`). Faults
are asked for by `fault` from any thread, or by `POST /control/fault` from anywhere else. What was sent stands in the
ledger, see `simulator.ledger`.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simulator.front import Front, Plan
from simulator.venue import Timing

START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10


class Simulator:
    """A local exchange server for tests, demonstrations and benchmarks.

    `exchanges` names the venues to simulate, `markets` the markets each of them trades. `rate_hz` is the number of
    updates a second and market (None: each venue's own), multiplied by `speed` (None: as fast as clients read). With
    a `recording`, the venue it was recorded from plays it to every subscriber instead, again and again if `loop`.
    `timing` shortens keepalive times and widens limits; `keys` holds (key, base64 secret) of an exchange that signs.
    Wrong arguments raise ValueError in `start`. All public methods may be called from any thread.
    """

    def __init__(
        self, exchanges: Iterable[str], markets: Iterable[str] = ("BTC-KRW", "ETH-KRW"), *,
        seed: int = 1, rate_hz: float | None = None, host: str = "127.0.0.1", port: int = 0, ledger: Path | None = None,
        recording: Path | None = None, speed: float | None = 1.0, loop: bool = False, timing: Timing | None = None,
        keys: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:  # fmt: skip
        self._plan = Plan(
            exchanges=list(exchanges), markets=list(markets), seed=seed, rate_hz=rate_hz, speed=speed, host=host,
            port=port, ledger=ledger, recording=recording, loop=loop, timing=timing or Timing(), keys=dict(keys or {}),
        )  # fmt: skip
        self._front: Front | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> None:
        """Start the thread; return when the server listens. Raises what kept it from that."""
        if self._thread is not None:
            raise RuntimeError("the simulator is running")
        ready = threading.Event()
        self._front = Front(self._plan)
        self._thread = threading.Thread(target=self._run, args=(self._front, ready), name="simulator", daemon=True)
        self._thread.start()
        if not ready.wait(START_TIMEOUT_S):
            raise TimeoutError("the simulator did not start")
        if self._front.error is not None:
            self._thread.join(STOP_TIMEOUT_S)
            self._thread = None
            raise self._front.error

    def stop(self) -> None:
        """Close every connection, put the ledger on the disk, end the thread; raise the simulator's own error."""
        if self._thread is None or self._front is None:
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed already: it ended by an error of its own
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._front.stop)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the simulator did not stop within {STOP_TIMEOUT_S} s")
        self._thread = None
        if self._front.error is not None:
            raise self._front.error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _run(self, front: Front, ready: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await front.serve(ready)

        try:
            asyncio.run(main())
        except Exception as e:  # handed to whoever started or stops the simulator
            front.error = front.error or e
        finally:
            front.ledger.flush()
            ready.set()

    def failed(self) -> bool:
        """Tell whether the simulator ended by an error of its own, which `stop` will raise."""
        return self._front is not None and self._front.error is not None

    # -- what others ask

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://{self._plan.host}:{self._plan.port}"

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        """The `endpoint:` settings that lead a collector here, by exchange."""
        return self._started().endpoints()

    def connections(self, exchange: str, transport: str | None = None) -> int:
        """Count the open connections of an exchange: all, or only "websocket" or "rest" ones."""
        return sum(transport in (None, c.kind) for c in self._started().venues[exchange].connections.copy())

    def fault(self, kind: str, exchange: str | None = None, market: str | None = None, **parameters: Any) -> None:
        """Cause a fault (see docs/simulator.md), in force when this returns. Raises ValueError for an unknown one."""
        front = self._started()
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(front.fault(kind, exchange, market, parameters), self._loop).result(5)

    def _started(self) -> Front:
        if self._front is None or self._thread is None:
            raise RuntimeError("the simulator is not running")
        return self._front


def run(simulator: Simulator, stop_event: threading.Event) -> None:
    """Run a simulator until the event is set; raises the error if it ends by one of its own."""
    with simulator:
        while not stop_event.wait(0.5) and not simulator.failed():
            pass
