"""`bin/causeway`: the admin API from a shell.

Exit status: 0 done, 1 the gateway refused or failed, 2 wrong arguments or settings, 3 the gateway
could not be reached.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
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
Run = Callable[["AdminClient", argparse.Namespace], Any]
Show = Callable[[Any], str]


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def group(name: str, about: str) -> Any:
        made = commands.add_parser(name, parents=[shared], help=about)
        return made.add_subparsers(required=True, metavar="VERB")

    def add(to: Any, name: str, about: str, run: Run, *words: str, show: Show = record_text) -> Any:
        made = to.add_parser(name, parents=[shared], help=about)
        made.set_defaults(run=run, show=show)
        for word in words:
            made.add_argument(word)
        return made

    keys = group("keys", "keys that open the gateway")
    add(keys, "list", "all keys", _call("GET", "/keys"), show=list_text)
    add(keys, "show", "one key", _call("GET", "/keys/{id}"), "id")
    create = add(keys, "create", "make a key and show it, this once", _create_key, "name")
    change = add(keys, "change", "change limits and permissions", _change_key, "id")
    _add_key_options(create)
    _add_key_options(change)
    add(keys, "revoke", "close a key for good", _call("DELETE", "/keys/{id}"), "id")

    accounts = group("accounts", "upstream accounts")
    add(accounts, "list", "all accounts", _call("GET", "/accounts"), show=list_text)
    _add_account_options(add(accounts, "add", "add one to a provider's pool", _add_account))
    gone = _call("DELETE", "/accounts/{id}")
    add(accounts, "remove", "take one out that was added", gone, "id")
    add(accounts, "reset", "back into service", _call("POST", "/accounts/{id}/reset"), "id")
    add(accounts, "disable", "out of service", _call("POST", "/accounts/{id}/disable"), "id")

    usage = add(commands, "usage", "what keys have used", _usage, show=usage_text)
    for day in ("--start", "--end"):
        usage.add_argument(day, type=date.fromisoformat, metavar="YYYY-MM-DD")
    usage.add_argument("--by", default="day", help="day, month, key, model; commas between")
    usage.add_argument("--key", metavar="ID", help="only this key")
    usage.add_argument("--model", help="only this model")
    add(commands, "config", "settings in force", _call("GET", "/config"))
    add(commands, "health", "health and its reasons", _call("GET", "/health"))
    return parser


def _call(method: str, path: str) -> Run:
    """What runs a command that only calls `path`, where `{id}` stands for its argument."""

    def run(client: AdminClient, arguments: argparse.Namespace) -> Any:
        return client.call(method, path.format(id=quote(getattr(arguments, "id", ""), safe="")))

    return run


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
    return client.call("PATCH", f"/keys/{quote(arguments.id, safe='')}", fields)


def _add_account_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("provider", help="such as backend_api or custom/PREFIX")
    add("--token-file", required=True, metavar="FILE", help="its token; - for standard input")
    add("--name", help="what lists and logs call it")
    add("--account", metavar="ID", help="its workspace, where there are such")
    add("--weight", type=int, metavar="N", help="twice as much: twice as often")
    add("--concurrent", type=int, metavar="N", help="answers at a time")


def _add_account(client: AdminClient, arguments: argparse.Namespace) -> Any:
    names = ("name", "account", "weight", "concurrent")
    fields = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    token = _key_from(arguments.token_file).reveal()
    return client.call(
        "POST", "/accounts", {"provider": arguments.provider, "token": token, **fields}
    )


def _usage(client: AdminClient, arguments: argparse.Namespace) -> Any:
    names = ("start", "end", "by", "key", "model")
    query = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return client.call("GET", "/usage", query=msgspec.to_builtins(query))


if __name__ == "__main__":
    sys.exit(main())
