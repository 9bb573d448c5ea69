"""config.json turned into gunicorn's settings; the master starts and stops the embedded store.

Nothing here may import `ssl`: gevent has to patch it first, in each worker. So no providers are
loaded here.
"""

import logging
import os

from services import embedded_store, log
from services.config import load_here

_settings = load_here()
_server = _settings.server

bind = [f"{_server.host}:{_server.port}"]
workers = _settings.process_workers
worker_class = _server.worker_class
worker_connections = _settings.process_threads
threads = _settings.process_threads if worker_class == "gthread" else 1
timeout = 60
graceful_timeout = int(_server.graceful_timeout)
keepalive = 75
backlog = 2048
logger_class = "services.server_log.ServerLog"
forwarded_allow_ips = ",".join(_server.trusted_proxies) or "127.0.0.1"
proc_name = "causeway"
control_socket_disable = True

_store = None


def on_starting(arbiter):
    """In the master, before the first fork."""
    global _store
    log.setup(_settings.log_level, _settings.log_folder, _settings.secrets())
    if not _settings.store.url and not _settings.redis.host and _settings.store.embedded:
        _store = embedded_store.start(_server.folder / "data")
        os.environ["STORE_URL"] = _store.url


def worker_exit(arbiter, worker):
    """In each worker, at its end: write what the access log still holds."""
    logging.shutdown()


def on_exit(arbiter):
    """In the master, after the last worker."""
    if _store is not None:
        _store.stop()
