"""Builds the events of one turn: whole messages whose text grows, as the upstream sends them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

from ..backend_api_assets import png
from ..backend_api_records import Conversation, StoredFile
from .steps import Event, Options, Step

CREATED = 1707600000.0
MAX_SIDE = 2048
"""Pixels of a picture whose size comes from the request."""
_SIZE = re.compile(r"\b(\d{1,5})x(\d{1,5})\b")
_TOKEN = re.compile(r"\s?\w{1,4}|\s?[^\w\s]|\s")


class Shelf(Protocol):
    """Where a turn leaves the files it makes."""

    def new_uuid(self) -> str: ...
    def new_file_id(self) -> str: ...
    def add_file(self, file: StoredFile) -> StoredFile: ...


class Turn:
    """One request being answered. `slug` is the model asked for, `user_texts` the user's words."""

    def __init__(
        self, payload: Mapping[str, Any], conversation: Conversation, shelf: Shelf, options: Options
    ) -> None:
        self.conversation = conversation
        self.options = options
        self.slug = str(payload.get("model", "gpt-4"))
        self.user_texts = user_texts(payload)
        self._shelf = shelf

    def param(self, name: str, default: Any) -> Any:
        """A parameter of the scenario, of the default's type."""
        return type(default)(self.options.params.get(name, default))

    def new_id(self) -> str:
        return self._shelf.new_uuid()

    def assistant(self, recipient: str = "all", content_type: str = "text") -> Message:
        """A message of the model; to another recipient than `all` it is a tool's input."""
        metadata = {"message_type": "next", "model_slug": self.slug}
        return Message(self, "assistant", None, content_type, recipient, metadata)

    def tool(self, name: str, content_type: str = "text") -> Message:
        metadata = {"message_type": "next", "model_slug": self.slug}
        return Message(self, "tool", name, content_type, "all", metadata)

    def framed(self, *parts: Iterable[Step], blocked: bool = False) -> Iterator[Step]:
        """The parts between what opens and closes every turn; `blocked` is the moderation's word
        at the close.
        """
        return chain(self._opening(), *parts, self._closing(blocked))

    def event(self, message: Mapping[str, Any] | None, error: str | None = None) -> Event:
        conversation_id = self.conversation.conversation_id
        return Event({"message": message, "conversation_id": conversation_id, "error": error})

    def pieces(self, deltas: Iterable[str]) -> Iterator[str]:
        """The deltas, regrouped where the options ask for so many tokens an event."""
        if not self.options.step:
            return iter(deltas)
        tokens = _TOKEN.findall("".join(deltas))
        size = self.options.step
        return ("".join(tokens[i : i + size]) for i in range(0, len(tokens), size))

    def image(self, prompt: str = "otter", shade: int = 0, refused: int = 0) -> dict[str, Any]:
        """A new picture's part in `content.parts`; sized by the parameters or the request."""
        width, height = self._image_size()
        file = StoredFile(self._shelf.new_file_id(), self.conversation.owner, "otter.png")
        file.content, file.content_type = png(width, height, shade), "image/png"
        file.stored = file.uploaded = True
        file.refused = refused
        self._shelf.add_file(file)
        dalle = {"gen_id": file.file_id[-16:], "prompt": prompt, "seed": 1}
        return {
            "content_type": "image_asset_pointer",
            "asset_pointer": f"file-service://{file.file_id}",
            "size_bytes": len(file.content),
            "width": width,
            "height": height,
            "metadata": {"dalle": dalle},
        }

    def sandbox_file(
        self, path: str, content: bytes, content_type: str, name: str = "", refused: int = 0
    ) -> None:
        """Leave a file at `path`; `name` is what its download calls it (default: the base name)."""
        base_name = name or path.rpartition("/")[2]
        file = StoredFile(self._shelf.new_file_id(), self.conversation.owner, base_name)
        file.content, file.content_type, file.refused = content, content_type, refused
        file.stored = file.uploaded = True
        self._shelf.add_file(file)
        self.conversation.sandbox[path] = file.file_id

    def _image_size(self) -> tuple[int, int]:
        said = self.user_texts[-1] if self.user_texts else ""
        *_, (width, height) = [("1024", "1024"), *_SIZE.findall(said)]
        return (
            self.param("width", min(int(width), MAX_SIDE)),
            self.param("height", min(int(height), MAX_SIDE)),
        )

    def _opening(self) -> Iterator[Step]:
        hidden = {"is_visually_hidden_from_conversation": True}
        yield from Message(self, "system", None, "text", "all", hidden).finish()
        for text in self.user_texts[-1:]:
            metadata = {"request_id": "84f0-emulated", "timestamp_": "absolute"}
            yield from Message(self, "user", None, "text", "all", metadata).finish(text)

    def _closing(self, blocked: bool) -> Iterator[Step]:
        conversation_id = self.conversation.conversation_id
        moderation = {"flagged": blocked, "blocked": blocked, "moderation_id": "modr-1"}
        yield Event(
            {
                "conversation_id": conversation_id,
                "message_id": self.new_id(),
                "is_completion": True,
                "moderation_response": moderation,
            }
        )
        title = {"type": "title_generation", "title": "Otters", "conversation_id": conversation_id}
        yield Event(title)


