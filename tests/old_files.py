"""The config.json of each flavour of the backend-to-api services, as operators have it: booleans as
text, Chinese, the samples' odd numbers, keys that only one of them knew.
"""

from __future__ import annotations

from typing import Any

_REDIS = {
    "host": "redis",
    "port": 6379,
    "password": "",
    "db": 0,
    "pool_size": 10,
    "pool_timeout": 60000,
}
_BOT_MODE = {
    "enabled": "false",
    "enabled_markdown_image_output": "false",
    "enabled_bing_reference_output": "false",
    "enabled_plugin_output": "false",
    "enabled_plain_image_url_output": "false",
}
_PAN = {
    "log_level": "INFO",
    "need_log_to_file": "true",
    "process_workers": 2,
    "process_threads": 2,
    "pandora_base_url": "https://mirror.example.com",
    "pandora_api_prefix": "abc",
    "backend_container_url": "http://1.2.3.4:50011",
    "backend_container_api_prefix": "",
    "key_for_gpts_info": "",
    "gpt_4_s_new_name": "gpt-4-s",
    "gpt_4_mobile_new_name": "gpt-4-mobile,dall-e-3",
    "gpt_3_5_new_name": "gpt-3.5-turbo",
    "need_delete_conversation_after_response": "true",
    "use_oaiusercontent_url": "false",
    "use_pandora_file_server": "false",
    "custom_arkose_url": "true",
    "arkose_urls": "",
    "dalle_prompt_prefix": "请严格按照下面的要求作画：\n",
    "bot_mode": _BOT_MODE,
    "redis": _REDIS,
}
_SEED = {
    **{k: v for k, v in _PAN.items() if not k.startswith("pandora")},
    "proxy": "",
    "upstream_base_url": "https://mirror.example.com",
    "upstream_api_prefix": "abc",
    "refresh_ToAccess": {
        "stream_sleep_time": 0,
        "enableOai": "true",
        "xyhelper_refreshToAccess_Url": "https://refresh.example.com/applelogin",
    },
}
_OURS = {"stream_sleep_time": 0.01, "steam_sleep_time": 0.01, "enableOai": "false"}

VERSIONS: dict[str, dict[str, Any]] = {
    "SEED": _SEED,
    "XY": {**_SEED, "refresh_ToAccess": {**_SEED["refresh_ToAccess"], "enableOai": "false"}},
    "NINJA": {
        **_SEED,
        "refresh_ToAccess": {
            **_OURS,
            "ninja_refreshToAccess_Url": "https://refresh.example.com/ninja/refresh",
        },
    },
    "MAIN": {
        **_SEED,
        "upstream_api_prefix": ["abc", "def"],
        "gpt_4_o_new_name": "gpt-4-o,gpt-4o",
        "gpt_4_o_mini_new_name": "gpt-4o-mini",
        "o1_preview_new_name": "o1-preview",
        "o1_mini_new_name": "o1-mini",
        "upload_success_text": "`🤖 文件已上传`\n",
        "refresh_ToAccess": {
            **_OURS,
            "oaifree_refreshToAccess_Url": "https://refresh.example.com/applelogin",
        },
    },
    "PAN": _PAN,
}
"""By the name of the flavour. Upstream and token exchange are nowhere: put in an emulator's."""
