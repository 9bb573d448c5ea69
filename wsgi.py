"""gunicorn's entry point: `gunicorn wsgi:app`, configured by gunicorn.conf.py."""

from app import create_app
from services.config import load_here
from services.providers.registry import provider_types
from services.server import log

_settings = load_here(provider_types())
log.setup(_settings.log_level, _settings.log_folder, _settings.secrets())
app = create_app(_settings)
