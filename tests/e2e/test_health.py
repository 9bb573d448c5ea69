"""Whether the service says how it is: to load balancers, and to those who list its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from emulators.openai_compat import OpenAICompat
from services.keys import listed
from tests.gateway import KEY, ROOT, GatewayProcess, custom, question, wait_for

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
PROVIDER = '''
"""A provider whose list of models fails while a file beside it is there."""

from pathlib import Path

from services.core.events import Finish, Text
from services.core.models import ModelCard
from services.providers.base import Provider, Route


class Listing(Provider):
    name = "listing"

    def models(self):
        yield ModelCard("first-of-the-list", "listing", 0)
        if Path(__file__).with_name("away").exists():
            raise OSError("the list is away")

    def route(self, model):
        return Route(model) if model == "first-of-the-list" else None

    def stream(self, request, route, credential):
        yield [Text("hello"), Finish("stop")]


def build(context):
    return Listing()
'''


@pytest.fixture
def more_providers(tmp_path: Path) -> Path:
    """A folder whose modules are providers of any service started with it as its PYTHONPATH."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "listing.py").write_text(PROVIDER)
    extend = f"import services.providers\nservices.providers.__path__.append({str(folder)!r})\n"
    (folder / "sitecustomize.py").write_text(extend)
    return folder


@pytest.fixture
def with_a_list(
    openai_upstream: OpenAICompat, more_providers: Path, tmp_path: Path
) -> Iterator[GatewayProcess]:
    settings = custom(openai_upstream.base_url, models=["emu-small"])
    path = f"{more_providers}:{ROOT}"
    with GatewayProcess(tmp_path / "service", settings, PYTHONPATH=path) as process:
        yield process


def model_names(process: GatewayProcess) -> list[str]:
    answer = requests.get(f"{process.url}/v1/models", headers=AUTHORIZED, timeout=10)
    assert answer.status_code == 200, answer.text
    return [card["id"] for card in answer.json()["data"]]


def figures(process: GatewayProcess) -> str:
    return requests.get(f"{process.url}/metrics", timeout=10).text


def test_provider_that_cannot_list_its_models_takes_no_others_away(
    with_a_list: GatewayProcess, more_providers: Path
) -> None:
    assert model_names(with_a_list) == ["emu-small", "first-of-the-list"]
    (more_providers / "away").touch()
    assert [model_names(with_a_list) for _ in range(3)] == [["emu-small"]] * 3
    told = [line for line in with_a_list.log_text().splitlines() if "models not listed" in line]
    assert len(told) == 1
    assert "provider=listing" in told[0]
    (more_providers / "away").unlink()
    assert model_names(with_a_list) == ["emu-small", "first-of-the-list"]


def test_usage_is_counted_while_a_provider_cannot_list_its_models(
    with_a_list: GatewayProcess, more_providers: Path
) -> None:
    (more_providers / "away").touch()
    for model in ("emu-small", "first-of-the-list"):
        assert with_a_list.post(question("#echo hi", model)).status_code == 200
    counted = 'causeway_turns_total{model="emu-small",outcome="ok",provider="custom"} 1.0'
    wait_for(lambda: counted in figures(with_a_list), 5, "the count")


def test_model_keeps_its_name_in_the_usage_when_it_is_not_listed_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listed, "REFRESH_SECONDS", 0.0)
    names = ["one", "two"]
    known = listed.ListedModels(lambda: names)
    assert "two" in known
    names.remove("two")
    assert "two" in known
    assert "three" not in known
