"""What the tests of the file service share: pictures, a cache, the routes as in the service."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask
from PIL import Image
from werkzeug.serving import make_server

from services.api import errors
from services.api.auth import Authenticator
from services.api.files import blueprint, public_blueprint
from services.api.middleware import Middleware
from services.config import Auth, GatewayKeySetting, Server, Settings
from services.core.models import Secret
from services.files.cache import FileCache, Lifetimes
from services.files.storage import LocalStorage, Storage
from services.files.uploads import UserFiles

BASE = "https://gw.example"
KEY, OTHER_KEY = "sk-first-canary7f3e-0123456789", "sk-other-9876543210-canary7f3e"
LIFETIMES = Lifetimes(generated=1000.0, passed_on=60.0, user=500.0)
HTML = b"<html><script>alert(1)</script></html>"


class Clock:
    """Time that only a test moves, starting at the real time since files carry that."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def picture(kind: str = "PNG", size: tuple[int, int] = (3, 2), color: str = "red") -> bytes:
    out = BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def local_cache(
    folder: Path, *, total: int = 10**9, clock: Any = None, storage: Storage | None = None
) -> FileCache:
    extra = {"clock": clock} if clock else {}
    return FileCache(storage or LocalStorage(folder), LIFETIMES, total, **extra)


def settings(folder: Path, **fields: Any) -> Settings:
    keys = tuple(
        GatewayKeySetting(key=Secret(key), name=name)
        for key, name in ((KEY, "first"), (OTHER_KEY, "other"))
    )
    made = Settings(auth=Auth(keys=keys), server=Server(data_dir=str(folder)))
    return msgspec.structs.replace(made, **fields)


def make_app(
    cache: FileCache, settings: Settings | None = None, user_files: UserFiles | None = None
) -> Flask:
    """The routes, with errors, CORS and path clean-up as the whole service has them."""
    app = Flask("files", static_folder=None)
    errors.register(app)
    app.register_blueprint(public_blueprint(cache))
    if settings is not None and user_files is not None:
        app.config["MAX_CONTENT_LENGTH"] = int(settings.server.max_body_mb * 1024 * 1024)
        app.register_blueprint(blueprint(settings, user_files, Authenticator(settings)))
    routes = frozenset(str(rule) for rule in app.url_map.iter_rules())
    app.wsgi_app = Middleware(app.wsgi_app, routes, "", ("*",))  # type: ignore[method-assign]
    return app


@contextlib.contextmanager
def served(app: Flask) -> Iterator[int]:
    """The app on a loopback port, over real sockets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def raw_get(port: int, path: bytes) -> tuple[int, bytes]:
    """Status and whole answer of a GET whose path goes out byte for byte."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.0\r\nHost: h\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer
