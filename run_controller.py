#!/usr/bin/env python3
"""The collector's command line; the only place that puts the pieces together.

Without a command it runs the daemon with `config/collector.yaml`. Exit status: 0 all is well, 1 something failed while
it ran, 2 something is wrong that a person must mend before it can start.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import typer
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed; activate the virtual environment, or: pip install -r requirements.txt")
import orjson
import requests
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import collector
import controllers
from collector import log as logs
from collector.budget import Budget
from collector.clock import Clock
from collector.config import Settings, describe, load
from collector.errors import CollectorError, ConfigError, SourceError, StorageError
from collector.intake import Intake
from collector.metrics import Metrics
from collector.rates import Growth, Rates
from collector.records import Delivery, Event
from collector.settings import MARKET_PATTERN
from collector.supervisor import Supervisor
from collector.systemd import Notifier, watchdog_interval_s
from collector.times import parse_time, show_duration, show_time
from collector.web import WebServer
from controllers.base import Setup
from storage import DataConverter
from storage.coverage import FeedCoverage
from storage.coverage import coverage as coverage_of
from storage.maintenance import Housekeeping
from storage.maintenance import backup as backup_database
from storage.reader import Gap, Reader
from storage.sqlite import SQLiteStore
from storage.writer import Writer

# Beside a busy thread the writer gets the interpreter back after half a millisecond, not five: docs/performance.md.
SWITCH_INTERVAL_S = 0.0005
EVENT_BYTES = 300

out = Console()
err = Console(stderr=True, soft_wrap=True, highlight=False)


# --- the daemon -------------------------------------------------------------------------------------------------------


class Daemon:
    """Everything one collector consists of, built from its settings.

    The constructor takes the database and opens the log, so it raises `StorageError` or `ConfigError` for what a person
    must mend; no thread of a source runs before `run`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = clock = Clock()
        self.started_us = clock.wall_us()
        self.metrics = Metrics(CollectorRegistry(), version=collector.__version__, started_s=self.started_us / 1e6)
        self.intake = Intake(settings.intake.memory_mib << 20, wake_records=settings.storage.batch_records)
        self.metrics.watch_intake(
            records=lambda: self.intake.held[0], size=lambda: self.intake.held[1], limit=self.intake.limit_bytes
        )
        plan = list(_plan(settings))
        for secret, _ in settings.secrets.values():
            logs.register_secret(secret.get_secret_value())
        self.store = SQLiteStore(
            settings.storage.path,
            collector_id=settings.collector_id,
            version=collector.__version__,
            run_uid=str(uuid.uuid4()),
            started_us=self.started_us,
        )
        _require_log_folder(settings.log.path)  # before the database is touched
        self.store.open()
        try:
            self.logs = logs.setup(
                settings.log.path,
                level=settings.log.level,
                language=settings.language,
                file_bytes=settings.log.file_mib << 20,
                files=settings.log.files,
                stderr=settings.log.stderr,
                feeds=[(cls.exchange, market) for cls, markets, _ in plan for market in markets],
                clock=clock,
                on_event=self._keep_event,
            )
        except ConfigError:
            self.store.release()
            raise
        self.log = logs.get("COLLECTOR")
        self._growth = Growth(clock)
        self.writer = Writer(
            self.store,
            self.intake,
            clock=clock,
            log=logs.get("WRITER"),
            metrics=self.metrics,
            batch_ms=settings.storage.batch_ms,
            batch_records=settings.storage.batch_records,
            housekeeping=self._housekeeping(),
        )
        watchdog_s = watchdog_interval_s()
        self.supervisor = Supervisor(
            self.writer,
            clock=clock,
            log=logs.get("SUPERVISOR"),
            metrics=self.metrics,
            notifier=Notifier(),
            stop_timeout_s=settings.limits.stop_timeout_s,
            watchdog_s=watchdog_s if watchdog_s else 30.0,
            describe=self.describe,
        )
        budgets: dict[str, Budget] = {}
        connects: dict[str, Budget] = {}
        for cls, markets, options in plan:
            budget = budgets.setdefault(cls.exchange, Budget(cls.budget_per_s, clock))
            keys = settings.keys(cls.exchange) if options.auth else None
            setup = Setup(
                clock=clock,
                intake=self.intake,
                metrics=self.metrics,
                log=self.logs.connection(cls.exchange, markets),
                options=options,
                budget=budget,
                connects=connects.setdefault(cls.exchange, Budget(cls.connects_per_s, clock)),
                full_books=settings.storage.mode == "full",
                keys=(keys[0].get_secret_value(), keys[1].get_secret_value()) if keys else None,
            )
            self.supervisor.add(_maker(cls, markets, setup))
        self.web = WebServer(
            settings.metrics.host,
            settings.metrics.port,
            registry=self.metrics.registry,
            status=self.status,
            healthy=self.supervisor.healthy,
            ready=self.ready,
        )
        self._rates = Rates(clock)

    def run(self) -> int:
        """Record until a signal or `supervisor.stop()`; return the exit status."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        feeds = [row for worker in self.supervisor.workers for row in worker.status()]
        self.log.info("daemon_start", version=collector.__version__, feeds=len(feeds), database=self.store.path)
        if self.settings.metrics.enabled:
            if self.web.start():
                self.log.info("metrics_on", host=self.settings.metrics.host, port=self.web.port)
            else:
                self.log.warning("metrics_port_taken", host=self.settings.metrics.host, port=self.settings.metrics.port)
        try:
            status = self.supervisor.run()
            self.log.info("daemon_stop", status=status)
            return status
        finally:
            self.close()

    def close(self) -> None:
        """Note the end of the run, give the database back, close the log."""
        self.web.stop()
        self.logs.stop()
        try:
            if self.writer.state == "stopped":  # in order: nothing it had in hand is missing
                for batch in iter(lambda: self.intake.take(1000), []):  # what the log said while stopping
                    self.store.write(batch, self.clock.wall_us())
                    self.intake.done(batch)
                if self.intake.empty:
                    self.store.close_run(self.clock.wall_us())
        except StorageError as error:
            err.print(f"{error}", markup=False)
        finally:
            self.store.release()

    # --- what others see --------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Return one line for `systemctl status`."""
        rows = [row for worker in self.supervisor.workers for row in worker.status()]
        self._rates.sample(rows)
        live = sum(row["state"] == "live" for row in rows)
        line = f"{live}/{len(rows)} feeds live, {self.intake.held[0]} records waiting"
        return f"{line}, store failing: {self.writer.failing}" if self.writer.failing else line

    def ready(self) -> tuple[bool, str]:
        """Tell whether commits succeed and every feed is live."""
        if self.writer.failing:
            return False, f"the store fails: {self.writer.failing}"
        rows = [row for worker in self.supervisor.workers for row in worker.status()]
        down = [f"{row['exchange']} {row['market']} is {row['state']}" for row in rows if row["state"] != "live"]
        if down:
            return False, "; ".join(down[:3]) + (f" and {len(down) - 3} more" if len(down) > 3 else "")
        return True, f"{len(rows)} feeds live"

    def status(self) -> dict[str, Any]:
        """Return everything `/status.json` and `status` show."""
        feeds = [row for worker in self.supervisor.workers for row in worker.status()]
        for row, rate in zip(feeds, self._rates.of(feeds), strict=True):
            row["frames_per_s"] = rate
        uptime_s = (self.clock.wall_us() - self.started_us) / 1e6
        database, wal = self.store.sizes()
        per_day = self._growth.per_day()
        free = shutil.disk_usage(self.store.path.parent).free
        records, size = self.intake.held
        committed_us = self.writer.committed_us
        return {
            "version": collector.__version__,
            "collector_id": self.settings.collector_id,
            "pid": os.getpid(),
            "started": show_time(self.started_us),
            "uptime_s": round(uptime_s, 1),
            "healthy": self.supervisor.healthy()[1],
            "ready": self.ready()[1],
            "feeds": feeds,
            "workers": [
                {"name": w.name, "state": w.state, "generation": w.generation} for w in self.supervisor.workers
            ],
            "intake": {"records": records, "bytes": size, "bytes_limit": self.intake.limit_bytes},
            "store": {
                "path": str(self.store.path.resolve()),
                "failing": self.writer.failing,
                "last_commit": show_time(committed_us) if committed_us else None,
                "database_bytes": database,
                "wal_bytes": wal,
                "bytes_per_day": None if per_day is None else round(per_day),
                "disk_free_bytes": free,
                "days_left": round(free / per_day, 1) if per_day else None,
            },
            "log_lines_dropped": self.logs.dropped,
        }

    # --- small pieces -----------------------------------------------------------------------------------------------

    def _keep_event(self, event: Event) -> None:
        # The log in the database: kept when there is room, never in the way of data.
        self.intake.put(Delivery("", 0, (event,), EVENT_BYTES + len(event.text)))

    def _housekeeping(self) -> Callable[[], bool]:
        settings = self.settings
        keeping = Housekeeping(
            self.store,
            self.clock,
            retention_days=settings.storage.retention_days,
            rejected_days=settings.limits.rejected_days,
            rejected_bytes=settings.limits.rejected_mib << 20,
            event_days=settings.limits.event_days,
            event_bytes=settings.limits.event_mib << 20,
        )
        log = logs.get("WRITER")

        def step() -> bool:
            if self._growth.due():
                database, wal = self.store.sizes()
                self.metrics.database_bytes.set(database)
                self.metrics.wal_bytes.set(wal)
                self._growth.sample(self.store.pages_bytes())
                self.metrics.show_log_lines_dropped(self.logs.dropped)
            return keeping.step(log)

        return step


