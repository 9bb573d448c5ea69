"""What one key means for another: the checks that need more than one value."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from services.config.problems import Problem
from services.config.settings import Settings

_FEW_REQUESTS = 16


def settle_model_names(
    settings: Settings, given: Collection[str], source: str
) -> tuple[Settings, list[Problem]]:
    """Make every name in the `*_new_name` lists unique.

    A name that the operator put into two lists is a problem. A name that is only a built-in default
    gives way: an old file may call its own list `gpt-4o` and know nothing of `gpt_4_o_new_name`.
    """
    lists = [key for key in settings.__struct_fields__ if key.endswith("_new_name")]
    owner: dict[str, str] = {}
    problems: list[Problem] = []
    for key in (key for key in lists if key in given):
        for name in getattr(settings, key):
            if name in owner:
                problems.append(Problem(source, key, f"model name {name} is in {owner[name]} too"))
            owner.setdefault(name, key)
    kept = {
        key: tuple(name for name in getattr(settings, key) if name not in owner)
        for key in lists
        if key not in given
    }
    return msgspec.structs.replace(settings, **kept), problems


def contradictions(settings: Settings, source: str) -> Iterator[Problem]:
    """What cannot work together."""
    if settings.files.storage == "s3" and not settings.files.s3_bucket:
        yield Problem(source, "files.s3_bucket", "needed, because files.storage is s3")
    seen: dict[object, str] = {}
    for index, setting in enumerate(settings.auth.keys):
        key = f"auth.keys[{index}]"
        if setting.key in seen:
            yield Problem(source, key, f"the same key as {seen[setting.key]}")
        seen.setdefault(setting.key, key)


def advice(settings: Settings) -> Iterator[str]:
    """What works, but hardly as intended."""
    if settings.process_threads < _FEW_REQUESTS:
        yield (
            f"process_threads = {settings.process_threads}: that is how many requests a worker"
            " serves at a time; a waiting stream costs little, so allow hundreds"
        )
    auth = settings.auth
    if settings.has_accounts and not (auth.keys or auth.admin_key or auth.anonymous):
        yield (
            "nobody can use the upstream credentials under providers: set auth.keys, or"
            " auth.anonymous for callers on this machine"
        )
    if not settings.upstream_base_url:
        return
    if settings.use_pandora_file_server and not settings.file_server_host:
        yield "use_pandora_file_server has no effect without file_server_host"
    if settings.custom_arkose_url and not settings.arkose_urls:
        yield "custom_arkose_url has no effect without arkose_urls"
    refresh = settings.refresh_ToAccess
    if refresh.enableOai and not refresh.oauth_token_url:
        yield "refresh tokens cannot be exchanged without refresh_ToAccess.oauth_token_url"
    if not refresh.enableOai and not refresh.third_party:
        yield (
            "refresh tokens cannot be exchanged: refresh_ToAccess.enableOai is false"
            " and xyhelper_refreshToAccess_Url is empty"
        )
