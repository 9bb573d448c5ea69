"""Take the markdown out of a line while the line is still arriving.

Every mark is looked at once it is clear what follows it, so where the text is cut into pieces
makes no difference. Text behind an open mark waits until the mark is closed, the line ends, or
`HOLD` characters have come: an asterisk that opens nothing is text.
"""

from __future__ import annotations

import re

from services.pipeline.plain_marks import Marks, flanking
from services.pipeline.plain_patterns import (
    ANGLE_BEGUN,
    ANGLE_URL,
    ESCAPABLE,
    HOLD,
    MARKUP,
    MAX_RUN,
    MAX_TARGET,
    RUN,
    SPECIAL,
    TARGET,
    URL_REST,
    closing_ticks,
    code_text,
    link_text,
)


class Inline:
    """One line at a time. With `keep_images`, `![…](…)` stays as it is."""

    def __init__(self, *, keep_images: bool = False) -> None:
        self._keep_images = keep_images
        self._ready: list[str] = []
        self._pieces: list[str] = []
        self._marks = Marks()
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
            stop = self._skip_plain(text, pos)
            self._count(stop - pos)
            if stop == len(text) or text[stop] == "\n":
                return stop
            if self._held > HOLD:
                self._give_up()
            pos = self._mark(text, stop, final)
            if pos < 0:
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
        self._held = self._held + consumed if self._is_open() else 0

    def _is_open(self) -> bool:
        return bool(self._brackets) or bool(self._marks)

    def _give_up(self) -> None:
        self._marks.clear()
        self._brackets.clear()
        self._held = 0

    def _settle(self) -> None:
        if not self._is_open():
            self._ready += self._pieces
            self._pieces.clear()

    def _skip_plain(self, text: str, pos: int) -> int:
        if self._in_url:
            rest = URL_REST.match(text, pos)
            assert rest is not None
            self._say(rest[0])
            pos = rest.end()
            self._in_url = pos == len(text)
        special = SPECIAL.search(text, pos)
        stop = special.start() if special else len(text)
        self._say(text[pos:stop])
        return stop

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

    def _mark(self, text: str, pos: int, final: bool) -> int:
        """Deal with the mark at `pos`; the position after it, or -1 while more must be known."""
        match char := text[pos]:
            case "*" | "_" | "~":
                return self._emphasis(text, pos, final)
            case "`":
                return self._code(text, pos, final)
            case "\\" | ":" | "!":
                return self._two(text, pos, final)
            case "]":
                return self._bracket_end(text, pos, final)
            case _:
                whole, begun = MARKUP[char]
                if removed := whole.match(text, pos):
                    if char == "<":
                        self._say("\n")
                    return removed.end()
                if not final and begun.match(text, pos):
                    return -1
                return self._angle_or_bracket(text, pos, final)

    def _angle_or_bracket(self, text: str, pos: int, final: bool) -> int:
        char = text[pos]
        if char == "[":
            self._brackets.append((self._open(char), self._has_text))
            self._before = char
            return pos + 1
        if char == "<":
            if url := ANGLE_URL.match(text, pos):
                self._say(url[1])
                return url.end()
            if not final and ANGLE_BEGUN.match(text, pos):
                return -1
        self._say(char)
        return pos + 1

    def _two(self, text: str, pos: int, final: bool) -> int:
        """An escape, a URL's `://`, or the beginning of a picture."""
        char = text[pos]
        wanted = 3 if char == ":" and text[pos + 1 : pos + 2] in ("", "/") else 2
        if len(text) < pos + wanted and not final:
            return -1
        after = text[pos + 1 : pos + 2]
        if char == "!" and after == "[":
            self._brackets.append((self._open("!["), self._has_text))
            self._before = "["
            return pos + 2
        if char == "\\" and after and after in ESCAPABLE:
            self._say(after)
            return pos + 2
        if char == ":" and text.startswith("://", pos):
            self._in_url = True
            self._say("://")
            return pos + 3
        self._say(char)
        return pos + 1

    def _emphasis(self, text: str, pos: int, final: bool) -> int:
        run = RUN.match(text, pos)
        assert run is not None
        end, count, char = run.end(), len(run[0]), text[pos]
        if end == len(text) and count < MAX_RUN and not final:
            return -1
        if count == MAX_RUN or (char == "~" and count != 2):
            self._say(run[0])
            return end
        after = text[end] if end < len(text) else "\n"
        opens, closes = flanking(char, self._before, after)
        if closes:
            count = self._marks.close(char, count, self._pieces)
        if count and opens:
            self._marks.push(char, self._open(char * count), count)
        elif count:
            self._say(char * count)
        self._before = char
        return end

    def _code(self, text: str, pos: int, final: bool) -> int:
        run = RUN.match(text, pos)
        assert run is not None
        start, count = run.end(), len(run[0])
        if start == len(text) and count < MAX_RUN and not final:
            return -1
        newline = text.find("\n", start, start + HOLD)
        limit = newline if newline >= 0 else min(start + HOLD, len(text))
        closing = closing_ticks(count).search(text, start, limit)
        is_all = final or newline >= 0 or len(text) > start + HOLD
        if not is_all and (closing is None or closing.end() == len(text)):
            return -1
        if closing is None:
            self._say(run[0])
            return start
        self._say(code_text(text[start : closing.start()]))
        self._before = "`"
        return closing.end()

    def _bracket_end(self, text: str, pos: int, final: bool) -> int:
        if not self._brackets:
            self._say("]")
            return pos + 1
        if pos + 1 == len(text) and not final:
            return -1
        if text.startswith("(", pos + 1):
            limit = pos + 1 + MAX_TARGET
            if target := TARGET.match(text, pos + 1, limit):
                self._link(target)
                return target.end()
            if not final and len(text) < limit and text.find("\n", pos) < 0:
                return -1
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
        self._marks.drop_after(place)
        del self._pieces[place:]
        self._break_due = False
        if is_image:
            self._has_text = had_text
            self._picture(target)
        else:
            self._say(link_text(label, target))
        self._before = ")"

    def _picture(self, url: str) -> None:
        """A line of its own for the address of a picture."""
        if not url or url.startswith("sediment:"):
            return
        if self._has_text:
            self._pieces.append("\n")
        self._say(url)
        self._has_text, self._break_due = False, True
