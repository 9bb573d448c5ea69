"""Taking up a changed configuration file while the service runs. All of this happens in gunicorn's
master.

What the file holds is checked by a process of its own, as a start would check it. If it is valid,
new workers begin with it; once they are ready, the old ones take no more requests and leave with
their last answer. If it is not, nothing changes.

Workers read a copy of the file, in a private folder, so that one that starts later serves what its
siblings serve. Imported by the master: nothing here may import `ssl`, and so no provider.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.config import ROOT, environment, find_file, load
from services.config.load import FILE_VARIABLE, FIXED_VARIABLE, PROBLEMS_FILE
from services.server.metrics_folder import VARIABLE as METRICS_VARIABLE

log = logging.getLogger(__name__)

NEEDS_RESTART = (
    "redis",
    "server.data_dir",
    "server.demo",
    "server.host",
    "server.port",
    "store",
)
"""Keys that the master has acted on for good; of `redis` and `store` every key."""

CHECK_SECONDS = 60.0
LEAVE = signal.SIGUSR2
"""What tells a worker to leave with its last answer; SIGTERM gives it `graceful_timeout`."""


class Reload:
    """Looks at the file once a second, and at SIGHUP. `folder` is made here; only this user may
    read it.
    """

    def __init__(self, arbiter: Any, folder: Path, root: Path = ROOT) -> None:
        self._arbiter = arbiter
        self._folder = folder
        self._copy = folder / "config.json"
        self._root = root
        folder.mkdir(mode=0o700)
        self._environ = environment(root)
        self._started = self._seen = self._before = self._read()
        self._settings = load(find_file(self._environ, root), self._environ)
        self._accept(self._started)
        for name, text in self._environ.items():
            os.environ[name] = text
        os.environ[FIXED_VARIABLE] = str(folder)
        if self._started is not None:
            os.environ[FILE_VARIABLE] = str(self._copy)
        self._last_old = -1
        self._told: set[int] = set()
        arbiter.handle_hup = lambda: self.look(asked=True)
        # which gunicorn calls every second
        murder_workers = arbiter.murder_workers
        arbiter.murder_workers = lambda: self.tick(murder_workers)

    def tick(self, murder_workers: Callable[[], None]) -> None:
        """Once a second, after what gunicorn does then."""
        murder_workers()
        self.look()
        arbiter = self._arbiter
        workers = list(arbiter.WORKERS.values())
        old = [worker for worker in workers if worker.age <= self._last_old]
        new = [worker for worker in workers if worker.age > self._last_old]
        if old and len(new) >= arbiter.cfg.workers and all(self._is_ready(w.pid) for w in new):
            for worker in old:
                if worker.pid not in self._told:
                    self._told.add(worker.pid)
                    arbiter.kill_worker(worker.pid, LEAVE)
        # else gunicorn would end the oldest, or not replace a new one that died
        arbiter.num_workers = arbiter.cfg.workers + len(old)

    def look(self, asked: bool = False) -> None:
        """Take the file up if what it holds is new, and stays the same for a second unless
        somebody `asked`.
        """
        data = self._read()
        settled, self._before = data == self._before, data
        if asked and data == self._seen and not (self._folder / PROBLEMS_FILE).exists():
            log.info("config unchanged")
            return
        if not asked and (data == self._seen or not settled):
            return
        self._seen = data
        problems = self._problems(data)
        if data is None or problems:
            _write(self._folder / PROBLEMS_FILE, str(len(problems)).encode())
            log.error("config refused problems=%d: the old settings stay", len(problems))
            for problem in problems:
                log.error("config problem: %s", problem)
        else:
            (self._folder / PROBLEMS_FILE).unlink(missing_ok=True)
            self._take_up(data)

    def ready(self, pid: int) -> None:
        """In a worker: it serves."""
        (self._folder / f"ready.{pid}").touch(0o600)

    def is_first(self, worker: Any) -> bool:
        """Whether it is the first with the settings as they are: what has to be said once."""
        return bool(worker.age == max(self._last_old, 0) + 1)

    def gone(self, pid: int) -> None:
        """In the master: a worker has ended."""
        (self._folder / f"ready.{pid}").unlink(missing_ok=True)
        self._told.discard(pid)

    def _is_ready(self, pid: int) -> bool:
        return (self._folder / f"ready.{pid}").exists()

    def _read(self) -> bytes | None:
        """What the file holds; None if it cannot be read."""
        path = find_file(self._environ, self._root)
        with contextlib.suppress(OSError):
            return path.read_bytes() if path is not None else None
        return None

    def _problems(self, data: bytes | None) -> list[str]:
        """What stands against serving by `data`, now and at the next start: lines for an operator,
        without secrets.
        """
        if data is None:  # never fall back on defaults: they ask for no key
            return ["the configuration file is gone"]
        found = [line for each in {data, self._running(data)} for line in self._check(each)]
        return list(dict.fromkeys(found))

    def _check(self, data: bytes) -> list[str]:
        draft = self._folder / "draft.json"
        _write(draft, data)
        environ = {**environment(), FILE_VARIABLE: str(draft)}
        environ.pop(METRICS_VARIABLE, None)
        command = [sys.executable, "-m", "services.server.start", "--check"]
        try:
            done = subprocess.run(  # noqa: S603  # our own interpreter, fixed arguments
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CHECK_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return ["no application could be made of it in time"]
        if done.returncode == 0:
            return []
        path = str(find_file(self._environ, self._root))
        lines = done.stderr.replace(str(draft), path).strip().splitlines()
        return lines or ["no application could be made of it"]

    def _running(self, data: bytes) -> bytes:
        """`data`, with what needs a restart as it was at the start."""
        try:
            fields, started = json.loads(data), json.loads(self._started or b"{}")
        except ValueError:
            return data
        if not isinstance(fields, dict):
            return data
        written = json.dumps(fields)
        for key in NEEDS_RESTART:
            group, _, name = key.rpartition(".")
            old = started.get(group) or {} if group else started
            new = fields.setdefault(group, {}) if group and name in old else fields.get(group)
            new = new if group else fields
            if isinstance(new, dict) and new.get(name) != old.get(name):
                new.pop(name, None)
                new.update({name: old[name]} if name in old else {})
        patched = json.dumps(fields)
        return data if patched == written else patched.encode()

    def _take_up(self, data: bytes) -> None:
        """Have new workers begin with what `data` changes."""
        path = find_file(self._environ, self._root)
        written = load(path, self._environ, None, data)
        running = load(path, self._environ, None, self._running(data))
        changed = _differing(self._settings, running)
        before = json.loads(self._accepted or b"{}")
        if json.loads(data).get("providers") != before.get("providers"):
            changed.append("providers")
        waiting = _differing(running, written)
        if changed:
            self._accept(self._running(data))
            self._settings = running
            os.environ[FILE_VARIABLE] = str(self._copy)
            arbiter = self._arbiter
            arbiter.app.reload()
            arbiter.setup(arbiter.app)
            logging.getLogger().setLevel(running.log_level)
            self._last_old = arbiter.worker_age
            for _ in range(arbiter.cfg.workers):
                arbiter.spawn_worker()
        log.info(
            "config reloaded changed=%s%s",
            ",".join(changed) or "nothing",
            f" needs_restart={','.join(waiting)}" if waiting else "",
        )

    def _accept(self, data: bytes | None) -> None:
        self._accepted = data
        if data is not None:
            _write(self._copy, data)


def _differing(one: Any, other: Any, path: str = "") -> list[str]:
    """The dotted keys of settings whose values differ."""
    found: list[str] = []
    for name in one.__struct_fields__:
        before, after = getattr(one, name), getattr(other, name)
        if before == after or name == "warnings":
            continue
        if hasattr(before, "__struct_fields__") and type(before) is type(after):
            found += _differing(before, after, f"{path}{name}.")
        else:
            found.append(f"{path}{name}")
    return found


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: workers read at the same time."""
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
    draft.replace(path)
