"""The two READMEs say the same, and what they say to type or to paste works.

That the demo prints the README's request, and what it answers, is in `e2e/test_demo.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from services.config import load
from services.providers.registry import provider_types
from tests.gateway import ROOT

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST_SCREEN = 34  # lines


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(link for link in found if not link.startswith("README"))


def words_in_code(text: str) -> list[str]:
    """What stands between single backquotes, outside blocks."""
    return sorted(re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)))


def test_both_languages_have_the_same_blocks_headings_links_and_names() -> None:
    assert BLOCK.findall(ENGLISH) == BLOCK.findall(CHINESE)
    levels = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert links(ENGLISH) == links(CHINESE)
    assert words_in_code(ENGLISH) == words_in_code(CHINESE)


def test_links_lead_to_files() -> None:
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    lost = [
        (document.name, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
        if not (document.parent / link).is_file()
    ]
    assert lost == []


def test_first_screen_has_the_command_the_request_its_answer_and_the_tests() -> None:
    command, request, answer, *_ = BLOCK.findall(ENGLISH)
    assert command == ("sh", "bin/serve --demo\n")
    asked = json.loads(request[1].partition("-d '")[2].rpartition("'")[0])
    given = json.loads(answer[1])
    assert given["model"] == asked["model"] == "demo-llm"
    assert given["choices"][0]["message"]["content"]
    screen = "\n".join(ENGLISH.splitlines()[:FIRST_SCREEN])
    assert answer[1] in screen
    assert "`bin/test`" in screen


def test_scripts_that_are_named_exist() -> None:
    named = set(re.findall(r"\bbin/\w+", ENGLISH))
    assert {"bin/serve", "bin/test"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_configuration_shown_is_accepted(tmp_path: Path) -> None:
    (shown,) = [text for kind, text in BLOCK.findall(ENGLISH) if '"providers"' in text]
    file = tmp_path / "config.json"
    file.write_text(shown, encoding="utf-8")
    settings = load(file, {}, provider_types())
    (upstream,) = settings.providers["custom"]
    assert upstream.prefix == "relay"
    assert len(settings.auth.keys) == 1
