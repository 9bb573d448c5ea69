"""docker-compose.yml and the Dockerfile fit the service: what they set, copy and mount exists."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]  # it brings no stubs

from services.config import check_exposure, load
from services.providers.registry import provider_types
from tests.gateway import ROOT
from tests.test_docs import keys

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
GATEWAY: dict[str, Any] = COMPOSE["services"]["gateway"]
REDIS: dict[str, Any] = COMPOSE["services"]["redis"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
NOT_SETTINGS = {"TZ", "PYTHONUNBUFFERED"}


def image_environment() -> dict[str, str]:
    """What the Dockerfile's ENV lines set."""
    lines = re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def interpolated(value: str) -> str:
    """`value` as compose would have it, with a key and nothing else in its environment."""
    value = re.sub(r"\$\{AUTH_KEYS:\?[^}]*\}", "sk-0123456789abcdef0123456789", value)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_every_variable_is_a_setting() -> None:
    known = {key.variable for key in keys()} | NOT_SETTINGS
    assert set(GATEWAY["environment"]) | set(image_environment()) <= known


def test_container_would_start_with_these_settings() -> None:
    environ = {name: interpolated(str(text)) for name, text in GATEWAY["environment"].items()}
    settings = load(ROOT / "config.json", image_environment() | environ, provider_types())
    assert check_exposure(settings) == []
    assert settings.redis.host in COMPOSE["services"]
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 33333)
    assert len(settings.auth.keys) == 1


def test_keys_are_required_with_an_error_that_says_so() -> None:
    assert re.fullmatch(
        r"\$\{AUTH_KEYS:\?[^}]*AUTH_KEYS[^}]+\}", GATEWAY["environment"]["AUTH_KEYS"]
    )


def test_published_port_leads_to_the_one_it_listens_on() -> None:
    port = image_environment()["SERVER_PORT"]
    assert GATEWAY["ports"] == [f"50011:{port}"]
    assert f"EXPOSE {port}" in DOCKERFILE
    assert f":{port}/" in GATEWAY["healthcheck"]["test"][-1]
    assert f":{port}/" in DOCKERFILE.partition("HEALTHCHECK")[2]


def test_volumes_are_the_folders_that_the_service_writes_to() -> None:
    mounts = [mount.split(":") for mount in GATEWAY["volumes"]]
    written = {target for source, target, *mode in mounts if mode != ["ro"]}
    assert written == {f"/app/{name}" for name in ("data", "images", "files", "log")}
    named = {source for source, *_ in mounts if not source.startswith("./")}
    redis = {mount.partition(":")[0] for mount in REDIS["volumes"]}
    assert named | redis == set(COMPOSE["volumes"])


def test_mounted_and_copied_files_exist_and_are_not_ignored() -> None:
    mounted = [mount.split(":")[0] for mount in GATEWAY["volumes"] if mount.startswith("./")]
    copies = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = [name for line in copies for name in line.split()]
    assert {"requirements.txt", "services", "app.py"} <= set(copied)
    assert [name for name in mounted + copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if name in IGNORED] == []


def test_secrets_and_caches_stay_out_of_the_image() -> None:
    assert {".env", ".git", ".venv", "data", "log", "images", "files"} <= set(IGNORED)


def test_what_the_service_imports_is_copied() -> None:
    imported = set(re.findall(r"^from (\w+) import", (ROOT / "wsgi.py").read_text(), re.MULTILINE))
    assert [name for name in imported if f"{name}.py" not in DOCKERFILE] == []


def test_image_does_not_run_as_root_and_installs_by_hash() -> None:
    assert re.search(r"^USER (?!root|0)\w+$", DOCKERFILE, re.MULTILINE)
    assert "--require-hashes" in DOCKERFILE


def test_redis_keeps_what_it_holds_and_both_are_watched() -> None:
    assert REDIS["command"][-2:] == ["--appendonly", "yes"]
    assert "/data" in REDIS["volumes"][0]
    assert GATEWAY["depends_on"]["redis"]["condition"] == "service_healthy"
    for service in (GATEWAY, REDIS):
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"


def test_stopping_leaves_open_streams_their_time() -> None:
    grace = float(GATEWAY["stop_grace_period"].removesuffix("s"))
    assert grace > load(ROOT / "config.json", {}).server.graceful_timeout
