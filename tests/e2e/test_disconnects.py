"""Clients that leave, workers that die, services that stop: nothing is left behind."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
import requests

from emulators.openai_compat import OpenAICompat
from tests.gateway import KEY, GatewayProcess, custom, question, wait_for

STREAMS = 200


def open_stream(port: int, text: str) -> socket.socket:
    """A raw streaming request; the caller reads or closes."""
    body = json.dumps(question(text, stream=True)).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + KEY.encode()
        + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    return client


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


def open_descriptors(process: GatewayProcess) -> int:
    return sum(psutil.Process(pid).num_fds() for pid in process.workers())


def busy(process: GatewayProcess, upstream: OpenAICompat) -> dict[int, int]:
    """How many upstream connections each worker has."""
    return {
        pid: sum(
            bool(c.raddr) and c.raddr.port == upstream.port
            for c in psutil.Process(pid).net_connections("tcp")
        )
        for pid in process.workers()
    }


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def own_gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A gateway and an upstream of this module's own, since others' traffic would disturb."""
    with OpenAICompat() as upstream:
        settings = custom(upstream.base_url) | {
            "process_threads": 400,
            "server": {"worker_class": request.param, "commit_window": 1},
        }
        folder = tmp_path_factory.mktemp(f"disconnects-{request.param}")
        with GatewayProcess(folder, settings) as process:
            yield process, upstream


def test_upstreams_of_clients_that_left_are_closed_within_two_seconds(
    own_gateway: tuple[GatewayProcess, OpenAICompat],
) -> None:
    process, upstream = own_gateway
    upstream.reset()
    process.post(question("hi"))
    before = open_descriptors(process)
    silent = [open_stream(process.port, "#silent:30") for _ in range(STREAMS // 4)]
    leaving = [open_stream(process.port, "#tps:4 #long:400") for _ in range(STREAMS // 4)]
    staying = [open_stream(process.port, "#tps:4 #long:20") for _ in range(STREAMS // 2)]
    wait_for(lambda: sum(e.bytes_sent > 0 for e in upstream.calls) > STREAMS, 20, "all streams")
    time.sleep(1)
    left_at = time.monotonic()
    for client in silent + leaving:
        client.close()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(read_to_end, staying))
    assert all(answer.count(b"data: [DONE]") == 1 for answer in answers)
    aborted = wait_for(
        lambda: (
            (found := [e for e in upstream.calls if e.aborted_at]) and len(found) >= 100 and found
        ),
        10,
        "the upstream connections' end",
    )
    assert len(aborted) == STREAMS // 2
    assert max(e.aborted_at for e in aborted) - left_at < 2.0
    for client in staying:
        client.close()
    wait_for(lambda: not any(e.active for e in upstream.calls), 5, "no active exchange")
    # at most the pooled upstream connections of the streams that ended well are kept
    wait_for(lambda: open_descriptors(process) <= before + STREAMS // 2 + 4, 10, "closed sockets")
    if "gthread" not in str(process.folder):
        (worker,) = process.workers()
        assert psutil.Process(worker).num_threads() < 20


def test_silent_whole_answer_is_given_up_with_its_client(
    own_gateway: tuple[GatewayProcess, OpenAICompat],
) -> None:
    process, upstream = own_gateway
    upstream.reset()
    body = json.dumps(question("#slow-headers:30")).encode()
    client = socket.create_connection(("127.0.0.1", process.port), timeout=10)
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
    )
    wait_for(lambda: upstream.calls, 5, "the upstream call")
    left_at = time.monotonic()
    client.close()
    wait_for(lambda: upstream.calls[-1].aborted_at, 5, "the upstream connection's end")
    assert (upstream.calls[-1].aborted_at or 0) - left_at < 2.0


def open_on_all_workers(
    process: GatewayProcess, upstream: OpenAICompat, closing: contextlib.ExitStack
) -> list[socket.socket]:
    """Streams, until every worker serves two at least."""
    streams: list[socket.socket] = []
    while len(streams) < 12 or min(busy(process, upstream).values()) < 2:
        assert len(streams) < 300, "all streams go to one worker"
        streams.append(closing.enter_context(open_stream(process.port, "#tps:5 #long:40")))
        time.sleep(0.01)
    return streams


def test_killed_worker_leaves_the_others_and_the_store_alone(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    settings = custom(upstream.base_url) | {"process_workers": 2}
    with GatewayProcess(tmp_path, settings) as process, contextlib.ExitStack() as closing:
        store = redis.Redis(unix_socket_path=str(tmp_path / "data" / "store" / "valkey.sock"))
        closing.callback(store.close)
        store.set("kept", "yes")
        streams = open_on_all_workers(process, upstream, closing)
        serving = busy(process, upstream)
        victim = max(serving, key=lambda pid: serving[pid])
        os.kill(victim, signal.SIGKILL)
        answers = []
        for client in streams:
            with contextlib.suppress(ConnectionError):
                answers.append(read_to_end(client))
        complete = [answer for answer in answers if b"data: [DONE]" in answer]
        assert len(complete) >= 2, "the other worker's streams end well"
        assert all(b'finish_reason":"stop"' in answer for answer in complete)
        wait_for(lambda: len(process.workers()) == 2, 15, "a new worker")
        assert set(serving) - {victim} <= set(process.workers())
        assert store.get("kept") == b"yes"
        assert process.post(question("hi")).status_code == 200


def test_stop_lets_open_streams_finish(upstream: OpenAICompat, tmp_path: Path) -> None:
    settings = custom(upstream.base_url) | {"server": {"graceful_timeout": 15}}
    process = GatewayProcess(tmp_path, settings).start()
    store = tmp_path / "data" / "store"
    client = open_stream(process.port, "#tps:5 #long:15")
    wait_for(lambda: upstream.calls and upstream.calls[-1].bytes_sent > 0, 10, "the stream")
    done: list[bytes] = []
    reader = threading.Thread(target=lambda: done.append(read_to_end(client)))
    reader.start()
    assert process.stop() == 0
    reader.join(10)
    client.close()
    assert b"data: [DONE]" in done[0]
    assert store.stat().st_mode & 0o077 == 0
    wait_for(
        lambda: (
            not any(
                str(store) in " ".join(p.info["cmdline"] or ())
                for p in psutil.process_iter(["cmdline"])
            )
        ),
        10,
        "the embedded store's end",
    )


def test_stop_does_not_wait_for_idle_connections(upstream: OpenAICompat, tmp_path: Path) -> None:
    process = GatewayProcess(tmp_path, custom(upstream.base_url)).start()
    with requests.Session() as session:
        assert session.get(f"{process.url}/health", timeout=10).status_code == 200
        assert process.stop(patience=10) == 0
