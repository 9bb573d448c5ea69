"""The same door under gevent: cooperative, and just as strict about time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import servers

PROGRAM = """
from gevent import monkey; monkey.patch_all()
import pathlib, socket, sys, threading
import gevent
from services.core.errors import InvalidRequest
from services.files.addresses import AllowList
from services.files.download import Limits
from services.files.fetch import Fetcher
from tests_fetch_servers import Authority, Server, answer, dripping

authority = Authority(pathlib.Path(sys.argv[1]))
with Server(answer(b"x" * 500_000), authority.server_context("localhost")) as server:
    fetcher = Fetcher(allow=AllowList([f"localhost:{server.port}"]), ca_file=authority.ca_file)
    assert len(fetcher.fetch(f"https://localhost:{server.port}/").data) == 500_000

def drip(listener):
    connection, _ = listener.accept()
    connection.sendall(b"\\x16\\x03\\x03\\x3f\\xff\\x02")
    try:
        while True:
            connection.sendall(b"\\0")
            gevent.sleep(0.02)
    except OSError:
        connection.close()

ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)

listener = socket.create_server(("127.0.0.1", 0))
dripper, ticker = gevent.spawn(drip, listener), gevent.spawn(tick)
port = listener.getsockname()[1]
fetcher = Fetcher(
    allow=AllowList([f"127.0.0.1:{port}"]),
    ca_file=authority.ca_file,
    limits=Limits(seconds=0.5),
)
try:
    fetcher.fetch(f"https://127.0.0.1:{port}/")
except InvalidRequest as problem:
    assert "too long" in problem.message, problem.message
else:
    raise AssertionError("a dripping handshake came through")
assert ticks > 5, ticks  # other greenlets ran meanwhile
dripper.join(5)
assert dripper.dead

context = authority.server_context("127.0.0.1")
with Server(answer(bytes(500_000)), context) as server, dripping(server.port, 20_000) as port:
    fetcher = Fetcher(
        allow=AllowList([f"127.0.0.1:{port}"]),
        ca_file=authority.ca_file,
        limits=Limits(seconds=1.0),
    )
    before = ticks
    try:
        fetcher.fetch(f"https://127.0.0.1:{port}/")
    except InvalidRequest as problem:
        assert "too long" in problem.message, problem.message
    else:
        raise AssertionError("a dripping record came through")
    assert ticks - before > 5
    assert server.requests

release = threading.Event()
def resolver(host, port):
    release.wait(10)
    return ["1.1.1.1"]
before = ticks
try:
    Fetcher(resolver=resolver, limits=Limits(seconds=0.3)).fetch("http://slow.example/")
except InvalidRequest as problem:
    assert "too long" in problem.message
else:
    raise AssertionError("a hanging lookup came through")
assert ticks - before > 5
release.set()
ticker.kill()
print("fine")
"""


def test_door_is_cooperative_and_punctual_under_gevent(tmp_path: Path) -> None:
    program = PROGRAM.replace("tests_fetch_servers", servers.__name__)
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "fine\n"
