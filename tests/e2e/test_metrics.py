"""Keys, limits and metrics in the running service: four workers that count as one."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import requests

from emulators.openai_compat import OpenAICompat
from services.core import errors
from services.keys import RequestUsage
from services.server.metrics import Metrics, Routes, kind_of
from services.server.metrics_folder import MetricsFolder, forget_worker
from tests.canaries import ADMIN_KEY, UPSTREAM_KEY
from tests.gateway import KEY, GatewayProcess, custom, question, wait_for

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? ([\d.e+-]+)$")


@pytest.fixture(scope="module")
def service(
    openai_upstream: OpenAICompat, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Four workers, a gateway key in the settings, and the admin API."""
    settings = custom(openai_upstream.base_url, models=["emu-small"])
    settings["auth"]["admin_key"] = ADMIN_KEY
    settings |= {"process_workers": 4, "server": {"commit_window": 2, "keepalive_interval": 1}}
    with GatewayProcess(tmp_path_factory.mktemp("keys"), settings) as process:
        yield process


def scraped(service: GatewayProcess) -> dict[tuple[str, str], float]:
    """Samples by name and labels."""
    answer = requests.get(f"{service.url}/metrics", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    found = [SAMPLE.match(line) for line in answer.text.splitlines()]
    return {(m[1], m[2] or ""): float(m[3]) for m in found if m}


def count(service: GatewayProcess, name: str, *labels: str) -> float:
    """The sum of a metric's samples that have all these labels."""
    samples = scraped(service).items()
    return sum(v for (n, found), v in samples if n == name and all(x in found for x in labels))


def test_counts_of_four_workers_add_up(service: GatewayProcess) -> None:
    made = service.admin("POST", "/keys", {"name": "counted"})
    before = count(service, "causeway_turns_total", 'model="emu-small"', 'outcome="ok"')
    with ThreadPoolExecutor(8) as pool:
        bodies = [question("hello", "emu-small", stream=n % 2 == 0) for n in range(40)]
        headers = {"Authorization": f"Bearer {made['secret']}"}
        answers = list(pool.map(lambda body: service.post(body, headers=headers), bodies))
    assert {answer.status_code for answer in answers} == {200}

    def counted() -> bool:
        turns = count(service, "causeway_turns_total", 'model="emu-small"', 'outcome="ok"')
        return turns - before == 40

    wait_for(counted, what="forty turns")
    route = 'route="/v1/chat/completions"'
    assert count(service, "causeway_requests_total", route, 'status="200"') >= 40
    assert count(service, "causeway_tokens_total", 'provider="custom"', 'direction="out"') >= 40
    assert count(service, "causeway_first_token_seconds_count", 'provider="custom"') >= 40
    assert count(service, "causeway_streams_open") == 0
    assert count(service, "causeway_store_up") == 1

    def accounted() -> bool:
        rows = service.admin("GET", f"/usage?key={made['key']['id']}&by=model")["data"]
        return [(row["model"], row["requests"]) for row in rows] == [("emu-small", 40)]

    wait_for(accounted, what="the usage of forty requests")


def test_names_that_callers_think_up_make_no_labels(service: GatewayProcess) -> None:
    for number in range(5):
        service.post(question("hello", f"up/invented-{number}"))
        requests.get(f"{service.url}/invented/{number}", timeout=10)
    wait_for(lambda: count(service, "causeway_turns_total", 'model="other"') >= 1)
    wait_for(lambda: count(service, "causeway_requests_total", 'route="other"') >= 5)
    assert "invented" not in requests.get(f"{service.url}/metrics", timeout=10).text


def test_limit_holds_over_four_workers(service: GatewayProcess) -> None:
    body = {"name": "limited", "limits": {"requests_per_minute": 25}}
    made = service.admin("POST", "/keys", body)
    headers = {"Authorization": f"Bearer {made['secret']}"}
    ask = question("hello", "emu-small")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.post(ask, headers=headers), range(60)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (25, 35)
    lefts = {a.headers["x-ratelimit-remaining-requests"] for a in answers if a.ok}
    assert lefts == {str(left) for left in range(25)}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    with pytest.raises(openai.RateLimitError):
        service.client(made["secret"]).chat.completions.create(**ask)


def test_key_opens_what_it_may_and_nothing_once_revoked(service: GatewayProcess) -> None:
    made = service.admin("POST", "/keys", {"name": "brief", "models": ["emu-*"]})
    client = service.client(made["secret"])
    client.chat.completions.create(**question("hello", "emu-small"))
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**question("hello", "up/emu-small"))
    service.admin("DELETE", f"/keys/{made['key']['id']}")

    def refused() -> bool:
        headers = {"Authorization": f"Bearer {made['secret']}"}
        return bool(service.post(question("x", "emu-small"), headers=headers).status_code == 401)

    wait_for(lambda: all(refused() for _ in range(8)), what="the end of the key in every worker")


