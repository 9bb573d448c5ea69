"""Logging: key=value lines to stderr and to a file a day, a request id on each, and never a
secret: the formatter redacts the finished line, whoever wrote it.

One access line a request is written when its answer is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote

from gunicorn.glogging import Logger

if TYPE_CHECKING:
    from services.keys import Admission

log = logging.getLogger(__name__)
access = logging.getLogger("access")
request_id: ContextVar[str] = ContextVar("request_id", default="-")
TURN = "causeway.turn"
"""Under which a request's environ has its `Admission`."""
CLIENT_REQUEST_ID = "causeway.client_request_id"
"""Under which it has the caller's own name for the request, if there is one."""

FILE_NAME = "access.log"
KEPT_DAYS = 30
FLUSH_EVERY = 0.25
_SHORTEST_KNOWN_SECRET = 8
_MARK = re.compile(r"earer|EARER|://|oken|[?&]key=|apikey=|sig=|eyJ|k-")
"""This is in every secret that `_SECRET_SHAPES` finds; most lines have none."""

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
_UNQUOTED = "/:;,@!$&'()*+~.-_=[]"
_PLAIN_PATH = re.compile(rf"[\w{re.escape(_UNQUOTED)}]*", re.ASCII)


class Redactor:
    """Replaces secrets in a line: those known from the settings, and anything shaped like one."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        long_enough = {secret for secret in known if len(secret) >= _SHORTEST_KNOWN_SECRET}
        self._known = sorted(long_enough, key=len, reverse=True)

    def __call__(self, line: str) -> str:
        for secret in self._known:
            if secret in line:
                line = line.replace(secret, "…")
        if not _MARK.search(line):
            return line
        return _SECRET_SHAPES.sub(lambda m: f"{m[1] or m[2] or ''}…", line)


class LineFormatter(logging.Formatter):
    """`2026-11-21 10:15:00,123 INFO name request message`, redacted."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self.redact = redact
        self._second = -1
        self._stamp = ""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if "\n" in message or "\r" in message:  # or somebody's text could look like a line of ours
            message = message.replace("\r", "\\r").replace("\n", "\\n")
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        return self.line(record.created, record.levelname, record.name, message)

    def line(self, created: float, level: str, name: str, message: str) -> str:
        """A line as `format` makes it, without the cost of a record."""
        second = int(created)
        if second != self._second:
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        stamp = f"{self._stamp},{int((created - second) * 1000):03d}"
        return self.redact(f"{stamp} {level} {name} {request_id.get()} {message}")


