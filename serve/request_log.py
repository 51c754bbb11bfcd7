"""Request records for logs and metrics. They never hold keys, and prompts only when the settings ask for it."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
LOGGER = "serve.requests"


@dataclass
class RequestRecord:
    """The record of one request; filled in while it is answered.

    ``code`` is "ok" or the error envelope's code, out of a fixed set. ``model`` is one of the served names.
    """

    request_id: str
    path: str
    time: float = field(default_factory=time.time)
    key: str | None = None
    model: str | None = None
    release: str | None = None
    n: int | None = None
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    images: int = 0
    flagged: int = 0
    withheld: int = 0
    batch: int | None = None
    status: int = 0
    code: str = "ok"
    latency_s: float = 0.0
    prompt: str | None = None


class Observer(Protocol):
    """A receiver of request records, such as a log or a set of metrics."""

    def observe(self, record: RequestRecord) -> None:
        """Process the record of an answered request."""


class Observers:
    """Several observers as one."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self._members = tuple(members)

    def observe(self, record: RequestRecord) -> None:
        """Pass a record on to each observer."""
        for member in self._members:
            member.observe(record)


class JsonLog:
    """Writes one line of JSON per request to standard error, where Ray collects the logs of its workers."""

    def __init__(self) -> None:
        """Give the logger its own handler, so that no other format wraps the line."""
        self._logger = logging.getLogger(LOGGER)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        if not self._logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(message)s"))
            self._logger.addHandler(handler)

    def observe(self, record: RequestRecord) -> None:
        """Write a request's line, without the fields that do not apply."""
        line = {name: value for name, value in asdict(record).items() if value is not None}
        line["time"] = round(record.time, 3)
        line["latency_s"] = round(record.latency_s, 4)
        self._logger.info(json.dumps(line))


def given_id(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return the request's id as the proxy or the caller sent it; None where there is none, or not a valid one."""
    for name, value in headers:
        if name == REQUEST_ID_HEADER.encode():
            text = value.decode("latin-1")
            return text if REQUEST_ID.fullmatch(text) else None
    return None


def new_id() -> str:
    """Return a new request id."""
    return secrets.token_hex(16)
