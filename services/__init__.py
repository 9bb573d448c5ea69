"""Causeway: any chat back end behind the OpenAI API. See docs/architecture.md for the map."""

__version__ = "0.1.0"
