"""The upstream's events, as far as they are used. Rarely used parts stay raw JSON.

`{"message": {…} | null, "conversation_id": "…", "error": null}`, where each event of a message
holds the whole of its text so far; or deltas to such an event (see decoder.py); and others around
them, of which only some say anything.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol, TypeVar

import msgspec

from services.core.errors import ProtocolError

T = TypeVar("T")

_NULL = msgspec.Raw(b"null")

log = logging.getLogger(__name__)


class Author(msgspec.Struct, gc=False):
    role: str = ""
    name: str | None = None


class Content(msgspec.Struct):
    """`parts` are texts and objects; code and output have `text`, and code its `language`, which
    mostly is "unknown".
    """

    content_type: str = ""
    parts: list[Any] | None = None
    text: str | None = None
    language: str | None = None

    @property
    def whole(self) -> str:
        """All text of the message so far."""
        if not self.parts:
            return self.text or ""
        if len(self.parts) == 1:
            return self.parts[0] if isinstance(self.parts[0], str) else ""
        return "".join([part for part in self.parts if isinstance(part, str)])


class WholeText(Protocol):
    def whole(self) -> str: ...


class Appended(Content):
    """What an event `added` to the text of the one before it, which had `start` characters; -1 if
    it did more than that. `source` knows the whole text, but only until another event is read.
    """

    start: int = 0
    added: str = ""
    source: Any = None

    @property
    def whole(self) -> str:
        source: WholeText = self.source
        return source.whole()


class Metadata(msgspec.Struct):
    citations: msgspec.Raw = _NULL
    content_references: msgspec.Raw = _NULL
    search_result_groups: msgspec.Raw = _NULL
    aggregate_result: msgspec.Raw = _NULL
    jit_plugin_data: msgspec.Raw = _NULL
    finish_details: msgspec.Raw = _NULL


class Message(msgspec.Struct):
    """`recipient` is `all`, or the tool that the text is meant for."""

    id: str = ""
    author: Author | None = None
    content: Content | None = None
    status: str | None = None
    metadata: Metadata | None = None
    recipient: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.status is not None and self.status.startswith("finished")


class _Moderation(msgspec.Struct):
    blocked: bool = False


class UpstreamEvent(msgspec.Struct):
    message: Message | None = None
    conversation_id: str | None = None
    error: Any = None
    detail: Any = None
    moderation_response: _Moderation | None = None
    type: Any = None
    p: str | None = None
    o: str | None = None
    v: Any = msgspec.UNSET

    @property
    def is_delta(self) -> bool:
        return self.v is not msgspec.UNSET or self.o is not None


_decode_event = msgspec.json.Decoder(UpstreamEvent).decode
_decode_text = msgspec.json.Decoder(str).decode


def decode_event(frame: bytes) -> UpstreamEvent | None:
    """An event, or None for what says nothing: heartbeats, and shapes that nobody knows.

    Raises `ProtocolError` for broken JSON, and for an answer's message that cannot be read.
    """
    try:
        return _decode_event(frame)
    except msgspec.ValidationError as exc:
        if b'"assistant"' in frame:
            raise ProtocolError("the upstream sent a message of an unknown shape") from exc
        log.debug("upstream event skipped reason=shape size=%d", len(frame))
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        if frame.lstrip()[:1] in (b"{", b"["):
            raise ProtocolError("the upstream sent an event that is not JSON") from exc
        return None  # such as `2024-02-11 10:15:00.123456`


def decode_text(literal: bytes) -> str:
    """What stands between the quotes of a JSON string. Raises `msgspec.DecodeError` or
    `UnicodeDecodeError` if it is anything else.
    """
    return _decode_text(b'"%b"' % literal)


def converted(value: Any, kind: type[T]) -> T | None:
    """JSON, raw or decoded, as a `kind`; None if it is of another shape."""
    try:
        if isinstance(value, msgspec.Raw):
            return msgspec.json.decode(value, type=kind)
        return msgspec.convert(value, kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def all_of(value: Any, kind: type[T]) -> list[T]:
    """The members of a list that are of a `kind`."""
    found = (converted(item, kind) for item in converted(value, list[Any]) or ())
    return [item for item in found if item is not None]


class _FinishDetails(msgspec.Struct):
    type: str = ""


def finish_type(details: Any) -> str:
    """Why a message ended: `stop`, `max_tokens`, `interrupted`; "" where nothing says so."""
    found = converted(details, _FinishDetails)
    return found.type if found is not None else ""


class _Shown(msgspec.Struct):
    message_type: str = ""
    image_url: str = ""


class _AggregateResult(msgspec.Struct):
    messages: list[_Shown] | None = None


def plots(aggregate: Any) -> list[str]:
    """Pointers to the pictures that running code has shown."""
    result = converted(aggregate, _AggregateResult)
    shown = result.messages or [] if result is not None else []
    return [item.image_url for item in shown if item.message_type == "image"]


class Confirmation(msgspec.Struct, frozen=True):
    """A question whether an action may be called. Without `operation_hash` it cannot be allowed."""

    message_id: str
    role: str
    name: str | None
    domain: str
    target_message_id: str = ""
    operation_hash: str = ""


class _AlwaysAllow(msgspec.Struct):
    target_message_id: str = ""
    operation_hash: str = ""


class _Action(msgspec.Struct):
    type: str = ""
    always_allow: _AlwaysAllow | None = None


class _ConfirmBody(msgspec.Struct):
    domain: str = ""
    actions: list[_Action] | None = None


class _FromServer(msgspec.Struct):
    type: str = ""
    body: _ConfirmBody | None = None


class _JitPlugin(msgspec.Struct):
    from_server: _FromServer | None = None


def confirmation(message: Message) -> Confirmation | None:
    """The question whether an action may be called, if `message` asks one."""
    data = converted(message.metadata.jit_plugin_data, _JitPlugin) if message.metadata else None
    asked = data.from_server if data is not None else None
    if asked is None or asked.type != "confirm_action":
        return None
    author, body = message.author or Author(), asked.body or _ConfirmBody()
    target = _AlwaysAllow()
    for action in body.actions or ():
        if action.type == "always_allow" and action.always_allow is not None:
            target = action.always_allow
            break
    return Confirmation(
        message.id,
        author.role,
        author.name,
        body.domain,
        target.target_message_id,
        target.operation_hash,
    )
