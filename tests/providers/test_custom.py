"""Which upstream a model name reaches, and what is sent there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emulators.openai_compat import OpenAICompat
from services.core.errors import InvalidRequest, ProtocolError, RateLimited, UpstreamRefused
from services.core.events import Event, Finish, Text
from services.core.models import Credential, Secret
from services.core.requests import ChatRequest, Message, Part, image_part, text_part
from services.providers.custom import Custom, Upstream
from services.providers.registry import Registry
from services.transport import Timeouts, Transport
from tests.contract.folded import folded, plain_text


@pytest.fixture
def wires() -> Iterator[Transport]:
    transport = Transport(Timeouts(5.0, 5.0, 5.0, 20.0))
    yield transport
    transport.close()


@pytest.fixture
def names() -> Custom:
    """Two upstreams that are never asked."""
    transport = Transport()
    first = Upstream(
        "a", "http://127.0.0.1:9/v1", Secret("key-of-a-canary7f3e"), ("shared", "only-a")
    )
    second = Upstream("b", "http://127.0.0.1:9/v1/", None, ("shared", "*"))
    return Custom([first, second], transport)


def answer(
    wires: Transport,
    upstream: OpenAICompat,
    request: ChatRequest,
    credential: Credential | None = None,
    **fields: Any,
) -> list[list[Event]]:
    provider = Custom([Upstream("up", f"{upstream.base_url}/", **fields)], wires)
    route = provider.route(request.model)
    assert route is not None
    return list(provider.stream(request, route, credential or Credential()))


def asking(said: str = "hi", **fields: Any) -> ChatRequest:
    source = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    stream = bool(fields.get("stream"))
    usage = bool(fields.get("stream_options", {}).get("include_usage"))
    messages = (Message("user", said),)
    return ChatRequest("up/emu-small", messages, stream, usage, source=source)


@pytest.mark.parametrize(
    ("model", "upstream", "theirs"),
    [
        ("only-a", "a", "only-a"),
        ("shared", "a", "shared"),
        ("b/shared", "b", "shared"),
        ("b/org/model", "b", "org/model"),
        ("a/anything", "a", "anything"),
    ],
)
def test_name_leads_to_its_upstream(names: Custom, model: str, upstream: str, theirs: str) -> None:
    route = names.route(model)
    assert route is not None
    assert (route.key, route.upstream_model) == (upstream, theirs)


@pytest.mark.parametrize("model", ["", "*", "a", "a/", "/x", "c/x", "A/x", "unknown"])
def test_other_names_are_not_known(names: Custom, model: str) -> None:
    assert names.route(model) is None


def test_star_takes_what_nobody_knows(names: Custom) -> None:
    route = names.catch_all("gpt-9/ultra")
    assert route is not None
    assert (route.key, route.upstream_model, route.credential) == ("b", "gpt-9/ultra", None)


def test_only_names_are_listed_each_once(names: Custom) -> None:
    assert [card.id for card in Registry([names], {}).models()] == ["shared", "only-a"]
    assert all(type(card.created) is int for card in names.models())


def test_operators_key_goes_with_the_route(names: Custom) -> None:
    own, theirs = names.route("only-a"), names.route("b/x")
    assert own is not None
    assert theirs is not None
    assert own.credential == Credential(Secret("key-of-a-canary7f3e"))
    assert theirs.credential is None


@pytest.mark.parametrize("stream", [False, True])
def test_body_goes_out_as_it_came_with_the_upstreams_model(
    wires: Transport, upstream: OpenAICompat, stream: bool
) -> None:
    said = [{"role": "user", "content": "字", "odd": 1}]
    fields: dict[str, Any] = {"messages": said, "seed": 7, "deep": {"a": []}}
    answer(wires, upstream, asking(model="up/emu-small", stream=stream, **fields))
    call = upstream.calls[-1].request
    sent = call.json()
    assert sent.pop("stream_options", None) == ({"include_usage": True} if stream else None)
    assert sent == {**fields, "model": "emu-small", "stream": stream}
    assert call.path == "/v1/chat/completions"


def test_usage_is_asked_for_beside_the_callers_stream_options(
    wires: Transport, upstream: OpenAICompat
) -> None:
    options = {"include_usage": False, "include_obfuscation": False}
    answer(wires, upstream, asking(stream=True, stream_options=options))
    sent = upstream.calls[-1].request.json()["stream_options"]
    assert sent == options | {"include_usage": True}


def test_usage_is_not_asked_of_a_server_that_refuses_the_question(
    wires: Transport, upstream: OpenAICompat
) -> None:
    answer(wires, upstream, asking(stream=True), stream_usage=False)
    assert "stream_options" not in upstream.calls[-1].request.json()


def test_changed_messages_are_encoded_anew(wires: Transport, upstream: OpenAICompat) -> None:
    url = "https://x.example/a.png"
    parts = (text_part("look"), image_part(url, "low"))
    request = asking(messages=[], n=1).replace_messages(
        (Message("system", "be brief"), Message("user", parts))
    )
    answer(wires, upstream, request)
    assert upstream.calls[-1].request.json()["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {
                    "type": "image_url",
                    "image_url": {"url": url, "detail": "low"},
                },
            ],
        },
    ]


@pytest.mark.parametrize("token", [None, "sk-mine-canary7f3e"])
def test_bearer_is_the_credential_or_none(
    wires: Transport, upstream: OpenAICompat, token: str | None
) -> None:
    answer(wires, upstream, asking(), Credential(Secret(token) if token else None))
    sent = upstream.calls[-1].request.headers.get("authorization", "")
    assert sent == (f"Bearer {token}" if token else "")


def test_stream_request_answered_with_one_object_is_read_all_the_same(
    wires: Transport, upstream: OpenAICompat
) -> None:
    streamed, whole = (
        folded(answer(wires, upstream, asking(said, stream=True)))
        for said in ("#json-for-stream", "#burst")
    )
    assert plain_text(streamed)
    assert streamed == whole


def test_connection_left_open_after_the_end_mark_does_not_hold_the_answer(
    wires: Transport, upstream: OpenAICompat
) -> None:
    said = '{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}'
    upstream.script({"steps": [{"send": f"data: {said}\n\ndata: [DONE]\n\n"}, {"pause": 4}]})
    began = time.monotonic()
    told = [event for batch in answer(wires, upstream, asking(stream=True)) for event in batch]
    assert told == [Text("Hi"), Finish("stop")]
    assert time.monotonic() - began < 3


def test_pause_before_the_end_mark_is_waited_for(wires: Transport, upstream: OpenAICompat) -> None:
    said = '{"choices":[{"index":0,"delta":{"content":"%s"}}]}'
    steps = [
        {"send": f"data: {said % 'a'}\n\n"},
        {"pause": 1.3},
        {"send": f"data: {said % 'b'}\n\ndata: [DONE]\n\n"},
    ]
    upstream.script({"steps": steps})
    assert plain_text(folded(answer(wires, upstream, asking(stream=True)))) == "ab"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [204, 302])
def test_success_without_an_answer_is_a_protocol_error(
    wires: Transport, upstream: OpenAICompat, status: int, stream: bool
) -> None:
    upstream.script({"status": status, "body": "", "headers": {"Location": "https://x.example/"}})
    with pytest.raises(ProtocolError):
        answer(wires, upstream, asking(stream=stream))


def test_status_of_a_refusal_counts_even_if_its_body_is_endless_or_cut(
    wires: Transport, upstream: OpenAICompat
) -> None:
    steps = [{"send": "<html>" + "x" * 300_000}]
    upstream.script({"status": 429, "steps": steps, "headers": {"Retry-After": "4"}})
    with pytest.raises(RateLimited) as limited:
        answer(wires, upstream, asking())
    assert limited.value.retry_after == 4
    upstream.script({"status": 404, "steps": [{"send": '{"err'}, {"cut": True}]})
    with pytest.raises(UpstreamRefused) as refused:
        answer(wires, upstream, asking())
    assert refused.value.status == 404


def test_part_of_an_unknown_type_is_not_lost_in_changed_messages(
    wires: Transport, upstream: OpenAICompat
) -> None:
    changed = asking().replace_messages((Message("user", (Part("video_url"),)),))
    with pytest.raises(InvalidRequest, match="unknown type"):
        answer(wires, upstream, changed)
    assert upstream.calls == []
