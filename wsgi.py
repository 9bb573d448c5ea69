"""gunicorn's entry point: `gunicorn wsgi:app`, configured by gunicorn.conf.py."""

from app import create_app
from services.reload import Live

app = Live(create_app)
