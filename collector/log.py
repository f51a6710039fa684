"""The log: one event, one line, never in the way of the data.

    [2024-04-14 20:32:01] [INFO] [GOPAX-BTC] 데이터 수집 시작 attempt=3

Whoever logs only puts a finished record into a queue; one thread writes the files and standard error. Nothing here
raises into the caller: what can't be written is counted in `LogSystem.dropped` and told once on standard error.
`collector.log` holds everything, each market has a file of its own beside it.

A warning or an error of one kind (its key, and its detail `kind` where it has one) is written once a minute under a
tag, then once more with the number held back. Whatever was handed to `register_secret` is written as `***`, wherever it
turns up.
"""

import copy
import json
import logging
import queue
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from logging.handlers import QueueHandler
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import quote, quote_plus

from collector.clock import Clock
from collector.errors import ConfigError
from collector.logfile import LogFile
from collector.records import Event
from collector.texts import Language, fields, template

# A market's own file is opened for at most so many markets of an exchange; above it they share one.
FILES_PER_EXCHANGE = 20
# Lines that may wait to be written; more are dropped and counted.
QUEUE_LINES = 10_000
REPEAT_US = 60_000_000
VALUE_CHARACTERS = 1000

_logger = logging.getLogger("collector")


class Log:
    """Writes events under one tag; safe to use from every thread.

    `tags` gives the markets of a connection: an event with the detail `market` goes under the tag of that market.
    """

    def __init__(self, tag: str, tags: Mapping[str, str] | None = None) -> None:
        self.tag = tag
        self._tags = tags or {}

    def debug(self, key: str, /, **details: object) -> None:
        """Log what only a developer wants to see."""
        self.event(logging.DEBUG, key, **details)

    def info(self, key: str, /, **details: object) -> None:
        """Log a life event."""
        self.event(logging.INFO, key, **details)

    def warning(self, key: str, /, **details: object) -> None:
        """Log what was not expected; nothing was lost."""
        self.event(logging.WARNING, key, **details)

    def error(self, key: str, /, **details: object) -> None:
        """Log that data was lost, or that a person must act."""
        self.event(logging.ERROR, key, **details)

    def exception(self, key: str, /, **details: object) -> None:
        """Log an error with the traceback of the exception being handled."""
        self.event(logging.ERROR, key, **details, stack=traceback.format_exc())

    def event(self, level: int | str, key: str, /, **details: object) -> None:
        """Log the text of *key* (see `collector.texts`) with its details.

        A detail that is None is left out; `stack` is a text of many lines that follows the line, indented.
        """
        number = logging.getLevelNamesMapping()[level] if isinstance(level, str) else level
        if not _logger.isEnabledFor(number):
            return
        tag = self._tags.get(str(details.get("market")))
        if tag is not None:
            del details["market"]
        line = _Line(number, tag or self.tag, key, details)
        system = _system
        if system is None:
            _logger.handle(_record(line, "ko", None))
        elif system.repeats.passes(line):
            _logger.handle(system.record(line))


class _Line(NamedTuple):
    level: int
    tag: str
    key: str
    details: Mapping[str, object]


