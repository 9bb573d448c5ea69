"""POST /v1/chat/completions and its aliases."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from services.api.answer import Answer
from services.api.auth import Authenticator
from services.api.body import read_body
from services.api.client import Client
from services.api.stream import HEADERS, KeepAlive, close, write_stream
from services.config import Settings
from services.core.events import WireEvents
from services.core.requests import ChatRequest
from services.files import public_base
from services.gateway import Gateway, Setting
from services.keys import Admission
from services.log import TURN
from services.pipeline.prime import prime
from services.pipeline.profiles import HEADER, profile_for, profile_from
from services.wire.chat_request import RequestLimits, decode_chat_request
from services.wire.openai_chat import ChatChunks, ResponseHead
from services.wire.openai_completion import Completion

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
        caller, admission = auth.admit(asked.headers)
        asked.environ[TURN] = admission
        with admission:
            chat = decode_chat_request(read_body(asked, server.slow_body_timeout), limits)
            admission.permit(chat.model)
            profile = profile_for(asked.headers.get(HEADER) or admission.profile, default_profile)
            base = partial(public_base, settings, asked.environ)
            events = gateway.answer(chat, Setting(caller, profile, base, admission))
            return _respond(admission.watch(events, chat), chat, admission, asked.environ)

    def _respond(
        events: WireEvents, chat: ChatRequest, admission: Admission, environ: dict[str, Any]
    ) -> Response:
        client = Client(environ)
        identity = f"chatcmpl-{random.getrandbits(96):024x}"  # noqa: S311  # no secret
        head = ResponseHead(identity, chat.model, int(time.time()))
        if not chat.stream:
            return _whole(events, head, client)
        with_usage = always_usage or chat.include_usage or admission.always_usage
        return _streamed(events, head, client, with_usage)

    def _streamed(
        events: WireEvents, head: ResponseHead, client: Client, with_usage: bool
    ) -> Response:
        encoder = ChatChunks(head, with_usage=with_usage)
        primed = prime(events, server.commit_window, client.check)
        frames = write_stream(primed, encoder, client, keep_alive)
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
