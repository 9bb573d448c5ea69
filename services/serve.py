"""`bin/serve`: check the settings and the port, then become gunicorn.

Flags are spelled as environment variables of the settings they override, so that everything after
this reads one source.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from services import __version__
from services.accounts import VaultError, open_vault
from services.config import ROOT, ConfigErrors, Settings, check_exposure, load_here
from services.providers.registry import provider_types

if TYPE_CHECKING:
    from emulators.demo import Demo

_FLAGS = {
    "port": "SERVER_PORT",
    "host": "SERVER_HOST",
    "proxies": "SERVER_PROXIES",
    "base_url": "BACKEND_CONTAINER_URL",
    "config": "CAUSEWAY_CONFIG",
    "data": "SERVER_DATA_DIR",
    "log_level": "LOG_LEVEL",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Exit status 2 for wrong flags or settings, 1 for a busy port; otherwise gunicorn takes
    over.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.demo and arguments.config is not None:
        parser.error("--demo brings its own settings: leave out --config")
    for flag, variable in _FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            absolute = flag in ("config", "data")
            os.environ[variable] = str(Path(value).resolve()) if absolute else str(value)
    demo = _demo() if arguments.demo or _demo_by_environment() else None
    try:
        settings = load_here(provider_types())
    except ConfigErrors as exc:
        _fail(str(exc), 2)
    objections = check_exposure(settings)
    if objections:
        _fail("\n".join(objections), 2)
    try:
        open_vault(settings.server.folder, settings.store.secret_key)
    except VaultError as exc:
        _fail(str(exc), 2)
    busy = _busy(settings)
    if busy:
        _fail(busy, 1)
    if demo is not None:
        demo.introduce(settings.server.host, settings.server.port)
    os.chdir(ROOT)
    gunicorn = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "wsgi:app"]
    os.execv(sys.executable, gunicorn)  # noqa: S606  # our own interpreter, fixed arguments


def _demo_by_environment() -> bool:
    return os.environ.get("SERVER_DEMO", "").lower() in ("1", "true", "yes", "on")


def _demo() -> Demo:
    """The built-in upstreams, running; the environment leads to their settings."""
    from emulators.demo import DemoError, start_demo  # not there in the container

    try:
        return start_demo(ROOT, os.environ)
    except DemoError as exc:
        _fail(str(exc), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/serve",
        description="Carry any chat back end over to the OpenAI API. Every flag is also an "
        "environment variable, and a line in .env; docs/configuration.md has the rest.",
    )
    add = parser.add_argument
    add("--port", type=int, help="where to listen (SERVER_PORT, default 8080)")
    add("--host", help="address to listen on (SERVER_HOST, default 127.0.0.1)")
    add(
        "--proxies",
        metavar="URL",
        help="http, https or socks5 proxy for upstreams (SERVER_PROXIES)",
    )
    add("--base-url", metavar="URL", help="public address of this service (BACKEND_CONTAINER_URL)")
    add(
        "--config", metavar="FILE", help="configuration file (CAUSEWAY_CONFIG, default config.json)"
    )
    add(
        "--data", metavar="DIR", help="where data/, images/, files/ and log/ live (SERVER_DATA_DIR)"
    )
    add("--log-level", help="DEBUG, INFO, WARNING or ERROR (LOG_LEVEL)")
    add(
        "--demo",
        action="store_true",
        help="run with built-in upstreams; needs no key (SERVER_DEMO)",
    )
    add("-v", "--version", action="version", version=f"causeway {__version__}")
    return parser


def _busy(settings: Settings) -> str | None:
    """Why the port cannot be had, or None."""
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as exc:
            return f"cannot listen on {host}:{port}: {exc.strerror}; choose another with --port"
    return None


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"causeway: {message}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
