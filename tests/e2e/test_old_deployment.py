"""A caller and an operator who come from a backend-to-api service: its config.json, its folders and
its tokens, in the container as docker-compose.yml starts it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests

from emulators.backend_api import BackendApi
from emulators.backend_api_assets import CSV
from tests.container import IMAGE_USER, UID, WRITTEN, Container, command, python_for_all
from tests.gateway import KEY, RedisServer, question
from tests.old_files import VERSIONS

PNG = b"\x89PNG\r\n\x1a\n"
OLD_LINKS = {
    "/images/image_20231217044452.png": PNG + b"old",
    "/files/20240102030405_报告 1.csv": b"1,2\n",
}
WITHOUT_REFRESH = ("PAN",)


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def app() -> Iterator[Path]:
    """A place for containers, which any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="causeway-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def old_settings(version: str, web: BackendApi, url: str) -> dict[str, Any]:
    """The predecessor's own file, its upstream, token exchange and public address here."""
    text = json.dumps(VERSIONS[version], ensure_ascii=False)
    text = re.sub(r"https://(mirror|refresh)\.example\.com", web.url, text)
    settings: dict[str, Any] = json.loads(text.replace("http://1.2.3.4:50011", url))
    return settings


def container(
    folder: Path, redis: RedisServer, web: BackendApi, version: str = "SEED", **variables: str
) -> Container:
    """The old folder, with what it held, mounted into the container."""
    made = Container(folder, redis, {}, **variables)
    made.configure(old_settings(version, web, made.url))
    for link, data in OLD_LINKS.items():
        (folder / link.removeprefix("/")).write_bytes(data)
    (folder / "log" / "access.log").write_text("an old line\n")
    return made


def token_for(version: str, web: BackendApi) -> str:
    """What the predecessor's caller uses as its key."""
    alice = web.accounts["alice"]
    return alice.access_token if version in WITHOUT_REFRESH else alice.refresh_token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("version", VERSIONS)
def test_caller_with_its_old_token_chats_draws_and_downloads(
    version: str, app: Path, redis: RedisServer, web: BackendApi
) -> None:
    web.state.calls.clear()
    with container(app / version, redis, web, version) as service:
        with service.client(token_for(version, web)) as caller:
            assert chat(caller, stream=False) == "Hello world!"
            assert chat(caller, stream=True) == "Hello world!"
            drawn = caller.images.generate(model="dall-e-3", prompt="#dalle")
            said = caller.chat.completions.create(**question("#sandbox", "gpt-4-s"))
        [picture] = drawn.data or []
        assert requests.get(str(picture.url), timeout=10).content.startswith(PNG)
        [link] = re.findall(r"http://[^)]+", said.choices[0].message.content or "")
        assert link.startswith(f"{service.url}/files/")
        assert requests.get(link, timeout=10).content == CSV
        assert web.problems == []
        assert {call.account for call in web.calls("conversation")} == {"alice"}
        for path, data in OLD_LINKS.items():
            assert requests.get(service.url + path, timeout=10).content == data


def chat(caller: openai.OpenAI, *, stream: bool) -> str:
    asked = question("Hi", "gpt-4-s", stream=stream)
    answer: Any = caller.chat.completions.create(**asked)
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


@pytest.fixture(scope="module")
def keyed(app: Path, redis: RedisServer, web: BackendApi) -> Iterator[Container]:
    """The same with AUTH_KEYS in .env, for new callers."""
    with container(app / "keyed", redis, web, AUTH_KEYS=KEY) as service:
        yield service


def test_old_tokens_and_new_keys_are_served_side_by_side(keyed: Container, web: BackendApi) -> None:
    body = question("Hi", "gpt-4-s")
    alice, bob = web.accounts.values()
    beside = {"X-Upstream-Authorization": f"Bearer {bob.refresh_token}"}
    for headers, status in (
        (bearer(alice.refresh_token), 200),
        (bearer(alice.access_token), 200),
        (bearer(KEY) | beside, 200),
        (bearer(KEY), 503),
        (bearer("rt-canary7f3e-unknown"), 401),
        ({"Authorization": ""}, 401),
    ):
        assert keyed.post(body, headers=headers).status_code == status


