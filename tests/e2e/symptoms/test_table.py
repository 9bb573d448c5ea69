"""The table of symptoms in this package's docstring names tests that exist, each once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROW = re.compile(r"^- (.+):\n  (test_\w+)$", re.MULTILINE)
SYMPTOMS = 37


def table() -> list[tuple[str, str]]:
    text = ast.get_docstring(ast.parse((FOLDER / "__init__.py").read_text())) or ""
    rows = ROW.findall(text)
    assert len(rows) == len(re.findall(r"^-", text, re.MULTILINE)), "a row has another form"
    return rows


def written() -> list[str]:
    """All tests of this package, in no order."""
    trees = (ast.parse(path.read_text()) for path in FOLDER.glob("test_*.py"))
    functions = (node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


def test_every_symptom_has_a_test_of_its_own() -> None:
    names = [name for _, name in table()]
    assert len(names) == len(set(names)) == SYMPTOMS
    assert set(names) - set(written()) == set()


def test_no_two_tests_share_a_name() -> None:
    assert len(written()) == len(set(written()))
