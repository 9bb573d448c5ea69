"""Make markdown plain, for clients that show a text as it is, while it is still arriving.

Headings, emphasis, code marks, fences, tables and citation marks go; links keep their address;
pictures become their bare address on a line of its own. Only as much is held back as must be seen
to decide: a mark at the end, a line that may be a fence or belong to a table, and what stands
behind an open mark until that is closed, the line ends, or `HOLD` characters have come: an asterisk
that opens nothing is text. So where the text is cut makes no difference, and the time is linear.
"""

from __future__ import annotations

import functools
import re
import unicodedata

HOLD = 1000
_MAX_TARGET = _MAX_ROW = 4096
_MAX_RUN = 64
_MAX_INDENT = 200
_WAIT = -1
"""More must be known."""
_NO = -2
"""It is not the mark that was looked for."""

_FENCE = re.compile(r"(`{3,64})[^`\n]{0,200}(?:\n|\Z)|(~{3,64})[^\n]{0,200}(?:\n|\Z)")
_FENCE_BEGUN = re.compile(r"(?:`{1,2}|~{1,2})\Z")
_PREFIXES = {
    "#": (re.compile(r"#{1,6}[ \t]{1,200}"), re.compile(r"#{1,6}\Z")),
    "[": (re.compile(r"\[\^[\w-]{1,40}\]:[ \t]{0,200}"), re.compile(r"\[(?:\^[\w-]{0,40}\]?)?\Z")),
}
"""Marks that go at the beginning of a line: headings, notes; whole and begun."""
_CELL_END = re.compile(r"(?<!\\)\|")

_SPECIAL = re.compile(r"[\n*_~`\\\[\]]|!(?=\[|\Z)|:(?=//|/?\Z)|<(?=[hb]|\Z)|【(?=[0-9]|\Z)|\ue200")
_URL_END = re.compile(r"[\s<>()\[\]*`\"']")
_TARGET = re.compile(
    r"\([ \t]*<?((?:[^\s()<>]++|\([^\s()<>]*+\))*+)>?"
    r"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ \t]*\)"
)
_ESCAPABLE = "*_`~#|"
_REMOVED = {
    "[": (re.compile(r"\[\^[\w-]{1,40}\]"), re.compile(r"\[(?:\^[\w-]{0,40})?\Z")),
    "【": (
        re.compile(r"【[0-9]{1,9}(?::[0-9]{1,9})?†[^】\n]{0,100}】"),
        re.compile(r"【(?:[0-9]{1,9}(?::[0-9]{0,9})?(?:†[^】\n]{0,100})?)?\Z"),
    ),
    "\ue200": (
        re.compile(r"\ue200[^\ue201\n]{0,300}\ue201"),
        re.compile(r"\ue200[^\ue201\n]{0,300}\Z"),
    ),
    "<": (re.compile(r"<br ?/?>"), re.compile(r"<(?:b(?:r(?: ?/?)?)?)?\Z")),
}
"""Marks that go: footnotes, 【5†source】, private-use citations, line breaks; whole and begun."""
_ANGLE_URL = re.compile(r"<(https?://[^\s<>]{1,2000})>")
_ANGLE_BEGUN = re.compile(r"<(?:h(?:t(?:t(?:p(?:s?(?:://?[^\s<>]{0,2000}|:)?)?)?)?)?)?\Z")


