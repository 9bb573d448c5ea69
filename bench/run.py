"""Start the stand-in upstream and the gateway, measure both and any other targets, print one table.

The gateway runs on core 0, the upstream and the load generator on core 1. Figures of two machines, or
of two runs on a busy one, do not compare: quote the ratios. Loopback only; ends by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
SERVICE_PYTHON = str(ROOT / ".venv/bin/python")
KEY = "sk-bench-0123456789abcdef"
CASES = {
    "non-stream replies/s, c=1": ("nonstream", "bench-n10", 1, "rps"),
    "non-stream replies/s, c=16": ("nonstream", "bench-n10", 16, "rps"),
    "non-stream replies/s, c=64": ("nonstream", "bench-n10", 64, "rps"),
    "streamed tokens/s, c=16": ("stream", "bench-n100", 16, "tokens_s"),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pinned(core: int, *command: str) -> list[str]:
    return ["taskset", "-c", str(core), *command] if os.cpu_count() != 1 else list(command)


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urlopen(url, timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def start_upstream(port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "bench/upstream.py"), "--port", str(port)]
    process = subprocess.Popen(
        pinned(1, *command, "--max-seconds", "1800"), stdout=subprocess.DEVNULL
    )
    wait_until_up(f"http://127.0.0.1:{port}/healthz")
    return process


def start_gateway(port: int, upstream: int, folder: Path) -> subprocess.Popen[bytes]:
    entry = {"prefix": "bench", "base_url": f"http://127.0.0.1:{upstream}/v1", "models": ["*"]}
    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {
                "log_level": "INFO",
                "auth": {"keys": [KEY]},
                "providers": {"custom": [entry]},
            }
        )
    )
    command = [SERVICE_PYTHON, "-m", "services.server.start", "--port", str(port)]
    command += ["--config", str(config), "--data", str(folder)]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(pinned(0, *command), cwd=ROOT, stdout=output, stderr=output)
    wait_until_up(f"http://127.0.0.1:{port}/ready")
    return process


def start_floor(port: int, upstream: int, folder: Path) -> subprocess.Popen[bytes]:
    """bench/floor.py: the bare forwarder that the gateway is compared with."""
    command = [sys.executable, "-m", "gunicorn", "--worker-class", "gevent"]
    command += ["--worker-connections", "4000", "--bind", f"127.0.0.1:{port}", "floor:app"]
    environ = {**os.environ, "UPSTREAM": f"http://127.0.0.1:{upstream}"}
    with (folder / "floor.txt").open("wb") as output:
        process = subprocess.Popen(
            pinned(0, *command), cwd=ROOT / "bench", env=environ, stdout=output, stderr=output
        )
    wait_until_up(f"http://127.0.0.1:{port}/ready")
    return process


def load(mode: str, url: str, model: str, streams: int, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "bench/loadgen.py"), mode, "--url", url, "--model", model]
    command += ["-c", str(streams), "--key", KEY, *options]
    done = subprocess.run(pinned(1, *command), capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def cpu_per_unit(result: dict, case: str) -> str:
    cores = result.get("gw", {}).get("cpu_cores")
    units = result["tokens"] if "tokens/s" in case else result["ok"]
    if cores is None or not units:
        return ""
    return f" ({cores * result['elapsed_s'] * 1e6 / units:.0f} µs)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--target", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--hold", type=int, default=1000, help="paced streams at once; 0: none")
    options = parser.parse_args()
    upstream_port, gateway_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        upstream = start_upstream(upstream_port)
        gateway = start_gateway(gateway_port, upstream_port, Path(folder))
        floor_port = free_port()
        floor = start_floor(floor_port, upstream_port, Path(folder))
        try:
            targets = {
                "direct": (f"http://127.0.0.1:{upstream_port}/v1", ""),
                "floor": (f"http://127.0.0.1:{floor_port}/v1", str(floor.pid)),
                "causeway": (f"http://127.0.0.1:{gateway_port}/v1", str(gateway.pid)),
            }
            for target in options.target:
                name, _, url = target.partition("=")
                targets[name] = (url, "")
            report(targets, options)
        finally:
            for process in (gateway, floor, upstream):
                process.terminate()
                process.wait(30)


def report(targets: dict[str, tuple[str, str]], options: argparse.Namespace) -> None:
    names = list(targets)
    print("|  | " + " | ".join(names) + " | causeway / each other |")
    print("|---" * (len(names) + 2) + "|")
    for case, (mode, model, streams, key) in CASES.items():
        results = {
            name: load(mode, url, model, streams, "-d", str(options.seconds), "--pids", pids)
            for name, (url, pids) in targets.items()
        }
        ours = results["causeway"][key]
        cells = [f"{r[key]:,.0f}{cpu_per_unit(r, case)}" for r in results.values()]
        answering = [n for n in names if n != "causeway" and results[n][key]]
        others = [f"{ours / results[n][key]:.2f} × {n}" for n in answering]
        print(f"| {case} | {' | '.join(cells)} | {', '.join(others)} |")
        failed = {name: r["errors"] for name, r in results.items() if r["errors"]}
        if failed:
            print(f"errors: {failed}")
    if options.hold:
        report_hold(targets, options.hold)


def report_hold(targets: dict[str, tuple[str, str]], streams: int) -> None:
    model = "bench-n200-tps20-ts1"
    for name, (url, pids) in targets.items():
        result = load("hold", url, model, streams, "--ramp", "3", "--pids", pids)
        used = result.get("gw", {})
        if not result["ttft_ms"]:
            print(f"{name}: {result['ok']} of {streams} streams; {result['errors']}")
            continue
        print(
            f"{name}: {result['ok']} of {streams} streams at 20 tokens/s; "
            f"gap p99 {result['gap_ms']['p99']} ms, first token p99 {result['ttft_ms']['p99']} ms, "
            f"cores {used.get('cpu_cores', '-')}, memory {used.get('max_pss_mb', '-')} MB"
        )


if __name__ == "__main__":
    main()
