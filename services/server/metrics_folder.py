"""A private folder where the workers' metrics meet, in files that prometheus-client maps into
memory, one set a worker.

Imported by gunicorn's master: nothing here may import `ssl`, and so not prometheus-client.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""What prometheus-client looks for, once, when a worker imports it."""

_BEGINNING = "causeway-metrics-"


class MetricsFolder:
    """A fresh folder. Its lock is held until this process and those it forks are gone, so that
    a later start can tell what a killed service has left.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_BEGINNING))
        self._lock = (self.path / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._owner = os.getpid()
        # also holds on to the lock: gunicorn forgets its configuration's globals on a reload
        atexit.register(self.remove)

    def remove(self) -> None:
        """At the end of the service; the interpreter's end calls it. Does nothing in a worker."""
        if os.getpid() == self._owner:
            atexit.unregister(self.remove)
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()


def forget_worker(folder: str, pid: int) -> None:
    """Drop what only a living worker can say, such as its open streams; its counts stay.

    As `prometheus_client.multiprocess.mark_process_dead`, which would import `ssl`.
    """
    for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)


def _sweep() -> None:
    """Remove the folders of services that were killed: of this user, and locked by nobody."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_BEGINNING}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                with (folder / "lock").open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
