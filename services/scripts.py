"""Our Lua scripts on the store, several of them in one round trip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import redis
from redis.exceptions import NoScriptError

from services.store import Store


class StoreScript:
    """A script; the server keeps it by the hash of its text, until it is restarted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def beside(cls, module: str, name: str) -> StoreScript:
        """The script in the file `name` next to the file `module`."""
        return cls(Path(module).with_name(name).read_text(encoding="utf-8"))

    def run(self, store: Store, keys: Sequence[str], arguments: Sequence[str | float]) -> Any:
        """Its answer. Raises `StoreAway`."""
        [answer] = run_scripts(store, [Call(self, keys, arguments)])
        return answer


class Call(msgspec.Struct, frozen=True):
    """A script to run with these keys and arguments."""

    script: StoreScript
    keys: Sequence[str]
    arguments: Sequence[str | float]


def run_scripts(store: Store, calls: Sequence[Call]) -> list[Any]:
    """The answers to `calls`, run in this order and in one round trip; in two after the server has
    forgotten its scripts. Raises `StoreAway`.
    """
    if not calls:
        return []
    return store.run(lambda client: _answers(client, calls))


def _answers(client: redis.Redis, calls: Sequence[Call]) -> list[Any]:
    answers = _ask(client, calls)
    unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if unknown:
        for text in {calls[place].script.text for place in unknown}:
            client.script_load(text)
        again = _ask(client, [calls[place] for place in unknown])
        for place, answer in zip(unknown, again, strict=True):
            answers[place] = answer
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _ask(client: redis.Redis, calls: Sequence[Call]) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)
        return pipe.execute(raise_on_error=False)
