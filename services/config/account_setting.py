"""How an operator names an upstream account; for the settings of providers to embed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from services.config.kinds import Group
from services.core.models import Secret


class AccountSetting(Group, frozen=True, kw_only=True):
    """One upstream account; a bare string is its token, or `token,account-id`.

    `token` is a refresh token, access token or key of the upstream; `account` names a workspace of
    it. An account of twice the `weight` gets twice the requests. `concurrent` bounds the answers
    under way at once (0: no bound). `name` is what logs and lists call it.
    """

    SHORTHAND: ClassVar[str] = "token"

    token: Secret
    account: str = ""
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    concurrent: Annotated[int, Meta(ge=0, le=10_000)] = 0
    name: str = ""
