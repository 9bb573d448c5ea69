"""gunicorn's threaded worker, which does not repeat what it cannot read."""

from __future__ import annotations

from gunicorn.workers.gthread import ThreadWorker

from services.bad_heads import WorkerMixin


class Worker(WorkerMixin, ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """As the stock one otherwise."""
