"""Scenarios of upstream trouble: error answers, broken streams, silence, noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from .steps import Answer, Cut, Event, Pause, Raw, Step, Stop
from .text import plain
from .turn import Turn

BLOCK_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>"
    "<body><h1>You have been blocked</h1><p>Ray 84f0emulated</p></body></html>\n"
)
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>\n"
HTML = "text/html; charset=UTF-8"
HEARTBEATS = (
    b"event: ping\ndata: 2024-02-11 10:15:00.123456\n\n"
    b"data: 2024-02-11 10:15:01.654321\n\n"
    b": comment\n\nid: 7\nretry: 1000\n\n"
)
CAP = "You have sent too many messages to the model. Please try again later."


def cap_429(turn: Turn) -> Iterator[Step]:
    """429 `model_cap_exceeded` with `clears_in` seconds (parameter, default 252)."""
    clears_in = turn.param("clears_in", 252)
    yield _detail(429, {"clears_in": clears_in, "code": "model_cap_exceeded", "message": CAP})


def string_429(turn: Turn) -> Iterator[Step]:
    """429 whose detail is a string."""
    yield _detail(429, "Only one message at a time. Please allow any other response to complete.")


def html_403(turn: Turn) -> Iterator[Step]:
    """403 with an HTML block page."""
    yield Answer(403, BLOCK_PAGE, HTML)


def account_deactivated(turn: Turn) -> Iterator[Step]:
    """403 (parameter `status`: 418 is known too) for an account that was closed."""
    message = "Your account has been deactivated."
    yield _detail(turn.param("status", 403), {"code": "account_deactivated", "message": message})


def token_expired_401(turn: Turn) -> Iterator[Step]:
    """401 for a token that is in fact valid."""
    message = "Could not parse your authentication token. Please try signing in again."
    body = {"message": message, "type": "invalid_request_error", "param": None}
    yield _detail(401, {**body, "code": "token_expired"})


def not_found_404(turn: Turn) -> Iterator[Step]:
    """404 `conversation_not_found`."""
    yield _detail(404, {"code": "conversation_not_found", "message": "Conversation not found."})


def error_500(turn: Turn) -> Iterator[Step]:
    """500 with a plain text."""
    yield Answer(500, "Internal Server Error", "text/plain; charset=utf-8")


def error_502(turn: Turn) -> Iterator[Step]:
    """502 with a proxy's HTML page."""
    yield Answer(502, BAD_GATEWAY, HTML)


def json_error_200(turn: Turn) -> Iterator[Step]:
    """200 with a JSON error body and no blank line at its end, where a stream was due."""
    yield _detail(200, {"code": "model_cap_exceeded", "message": CAP})


def error_event(turn: Turn) -> Iterator[Step]:
    """A stream whose only event is an error."""
    yield turn.event(None, "Something went wrong while generating the response.")


def error_after_text(turn: Turn) -> Iterator[Step]:
    """`Hello`, then an error event."""
    return chain(turn.assistant().grow("Hel", "lo"), error_event(turn))


def cut_event(turn: Turn) -> Iterator[Step]:
    """`Hello`, then half an event and the connection's end."""
    return chain(turn.assistant().grow("Hel", "lo"), (Raw(b'data: {"message": {"id": "'), Cut()))


def cut_utf8(turn: Turn) -> Iterator[Step]:
    """`你好`, then the connection ends within a character."""
    broken = b'data: {"message": {"content": {"parts": ["\xe4\xbd'
    return chain(turn.assistant().grow("你", "好"), (Raw(broken), Cut()))


def cut_no_done(turn: Turn) -> Iterator[Step]:
    """`Hello` in progress, then a proper end of the body without `[DONE]`."""
    return chain(turn.assistant().grow("Hel", "lo"), (Stop(),))


def reset_in_stream(turn: Turn) -> Iterator[Step]:
    """`Hello`, then a RST."""
    return chain(turn.assistant().grow("Hel", "lo"), (Pause(0.05), Cut(reset=True)))


def cut_at_start(turn: Turn) -> Iterator[Step]:
    """The answer's head, then the connection's end."""
    yield Cut()


def silence(turn: Turn) -> Iterator[Step]:
    """`Hello`, silence of `seconds` (default 10), ` world!`"""
    answer = turn.assistant()
    quiet: tuple[Step, ...] = (Pause(turn.param("seconds", 10.0)),)
    return turn.framed(answer.grow("Hel", "lo"), quiet, answer.grow(" world!"), answer.finish())


def noise(turn: Turn) -> Iterator[Step]:
    """`Hello world!` among heartbeats, comments, CRLF, split data, nulls, unknown types."""
    answer, unknown = turn.assistant(), turn.assistant(content_type="hologram")
    conversation_id = turn.conversation.conversation_id
    odd: list[dict[str, Any]] = [
        {"conversation_id": conversation_id, "error": None},
        {"type": "conversation_detail_metadata", "banner_info": None},
        {"message": None, "conversation_id": conversation_id, "error": None},
        {"message": {"id": "m0"}, "conversation_id": conversation_id, "error": None},
    ]
    return turn.framed(
        (Raw(HEARTBEATS),),
        answer.grow("Hel"),
        (Raw(HEARTBEATS.replace(b"\n", b"\r\n")),),
        map(Event, odd),
        unknown.finish("HOLOGRAM", end_turn=False),
        (Raw(b'event: message\r\ndata: {"type":\r\ndata:  "title_generation"}\r\n\r\n'),),
        answer.grow("lo world"),
        (Raw(b"\n\n\n"),),
        answer.grow("!"),
        answer.finish(),
        (Raw(HEARTBEATS),),
    )


def _detail(status: int, detail: Any) -> Answer:
    return Answer(status, {"detail": detail})


SCENES = {
    "cap_429": cap_429,
    "string_429": string_429,
    "html_403": html_403,
    "account_deactivated": account_deactivated,
    "token_expired_401": token_expired_401,
    "not_found_404": not_found_404,
    "error_500": error_500,
    "error_502": error_502,
    "json_error_200": json_error_200,
    "error_event": error_event,
    "error_after_text": error_after_text,
    "cut_event": cut_event,
    "cut_utf8": cut_utf8,
    "cut_no_done": cut_no_done,
    "reset_in_stream": reset_in_stream,
    "cut_at_start": cut_at_start,
    "silence": silence,
    "slow_headers": plain,
    "byte_by_byte": plain,
    "random_pieces": plain,
    "crlf": plain,
    "noise": noise,
}
