"""The composition root: settings in, WSGI application out. Nothing is built at import."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from services import transport
from services.accounts import Credentials, open_vault
from services.api import admin, billing, chat, errors, files, health, images, models
from services.api import metrics as metrics_api
from services.api.answer import NoSessions
from services.api.auth import Authenticator
from services.api.middleware import Middleware
from services.config import Settings, refused_problems
from services.files.adopt import Adopter, PictureBytes
from services.files.cache import FileCache
from services.files.fetch import caller_fetcher, download_limits, packed_limits, upstream_fetcher
from services.files.uploads import OwnFiles, UserFiles
from services.gateway import Fallbacks, Gateway
from services.keys import AdmissionControl, KeyLookup, UsageRecorder, UsageStore
from services.keys.editor import KeyEditor
from services.keys.limiter import LEASE_SECONDS
from services.keys.usage import ListedModels
from services.providers.base import ProviderContext
from services.providers.registry import Registry
from services.server.jobs import BackgroundQueue, Schedule
from services.server.metrics import Metrics
from services.store import Store, StoreCache

MEGABYTE = 1024 * 1024
REFRESHING = "backend_api"
"""The provider whose tokens are renewed."""
SWEEP_EVERY = 15.0
"""Seconds between two looks for files whose time has passed."""


def create_app(settings: Settings, *, serve: bool = True) -> Flask:
    """The application for `settings`. Without `serve` none of its jobs begin.

    Raises `ConfigErrors`, listing everything that is wrong, `AccountsError`, `VaultError`, and
    `ValueError` for a store's URL that cannot be.
    """
    store = Store.from_settings(settings)
    store.probe()  # the log says at the start why it is away
    vault = open_vault(settings.server.folder, settings.store.secret_key)
    background = BackgroundQueue()
    app = Flask(__name__, static_folder=None)
    app.session_interface = NoSessions()
    metrics = Metrics(
        lambda: (str(rule) for rule in app.url_map.iter_rules()),
        under_way=lambda: admission.under_way,
        accounts=lambda: ((a.provider, a.state) for a in credentials.pools.accounts()),
        store_is_up=lambda: store.status.state == "ok",
    )
    key_lookup, usage = KeyLookup(store, settings.auth.keys), UsageStore(store)
    listed = ListedModels(lambda: (card.id for card in gateway.models()))
    recorder = UsageRecorder(usage, listed, metrics.turns)
    admission = AdmissionControl(store, key_lookup, recorder, vault)
    cache = FileCache.from_settings(settings)
    max_body = int(settings.server.max_body_mb * MEGABYTE)
    user_files = UserFiles(cache, store, max_body)
    schedule = Schedule(store)
    schedule.every(SWEEP_EVERY, "sweep-files", cache.sweep)
    schedule.every(1.0, "count-usage", recorder.flush, everywhere=True)
    schedule.every(1.0, "write-metrics", metrics.tick, everywhere=True)
    schedule.every(LEASE_SECONDS / 6, "renew-leases", admission.renew_leases, everywhere=True)
    upstreams = make_transport(settings)
    credentials = Credentials.from_settings(
        settings,
        store,
        vault,
        upstreams,
        background,
        schedule,
        on_exchange=lambda ok: metrics.refreshed(REFRESHING, ok),
    )
    gateway = make_gateway(
        settings, store, cache, user_files, upstreams, background, credentials, metrics
    )
    auth = Authenticator(settings, admission)
    # a model may be made to link anything: such links are callers' URLs
    pictures = PictureBytes(cache, caller_fetcher(settings), packed_limits(settings))

    app.config["MAX_CONTENT_LENGTH"] = max_body
    errors.register(app)
    prefix = f"/{settings.backend_container_api_prefix}".rstrip("/")
    for api in (
        chat.blueprint(settings, gateway, auth),
        images.blueprint(settings, gateway, auth, pictures),
        models.blueprint(gateway, auth),
        files.blueprint(settings, user_files, auth),
        billing.blueprint(auth, key_lookup, usage, settings.models.prices),
    ):
        app.register_blueprint(api, url_prefix=prefix)
    app.register_blueprint(files.public_blueprint(cache))
    app.register_blueprint(health.blueprint(gateway, store, refused_problems))
    app.register_blueprint(metrics_api.blueprint(settings, metrics))
    views = admin.Admin(
        settings,
        KeyEditor(store, key_lookup, vault),
        usage,
        credentials.pools,
        lambda: gateway.pools,
        lambda: health.report(gateway, store, refused_problems(), whole=True),
    )
    app.register_blueprint(admin.blueprint(settings, views))
    routes = frozenset(str(rule) for rule in app.url_map.iter_rules())
    app.wsgi_app = Middleware(  # type: ignore[method-assign]
        app.wsgi_app,
        routes,
        prefix,
        settings.server.cors_origins,
        settings.server.answer_headers,
        metrics.answered,
    )
    app.extensions["warnings"] = settings.warnings
    app.extensions["close"] = closing(schedule, upstreams)
    if serve:
        schedule.start()
    return app


def closing(schedule: Schedule, upstreams: transport.Transport) -> Callable[[], None]:
    """For the end of a worker: write what is not written yet."""

    def close() -> None:
        schedule.stop()
        for name in ("count-usage", "write-metrics", "save-tokens"):
            schedule.run(name)
        upstreams.close()

    return close


def make_gateway(
    settings: Settings,
    store: Store,
    cache: FileCache,
    user_files: UserFiles,
    upstreams: transport.Transport,
    background: BackgroundQueue,
    credentials: Credentials,
    metrics: Metrics,
) -> Gateway:
    """The gateway with every provider that the settings switch on."""
    context = ProviderContext(
        settings,
        upstreams,
        StoreCache(store),
        background,
        credentials.call_limiter,
        credentials.gpts_token if settings.key_for_gpts_info else None,
    )
    fetcher = upstream_fetcher(settings)
    max_bytes = download_limits(settings).max_bytes
    return Gateway(
        Registry.from_settings(context),
        credentials,
        lambda base: Adopter(cache, fetcher, base, max_bytes),
        OwnFiles(cache, user_files, settings),
        extra_model_fields=settings.models.extra,
        keep_upstream_urls=settings.use_oaiusercontent_url,
        fallbacks=Fallbacks(settings.models.fallbacks, settings.models.fallback_after),
        on_failure=metrics.upstream_failed,
    )


def make_transport(settings: Settings) -> transport.Transport:
    """The door to upstreams, as the settings time and proxy it."""
    server = settings.server
    return transport.Transport(
        transport.Timeouts(
            connect=server.connect_timeout,
            first_byte=server.first_byte_timeout,
            idle=server.idle_timeout,
            total=server.total_timeout,
        ),
        pool_size=settings.process_threads,
        proxy=server.proxies or None,
    )
