"""`bin/causeway`: the admin API from a shell.

Exit status: 0 done, 1 the gateway refused or failed, 2 wrong arguments or settings, 3 the gateway
could not be reached.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import requests

from services import __version__
from services.config import ConfigErrors, load_here
from services.core.models import Secret
from services.keys.records import Limits
from services.tables import list_text, record_text, usage_text

BASE = "/admin/api"
TIMEOUT = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""

LIMITS = Limits.__struct_fields__


class Failure(Exception):
    """Ends the command: a message for people and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """Calls the admin API of the gateway at `url`."""

    def __init__(self, url: str, key: Secret) -> None:
        self._base = url.rstrip("/") + BASE
        self._key = key

    def call(
        self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> Any:
        """The decoded answer. Raises `Failure`."""
        try:
            answer = requests.request(
                method,
                self._base + path,
                params=query,
                json=body,
                auth=self._sign,
                timeout=TIMEOUT,
                allow_redirects=False,  # the key goes nowhere else
            )
        except requests.RequestException as exc:
            raise Failure(f"cannot reach the gateway at {self._base}: {_cause(exc)}", 3) from exc
        if not answer.ok or answer.is_redirect:
            raise Failure(self._refusal(answer), 1)
        try:
            return answer.json()
        except ValueError as exc:
            raise Failure(f"{self._base} did not answer with JSON", 3) from exc

    def _refusal(self, answer: requests.Response) -> str:
        """What the gateway said, or at least its status."""
        try:
            error = answer.json()["error"]
            message, param = error["message"], error["param"]
        except (ValueError, KeyError, TypeError):
            return f"{self._base} answered with status {answer.status_code}: is it a gateway?"
        if answer.status_code == 404 and param is None:
            return f"there is no admin API at {self._base}: is auth.admin_key set there?"
        return f"{message} ({answer.status_code})"

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As `auth`, so that no .netrc puts another credential there."""
        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"
        return request


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    unset = argparse.Namespace(json=False, url=None, admin_key_file=None)
    arguments = _parser().parse_args(argv, unset)
    try:
        url, key = _where(arguments)
        answer = arguments.run(AdminClient(url, key), arguments)
    except Failure as exc:
        sys.stderr.write(f"causeway: {exc}\n")
        return exc.status
    if arguments.json:
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(arguments.show(answer))
    return 0


def _where(arguments: argparse.Namespace) -> tuple[str, Secret]:
    """The gateway's address and admin key: from the flags, else from the settings."""
    try:
        settings = load_here()
    except ConfigErrors as exc:
        raise Failure(str(exc), 2) from exc
    key = settings.auth.admin_key
    if arguments.admin_key_file is not None:
        key = _key_from(arguments.admin_key_file)
    if key is None:
        raise Failure(
            "no admin key: set auth.admin_key (AUTH_ADMIN_KEY), or use --admin-key-file", 2
        )
    host = settings.server.host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # compared only
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return arguments.url or f"http://{host}:{settings.server.port}", key


def _key_from(file: str) -> Secret:
    try:
        text = sys.stdin.readline() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"cannot read a key from {file}: {exc}", 2) from exc
    if not text.strip():
        raise Failure(f"there is no key in {file}", 2)
    return Secret(text.strip())


def _cause(exc: requests.RequestException) -> str:
    if isinstance(exc, requests.Timeout):
        return "no answer in time"
    if isinstance(exc, requests.exceptions.SSLError):
        return "its certificate was not accepted"
    return "no connection" if isinstance(exc, requests.ConnectionError) else type(exc).__name__


def _parser() -> argparse.ArgumentParser:
    # in any place: what a subcommand does not find has to leave alone what stood before it
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--json", action="store_true", help="print the answer as JSON")
    shared.add_argument("--url", help="where the gateway is, such as https://gateway.example")
    shared.add_argument(
        "--admin-key-file", metavar="FILE", help="a file with the admin key; - for standard input"
    )
    parser = argparse.ArgumentParser(
        prog="bin/causeway",
        parents=[shared],
        description="Look after a running gateway. Its address and admin key come from the same "
        "settings and variables as the gateway's own, unless flags name others.",
    )
    parser.add_argument("-v", "--version", action="version", version=f"causeway {__version__}")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_keys(groups, shared)
    _add_accounts(groups, shared)
    _add_rest(groups, shared)
    return parser


def _add_keys(groups: Any, shared: argparse.ArgumentParser) -> None:
    group = groups.add_parser("keys", parents=[shared], help="keys that open the gateway")
    verbs = group.add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser
    command = add("list", parents=[shared], help="all keys")
    command.set_defaults(run=lambda c, a: c.call("GET", "/keys"), show=list_text)
    command = add("show", parents=[shared], help="one key")
    command.add_argument("id")
    command.set_defaults(run=lambda c, a: c.call("GET", f"/keys/{_part(a.id)}"), show=record_text)
    command = add("create", parents=[shared], help="make a key and show it, this once")
    command.add_argument("name")
    _add_key_options(command)
    command.set_defaults(run=_create_key, show=record_text)
    command = add("change", parents=[shared], help="change limits and permissions")
    command.add_argument("id")
    _add_key_options(command)
    command.set_defaults(run=_change_key, show=record_text)
    command = add("revoke", parents=[shared], help="close a key for good")
    command.add_argument("id")
    command.set_defaults(
        run=lambda c, a: c.call("DELETE", f"/keys/{_part(a.id)}"), show=record_text
    )


