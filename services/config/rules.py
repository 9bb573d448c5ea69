"""What one key means for another: contradictions, old meanings, advice, and where it is safe to
listen.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator

import msgspec

from services.config.reader import Problem
from services.config.settings import Settings
from services.core.models import Secret

_FEW_REQUESTS = 16
_MANY_SECONDS = 1000.0
_MIN_KEY_LENGTH = 16
_MIN_DIFFERENT = 6
_OBVIOUS = re.compile(r"change-?_?me|^(sk-)?(password|123456|your[-_]?(api[-_]?)?key|secret\b)")


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


def settle_old_meanings(settings: Settings) -> tuple[Settings, list[str]]:
    """Give values that only old files have the meaning they have there; what to say about it."""
    told: list[str] = []
    threads, default = settings.process_threads, Settings().process_threads
    if threads < _FEW_REQUESTS and settings.server.worker_class == "gevent":
        told.append(
            f"process_threads = {threads} counts threads, as in old files: a worker serves"
            f" {default} requests at a time instead, since a waiting one costs little"
        )
        threads = default
    if settings.custom_arkose_url and not settings.arkose_urls:
        told.append("custom_arkose_url has no effect without arkose_urls")
    refresh, redis = settings.refresh_ToAccess, settings.redis
    if refresh.enableOai and not refresh.oauth_token_url and refresh.third_party:
        named = "xyhelper" if refresh.third_party[1] == "form" else "ninja"
        told.append(
            "refresh_ToAccess.enableOai has no effect without oauth_token_url: refresh tokens are"
            f" exchanged at {named}_refreshToAccess_Url"
        )
        refresh = msgspec.structs.replace(refresh, enableOai=False)
    if redis.pool_timeout >= _MANY_SECONDS:  # nobody means a quarter of an hour; samples have 60000
        redis = msgspec.structs.replace(redis, pool_timeout=redis.pool_timeout / 1000)
    settled = msgspec.structs.replace(
        settings,
        process_threads=threads,
        custom_arkose_url=settings.custom_arkose_url and bool(settings.arkose_urls),
        refresh_ToAccess=refresh,
        redis=redis,
    )
    return settled, told


def advice(settings: Settings) -> Iterator[str]:
    """What works, but hardly as intended."""
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
    refresh = settings.refresh_ToAccess
    if refresh.enableOai and not refresh.oauth_token_url:
        yield "refresh tokens cannot be exchanged without refresh_ToAccess.oauth_token_url"
    if not refresh.enableOai and not refresh.third_party:
        yield (
            "refresh tokens cannot be exchanged: refresh_ToAccess.enableOai is false"
            " and xyhelper_refreshToAccess_Url is empty"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine; of names, only localhost is known."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def passthrough_enabled(settings: Settings) -> bool:
    """Whether callers may bring their own credential for the upstream; `Auth` tells the default."""
    auth = settings.auth
    if auth.passthrough is not None:
        return auth.passthrough
    closed = auth.keys or auth.anonymous or settings.has_accounts
    return is_loopback(settings.server.host) and not closed


def check_exposure(settings: Settings) -> list[str]:
    """Why the service must not start as configured; empty when it may, as always on loopback."""
    return [] if is_loopback(settings.server.host) else list(_objections(settings))


def _objections(settings: Settings) -> Iterator[str]:
    where = f"server.host = {settings.server.host} is reachable from outside"
    if not settings.auth.keys and settings.auth.passthrough is not True:
        yield (
            f"{where}, and anyone could call: set auth.keys, or auth.passthrough to true"
            " if callers bring their own upstream credentials"
        )
    if settings.auth.anonymous:
        yield (
            f"{where}, and anyone could use your upstream accounts: auth.anonymous is for"
            " 127.0.0.1 alone"
        )
    for index, setting in enumerate(settings.auth.keys):
        if weakness := _weakness(setting.key):
            yield f"{where}, but auth.keys[{index}] ({setting.name}) {weakness}"
    admin = settings.auth.admin_key
    if admin is not None and (weakness := _weakness(admin)):
        yield f"{where}, but auth.admin_key {weakness}"


def _weakness(key: Secret) -> str | None:
    text = key.reveal()
    if len(text) < _MIN_KEY_LENGTH:
        return f"is shorter than {_MIN_KEY_LENGTH} characters"
    if _OBVIOUS.search(text.lower()) or len(set(text)) < _MIN_DIFFERENT:
        return "is easy to guess: use a long random one"
    return None
