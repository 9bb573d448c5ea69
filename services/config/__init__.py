"""Typed settings. Every problem is reported at once; nothing else reads the environment."""

from services.config.exposure import check_exposure, is_loopback, passthrough_enabled
from services.config.kept import KeptConfig
from services.config.load import environment, find_file, kept_folder, load, load_here
from services.config.problems import ConfigErrors, Problem
from services.config.restart import NEEDS_RESTART, differing, keep_running, needs_restart
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
    "NEEDS_RESTART",
    "ROOT",
    "Auth",
    "BotMode",
    "ConfigErrors",
    "Files",
    "GatewayKeySetting",
    "KeptConfig",
    "Labels",
    "Models",
    "Problem",
    "Redis",
    "RefreshToAccess",
    "Server",
    "Settings",
    "Store",
    "check_exposure",
    "differing",
    "environment",
    "find_file",
    "is_loopback",
    "keep_running",
    "kept_folder",
    "load",
    "load_here",
    "needs_restart",
    "passthrough_enabled",
]
