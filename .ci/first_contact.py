"""What a newcomer does with a clone, and what the Dockerfile makes of it: `first_contact.py CLONE`.

Needs nothing but the standard library, so that nothing of ours is there before it comes. The
clone's `bin/serve --demo` installs, starts, and is asked what the README asks; its answers must be
those that the README shows. Then the Dockerfile is done line by line in a folder: an environment
from requirements.txt alone, a user without rights, empty volumes.
"""

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE = 600  # seconds, downloads included
SHOWN = "http://127.0.0.1:8080"
UNPRIVILEGED = 10001


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of(url, key=""):
    """The status of a GET; None if nobody answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return None


@contextlib.contextmanager
def running(command, ready, **options):
    """A server, once `ready()` is true; it has to end with status 0 when asked to."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        while not ready():
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                sys.exit(f"first contact: {command} does not answer")
            time.sleep(0.2)
        print(f"first answer after {time.monotonic() - began:.0f} s", flush=True)
        yield
        process.send_signal(signal.SIGINT)
        if process.wait(30):
            sys.exit(f"first contact: {command} ended with status {process.returncode}")
    finally:
        process.kill()


def check(condition, *facts):
    if not condition:
        sys.exit("first contact: " + "\n".join(map(str, facts)))


def readme(clone):
    """Its blocks: start, request, answer, second request, answer, configuration, …"""
    text = (clone / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^(```|~~~)\w+\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    return [block for _, block in blocks]


def be_a_newcomer(clone):
    """Do what the README says, its port aside."""
    start, request, answer, loop, transcript, *_ = readme(clone)
    url = f"http://127.0.0.1:{free_port()}"

    def run(command):
        command = ["sh", "-euc", command.replace(SHOWN, url)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
        check(done.returncode == 0, command, done.stdout, done.stderr)
        return done.stdout.replace(url, SHOWN)

    # the folders of the demo are the clone's own, as a newcomer's are
    command = [*start.split(), "--port", url.rpartition(":")[2]]
    with running(command, lambda: status_of(f"{url}/health") == 200, cwd=clone):
        told, shown = json.loads(run(request)), json.loads(answer)
        check(told.keys() == shown.keys(), told)
        for name in ("model", "object"):
            check(told[name] == shown[name], told)
        choice = told["choices"][0]
        check(choice["finish_reason"] == "stop", told)
        check("causeway" in choice["message"]["content"].lower(), told)
        name = re.compile(r"[\w-]{33}(?=\.\w{3,4}\))")  # of a picture or a file
        printed = name.sub("NAME", run(loop))
        check(printed == name.sub("NAME", transcript), "the README shows something else:", printed)


class Container:
    """The Dockerfile, done in `folder` instead of /. Its port becomes a free one."""

    def __init__(self, clone, folder):
        self.clone = clone
        self.folder = folder
        self.ignored = (clone / ".dockerignore").read_text().split()
        text = (clone / "Dockerfile").read_text().replace("\\\n", " ")
        self.port = re.search(r"^EXPOSE (\d+)$", text, re.MULTILINE)[1]
        free = str(free_port())
        lines = re.sub(rf"\b{self.port}\b", free, text).splitlines()
        self.port = free
        self.steps = [line.partition(" ")[::2] for line in lines if line and line[0] != "#"]
        self.user = UNPRIVILEGED if os.getuid() == 0 else None
        self.place = folder
        self.environ = {"PATH": f"{folder}/venv/bin:{os.environ['PATH']}", "HOME": str(folder)}

    def build(self):
        """Everything up to the command that runs."""
        python = self.python()
        subprocess.run([python, "-m", "venv", self.folder / "venv"], check=True)
        todo = {"RUN": self.run, "COPY": self.copy, "WORKDIR": self.enter, "ENV": self.set}
        for word, rest in self.steps:
            todo.get(word, lambda _: None)(rest)

    def python(self):
        """One that the user may run: root's own home is closed to others."""
        names = ["python3.13", "python3.12", "python3.11", "python3"]
        folders = os.get_exec_path()
        for path in (Path(folder, name) for name in names for folder in folders):
            with contextlib.suppress(OSError):
                works = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
                command = [path, "-c", works]
                if not subprocess.run(command, user=self.user, capture_output=True).returncode:
                    return path
        copy = self.folder / "python"
        shutil.copytree(sys.base_prefix, copy, symlinks=True)
        return copy / "bin" / f"python3.{sys.version_info.minor}"

    def run(self, command):
        if command.startswith("useradd "):
            check(f"--uid {UNPRIVILEGED} " in command, command)
            return
        if self.user is None:  # who is nobody's superior can only keep what is his
            command = f"chown() {{ :; }}; {command}"
        subprocess.run(["sh", "-euc", command], cwd=self.place, env=self.environ, check=True)

    def copy(self, words):
        *names, target = words.split()
        for source in (self.clone / name for name in names):
            check(not self.is_ignored(source), f"{source} is copied and in .dockerignore")
            if source.is_dir():
                shutil.copytree(source, self.place / target, ignore=self.ignored_in)
            else:
                shutil.copy(source, self.place / target)

    def ignored_in(self, folder, names):
        return [name for name in names if self.is_ignored(Path(folder, name))]

    def is_ignored(self, path):
        """A pattern is of the whole path, unless it begins with **/."""
        whole = str(path.relative_to(self.clone))
        return any(
            fnmatch.fnmatch(path.name, pattern[3:])
            if pattern.startswith("**/")
            else fnmatch.fnmatch(whole, pattern)
            for pattern in self.ignored
        )

    def enter(self, path):
        self.place = self.folder / path.lstrip("/")
        self.place.mkdir()

    def set(self, words):
        self.environ |= dict(word.split("=", 1) for word in shlex.split(words))

    def last(self, word):
        """What the last step of this name runs."""
        rest = [rest for name, rest in self.steps if name == word][-1]
        return json.loads(rest[rest.index("[") :])

    def serve(self):
        """Start it with the README's configuration, watch its health as Docker would, ask with a
        key and without.
        """
        config = readme(self.clone)[5]
        (self.place / "config.json").write_text(config)
        [key] = json.loads(config)["auth"]["keys"]
        options = {"cwd": self.place, "env": self.environ, "user": self.user, "group": self.user}
        options["extra_groups"] = [] if self.user else None
        url = f"http://127.0.0.1:{self.port}/v1/models"

        def is_healthy():
            probe = subprocess.run(self.last("HEALTHCHECK"), capture_output=True, **options)
            return probe.returncode == 0

        with running(self.last("CMD"), is_healthy, **options):
            check((status_of(url), status_of(url, key)) == (401, 200), "its key does not open it")
        folders = {path.name for path in self.place.iterdir() if path.stat().st_uid == self.user}
        check(self.user is None or folders == {"data", "images", "files", "log"}, folders)


if __name__ == "__main__":
    given = Path(sys.argv[1]).resolve()
    print("--- a newcomer: bin/serve --demo, and the requests of the README", flush=True)
    be_a_newcomer(given)
    print("--- the Dockerfile, its command run by a user without rights", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        container = Container(given, Path(temporary))
        container.build()
        container.serve()