def _require_log_folder(folder: Path) -> None:
    """Raise `ConfigError` where no log can be written; leaves nothing behind."""
    made: list[Path] = []
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir()
            made.append(missing)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder}: no log can be written there ({error.strerror}); set log.path or LOG_PATH to another folder"
        ) from None
    finally:
        for path in reversed(made):
            path.rmdir()


def _plan(settings: Settings) -> Iterator[tuple[type[controllers.Controller], tuple[str, ...], Any]]:
    """Yield what each controller records: its class, its markets, its exchange's options."""
    for exchange, options in settings.exchanges.items():
        groups: dict[str | None, list[str]] = {}
        for choice in settings.choices(exchange):
            groups.setdefault(choice.transport, []).append(choice.market)
        for transport, markets in groups.items():
            cls = controllers.controller_class(exchange, transport)
            size = options.markets_per_connection
            for at in range(0, len(markets), size):
                yield cls, tuple(markets[at : at + size]), options


def _maker(
    cls: type[controllers.Controller], markets: tuple[str, ...], setup: Setup
) -> Callable[[int], controllers.Controller]:
    return lambda generation: cls(markets, setup, generation=generation)


# --- the command line -------------------------------------------------------------------------------------------------

app = typer.Typer(
    help="Records what crypto exchanges say, exactly, with every gap accounted for.\n\n"
    "Without a command: records what config/collector.yaml names, until SIGTERM or Ctrl-C.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Format = Literal["json", "ndjson", "csv"]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The YAML file; default config/collector.yaml, or COLLECTOR_CONFIG."),
]
MarketOption = Annotated[
    list[str] | None,
    typer.Option("--market", "-m", help="A market such as ETH-KRW instead of those of the file; repeatable."),
]
DbOption = Annotated[Path | None, typer.Option("--db", help="The database file instead of storage.path.")]
LogPathOption = Annotated[
    Path | None, typer.Option("--log-path", help="The directory of the logs instead of log.path.")
]
LanguageOption = Annotated[str | None, typer.Option("--language", help="Language of the log: ko or en.")]
LevelOption = Annotated[
    str | None, typer.Option("--log-level", help="The least that is logged: DEBUG, INFO, WARNING, ERROR.")
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Start: 2026-11-21T03:04:05.678Z, 2026-11-21 (UTC), Unix seconds.")
]
ToOption = Annotated[str | None, typer.Option("--to", help="End, not included; the same forms.")]


