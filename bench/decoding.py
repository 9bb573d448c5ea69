"""Time the decoding of an agent's chat request (40 tools, 60 turns, about 72 KB): what the gateway
does with it before anything is sent, beside msgspec's decoding of the same bytes into dicts.

Prints both in microseconds, the best of several rounds, and their ratio. With a number, fails if
the ratio is above it: `python bench/decoding.py 2`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from timeit import repeat

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from services.dialects.chat import RequestLimits, decode_chat_request

ROUNDS, TIMES = 15, 100
TOOLS, TURNS = 40, 60


def agent_request() -> bytes:
    """A coding agent's request: schemas of its tools, and what they said so far."""
    properties = {
        name: {"type": "string", "description": f"The {name} to work on, as the user gave it."}
        for name in ("path", "pattern", "command", "mode")
    }
    schema = {"type": "object", "properties": properties, "required": ["path"]}
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{number}",
                "description": "Read, search or change files of the project. " * 7,
                "parameters": schema,
            },
        }
        for number in range(TOOLS)
    ]
    messages: list[object] = [{"role": "system", "content": "You are a careful engineer. " * 40}]
    for number in range(TURNS // 3):
        call = {"name": f"tool_{number}", "arguments": '{"path":"src/main.py","mode":"r"}'}
        said = [{"type": "text", "text": f"Look at file {number} and tell me what is wrong."}]
        messages += [
            {"role": "user", "content": said},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
            },
            {
                "role": "tool",
                "tool_call_id": f"call_{number}",
                "content": 'def main():\n    print("hello")\n' * 40,
            },
        ]
    body = {"model": "up/m", "messages": messages, "tools": tools, "stream": True}
    return msgspec.json.encode(body)


def main() -> int:
    body, limits = agent_request(), RequestLimits()
    cases = {
        "msgspec.json.decode": lambda: msgspec.json.decode(body),
        "decode_chat_request": lambda: decode_chat_request(body, limits),
    }
    best = {
        name: min(repeat(case, number=TIMES, repeat=ROUNDS)) / TIMES * 1e6
        for name, case in cases.items()
    }
    print(f"{len(body) / 1000:.0f} KB", end="")
    for name, microseconds in best.items():
        print(f", {name} {microseconds:.0f} us", end="")
    ratio = best["decode_chat_request"] / best["msgspec.json.decode"]
    print(f", ratio {ratio:.2f}")
    return int(len(sys.argv) > 1 and ratio > float(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
