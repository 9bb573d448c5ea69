"""The end of a request is seen however it comes, once, and its tokens are counted."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from services.core.errors import ProtocolError, RateLimited, Unavailable
from services.core.events import Event, Image, Text, Usage, WireEvent
from services.core.models import Secret
from services.keys import Admission, KeyChanges, NewKey, RequestUsage, Served
from services.pipeline.finish import finish
from services.store import Store

from .support import CHAT, MODEL, Desk, FernetVault, answer

CUSTOM = Served("custom", MODEL)


class Source:
    """Events that notice their closing."""

    def __init__(self, events: Iterator[list[WireEvent]]) -> None:
        self._events = events
        self.closed = False

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> list[WireEvent]:
        return next(self._events)

    def close(self) -> None:
        self.closed = True


def cut_off() -> Iterator[list[WireEvent]]:
    yield [Text("12345678" * 3)]
    raise ProtocolError("the upstream stopped")


def refused() -> Iterator[list[WireEvent]]:
    yield from ()
    raise ProtocolError("nothing came")


def last_turn(desk: Desk) -> RequestUsage:
    desk.recorder.flush()
    assert len(desk.turns) == 1
    return desk.turns[0]


def begin(desk: Desk, key: str, events: Source) -> Iterator[list[WireEvent]]:
    with desk.admit(key) as admission:
        admission.permit(CHAT.model)
        admission.choose(CUSTOM)
        return finish(events, CHAT, admission)


def test_finished_answer(desk: Desk) -> None:
    key, record = desk.key(concurrent_streams=1)
    source = Source(answer(10))
    batches = list(begin(desk, key, source))
    assert [len(batch) for batch in batches] == [1, 0, 2, 1]
    turn = last_turn(desk)
    assert (turn.key, turn.model, turn.provider) == (record.id, "small", "custom")
    assert (turn.outcome, turn.prompt_tokens, turn.completion_tokens) == ("ok", 8, 2)
    assert turn.first_token is not None
    assert source.closed
    assert desk.control.under_way == 0


def test_client_that_leaves_is_counted_as_cancelled_with_its_tokens(desk: Desk) -> None:
    key, _ = desk.key(tokens_per_minute=10)
    source = Source(answer())
    events = begin(desk, key, source)
    next(events)
    assert desk.control.under_way == 1
    events.close()  # type: ignore[attr-defined]
    assert source.closed
    turn = last_turn(desk)
    assert turn.outcome == "cancelled"
    assert (turn.prompt_tokens, turn.completion_tokens) == (10, 1)
    with pytest.raises(RateLimited):
        desk.admit(key)


def test_forgotten_stream_ends_as_well(desk: Desk) -> None:
    key, _ = desk.key(concurrent_streams=1)
    events = begin(desk, key, Source(answer()))
    next(events)
    del events
    assert last_turn(desk).outcome == "cancelled"
    desk.admit(key).done("ok")


def test_cut_answer_is_an_error_that_counts_what_was_said(desk: Desk) -> None:
    key, _ = desk.key()
    with pytest.raises(ProtocolError):
        list(begin(desk, key, Source(cut_off())))
    turn = last_turn(desk)
    assert (turn.outcome, turn.prompt_tokens, turn.completion_tokens) == ("error", 10, 6)


def test_answer_that_never_began_costs_no_tokens(desk: Desk) -> None:
    key, _ = desk.key()
    with pytest.raises(ProtocolError):
        list(begin(desk, key, Source(refused())))
    turn = last_turn(desk)
    assert (turn.outcome, turn.prompt_tokens, turn.first_token) == ("error", 0, None)


def test_request_that_came_to_no_question_is_none(desk: Desk) -> None:
    key, _ = desk.key(concurrent_streams=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="bad body"), desk.admit(key):
            raise ValueError("bad body")
    desk.recorder.flush()
    assert desk.turns == []
    assert desk.control.under_way == 0


def draw(admission: Admission, turns: int) -> Generator[None, None, bytes]:
    """Work that takes several turns of a model."""
    for _ in range(turns):
        drawn: list[list[Event]] = [[Text("here"), Image(data=b"1")], [Usage(3, 4, 7)]]
        for _ in admission.tap(iter(drawn)):
            yield
    return b"body"


def test_work_of_several_turns_is_one_request(desk: Desk) -> None:
    key, _ = desk.key(concurrent_streams=1)
    with desk.admit(key) as admission:
        admission.permit("small")
        work = admission.during(draw(admission, 2))
    with pytest.raises(RateLimited):
        desk.admit(key)
    with pytest.raises(StopIteration) as end:
        while True:
            next(work)
    assert end.value.value == b"body"
    turn = last_turn(desk)
    assert (turn.outcome, turn.images, turn.prompt_tokens, turn.completion_tokens) == (
        "ok",
        2,
        6,
        8,
    )
    desk.admit(key).done("ok")


def test_work_that_is_given_up_is_cancelled(desk: Desk) -> None:
    key, _ = desk.key()
    with desk.admit(key) as admission:
        admission.permit("small")
        work = admission.during(draw(admission, 2))
    next(work)
    work.close()
    assert (last_turn(desk).outcome, last_turn(desk).images) == ("cancelled", 1)


def test_pictures_are_noted(desk: Desk) -> None:
    key, _ = desk.key()
    with desk.admit(key) as admission:
        admission.permit("small")
        admission.choose(CUSTOM)
        list(admission.tap(iter([[Image(data=b"1"), Image(data=b"2")], [Usage(3, 0, 3)]])))
        admission.done("ok", admission.usage)
    turn = last_turn(desk)
    assert (turn.outcome, turn.images, turn.prompt_tokens) == ("ok", 2, 3)


class TestOwnCredential:
    def test_is_given_for_its_provider_only(self, desk: Desk) -> None:
        key, _ = desk.editor.create(NewKey(name="b", provider_keys={"custom": "sk-canary7f3e"}))
        admission = desk.admit(key)
        credential = admission.choose(CUSTOM)
        assert credential is not None
        assert credential.token == Secret("sk-canary7f3e")
        assert not credential.from_caller
        assert "sk-canary7f3e" not in repr(admission.record)
        assert admission.choose(Served("another", MODEL)) is None
        admission.done("ok")

    def test_that_cannot_be_read_is_no_reason_to_use_the_operators(
        self, desk: Desk, store: Store
    ) -> None:
        key, record = desk.editor.create(
            NewKey(name="b", provider_keys={"custom": "sk-canary7f3e"})
        )
        elsewhere = Desk(store, vault=FernetVault())
        with elsewhere.admit(key) as admission, pytest.raises(Unavailable):
            admission.choose(CUSTOM)
        elsewhere.editor.change(record.id, KeyChanges(provider_keys={"custom": "new-canary7f3e"}))
        with elsewhere.admit(key) as admission:
            assert admission.choose(CUSTOM) is not None
