"""A request's way in: what its key and its account need of the store, asked in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from services.scripts import Call, run_scripts
from services.store import Store, StoreAway


class Entry(Protocol):
    """A request that may still have to be let in."""

    @property
    def refusal(self) -> str:
        """A key that is in the store, for a moment, if the calls below refuse the request."""
        ...

    def calls(self) -> Sequence[Call]:
        """What to ask the store; nothing for one who is in already."""
        ...

    def answered(self, answers: Sequence[Any]) -> None:
        """Raises `GatewayError` if the request is refused."""
        ...

    def unanswered(self, away: StoreAway) -> None:
        """The store is away. Raises as `answered`."""
        ...


class Inside:
    """An entry for those who are in."""

    refusal = ""

    def calls(self) -> Sequence[Call]:
        return ()

    def answered(self, answers: Sequence[Any]) -> None:
        """Nothing was asked."""

    def unanswered(self, away: StoreAway) -> None:
        """Nothing was asked."""


INSIDE = Inside()


def enter(store: Store, entry: Entry, further: Sequence[Call] = ()) -> list[Any] | None:
    """Let a request in; the answers to `further`, or None while the store is away.

    Raises `GatewayError` if it is refused. What stands in `further` looks at `entry.refusal`, so
    that a refused request takes nothing.
    """
    asked = entry.calls()
    try:
        answers = run_scripts(store, [*asked, *further])
    except StoreAway as away:
        entry.unanswered(away)
        return None
    entry.answered(answers[: len(asked)])
    return answers[len(asked) :]
