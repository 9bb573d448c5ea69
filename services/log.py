"""Logging: key=value lines to stderr and to `log/access.log`, a request id on each, and never a
secret.

Redaction happens in the formatter, over the finished line, so that no call site and no traceback
can forget it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="-")

KEPT_DAYS = 30
FLUSH_EVERY = 0.25
_SHORTEST_KNOWN_SECRET = 8
_MARKS = ("earer", "EARER", "://", "oken", "key=", "sig=", "eyJ", "k-")
"""One of these is in every secret that `_SECRET_SHAPES` finds; most lines have none."""

_SECRET_SHAPES = re.compile(
    r"""(?x)
      ( (?i:bearer)\s+
      | [?&](?:key|sig|token|apikey)=
      | (?:refresh|access)_token["']?\s*[=:]\s*["']?
      )
      [^\s"',&}]+
    | (://)[^\s/@]+(?=@)
    | \b(?:eyJ|(?:sk|pk|rk|fk)-)[\w.-]{8,}
    """
)


class Redactor:
    """Replaces secrets in a line: those known from the settings, and anything shaped like one."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.known = tuple(sorted({s for s in known if len(s) >= _SHORTEST_KNOWN_SECRET}, key=len))[
            ::-1
        ]

    def __call__(self, line: str) -> str:
        for secret in self.known:
            if secret in line:
                line = line.replace(secret, "…")
        if not any(mark in line for mark in _MARKS):
            return line
        return _SECRET_SHAPES.sub(lambda m: f"{m[1] or m[2] or ''}…", line)


class LineFormatter(logging.Formatter):
    """`2026-11-21 10:15:00,123 INFO name request message`, redacted; made once for all handlers."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact
        self._second = -1
        self._stamp = ""

    def format(self, record: logging.LogRecord) -> str:
        line: str | None = getattr(record, "line", None)
        if line is None:
            line = record.line = self.redact(self._line(record))
        return line

    def line(self, created: float, level: str, name: str, message: str) -> str:
        """A line as `format` makes it, without the cost of a record."""
        return self.redact(self._stamped(created, level, name, message))

    def _stamped(self, created: float, level: str, name: str, message: str) -> str:
        second = int(created)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        milliseconds = int((created - second) * 1000)
        return f"{self._stamp},{milliseconds:03d} {level} {name} {request_id.get()} {message}"

    def _line(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if "\n" in message or "\r" in message:  # or somebody's text could look like a line of ours
            message = message.replace("\r", "\\r").replace("\n", "\\n")
        line = self._stamped(record.created, record.levelname, record.name, message)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class Gathered(logging.Handler):
    """Passes the lines of `sinks` on a few times a second, many in one write.

    For access lines only: at thousands a second a write each costs more than all the rest.
    A worker that is killed takes up to `FLUSH_EVERY` seconds of them along.
    """

    def __init__(self, sinks: Iterable[LineSink]) -> None:
        super().__init__()
        self._sinks = tuple(sinks)
        self._lines: list[str] = []
        self._flusher: threading.Thread | None = None
        self._flushing = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record))

    def add(self, line: str) -> None:
        """Take a line that is ready."""
        self._lines.append(line)
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._keep_flushing, daemon=True)
            self._flusher.start()

    def _keep_flushing(self) -> None:
        while True:
            time.sleep(FLUSH_EVERY)
            self.flush()

    def flush(self) -> None:
        with self._flushing:
            lines = self._lines[:]
            del self._lines[: len(lines)]  # others append meanwhile
            if lines:
                self._pass_on("\n".join(lines) + "\n")

    def _pass_on(self, text: str) -> None:
        for sink in self._sinks:
            # a full disk or a closed terminal: a log that can't be written has nowhere to say so
            with contextlib.suppress(OSError, ValueError):
                sink.write_lines(text)


@contextlib.contextmanager
def held(handler: logging.Handler) -> Iterator[None]:
    """Under the handler's lock, which `logging` holds where it calls `emit`."""
    handler.acquire()
    try:
        yield
    finally:
        handler.release()


class LineSink(Protocol):
    """Takes whole lines."""

    def write_lines(self, text: str) -> None: ...


class StreamLines(logging.StreamHandler[TextIO]):
    """A stream handler that takes ready lines too."""

    def write_lines(self, text: str) -> None:
        with held(self):
            self.stream.write(text)
            self.stream.flush()


class DailyFile(logging.Handler):
    """Appends to a file that several processes share, and starts a new one at midnight, local
    time.

    Each line is one `write` to a file opened for appending, so lines of several workers never
    mix. Whoever first sees a new day renames the old file under a lock; the others notice that
    their file is not the named one any more. The lock's own time says on which day the file was
    begun: the file's would be today's after the first line of a new day.
    """

    def __init__(self, path: Path, kept_days: int = KEPT_DAYS) -> None:
        super().__init__()
        self._path = path
        self._kept = kept_days
        self._descriptor = -1
        self._next_look = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write_lines(self.format(record) + "\n")
        except OSError:
            self.handleError(record)

    def write_lines(self, text: str) -> None:
        """Append whole lines in one write."""
        with held(self):
            now = time.time()
            if now >= self._next_look:
                self._look(now)
            os.write(self._descriptor, text.encode("utf-8", "backslashreplace"))

    def _look(self, now: float) -> None:
        """Once a second: roll over on a new day, follow a rename by somebody else."""
        self._next_look = now + 1.0
        with self._locked() as lock:
            begun, today = _day(os.fstat(lock).st_mtime), _day(time.time())
            if begun < today:
                os.utime(lock)
                if self._path.exists():
                    self._path.rename(self._free_name(begun))
                    self._sweep()
            if not self._is_current():
                self._reopen()

    def _free_name(self, day: str) -> Path:
        """Where the file of `day` goes; never over another of that day, which a clock put back
        can leave.
        """
        dated = self._path.with_name(f"{self._path.name}.{day}")
        more = (dated.with_name(f"{dated.name}.{n}") for n in itertools.count(2))
        return next(path for path in itertools.chain([dated], more) if not path.exists())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        lock = os.open(
            self._path.with_name(f".{self._path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _is_current(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o640)

    def _sweep(self) -> None:
        old = sorted(self._path.parent.glob(f"{self._path.name}.2*"))
        for path in old[: -self._kept]:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def setup(
    level: str, folder: Path | None, secrets: Iterable[str] = (), stream: TextIO = sys.stderr
) -> None:
    """Send every logger to `stream`, and to `folder`/access.log if a folder is given."""
    formatter = LineFormatter(Redactor(secrets))
    handlers: list[StreamLines | DailyFile] = [StreamLines(stream)]
    if folder is not None:
        handlers.append(DailyFile(folder / "access.log"))
    access = logging.getLogger("access")
    access.propagate = False
    _install(access, [Gathered(handlers)], formatter)
    _install(logging.getLogger(), handlers, formatter)
    logging.getLogger().setLevel(level)
    for noisy in ("urllib3", "requests", "PIL", "botocore", "boto3", "s3transfer", "apscheduler"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def hide_too(secrets: Iterable[str]) -> None:
    """From now on redact these as well; what was secret stays so."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter):  # one for all, see `setup`
            known = {*handler.formatter.redact.known, *secrets}
            handler.formatter.redact = Redactor(known)


def _install(
    logger: logging.Logger, handlers: Sequence[logging.Handler], formatter: logging.Formatter
) -> None:
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.flush()
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