def test_two_threads_of_the_old_file_are_not_two_answers_at_a_time(
    keyed: Container, web: BackendApi
) -> None:
    web.state.calls.clear()
    asked = question("#silence[seconds=4]", "gpt-4-s", stream=True)
    token = bearer(web.accounts["alice"].access_token)
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(keyed.post, asked, headers=token) for _ in range(12)]
        assert web.wait(lambda: len(web.calls("conversation")) == 12)
        assert not any(answer.done() for answer in answers)
    assert {answer.result().status_code for answer in answers} == {200}


def test_what_the_old_file_means_here_is_said_once(keyed: Container) -> None:
    text = keyed.log_text()
    assert len(keyed.workers()) == 2
    for words in ("process_threads = 2 ", "custom_arkose_url has no effect", "enableOai has no"):
        assert text.count(words) == 1, words


def test_processes_and_folders_belong_to_the_user_of_the_image(keyed: Container) -> None:
    """Its predecessor ran as root, and left folders that only root can write to."""
    if not IMAGE_USER or python_for_all() is None:
        pytest.skip("only root can hand folders over, to a user who can run Python")
    processes = [psutil.Process(pid) for pid in (keyed.pid, *keyed.workers())]
    assert {process.uids() for process in processes} == {(UID, UID, UID)}
    assert {tuple(psutil.Process(keyed.pid).gids())} == {(UID, UID, UID)}
    groups = Path(f"/proc/{keyed.pid}/status").read_text().partition("Groups:")[2]
    assert groups.splitlines()[0].strip() == ""
    for name in WRITTEN:
        paths = [keyed.folder / name, *(keyed.folder / name).rglob("*")]
        assert {path.lstat().st_uid for path in paths} == {UID}, name
    assert "an old line" in (keyed.folder / "log" / "access.log").read_text()


def test_handing_over_follows_no_link_and_takes_nothing_from_others(
    app: Path, redis: RedisServer, web: BackendApi
) -> None:
    if not IMAGE_USER or python_for_all() is None:
        pytest.skip("only root can hand folders over, to a user who can run Python")
    service = container(app / "links", redis, web)
    outside = app / "outside"
    (outside / "folder").mkdir(parents=True)
    for name in ("a", "b", "folder/c"):
        (outside / name).write_text("not ours")
    images = service.folder / "images"
    (images / "link.png").symlink_to(outside / "a")
    (images / "folder").symlink_to(outside / "folder")
    (images / "second-name.png").hardlink_to(outside / "b")
    (images / "theirs.png").touch()
    os.chown(images / "theirs.png", 4321, 4321)
    shutil.rmtree(service.folder / "files")
    (service.folder / "files").symlink_to(outside / "folder")
    (outside / "folder").chmod(0o777)
    with service:
        pass
    assert {path.stat().st_uid for path in [outside, *outside.rglob("*")]} == {0}
    assert (images / "theirs.png").stat().st_uid == 4321
    assert images.stat().st_uid == UID


def test_folder_that_cannot_be_written_to_ends_the_start_with_what_to_type(
    app: Path, redis: RedisServer, web: BackendApi
) -> None:
    service = container(app / "closed", redis, web)
    for name in ("data", "log"):
        (service.folder / name).chmod(0o555)
    words, environ, folder = service._begin()
    ended = subprocess.run(
        words,
        **IMAGE_USER,
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    uid = IMAGE_USER.get("user", os.getuid())
    assert f"cannot write to {folder}/data" in line
    assert f"chown -R {uid} " in line
    assert "Traceback" not in ended.stderr


def test_start_with_neither_keys_nor_callers_tokens_is_refused(
    app: Path, redis: RedisServer, web: BackendApi
) -> None:
    service = container(app / "refused", redis, web, AUTH_PASSTHROUGH="false")
    words, environ, folder = service._begin()
    ended = subprocess.run(
        words, env=environ, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert "set auth.keys" in ended.stderr
    assert "auth.passthrough" in ended.stderr
    assert command()[:3] == ["python", "-m", "services.server.start"]
