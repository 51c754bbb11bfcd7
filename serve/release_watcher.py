"""Follows the release pointers: a new release is loaded beside the old one and takes over between two batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

from cluster.errors import CorruptArtifact
from safety.errors import SafetyError
from serve.config import ServeConfig
from serve.engine import Engine
from serve.loading import find_release, load_served

logger = logging.getLogger(__name__)

Outcome = Literal["loaded", "refused", "failed"]


class ReleaseWatcher:
    """Polls the release pointers and replaces the engine's models when they move.

    A release that does not verify, does not fit the base model or does not render is refused: the old one stays, and
    the refused one is not tried again until the pointer has moved. A transient fault, such as a store that does not
    answer, is tried again at each poll.
    """

    def __init__(self, config: ServeConfig, engine: Engine, report: Callable[[str, Outcome], None]) -> None:
        """Watch the pointers of a config; ``report`` is called with a model's name and outcome at each change."""
        self._config, self._engine, self._report = config, engine, report
        self._refused: dict[str, str] = {}
        self._last_failure: dict[str, str] = {}

    def start(self, every_s: float) -> None:
        """Start to poll the pointers, in a thread that ends with the process."""

        def run() -> None:
            pause = threading.Event()
            while not pause.wait(every_s):
                self.poll()

        threading.Thread(target=run, name="release-watcher", daemon=True).start()

    def poll(self) -> None:
        """Check every pointer once."""
        for name in self._config.serve.pointers:
            try:
                self._follow(name)
                self._last_failure.pop(name, None)
            except Exception as error:
                self._fail(name, error)

    def _follow(self, name: str) -> None:
        release = find_release(self._config, name)
        before = self._engine.release(name)
        if release in (before, self._refused.get(name)):
            return
        try:
            served = load_served(self._config, name, release)
        except (SafetyError, CorruptArtifact) as error:
            self._refused[name] = release
            logger.error("the release %s of %r is refused, %s stays: %s", release, name, before, error)
            self._report(name, "refused")
            return
        self._engine.replace(name, served)
        self._refused.pop(name, None)
        logger.warning("%r: %s takes over from %s", name, release, before)
        self._report(name, "loaded")

    def _fail(self, name: str, error: Exception) -> None:
        """Report a failed poll; it is logged once for as long as it fails in the same way."""
        self._report(name, "failed")
        message = str(error)
        if self._last_failure.get(name) != message:
            logger.error("the pointer %r cannot be followed: %s", name, message)
            self._last_failure[name] = message
