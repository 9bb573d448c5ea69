"""Refresh tokens as keys: exchanged once for all workers, renewed on a 401, kept over a restart."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from emulators.backend_api import BackendApi
from tests.gateway import GatewayProcess, question


def settings_for(web: BackendApi, workers: int = 1) -> dict[str, Any]:
    return {
        "process_workers": workers,
        "auth": {"passthrough": True},
        "use_pandora_file_server": False,
        "upstream_base_url": web.url,
        "refresh_ToAccess": {
            "enableOai": True,
            "oauth_token_url": f"{web.url}/oauth/token",
            "oauth_client_id": "a-client",
        },
        "providers": {"backend_api": {"calls_per_minute": 0}},
    }


def ask(process: GatewayProcess, token: str) -> int:
    answer = process.post(
        question("Hi", model="gpt-4-s"), headers={"Authorization": f"Bearer {token}"}
    )
    return int(answer.status_code)


def test_forty_requests_over_four_workers_make_one_exchange(tmp_path: Path) -> None:
    with BackendApi(seed=1) as web:
        token = web.accounts["alice"].refresh_token
        with GatewayProcess(tmp_path, settings_for(web, workers=4)) as process:
            with ThreadPoolExecutor(40) as pool:
                statuses = list(pool.map(lambda _: ask(process, token), range(40)))
            assert set(statuses) == {200}
            assert web.count("oauth_token") == 1
            assert token not in process.log_text()
            told = requests.get(f"{process.url}/metrics", timeout=10).text
            assert 'causeway_refreshes_total{outcome="ok",provider="backend_api"} 1.0' in told
            assert "causeway_last_refresh_timestamp_seconds" in told


def test_token_is_kept_over_a_restart_and_renewed_on_a_401(tmp_path: Path) -> None:
    with BackendApi(seed=1) as web:
        token = web.accounts["alice"].refresh_token
        with GatewayProcess(tmp_path, settings_for(web)) as process:
            assert ask(process, token) == 200
        with GatewayProcess(tmp_path, settings_for(web)) as process:
            assert ask(process, token) == 200
            assert web.count("oauth_token") == 1
            web.revoke("alice")
            assert ask(process, token) == 200
            assert web.count("oauth_token") == 2


def test_rotated_token_is_never_used_again(tmp_path: Path) -> None:
    with BackendApi(seed=1) as web:
        web.state.rotate_refresh = True
        token = web.accounts["alice"].refresh_token
        with GatewayProcess(tmp_path, settings_for(web)) as process:
            assert ask(process, token) == 200
            web.revoke("alice")
            assert ask(process, token) == 200
            used = [call.json["refresh_token"] for call in web.calls("oauth_token")]
            assert len(used) == len(set(used)) == 2
            assert ask(process, token) == 200


def test_dead_refresh_token_of_the_caller_is_a_401(tmp_path: Path) -> None:
    with BackendApi(seed=1) as web, GatewayProcess(tmp_path, settings_for(web)) as process:
        answer = process.post(
            question("Hi", model="gpt-4-s"),
            headers={"Authorization": "Bearer rt-canary7f3e-unknown"},
        )
        assert answer.status_code == 401
        assert answer.json()["error"]["message"]
        assert "rt-canary7f3e-unknown" not in answer.text + process.log_text()