@app.callback()
def run(
    context: typer.Context,
    config: ConfigOption = None,
    market: MarketOption = None,
    db: DbOption = None,
    log_path: LogPathOption = None,
    language: LanguageOption = None,
    log_level: LevelOption = None,
) -> None:
    """Record until told to stop."""
    context.obj = lambda: _load(config, market, db, log_path, language, log_level)
    if context.invoked_subcommand is None:
        daemon = Daemon(context.obj())
        daemon.supervisor.install_signals()
        raise typer.Exit(daemon.run())


def _load(
    config: Path | None = None,
    market: Sequence[str] | None = None,
    db: Path | None = None,
    log_path: Path | None = None,
    language: str | None = None,
    log_level: str | None = None,
) -> Settings:
    flags = {
        "markets": list(market) if market else None,
        "storage.path": str(db) if db else None,
        "log.path": str(log_path) if log_path else None,
        "language": language,
        "log.level": log_level,
    }
    return load(config, flags=flags, known=controllers.known())


@app.command()
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

    markets = _markets(market) or ("BTC-KRW", "ETH-KRW")
    if db is None:
        db = Path("data") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}.sqlite"
    names = [name for name in controllers.venues() if name in venues()]
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
        _print_coverage(coverage_of(reader, None, None))
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
        orjson.dumps({"exchanges": exchanges, "metrics": {"port": 0}, "log": {"stderr": False}})
    )  # JSON is YAML
    flags = {"storage.path": str(db), "log.path": str(log_path), "language": language}
    return load(file, env={}, dotenv=None, flags=flags, known=controllers.known())


