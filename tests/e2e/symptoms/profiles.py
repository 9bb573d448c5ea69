"""The same question in every output profile, streamed and not, and what all answers must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.gateway import GatewayProcess

from .support import Told, ask

PROFILES = {
    "N": "normal",
    "B": "bot",
    "M": "bot+markdown_image",
    "P": "bot+plain_image",
    "R": "bot+references",
    "C": "bot+plugins",
}
WAYS = [(profile, stream) for profile in PROFILES for stream in (True, False)]
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")

Answers = Mapping[tuple[str, bool], Told]


class Failure(NamedTuple):
    """What a caller is told; where the upstream is, is not a part of it."""

    status: int
    type: str
    code: str
    words: str


def one(
    process: GatewayProcess, said: Any, token: str, way: tuple[str, bool], **options: Any
) -> Told:
    """The question in one of the `WAYS`."""
    headers = {"X-Output-Profile": PROFILES[way[0]]}
    return ask(process, said, token, stream=way[1], headers=headers, **options)


def everywhere(
    process: GatewayProcess, said: Any, token: str, *, at_once: int = 6, **options: Any
) -> Answers:
    """The question in all of them, so many `at_once`."""
    with ThreadPoolExecutor(at_once) as pool:
        told = pool.map(lambda way: one(process, said, token, way, **options), WAYS)
        return dict(zip(WAYS, told, strict=True))


def failure_of(told: Told) -> Failure:
    error = told.error or {}
    assert set(error) == {"message", "type", "param", "code"}
    words = error["message"]
    assert not _ADDRESS.search(words), words
    return Failure(told.status, error["type"], error["code"], words)


def fails_everywhere(told: Answers, expected: Failure) -> None:
    """No word of an answer, and the same failure in all forms."""
    assert {way: failure_of(t) for way, t in told.items()} == dict.fromkeys(told, expected)
    assert {(t.text, t.finish, t.done) for t in told.values()} == {("", None, False)}


def reads_everywhere(told: Answers, texts: Mapping[str, str]) -> None:
    """Complete answers; `texts` has those of several profiles by their letters."""
    expected = {profile: text for profiles, text in texts.items() for profile in profiles}
    assert set(expected) == set(PROFILES)
    for way, answer in told.items():
        assert (answer.status, answer.linked, answer.done) == (200, expected[way[0]], True), way
        assert answer.finish in ("stop", "length")


def says_everywhere(told: Answers, text: str) -> None:
    """One complete answer in all forms."""
    reads_everywhere(told, {"".join(PROFILES): text})