class LogSystem:
    """The running log; `stop` writes what still waits and closes the files."""

    def __init__(
        self,
        log_path: Path,
        *,
        level: str,
        language: Language,
        file_bytes: int,
        files: int,
        stderr: bool,
        feeds: Iterable[tuple[str, str]],
        clock: Clock,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.language = language
        self.clock = clock
        self.repeats = _Repeats(clock)
        self._writer = _Writer(log_path, file_bytes, files, stderr, on_event, self.record)
        self.set_feeds(feeds)
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_LINES)
        self._handler = _Enqueue(self._queue)
        self._pump = _Pump(self._queue, self._writer, self.release_repeats)
        self._pump.start()
        logging.getLogger().addHandler(self._handler)
        self.set_level(level)

    @property
    def dropped(self) -> int:
        """How many lines could not be written so far, or found the queue full."""
        return self._handler.dropped + self._writer.dropped

    def set_level(self, level: str) -> None:
        """Write only events of this level and above from now on."""
        _logger.setLevel(level)

    def set_feeds(self, feeds: Iterable[tuple[str, str]]) -> None:
        """Tell which (exchange, market) are recorded: their tags and files follow from it."""
        feeds = list(dict.fromkeys(feeds))
        self._tags = tags(feeds)
        markets = Counter(exchange for exchange, _ in feeds)
        shared = {exchange for exchange, number in markets.items() if number > FILES_PER_EXCHANGE}
        names = {tag: (feed[0].upper() if feed[0] in shared else tag) for feed, tag in self._tags.items()}
        names |= {exchange.upper(): exchange.upper() for exchange in shared}
        self._writer.names = {**self._writer.names, **names}  # feeds that are gone may still have lines to come

    def connection(self, exchange: str, markets: Iterable[str]) -> Log:
        """Return the log of a connection: under the tag of its market, or of the exchange where it carries several."""
        found = {market: self._tags.get((exchange, market), f"{exchange}-{market}".upper()) for market in markets}
        return Log(next(iter(found.values())) if len(found) == 1 else exchange.upper(), found)

    def record(self, line: _Line) -> logging.LogRecord:
        """Make the record of an event, in this log's language and time."""
        return _record(line, self.language, self.clock)

    def release_repeats(self, *, everything: bool = False) -> None:
        """Write the held-back lines whose minute is over."""
        for line, held in self.repeats.due(everything=everything):
            _logger.handle(self.record(line._replace(details={**line.details, "held": held})))

    def flush(self) -> None:
        """Return when everything logged so far is written."""
        self._queue.join()

    def stop(self) -> None:
        """Write everything that waits, held-back lines too, and close the files; a second call does nothing."""
        global _system
        if _system is self:
            _system = None
            self.release_repeats(everything=True)
            logging.getLogger().removeHandler(self._handler)
            self._pump.finish()
            self._writer.close()
            _logger.setLevel(logging.NOTSET)


_system: LogSystem | None = None


