"""Which settings can only be taken up by a restart, and what differs between two settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from services.config.settings import Settings

NEEDS_RESTART = (
    "need_log_to_file",
    "process_threads",
    "process_workers",
    "redis",
    "server.data_dir",
    "server.demo",
    "server.graceful_timeout",
    "server.host",
    "server.port",
    "server.trusted_proxies",
    "server.worker_class",
    "store",
)
"""Keys that gunicorn's master has acted on, or that all workers must agree on; of `redis` and
`store` every key."""


def differing(one: Settings, other: Settings) -> tuple[str, ...]:
    """The dotted keys whose values differ; of a provider's settings only `providers`."""
    return tuple(key for key in _differing(one, other, "") if key != "warnings")


def needs_restart(key: str) -> bool:
    """Whether a change of `key`, as `differing` gives it, waits for a restart."""
    return key in NEEDS_RESTART or key.partition(".")[0] in NEEDS_RESTART


def keep_running(new: Settings, running: Settings) -> Settings:
    """`new`, with what needs a restart as it is in `running`."""
    top: dict[str, Any] = {}
    server: dict[str, Any] = {}
    for key in NEEDS_RESTART:
        group, _, name = key.rpartition(".")
        owner, kept = (running.server, server) if group else (running, top)
        kept[name] = getattr(owner, name)
    return msgspec.structs.replace(new, **top, server=msgspec.structs.replace(new.server, **server))


def _differing(one: msgspec.Struct, other: msgspec.Struct, path: str) -> Iterator[str]:
    for name in one.__struct_fields__:
        before, after = getattr(one, name), getattr(other, name)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            yield from _differing(before, after, f"{path}{name}.")
        else:
            yield f"{path}{name}"
