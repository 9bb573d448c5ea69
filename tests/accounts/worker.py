"""One worker process of the token tests: asks for one token in many threads at once.

Arguments: the store's URL, the data folder, the endpoint's URL, the refresh token, the threads,
and the longest a lock lasts in seconds. Prints what each thread got as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from services.core.models import Secret
from services.store import Store
from tests.accounts.support import manager, official, together


def main() -> None:
    url, folder, endpoint, token, threads, lock = sys.argv[1:]
    store = Store(url, timeout=2.0)
    tokens = manager(store, Path(folder), official(endpoint), lock_seconds=float(lock))
    print("ready", flush=True)
    sys.stdin.readline()
    got = together(int(threads), lambda: tokens.access(Secret(token)).reveal())
    print(json.dumps([str(result) for result in got]), flush=True)


if __name__ == "__main__":
    main()
