"""Reads config.json and the environment into `Settings`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from dotenv import dotenv_values

from services.config.reader import ABSENT, ConfigErrors, Reader, Spot
from services.config.rules import advice, contradictions, settle_model_names, settle_old_meanings
from services.config.settings import ROOT, Group, Settings

FILE_VARIABLE = "CAUSEWAY_CONFIG"
"""Names the configuration file, where it is neither data/config.json nor config.json."""

FIXED_VARIABLE = "CAUSEWAY_RELOAD"
"""Set by the master for its workers: the folder of its `Reload`. `.env` was read then."""

PROBLEMS_FILE = "problems"
"""In that folder while the file is refused: how many problems it has."""


def load(
    path: Path | None,
    environ: Mapping[str, str],
    provider_types: Mapping[str, type] | None = None,
    content: bytes | None = None,
) -> Settings:
    """The settings from the file at `path` (None: no file) with `environ` on top; `content` is
    what the file holds, if that is known.

    `provider_types` gives for each provider name the struct, or the list of structs, that types
    `providers.<name>`; without it `providers` is left empty. Raises `ConfigErrors`.
    """
    fields: list[tuple[str, Any, Any]] = [
        (name, kind | None, None) for name, kind in (provider_types or {}).items()
    ]
    group = msgspec.defstruct("Providers", fields, bases=(Group,), frozen=True, kw_only=True)
    reader = Reader(environ, {} if provider_types is None else {"providers": group})
    at = Spot(source="" if path is None else str(path))
    raw = {} if path is None else _read_file(path, content, reader, at)
    settings = reader.struct(Settings, raw, at)
    if settings is ABSENT:
        raise ConfigErrors(reader.problems)
    decoded = {name: getattr(settings.providers, name, None) for name in group.__struct_fields__}
    providers = {name: value for name, value in decoded.items() if value is not None}
    settings = msgspec.structs.replace(settings, providers=providers)
    settings, doubles = settle_model_names(settings, reader.given, at.source)
    problems = [*reader.problems, *doubles, *contradictions(settings, at.source)]
    if problems:
        raise ConfigErrors(problems)
    settings, told = settle_old_meanings(settings)
    warnings = (*reader.warnings, *told, *advice(settings))
    return msgspec.structs.replace(settings, warnings=warnings)


def load_here(provider_types: Mapping[str, type] | None = None, root: Path = ROOT) -> Settings:
    """The settings of this process: environment, then `.env`, then a file, all found in `root`.

    The file is the one named by `CAUSEWAY_CONFIG`, else data/config.json, where old deployments
    mount theirs, else config.json. Raises `ConfigErrors`.
    """
    environ = environment(root)
    return load(find_file(environ, root), environ, provider_types)


def environment(folder: Path = ROOT) -> dict[str, str]:
    """The variables that count: those of this process, then those of `.env` in `folder`, as it was
    when the service started.
    """
    if FIXED_VARIABLE in os.environ:
        return dict(os.environ)
    dotenv = dotenv_values(folder / ".env", interpolate=False)
    return {name: text for name, text in dotenv.items() if text is not None} | dict(os.environ)


def refused_problems() -> int:
    """How many problems the configuration file has for which it is not taken up."""
    try:
        return int((Path(os.environ[FIXED_VARIABLE]) / PROBLEMS_FILE).read_text())
    except (KeyError, OSError, ValueError):
        return 0


def find_file(environ: Mapping[str, str], root: Path = ROOT) -> Path | None:
    """The configuration file, as `load_here` says; None if there is none."""
    if named := environ.get(FILE_VARIABLE):
        return root / named
    usual = (root / "data" / "config.json", root / "config.json")
    return next((path for path in usual if path.is_file()), None)


def _read_file(path: Path, content: bytes | None, reader: Reader, at: Spot) -> Any:
    """The JSON in a file; where there is none, `{}` and a problem, so that reading goes on."""
    try:
        text = (path.read_bytes() if content is None else content).decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_no_doubles)
    except json.JSONDecodeError as exc:
        trouble = f"not JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}"
    except OSError as exc:
        trouble = f"cannot be read: {exc.strerror or type(exc).__name__}"
    except UnicodeDecodeError:
        trouble = "is not UTF-8 text"
    except ValueError as exc:
        trouble = str(exc)
    reader.note(at, trouble)
    return {}


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ValueError(f"a key stands twice in one object: {', '.join(doubles)}")
    return dict(pairs)
