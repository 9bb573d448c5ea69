"""The settings as frozen structs, one field a key; docs/configuration.md explains each."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from services.core.models import Secret

ROOT = Path(__file__).resolve().parents[2]
"""The project folder."""

_URL_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)|(?<=[?&]password=)[^&\s'\"]+")


def hide_url_secrets(text: str) -> str:
    """`text` with the user, password and `password=` parts of every URL in it replaced by `…`."""
    return _URL_SECRETS.sub("…", text)


def also(*aliases: str, env: tuple[str, ...] = ()) -> Meta:
    """Older spellings of a key, and further names of its environment variable."""
    return Meta(extra={"aliases": aliases, "env": env})


def _like(pattern: str, description: str, **extra: Any) -> Meta:
    return Meta(pattern=f"^({pattern})?$", description=description, extra=extra)


def _network(text: str) -> None:
    ipaddress.ip_network(text, strict=False)


HttpUrl = Annotated[str, _like(r"https?://[^\s/?#]+[^\s]*", "an http:// or https:// URL")]
BaseUrl = Annotated[HttpUrl, Meta(extra={"strip": "/"})]
"""A URL that paths are put behind, so a slash at its end is dropped."""
ProxyUrl = Annotated[
    str, _like(r"(https?|socks5h?)://[^\s/?#]+/?", "an http, https, socks5 or socks5h URL")
]
StoreUrl = Annotated[str, _like(r"(rediss?|unix)://\S+", "a redis://, rediss:// or unix:// URL")]
UrlPath = Annotated[str, _like(r"[^\s?#]*", "a path such as abc or a/b", strip="/")]
Network = Annotated[
    str,
    Meta(description="an IP address or a network such as 10.0.0.0/8", extra={"check": _network}),
]
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


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of keys. Unknown keys in it are errors. Its repr hides credentials in URLs.

    `SHORTHAND` is the key that bare text in place of the object stands for, if it may.
    """

    SHORTHAND: ClassVar[str | None] = None

    def __repr__(self) -> str:
        fields = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__)
        return hide_url_secrets(f"{type(self).__name__}({', '.join(fields)})")


class OldGroup(Group, frozen=True, kw_only=True):
    """A group that old files have too. Unknown keys in it are warnings: old files have extras."""


class AccountSetting(Group, frozen=True, kw_only=True):
    """One upstream account; a bare string is its token, or `token,account-id`.

    `token` is a refresh token, access token or key of the upstream; `account` names a workspace of
    it. An account of twice the `weight` gets twice the requests. `concurrent` bounds the answers
    under way at once (0: no bound). `name` is what logs and lists call it.
    """

    SHORTHAND = "token"

    token: Secret
    account: str = ""
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    concurrent: Annotated[int, Meta(ge=0, le=10_000)] = 0
    name: str = ""


class BotMode(OldGroup, frozen=True, kw_only=True):
    """What a plain-text client, such as a QQ or WeChat bot, gets to see."""

    enabled: Annotated[bool, also(env=("BOT_MODE",))] = False
    enabled_markdown_image_output: bool = False
    enabled_plain_image_url_output: bool = False
    enabled_bing_reference_output: bool = False
    enabled_plugin_output: bool = False


class Labels(Group, frozen=True, kw_only=True):
    """Words of ours that people read beside a picture: of a download link under it, if there is to
    be one, and before a bare URL.
    """

    download: str = ""
    plain_image: str = ""


class RefreshToAccess(OldGroup, frozen=True, kw_only=True):
    """How refresh tokens become access tokens."""

    stream_sleep_time: Annotated[float, Meta(ge=0), also("steam_sleep_time")] = 0.0
    enableOai: bool = True
    oauth_token_url: HttpUrl = ""
    oauth_client_id: str = ""
    oauth_redirect_uri: str = ""
    xyhelper_refreshToAccess_Url: Annotated[HttpUrl, also("oaifree_refreshToAccess_Url")] = ""
    ninja_refreshToAccess_Url: HttpUrl = ""

    @property
    def third_party(self) -> tuple[str, Literal["form", "bearer"]] | None:
        """The third-party exchange: its URL, and how the token goes there."""
        if self.xyhelper_refreshToAccess_Url:
            return self.xyhelper_refreshToAccess_Url, "form"
        if self.ninja_refreshToAccess_Url:
            return self.ninja_refreshToAccess_Url, "bearer"
        return None


