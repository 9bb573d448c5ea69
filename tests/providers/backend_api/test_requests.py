"""What goes to the upstream: one request per turn, shaped for each family of models."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from services.config import Server
from services.core.errors import InvalidRequest, ModelNotFound, Unavailable
from services.core.models import Credential, Secret
from services.core.requests import (
    Audio,
    Function,
    Message,
    Part,
    ToolCall,
    file_part,
    image_part,
    text_part,
)
from services.providers.backend_api import BackendApiSettings

from .support import PNG, STOP, UNHURRIED, Stage, data_url

SKELETON = {
    "action": "next",
    "timezone_offset_min": -480,
    "history_and_training_disabled": False,
    "conversation_mode": {"kind": "primary_assistant"},
    "force_paragen": False,
    "force_rate_limit": False,
}
SPOKEN = Part("input_audio", input_audio=Audio("AAAA", "wav"))
PICTURE = image_part(data_url(PNG, "image/png"))
CSV = file_part(data_url(b"a,b\n1,2\n", "text/csv"), name="table 1.csv")


def sent(stage: Stage) -> dict[str, Any]:
    [body] = stage.bodies()
    assert isinstance(body, dict)
    return body


@pytest.mark.parametrize(
    ("model", "slug", "extra"),
    [
        ("gpt-3.5-turbo", "text-davinci-002-render-sha", {"suggestions": [], "arkose_token": None}),
        ("gpt-4-s", "gpt-4", {"suggestions": []}),
        ("gpt-4-mobile", "gpt-4-mobile", {"suggestions": []}),
        ("gpt-4o", "gpt-4o", {"suggestions": [], "arkose_token": None}),
        (
            "gpt-4o-mini",
            "gpt-4o-mini",
            {"suggestions": [], "arkose_token": None, "force_paragen_model_slug": ""},
        ),
        (
            "o1-preview",
            "o1-preview",
            {
                "suggestions": [],
                "variant_purpose": "comparison_implicit",
                "force_paragen_model_slug": "",
                "force_nulligen": False,
                "reset_rate_limits": False,
                "force_use_sse": True,
            },
        ),
    ],
)
def test_each_family_gets_its_own_body(
    stage: Stage, model: str, slug: str, extra: dict[str, Any]
) -> None:
    stage.events("Hi", model=model)
    body = sent(stage)
    [message] = body.pop("messages")
    assert body.pop("parent_message_id")
    assert body == {**SKELETON, "model": slug, **extra}
    assert message["author"] == {"role": "user"}
    assert message["content"] == {"content_type": "text", "parts": ["Hi"]}


def test_a_plain_turn_is_one_call(stage: Stage) -> None:
    stage.events("Hi")
    assert [call.endpoint for call in stage.upstream.log] == ["conversation"]


def test_bearer_and_account_go_along_for_every_family(stage: Stage) -> None:
    account = next(iter(stage.upstream.accounts["alice"].workspaces))
    stage.events("Hi", model="gpt-3.5-turbo", credential=stage.credential(account=account))
    headers = stage.upstream.calls("conversation")[0].request.headers
    token = stage.upstream.accounts["alice"].access_token
    assert headers.get("authorization") == f"Bearer {token}"
    assert headers.get("chatgpt-account-id") == account


def test_operators_token_serves_callers_without_one(stage: Stage) -> None:
    account = list(stage.upstream.accounts["bob"].workspaces)[-1]
    token = Secret(stage.upstream.accounts["bob"].access_token)
    own = BackendApiSettings(access_token=token, account_id=account, calls_per_minute=0)
    assert stage.events("Hi", provider=stage.provider(own))[-1] == STOP
    assert stage.upstream.calls("conversation")[0].account == "bob"
    headers = stage.upstream.calls("conversation")[0].request.headers
    assert headers.get("chatgpt-account-id") == account


def test_no_token_is_a_503_since_the_key_is_right_and_asks_nobody(stage: Stage) -> None:
    _, failure = stage.failure("Hi", credential=Credential())
    assert isinstance(failure, Unavailable)
    assert "X-Upstream-Authorization" in failure.message
    assert stage.upstream.log == []


def test_alias_list_replaces_the_built_in_name(stage: Stage) -> None:
    provider = stage.provider(gpt_4_mobile_new_name=("phone", "dall-e-3"))
    assert provider.route("gpt-4-mobile") is None
    stage.events("Hi", model="dall-e-3", provider=provider)
    assert sent(stage)["model"] == "gpt-4-mobile"


def test_models_are_all_names(stage: Stage) -> None:
    names = [card.id for card in stage.provider().models()]
    assert names == [
        "gpt-3.5-turbo",
        "gpt-4-s",
        "gpt-4-mobile",
        "gpt-4o",
        "gpt-4o-mini",
        "o1-preview",
        "o1-mini",
    ]


def test_prefixes_take_turns(stage: Stage) -> None:
    provider = stage.provider(upstream_api_prefix=("one", "two"))
    for _ in range(3):
        stage.events("Hi", provider=provider)
    prefixes = [call.prefix for call in stage.upstream.calls("conversation")]
    assert prefixes == ["/one", "/two", "/one"]


def test_all_roles_reach_the_upstream(stage: Stage) -> None:
    call = ToolCall("call-1", function=Function("weather", '{"city":"Paris"}'))
    stage.events(
        [
            Message("developer", "Be brief."),
            Message("user", "Weather?"),
            Message("assistant", None, tool_calls=(call,)),
            Message("tool", "sunny", tool_call_id="call-1"),
        ]
    )
    told = [(m["author"]["role"], m["content"]["parts"]) for m in sent(stage)["messages"]]
    assert told == [
        ("system", ["Be brief."]),
        ("user", ["Weather?"]),
        ("assistant", ['Called the tool weather with {"city":"Paris"}']),
        ("user", ["Result of the tool weather:\nsunny"]),
    ]


@pytest.mark.parametrize("content", ["Hi", (PICTURE, text_part("Hi"))])
def test_models_without_system_role_get_its_text_in_the_first_question(
    stage: Stage, content: Any
) -> None:
    stage.events([Message("system", "Be brief."), Message("user", content)], model="o1-mini")
    [message] = sent(stage)["messages"]
    texts = [part for part in message["content"]["parts"] if isinstance(part, str)]
    assert "\n\n".join(texts) == "Be brief.\n\nHi"


def test_list_content_for_gpt_3_5_is_joined(stage: Stage) -> None:
    stage.events([text_part("one"), text_part("two")], model="gpt-3.5-turbo")
    assert sent(stage)["messages"][0]["content"]["parts"] == ["one\ntwo"]


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("gpt-3.5-turbo", PICTURE),
        ("gpt-4-s", Part("input_audio", input_audio=Audio("AAAA", "wav"))),
    ],
)
def test_what_a_model_cannot_take_is_refused(stage: Stage, model: str, part: Any) -> None:
    _, failure = stage.failure([text_part("Hi"), part], model=model)
    assert isinstance(failure, InvalidRequest)
    assert failure.param == "messages[0].content[1]"
    assert stage.upstream.log == []


def test_several_answers_at_once_are_refused(stage: Stage) -> None:
    _, failure = stage.failure("Hi", n=2)
    assert isinstance(failure, InvalidRequest)
    assert failure.param == "n"


def test_temporary_chat(stage: Stage) -> None:
    provider = stage.provider(need_delete_conversation_after_response="temporary")
    stage.events("Hi", provider=provider)
    assert sent(stage)["history_and_training_disabled"] is True


def test_pictures_and_documents_are_uploaded_in_order(stage: Stage) -> None:
    stage.events([text_part("What is in it?"), PICTURE, CSV])
    [message] = sent(stage)["messages"]
    first, second = message["metadata"]["attachments"]
    assert first == {
        "name": "image.png",
        "id": first["id"],
        "mimeType": "image/png",
        "size": len(PNG),
        "width": 1,
        "height": 1,
    }
    assert (second["name"], second["mimeType"], second["size"]) == ("table 1.csv", "text/csv", 8)
    assert message["content"] == {
        "content_type": "multimodal_text",
        "parts": [
            "What is in it?",
            {
                "content_type": "image_asset_pointer",
                "asset_pointer": f"file-service://{first['id']}",
                "size_bytes": len(PNG),
                "width": 1,
                "height": 1,
            },
        ],
    }
    announced = [call.json["use_case"] for call in stage.upstream.calls("file_create")]
    assert announced == ["multimodal", "ace_upload"]


@pytest.mark.parametrize(
    ("data", "mime", "use_case"),
    [
        (b"%PDF-1.4\n%%EOF\n", "application/pdf", "my_files"),
        (b"print(1)\n", "text/x-script.python", "my_files"),
        (b"\x00\x01\x02\x03", "application/x-whatever", "ace_upload"),
    ],
)
def test_any_type_is_uploaded_for_its_use(
    stage: Stage, data: bytes, mime: str, use_case: str
) -> None:
    stage.events([text_part("Hi"), image_part(data_url(data, mime))])
    assert stage.upstream.calls("file_create")[0].json["use_case"] == use_case
    content = sent(stage)["messages"][0]["content"]
    assert content == {"content_type": "text", "parts": ["Hi"]}


def test_same_file_is_uploaded_once_for_an_account(stage: Stage) -> None:
    stage.events([CSV])
    stage.events([CSV])
    assert stage.upstream.count("file_create") == 1
    assert stage.upstream.count("file_uploaded") == 2


def test_files_are_not_shared_between_accounts(stage: Stage) -> None:
    stage.events([CSV])
    stage.events([CSV], credential=stage.credential("bob"))
    assert stage.upstream.count("file_create") == 2


def test_file_that_has_gone_is_uploaded_again(stage: Stage) -> None:
    stage.events([CSV])
    stage.upstream.script({"endpoint": "file_uploaded", "status": 404})
    assert stage.events([CSV])[-1] == STOP
    assert stage.upstream.count("file_create") == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"endpoint": "blob_put", "status": 403},
        {"endpoint": "file_uploaded", "answer": "failed"},
        {"endpoint": "file_create", "status": 500},
    ],
)
def test_failed_upload_is_an_error_not_a_hang(stage: Stage, entry: dict[str, Any]) -> None:
    stage.upstream.script(entry)
    told, failure = stage.failure([CSV])
    assert told == []
    assert failure.status == 502
    assert stage.upstream.count("conversation") == 0


def test_corrupt_picture_is_the_callers_fault(stage: Stage) -> None:
    _, failure = stage.failure([image_part(data_url(PNG[:30], "image/png"))])
    assert isinstance(failure, InvalidRequest)
    assert failure.param == "messages[0].content[0].image_url.url"


def test_file_larger_than_allowed_is_refused_before_any_call(stage: Stage) -> None:
    _, failure = stage.failure([image_part(data_url(bytes(25_000_000), "application/x-big"))])
    assert isinstance(failure, InvalidRequest)
    assert stage.upstream.log == []


@pytest.mark.parametrize("model", ["gpt-4-gizmo-g-otter-helper", "g-otter-helper"])
def test_gpt_by_its_id(stage: Stage, model: str) -> None:
    stage.events("Hi", model=model)
    body = sent(stage)
    assert body["model"] == "gpt-4-gizmo"
    assert "suggestions" not in body
    mode = body["conversation_mode"]
    assert (mode["kind"], mode["gizmo_id"]) == ("gizmo_interaction", "g-otter")
    assert mode["gizmo"]["gizmo"]["short_url"] == "g-otter-helper"


@pytest.mark.parametrize(
    "gizmo",
    ["g-otter-helper", "gpt-4-gizmo-g-otter-helper", "https://chat.example/g/g-otter-helper"],
)
def test_gpt_in_the_body(stage: Stage, gizmo: str) -> None:
    stage.events("Hi", gizmo_id=gizmo)
    assert sent(stage)["conversation_mode"]["gizmo_id"] == "g-otter"


@pytest.mark.parametrize("gizmo", ["otter", 7])
def test_malformed_gizmo_id_is_refused(stage: Stage, gizmo: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        stage.events("Hi", gizmo_id=gizmo)
    assert caught.value.param == "gizmo_id"


def test_gpts_file_names_models_and_is_read_again(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "gpts.json"
    file.write_text('{"otter": {"id": "g-otter"}, "bad": {"id": "nonsense"}}')
    provider = stage.provider(server=Server(data_dir=str(tmp_path)))
    assert [c.id for c in provider.models()][-1] == "otter"
    stage.events("Hi", model="otter", provider=provider)
    assert sent(stage)["conversation_mode"]["gizmo_id"] == "g-otter"
    file.write_text(json.dumps({"beaver": {"id": "g-beaver"}}))
    os.utime(file, (time.time() + 5, time.time() + 5))
    deadline = time.monotonic() + 5
    while provider.route("beaver") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert provider.route("beaver") is not None
    assert provider.route("otter") is None
    file.write_text("{broken")
    time.sleep(1.1)
    assert provider.route("beaver") is not None


def test_gpt_is_looked_up_once(stage: Stage) -> None:
    for _ in range(2):
        stage.events("Hi", model="gpt-4-gizmo-g-otter")
    assert stage.upstream.count("gizmo") == 1


def test_gpt_is_looked_up_with_the_operators_key(stage: Stage) -> None:
    key = Secret(stage.upstream.accounts["bob"].access_token)
    provider = stage.provider(key_for_gpts_info=key)
    stage.events("Hi", model="gpt-4-gizmo-g-otter", provider=provider)
    assert stage.upstream.calls("gizmo")[0].account == "bob"
    assert stage.upstream.calls("conversation")[0].account == "alice"


def test_key_for_gpts_that_fails_gives_way_to_the_callers_own(stage: Stage) -> None:
    provider = stage.provider(key_for_gpts_info=Secret("eyJ-expired-long-ago"))
    assert stage.events("Hi", model="gpt-4-gizmo-g-otter", provider=provider)[-1] == STOP
    assert [call.account for call in stage.upstream.calls("gizmo")] == ["", "alice"]


@pytest.mark.parametrize("name", ["g-forbidden", "g-missing"])
def test_gpt_that_cannot_be_used_is_an_unknown_model(stage: Stage, name: str) -> None:
    _, failure = stage.failure("Hi", model=f"gpt-4-gizmo-{name}")
    assert isinstance(failure, ModelNotFound)
    assert stage.upstream.count("conversation") == 0


def test_poisoned_gpt_cache_is_data_and_is_replaced(stage: Stage, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    poison = f"__import__('pathlib').Path({str(trap)!r}).touch()".encode()
    key = Secret(stage.upstream.accounts["bob"].access_token)
    stage.cache.set("backend_api:gizmo:g-otter", poison, 60)
    provider = stage.provider(key_for_gpts_info=key)
    assert stage.events("Hi", model="gpt-4-gizmo-g-otter", provider=provider)[-1] == STOP
    assert not trap.exists()
    assert (stage.cache.get("backend_api:gizmo:g-otter") or b"").startswith(b"{")


def test_arkose_token_comes_from_the_first_address_that_has_one(stage: Stage) -> None:
    urls = tuple(f"{stage.upstream.url}/arkose/{kind}" for kind in ("500", "empty", "ok"))
    provider = stage.provider(UNHURRIED, custom_arkose_url=True, arkose_urls=urls)
    stage.events("Hi", provider=provider)
    token = sent(stage)["arkose_token"]
    headers = stage.upstream.calls("conversation")[0].request.headers
    assert token.startswith("arkose-")
    assert headers.get("openai-sentinel-arkose-token") == token
    assert all("authorization" not in c.request.headers for c in stage.upstream.calls("arkose"))


def test_gpt_3_5_needs_no_arkose_token(stage: Stage) -> None:
    urls = (f"{stage.upstream.url}/arkose/ok",)
    provider = stage.provider(custom_arkose_url=True, arkose_urls=urls)
    stage.events("Hi", provider=provider, model="gpt-3.5-turbo")
    assert stage.upstream.count("arkose") == 0


def test_no_arkose_token_at_all_is_unavailable(stage: Stage) -> None:
    urls = (f"{stage.upstream.url}/arkose/500",)
    provider = stage.provider(custom_arkose_url=True, arkose_urls=urls)
    _, failure = stage.failure("Hi", provider=provider)
    assert isinstance(failure, Unavailable)
