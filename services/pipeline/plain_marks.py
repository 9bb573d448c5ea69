"""Emphasis marks of one line of markdown: which runs may open, which may close, which pair up.

The rules are CommonMark's, with two changes: next to a CJK letter punctuation does not matter
(models write `**“so”**这样`), and between two ASCII letters or digits `*` opens nothing (`2*3*4`).
"""

from __future__ import annotations

import unicodedata


def flanking(char: str, before: str, after: str) -> tuple[bool, bool]:
    """Whether a run of `char` between these two characters can open, and whether it can close."""
    left = not after.isspace() and (not _is_punctuation(after) or _is_boundary(before))
    right = not before.isspace() and (not _is_punctuation(before) or _is_boundary(after))
    if char == "_":
        # TeX writes }_{
        opens = left and after != "{" and (not right or _is_punctuation(before))
        return opens, right and (not left or _is_punctuation(after))
    inside_word = _is_word(before) and _is_word(after)
    return left and not inside_word, right


def _is_word(char: str) -> bool:
    return char.isascii() and char.isalnum()


def _is_punctuation(char: str) -> bool:
    return unicodedata.category(char)[0] in "PS"


def _is_boundary(char: str) -> bool:
    return char.isspace() or not char.isascii() or _is_punctuation(char)


class Marks:
    """The open runs of a line. `place` is where in the list of pieces a run stands."""

    def __init__(self) -> None:
        self._open: dict[str, list[tuple[int, int]]] = {"*": [], "_": [], "~": []}

    def __bool__(self) -> bool:
        return any(self._open.values())

    def push(self, char: str, place: int, count: int) -> None:
        self._open[char].append((place, count))

    def clear(self) -> None:
        for runs in self._open.values():
            runs.clear()

    def drop_after(self, place: int) -> None:
        """Forget runs that stand after `place`: they stay as they are."""
        for runs in self._open.values():
            while runs and runs[-1][0] > place:
                runs.pop()

    def close(self, char: str, count: int, pieces: list[str]) -> int:
        """Pair a closing run with open ones, taking both out of `pieces`; how many are left."""
        runs = self._open[char]
        while count and runs:
            place, there = runs.pop()
            used = 2 if count >= 2 and there >= 2 else 1
            count -= used
            pieces[place] = char * (there - used)
            self.drop_after(place)
            if there > used:
                runs.append((place, there - used))
        return count
