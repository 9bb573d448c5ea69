"""The documentation says what the code does: every key of the settings, both ways."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import pytest

from services.command_line import _parser
from services.config import ROOT, Settings, load
from services.config.load import FILE_VARIABLE
from services.config.reader import is_struct, keys_of, unwrap
from services.core.models import Secret
from services.pipeline.profiles import parse_profile
from services.providers.registry import provider_types

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w.]+)` \| (.+?) \| `(.*?)` \| `(\w+)` \| (.+) \|$", re.MULTILINE)
WORDS = {bool: "boolean", int: "integer", float: "number", str: "text", Secret: "secret"}


class Key(NamedTuple):
    """One key, as a row of the tables gives it."""

    path: str
    type: str
    default: str
    variable: str


def keys(kind: Any = Settings, path: str = "") -> Iterator[Key]:
    """Every key of the settings structs."""
    for field in keys_of(kind):
        base, _ = unwrap(field.type)
        name = f"{path}.{field.encode_name}".lstrip(".")
        if is_struct(base):
            yield from keys(base, name)
        else:
            default = getattr(kind(), field.name)
            yield Key(name, type_words(base), default_text(base, default), variable(name))


def type_words(annotation: Any) -> str:
    """A type as the tables call it."""
    base, _ = unwrap(annotation)
    origin, parts = get_origin(base), get_args(base)
    if origin in (Union, types.UnionType):
        words = [type_words(part) for part in parts if part is not type(None)]
        optional = type(None) in parts and words != ["secret"]
        return " or ".join([*words, "`null`"] if optional else words)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return "list"
    return "object" if origin is not None else WORDS[base]


def default_text(base: Any, default: Any) -> str:
    """A default as JSON; an unset secret is empty text, as the file would have it."""
    if default is None and Secret in get_args(base):
        return '""'
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    plain = dict(default) if isinstance(default, Mapping) else default
    return json.dumps(plain, ensure_ascii=False)


def variable(path: str) -> str:
    return path.replace(".", "_").upper()


def documented() -> list[Key]:
    return [Key(*found[:4]) for found in ROW.findall(CONFIGURATION)]


def test_every_key_is_documented_once_as_it_is() -> None:
    assert sorted(documented()) == sorted(keys())


@pytest.mark.parametrize("key", documented(), ids=lambda key: key.path)
def test_documented_key_exists_with_type_default_and_variable(key: Key) -> None:
    assert {known.path: known for known in keys()}[key.path] == key


def test_every_row_is_read() -> None:
    rows = [line for line in CONFIGURATION.splitlines() if line.startswith("| `")]
    assert len(rows) == len(documented())


def test_old_spellings_are_documented() -> None:
    for name in old_spellings(Settings):
        assert f"`{name}`" in CONFIGURATION


def old_spellings(kind: Any) -> Iterator[str]:
    """Every alias of a key or a variable that is not just the key's name in other letters."""
    for field in msgspec.structs.fields(kind):
        base, extra = unwrap(field.type)
        if is_struct(base):
            yield from old_spellings(base)
        yield from extra.get("aliases", ())
        yield from (name for name in extra.get("env", ()) if name.lower() != field.name)


def test_env_example_offers_only_variables_that_exist() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    offered = re.findall(r"^# ?([A-Za-z_0-9]+)=", text, re.MULTILINE)
    known = {key.variable for key in keys()} | {FILE_VARIABLE, "TZ"}
    assert offered
    assert set(offered) <= known


def test_env_example_sets_nothing_by_itself() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") for line in lines if line)


def provider_keys(annotation: Any) -> Iterator[str]:
    """The keys of what types `providers.<name>`: a struct, or a list of structs."""
    kind = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    yield from (field.encode_name for field in msgspec.structs.fields(kind))


@pytest.mark.parametrize(("name", "annotation"), provider_types().items())
def test_every_key_of_a_provider_is_documented(name: str, annotation: Any) -> None:
    text = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    documented_keys = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(documented_keys) == sorted(provider_keys(annotation))


def test_profiles_of_the_callers_are_ones_and_their_settings_are_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "callers.md").read_text(encoding="utf-8")
    named = {*re.findall(r"`(normal|bot[+\w]*)`", text), *re.findall(r"Profile: ([\w+]+)", text)}
    assert {"normal", "bot", "bot+plain_image", "bot+markdown_image"} <= named - {"bot_mode"}
    for name in named - {"bot_mode"}:
        parse_profile(name)
    [command] = re.findall(r"^bin/causeway (keys create .*)$", text, re.MULTILINE)
    assert _parser().parse_args(command.split()).profile in named
    [shown] = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    file = tmp_path / "config.json"
    file.write_text(shown, encoding="utf-8")
    [key] = load(file, {}).auth.keys
    assert key.profile in named