class Output:
    """Where lines go: a stream and, if a folder is given, a file a day in it.

    A file is named by its day, such as `access.log.2026-11-21`; `access.log` is a link to today's.
    Each text is one `write` to a file opened for appending, so that lines of several processes
    never mix, and nobody has to rename a file that others write to. Raises `OSError` for a folder
    that cannot be written.
    """

    def __init__(self, stream: TextIO, folder: Path | None = None, kept: int = KEPT_DAYS) -> None:
        self._stream = stream
        self._folder = folder
        self._kept = kept
        self._today = ""
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._append(folder, b"")

    def write(self, text: str) -> None:
        """Write whole lines. A log that cannot be written has nowhere to say so."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._append(self._folder, text.encode("utf-8", "backslashreplace"))

    def _append(self, folder: Path, data: bytes) -> None:
        today = folder / time.strftime(f"{FILE_NAME}.%Y-%m-%d")
        descriptor = os.open(today, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o640)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        if today.name == self._today:
            return
        self._today = today.name
        link = folder / FILE_NAME
        if link.is_symlink() or not link.exists():  # else it is somebody else's file
            with contextlib.suppress(OSError):  # some file systems know no links
                new = folder / f".{FILE_NAME}.{os.getpid()}"
                new.symlink_to(today.name)
                new.replace(link)
        for old in sorted(folder.glob(f"{FILE_NAME}.2*"))[: -self._kept - 1]:
            old.unlink(missing_ok=True)


class Lines(logging.Handler):
    """Writes records as lines."""

    def __init__(self, output: Output, formatter: LineFormatter) -> None:
        super().__init__()
        self.output = output
        self.formatter: LineFormatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        self.output.write(self.format(record) + "\n")


class GatheredLines(Lines):
    """Writes lines a few times a second, many at once.

    For access lines only: 2 µs each, 15 where each is a record and a write of its own. A worker
    that is killed takes up to `FLUSH_EVERY` seconds of them along.
    """

    def __init__(self, output: Output, formatter: LineFormatter) -> None:
        super().__init__(output, formatter)
        self._lines: list[str] = []
        self._flusher: threading.Thread | None = None
        self._flushing = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self._add(self.format(record))

    def write(self, level: str, name: str, message: str) -> None:
        """Write a line without the cost of a record."""
        self._add(self.formatter.line(time.time(), level, name, message))

    def flush(self) -> None:
        with self._flushing:
            lines = self._lines[:]
            del self._lines[: len(lines)]  # others append meanwhile
            if lines:
                self.output.write("\n".join(lines) + "\n")

    def _add(self, line: str) -> None:
        self._lines.append(line)
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._keep_flushing, daemon=True)
            self._flusher.start()

    def _keep_flushing(self) -> None:
        while True:
            time.sleep(FLUSH_EVERY)
            self.flush()


class ServerLog(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger; its records go up to the root logger."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn")
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.access_log = access

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """A key=value line. The query is left out: it may hold what is nobody's business."""
        if not access.isEnabledFor(logging.INFO):
            return
        get = environ.get
        status = resp.status.split(None, 1)[0] if resp.status else "-"
        line = (
            f"client={get('REMOTE_ADDR', '-')} method={get('REQUEST_METHOD', '-')} "
            f"path={_shown(get('PATH_INFO', '-'))} status={status} bytes={resp.sent} "
            f"seconds={request_time.total_seconds():.3f}{_of_turn(get(TURN))}"
        )
        if CLIENT_REQUEST_ID in environ:
            line += f" client_request={environ[CLIENT_REQUEST_ID]}"
        for handler in access.handlers:
            if isinstance(handler, GatheredLines):
                handler.write("INFO", access.name, line)

    def reopen_files(self) -> None:
        """`Output` opens its file for each write."""

    def close_on_exec(self) -> None:
        """`Output` keeps no file open."""


def _of_turn(turn: Admission | None) -> str:
    """Key, models, provider and tokens, as far as they are known; nothing for other requests."""
    if turn is None:
        return ""
    said = f" key_name={_word(turn.record.name)}" if turn.record is not None else ""
    if turn.model:
        said += f" model={_word(turn.model)}"
    if turn.served is not None:
        if turn.served.stands_in:
            said += f" served={_word(turn.served.model)}"
        said += f" provider={turn.served.provider}"
    if turn.usage is not None:
        said += f" prompt={turn.usage.prompt_tokens} completion={turn.usage.completion_tokens}"
    return said


def _word(name: str) -> str:
    """Without blanks, so that it is one word."""
    return name if " " not in name and name.isprintable() else "-".join(name.split())


def _shown(path: str) -> str:
    """The path, quoted, so that it is one word of one line; of a file's name only the end, since
    whoever knows the name may have the file.
    """
    if not _PLAIN_PATH.fullmatch(path):
        path = quote(path, _UNQUOTED, "latin-1")
    if path.startswith(("/images/", "/files/")):
        area, _, name = path[1:].partition("/")
        return f"/{area}/…{name[-10:]}"
    return path


def setup(
    level: str, folder: Path | None, secrets: Iterable[str] = (), stream: TextIO = sys.stderr
) -> None:
    """Send every logger to `stream`, and to a file in `folder` if one is given."""
    formatter, refused = LineFormatter(Redactor(secrets)), ""
    try:
        output = Output(stream, folder)
    except OSError as exc:
        output, refused = Output(stream), str(exc)
    root = logging.getLogger()
    access.propagate = False
    for logger, handler in (
        (access, GatheredLines(output, formatter)),
        (root, Lines(output, formatter)),
    ):
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.flush()
        logger.addHandler(handler)
    root.setLevel(level)
    for noisy in ("urllib3", "requests", "PIL", "botocore", "boto3", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it warns of each long run
    if refused:
        log.warning("log file cannot be written, only this stream is: %s", refused)


def holds_secret(text: str) -> bool:
    """Whether something in `text` would be left out of a log line."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Lines):
            return handler.formatter.redact(text) != text
    return False
