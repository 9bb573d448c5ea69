"""The only door to URLs that a caller or an upstream hands us, checked and bounded."""

from services.fetch.content import Fetched, Limits, base_name, decode_data_url
from services.fetch.downloads import (
    caller_fetcher,
    download_limits,
    packed_limits,
    upstream_fetcher,
)
from services.fetch.fetcher import Fetcher
from services.fetch.urls import AllowList

__all__ = [
    "AllowList",
    "Fetched",
    "Fetcher",
    "Limits",
    "base_name",
    "caller_fetcher",
    "decode_data_url",
    "download_limits",
    "packed_limits",
    "upstream_fetcher",
]
