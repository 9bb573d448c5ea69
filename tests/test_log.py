"""Log lines: no secret in any, none lost, mixed or cut, each under its request's id."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emulators.openai_compat import OpenAICompat
from services.server.log import (
    FLUSH_EVERY,
    GatheredLines,
    LineFormatter,
    Lines,
    Output,
    Redactor,
    request_id,
)
from tests.gateway import KEY, ROOT, GatewayProcess, custom, question, wait_for

KNOWN = "hunter2-and-more"
PROCESSES = 4
LINES = 2000

WRITER = """
import io, logging, os, sys, time
from pathlib import Path
from services.server.log import LineFormatter, Lines, Output, Redactor
log = logging.getLogger("writer")
log.addHandler(Lines(Output(io.StringIO(), Path(sys.argv[1])), LineFormatter(Redactor())))
log.setLevel("INFO")
log.propagate = False
print("ready", flush=True)
sys.stdin.readline()
total = int(sys.argv[3])
for number in range(total):
    if number in (total // 3, 2 * total // 3):
        os.environ["TZ"] = "DAY0" if number == total // 3 else "DAY-24"  # a day later
        time.tzset()
    log.info("worker=%s number=%d %s end", sys.argv[2], number, "x" * (number * 37 % 900))
    if not number % 4:
        time.sleep(0.008)
"""

SETUP = """
import logging, sys
from pathlib import Path
from services.server import log
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


Day = Callable[[int], Path]


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Day]:
    """Lets this process live a day before or after today; the path of that day's file."""

    def change(days: int) -> Path:
        monkeypatch.setenv("TZ", f"DAY{-24 * days}")  # POSIX counts hours west of Greenwich
        time.tzset()
        return tmp_path / time.strftime("access.log.%Y-%m-%d")

    change(0)
    yield change
    monkeypatch.undo()
    time.tzset()


def output(folder: Path) -> Output:
    return Output(io.StringIO(), folder, kept=3)


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
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(worker), str(LINES)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TZ": "DAY24"},
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
    assert [worker.wait(30) for worker in workers] == [0] * PROCESSES
    for worker in workers:
        worker.communicate()
    stamped = re.compile(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO writer - worker=(\d) number=(\d+) (x*) end"
    )
    seen = []
    files = sorted(tmp_path.glob("access.log.*"))
    assert len(files) == 3
    for file in files:
        text = file.read_text()
        assert text.endswith("\n")
        for line in text.splitlines():
            match = stamped.fullmatch(line)
            assert match, line
            assert len(match[3]) == int(match[2]) * 37 % 900
            seen.append((int(match[1]), int(match[2])))
    assert sorted(seen) == [(w, n) for w in range(PROCESSES) for n in range(LINES)]


def test_each_day_has_its_file_and_the_link_leads_to_the_last(day: Day, tmp_path: Path) -> None:
    written = output(tmp_path)
    for number in (-1, 0, 1):
        day(number)
        written.write(f"of day {number}\n")
        written.write("more\n")
        assert (tmp_path / "access.log").read_text() == f"of day {number}\nmore\n"
    assert [day(n).read_text() for n in (-1, 0)] == ["of day -1\nmore\n", "of day 0\nmore\n"]


def test_clock_that_goes_back_loses_nothing(day: Day, tmp_path: Path) -> None:
    written = output(tmp_path)
    for number in (1, 0, 1):
        day(number)
        written.write(f"{number}\n")
    assert [day(n).read_text() for n in (0, 1)] == ["0\n", "1\n1\n"]


def test_file_taken_away_is_begun_anew(day: Day, tmp_path: Path) -> None:
    written = output(tmp_path)
    written.write("one\n")
    day(0).rename(tmp_path / "moved")
    written.write("two\n")
    assert (tmp_path / "access.log").read_text() == "two\n"
    assert (tmp_path / "moved").read_text() == "one\n"


def test_log_of_an_older_version_is_left_alone(day: Day, tmp_path: Path) -> None:
    (tmp_path / "access.log").write_text("old\n")
    output(tmp_path).write("new\n")
    assert (tmp_path / "access.log").read_text() == "old\n"
    assert day(0).read_text() == "new\n"


def test_old_files_are_swept(day: Day, tmp_path: Path) -> None:
    for number in range(1, 7):
        (tmp_path / f"access.log.2026-01-0{number}").write_text("old\n")
    (tmp_path / "other.log").write_text("not ours\n")
    output(tmp_path).write("one\n")
    left = {path.name for path in tmp_path.glob("access.log.*")}
    assert left == {day(0).name, *(f"access.log.2026-01-0{number}" for number in (4, 5, 6))}
    assert (tmp_path / "other.log").exists()


def test_odd_characters_are_written_and_break_nothing(tmp_path: Path) -> None:
    output(tmp_path).write("字 \ud800 \x00 end\n")
    assert (tmp_path / "access.log").read_bytes() == "字 \\ud800 \x00 end\n".encode()