def test_key_sees_the_models_it_may_use(service: GatewayProcess) -> None:
    made = service.admin("POST", "/keys", {"name": "narrow", "models": ["up/*"]})
    client = service.client(made["secret"])
    assert "emu-small" not in [model.id for model in client.models.list()]
    assert client.models.retrieve("up/emu-small").id == "up/emu-small"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("emu-small")
    assert caught.value.code == "model_not_found"
    assert "emu-small" in [model.id for model in service.client(KEY).models.list()]


def test_relay_key_gets_usage_though_it_did_not_ask(service: GatewayProcess) -> None:
    made = service.admin("POST", "/keys", {"name": "relay", "always_usage": True})
    for key, has_usage in ((made["secret"], True), (KEY, False)):
        stream = service.client(key).chat.completions.create(
            **question("hello", "emu-small"), stream=True
        )
        assert any(chunk.usage for chunk in stream) is has_usage


def test_worker_that_dies_leaves_its_counts_and_no_open_streams(service: GatewayProcess) -> None:
    for _ in range(8):
        service.post(question("hello", "emu-small"))
    wait_for(lambda: count(service, "causeway_turns_total", 'outcome="ok"') >= 8)
    before = count(service, "causeway_turns_total", 'outcome="ok"')
    folder = metrics_folder(service)
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        """Whether four have begun to write, none of them the victim."""
        expected = {f"gauge_livesum_{pid}.db" for pid in service.workers() if pid != victim}
        found = {file.name for file in folder.glob("gauge_live*.db")}
        return len(expected) == 4 and found == expected

    wait_for(replaced, what="a new worker")
    assert count(service, "causeway_turns_total", 'outcome="ok"') >= before


def metrics_folder(service: GatewayProcess) -> Path:
    """Where the workers write: they map files of it into memory."""
    maps = Path(f"/proc/{service.workers()[0]}/maps").read_text()
    match = re.search(r"(/\S*causeway-metrics-[^/]+)/", maps)
    assert match
    return Path(match[1])


def test_forwarded_scrape_needs_the_admin_key(service: GatewayProcess) -> None:
    url, forwarded = f"{service.url}/metrics", {"X-Forwarded-For": "203.0.113.9"}
    assert requests.get(url, headers=forwarded, timeout=10).status_code == 401
    wrong = {"Authorization": f"Bearer {KEY}"}
    assert requests.get(url, headers=forwarded | wrong, timeout=10).status_code == 401
    right = {"Authorization": f"Bearer {ADMIN_KEY}"}
    assert requests.get(url, headers=forwarded | right, timeout=10).status_code == 200


def test_no_key_is_ever_told(service: GatewayProcess) -> None:
    made = service.admin("POST", "/keys", {"name": "canary", "provider_keys": {"custom": KEY}})
    service.post(question("x", "emu-small"), headers={"Authorization": f"Bearer {made['secret']}"})
    seen = requests.get(f"{service.url}/metrics", timeout=10).text + service.log_text()
    for path in ("/keys", "/config", "/usage", "/health"):
        seen += str(service.admin("GET", path))
    for secret in (made["secret"], KEY, ADMIN_KEY, UPSTREAM_KEY):
        assert secret not in seen


