"""gunicorn's logger, speaking through ours: one access line a request, written when the answer is
over.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gunicorn.glogging import Logger

from services.log import CLIENT_REQUEST_ID, TURN, GatheredLines

if TYPE_CHECKING:
    from services.keys import Admission

access = logging.getLogger("access")

_UNQUOTED = "/:;,@!$&'()*+~.-_=[]"
_PLAIN = re.compile(rf"[\w{re.escape(_UNQUOTED)}]*", re.ASCII)
"""Paths that are shown as they are."""


class ServerLog(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Replaces gunicorn's handlers: its records go up to the root logger."""

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
        """Our file handler follows renames by itself."""

    def close_on_exec(self) -> None:
        """Our descriptors are not inherited anyway."""


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
    if not _PLAIN.fullmatch(path):
        path = quote(path, _UNQUOTED, "latin-1")
    if path.startswith(("/images/", "/files/")):
        area, _, name = path[1:].partition("/")
        return f"/{area}/…{name[-10:]}"
    return path
