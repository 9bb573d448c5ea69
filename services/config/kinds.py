"""The kinds of value a key can have, and the base of every group of keys."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

_URL_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)|(?<=[?&]password=)[^&\s'\"]+")


def hide_url_secrets(text: str) -> str:
    """`text` with the user, password and `password=` parts of every URL in it replaced by `…`."""
    return _URL_SECRETS.sub("…", text)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of keys. Unknown keys in it are errors. Its repr hides credentials in URLs."""

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__)
        return hide_url_secrets(f"{type(self).__name__}({', '.join(fields)})")


class OldGroup(Group, frozen=True, kw_only=True):
    """A group that old files have too. Unknown keys in it are warnings: old files have extras."""


INTERNAL = Meta(extra={"internal": True})
"""Marks a field that is no key."""


def also(*aliases: str, env: tuple[str, ...] = ()) -> Meta:
    """Older spellings of a key, and further names of its environment variable."""
    return Meta(extra={"aliases": aliases, "env": env})


def _checked(description: str, check: Callable[[str], Any]) -> Meta:
    return Meta(description=description, extra={"check": check})


def _network(text: str) -> None:
    ipaddress.ip_network(text, strict=False)


_HTTP = r"https?://[^\s/?#]+[^\s]*"
_PROXY = r"(https?|socks5h?)://[^\s/?#]+/?"

HttpUrl = Annotated[
    str,
    Meta(
        pattern=rf"^({_HTTP})?$",
        description="an http:// or https:// URL",
    ),
]
BaseUrl = Annotated[HttpUrl, Meta(extra={"strip": "/"})]
"""A URL that paths are put behind, so a slash at its end is dropped."""
ProxyUrl = Annotated[
    str,
    Meta(pattern=rf"^({_PROXY})?$", description="an http, https, socks5 or socks5h URL"),
]
StoreUrl = Annotated[
    str,
    Meta(
        pattern=r"^((rediss?|unix)://\S+)?$",
        description="a redis://, rediss:// or unix:// URL",
    ),
]
UrlPath = Annotated[
    str,
    Meta(
        pattern=r"^[^\s?#]*$",
        description="a path such as abc or a/b",
        extra={"strip": "/"},
    ),
]
Network = Annotated[str, _checked("an IP address or a network such as 10.0.0.0/8", _network)]
Name = Annotated[str, Meta(min_length=1)]
ProfileName = Annotated[
    str,
    Meta(
        max_length=100,
        pattern=r"^(normal|bot(\+(markdown_image|plain_image|references|plugins))*)?$",
        description="normal, bot, or bot+EXTRA: markdown_image, plain_image, references, plugins",
    ),
]
"""An output profile, or nothing for the service's own."""
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Megabytes = Annotated[float, Meta(gt=0)]
