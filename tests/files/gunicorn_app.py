"""The routes for gunicorn; the folder comes in a variable."""

from __future__ import annotations

import os
from pathlib import Path

from .support import local_cache, make_app

app = make_app(local_cache(Path(os.environ["TEST_FOLDER"])))
