"""`bin/serve`: check the settings and the port, then become gunicorn.

Flags are spelled as environment variables of the settings they override, so that everything after
this reads one source.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from services import __version__
from services.accounts import AccountsError, VaultError, open_vault
from services.config import ROOT, ConfigErrors, Settings, check_exposure, environment, load_here
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


_FOLDERS = ("data", "images", "files", "log")
"""Where the service writes."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Exit status 2 for wrong flags or settings, 1 for a busy port; otherwise gunicorn takes
    over.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.check:
        _check()
    if arguments.demo and arguments.config is not None:
        parser.error("--demo brings its own settings: leave out --config")
    for flag, variable in _FLAGS.items():
        value = getattr(arguments, flag)
        if value is not None:
            absolute = flag in ("config", "data")
            os.environ[variable] = str(Path(value).resolve()) if absolute else str(value)
    wanted = os.environ.get("SERVER_DEMO", "").lower() in ("1", "true", "yes", "on")
    demo = _demo() if arguments.demo or wanted else None
    settings = _settings()
    if arguments.user is not None and os.geteuid() == 0:
        _become(arguments.user, settings.server.folder)
        settings = _settings()  # that user has to be able to read them
    if objections := check_exposure(settings) or _unwritable(settings):
        _fail("\n".join(objections), 2)
    try:
        open_vault(settings.server.folder, settings.store.secret_key)
    except VaultError as exc:
        _fail(str(exc), 2)
    _try_to_listen(settings.server.host, settings.server.port)
    if demo is not None:
        prefix = f"/{settings.backend_container_api_prefix}".rstrip("/")
        key = next((key.key.reveal() for key in settings.auth.keys), "")
        demo.introduce(settings.server.host, settings.server.port, prefix, key)
    os.chdir(ROOT)
    gunicorn = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "wsgi:app"]
    os.execv(sys.executable, gunicorn)  # noqa: S606  # our own interpreter, fixed arguments


def _settings() -> Settings:
    try:
        return load_here(provider_types())
    except ConfigErrors as exc:
        _fail(str(exc), 2)


def _become(user: str, folder: Path) -> None:
    """Hand the service's folders to `user`, a name or a number, and be that user from now on."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        uid, gid, home = entry.pw_uid, entry.pw_gid, entry.pw_dir
    except KeyError:
        if not user.isdigit():
            _fail(f"there is no user {user}", 2)
        uid, gid, home = int(user), int(user), "/"
    for name in _FOLDERS:
        with contextlib.suppress(OSError):  # what this does not mend is told afterwards
            (folder / name).mkdir(exist_ok=True)
            _hand_over(folder / name, uid, gid)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.environ["HOME"] = home


def _hand_over(folder: Path, uid: int, gid: int) -> None:
    """Give a user what root owns in `folder`, the folder itself last: one that the user owns is
    done. Links are not followed, and files with a further name, which may be elsewhere, are left.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0:
        return
    for _, _, names, opened in os.fwalk(folder, topdown=False):
        for name in names:
            status = os.stat(name, dir_fd=opened, follow_symlinks=False)
            if status.st_uid == 0 and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                os.chown(name, uid, gid, dir_fd=opened, follow_symlinks=False)
        if os.fstat(opened).st_uid == 0:
            os.fchown(opened, uid, gid)


def _unwritable(settings: Settings) -> list[str]:
    """Why the service could not write where it has to; empty when it can."""
    folder, log = settings.server.folder, settings.log_folder
    names = ("data", "images", "files") if settings.files.storage == "local" else ("data",)
    wanted = [folder / name for name in names]
    wanted += [log, log / "access.log"] if log is not None else []
    closed = [str(path) for path in wanted if not _is_writable(path)]
    if not closed:
        return []
    uid = os.geteuid()
    return [
        f"cannot write to {', '.join(closed)}: as root run chown -R {uid} {' '.join(closed)}"
        " (for a container: on the folders that are mounted there, and mount them writable)"
    ]


def _is_writable(path: Path) -> bool:
    """Whether a file or folder can be written to, or made."""
    while not os.access(path, os.F_OK):
        path = path.parent
    return os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0))


def _check() -> NoReturn:
    """Make the application and leave it: exit status 2, and a line for each problem."""
    from app import create_app

    problems: Sequence[object] = ()
    try:
        settings = load_here(provider_types())
        problems = check_exposure(settings)
        create_app(settings, serve=False)
    except ConfigErrors as exc:
        problems = exc.problems
    except (AccountsError, VaultError, ValueError) as exc:
        problems = [*problems, exc]
    except Exception as exc:  # whatever goes wrong in a start refuses the settings
        problems = [*problems, f"no application could be made of it: {type(exc).__name__}"]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.exit(2 if problems else 0)


def _demo() -> Demo:
    """The built-in upstreams, running; the environment leads to their settings."""
    from emulators.demo import DemoError, start_demo  # not there in the container

    try:
        return start_demo(ROOT, environment(), os.environ)
    except DemoError as exc:
        _fail(str(exc), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/serve",
        description="Carry any chat back end over to the OpenAI API. The variables can also stand "
        "in .env; docs/configuration.md has the rest of them.",
    )
    add = parser.add_argument
    add("--port", type=int, help="where to listen (SERVER_PORT, default 8080)")
    add("--host", help="address to listen on (SERVER_HOST, default 127.0.0.1)")
    about = "http, https or socks5 proxy for upstreams (SERVER_PROXIES)"
    add("--proxies", metavar="URL", help=about)
    add("--base-url", metavar="URL", help="public address of this service (BACKEND_CONTAINER_URL)")
    about = "configuration file (CAUSEWAY_CONFIG, default config.json)"
    add("--config", metavar="FILE", help=about)
    about = "where data/, images/, files/ and log/ live (SERVER_DATA_DIR)"
    add("--data", metavar="DIR", help=about)
    add("--log-level", help="DEBUG, INFO, WARNING or ERROR (LOG_LEVEL)")
    about = "run with built-in upstreams; needs no key (SERVER_DEMO)"
    add("--demo", action="store_true", help=about)
    about = "where root starts it: go on as this user, who gets what root has left in data/, "
    add("--user", help=about + "images/, files/ and log/")
    add("--check", action="store_true", help="say what is wrong with the settings, and end")
    add("-v", "--version", action="version", version=f"causeway {__version__}")
    return parser


def _try_to_listen(host: str, port: int) -> None:
    """End with status 1 if the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as exc:
            text = f"cannot listen on {host}:{port}: {exc.strerror}; choose another with --port"
            _fail(text, 1)


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"causeway: {message}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
