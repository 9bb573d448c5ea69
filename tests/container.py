"""The container without Docker: what the Dockerfile copies in a folder of its own, its command and
variables, and those that docker-compose.yml adds.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it brings no stubs

from tests.gateway import ROOT, SERVICE_PYTHON, GatewayProcess, RedisServer

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
GATEWAY: dict[str, Any] = COMPOSE["services"]["gateway"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
WRITTEN = ("data", "images", "files", "log")
UID = 10001
"""The user of the image."""
IMAGE_USER: dict[str, Any] = (
    {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}
)
"""For `subprocess`: be that user, where that can be done."""


def image_environment() -> dict[str, str]:
    """What the Dockerfile's ENV lines set."""
    lines = re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in line.split())


def compose_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What compose sets, where `variables` are in .env or the shell."""
    return {
        name: interpolated(str(value), variables) for name, value in GATEWAY["environment"].items()
    }


def interpolated(value: str, variables: Mapping[str, str]) -> str:
    """`value` with each `${NAME:-default}` as compose reads it."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1]) or m[2], value)


def copied() -> list[str]:
    """What the Dockerfile copies; all of it keeps its name."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def command() -> list[str]:
    """The command of the image."""
    [words] = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    return [str(word) for word in json.loads(words)]


_HOME = """
import sys, sysconfig
print(sys._base_executable, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sep="\\n")
print(*map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME")), sep="/")
"""


@functools.cache
def python_for_all() -> tuple[str, dict[str, str]] | None:
    """The service's Python, or a copy where its own place is closed to other users, and the
    variables it needs; None where neither works.
    """
    if _works(SERVICE_PYTHON, {}):
        return SERVICE_PYTHON, {}
    told = subprocess.run([SERVICE_PYTHON, "-c", _HOME], capture_output=True, text=True, check=True)
    program, library, packages, shared = map(Path, told.stdout.splitlines())
    copy = Path(tempfile.mkdtemp(prefix="python-"))
    atexit.register(shutil.rmtree, copy)
    copy.chmod(0o755)
    unwanted = shutil.ignore_patterns("site-packages", "test", "tests", "config-*", "__pycache__")
    shutil.copytree(library, copy / "lib" / library.name, ignore=unwanted)
    shutil.copy(program, copy / "python")
    if shared.exists():
        shutil.copy(shared, copy)
    environ = {"PYTHONHOME": str(copy), "PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(copy)}
    return (str(copy / "python"), environ) if _works(str(copy / "python"), environ) else None


def _works(python: str, environ: dict[str, str]) -> bool:
    """Whether the user of the image can run it."""
    words = [python, "-c", "import gunicorn, redis"]
    quiet: Any = {"stderr": subprocess.DEVNULL, "check": False}
    with contextlib.suppress(OSError):
        return subprocess.run(words, **IMAGE_USER, env=environ, cwd="/", **quiet).returncode == 0
    return False


class Container(GatewayProcess):
    """What the container runs with the settings of compose, of which `variables` are in .env; with
    a file `data/config.json`, and its Redis elsewhere.

    Started by root it goes on as another user, if there is a Python for that one.
    """

    def __init__(
        self, folder: Path, store: RedisServer, settings: dict[str, Any], **variables: str
    ) -> None:
        for name in WRITTEN:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in copied():
            if (ROOT / name).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, folder / name, ignore=unwanted, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, folder / name)
        super().__init__(folder, {})
        self.config.unlink()
        self.config = folder / "data" / "config.json"
        self.configure(settings)
        self._settings = {"store": {"url": store.url}}
        here = {"SERVER_PORT": str(self.port), "REDIS_HOST": "127.0.0.1"}
        here |= {"REDIS_PORT": str(store.port), "STORE_NAMESPACE": folder.name}
        self._environ = {**image_environment(), **compose_environment(variables), **here}

    def configure(self, settings: dict[str, Any]) -> None:
        self.config.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")

    def _begin(self) -> tuple[list[str], dict[str, str], Path]:
        words, python, environ = command(), SERVICE_PYTHON, dict[str, str]()
        if os.geteuid() == 0 and "--user" in words:
            found = python_for_all()
            if found is None:
                words = words[: words.index("--user")]
            else:
                python, environ = found
        home = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return [python, *words[1:]], {**home, **environ, **self._environ}, self.folder
