"""Log lines: no secret in any, none lost, mixed or cut, each under its request's id."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.log import (
    FLUSH_EVERY,
    DailyFile,
    Gathered,
    LineFormatter,
    Redactor,
    StreamLines,
    request_id,
)
from tests.gateway import ROOT, GatewayProcess, question, wait_for

KNOWN = "hunter2-and-more"
YESTERDAY = 24 * 3600.0
PROCESSES = 4
LINES = 2000

WRITER = """
import logging, sys, time
from pathlib import Path
from services.log import DailyFile, LineFormatter, Redactor
handler = DailyFile(Path(sys.argv[1]))
handler.setFormatter(LineFormatter(Redactor()))
log = logging.getLogger("writer")
log.addHandler(handler)
log.setLevel("INFO")
log.propagate = False
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    log.info("worker=%s number=%d %s end", sys.argv[2], number, "x" * (number * 37 % 900))
    if not number % 4:
        time.sleep(0.008)
"""

SETUP = """
import logging, sys
from pathlib import Path
from services import log
log.setup("INFO", Path(sys.argv[1]), ["hunter2-and-more", "short"])
some = logging.getLogger("some.module")
some.info("message hunter2-and-more")
some.info("args %s %r", "hunter2-and-more", {"token": "Bearer abc.def.ghi"})
some.warning("several\\nlines\\r2026-01-01 00:00:00,000 INFO forged - line")
try:
    raise RuntimeError("within hunter2-and-more, sk-abcdefgh12345678")
except RuntimeError:
    some.exception("failed")
