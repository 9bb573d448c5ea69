"""Accounts added from a shell while the service runs: all workers use them, and they stay."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from emulators.openai_compat import OpenAICompat
from tests.canaries import ADMIN_KEY
from tests.gateway import KEY, ROOT, SERVICE_PYTHON, GatewayProcess, question, wait_for

TOKENS = ("sk-first-canary7f3e-0123456789", "tok-second-0123456789-canary7f3e")
MODEL = "up/emu-small"


def settings_for(upstream: OpenAICompat, **entry: Any) -> dict[str, Any]:
    up = {"prefix": "up", "base_url": f"{upstream.url}/v1", **entry}
    auth = {"keys": [KEY], "admin_key": ADMIN_KEY}
    return {"process_workers": 2, "auth": auth, "providers": {"custom": [up]}}


def causeway(process: GatewayProcess, folder: Path, *arguments: str, given: str = "") -> Any:
    """A command of `bin/causeway`, its answer."""
    key = folder / "admin.key"
    key.write_text(ADMIN_KEY)
    command = [SERVICE_PYTHON, "-m", "services.command_line", "--url", process.url]
    command += ["--admin-key-file", str(key), *arguments, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(done.stdout)


def bearers(upstream: OpenAICompat) -> Counter[str]:
    """With which keys the upstream was asked."""
    return Counter(call.request.bearer or "" for call in upstream.calls)


def ask(process: GatewayProcess) -> int:
    return int(process.post(question("hello", MODEL)).status_code)


def test_account_added_from_a_shell_serves_all_workers_and_outlives_them(tmp_path: Path) -> None:
    with OpenAICompat() as upstream:
        settings = settings_for(upstream)
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            added = causeway(
                process, tmp_path, "accounts", "add", "custom/up", "--token-file", "-",
                "--name", "first", given=TOKENS[0],
            )  # fmt: skip
            assert (added["provider"], added["state"]) == ("custom/up", "ready")

            def everywhere() -> bool:
                upstream.reset()
                assert {ask(process) for _ in range(12)} == {200}
                return set(bearers(upstream)) == {TOKENS[0]}

            wait_for(everywhere, 15, "the account in both workers")
        with GatewayProcess(tmp_path / "gateway", settings) as process:
            upstream.reset()
            assert ask(process) == 200
            assert set(bearers(upstream)) == {TOKENS[0]}
            causeway(process, tmp_path, "accounts", "remove", added["id"])

            def is_gone() -> bool:
                return bool(causeway(process, tmp_path, "accounts", "list") == {"data": []})

            wait_for(is_gone, 15, "the account's end in both workers")
        assert TOKENS[0] not in process.log_text()
        kept = b"".join(f.read_bytes() for f in (tmp_path / "gateway").rglob("*") if f.is_file())
        assert TOKENS[0].encode() not in kept


def test_keys_of_a_custom_upstream_take_turns_and_a_refused_one_rests(tmp_path: Path) -> None:
    with OpenAICompat(keys=TOKENS[1:]) as upstream:
        settings = settings_for(upstream, accounts=list(TOKENS))
        with GatewayProcess(tmp_path, settings) as process:
            assert {ask(process) for _ in range(6)} == {200}
            used = bearers(upstream)
            assert used[TOKENS[1]] == 6
            assert used[TOKENS[0]] == 1, "refused once, it rests"
            states = causeway(process, tmp_path, "accounts", "list")["data"]
            assert Counter(a["state"] for a in states) == {"expired": 1, "ready": 1}
