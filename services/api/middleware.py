"""What every request and every answer gets: one spelling of the path; a request id, the headers of
CORS, and of an answer to a counted request the standing of its key and who served it.

A WSGI layer rather than Flask hooks and flask-cors: those took 60 µs of CPU a request, this
takes 5.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from services.keys import Admission, Served
from services.server.log import CLIENT_REQUEST_ID, TURN, holds_secret, request_id

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

METHODS = "GET, POST, PUT, PATCH, DELETE, OPTIONS, HEAD"
ALLOWED_HEADERS = (
    "Authorization, Content-Type, X-Api-Key, Api-Key, X-Requested-With, X-Request-Id, "
    "X-Client-Request-Id, X-Upstream-Authorization, X-Output-Profile, Anthropic-Version, "
    "Anthropic-Beta, X-Goog-Api-Key"
)
EXPOSED_HEADERS = (
    "x-request-id, retry-after, openai-processing-ms, x-ratelimit-limit-requests, "
    "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, x-client-request-id, "
    "x-causeway-model, x-causeway-provider, x-causeway-fallback"
)
PREFLIGHT_SECONDS = "86400"
_CLIENT_ID = re.compile(r"[!-~]{1,512}")
"""As long as OpenAI takes it."""
_GRAPHIC = re.compile(r"[!-~]+")
_UNQUOTED = "!#$&'()*+,/:;=?@[]~|^`{}<>\""
_HEADER_NAMES = re.compile(r"[\w\s,-]{1,1000}", re.ASCII)
_SLASHES = re.compile(r"/{2,}")
_DOUBLED = re.compile(r"^(/v1)+(?=/v1/)")
_PASTED = re.compile(
    r"^/v1/(?:chat/completions|images/generations|audio/speech|models)(?=/(?:v1/|chat/|images/|audio/))"
)
_ANY_ORIGIN = ("Access-Control-Allow-Origin", "*")
_VARY = ("Vary", "Origin")
_EXPOSED = ("Access-Control-Expose-Headers", EXPOSED_HEADERS)
_VERSION = ("openai-version", "2020-10-01")


class Middleware:
    """The one WSGI layer before Flask.

    `routes` are the application's paths; under `prefix`, the operator's or "", live all routes of
    the API, and without it there are none. `origins` are the allowed ones; `*` allows any, without
    credentials.

    `says_who`: answers name the provider and the model that served them. `note` is told the path,
    in its one spelling, and the status of each answer.
    """

    def __init__(
        self,
        app: WSGIApp,
        routes: frozenset[str],
        prefix: str,
        origins: tuple[str, ...],
        says_who: bool = True,
        note: Callable[[str, str], None] = lambda path, status: None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        self._says_who = says_who
        self._note = note
        self._origins = frozenset(origins)
        self._any = "*" in self._origins

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        started = time.monotonic()
        if environ["PATH_INFO"] not in self._routes:
            environ["PATH_INFO"] = self.normalise(environ["PATH_INFO"])
        # an id to find a request in the log by, not a secret
        identity = f"req_{random.getrandbits(96):024x}"  # noqa: S311
        environ["causeway.request_id"] = identity
        request_id.set(identity)
        more = self._cross_origin(environ)
        theirs = environ.get("HTTP_X_CLIENT_REQUEST_ID") or environ.get("HTTP_X_REQUEST_ID")
        if theirs and _CLIENT_ID.fullmatch(theirs) and not holds_secret(theirs):
            environ[CLIENT_REQUEST_ID] = theirs
            more.append(("x-client-request-id", theirs))

        def begin(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            self._note(environ["PATH_INFO"], status)
            headers += more
            turn: Admission | None = environ.get(TURN)
            if turn is not None and status[0] == "2":
                headers += turn.headers.items()
                if self._says_who and turn.settled and turn.served is not None:
                    headers += _who_served(turn.served, turn.model)
            spent = round((time.monotonic() - started) * 1000)
            headers += (
                ("x-request-id", identity),
                _VERSION,
                ("openai-processing-ms", str(spent)),
            )
            return start_response(status, headers, exc_info)

        if environ["REQUEST_METHOD"] == "OPTIONS":
            begin("204 No Content", _preflight(environ))
            return ()
        return self._app(environ, begin)

    def normalise(self, path: str) -> str:
        """The path as the application knows it: callers make double slashes, a doubled or missing
        /v1 and a pasted full path of a base URL.
        """
        path = _SLASHES.sub("/", path)
        if not path.startswith(f"{self._prefix}/"):
            return path
        inner = _DOUBLED.sub("", path[len(self._prefix) :])
        inner = _PASTED.sub("", inner)
        if not inner.startswith("/v1/") and f"{self._prefix}/v1{inner}" in self._routes:
            inner = f"/v1{inner}"
        return self._prefix + inner

    def _cross_origin(self, environ: dict[str, Any]) -> list[tuple[str, str]]:
        if self._any:
            allowed = [_ANY_ORIGIN]
        elif environ.get("HTTP_ORIGIN") in self._origins:
            allowed = [("Access-Control-Allow-Origin", environ["HTTP_ORIGIN"]), _VARY]
        else:
            return [_VARY]
        if "HTTP_ORIGIN" in environ:
            allowed.append(_EXPOSED)
        return allowed


def _who_served(served: Served, asked: str) -> list[tuple[str, str]]:
    """Names of ours only: no account, credential or address of an upstream."""
    told = [
        ("x-causeway-model", _told(served.model)),
        ("x-causeway-provider", served.provider),
    ]
    if served.stands_in:
        told.append(("x-causeway-fallback", _told(asked)))
    return told


def _told(name: str) -> str:
    return name if _GRAPHIC.fullmatch(name) else quote(name, _UNQUOTED)


def _preflight(environ: dict[str, Any]) -> list[tuple[str, str]]:
    """`*` would not cover Authorization, so the headers asked for are named back."""
    asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
    allowed = asked if _HEADER_NAMES.fullmatch(asked) else ALLOWED_HEADERS
    return [
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Allow-Headers", allowed),
        ("Access-Control-Max-Age", PREFLIGHT_SECONDS),
    ]
