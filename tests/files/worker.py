"""One of many processes on one cache: adopts, serves what any of them stored, and sweeps.

Run as `python -m tests.files.worker FOLDER SECONDS`; prints one JSON object at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

from services.files.cache import FileCache, Lifetimes
from services.files.storage import Kind, LocalStorage

from .support import make_app

_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
_DIGEST = 32
SHORT_LIFE = 0.3


def content() -> bytes:
    """A picture, as far as its first bytes go, that ends in the sum of the rest."""
    body = _HEAD + os.urandom(random.randrange(1, 300_000))
    return body + hashlib.sha256(body).digest()


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]


def shared_cache(folder: Path) -> FileCache:
    return FileCache(LocalStorage(folder), Lifetimes(1e6, SHORT_LIFE, 1e6), 10**12)


def main(folder: Path, seconds: float) -> None:
    cache = shared_cache(folder)
    client = make_app(cache).test_client()
    report = {"adopted": [], "served": 0, "short": 0, "expired": 0, "wrong": []}
    seen: set[str] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        kept = cache.keep(content(), Kind.IMAGE, "label.png")
        report["adopted"].append(kept.path)
        cache.keep(content(), Kind.PASSED_ON, "label.png")
        report["short"] += 1
        for _ in range(10):  # what just appeared, while its writer may still be at it
            names = _images(folder)
            for name in [*(names - seen), random.choice(sorted(names))]:
                _check(client, name, report)
            seen = names
        report["expired"] += cache.sweep().expired
    print(json.dumps(report))


def _images(folder: Path) -> set[str]:
    return {path.name for path in (folder / "images").iterdir() if not path.name.startswith(".")}


def _check(client, name, report) -> None:  # type: ignore[no-untyped-def]
    answer = client.get(f"/images/{name}", buffered=True)
    report["served"] += answer.status_code == 200
    whole = answer.status_code == 200 and is_whole(answer.data)
    gone = answer.status_code == 404 and name.startswith(Kind.PASSED_ON.value)
    if not whole and not gone:
        report["wrong"].append([name, answer.status_code, len(answer.data)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
