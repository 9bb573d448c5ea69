"""What `bin/serve --demo` tells a newcomer, shown when it is true.

`python -m emulators.demo_text URL` prints its standard input once the gateway at URL answers: the
process that started it has become the server by then and cannot do it itself.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 60.0  # seconds
WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
QUESTION = "What is a causeway? Answer in one sentence."

INTRODUCTION = """
Causeway answers on {url}, without a key and without the network.

  real      {real}
  scripted  emu-small, emu-large: an OpenAI-compatible upstream with fixed words{web}

Try it in another terminal:

{commands}

Ctrl-C stops everything.
"""
REAL = "demo-llm: SmolLM2-135M-Instruct on this machine's CPU"
NOT_REAL = "none ({why_not})"
WEB = """
  scripted  the gpt and o1 names: a ChatGPT-web style upstream;
            try #code, #browsing, #dalle or #sandbox"""
COMMANDS = """\
curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "temperature": 0, "max_tokens": 64,
       "messages": [{{"role": "user", "content": "{question}"}}]}}'

curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "temperature": 0, "max_tokens": 64, "stream": true,
       "messages": [{{"role": "user", "content": "{question}"}}]}}'

curl {url}/v1/models"""
KEY_WANTED = """
Your environment sets keys: add -H 'Authorization: Bearer KEY' with one of them to each command.
"""


def address(host: str, port: int) -> str:
    """The URL under which this machine reaches a gateway that listens on `host`."""
    host = WILDCARDS.get(host, host).strip("[]")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def introduction(url: str, has_model: bool, why_not: str, has_web: bool) -> str:
    """The whole text; its commands ask the best model there is."""
    model = "demo-llm" if has_model else "emu-small"
    return INTRODUCTION.format(
        url=url,
        real=REAL if has_model else NOT_REAL.format(why_not=why_not),
        web=WEB if has_web else "",
        commands=COMMANDS.format(url=url, model=model, question=QUESTION),
    )


def show_when_ready(url: str) -> None:
    """Print standard input once `url` answers, unless the parent ends before."""
    text = sys.stdin.read()
    parent = os.getppid()
    deadline = time.monotonic() + PATIENCE
    while os.getppid() == parent and time.monotonic() < deadline:
        status = _status(f"{url}/v1/models")
        if status is not None:
            print(text + (KEY_WANTED if status == 401 else ""), flush=True)
            return
        time.sleep(0.1)


def _status(url: str) -> int | None:
    """The status of a GET past any proxy; None if nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return None


if __name__ == "__main__":
    show_when_ready(sys.argv[1])