class PlainText:
    """One text, fed in any pieces. With `keep_images`, markdown pictures stay as they are."""

    def __init__(self, *, keep_images: bool = False) -> None:
        self._keep_images = keep_images
        self._inline = _Inline(keep_images)
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
                if step == _WAIT:
                    break
            elif self._fence:
                step = (text.find("\n", pos) + 1) or len(text)
                self._at_start = text[step - 1] == "\n"
                out.append(text[pos:step])
            else:
                step = self._inline.scan(text, pos, final=final)
                if step < len(text) and text[step] == "\n":
                    out.append(self._inline.end_line() + "\n")
                    self._at_start = True
                    step += 1
                elif step == pos:
                    break
            pos = step
        self._buffer = text[pos:]
        out.append(self._inline.take())
        return "".join(out)

    def _line_start(self, text: str, pos: int, final: bool, out: list[str]) -> int:
        """Decide what the line at `pos` is; where to go on, or `_WAIT`."""
        first = _end_of(" \t", text, pos, _MAX_INDENT)
        if first == len(text) and not final and first - pos < _MAX_INDENT:
            return _WAIT
        char = text[first : first + 1]
        self._in_table = self._in_table and char == "|"
        step = _NO
        if self._fence:
            step = self._fence_end(text, first, final)
        elif char in ("`", "~"):
            step = self._fence_start(text, first, final)
        elif char == "|":
            step = self._table(text, first, final, out)
        elif char in _PREFIXES:
            step = self._prefix(text, first, final)
        if step != _NO:
            return step
        self._at_start = False
        return pos

    def _prefix(self, text: str, first: int, final: bool) -> int:
        """Drop a mark at the beginning of a line, and the indent before it."""
        whole, begun = _PREFIXES[text[first]]
        mark = whole.match(text, first)
        if not final and (mark.end() == len(text) if mark else begun.match(text, first)):
            return _WAIT
        if mark is None:
            return _NO
        self._at_start = False
        return mark.end()

    def _fence_start(self, text: str, first: int, final: bool) -> int:
        fence = _FENCE.match(text, first)
        if fence is None:
            return _WAIT if not final and _FENCE_BEGUN.match(text, first) else _NO
        if not final and not fence[0].endswith("\n"):
            return _WAIT
        self._fence = fence[1] or fence[2]
        return fence.end()

    def _fence_end(self, text: str, first: int, final: bool) -> int:
        end = _end_of(self._fence[0], text, first, _MAX_RUN)
        if end == len(text) and not final and end - first < _MAX_RUN:
            return _WAIT
        newline = text.find("\n", end, end + _MAX_INDENT)
        rest = text[end : newline if newline >= 0 else end + _MAX_INDENT]
        if end - first < len(self._fence) or rest.strip(" \t"):
            return _NO
        if newline < 0 and not final:
            return _WAIT if len(rest) < _MAX_INDENT else _NO
        self._fence = ""
        return newline + 1 if newline >= 0 else end + len(rest)

    def _table(self, text: str, first: int, final: bool, out: list[str]) -> int:
        """A row; the first one is a row only if a row of dashes comes next."""
        newline = text.find("\n", first, first + _MAX_ROW)
        if newline < 0 and not final and len(text) < first + _MAX_ROW:
            return _WAIT
        if newline < 0 and (len(text) >= first + _MAX_ROW or not self._in_table):
            return _NO
        after = newline + 1 if newline >= 0 else len(text)
        if not self._in_table:
            after = _dashes_end(text, after, final)
            if after < 0:
                return after
            self._in_table = True
        row = text[first : newline if newline >= 0 else len(text)].strip().removeprefix("|")
        if row.endswith("|") and not row.endswith("\\|"):
            row = row[:-1]
        out.append(" | ".join([self._cell(cell) for cell in _CELL_END.split(row)]))
        out.append("\n" * (newline >= 0))
        return after

    def _cell(self, cell: str) -> str:
        inline = _Inline(self._keep_images)
        inline.scan(cell.strip(), 0, final=True)
        return inline.end_line().replace("\n", " ").strip()


def _dashes_end(text: str, start: int, final: bool) -> int:
    """Where the row of dashes at `start` ends; `_NO`, or `_WAIT`."""
    newline = text.find("\n", start, start + _MAX_ROW)
    line = text[start : newline if newline >= 0 else start + _MAX_ROW]
    if line.strip("|:- \t"):
        return _NO
    if newline < 0 and not final and len(line) < _MAX_ROW:
        return _WAIT
    if "-" not in line or not line.lstrip().startswith("|"):
        return _NO
    return newline + 1 if newline >= 0 else start + len(line)


def _end_of(chars: str, text: str, pos: int, most: int) -> int:
    """Where a run of `chars` at `pos` ends."""
    part = text[pos : pos + most]
    return pos + len(part) - len(part.lstrip(chars))


