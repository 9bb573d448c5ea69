"""The keys of `providers.backend_api`; the older keys of this upstream stand at the top level."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from services.config.settings import AccountSetting, Group, Name
from services.core.models import Secret


class BackendApiSettings(Group, frozen=True, kw_only=True):
    """What old files have no key for.

    `access_token` is the operator's own, for callers who bring none; `account_id` names its
    workspace. `accounts`, and those in `accounts_file`, are a pool for the same.
    `calls_per_minute` counts calls to the upstream for one account (0: no limit), and
    `queue_patience` is how many seconds a call waits for its place. The slugs are the upstream's
    names of two model families that went by several over time. The rest are words that people
    read: `image_label` is the alt text of pictures (empty: "image").
    """

    access_token: Secret | None = None
    account_id: str = ""
    accounts: tuple[AccountSetting, ...] = ()
    accounts_file: str = ""
    calls_per_minute: Annotated[int, Meta(ge=0)] = 30
    queue_patience: Annotated[float, Meta(ge=0)] = 20.0
    gpt_3_5_slug: Name = "text-davinci-002-render-sha"
    gpt_4_mobile_slug: Name = "gpt-4-mobile"
    image_label: str = ""
    plot_notice: str = "图片生成中，请稍后\n"
    image_error: str = "\n```\nError: 图片下载失败，请稍后再试\n```\n"
    sandbox_error: str = "\n```\nError: 沙箱文件下载失败，可能是因为开启了隐私模式\n```\n"
    action_notice: str = "\n```\n操作需要确认（auto_allow_actions 未开启）：{domain}\n```\n"
