"""The transport under gevent: all its tests again, and nobody waits for another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALL_TESTS = """
from gevent import monkey; monkey.patch_all()
import sys, pytest
sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]]))
"""

CROWD = """
from gevent import monkey; monkey.patch_all()
import time
import gevent
from services.transport import Transport, UpstreamRequest
from tests.transport.server import CHUNKED, LAST_CHUNK, ScriptedServer, chunk

def script(peer):
    peer.request()
    peer.send(CHUNKED)
    for _ in range(5):
        gevent.sleep(0.1)
        peer.send(chunk(b"token"))
    peer.send(LAST_CHUNK)

def stream(number):
    with transport.open(UpstreamRequest("GET", server.url)) as response:
        silences = 0
        while (piece := response.read(0.03)) != b"":
            silences += piece is None
    return silences

transport = Transport()
with ScriptedServer(script) as server:
    started = time.monotonic()
    streams = [gevent.spawn(stream, number) for number in range(100)]
    gevent.joinall(streams, timeout=10, raise_error=True)
    took = time.monotonic() - started
    assert all(stream.value >= 5 for stream in streams), [stream.value for stream in streams]
    assert took < 10, took  # one after the other they would need 50 s
transport.close()
print("fine")
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tests", ["bodies", "connections", "failures", "secure"])
def test_the_same_holds_in_a_patched_process(tests: str) -> None:
    assert " passed" in run(ALL_TESTS, str(Path(__file__).with_name(f"test_{tests}.py")))


def test_hundred_streams_share_one_thread() -> None:
    assert "fine" in run(CROWD)
