"""Output profiles: what of an upstream's rich output reaches a caller, and in which form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from services.config import BotMode, Labels
from services.core.errors import InvalidRequest

HEADER = "X-Output-Profile"
"""The request header that names a profile."""


class Profile(msgspec.Struct, frozen=True):
    """What is shown: `plugins` is code and what running it printed, `images` says in which form
    pictures are, `references` are links to sources; `plain_text` takes the markdown out of the
    answer's own text.
    """

    plugins: bool = True
    images: Literal["markdown", "url"] = "markdown"
    references: bool = True
    plain_text: bool = False
    labels: Labels = Labels()


NORMAL = Profile()
BOT = Profile(plugins=False, images="url", references=False, plain_text=True)

_EXTRAS: dict[str, dict[str, Any]] = {
    "markdown_image": {"images": "markdown"},
    "plain_image": {"images": "url"},
    "references": {"references": True},
    "plugins": {"plugins": True},
}
"""What can be added to "bot". A plain image wins over a markdown one, in any order."""


def profile_from(bot_mode: BotMode, labels: Labels | None = None) -> Profile:
    """The profile that the settings' `bot_mode` asks for."""
    wanted = {
        "markdown_image": bot_mode.enabled_markdown_image_output,
        "plain_image": bot_mode.enabled_plain_image_url_output,
        "references": bot_mode.enabled_bing_reference_output,
        "plugins": bot_mode.enabled_plugin_output,
    }
    profile = _bot(name for name in wanted if wanted[name]) if bot_mode.enabled else NORMAL
    return msgspec.structs.replace(profile, labels=labels or profile.labels)


def parse_profile(name: str, labels: Labels | None = None) -> Profile:
    """The profile called `name`: "normal", "bot", or "bot" with extras, such as
    "bot+markdown_image+references".

    Raises `InvalidRequest`.
    """
    base, *extras = name.strip().lower().split("+")
    if base not in ("normal", "bot") or (extras and base == "normal"):
        raise _unknown(name)
    if not set(extras) <= _EXTRAS.keys():
        raise _unknown(name)
    profile = _bot(extras) if base == "bot" else NORMAL
    return msgspec.structs.replace(profile, labels=labels or profile.labels)


def profile_for(header: str | None, default: Profile) -> Profile:
    """The profile that a request's header names, else `default`. Raises `InvalidRequest`."""
    return parse_profile(header, default.labels) if header else default


def _bot(extras: Iterable[str]) -> Profile:
    fields: dict[str, Any] = {}
    for extra in sorted(extras):  # plain_image comes after markdown_image, and so wins
        fields |= _EXTRAS[extra]
    return msgspec.structs.replace(BOT, **fields)


def _unknown(name: str) -> InvalidRequest:
    extras = ", ".join(_EXTRAS)
    return InvalidRequest(
        f"unknown output profile {ascii(name[:60])}: it is normal, bot, or bot+EXTRA with {extras}",
        param=HEADER,
    )
