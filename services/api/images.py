"""POST /v1/images/generations and its aliases: a picture from any model that can draw in a chat.

A picture may take minutes, and nothing is sent before it is there or has failed: the status is
always the true one. Interim 1xx answers would not help on the way. Python's http.client takes any
but 100 for the final one, nginx any but 103, Go's client a few only, and CDNs cut all the same. TCP
probes keep the silent connection known to routers (gunicorn.conf.py), and a caller who needs bytes
all the time streams a chat with the same model.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator
from functools import partial
from typing import Protocol

import msgspec
from flask import Blueprint, Response, request

from services.api.auth import Authenticator
from services.api.body import read_body
from services.api.client import Client
from services.api.stream import close
from services.config import Settings
from services.core.errors import (
    GatewayError,
    KeyLimitReached,
    ProtocolError,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from services.core.events import Events, Extra, Finish, Image, Text
from services.core.requests import ChatRequest
from services.dialects.images import (
    ImageRequest,
    Picture,
    as_chat,
    decode_image_request,
    failed,
    images_body,
    refused,
)
from services.files.public_url import public_base
from services.gateway import Context
from services.pipeline import profiles
from services.pipeline.plain_text import PlainText
from services.pipeline.render import render
from services.server.log import TURN

log = logging.getLogger(__name__)

PATHS = (
    "/v1/images/generations",
    "/v1/object/generations",
    "/v1/chat/generations",
    "/proxies/v1/images/generations",
    "/proxies/v1/chat/generations",
)

MAX_SECONDS = 600.0
"""Longest time for one request, as long as OpenAI's own clients wait."""

MAX_WORDS = 200
"""Most characters of what a model says instead of a picture that go into the error."""

_READ = 4000
_SENTENCE_END = re.compile(r"[.!?\u2026](?=\s|\Z)|[\u3002\uff01\uff1f]")
_LINKED = re.compile(r"!\[[^\]\n]{0,500}\]\((https?://[^\s()<>]{1,4000})\)")


class PictureSource(Protocol):
    """Who draws."""

    def pictures(self, image: ImageRequest, chat: ChatRequest, context: Context) -> Events:
        """One turn's events, not rendered, with pictures at addresses of ours.

        `chat` asks a chat upstream for one picture; an upstream that takes image requests gets
        `image`, and may give `image.n` pictures.
        """
        ...


class ImageBytes(Protocol):
    """Gives the bytes of a picture that an `Image` event points at."""

    def read(self, url: str) -> bytes:
        """Raises `GatewayError` if there are none."""
        ...


class _Order(msgspec.Struct, frozen=True):
    """One request. `deadline` is `time.monotonic()`."""

    image: ImageRequest
    chat: ChatRequest
    context: Context
    deadline: float


class _Turn(msgspec.Struct):
    """What one turn brought: pictures, the model's own text, and that text rendered. `blocked`:
    moderation took the picture.
    """

    images: list[Image] = []
    heard: list[str] = []
    said: list[str] = []
    blocked: bool = False
    finished: bool = False

    @property
    def reply(self) -> str:
        return "".join(self.said)


_Drawing = Generator[None, None, bytes]
"""Yields whenever something or a silent second has passed; returns the body of the answer."""


def blueprint(
    settings: Settings, source: PictureSource, auth: Authenticator, shelf: ImageBytes
) -> Blueprint:
    """The image routes."""
    server = settings.server
    default = profiles.profile_from(settings.bot_mode, settings.labels)
    seconds = min(server.total_timeout, MAX_SECONDS)
    bp = Blueprint("images", __name__)

    def create() -> Response:
        started = time.monotonic()
        caller, admission = auth.admit(request.headers)
        request.environ[TURN] = admission
        with admission:
            profile = profiles.profile_for(
                request.headers.get(profiles.HEADER) or admission.profile, default
            )
            body = read_body(request, server.slow_body_timeout)
            image = decode_image_request(body)
            chat = as_chat(image, settings.dalle_prompt_prefix)
            admission.permit(chat.model)
            base = partial(public_base, settings, request.environ)
            context = Context(caller, profile, base, admission)
            order = _Order(image, chat, context, started + seconds)
            drawing = admission.during(_draw(order, source, shelf))
            answer = _complete(drawing, Client(request.environ))
        return Response(answer, mimetype="application/json")

    for path in PATHS:
        bp.add_url_rule(path, endpoint=path.replace("/", "_"), view_func=create, methods=["POST"])
    return bp


