"""The daemon: every piece of a collector, put together from its settings."""

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

import collector
from collector import log as logs
from collector.aggregate import Prices, Rate
from collector.clock import Clock
from collector.config import Settings
from collector.errors import ConfigError, StorageError
from collector.intake import Intake
from collector.live import LiveView
from collector.metrics import Metrics
from collector.rates import Growth, Rates
from collector.records import ORDERBOOK, Delivery, Event
from collector.slot import Part
from collector.supervisor import Change, Signals, Supervisor
from collector.systemd import Notifier, watchdog_interval_s
from collector.times import show_time
from collector.web import WebServer
from collector.worker import Worker
from commands.budgets import Budgets
from commands.listings import Listings, ListingWorker
from commands.plan import Connection, Step, feeds, left_out, planned, steps
from commands.prices import prices_json
from commands.reload import Reloader, applicable, changed, needs_restart
from commands.screen import err
from controllers.base import Controller, Setup
from controllers.feed import HeardFeed
from controllers.silence import KnownSilences, SilenceKeeper
from storage.database import make_keeper, make_store, shown
from storage.spool import Spool
from storage.sqlite import SQLiteStore
from storage.store import Run
from storage.writer import Writer

# Beside a busy thread the writer gets the interpreter back after half a millisecond, not five: docs/performance.md.
SWITCH_INTERVAL_S = 0.0005
EVENT_BYTES = 300
LISTINGS = "listings"


