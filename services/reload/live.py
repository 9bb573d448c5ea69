"""The application that gunicorn calls: whichever serves at the moment.

A change of the configuration file is checked as a whole. If it is valid, a new application serves
all requests from then on, and the old one ends with its last answer; if not, nothing changes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from services import log as logs
from services.config import ROOT, Settings, differing, keep_running, needs_restart
from services.reload.candidate import (
    SETTLED_AFTER,
    ConfigSource,
    Content,
    Refused,
    checked,
    refusal,
)
from services.reload.generation import Application, Generation, StartResponse
from services.reload.lasting import Lasting
from services.reload.watcher import Watcher
from services.store import StoreAway

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
"""Seconds between two looks at the file."""

Make = Callable[[Settings, Lasting], Application]


class Live:
    """WSGI application: one per worker, made after the fork; `make` makes one for settings.

    Raises `ConfigErrors` or `Refused` if the service cannot run with its configuration.
    """

    def __init__(
        self,
        make: Make,
        root: Path = ROOT,
        look_every: float = LOOK_EVERY,
        settled_after: float = SETTLED_AFTER,
    ) -> None:
        self._make = make
        self._source = ConfigSource(root, settled_after)
        self._looking = threading.Lock()
        self._retired: list[Generation] = []
        self._told: tuple[str, tuple[str, ...]] = ("", ())
        self._begin()
        self._watcher = Watcher(self.look, look_every)
        self._watcher.start()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        generation = self._current
        turn = generation.enter()
        while generation is not self._current:  # it may be closed by now
            generation.leave(turn)
            generation = self._current
            turn = generation.enter()
        return generation.answer(environ, start_response, turn)

    @property
    def settings(self) -> Settings:
        """Those that serve the requests that come now."""
        return self._current.serving.settings

    def ask(self) -> None:
        """Look at the file soon; for signal handlers."""
        self._watcher.ask()

    def look(self, asked: bool = False) -> None:
        """Take the file up if its content is new; `asked`: also if it was refused before."""
        with self._looking:
            self._bury()
            content = self._source.settled(self._seen)
            if content.digest != self._seen or (asked and self.lasting.problems):
                self._take_up(content)
            elif asked:
                log.info("config unchanged worker=%d", os.getpid())

    def close(self) -> None:
        """At the end of the worker: write what is not written yet."""
        self._watcher.stop()
        self.lasting.close()
        with contextlib.suppress(StoreAway):
            self.lasting.serving.credentials.tokens.save_missed()

    def _begin(self) -> None:
        """With the file as it is now; if that is refused, with what the siblings serve."""
        source, content = self._source, self._source.read()
        kept = source.kept
        self._started = source.settings(content) if kept is None else source.of_file(kept.started)
        self._had_file = content.path is not None or (kept is not None and kept.started is not None)
        self._seen = content.digest
        started = self._started
        logs.setup(started.log_level, started.log_folder, started.secrets())
        self.lasting = Lasting(started)
        try:
            app = self._made(keep_running(self._checked(content), started))
        except Refused as exc:
            if kept is None:
                raise
            self._refuse(exc)
            app = self._made(keep_running(source.of_file(kept.accepted), started))
        self._current = Generation(app)
        logging.getLogger().setLevel(self.settings.log_level)
        self._warn()

    def _warn(self) -> None:
        """Say what the settings make worth saying, each thing once for the whole service."""
        kept = self._source.kept
        for text in self.settings.warnings:
            if kept is None or kept.is_first_to_say(text):
                log.warning("config: %s", text)

    def _take_up(self, content: Content) -> None:
        self._seen = content.digest
        try:
            self._change(content)
        except Refused as exc:
            self._refuse(exc)
            return
        self.lasting.problems, self._told = 0, ("", ())
        self._had_file = content.path is not None
        if self._source.kept is not None and content.data is not None:
            self._source.kept.accept(content.data)

    def _change(self, content: Content) -> None:
        """Serve by the settings of `content`. Raises `Refused`."""
        written = self._checked(content)
        settings = keep_running(written, self._started)
        changed = differing(self.settings, settings)
        if changed:
            self._swap(Generation(self._made(settings)))
            self._warn()
        waiting = [key for key in differing(self._started, written) if needs_restart(key)]
        log.info(
            "config reloaded worker=%d changed=%s%s",
            os.getpid(),
            ",".join(changed) or "nothing",
            f" needs_restart={','.join(waiting)}" if waiting else "",
        )

    def _checked(self, content: Content) -> Settings:
        return checked(self._source, content, self._started, self._had_file)

    def _made(self, settings: Settings) -> Application:
        """The application for `settings`. Raises `Refused`."""
        logs.hide_too(settings.secrets())
        try:
            return self._make(settings, self.lasting)
        except Exception as exc:  # whatever goes wrong in a start refuses the settings here
            raise refusal(exc) from exc

    def _swap(self, new: Generation) -> None:
        old = self._current
        self.lasting.use(new.serving)
        self._current = new
        self._retired.append(old)
        logging.getLogger().setLevel(self.settings.log_level)

    def _refuse(self, refused: Refused) -> None:
        """Say so, once for each content."""
        worker, count = os.getpid(), len(refused.problems)
        self.lasting.problems = count
        told, self._told = self._told, (self._seen, refused.problems)
        if told == self._told:
            log.info("config still refused worker=%d problems=%d", worker, count)
            return
        log.error("config refused worker=%d problems=%d: the old settings stay", worker, count)
        for problem in refused.problems:
            log.error("config problem: %s", problem)

    def _bury(self) -> None:
        """Close the applications whose last answer is over."""
        over = [generation for generation in self._retired if generation.is_idle]
        if not over:
            return
        for generation in over:
            self._retired.remove(generation)
            generation.serving.close()
        over.clear()
        del generation
        gc.collect()  # an application is a circle, and its worker collects next to never
