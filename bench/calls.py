"""Count the Python calls of one request: of functions written in Python, from the request's head to
the end of its answer, in a gunicorn worker that has answered others before.

Prints one line for a plain answer, and one for a streamed answer of 100 tokens that the upstream
sends one at a time: the calls a token, and the generators that each passes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OUTPUT = "CAUSEWAY_CALLS"
KEY = "sk-bench-0123456789abcdef"
WARM = 5

if OUTPUT in os.environ:
    from services.server.gevent_worker import Worker

    class Counting(Worker):
        """Counts the calls made for each request and appends them to the file named by OUTPUT."""

        def handle_request(self, *arguments):
            calls, generators = Counter(), Counter()

            def note(frame, event, _):
                if event == "call":
                    code = frame.f_code
                    calls[f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}"] += 1
                    if code.co_flags & 0x20:
                        generators[code.co_qualname] += 1

            sys.setprofile(note)
            try:
                return super().handle_request(*arguments)
            finally:
                sys.setprofile(None)
                with Path(os.environ[OUTPUT]).open("a") as file:
                    file.write(json.dumps([calls, generators]) + "\n")


def ask(url: str, model: str, stream: bool) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=60) as answer:
        answer.read()


def main() -> None:
    from run import free_port, start_gateway, start_upstream

    verbose = "-v" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "calls"
        os.environ[OUTPUT] = str(output)
        os.environ["GUNICORN_CMD_ARGS"] = "--worker-class bench.calls.Counting"
        os.environ["PYTHONPATH"] = str(ROOT)
        port, upstream_port = free_port(), free_port()
        upstream = start_upstream(upstream_port)
        gateway = start_gateway(port, upstream_port, Path(folder))
        try:
            for model, stream in (("bench-n10", False), ("bench-n100-tps200-ts1", True)):
                for _ in range(WARM):
                    ask(f"http://127.0.0.1:{port}/v1", model, stream)
                calls, generators = json.loads(output.read_text().splitlines()[-1])
                total = sum(calls.values())
                print(f"{'streamed' if stream else 'plain'}: {total} calls", end="")
                if stream:
                    each = {name: n for name, n in generators.items() if n >= 90}
                    print(f", {total / 100:.1f} a token, through {len(each)} generators", end="")
                    print(f" ({', '.join(each)})", end="")
                print()
                if verbose:
                    for name, n in sorted(calls.items(), key=lambda c: -c[1]):
                        print(f"{n:6} {name}")
        finally:
            for process in (gateway, upstream):
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    main()
