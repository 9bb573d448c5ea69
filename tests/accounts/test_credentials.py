"""With whose credential a request goes upstream, and what happens when it is refused."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.fernet import Fernet

from emulators.backend_api import BackendApi
from services import transport
from services.accounts.credentials import (
    MOST_ATTEMPTS,
    Credentials,
    refusal_of,
    with_failover,
)
from services.accounts.pools import Pools, accounts_of
from services.accounts.vault import Vault, open_vault
from services.config import Settings
from services.config.settings import AccountSetting
from services.core.errors import (
    GatewayError,
    InvalidRequest,
    ProtocolError,
    RateLimited,
    Unauthorized,
    Unavailable,
    UpstreamRefused,
)
from services.core.events import SILENCE, Conversation, Events, Finish, Text
from services.core.models import Caller, Credential, ModelCard, Secret
from services.core.requests import ChatRequest
from services.providers.base import Provider, Route
from services.providers.refusals import refusal, retry_after
from services.server.jobs import BackgroundQueue, Schedule
from services.store import Store
from services.transport import UpstreamRequest
from tests.accounts.support import Clock, Monitor, jwt, manager, official
from tests.canaries import MARK

ROUTE = Route("model")
KEY_HOLDER = Caller("key")


class Asking(Provider):
    """Asks the emulator for a GPT's name, which needs a living access token."""

    name = "web"
    refreshes = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._transport = transport.Transport()
        self.workspaces: list[str | None] = []
        self.plain_refusals = False

    def models(self) -> Iterable[ModelCard]:
        return ()

    def route(self, model: str) -> Route | None:
        return ROUTE

    def stream(self, request: ChatRequest, route: Route, credential: Credential) -> Events:
        self.workspaces.append(credential.account)
        token = credential.token.reveal() if credential.token else ""
        headers = {"Authorization": f"Bearer {token}"}
        asked = UpstreamRequest("GET", f"{self._url}/backend-api/gizmos/g-1", headers)
        yield SILENCE
        with self._transport.open(asked) as exchange:
            body = exchange.read_all(10_000)
        if exchange.status != 200:
            raise self._refused(exchange.status, exchange.headers, body, credential)
        yield [Text("hello"), Conversation(f"talk-of-{token[-12:]}")]
        yield [Finish("stop")]

    def _refused(
        self, status: int, headers: Any, body: bytes, credential: Credential
    ) -> GatewayError:
        told = refusal(status, headers, body, credential)
        if self.plain_refusals or status == 429:
            return told
        if credential.from_caller:
            return UpstreamRefused(told.message, upstream_status=status, status=status)
        after = retry_after(headers)
        return UpstreamRefused("no", upstream_status=status, status=503, retry_after=after)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(endpoint: BackendApi) -> Asking:
    return Asking(endpoint.url)


VAULT = Vault([Fernet.generate_key().decode()])
Make = Callable[..., Credentials]


@pytest.fixture
def make(store: Store, tmp_path: Path, endpoint: BackendApi, clock: Clock) -> Make:
    """Credentials with a pool of these accounts, in this order."""

    def label(token: str) -> str:
        return token.partition(f"-{MARK}")[0][:10]

    def credentials(*tokens: str, **options: Any) -> Credentials:
        settings = [AccountSetting(token=Secret(token), name=label(token)) for token in tokens]
        tokens_of_all = manager(store, tmp_path, official(endpoint.url))
        background = BackgroundQueue()
        pools = Pools({"web": accounts_of("web", settings)}, store, VAULT, clock)
        return Credentials(pools, tokens_of_all, background, store, **options)

    return credentials


def request(**source: bytes) -> ChatRequest:
    return ChatRequest("model", (), source={k: msgspec.Raw(v) for k, v in source.items()})


def bearer(token: str) -> Caller:
    return Caller(None, Credential(Secret(token), from_caller=True))


def ask(
    credentials: Credentials, provider: Provider, caller: Caller = KEY_HOLDER, route: Route = ROUTE
) -> list[str]:
    """The text of an answer that must have come whole."""
    events = [e for batch in credentials.stream(provider, request(), route, caller) for e in batch]
    assert events[-1] == Finish("stop")
    return [event.text for event in events if isinstance(event, Text)]


