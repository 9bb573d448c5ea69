"""A fresh machine: the locks hold for every Python, the scripts make environments of them and say
so, and the service needs nothing that only the tests bring.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.gateway import ROOT, SERVICE_PYTHON

LOCKS = ("requirements.txt", "requirements-demo.txt", "requirements-dev.txt")
PYTHONS = ("3.11.0", "3.11.2", "3.11.3", "3.12.1", "3.13.0")
OPTIONAL = {"boto3", "botocore"}
"""What the service uses only where the operator has installed it."""

IMPORT_ALL = """
import importlib, pkgutil
import app, emulators, gunicorn.workers, services
importlib.import_module("services.gevent_worker")  # before the rest brings `ssl`
for package in (services, emulators):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""

FIND_ALL = """
import ast, importlib.util, sys
wanted = set()
for file in sys.argv[1:]:
    for node in ast.walk(ast.parse(open(file).read())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            wanted.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            wanted |= {alias.name.partition(".")[0] for alias in node.names}
print(*sorted(name for name in wanted if importlib.util.find_spec(name) is None))
"""


def locked(name: str) -> list[Requirement]:
    """What a lock pins, with its markers."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [Requirement(line) for line in re.findall(r"^(\w.*?) \\$", text, re.MULTILINE)]


def in_service(program: str, *arguments: str) -> str:
    """What a program prints in the service's environment."""
    done = subprocess.run(
        [SERVICE_PYTHON, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestService:
    def test_starts_with_nothing_but_its_own_lock(self) -> None:
        """`No module named 'packaging'`, a fresh clone said."""
        installed = in_service(
            "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
        )
        wanted = [*locked("requirements.txt"), *locked("requirements-demo.txt")]
        named = {canonicalize_name(requirement.name) for requirement in wanted}
        found = {canonicalize_name(name) for name in installed.split()}
        assert found - {"pip", "setuptools"} <= named, "make .venv anew: bin/test"
        in_service(IMPORT_ALL)

    def test_imports_nothing_that_its_lock_does_not_bring(self) -> None:
        """Nor in a function that no test of a fresh machine runs."""
        files = [
            str(file) for part in ("services", "emulators") for file in ROOT.glob(f"{part}/**/*.py")
        ]
        missing = in_service(FIND_ALL, "app.py", "wsgi.py", "gunicorn.conf.py", *files)
        assert set(missing.split()) <= OPTIONAL

    def test_does_not_share_the_environment_of_the_tests(self) -> None:
        assert Path(in_service("import sys; print(sys.prefix)").strip()) != Path(sys.prefix)


class TestLocks:
    @pytest.mark.parametrize("system", ["linux", "darwin"])
    @pytest.mark.parametrize("version", PYTHONS)
    @pytest.mark.parametrize("lock", ["requirements.txt", "requirements-dev.txt"])
    def test_every_python_finds_all_it_needs(self, lock: str, version: str, system: str) -> None:
        """`async-timeout` was missing on 3.11.2: the lock had been made on 3.11.7."""
        place = {str(name): str(value) for name, value in default_environment().items()} | {
            "python_full_version": version,
            "python_version": version.rpartition(".")[0],
            "sys_platform": system,
            "extra": "",
        }
        names = {
            canonicalize_name(requirement.name)
            for requirement in locked(lock)
            if requirement.marker is None or requirement.marker.evaluate(place)
        }
        installed = {canonicalize_name(d.name): d for d in importlib.metadata.distributions()}
        needed = {
            (name, canonicalize_name(wanted.name))
            for name in names & set(installed)
            for wanted in map(Requirement, installed[name].requires or ())
            if wanted.marker is None or wanted.marker.evaluate(place)
        }
        assert {(by, name) for by, name in needed if name not in names} == set()

    @pytest.mark.parametrize("lock", LOCKS)
    def test_pins_by_hash_and_names_no_registry(self, lock: str) -> None:
        size, *lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# \d+ MB to download", size)
        assert [
            n for n in lines if not re.match(r"    --hash=sha256:\w{64}|[\w.-]+==\S+ ", n)
        ] == []
