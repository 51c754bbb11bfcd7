"""Fetchers of models that lie elsewhere, by the scheme of their address ("s3"): the science knows no object store.

What knows one enters its fetcher here (``serve/__init__.py``), so every process that can load a model for a job or an
endpoint can fetch it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from safety.errors import ConfigError

Choice = Callable[[Sequence[str]], list[str]]
"""Chooses, of the names of a folder's files, those that are fetched."""


class Place(NamedTuple):
    """Where a model lies, and where its copies are kept on this machine."""

    address: str
    endpoint: str | None
    region: str | None
    cache: Path


Fetcher = Callable[[Place, Choice], Path]
"""Brings the chosen files below an address, or the one file that it names, to this machine; returns their place."""

fetchers: dict[str, Fetcher] = {}


def is_address(path: str) -> bool:
    """Return whether a model's path is an address, such as ``s3://bucket/prefix``."""
    return "://" in path


def fetch(place: Place, choose: Choice) -> Path:
    """Fetch a model; raise ConfigError where this process has no fetcher for its scheme. Raises as the fetcher does."""
    scheme = place.address.partition("://")[0]
    if scheme not in fetchers:
        raise ConfigError(
            f"nothing here fetches {scheme}:// addresses",
            field="model.path",
            fix=f"use one of {', '.join(f'{name}://' for name in sorted(fetchers)) or 'the other forms'}, a hub id "
            "(org/name), or a folder",
        )
    return fetchers[scheme](place, choose)