def test_folder_that_cannot_be_written_is_told_in_words_and_the_stream_serves(
    tmp_path: Path,
) -> None:
    (tmp_path / "log").write_text("a file where a folder should be")
    done = subprocess.run(
        [sys.executable, "-c", SETUP, str(tmp_path / "log")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "WARNING services.server.log - log file cannot be written" in done.stderr
    assert "args … " in done.stderr
    assert "path=/x …" in done.stderr


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


@pytest.mark.parametrize("stream", [False, True])
def test_access_line_names_key_model_provider_and_tokens(
    tmp_path: Path, upstream: OpenAICompat, stream: bool
) -> None:
    settings = custom(upstream.base_url, models=["emu-small"])
    settings["auth"] = {"keys": [{"key": KEY, "name": "the bot's"}]}
    settings["models"] = {"fallbacks": {"up/gone#500": ["emu-small"]}}
    asking_for_usage = {"stream_options": {"include_usage": True}} if stream else {}
    with GatewayProcess(tmp_path, settings) as process:
        answer = process.post(
            question("hi", "up/gone#500", stream=stream, **asking_for_usage),
            headers={"X-Request-Id": "id-of-the-caller"},
        )
        said = answer.text.removesuffix("data: [DONE]\n\n").strip().splitlines()[-1]
        used = json.loads(said.removeprefix("data: "))["usage"]
        line = wait_for(lambda: lines_with(process, "path=/v1/chat/completions", 1), 5)[0]
        assert f" {answer.headers['x-request-id']} " in line
        fields = dict(word.split("=", 1) for word in line.split(" ")[6:])
        told = {name: fields[name] for name in ("key_name", "model", "served", "provider")}
        assert told == {
            "key_name": "the-bot's",
            "model": "up/gone#500",
            "served": "emu-small",
            "provider": "custom",
        }
        assert int(fields["prompt"]) == used["prompt_tokens"] > 0
        assert int(fields["completion"]) == used["completion_tokens"] > 0
        assert fields["client_request"] == "id-of-the-caller"


def test_access_line_of_a_refused_request_says_what_is_known(gateway: GatewayProcess) -> None:
    body = question("hi", "no such sk-abcdefgh12345678 model")
    unknown = gateway.post(body).headers["x-request-id"]
    stranger = gateway.post(question("hi"), headers={"Authorization": "Bearer sk-x"})
    [line] = wait_for(lambda: lines_with(gateway, unknown, 1), 5)
    assert line.endswith(" model=no-such-…")
    [line] = wait_for(lambda: lines_with(gateway, stranger.headers["x-request-id"], 1), 5)
    assert "status=401" in line
    assert "model=" not in line


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
    """A stream that remembers what it is given; may fail."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.texts: list[str] = []
        self._failure = failure

    def write(self, text: str) -> None:
        self.texts.append(text)
        if self._failure:
            raise self._failure

    def flush(self) -> None:
        pass


def gathered(stream: Any, folder: Path | None = None) -> GatheredLines:
    return GatheredLines(Output(stream, folder), LineFormatter(Redactor()))


def messages(text: str) -> list[str]:
    """What the lines say, without time, level and name."""
    return [line.rpartition(" ")[2] for line in text.splitlines()]


def test_gathered_lines_go_out_by_themselves_in_few_writes() -> None:
    sink = Sink()
    lines = gathered(sink)
    for number in range(500):
        lines.write("INFO", "access", f"line{number}")
    assert len(sink.texts) <= 1
    wait_for(lambda: "".join(sink.texts).count("\n") == 500, 20 * FLUSH_EVERY, "the flush")
    assert len(sink.texts) <= 3
    assert messages("".join(sink.texts)) == [f"line{n}" for n in range(500)]


def test_flush_writes_at_once_and_nothing_twice() -> None:
    sink = Sink()
    lines = gathered(sink)
    lines.write("INFO", "access", "a")
    lines.flush()
    lines.flush()
    assert messages("".join(sink.texts)) == ["a"]


@pytest.mark.parametrize("failure", [OSError(28, "no space left"), ValueError("closed file")])
def test_stream_that_fails_stops_neither_the_file_nor_what_follows(
    failure: Exception, tmp_path: Path
) -> None:
    broken = Sink(failure)
    lines = gathered(broken, tmp_path)
    for count, text in enumerate(("a", "b"), 1):
        lines.write("INFO", "access", text)
        wait_for(
            lambda: (tmp_path / "access.log").read_text().count("\n") == count,  # noqa: B023
            20 * FLUSH_EVERY,
            "the flush",
        )
    assert messages((tmp_path / "access.log").read_text()) == ["a", "b"]
    assert len(broken.texts) == 2


def test_lines_added_by_many_threads_during_flushes_are_all_there() -> None:
    sink = Sink()
    lines = gathered(sink)

    def add(thread: int) -> None:
        for number in range(3000):
            lines.write("INFO", "access", f"{thread}-{number}")
            if not number % 10:
                lines.flush()

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.flush()
    told = messages("".join(sink.texts))
    assert sorted(told) == sorted(f"{t}-{n}" for t in range(4) for n in range(3000))


def test_records_and_gathered_lines_share_a_stream() -> None:
    request_id.set("-")
    stream = io.StringIO()
    made, formatter = Output(stream), LineFormatter(Redactor())
    record = logging.makeLogRecord({"msg": "record %s", "args": ("one",), "name": "n"})
    Lines(made, formatter).handle(record)
    ready = GatheredLines(made, formatter)
    ready.write("INFO", "access", "ready")
    ready.flush()
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" n - record one")
    assert second.endswith(" INFO access - ready")
