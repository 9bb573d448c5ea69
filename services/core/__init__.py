"""Pure values that every layer shares: errors, events, requests, models.

Standard library and msgspec only.
"""
