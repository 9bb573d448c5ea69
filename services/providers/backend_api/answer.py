"""From the upstream's events to ours, for one answer. Pure."""

from __future__ import annotations

import re

from services.core.errors import UpstreamError
from services.core.events import Conversation, Finish, FinishReason, Reasoning, Text
from services.core.models import Credential
from services.providers.backend_api.body import Confirmation
from services.providers.backend_api.citations import Citations
from services.providers.backend_api.event_reader import EventReader
from services.providers.backend_api.found import Found
from services.providers.backend_api.frames import DONE
from services.providers.backend_api.refused import refused_in_stream
from services.providers.backend_api.upstream_events import (
    Message,
    UpstreamEvent,
    finish_type,
    question,
)
from services.providers.backend_api.voices import (
    Code,
    Notice,
    Output,
    Pictures,
    Spoken,
    Thinking,
    Voice,
)

THINKERS = frozenset({"a8km123"})
"""Tools whose text is the model's thinking."""

_POLICY = re.compile(
    r"(did not|didn['\u2019]t) follow our content polic|violates? our content polic", re.IGNORECASE
)
"""What the drawing tool tells the model when it does not draw."""
_BEGINNING = 300

_REASONS: dict[str, FinishReason] = {"max_tokens": "length", "interrupted": "length"}


class Answer:
    """One turn's answer. `feed` it the data of events; after `done`, or once it is `complete` and
    the upstream says no more, `finish` it.

    `told` says whether to name the conversation, which makes no sense for one that goes away.
    """

    def __init__(
        self, credential: Credential, *, plot_notice: str, upload_notice: str, told: bool
    ) -> None:
        self.done = self.complete = False
        self.conversation_id = ""
        self.message_id = ""
        self.confirmation: Confirmation | None = None
        self._credential = credential
        self._plot_notice = plot_notice
        self._upload_notice = upload_notice
        self._untold = told
        self._told = told
        self._events = EventReader()
        self._citations = Citations()
        self._voices: dict[tuple[str, str], Voice | None] = {}
        self._speaking: Voice | None = None
        self._reason: FinishReason = "stop"
        self._blocked = False
        self._picture_refused = False
        self.has_spoken = False

    def feed(self, frame: bytes, out: list[Found]) -> None:
        """Append what an event says. Raises the error it holds."""
        if frame == DONE:
            self.done = True
            return
        event = self._events.read(frame)
        if event is None:
            return
        if event.conversation_id:
            self.conversation_id = event.conversation_id
        if event.error or event.detail:
            raise refused_in_stream(event.error or event.detail, self._credential)
        before = len(out)
        self._hear(event, out)
        if len(out) > before:
            self._note_speech(out, before)
            if self._untold and self.conversation_id:
                self._untold = False
                out.insert(before, Conversation(self.conversation_id))

    def close(self, out: list[Found]) -> None:
        """Append what is held back."""
        if self._speaking is not None:
            before = len(out)
            self._speaking.close(out)
            self._note_speech(out, before)
            self._speaking = None

    def say(self, text: str, out: list[Found]) -> None:
        """Append words of our own."""
        self.close(out)
        self.has_spoken = True
        out.append(Text(text))

    def finish(self, out: list[Found]) -> None:
        """Append the end. Raises `UpstreamError` if nothing was said."""
        self.close(out)
        if self._blocked or self._picture_refused:
            self._reason = "content_filter"
        elif not self.has_spoken:
            raise UpstreamError("the upstream's answer is empty", code="empty_answer")
        if self._told and self.conversation_id and self.message_id:
            out.append(Conversation(self.conversation_id, self.message_id))
        out.append(Finish(self._reason))

    def _note_speech(self, out: list[Found], start: int) -> None:
        """Thinking alone is no answer."""
        if not self.has_spoken:
            self.has_spoken = any(type(item) is not Reasoning for item in out[start:])

    def _hear(self, event: UpstreamEvent, out: list[Found]) -> None:
        if event.moderation_response is not None and event.moderation_response.blocked:
            self._blocked = True
        message = event.message
        if message is None:
            self.complete = self.complete or event.type == "message_stream_complete"
            return
        if message.author is None or message.content is None:
            return
        if message.author.role not in ("assistant", "tool"):
            return
        self.message_id = message.id
        is_finished = message.is_finished
        if is_finished:
            self._citations.learn(message.metadata)
        voice = self._voice(message, out)
        if voice is not None:
            voice.hear(message, out)
            if is_finished:
                voice.close(out)
        if is_finished:
            self._end_of(message)

    def _voice(self, message: Message, out: list[Found]) -> Voice | None:
        """Who speaks in this message; whoever spoke before has then said everything."""
        assert message.content is not None
        key = (message.id, message.content.content_type)
        if key in self._voices:
            voice = self._voices[key]
        else:
            voice = self._voices[key] = self._new_voice(message)
        if voice is not None and voice is not self._speaking:
            if self._speaking is not None:
                self._speaking.close(out)
            self._speaking = voice
        return voice

    def _new_voice(self, message: Message) -> Voice | None:
        assert message.author is not None
        assert message.content is not None
        kind, role = message.content.content_type, message.author.role
        if role == "assistant":
            if kind == "code" or (kind == "text" and message.recipient not in (None, "", "all")):
                return Code()
            if kind in ("text", "multimodal_text"):
                self._reason = "stop"
                return Spoken(self._citations)
            return None
        match kind:
            case "execution_output":
                return Output(self._plot_notice)
            case "multimodal_text":
                return Pictures()
            case "text" if message.author.name in THINKERS:
                return Thinking()
            case "text":
                return Notice(self._upload_notice)
            case _:
                return None

    def _end_of(self, message: Message) -> None:
        metadata, author, content = message.metadata, message.author, message.content
        assert author is not None
        assert content is not None
        if author.role == "tool" and content.content_type == "multimodal_text":
            self._picture_refused = False  # a second try went well
        elif author.role == "tool" and content.content_type == "text":
            refused = _POLICY.search(content.whole[:_BEGINNING]) is not None
            self._picture_refused = refused or self._picture_refused
        if metadata is None:
            return
        reason = finish_type(metadata.finish_details)
        if reason and author.role == "assistant":
            self._reason = _REASONS.get(reason, "stop")
        asked = question(metadata.jit_plugin_data)
        if asked is not None:
            self.confirmation = Confirmation(
                message.id,
                author.role,
                author.name,
                asked.domain,
                asked.target_message_id,
                asked.operation_hash,
            )