class Message:
    """One message; every event carries the whole of its text so far."""

    def __init__(
        self,
        turn: Turn,
        role: str,
        name: str | None,
        content_type: str,
        recipient: str,
        metadata: dict[str, Any],
    ) -> None:
        self.message_id = turn.new_id()
        self.text = ""
        self._turn = turn
        self._author: dict[str, Any] = {"role": role, "name": name, "metadata": {}}
        self._content_type = content_type
        self._recipient = recipient
        self._metadata = metadata
        turn.conversation.messages.add(self.message_id)

    def grow(self, *deltas: str, metadata: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """An `in_progress` event for each delta; the metadata stay for all later events."""
        self._metadata.update(metadata or {})
        for delta in self._turn.pieces(deltas):
            self.text += delta
            yield self._event("in_progress", None)

    def finish(
        self,
        tail: str = "",
        end_turn: bool | None = None,
        reason: str = "stop",
        parts: list[Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Iterator[Step]:
        """The closing event, with any text that comes only here; `parts` replace the text."""
        self.text += tail
        self._metadata.update(metadata or {})
        role = self._author["role"]
        if role == "assistant":
            self._metadata["finish_details"] = {"type": reason, "stop_tokens": [100260]}
        complete = "finished_successfully" if reason == "stop" else "finished_partial_completion"
        final = role == "assistant" and self._recipient == "all"
        yield self._event(complete, final if end_turn is None else end_turn, parts)

    def _event(self, status: str, end_turn: bool | None, parts: list[Any] | None = None) -> Event:
        return self._turn.event(
            {
                "id": self.message_id,
                "author": self._author,
                "create_time": CREATED,
                "update_time": None,
                "content": self._content(parts),
                "status": status,
                "end_turn": end_turn,
                "weight": 1.0,
                "metadata": dict(self._metadata),
                "recipient": self._recipient,
            }
        )

    def _content(self, parts: list[Any] | None) -> dict[str, Any]:
        kind = self._content_type
        match kind:
            case "code":
                return {"content_type": kind, "language": "unknown", "text": self.text}
            case "execution_output":
                return {"content_type": kind, "text": self.text}
            case "tether_browsing_display":
                return {"content_type": kind, "result": self.text, "summary": None}
            case _:
                return {"content_type": kind, "parts": [self.text] if parts is None else parts}


def user_texts(payload: Mapping[str, Any]) -> list[str]:
    """What the user's messages say, oldest first; only the text of multimodal ones."""
    texts = []
    for message in payload.get("messages", ()):
        if message["author"]["role"] == "user":
            parts = message["content"].get("parts", ())
            texts.append("\n".join(part for part in parts if isinstance(part, str)))
    return texts
