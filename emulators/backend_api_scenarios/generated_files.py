"""Scenarios that make something to download: pictures, and files in the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..backend_api_assets import CSV, HTML
from .steps import Step
from .turn import Turn

REPORT = "/mnt/data/report.csv"


def dalle(turn: Turn) -> Iterator[Step]:
    """The prompt as JSON code, one picture, the tool's note, `Here is it.`"""
    return _drawn(turn, [turn.image()])


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


def _ask(turn: Turn) -> Iterator[Step]:
    request = turn.assistant("dalle.text2im", "code")
    return chain(request.grow('{"size":"1024x1024",', '"prompt":"otter"}'), request.finish())


def _drawn(turn: Turn, pictures: list[Any]) -> Iterator[Step]:
    tool = turn.tool("dalle.text2im", "multimodal_text")
    note, answer = turn.tool("dalle.text2im"), turn.assistant()
    return turn.framed(
        _ask(turn),
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
    "sandbox": sandbox,
    "sandbox_two": sandbox_two,
    "sandbox_unicode": sandbox_unicode,
    "sandbox_refused": sandbox_refused,
    "sandbox_traversal": sandbox_traversal,
}
