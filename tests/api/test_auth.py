"""Who a request belongs to, for every way to say it."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from services.api.auth import Authenticator
from services.config import Auth, GatewayKeySetting, Server, Settings
from services.core.errors import Unauthorized
from services.core.models import Caller, Credential, Secret

NAMED = "sk-first-canary7f3e-0123456789"
NAMELESS = "sk-second-canary7f3e-987654321"
SHORT = "short-key"
OWN = "sk-of-the-callers-canary7f3e"
KEYS = (
    GatewayKeySetting(key=Secret(NAMED), name="the shop"),
    GatewayKeySetting(key=Secret(NAMELESS)),
    GatewayKeySetting(key=Secret(SHORT)),
)
PRESENTED = [
    lambda key: {"Authorization": f"Bearer {key}"},
    lambda key: {"authorization": f"bearer   {key} "},
    lambda key: {"Authorization": f"BEARER {key}"},
    lambda key: {"Authorization": key},
    lambda key: {"x-api-key": key},
    lambda key: {"X-API-Key": f" {key}"},
    lambda key: {"api-key": key},
    lambda key: {"Authorization": "", "api-key": key},
    lambda key: {"Authorization": "Bearer", "x-api-key": key},
]
ADVICE = "; set auth.keys, or auth.anonymous to serve this machine without a key"
HOW = ["bearer", "blanks", "upper", "bare", "x-api-key", "X-API-Key", "api-key", "empty", "scheme"]


def authenticator(*, keys: bool = True, passthrough: bool | None = None) -> Authenticator:
    auth = Auth(keys=KEYS if keys else (), passthrough=passthrough)
    return Authenticator(Settings(auth=auth))


def decide(auth: Authenticator, **headers: str) -> Caller | str:
    """The caller, or the words of the refusal."""
    try:
        return auth.caller(Headers(headers))
    except Unauthorized as exc:
        return exc.message


def own(token: str = OWN) -> Credential:
    return Credential(Secret(token), from_caller=True)


@pytest.mark.parametrize("headers", PRESENTED, ids=HOW)
@pytest.mark.parametrize(
    ("key", "name"), [(NAMED, "the shop"), (NAMELESS, "…4321"), (SHORT, "key 3")]
)
@pytest.mark.parametrize("passthrough", [None, True, False])
def test_gateway_key_is_known_by_the_same_name_however_it_comes(
    headers: object, key: str, name: str, passthrough: bool | None
) -> None:
    assert callable(headers)
    auth = authenticator(passthrough=passthrough)
    assert decide(auth, **headers(key)) == Caller(name, key_id=f"settings:{name}")


@pytest.mark.parametrize("headers", PRESENTED, ids=HOW)
@pytest.mark.parametrize(
    ("keys", "passthrough", "decision"),
    [
        (True, None, "incorrect API key provided"),
        (True, False, "incorrect API key provided"),
        (True, True, Caller(None, own())),
        (False, None, Caller(None, own())),
        (False, True, Caller(None, own())),
        (False, False, f"incorrect API key provided{ADVICE}"),
    ],
)
def test_other_credential_is_the_callers_own_where_that_is_allowed(
    headers: object, keys: bool, passthrough: bool | None, decision: Caller | str
) -> None:
    assert callable(headers)
    assert decide(authenticator(keys=keys, passthrough=passthrough), **headers(OWN)) == decision


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer "}, {"x-api-key": "  "}]
)
def test_no_credential_is_refused(headers: dict[str, str]) -> None:
    refusal = "no API key: send it as Authorization: Bearer KEY"
    for passthrough in (None, True, False):
        assert decide(authenticator(passthrough=passthrough), **headers) == refusal
        keyless = authenticator(keys=False, passthrough=passthrough)
        assert decide(keyless, **headers) == refusal + ADVICE


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("presented", [{}, {"Authorization": f"Bearer {OWN}"}])
@pytest.mark.parametrize(
    ("sent", "is_here"),
    [
        ({"Host": "127.0.0.1:8080"}, True),
        ({"Host": "localhost"}, True),
        ({"Host": "[::1]:8080"}, True),
        ({"Host": "127.0.0.1", "Origin": "http://localhost:3000"}, True),
        ({"Host": "127.0.0.1", "Origin": "https://[::1]"}, True),
        ({}, False),
        ({"Host": ""}, False),
        ({"Host": "localhost.evil.example"}, False),
        ({"Host": "127.0.0.1@evil.example"}, False),
        ({"Host": "127.0.0.1:8080", "Origin": "null"}, False),
        ({"Host": "127.0.0.1:8080", "Origin": ""}, False),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1.evil.example"}, False),
        ({"Host": "127.0.0.1:8080", "Origin": "file://localhost"}, False),
        ({"Host": "127.0.0.1:8080", "X-Forwarded-Proto": ""}, False),
    ],
)
def test_anonymous_is_for_this_machine(
    sent: dict[str, str], is_here: bool, presented: dict[str, str], keys: bool
) -> None:
    auth = Authenticator(Settings(auth=Auth(keys=KEYS if keys else (), anonymous=True)))
    decision = decide(auth, **sent, **presented)
    assert decision == Caller() if is_here else "only programs on this machine" in str(decision)


def test_anonymous_beside_passthrough_is_for_those_who_bring_nothing() -> None:
    auth = Authenticator(Settings(auth=Auth(anonymous=True, passthrough=True)))
    assert decide(auth, Host="127.0.0.1", Authorization=f"Bearer {OWN}") == Caller(None, own())
    assert decide(auth, Host="127.0.0.1") == Caller()


def test_anonymous_opens_no_door_to_a_dead_key_of_ours() -> None:
    auth = Authenticator(Settings(auth=Auth(anonymous=True)))
    decision = decide(auth, Host="127.0.0.1", Authorization="Bearer sk-cw-revoked-canary7f3e")
    assert str(decision).startswith("incorrect API key provided")


def test_passthrough_is_off_by_default_beyond_loopback() -> None:
    settings = Settings(server=Server(host="0.0.0.0"))
    assert decide(Authenticator(settings), Authorization=f"Bearer {OWN}") == (
        "incorrect API key provided"
    )


@pytest.mark.parametrize(
    ("value", "credential"),
    [
        (f"Bearer {OWN}", own()),
        (f"bearer {OWN}", own()),
        (OWN, own()),
        ("[3, 7]", own("[3, 7]")),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("  ", None),
    ],
)
@pytest.mark.parametrize("passthrough", [None, True])
def test_holder_of_a_key_may_bring_an_upstream_credential(
    value: str, credential: Credential | None, passthrough: bool | None
) -> None:
    headers = {"Authorization": f"Bearer {NAMED}", "X-Upstream-Authorization": value}
    assert decide(authenticator(passthrough=passthrough), **headers) == Caller(
        "the shop", credential, "settings:the shop"
    )


def test_upstream_credential_alone_opens_no_door() -> None:
    assert decide(authenticator(), **{"X-Upstream-Authorization": f"Bearer {NAMED}"}) == (
        "no API key: send it as Authorization: Bearer KEY"
    )
    decision = decide(
        authenticator(), Authorization="Bearer x", **{"X-Upstream-Authorization": OWN}
    )
    assert decision == "incorrect API key provided"


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "X-Upstream-Authorization"])
@pytest.mark.parametrize("value", ["x" * 20_000, "a\x7fb", "a\tb"])
def test_unreadable_credential_is_refused_and_not_repeated(header: str, value: str) -> None:
    headers = {"Authorization": f"Bearer {NAMED}", header: value}
    if header == "x-api-key":
        del headers["Authorization"]
    for passthrough in (False, True):
        assert decide(authenticator(passthrough=passthrough), **headers) == (
            "the API key is not readable"
        )


@pytest.mark.parametrize("key", [NAMED[:-1], NAMED + "0", NAMED.upper(), "é" + NAMED])
def test_almost_right_is_wrong(key: str) -> None:
    assert decide(authenticator(), Authorization=f"Bearer {key}") == "incorrect API key provided"


def test_callers_show_no_secret() -> None:
    headers = {"Authorization": f"Bearer {NAMED}", "X-Upstream-Authorization": OWN}
    shown = repr(decide(authenticator(), **headers))
    assert OWN not in shown
    assert NAMED not in shown
