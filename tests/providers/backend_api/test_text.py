"""The pure parts that read a growing text."""

from __future__ import annotations

import random
import time

import pytest

from services.providers.backend_api.citations import Link, Mark, Marker, Piece, Scanner
from services.providers.backend_api.events import Replacement, TextDiff
from services.providers.backend_api.gpts import gizmo_id
from services.providers.backend_api.upstream_events import Content

CITE = "\ue200cite\ue202turn0search0\ue202turn0news1\ue201"
NAVIGATION = "\ue200navlist\ue202The sky\ue201"
OTTER = '\ue200entity\ue202["animal","otter"]\ue201'
ANSWER = (
    "A【5†source】【6†来源】(x) 【8:0†a b.pdf】 [f](sandbox:/mnt/data/a (1).csv)(sandbox) "
    "(sandbox:/mnt/季 度.csv) 【x】 【5】 【5†so\nurce】 ((sandbox:/b) 【【7†source】 "
    f"\ue203Sky\ue204 {CITE}{CITE}. {NAVIGATION}An {OTTER} \ue200cite\ue202turn{CITE}"
    "\ue200Prose\ue206 (sand"
)
PIECES: list[Piece] = [
    "A",
    Mark("【5†source】", "5", "source"),
    Mark("【6†来源】", "6", "来源"),
    "(x) ",
    Mark("【8:0†a b.pdf】", "8:0", "a b.pdf"),
    " [f]",
    Link("sandbox:/mnt/data/a (1).csv"),
    "(sandbox) ",
    Link("sandbox:/mnt/季 度.csv"),
    " 【x】 【5】 【5†so\nurce】 (",
    Link("sandbox:/b"),
    " 【",
    Mark("【7†source】", "7", "source"),
    " Sky",
    Marker(CITE, "cite", ("turn0search0", "turn0news1")),
    Marker(CITE, "cite", ("turn0search0", "turn0news1")),
    ".",
    Marker(NAVIGATION, "navlist", ("The sky",)),
    "An ",
    Marker(OTTER, "entity", ('["animal","otter"]',)),
    Marker(CITE, "cite", ("turn0search0", "turn0news1")),
    "Prose (sand",
]


def merged(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, str) and isinstance(last, str):
            out[-1] = last + piece
        else:
            out.append(piece)
    return out


def scanned(deltas: list[str]) -> list[Piece]:
    scanner = Scanner()
    pieces = [piece for delta in deltas for piece in scanner.feed(delta)]
    return merged(pieces + scanner.flush())


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.sample(range(1, len(text)), rng.randint(0, len(text) - 1)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def test_scanner_finds_marks_and_links_in_one_piece() -> None:
    assert scanned([ANSWER]) == PIECES


def test_scanner_finds_the_same_letter_by_letter() -> None:
    assert scanned(list(ANSWER)) == PIECES


def test_scanner_finds_the_same_however_the_text_is_cut() -> None:
    seed = random.randrange(10**9)
    print(f"seed={seed}")
    rng = random.Random(seed)
    for _ in range(300):
        assert scanned(cut(ANSWER, rng)) == PIECES


def test_scanner_holds_back_only_from_a_possible_start() -> None:
    scanner = Scanner()
    assert scanner.feed("see (a) and 【5†so") == ["see (a) and "]
    assert scanner.feed("urce】 done (") == [Mark("【5†source】", "5", "source"), " done "]
    assert scanner.feed("x") == ["(x"]


def test_scanner_holds_back_only_from_an_unclosed_newer_mark() -> None:
    scanner = Scanner()
    assert scanner.feed("Sky is") == ["Sky is"]
    assert scanner.feed(" blue \ue200") == [" blue"]
    assert scanner.feed("cite\ue202turn0search0") == []
    mark = Marker("\ue200cite\ue202turn0search0\ue201", "cite", ("turn0search0",))
    assert scanner.feed("\ue201. It") == [mark, ". It"]


@pytest.mark.parametrize(
    "rest",
    [
        "\ue200",
        "\ue200cit",
        "\ue200cite\ue202turn0sea",
        '\ue200genui\ue202{"chart":{"data":[1, 2',
        "\ue202\ue201\ue20f",
        "\ue200cite\ue202a\ue200cite\ue202b",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_unclosed_newer_mark_never_leaks(rest: str, size: int) -> None:
    text = f"Sky{rest}"
    assert scanned([text[i : i + size] for i in range(0, len(text), size)]) == ["Sky"]


def test_newer_mark_that_never_closes_loses_no_prose() -> None:
    began = time.monotonic()
    text = "a" * 100_000
    pieces = scanned(["\ue200cite\ue202", *text])
    assert pieces == [f"cite{text}"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("start", ["(sandbox:/", "【5†"])
def test_scanner_gives_up_on_what_never_ends(start: str) -> None:
    scanner = Scanner()
    text = start + "a" * 20000
    began = time.monotonic()
    given = "".join(str(p) for c in text for p in scanner.feed(c))
    assert given == text
    assert time.monotonic() - began < 5


def grown(diff: TextDiff, *texts: str) -> list[str]:
    """What each of the whole texts adds."""
    return [diff.advance(Content("text", [text])) for text in texts]


def test_growth_gives_increments_of_several_sizes() -> None:
    text = "".join(random.Random(3).choices("abc 你", k=500))
    ends = [0, 1, 70, 71, 71, 300, 500]
    assert grown(TextDiff(), *(text[:end] for end in ends)) == [
        text[a:b] for a, b in zip([0, *ends], ends, strict=False)
    ]


def test_growth_after_a_shorter_repetition_says_nothing_twice() -> None:
    told = grown(TextDiff(), "Hello world", "Hello", "Hello world", "Hello world!")
    assert "".join(told) == "Hello world!"


def test_rewritten_text_goes_on_from_the_common_start() -> None:
    told = grown(TextDiff(), "The sky is gray", "The sky is blue today", "The sky is blue today.")
    assert told == ["The sky is gray", "blue today", "."]


def test_growth_is_linear_in_a_long_reply() -> None:
    text = "The quick brown otter swims. " * 20000
    events = [text[: end + 1] for end in range(0, len(text), 2000)]
    diff = TextDiff()
    began = time.process_time()
    assert "".join(grown(diff, *events)) == events[-1]
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_marker_is_replaced_however_it_is_cut(size: int) -> None:
    replacement = Replacement("<<Shown>>", "NOTE")
    text = "a<<Shown>>b<<<Shown>>c<<Sho"
    pieces = [replacement.feed(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join(pieces) + replacement.flush() == "aNOTEb<NOTEc<<Sho"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("g-abc", "g-abc"),
        ("g-abc-my-gpt", "g-abc-my-gpt"),
        ("gpt-4-gizmo-g-abc", "g-abc"),
        ("https://chat.example/g/g-abc-my-gpt/", "g-abc-my-gpt"),
        ("gpt-4-gizmo-", None),
        ("gpt-4", None),
        ("g-", None),
        ("g-abc/../x", None),
        ("gemini", None),
    ],
)
def test_forms_of_a_gpts_id(text: str, found: str | None) -> None:
    assert gizmo_id(text) == found
