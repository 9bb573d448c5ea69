"""The provider: which model names it serves, and the completion of each request."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from services.config import ROOT, Settings
from services.core.errors import (
    GatewayError,
    InvalidRequest,
    ProtocolError,
    Unavailable,
    UpstreamError,
)
from services.core.events import SILENCE, Events
from services.core.models import CallLimit, Credential, ModelCard, Secret
from services.core.requests import ChatRequest
from services.providers.backend_api.calls import (
    Calls,
    Waiting,
    account_key,
    arkose_token,
    call_limit,
)
from services.providers.backend_api.events import Answer
from services.providers.backend_api.files import Downloads, Item, Opener, Uploaded, upload
from services.providers.backend_api.gpts import GIZMO_PREFIX, GptsFile, gizmo_id, gizmo_info
from services.providers.backend_api.request import (
    GIZMO,
    Common,
    Continued,
    Family,
    PartIndex,
    confirmation_body,
    conversation_body,
    families,
    file_parts,
    first_new,
    upstream_messages,
)
from services.providers.backend_api.settings import BackendApiSettings
from services.providers.backend_api.stream import ConversationStream, SocketConnector
from services.providers.base import Cache, Provider, ProviderContext, Route

OWNER = "openai"
MAX_ALLOWED = 10
"""Actions of a GPT allowed within one answer."""
CONTINUABLE = 7 * 86400.0
"""Seconds for which a conversation can be continued."""
_GIZMO_KEY = "gizmo:"
_CONVERSATION_ID = re.compile(r"[\w-]{1,100}", re.ASCII)


def build(
    context: ProviderContext, *, gpts_token: Callable[[], Secret | None] | None = None
) -> BackendApi | None:
    """The provider, or None without `upstream_base_url`.

    `gpts_token` gives the access token for looking up GPTs (default: `key_for_gpts_info`, unless it
    is a refresh token, which must be exchanged first).
    """
    settings = context.settings
    if not settings.upstream_base_url:
        return None
    key = settings.key_for_gpts_info
    own_token = key if key is not None and key.reveal().startswith("eyJ") else None
    return BackendApi(context, gpts_token or context.gpts_token or (lambda: own_token))


class BackendApi(Provider):
    """A ChatGPT-web style `/backend-api` upstream.

    Ignores the tuning knobs of a request (temperature, max_tokens, stop, …): the upstream has none.
    """

    name = "backend_api"
    makes_files = True
    takes_uploads = True
    refreshes = True

    def __init__(self, context: ProviderContext, gpts_token: Callable[[], Secret | None]) -> None:
        settings = context.settings
        self.context = context
        self.own: BackendApiSettings = settings.providers.get("backend_api") or BackendApiSettings()
        self.open_attachment = Opener(settings)
        self.connector = SocketConnector(context.transport, settings.proxy or None)
        self._families = families(self.own)
        self._names = _model_names(settings)
        # gpts.json in data/, where old deployments mount theirs, or beside it
        folders = dict.fromkeys((settings.server.folder, ROOT))
        self._gpts = GptsFile(
            tuple(folder / name for folder in folders for name in ("data/gpts.json", "gpts.json"))
        )
        self._gpts_token = gpts_token
        prefixes = [f"/{prefix}" for prefix in settings.upstream_api_prefix if prefix] or [""]
        base = settings.upstream_base_url.rstrip("/")
        self._bases = itertools.cycle([base + prefix for prefix in prefixes])
        self._created = int(time.time())

    def models(self) -> Iterable[ModelCard]:
        for name in dict.fromkeys([*self._names, *self._gpts.ids()]):
            yield ModelCard(name, OWNER, self._created)

    def route(self, model: str) -> Route | None:
        key = self._names.get(model)
        if key is not None:
            return self._route(self._families[key], key)
        identity = self._gpts.ids().get(model)
        if identity is None and model.startswith(GIZMO_PREFIX):
            identity = gizmo_id(model)
        return self._route(GIZMO, _GIZMO_KEY + identity) if identity else None

    def catch_all(self, model: str) -> Route | None:
        """A bare `g-…`, which could also be another provider's model."""
        identity = gizmo_id(model)
        return self._route(GIZMO, _GIZMO_KEY + identity) if identity else None

    def call_limit(self, credential: Credential) -> CallLimit | None:
        if credential.token is None and not credential.owner:
            return None
        return call_limit(self.own, account_key(credential))

    def stream(self, request: ChatRequest, route: Route, credential: Credential) -> Events:
        if credential.token is None or not credential.token.reveal():
            raise Unavailable(
                "no account serves this model here: the operator can add one, and callers can send"
                " an access token of the upstream as X-Upstream-Authorization"
            )
        if request.n > 1:
            raise InvalidRequest("this model gives one answer at a time", param="n")
        identity = _requested_gizmo(request.source)
        if identity is None and route.key.startswith(_GIZMO_KEY):
            identity = route.key.removeprefix(_GIZMO_KEY)
        family = GIZMO if identity else self._families[route.key]
        base = next(self._bases)
        calls = Calls(self.context, self.own, base, credential)
        token = self._gpts_token() if identity else None
        operator = Calls(self.context, self.own, base, Credential(token)) if token else None
        events = Completion(self, request, family, calls).events(identity, operator)
        pause = self.context.settings.refresh_ToAccess.stream_sleep_time
        yield from _paced(events, pause) if pause and request.stream else events

    def _route(self, family: Family, key: str) -> Route:
        token = self.own.access_token
        credential = Credential(token, self.own.account_id or None) if token is not None else None
        return Route(family.slug, credential, key, draws=family.draws)