def _add_key_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    for limit in LIMITS:
        add(f"--{limit.replace('_', '-')}", type=_limit, metavar="N", help="a number, or none")
    add("--models", metavar="A,B*", help="the models allowed, * for any text; empty for all")
    add("--profile", help="output profile")
    add("--always-usage", action=argparse.BooleanOptionalAction, help="token counts though unasked")
    add(
        "--provider-key-file",
        action="append",
        default=[],
        metavar="PROVIDER=FILE",
        help="its own upstream credential, read from a file (- for standard input)",
    )


def _limit(text: str) -> int | None | str:
    return "none" if text == "none" else int(text)


def _key_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in LIMITS}
    limits = {name: None if n == "none" else n for name, n in given.items() if n is not None}
    fields: dict[str, Any] = {"limits": limits} if limits else {}
    if arguments.models is not None:
        fields["models"] = [name for name in arguments.models.split(",") if name]
    for name in ("profile", "always_usage"):
        if getattr(arguments, name) is not None:
            fields[name] = getattr(arguments, name)
    for pair in arguments.provider_key_file:
        provider, _, file = pair.partition("=")
        fields.setdefault("provider_keys", {})[provider] = _key_from(file).reveal()
    return fields


def _create_key(client: AdminClient, arguments: argparse.Namespace) -> Any:
    return client.call("POST", "/keys", {"name": arguments.name, **_key_fields(arguments)})


def _change_key(client: AdminClient, arguments: argparse.Namespace) -> Any:
    fields = _key_fields(arguments)
    if not fields:
        raise Failure("nothing to change: name a limit or a permission (see --help)", 2)
    return client.call("PATCH", f"/keys/{_part(arguments.id)}", fields)


def _add_accounts(groups: Any, shared: argparse.ArgumentParser) -> None:
    group = groups.add_parser("accounts", parents=[shared], help="upstream accounts")
    verbs = group.add_subparsers(required=True, metavar="VERB")
    command = verbs.add_parser("list", parents=[shared], help="all accounts")
    command.set_defaults(run=lambda c, a: c.call("GET", "/accounts"), show=list_text)
    command = verbs.add_parser("add", parents=[shared], help="add one to a provider's pool")
    command.add_argument("provider", help="such as backend_api or custom/PREFIX")
    command.add_argument(
        "--token-file", required=True, metavar="FILE", help="its token; - for standard input"
    )
    command.add_argument("--name", help="what lists and logs call it")
    command.add_argument("--account", metavar="ID", help="its workspace, where there are such")
    command.add_argument("--weight", type=int, metavar="N", help="twice as much: twice as often")
    command.add_argument("--concurrent", type=int, metavar="N", help="answers at a time")
    command.set_defaults(run=_add_account, show=record_text)
    command = verbs.add_parser("remove", parents=[shared], help="take one out that was added")
    command.add_argument("id")
    command.set_defaults(
        run=lambda c, a: c.call("DELETE", f"/accounts/{_part(a.id)}"), show=record_text
    )
    for verb, about in (("reset", "back into service"), ("disable", "out of service")):
        command = verbs.add_parser(verb, parents=[shared], help=about)
        command.add_argument("id")
        command.set_defaults(run=_on_account, verb=verb, show=record_text)


def _add_account(client: AdminClient, arguments: argparse.Namespace) -> Any:
    names = ("name", "account", "weight", "concurrent")
    fields = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    token = _key_from(arguments.token_file).reveal()
    return client.call(
        "POST", "/accounts", {"provider": arguments.provider, "token": token, **fields}
    )


def _on_account(client: AdminClient, arguments: argparse.Namespace) -> Any:
    return client.call("POST", f"/accounts/{_part(arguments.id)}/{arguments.verb}")


def _add_rest(groups: Any, shared: argparse.ArgumentParser) -> None:
    command = groups.add_parser("usage", parents=[shared], help="what keys have used")
    command.add_argument("--start", type=date.fromisoformat, metavar="YYYY-MM-DD")
    command.add_argument("--end", type=date.fromisoformat, metavar="YYYY-MM-DD")
    command.add_argument("--by", default="day", help="day, month, key, model; commas between")
    command.add_argument("--key", metavar="ID", help="only this key")
    command.add_argument("--model", help="only this model")
    command.set_defaults(run=_usage, show=usage_text)
    for name, about in (("config", "settings in force"), ("health", "health and its reasons")):
        command = groups.add_parser(name, parents=[shared], help=about)
        command.set_defaults(run=_get, path=f"/{name}", show=record_text)


def _usage(client: AdminClient, arguments: argparse.Namespace) -> Any:
    names = ("start", "end", "by", "key", "model")
    query = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return client.call("GET", "/usage", query=msgspec.to_builtins(query))


def _get(client: AdminClient, arguments: argparse.Namespace) -> Any:
    return client.call("GET", arguments.path)


def _part(text: str) -> str:
    return quote(text, safe="")


if __name__ == "__main__":
    sys.exit(main())
