"""Scenarios of browsing: commands, results, citation marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from .steps import Step
from .turn import Turn


def citation(number: int, url: str, title: str = "T") -> dict[str, Any]:
    """The metadata a mark with this number refers to."""
    extra = {"cited_message_idx": number, "evidence_text": "source"}
    return {
        "start_ix": 11,
        "end_ix": 22,
        "citation_format_type": "tether_og",
        "metadata": {"type": "webpage", "title": title, "url": url, "text": "…", "extra": extra},
    }


CITED = {"citations": [citation(5, "https://ex.com/a"), citation(6, "https://ex.com/b", "U")]}


def browsing(turn: Turn) -> Iterator[Step]:
    """`search("x")` and its result, then `Sky is blue【5†source】.`, the mark in own deltas."""
    answer = turn.assistant()
    return turn.framed(
        _browse(turn),
        answer.grow("Sky is blue", "【", "5", "†source"),
        answer.grow("】", ".", metadata={"citations": [citation(5, "https://ex.com/a")]}),
        answer.finish(),
    )


def marks_in_delta(turn: Turn) -> Iterator[Step]:
    """`Blue yes【5†source】 and more【6†source】.`: marks with text around them in one delta."""
    return _marked(turn, "Blue", " yes【5†source】 and", " more【6†source】.")


def marks_adjacent(turn: Turn) -> Iterator[Step]:
    """`Both【5†source】【6†source】.`, cut inside the word `source`."""
    return _marked(turn, "Both【5†sou", "rce】【6†source", "】.")


def marks_unknown(turn: Turn) -> Iterator[Step]:
    """`Gone【9†source】.`: no citation has this number."""
    return _marked(turn, "Gone", "【9†source】", ".")


def marks_chinese(turn: Turn) -> Iterator[Step]:
    """`天空【5†来源】是蓝色。`: the mark's word is Chinese."""
    return _marked(turn, "天空【5†来", "源】是", "蓝色。")


def marks_unclosed(turn: Turn) -> Iterator[Step]:
    """`Sky【not a mark】 ends【5†sou`: one bracket is no mark, one never closes."""
    return _marked(turn, "Sky【not", " a mark】 ends", "【5†sou")


def gizmo_files(turn: Turn) -> Iterator[Step]:
    """A gizmo reads its knowledge: a tool's text, then an answer with a file mark."""
    tool_input = turn.assistant("myfiles_browser")
    tool, answer = turn.tool("myfiles_browser"), turn.assistant()
    metadata = {"type": "file", "name": "notes.pdf", "id": "file-notes", "text": "…"}
    cited: Mapping[str, Any] = {
        "citations": [
            {"start_ix": 0, "end_ix": 9, "citation_format_type": "tether_v4", "metadata": metadata}
        ]
    }
    return turn.framed(
        tool_input.grow('msearch(["otters"])'),
        tool_input.finish(),
        tool.finish("# notes.pdf\nSECRET KNOWLEDGE: otters hold hands."),
        answer.grow("Otters hold", " hands【8:0", "†notes.pdf】", ".", metadata=cited),
        answer.finish(),
    )


def files_loaded(turn: Turn) -> Iterator[Step]:
    """The tool's notice that all uploads are in context, then the answer."""
    tool, answer = turn.tool("myfiles_browser"), turn.assistant()
    notice = (
        "All the files uploaded by the user have been fully loaded. "
        "Searching won't provide additional information."
    )
    return turn.framed(tool.finish(notice), answer.grow("It is", " a list."), answer.finish())


def _browse(turn: Turn) -> Iterator[Step]:
    command, result = (
        turn.assistant("browser", "code"),
        turn.tool("browser", "tether_browsing_display"),
    )
    quote = turn.tool("browser", "tether_quote")
    return chain(
        command.grow("search(", '"x")'),
        command.finish(),
        result.finish("# 【5†Sky†ex.com】\nBROWSER RESULT"),
        quote.finish(parts=["QUOTED PAGE"]),
    )


def _marked(turn: Turn, *deltas: str) -> Iterator[Step]:
    answer = turn.assistant()
    return turn.framed(answer.grow(*deltas, metadata=CITED), answer.finish())


SCENES = {
    "browsing": browsing,
    "marks_in_delta": marks_in_delta,
    "marks_adjacent": marks_adjacent,
    "marks_unknown": marks_unknown,
    "marks_chinese": marks_chinese,
    "marks_unclosed": marks_unclosed,
    "gizmo_files": gizmo_files,
    "files_loaded": files_loaded,
}
