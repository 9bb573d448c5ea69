"""The folder: modes, litter, links, and what a full or closed folder does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from services.files.storage import Kind, LocalStorage, Storage, StorageAway, new_name

from .storage_contract import StorageContract


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Storage, Storage]:
        return LocalStorage(tmp_path), LocalStorage(tmp_path)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_are_0640_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        LocalStorage(tmp_path).put("files", new_name(Kind.FILE, "x/y"), b"x", "label", "x/y")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "files").iterdir()}
    assert modes == {0o640}


def test_tidy_removes_old_litter_and_nothing_else(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    name, gone = new_name(Kind.FILE, "text/csv"), new_name(Kind.FILE, "text/csv")
    storage.put("files", name, b"x", "label", "text/csv")
    folder = tmp_path / "files"
    for litter in (".abc.tmp", f".{gone}.label", ".keep", "theirs.txt"):
        (folder / litter).write_bytes(b"")
    storage.tidy(time.time() - 100)
    assert len(names_in(folder)) == 6
    storage.tidy(time.time() + 100)
    assert names_in(folder) == {name, f".{name}.label", ".keep", "theirs.txt"}


def test_link_with_a_proper_name_leads_nowhere(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    name = new_name(Kind.FILE, "text/csv")
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "files" / name).symlink_to(tmp_path / "secret")
    assert storage.find("files", name) is None
    assert list(storage.entries()) == []


def test_unusable_folder_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("a file where the folder should be")
    storage = LocalStorage(tmp_path)
    with pytest.raises(StorageAway) as caught:
        storage.put("files", new_name(Kind.FILE, "text/csv"), b"x", "", "text/csv")
    assert caught.value.status == 503
    assert str(tmp_path) not in caught.value.message


def test_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    name = new_name(Kind.FILE, "text/csv")
    (tmp_path / "files" / name).mkdir(parents=True)  # so that the rename fails
    with pytest.raises(StorageAway):
        storage.put("files", name, b"x", "", "text/csv")
    assert names_in(tmp_path / "files") == {name}