logging.getLogger("access").info("path=/x hunter2-and-more")
logging.getLogger("urllib3").info("chatter")
"""


@pytest.fixture
def daily(tmp_path: Path) -> Iterator[DailyFile]:
    handler = DailyFile(tmp_path / "access.log", kept_days=3)
    handler.setFormatter(LineFormatter(Redactor()))
    yield handler
    handler.close()


def age(path: Path, seconds: float = YESTERDAY) -> None:
    """As if the file had been begun so long ago."""
    then = time.time() - seconds
    os.utime(path.with_name(f".{path.name}.lock"), (then, then))


def dated(path: Path, seconds: float = YESTERDAY) -> Path:
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - seconds))
    return path.with_name(f"{path.name}.{day}")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"password {KNOWN}!", "password …!"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer …"),
        ("authorization: bearer abc123", "authorization: bearer …"),
        ("AUTHORIZATION: BEARER abc123", "AUTHORIZATION: BEARER …"),
        ("{'Authorization': 'Bearer abc', 'x': 1}", "{'Authorization': 'Bearer …', 'x': 1}"),
        ("GET /x?key=abc&a=1", "GET /x?key=…&a=1"),
        ("GET /x?a=1&sig=abc", "GET /x?a=1&sig=…"),
        ("GET /x?token=abc HTTP", "GET /x?token=… HTTP"),
        ('{"refresh_token":"abc","a":1}', '{"refresh_token":"…","a":1}'),
        ('{"access_token": "abc"}', '{"access_token": "…"}'),
        ("refresh_token=abc&a=1", "refresh_token=…&a=1"),
        ("redis://user:pass@host:6379/0", "redis://…@host:6379/0"),
        ("redis://:p-a.s%40s@host/0", "redis://…@host/0"),
        ("got eyJhbGciOi.eyJzdWIi.sig_na-ture end", "got … end"),
        ("got sk-proj-abcdefgh_1234 end", "got … end"),
        ("got fk-abcdefgh1234 end", "got … end"),
        ("https://host/path is no secret", "https://host/path is no secret"),
        ("a task-force of risk-takers", "a task-force of risk-takers"),
        ("", ""),
    ],
)
def test_secret_is_taken_out_and_nothing_else(line: str, shown: str) -> None:
    assert Redactor([KNOWN])(line) == shown


def test_longer_secret_goes_before_the_one_it_contains() -> None:
    assert Redactor(["abcdefgh", "abcdefgh-ijkl"])("x abcdefgh-ijkl y abcdefgh") == "x … y …"


def test_very_short_secrets_would_eat_the_text_and_are_left() -> None:
    assert Redactor(["a", "", "1234567"])("a 1234567 line") == "a 1234567 line"


def test_no_sink_shows_a_secret_and_each_record_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SETUP, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    written = (tmp_path / "access.log").read_text()
    for text in (done.stderr, written):
        assert "hunter2" not in text
        assert "abc.def" not in text
        assert "sk-abcdefgh" not in text
        assert "RuntimeError: within …, …" in text
        assert "several\\nlines\\r2026" in text
        assert "access - path=/x …" in text
        assert "chatter" not in text
    assert sorted(done.stderr.splitlines()) == sorted(written.splitlines())
    assert (tmp_path / "access.log").stat().st_mode & 0o007 == 0


def test_four_processes_lose_mix_and_cut_no_line_while_days_change(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(worker), str(LINES)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(PROCESSES)
    ]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    older = dated(path, 2 * YESTERDAY)
    for target, seconds in ((dated(path), YESTERDAY), (older, 2 * YESTERDAY)):
        wait_for(lambda: path.exists() and path.stat().st_size > 50_000, 10, "lines")
        age(path, seconds)
        wait_for(target.exists, 10, "the change of the day")
    assert [worker.wait(30) for worker in workers] == [0] * PROCESSES
    for worker in workers:
        worker.communicate()
    stamped = re.compile(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO writer - worker=(\d) number=(\d+) (x*) end"
    )
    seen = []
    for file in (path, dated(path), older):
        text = file.read_text()
        assert text.endswith("\n")
        for line in text.splitlines():
            match = stamped.fullmatch(line)
            assert match, line
            assert len(match[3]) == int(match[2]) * 37 % 900
            seen.append((int(match[1]), int(match[2])))
    assert sorted(seen) == [(w, n) for w in range(PROCESSES) for n in range(LINES)]


def test_day_changes_though_the_file_was_just_written_to(daily: DailyFile, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    daily.write_lines("old\n")
    age(path)
    daily.write_lines("of the same second\n")
    daily._next_look = 0.0  # as if a second had passed
    daily.write_lines("new\n")
    assert path.read_text() == "new\n"
    assert dated(path).read_text() == "old\nof the same second\n"


def test_same_day_twice_overwrites_nothing(daily: DailyFile, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for text in ("first\n", "second\n", "third\n"):
        daily.write_lines(text)
        age(path)
        daily._next_look = 0.0
    daily.write_lines("today\n")
    kept = sorted(p.read_text() for p in tmp_path.glob("access.log*"))
    assert kept == ["first\n", "second\n", "third\n", "today\n"]


def test_clock_that_goes_back_changes_no_day(daily: DailyFile, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    daily.write_lines("one\n")
    age(path, -YESTERDAY)
    daily._next_look = 0.0
    daily.write_lines("two\n")
    assert path.read_text() == "one\ntwo\n"


def test_file_taken_away_is_begun_anew(daily: DailyFile, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    daily.write_lines("one\n")
    path.rename(tmp_path / "moved")
    daily._next_look = 0.0
    daily.write_lines("two\n")
    assert (path.read_text(), (tmp_path / "moved").read_text()) == ("two\n", "one\n")


def test_old_files_are_swept(daily: DailyFile, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for days in range(2, 8):
        dated(path, days * YESTERDAY).write_text("old\n")
    (tmp_path / "other.log").write_text("not ours\n")
    daily.write_lines("one\n")
    age(path)
    daily._next_look = 0.0
    daily.write_lines("two\n")
    left = {p.name for p in tmp_path.glob("access.log.*")}
    assert left == {dated(path, days * YESTERDAY).name for days in (1, 2, 3)}
    assert (tmp_path / "other.log").exists()


def test_odd_characters_are_written_and_break_nothing(daily: DailyFile, tmp_path: Path) -> None:
    daily.write_lines("字 \ud800 \x00 end\n")
    assert (tmp_path / "access.log").read_bytes() == "字 \\ud800 \x00 end\n".encode()


def test_each_line_has_the_id_of_its_own_request() -> None:
    request_id.set("-")
    formatter = LineFormatter(Redactor())
    told: dict[str, str] = {}

    def serve(name: str) -> None:
        request_id.set(name)
        time.sleep(0.05)
        told[name] = formatter.line(0.0, "INFO", "x", "done")

    threads = [threading.Thread(target=serve, args=(f"req_{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f" x {name} done" in line for name, line in told.items())
    assert len(told) == 5
    assert formatter.line(0.0, "INFO", "x", "outside").endswith(" x - outside")


def test_answers_request_id_is_in_its_log_lines(gateway: GatewayProcess) -> None:
    identity = gateway.post(question("#500")).headers["x-request-id"]
    lines = wait_for(lambda: lines_with(gateway, identity, 2), 5)
    assert "upstream failed provider=custom upstream=up" in lines[0]
    assert "path=/v1/chat/completions status=502" in lines[1]


def lines_with(gateway: GatewayProcess, word: str, count: int) -> list[str]:
    """The log lines with this word, once there are so many."""
    lines = [line for line in gateway.log_text().splitlines() if word in line]
    return lines if len(lines) >= count else []


def test_path_with_line_breaks_and_blanks_is_one_word(gateway: GatewayProcess) -> None:
    gateway.post({}, "/v1/x%0A2026-01-01%2000:00:00,000%20INFO%20forged%85%E5%AD%97")
    line = wait_for(
        lambda: next((x for x in gateway.log_text().splitlines() if "forged" in x), None), 5
    )
    assert "path=/v1/x%0A2026-01-01%2000:00:00,000%20INFO%20forged%85%E5%AD%97 status=404" in line


class Sink:
    """Remembers what it is given; may fail."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.texts: list[str] = []
        self._failure = failure

    def write_lines(self, text: str) -> None:
        self.texts.append(text)
        if self._failure:
            raise self._failure