def _complete(drawing: _Drawing, client: Client) -> bytes:
    """The answer, once it is complete. Raises what it fails with, and `ClientGone`."""
    try:
        while True:
            next(drawing)
            client.check()
    except StopIteration as done:
        answer: bytes = done.value
        return answer
    finally:
        drawing.close()


def _draw(order: _Order, source: PictureSource, shelf: ImageBytes) -> _Drawing:
    try:
        turns = yield from _turns(order, source)
        pictures = []
        for turn in turns:
            for image in turn.images:
                pictures.append(_picture(image, turn, order.image, shelf))
                yield
    except KeyLimitReached:
        raise
    except (UpstreamError, RateLimited, Unavailable) as exc:
        raise failed(exc) from exc
    if not pictures:
        words = _on_one_line("\n".join("".join(turn.heard) for turn in turns))
        raise refused(words, blocked=any(turn.blocked for turn in turns))
    return images_body(int(time.time()), pictures, "\n".join(turn.reply for turn in turns))


def _turns(order: _Order, source: PictureSource) -> Generator[None, None, list[_Turn]]:
    """One turn after the other until there are `n` pictures, at most `n` turns.

    A turn that fails or refuses is the last one. The pictures made before it are the answer then,
    fewer than were asked for: they have been paid for.
    """
    turns: list[_Turn] = []
    missing = order.image.n
    while missing > 0 and len(turns) < order.image.n:
        turn = _Turn()
        turns.append(turn)
        try:
            yield from _take(turn, missing, order, source)
        except GatewayError as exc:
            if not any(turn.images for turn in turns):
                raise
            log.warning("pictures missing wanted=%d reason=%s", missing, exc.message)
            break
        if not turn.images:
            break
        missing -= len(turn.images)
    return turns


def _take(
    turn: _Turn, missing: int, order: _Order, source: PictureSource
) -> Generator[None, None, None]:
    """Fill `turn` from one turn of the upstream."""
    image = msgspec.structs.replace(order.image, n=missing)
    events = _collected(source.pictures(image, order.chat, order.context), turn)
    wire = render(events, order.context.profile)
    try:
        for batch in wire:
            turn.said += [event.text for event in batch if isinstance(event, Text)]
            yield
            if time.monotonic() > order.deadline:
                raise UpstreamTimeout("the picture was not ready within this service's time limit")
        if not turn.finished:
            raise ProtocolError("the upstream's answer stopped before its end")
    finally:
        close(wire)
    if turn.blocked:
        turn.images.clear()
    elif not turn.images:
        # an upstream behind another gateway says its pictures in markdown
        turn.images += [Image(url) for url in _LINKED.findall("".join(turn.heard))]


def _collected(events: Events, turn: _Turn) -> Events:
    """Pass batches on; remember their pictures and their text."""
    try:
        for batch in events:
            for event in batch:
                if isinstance(event, Image):
                    turn.images.append(event)
                elif isinstance(event, Text):
                    turn.heard.append(event.text)
                elif isinstance(event, Finish):
                    turn.finished = True
                    turn.blocked = turn.blocked or event.reason == "content_filter"
                elif isinstance(event, Extra) and isinstance(event.fields.get("refusal"), str):
                    turn.said.append(event.fields["refusal"])
                    turn.heard.append(event.fields["refusal"])
            yield batch
    finally:
        closing = getattr(events, "close", None)
        if closing is not None:
            closing()


def _on_one_line(text: str) -> str:
    """The first sentences of a markdown text, plain, as many as fit into `MAX_WORDS`; one that
    does not is cut.
    """
    plain = PlainText()
    line = " ".join((plain.feed(text[:_READ]) + plain.flush()).split())
    if len(line) <= MAX_WORDS:
        return line
    ends = [end.end() for end in _SENTENCE_END.finditer(line[:MAX_WORDS])]
    return line[: ends[-1]] if ends else line[: MAX_WORDS - 1] + "…"


def _picture(image: Image, turn: _Turn, wanted: ImageRequest, shelf: ImageBytes) -> Picture:
    prompt = image.revised_prompt or turn.reply
    if image.url is None:
        return Picture(prompt, data=image.data or b"")
    if wanted.response_format == "url":
        return Picture(prompt, url=image.url)
    return Picture(prompt, data=image.data or shelf.read(image.url))
