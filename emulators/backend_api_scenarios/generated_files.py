"""Scenarios that make something to download: pictures, and files in the sandbox."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..backend_api_assets import CSV, HTML
from .steps import Step
from .turn import Turn

REPORT = "/mnt/data/report.csv"
OTTER = "otter"
POLICY = (
    "User's requests didn't follow our content policy. Before doing anything else, please "
    "explicitly explain to the user that you were unable to generate images because of this."
)
_ORDER = re.compile(
    r"#dalle(?:\[[^\]]*\])?\s+(?!\d+x\d+$)(.+?)(?:\nThe picture's size:[^\n]*)?\Z", re.DOTALL
)


def dalle(turn: Turn) -> Iterator[Step]:
    """The prompt as JSON code, one picture, the tool's note, `Here is it.`

    The prompt is what stands behind `#dalle`, or else `otter`.
    """
    prompt = _prompt(turn)
    shade = 0 if prompt == OTTER else zlib.crc32(prompt.encode()) % 256
    return _drawn(turn, [turn.image(prompt, shade)], prompt)


def dalle_two(turn: Turn) -> Iterator[Step]:
    """Two pictures in one event."""
    return _drawn(turn, [turn.image(), turn.image("other otter", shade=200)])


def dalle_403(turn: Turn) -> Iterator[Step]:
    """A picture whose download answers 403."""
    return _drawn(turn, [turn.image(refused=403)])


def dalle_refused(turn: Turn) -> Iterator[Step]:
    """No picture, only the words that it is against the content policy."""
    answer = turn.assistant()
    deltas = ("I can't draw that: ", "it goes against the content policy.")
    return turn.framed(_ask(turn), answer.grow(*deltas), answer.finish())


def dalle_policy(turn: Turn) -> Iterator[Step]:
    """No picture: the tool says that it is against the content policy, the model explains."""
    tool, answer = turn.tool("dalle.text2im"), turn.assistant()
    explained = answer.grow("I was unable", " to draw that.")
    return turn.framed(_ask(turn), tool.finish(POLICY), explained, answer.finish())


def dalle_blocked(turn: Turn) -> Iterator[Step]:
    """No picture and no word: the upstream's moderation blocks the turn."""
    return turn.framed(_ask(turn), blocked=True)


def sandbox(turn: Turn) -> Iterator[Step]:
    """`Get [file](sandbox:/mnt/data/report.csv) now`, cut inside `sandbox` and after the link."""
    turn.sandbox_file(REPORT, CSV, "text/csv")
    return _linked(turn, "Get [file](sand", "box:/mnt/data/report", ".csv) now")


def sandbox_two(turn: Turn) -> Iterator[Step]:
    """Two links in one sentence after a newline, in one delta and across two."""
    turn.sandbox_file(REPORT, CSV, "text/csv")
    turn.sandbox_file("/mnt/data/chart.html", HTML, "text/html")
    return _linked(
        turn,
        "Done:\n[table](sandbox:/mnt/data/report.csv) and [chart](",
        "sandbox:/mnt/data/chart.html).",
    )


def sandbox_unicode(turn: Turn) -> Iterator[Step]:
    """`[报告](sandbox:/mnt/data/季度 报告.csv)`: a path with a space and Chinese."""
    turn.sandbox_file("/mnt/data/季度 报告.csv", CSV, "text/csv")
    return _linked(turn, "[报告](sandbox:/mnt/data/季度", " 报告.csv)")


def sandbox_refused(turn: Turn) -> Iterator[Step]:
    """A link whose download answers 403."""
    turn.sandbox_file(REPORT, CSV, "text/csv", refused=403)
    return _linked(turn, "Get [file](sandbox:/mnt/data/report.csv) now")


def sandbox_traversal(turn: Turn) -> Iterator[Step]:
    """A harmless link to a download called `name` (default `../../../evil.csv`)."""
    turn.sandbox_file(REPORT, CSV, "text/csv", name=turn.param("name", "../../../evil.csv"))
    return _linked(turn, "Get [file](sandbox:/mnt/data/report.csv) now")


def _prompt(turn: Turn) -> str:
    order = _ORDER.search(turn.user_texts[-1]) if turn.user_texts else None
    return order[1].strip() if order else OTTER


def _ask(turn: Turn, prompt: str = OTTER) -> Iterator[Step]:
    request = turn.assistant("dalle.text2im", "code")
    said = f'"prompt":{json.dumps(prompt, ensure_ascii=False)}}}'
    return chain(request.grow('{"size":"1024x1024",', said), request.finish())


def _drawn(turn: Turn, pictures: list[Any], prompt: str = OTTER) -> Iterator[Step]:
    tool = turn.tool("dalle.text2im", "multimodal_text")
    note, answer = turn.tool("dalle.text2im"), turn.assistant()
    return turn.framed(
        _ask(turn, prompt),
        tool.finish(parts=pictures),
        note.finish("DALL-E NOTE: the user sees the pictures already."),
        answer.grow("Here is", " it."),
        answer.finish(),
    )


def _linked(turn: Turn, *deltas: str) -> Iterator[Step]:
    answer = turn.assistant()
    return turn.framed(answer.grow(*deltas), answer.finish())


SCENES = {
    "dalle": dalle,
    "dalle_two": dalle_two,
    "dalle_403": dalle_403,
    "dalle_refused": dalle_refused,
    "dalle_policy": dalle_policy,
    "dalle_blocked": dalle_blocked,
    "sandbox": sandbox,
    "sandbox_two": sandbox_two,
    "sandbox_unicode": sandbox_unicode,
    "sandbox_refused": sandbox_refused,
    "sandbox_traversal": sandbox_traversal,
}
