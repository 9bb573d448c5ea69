"""The two READMEs say the same, and what they say to type is what is tested."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)]+)\)", text)
    return sorted(link for link in found if not link.startswith("README"))


def test_both_languages_have_the_same_blocks_headings_and_links() -> None:
    assert BLOCK.findall(ENGLISH) == BLOCK.findall(CHINESE)
    levels = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert links(ENGLISH) == links(CHINESE)


def test_links_lead_to_files() -> None:
    assert [link for link in links(ENGLISH) if not (ROOT / link).is_file()] == []


def test_first_screen_has_the_command_the_request_and_its_answer() -> None:
    (command, request, answer, *_) = BLOCK.findall(ENGLISH)
    assert command == ("sh", "bin/serve --demo\n")
    assert "demo-llm" in request[1]
    assert '"object":"chat.completion"' in answer[1]
