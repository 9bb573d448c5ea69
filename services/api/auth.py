"""Who is calling, decided in one place and before any body is read.

`Authorization: Bearer X`, `x-api-key: X` and `api-key: X` mean the same. X is one of our keys, or
else, with passthrough on, the caller's own credential for the upstream. A holder of one of our
keys may bring an upstream credential in `X-Upstream-Authorization`. Only holders of our keys use
what is the operator's, and with `auth.anonymous` whoever is on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from werkzeug.datastructures import Headers

from services.config import Settings, is_loopback, passthrough_enabled
from services.core.errors import Unauthorized
from services.core.models import Caller, Credential, Secret
from services.keys import Admission, AdmissionControl, KeyLookup, KeyRecord
from services.keys.records import PREFIX

_MAX_CREDENTIAL = 16 * 1024
_FORWARDED = (
    "Forwarded",
    "Via",
    "X-Real-Ip",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
)
_HOST_OF = re.compile(r"^https?://|:[0-9]*$")
"""What is not the host in a Host or Origin header."""


class Authenticator:
    """Decides who a request's headers belong to."""

    def __init__(self, settings: Settings, gatekeeper: AdmissionControl | None = None) -> None:
        self._gatekeeper = gatekeeper
        self._book = gatekeeper.keys if gatekeeper else KeyLookup(None, settings.auth.keys)
        self._passthrough = passthrough_enabled(settings)
        self._anonymous = settings.auth.anonymous
        self._advice = _advice(settings)

    def caller(self, headers: Headers) -> Caller:
        """The caller, on a route that counts under no limit. Raises `Unauthorized`."""
        presented = presented_credential(headers)
        return self._decide(presented, self._book.recognise(presented), headers)

    def may_use(self, headers: Headers) -> Callable[[str], bool]:
        """Which models the caller may use, by name. Raises `Unauthorized`."""
        presented = presented_credential(headers)
        record = self._book.recognise(presented)
        self._decide(presented, record, headers)
        return record.allows if record is not None else lambda model: True

    def admit(self, headers: Headers) -> tuple[Caller, Admission]:
        """The caller of a request that counts, and its place under the limits of its key.

        Raises `Unauthorized`, `RateLimited`, `Unavailable`.
        """
        presented = presented_credential(headers)
        assert self._gatekeeper is not None, "only a service that counts can admit"
        admission = self._gatekeeper.admit(presented)
        try:
            return self._decide(presented, admission.record, headers), admission
        except Unauthorized:
            admission.done("error")
            raise

    def _decide(self, presented: str, record: KeyRecord | None, headers: Headers) -> Caller:
        if record is not None:
            own = _readable(_without_scheme(headers.get("X-Upstream-Authorization", "")))
            return Caller(record.name, _credential(own) if own else None, record.id)
        if not presented.startswith(PREFIX):
            if self._passthrough and presented:
                return Caller(None, _credential(presented))
            if self._anonymous and is_of_this_machine(headers):
                return Caller()
        if not presented:
            raise Unauthorized(f"no API key: send it as Authorization: Bearer KEY{self._advice}")
        raise Unauthorized(f"incorrect API key provided{self._advice}")


def is_of_this_machine(headers: Headers) -> bool:
    """Whether a request to a service on loopback was made here: it came through no proxy, and no
    web page from elsewhere sent it, not even one whose host name leads to us.
    """
    if any(name in headers for name in _FORWARDED):
        return False
    places = [headers.get("Host", ""), *headers.getlist("Origin")]
    return all(is_loopback(_HOST_OF.sub("", place)) for place in places)


def _advice(settings: Settings) -> str:
    """What to add to a refusal where the operator is likely to be the caller."""
    if settings.auth.anonymous:
        return "; without one only programs on this machine are served, through no proxy"
    if settings.auth.keys or not is_loopback(settings.server.host):
        return ""
    return "; set auth.keys, or auth.anonymous to serve this machine without a key"


def presented_credential(headers: Headers) -> str:
    """The credential a request carries, or an empty string."""
    value = _without_scheme(headers.get("Authorization", ""))
    value = value or headers.get("X-Api-Key", "") or headers.get("Api-Key", "")
    return _readable(value.strip())


def _readable(value: str) -> str:
    if len(value) > _MAX_CREDENTIAL or not value.isprintable():
        raise Unauthorized("the API key is not readable")
    return value


def _without_scheme(value: str) -> str:
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def _credential(token: str) -> Credential:
    return Credential(Secret(token), from_caller=True)
