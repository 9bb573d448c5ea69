"""Canaries: secrets of tests that all carry one mark, and what looks for it wherever a secret must
not be.

Whoever finds the mark notes it here; tests/conftest.py then fails the test that ran. Only the
mark's neighbourhood is told.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterable
from pathlib import Path

MARK = "canary7f3e"
GATEWAY_KEY = f"sk-test-{MARK}-gateway-key-0123456789"
UPSTREAM_KEY = f"sk-upstream-0123456789-{MARK}"
ADMIN_KEY = f"{MARK}-admin-0123456789-0123456789"
STORE_PASSWORD = f"store-{MARK}-password-0123456789"

KEPT_BY_OPERATORS = frozenset({"config.json", "secret.key", "admin.key"})
"""Files in which an operator keeps secrets: settings, the vault's own key, what --admin-key-file
names."""

_OVERLAP = 256
_SHOWN = 60


def _encodings(mark: bytes) -> Iterable[bytes]:
    """The mark as it is, and what base64 makes of it at each of the three offsets, as far as that
    does not depend on its neighbours.
    """
    yield mark
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + mark)
        first = -(-offset * 8 // 6)
        yield coded[first : (offset + len(mark)) * 8 // 6]


_MARKS = re.compile(b"|".join(map(re.escape, _encodings(MARK.encode()))), re.IGNORECASE)
_TOKEN = re.compile(rb"[\w.+/=-]*(?:" + _MARKS.pattern + rb")[\w.+/=-]*", re.IGNORECASE)


def neighbourhood(data: bytes | str) -> str | None:
    """What stands around the first mark in `data`, the secrets masked; None if there is none."""
    raw = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    found = _MARKS.search(raw)
    if found is None:
        return None
    start = max(found.start() - 4 * _SHOWN, 0)
    masked = _TOKEN.sub(b"[canary]", raw[start : found.end() + 4 * _SHOWN])
    at = masked.index(b"[canary]")
    return masked[max(at - _SHOWN, 0) : at + _SHOWN].decode("utf-8", "backslashreplace")


def masked(text: str) -> str:
    """The text, its canaries masked."""
    raw = text.encode("utf-8", "surrogateescape")
    return _TOKEN.sub(b"[canary]", raw).decode("utf-8", "surrogateescape")


class Found:
    """The leaks found so far, by any thread."""

    def __init__(self) -> None:
        self._leaks: list[str] = []
        self._lock = threading.Lock()

    def look(self, where: str, data: bytes | str) -> bool:
        """Note a mark in `data`; whether there is one."""
        around = neighbourhood(data)
        if around is None:
            return False
        with self._lock:
            leak = f"a secret shows in {where}: {around!r}"
            if leak not in self._leaks:
                self._leaks.append(leak)
        return True

    def look_in_folder(self, what: str, folder: Path) -> None:
        """Every file under `folder` and its name, but those in which operators keep secrets."""
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            self.look(f"the name of a file of {what}", name)
            if path.is_file() and path.name not in KEPT_BY_OPERATORS:
                self.look(f"{what}'s file {name}", path.read_bytes())

    def look_at_exception(self, where: str, raised: BaseException | None) -> None:
        """Texts, reprs and notes of an exception and of all that a traceback of it would show."""
        seen: set[int] = set()
        while raised is not None and id(raised) not in seen:
            seen.add(id(raised))
            texts = [str(raised), repr(raised), *getattr(raised, "__notes__", ())]
            if type(raised).__module__.startswith("services"):
                texts += [repr(vars(raised)), repr(raised.args)]
            self.look(f"{where} {type(raised).__name__}", "\n".join(texts))
            shown = None if raised.__suppress_context__ else raised.__context__
            raised = raised.__cause__ or shown

    def take(self) -> list[str]:
        """The leaks noted since the last call."""
        with self._lock:
            taken, self._leaks = self._leaks, []
        return taken


class Stream:
    """Looks at bytes that come piece by piece; a mark may lie across two pieces."""

    def __init__(self, found: Found, where: str) -> None:
        self._found = found
        self._where = where
        self._end = b""
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        joined = self._end + piece
        if self._found.look(self._where, joined):
            joined = b""
        self._end = joined[-_OVERLAP:]


found = Found()
"""The one of this run."""
