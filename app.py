"""The composition root: settings in, WSGI application out. Nothing is built at import."""

from __future__ import annotations

from flask import Flask

from services import log, transport
from services.api import auth, chat, errors, health, models
from services.api.edge import Edge
from services.api.paths import LenientPaths
from services.background import BackgroundQueue
from services.cache import StoreCache
from services.config import Settings, load_here
from services.gateway import Gateway
from services.providers.base import ProviderContext
from services.providers.registry import Registry, provider_types
from services.rate_gate import StoreRateGate
from services.store import Store


def create_app(settings: Settings | None = None) -> Flask:
    """The application for `settings` (default: config.json and the environment).

    Raises `ConfigErrors`, listing everything that is wrong.
    """
    if settings is None:
        settings = load_here(provider_types())
        log.setup(settings.log_level, settings.log_folder, settings.secrets())
    server = settings.server
    upstreams = transport.create(
        server.worker_class,
        timeouts=transport.Timeouts(
            connect=server.connect_timeout,
            first_byte=server.first_byte_timeout,
            idle=server.idle_timeout,
            total=server.total_timeout,
        ),
        pool_size=settings.process_threads,
        proxy=server.proxies or None,
    )
    store = Store.from_settings(settings)
    context = ProviderContext(
        settings, upstreams, StoreCache(store), BackgroundQueue(), StoreRateGate(store)
    )
    gateway = Gateway(Registry.from_settings(context), settings.models.extra)
    authenticator = auth.Authenticator(settings)

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = int(server.max_body_mb * 1024 * 1024)
    errors.register(app)
    prefix = f"/{settings.backend_container_api_prefix}".rstrip("/")
    app.register_blueprint(chat.blueprint(settings, gateway, authenticator), url_prefix=prefix)
    app.register_blueprint(models.blueprint(gateway, authenticator), url_prefix=prefix)
    app.register_blueprint(health.blueprint(gateway, store))
    routes = frozenset(str(rule) for rule in app.url_map.iter_rules())
    lenient = LenientPaths(app.wsgi_app, prefix, routes)
    app.wsgi_app = Edge(lenient, server.cors_origins)  # type: ignore[method-assign]
    return app
