"""What every emulator's command line shares: options, where it listens, a clean end."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from types import FrameType

from .http_server import HttpServer

PARENT_CHECK = 0.3  # seconds


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with `--host`, `--port` and `--stop-with-parent`; add what else you need."""
    made = argparse.ArgumentParser(
        prog=f"python -m emulators {name}", description=(description or "").partition("\n")[0]
    )
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    made.add_argument(
        "--stop-with-parent", action="store_true", help="end when the starting process ends"
    )
    return made


def serve(name: str, server: HttpServer, stop_with_parent: bool, path: str = "") -> int:
    """Run `server`, say where it listens, return 0 after SIGTERM, SIGINT or the parent's end."""
    stopped = stop_signal()
    with server:
        announce(name, server.url + path)
        wait_until_stopped(stopped, stop_with_parent)
    return 0


def announce(name: str, url: str) -> None:
    print(f"{name} listening on {url}", flush=True)


def stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set, from now on."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopped


def wait_until_stopped(stopped: threading.Event, stop_with_parent: bool) -> None:
    """Return once `stopped` is set or, if asked, once the process has another parent."""
    parent = os.getppid()
    while not stopped.wait(PARENT_CHECK):
        if stop_with_parent and os.getppid() != parent:
            return