def test_gathered_lines_go_out_by_themselves_in_few_writes() -> None:
    sink = Sink()
    gathered = Gathered([sink])
    for number in range(500):
        gathered.add(f"line {number}")
    assert len(sink.texts) <= 1
    wait_for(lambda: "".join(sink.texts).count("\n") == 500, 20 * FLUSH_EVERY, "the flush")
    assert len(sink.texts) <= 3
    assert "".join(sink.texts) == "".join(f"line {n}\n" for n in range(500))


def test_flush_writes_at_once_and_nothing_twice() -> None:
    sink = Sink()
    gathered = Gathered([sink])
    gathered.add("a")
    gathered.flush()
    gathered.flush()
    assert sink.texts == ["a\n"]


@pytest.mark.parametrize("failure", [OSError(28, "no space left"), ValueError("closed file")])
def test_sink_that_fails_stops_neither_the_others_nor_what_follows(failure: Exception) -> None:
    broken, sound = Sink(failure), Sink()
    gathered = Gathered([broken, sound])
    for text in ("a", "b"):
        gathered.add(text)
        wait_for(lambda: f"{text}\n" in sound.texts, 20 * FLUSH_EVERY, "the flush")  # noqa: B023
    assert len(broken.texts) == 2


def test_lines_added_by_many_threads_during_flushes_are_all_there() -> None:
    sink = Sink()
    gathered = Gathered([sink])

    def add(thread: int) -> None:
        for number in range(3000):
            gathered.add(f"{thread}-{number}")
            if not number % 10:
                gathered.flush()

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gathered.flush()
    lines = "".join(sink.texts).splitlines()
    assert sorted(lines) == sorted(f"{t}-{n}" for t in range(4) for n in range(3000))


def test_records_and_ready_lines_share_a_stream() -> None:
    request_id.set("-")
    stream = io.StringIO()
    handler = StreamLines(stream)
    handler.setFormatter(LineFormatter(Redactor()))
    handler.handle(logging.makeLogRecord({"msg": "record %s", "args": ("one",), "name": "n"}))
    handler.write_lines("ready\n")
    assert stream.getvalue().endswith(" n - record one\nready\n")
