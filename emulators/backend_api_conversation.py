"""POST and PATCH of conversations: check the request, choose the scenario, send it.

The scenario comes from the script queue (`{"scenario": name, …options}`), else from the last marker
`#name` or `#name[option=value,…]` in the last user message, else it is `plain`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from .backend_api_delivery import send_answer, send_sse
from .backend_api_deltas import delta_encoded
from .backend_api_files import owned_conversation
from .backend_api_payload import confirmed, is_confirmation, malformed, oddities
from .backend_api_records import Account, Conversation
from .backend_api_scenarios import SCENE_OPTIONS, SCENES
from .backend_api_scenarios.steps import Answer, Options, Step
from .backend_api_scenarios.turn import Turn, user_texts
from .backend_api_sockets import EXPIRES_AT, socket_url
from .backend_api_tickets import PendingTurn
from .backend_api_visit import Visit

_MARKER = re.compile(r"#(\w+)(?:\[([^\]]*)\])?")
ENTRY_KEYS = ("scenario", "endpoint", "times", "delay_before")


def post(visit: Visit) -> None:
    """POST conversation: 401, 422, 404, or what the scenario has it be."""
    account = visit.account()
    payload = None if account is None else visit.json_body()
    if account is None or payload is None or _refused(visit, payload):
        return
    visit.call.problems += oddities(payload, account, visit.state.files)
    _check_headers(visit, payload, account)
    conversation = _conversation(visit, payload, account)
    if conversation is None:
        return
    visit.call.conversation_id = conversation.conversation_id
    name, options = _choose(visit, payload, conversation)
    visit.call.scenario = name
    if visit.reply.hang(options.headers_delay):
        _answer(visit, name, Turn(payload, conversation, visit.state, options))


def hide(visit: Visit) -> None:
    """PATCH conversation/<id> with `is_visible` false: 404 for temporary or foreign ones."""
    conversation = owned_conversation(visit)
    body = None if conversation is None else visit.json_body()
    if conversation is None or body is None:
        return
    if body.get("is_visible") is not False:
        visit.problem("is_visible is not false")
    if conversation.temporary:
        visit.detail(404, "conversation_not_found", "Conversation not found.")
        return
    conversation.hidden = True
    visit.reply.json(200, {"success": True})


def _refused(visit: Visit, payload: Mapping[str, Any]) -> bool:
    faults = list(malformed(payload))
    visit.call.problems += faults
    if faults:
        visit.reply.json(422, {"detail": [{"loc": ["body"], "msg": fault} for fault in faults]})
    return bool(faults)


def _check_headers(visit: Visit, payload: Mapping[str, Any], account: Account) -> None:
    headers = visit.request.headers
    arkose = payload.get("arkose_token")
    if arkose is not None and arkose not in visit.state.arkose_tokens:
        visit.problem("arkose_token was never given out")
    if headers.get("openai-sentinel-arkose-token") != (arkose or ""):
        visit.problem("the arkose header and the body's arkose_token differ")
    workspace = headers.get("chatgpt-account-id")
    if workspace and workspace not in account.workspaces:
        visit.problem("ChatGPT-Account-ID is none of the account's")


def _conversation(
    visit: Visit, payload: Mapping[str, Any], account: Account
) -> Conversation | None:
    """The conversation to go on with, or a new one; answers 404 where it is not the caller's."""
    wanted = payload.get("conversation_id")
    if wanted is None:
        temporary = payload.get("history_and_training_disabled") is True
        conversation = Conversation(visit.state.new_uuid(), account.name, temporary)
        visit.state.conversations[conversation.conversation_id] = conversation
        return conversation
    visit.args["conversation_id"] = str(wanted)
    return owned_conversation(visit)


def _choose(
    visit: Visit, payload: Mapping[str, Any], conversation: Conversation
) -> tuple[str, Options]:
    name = "plain"
    entry: dict[str, Any] = {}
    if is_confirmation(payload):
        name = _allowed(visit, payload, conversation)
    else:
        texts = user_texts(payload)
        for marker in _MARKER.finditer(texts[-1] if texts else ""):
            if marker[1] in SCENES:
                name, entry = marker[1], _marker_options(marker[2] or "")
    name = visit.entry.get("scenario", name)
    entry |= {key: value for key, value in visit.entry.items() if key not in ENTRY_KEYS}
    return name, Options().updated(SCENE_OPTIONS.get(name, {})).updated(entry)


def _allowed(visit: Visit, payload: Mapping[str, Any], conversation: Conversation) -> str:
    """How a turn goes on after the confirmation; notes a wrong one and refuses it."""
    parent = payload["parent_message_id"]
    question = conversation.confirmations.pop(parent, None)
    if question is None:
        visit.problem("nothing is to be confirmed under this parent_message_id")
        return "not_found_404"
    if confirmed(payload) != (question.target_message_id, question.operation_hash):
        visit.problem("target_message_id or operation_hash is wrong")
        return "not_found_404"
    return question.scenario


def _marker_options(text: str) -> dict[str, Any]:
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {key.strip(): _value(value.strip()) for key, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _answer(visit: Visit, name: str, turn: Turn) -> None:
    steps = SCENES[name](turn)
    first = next(steps)
    if isinstance(first, Answer):
        send_answer(visit.reply, first)
        return
    steps = chain((first,), steps)
    if turn.options.encoding == "v1":
        steps = delta_encoded(steps)
    if turn.options.transport == "sse":
        send_sse(visit.reply, steps, turn.options)
    else:
        _answer_by_socket(visit, turn, steps)


def _answer_by_socket(visit: Visit, turn: Turn, steps: Iterator[Step]) -> None:
    """Tell where the frames come: over the conversation's or the account's socket, or a new one."""
    conversation, tickets = turn.conversation, visit.state.tickets
    response_id = turn.new_id()
    answer = {"response_id": response_id, "conversation_id": conversation.conversation_id}
    ticket = ""
    if turn.options.wss_url:
        ticket = _ticket(visit, conversation)
        answer["wss_url"] = socket_url(visit, ticket or tickets.open_registered(conversation.owner))
        answer["expires_at"] = EXPIRES_AT
    tickets.post(
        PendingTurn(
            conversation.owner,
            response_id,
            conversation.conversation_id,
            tuple(steps),
            turn.options,
            ticket,
        )
    )
    visit.reply.json(200, answer)


def _ticket(visit: Visit, conversation: Conversation) -> str:
    """The conversation's own ticket; empty where the account listens on registered sockets."""
    tickets = visit.state.tickets
    if not tickets.is_connected(conversation.ticket):
        registered = tickets.open_registered(conversation.owner)
        conversation.ticket = "" if registered else tickets.issue(conversation.owner)
    return conversation.ticket
