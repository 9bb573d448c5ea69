"""Why a refresh token gave no access token, and what that means to a caller."""

from __future__ import annotations

from typing import Literal

from services.core.errors import GatewayError, RateLimited, Unauthorized, Unavailable

Reason = Literal["refused", "limited", "unreachable", "failing", "nonsense", "unconfigured", "busy"]

FAILURE_SECONDS = 30.0
"""How long a failed token is not tried again."""

_LOG_WORDS: dict[Reason, str] = {
    "refused": "the token endpoint refuses this refresh token",
    "limited": "the token endpoint limits us",
    "unreachable": "the token endpoint cannot be reached or is too slow",
    "failing": "the token endpoint failed",
    "nonsense": "the token endpoint's answer holds no usable access token",
    "unconfigured": "no token endpoint is configured: set refresh_ToAccess",
    "busy": "another process takes too long over this refresh token",
}


class TokenFailure(Exception):
    """No access token. The text holds no secret; `retry_after` is in seconds."""

    def __init__(self, reason: Reason, retry_after: float = FAILURE_SECONDS) -> None:
        super().__init__(_LOG_WORDS[reason])
        self.reason: Reason = reason
        self.retry_after = retry_after

    @property
    def is_the_tokens(self) -> bool:
        """Whether the refresh token itself is at fault, and not the way to its issuer."""
        return self.reason == "refused"

    def as_error(self, from_caller: bool) -> GatewayError:
        """What the caller is told; 401 only about the caller's own token."""
        if from_caller and self.reason == "refused":
            return Unauthorized("the refresh token is not accepted by its issuer: get a new one")
        if from_caller and self.reason == "unconfigured":
            return Unauthorized("refresh tokens are not exchanged here: send an access token")
        if self.reason == "limited":
            return RateLimited(
                "too many tokens were asked for, retry later", retry_after=self.retry_after
            )
        return Unavailable(
            "an access token for this model's upstream cannot be had now",
            retry_after=self.retry_after,
        )
