"""Which model families the upstream has, what each wants in a request, and what callers call
them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from services.config import Settings
from services.providers.backend_api.settings import BackendApiSettings

GPT_3_5 = "gpt-3.5"
GIZMO_PREFIX = "gpt-4-gizmo-"

_GIZMO_ID = re.compile(
    rf"(?:{GIZMO_PREFIX}|https://[\w.-]+/g/)?(g-[A-Za-z0-9]+(?:-[^\s/?#&]{{0,200}})?)/?", re.ASCII
)
_NO_SUGGESTIONS: dict[str, Any] = {"suggestions": []}
_O1: dict[str, Any] = {
    "suggestions": [],
    "variant_purpose": "comparison_implicit",
    "force_paragen_model_slug": "",
    "force_nulligen": False,
    "reset_rate_limits": False,
    "force_use_sse": True,
}


class Family(msgspec.Struct, frozen=True):
    """One kind of model. `slug` is the upstream's name, `extra` its own keys of a request.

    `text_only` takes neither pictures nor files, `talk_only` only user and assistant messages.
    `arkose`: asks for such a token, where the operator has switched that on. `draws`: makes
    pictures; None where that depends on the account or, of a GPT, on its tools.
    """

    slug: str
    extra: Mapping[str, Any] = msgspec.field(default_factory=dict)
    text_only: bool = False
    talk_only: bool = False
    arkose: bool = True
    draws: bool | None = None


GIZMO = Family("gpt-4-gizmo")
"""GPTs. They take no `suggestions`."""


class ModelNames:
    """The families and the names that callers use for them."""

    def __init__(self, settings: Settings, own: BackendApiSettings) -> None:
        self._families = _families(own)
        lists = {
            GPT_3_5: settings.gpt_3_5_new_name,
            "gpt-4-s": settings.gpt_4_s_new_name,
            "gpt-4-mobile": settings.gpt_4_mobile_new_name,
            "gpt-4o": settings.gpt_4_o_new_name,
            "gpt-4o-mini": settings.gpt_4_o_mini_new_name,
            "o1-preview": settings.o1_preview_new_name,
            "o1-mini": settings.o1_mini_new_name,
        }
        self.names: Mapping[str, str] = {name: key for key in lists for name in lists[key]}
        """Family keys by the callers' names."""

    def family(self, key: str) -> Family:
        return self._families[key]


def gizmo_id(text: str) -> str | None:
    """The id of a GPT in any of its forms: bare, after `gpt-4-gizmo-`, or as a link."""
    found = _GIZMO_ID.fullmatch(text.strip())
    return found[1] if found else None


def _families(own: BackendApiSettings) -> dict[str, Family]:
    no_token = {**_NO_SUGGESTIONS, "arkose_token": None}
    return {
        GPT_3_5: Family(own.gpt_3_5_slug, no_token, text_only=True, arkose=False, draws=False),
        "gpt-4-s": Family("gpt-4", _NO_SUGGESTIONS, draws=True),
        "gpt-4-mobile": Family(own.gpt_4_mobile_slug, _NO_SUGGESTIONS, draws=True),
        "gpt-4o": Family("gpt-4o", no_token, draws=True),
        "gpt-4o-mini": Family("gpt-4o-mini", {**no_token, "force_paragen_model_slug": ""}),
        "o1-preview": Family("o1-preview", _O1, talk_only=True),
        "o1-mini": Family("o1-mini", _O1, talk_only=True),
    }
