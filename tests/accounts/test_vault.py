"""The key of the secrets at rest."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from services.accounts.vault import KEY_FILE, Vault, VaultError, open_vault
from services.core.models import Secret
from tests.gateway import ROOT


def new_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def test_what_was_encrypted_comes_back_and_shows_nothing(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    sealed = vault.encrypt("canary-ключ")
    assert "canary" not in sealed
    assert sealed != vault.encrypt("canary-ключ")
    assert open_vault(tmp_path).decrypt(sealed) == "canary-ключ"


def test_key_file_is_private_and_made_once(tmp_path: Path) -> None:
    open_vault(tmp_path)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    open_vault(tmp_path)
    assert path.read_bytes() == written
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.key"]


def test_processes_that_start_together_have_one_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from services.accounts.vault import open_vault\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(open_vault(Path(sys.argv[1])).encrypt('x'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    sealed = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert [open_vault(tmp_path).decrypt(text) for text in sealed] == ["x"] * 4


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    open_vault(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(VaultError, match="can be used by others: chmod 600"):
        open_vault(tmp_path)


def test_keys_can_be_replaced_one_after_the_other(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    sealed = Vault([old]).encrypt("x")
    both = open_vault(tmp_path, Secret(f"{new}, {old}"))
    assert both.decrypt(sealed) == "x"
    assert Vault([new]).decrypt(both.encrypt("y")) == "y"
    with pytest.raises(ValueError, match="not encrypted with any of our keys"):
        Vault([new]).decrypt(sealed)
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.parametrize("text", ["canary-not-a-key", ",", "canary" * 20])
def test_unusable_key_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(VaultError) as caught:
        open_vault(tmp_path, Secret(text))
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(VaultError, match="cannot use .*secret.key"):
        open_vault(tmp_path)