class Redis(OldGroup, frozen=True, kw_only=True):
    """The Redis server; with no host, one is started on this machine."""

    host: str = ""
    port: Port = 6379
    password: Secret | None = None
    db: Annotated[int, Meta(ge=0)] = 0
    pool_size: Count = 100
    pool_timeout: Seconds = 30.0


class Server(Group, frozen=True, kw_only=True):
    """Listening, time limits, and what a request may weigh."""

    host: Name = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    worker_class: Literal["gevent", "gthread"] = "gevent"
    commit_window: Seconds = 20.0
    keepalive: Literal["chunk", "comment", "off"] = "chunk"
    keepalive_interval: Seconds = 10.0
    connect_timeout: Seconds = 10.0
    first_byte_timeout: Seconds = 300.0
    idle_timeout: Seconds = 120.0
    total_timeout: Seconds = 3600.0
    max_body_mb: Megabytes = 32.0
    max_messages: Count = 4096
    graceful_timeout: Seconds = 30.0
    slow_body_timeout: Seconds = 30.0
    stream_usage: Literal["asked", "always"] = "asked"
    answer_headers: bool = True
    cors_origins: tuple[Name, ...] = ("*",)
    trusted_proxies: tuple[Network, ...] = ()
    proxies: ProxyUrl = ""
    data_dir: str = ""
    demo: bool = False

    @property
    def folder(self) -> Path:
        """Where data/, images/, files/ and log/ live."""
        return Path(self.data_dir).expanduser() if self.data_dir else ROOT


class GatewayKeySetting(Group, frozen=True, kw_only=True):
    """A key of this gateway. `name` is what logs call it, `profile` the form of its answers; a bare
    string is a key with neither.
    """

    SHORTHAND = "key"

    key: Secret
    name: str = ""
    profile: ProfileName = ""


class Auth(Group, frozen=True, kw_only=True):
    """Who may call: holders of a key; with `passthrough` callers who bring their own credential for
    the upstream; with `anonymous` anybody on this machine, at the operator's expense.

    `passthrough` None means: on loopback, while there are neither keys, nor `anonymous`, nor
    credentials of the operator's for a provider.
    """

    keys: tuple[GatewayKeySetting, ...] = ()
    passthrough: bool | None = None
    anonymous: bool = False
    admin_key: Secret | None = None

    def __post_init__(self) -> None:
        """Name the nameless keys: by their last characters, or by their place if short."""
        named = tuple(
            key if key.name else msgspec.structs.replace(key, name=_masked(key.key, place))
            for place, key in enumerate(self.keys, start=1)
        )
        msgspec.structs.force_setattr(self, "keys", named)


def _masked(key: Secret, place: int) -> str:
    text = key.reveal()
    return f"…{text[-4:]}" if len(text) >= 16 else f"key {place}"


class Store(Group, frozen=True, kw_only=True):
    """The shared store. `url` wins over the `redis` group."""

    url: StoreUrl = ""
    embedded: bool = True
    timeout: Seconds = 1.0
    secret_key: Secret | None = None
    namespace: Annotated[str, Meta(pattern=r"^[\w.-]+$", description="letters, digits, . _ -")] = (
        "causeway"
    )


class Files(Group, frozen=True, kw_only=True):
    """The cache of pictures and files, and what may be fetched for callers."""

    storage: Literal["local", "s3"] = "local"
    s3_bucket: str = ""
    s3_endpoint: BaseUrl = ""
    s3_prefix: UrlPath = ""
    generated_ttl: Seconds = 604800.0
    upload_ttl: Seconds = 60.0
    total_limit_mb: Megabytes = 2048.0
    download_max_mb: Megabytes = 512.0
    download_timeout: Seconds = 300.0
    fetch_max_mb: Megabytes = 20.0
    fetch_timeout: Seconds = 10.0
    fetch_allow: tuple[Name, ...] = ()
    proxy_resolves: bool = False


