"""Large files, parts of them and bare headers through gunicorn, many on one connection."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from services.files.storage import Kind
from tests.gateway import ROOT, SERVICE_PYTHON, free_port, wait_for

from .support import BASE, local_cache, picture

SMALL = picture()
LARGE = picture() + bytes(range(256)) * 8000


@contextlib.contextmanager
def gunicorn(folder: Path, worker: str) -> Iterator[str]:
    port, config = free_port(), folder / "gunicorn.py"
    config.touch()  # else it would take the service's own
    command = [SERVICE_PYTHON, "-m", "gunicorn", "-c", str(config), "-k", worker, "-w", "1"]
    command += ["-b", f"127.0.0.1:{port}", "--keep-alive", "30", "--threads", "4"]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-control-socket", "tests.files.gunicorn_app:app"],
        cwd=ROOT,
        env={**os.environ, "TEST_FOLDER": str(folder)},
    )

    def listens() -> bool:
        assert process.poll() is None, "gunicorn ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        wait_for(listens, 20, "gunicorn")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("worker", ["services.server.gevent_worker.Worker", "gthread"])
def test_answers_keep_their_frames_on_one_connection(tmp_path: Path, worker: str) -> None:
    cache = local_cache(tmp_path)
    with gunicorn(tmp_path, worker) as url, requests.Session() as session:

        def ask(path: str, method: str = "GET", **headers: str) -> requests.Response:
            return session.request(method, url + path, headers=headers, timeout=10)

        for data in (SMALL, LARGE):
            path = cache.adopt(data, Kind.IMAGE, base=BASE).removeprefix(BASE)
            size = len(data)
            whole = ask(path)
            assert (whole.status_code, whole.content) == (200, data)
            assert whole.headers["Content-Length"] == str(size)
            assert "Transfer-Encoding" not in whole.headers
            head = ask(path, "HEAD")
            assert (head.content, head.headers["Content-Length"]) == (b"", str(size))
            part = ask(path, Range=f"bytes=7-{size - 9}")
            assert (part.status_code, part.content) == (206, data[7 : size - 8])
            assert ask(path, Range=f"bytes={size}-").status_code == 416
            known = ask(path, **{"If-None-Match": whole.headers["ETag"]})
            assert (known.status_code, known.content) == (304, b"")
            assert ask(path, Range="bytes=-5").content == data[-5:]
            assert whole.headers["Access-Control-Allow-Origin"] == "*"
