"""Symptoms of running the service: hangs, waste, lost settings, malformed requests."""

from __future__ import annotations

import ast
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from emulators.backend_api import BackendApi
from services.config import Settings
from tests.gateway import ROOT, GatewayProcess, question, wait_for

from .support import PNG, Told, alice, ask, draw, gateway, picture, read

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def hasty_bridge(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway with little patience, several prefixes, and conversations to delete."""
    with gateway(
        tmp_path_factory.mktemp("hasty"),
        upstream_of_file,
        upstream_api_prefix=["one", "two", "three"],
        need_delete_conversation_after_response=True,
        process_threads=64,
        server={"first_byte_timeout": 1.5, "idle_timeout": 1.5, "total_timeout": 4},
    ) as process:
        yield process


@pytest.fixture(scope="module")
def old_fashioned(
    upstream_of_file: BackendApi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway with a file as old services wrote it, and hardly any room."""
    with gateway(
        tmp_path_factory.mktemp("old"),
        upstream_of_file,
        upstream_api_prefix="alpha",
        bot_mode={"enabled": "true", "enabled_markdown_image_output": "true"},
        refresh_ToAccess={"steam_sleep_time": "0.1"},
        files={"generated_ttl": 2.5, "total_limit_mb": 0.05},
        no_such_key="x",
    ) as process:
        yield process


SILENCES = (
    "#plain[headers_delay=30]",
    "#silence[seconds=30]",
    "#silence[seconds=30,transport=socket_flat]",
    "#long[delay=0.2]",
)


def test_upstream_that_hangs_is_given_up(hasty_bridge: GatewayProcess, web: BackendApi) -> None:
    cases = [(silence, stream) for silence in SILENCES for stream in (True, False)]
    with ThreadPoolExecutor(len(cases)) as pool:
        told = pool.map(lambda c: ask(hasty_bridge, c[0], alice(web), stream=c[1]), cases)
        for (silence, stream), answer in zip(cases, told, strict=True):
            assert answer.error is not None, silence
            assert answer.error["code"] == "upstream_timeout", silence
            assert answer.seconds < 15
            assert answer.finish is None
            assert not answer.done
            assert stream or answer.status == 503


def test_connections_to_the_upstream_are_used_again(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    ask(bridge, "Hi", alice(web))
    before = connections(web)
    for _ in range(10):
        assert ask(bridge, "Hi", alice(web)).status == 200
    assert connections(web) <= before + 1


def test_prefixes_take_turns_and_a_string_is_one_prefix(
    hasty_bridge: GatewayProcess, old_fashioned: GatewayProcess, web: BackendApi
) -> None:
    for _ in range(6):
        assert ask(hasty_bridge, "Hi", alice(web), model="gpt-3.5-turbo").status == 200
    used = [call.prefix for call in web.calls("conversation")]
    assert sorted(used) == sorted(["/one", "/two", "/three"] * 2)
    assert used[:3] == used[3:]
    assert ask(old_fashioned, "Hi", alice(web), stream=False).status == 200
    assert web.calls("conversation")[-1].prefix == "/alpha"


def test_thinking_model_on_the_images_route_is_no_500(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    for model in ("o1-preview", "o1-mini"):
        reply = draw(bridge, alice(web), "#dalle 8x8", model=model)
        assert reply.status_code == 200
        assert reply.json()["data"][0]["url"].startswith(bridge.url)


def connections(web: BackendApi) -> int:
    """How many clients' connections the upstream has open."""
    port = int(web.url.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in found)


QUIET = (
    "#plain[headers_delay=3]",
    "#silence[seconds=3]",
    "#silence[seconds=3,transport=socket_flat]",
)


def test_silent_streams_cost_neither_cpu_nor_threads(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    (pid,) = bridge.workers()
    worker = psutil.Process(pid)
    ask(bridge, "Hi", alice(web))
    threads = worker.num_threads()
    with ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(ask, bridge, said, alice(web)) for said in QUIET * 20]
        wait_for(lambda: web.count("conversation") >= 60, 10, "all streams")
        used, began = sum(worker.cpu_times()[:2]), time.monotonic()
        time.sleep(1.5)
        share = (sum(worker.cpu_times()[:2]) - used) / (time.monotonic() - began)
        more = worker.num_threads() - threads
        told = [future.result() for future in asked]
    assert {t.text for t in told} == {"Hello world!"}
    assert share < 0.2
    assert more < 15


def test_answer_is_not_held_up_at_its_end(bridge: GatewayProcess, web: BackendApi) -> None:
    for stream in (True, False):
        told = [ask(bridge, "Hi", alice(web), stream=stream) for _ in range(7)]
        assert min(t.seconds for t in told) < 0.5


def test_slow_client_slows_its_upstream_instead_of_filling_memory(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    size = 12 * MEGABYTE
    entry = {"scenario": "long", "size": size, "events": 6}
    web.script(entry)
    body = json.dumps(question("Hi", model="gpt-4-s", stream=True)).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.settimeout(20)
        client.connect(("127.0.0.1", bridge.port))
        head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Authorization: Bearer {alice(web)}\r\n\r\n".encode() + body)
        wait_for(lambda: web.calls("conversation"), 10, "the upstream call")
        [call] = web.calls("conversation")
        wait_for(lambda: call.exchange.bytes_sent > 2 * MEGABYTE, 10, "the answer's begin")
        time.sleep(1)
        assert call.exchange.active
        received = b"".join(iter(lambda: client.recv(MEGABYTE), b""))
    assert len(received) > size
    assert received.rstrip().endswith(b"data: [DONE]")


def test_pictures_of_one_second_do_not_overwrite_each_other(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    with ThreadPoolExecutor(8) as pool:
        sizes = [f"{n}x{n}" for n in range(10, 18)]
        replies = list(pool.map(lambda size: draw(bridge, alice(web), f"#dalle {size}"), sizes))
    links = [reply.json()["data"][0]["url"] for reply in replies]
    assert len(set(links)) == len(sizes)
    made = {file.content for file in web.state.files.values()}
    for link, size in zip(links, sizes, strict=True):
        content = requests.get(link, timeout=10).content
        assert int.from_bytes(content[16:20], "big") == int(size.partition("x")[0])
        assert content in made, "a picture is kept as it came, not encoded anew"


def test_disk_is_cleaned_by_age_and_by_size(old_fashioned: GatewayProcess, web: BackendApi) -> None:
    with ThreadPoolExecutor(6) as pool:
        said = "#dalle[width=700,height=700]"
        told = list(
            pool.map(lambda _: ask(old_fashioned, said, alice(web), stream=False), range(12))
        )
    links = [link for t in told for link in t.links]
    assert len(links) == 12
    kept = [path.stat().st_size for path in (old_fashioned.folder / "images").rglob("i*.png")]
    assert kept
    assert sum(kept) <= 0.05 * MEGABYTE + 7 * max(kept)
    assert len(kept) < len(links)
    wait_for(
        lambda: {requests.get(link, timeout=5).status_code for link in links} == {404},
        10,
        "the end of their time",
    )
    [fresh] = ask(old_fashioned, "#dalle 8x8", alice(web), stream=False).links
    assert requests.get(fresh, timeout=10).status_code == 200


def test_delete_after_the_response_deletes_and_files_still_come(
    hasty_bridge: GatewayProcess, web: BackendApi
) -> None:
    web.script("sandbox", {"endpoint": "hide", "status": 500})
    told = ask(hasty_bridge, "Hi", alice(web))
    assert told.linked == "Get [file](URL.csv) now"
    assert "otter" in requests.get(told.links[0], timeout=10).text
    wait_for(lambda: web.count("hide") == 2, 15, "the second try to delete")
    order = [call.endpoint for call in web.log if call.endpoint != "blob_get"]
    assert order == ["conversation", "interpreter_download", "hide", "hide"]
    [asked] = web.calls("conversation")
    assert asked.json["history_and_training_disabled"] is False
    wait_for(lambda: web.state.conversations[asked.conversation_id].hidden, 5, "the deletion")


def test_settings_mean_what_they_say_however_they_are_spelt(
    old_fashioned: GatewayProcess, web: BackendApi, tmp_path: Path
) -> None:
    bot, pause = {"enabled": True, "enabled_plugin_output": "no"}, {"stream_sleep_time": 0.1}
    with gateway(tmp_path, web, bot_mode=bot, refresh_ToAccess=pause) as newer:
        for process in (old_fashioned, newer):
            slow, fast = (ask(process, "#code", alice(web), stream=s) for s in (True, False))
            assert slow.text == fast.text == "It is 1."
            assert slow.seconds > 0.5
            assert fast.seconds < slow.seconds


def test_unknown_key_is_told_at_the_start(old_fashioned: GatewayProcess) -> None:
    warnings = [line for line in old_fashioned.log_text().splitlines() if "WARNING" in line]
    assert any("no_such_key" in line for line in warnings)
    assert not any("steam_sleep_time" in line for line in warnings)


def test_documented_defaults_are_the_real_ones() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    real = Settings()
    for key in (
        "log_level",
        "need_delete_conversation_after_response",
        "use_pandora_file_server",
        "need_log_to_file",
    ):
        row = re.search(rf"^\| `{key}` \|[^|]+\| `([^`]+)`", page, re.MULTILINE)
        assert row is not None
        assert json.loads(row[1]) == getattr(real, key)


MALFORMED: dict[str, Any] = {
    "no messages": {"messages": []},
    "null messages": {"messages": None},
    "messages as text": {"messages": "Hi"},
    "null model": {"model": None},
    "no model": {"model": ""},
    "model as number": {"model": 4},
    "unknown role": {"messages": [{"role": "wizard", "content": "Hi"}]},
    "no role": {"messages": [{"content": "Hi"}]},
    "content as number": {"messages": [{"role": "user", "content": 7}]},
    "content as object": {"messages": [{"role": "user", "content": {"type": "text"}}]},
    "null content": {"messages": [{"role": "user", "content": None}]},
    "part without text": {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    "part of unknown type": {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
    "part as number": {"messages": [{"role": "user", "content": [7]}]},
    "picture without address": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "picture for gpt-3.5": {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": picture()}],
    },
    "broken picture": {"messages": [{"role": "user", "content": picture(PNG[:40])}]},
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_request_is_a_400_and_goes_nowhere(
    bridge: GatewayProcess, web: BackendApi, what: str
) -> None:
    for stream in (True, False):
        body = question("Hi", model="gpt-4-s", stream=stream) | MALFORMED[what]
        headers = {"Authorization": f"Bearer {alice(web)}"}
        told: Told = read(bridge.post(body, headers=headers))
        assert told.status == 400
        assert set(told.error or {}) == {"message", "type", "param", "code"}
    assert web.log == []


def test_list_content_reaches_gpt_3_5_as_one_text(bridge: GatewayProcess, web: BackendApi) -> None:
    said = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]
    assert ask(bridge, said, alice(web), model="gpt-3.5-turbo").status == 200
    sent = web.calls("conversation")[-1].json["messages"][-1]["content"]
    assert sent == {"content_type": "text", "parts": ["One\ntwo"]}


@pytest.mark.parametrize("profile", ["normal", "bot", "bot+markdown_image", "bot+plain_image"])
def test_images_route_and_chat_render_the_same(
    bridge: GatewayProcess, web: BackendApi, profile: str
) -> None:
    headers = {"X-Output-Profile": profile}
    told = ask(bridge, "#dalle", alice(web), headers=headers)
    reply = bridge.post(
        {"model": "gpt-4-s", "prompt": "#dalle"},
        "/v1/images/generations",
        headers={"Authorization": f"Bearer {alice(web)}", **headers},
    )
    drawn = told._replace(text=reply.json()["reply"])
    assert drawn.linked == told.linked


def test_no_module_has_grown_into_the_whole_program() -> None:
    sizes = {p: len(p.read_text().splitlines()) for p in (ROOT / "services").rglob("*.py")}
    assert max(sizes.values()) < sum(sizes.values()) / 10
    renderers = [
        path
        for path in sizes
        if path.name != "__init__.py"
        and any(
            isinstance(node, ast.FunctionDef) and node.name == "render"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert [path.name for path in renderers] == ["render.py"]
