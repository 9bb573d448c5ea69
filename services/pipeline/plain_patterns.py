"""What markdown looks like within a line: its marks, whole and just begun."""

from __future__ import annotations

import functools
import re

HOLD = 1000
"""Most characters that wait for an open mark to be closed."""

MAX_TARGET = 4096
MAX_RUN = 64

SPECIAL = re.compile(r"[\n*_~`\\\[\]]|!(?=\[|\Z)|:(?=//|/?\Z)|<(?=[hb]|\Z)|【(?=[0-9]|\Z)|\ue200")
RUN = re.compile(rf"\*{{1,{MAX_RUN}}}|_{{1,{MAX_RUN}}}|~{{1,{MAX_RUN}}}|`{{1,{MAX_RUN}}}")
URL_REST = re.compile(r"[^\s<>()\[\]*`\"']*")
TARGET = re.compile(
    r"\([ \t]*<?((?:[^\s()<>]++|\([^\s()<>]*+\))*+)>?"
    r"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ \t]*\)"
)
ESCAPABLE = "*_`~#|"
_REMOVED = {
    "[": (r"\[\^[\w-]{1,40}\]", r"\[(?:\^[\w-]{0,40})?\Z"),
    "【": (
        r"【[0-9]{1,9}(?::[0-9]{1,9})?†[^】\n]{0,100}】",
        r"【(?:[0-9]{1,9}(?::[0-9]{0,9})?(?:†[^】\n]{0,100})?)?\Z",
    ),
    "\ue200": (r"\ue200[^\ue201\n]{0,300}\ue201", r"\ue200[^\ue201\n]{0,300}\Z"),
    "<": (r"<br ?/?>", r"<(?:b(?:r(?: ?/?)?)?)?\Z"),
}
"""Marks that go: footnotes, 【5†source】, private-use citations, line breaks; whole and begun."""
MARKUP = {char: tuple(map(re.compile, pair)) for char, pair in _REMOVED.items()}
ANGLE_URL = re.compile(r"<(https?://[^\s<>]{1,2000})>")
ANGLE_BEGUN = re.compile(r"<(?:h(?:t(?:t(?:p(?:s?(?:://?[^\s<>]{0,2000}|:)?)?)?)?)?)?\Z")


@functools.lru_cache(maxsize=MAX_RUN)
def closing_ticks(count: int) -> re.Pattern[str]:
    return re.compile(rf"(?<!`)`{{{count}}}(?!`)")


def link_text(label: str, target: str) -> str:
    address = target.removeprefix("mailto:")
    if not address or address.startswith(("#", "sediment:")) or label in (target, address):
        return label
    return f"{label} ({address})" if label.strip() else address


def code_text(content: str) -> str:
    """The content of a code span; one blank at each end only parts it from the backticks."""
    if content.strip() and content[0] == content[-1] == " ":
        return content[1:-1]
    return content
