"""An answer without a finish is an error, wherever in its batch the finish stood."""

import pytest

from services.core.errors import ProtocolError
from services.core.events import Extra, Finish, Text, Usage, WireEvent
from services.pipeline.guard import end_truthfully


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
    assert list(end_truthfully(iter(batches))) == batches


@pytest.mark.parametrize("batches", [[], [[]], [[Text("a")]], [[Text("a"), Usage(1, 1, 2)]]])
def test_unfinished_answer_raises_after_its_last_batch(batches: list[list[WireEvent]]) -> None:
    passed = []
    with pytest.raises(ProtocolError, match="stopped before its end"):
        for batch in end_truthfully(iter(batches)):
            passed.append(batch)
    assert passed == batches
