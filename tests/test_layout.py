"""The shape of the tree: who imports whom, how long things get, and what must not occur."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "services").rglob("*.py"))
ALLOWED = {
    "core": {"core"},
    "dialects": {"core", "dialects"},
    "pipeline": {"core", "pipeline", "config"},
    "transport": {"core", "transport"},
    "config": {"core", "config"},
    "files": {"core", "config", "files", "transport", "store"},
    "providers": {"core", "providers", "transport", "config", "files"},
}
FETCHING = {
    "sniff": {"sniff"},
    "addresses": {"addresses"},
    "data_urls": {"data_urls", "sniff"},
    "download": {"download", "addresses", "data_urls", "sniff"},
    "fetch": {"fetch", "download", "addresses", "data_urls"},
}
"""What gets and reads files from outside, and what of it each of these modules may use."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("layer", ALLOWED)
def test_layer_imports_only_what_lies_below_it(layer: str) -> None:
    for path in (ROOT / "services" / layer).rglob("*.py"):
        used = {m.split(".")[1] for m in imports(path) if m.startswith("services.")}
        assert used - {"__version__"} <= ALLOWED[layer], path


def files_modules(path: Path) -> set[str]:
    return {m.split(".")[2] for m in imports(path) if m.startswith("services.files.")}


@pytest.mark.parametrize("module", FETCHING)
def test_fetching_and_sniffing_know_nothing_of_what_is_kept(module: str) -> None:
    path = ROOT / "services" / "files" / f"{module}.py"
    assert files_modules(path) <= FETCHING[module]
    assert not [m for m in imports(path) if m.startswith("services.store")]


def test_a_provider_fetches_and_sniffs_but_keeps_nothing() -> None:
    for path in (ROOT / "services" / "providers").rglob("*.py"):
        assert files_modules(path) <= set(FETCHING), path


def test_flask_lives_at_the_edge_only() -> None:
    inside = [p for p in SOURCES if "api" not in p.parts]
    users = [p.name for p in inside if any(m.split(".")[0] == "flask" for m in imports(p))]
    assert users == []


def test_a_provider_imports_no_other_provider() -> None:
    folder = ROOT / "services" / "providers"
    modules = [p for p in folder.glob("*.py") if "\ndef build(" in p.read_text()]
    packages = [p.parent for p in folder.glob("*/__init__.py")]
    names = {p.stem for p in modules} | {p.name for p in packages}
    for owner in [*modules, *packages]:
        for path in [owner] if owner.is_file() else owner.rglob("*.py"):
            used = {m.split(".")[2] for m in imports(path) if m.startswith("services.providers.")}
            assert used & names <= {owner.stem}, path


def test_emulators_import_nothing_of_ours() -> None:
    for path in (ROOT / "emulators").rglob("*.py"):
        assert not [m for m in imports(path) if m.split(".")[0] in ("services", "app")], path


def test_only_the_settings_read_the_environment() -> None:
    reads = re.compile(r"os\.environ\b(?!\[\w+\] = )|os\.getenv")
    allowed = {ROOT / "services" / "config" / "load.py", ROOT / "services" / "server" / "start.py"}
    assert [p for p in SOURCES if p not in allowed and reads.search(p.read_text())] == []


def test_no_code_is_run_from_data() -> None:
    dangerous = re.compile(r"\b(eval|exec|pickle\.loads?|yaml\.load|os\.system)\(|shell=True")
    assert [p for p in SOURCES if dangerous.search(p.read_text())] == []


def test_certificates_are_always_verified() -> None:
    off = re.compile(r"verify\s*=\s*False|CERT_NONE|check_hostname\s*=\s*False|_create_unverified")
    assert [p for p in SOURCES if off.search(p.read_text())] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_why_it_exists(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)) or not text.strip()
