"""Ask with one credential after the other until one is answered; never once an answer has begun."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Literal, Protocol, TypeVar

from services.accounts.failures import TokenFailure
from services.core.errors import GatewayError, RateLimited, Unavailable
from services.core.models import Credential

T = TypeVar("T")
Batches = Iterator[list[T]]

Kind = Literal["expired", "refused", "limited", "unclear"]

_KINDS: dict[int, Kind] = {401: "expired", 402: "refused", 403: "refused", 429: "limited"}
_WORDS_OF_ACCOUNTS = {401, 402, 403}


class Attempt(Protocol):
    """One credential to ask with."""

    def credential(self) -> Credential:
        """Raises `TokenFailure`."""
        ...

    def renewed(self) -> Credential | None:
        """Another one for the same account, after the upstream refused the first; or None."""
        ...

    def watch(self, batches: Batches[T]) -> Batches[T]:
        """The batches as they are, looked at in passing; closing it closes them."""
        ...

    def failed(self, fault: GatewayError | TokenFailure) -> GatewayError | None:
        """Note a fault of the account. What to raise, or None where the next one may be asked."""
        ...

    def told(self, error: GatewayError) -> GatewayError:
        """What to raise for `error`, after which nobody else is asked."""
        ...

    def succeeded(self) -> None:
        """The answer is complete."""
        ...

    def close(self) -> None:
        """It is over, however it went."""
        ...


def with_failover(
    open_stream: Callable[[Credential], Batches[T]], attempts: Iterable[Attempt]
) -> Batches[T]:
    """The answer of the first attempt that gets one. `open_stream` asks with a credential.

    Before the first event an attempt that the upstream refuses for its account's sake is made
    once more with a renewed token, then followed by the next. Raises as the attempts say; what
    `attempts` raises when there is none left is what the caller is told.
    """
    for attempt in attempts:
        try:
            fault = yield from _ask(open_stream, attempt)
            if fault is None:
                attempt.succeeded()
                return
            error = attempt.failed(fault)
        finally:
            attempt.close()
        if error is fault:
            raise error
        if error is not None:
            raise error from fault


def fault_of(error: GatewayError) -> Kind | None:
    """What an upstream's error says about the account; None if it is about something else.

    An upstream's 401 comes with its status where the provider keeps it, else as a plain
    `Unavailable`.
    """
    status = getattr(error, "upstream_status", None)
    if status is not None:
        return _KINDS.get(status)
    if isinstance(error, RateLimited):
        return "limited"
    return "unclear" if isinstance(error, Unavailable) else None


def neutral(error: GatewayError) -> GatewayError:
    """The same, unless it would look like the caller's fault: relays drop a channel on 401."""
    if error.status not in _WORDS_OF_ACCOUNTS:
        return error
    return Unavailable("this model's upstream account cannot serve requests now")


def _ask(
    open_stream: Callable[[Credential], Batches[T]], attempt: Attempt
) -> Generator[list[T], None, GatewayError | TokenFailure | None]:
    """One attempt; what it failed of before the first event, if it was the account's fault."""
    try:
        credential = attempt.credential()
    except TokenFailure as failure:
        return failure
    refusal = yield from _until_refused(open_stream, credential, attempt)
    if refusal is not None and fault_of(refusal) in ("expired", "unclear"):
        renewed = attempt.renewed()
        if renewed is not None:
            refusal = yield from _until_refused(open_stream, renewed, attempt)
    return refusal


def _until_refused(
    open_stream: Callable[[Credential], Batches[T]], credential: Credential, attempt: Attempt
) -> Generator[list[T], None, GatewayError | None]:
    """Pass the batches on; the refusal, if the account was refused before the first event."""
    has_begun = False
    watched: Batches[T] | None = None
    try:
        watched = attempt.watch(open_stream(credential))
        for batch in watched:
            has_begun = has_begun or bool(batch)
            yield batch
    except GatewayError as error:
        if not has_begun and fault_of(error) is not None:
            return error
        told = attempt.told(error)
        if told is error:
            raise
        raise told from error
    finally:
        closing = getattr(watched, "close", None)
        if closing is not None:
            closing()
    return None