def setup(
    log_path: Path,
    *,
    level: str,
    language: Language,
    file_bytes: int,
    files: int,
    stderr: bool,
    feeds: Iterable[tuple[str, str]],
    clock: Clock | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> LogSystem:
    """Open the log; one that is open is stopped first.

    *files* closed files of each log are kept, closed at *file_bytes* or at local midnight. *feeds* are (exchange,
    market) in house form. *on_event* gets every line of INFO and above, for the log in the database, in the log's own
    thread.

    Raises `ConfigError` when no file can be written in *log_path*.
    """
    global _system
    if _system is not None:
        _system.stop()
    _system = LogSystem(
        log_path,
        level=level,
        language=language,
        file_bytes=file_bytes,
        files=files,
        stderr=stderr,
        feeds=feeds,
        clock=clock or Clock(),
        on_event=on_event,
    )
    return _system


def get(tag: str) -> Log:
    """Return the log under a tag: `COLLECTOR`, `WRITER`, `SUPERVISOR`, or a market's."""
    return Log(tag)


def tags(feeds: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name feeds EXCHANGE-SYMBOL, with the currency where two markets of that exchange share the symbol."""
    feeds = list(dict.fromkeys(feeds))
    symbols = Counter((exchange, market.partition("-")[0]) for exchange, market in feeds)
    named = {}
    for exchange, market in feeds:
        symbol = market.partition("-")[0]
        named[exchange, market] = f"{exchange}-{symbol if symbols[exchange, symbol] == 1 else market}".upper()
    return named


# --- secrets ----------------------------------------------------------------------------------------------------------

_secrets: set[str] = set()
_secrets_pattern: re.Pattern[str] | None = None
_secrets_lock = threading.Lock()


def register_secret(value: str) -> None:
    """Write `***` in place of *value* from now on, also where it stands in a URL, in JSON or in a `repr`."""
    global _secrets_pattern
    if not value:
        return
    with _secrets_lock:
        _secrets.update(
            (value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1], repr(value)[1:-1])
        )
        longest_first = sorted(_secrets, key=len, reverse=True)
        _secrets_pattern = re.compile("|".join(re.escape(secret) for secret in longest_first))


def redact(text: str) -> str:
    """Return the text with every registered secret replaced."""
    return _secrets_pattern.sub("***", text) if _secrets_pattern else text


# --- the form of a line -----------------------------------------------------------------------------------------------


class _Text(dict[str, str]):
    """Details as they are filled into a text; one that was not given is shown as such."""

    def __missing__(self, key: str) -> str:
        return "?"


def _message(line: _Line, language: Language) -> str:
    """Return text and details of a line; it has no line break in it, whatever the details hold."""
    text = template(line.key, language)
    values = {name: _value(value) for name, value in line.details.items() if value is not None and name != "stack"}
    in_text = set(fields(text))
    filled = text.format_map(_Text({name: _escaped(value) for name, value in values.items()}))
    rest = "".join(f" {name}={_quoted(value)}" for name, value in values.items() if name not in in_text)
    return redact(filled + rest)


def _value(value: object) -> str:
    try:
        text = redact(f"{value:g}" if isinstance(value, float) else str(value))
    except Exception as error:  # a foreign object that can't be printed must not end the thread that logs it
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}…({len(text)})"


def _escaped(text: str) -> str:
    """Write what can't be seen (line breaks, colours, marks of direction) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _quoted(text: str) -> str:
    if text and text.isprintable() and not re.search(r'[\s"=\\]', text):
        return text
    return '"' + _escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _record(line: _Line, language: Language, clock: Clock | None) -> logging.LogRecord:
    """Make a finished record: nothing in it changes any more, or holds a secret."""
    record = _logger.makeRecord(_logger.name, line.level, "", 0, _message(line, language), (), None)
    if clock is not None:
        record.created = clock.wall_us() / 1e6
    record.__dict__["tag"] = line.tag
    record.stack_info = redact(str(line.details["stack"])) if "stack" in line.details else None
    return record


# --- repeats ----------------------------------------------------------------------------------------------------------


class _Held:
    def __init__(self, until_us: int) -> None:
        self.until_us = until_us
        self.last: _Line | None = None
        self.count = 0


class _Repeats:
    """Lets a warning or an error of one kind through once a minute, and counts the others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str, str], _Held] = {}

    def passes(self, line: _Line) -> bool:
        if line.level < logging.WARNING:
            return True
        now_us = self._clock.monotonic_us()
        with self._lock:
            kind = (line.tag, line.key, str(line.details.get("kind", "")))
            held = self._held.get(kind)
            if held is None:
                self._held[kind] = _Held(now_us + REPEAT_US)
                return True
            if held.count == 0 and now_us >= held.until_us:  # its minute is over, and nothing waits to be told
                held.until_us = now_us + REPEAT_US
                return True
            held.last = line
            held.count += 1
            return False

    def due(self, *, everything: bool) -> list[tuple[_Line, int]]:
        """Return the last line of each kind whose minute is over, with how many were held back; start a new minute."""
        now_us = self._clock.monotonic_us()
        found = []
        with self._lock:
            for kind, held in list(self._held.items()):
                if now_us < held.until_us and not everything:
                    continue
                if held.last is None:
                    del self._held[kind]
                    continue
                found.append((held.last, held.count))
                held.until_us, held.last, held.count = now_us + REPEAT_US, None, 0
        return found


# --- the thread that writes -------------------------------------------------------------------------------------------


class _Enqueue(QueueHandler):
    """Puts records into the queue; one that finds it full is counted."""

    def __init__(self, waiting: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(waiting)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Finish the record here: what it refers to may change before it is written."""
        record = copy.copy(record)  # other handlers get the same one
        if not hasattr(record, "tag"):  # a library's own, or a warning of Python
            tag = record.__dict__["tag"] = record.name.partition(".")[0].upper()
            try:
                text = record.getMessage()
            except Exception as error:  # a library's mistake in its own arguments
                text = f"{record.msg!r} {error!r}"
            line = _Line(record.levelno, tag, "library", {"text": text})
            record.msg, record.args = _message(line, "en"), None
            if record.exc_info and record.exc_info[0]:
                record.stack_info = redact("".join(traceback.format_exception(*record.exc_info)))
        record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never wait: the caller has data to receive."""
        try:
            cast("queue.Queue[logging.LogRecord | None]", self.queue).put_nowait(record)
        except queue.Full:
            self.dropped += 1  # under the handler's lock


class _Pump(threading.Thread):
    """Takes records from the queue to the files, and looks after held-back lines in between."""

    IDLE_S = 1.0

    def __init__(
        self, waiting: "queue.Queue[logging.LogRecord | None]", writer: "_Writer", tick: Callable[[], None]
    ) -> None:
        super().__init__(name="log", daemon=True)
        self._waiting, self._writer, self._tick = waiting, writer, tick

    def run(self) -> None:
        while True:
            self._tick()
            try:
                record = self._waiting.get(timeout=self.IDLE_S)
            except queue.Empty:
                continue
            try:
                if record is None:
                    return
                self._writer.handle(record)
            except Exception:  # a mistake of ours must not end the log
                self._writer.handleError(cast(logging.LogRecord, record))
            finally:
                self._waiting.task_done()

    def finish(self) -> None:
        """Write everything that was put in, then end."""
        self._waiting.put(None)
        self.join()


class _Writer(logging.Handler):
    """Writes records into the files and to standard error."""

    def __init__(
        self,
        folder: Path,
        file_bytes: int,
        files: int,
        stderr: bool,
        on_event: Callable[[Event], None] | None,
        record: Callable[[_Line], logging.LogRecord],
    ) -> None:
        super().__init__()
        self.names: Mapping[str, str] = {}  # which file a tag has beside the common one
        self.dropped = 0
        self._folder, self._file_bytes, self._files_kept = folder, file_bytes, files
        self._stderr = stderr
        self._on_event = on_event
        self._record = record
        self._files: dict[str, LogFile] = {}
        self._failing: dict[str, int] = {}  # what can't be written now, and how many lines it has cost
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file("collector").open(datetime.now().date())
        except OSError as error:
            text = (
                f"{folder}: no log can be written there ({error.strerror}); set log.path or LOG_PATH to another folder"
            )
            raise ConfigError(text) from None

    def emit(self, record: logging.LogRecord) -> None:
        local = datetime.fromtimestamp(record.created)
        tag = str(getattr(record, "tag", "COLLECTOR"))
        head = f"[{local:%Y-%m-%d %H:%M:%S}] [{record.levelname}] [{tag}] "
        message = str(record.msg)
        stack = "".join(f"    {_escaped(part)}\n" for part in (record.stack_info or "").splitlines() if part.strip())
        text = f"{head}{message}\n{stack}"
        data = text.encode()
        name = self.names.get(tag)
        self._write("collector", data, local)
        if name is not None:
            self._write(name, data, local)
        if self._stderr:
            self._tell(text)
        if self._on_event is not None and record.levelno >= logging.INFO:
            try:
                self._on_event(Event(int(record.created * 1e6), record.levelname, tag, message))
            except Exception as error:  # whoever takes events may fail; the files go on
                self._fail("events", f"the log in the database: {error!r}")
            else:
                self._failing.pop("events", None)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        super().close()

    def _file(self, name: str) -> LogFile:
        if name not in self._files:
            self._files[name] = LogFile(self._folder, name, self._file_bytes, self._files_kept, self._tell)
        return self._files[name]

    def _write(self, name: str, data: bytes, local: datetime) -> None:
        try:
            self._file(name).write(data, local.date())
        except OSError as error:
            path = self._folder / f"{name}.log"
            self._fail(name, f"{path} can't be written, lines are lost until it can: {error.strerror}")
        else:
            if lost := self._failing.pop(name, 0):
                self.emit(self._record(_Line(logging.WARNING, "COLLECTOR", "log_lost", {"file": name, "lines": lost})))

    def _fail(self, what: str, text: str) -> None:
        self.dropped += 1
        if what not in self._failing:
            self._tell(f"log: {text}\n")
        self._failing[what] = self._failing.get(what, 0) + 1

    def _tell(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # closed, a broken pipe, or none at all
            self.dropped += 1
