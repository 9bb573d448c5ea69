"""The official Python client against the real service: models, chat, streams, errors."""

import time

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from emulators.openai_compat import OpenAICompat
from tests.gateway import GatewayProcess, custom, free_port

MODEL = "up/emu-small"


def ask(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_models_are_listed_and_retrieved(gateway: GatewayProcess) -> None:
    client = gateway.client()
    assert [model.id for model in client.models.list()] == ["emu-small"]
    assert client.models.retrieve("up/any-other").id == "up/any-other"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/has-it")
    assert caught.value.code == "model_not_found"


def test_chat_is_answered_with_usage(gateway: GatewayProcess) -> None:
    answer = gateway.client().chat.completions.create(model=MODEL, messages=ask("#echo hello"))
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


@pytest.mark.parametrize(
    "marker", ["", "#chinese", "#emoji", "#bytes #chinese", "#crlf", "#comments", "#multiline"]
)
def test_stream_says_what_the_whole_answer_says(gateway: GatewayProcess, marker: str) -> None:
    client = gateway.client()
    whole = client.chat.completions.create(model=MODEL, messages=ask(marker))
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ask(marker),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {(chunk.id, chunk.model) for chunk in chunks} == {(chunks[0].id, MODEL)}


def test_bare_listed_name_reaches_its_upstream(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    gateway.client().chat.completions.create(model="emu-small", messages=ask("hi"))
    assert upstream.calls[-1].request.json()["model"] == "emu-small"


def test_tool_calls_come_in_pieces_that_the_client_can_join(gateway: GatewayProcess) -> None:
    tools: list[openai.types.chat.ChatCompletionToolParam] = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in ("get_weather", "get_time")
    ]
    client = gateway.client()
    with client.chat.completions.stream(model=MODEL, messages=ask("#tools"), tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = client.chat.completions.create(model=MODEL, messages=ask("#tools"), tools=tools)
    assert streamed.finish_reason == whole.choices[0].finish_reason == "tool_calls"
    calls = [
        [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        for message in (streamed.message, whole.choices[0].message)
    ]
    assert calls[0] == calls[1]
    assert len(calls[0]) == 2


def test_reasoning_stays_out_of_the_content(gateway: GatewayProcess) -> None:
    message = (
        gateway.client()
        .chat.completions.create(model=MODEL, messages=ask("#reasoning"))
        .choices[0]
        .message
    )
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"]
    assert message.model_extra["reasoning_content"] not in (message.content or "")


def test_unknown_fields_pass_through_both_ways(
    gateway: GatewayProcess, upstream: OpenAICompat
) -> None:
    answer = gateway.client().chat.completions.create(
        model=MODEL, messages=ask("#unknown"), extra_body={"made_up": {"deep": [1, "字"]}}
    )
    assert upstream.calls[-1].request.json()["made_up"] == {"deep": [1, "字"]}
    assert answer.model_extra
    assert answer.choices[0].model_extra
    assert answer.choices[0].message.model_extra


def test_several_choices_and_logprobs(gateway: GatewayProcess) -> None:
    client = gateway.client()
    several = client.chat.completions.create(model=MODEL, messages=ask("#n"), n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    probable = client.chat.completions.create(model=MODEL, messages=ask("#logprobs"), logprobs=True)
    assert probable.choices[0].logprobs is not None
    assert probable.choices[0].logprobs.content


ERRORS: list[tuple[str, type[openai.APIStatusError], int, str]] = [
    ("#400", openai.BadRequestError, 400, ""),
    ("#404", openai.NotFoundError, 404, ""),
    ("#422", openai.UnprocessableEntityError, 422, ""),
    ("#429", openai.RateLimitError, 429, ""),
    ("#500", openai.InternalServerError, 502, ""),
    ("#503", openai.InternalServerError, 503, ""),
    ("#529", openai.InternalServerError, 503, ""),
    ("#html502", openai.InternalServerError, 502, "the upstream answered 502"),
    ("#html200", openai.InternalServerError, 502, "text/html"),
    ("#error-200", openai.InternalServerError, 502, ""),
    ("#error-string", openai.BadRequestError, 400, ""),
    # the operator's account is at fault: never 401, never words that ban a channel
    ("#401", openai.InternalServerError, 503, "this model's upstream account"),
    ("#403", openai.InternalServerError, 503, "this model's upstream account"),
    ("#quota", openai.RateLimitError, 429, "the upstream is busy"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("marker", "kind", "status", "words"), ERRORS)
def test_upstream_error_is_the_right_exception(
    gateway: GatewayProcess,
    marker: str,
    kind: type[openai.APIStatusError],
    status: int,
    words: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        gateway.client().chat.completions.create(model=MODEL, messages=ask(marker), stream=stream)
    error = caught.value
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert error.body["message"]
    assert words in error.body["message"]
    assert "<" not in error.body["message"]
    assert set(error.body) == {"message", "type", "param", "code"}


def test_retry_after_is_passed_on(gateway: GatewayProcess) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        gateway.client().chat.completions.create(model=MODEL, messages=ask("#429"))
    assert caught.value.response.headers["retry-after"] == "7"


def test_wrong_key_is_an_authentication_error(gateway: GatewayProcess) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        gateway.client("sk-wrong-key-canary7f3e-000000").chat.completions.create(
            model=MODEL, messages=ask("hi")
        )
    assert caught.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "marker", ["#cut", "#cut-event", "#cut-utf8", "#rst", "#eof", "#error-midstream", "#bad-json"]
)
def test_broken_stream_raises_after_its_text(gateway: GatewayProcess, marker: str) -> None:
    text, reasons = "", []
    with pytest.raises(openai.APIError) as caught:
        for chunk in gateway.client().chat.completions.create(
            model=MODEL, messages=ask(marker), stream=True
        ):
            text += chunk.choices[0].delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
    assert text
    assert set(reasons) == {None}
    assert caught.value.message


@pytest.mark.parametrize("marker", ["#cut", "#cut-event", "#rst"])
def test_broken_whole_answer_is_a_bad_gateway(gateway: GatewayProcess, marker: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        gateway.client().chat.completions.create(model=MODEL, messages=ask(marker))
    assert caught.value.status_code == 502


@pytest.mark.parametrize(("marker", "reason"), [("#nodone", "stop"), ("#nofinish", "stop")])
def test_one_end_mark_is_enough(gateway: GatewayProcess, marker: str, reason: str) -> None:
    chunks = list(
        gateway.client().chat.completions.create(model=MODEL, messages=ask(marker), stream=True)
    )
    assert chunks[-1].choices[0].finish_reason == reason


def test_length_and_filter_are_told(gateway: GatewayProcess) -> None:
    client = gateway.client()
    for marker, reason in (("#length", "length"), ("#filter", "content_filter")):
        answer = client.chat.completions.create(model=MODEL, messages=ask(marker))
        assert answer.choices[0].finish_reason == reason


def test_silent_upstream_is_kept_alive_with_chunks_that_relays_pass_on(
    gateway: GatewayProcess,
) -> None:
    started = time.monotonic()
    stream = gateway.client().chat.completions.create(
        model=MODEL, messages=ask("#silent-first:5"), stream=True
    )
    first_after = time.monotonic() - started
    chunks = list(stream)
    empty = [
        c for c in chunks if c.choices[0].delta.content is None and not c.choices[0].finish_reason
    ]
    assert first_after < 4.5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(empty) >= 1
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_refused_connection_is_a_bad_gateway(gateway: GatewayProcess, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    settings = custom(f"http://127.0.0.1:{free_port()}/v1")
    with GatewayProcess(tmp_path_factory.mktemp("refused"), settings) as lonely:
        with pytest.raises(openai.InternalServerError) as caught:
            lonely.client().chat.completions.create(model=MODEL, messages=ask("hi"), stream=True)
        assert caught.value.status_code == 502
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["code"] == "upstream_unreachable"
        health = lonely.client()._client.get(f"{lonely.url}/health")
        assert health.status_code == 503
        assert health.json()["status"] == "down"
        assert "custom" in health.json()["reasons"][0]
