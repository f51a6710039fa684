"""The command `demo`: the whole collector beside a simulator, with nothing to set up."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.live import Live

import controllers
from collector.config import Settings, load
from collector.settings import DEFAULT_EXCHANGES
from commands.daemon import Daemon
from commands.options import LanguageOption, MarketOption, market_names
from commands.reading import print_coverage
from commands.screen import out
from commands.status import live_view
from storage.coverage import coverage as coverage_of
from storage.reader import Reader


def demo(
    seconds: Annotated[float | None, typer.Option(help="End after so many seconds; default: at Ctrl-C.")] = None,
    db: Annotated[
        Path | None, typer.Option("--db", help="Keep the database in this file; default: a new one in data/.")
    ] = None,
    market: MarketOption = None,
    language: LanguageOption = None,
    seed: Annotated[int, typer.Option(help="The markets that are generated follow from it.")] = 1,
) -> None:
    """Record five exchanges that a simulator on this machine plays, and show it live; needs no network and no keys."""
    from simulator import Simulator, venues

    markets = market_names(market) or ("BTC-KRW", "ETH-KRW")
    if db is None:
        db = Path("data") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}.sqlite"
    names = [name for name in DEFAULT_EXCHANGES if name in venues()]
    with (
        tempfile.TemporaryDirectory(prefix="collector-demo-") as folder,
        Simulator(names, markets, seed=seed) as simulator,
    ):
        log_path = Path("logs") / db.stem
        daemon = Daemon(_demo_settings(Path(folder), simulator.endpoints, markets, db, log_path, language))
        daemon.supervisor.install_signals()
        if seconds is not None:
            timer = threading.Timer(seconds, daemon.supervisor.stop)
            timer.daemon = True
            timer.start()
        with _live_table(daemon):
            status = daemon.run()
    out.print(f"\nThe books are in {db}, the log is in {log_path}. What was heard:", highlight=False, soft_wrap=True)
    with Reader(db) as reader:
        print_coverage(coverage_of(reader, None, None))
    out.print(
        f"Get them back as JSON:  python run_controller.py export UPBIT upbit.json --db {db}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    raise typer.Exit(status)


def _demo_settings(
    folder: Path,
    endpoints: dict[str, dict[str, str]],
    markets: Sequence[str],
    db: Path,
    log_path: Path,
    language: str | None,
) -> Settings:
    # The first market of Bithumb is polled, the second heard over its socket, so that both ways are seen.
    exchanges: dict[str, Any] = {}
    for name, endpoint in endpoints.items():
        exchanges[name] = {"endpoint": endpoint, "markets": list(markets[:1])}
    exchanges["bithumb"]["markets"] = [markets[0], *({other: {"transport": "websocket"}} for other in markets[1:2])]
    file = folder / "demo.yaml"
    file.write_bytes(
        orjson.dumps(
            {
                "exchanges": exchanges,
                "metrics": {"port": 0},
                "log": {"stderr": False},
                "storage": {"spool": {"limit_mib": 0}},
            }
        )
    )  # JSON is YAML
    flags = {"storage.path": str(db), "log.path": str(log_path), "language": language}
    return load(file, env={}, dotenv=None, flags=flags, known=controllers.known())


@contextlib.contextmanager
def _live_table(daemon: Daemon) -> Iterator[None]:
    done = threading.Event()

    def refresh(live: Live) -> None:
        while not done.wait(0.5) and not daemon.supervisor.stopping.is_set():
            live.update(live_view(daemon.status()), refresh=True)

    with Live(live_view(daemon.status()), console=out, auto_refresh=False) as live:
        thread = threading.Thread(target=refresh, args=(live,), name="table", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