def asked_with(endpoint: BackendApi) -> list[str]:
    """The bearer of each question."""
    return [call.request.bearer for call in endpoint.calls("gizmo")]


def states(credentials: Credentials) -> dict[str, str]:
    return {view.name: view.state for view in credentials.pools.accounts()}


def alice(endpoint: BackendApi) -> str:
    return endpoint.accounts["alice"].access_token


class TestCaller:
    def test_access_token_goes_as_it_is(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        access = alice(endpoint)
        assert ask(make("rt-bob-canary7f3e"), provider, bearer(access)) == ["hello"]
        assert asked_with(endpoint) == [access]
        assert endpoint.count("oauth_token") == 0

    def test_refresh_token_is_exchanged_and_names_a_workspace(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        assert ask(make(), provider, bearer("rt-alice-canary7f3e,acc-7")) == ["hello"]
        assert asked_with(endpoint) == [alice(endpoint)]
        assert provider.workspaces == ["acc-7"]

    def test_provider_without_refresh_tokens_gets_what_the_caller_brought(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        provider.refreshes = False
        endpoint.script({"endpoint": "gizmo", "status": 200, "body": {}})
        ask(make(), provider, bearer("[1, 2]"))
        assert asked_with(endpoint) == ["[1, 2]"]
        assert provider.workspaces == [None]

    def test_expired_access_token_behind_a_refresh_token_is_replaced_unseen(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        credentials = make()
        ask(credentials, provider, bearer("rt-alice-canary7f3e"))
        old = alice(endpoint)
        endpoint.revoke("alice")
        assert ask(credentials, provider, bearer("rt-alice-canary7f3e")) == ["hello"]
        assert asked_with(endpoint) == [old, old, alice(endpoint)]
        assert endpoint.count("oauth_token") == 2

    def test_upstream_that_says_401_always_is_asked_twice_and_then_told(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "gizmo", "status": 401, "times": 0})
        credentials = make()
        for _ in range(3):
            with pytest.raises(UpstreamRefused) as caught:
                ask(credentials, provider, bearer("rt-alice-canary7f3e"))
            assert caught.value.status == 401
        assert len(asked_with(endpoint)) == 4  # twice, then once each: a fresh one is refused too
        assert endpoint.count("oauth_token") == 2

    @pytest.mark.parametrize(
        ("entry", "status"),
        [({"answer": "400"}, 401), ({"answer": "html"}, 503), ({"answer": "reset"}, 503)],
    )
    def test_failed_exchange_is_told_as_what_it_is(
        self,
        make: Make,
        provider: Asking,
        endpoint: BackendApi,
        entry: dict[str, str],
        status: int,
    ) -> None:
        endpoint.script({"endpoint": "oauth_token", **entry})
        with pytest.raises(GatewayError) as caught:
            ask(make(), provider, bearer("rt-alice-canary7f3e"))
        assert caught.value.status == status
        assert asked_with(endpoint) == []

    def test_callers_429_and_403_are_told_as_they_are(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        for status in (403, 429):
            endpoint.script({"endpoint": "gizmo", "status": status, "body": {"detail": "why"}})
            with pytest.raises(GatewayError, match="why") as caught:
                ask(make("rt-bob-canary7f3e"), provider, bearer(alice(endpoint)))
            assert caught.value.status == status

    def test_what_the_caller_brought_comes_before_the_models_own(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        route = Route("model", Credential(Secret("rt-alice-canary7f3e")))
        brought = bearer(endpoint.accounts["bob"].access_token)
        assert ask(make("rt-alice-canary7f3e"), provider, brought, route) == ["hello"]
        assert asked_with(endpoint) == [endpoint.accounts["bob"].access_token]

    def test_models_own_credential_comes_before_the_pool_and_its_refusal_is_neutral(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        route = Route("model", Credential(Secret("rt-alice-canary7f3e")))
        assert ask(make("rt-bob-canary7f3e"), provider, KEY_HOLDER, route) == ["hello"]
        assert asked_with(endpoint) == [alice(endpoint)]
        endpoint.script({"endpoint": "gizmo", "status": 401, "times": 0})
        with pytest.raises(GatewayError) as caught:
            ask(make(), provider, KEY_HOLDER, route)
        assert caught.value.status == 503

    def test_nobodys_credential_is_an_empty_one(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        [attempt] = make().attempts(provider, Caller(), ROUTE)
        assert attempt.credential() == Credential()
        assert attempt.told(Unauthorized("bring a token")).status == 401


class TestPool:
    def test_account_serves_a_key_holder(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        assert ask(make("rt-alice-canary7f3e,acc-1"), provider) == ["hello"]
        assert asked_with(endpoint) == [alice(endpoint)]
        assert provider.workspaces == ["acc-1"]

    @pytest.mark.parametrize(
        ("entry", "state"),
        [
            ({"status": 403, "body": {"detail": "banned"}}, "banned"),
            ({"status": 402, "body": {"detail": "pay"}}, "banned"),
            ({"answer": "html"}, "banned"),
            ({"status": 429, "body": {"detail": "slow down"}}, "cooling"),
            ({"status": 401, "times": 2}, "expired"),
        ],
    )
    def test_refused_account_rests_and_the_next_one_answers(
        self,
        make: Make,
        provider: Asking,
        endpoint: BackendApi,
        entry: dict[str, Any],
        state: str,
    ) -> None:
        credentials = make("rt-alice-canary7f3e", "rt-bob-canary7f3e")
        endpoint.script({"endpoint": "gizmo", **entry})
        assert ask(credentials, provider) == ["hello"]
        assert states(credentials) == {"rt-alice": state, "rt-bob": "ready"}
        assert asked_with(endpoint)[-1] == endpoint.accounts["bob"].access_token
        before = len(asked_with(endpoint))
        ask(credentials, provider)
        assert len(asked_with(endpoint)) == before + 1

    def test_401_that_keeps_no_status_is_renewed_too(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        provider.plain_refusals = True
        credentials = make("rt-alice-canary7f3e")
        ask(credentials, provider)
        endpoint.revoke("alice")
        assert ask(credentials, provider) == ["hello"]
        assert states(credentials) == {"rt-alice": "ready"}

    def test_token_that_is_refused_by_its_issuer_makes_the_account_expired(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        credentials = make("rt-unknown", "rt-bob-canary7f3e")
        assert ask(credentials, provider) == ["hello"]
        assert states(credentials) == {"rt-unknown": "expired", "rt-bob": "ready"}

    def test_token_endpoint_that_is_down_is_not_the_accounts_fault(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        credentials = make("rt-alice-canary7f3e", "rt-bob-canary7f3e")
        endpoint.script({"endpoint": "oauth_token", "status": 500})
        assert ask(credentials, provider) == ["hello"]
        view, _ = credentials.pools.accounts()
        assert (view.state, view.strikes) == ("cooling", 1)
        assert view.until == pytest.approx(time.time() + 30, abs=5)

    def test_when_none_is_left_the_error_is_neutral_and_says_when(
        self, make: Make, provider: Asking, endpoint: BackendApi, clock: Clock
    ) -> None:
        credentials = make("rt-alice-canary7f3e", "rt-bob-canary7f3e")
        banned = {"detail": "your account balance: permission denied"}
        endpoint.script({"endpoint": "gizmo", "status": 401, "body": banned, "times": 0})
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                ask(credentials, provider)
            assert caught.value.status == 503
            assert caught.value.message == "this model cannot be served now"
            assert caught.value.retry_after == pytest.approx(600, abs=0.1)
        assert len(asked_with(endpoint)) == 4
        clock.now += 601
        with pytest.raises(Unavailable) as again:
            ask(credentials, provider)
        assert again.value.retry_after == pytest.approx(3600, abs=0.1)

    def test_limits_of_all_accounts_are_a_429(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        body = {"detail": "You exceeded your current quota"}
        endpoint.script({"endpoint": "gizmo", "status": 429, "body": body, "times": 0})
        with pytest.raises(RateLimited) as caught:
            ask(make("rt-alice-canary7f3e", "rt-bob-canary7f3e"), provider)
        assert caught.value.status == 429
        assert caught.value.message == "this model is in too much demand, retry later"
        assert caught.value.retry_after == pytest.approx(120, abs=0.1)

    def test_a_request_tries_only_so_many_accounts(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        endpoint.script({"endpoint": "gizmo", "status": 429, "body": {}, "times": 0})
        access = [jwt(time.time() + 9000 + number) for number in range(MOST_ATTEMPTS + 3)]
        with pytest.raises(RateLimited) as caught:
            ask(make(*access), provider)
        assert len(asked_with(endpoint)) == MOST_ATTEMPTS
        assert caught.value.retry_after is not None

    def test_other_failures_are_told_at_once(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        credentials = make("rt-alice-canary7f3e", "rt-bob-canary7f3e")
        for status, told in ((400, 400), (404, 404), (500, 502)):
            endpoint.script({"endpoint": "gizmo", "status": status, "body": {"detail": "no"}})
            provider.plain_refusals = True
            with pytest.raises(GatewayError) as caught:
                ask(credentials, provider)
            assert caught.value.status == told
        assert len(asked_with(endpoint)) == 3
        assert set(states(credentials).values()) == {"ready"}

    def test_success_forgives_after_the_answer(
        self, make: Make, provider: Asking, endpoint: BackendApi, clock: Clock
    ) -> None:
        credentials = make("rt-alice-canary7f3e")
        endpoint.script({"endpoint": "gizmo", "status": 429, "body": {}})
        with pytest.raises(RateLimited):
            ask(credentials, provider)
        clock.now += 121
        ask(credentials, provider)
        assert credentials._background.drain(5)  # type: ignore[attr-defined]
        assert [view.strikes for view in credentials.pools.accounts()] == [0]

    def test_conversation_goes_on_in_the_account_where_it_began(
        self, make: Make, provider: Asking, endpoint: BackendApi
    ) -> None:
        credentials = make("rt-alice-canary7f3e", "rt-bob-canary7f3e")
        ask(credentials, provider)
        [first] = asked_with(endpoint)
        assert credentials._background.drain(5)  # type: ignore[attr-defined]
        talk = f'"talk-of-{first[-12:]}"'.encode()
        for _ in range(3):
            list(credentials.stream(provider, request(conversation_id=talk), ROUTE, KEY_HOLDER))
        assert asked_with(endpoint) == [first] * 4

    def test_hot_request_is_one_round_trip(
        self, make: Make, provider: Asking, store: Store
    ) -> None:
        credentials = make("rt-alice-canary7f3e")
        ask(credentials, provider)
        assert credentials._background.drain(5)  # type: ignore[attr-defined]

        def commands() -> dict[str, int]:
            [stats] = store.pipeline(lambda p: p.info("commandstats"))
            return {name: s["calls"] for name, s in stats.items() if not name.endswith("info")}

        before = commands()
        for _ in range(5):
            events = credentials.stream(provider, request(), ROUTE, KEY_HOLDER)
            assert next(events) == SILENCE
        after = commands()
        ours = {name: after[name] - before.get(name, 0) for name in after}
        sent = {name for name, count in ours.items() if count}
        inside_the_script = {"cmdstat_" + name for name in ("exists", "time", "hmget", "hset")}
        assert sent <= {"cmdstat_evalsha", *inside_the_script}
        assert ours["cmdstat_evalsha"] == 5


class Counting:
    """An attempt that notes what happens to it."""

    def __init__(self, name: str = "x", again: bool = True) -> None:
        self.name = name
        self.again = again
        self.notes: list[str] = []

    def credential(self) -> Credential:
        return Credential(Secret(self.name))

    def renewed(self) -> Credential | None:
        self.notes.append("renewed")
        return None

    def watch(self, batches: Any) -> Any:
        return batches

    def failed(self, fault: Any) -> GatewayError | None:
        self.notes.append("failed")
        return None if self.again else fault

    def told(self, error: GatewayError) -> GatewayError:
        self.notes.append("told")
        return error

    def succeeded(self) -> None:
        self.notes.append("succeeded")

    def close(self) -> None:
        self.notes.append("closed")


class TestFailover:
    def test_once_an_answer_has_begun_nobody_else_is_asked(self) -> None:
        def stream(credential: Credential) -> Events:
            yield [Text("a")]
            raise RateLimited("slow down")

        first, second = Counting(), Counting()
        got = []
        with pytest.raises(RateLimited):
            for batch in with_failover(stream, [first, second]):
                got.append(batch)
        assert got == [[Text("a")]]
        assert (first.notes, second.notes) == (["told", "closed"], [])

    def test_silence_is_not_the_beginning(self) -> None:
        def stream(credential: Credential) -> Events:
            yield SILENCE
            if credential.token == Secret("bad"):
                raise RateLimited("slow down")
            yield [Text("a")]

        first, second = Counting("bad"), Counting("good")
        assert list(with_failover(stream, [first, second])) == [SILENCE, SILENCE, [Text("a")]]
        assert (first.notes, second.notes) == (["failed", "closed"], ["succeeded", "closed"])

    def test_stream_that_fails_when_it_is_made_counts_as_well(self) -> None:
        def stream(credential: Credential) -> Events:
            if credential.token == Secret("bad"):
                raise RateLimited("slow down")
            return iter([[Text("a")]])

        assert list(with_failover(stream, [Counting("bad"), Counting()])) == [[Text("a")]]

    def test_client_that_leaves_closes_the_stream_and_the_attempt(self) -> None:
        closed: list[str] = []

        def stream(credential: Credential) -> Events:
            try:
                yield [Text("a")]
                yield [Text("b")]
            finally:
                closed.append("stream")

        attempt = Counting()
        events = with_failover(stream, [attempt])
        next(events)
        events.close()  # type: ignore[attr-defined]
        assert closed == ["stream"]
        assert attempt.notes == ["closed"]

    def test_what_an_error_says_about_an_account(self) -> None:
        def refused(status: int) -> UpstreamRefused:
            return UpstreamRefused("", upstream_status=status, status=503)

        told = {
            status: refusal_of(refused(status)) for status in (400, 401, 402, 403, 404, 429, 500)
        }
        assert told == {
            400: None,
            401: "expired",
            402: "refused",
            403: "refused",
            404: None,
            429: "limited",
            500: None,
        }
        assert refusal_of(RateLimited("")) == "limited"
        assert refusal_of(Unavailable("")) == "unclear"
        assert refusal_of(InvalidRequest("")) is None
        assert refusal_of(ProtocolError("")) is None


class TestWhole:
    def test_settings_make_it_and_its_jobs_run(
        self, store: Store, tmp_path: Path, endpoint: BackendApi
    ) -> None:
        schedule = Schedule(store)
        settings = Settings(
            refresh_ToAccess=official(endpoint.url), key_for_gpts_info=Secret("rt-alice-canary7f3e")
        )
        credentials = Credentials.from_settings(
            settings,
            store,
            open_vault(tmp_path),
            transport.Transport(),
            BackgroundQueue(),
            schedule,
        )
        assert credentials.gpts_token() == Secret(alice(endpoint))
        assert schedule.names == ("renew-tokens", "load-accounts", "save-tokens", "extend-leases")
        assert all(schedule.run(name) for name in schedule.names)

    def test_key_for_gpts_in_both_forms_and_missing(self, make: Make, endpoint: BackendApi) -> None:
        access = Secret(alice(endpoint))
        assert make(gpts_key=access).gpts_token() == access
        assert make().gpts_token() is None
        endpoint.script({"endpoint": "oauth_token", "answer": "400"})
        assert make(gpts_key=Secret("rt-alice-canary7f3e")).gpts_token() is None

    def test_canary_is_nowhere_to_be_seen(
        self,
        make: Make,
        provider: Asking,
        endpoint: BackendApi,
        store: Store,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        canary = "rt-canary7f3e-0123456789abcdef-do-not-show"
        endpoint.accounts["alice"].refresh_token = canary
        monitor = Monitor(store)
        credentials = make(f"{canary},acc-1", "rt-bob-canary7f3e")
        told = ""
        ask(credentials, provider)
        for entry in ({"status": 401, "times": 4}, {"status": 403, "body": {"detail": canary}}):
            endpoint.script({"endpoint": "gizmo", **entry})
            for caller in (KEY_HOLDER, bearer(canary + "-of-a-caller")):
                try:
                    ask(credentials, provider, caller)
                except GatewayError as exc:
                    told += "".join(traceback.format_exception(exc)) + repr(exc) + exc.message
        assert credentials._background.drain(5)  # type: ignore[attr-defined]
        told += repr(credentials.pools.accounts())
        told += repr(list(credentials.attempts(provider, bearer(canary), ROUTE)))
        store.run(lambda c: c.set("end", "of-it"))
        told += monitor.read("of-it") + caplog.text
        monitor.close()
        assert "account rests provider=web" in told
        assert "causeway:pool:" in told
        for secret in (canary, *endpoint.accounts["alice"].access_tokens):
            assert secret not in told
