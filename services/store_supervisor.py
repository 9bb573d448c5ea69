"""The process that keeps the embedded server running: `services.embedded_store` starts it.

It ends, and the server with it, when its standard input says so or ends. Imports little, for it
stays in memory as long as the service.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

STOP_PATIENCE = 5.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
STEADY_AFTER = 30.0
LOCK_EVERY = 0.25
"""Seconds."""
LONGEST_LOG = 4 * 1024 * 1024
_PR_SET_PDEATHSIG = 1


def log_file(folder: Path) -> Path:
    """Where server and supervisor write."""
    return folder / "valkey.log"


class _Orders:
    """Tells the supervisor when to stop: its input said so or ended, or a SIGTERM came. The death
    of a child ends a wait early.
    """

    def __init__(self) -> None:
        self._wake, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for expected in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(expected, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)

    def stop_within(self, seconds: float | None) -> bool:
        """Wait, `seconds` at most (None: no limit); whether to stop."""
        standard_input = sys.stdin.fileno()
        ready, _, _ = select.select([standard_input, self._wake], [], [], seconds)
        if self._wake in ready and signal.SIGTERM in os.read(self._wake, 64):
            return True
        return standard_input in ready

    def stop_before(self, deadline: float) -> bool:
        """As `stop_within`, but not ended early by a child."""
        while (left := deadline - time.monotonic()) > 0:
            if self.stop_within(left):
                return True
        return False


class _Supervisor:
    """Runs the server while somebody needs it."""

    def __init__(self, binary: Path, folder: Path, address: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._address = address
        self._orders = _Orders()

    def run(self) -> None:
        os.umask(0o077)
        lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        if self._take(lock):
            self._keep_running(lock)

    def _take(self, lock: int) -> bool:
        """Wait for the lock that the running server's supervisor holds; whether we got it."""
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not waiting:
                    self._note("another service keeps the server; waiting to take over")
                waiting = True
            if self._orders.stop_within(LOCK_EVERY):
                return False

    def _keep_running(self, lock: int) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            if self._ran_until_stop(lock):
                return
            if time.monotonic() - began > STEADY_AFTER:
                pause = FIRST_PAUSE
            if self._orders.stop_before(time.monotonic() + pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ran_until_stop(self, lock: int) -> bool:
        """Run the server once. True: we were told to stop, and it has; False: it ended itself."""
        try:
            server = self._launch(lock)
        except OSError as exc:
            self._note(f"cannot run {self._binary}: {exc}")
            return False
        while server.poll() is None:
            if self._orders.stop_within(None):
                _end(server)
                return True
        self._note(f"the server ended by itself, status {server.returncode}; starting it again")
        return False

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        """The server inherits the lock: while it lives, nobody starts a second one on its files."""
        written = log_file(self._folder)
        if written.exists() and written.stat().st_size > LONGEST_LOG:
            written.rename(written.with_suffix(".log.old"))
        return subprocess.Popen(  # noqa: S603  # the server found, our own arguments
            [self._binary, *self._arguments()],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            pass_fds=[lock],
            preexec_fn=_end_with_parent,  # this process has one thread
        )

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._address),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "loglevel": "notice",
            "logfile": str(log_file(self._folder)),
            "daemonize": "no",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _note(self, text: str) -> None:
        """A line in the server's log, in its own manner."""
        stamp = time.strftime("%d %b %Y %H:%M:%S")
        with log_file(self._folder).open("a") as written:
            written.write(f"{os.getpid()}:supervisor {stamp} * {text}\n")


def _end(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM makes it write out its file and leave; a server that hangs is killed."""
    server.terminate()
    try:
        server.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _end_with_parent() -> None:
    """Between fork and exec: have Linux end the server should its supervisor be killed. Other
    systems have no such call; there a server without a supervisor serves on until it is ended.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    _Supervisor(*(Path(argument) for argument in sys.argv[1:4])).run()