class _Inline:
    """What stands within a line, one line at a time.

    `_pieces` are what was said behind the first open mark, with a piece for each mark. `_marks` are
    open runs of emphasis: character, place in `_pieces`, length. `_brackets` are a place, and
    whether the line had text before it.
    """

    def __init__(self, keep_images: bool) -> None:
        self._keep_images = keep_images
        self._ready: list[str] = []
        self._pieces: list[str] = []
        self._marks: list[tuple[str, int, int]] = []
        self._brackets: list[tuple[int, bool]] = []
        self._held = 0
        self._in_url = False
        self.begin_line()

    def begin_line(self, before: str = "\n") -> None:
        """Start after the character `before`, a newline unless text of others came between."""
        self._before = before
        self._has_text = before != "\n"
        self._break_due = False

    def scan(self, text: str, pos: int, *, final: bool) -> int:
        """Take `text` in from `pos`; where it stopped: at a newline, at the end, or at a mark of
        which more must be known. `final`: nothing more will come.
        """
        while pos < len(text):
            stop = pos
            if self._in_url:
                end = _URL_END.search(text, pos)
                stop = end.start() if end else len(text)
                self._in_url = end is None
                self._say(text[pos:stop])
            special = _SPECIAL.search(text, stop)
            plain, stop = stop, special.start() if special else len(text)
            self._say(text[plain:stop])
            self._count(stop - pos)
            if stop == len(text) or text[stop] == "\n":
                return stop
            if self._held > HOLD:
                self._give_up()
            pos = self._mark(text, stop, final)
            if pos == _WAIT:
                return stop
            self._count(pos - stop)
        return pos

    def take(self) -> str:
        """What is certain by now."""
        if self._held > HOLD:
            self._give_up()
        self._settle()
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def end_line(self) -> str:
        """All there is: marks that are still open were none."""
        self._give_up()
        self._in_url = False
        self.begin_line()
        return self.take()

    def _count(self, consumed: int) -> None:
        self._held = self._held + consumed if self._marks or self._brackets else 0

    def _give_up(self) -> None:
        self._marks.clear()
        self._brackets.clear()
        self._held = 0

    def _settle(self) -> None:
        if not self._marks and not self._brackets:
            self._ready += self._pieces
            self._pieces.clear()

    def _say(self, text: str) -> None:
        """Add text that is no mark."""
        if not text:
            return
        self._before = text[-1]
        if self._break_due:
            text = text.lstrip(" \t")
        if text:
            self._end_picture_line()
            self._pieces.append(text)
            self._has_text = self._has_text or not text.isspace()

    def _end_picture_line(self) -> None:
        if self._break_due:
            self._break_due = False
            self._pieces.append("\n")

    def _open(self, mark: str) -> int:
        """Add a mark that may turn out to be text; its place."""
        self._end_picture_line()
        self._settle()
        self._pieces.append(mark)
        return len(self._pieces) - 1

    def _open_bracket(self, mark: str) -> None:
        self._brackets.append((self._open(mark), self._has_text))
        self._before = "["

    def _mark(self, text: str, pos: int, final: bool) -> int:
        """Deal with the mark at `pos`; the position after it, or `_WAIT`."""
        match char := text[pos]:
            case "*" | "_" | "~":
                return self._emphasis(text, pos, final)
            case "`":
                return self._code(text, pos, final)
            case "\\" | ":" | "!":
                return self._escape_or_url_or_picture(text, pos, final)
            case "]":
                return self._bracket_end(text, pos, final)
        whole, begun = _REMOVED[char]
        if removed := whole.match(text, pos):
            if char == "<":
                self._say("\n")
            return removed.end()
        if not final and begun.match(text, pos):
            return _WAIT
        if char == "[":
            self._open_bracket(char)
            return pos + 1
        if char == "<":
            if url := _ANGLE_URL.match(text, pos):
                self._say(url[1])
                return url.end()
            if not final and _ANGLE_BEGUN.match(text, pos):
                return _WAIT
        self._say(char)
        return pos + 1

    def _escape_or_url_or_picture(self, text: str, pos: int, final: bool) -> int:
        char, after = text[pos], text[pos + 1 : pos + 2]
        wanted = 3 if char == ":" and after in ("", "/") else 2
        if len(text) < pos + wanted and not final:
            return _WAIT
        if char == "!" and after == "[":
            self._open_bracket("![")
            return pos + 2
        if char == "\\" and after and after in _ESCAPABLE:
            self._say(after)
            return pos + 2
        if char == ":" and text.startswith("://", pos):
            self._in_url = True
            self._say("://")
            return pos + 3
        self._say(char)
        return pos + 1

    def _emphasis(self, text: str, pos: int, final: bool) -> int:
        char, end = text[pos], _end_of(text[pos], text, pos, _MAX_RUN)
        count = end - pos
        if end == len(text) and count < _MAX_RUN and not final:
            return _WAIT
        if count == _MAX_RUN or (char == "~" and count != 2):
            self._say(text[pos:end])
            return end
        opens, closes = _flanking(char, self._before, text[end] if end < len(text) else "\n")
        if closes:
            count = self._close(char, count)
        if count and opens:
            place = self._open(char * count)
            self._marks.append((char, place, count))
        elif count:
            self._say(char * count)
        self._before = char
        return end

    def _close(self, char: str, count: int) -> int:
        """Pair a closing run with open ones, taking both out; how many are left. Marks between two
        that pair stay as they are.
        """
        marks, at = self._marks, len(self._marks)
        while count and at:
            at -= 1
            opened, place, there = marks[at]
            if opened == char:
                used = 2 if count >= 2 and there >= 2 else 1
                count -= used
                self._pieces[place] = char * (there - used)
                del marks[at:]
                if there > used:
                    marks.append((char, place, there - used))
                    at += 1
        return count

    def _code(self, text: str, pos: int, final: bool) -> int:
        start = _end_of("`", text, pos, _MAX_RUN)
        if start == len(text) and start - pos < _MAX_RUN and not final:
            return _WAIT
        newline = text.find("\n", start, start + HOLD)
        limit = newline if newline >= 0 else min(start + HOLD, len(text))
        closing = _closing_ticks(start - pos).search(text, start, limit)
        is_all = final or newline >= 0 or len(text) > start + HOLD
        if not is_all and (closing is None or closing.end() == len(text)):
            return _WAIT
        if closing is None:
            self._say(text[pos:start])
            return start
        code = text[start : closing.start()]
        if code.strip() and code[0] == code[-1] == " ":  # they only part it from the backticks
            code = code[1:-1]
        self._say(code)
        self._before = "`"
        return closing.end()

    def _bracket_end(self, text: str, pos: int, final: bool) -> int:
        if self._brackets:
            if pos + 1 == len(text) and not final:
                return _WAIT
            if text.startswith("(", pos + 1):
                limit = pos + 1 + _MAX_TARGET
                if target := _TARGET.match(text, pos + 1, limit):
                    self._link(target)
                    return target.end()
                if not final and len(text) < limit and text.find("\n", pos) < 0:
                    return _WAIT
            self._brackets.pop()
        self._say("]")
        return pos + 1

    def _link(self, found: re.Match[str]) -> None:
        place, had_text = self._brackets.pop()
        target = found[1]
        is_image = self._pieces[place] == "!["
        if is_image and self._keep_images:
            self._say(f"]{found[0]}")
            return
        label = "".join(self._pieces[place + 1 :])
        while self._marks and self._marks[-1][1] > place:
            self._marks.pop()
        del self._pieces[place:]
        self._break_due = False
        address = target if is_image else target.removeprefix("mailto:")
        if is_image:
            self._has_text = had_text
            if address and not address.startswith("sediment:"):
                self._pieces += ["\n"] * had_text
                self._say(address)
                self._has_text, self._break_due = False, True
        elif not address or address.startswith(("#", "sediment:")) or label in (target, address):
            self._say(label)
        else:
            self._say(f"{label} ({address})" if label.strip() else address)
        self._before = ")"


@functools.lru_cache(maxsize=_MAX_RUN)
def _closing_ticks(count: int) -> re.Pattern[str]:
    return re.compile(rf"(?<!`)`{{{count}}}(?!`)")


def _flanking(char: str, before: str, after: str) -> tuple[bool, bool]:
    """Whether a run of `char` between these two characters can open, and whether it can close.

    The rules are CommonMark's, with two changes: next to a CJK letter punctuation does not matter
    (models write `**“so”**这样`), and between two ASCII letters or digits `*` opens nothing
    (`2*3*4`).
    """
    left = not after.isspace() and (not _is_punctuation(after) or _is_boundary(before))
    right = not before.isspace() and (not _is_punctuation(before) or _is_boundary(after))
    if char == "_":
        # TeX writes }_{
        opens = left and after != "{" and (not right or _is_punctuation(before))
        return opens, right and (not left or _is_punctuation(after))
    inside_word = all(side.isascii() and side.isalnum() for side in (before, after))
    return left and not inside_word, right


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def _is_boundary(char: str) -> bool:
    return char.isspace() or not char.isascii() or _is_punctuation(char)
