"""What of the configuration needs a restart."""

from __future__ import annotations

import re

import pytest

from services.config import ROOT, Settings
from services.server.reload import NEEDS_RESTART


@pytest.mark.parametrize("key", NEEDS_RESTART)
def test_key_that_needs_a_restart_exists(key: str) -> None:
    group, _, name = key.rpartition(".")
    assert (
        name in getattr(Settings(), group).__struct_fields__ if group else hasattr(Settings(), key)
    )


def test_documentation_lists_what_needs_a_restart() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = text.split("\n## Changing it while it runs\n", 1)[1].split("\n## ", 1)[0]
    (listed,) = re.findall(r"need a restart: (.+?)\. ", section, re.DOTALL)
    assert sorted(re.findall(r"`([\w.]+)`", listed)) == sorted(NEEDS_RESTART)
