"""An answer without a finish is an error, wherever in its batch the finish stood."""

import pytest

from services.core.errors import ProtocolError
from services.core.events import Extra, Finish, Text, Usage, WireEvent
from services.core.requests import ChatRequest, Message
from services.pipeline.finish import Outcome, finish

CHAT = ChatRequest("m", (Message("user", "hi"),))


class Account:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begun(self) -> None:
        self.told.append("begun")

    def done(self, outcome: Outcome, usage: Usage | None = None) -> None:
        self.told.append(outcome)


@pytest.mark.parametrize(
    "batches",
    [
        [[Text("a"), Finish("stop")]],
        [[Text("a")], [Finish("stop"), Usage(1, 1, 2)], []],
        # llama.cpp reports its timings in the chunk after the finish, often in the same read
        [[Text("a"), Finish("stop"), Usage(1, 1, 2), Extra("chunk", {"timings": {}})]],
    ],
)
def test_finished_answer_passes(batches: list[list[WireEvent]]) -> None:
    account = Account()
    passed = list(finish(iter(batches), CHAT, account))
    assert passed[: len(batches)] == batches
    assert sum(type(event) is Usage for batch in passed for event in batch) == 1
    assert account.told == ["begun", "ok"]


@pytest.mark.parametrize("batches", [[], [[]], [[Text("a")]], [[Text("a"), Usage(1, 1, 2)]]])
def test_unfinished_answer_raises_after_its_last_batch(batches: list[list[WireEvent]]) -> None:
    passed, account = [], Account()
    with pytest.raises(ProtocolError, match="stopped before its end"):
        for batch in finish(iter(batches), CHAT, account):
            passed.append(batch)
    assert passed == batches
    assert account.told[-1] == "error"
