"""Everything the `backend-api` emulator can say, by name, and which situation each name stands for.

A scenario is a function from a `Turn` to its steps. Its docstring tells what a client should read
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import actions, browsing, code, failures, generated_files, text
from .steps import Step
from .turn import Turn

Scene = Callable[[Turn], Iterator[Step]]

SCENES: Mapping[str, Scene] = {
    **text.SCENES,
    **code.SCENES,
    **browsing.SCENES,
    **generated_files.SCENES,
    **actions.SCENES,
    **failures.SCENES,
}

# options a scenario brings along; a script's or a marker's own go over them
SCENE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "chinese": {"raw_utf8": True},
    "cut_utf8": {"raw_utf8": True},
    "byte_by_byte": {"split": "bytes"},
    "random_pieces": {"split": "random", "raw_utf8": True},
    "crlf": {"crlf": True},
    "slow_headers": {"headers_delay": 5.0},
    "action_json": {"transport": "socket_flat"},
    "action_json_allowed": {"transport": "socket_flat"},
    "action_sse": {"transport": "sse"},
    "action_sse_allowed": {"transport": "sse"},
}

# Situation number: scenarios by name, `endpoint:answer` for a scripted answer of another endpoint
# (`endpoint:status=N` for a bare status), `client:…` for what the test does itself.
SCENARIOS: Mapping[int, tuple[str, ...]] = {
    1: ("plain",),
    2: ("tail_in_finished",),
    3: ("two_messages",),
    4: ("code", "code_in_closing_event"),
    5: ("code_twice",),
    6: ("plot",),
    7: ("traceback",),
    8: ("browsing",),
    9: ("marks_in_delta", "marks_adjacent", "marks_unknown", "marks_chinese", "marks_unclosed"),
    10: ("dalle",),
    11: ("dalle_two", "dalle_refused", "dalle_policy", "dalle_blocked", "dalle_403"),
    12: ("sandbox", "sandbox_two", "sandbox_unicode", "sandbox_refused"),
    13: ("parentheses", "open_parenthesis_end"),
    14: ("gizmo_files", "files_loaded"),
    15: ("action_json", "action_sse"),
    16: ("o1_thinking",),
    17: ("plain", "blob_put:status=403", "file_uploaded:failed", "file_uploaded:status=404"),
    18: ("plain", "client:sends base64, URL, corrupt, unknown and 25 MB inputs"),
    19: ("plain", "client:BackendApi.revoke() before the request"),
    20: ("token_expired_401",),
    21: ("cap_429",),
    22: ("string_429",),
    23: ("html_403",),
    24: ("not_found_404",),
    25: ("error_500", "error_502"),
    26: ("client:BackendApi.stop() before the request",),
    27: ("cut_event", "cut_utf8", "cut_no_done", "reset_in_stream", "cut_at_start"),
    28: ("slow_headers", "silence", "byte_by_byte", "random_pieces"),
    29: ("noise", "crlf", "error_event", "error_after_text"),
    30: ("backticks_and_data_prefix",),
    31: ("chinese",),
    32: ("long",),
    33: ("plain", "client:opens 100 streams at once"),
    34: ("silence", "client:leaves, then reads Call.exchange.aborted_at"),
    35: (
        "oauth_token:400",
        "applelogin:html",
        "ninja_refresh:timeout",
        "oauth_token:rotated",
        "oauth_token:no_token",
        "client:sends 20 requests at once",
    ),
    36: ("plain", "client:stops the store"),
    37: ("gizmo:status=403", "client:asks for an id containing `forbidden`"),
    38: ("sandbox_traversal",),
    39: ("plain", "client:poisons the cached gizmo"),
    40: ("plain", "code", "dalle"),  # with transport socket_flat and socket_nested
    41: ("cites", "cites_late", "cites_unknown", "cites_unclosed", "other_markers"),
    42: ("plain", "code", "dalle", "cites"),  # with encoding v1
}
