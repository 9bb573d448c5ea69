"""Measure the backend-api provider before a fast stand-in, and print Markdown tables.

    bench/run --web [--root NAME=CHECKOUT …] [--hold N] [--sizes 10000,…] [--repeat N]

Long replies: the gateway's CPU for one reply, beside what reading the upstream's bytes, and reading
and decoding them (the floor), costs a bare reader with the same transport. Every event repeats the
whole text so far, so those bytes grow with the square of the reply where the events' step is fixed.
Paced streams: gaps straight from the stand-in and through the gateway, cores and memory.

The gateway and the bare reader run on core 0, the stand-in and the load on core 1. Loopback only;
ends by itself. `--root` runs the gateways of other checkouts instead, to compare them
in one run.
"""

import argparse
import base64
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from run import KEY, ROOT, SERVICE_PYTHON, free_port, pinned, wait_until_up
from web_upstream import CHARACTERS

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000)
SERIES = {"200 events a reply": None, "8,000 characters an event": 8_000}
BATCH = 400_000
"""Characters to measure at least for one figure: short replies are repeated."""


def access_token():
    """Shaped as the upstream's: a JWT, valid for a day, signed by nobody."""
    claims = {"sub": "bench", "exp": int(time.time()) + 86400}
    parts = (json.dumps({"alg": "none"}), json.dumps(claims), "bench")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def start_upstream(port):
    command = [sys.executable, str(ROOT / "bench/web_upstream.py"), "--port", str(port)]
    process = subprocess.Popen(pinned(1, *command, "--max-seconds", "1800"))
    wait_until_up(f"http://127.0.0.1:{port}/healthz")
    return process


def start_gateway(root, port, upstream, folder):
    own = {"access_token": access_token(), "calls_per_minute": 0}
    settings = {
        "log_level": "INFO",
        "auth": {"keys": [KEY]},
        "upstream_base_url": f"http://127.0.0.1:{upstream}",
        "providers": {"backend_api": own},
    }
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    command = [SERVICE_PYTHON, "-m", "services.server.start", "--port", str(port)]
    command += ["--config", str(config), "--data", str(folder)]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(pinned(0, *command), cwd=root, stdout=output, stderr=output)
    wait_until_up(f"http://127.0.0.1:{port}/ready")
    return process


def tree(pid):
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def scheduled(pid):
    """Seconds that a process tree has run so far, threads included, and those that it was ready to
    run while its core was busy with something else.
    """
    ran = waited = 0
    for process in tree(pid):
        for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            run, wait, _ = file.read_text().split()
            ran, waited = ran + int(run), waited + int(wait)
    return ran / 1e9, waited / 1e9


def memory_mb(pid):
    total = 0
    for process in tree(pid):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def reader(core, mode, url, *options):
    command = [sys.executable, str(ROOT / "bench/web_load.py"), mode, "--url", url, "--key", KEY]
    command += [str(option) for option in options]
    return subprocess.Popen(pinned(core, *command), stdout=subprocess.PIPE)


def result(process):
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        sys.exit("a reader failed")
    return json.loads(output)


