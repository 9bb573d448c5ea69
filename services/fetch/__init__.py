"""The only door to URLs that a caller or an upstream hands us, checked and bounded."""

from services.fetch.addresses import AllowList
from services.fetch.data_urls import decode_data_url
from services.fetch.fetched import Fetched, Limits
from services.fetch.fetcher import Fetcher

__all__ = ["AllowList", "Fetched", "Fetcher", "Limits", "decode_data_url"]
