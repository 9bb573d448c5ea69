"""Accept the paths that callers make of a base URL: double slashes, a doubled or missing /v1, a
pasted full path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_SLASHES = re.compile(r"/{2,}")
_DOUBLED = re.compile(r"^(/v1)+(?=/v1/)")
_PASTED = re.compile(
    r"^/v1/(?:chat/completions|images/generations|audio/speech|models)(?=/(?:v1/|chat/|images/|audio/))"
)


class LenientPaths:
    """WSGI middleware: one spelling of each path reaches the application.

    `prefix` is the operator's path prefix (or ""); under it live all API routes, and without it
    there are none.
    """

    def __init__(self, app: WSGIApp, prefix: str, routes: frozenset[str]) -> None:
        self._app = app
        self._prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        self._routes = routes

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in self._routes:
            environ["PATH_INFO"] = self.normalise(path)
        return self._app(environ, start_response)

    def normalise(self, path: str) -> str:
        """The path as the application knows it."""
        path = _SLASHES.sub("/", path)
        if not path.startswith(f"{self._prefix}/"):
            return path
        inner = _DOUBLED.sub("", path[len(self._prefix) :])
        inner = _PASTED.sub("", inner)
        if not inner.startswith("/v1/") and f"{self._prefix}/v1{inner}" in self._routes:
            inner = f"/v1{inner}"
        return self._prefix + inner
