"""A whole daemon in this process beside a simulator, so that a test can reach into its threads."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import controllers
from collector.config import load
from collector.worker import Worker
from commands.daemon import Daemon
from simulator import Simulator
from simulator.judge import Verdict, judge
from simulator.venue import Timing
from tests.conftest import wait_until

# No limits in the way of what happens here more often than any exchange would bear.
PATIENT = Timing(rest_limits=False, connects_per_s=100_000, connections_max=1000)
SOON = {"base_s": 0.01, "cap_s": 0.02}


class House:
    """Simulator and daemon; a context manager that stops both and lets the judge see."""

    def __init__(
        self, folder: Path, *exchanges: str, markets: tuple[str, ...] = ("BTC-KRW",), rate_hz: int = 40
    ) -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self.database = folder / "db"
        self.simulator = Simulator(exchanges, ("BTC-KRW",), rate_hz=rate_hz, ledger=self.ledger, timing=PATIENT)
        self.simulator.start()
        self.endpoints = self.simulator.endpoints
        self.daemon: Daemon
        self.status: int | None = None
        self._thread: threading.Thread | None = None
        self._switch_s = sys.getswitchinterval()

    def start(self, *, options: Mapping[str, Mapping[str, object]] | None = None, **sections: object) -> None:
        """Start the daemon; `options` are settings of an exchange, `sections` those of the daemon."""
        settings: dict[str, Any] = {
            "language": "en",
            "exchanges": {
                name: {"endpoint": endpoint, "backoff": SOON, **(options or {}).get(name, {})}
                for name, endpoint in self.endpoints.items()
            },
            "storage": {"path": str(self.database), "batch_ms": 50},
            "log": {"path": str(self.folder / "logs"), "stderr": False},
            "metrics": {"enabled": False},
            **sections,
        }
        file = self.folder / "collector.yaml"
        file.write_text(json.dumps(settings))
        self.daemon = Daemon(load(file, env={}, dotenv=None, flags={}, known=controllers.known()))
        self._thread = threading.Thread(target=self._run, name="daemon", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.status = self.daemon.run()

    def stop(self) -> Verdict:
        """Stop the daemon in order, then the simulator; return what the judge says."""
        assert self._thread is not None
        self.daemon.supervisor.stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), "it does not stop"
        assert self.status == 0
        self.simulator.stop()
        return judge(self.ledger, self.database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._thread is not None and self._thread.is_alive():
            self.daemon.supervisor.stop()
            self._thread.join(60)
        self.simulator.stop()
        sys.setswitchinterval(self._switch_s)

    # --- what others see

    @property
    def log(self) -> str:
        """The log so far."""
        self.daemon.logs.flush()
        return (self.folder / "logs" / "collector.log").read_text("utf-8")

    def worker(self, name: str) -> Worker:
        """Return the present worker whose name begins so."""
        return next(worker for worker in self.daemon.supervisor.workers if worker.name.startswith(name))

    def feeds(self) -> list[dict[str, Any]]:
        """Return the state of every feed."""
        return [row for worker in self.daemon.supervisor.workers for row in worker.status()]

    def live(self) -> bool:
        """Whether every feed is being heard."""
        return all(row["state"] == "live" for row in self.feeds())

    def until(self, condition: Callable[[], object], seconds: float = 30, what: str = "") -> None:
        """Wait for a condition; say what the log says where it does not come."""

        def looked_at() -> object:
            assert self._thread is not None and self._thread.is_alive(), self.log
            return condition()

        try:
            wait_until(looked_at, seconds, what)
        except BaseException:
            print(self.log[-5000:], file=sys.stderr)
            raise

    def frames(self, exchange: str) -> int:
        """Count the data frames of an exchange's present workers."""
        return sum(row["frames"] for row in self.feeds() if row["exchange"] == exchange)

    def goes_on(self, *exchanges: str, frames: int = 10, seconds: float = 30) -> None:
        """Return when all feeds are live and each of these exchanges has sent so many frames more."""
        for exchange in exchanges or tuple(self.endpoints):
            before = self.frames(exchange)
            # A worker that was replaced counts from nought.
            self.until(
                lambda exchange=exchange, before=before: (  # type: ignore[misc]
                    (now := self.frames(exchange)) >= before + frames or frames <= now < before
                ),
                seconds,
                f"{frames} frames of {exchange}",
            )
        self.until(self.live, seconds, "every feed live")
