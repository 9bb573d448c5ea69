"""Limits hold to the request over several processes on one store, and outlive a killed one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from services.core.errors import RateLimited
from services.keys import Admission
from tests.gateway import ROOT, wait_for

from .support import Desk, away_from_midnight


@contextlib.contextmanager
def workers(
    url: str, key: str, number: int, tries: int, mode: str = "count"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that begin at the same time, once all are ready."""
    command = [sys.executable, "-m", "tests.keys.worker", url, key, str(tries), mode]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        for _ in range(number)
    ]
    try:
        for process in started:
            assert process.stdout and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def told(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


@pytest.mark.parametrize("limit", ["requests_per_minute", "requests_per_day", "concurrent_streams"])
def test_a_hundred_are_exactly_a_hundred(desk: Desk, store_url: str, limit: str) -> None:
    away_from_midnight()
    key, _ = desk.key("bot", **{limit: 100})
    with workers(store_url, key, number=6, tries=40) as started:
        assert sum(told(process) for process in started) == 100


def test_killed_worker_gives_its_places_back_and_a_living_one_keeps_them(
    desk: Desk, store_url: str
) -> None:
    key, _ = desk.key(concurrent_streams=3)
    with (
        workers(store_url, key, 1, 1, "hold") as [dies],
        workers(store_url, key, 1, 1, "hold") as [lives],
    ):
        assert told(dies) == told(lives) == 1
        kept = [desk.admit(key)]
        with pytest.raises(RateLimited):
            desk.admit(key)
        dies.kill()

        def admitted() -> Admission | None:
            with contextlib.suppress(RateLimited):
                return desk.admit(key)
            return None

        kept.append(wait_for(admitted, 5.0, "the place of the killed worker"))
        for _ in range(2):  # the living one has outlasted its lease several times by now
            with pytest.raises(RateLimited):
                desk.admit(key)
        for admission in kept:
            admission.done("ok")
