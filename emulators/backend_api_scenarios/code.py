"""Scenarios of the Python tool: code, its output, plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from .steps import Step
from .turn import Turn


def code(turn: Turn) -> Iterator[Step]:
    """`print(1)`, output `1` with a newline, `It is 1.`"""
    answer = turn.assistant()
    return turn.framed(
        _run(turn, ("print(", "1)"), "1\n"), answer.grow("It", " is 1."), answer.finish()
    )


def code_twice(turn: Turn) -> Iterator[Step]:
    """`a()`, output `1`, then `b()` in two deltas, output `2`, then `End`."""
    answer = turn.assistant()
    return turn.framed(
        _run(turn, ("a()",), "1"),
        _run(turn, ("b(", ")"), "2"),
        answer.grow("End"),
        answer.finish(),
    )


def code_in_closing_event(turn: Turn) -> Iterator[Step]:
    """Code and text that come whole, each in its only event."""
    tool_input, answer = turn.assistant("python", "code"), turn.assistant()
    output = turn.tool("python", "execution_output")
    return turn.framed(
        tool_input.finish("print(2)"), output.finish("2\n"), answer.finish("It is 2.")
    )


def plot(turn: Turn) -> Iterator[Step]:
    """`plot()`, output `<<ImageDisplayed>>`, a picture in `aggregate_result`, then `Here is`."""
    picture = turn.image("plot", shade=90)
    shown = {"message_type": "image", "image_url": picture["asset_pointer"], "width": 640}
    result = {"aggregate_result": {"status": "success", "code": "plot()", "messages": [shown]}}
    answer = turn.assistant()
    return turn.framed(
        _run(turn, ("plot()",), "<<ImageDisplayed>>", metadata=result),
        answer.grow("Here is"),
        answer.finish(),
    )


def traceback(turn: Turn) -> Iterator[Step]:
    """Code that raises: the output grows into a traceback."""
    failed = {"aggregate_result": {"status": "failed_with_in_kernel_exception", "messages": []}}
    tool_input, answer = turn.assistant("python", "code"), turn.assistant()
    output = turn.tool("python", "execution_output")
    return turn.framed(
        tool_input.grow("1 / 0"),
        tool_input.finish(),
        output.grow("Traceback (most recent call last):\n", "  Cell In[1], line 1\n"),
        output.finish("ZeroDivisionError: division by zero\n", metadata=failed),
        answer.grow("It cannot", " be divided."),
        answer.finish(),
    )


def _run(
    turn: Turn, deltas: tuple[str, ...], output: str, metadata: Mapping[str, object] | None = None
) -> Iterator[Step]:
    tool_input = turn.assistant("python", "code")
    result = turn.tool("python", "execution_output")
    return chain(
        tool_input.grow(*deltas), tool_input.finish(), result.finish(output, metadata=metadata)
    )


SCENES = {
    "code": code,
    "code_twice": code_twice,
    "code_in_closing_event": code_in_closing_event,
    "plot": plot,
    "traceback": traceback,
}
