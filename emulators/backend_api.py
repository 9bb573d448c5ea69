"""A stand-in for the ChatGPT-web style `backend-api` upstream.

    with BackendApi(seed=1) as upstream:
        upstream.script("code", {"scenario": "plain", "transport": "socket_flat"})
        upstream.script({"endpoint": "oauth_token", "answer": "html"})
        token = upstream.accounts["alice"].access_token
        …
        assert upstream.problems == []
        assert upstream.calls("conversation")[0].json["model"] == "gpt-4"

By hand: `python -m emulators backend_api --port 9000`. Every path works under any prefix too, or,
where `prefix` is given, only under that one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Self

from . import backend_api_control as control
from . import backend_api_conversation as conversation
from . import backend_api_files as files
from . import backend_api_gizmos as gizmos
from . import backend_api_sockets as sockets
from . import backend_api_tokens as tokens
from . import command
from .backend_api_records import Account, Call
from .backend_api_scenarios import SCENARIOS, SCENES
from .backend_api_state import Entry, State
from .backend_api_visit import Visit, answered_by_script
from .http_server import HttpServer, Reply, Request

__all__ = ["SCENARIOS", "SCENES", "BackendApi", "main"]

Serve = Callable[[Visit], None]
_FILE = r"/backend-api/files/(?P<file_id>[\w-]+)"
_CONVERSATION = r"/backend-api/conversation/(?P<conversation_id>[\w-]+)"
_ROUTES: tuple[tuple[str, str, str, Serve], ...] = (
    ("conversation", "POST", r"/backend-api/conversation", conversation.post),
    ("hide", "PATCH", _CONVERSATION, conversation.hide),
    (
        "interpreter_download",
        "GET",
        _CONVERSATION + "/interpreter/download",
        files.interpreter_download,
    ),
    ("file_create", "POST", r"/backend-api/files", files.create),
    ("file_uploaded", "POST", _FILE + "/uploaded", files.uploaded),
    ("file_download", "GET", _FILE + "/download", files.download),
    ("blob_put", "PUT", r"/blob/(?P<file_id>[\w-]+)", files.put_blob),
    ("blob_get", "GET", r"/blob/(?P<file_id>[\w-]+)", files.get_blob),
    ("gizmo", "GET", r"/backend-api/gizmos/(?P<gizmo_id>[^/]+)", gizmos.show),
    (
        "accounts_check",
        "GET",
        r"/backend-api/accounts/check/v4-2023-04-27",
        gizmos.check_accounts,
    ),
    ("register_websocket", "POST", r"/backend-api/register-websocket", sockets.register),
    ("websocket", "GET", r"/ws/(?P<ticket>[\w-]+)", sockets.serve),
    ("oauth_token", "POST", r"/oauth/token", tokens.official),
    ("applelogin", "POST", r"/applelogin", tokens.form),
    ("ninja_refresh", "POST", r"/ninja/refresh", tokens.bearer),
    ("arkose", "POST", r"/arkose/(?P<kind>\w+)/api/arkose/token", tokens.arkose),
)
_CONTROL: dict[tuple[str, str], Serve] = {
    ("GET", "/_ctl/log"): control.log,
    ("GET", "/_ctl/state"): control.show,
    ("POST", "/_ctl/script"): control.script,
    ("POST", "/_ctl/set"): control.change,
    ("POST", "/_ctl/reset"): control.reset,
}
_PREFIX = r"(?P<prefix>(?:/[\w.-]+)*?)"


class BackendApi:
    """The emulator on a port of its own; port 0 takes a free one."""

    def __init__(
        self, port: int = 0, seed: int = 0, prefix: str = "", host: str = "127.0.0.1"
    ) -> None:
        self.state = State(seed)
        self.prefix = f"/{prefix.strip('/')}" if prefix else ""
        self._server = HttpServer(self._handle, host, port)
        start = re.escape(self.prefix) if prefix else _PREFIX
        self._routes = [
            (name, method, re.compile(path if "/blob" in path or "/ws" in path else start + path))
            for name, method, path, _ in _ROUTES
        ]

    @property
    def url(self) -> str:
        """Scheme, host and port; the prefix is not part of it."""
        return self._server.url

    @property
    def accounts(self) -> dict[str, Account]:
        """`alice` and `bob`; each has a refresh token, access tokens and two workspaces."""
        return self.state.accounts

    @property
    def log(self) -> list[Call]:
        """Every call but those of the control plane, oldest first."""
        return list(self.state.calls)

    @property
    def problems(self) -> list[str]:
        """All that clients did wrong, by endpoint."""
        return [f"{call.endpoint}: {text}" for call in self.log for text in call.problems]

    @property
    def errors(self) -> list[str]:
        """Tracebacks of the emulator's own faults."""
        return [exchange.error for exchange in self._server.exchanges if exchange.error]

    def calls(self, endpoint: str) -> list[Call]:
        return [call for call in self.log if call.endpoint == endpoint]

    def count(self, endpoint: str) -> int:
        return self.state.counters[endpoint]

    def script(self, *entries: str | Entry) -> None:
        """Queue answers: a scenario's name, or an entry as in `/_ctl/script`. Raises ValueError."""
        named = [{"scenario": e} if isinstance(e, str) else e for e in entries]
        control.add_script(self.state, named)

    def revoke(self, account: str) -> None:
        """Make the account's access tokens so far invalid; refreshing gives a good one."""
        with self.state.lock:
            self.state.revoked.update(self.state.accounts[account].access_tokens)

    def reset(self) -> None:
        self.state.reset()

    def wait(self, condition: Callable[[], bool], timeout: float = 5.0) -> bool:
        """Whether `condition` comes true within `timeout` seconds."""
        return self._server.wait(condition, timeout)

    def stop(self) -> None:
        """Close the port; later connections are refused."""
        self._server.stop()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _handle(self, request: Request, reply: Reply) -> None:
        operation = _CONTROL.get((request.method, request.path))
        call = Call("control" if operation else "unknown", request, reply.exchange)
        visit = Visit(self.state, request, reply, call, self.url)
        if operation is not None:
            operation(visit)
            return
        serve = self._route(visit)
        with self.state.lock:
            self.state.calls.append(call)
            self.state.counters[call.endpoint] += 1
            visit.entry = self.state.take(call.endpoint)
        if not answered_by_script(visit):
            serve(visit)

    def _route(self, visit: Visit) -> Serve:
        allowed = False
        for (name, method, pattern), (*_, serve) in zip(self._routes, _ROUTES, strict=True):
            match = pattern.fullmatch(visit.request.path)
            if match is None:
                continue
            allowed = True
            if method == visit.request.method:
                visit.args = match.groupdict()
                visit.call.prefix = visit.args.pop("prefix", self.prefix)
                visit.call.endpoint = name
                return serve
        return _wrong_method if allowed else _unknown_path


def _unknown_path(visit: Visit) -> None:
    visit.problem(f"{visit.request.path} does not exist")
    visit.reply.json(404, {"detail": "Not Found"})


def _wrong_method(visit: Visit) -> None:
    visit.problem(f"{visit.request.method} {visit.request.path} is not allowed")
    visit.reply.json(405, {"detail": "Method Not Allowed"})


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until the starting process is gone."""
    parser = command.parser("backend_api", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="makes ids repeatable (default 0)")
    parser.add_argument("--prefix", default="", help="the only path prefix to answer under")
    args = parser.parse_args(argv)
    stopped = command.stop_signal()
    with BackendApi(args.port, args.seed, args.prefix, args.host) as upstream:
        command.announce("backend_api", upstream.url + upstream.prefix)
        for account in upstream.accounts.values():
            print(f"{account.name} refresh token {account.refresh_token}", flush=True)
            print(f"{account.name} access token {account.access_token}", flush=True)
        command.wait_until_stopped(stopped, args.stop_with_parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
