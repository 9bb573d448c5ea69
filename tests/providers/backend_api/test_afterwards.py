"""What happens after an answer: deletion, and conversations that go on."""

from __future__ import annotations

import time

import pytest

from services.config import RefreshToAccess
from services.core.errors import InvalidRequest
from services.core.events import Conversation, File, Text
from services.core.requests import ChatRequest, Message

from .support import STOP, Stage, wait_for


def conversation(stage: Stage, said: str = "Hi") -> str:
    told = [e for batch in stage.ask(said) for e in batch if isinstance(e, Conversation)]
    return told[-1].id


def test_conversation_is_deleted_after_its_downloads(stage: Stage) -> None:
    provider = stage.provider(need_delete_conversation_after_response=True)
    events = stage.events("#sandbox", provider=provider)
    assert any(isinstance(e, File) for e in events)
    assert stage.background.drain(5)
    calls = [call.endpoint for call in stage.upstream.log]
    assert calls == ["conversation", "interpreter_download", "hide"]
    assert stage.bodies()[0]["history_and_training_disabled"] is False
    [made] = stage.upstream.state.conversations.values()
    assert made.hidden


def test_failed_deletion_is_tried_again(stage: Stage) -> None:
    stage.upstream.script({"endpoint": "hide", "status": 500})
    provider = stage.provider(need_delete_conversation_after_response=True)
    stage.events("Hi", provider=provider)
    assert wait_for(lambda: stage.upstream.count("hide") == 2)


@pytest.mark.parametrize("scene", ["cut_no_done", "error_after_text"])
def test_conversation_of_a_broken_answer_is_deleted_too(stage: Stage, scene: str) -> None:
    provider = stage.provider(need_delete_conversation_after_response=True)
    stage.failure(f"#{scene}", provider=provider)
    assert wait_for(lambda: stage.upstream.count("hide") == 1)


def test_conversation_is_deleted_when_the_client_leaves(stage: Stage) -> None:
    provider = stage.provider(need_delete_conversation_after_response=True)
    route = provider.route("gpt-4-s")
    assert route is not None
    request = ChatRequest("gpt-4-s", (Message("user", "#silence[seconds=5]"),))
    events = provider.stream(request, route, stage.credential())
    next(batch for batch in events if batch)
    events.close()  # type: ignore[attr-defined]  # it is a generator
    assert wait_for(lambda: stage.upstream.count("hide") == 1)


@pytest.mark.parametrize("deletes", [True, "temporary"])
def test_conversation_that_goes_away_is_not_named(stage: Stage, deletes: bool | str) -> None:
    provider = stage.provider(need_delete_conversation_after_response=deletes)
    told = [e for batch in stage.ask("Hi", provider=provider) for e in batch]
    assert not any(isinstance(e, Conversation) for e in told)


def test_conversation_goes_on_with_the_new_messages_alone(stage: Stage) -> None:
    name = conversation(stage)
    history = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And now?")]
    assert stage.events(history, conversation_id=name)[-1] == STOP
    body = stage.bodies()[1]
    assert body["conversation_id"] == name
    known = stage.upstream.state.conversations[name].messages
    assert body["parent_message_id"] in known
    assert [m["content"]["parts"] for m in body["messages"]] == [["And now?"]]


def test_conversation_outlives_a_renewed_token(stage: Stage) -> None:
    name = conversation(stage)
    stage.upstream.accounts["alice"].issue()
    assert stage.events("Go on", conversation_id=name)[-1] == STOP


@pytest.mark.parametrize("name", ["not-one-of-ours", "../../x", "x" * 300])
def test_unknown_conversation_is_refused(stage: Stage, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        stage.events("Hi", conversation_id=name)
    assert caught.value.status == 404
    assert caught.value.param == "conversation_id"
    assert stage.upstream.log == []


def test_conversation_of_another_key_is_refused(stage: Stage) -> None:
    name = conversation(stage)
    with pytest.raises(InvalidRequest) as caught:
        stage.events("Hi", conversation_id=name, credential=stage.credential("bob"))
    assert caught.value.status == 404


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_conversation_named_begins_a_new_one(stage: Stage, nothing: str | None) -> None:
    stage.events("Hi", conversation_id=nothing)
    assert "conversation_id" not in stage.bodies()[0]


def test_stream_sleep_time_slows_each_event(stage: Stage) -> None:
    slow = stage.provider(refresh_ToAccess=RefreshToAccess(stream_sleep_time=0.1))
    began = time.monotonic()
    batches = stage.ask("#plain", provider=slow)
    assert all(len(batch) <= 1 for batch in batches)
    assert sum(isinstance(e, Text) for batch in batches for e in batch) == 3
    assert time.monotonic() - began >= 0.3


def test_operators_file_server_replaces_the_host_of_downloads(stage: Stage) -> None:
    provider = stage.provider(file_server_host="https://files.example:8443")
    [file] = [e for e in stage.events("#sandbox", provider=provider) if isinstance(e, File)]
    assert file.url is not None
    assert file.url.startswith("https://files.example:8443/blob/file-")
