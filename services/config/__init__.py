"""Typed settings. Every problem is reported at once; nothing else reads the environment."""

from services.config.load import environment, find_file, load, load_here, refused_problems
from services.config.reader import ConfigErrors, Problem
from services.config.rules import check_exposure, is_loopback, passthrough_enabled
from services.config.settings import (
    ROOT,
    Auth,
    BotMode,
    Files,
    GatewayKeySetting,
    Labels,
    Models,
    Redis,
    RefreshToAccess,
    Server,
    Settings,
    Store,
)

__all__ = [
    "ROOT",
    "Auth",
    "BotMode",
    "ConfigErrors",
    "Files",
    "GatewayKeySetting",
    "Labels",
    "Models",
    "Problem",
    "Redis",
    "RefreshToAccess",
    "Server",
    "Settings",
    "Store",
    "check_exposure",
    "environment",
    "find_file",
    "is_loopback",
    "load",
    "load_here",
    "passthrough_enabled",
    "refused_problems",
]
