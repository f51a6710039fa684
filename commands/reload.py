"""Reading the configuration again while the collector runs: what counts at once, and what only a restart can change.

A configuration with a mistake in it changes nothing. Of one without, everything is applied but the settings named in
`RESTART`; these stay as they were, and each that was changed is told by its name.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from collector.clock import Clock
from collector.config import Settings
from collector.errors import ConfigError
from collector.log import Log
from collector.metrics import Metrics
from collector.settings import DATABASE_VARIABLE
from collector.times import show_time

RESTART = ("collector_id", "storage", "intake", "metrics", "log.path", "log.file_mib", "log.files", "log.stderr")


class Outcome(NamedTuple):
    """What became of one reload."""

    at_us: int
    ok: bool
    text: str


class Reloader:
    """Reads settings again, has them applied, and remembers what came of it; for the supervisor's thread.

    `read` raises `ConfigError` where they have mistakes. `apply` makes them count and returns what it did, as details
    of the log's line; it raises `ConfigError`, having changed nothing, where that can't be done.
    """

    def __init__(
        self,
        read: Callable[[], Settings],
        apply: Callable[[Settings], Mapping[str, object]],
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self.last: Outcome | None = None
        self.counts = {"ok": 0, "failed": 0}
        self._read, self._apply = read, apply
        self._clock, self._log, self._metrics = clock, log, metrics

    def reload(self) -> None:
        """Read and apply; whatever goes wrong is told and leaves the collector as it was."""
        number = f"#{sum(self.counts.values()) + 1}"  # so that the log holds none of them back as a repeat
        try:
            details = self._apply(self._read())
        except ConfigError as error:
            mistakes = str(error).splitlines()
            self._log.error("config_refused", kind=number, error=mistakes[0], mistakes=len(mistakes), stack=str(error))
            self._note(False, str(error))
        except Exception as error:
            self._log.exception("config_refused", kind=number, error=repr(error))
            self._note(False, repr(error))
        else:
            self._log.info("config_reloaded", **details)
            self._note(True, ", ".join(f"{name} {value}" for name, value in details.items() if value is not None))

    def _note(self, ok: bool, text: str) -> None:
        outcome = "ok" if ok else "failed"
        self.counts[outcome] += 1
        self._metrics.reloads.labels(outcome).inc()
        self.last = Outcome(self._clock.wall_us(), ok, text)

    def state(self) -> dict[str, Any]:
        """Return what `/status.json` says of reloads."""
        last = self.last
        return {
            **self.counts,
            "last": None if last is None else {"at": show_time(last.at_us), "ok": last.ok, "text": last.text},
        }


def changed(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the names of all settings and secrets that differ."""
    for name in dict.fromkeys((*old.sources, *new.sources)):
        if old.sources.get(name, (None, ""))[0] != new.sources.get(name, (None, ""))[0]:
            yield name
    for name in dict.fromkeys((*old.secrets, *new.secrets)):
        if old.secrets.get(name, ("", ""))[0] != new.secrets.get(name, ("", ""))[0]:
            yield name


def needs_restart(name: str) -> bool:
    """Tell whether only a restart can change a setting."""
    return name == DATABASE_VARIABLE or any(name == one or name.startswith(f"{one}.") for one in RESTART)


def applicable(old: Settings, new: Settings) -> Settings:
    """Return the new settings, with the old ones where only a restart could change them."""
    log = old.log.model_copy(update={"level": new.log.level})
    kept = {"collector_id": old.collector_id, "storage": old.storage, "intake": old.intake, "metrics": old.metrics}
    settings = new.model_copy(update={**kept, "log": log})
    settings._sources = {
        **{name: source for name, source in new.sources.items() if not needs_restart(name)},
        **{name: source for name, source in old.sources.items() if needs_restart(name)},
    }
    settings._secrets = {
        **{name: secret for name, secret in new.secrets.items() if not needs_restart(name)},
        **{name: secret for name, secret in old.secrets.items() if needs_restart(name)},
    }
    return settings