class Completion:
    """One request and its answer. `events` runs it, once."""

    def __init__(
        self, provider: BackendApi, request: ChatRequest, family: Family, calls: Calls
    ) -> None:
        self._provider = provider
        self._context = provider.context
        self._settings = provider.context.settings
        self._request = request
        self._family = family
        self._calls = calls
        self._deletes = self._settings.need_delete_conversation_after_response
        self._downloads = Downloads(calls, self._settings, provider.own)
        self._stream = ConversationStream(calls, provider.connector)
        self._conversation_owner = f"{calls.account_key}:{calls.credential.holder}"
        self._answer = Answer(
            calls.credential,
            plot_notice=provider.own.plot_notice,
            upload_notice=self._settings.upload_success_text,
            name_conversation=self._deletes is False,
        )

    def events(self, gizmo: str | None, operator: Calls | None) -> Events:
        """The answer. `gizmo` is the id of the GPT that is asked, `operator` the account for
        looking it up, if there is one.
        """
        answer = self._answer
        try:
            common, body = yield from self._prepare(gizmo, operator)
            yield from self._read(body, common.arkose_token)
            for _ in range(MAX_ALLOWED):
                if answer.confirmation is None:
                    break
                yield from self._confirm(common)
            else:
                raise UpstreamError("the upstream asks for leave for too many actions")
            yield from self._resolve(answer.finish)
        except GatewayError:
            # what was held back is still part of an answer that had begun
            if answer.has_content:
                yield from self._resolve(answer.close)
            raise
        finally:
            self._stream.close()
            self._delete_or_remember()

    def _prepare(
        self, gizmo: str | None, operator: Calls | None
    ) -> Waiting[tuple[Common, dict[str, Any]]]:
        """The request's body, with all that must be had for it before."""
        messages, family, context = self._request.messages, self._family, self._context
        source, owner = self._request.source, self._conversation_owner
        continued = _requested_conversation(source, context.cache, owner)
        start = first_new(messages) if continued else 0
        info = token = None
        if gizmo:
            info = yield from gizmo_info(gizmo, self._calls, context.cache, operator)
        uploaded = yield from self._upload(start)
        if self._settings.custom_arkose_url and family.arkose:
            token = yield from arkose_token(context.transport, self._settings.arkose_urls)
        common = Common(family, info, self._deletes == "temporary", token)
        sent = upstream_messages(messages, family, uploaded, start)
        return common, conversation_body(common, sent, continued)

    def _upload(self, start: int) -> Waiting[Mapping[PartIndex, Uploaded]]:
        """The files of the messages from number `start` on."""
        uploaded: dict[PartIndex, Uploaded] = {}
        for (i, j), part in list(file_parts(self._request.messages, self._family)):
            if i < start:
                continue
            file = self._provider.open_attachment(part, param=f"messages[{i}].content[{j}]")
            yield SILENCE
            uploaded[i, j] = yield from upload(file, self._calls, self._context)
        return uploaded

    def _read(self, body: dict[str, Any], token: str | None = None) -> Events:
        """Post `body` and give the answer up to the end mark. Raises `ProtocolError` without."""
        answer = self._answer
        frames = yield from self._stream.post(body, token)
        answer.conversation_id = self._stream.conversation_id or answer.conversation_id
        with contextlib.closing(frames):
            for data in frames:
                if data is None:
                    yield SILENCE
                else:
                    yield from self._resolve(functools.partial(answer.feed_all, data))
        if not (answer.done or answer.complete):
            raise ProtocolError("the upstream's answer stopped before its end")

    def _confirm(self, common: Common) -> Events:
        """Allow the action that waits, where the operator wants that; else say that it waits."""
        answer, asked = self._answer, self._answer.confirmation
        assert asked is not None
        answer.confirmation = None
        if not self._settings.auto_allow_actions or not asked.operation_hash:
            domain = asked.domain or asked.name or ""
            notice = self._provider.own.action_notice.replace("{domain}", domain)
            yield from self._resolve(functools.partial(answer.add_text, notice))
            return
        yield from self._resolve(answer.close)
        answer.done = answer.complete = False
        yield from self._read(confirmation_body(common, asked, answer.conversation_id))

    def _resolve(self, step: Callable[[list[Item]], None]) -> Events:
        """What `step` appends, files looked up; and then the failure it ended with, if any."""
        items: list[Item] = []
        failure: GatewayError | None = None
        try:
            step(items)
        except GatewayError as exc:
            failure = exc
        yield from self._downloads.resolve(items, self._answer.conversation_id)
        if failure is not None:
            raise failure

    def _delete_or_remember(self) -> None:
        """Delete the conversation, or remember with which message it can go on."""
        answer, context = self._answer, self._context
        if not answer.conversation_id:
            return
        if self._deletes is True:
            delete = functools.partial(self._calls.delete_conversation, answer.conversation_id)
            context.background.submit("delete conversation", delete)
        elif self._deletes is False and answer.done and answer.message_id:
            record = _ConversationRecord(self._conversation_owner, answer.message_id)
            key = f"backend_api:conversation:{answer.conversation_id}"
            context.cache.set(key, msgspec.json.encode(record), CONTINUABLE)


