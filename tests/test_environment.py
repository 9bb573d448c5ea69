"""A fresh machine: the locks hold for every Python, the scripts make environments of them and say
so, and the service needs nothing that only the tests bring.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
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
importlib.import_module("services.server.gevent_worker")  # before the rest brings `ssl`
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
        assert found - {"pip", "setuptools"} <= named, "remove .venv: bin/test makes it anew"
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

    @pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
    def test_readme_says_how_large_the_download_is(self, readme: str) -> None:
        locks = ("requirements.txt", "requirements-demo.txt")
        size = sum(int((ROOT / lock).read_text().split(" ")[1]) for lock in locks)
        [told] = re.findall(r" (\d+) MB", (ROOT / readme).read_text(encoding="utf-8"))
        assert int(told) == pytest.approx(size, rel=0.05)

    @pytest.mark.parametrize("lock", LOCKS)
    def test_pins_by_hash_and_names_no_registry(self, lock: str) -> None:
        size, *lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# \d+ MB to download", size)
        assert [
            n for n in lines if not re.match(r"    --hash=sha256:\w{64}|[\w.-]+==\S+ ", n)
        ] == []


class Machine:
    """A folder with a lock of one small wheel, and a PATH of Python, a shell and coreutils."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "bin"
        self._path.mkdir()
        for name in ("cat", "cksum", "date"):
            (self._path / name).symlink_to(str(shutil.which(name)))
        wheel = folder / "small-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as packed:
            about = "small-1.0.dist-info"
            packed.writestr("small.py", "")
            packed.writestr(
                f"{about}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n"
            )
            packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            packed.writestr(f"{about}/RECORD", "")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lock = f"# 7 MB to download\nsmall @ {wheel.as_uri()} --hash=sha256:{digest}\n"
        (folder / "lock.txt").write_text(lock)

    def python(self, name: str, lacks: tuple[str, ...] = ()) -> None:
        """Put this Python on PATH, some of its modules taken away."""
        hiding = self.folder / "hiding" / name
        hiding.mkdir(parents=True)
        for module in lacks:
            (hiding / f"{module}.py").write_text("raise ImportError")
        program = self._path / name
        base = sys._base_executable  # type: ignore[attr-defined]  # what made our environment
        program.write_text(f'#!/bin/sh\nPYTHONPATH={hiding} exec {base} "$@"\n')
        program.chmod(0o755)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """What comes of a command of bin/environment."""
        return subprocess.run(
            ["/bin/sh", "-euc", f". {ROOT}/bin/environment; {command}"],
            cwd=self.folder,
            env={"PATH": str(self._path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class TestInstalling:
    def test_says_what_it_downloads_what_it_does_and_how_long_it_took(
        self, machine: Machine
    ) -> None:
        """Most of a minute went by in silence."""
        machine.python("python3")
        told = machine.run("environment .venv lock.txt").stderr
        steps = ["making .venv with", "installing lock.txt into .venv: 7 MB", "Processing "]
        steps += ["Successfully installed small-1.0", "lock.txt is installed, after "]
        assert sorted(steps, key=told.index) == steps
        again = machine.run("environment .venv lock.txt; .venv/bin/python -c 'import small'")
        assert (again.returncode, again.stderr) == (0, "")

    def test_environment_whose_python_is_gone_is_made_anew(self, machine: Machine) -> None:
        machine.python("python3")
        (machine.folder / ".venv" / "bin").mkdir(parents=True)
        (machine.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.11")
        done = machine.run("environment .venv lock.txt; .venv/bin/python -c 'import small'")
        assert done.returncode == 0, done.stderr

    def test_python_that_cannot_make_environments_is_passed_over(self, machine: Machine) -> None:
        machine.python("python3.12", lacks=("ensurepip", "pip"))
        machine.python("python3")
        assert machine.run("find_python").stdout == f"{machine.folder}/bin/python3\n"

    def test_pip_of_the_system_will_do_where_environments_get_none(self, machine: Machine) -> None:
        """Debian's python3 without python3-venv."""
        machine.python("python3", lacks=("ensurepip",))
        done = machine.run("environment .venv lock.txt; .venv/bin/python -c 'import small'")
        assert done.returncode == 0, done.stderr

    def test_what_to_install_is_said_where_no_python_will_do(self, machine: Machine) -> None:
        machine.python("python3", lacks=("ensurepip", "pip"))
        done = machine.run("environment .venv lock.txt")
        assert done.returncode == 1
        assert "apt-get install python3-venv" in done.stderr


class TestSkips:
    """What cannot be tested here says why; where all of it must be testable, it fails."""

    def run(self, path: str, **environ: str) -> tuple[int, str]:
        """The status and the summary of the npm client's tests with this PATH."""
        command = [sys.executable, "-m", "pytest", "-k", "models", "tests/e2e/test_npm_client.py"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PATH": path, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def test_reason_is_in_the_summary(self, tmp_path: Path) -> None:
        status, told = self.run(str(tmp_path), CAUSEWAY_NO_SKIPS="")
        assert status == 0
        assert re.search(r"^SKIPPED .*: node is not on PATH", told, re.MULTILINE)

    def test_skip_fails_where_everything_can_be_installed(self, tmp_path: Path) -> None:
        status, told = self.run(str(tmp_path), CAUSEWAY_NO_SKIPS="1")
        assert status == 1
        assert "node is not on PATH" in told