class Daemon:
    """Everything one collector consists of, built from its settings.

    The constructor takes the database and opens the log, so it raises `StorageError` or `ConfigError` for what a person
    must mend; no thread of a source runs before `run`. `read` reads the settings again at SIGHUP; without it they stay.
    `signals` is a queue that `catch_signals` fills already.
    """

    def __init__(
        self, settings: Settings, *, read: Callable[[], Settings] | None = None, signals: Signals | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock = Clock()
        self.started_us = clock.wall_us()
        self.metrics = Metrics(CollectorRegistry(), version=collector.__version__, started_s=self.started_us / 1e6)
        self.intake = Intake(settings.intake.memory_mib << 20, wake_records=settings.storage.batch_records)
        self.metrics.watch_intake(
            records=lambda: self.intake.held[0], size=lambda: self.intake.held[1], limit=self.intake.limit_bytes
        )
        plan = planned(settings)
        _register_secrets(settings)
        self.store = make_store(settings.database)
        self._keeper = make_keeper(self.store, clock, **_kept(settings))
        spool = self.spool = _spool(settings, clock)
        _require_log_folder(settings.log.path)  # before the database is touched
        self.store.open()
        try:
            if spool is not None:
                spool.open()
            self.logs = logs.setup(
                settings.log.path,
                level=settings.log.level,
                language=settings.language,
                file_bytes=settings.log.file_mib << 20,
                files=settings.log.files,
                stderr=settings.log.stderr,
                feeds=_markets(plan),
                clock=clock,
                on_event=self._keep_event,
            )
        except (ConfigError, StorageError):
            self._release()
            raise
        self.log = logs.get("COLLECTOR")
        self.live = LiveView(clock, logs.get("LIVE"))
        self.intake.tap = self.live.take
        self.prices = self._prices(settings)
        for cut in spool.cuts if spool is not None else ():
            self.log.warning("spool_cut", segment=cut.segment, offset=cut.offset, bytes=cut.size)
        self._database_bytes = 0
        self._growth = Growth(clock)
        self.writer = Writer(
            self.store,
            self.intake,
            Run(str(uuid.uuid4()), settings.collector_id, collector.__version__, self.started_us),
            clock=clock,
            log=logs.get("WRITER"),
            metrics=self.metrics,
            batch_ms=settings.storage.batch_ms,
            batch_records=settings.storage.batch_records,
            spool=spool,
            drop_oldest=settings.storage.spool.when_full == "drop_oldest",
            housekeeping=self._keep_house,
        )
        reloader = None if read is None else Reloader(read, self.apply, clock=clock, log=self.log, metrics=self.metrics)
        self.reloader = reloader
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
            reload=None if reloader is None else reloader.reload,
            gone=self._gone,
            signals=signals,
        )
        self._silences = KnownSilences(settings.silences_path)
        self._silences.load(self.log)
        self._silence_keeper = SilenceKeeper(self._silences, self.log, clock)
        self._budgets = Budgets(clock)
        self.listings = Listings(
            clock,
            log=lambda exchange: logs.get(exchange.upper()),
            budget=self._budgets.requests,
            changed=lambda: self.supervisor.later(self._follow_listings),
        )
        for connection in plan:
            part = self._part(connection)
            self.supervisor.add(part.make, group=part.group, plan=connection)
        if self.listings.follow(settings):
            part = self._listing_part()
            self.supervisor.add(part.make, group=part.group, plan=part.plan)
        self.web = WebServer(
            settings.metrics.host,
            settings.metrics.port,
            registry=self.metrics.registry,
            status=self.status,
            healthy=self.supervisor.healthy,
            ready=self.ready,
            prices=lambda market, depth: prices_json(self.prices, market, depth),
        )
        self._rates = Rates(clock)

    def run(self) -> int:
        """Record until a signal or `supervisor.stop()`; return the exit status."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        feeds = [row for worker in self.supervisor.workers for row in worker.status()]
        self.log.info(
            "daemon_start", version=collector.__version__, feeds=len(feeds), database=shown(self.settings.database)
        )
        self._tell_what_is_left_out()
        if self.settings.metrics.enabled:
            if self.web.start():
                self.log.info("metrics_on", host=self.settings.metrics.host, port=self.web.port)
            else:
                self.log.warning("metrics_port_taken", host=self.settings.metrics.host, port=self.settings.metrics.port)
        self._silence_keeper.start()
        try:
            status = self.supervisor.run()
            self.log.info("daemon_stop", status=status)
            return status
        finally:
            self.close()

    def close(self) -> None:
        """Note the end of the run, give the database back, close the log."""
        self.web.stop()
        self._silence_keeper.stop()  # it saves what the sources learned, which have stopped by now
        self._silence_keeper.join(self.supervisor.stop_timeout_s)
        self.live.close()
        self.logs.stop()
        try:
            if self.writer.state == "stopped":  # in order: nothing it had in hand is missing
                self.writer.finish()
        except StorageError as error:
            err.print(f"{error}", markup=False)
        finally:
            self._release()

    def _release(self) -> None:
        self.store.release()
        if self.spool is not None:
            try:
                self.spool.close()
            except StorageError as error:
                err.print(f"{error}", markup=False)

    # --- other settings ---------------------------------------------------------------------------------------------

    def apply(self, read: Settings) -> dict[str, object]:
        """Let settings that were read again count, as far as they can; return what was done.

        Raises `ConfigError` before anything is changed. For the supervisor's thread.
        """
        names = list(changed(self.settings, read))
        refused = [name for name in names if needs_restart(name)]
        settings = applicable(self.settings, read)
        plan, todo = self._planned(settings)
        _register_secrets(settings)
        self.settings = settings
        self.logs.set_level(settings.log.level)
        self.logs.language = settings.language
        self.supervisor.stop_timeout_s = settings.limits.stop_timeout_s
        for connection in plan:
            self._budgets.set_rates(connection.cls, connection.options)
        self._keeper = make_keeper(self.store, self.clock, **_kept(settings))
        self.prices = self._prices(settings)
        self._carry_out(plan, todo)
        self._tell_what_is_left_out()
        for name in refused:
            self.log.warning("restart_needed", kind=name)
        return {
            "changed": ",".join(name for name in names if name not in refused) or "nothing",
            "begun": sum(len(step.new) for step in todo if not step.old),
            "ended": sum(len(step.old) for step in todo if not step.new),
            "replaced": sum(len(step.old) for step in todo if step.old and step.new),
            "restart_needed": ",".join(refused) or None,
        }

    def _follow_listings(self) -> None:
        # In the supervisor's thread: other markets are listed than before, under the same settings.
        self._carry_out(*self._planned(self.settings))

    def _planned(self, settings: Settings) -> tuple[list[Connection], list[Step]]:
        running = list(self._running())
        plan = planned(settings, running, self.listings.listed)
        return plan, steps(running, plan)

    def _running(self) -> dict[Connection, Part]:
        return {part.plan: part for part in self.supervisor.parts if isinstance(part.plan, Connection)}

    def _carry_out(self, plan: list[Connection], todo: list[Step]) -> None:
        running = self._running()
        self.logs.set_feeds(_markets(plan))
        changes = [Change(tuple(running[one] for one in step.old), tuple(map(self._part, step.new))) for step in todo]
        asks = [part for part in self.supervisor.parts if part.plan == LISTINGS]
        if self.listings.follow(self.settings) != bool(asks):
            changes.append(Change(tuple(asks), () if asks else (self._listing_part(),)))
        self.supervisor.apply(changes)

    def _tell_what_is_left_out(self) -> None:
        for exchange, what in left_out(self.settings):
            logs.get(exchange.upper()).warning("left_out", kind=what)

    def _listing_part(self) -> Part:
        log = logs.get("LISTINGS")
        return Part(
            lambda generation: ListingWorker(self.listings, log, self.clock, generation=generation), LISTINGS, LISTINGS
        )

    def _part(self, connection: Connection) -> Part:
        cls, keys = connection.cls, connection.keys
        setup = Setup(
            clock=self.clock,
            intake=self.intake,
            metrics=self.metrics,
            log=self.logs.connection(cls.exchange, connection.markets),
            options=connection.options,
            budget=self._budgets.requests(cls, connection.options),
            connects=self._budgets.connects(cls, connection.options),
            full_books=connection.full_books,
            keys=(keys[0].get_secret_value(), keys[1].get_secret_value()) if keys else None,
            channels=connection.channels,
            silences=self._silences,
        )

        def make(generation: int) -> Controller:
            controller = cls(connection.markets, setup, generation=generation)
            for feed in _heard(controller):
                self.live.expect(feed.key)
            return controller

        return Part(make, connection.exchange, connection)

    def _gone(self, worker: Worker) -> None:
        recorded = [feed.key for other in self.supervisor.workers for feed in _heard(other)]
        for feed in _heard(worker):
            if feed.key not in recorded:
                self.metrics.forget(feed.key)
                self.live.forget(feed.key)

    def _prices(self, settings: Settings) -> Prices:
        rates = []
        for pair, given in settings.live.rates.items():
            base, _, quote = pair.partition("-")
            rates.append(Rate(base, quote, Decimal(given.rate), given.source))
        return Prices(self.live, rates=rates, stale_s=settings.live.stale_s)

    # --- what others see --------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Return one line for `systemctl status`."""
        rows = [row for worker in self.supervisor.workers for row in worker.status()]
        self._rates.sample(rows)
        live = sum(row["state"] == "live" for row in rows)
        line = f"{live}/{len(rows)} feeds live, {self.intake.held[0]} records waiting"
        parked = [worker.name for worker in self.supervisor.workers if worker.state == "parked"]
        if parked:
            line += f", parked after crashes: {', '.join(parked)}"
        if self.reloader is not None and self.reloader.last is not None and not self.reloader.last.ok:
            line += ", the last reload was refused: see the log"
        if unknown := self.listings.unknown:
            line += f", the markets of {', '.join(unknown)} are not known yet"
        return f"{line}, store failing: {self.writer.failing}" if self.writer.failing else line

    def ready(self) -> tuple[bool, str]:
        """Tell whether commits succeed and every feed is live."""
        if self.writer.failing:
            return False, f"the store fails: {self.writer.failing}"
        rows = [row for worker in self.supervisor.workers for row in worker.status()]
        down = [f"{_shown(row)} is {row['state']}" for row in rows if row["state"] != "live"]
        down += [f"the markets of {exchange} are not known" for exchange in self.listings.unknown]
        if down:
            return False, "; ".join(down[:3]) + (f" and {len(down) - 3} more" if len(down) > 3 else "")
        return True, f"{len(rows)} feeds live"

    def status(self) -> dict[str, Any]:
        """Return everything `/status.json` and `status` show."""
        feeds = [row for worker in self.supervisor.workers for row in worker.status()]
        for row, rate in zip(feeds, self._rates.of(feeds), strict=True):
            row["frames_per_s"] = rate
        uptime_s = (self.clock.wall_us() - self.started_us) / 1e6
        database, wal = self._sizes()
        per_day = self._growth.per_day()
        free = None if wal is None else shutil.disk_usage(self.settings.storage.path.parent).free
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
            "takeovers": [
                {
                    "workers": [worker.name for worker in takeover.workers],
                    "replaced": [slot.worker.name for slot in takeover.old],
                    "why": takeover.why,
                    "attempts": takeover.attempts,
                }
                for takeover in self.supervisor.takeovers
            ],
            "reloads": None if self.reloader is None else self.reloader.state(),
            "intake": {"records": records, "bytes": size, "bytes_limit": self.intake.limit_bytes},
            "store": {
                "path": str(Path(self.settings.database).resolve())
                if wal is not None
                else shown(self.settings.database),
                "failing": self.writer.failing,
                "last_commit": show_time(committed_us) if committed_us else None,
                "database_bytes": database,
                "wal_bytes": wal,
                "bytes_per_day": None if per_day is None else round(per_day),
                "disk_free_bytes": free,
                "days_left": round(free / per_day, 1) if per_day and free is not None else None,
            },
            "spool": self._spool_state(),
            "live": {
                "stale_s": self.prices.stale_s,
                "rates": [{**rate._asdict(), "rate": f"{rate.rate:f}"} for rate in self.prices.rates],
                "callbacks": len(self.live.subscriptions),
                "dropped": self.live.dropped,
                "errors": self.live.errors,
            },
            "log_lines_dropped": self.logs.dropped,
        }

    # --- small pieces -----------------------------------------------------------------------------------------------

    def _keep_event(self, event: Event) -> None:
        # The log in the database: kept when there is room, never in the way of data.
        self.intake.put(Delivery("", 0, (event,), EVENT_BYTES + len(event.text)))

    def _keep_house(self) -> bool:
        if self._growth.due():
            try:
                self._database_bytes = self.store.size_bytes()
            except StorageError as error:
                self.writer.log.warning("housekeeping_failed", error=error)
                return False
            database, wal = self._sizes()
            self.metrics.database_bytes.set(database)
            self.metrics.wal_bytes.set(wal or 0)
            self._growth.sample(self._database_bytes)
            self.metrics.show_log_lines_dropped(self.logs.dropped)
            self.metrics.show_live(dropped=self.live.dropped, errors=self.live.errors)
        return self._keeper.step(self.writer.log)

    def _sizes(self) -> tuple[int, int | None]:
        # Of the database and its write-ahead log; a server keeps the latter to itself.
        return self.store.sizes() if isinstance(self.store, SQLiteStore) else (self._database_bytes, None)

    def _spool_state(self) -> dict[str, Any]:
        backlog = self.writer.backlog
        if backlog is None or self.spool is None:
            return {"path": None, "batches": 0, "bytes": 0, "bytes_limit": 0, "age_s": 0.0}
        return {
            "path": str(self.spool.path.resolve()),
            "batches": backlog.batches,
            "bytes": backlog.bytes,
            "bytes_limit": self.spool.limit_bytes,
            "age_s": round(backlog.age_s, 1),
        }


def _spool(settings: Settings, clock: Clock) -> Spool | None:
    options = settings.storage.spool
    if not options.limit_mib:
        return None
    return Spool(settings.spool_path, limit_bytes=options.limit_mib << 20, fsync=options.fsync, clock=clock)


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


def _register_secrets(settings: Settings) -> None:
    for secret, _ in settings.secrets.values():
        logs.register_secret(secret.get_secret_value())


def _kept(settings: Settings) -> dict[str, int]:
    limits = settings.limits
    return {
        "retention_days": settings.storage.retention_days,
        "rejected_days": limits.rejected_days,
        "rejected_bytes": limits.rejected_mib << 20,
        "event_days": limits.event_days,
        "event_bytes": limits.event_mib << 20,
    }


def _markets(plan: Iterable[Connection]) -> list[tuple[str, str]]:
    return [(feed.exchange, feed.market) for feed in feeds(plan)]


def _shown(row: Mapping[str, object]) -> str:
    channel = "" if row["channel"] == ORDERBOOK else f" {row['channel']}"
    return f"{row['exchange']} {row['market']}{channel}"


def _heard(worker: Worker) -> list[HeardFeed]:
    return list(worker.feeds.values()) if isinstance(worker, Controller) else []
