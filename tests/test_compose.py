"""docker-compose.yml and the Dockerfile fit the service: what they set, copy and mount exists."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no stubs

from services.config import Settings, check_exposure, load, passthrough_enabled
from services.providers.registry import provider_types
from tests.container import (
    COMPOSE,
    DOCKERFILE,
    GATEWAY,
    UID,
    WRITTEN,
    command,
    compose_environment,
    copied,
    image_environment,
)
from tests.gateway import KEY, ROOT
from tests.test_docs import keys

REDIS: dict[str, Any] = COMPOSE["services"]["redis"]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
NOT_SETTINGS = {"TZ", "PYTHONUNBUFFERED"}
OF_THE_IMAGE = {"CAUSEWAY_CONFIG", "SERVER_HOST", "SERVER_PORT"}
"""What .env.example offers and a container has no use for: its mounts and ports are compose's."""


def settings_with(**variables: str) -> Settings:
    """The container's settings, with these variables in .env."""
    environ = image_environment() | compose_environment(variables)
    return load(ROOT / "config.json", environ, provider_types())


def test_every_variable_is_a_setting() -> None:
    known = {key.variable for key in keys()} | NOT_SETTINGS
    assert set(GATEWAY["environment"]) | set(image_environment()) <= known


def test_every_variable_of_the_example_reaches_the_container() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    offered = set(re.findall(r"^# ?([A-Z_]+)=", text, re.MULTILINE)) - OF_THE_IMAGE
    assert offered <= set(GATEWAY["environment"])
    given = compose_environment({name: "x" for name in offered})
    assert {name for name in offered if given.get(name) == "x"} == offered


@pytest.mark.parametrize(("variables", "count"), [({}, 0), ({"AUTH_KEYS": f"{KEY},{KEY}2"}, 2)])
def test_container_starts_with_and_without_keys_and_takes_upstream_tokens(
    variables: dict[str, str], count: int
) -> None:
    settings = settings_with(**variables)
    assert check_exposure(settings) == []
    assert settings.redis.host in COMPOSE["services"]
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 33333)
    assert len(settings.auth.keys) == count
    assert passthrough_enabled(settings) is True


def test_without_keys_and_upstream_tokens_the_container_does_not_start() -> None:
    [objection] = check_exposure(settings_with(AUTH_PASSTHROUGH="false"))
    assert "auth.keys" in objection
    assert check_exposure(settings_with(AUTH_PASSTHROUGH="false", AUTH_KEYS=KEY)) == []


def test_published_port_leads_to_the_one_it_listens_on() -> None:
    port = image_environment()["SERVER_PORT"]
    assert GATEWAY["ports"] == [f"50011:{port}"]
    assert f"EXPOSE {port}" in DOCKERFILE
    assert f":{port}/" in GATEWAY["healthcheck"]["test"][-1]
    assert f":{port}/" in DOCKERFILE.partition("HEALTHCHECK")[2]


def test_volumes_are_the_folders_that_the_service_writes_to() -> None:
    mounts = [mount.split(":") for mount in GATEWAY["volumes"]]
    written = {target for source, target, *mode in mounts if mode != ["ro"]}
    assert written == {f"/app/{name}" for name in WRITTEN}
    named = {source for source, *_ in mounts if not source.startswith("./")}
    redis = {mount.partition(":")[0] for mount in REDIS["volumes"]}
    assert named | redis == set(COMPOSE["volumes"])


def test_migration_mounts_the_old_folders_where_the_service_writes() -> None:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [(service, group)] = yaml.safe_load(shown)["services"].items()
    assert service in COMPOSE["services"]
    mounts = [mount.split(":") for mount in group["volumes"]]
    assert mounts == [[f"/srv/old/{name}", f"/app/{name}"] for name in WRITTEN]


def test_mounted_and_copied_files_exist_and_are_not_ignored() -> None:
    mounted = [mount.split(":")[0] for mount in GATEWAY["volumes"] if mount.startswith("./")]
    assert {"requirements.txt", "services", "app.py"} <= set(copied())
    assert [name for name in mounted + copied() if not (ROOT / name).exists()] == []
    assert [name for name in copied() if name in IGNORED] == []


def test_secrets_and_caches_stay_out_of_the_image() -> None:
    assert {".env", ".git", ".venv", "data", "log", "images", "files"} <= set(IGNORED)


def test_what_the_service_imports_is_copied() -> None:
    imported = set(re.findall(r"^from (\w+) import", (ROOT / "wsgi.py").read_text(), re.MULTILINE))
    assert imported - {name.removesuffix(".py") for name in copied()} <= {"logging"}


def test_image_does_not_run_as_root_and_installs_by_hash() -> None:
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE) == [str(UID)]
    assert f"--uid {UID} " in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE


def test_compose_starts_as_root_only_to_hand_the_folders_over() -> None:
    assert GATEWAY["user"] == "root"
    assert command()[-2:] == ["--user", str(UID)]


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
