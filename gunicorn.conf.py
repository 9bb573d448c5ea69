"""config.json turned into gunicorn's settings; the master runs the embedded store.

Nothing here may import `ssl`: gevent has to patch it first, in each worker. So no providers are
loaded here.
"""

import gc
import logging
import os
import signal
import socket

from services.config import load_here
from services.server import embedded_store, log
from services.server.metrics_folder import VARIABLE, MetricsFolder, forget_worker
from services.server.reload import LEAVE, Reload

_settings = load_here()
_server = _settings.server

bind = [f"{_server.host}:{_server.port}"]
workers = _settings.process_workers
worker_class = {
    "gevent": "services.server.gevent_worker.Worker",
    "gthread": "services.server.workers.ThreadedWorker",
}[_server.worker_class]
threads = _settings.process_threads
# under gevent connections that wait for their turn, or for a request, come on top
worker_connections = threads + (2048 if _server.worker_class == "gevent" else 0)
timeout = 60
graceful_timeout = int(_server.graceful_timeout)
keepalive = 75
backlog = 2048
logger_class = "services.server.log.ServerLog"
forwarded_allow_ips = ",".join(_server.trusted_proxies)
proc_name = "causeway"
control_socket_disable = True

PROBE_AFTER, PROBE_EVERY, PROBES = 30, 10, 3


def on_starting(arbiter):
    """In the master, before the first fork."""
    log.setup(_settings.log_level, _settings.log_folder, _settings.secrets())
    if not _settings.store.url and not _settings.redis.host and _settings.store.embedded:
        _keep(embedded_store.start(_server.folder / "data"), arbiter)
    folder = MetricsFolder().path
    os.environ[VARIABLE] = str(folder)
    arbiter.config_reload = Reload(arbiter, folder / "config")


def _keep(store, arbiter):
    """Have the master's loop, which runs every second and when a child has died, look after it."""
    os.environ["STORE_URL"] = store.url
    manage_workers = arbiter.manage_workers

    def manage():
        store.keep_running()
        manage_workers()

    arbiter.manage_workers = manage


def when_ready(arbiter):
    """In the master, once it listens: connections inherit that a silent one is probed.

    An answer may take minutes without a byte. Routers and load balancers forget such connections
    sooner, and callers may vanish without a word.
    """
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # macOS
    for listener in arbiter.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if idle is not None:
            listener.sock.setsockopt(socket.IPPROTO_TCP, idle, PROBE_AFTER)
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY)
        listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def child_exit(arbiter, worker):
    """In the master, after the end of a worker."""
    forget_worker(os.environ[VARIABLE], worker.pid)
    arbiter.config_reload.gone(worker.pid)


def post_fork(arbiter, worker):
    """In each worker, before the application is loaded."""
    worker.config_reload = arbiter.config_reload


def post_worker_init(worker):
    """In each worker, once the application is loaded: what lives for ever need not be looked at."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as when a terminal is closed
    signal.signal(LEAVE, lambda *_: worker.leave())
    worker.config_reload.ready(worker.pid)
    if worker.config_reload.is_first(worker):
        for text in worker.wsgi.extensions["warnings"]:
            logging.getLogger("config").warning(text)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def worker_exit(arbiter, worker):
    """In each worker, at its end: write what the counts and the access log still hold."""
    try:
        if worker.wsgi is not None:
            worker.wsgi.extensions["close"]()
    finally:
        logging.shutdown()
