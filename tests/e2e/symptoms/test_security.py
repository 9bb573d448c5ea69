"""Symptoms that let others in or let secrets out."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import redis
import requests

from emulators.backend_api import BackendApi
from tests.fetch.servers import Authority, Server, answer, raw, redirect
from tests.gateway import KEY, ROOT, SERVICE_PYTHON, GatewayProcess, free_port

from .support import PNG, alice, ask, data_url, draw, picture, settings_for, watched

MEGABYTE = 1024 * 1024
PRIVATE_WORDS = "a very private question"


@pytest.fixture(scope="module")
def inner() -> Iterator[Server]:
    """What a caller must not reach through us."""
    with Server(answer(PNG, "Content-Type: image/png")) as server:
        yield server


@pytest.fixture(scope="module")
def outer(inner: Server) -> Iterator[Server]:
    """An allowed host that leads to the inner one."""
    with Server(redirect(f"http://127.0.0.1:{inner.port}/picture.png")) as server:
        yield server


@pytest.fixture(scope="module")
def endless() -> Iterator[Server]:
    """An allowed host whose file is far too large."""

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        for _ in range(64):
            connection.sendall(bytes(MEGABYTE))

    with Server(talk) as server:
        yield server


@pytest.fixture(scope="module")
def bridge(
    upstream_of_file: BackendApi,
    inner: Server,
    outer: Server,
    endless: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("bridge")
    allowed = [f"127.0.0.1:{server.port}" for server in (outer, endless)]
    allowed.append(f"10.255.255.255:{inner.port}")  # so that not the port alone keeps it safe
    settings = settings_for(
        upstream_of_file,
        log_level="DEBUG",
        key_for_gpts_info=upstream_of_file.accounts["alice"].access_token,
        files={"fetch_max_mb": 1, "fetch_allow": allowed},
        server={"max_body_mb": 4},
    )
    with GatewayProcess(folder, settings, **watched(folder)) as process:
        yield process


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for path in [ROOT / "app.py", ROOT / "wsgi.py", *(ROOT / "services").rglob("*.py")]:
        yield from ((path, node) for node in ast.walk(ast.parse(path.read_text())))


POISON = {
    "call": b"__import__('pathlib').Path({mark!r}).touch()",
    "repr": b"{{'gizmo': {{'id': open({mark!r}, 'w').name}}}}",
    "pickle": b"cbuiltins\nexec\n(Vopen({mark!r}, 'w')\ntR.",
    "shape": b'{{"gizmo": {{"id": ["{mark}"]}}}}',
}


@pytest.mark.parametrize("poison", POISON)
def test_poisoned_cache_value_is_never_run(
    bridge: GatewayProcess, web: BackendApi, tmp_path: Path, poison: str
) -> None:
    mark = tmp_path / "run"
    name = f"g-poisoned{poison}"
    value = POISON[poison].decode().format(mark=str(mark)).encode()
    path = bridge.folder / "data" / "store" / "valkey.sock"
    with redis.Redis(unix_socket_path=str(path)) as store:
        key = f"causeway:cache:backend_api:gizmo:{name}"
        store.set(key, value)
        told = ask(bridge, "Hi", alice(web), model=f"gpt-4-gizmo-{name}")
        assert (told.status, told.text) == (200, "Hello world!")
        assert json.loads(bytes(store.get(key) or b""))["gizmo"]["id"] == name
    assert not mark.exists()
    [call] = web.calls("conversation")
    assert call.json["conversation_mode"]["gizmo_id"] == name


def test_no_code_of_ours_can_run_data() -> None:
    """The same symptom in the source: no way to run text."""
    names = {"eval", "exec", "compile", "__import__"}
    modules = {"pickle", "marshal", "shelve", "dill", "yaml"}
    for path, node in sources():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in names, path
        if isinstance(node, ast.Import):
            assert modules.isdisjoint(alias.name for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            assert node.module not in modules, path


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil.csv",
        "..\\..\\evil.csv",
        "/etc/cron.d/evil.csv",
        "%2e%2e%2f%2e%2e%2fevil.csv",
        "....//....//evil.csv",
        "evil.csv/../../..",
        "\x00evil.csv",
    ],
)
def test_download_name_of_the_upstream_leads_to_no_other_folder(
    bridge: GatewayProcess, web: BackendApi, name: str
) -> None:
    web.script({"scenario": "sandbox_traversal", "name": name})
    told = ask(bridge, "Hi", alice(web))
    [link] = told.links
    reply = requests.get(link, timeout=10)
    assert reply.status_code == 200
    assert "otter" in reply.text
    shown = unquote(reply.headers["Content-Disposition"].partition("filename")[2])
    assert not re.search(r"[/\\\x00]|\.\.", shown)
    written = [p for p in bridge.folder.parent.rglob("*") if "evil" in p.name]
    assert written == []


@pytest.mark.parametrize("area", ["files", "images"])
@pytest.mark.parametrize(
    "path", ["../config.json", "..%2fconfig.json", "%2e%2e/config.json", "/etc/passwd", "..\\x", ""]
)
def test_path_of_a_caller_leads_to_no_other_folder(
    bridge: GatewayProcess, web: BackendApi, area: str, path: str
) -> None:
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=10) as client:
        client.sendall(
            f"GET /{area}/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        reply = b"".join(iter(lambda: client.recv(65536), b""))
    assert reply.split(b" ", 2)[1] == b"404"
    assert b"auth" not in reply
    assert b"root:" not in reply


def test_tokens_and_questions_are_in_no_log(bridge: GatewayProcess, web: BackendApi) -> None:
    token, refresh = alice(web), web.accounts["bob"].refresh_token
    web.script({"scenario": "dalle"}, {"scenario": "sandbox"}, "error_500", "cut_event")
    for _ in range(4):
        ask(bridge, PRIVATE_WORDS, token)
    ask(bridge, picture(), token)
    ask(bridge, PRIVATE_WORDS, refresh)
    ask(bridge, PRIVATE_WORDS, "rt-of-nobody-at-all")
    ask(bridge, PRIVATE_WORDS, token, model="gpt-4-gizmo-g-quiet")
    draw(bridge, token, PRIVATE_WORDS)
    written = bridge.log_text() + (bridge.folder / "log" / "access.log").read_text()
    assert "DEBUG" in written
    assert "path=/v1/chat/completions" in written
    secrets = [refresh, "rt-of-nobody-at-all", KEY, PRIVATE_WORDS, "sig="]
    for account in web.accounts.values():
        secrets += account.access_tokens
    assert [secret[:12] for secret in secrets if secret in written] == []


def test_action_of_a_third_party_waits_for_leave(bridge: GatewayProcess, web: BackendApi) -> None:
    for scene in ("action_json", "action_sse"):
        told = ask(bridge, f"#{scene}", alice(web))
        assert "操作需要确认" in told.text
        assert "weather.example.com" in told.text
    assert web.count("conversation") == 2


def test_upstream_whose_certificate_nobody_vouches_for_gets_no_request(tmp_path: Path) -> None:
    """Certificates are always checked, and nothing in the source can switch that off."""
    tls = Authority(tmp_path).server_context("localhost")
    with Server(raw(b""), tls) as unknown:
        settings = {
            "auth": {"passthrough": True},
            "upstream_base_url": f"https://localhost:{unknown.port}",
        }
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            told = ask(process, "Hi", "eyJ-some-token")
        assert (told.status, (told.error or {})["code"]) == (502, "upstream_unreachable")
        assert unknown.connections >= 1
        assert unknown.requests == []
    for path, node in sources():
        assert not switches_verification_off(node), path


def switches_verification_off(node: ast.AST) -> bool:
    switches = {"verify", "verify_ssl", "check_hostname"}
    match node:
        case ast.keyword(arg=name, value=ast.Constant(value=False)):
            return name in switches
        case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Constant(value=False)):
            return name in switches
        case ast.Attribute(attr=name):
            return name in ("CERT_NONE", "_create_unverified_context")
        case _:
            return False


def forbidden_urls(port: int) -> list[str]:
    return [
        f"http://127.0.0.1:{port}/picture.png",
        f"http://localhost:{port}/picture.png",
        f"http://2130706433:{port}/picture.png",
        f"http://0x7f.1:{port}/picture.png",
        f"http://[::1]:{port}/picture.png",
        f"http://[::ffff:127.0.0.1]:{port}/picture.png",
        f"http://0.0.0.0:{port}/picture.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
    ]


def part_of(kind: str, url: str) -> list[dict[str, Any]]:
    if kind == "image_url":
        return [{"type": "image_url", "image_url": {"url": url}}]
    return [{"type": "file", "file": {"file_url": url, "filename": "x.png"}}]


@pytest.mark.parametrize("kind", ["image_url", "file_url"])
def test_url_of_a_caller_reaches_no_private_address(
    bridge: GatewayProcess, web: BackendApi, inner: Server, outer: Server, kind: str
) -> None:
    urls = [*forbidden_urls(inner.port), f"http://127.0.0.1:{outer.port}/redirect"]
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda url: ask(bridge, part_of(kind, url), alice(web)), urls))
    assert dict(zip(urls, [t.status for t in told], strict=True)) == dict.fromkeys(urls, 400)
    assert all(t.error and t.error["param"] for t in told)
    assert outer.connections > 0
    assert inner.connections == 0
    dialled = (bridge.folder / "seen.txt").read_text()
    assert f"('127.0.0.1', {outer.port})" in dialled
    assert not re.search(rf"169\.254\.|10\.0\.0\.1|192\.168\.|, {inner.port}\b", dialled)
    assert web.log == []


def test_input_that_is_too_large_is_refused_before_it_is_kept(
    bridge: GatewayProcess, web: BackendApi, endless: Server
) -> None:
    large = bytes(2 * MEGABYTE)
    said: dict[str, Any] = {
        "base64": picture(large),
        "file": [{"type": "file", "file": {"file_data": data_url(large, "text/plain")}}],
        "url": part_of("image_url", f"http://127.0.0.1:{endless.port}/x.png"),
        "body": "x" * (5 * MEGABYTE),
    }
    for name, content in said.items():
        for stream in (True, False):
            told = ask(bridge, content, alice(web), stream=stream)
            assert told.status in (400, 413), name
            assert told.error is not None, name
    assert web.log == []


def test_names_of_pictures_and_files_cannot_be_guessed(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: ask(bridge, "#dalle_two 8x8", alice(web)), range(4)))
    names = [link.rpartition("/")[2] for t in told for link in t.links]
    assert len(set(names)) == 8
    assert all(re.fullmatch(r"i[\w-]{32}\.png", name) for name in names)
    assert not any(re.search(r"20\d{6}", name) for name in names)
    assert len({name[1:9] for name in names}) == 8
    for guess in ("", names[0][:-5] + "A.png", "image_20240211101500.png", names[0][:12]):
        assert requests.get(f"{bridge.url}/images/{guess}", timeout=10).status_code == 404


def test_uploaded_file_is_its_owners_alone(bridge: GatewayProcess, web: BackendApi) -> None:
    """What a caller keeps here has no public name at all."""
    at = f"{bridge.url}/v1/files"
    owner, other = ({"Authorization": f"Bearer {a.access_token}"} for a in web.accounts.values())
    sent = requests.post(
        at,
        headers=owner,
        files={"file": ("notes.txt", b"mine")},
        data={"purpose": "user_data"},
        timeout=10,
    )
    identity = sent.json()["id"]
    assert requests.get(f"{at}/{identity}/content", headers=owner, timeout=10).text == "mine"
    assert requests.get(f"{at}/{identity}/content", headers=other, timeout=10).status_code == 404
    assert requests.get(f"{at}/{identity}/content", timeout=10).status_code == 401
    for area in ("files", "images"):
        assert requests.get(f"{bridge.url}/{area}/{identity}", timeout=10).status_code == 404


def test_prefix_is_not_the_only_protection(web: BackendApi, tmp_path: Path) -> None:
    settings = settings_for(web, backend_container_api_prefix="hidden") | {"auth": {"keys": [KEY]}}
    with GatewayProcess(tmp_path, settings) as process:
        wrong = {"Authorization": "Bearer sk-wrong-0000000000"}
        at = "/hidden/v1/chat/completions"
        for headers in (wrong, {"Authorization": ""}):
            assert process.post({}, at, headers=headers).status_code == 401
        for path in ("/v1/models", "/v1/chat/completions", "/nowhere", "/hidden/v1/nowhere"):
            reply = requests.get(process.url + path, timeout=10)
            assert reply.status_code == 404
            assert reply.json()["error"]["code"] == "not_found"
        assert "werkzeug" not in reply.headers.get("Server", "").lower()
        assert "gunicorn" in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert web.log == []


def test_service_without_keys_is_not_opened_to_the_network(tmp_path: Path) -> None:
    """Nor does its container run as root."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"upstream_base_url": "http://127.0.0.1:9"}))
    command = [SERVICE_PYTHON, "-m", "services.server.start", "--host", "0.0.0.0"]
    command += ["--port", str(free_port()), "--config", str(config), "--data", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert "auth.keys" in ended.stderr
    steps = (ROOT / "Dockerfile").read_text().splitlines()
    [user] = [number for number, step in enumerate(steps) if step.startswith("USER ")]
    assert steps[user] not in ("USER root", "USER 0")
    assert not any(step.startswith("RUN ") for step in steps[user:])


def test_file_that_one_account_brought_is_not_used_for_another(
    bridge: GatewayProcess, web: BackendApi
) -> None:
    said = picture(PNG + b"shared")
    for account, uploads in (("alice", 1), ("alice", 1), ("bob", 2), ("alice", 2), ("bob", 2)):
        assert ask(bridge, said, web.accounts[account].access_token).status == 200
        assert web.count("file_create") == uploads
        sent = web.calls("conversation")[-1]
        [attached] = sent.json["messages"][-1]["metadata"]["attachments"]
        assert web.state.files[attached["id"]].owner == sent.account == account
    assert {call.exchange.status for call in web.calls("file_uploaded")} == {200}
