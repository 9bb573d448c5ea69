"""Scenarios of browsing: commands, results, and the two kinds of citation marks."""

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


def marker(kind: str, *arguments: str) -> str:
    """A mark of today's upstream: private-use characters around a kind and its arguments."""
    return "\ue200" + "\ue202".join((kind, *arguments)) + "\ue201"


def found(*urls: str) -> dict[str, Any]:
    """The metadata of a search that found these pages: turn0search0, turn0search1, …"""
    entries = [
        {"type": "search_result", "url": url, "title": f"Page {index}", "ref_id": _ref(index)}
        for index, url in enumerate(urls)
    ]
    group = {"type": "search_result_group", "domain": "ex.com", "entries": entries}
    return {"search_result_groups": [group]}


def reference(text: str, *urls: str, kind: str = "grouped_webpages") -> dict[str, Any]:
    """What the mark `text` refers to; the second URL and later ones support the first."""
    pages = [{"url": url, "title": "T", "attribution": "ex.com"} for url in urls]
    item = {**pages[0], "supporting_websites": pages[1:], "refs": [*map(_ref, range(len(urls)))]}
    about = {"matched_text": text, "start_idx": 0, "end_idx": len(text), "type": kind}
    return {**about, "alt": None, "items": [item]} if "grouped" in kind else {**about, **pages[0]}


def _ref(index: int) -> dict[str, Any]:
    return {"turn_index": 0, "ref_type": "search", "ref_index": index}


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


def cites(turn: Turn) -> Iterator[Step]:
    """A search, then two sentences: the first with two sources, its mark in own deltas; the second
    with one of them again, and within characters that frame what a source covers.
    """
    command, result = turn.assistant("web.run", "code"), turn.tool("web.run")
    answer = turn.assistant()
    pages = found("https://ex.com/a_(1)", "https://ex.com/b")
    again = marker("cite", "turn0search1")
    return turn.framed(
        command.grow('{"search_query":', '[{"q":"sky"}]}'),
        command.finish(),
        result.finish("SEARCH RESULT", metadata=pages),
        answer.grow("Sky is blue", " \ue200", "cite\ue202turn0sea", "rch0\ue202turn0search1"),
        answer.grow("\ue201.", f" \ue203Grass is green\ue204{again}.\ue206"),
        answer.finish(),
    )


def cites_late(turn: Turn) -> Iterator[Step]:
    """Sources that come after their marks: hidden at first, then as a group, then as a page."""
    answer = turn.assistant()
    first, second = marker("cite", "turn0search0", "turn0search1"), marker("cite", "turn1view0")
    hidden = {"matched_text": first, "type": "hidden", "items": None, "invalid": True}
    group = reference(first, "https://ex.com/a", "https://ex.com/b")
    page = reference(second, "https://ex.com/c", kind="webpage_extended")
    return turn.framed(
        answer.grow(f"Sky is blue{first}, they", metadata={"content_references": [hidden]}),
        answer.grow(" say. ", "Grass is"),
        answer.grow(" green", metadata={"content_references": [group]}),
        answer.grow(f"{second}."),
        answer.finish(metadata={"content_references": [group, page]}),
    )


def cites_unknown(turn: Turn) -> Iterator[Step]:
    """Marks whose sources never come, more than a reader waits for between them."""
    answer = turn.assistant()
    first, second = marker("cite", "turn9search0"), marker("cite", "turn9news1")
    words = [f" {number}" for number in range(20)]
    return turn.framed(answer.grow(f"Gone{first}", *words, f"{second}."), answer.finish())


def cites_unclosed(turn: Turn) -> Iterator[Step]:
    """`Sky`, a mark that another one breaks off, ` is blue`, and one that never closes."""
    known = found("https://ex.com/a")
    answer = turn.assistant()
    again = f"\ue200cite\ue202turn0{marker('cite', 'turn0search0')}"
    deltas = ("Sky", again[:8], again[8:], " is blue", "\ue200cite\ue202turn0", "sear")
    return turn.framed(answer.grow(*deltas, metadata=known), answer.finish())


def other_markers(turn: Turn) -> Iterator[Step]:
    """Names and links that are part of a sentence, and what only a page of the upstream's can show:
    navigation, pictures, a file's lines, products, a chart.
    """
    answer = turn.assistant()
    texts = (
        marker("navlist", "News of the sky", "turn0news1", "turn0news2"),
        marker("i", "turn0image0", "turn0image1"),
        marker("image_group", '{"layout":"carousel","query":["otter (swimming)"]}'),
        "Use " + marker("entity", '["software","Node.js","javascript runtime"]'),
        " of " + marker("url", "the [docs]", "https://ex.com/d (1)"),
        " or " + marker("link_title", "this page", "turn0search0"),
        ", see " + marker("video", "an otter", "turn0youtube7"),
        marker("filecite", "turn0file0", "L5-L10"),
        marker("products", '{"selections":[["turn0product1","Charger"]]}'),
        marker("genui", '{"chart":{"data":[1,2]}}') + ".",
    )
    pieces = [text[at : at + 7] for text in texts for at in range(0, len(text), 7)]
    return turn.framed(answer.grow(*pieces, metadata=found("https://ex.com/a")), answer.finish())


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
    "cites": cites,
    "cites_late": cites_late,
    "cites_unknown": cites_unknown,
    "cites_unclosed": cites_unclosed,
    "other_markers": other_markers,
    "gizmo_files": gizmo_files,
    "files_loaded": files_loaded,
}
