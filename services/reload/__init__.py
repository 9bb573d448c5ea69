"""New settings while the service runs: the application is built anew, and the old one drained."""

from services.reload.generation import SERVING
from services.reload.lasting import Lasting, Serving
from services.reload.live import Live

__all__ = ["SERVING", "Lasting", "Live", "Serving"]
