"""One application among those that follow each other in a worker: it ends with its last answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from services.reload.lasting import Serving

SERVING = "causeway.serving"
"""Under which an application's extensions have its `Serving`."""

StartResponse = Callable[..., Any]


class Application(Protocol):
    """A WSGI application that tells its parts."""

    @property
    def extensions(self) -> dict[str, Any]: ...

    def __call__(
        self, environ: dict[str, Any], start_response: StartResponse, /
    ) -> Iterable[bytes]: ...


class Generation:
    """An application, and its answers under way. Takes no lock: it stands before every request."""

    def __init__(self, app: Application) -> None:
        self.serving: Serving = app.extensions[SERVING]
        self._app = app
        self._under_way: set[object] = set()

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    def enter(self) -> object:
        """A request begins; what to `leave` with."""
        turn = object()
        self._under_way.add(turn)
        return turn

    def leave(self, turn: object) -> None:
        """Its answer is over."""
        self._under_way.discard(turn)

    def answer(
        self, environ: dict[str, Any], start_response: StartResponse, turn: object
    ) -> Iterable[bytes]:
        """The answer's body; once that is closed, the turn is over."""
        try:
            body = self._app(environ, start_response)
        except BaseException:
            self.leave(turn)
            raise
        if isinstance(body, list | tuple) or _is_file(environ, body):
            self.leave(turn)  # it needs nothing of us, and the server looks at a file's class
            return body
        return _Body(body, lambda: self.leave(turn))


def _is_file(environ: dict[str, Any], body: object) -> bool:
    return isinstance(body, environ.get("wsgi.file_wrapper", ()))


class _Body:
    """A body whose end is told. Going through it costs no more than before."""

    __slots__ = ("_body", "_leave")

    def __init__(self, body: Iterable[bytes], leave: Callable[[], None]) -> None:
        self._body = body
        self._leave = leave

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._leave()