@contextlib.contextmanager
def _live_table(daemon: Daemon) -> Iterator[None]:
    done = threading.Event()

    def refresh(live: Live) -> None:
        while not done.wait(0.5) and not daemon.supervisor.stopping.is_set():
            live.update(_feeds_table(daemon.status()), refresh=True)

    with Live(_feeds_table(daemon.status()), console=out, auto_refresh=False) as live:
        thread = threading.Thread(target=refresh, args=(live,), name="table", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@app.command()
def check(context: typer.Context) -> None:
    """Check the configuration and show every setting with where it comes from; starts nothing."""
    settings = context.obj()
    rows = [("setting", "value", "from"), *describe(settings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:  # whole, whatever the width of the terminal: what is cut off helps nobody
        out.print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}", markup=False, highlight=False, soft_wrap=True)
    feeds = sum(len(markets) for _, markets, _ in _plan(settings))
    out.print(f"\nok: {feeds} feeds on {len(list(_plan(settings)))} connections", highlight=False)


@app.command()
def markets(
    context: typer.Context, exchange: Annotated[str, typer.Argument(help="An exchange, such as upbit.")]
) -> None:
    """List the markets an exchange trades now, as the configuration names them."""
    cls = controllers.controller_class(exchange.lower())
    options = context.obj().exchanges.get(exchange.lower())
    base = (options.endpoint.rest if options else None) or cls.rest_url
    try:
        response = requests.get(base + cls.listing_path, timeout=10)
        response.raise_for_status()
    except requests.RequestException as error:
        raise SourceError(f"{exchange}: the list of markets can't be had: {error}") from None
    for market in sorted(cls.parse_listing(response.content)):
        out.print(market, highlight=False, markup=False)


@app.command()
def status(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print what the daemon says, unchanged.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
) -> None:
    """Show what a running collector does: feeds, rates, lag, gaps, growth, days of disk left."""
    settings = context.obj()
    url = f"http://{settings.metrics.host}:{settings.metrics.port}/status.json"
    if json:
        sys.stdout.buffer.write(_fetch_status(url) + b"\n")
        return
    if not watch:
        _print_status(orjson.loads(_fetch_status(url)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=out, auto_refresh=False) as live:
        pause = threading.Event()
        while True:
            live.update(_feeds_table(orjson.loads(_fetch_status(url))), refresh=True)
            pause.wait(1.0)


def _fetch_status(url: str) -> bytes:
    try:
        response = requests.get(url, timeout=5)
        response.raise_for_status()
    except requests.RequestException:
        raise CollectorError(
            f"no collector answers at {url}; is it running, with metrics.enabled and this metrics.port? "
            "`coverage` shows what the database holds without it"
        ) from None
    return response.content


def _print_status(state: dict[str, Any]) -> None:
    store = state["store"]
    out.print(_feeds_table(state))
    rows = {
        "collector": f"{state['collector_id']} {state['version']}, pid {state['pid']}",
        "up": show_duration(state["uptime_s"]),
        "healthy": state["healthy"],
        "ready": state["ready"],
        "waiting": f"{state['intake']['records']} records, {_bytes(state['intake']['bytes'])} of "
        f"{_bytes(state['intake']['bytes_limit'])}",
        "database": f"{store['path']}, {_bytes(store['database_bytes'])} + WAL {_bytes(store['wal_bytes'])}",
        "last commit": store["last_commit"] or "none yet",
        "growth": "known after a minute"
        if store["bytes_per_day"] is None
        else f"{_bytes(store['bytes_per_day'])} a day at the present rate",
        "disk": f"{_bytes(store['disk_free_bytes'])} free"
        + (f", enough for {store['days_left']} days" if store["days_left"] is not None else ""),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table, highlight=False)


def _feeds_table(state: dict[str, Any]) -> Table:
    waiting, size = state["intake"]["records"], state["store"]["database_bytes"] + state["store"]["wal_bytes"]
    table = Table(
        box=None, pad_edge=False, collapse_padding=True, caption=f"{waiting} records waiting, database {_bytes(size)}"
    )
    table.caption_justify = "left"
    for name in ("exchange", "market", "over", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("frames", "per s", "bid", "ask", "lag", "gaps"):
        table.add_column(name, justify="right", no_wrap=True)
    colours = {"live": "green", "waiting": "yellow"}
    for feed in state["feeds"]:
        text = f"[{colours.get(feed['state'], 'red')}]{feed['state']}[/] {feed['detail']}".rstrip()
        table.add_row(
            feed["exchange"],
            feed["market"],
            {"websocket": "socket", "rest": "poll"}[feed["transport"]],
            text,
            str(feed["frames"]),
            f"{feed['frames_per_s']:.1f}",
            feed["bid"] or "-",
            feed["ask"] or "-",
            _seconds(feed["lag_s"]),
            str(feed["gaps"]),
        )
    return table


@app.command()
def export(
    context: typer.Context,
    exchange: Annotated[str, typer.Argument(help="An exchange, such as UPBIT.")],
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output, .gz compresses.")],
    market: Annotated[
        str | None, typer.Option("--market", "-m", help="One market; default: all of the exchange.")
    ] = None,
    start: FromOption = None,
    end: ToOption = None,
    format: Annotated[Format | None, typer.Option("--format", "-f", help="Default: by the file's name.")] = None,
    numbers: Annotated[bool, typer.Option("--numbers", help="Prices and volumes as numbers instead of text.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    db: DbOption = None,
) -> None:
    """Write the recorded books of an exchange as JSON, one complete book for every update, with a receipt beside it."""
    path = _database(context, db)
    start_us, end_us = _range(start, end)
    if format is None:
        format = _format_of(file)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[books]} books"), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(f"{exchange.upper()} {market or 'all markets'}", total=1.0, books=0)
        receipt = DataConverter(path).export(
            exchange,
            file,
            format=format,
            market=market,
            start=start_us,
            end=end_us,
            numbers=numbers,
            overwrite=overwrite,
            progress=lambda books, fraction: progress.update(task, completed=fraction, books=books),
        )
    err.print(receipt.summary(), markup=False)


@app.command()
def book(
    context: typer.Context,
    exchange: Annotated[str, typer.Argument(help="An exchange, such as UPBIT.")],
    market: Annotated[str, typer.Option("--market", "-m", help="The market.")] = "BTC-KRW",
    at: Annotated[str | None, typer.Option("--at", help="The moment; default: the newest book.")] = None,
    depth: Annotated[int, typer.Option(min=0, help="Levels a side; 0 for all.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    db: DbOption = None,
) -> None:
    """Show the exact book at a moment, or say that nobody was listening then."""
    with Reader(_database(context, db)) as reader:
        moment = _time(at)
        found = reader.book_at(exchange, market, moment) if moment is not None else reader.newest(exchange, market)
    if isinstance(found, Gap):
        raise CollectorError(f"no book of {exchange.upper()} {market} then: {found}")
    if json:
        sys.stdout.buffer.write(orjson.dumps(_book_json(found, depth), option=orjson.OPT_APPEND_NEWLINE))
        return
    table = Table("volume", "bid", "ask", "volume", box=None, pad_edge=False)
    levels = max(len(found.bids), len(found.asks))
    for at_level in range(min(depth or levels, levels)):
        bid = found.bids[at_level] if at_level < len(found.bids) else ("", "")
        ask = found.asks[at_level] if at_level < len(found.asks) else ("", "")
        table.add_row(bid[1], bid[0], ask[0], ask[1])
    out.print(table, highlight=False)
    flags = "".join(f", {flag}" for flag in found.flag_names)
    out.print(
        f"{found.exchange} {found.market} received {show_time(found.received_us)}, {len(found.bids)} bids, "
        f"{len(found.asks)} asks, {found.transport}, {found.verdict}{flags}, epoch {found.epoch} row {found.n}",
        highlight=False,
        soft_wrap=True,
    )


def _book_json(found: Any, depth: int) -> dict[str, Any]:
    return {
        "exchange": found.exchange,
        "market": found.market,
        "received": show_time(found.received_us),
        "received_us": found.received_us,
        "venue_us": found.venue_us,
        "epoch": found.epoch,
        "n": found.n,
        "transport": found.transport,
        "verdict": found.verdict,
        "flags": found.flag_names,
        "asks": found.asks[: depth or None],
        "bids": found.bids[: depth or None],
    }


@app.command()
def coverage(
    context: typer.Context,
    start: FromOption = None,
    end: ToOption = None,
    exchange: Annotated[str | None, typer.Option("--exchange", "-e", help="One exchange.")] = None,
    market: Annotated[str | None, typer.Option("--market", "-m", help="One market.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    db: DbOption = None,
) -> None:
    """Show for every feed when it was heard and when not, and why; the shares add up to 100 %."""
    with Reader(_database(context, db)) as reader:
        start_us, end_us = _range(start, end)
        feeds = coverage_of(reader, start_us, end_us, exchange=exchange, market=market)
    if json:
        sys.stdout.buffer.write(orjson.dumps([feed.as_dict() for feed in feeds], option=orjson.OPT_APPEND_NEWLINE))
    else:
        _print_coverage(feeds)


def _print_coverage(feeds: Sequence[FeedCoverage]) -> None:
    table = Table("exchange", "market", box=None, pad_edge=False)
    for name in ("data", "quiet", "unconfirmed", "gap", "gaps", "longest gap"):
        table.add_column(name, justify="right")
    for feed in feeds:
        table.add_row(*feed.cells())
    out.print(table, highlight=False)


@app.command()
def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    db: DbOption = None,
) -> None:
    """Copy the database while the collector runs, and verify the copy."""
    path = _database(context, db)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=err, transient=True,
                  disable=not err.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("backup", total=1.0)
        backup_database(path, file, progress=lambda fraction: progress.update(task, completed=fraction))
    err.print(f"{file}: {_bytes(file.stat().st_size)}, verified", markup=False)


@app.command()
def simulate(
    exchange: Annotated[list[str], typer.Option("--exchange", "-e", help="An exchange to play; repeatable.")],
    market: Annotated[
        list[str] | None, typer.Option("--market", "-m", help="A market to generate; repeatable.")
    ] = None,
    recording: Annotated[Path | None, typer.Option(help="Play this recording instead of generated markets.")] = None,
    speed: Annotated[str, typer.Option(help="Of a recording: 1 as it was, 10 ten times as fast, max at once.")] = "1",
    loop: Annotated[bool, typer.Option("--loop", help="Play a recording again and again.")] = False,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=10_000, help="Updates a second of a generated market; default: as the exchange."),
    ] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes any free one.")] = 0,
    ledger: Annotated[Path | None, typer.Option(help="Write every message sent or withheld into this file.")] = None,
    seed: Annotated[int, typer.Option(help="Generated markets follow from it.")] = 1,
) -> None:
    """Play exchanges on this machine: their protocols, generated markets or a recording, faults on demand."""
    import signal

    from simulator import Simulator

    markets = _markets(market) or ("BTC-KRW", "ETH-KRW")
    try:
        factor = None if speed == "max" else float(speed)
    except ValueError:
        raise ConfigError(f"--speed: {speed!r} is neither max nor a number") from None
    try:
        simulator = Simulator(
            [name.lower() for name in exchange],
            markets,
            seed=seed,
            rate_hz=rate,
            port=port,
            ledger=ledger,
            recording=recording,
            speed=factor,
            loop=loop,
        )
        simulator.start()
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"the simulator can't start: {error}") from None
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        out.print("# put this into config/collector.yaml", highlight=False)
        out.print("exchanges:", highlight=False)
        for name, endpoint in simulator.endpoints.items():
            out.print(f"  {name}:\n    endpoint:", highlight=False)
            for kind, url in endpoint.items():
                out.print(f"      {kind}: {url}", highlight=False, soft_wrap=True)
        out.file.flush()
        while not ended.wait(0.5):
            if simulator.failed():
                raise CollectorError("the simulator stopped by itself")
    finally:
        simulator.stop()


# --- small pieces of the command line ---------------------------------------------------------------------------------


def _format_of(file: Path) -> Format:
    suffix = Path(file.name.removesuffix(".gz")).suffix
    known: dict[str, Format] = {".json": "json", ".ndjson": "ndjson", ".csv": "csv", "": "json"}
    if suffix not in known:
        raise ConfigError(f"{file}: what {suffix} means is not known; name it .json, .ndjson or .csv, or use --format")
    return known[suffix]


def _database(context: typer.Context, db: Path | None) -> Path:
    return db if db is not None else context.obj().storage.path


def _markets(names: Sequence[str] | None) -> tuple[str, ...]:
    for name in names or ():
        if not re.fullmatch(MARKET_PATTERN, name):
            raise ConfigError(f"--market: {name!r} is not a market; allowed: SYMBOL-CURRENCY in upper case")
    return tuple(names or ())


def _range(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    start_us, end_us = _time(start), _time(end)
    if start_us is not None and end_us is not None and start_us >= end_us:
        raise ConfigError(f"--from {start} is not before --to {end}: nothing lies between them")
    return start_us, end_us


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:.1f} s"


def main() -> None:
    """Run the command line and turn what a person must mend into one line and exit status 2."""
    try:
        app(prog_name="run_controller.py")
    except (ConfigError, StorageError) as error:
        err.print(str(error), markup=False)
        sys.exit(2)
    except CollectorError as error:
        err.print(str(error), markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
