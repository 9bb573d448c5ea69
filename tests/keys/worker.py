"""One worker: `python -m tests.keys.worker URL KEY TRIES MODE`.

MODE "count" tells how many requests of TRIES were let in, from four threads at a time; "hold"
takes one place, says so, and keeps it until it is killed.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from services.core.errors import RateLimited
from services.server.jobs import Schedule
from services.store import Store

from .support import Desk


def main(url: str, key: str, tries: int, mode: str) -> None:
    store = Store(url)
    desk, schedule = Desk(store, lease_seconds=1.0), Schedule(store)
    schedule.every(0.2, "renew-leases", desk.control.renew_leases, everywhere=True)
    schedule.start()
    print("ready", flush=True)
    sys.stdin.readline()

    def ask(_: int) -> bool:
        try:
            desk.admit(key)
        except RateLimited:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        print(sum(pool.map(ask, range(tries))), flush=True)
    if mode == "hold":
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