class _ConversationRecord(msgspec.Struct):
    owner: str
    message_id: str


def _requested_conversation(
    source: Mapping[str, msgspec.Raw], cache: Cache, owner: str
) -> Continued | None:
    """The conversation that a request's `conversation_id` names, if any.

    Raises `InvalidRequest` with status 404 unless `owner` began it.
    """
    name = _text_field(source, "conversation_id")
    if not name:
        return None
    known = _CONVERSATION_ID.fullmatch(name)
    stored = cache.get(f"backend_api:conversation:{name}") if known else None
    try:
        record = msgspec.json.decode(stored or b"", type=_ConversationRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        record = None
    if record is None or record.owner != owner:
        raise InvalidRequest(
            "no such conversation: it was not begun with this key, or too long ago",
            param="conversation_id",
            code="conversation_not_found",
            status=404,
        )
    return Continued(name, record.message_id)


def _requested_gizmo(source: Mapping[str, msgspec.Raw]) -> str | None:
    """The GPT in the body's `gizmo_id`. Raises `InvalidRequest`."""
    text = _text_field(source, "gizmo_id")
    if not text:
        return None
    identity = gizmo_id(text)
    if identity is None:
        raise InvalidRequest("gizmo_id must look like g-XXXX", param="gizmo_id")
    return identity


def _text_field(source: Mapping[str, msgspec.Raw], name: str) -> str:
    """A field of the request's body that must be text; "" where it is absent or null."""
    raw = source.get(name)
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str | None) or ""
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"{name} must be text", param=name) from exc


def _model_names(settings: Settings) -> dict[str, str]:
    """Names of families by the names that callers use."""
    names = {
        "gpt-3.5": settings.gpt_3_5_new_name,
        "gpt-4-s": settings.gpt_4_s_new_name,
        "gpt-4-mobile": settings.gpt_4_mobile_new_name,
        "gpt-4o": settings.gpt_4_o_new_name,
        "gpt-4o-mini": settings.gpt_4_o_mini_new_name,
        "o1-preview": settings.o1_preview_new_name,
        "o1-mini": settings.o1_mini_new_name,
    }
    return {name: family for family, aliases in names.items() for name in aliases}


def _paced(events: Events, seconds: float) -> Events:
    """One event at a time, with a pause after each, as `stream_sleep_time` wants."""
    for batch in events:
        if not batch:
            yield batch
        for event in batch:
            yield [event]
            time.sleep(seconds)
