"""Make markdown plain, for clients that show a text as it is, while it is still arriving.

Headings, emphasis, code marks, fences, tables and citation marks go; links keep their address;
pictures become their bare address on a line of its own. Only as much is held back as must be seen
to decide: a mark at the end, a line that may be a fence or belong to a table, and what stands
behind an open mark (see plain_inline). Holding back is bounded, so the time is linear.
"""

from __future__ import annotations

import re

from services.pipeline.plain_inline import Inline

_MAX_ROW = 4096
_MAX_INDENT = 200
_NO = -1
"""A line does not begin with the mark that was looked for."""

_INDENT = re.compile(rf"[ \t]{{0,{_MAX_INDENT}}}")
_FENCE = re.compile(r"(`{3,64})[^`\n]{0,200}(?:\n|\Z)|(~{3,64})[^\n]{0,200}(?:\n|\Z)")
_FENCE_BEGUN = re.compile(r"(?:`{1,2}|~{1,2})\Z")
_HEADING = re.compile(r"#{1,6}[ \t]{1,200}")
_HEADING_BEGUN = re.compile(r"#{1,6}\Z")
_NOTE = re.compile(r"\[\^[\w-]{1,40}\]:[ \t]{0,200}")
_NOTE_BEGUN = re.compile(r"\[(?:\^[\w-]{0,40}\]?)?\Z")
_CELL_END = re.compile(r"(?<!\\)\|")
_DELIMITERS = "|:- \t"


class PlainText:
    """One text, fed in any pieces. With `keep_images`, markdown pictures stay as they are."""

    def __init__(self, *, keep_images: bool = False) -> None:
        self._keep_images = keep_images
        self._inline = Inline(keep_images=keep_images)
        self._buffer = ""
        self._at_start = True
        self._fence = ""
        self._in_table = False

    def feed(self, text: str) -> str:
        """Take a piece of the text; the plain text that is certain by now."""
        self._buffer += text
        return self._run(final=False)

    def flush(self, then: str = "\n") -> str:
        """All that was held back. `then` is what others put behind it; the text may go on."""
        text = self._run(final=True) + self._inline.end_line()
        self._inline.begin_line(then[-1])
        self._at_start = then.endswith("\n")
        return text

    def _run(self, *, final: bool) -> str:
        text, pos = self._buffer, 0
        out: list[str] = []
        while pos < len(text):
            if self._at_start:
                step = self._line_start(text, pos, final, out)
            elif self._fence:
                step = self._line_of_code(text, pos, out)
            else:
                step = self._rest_of_line(text, pos, final, out)
            if step is None:
                break
            pos = step
        self._buffer = text[pos:]
        out.append(self._inline.take())
        return "".join(out)

    def _rest_of_line(self, text: str, pos: int, final: bool, out: list[str]) -> int | None:
        stop = self._inline.scan(text, pos, final=final)
        if stop < len(text) and text[stop] == "\n":
            out.append(self._inline.end_line() + "\n")
            self._at_start = True
            return stop + 1
        return stop if stop > pos else None

    def _line_of_code(self, text: str, pos: int, out: list[str]) -> int:
        newline = text.find("\n", pos)
        self._at_start = newline >= 0
        end = newline + 1 if newline >= 0 else len(text)
        out.append(text[pos:end])
        return end

    def _line_start(self, text: str, pos: int, final: bool, out: list[str]) -> int | None:
        """Decide what the line at `pos` is; where to go on, or None while more must be known."""
        indent = _INDENT.match(text, pos)
        assert indent is not None
        first = indent.end()
        if first == len(text) and not final and first - pos < _MAX_INDENT:
            return None
        step = self._block(text, first, final, out)
        if step == _NO:
            self._at_start = False
            return pos
        return step

    def _block(self, text: str, first: int, final: bool, out: list[str]) -> int | None:
        if self._fence:
            return self._fence_end(text, first, final)
        char = text[first : first + 1]
        self._in_table = self._in_table and char == "|"
        match char:
            case "`" | "~":
                return self._fence_start(text, first, final)
            case "#":
                return self._prefix(_HEADING, _HEADING_BEGUN, text, first, final)
            case "[":
                return self._prefix(_NOTE, _NOTE_BEGUN, text, first, final)
            case "|":
                return self._table(text, first, final, out)
            case _:
                return _NO

    def _prefix(
        self, whole: re.Pattern[str], begun: re.Pattern[str], text: str, first: int, final: bool
    ) -> int | None:
        """Drop a mark at the beginning of a line, and the indent before it."""
        mark = whole.match(text, first)
        if not final and (mark.end() == len(text) if mark else begun.match(text, first)):
            return None
        if mark is None:
            return _NO
        self._at_start = False
        return mark.end()

    def _fence_start(self, text: str, first: int, final: bool) -> int | None:
        fence = _FENCE.match(text, first)
        if fence is None:
            return None if not final and _FENCE_BEGUN.match(text, first) else _NO
        if not final and not fence[0].endswith("\n"):
            return None
        self._fence = fence[1] or fence[2]
        return fence.end()

    def _fence_end(self, text: str, first: int, final: bool) -> int | None:
        char, count = self._fence[0], len(self._fence)
        end = first
        while end < len(text) and text[end] == char and end - first < 64:
            end += 1
        if end == len(text) and not final and end - first < 64:
            return None
        newline = text.find("\n", end, end + _MAX_INDENT)
        rest = text[end : newline if newline >= 0 else end + _MAX_INDENT]
        if end - first < count or rest.strip(" \t"):
            return _NO
        if newline < 0 and not final:
            return None if len(rest) < _MAX_INDENT else _NO
        self._fence = ""
        return newline + 1 if newline >= 0 else end + len(rest)

    def _table(self, text: str, first: int, final: bool, out: list[str]) -> int | None:
        """A row; the first one is a row only if a row of dashes comes next."""
        newline = text.find("\n", first, first + _MAX_ROW)
        if newline < 0 and not final and len(text) < first + _MAX_ROW:
            return None
        if newline < 0 and (len(text) >= first + _MAX_ROW or not self._in_table):
            return _NO
        after = newline + 1 if newline >= 0 else len(text)
        if not self._in_table:
            dashes = _dashes_end(text, after, final)
            if dashes is None or dashes == _NO:
                return dashes
            after, self._in_table = dashes, True
        row = text[first : newline if newline >= 0 else len(text)]
        out.append(self._row(row) + "\n" * (newline >= 0))
        return after

    def _row(self, row: str) -> str:
        row = row.strip().removeprefix("|")
        if row.endswith("|") and not row.endswith("\\|"):
            row = row[:-1]
        return " | ".join([self._cell(cell) for cell in _CELL_END.split(row)])

    def _cell(self, cell: str) -> str:
        inline = Inline(keep_images=self._keep_images)
        inline.scan(cell.strip(), 0, final=True)
        return inline.end_line().replace("\n", " ").strip()


def _dashes_end(text: str, start: int, final: bool) -> int | None:
    """Where the row of dashes at `start` ends; `_NO`, or None while more must be known."""
    newline = text.find("\n", start, start + _MAX_ROW)
    line = text[start : newline if newline >= 0 else start + _MAX_ROW]
    if line.strip(_DELIMITERS):
        return _NO
    if newline < 0 and not final and len(line) < _MAX_ROW:
        return None
    if "-" not in line or not line.lstrip().startswith("|"):
        return _NO
    return newline + 1 if newline >= 0 else start + len(line)
