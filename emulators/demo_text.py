"""What `bin/serve --demo` tells a newcomer, shown when it is true.

`python -m emulators.demo_text URL` prints its standard input once the gateway at URL answers: the
process that started it has become the server by then and cannot do it itself.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PATIENCE = 60.0  # seconds
WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
QUESTION = "What is a causeway? Answer in one sentence."

INTRODUCTION = """
Causeway answers on {url}, without {a_key}the network.

  real      {real}
  scripted  emu-small, emu-large: an OpenAI-compatible upstream with fixed words{web}
{notes}
Try it in another terminal:

{commands}

Ctrl-C stops everything.
"""
REAL = "demo-llm: SmolLM2-135M-Instruct on this machine's CPU; it ignores tools"
NOT_REAL = "none ({why_not})"
WEB = """
  scripted  the gpt and o1 names: a ChatGPT-web style upstream;
            try #code, #browsing, #dalle or #sandbox"""
UNUSED = "{names} set, and not used here: the demo brings its own."
KEYS = "AUTH_KEYS is set: the commands send its first key, from a file."
COMMANDS = """\
curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "temperature": 0, "max_tokens": 64,
       "messages": [{{"role": "user", "content": "{question}"}}]}}'

curl -N {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "temperature": 0, "max_tokens": 64, "stream": true,
       "messages": [{{"role": "user", "content": "{question}"}}]}}'

curl {key}{url}/v1/models"""


class Facts(NamedTuple):
    """What there is: the real model, or why not; the web upstream; variables that are set aside."""

    has_model: bool
    why_not: str
    has_web: bool
    unused: Sequence[str]


def address(host: str, port: int) -> str:
    """The URL under which this machine reaches a gateway that listens on `host`."""
    host = WILDCARDS.get(host, host).strip("[]")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def introduction(url: str, facts: Facts, key_file: Path | None = None) -> str:
    """The whole text; its commands ask the best model there is, with the key in `key_file`."""
    model = "demo-llm" if facts.has_model else "emu-small"
    notes = []
    if facts.unused:
        verb = "is" if len(facts.unused) == 1 else "are"
        notes.append(UNUSED.format(names=f"{' and '.join(facts.unused)} {verb}"))
    key = ""
    if key_file is not None:
        notes.append(KEYS)
        key = f'-H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" '
    return INTRODUCTION.format(
        url=url,
        a_key="" if key else "a key and without ",
        real=REAL if facts.has_model else NOT_REAL.format(why_not=facts.why_not),
        web=WEB if facts.has_web else "",
        notes="".join(f"\n{note}" for note in notes) + "\n" * bool(notes),
        commands=COMMANDS.format(url=url, model=model, question=QUESTION, key=key),
    )


def show_when_ready(url: str) -> None:
    """Print standard input once `url` answers, unless the parent ends before."""
    text = sys.stdin.read()
    parent = os.getppid()
    deadline = time.monotonic() + PATIENCE
    while os.getppid() == parent and time.monotonic() < deadline:
        if _answers(f"{url}/v1/models"):
            print(text, flush=True)
            return
        time.sleep(0.1)


def _answers(url: str) -> bool:
    """Whether anything comes from there, past any proxy; a key may be missing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=5).close()
    except urllib.error.HTTPError as exc:
        exc.close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    show_when_ready(sys.argv[1])