class Models(Group, frozen=True, kw_only=True):
    """Names of models, and which stand in for which."""

    aliases: Mapping[str, Name] = msgspec.field(default_factory=dict)
    fallbacks: Mapping[str, tuple[Name, ...]] = msgspec.field(default_factory=dict)
    fallback_after: Annotated[float, Meta(ge=0)] = 0.0
    prices: Mapping[str, Annotated[float, Meta(ge=0)]] = msgspec.field(default_factory=dict)
    extra: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)


class Settings(OldGroup, frozen=True, kw_only=True):
    """All settings. `providers` holds the decoded `providers.<name>` that were configured."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "DEBUG"
    need_log_to_file: bool = True
    process_workers: Count = 1
    process_threads: Count = 2000
    proxy: ProxyUrl = ""
    upstream_base_url: Annotated[BaseUrl, also("pandora_base_url", env=("BASE_URL",))] = ""
    upstream_api_prefix: Annotated[
        tuple[UrlPath, ...], also("pandora_api_prefix", env=("PROXY_API_PREFIX",))
    ] = ()
    backend_container_url: Annotated[BaseUrl, also(env=("UPLOAD_BASE_URL",))] = ""
    backend_container_api_prefix: Annotated[UrlPath, also(env=("API_PREFIX",))] = ""
    key_for_gpts_info: Secret | None = None
    gpt_4_s_new_name: Annotated[tuple[Name, ...], also(env=("GPT_4_S_New_Name",))] = ("gpt-4-s",)
    gpt_4_mobile_new_name: tuple[Name, ...] = ("gpt-4-mobile",)
    gpt_3_5_new_name: tuple[Name, ...] = ("gpt-3.5-turbo",)
    gpt_4_o_new_name: tuple[Name, ...] = ("gpt-4o",)
    gpt_4_o_mini_new_name: tuple[Name, ...] = ("gpt-4o-mini",)
    o1_preview_new_name: tuple[Name, ...] = ("o1-preview",)
    o1_mini_new_name: tuple[Name, ...] = ("o1-mini",)
    need_delete_conversation_after_response: bool | Literal["temporary"] = False
    use_oaiusercontent_url: bool = False
    use_pandora_file_server: bool = True
    file_server_host: str = ""
    custom_arkose_url: bool = False
    arkose_urls: tuple[BaseUrl, ...] = ()
    dalle_prompt_prefix: str = ""
    upload_success_text: str = ""
    auto_allow_actions: bool = False
    bot_mode: BotMode = BotMode()
    labels: Labels = Labels()
    refresh_ToAccess: RefreshToAccess = RefreshToAccess()
    redis: Redis = Redis()
    server: Server = Server()
    auth: Auth = Auth()
    store: Store = Store()
    files: Files = Files()
    models: Models = Models()
    providers: Mapping[str, Any] = msgspec.field(default_factory=dict)
    warnings: Annotated[tuple[str, ...], Meta(extra={"internal": True})] = ()

    @property
    def log_folder(self) -> Path | None:
        """Where the log files go; None when they are not wanted."""
        return self.server.folder / "log" if self.need_log_to_file else None

    @property
    def has_accounts(self) -> bool:
        """Whether a provider has a credential of the operator's."""
        groups = self.providers.values()
        entries = [e for group in groups for e in (group if isinstance(group, list) else [group])]
        return any(_secrets_in(entries)) or any(getattr(e, "accounts_file", "") for e in entries)

    def secrets(self) -> tuple[str, ...]:
        """Every secret in the settings, so that logs can leave them out."""
        return tuple(_secrets_in(self))


def _secrets_in(value: object) -> Iterator[str]:
    parts: Iterable[object] = ()
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, msgspec.Struct):
        parts = msgspec.structs.astuple(value)
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    for part in parts:
        yield from _secrets_in(part)
