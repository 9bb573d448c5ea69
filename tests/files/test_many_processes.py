"""Eight processes on one folder: nothing is lost, and nobody ever sees a part of a file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from .support import make_app
from .worker import SHORT_LIFE, is_whole, shared_cache

PROCESSES = 8
SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[2]


def test_processes_adopt_serve_and_sweep_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.files.worker", str(tmp_path), str(SECONDS)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(PROCESSES)
    ]
    reports = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    assert [wrong for report in reports for wrong in report["wrong"]] == []
    assert all(report["served"] > 0 for report in reports)

    cache = shared_cache(tmp_path)
    client = make_app(cache).test_client()
    adopted = [path for report in reports for path in report["adopted"]]
    assert len(adopted) == len(set(adopted)) >= PROCESSES
    for path in adopted:
        answer = client.get(path, buffered=True)
        assert answer.status_code == 200, f"{path} was lost"
        assert is_whole(answer.data)

    time.sleep(SHORT_LIFE)
    expired = cache.sweep().expired + sum(report["expired"] for report in reports)
    assert expired >= sum(report["short"] for report in reports)
    left = {path.name for path in (tmp_path / "images").iterdir()}
    names = {path.rpartition("/")[2] for path in adopted}
    assert left == names | {f".{name}.label" for name in names}
