"""One turn: everything that happens between a request and the end of its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import msgspec

from services.core.errors import GatewayError, ProtocolError, UpstreamError
from services.core.events import SILENCE, Event, Events
from services.core.requests import ChatRequest
from services.providers.backend_api.answer import Answer
from services.providers.backend_api.arkose import arkose_token
from services.providers.backend_api.attachments import Opener
from services.providers.backend_api.body import Ask, confirmation_body, conversation_body
from services.providers.backend_api.calls import Calls
from services.providers.backend_api.conversations import Continued, Conversations
from services.providers.backend_api.deletion import Deletion
from services.providers.backend_api.delivery import Delivery
from services.providers.backend_api.downloads import Downloads
from services.providers.backend_api.event_socket import SocketDialler
from services.providers.backend_api.found import Found
from services.providers.backend_api.gizmos import gizmo_with
from services.providers.backend_api.messages import (
    Place,
    file_parts,
    latest,
    upstream_messages,
)
from services.providers.backend_api.model_names import Family
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.backend_api.uploads import Uploaded, upload
from services.providers.base import ProviderContext

MAX_ALLOWED = 10
"""Actions allowed within one turn."""


class Tools(msgspec.Struct, frozen=True):
    """What turns share."""

    context: ProviderContext
    own: BackendApiSettings
    open_attachment: Opener
    conversations: Conversations
    dialler: SocketDialler


class Order(msgspec.Struct, frozen=True):
    """What is asked for. `lookup` is the operator's account for looking up GPTs, if there is
    one.
    """

    request: ChatRequest
    family: Family
    gizmo_id: str | None
    calls: Calls
    lookup: Calls | None


class Turn:
    """`events` runs it, once."""

    def __init__(self, order: Order, tools: Tools) -> None:
        settings = tools.context.settings
        self._order = order
        self._tools = tools
        self._calls = order.calls
        self._deletes = settings.need_delete_conversation_after_response
        self._downloads = Downloads(order.calls, settings, tools.own)
        self._delivery = Delivery(order.calls, tools.dialler)
        self._answer = Answer(
            order.calls.credential,
            plot_notice=tools.own.plot_notice,
            upload_notice=settings.upload_success_text,
            told=self._deletes is False,
        )

    def events(self) -> Events:
        answer = self._answer
        try:
            ask, body = yield from self._prepare()
            yield from self._hear(body, ask.arkose_token)
            for _ in range(MAX_ALLOWED):
                if answer.confirmation is None:
                    break
                yield from self._allow(ask)
            else:
                raise UpstreamError("the upstream asks for leave for too many actions")
            yield from self._resolved(answer.finish)
        except GatewayError:
            # what was held back is still part of an answer that had begun
            if answer.has_spoken:
                yield from self._resolved(answer.close)
            raise
        finally:
            self._delivery.close()
            self._afterwards()

    def _prepare(self) -> Generator[list[Event], None, tuple[Ask, dict[str, Any]]]:
        """The request, with all that must be had for it before."""
        order, settings = self._order, self._tools.context.settings
        messages, family = order.request.messages, order.family
        continued = self._tools.conversations.asked_for(order.request.source, self._calls.holder)
        start = latest(messages) if continued else 0
        gizmo = token = None
        if order.gizmo_id:
            cache = self._tools.context.cache
            gizmo = yield from gizmo_with(order.gizmo_id, self._calls, cache, order.lookup)
        uploaded = yield from self._upload(start)
        if settings.custom_arkose_url and family.arkose:
            token = yield from arkose_token(self._tools.context.transport, settings.arkose_urls)
        ask = Ask(family, gizmo, self._deletes == "temporary", token)
        said = upstream_messages(messages, family, uploaded, start)
        return ask, conversation_body(ask, said, continued)

    def _upload(self, start: int) -> Generator[list[Event], None, Mapping[Place, Uploaded]]:
        """The files of the messages from number `start` on."""
        uploaded: dict[Place, Uploaded] = {}
        for place, part in list(file_parts(self._order.request.messages, self._order.family)):
            if place[0] < start:
                continue
            param = f"messages[{place[0]}].content[{place[1]}]"
            file = self._tools.open_attachment(part, param=param)
            yield SILENCE
            uploaded[place] = yield from upload(file, self._calls, self._tools.context)
        return uploaded

    def _hear(self, body: dict[str, Any], token: str | None = None) -> Events:
        """Ask, and give what is answered up to the end mark.

        Raises `ProtocolError` if there is none.
        """
        answer, delivery = self._answer, self._delivery
        frames = yield from delivery.ask(body, token)
        answer.conversation_id = delivery.conversation_id or answer.conversation_id
        with contextlib.closing(frames):
            for data in frames:
                if data is None:
                    yield SILENCE
                else:
                    yield from self._resolved(self._feed, data)
        if not (answer.done or answer.complete):
            raise ProtocolError("the upstream's answer stopped before its end")

    def _feed(self, data: list[bytes], found: list[Found]) -> None:
        for frame in data:
            if not self._answer.done:
                self._answer.feed(frame, found)

    def _allow(self, ask: Ask) -> Events:
        """Allow the action that waits, where the operator wants that; else say that it waits."""
        answer, asked = self._answer, self._answer.confirmation
        assert asked is not None
        answer.confirmation = None
        if not self._tools.context.settings.auto_allow_actions or not asked.operation_hash:
            domain = asked.domain or asked.name or ""
            notice = self._tools.own.action_notice.replace("{domain}", domain)
            yield from self._resolved(answer.say, notice)
            return
        yield from self._resolved(answer.close)
        answer.done = answer.complete = False
        yield from self._hear(confirmation_body(ask, asked, answer.conversation_id))

    def _resolved(self, say: Callable[..., None], *about: Any) -> Events:
        """What `say` appends, looked up; and then the failure it ended with, if any."""
        found: list[Found] = []
        failure: GatewayError | None = None
        try:
            say(*about, found)
        except GatewayError as exc:
            failure = exc
        yield from self._downloads.resolved(found, self._answer.conversation_id)
        if failure is not None:
            raise failure

    def _afterwards(self) -> None:
        """Delete the conversation, or remember it if it may go on."""
        answer, tools = self._answer, self._tools
        if not answer.conversation_id:
            return
        if self._deletes is True:
            delete = Deletion(self._calls, answer.conversation_id)
            tools.context.background.submit("delete conversation", delete)
        elif self._deletes is False and answer.done and answer.message_id:
            ended = Continued(answer.conversation_id, answer.message_id)
            tools.conversations.remember(ended, self._calls.holder)
