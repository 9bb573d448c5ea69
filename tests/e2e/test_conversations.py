"""Conversations go on only for the gateway key that began them, though accounts are shared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emulators.backend_api import BackendApi
from tests.gateway import GatewayProcess, question

FIRST, SECOND = "sk-first-of-two-keys-0123456789", "sk-second-of-two-keys-0123456789"


@pytest.fixture(scope="module")
def web() -> Iterator[BackendApi]:
    with BackendApi(seed=1) as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["pool", "one account"])
def process(
    web: BackendApi, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[GatewayProcess]:
    token = web.accounts["alice"].access_token
    shared = {"accounts": [token]} if request.param == "pool" else {"access_token": token}
    settings = {
        "auth": {"keys": [FIRST, SECOND]},
        "upstream_base_url": web.url,
        "use_pandora_file_server": False,
        "providers": {"backend_api": {"calls_per_minute": 0, **shared}},
    }
    with GatewayProcess(tmp_path_factory.mktemp("conversations"), settings) as running:
        yield running


def ask(process: GatewayProcess, key: str, **fields: Any) -> Any:
    body = question("Hi", "gpt-4-s", **fields)
    return process.post(body, headers={"Authorization": f"Bearer {key}"})


def test_conversation_goes_on_for_its_key_alone(process: GatewayProcess, web: BackendApi) -> None:
    begun = ask(process, FIRST)
    assert begun.status_code == 200, begun.text
    talk = begun.json()["conversation_id"]
    refused = ask(process, SECOND, conversation_id=talk)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "conversation_not_found"
    assert ask(process, FIRST, conversation_id=talk).status_code == 200
    assert web.calls("conversation")[-1].json["conversation_id"] == talk
