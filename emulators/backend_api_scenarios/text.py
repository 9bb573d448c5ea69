"""Scenarios of text alone."""

from __future__ import annotations

from collections.abc import Iterator

from .steps import Step
from .turn import Turn


def plain(turn: Turn) -> Iterator[Step]:
    """`Hello world!` in three deltas; the last event repeats it."""
    answer = turn.assistant()
    return turn.framed(answer.grow("Hel", "lo world", "!"), answer.finish())


def tail_in_finished(turn: Turn) -> Iterator[Step]:
    """`Hello world!` of which `!` comes only with the finished event."""
    answer = turn.assistant()
    return turn.framed(answer.grow("Hel", "lo world"), answer.finish("!"))


def two_messages(turn: Turn) -> Iterator[Step]:
    """`First answer`, then a second message `Second message text`; each starts from nothing."""
    first, second = turn.assistant(), turn.assistant()
    return turn.framed(
        first.grow("First", " answer"),
        first.finish(end_turn=False),
        second.grow("Sec", "ond message text"),
        second.finish(),
    )


def parentheses(turn: Turn) -> Iterator[Step]:
    """Parentheses that are no sandbox link, some at the end of a delta."""
    answer = turn.assistant()
    deltas = ("f(", "x) = (1 + 2) [see](", "https://ex.com/a) (sand", "y) not (", "a link)")
    return turn.framed(answer.grow(*deltas), answer.finish())


def open_parenthesis_end(turn: Turn) -> Iterator[Step]:
    """`f(x) = 1 (`: the reply ends in an open parenthesis."""
    answer = turn.assistant()
    return turn.framed(answer.grow("f(x) = 1", " ("), answer.finish())


def backticks_and_data_prefix(turn: Turn) -> Iterator[Step]:
    """Text that looks like SSE and like a code fence."""
    answer = turn.assistant()
    deltas = ("Send `data: ", "{}`:\n```\ndata: [DO", "NE]\n\ndata: x\n``", "`\nevent: ping\n")
    return turn.framed(answer.grow(*deltas), answer.finish())


def chinese(turn: Turn) -> Iterator[Step]:
    """Chinese and an emoji, raw UTF-8 on the wire."""
    answer = turn.assistant()
    return turn.framed(answer.grow("你好", "，世界", "。水獭🦦", "很可爱"), answer.finish())


def long(turn: Turn) -> Iterator[Step]:
    """`size` characters (20000) in `events` events (200): traffic is about size * events / 2."""
    size, events = turn.param("size", 20000), turn.param("events", 200)
    text = ("The quick brown otter swims. " * (size // 29 + 1))[:size]
    step = max(1, -(-size // events))
    answer = turn.assistant()
    return turn.framed(
        answer.grow(*(text[i : i + step] for i in range(0, size, step))), answer.finish()
    )


def empty(turn: Turn) -> Iterator[Step]:
    """A turn in which the assistant says nothing."""
    return turn.framed(turn.assistant().finish())


def max_tokens(turn: Turn) -> Iterator[Step]:
    """An answer cut short by the token limit: `finish_details` max_tokens."""
    answer = turn.assistant()
    return turn.framed(answer.grow("Once upon", " a time"), answer.finish(reason="max_tokens"))


def interrupted(turn: Turn) -> Iterator[Step]:
    """An answer the upstream broke off itself: `finish_details` interrupted."""
    answer = turn.assistant()
    return turn.framed(answer.grow("Once upon"), answer.finish(reason="interrupted"))


def o1_thinking(turn: Turn) -> Iterator[Step]:
    """A thinking model: text of the tool `a8km123`, then the answer."""
    thinking, answer = turn.tool("a8km123"), turn.assistant()
    return turn.framed(
        thinking.grow("Counting", " the otters"),
        thinking.finish(),
        answer.grow("There are", " three."),
        answer.finish(),
    )


SCENES = {
    "plain": plain,
    "tail_in_finished": tail_in_finished,
    "two_messages": two_messages,
    "parentheses": parentheses,
    "open_parenthesis_end": open_parenthesis_end,
    "backticks_and_data_prefix": backticks_and_data_prefix,
    "chinese": chinese,
    "long": long,
    "empty": empty,
    "max_tokens": max_tokens,
    "interrupted": interrupted,
    "o1_thinking": o1_thinking,
}
