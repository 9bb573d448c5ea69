"""POST /v1/chat/completions and its aliases."""

from __future__ import annotations

import random
import time
from functools import partial

from flask import Blueprint, Response, request

from services.api.answer import Answer
from services.api.auth import Authenticator
from services.api.body import read_body
from services.api.client import Client
from services.api.stream import HEADERS, KeepAlive, close, first_batch, write_stream
from services.config import Settings
from services.core.events import WireEvents
from services.dialects.chat import RequestLimits, decode_chat_request
from services.dialects.chat_answer import ChatChunks, Completion, ResponseHead
from services.files.public_url import public_base
from services.gateway import Context, Gateway
from services.pipeline.profiles import HEADER, profile_for, profile_from
from services.server.log import TURN

PROFILE_VARIABLE = f"HTTP_{HEADER.upper().replace('-', '_')}"
PATHS = ("/v1/chat/completions", "/v1/object/completions", "/proxies/v1/chat/completions")


def blueprint(settings: Settings, gateway: Gateway, auth: Authenticator) -> Blueprint:
    """The chat routes."""
    server = settings.server
    limits = RequestLimits(server.max_messages)
    keep_alive = KeepAlive(server.keepalive, server.keepalive_interval)
    always_usage = server.stream_usage == "always"
    default_profile = profile_from(settings.bot_mode, settings.labels)
    bp = Blueprint("chat", __name__)

    def create() -> Response:
        asked = request._get_current_object()  # type: ignore[attr-defined]  # once, not per use
        environ = asked.environ
        caller, admission = auth.admit(asked.headers)
        environ[TURN] = admission
        with admission:
            chat = decode_chat_request(read_body(asked, server.slow_body_timeout), limits)
            admission.permit(chat.model)
            named = environ.get(PROFILE_VARIABLE) or admission.profile
            profile = profile_for(named, default_profile) if named else default_profile
            context = Context(caller, profile, partial(public_base, settings, environ), admission)
            events = gateway.answer(chat, context)
            identity = f"chatcmpl-{random.getrandbits(96):024x}"  # noqa: S311  # no secret
            head = ResponseHead(identity, chat.model, int(time.time()))
            client = Client(environ)
            if not chat.stream:
                return _whole(events, head, client)
            with_usage = always_usage or chat.include_usage or admission.always_usage
            encoder = ChatChunks(head, with_usage=with_usage)
            first = first_batch(events, server.commit_window, client.check)
            frames = write_stream(first, events, encoder, client, keep_alive)
        return Answer(
            frames, headers=HEADERS, mimetype="text/event-stream", direct_passthrough=True
        )

    for path in PATHS:
        bp.add_url_rule(path, endpoint=path.replace("/", "_"), view_func=create, methods=["POST"])
    return bp


def _whole(events: WireEvents, head: ResponseHead, client: Client) -> Response:
    answer = Completion(head)
    try:
        for batch in events:
            if batch:
                answer.add(batch)
            else:
                client.check()
    finally:
        close(events)
    return Answer(answer.encode(), mimetype="application/json")
