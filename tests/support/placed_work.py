"""Work for tests to place: functions that Ray's workers can import."""

from __future__ import annotations

import os
import time

from safety.errors import ConfigError


def process() -> int:
    """Return this process's id."""
    return os.getpid()


def refused() -> None:
    """Fail in a known way."""
    raise ConfigError("no", field="some.field", fix="yes")


def endless() -> None:
    """Take longer than any test waits."""
    time.sleep(600)
