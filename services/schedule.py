"""Jobs that run now and then, once for all workers and machines.

Every worker has a schedule; a job runs in the one that gets its lease in the store. A lease lasts
nearly until the job is due again, so that it also keeps a worker that has just started from
running what ran a moment ago.
"""

from __future__ import annotations

import datetime
import logging
import random
import time
from collections.abc import Callable

import msgspec
from apscheduler.schedulers.background import BackgroundScheduler

from services.store import Store, StoreAway, StoreScript

log = logging.getLogger(__name__)

JITTER = 0.1
"""The part of its interval by which a job may come earlier or later."""
LEASE_PART = 0.8
"""Of its interval a lease lasts: less than the shortest pause between two runs."""
SOON = 5.0
"""Seconds after the start by which a job has run for the first time."""

_TAKE = StoreScript("""
local ends = redis.call('GET', KEYS[1])
if ends and tonumber(ends) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")


class Job(msgspec.Struct, frozen=True):
    """`run` every `seconds`; `everywhere`: in each worker, not only in the one with the lease."""

    name: str
    seconds: float
    run: Callable[[], object]
    everywhere: bool


class Schedule:
    """The jobs of a worker. Start it after the fork; `clock` is epoch seconds and judges leases."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._scheduler: BackgroundScheduler | None = None

    def every(
        self, seconds: float, name: str, run: Callable[[], object], *, everywhere: bool = False
    ) -> None:
        """Run `run` every `seconds`. Raises `ValueError` for a name that is taken, and once the
        schedule has started.
        """
        if name in self._jobs or self._scheduler is not None:
            raise ValueError(f"the job {name} comes twice or too late")
        self._jobs[name] = Job(name, seconds, run, everywhere)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    def start(self) -> None:
        """Begin, in threads of our own (greenlets, where gevent has patched)."""
        if self._scheduler is not None:
            return
        self._scheduler = BackgroundScheduler(timezone=datetime.UTC)
        now = datetime.datetime.now(datetime.UTC)
        for job in self._jobs.values():
            soon = random.uniform(0, min(SOON, job.seconds))  # noqa: S311  # only spreads them
            self._scheduler.add_job(
                self.run,
                "interval",
                args=[job.name],
                seconds=job.seconds,
                jitter=job.seconds * JITTER,
                next_run_time=now + datetime.timedelta(seconds=soon),
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
        self._scheduler.start()

    def stop(self) -> None:
        """End; a job that runs is not waited for."""
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
            self._scheduler = None

    def run(self, name: str) -> bool:
        """Run a job now if it is ours to run; whether it ran to its end. Its failure is logged."""
        job = self._jobs[name]
        try:
            if not job.everywhere and not self._take(job):
                return False
            job.run()
        except StoreAway:
            return False  # said already, once, by the store
        except Exception:
            log.exception("job failed name=%s", name)
            return False
        return True

    def _take(self, job: Job) -> bool:
        """Whether we have the lease. While the store is away no job runs: all workers would."""
        length = job.seconds * LEASE_PART
        now = self._clock()
        arguments = (now, now + length, max(1, int(length * 1000)))
        name = self._store.key("job", job.name)
        return bool(self._store.run_script(_TAKE, [name], arguments))