class TestMetrics:
    """One worker's, in memory."""

    def metrics(self) -> Metrics:
        rules = ("/v1/models", "/v1/models/<path:name>", "/images/<name>")
        accounts = [("custom", "ready"), ("custom", "ready"), ("custom", "cooling")]
        return Metrics(lambda: rules, lambda: 3, lambda: accounts, lambda: False)

    def text(self, metrics: Metrics) -> list[str]:
        return metrics.exposition().decode().splitlines()

    def test_what_is_asked_at_a_scrape(self) -> None:
        text = self.text(self.metrics())
        assert 'causeway_accounts{provider="custom",state="ready"} 2.0' in text
        assert 'causeway_accounts{provider="custom",state="cooling"} 1.0' in text
        assert "causeway_store_up 0.0" in text
        assert "causeway_streams_open 3.0" in text

    def test_turns(self) -> None:
        metrics = self.metrics()
        turn = RequestUsage("key_1", "small", "custom", "ok", 5, 7, 2, first_token=0.3)
        metrics.turns([turn, turn, RequestUsage("key_2", "other", "", "error")])
        text = self.text(metrics)
        labels = 'model="small",provider="custom"'
        turns = 'causeway_turns_total{model="small",outcome="ok",provider="custom"} 2.0'
        assert turns in text
        assert 'causeway_first_token_seconds_bucket{le="0.5",provider="custom"} 2.0' in text
        assert 'causeway_first_token_seconds_bucket{le="0.25",provider="custom"} 0.0' in text
        assert f"causeway_images_total{{{labels}}} 4.0" in text

    def test_upstreams_and_refreshes(self) -> None:
        metrics = self.metrics()
        metrics.upstream_failed("custom", errors.UpstreamTimeout("slow"))
        metrics.refreshed("custom", ok=False)
        metrics.refreshed("custom", ok=True)
        text = self.text(metrics)
        assert 'causeway_upstream_errors_total{kind="timeout",provider="custom"} 1.0' in text
        assert 'causeway_refreshes_total{outcome="failed",provider="custom"} 1.0' in text
        assert any(line.startswith("causeway_last_refresh_timestamp_seconds{") for line in text)

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/v1/models", "/v1/models"),
            ("/v1/models/a/b", "/v1/models/<path:name>"),
            ("/images/secret.png", "/images/<name>"),
            ("/v1/modelsx", "other"),
            ("/wp-login.php", "other"),
        ],
    )
    def test_route_names(self, path: str, name: str) -> None:
        rules = ("/v1/models", "/v1/models/<path:name>", "/images/<name>")
        assert Routes(lambda: rules).name(path) == name

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (errors.UpstreamRefused("x", upstream_status=401, status=502), "unauthorized"),
            (errors.UpstreamRefused("x", upstream_status=429, status=429), "limited"),
            (errors.UpstreamRefused("x", upstream_status=500, status=502), "failed"),
            (errors.UpstreamRefused("x", upstream_status=404, status=404), "rejected"),
            (errors.UpstreamUnreachable("x"), "unreachable"),
            (errors.ProtocolError("x"), "protocol"),
            (errors.GatewayError("x", code="a-code-of-the-upstreams"), "other"),
        ],
    )
    def test_kinds_of_failure(self, error: errors.GatewayError, kind: str) -> None:
        assert kind_of(error) == kind


class TestFolder:
    def test_later_start_sweeps_what_a_killed_service_left_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        living = MetricsFolder()
        left = tmp_path / "causeway-metrics-left"
        left.mkdir()
        (left / "lock").touch()
        (left / "counter_1.db").touch()
        second = MetricsFolder()
        assert {folder.name for folder in tmp_path.iterdir()} == {
            living.path.name,
            second.path.name,
        }
        assert living.path.stat().st_mode & 0o077 == 0
        living.remove()
        second.remove()
        assert not list(tmp_path.iterdir())

    def test_dead_worker_loses_what_only_the_living_say(self, tmp_path: Path) -> None:
        for name in ("gauge_livesum_7.db", "gauge_livesum_77.db", "gauge_max_7.db", "counter_7.db"):
            (tmp_path / name).touch()
        forget_worker(str(tmp_path), 7)
        left = {file.name for file in tmp_path.iterdir()}
        assert left == {"gauge_livesum_77.db", "gauge_max_7.db", "counter_7.db"}
