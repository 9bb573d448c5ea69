"""The service without its store: degraded, answering, and recovering by itself."""

import subprocess
from pathlib import Path

import requests

from emulators.openai_compat import OpenAICompat
from services.embedded_store import find_server
from tests.gateway import GatewayProcess, custom, free_port, question, wait_for


def health(process: GatewayProcess) -> dict[str, object]:
    answer: dict[str, object] = requests.get(f"{process.url}/health", timeout=10).json()
    return answer


def test_service_starts_without_its_store_and_recovers_when_it_comes(
    upstream: OpenAICompat, tmp_path: Path
) -> None:
    port = free_port()
    settings = custom(upstream.base_url) | {"redis": {"host": "127.0.0.1", "port": port}}
    with GatewayProcess(tmp_path / "gateway", settings) as process:
        assert health(process)["status"] == "degraded"
        assert "store" in str(health(process)["reasons"])
        assert process.post(question("#echo hello")).status_code == 200
        command = [str(find_server()), "--port", str(port), "--dir", str(tmp_path), "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            wait_for(lambda: health(process)["status"] == "ok", 40, "recovery")
            server.kill()
        wait_for(lambda: health(process)["status"] == "degraded", 10, "the loss being seen")
        assert process.post(question("#echo hello")).status_code == 200
        assert process.log_text().count("store away") == 2