class Bench:
    """A stand-in and a gateway for each checkout."""

    def __init__(self, gateways, upstream):
        self.gateways = gateways
        self.conversation = f"http://127.0.0.1:{upstream}/backend-api/conversation"

    def warm_up(self):
        """The first reply loads the tokenizer."""
        for url, pid in self.gateways.values():
            self.reply_cost(url, pid, 1000, 100, 3)

    def reply_cost(self, url, pid, size, step, count):
        """CPU seconds of the gateway for one reply, the least of what was seen."""
        options = ("--count", count, "--tokens", size // CHARACTERS, "--step", step // CHARACTERS)
        before, _ = scheduled(pid)
        done = result(reader(1, "once", url, *options))
        time.sleep(0.3)
        used = scheduled(pid)[0] - before
        if done["right"] != count:
            sys.exit(f"{count - done['right']} of {count} replies of {size} characters were wrong")
        return used / count

    def bare_cost(self, size, step, count, *blind):
        """CPU seconds of a bare reader for one reply, and the reply's bytes on the wire."""
        options = ("--count", count, "--tokens", size // CHARACTERS, "--step", step // CHARACTERS)
        done = result(reader(0, "floor", self.conversation, *options, *blind))
        if done["right"] != count:
            sys.exit("the bare reader read a wrong text")
        return done["cpu_s"] / count, done["bytes"] / count

    def long_replies(self, sizes, title, fixed_step, repeat):
        names = list(self.gateways)
        print(f"\n{title}; CPU of one reply\n")
        columns = [f"{n}, ms | {n} / floor | {n} − reading, ns a character" for n in names]
        print(
            "| characters | upstream bytes | only reading, ms | reading and decoding (floor), ms "
            f"| floor − reading, ns a character | {' | '.join(columns)} |"
        )
        print("|---" * (5 + 3 * len(names)) + "|")
        for size in sizes:
            step = fixed_step or size // 200 // CHARACTERS * CHARACTERS
            count = max(1, -(-BATCH // size))
            reads, floors, costs = [], [], {name: [] for name in names}
            for _ in range(repeat):
                reads.append(self.bare_cost(size, step, count, "--blind"))
                floors.append(self.bare_cost(size, step, count))
                for name, (url, pid) in self.gateways.items():
                    costs[name].append(self.reply_cost(url, pid, size, step, count))
            (read, bytes_read), (floor, _) = min(reads), min(floors)
            per_character = lambda cost: f"{(cost - read) * 1e9 / size:,.0f}"  # noqa: E731
            cells = [f"{read * 1e3:.1f}", f"{floor * 1e3:.1f}", per_character(floor)]
            for name in names:
                cost = min(costs[name])
                cells += [f"{cost * 1e3:.1f}", f"{cost / floor:.2f}", per_character(cost)]
            print(f"| {size:,} | {bytes_read:,.0f} | {' | '.join(cells)} |", flush=True)

    def paced_streams(self, streams, tokens, pace, repeat):
        print(f"\n{streams} streams of {tokens} tokens at {pace} tokens/s, {repeat} rounds\n")
        print(
            "| | whole and right | gap p50 / p99 / p99.9 / max, ms | gap p99 / direct "
            "| first token p50 / p99, ms | gateway cores | kept waiting for its core "
            "| CPU a token, µs | gateway memory, MB |"
        )
        print("|---" * 9 + "|")
        options = ("--count", streams, "--tokens", tokens, "--pace", pace, "--ramp", 3)
        for _ in range(repeat):
            direct = result(reader(1, "hold", self.conversation, "--direct", *options))
            print(row("direct", direct, streams), "| | | | |", flush=True)
            for name, (url, pid) in self.gateways.items():
                done, cores, kept, memory = self.watched(url, pid, options)
                cpu = cores * 1e6 / streams / pace
                used = f"{cores:.2f} | {kept:.2f} | {cpu:.0f} | {memory:.0f}"
                print(row(name, done, streams, direct), f"| {used} |", flush=True)

    def watched(self, url, pid, options):
        """The load's figures; the cores that the gateway took in its middle, and could have taken
        besides had the core been free; its memory in MB.
        """
        process = reader(1, "hold", url, *options)
        time.sleep(4.5)
        began, (ran, waited) = time.monotonic(), scheduled(pid)
        time.sleep(5)
        ran, waited = (now - then for now, then in zip(scheduled(pid), (ran, waited), strict=True))
        seconds, memory = time.monotonic() - began, memory_mb(pid)
        return result(process), ran / seconds, max(0.0, waited / seconds), memory


def row(name, done, streams, direct=None):
    gap, first = done["gap_ms"], done["first_ms"]
    ratio = f"{gap['p99'] / direct['gap_ms']['p99']:.2f}" if direct else ""
    return (
        f"| {name} | {done['right']} of {streams} | {gap['p50']} / {gap['p99']} / {gap['p999']} / "
        f"{done['gap_max_ms']} | {ratio} | {first['p50']} / {first['p99']}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--web", action="store_true", help="what bench/run dispatches on")
    parser.add_argument("--root", action="append", default=[], metavar="NAME=CHECKOUT")
    parser.add_argument("--hold", type=int, default=500, help="paced streams at once; 0: none")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="empty: no long replies")
    parser.add_argument(
        "--repeat", type=int, default=3, help="of so many, a reply's least CPU is told"
    )
    options = parser.parse_args()
    roots = dict(item.split("=", 1) for item in options.root) or {"causeway": ROOT}
    upstream_port = free_port()
    processes, gateways = [start_upstream(upstream_port)], {}
    with tempfile.TemporaryDirectory() as top:
        try:
            for name, root in roots.items():
                port, folder = free_port(), Path(top) / name
                folder.mkdir()
                processes.insert(0, start_gateway(root, port, upstream_port, folder))
                gateways[name] = (f"http://127.0.0.1:{port}/v1/chat/completions", processes[0].pid)
            bench = Bench(gateways, upstream_port)
            bench.warm_up()
            sizes = [int(size) for size in options.sizes.split(",") if size]
            for title, step in SERIES.items() if sizes else ():
                bench.long_replies(sizes, title, step, options.repeat)
            if options.hold:
                bench.paced_streams(options.hold, 200, 20, options.repeat)
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    main()
