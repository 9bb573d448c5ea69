"""A ChatGPT-web style upstream: `/backend-api/conversation` and what belongs to it.

It answers in server-sent events or over a WebSocket; each event holds the whole text of a message
so far. `upstream_base_url` switches the provider on. A caller brings an access token of the
upstream, unless the operator has configured one.
"""

from __future__ import annotations

from services.config import ROOT, Settings
from services.core.models import Secret
from services.providers.backend_api.attachments import Opener
from services.providers.backend_api.event_socket import SocketDialler
from services.providers.backend_api.gizmos import GptsToken
from services.providers.backend_api.gpts_file import GptsFile
from services.providers.backend_api.provider import BackendApi
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.base import ProviderContext

__all__ = ["SETTINGS", "BackendApi", "BackendApiSettings", "build"]

SETTINGS = BackendApiSettings


def build(
    context: ProviderContext,
    *,
    gpts_token: GptsToken | None = None,
) -> BackendApi | None:
    """The provider, or None without `upstream_base_url`.

    `gpts_token` gives the access token for looking up GPTs (default: `key_for_gpts_info`, if it is
    one).
    """
    settings = context.settings
    if not settings.upstream_base_url:
        return None
    return BackendApi(
        context,
        settings.providers.get("backend_api") or BackendApiSettings(),
        open_attachment=Opener(settings),
        gpts=_gpts_file(settings),
        gpts_token=gpts_token or context.gpts_token or (lambda: _access_token(settings)),
        dialler=SocketDialler(context.transport, settings.proxy or None),
    )


def _gpts_file(settings: Settings) -> GptsFile:
    """gpts.json in data/, where old deployments mount theirs, or beside it."""
    folders = dict.fromkeys((settings.server.folder, ROOT))
    return GptsFile(
        tuple(folder / name for folder in folders for name in ("data/gpts.json", "gpts.json"))
    )


def _access_token(settings: Settings) -> Secret | None:
    """`key_for_gpts_info`, unless it is a refresh token, which must be exchanged first."""
    key = settings.key_for_gpts_info
    return key if key is not None and key.reveal().startswith("eyJ") else None
