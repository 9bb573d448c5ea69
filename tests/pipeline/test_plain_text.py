"""Markdown made plain while it arrives: what goes, what stays, and that cutting changes nothing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pipeline.plain_text import PlainText


def plain(*pieces: str, keep_images: bool = False) -> str:
    text = PlainText(keep_images=keep_images)
    return "".join([text.feed(piece) for piece in pieces]) + text.flush()


GONE = [
    ("# Title\n\n###### Deep\n", "Title\n\nDeep\n"),
    ("**bold** and *it* and ***both*** and __b__ and _i_", "bold and it and both and b and i"),
    ("~~old~~ new", "old new"),
    ("a **b *c* d** e", "a b c d e"),
    ("这是**重点**内容", "这是重点内容"),
    ("他说**“你好”**然后", "他说“你好”然后"),
    ("**Note:** text", "Note: text"),
    ("use `x = **p` here", "use x = **p here"),
    ("``a ` b``", "a ` b"),
    ("`` `a` ``", "`a`"),
    ("\\*not\\* \\_it\\_ \\# \\`", "*not* _it_ # `"),
    ("```python\n**ptr = a_b_c;\n# no title\n```\nafter", "**ptr = a_b_c;\n# no title\nafter"),
    ("~~~\n```\n~~~\nx", "```\nx"),
    ("````\n```\ncode\n```\n````\n", "```\ncode\n```\n"),
    ("1. do\n   ```sh\n   ls *\n   ```\n2. done", "1. do\n   ls *\n2. done"),
    ("[docs](https://ex.com/a_b_c)", "docs (https://ex.com/a_b_c)"),
    ("[**docs**](https://ex.com/a(1))!", "docs (https://ex.com/a(1))!"),
    ('[docs](<https://ex.com> "the title")', "docs (https://ex.com)"),
    ("[https://ex.com](https://ex.com)", "https://ex.com"),
    ("[](https://ex.com) [a@b.c](mailto:a@b.c) [up](#top)", "https://ex.com a@b.c up"),
    ("see <https://ex.com/_a_>", "see https://ex.com/_a_"),
    ("one<br>two<br />three", "one\ntwo\nthree"),
    ("![cat](https://ex.com/c.png)", "https://ex.com/c.png"),
    ("A ![a](u1) ![b](u2) B", "A \nu1\nu2\nB"),
    ("A\n![a](u1)\nB", "A\nu1\nB"),
    ("**![a](u1)**\nB", "u1\nB"),
    ("![a](sediment://file_1)B [b](sediment://file_2)", "B b"),
    ("Sky【5†source】 is【3:1†notes.pdf】【6†来源】.", "Sky is."),
    ("Sky\ue200cite\ue202turn0search1\ue201 is.", "Sky is."),
    ("Sky[^1] is.\n\n[^1]: A note", "Sky is.\n\nA note"),
    ("| a | b |\n|---|:-:|\n| **1** | `2` |\n| x \\| y |  |\nend", "a | b\n1 | 2\nx | y | \nend"),
    ("| a |\n|---|", "a\n"),
]


@pytest.mark.parametrize(("markdown", "expected"), GONE)
def test_markdown_goes(markdown: str, expected: str) -> None:
    assert plain(markdown) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3 * 4, 2*3*4, 2**3**4",
        "snake_case and __dunder and CONST_A_B",
        "#hashtag #1 C# ####### seven",
        "*args and **kwargs",
        "char **argv, *p;",
        "* one\n* two\n- three\n+ four\n> quoted\n1. first",
        "***\n---\n* * *",
        "f(x) = 1 (",
        "a[0][1] = b[i]; [x] todo, [ ] todo",
        "【标题】内容 【5",
        "5 < 6 > 4, <b>x</b>, <https",
        "好~ 100~200 ~~~x",
        "https://ex.com/_a_/b__c__?d=*e",
        "|x| < 1\n|y| > 2",
        "`open and **open and [open and ![open",
        "\\(x_{1}\\) and \\[y\\] \\alpha \\\\ \\",
        "$\\mathbf{x}_{i} + \\mathbf{y}_{j}$",
        "[text] (not a link) [a](b c)",
        "wow! :) http:/ : // ::",
        "data: {} & `",
        "",
        "\n\n \n",
    ],
)
def test_text_that_is_no_markdown_stays(text: str) -> None:
    assert plain(text) == text


def test_pictures_can_stay_markdown() -> None:
    text = "A **b** ![c *d](https://ex.com/c_d_.png) e"
    assert plain(text, keep_images=True) == "A b ![c *d](https://ex.com/c_d_.png) e"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Hello", "Hello"),
        ("Hello *", "Hello "),
        ("Hello **wor", "Hello "),
        ("Hello **world**.", "Hello world."),
        ("x = a[", "x = a"),
        ("| a | b", ""),
        ("``", ""),
        ("a:", "a"),
    ],
)
def test_only_a_possible_mark_is_held_back(said: str, shown: str) -> None:
    assert PlainText().feed(said) == shown


def test_an_open_mark_holds_back_one_line_only() -> None:
    text = PlainText()
    assert text.feed("5 *stars, and") == "5 "
    assert text.feed(" more\nnext") == "*stars, and more\nnext"


def test_an_open_mark_does_not_hold_back_for_ever() -> None:
    text = PlainText()
    held = text.feed("**" + "word " * 150)
    assert held == ""
    assert text.feed("word " * 150) == "**" + "word " * 300


def test_text_goes_on_after_a_flush_in_the_line() -> None:
    text = PlainText()
    assert text.feed("see *") + text.flush(then="[[1](u)]") == "see *"
    assert text.feed("# not a title") + text.flush() == "# not a title"
    assert text.feed("# title") + text.flush() == "title"


MARKS = st.sampled_from(
    [*"*_~`#|[]()!<>:\\/\n -†5¹", "**", "```", "~~~", "](", "![", "://", "https://e.x/a_b", "【",
     "【1†source】", "source】", "word", "字", "“", "\n\n", "|---|---|\n", "| a | b |\n", "\ue200",
     "\ue201", "<br>", "[^1]", "[^1]: ", "## ", "\n```\n", "sediment:", "    ", "\t"]
)  # fmt: skip
MARKDOWN = st.lists(st.one_of(MARKS, st.text(max_size=4)), max_size=40).map("".join)


@given(MARKDOWN, st.lists(st.integers(0, 200)), st.booleans())
def test_where_the_text_is_cut_makes_no_difference(
    text: str, cuts: list[int], keep_images: bool
) -> None:
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    whole = plain(text, keep_images=keep_images)
    assert plain(*pieces, keep_images=keep_images) == whole
    assert plain(*text, keep_images=keep_images) == whole


@given(MARKDOWN)
def test_words_are_never_lost(text: str) -> None:
    """Every letter of prose survives; only marks, fence lines and citations may go."""
    prose = "".join(c for c in text if c.isalnum() and c not in "5¹")
    words = "甲" + prose + "乙"
    assert words in plain(f"{words}\n\n{text}")
    assert plain(f"**{words}**") == words


@given(st.text(alphabet=st.characters(categories=["L", "N", "Zs"]) | st.sampled_from(".,;?\n")))
def test_prose_passes_unchanged_and_at_once(text: str) -> None:
    shown = PlainText()
    said = "x" + text
    assert shown.feed(said) + shown.flush() == said


HOSTILE = [
    "*a _b ~~c **d ",
    "[a",
    "[b](",
    "![",
    "` `` ``` ",
    "*",
    "|a",
    "| a\n",
    "【1†",
    "<http",
    "\\",
    "#",
    " ",
    "\n```\n`` ",
    "[^",
    "](a(",
    "\ue200",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_for_hostile_text(unit: str) -> None:
    """Eight times the text in pieces of three: 64 times as long if it were quadratic."""

    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        pieces = [text[i : i + 3] for i in range(0, length, 3)]
        started = time.process_time()
        plain(*pieces)
        return time.process_time() - started

    seconds(4_000)
    assert seconds(64_000) < 30 * max(seconds(8_000), 0.01)
